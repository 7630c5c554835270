package transfer

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// A Step is one leaf that must change in the sink.
type Step struct {
	Leaf  uint64
	Node  *blockmap.Node  // the source's, checked; nil: nothing is there
	Want  blockmap.Bitmap // blocks that must be set
	Lent  blockmap.Bitmap // of them, those that a donor has
	Bytes int64           // stored bytes at the source of those that must move
}

// Totals sums up a plan. Blocks count 64 KiB of plain bytes each.
type Totals struct {
	Leafs       int64 // leaves that change
	MoveBlocks  int64
	MoveBytes   int64 // as stored at the source
	ReuseBlocks int64 // the base has them already
	LentBlocks  int64 // a donor has them
}

// Planner compares a source's map with the base of a sink, by content: what
// has equal digests is not looked into.
type Planner struct {
	Info   Info
	Source Source
	Base   blockmap.Map
	Donor  Donor // nil for none
	Totals Totals
	// Limit, if not nil, is called with about the bytes of each node that came,
	// before the next one is taken, and may wait.
	Limit func(ctx context.Context, bytes int) error

	settled int64 // blocks of the leaves emitted
}

// WireSize is about the bytes that a node takes between regions: a header and the
// bitmap, and for each child its digest and its count, or its length.
func WireSize(n *blockmap.Node) int { return 32 + 36*n.Len() }

// pass returns when a node that came passes the limit.
func (p *Planner) pass(ctx context.Context, n *blockmap.Node) error {
	if p.Limit == nil {
		return nil
	}
	return p.Limit(ctx, WireSize(n))
}

// Run calls emit for each leaf in which the source differs from the base, in
// ascending order. It looks ahead of emit as far as a long link needs, and keeps
// at most some maxNodes nodes in memory, whatever the size. Nodes that cannot be
// had now are asked for again a few times.
func (p *Planner) Run(ctx context.Context, emit func(Step) error) error {
	if err := p.Info.Check(); err != nil {
		return err
	}
	at := snapferry.Position{Level: blockmap.RootLevel}
	if p.Info.Root == nil {
		return p.absent(ctx, at, emit)
	}
	if p.Base.Root != nil && p.Base.Root.Digest() == p.Info.Root.Digest() && !p.cut(at) {
		p.Totals.ReuseBlocks += int64(p.Info.Root.Blocks())
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	w := &walker{p: p, out: make(chan *stretch, stretchesAhead)}
	w.wg.Go(func() { w.walk(ctx) })
	defer w.wg.Wait()
	defer stop()
	for {
		select {
		case s, ok := <-w.out:
			if !ok {
				p.Totals.ReuseBlocks += w.reused
				return nil
			}
			if err := p.take(ctx, s, emit); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take emits a stretch when it is there.
func (p *Planner) take(ctx context.Context, s *stretch, emit func(Step) error) error {
	select {
	case <-s.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.err != nil {
		return s.err
	}
	for i := range s.items {
		it := &s.items[i]
		if it.parent == nil {
			if err := p.absent(ctx, it.at, emit); err != nil {
				return err
			}
			continue
		}
		step := it.step
		it.step = Step{} // emit has it now
		p.count(step)
		if err := emit(step); err != nil {
			return err
		}
	}
	return nil
}

// checkChild checks a node that came from outside against its parent.
func checkChild(parent *blockmap.Node, i int, at snapferry.Position, n *blockmap.Node, size int64) error {
	d, _, _ := parent.Child(i)
	switch {
	case n.Level != at.Level:
		return snapferry.Errorf(snapferry.Corrupt, "the source sent a node of level %d for level %d, index %d", n.Level, at.Level, at.Index)
	case n.Digest() != d:
		return snapferry.Errorf(snapferry.Corrupt, "the source's node of level %d, index %d does not match its digest", at.Level, at.Index)
	case n.Blocks() != uint64(parent.Counts[parent.Presence.Rank(i)]):
		return snapferry.Errorf(snapferry.Corrupt, "the source's node of level %d, index %d has %d blocks, not the %d its parent says", at.Level, at.Index, n.Blocks(), parent.Counts[parent.Presence.Rank(i)])
	}
	if err := n.Check(at.Index, size); err != nil {
		return snapferry.Errorf(snapferry.Corrupt, "from the source: %w", err)
	}
	return nil
}

// cut reports whether the size of the source ends in a block below a position
// and the base is larger. That leaf is always set, even to the digest it has:
// only then the sink knows that nothing of the base lies beyond the size.
func (p *Planner) cut(at snapferry.Position) bool {
	last := (blockmap.Leaves(p.Info.Size) - 1) >> (8 * at.Level)
	return p.Base.Size > p.Info.Size && p.Info.Size%snapferry.BlockSize != 0 && at.Index == last
}

// stepOf says which blocks of a leaf must be set.
func stepOf(index uint64, n, base *blockmap.Node) Step {
	s := Step{Leaf: index, Node: n}
	k := 0
	for i := range n.Presence.All() {
		if !sameChild(base, i, n.Digests[k]) {
			s.Want.Set(i)
			if n.Refs != nil {
				s.Bytes += int64(n.Refs[k].Length)
			}
		}
		k++
	}
	return s
}

// count adds a step to the totals.
func (p *Planner) count(s Step) {
	set, lent := int64(s.Want.Count()), int64(s.Lent.Count())
	p.Totals.Leafs++
	p.Totals.MoveBlocks += set - lent
	p.Totals.MoveBytes += s.Bytes
	p.Totals.ReuseBlocks += int64(s.Node.Len()) - set
	p.Totals.LentBlocks += lent
	p.settled += int64(s.Node.Len())
}

// absent emits the leaves that the base has below a position and the source
// has not.
func (p *Planner) absent(ctx context.Context, at snapferry.Position, emit func(Step) error) error {
	shift := 8 * at.Level
	cur, end := p.Base.Cursor(), (at.Index+1)<<shift
	limit := blockmap.Leaves(p.Info.Size)
	for leaf := at.Index << shift; ; leaf++ {
		next, ok, err := cur.Next(ctx, leaf)
		if err != nil || !ok || next >= end || next >= limit {
			return err
		}
		p.Totals.Leafs++
		if err := emit(Step{Leaf: next}); err != nil {
			return err
		}
		leaf = next
	}
}

func below(at snapferry.Position, i int) snapferry.Position {
	return snapferry.Position{Level: at.Level - 1, Index: at.Index*blockmap.Fanout + uint64(i)}
}

func childOf(n *blockmap.Node, i int) (d digest.Digest, ref snapferry.Ref, ok bool) {
	if n == nil {
		return d, ref, false
	}
	return n.Child(i)
}

func sameChild(base *blockmap.Node, i int, d digest.Digest) bool {
	return base != nil && base.Presence.Has(i) && base.Digests[base.Presence.Rank(i)] == d
}
