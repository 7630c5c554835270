package vault

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/segment"
)

// Sealed tells what a seal made.
type Sealed struct {
	Version snapferry.VersionID
	Digest  digest.Digest
	Present int64 // plain bytes of blocks that are not zero
	Changed int64 // plain bytes of blocks written by this run
	Stored  int64 // bytes put into the bucket by this run
}

// SealConfig says how a version is sealed.
type SealConfig struct {
	// Want, if not zero, is the digest the version must have: else the seal
	// fails as Corrupt and the version stays open.
	Want digest.Digest
	// Hold keeps the version alive from the seal on.
	Hold meta.Hold
	// Also are further holds from the seal on.
	Also []meta.Hold
	// Commit, if not nil, does what else belongs into the one transaction that
	// makes the version real. It may run twice.
	Commit func(*meta.Tx, Sealed) error
}

// Seal completes the version: every leaf delivered, every frame and node
// durable, the version record written, and then one transaction. Before that
// transaction commits nothing is visible; when Seal fails the version is open
// as before, or, if only the answer to the commit was lost, sealed.
func (w *Writer) Seal(ctx context.Context, c SealConfig) (Sealed, error) {
	all, err := SealAll(ctx, []Sealing{{w, c}})
	if err != nil {
		return Sealed{}, err
	}
	return all[0], nil
}

// Sealing is a version that is sealed, with others perhaps.
type Sealing struct {
	Writer *Writer
	Config SealConfig
}

// SealAll is Seal for several versions of one vault: one transaction makes all of
// them real, or none. Their fences are asked in it too.
func SealAll(ctx context.Context, all []Sealing) ([]Sealed, error) {
	done := make([]Sealed, len(all))
	rs := make([]*revision, len(all))
	for i, x := range all {
		x.Writer.made.Wait()
		x.Writer.mu.Lock()
		defer x.Writer.mu.Unlock()
		var err error
		if done[i], rs[i], err = x.Writer.finish(ctx, x.Config); err != nil {
			return nil, err
		}
	}
	first := all[0].Writer
	fence := func(tx *meta.Tx) error {
		for _, x := range all {
			if err := x.Writer.pack.fence(tx); err != nil {
				return err
			}
		}
		return nil
	}
	first.v.reviseAll(ctx, fence, rs, true)
	for _, r := range rs {
		if r.err != nil {
			return nil, r.err
		}
	}
	return done, nil
}

// finish makes everything of the version durable but its record, and returns the
// revision that seals it.
func (w *Writer) finish(ctx context.Context, c SealConfig) (s Sealed, r *revision, err error) {
	if w.cperr != nil {
		return s, nil, w.cperr // segments may be durable that no transaction placed
	}
	if len(w.tickets) > 0 {
		return s, nil, snapferry.Errorf(snapferry.Internal, "seal with %d leaves not delivered", len(w.tickets))
	}
	root, err := w.builder.Finish(ctx)
	if err != nil {
		return s, nil, err
	}
	m := blockmap.Map{Size: w.row.Size, Root: root, Nodes: w.v}
	s = Sealed{Version: w.row.ID, Digest: m.Digest(), Changed: w.changed.Load()}
	if root != nil {
		s.Present = int64(root.Blocks()) * snapferry.BlockSize
	}
	if !c.Want.IsZero() && s.Digest != c.Want {
		return s, nil, snapferry.Errorf(snapferry.Corrupt, "the content has digest %s, want %s", s.Digest, c.Want)
	}
	if err := w.pack.cut(ctx); err != nil {
		return s, nil, err
	}
	if err := w.pack.wait(); err != nil {
		return s, nil, err
	}
	s.Stored = w.Stored()
	taken := w.pack.take()
	if err := w.placeForSettling(ctx, taken); err != nil {
		return s, nil, err
	}
	dead, live, err := w.settle(ctx, m)
	if err != nil {
		return s, nil, err
	}
	r, err = w.sealing(ctx, c, s, root, taken, dead, live)
	return s, r, err
}

// placeForSettling makes the segments of a version that had earlier runs readable, because
// settling walks the map.
func (w *Writer) placeForSettling(ctx context.Context, taken []object) error {
	if !w.again || len(taken) == 0 {
		return nil
	}
	return w.v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := w.pack.fence(tx); err != nil {
			return err
		}
		return placeAll(tx, taken)
	})
}

// sealing is the revision that makes the version real, which stores live bytes of its
// own.
func (w *Writer) sealing(ctx context.Context, c SealConfig, s Sealed, root *blockmap.Node, taken []object, dead deadList, live int64) (*revision, error) {
	row, err := w.current(ctx)
	if err != nil {
		return nil, err
	}
	if err := w.v.EnsureChain(ctx, row.Chain); err != nil {
		return nil, err
	}
	edge := row.Edge
	row.State, row.Digest, row.Blocks = snapferry.VersionSealed, s.Digest, uint64(s.Present/snapferry.BlockSize)
	row.Sealed, row.Token = time.Now(), w.pack.token
	if row.Root, err = encodeRoot(root); err != nil {
		return nil, err
	}
	holds := append([]meta.Hold{c.Hold}, c.Also...)
	return &revision{row: row, edge: edge, change: change{add: holds}, commit: func(tx *meta.Tx, row meta.Version) error {
		if !w.again {
			if err := placeAll(tx, taken); err != nil {
				return err
			}
		}
		if _, err := dead.mark(tx); err != nil {
			return err
		}
		if err := tx.UpdateVersion(row, edge); err != nil {
			return err
		}
		if err := tx.SetStored(row.ID, live, row.Sealed); err != nil {
			return err
		}
		if err := bump(tx, row.Parent); err != nil {
			return err
		}
		for _, h := range holds {
			if err := tx.PutHold(h); err != nil {
				return err
			}
		}
		if err := tx.DeleteCheckpoint(row.ID); err != nil {
			return err
		}
		if c.Commit == nil {
			return nil
		}
		return c.Commit(tx, s)
	}}, nil
}

