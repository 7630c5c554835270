package vault

import (
	"context"
	"errors"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/meta"
)

// visitBatch is how many versions are spliced out in one transaction: so few
// that whoever wants to write meanwhile does not wait long.
const visitBatch = 16

// VisitAll visits versions of a chain as Visit does, with as few transactions and
// records as it can: ghosts that are no neighbours are spliced out together, and
// what lives beside them has its record written again once, after all of them.
// What became due by that is left to the next call. An error about one version
// keeps none of the others; the first is returned.
func (v *Vault) VisitAll(ctx context.Context, ids []snapferry.VersionID, fence Fence, st *VisitStats) error {
	if fence == nil {
		fence = noFence
	}
	if st == nil {
		st = &VisitStats{}
	}
	x := &visits{v: v, st: st, fence: func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		return Stopped(tx)
	}}
	err := x.all(ctx, ids)
	if !snapferry.IsKind(err, snapferry.KeyUnusable) {
		return err
	}
	// All of a chain can go without its key.
	chain, cerr := v.chainOf(ctx, ids)
	if cerr != nil {
		return cerr
	}
	if perr := v.purge(ctx, chain, x.fence, st); !errors.Is(perr, errKept) {
		return perr
	}
	return err
}

// chainOf returns the chain of versions, which some of them may have left.
func (v *Vault) chainOf(ctx context.Context, ids []snapferry.VersionID) (chain snapferry.ChainID, err error) {
	err = v.db.View(ctx, func(tx *meta.Tx) error {
		for _, id := range ids {
			row, err := tx.Version(id)
			if err == nil {
				chain = row.Chain
				return nil
			}
			g, gerr := tx.Grave(id)
			if gerr == nil {
				chain = g.Chain
				return nil
			}
			if !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
		}
		return nil
	})
	return chain, err
}

// all visits versions.
func (x *visits) all(ctx context.Context, ids []snapferry.VersionID) error {
	v, st := x.v, x.st
	for part := range slices.Chunk(ids, visitBatch) {
		if err := x.splices(ctx, part); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(x.beside, visitBatch) {
		if x.failed(v.rewriteAll(ctx, part, x.fence, st)); Ends(x.err) {
			return x.err
		}
	}
	for part := range slices.Chunk(x.gone, visitBatch) {
		x.failed(v.buryOf(ctx, part, x.fence, st))
		if x.failed(v.bury(ctx, part, x.fence, st)); Ends(x.err) {
			return x.err
		}
	}
	for _, id := range x.single {
		if x.failed(v.Visit(ctx, id, x.fence, st)); Ends(x.err) {
			return x.err
		}
	}
	return x.err
}

// Ends reports whether an error of a visit is likely that of all that would
// follow: VisitAll ends with it.
func Ends(err error) bool {
	return errors.Is(err, context.Canceled) || snapferry.IsKind(err, snapferry.KeyUnusable) || snapferry.IsKind(err, snapferry.Cancelled) || snapferry.IsKind(err, snapferry.Unavailable) || snapferry.IsKind(err, snapferry.Conflict)
}

// visits is one run of VisitAll.
type visits struct {
	v     *Vault
	fence Fence
	st    *VisitStats

	beside []snapferry.VersionID // whose records may be behind
	gone   []snapferry.VersionID // that are to be buried, if nobody names them
	single []snapferry.VersionID // that need a visit of their own
	err    error                 // the first
}

func (x *visits) failed(err error) {
	if x.err == nil {
		x.err = err
	}
}

// splices splices those ghosts out that can be, in rounds: of neighbours one goes
// in each round.
func (x *visits) splices(ctx context.Context, ids []snapferry.VersionID) error {
	for try := 0; len(ids) > 0; try++ {
		if try == visitTries {
			x.single = append(x.single, ids...)
			return nil
		}
		ss, next, err := x.pick(ctx, ids)
		if err != nil {
			return err
		}
		ready, later := x.differences(ctx, ss)
		x.v.spliceAll(ctx, ready, x.fence, x.st)
		ids = append(next, later...)
		for _, s := range ready {
			err := moved(s.err)
			switch {
			case err == nil:
				x.gone = append(x.gone, s.f.self.ID)
				for i := range s.f.children {
					x.beside = append(x.beside, s.f.children[i].ID)
				}
			case errors.Is(err, errMoved):
				ids = append(ids, s.f.self.ID)
			default:
				x.failed(err)
			}
		}
		if Ends(x.err) {
			return x.err
		}
	}
	return nil
}

// pick sorts versions: those that can be spliced out at once, those whose turn
// comes after a neighbour's, and what is not to be spliced out.
func (x *visits) pick(ctx context.Context, ids []snapferry.VersionID) (ss []*splicing, next []snapferry.VersionID, err error) {
	err = x.v.db.View(ctx, func(tx *meta.Tx) error {
		if err := x.fence(tx); err != nil {
			return err
		}
		taken := map[snapferry.VersionID]bool{}
		for _, id := range ids {
			f, err := loadKin(tx, id)
			switch {
			case snapferry.IsKind(err, snapferry.NotFound):
				x.gone = append(x.gone, id)
				continue
			case err != nil:
				return err
			case !f.ends() && f.self.Stale && f.self.State != snapferry.VersionGhost:
				x.beside = append(x.beside, id)
				continue
			case !f.ends():
				x.single = append(x.single, id)
				continue
			case taken[f.self.Parent]:
				next = append(next, id)
				continue
			}
			if f, err = loadFamily(tx, id); err != nil {
				return err
			}
			if !f.proven {
				x.single = append(x.single, id)
				continue
			}
			if f.n == 1 && taken[f.children[0].ID] {
				next = append(next, id)
				continue
			}
			taken[id] = true
			ss = append(ss, &splicing{f: &f})
		}
		return nil
	})
	return ss, next, err
}

// errLarge says that a version has more of its own than one transaction marks.
var errLarge = errors.New("too much for one transaction")

// differences finds what only the ghosts have, as much as one transaction marks.
// What is too large is left to a visit of its own, the rest to the next round.
func (x *visits) differences(ctx context.Context, ss []*splicing) (ready []*splicing, later []snapferry.VersionID) {
	total := 0
	for _, s := range ss {
		if total >= freeSlots {
			later = append(later, s.f.self.ID)
			continue
		}
		err := x.v.only(ctx, s.f, func(kind snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
			if kind == snapferry.NodeFrame {
				s.nodes.add(c.Ref)
			} else {
				s.blocks.add(c.Ref)
			}
			if s.blocks.n+s.nodes.n > freeSlots {
				return errLarge
			}
			return nil
		})
		if err != nil && !errors.Is(err, errLarge) {
			err = x.v.unlessMoved(ctx, s.f, err)
		}
		switch {
		case err == nil:
			total += s.blocks.n + s.nodes.n
			ready = append(ready, s)
		case errors.Is(err, errLarge):
			x.single = append(x.single, s.f.self.ID)
		case errors.Is(err, errMoved):
			later = append(later, s.f.self.ID)
		case s.f.self.Stale:
			x.single = append(x.single, s.f.self.ID) // which writes its record
		default:
			x.failed(err)
		}
	}
	return ready, later
}
