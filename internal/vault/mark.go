package vault

import (
	"context"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/meta"
)

// A chain whose tree is not proven (see meta.Chain.Proven) may break the rule
// that deletion by difference rests on. There a ghost is spliced out without
// freeing anything, and what no version of the chain refers to is found by
// walking them all. If that walk shows that the rule holds, the chain is proven
// from then on.

// dissolve is what free is in a chain that is not proven.
func (v *Vault) dissolve(ctx context.Context, f *family, fence Fence, st *VisitStats) error {
	if f.n <= 1 {
		return v.splice(ctx, f, deadList{}, fence, st) // to bury it marks
	}
	if err := v.markOrLeave(ctx, f.self.Chain, fence, st); err != nil {
		return err
	}
	return v.settleVisit(ctx, f, fence, f.n)
}

// markOrLeave marks a chain. In one of which something cannot be read nothing is
// marked: what only deleted versions had stays, for fsck to name and for a
// recovery to find dead, and the deletion goes on.
func (v *Vault) markOrLeave(ctx context.Context, chain snapferry.ChainID, fence Fence, st *VisitStats) error {
	err := v.mark(ctx, chain, fence, st)
	switch snapferry.KindOf(err) {
	case snapferry.Corrupt, snapferry.NotFound, snapferry.Unsupported:
		v.log.ErrorContext(ctx, "a damaged chain keeps what its deleted snapshots had", "chain", chain, "err", err)
		return nil
	}
	return err
}

// marking is what a walk over all maps of a chain found.
type marking struct {
	reached map[snapferry.SegmentID]*slotSet
	twice   bool                          // a slot came into the chain at two versions: the rule is broken
	stored  map[snapferry.VersionID]int64 // what each version stores
}

// mark marks as dead what no version of a chain refers to. It looks at the
// versions and segments of one moment. What becomes complete later refers, but
// for its own segments, only to what its parent has, and that was looked at; so
// nothing has to stand still meanwhile.
func (v *Vault) mark(ctx context.Context, chain snapferry.ChainID, fence Fence, st *VisitStats) error {
	var versions []meta.Version
	var segments []meta.Segment
	buried := map[snapferry.VersionID]bool{}
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if versions, err = tx.VersionsIn(chain); err != nil {
			return err
		}
		graves, err := tx.Graves()
		for _, g := range graves {
			buried[g.Version] = true
		}
		if err != nil {
			return err
		}
		segments, err = tx.SegmentsOfChain(chain)
		return err
	})
	if err != nil {
		return err
	}
	open := map[snapferry.VersionID]bool{}
	for i := range versions {
		open[versions[i].ID] = versions[i].State == snapferry.VersionOpen
	}
	found, err := v.reach(ctx, versions, segments)
	if err != nil {
		return v.unlessGone(ctx, versions, err)
	}
	for i := range segments {
		s := &segments[i]
		if s.State != meta.SegmentLive || open[s.Version] {
			continue
		}
		if err := v.markUnreached(ctx, s, found.reached[s.ID], fence, st); err != nil {
			return err
		}
	}
	if err := v.recount(ctx, versions, found.stored, fence); err != nil || found.twice {
		return err
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		return prove(tx, chain, buried)
	})
}

// recounted is how many versions one transaction counts again.
const recounted = 256

