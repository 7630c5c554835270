package vault

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/meta"
)

// Deletion by difference. A version whose last hold dropped is a ghost. What it
// refers to and neither its parent nor any child does is freed; with at most
// one child left the ghost is spliced out: the child gets its parent. The rule
// behind it, that the holders of a frame are connected in the tree of parents,
// is in docs/design.md.
//
// All of it goes by edge revisions: whatever changes the neighbours of a version
// (a child that seals, aborts or is spliced, a parent that is spliced) bumps its
// edge revision, and no difference is marked, and no version spliced out, on
// another edge revision than the one it was computed with. There is no lock.

const (
	// freeSlots is how many dead blocks one transaction marks.
	freeSlots = 64 << 10
	// visitTries bounds how often a visit starts again because a neighbour
	// changed meanwhile.
	visitTries = 100
	// crowd is how many children a ghost may have before it is looked at again
	// only when an eighth of them is gone: with many children each look costs
	// much and frees little.
	crowd = 8
)

// VisitStats counts, while a visit runs, what it frees: slots and their stored
// bytes.
type VisitStats struct {
	Slots atomic.Int64
	Bytes atomic.Int64
}

// freed is what a transaction marked that was not dead before.
type freed struct {
	slots int
	bytes int64
}

func (st *VisitStats) add(f freed) {
	st.Slots.Add(int64(f.slots))
	st.Bytes.Add(f.bytes)
}

// errMoved says that the neighbours of a version are not those any more that a
// difference was computed with.
var errMoved = errors.New("the neighbours of the version changed")

// Visit does what deletion has left to do with a version, one of those that
// meta.Tx.Chores names: frees what only it has and splices it out if it is a
// ghost, writes its record again if that is behind, removes its records if it is
// gone. Neighbours that are to be visited then are marked in the same
// transactions. It does nothing, and returns nil, when nothing is to be done or
// can be done now; Conflict while reclaiming is stopped in the region.
//
// It can be interrupted anywhere and called again, also by several at once.
// fence is checked in each transaction.
func (v *Vault) Visit(ctx context.Context, id snapferry.VersionID, fence Fence, st *VisitStats) error {
	if st == nil {
		st = &VisitStats{}
	}
	guard := func(tx *meta.Tx) error {
		if fence != nil {
			if err := fence(tx); err != nil {
				return err
			}
		}
		return Stopped(tx)
	}
	var err error
	for range visitTries {
		if err = v.visit(ctx, id, guard, st); !errors.Is(err, errMoved) {
			return err
		}
	}
	return snapferry.Errorf(snapferry.Unavailable, "visit version %s: %w %d times", id, err, visitTries)
}

// A family is a version and its neighbours in one state of the metadata.
type family struct {
	self    meta.Version
	parent  meta.Version // zero: none
	proven  bool         // deletion by difference is allowed in the chain
	n, open int          // children, and of them open ones
	// children are left out where their number says enough.
	children []meta.Version
}

// Stopped returns an error of Kind Conflict that says why nothing is reclaimed
// in the region; nil when it is.
func Stopped(tx *meta.Tx) error {
	why, err := tx.ReclaimStopped()
	if err != nil || why == "" {
		return err
	}
	return snapferry.Errorf(snapferry.Conflict, "nothing is reclaimed: %s", why).WithHint("stop the region and run: snapferry recover --merge")
}

// loadFamily reads a version and, if it is a ghost that can be freed, its
// neighbours.
func loadFamily(tx *meta.Tx, id snapferry.VersionID) (f family, err error) {
	f, err = loadKin(tx, id)
	if err != nil || f.self.State != snapferry.VersionGhost || f.waits() || f.crowded() {
		return f, err
	}
	if !f.self.Parent.IsZero() {
		if f.parent, err = tx.Version(f.self.Parent); err != nil {
			return f, err
		}
	}
	if f.children, err = tx.Children(id); err != nil {
		return f, err
	}
	chain, err := tx.Chain(f.self.Chain)
	f.proven = chain.Proven
	return f, err
}

// loadKin reads a version and, if it is a ghost, how many children it has.
func loadKin(tx *meta.Tx, id snapferry.VersionID) (f family, err error) {
	if f.self, err = tx.Version(id); err != nil || f.self.State != snapferry.VersionGhost {
		return f, err
	}
	f.n, f.open, err = tx.Offspring(id)
	return f, err
}

// waits reports whether a child is open: it may yet refer to all that its parent
// has.
func (f *family) waits() bool { return f.open > 0 }

// crowded reports whether the ghost has so many children, nearly all of which
// it had at the last look, that another look would not pay.
func (f *family) crowded() bool {
	return f.n > crowd && f.self.Looked > 0 && f.n > f.self.Looked-f.self.Looked/8
}

