package transfer

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// A Donor has content that the sink's region has elsewhere than in the sink's base:
// sealed with another key, or in another lineage. What it lends is sealed again and
// need not come from the source; it is checked against the source's digests like all
// else, and what it does not give after all the source is asked for. Its methods are
// called concurrently.
type Donor interface {
	// Has returns those blocks of want that the donor has as the leaf of the source
	// has them, by their digests.
	Has(ctx context.Context, leaf uint64, n *blockmap.Node, want blockmap.Bitmap) blockmap.Bitmap
	// Blocks opens a stream of the frames of blocks that it has, in any order.
	Blocks(ctx context.Context, loans []Loan) (Frames, error)
}

// Loan names blocks of a leaf that a donor has.
type Loan struct {
	Want
	Node *blockmap.Node // of the source
}

// lend says which of the blocks that must move a donor has.
func (p *Planner) lend(ctx context.Context, items []item) {
	if p.Donor == nil {
		return
	}
	for k := range items {
		s := &items[k].step
		if s.Node == nil || s.Want == (blockmap.Bitmap{}) {
			continue
		}
		s.Lent = p.Donor.Has(ctx, s.Leaf, s.Node, s.Want)
		for i := range s.Lent.All() {
			s.Bytes -= lengthOf(s.Node, s.Node.Presence.Rank(i))
		}
	}
}

// borrow takes what a donor has of an ask, as far as it gives it.
func (r *run) borrow(ctx context.Context, a *ask) error {
	if !a.lent {
		return nil
	}
	var loans []Loan
	parts := map[uint64]*part{} // by their leaf
	for _, p := range a.parts {
		l := Loan{Want: Want{Leaf: p.leaf.Leaf}, Node: p.leaf.Node}
		for i := range p.rest.All() {
			if p.leaf.Lent.Has(i) {
				l.Blocks.Set(i)
			}
		}
		if l.Blocks != (blockmap.Bitmap{}) {
			loans, parts[l.Leaf] = append(loans, l), p
		}
	}
	if len(loans) == 0 {
		return nil
	}
	frames, err := r.Donor.Blocks(ctx, loans)
	if err != nil {
		return nil // the source has them too
	}
	defer frames.Close()
	for {
		fr, err := frames.Next()
		if err != nil {
			return nil
		}
		p, i := parts[fr.Block/blockmap.Fanout], int(fr.Block%blockmap.Fanout)
		if p == nil || !p.rest.Has(i) || len(fr.Payload) > snapferry.BlockSize {
			return nil
		}
		if err := r.keep(p, i, fr); err != nil {
			return err
		}
		p.lent.Set(i)
		r.Stats.Lent.Add(1)
	}
}

// putLent sets a block to a frame of a donor; if that is not what it must be, the
// source is asked for it after all.
func (r *run) putLent(ctx context.Context, f Filler, l *leaf, i int, d digest.Digest, fr Frame) error {
	err := f.PutFrame(i, d, fr.Codec, fr.RawLength, fr.Payload)
	if err == nil || ctx.Err() != nil {
		return err
	}
	r.Stats.Lent.Add(-1)
	return r.putAsked(ctx, f, l, i, d)
}
