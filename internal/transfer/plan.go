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
	Want  blockmap.Bitmap // blocks that must move
	Bytes int64           // their stored bytes at the source
}

// Totals sums up a plan. Blocks count 64 KiB of plain bytes each.
type Totals struct {
	Leafs       int64 // leaves that change
	MoveBlocks  int64
	MoveBytes   int64 // as stored at the source
	ReuseBlocks int64 // the base has them already
}

// Planner compares a source's map with the base of a sink, by content: what
// has equal digests is not looked into.
type Planner struct {
	Info   Info
	Source Source
	Base   blockmap.Map
	Totals Totals

	settled int64 // blocks of the leaves emitted
}

// nodeBatch is how many nodes are asked for at once; a leaf has at most 9 KiB.
const nodeBatch = 64

// Run calls emit for each leaf in which the source differs from the base, in
// ascending order. It keeps a few hundred nodes in memory, whatever the size.
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
	return p.inner(ctx, at, p.Info.Root, p.Base.Root, emit)
}

// inner compares an inner node of the source with that of the base, which may
// be nil, child by child in order.
func (p *Planner) inner(ctx context.Context, at snapferry.Position, n, base *blockmap.Node, emit func(Step) error) error {
	for lo := 0; lo < blockmap.Fanout; {
		// Ask for the next children that differ, all at once.
		var ask []snapferry.Position
		hi := lo
		for ; hi < blockmap.Fanout && len(ask) < nodeBatch; hi++ {
			if d, _, ok := n.Child(hi); ok && (!sameChild(base, hi, d) || p.cut(below(at, hi))) {
				ask = append(ask, below(at, hi))
			}
		}
		got := make(map[int]*blockmap.Node, len(ask))
		if len(ask) > 0 {
			if err := p.fetch(ctx, n, ask, got); err != nil {
				return err
			}
		}
		for i := lo; i < hi; i++ {
			if err := p.child(ctx, at, i, n, base, got[i], emit); err != nil {
				return err
			}
		}
		lo = hi
	}
	return nil
}

// fetch reads nodes from the source and checks them against their parent.
func (p *Planner) fetch(ctx context.Context, parent *blockmap.Node, ask []snapferry.Position, got map[int]*blockmap.Node) error {
	k := 0
	err := p.Source.Nodes(ctx, ask, func(at snapferry.Position, n *blockmap.Node) error {
		if k >= len(ask) || at != ask[k] {
			return snapferry.Errorf(snapferry.Corrupt, "the source sent a node of level %d, index %d that was not asked for", at.Level, at.Index)
		}
		k++
		i := int(at.Index % blockmap.Fanout)
		if err := checkChild(parent, i, at, n, p.Info.Size); err != nil {
			return err
		}
		got[i] = n
		return nil
	})
	if err == nil && k < len(ask) {
		err = snapferry.Errorf(snapferry.Unavailable, "the source sent %d nodes of %d", k, len(ask))
	}
	return err
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

func (p *Planner) child(ctx context.Context, at snapferry.Position, i int, n, base, got *blockmap.Node, emit func(Step) error) error {
	c := below(at, i)
	d, _, ok := n.Child(i)
	bd, bref, bok := childOf(base, i)
	switch {
	case !ok && !bok:
		return nil
	case !ok:
		return p.absent(ctx, c, emit)
	case bok && bd == d && !p.cut(c):
		p.Totals.ReuseBlocks += int64(n.Counts[n.Presence.Rank(i)])
		return nil
	}
	var b *blockmap.Node
	if bok {
		var err error
		if b, err = p.Base.Nodes.ReadNode(ctx, c, bd, bref); err != nil {
			return err
		}
	}
	if c.Level > 0 {
		return p.inner(ctx, c, got, b, emit)
	}
	return emit(p.leaf(c.Index, got, b))
}

// cut reports whether the size of the source ends in a block below a position
// and the base is larger. That leaf is always set, even to the digest it has:
// only then the sink knows that nothing of the base lies beyond the size.
func (p *Planner) cut(at snapferry.Position) bool {
	last := (blockmap.Leaves(p.Info.Size) - 1) >> (8 * at.Level)
	return p.Base.Size > p.Info.Size && p.Info.Size%snapferry.BlockSize != 0 && at.Index == last
}

// leaf says which blocks of a leaf must move.
func (p *Planner) leaf(index uint64, n, base *blockmap.Node) Step {
	s := Step{Leaf: index, Node: n}
	for i := range blockmap.Fanout {
		d, ref, ok := n.Child(i)
		if !ok || sameChild(base, i, d) {
			continue
		}
		s.Want.Set(i)
		s.Bytes += int64(ref.Length)
	}
	moved := int64(s.Want.Count())
	p.Totals.Leafs++
	p.Totals.MoveBlocks += moved
	p.Totals.MoveBytes += s.Bytes
	p.Totals.ReuseBlocks += int64(n.Len()) - moved
	p.settled += int64(n.Len())
	return s
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
	have, _, ok := childOf(base, i)
	return ok && have == d
}