// ends reports whether a visit splices the version out.
func (f *family) ends() bool {
	return f.self.State == snapferry.VersionGhost && !f.waits() && f.n <= 1
}

func (v *Vault) visit(ctx context.Context, id snapferry.VersionID, fence Fence, st *VisitStats) error {
	var f family
	gone := false
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if err := fence(tx); err != nil {
			return err
		}
		f, err = loadFamily(tx, id)
		if gone = snapferry.IsKind(err, snapferry.NotFound); gone {
			return nil
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case gone:
		return v.bury(ctx, []snapferry.VersionID{id}, fence, st)
	case f.self.State == snapferry.VersionOpen:
		return nil
	case f.self.Stale && !f.ends(): // the last record of one that ends says all
		if err := v.rewrite(ctx, f.self, fence); err != nil {
			return moved(err)
		}
		if err := v.buryOf(ctx, []snapferry.VersionID{id}, fence, st); err != nil {
			return err
		}
		return errMoved // the edge has: go on with what there is now
	case f.self.State != snapferry.VersionGhost || f.waits() || f.crowded():
		return v.settleVisit(ctx, &f, fence, f.self.Looked)
	case !f.proven:
		return v.dissolve(ctx, &f, fence, st)
	}
	err = v.free(ctx, &f, fence, st)
	if err != nil && !errors.Is(err, errMoved) && f.self.Stale {
		// It stays for now, and so does what its record names.
		if err := v.rewrite(ctx, f.self, fence); err != nil {
			return moved(err)
		}
		if err := v.buryOf(ctx, []snapferry.VersionID{id}, fence, st); err != nil {
			return err
		}
	}
	return err
}

// moved makes a Conflict of a compare one that starts the visit again. One that
// comes from the fence is found there, at the beginning.
func moved(err error) error {
	if snapferry.IsKind(err, snapferry.Conflict) {
		return errMoved
	}
	return err
}

// sameEdge fails the transaction when a version's neighbours changed.
func sameEdge(tx *meta.Tx, self *meta.Version) (meta.Version, error) {
	now, err := tx.Version(self.ID)
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && now.Edge != self.Edge {
		return now, errMoved
	}
	return now, err
}

// settleVisit notes that a version need not be looked at before something
// changes around it.
func (v *Vault) settleVisit(ctx context.Context, f *family, fence Fence, looked int) error {
	if !f.self.Due && f.self.Looked == looked {
		return nil
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		if _, err := sameEdge(tx, &f.self); err != nil {
			return err
		}
		if err := tx.SetLooked(f.self.ID, looked); err != nil {
			return err
		}
		return tx.SetDue(f.self.ID, false)
	})
}

