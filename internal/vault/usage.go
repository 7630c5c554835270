package vault

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/meta"
)

// FreedUsage is what dropping holds frees.
type FreedUsage struct {
	Blocks int64 // blocks that die at once, each of 64 KiB of a disk
	Nodes  int64 // nodes of maps that die at once
	Bytes  int64 // stored bytes of both
	Later  int64 // stored bytes, at least, that only what was dropped needs and that stay until others let go, see Freed
}

// freedTries bounds how often Freed computes again because versions changed
// meanwhile.
const freedTries = 5

// Freed says exactly what Visit would free if holds were dropped now and
// nothing else happened: by the same rule over a copy, in memory, of the
// versions concerned. It reads what differs between them and their neighbours.
// Readers are thought away, and what is dead already is not counted. Of a
// version that stays, because a child of it is being made, more than one child
// is left, or somebody else holds it, what only it has is counted as later.
// Unsupported in a chain whose tree is not proven.
func (v *Vault) Freed(ctx context.Context, drops []meta.Hold) (u FreedUsage, err error) {
	for range freedTries {
		o := overlay{versions: map[snapferry.VersionID]*ghostly{}, adopted: map[snapferry.VersionID][]snapferry.VersionID{}}
		if err := v.db.View(ctx, func(tx *meta.Tx) error { return o.play(tx, drops) }); err != nil {
			return u, err
		}
		if u, err = v.count(ctx, &o); err == nil {
			return u, nil
		}
		if same, serr := v.unchanged(ctx, &o); serr != nil || same {
			return u, err
		}
	}
	return u, snapferry.Errorf(snapferry.Unavailable, "compute what deletion frees: the versions change all the time: %w", err)
}

// An overlay is what the tree of versions would become.
type overlay struct {
	tx       *meta.Tx
	versions map[snapferry.VersionID]*ghostly
	adopted  map[snapferry.VersionID][]snapferry.VersionID // children that a version got from ghosts
	due      []snapferry.VersionID
	frees    []freeing // what visits would free, in their order
	dropped  []snapferry.VersionID
	left     []freeing // what the dropped versions that stay have alone
}

// A ghostly is a version in an overlay.
type ghostly struct {
	row  meta.Version // with the state and the parent it would have
	gone bool
}

// A freeing is a version with neighbours that it is compared with.
type freeing struct {
	family
	nodes bool // its nodes go too
}

// play drops the holds and visits, until nothing is due.
func (o *overlay) play(tx *meta.Tx, drops []meta.Hold) error {
	o.tx = tx
	defer func() { o.tx = nil }()
	of := map[snapferry.VersionID][]meta.Hold{}
	for _, h := range drops {
		if of[h.Version] == nil {
			o.dropped = append(o.dropped, h.Version)
		}
		of[h.Version] = append(of[h.Version], h)
	}
	for _, id := range o.dropped {
		if err := o.drop(id, of[id]); err != nil {
			return err
		}
	}
	for len(o.due) > 0 {
		id := o.due[0]
		o.due = o.due[1:]
		if err := o.visit(id); err != nil {
			return err
		}
	}
	for _, id := range o.dropped {
		if g := o.versions[id]; !g.gone {
			f, err := o.family(g)
			if err != nil {
				return err
			}
			o.left = append(o.left, freeing{f, true})
		}
	}
	return nil
}

// drop takes holds from a version.
func (o *overlay) drop(id snapferry.VersionID, drops []meta.Hold) error {
	g, err := o.version(id)
	if err != nil {
		return err
	}
	if g.row.State != snapferry.VersionSealed {
		return snapferry.Errorf(snapferry.Conflict, "version %s is %s", id, g.row.State)
	}
	chain, err := o.tx.Chain(g.row.Chain)
	if err != nil {
		return err
	}
	if !chain.Proven {
		return snapferry.Errorf(snapferry.Unsupported, "what deletion frees is not known in chain %s: its tree is not proven", chain.ID).
			WithHint("the next deletion in it walks all of it and proves it")
	}
	holds, err := o.tx.Holds(id)
	if err != nil {
		return err
	}
	left := 0
	for _, h := range (change{drop: drops}).apply(holds) {
		if h.Kind != HoldReader {
			left++
		}
	}
	if left == 0 {
		g.row.State = snapferry.VersionGhost
		o.due = append(o.due, id)
	}
	return nil
}

func (o *overlay) version(id snapferry.VersionID) (*ghostly, error) {
	if g := o.versions[id]; g != nil {
		return g, nil
	}
	row, err := o.tx.Version(id)
	if err != nil {
		return nil, err
	}
	return o.add(row), nil
}

func (o *overlay) add(row meta.Version) *ghostly {
	g := o.versions[row.ID]
	if g == nil {
		g = &ghostly{row: row}
		o.versions[row.ID] = g
	}
	return g
}

