package blockmap

import (
	"context"
	"fmt"

	"github.com/snapferry/snapferry"
)

// A Builder makes the map of a new version over a base, leaf by leaf in
// ascending order. What is not set keeps the content and the refs of the base.
// Inheritance is mandatory: a node whose digest is that of the base at its
// position gets the base's ref, and is not written.
//
// Inner nodes of the base are read as the leaves come to them; one open node a
// level is kept in memory. After an error the Builder is of no more use: each
// later call but Superseded returns that error. It is not safe for concurrent
// use.
type Builder struct {
	base Map
	size int64
	w    NodeWriter
	err  error // the first error, for ever

	from uint64        // the first leaf that can still be set
	open [Levels]spine // by level; [0] is not used, [RootLevel] is open from the first use on

	// scratch holds the nodes that finish puts together, by level: the open ones
	// stay as they are through a checkpoint.
	scratch [Levels]Node

	wrote      map[snapferry.Position]Child // written nodes that a later Set may yet replace
	superseded []snapferry.Ref
	reported   int // the first so many of superseded are not in the last root returned
}

// spine is the inner node of one level on the way to the last leaf set.
type spine struct {
	isOpen bool
	at     snapferry.Position
	base   *Node // the base's node there; nil when absent
	node   Node  // the children below next, settled
	next   int   // the first child not settled, 0 to 256
}

// NewBuilder returns a Builder of the map of a disk of size bytes over base,
// whose Root may be nil. The nodes it makes go to w.
//
// The base is the parent, or the root of a Checkpoint of an earlier run with
// the same size, which then goes on with the leaves that were not set: one that
// was must not be set back to the parent's content, because the Builder does
// not know the parent's refs any more.
//
// When size is less than the base's, what lies beyond is dropped. If the base
// has the block in which the new size ends, and the size is not a multiple of
// the block size, the caller must Set the leaf of that block, whose rest is now
// zeros; else the Builder that knew the larger size refuses to finish, Invalid.
func NewBuilder(base Map, size int64, w NodeWriter) *Builder {
	return &Builder{base: base, size: size, w: w, wrote: make(map[snapferry.Position]Child)}
}

// Set makes n the leaf with a number; nil or a leaf without children makes it
// absent. Leaves come in ascending order, each at most once. The refs of n are
// those that its blocks shall have: the caller has inherited the base's where
// the digests are equal. The Builder does not keep n. Errors are of Kind
// Invalid for a leaf out of order, or beyond the size and not absent, and of
// Kind Corrupt for one that breaks a rule of Node.Check.
func (b *Builder) Set(ctx context.Context, leaf uint64, n *Node) error {
	if b.err == nil {
		b.err = b.set(ctx, leaf, n)
	}
	return b.err
}

func (b *Builder) set(ctx context.Context, leaf uint64, n *Node) error {
	if n != nil && n.Presence == (Bitmap{}) {
		n = nil
	}
	switch {
	case leaf < b.from:
		return snapferry.Errorf(snapferry.Invalid, "set leaf %d of a map: leaves before %d are settled", leaf, b.from)
	case leaf >= Leaves(b.size) && n != nil:
		return snapferry.Errorf(snapferry.Invalid, "set leaf %d of a map: it lies beyond the size of %d bytes", leaf, b.size)
	case leaf >= Leaves(b.size):
		return nil // what the base has there is dropped
	case n != nil && n.Level != 0:
		return snapferry.Errorf(snapferry.Invalid, "set leaf %d of a map: the node is of level %d", leaf, n.Level)
	}
	if n != nil {
		if err := n.Check(leaf, b.size); err != nil {
			return fmt.Errorf("set leaf %d of a map: %w", leaf, err)
		}
	}
	if err := b.reach(ctx, leaf); err != nil {
		return err
	}
	p := &b.open[1]
	if err := b.fill(ctx, &p.node, p, int(leaf%Fanout), true); err != nil {
		return err
	}
	b.from = leaf + 1
	p.next = int(leaf%Fanout) + 1
	return b.settle(ctx, &p.node, p, int(leaf%Fanout), n, true)
}