// recount says what versions of a chain store. One around which something has
// changed meanwhile is to be counted by itself.
func (v *Vault) recount(ctx context.Context, versions []meta.Version, stored map[snapferry.VersionID]int64, fence Fence) error {
	for part := range slices.Chunk(versions, recounted) {
		err := v.db.Update(ctx, func(tx *meta.Tx) error {
			if err := fence(tx); err != nil {
				return err
			}
			for i := range part {
				now, err := tx.Version(part[i].ID)
				switch {
				case snapferry.IsKind(err, snapferry.NotFound) || err == nil && part[i].State == snapferry.VersionOpen:
					continue
				case err == nil && now.Edge == part[i].Edge:
					err = tx.SetStored(now.ID, stored[now.ID], time.Now())
				case err == nil:
					err = tx.ForgetStored(now.ID, time.Now())
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// prove says that a chain keeps the rule, unless a version was spliced out of it
// since its graves were read: what only that had was reached then, and nobody
// marked it. Its ghosts are looked at again, by difference now.
func prove(tx *meta.Tx, chain snapferry.ChainID, buried map[snapferry.VersionID]bool) error {
	graves, err := tx.Graves()
	if err != nil {
		return err
	}
	for _, g := range graves {
		if g.Chain == chain && !g.Kept && !buried[g.Version] {
			return nil
		}
	}
	if err := tx.SetProven(chain, true); err != nil {
		return err
	}
	versions, err := tx.VersionsIn(chain)
	for i := range versions {
		if err == nil && versions[i].State == snapferry.VersionGhost {
			err = tx.SetDue(versions[i].ID, true)
		}
	}
	return err
}

// unlessGone returns err, with which a walk over versions failed, or errMoved when
// one of them was spliced out meanwhile.
func (v *Vault) unlessGone(ctx context.Context, versions []meta.Version, err error) error {
	gone := false
	verr := v.db.View(ctx, func(tx *meta.Tx) error {
		for i := range versions {
			_, err := tx.Version(versions[i].ID)
			gone = gone || snapferry.IsKind(err, snapferry.NotFound)
		}
		return nil
	})
	switch {
	case verr != nil:
		return verr
	case gone:
		return errMoved
	}
	return err
}

// reach walks what each complete version has and its parent has not.
func (v *Vault) reach(ctx context.Context, versions []meta.Version, segments []meta.Segment) (*marking, error) {
	found := &marking{reached: map[snapferry.SegmentID]*slotSet{}, stored: map[snapferry.VersionID]int64{}}
	dead := map[snapferry.SegmentID]slotSet{}
	for i := range segments {
		dead[segments[i].ID] = segments[i].DeadSlots
	}
	byID := map[snapferry.VersionID]*meta.Version{}
	for i := range versions {
		byID[versions[i].ID] = &versions[i]
	}
	for i := range versions {
		if versions[i].State == snapferry.VersionOpen {
			continue
		}
		self, err := v.mapOf(versions[i])
		if err != nil {
			return nil, err
		}
		var near []blockmap.Map
		if p := byID[versions[i].Parent]; p != nil {
			m, err := v.mapOf(*p)
			if err != nil {
				return nil, err
			}
			near = append(near, m)
		}
		err = blockmap.Only(ctx, self, near, func(_ snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
			s := found.reached[c.Ref.Segment]
			if s == nil {
				s = &slotSet{}
				found.reached[c.Ref.Segment] = s
			}
			found.twice = found.twice || s.has(c.Ref.Slot)
			s.add(c.Ref.Slot)
			if d, there := dead[c.Ref.Segment]; there && !d.has(c.Ref.Slot) {
				found.stored[versions[i].ID] += int64(c.Ref.Length)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// markUnreached marks the slots of a segment that are not reached.
func (v *Vault) markUnreached(ctx context.Context, s *meta.Segment, reached *slotSet, fence Fence, st *VisitStats) error {
	if reached == nil {
		reached = &slotSet{}
	}
	left := false
	for slot := range s.Slots {
		left = left || !reached.has(uint16(slot)) && !slotSet(s.DeadSlots).has(uint16(slot))
	}
	if !left {
		return nil
	}
	lengths, err := v.lengths(ctx, s.ID)
	switch snapferry.KindOf(err) {
	case snapferry.Corrupt, snapferry.NotFound, snapferry.Unsupported, snapferry.KeyUnusable:
		err = nil // lengths are figures only
	}
	if err != nil {
		return err
	}
	var dead deadList
	for slot := range s.Slots {
		if !reached.has(uint16(slot)) {
			dead.add(snapferry.Ref{Segment: s.ID, Slot: uint16(slot), Length: lengths[uint16(slot)]})
		}
	}
	var done freed
	err = v.db.Update(ctx, func(tx *meta.Tx) (err error) {
		if err := fence(tx); err != nil {
			return err
		}
		done, err = dead.mark(tx)
		return err
	})
	st.add(done)
	v.forgetDead(dead)
	return err
}