// family returns a version with the neighbours it would have.
func (o *overlay) family(g *ghostly) (f family, err error) {
	f.self, f.proven = g.row, true
	if !g.row.Parent.IsZero() {
		p, err := o.version(g.row.Parent)
		if err != nil {
			return f, err
		}
		f.parent = p.row
	}
	rows, err := o.tx.Children(g.row.ID)
	if err != nil {
		return f, err
	}
	ids := make([]snapferry.VersionID, 0, len(rows))
	for _, row := range rows {
		o.add(row)
		ids = append(ids, row.ID)
	}
	seen := map[snapferry.VersionID]bool{}
	for _, id := range append(ids, o.adopted[g.row.ID]...) {
		if c := o.versions[id]; !seen[id] && !c.gone && c.row.Parent == g.row.ID {
			f.children = append(f.children, c.row)
			seen[id] = true
			f.n++
			if c.row.State == snapferry.VersionOpen {
				f.open++
			}
		}
	}
	return f, nil
}

// visit is what Vault.visit does with a ghost, without marking.
func (o *overlay) visit(id snapferry.VersionID) error {
	g := o.versions[id]
	if g.gone || g.row.State != snapferry.VersionGhost {
		return nil
	}
	f, err := o.family(g)
	if err != nil || f.waits() || f.crowded() {
		return err
	}
	n := f.n
	o.frees = append(o.frees, freeing{f, n <= 1})
	if n > 1 {
		g.row.Looked = n
		return nil
	}
	g.gone = true
	for i := range f.children {
		c := o.versions[f.children[i].ID]
		c.row.Parent = f.self.Parent
		o.adopted[f.self.Parent] = append(o.adopted[f.self.Parent], c.row.ID)
		o.touch(c)
	}
	if !f.self.Parent.IsZero() {
		o.touch(o.versions[f.self.Parent])
	}
	return nil
}

// touch has a ghost visited again.
func (o *overlay) touch(g *ghostly) {
	if g.row.State == snapferry.VersionGhost {
		o.due = append(o.due, g.row.ID)
	}
}

// count reads what the visits would free, each slot once.
func (v *Vault) count(ctx context.Context, o *overlay) (u FreedUsage, err error) {
	t := tally{v: v, seen: map[snapferry.SegmentID]*slotSet{}}
	for i := range o.frees {
		f := &o.frees[i]
		err := v.only(ctx, &f.family, func(kind snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
			if kind == snapferry.NodeFrame && !f.nodes {
				return nil
			}
			fresh, err := t.add(ctx, c.Ref)
			if err != nil || !fresh {
				return err
			}
			if kind == snapferry.NodeFrame {
				u.Nodes++
			} else {
				u.Blocks++
			}
			u.Bytes += int64(c.Ref.Length)
			return nil
		})
		if err != nil {
			return u, err
		}
	}
	for i := range o.left {
		f := &o.left[i].family
		// What is being made may yet come to nothing.
		f.children = sealed(f.children)
		err := v.only(ctx, f, func(_ snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
			fresh, err := t.add(ctx, c.Ref)
			if fresh {
				u.Later += int64(c.Ref.Length)
			}
			return err
		})
		if err != nil {
			return u, err
		}
	}
	return u, nil
}

func sealed(all []meta.Version) (complete []meta.Version) {
	for i := range all {
		if all[i].State != snapferry.VersionOpen {
			complete = append(complete, all[i])
		}
	}
	return complete
}

// A tally counts slots that are not dead, each once.
type tally struct {
	v    *Vault
	seen map[snapferry.SegmentID]*slotSet // dead, or counted
}

func (t *tally) add(ctx context.Context, r snapferry.Ref) (fresh bool, err error) {
	s := t.seen[r.Segment]
	if s == nil {
		var row meta.Segment
		err := t.v.db.View(ctx, func(tx *meta.Tx) (err error) {
			row, err = tx.Segment(r.Segment)
			return err
		})
		switch {
		case snapferry.IsKind(err, snapferry.NotFound): // all of it is dead
			t.seen[r.Segment] = nil
			return false, nil
		case err != nil:
			return false, err
		}
		s = (*slotSet)(&row.DeadSlots)
		t.seen[r.Segment] = s
	}
	if s.has(r.Slot) {
		return false, nil
	}
	s.add(r.Slot)
	return true, nil
}

// unchanged reports whether the versions of an overlay are as they were.
func (v *Vault) unchanged(ctx context.Context, o *overlay) (same bool, err error) {
	err = v.db.View(ctx, func(tx *meta.Tx) error {
		for id, g := range o.versions {
			now, err := tx.Version(id)
			if snapferry.IsKind(err, snapferry.NotFound) || err == nil && now.Edge != g.row.Edge {
				return nil
			}
			if err != nil {
				return err
			}
		}
		same = true
		return nil
	})
	return same, err
}