// Checkpoint writes what is open and returns the root of a complete, valid map
// of the Builder's size: the leaves before the last one set are as they were
// set, the rest is as in the base, where that is within the size. (What of the
// block in which a new, smaller size ends lies beyond it is not zeros before
// its leaf is set.) Root is nil when no block is present. The nodes stay open
// and further leaves can be set.
func (b *Builder) Checkpoint(ctx context.Context) (root *Node, err error) {
	if b.err == nil {
		root, b.err = b.finish(ctx, false)
	}
	return root, b.err
}

// Finish writes the rest and returns the root of the map, nil when no block is
// present. The Builder is of no more use then.
func (b *Builder) Finish(ctx context.Context) (root *Node, err error) {
	if b.err != nil {
		return nil, b.err
	}
	if root, b.err = b.finish(ctx, true); b.err != nil {
		return nil, b.err
	}
	b.err = snapferry.Errorf(snapferry.Invalid, "the map is finished")
	return root, nil
}

// Superseded returns the refs of the nodes that this Builder wrote and that the
// root last returned does not use, all of them each time. The root of an
// earlier checkpoint may use them: they are dead when the last one has taken
// its place durably. The caller does not change the slice.
func (b *Builder) Superseded() []snapferry.Ref { return b.superseded[:b.reported:b.reported] }

// start opens the root, once.
func (b *Builder) start() error {
	if b.open[RootLevel].isOpen {
		return nil
	}
	if err := snapferry.CheckSize(b.size); err != nil {
		return fmt.Errorf("build a map: %w", err)
	}
	base, err := b.base.root()
	if err != nil {
		return fmt.Errorf("build a map: base: %w", err)
	}
	b.open[RootLevel].reset(snapferry.Position{Level: RootLevel}, base)
	return nil
}

func (p *spine) reset(at snapferry.Position, base *Node) {
	p.isOpen, p.at, p.base, p.next = true, at, base, 0
	p.node.Reset(at.Level)
}

// reach closes the nodes that end before a leaf and opens those on its way.
func (b *Builder) reach(ctx context.Context, leaf uint64) error {
	if err := b.start(); err != nil {
		return err
	}
	for level := uint8(1); level < RootLevel; level++ {
		p := &b.open[level]
		if !p.isOpen || p.at.Index == leaf>>(levelBits*level) {
			continue
		}
		if err := b.fill(ctx, &p.node, p, Fanout, true); err != nil {
			return err
		}
		up := &b.open[level+1]
		slot := int(p.at.Index % Fanout)
		p.isOpen = false
		up.next = slot + 1
		if err := b.settle(ctx, &up.node, up, slot, &p.node, true); err != nil {
			return err
		}
	}
	for level := uint8(RootLevel); level > 1; level-- {
		p, down := &b.open[level], &b.open[level-1]
		if down.isOpen {
			continue
		}
		slot := int(leaf >> (levelBits * (level - 1)) % Fanout)
		if err := b.fill(ctx, &p.node, p, slot, true); err != nil {
			return err
		}
		base, err := b.base.readChild(ctx, p.base, p.at, slot)
		if err != nil {
			return err
		}
		p.next = slot
		down.reset(below(p.at, slot), base)
	}
	return nil
}

