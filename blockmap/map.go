package blockmap

import (
	"context"
	"fmt"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Map is the map of one point in time of a disk of Size bytes. It is a value;
// its nodes are shared and never change. Every method verifies the nodes it
// reads: see NodeReader for the digest; level, place under the size and count
// against the parent's are checked here, and an error is of Kind Corrupt.
type Map struct {
	Size  int64
	Root  *Node // nil: no block is present
	Nodes NodeReader
}

// Child is what a node says of one of its children.
type Child struct {
	Digest digest.Digest
	Ref    snapferry.Ref
}

// Digest returns the digest of the snapshot: of the size and the root.
func (m Map) Digest() digest.Digest {
	if m.Root == nil {
		return digest.Snapshot(m.Size, digest.Digest{})
	}
	return digest.Snapshot(m.Size, m.Root.Digest())
}

// Blocks returns the number of present blocks.
func (m Map) Blocks() uint64 {
	if m.Root == nil {
		return 0
	}
	return m.Root.Blocks()
}

// Leaf returns the leaf with a number, nil when it is absent.
func (m Map) Leaf(ctx context.Context, leaf uint64) (*Node, error) {
	return m.Cursor().Leaf(ctx, leaf)
}

// Block returns digest and ref of the block with a number, and whether it is
// present.
func (m Map) Block(ctx context.Context, block uint64) (digest.Digest, snapferry.Ref, bool, error) {
	n, err := m.Leaf(ctx, block>>levelBits)
	if n == nil || err != nil {
		return digest.Digest{}, snapferry.Ref{}, false, err
	}
	d, r, ok := n.Child(int(block % Fanout))
	return d, r, ok, nil
}

// Leaves calls fn with each present leaf whose number is at least from, in
// ascending order, and stops at the first error.
func (m Map) Leaves(ctx context.Context, from uint64, fn func(leaf uint64, n *Node) error) error {
	c := m.Cursor()
	for {
		leaf, ok, err := c.Next(ctx, from)
		if err != nil || !ok {
			return err
		}
		n, err := c.Leaf(ctx, leaf)
		if err != nil {
			return err
		}
		if err := fn(leaf, n); err != nil {
			return err
		}
		from = leaf + 1
	}
}

// root returns the root, checked; nil when the map is empty.
func (m *Map) root() (*Node, error) {
	if m.Root == nil {
		return nil, nil
	}
	if m.Root.Level != RootLevel {
		return nil, snapferry.Errorf(snapferry.Corrupt, "root of the map is of level %d, want %d", m.Root.Level, RootLevel)
	}
	return m.Root, m.Root.Check(0, m.Size)
}

// read returns the node at a position. Every node below the root that this
// package reads comes through here.
func (m *Map) read(ctx context.Context, at snapferry.Position, c Child, count uint32) (*Node, error) {
	n, err := m.Nodes.ReadNode(ctx, at, c.Digest, c.Ref)
	if err != nil {
		return nil, fmt.Errorf("read map node at level %d, index %d: %w", at.Level, at.Index, err)
	}
	if n.Level != at.Level {
		return nil, snapferry.Errorf(snapferry.Corrupt, "map node at level %d, index %d: is of level %d", at.Level, at.Index, n.Level)
	}
	if err := n.Check(at.Index, m.Size); err != nil {
		return nil, err
	}
	if got := n.Blocks(); got != uint64(count) {
		return nil, n.corrupt(at.Index, "has %d blocks, but its parent counts %d", got, count)
	}
	return n, nil
}

// readChild returns child i of the node n at a position, nil when it is absent
// or n is nil.
func (m *Map) readChild(ctx context.Context, n *Node, at snapferry.Position, i int) (*Node, error) {
	c, count, ok := n.child(i)
	if !ok {
		return nil, nil
	}
	return m.read(ctx, below(at, i), c, count)
}

// below returns the position of child i of the node at a position.
func below(at snapferry.Position, i int) snapferry.Position {
	return snapferry.Position{Level: at.Level - 1, Index: at.Index<<levelBits | uint64(i)}
}

// A Cursor looks up leaves of a map and keeps the inner nodes of the last path,
// so that going on nearby reads little. It is not safe for concurrent use.
type Cursor struct {
	m    Map
	path [Levels]*Node // by level; inner nodes only
	at   [Levels]uint64
}

// Cursor returns a new cursor over the map.
func (m Map) Cursor() *Cursor { return &Cursor{m: m} }

// Next returns the number of the first present leaf that is at least from, and
// whether there is one. It reads inner nodes only.
func (c *Cursor) Next(ctx context.Context, from uint64) (leaf uint64, ok bool, err error) {
	for from < maxLeaves {
		n, level, err := c.down(ctx, from)
		if err != nil {
			return 0, false, err
		}
		if n == nil {
			return 0, false, nil
		}
		// n is the lowest inner node on the way to from. At level 1 the leaf
		// may be there; else look for the next child after the way.
		shift := levelBits * (level - 1)
		slot := int(from >> shift % Fanout)
		next := n.Presence.Next(slot)
		switch {
		case level == 1 && next < Fanout:
			return from&^(Fanout-1) | uint64(next), true, nil
		case next < Fanout:
			from = (from>>shift&^(Fanout-1) | uint64(next)) << shift
		default: // on to the node's right neighbour
			shift += levelBits
			from = (from>>shift + 1) << shift
		}
	}
	return 0, false, nil
}

// Leaf returns the leaf with a number, nil when it is absent.
func (c *Cursor) Leaf(ctx context.Context, leaf uint64) (*Node, error) {
	if leaf >= maxLeaves {
		return nil, nil
	}
	n, level, err := c.down(ctx, leaf)
	if err != nil || n == nil || level != 1 {
		return nil, err
	}
	return c.m.readChild(ctx, n, snapferry.Position{Level: 1, Index: leaf >> levelBits}, int(leaf%Fanout))
}

// Child returns what the map says of the leaf with a number, without reading
// it: digest and ref, its present blocks, and whether it is present.
func (c *Cursor) Child(ctx context.Context, leaf uint64) (ch Child, blocks uint32, ok bool, err error) {
	if leaf >= maxLeaves {
		return Child{}, 0, false, nil
	}
	n, level, err := c.down(ctx, leaf)
	if err != nil || n == nil || level != 1 {
		return Child{}, 0, false, err
	}
	ch, blocks, ok = n.child(int(leaf % Fanout))
	return ch, blocks, ok, nil
}

// down returns the lowest present inner node on the way to a leaf, and its
// level; nil when the map is empty.
func (c *Cursor) down(ctx context.Context, leaf uint64) (*Node, uint8, error) {
	return c.downTo(ctx, leaf, 1)
}

// downTo is down, but no lower than a level.
func (c *Cursor) downTo(ctx context.Context, leaf uint64, lowest uint8) (*Node, uint8, error) {
	if c.path[RootLevel] == nil {
		root, err := c.m.root()
		if err != nil || root == nil {
			return nil, 0, err
		}
		c.path[RootLevel] = root
	}
	n := c.path[RootLevel]
	for level := uint8(RootLevel); level > lowest; level-- {
		index := leaf >> (levelBits * (level - 1)) // of the child, in its level
		if !n.Presence.Has(int(index % Fanout)) {
			return n, level, nil
		}
		if c.path[level-1] == nil || c.at[level-1] != index {
			at := snapferry.Position{Level: level, Index: index >> levelBits}
			child, err := c.m.readChild(ctx, n, at, int(index%Fanout))
			if err != nil {
				return nil, 0, err
			}
			c.path[level-1], c.at[level-1] = child, index
		}
		n = c.path[level-1]
	}
	return n, lowest, nil
}