// current returns the version's row as it is now: open, over the same parent.
func (w *Writer) current(ctx context.Context) (row meta.Version, err error) {
	err = w.v.db.View(ctx, func(tx *meta.Tx) (err error) {
		row, err = tx.Version(w.row.ID)
		return err
	})
	if err == nil && (row.State != snapferry.VersionOpen || row.Parent != w.row.Parent) {
		err = snapferry.Errorf(snapferry.Conflict, "version %s is %s below %s, not open below %s", row.ID, row.State, row.Parent, w.row.Parent)
	}
	return row, err
}

// bump moves the edge revision of a neighbour, so that whoever computed with its
// old surroundings computes again, and has a ghost looked at again.
func bump(tx *meta.Tx, id snapferry.VersionID) error {
	if id.IsZero() {
		return nil
	}
	row, err := tx.Version(id)
	if err != nil {
		return err
	}
	if err := tx.UpdateVersion(row, row.Edge); err != nil || row.State != snapferry.VersionGhost {
		return err
	}
	return tx.SetDue(id, true)
}

// slotSet is a set of slots of one segment.
type slotSet []byte

func (s *slotSet) add(slot uint16) {
	for len(*s) <= int(slot)/8 {
		*s = append(*s, 0)
	}
	(*s)[slot/8] |= 1 << (slot % 8)
}

func (s slotSet) has(slot uint16) bool {
	return int(slot)/8 < len(s) && s[slot/8]&(1<<(slot%8)) != 0
}

// settle finds the slots written under the version that its final map does not
// have, and sums up the stored bytes of the others. In one run these are the spine
// nodes that checkpoints wrote. After a restart they are found by walking what the map has of the version's own
// segments: the cost is what was written, not what the disk has.
func (w *Writer) settle(ctx context.Context, m blockmap.Map) (dead deadList, stored int64, err error) {
	if !w.again {
		stored = w.pack.allFrames()
		for _, r := range w.builder.Superseded() {
			dead.add(r)
			stored -= int64(r.Length)
		}
		return dead, stored, nil
	}
	var own []meta.Segment
	err = w.v.db.View(ctx, func(tx *meta.Tx) (err error) {
		own, err = tx.SegmentsOf(w.row.ID)
		return err
	})
	if err != nil {
		return dead, 0, err
	}
	live := map[snapferry.SegmentID]*slotSet{}
	for _, s := range own {
		live[s.ID] = &slotSet{}
	}
	if err := w.v.markOwn(ctx, snapferry.Position{Level: blockmap.RootLevel}, m.Root, live); err != nil {
		return dead, 0, err
	}
	for _, s := range own {
		lengths, err := w.v.lengths(ctx, s.ID)
		if err != nil {
			return dead, 0, err
		}
		for slot, n := range lengths {
			if !live[s.ID].has(slot) {
				dead.add(snapferry.Ref{Segment: s.ID, Slot: slot, Length: n})
				continue
			}
			stored += int64(n)
		}
	}
	return dead, stored, nil
}

// lengths returns the stored length of each frame of a segment, by slot.
func (v *Vault) lengths(ctx context.Context, id snapferry.SegmentID) (lengths map[uint16]uint32, err error) {
	err = v.loc.retry(ctx, id, func(_ place, f *segment.Footer) error {
		lengths = make(map[uint16]uint32, f.Len())
		for i := range f.Len() {
			e := f.At(i)
			lengths[e.Slot] = e.Length
		}
		return nil
	})
	return lengths, err
}

// markOwn marks the slots of the segments in live that the map has below n,
// descending only into nodes that lie in them.
func (v *Vault) markOwn(ctx context.Context, at snapferry.Position, n *blockmap.Node, live map[snapferry.SegmentID]*slotSet) error {
	if n == nil {
		return nil
	}
	for i := range blockmap.Fanout {
		d, ref, ok := n.Child(i)
		if !ok {
			continue
		}
		s := live[ref.Segment]
		if s == nil {
			continue
		}
		s.add(ref.Slot)
		if at.Level == 0 {
			continue
		}
		child := snapferry.Position{Level: at.Level - 1, Index: at.Index*blockmap.Fanout + uint64(i)}
		c, err := v.ReadNode(ctx, child, d, ref)
		if err != nil {
			return err
		}
		if err := v.markOwn(ctx, child, c, live); err != nil {
			return err
		}
	}
	return nil
}