// free marks what only the ghost has. Its nodes go with it, in the transaction
// that splices it out: until then whoever starts again can walk them.
func (v *Vault) free(ctx context.Context, f *family, fence Fence, st *VisitStats) error {
	batch, nodes := deadList{}, deadList{}
	flush := func() error {
		err := v.markDead(ctx, f, batch, fence, st)
		batch = deadList{}
		return err
	}
	err := v.only(ctx, f, func(kind snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
		if kind == snapferry.NodeFrame {
			nodes.add(c.Ref)
			return nil
		}
		if batch.add(c.Ref); batch.n < freeSlots {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return v.unlessMoved(ctx, f, err)
	}
	if f.n > 1 {
		return v.settleVisit(ctx, f, fence, f.n)
	}
	return v.splice(ctx, f, nodes, fence, st)
}

// unlessMoved returns err, with which a walk failed, or errMoved when the
// neighbours changed meanwhile: the nodes of one that was spliced out are gone.
func (v *Vault) unlessMoved(ctx context.Context, f *family, err error) error {
	cerr := v.db.View(ctx, func(tx *meta.Tx) error {
		_, err := sameEdge(tx, &f.self)
		return err
	})
	if errors.Is(cerr, errMoved) {
		return errMoved
	}
	return err
}

// only calls fn with what the version has and none of its neighbours.
func (v *Vault) only(ctx context.Context, f *family, fn func(snapferry.FrameKind, snapferry.Position, blockmap.Child) error) error {
	self, err := v.mapOf(f.self)
	if err != nil {
		return err
	}
	var near []blockmap.Map
	neighbours := f.children
	if !f.parent.ID.IsZero() {
		neighbours = append([]meta.Version{f.parent}, neighbours...)
	}
	for _, n := range neighbours {
		m, err := v.mapOf(n)
		if err != nil {
			return err
		}
		near = append(near, m)
	}
	return blockmap.Only(ctx, self, near, fn)
}

// markDead marks slots in one transaction, if the neighbours are still those.
func (v *Vault) markDead(ctx context.Context, f *family, dead deadList, fence Fence, st *VisitStats) error {
	if dead.n == 0 {
		return nil
	}
	var done freed
	err := v.db.Update(ctx, func(tx *meta.Tx) (err error) {
		if err := fence(tx); err != nil {
			return err
		}
		if _, err := sameEdge(tx, &f.self); err != nil {
			return err
		}
		done, err = dead.markOf(tx, f.self.ID)
		return err
	})
	if err != nil {
		return err
	}
	st.add(done)
	v.forgetDead(dead)
	return nil
}

// splice takes a ghost with at most one child out of the tree. First its record
// says where its children belong, so that a recovery from any later state finds
// the way around it.
func (v *Vault) splice(ctx context.Context, f *family, nodes deadList, fence Fence, st *VisitStats) error {
	s := &splicing{f: f, nodes: nodes}
	v.spliceAll(ctx, []*splicing{s}, fence, st)
	if s.err != nil {
		return moved(s.err)
	}
	if f.n == 0 {
		return v.bury(ctx, []snapferry.VersionID{f.self.ID}, fence, st)
	}
	// The child's record still names the ghost. Writing it again is the child's
	// visit, which buries the ghost: try it now, else a later one does it.
	return v.rewriteAll(ctx, []snapferry.VersionID{f.children[0].ID}, fence, st)
}

// A splicing is a ghost that is taken out of the tree, with what only it has.
type splicing struct {
	f             *family
	blocks, nodes deadList
	err           error
}

// spliceAll splices ghosts, none of which is another's neighbour, out in the same
// transactions. The blocks are marked in the first, the nodes in the last.
func (v *Vault) spliceAll(ctx context.Context, ss []*splicing, fence Fence, st *VisitStats) {
	if len(ss) == 0 {
		return
	}
	rs := make([]*revision, len(ss))
	blocks, nodes := make([]freed, len(ss)), make([]freed, len(ss))
	for i, s := range ss {
		rs[i] = &revision{
			row: s.f.self, edge: s.f.self.Edge, forwarded: true, forward: s.f.self.Parent,
			begin: func(tx *meta.Tx) (err error) {
				blocks[i], err = s.blocks.markOf(tx, s.f.self.ID)
				return err
			},
			commit: func(tx *meta.Tx, row meta.Version) error {
				now, err := sameEdge(tx, &s.f.self)
				if errors.Is(err, errMoved) {
					return leftOut{err}
				}
				if err != nil {
					return err
				}
				if nodes[i], err = s.nodes.markOf(tx, s.f.self.ID); err != nil {
					return err
				}
				return unlink(tx, s.f, now, row.Revision)
			},
		}
	}
	v.reviseAll(ctx, fence, rs, false)
	for i, s := range ss {
		if rs[i].reserved {
			st.add(blocks[i])
			v.forgetDead(s.blocks)
		}
		if s.err = rs[i].err; s.err == nil {
			st.add(nodes[i])
			v.forgetDead(s.nodes)
		}
	}
}

// unlink gives the child of a ghost its parent, and what it stores, and forgets the
// ghost. revision is that of its last record.
func unlink(tx *meta.Tx, f *family, now meta.Version, revision uint64) error {
	grave := meta.Grave{Version: f.self.ID, Chain: f.self.Chain, Revision: now.Reserved, Kept: false}
	for i := range f.children {
		c, err := tx.Version(f.children[i].ID)
		if err != nil {
			return err
		}
		c.Parent = f.self.Parent
		if err := tx.UpdateVersion(c, c.Edge); err != nil {
			return err
		}
		if err := tx.SetStale(c.ID, true); err != nil {
			return err
		}
		if err := tx.SetDue(c.ID, c.State == snapferry.VersionGhost); err != nil {
			return err
		}
		grave.Child = c.ID
	}
	if err := tx.HandStored(f.self.ID, grave.Child, time.Now()); err != nil {
		return err
	}
	if err := tx.DeleteVersion(f.self.ID); err != nil {
		return err
	}
	if err := bump(tx, f.self.Parent); err != nil {
		return err
	}
	grave.Loose = now.Loose || now.Reserved > revision
	return tx.PutGrave(grave)
}

// rewriteAll writes the records of versions again that are behind, and buries
// the ghosts they named. One that is to be spliced out itself is left to that:
// its last record says all.
func (v *Vault) rewriteAll(ctx context.Context, ids []snapferry.VersionID, fence Fence, st *VisitStats) error {
	var rs []*revision
	err := v.db.View(ctx, func(tx *meta.Tx) error {
		for _, id := range ids {
			f, err := loadKin(tx, id)
			if snapferry.IsKind(err, snapferry.NotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if f.self.Stale && f.self.State != snapferry.VersionOpen && !(f.self.Due && f.ends()) {
				rs = append(rs, rewriting(f.self))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	v.reviseAll(ctx, fence, rs, false)
	for _, r := range rs {
		// Whoever changed it meanwhile is at it; it is stale until it is done.
		if r.err != nil && !snapferry.IsKind(r.err, snapferry.Conflict) && !snapferry.IsKind(r.err, snapferry.NotFound) {
			return r.err
		}
	}
	return v.buryOf(ctx, ids, fence, st)
}

// buryOf buries the ghosts that the records of versions named.
func (v *Vault) buryOf(ctx context.Context, children []snapferry.VersionID, fence Fence, st *VisitStats) error {
	var ids []snapferry.VersionID
	err := v.db.View(ctx, func(tx *meta.Tx) error {
		for _, id := range children {
			graves, err := tx.GravesOf(id)
			if err != nil {
				return err
			}
			for _, g := range graves {
				ids = append(ids, g.Version)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return v.bury(ctx, ids, fence, st)
}

// bury removes the records of versions that are gone, of those to which no other
// record leads any more. In a chain that is not proven what they had alone is
// looked for first: until that is marked their graves stay to be visited.
func (v *Vault) bury(ctx context.Context, ids []snapferry.VersionID, fence Fence, st *VisitStats) error {
	if len(ids) == 0 {
		return nil
	}
	graves := map[snapferry.VersionID]meta.Grave{}
	unproven := map[snapferry.ChainID]bool{}
	err := v.db.View(ctx, func(tx *meta.Tx) error {
		for _, id := range ids {
			g, err := tx.Grave(id)
			if snapferry.IsKind(err, snapferry.NotFound) || err == nil && g.Kept {
				continue
			}
			if err != nil {
				return err
			}
			chain, err := tx.Chain(g.Chain)
			if err != nil {
				return err
			}
			named, err := isNamed(tx, g)
			if err != nil {
				return err
			}
			if named {
				continue
			}
			graves[id] = g
			if !chain.Proven {
				unproven[g.Chain] = true
			}
		}
		return nil
	})
	if err != nil || len(graves) == 0 {
		return err
	}
	for chain := range unproven {
		if err := v.markOrLeave(ctx, chain, fence, st); err != nil {
			return err
		}
	}
	if err := v.db.View(ctx, fence); err != nil { // marking may have taken long
		return err
	}
	if err := v.removeRecords(ctx, graves); err != nil {
		return err
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		for id, g := range graves {
			var err error
			if g.Loose {
				g.Kept, g.Child = true, snapferry.VersionID{}
				err = tx.PutGrave(g)
			} else {
				err = tx.DeleteGrave(id)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// isNamed reports whether the record of its child still leads to a version that
// is gone.
func isNamed(tx *meta.Tx, g meta.Grave) (bool, error) {
	if g.Child.IsZero() {
		return false, nil
	}
	child, err := tx.Version(g.Child)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return false, nil // spliced out itself, with a record that names its new parent
	}
	return child.Stale, err
}

// removeRecords removes the records of versions that are gone, several versions
// at a time. Of each the last one, which forwards, goes last.
func (v *Vault) removeRecords(ctx context.Context, graves map[snapferry.VersionID]meta.Grave) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(deletes)
	for id, grave := range graves {
		g.Go(func() error {
			names, err := v.recordsUntil(ctx, id, grave.Revision)
			for _, name := range names {
				if err == nil {
					err = v.bucket.Delete(ctx, name)
				}
			}
			return err
		})
	}
	return g.Wait()
}

// A deadList is slots that nobody needs any more.
type deadList struct {
	slots map[snapferry.SegmentID][]meta.DeadSlot
	n     int
}

func (d *deadList) add(r snapferry.Ref) {
	if d.slots == nil {
		d.slots = map[snapferry.SegmentID][]meta.DeadSlot{}
	}
	d.slots[r.Segment] = append(d.slots[r.Segment], meta.DeadSlot{Slot: r.Slot, Length: r.Length})
	d.n++
}

// mark marks the slots and returns how many were not marked before, and their
// stored bytes.
func (d *deadList) mark(tx *meta.Tx) (f freed, err error) {
	now := time.Now()
	for id, slots := range d.slots {
		n, bytes, err := tx.MarkDead(id, slots, now)
		if err != nil {
			return freed{}, err
		}
		f.slots, f.bytes = f.slots+n, f.bytes+bytes
	}
	return f, nil
}

// markOf is mark for what only one version has, which stores so much less then.
func (d *deadList) markOf(tx *meta.Tx, id snapferry.VersionID) (f freed, err error) {
	if f, err = d.mark(tx); err == nil {
		err = tx.AddStored(id, -f.bytes, time.Now())
	}
	return f, err
}

// forgetDead drops what the caches know of segments that lost frames: they may
// be gone.
func (v *Vault) forgetDead(d deadList) {
	for id := range d.slots {
		v.loc.forget(id)
	}
}
