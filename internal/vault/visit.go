package vault

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

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
	self     meta.Version
	parent   meta.Version // zero: none
	children []meta.Version
	proven   bool // deletion by difference is allowed in the chain
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

func loadFamily(tx *meta.Tx, id snapferry.VersionID) (f family, err error) {
	if f.self, err = tx.Version(id); err != nil {
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

// waits reports whether a child is open: it may yet refer to all that its parent
// has.
func (f *family) waits() bool {
	for i := range f.children {
		if f.children[i].State == snapferry.VersionOpen {
			return true
		}
	}
	return false
}

// crowded reports whether the ghost has so many children, nearly all of which
// it had at the last look, that another look would not pay.
func (f *family) crowded() bool {
	n := len(f.children)
	return n > crowd && f.self.Looked > 0 && n > f.self.Looked-f.self.Looked/8
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
		return v.bury(ctx, id, fence, st)
	case f.self.State == snapferry.VersionOpen:
		return nil
	case f.self.Stale:
		if err := v.rewrite(ctx, f.self, fence); err != nil {
			return moved(err)
		}
		if err := v.buryOf(ctx, id, fence, st); err != nil {
			return err
		}
		return errMoved // the edge has: go on with what there is now
	case f.self.State != snapferry.VersionGhost || f.waits() || f.crowded():
		return v.settleVisit(ctx, &f, fence, f.self.Looked)
	case !f.proven:
		return v.dissolve(ctx, &f, fence, st)
	}
	return v.free(ctx, &f, fence, st)
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
	if n := len(f.children); n > 1 {
		return v.settleVisit(ctx, f, fence, n)
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
	n, size := 0, int64(0)
	err := v.db.Update(ctx, func(tx *meta.Tx) (err error) {
		if err := fence(tx); err != nil {
			return err
		}
		if _, err := sameEdge(tx, &f.self); err != nil {
			return err
		}
		n, size, err = dead.mark(tx)
		return err
	})
	if err != nil {
		return err
	}
	st.Slots.Add(int64(n))
	st.Bytes.Add(size)
	v.forgetDead(dead)
	return nil
}

// splice takes a ghost with at most one child out of the tree. First its record
// says where its children belong, so that a recovery from any later state finds
// the way around it.
func (v *Vault) splice(ctx context.Context, f *family, nodes deadList, fence Fence, st *VisitStats) error {
	n, size := 0, int64(0)
	err := v.revise(ctx, revision{
		row: f.self, edge: f.self.Edge, fence: fence, forwarded: true, forward: f.self.Parent,
		commit: func(tx *meta.Tx, row meta.Version) (err error) {
			now, err := sameEdge(tx, &f.self)
			if err != nil {
				return err
			}
			if n, size, err = nodes.mark(tx); err != nil {
				return err
			}
			return unlink(tx, f, now, row.Revision)
		},
	})
	if err != nil {
		return moved(err)
	}
	st.Slots.Add(int64(n))
	st.Bytes.Add(size)
	v.forgetDead(nodes)
	if len(f.children) == 0 {
		return v.bury(ctx, f.self.ID, fence, st)
	}
	// The child's record still names the ghost. Writing it again is the child's
	// visit, which buries the ghost: try it now, else a later one does it.
	return v.visitStale(ctx, f.children, fence, st)
}

// unlink gives the children of a ghost its parent and forgets the ghost.
// revision is that of its last record.
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
	if err := tx.DeleteVersion(f.self.ID); err != nil {
		return err
	}
	if err := bump(tx, f.self.Parent); err != nil {
		return err
	}
	grave.Loose = now.Loose || now.Reserved > revision
	return tx.PutGrave(grave)
}

// visitStale writes the records of versions again that are behind, and buries
// the ghosts they named.
func (v *Vault) visitStale(ctx context.Context, versions []meta.Version, fence Fence, st *VisitStats) error {
	for i := range versions {
		var row meta.Version
		err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
			row, err = tx.Version(versions[i].ID)
			return err
		})
		if snapferry.IsKind(err, snapferry.NotFound) {
			continue
		}
		if err == nil && row.Stale {
			err = v.rewrite(ctx, row, fence)
		}
		if snapferry.IsKind(err, snapferry.Conflict) {
			return nil // somebody else is at it; it is stale until it is done
		}
		if err == nil {
			err = v.buryOf(ctx, row.ID, fence, st)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// buryOf buries the ghosts that a child's record named.
func (v *Vault) buryOf(ctx context.Context, child snapferry.VersionID, fence Fence, st *VisitStats) error {
	var graves []meta.Grave
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		graves, err = tx.GravesOf(child)
		return err
	})
	for _, g := range graves {
		if err == nil {
			err = v.bury(ctx, g.Version, fence, st)
		}
	}
	return err
}

// bury removes the records of a version that is gone, when no other record
// leads to it any more. The last one, which forwards, goes last. In a chain that
// is not proven what the version had alone is looked for first: until that is
// marked the grave stays to be visited.
func (v *Vault) bury(ctx context.Context, id snapferry.VersionID, fence Fence, st *VisitStats) error {
	var g meta.Grave
	var chain meta.Chain
	named := false
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if g, err = tx.Grave(id); err != nil {
			return err
		}
		if chain, err = tx.Chain(g.Chain); err != nil || g.Child.IsZero() {
			return err
		}
		child, err := tx.Version(g.Child)
		named = err == nil && child.Stale
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil // spliced out itself, with a record that names its new parent
		}
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (g.Kept || named) {
		return nil
	}
	if err != nil {
		return err
	}
	if !chain.Proven {
		if err := v.markOrLeave(ctx, g.Chain, fence, st); err != nil {
			return err
		}
	}
	names, err := v.recordsUntil(ctx, id, g.Revision)
	if err == nil {
		err = v.db.View(ctx, fence) // marking may have taken long
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := v.bucket.Delete(ctx, name); err != nil {
			return err
		}
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		if !g.Loose {
			return tx.DeleteGrave(id)
		}
		g.Kept, g.Child = true, snapferry.VersionID{}
		return tx.PutGrave(g)
	})
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
func (d *deadList) mark(tx *meta.Tx) (n int, size int64, err error) {
	now := time.Now()
	for id, slots := range d.slots {
		k, bytes, err := tx.MarkDead(id, slots, now)
		if err != nil {
			return 0, 0, err
		}
		n, size = n+k, size+bytes
	}
	return n, size, nil
}

// forgetDead drops what the caches know of segments that lost frames: they may
// be gone.
func (v *Vault) forgetDead(d deadList) {
	for id := range d.slots {
		v.loc.forget(id)
	}
}