// finish completes a copy of each open node from level 1 up and returns the
// root.
func (b *Builder) finish(ctx context.Context, final bool) (*Node, error) {
	if err := b.start(); err != nil {
		return nil, err
	}
	for level := uint8(1); level <= RootLevel; level++ {
		p, n := &b.open[level], &b.scratch[level]
		if !p.isOpen {
			continue
		}
		n.copyOf(&p.node)
		rest := *p
		if down := &b.open[level-1]; down.isOpen {
			slot := int(down.at.Index % Fanout)
			if err := b.settle(ctx, n, p, slot, &b.scratch[level-1], final); err != nil {
				return nil, err
			}
			rest.next = slot + 1
		}
		if err := b.fill(ctx, n, &rest, Fanout, final); err != nil {
			return nil, err
		}
	}
	root := &b.scratch[RootLevel]
	if root.Len() > 0 {
		if err := root.Check(0, b.size); err != nil {
			return nil, err
		}
	}
	b.reported = len(b.superseded)
	if root.Len() == 0 {
		return nil, nil
	}
	return root.Clone(), nil
}

// fill appends to n the base's children of p from p.next to before end, as far
// as they are within the size. It does not move p.next.
func (b *Builder) fill(ctx context.Context, n *Node, p *spine, end int, final bool) error {
	if p.base == nil {
		return nil
	}
	under := blocksUnder(p.at.Level)
	blocks := Blocks(b.size)
	for i := p.base.Presence.Next(p.next); i < end; i = p.base.Presence.Next(i + 1) {
		first := (p.at.Index<<levelBits + uint64(i)) * under // block
		if first >= blocks {
			return nil
		}
		if b.size >= b.base.Size || int64(first+under)*snapferry.BlockSize <= b.size {
			c, count, _ := p.base.child(i)
			n.Append(i, c.Digest, c.Ref, count)
			continue
		}
		trimmed, err := b.trim(ctx, p, i, final)
		if err != nil {
			return err
		}
		if err := b.settle(ctx, n, p, i, trimmed, final); err != nil {
			return err
		}
	}
	return nil
}

// trim returns what remains of child i of p's base, in which a size smaller
// than the base's ends.
func (b *Builder) trim(ctx context.Context, p *spine, i int, final bool) (*Node, error) {
	base, err := b.base.readChild(ctx, p.base, p.at, i)
	if err != nil {
		return nil, err
	}
	at := below(p.at, i)
	n := new(Node)
	n.Reset(at.Level)
	if at.Level > 0 {
		sub := spine{at: at, base: base}
		return n, b.fill(ctx, n, &sub, Fanout, final)
	}
	for k := range base.Presence.All() {
		start := int64(at.Index<<levelBits+uint64(k)) * snapferry.BlockSize
		if start >= b.size {
			break
		}
		if final && b.size-start < snapferry.BlockSize {
			return nil, snapferry.Errorf(snapferry.Invalid, "build a map: the size of %d bytes ends in a block of the base: leaf %d must be set", b.size, at.Index)
		}
		d, r, _ := base.Child(k)
		n.Append(k, d, r, 1)
	}
	return n, nil
}

// settle appends to the node dst, which stands for p's, the node n as child i:
// under the base's ref when the base has it there, else under the ref of an
// earlier checkpoint or a new one. Final says that the child cannot change any
// more.
func (b *Builder) settle(ctx context.Context, dst *Node, p *spine, i int, n *Node, final bool) error {
	at := below(p.at, i)
	old, had := b.wrote[at]
	c, isNew := Child{}, false
	if n != nil && n.Len() > 0 {
		inherited, _, ok := p.base.child(i)
		c.Digest = n.Digest()
		switch {
		case ok && inherited.Digest == c.Digest:
			c = inherited
		case had && old.Digest == c.Digest:
			c = old
		default:
			ref, err := b.w.WriteNode(ctx, at, n, c.Digest)
			if err != nil {
				return fmt.Errorf("write map node at level %d, index %d: %w", at.Level, at.Index, err)
			}
			c.Ref, isNew = ref, true
		}
		dst.Append(i, c.Digest, c.Ref, uint32(n.Blocks()))
	}
	if had && c != old {
		b.superseded = append(b.superseded, old.Ref)
		delete(b.wrote, at)
	}
	switch {
	case final:
		delete(b.wrote, at)
	case isNew:
		b.wrote[at] = c
	}
	return nil
}
