package blockmap

import (
	"fmt"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Node is a vertex of a map. The children present are told by Presence; the
// slices have one entry for each of them, ascending. A node that was published
// (read, written or handed over) is not changed any more.
type Node struct {
	Level    uint8
	Presence Bitmap
	Digests  []digest.Digest
	Refs     []snapferry.Ref // where the children are stored; nil in a node in logical form
	Counts   []uint32        // present blocks under each child; nil in a leaf
}

// zeroBlock is the digest of a block of zeros, which no leaf may name.
var zeroBlock = digest.Digest{
	0xde, 0x2f, 0x25, 0x60, 0x64, 0xa0, 0xaf, 0x79, 0x77, 0x47, 0xc2, 0xb9, 0x75, 0x05, 0xdc, 0x0b,
	0x9f, 0x3d, 0xf0, 0xde, 0x4f, 0x48, 0x9e, 0xac, 0x73, 0x1c, 0x23, 0xae, 0x9c, 0xa9, 0xcc, 0x31,
}

// Len returns the number of children present.
func (n *Node) Len() int { return len(n.Digests) }

// Child returns digest and ref of child i, 0 to 255, and whether it is
// present. The ref is zero in a node in logical form.
func (n *Node) Child(i int) (digest.Digest, snapferry.Ref, bool) {
	c, _, ok := n.child(i)
	return c.Digest, c.Ref, ok
}

// child returns child i and the present blocks under it. A nil node has no
// children.
func (n *Node) child(i int) (c Child, count uint32, ok bool) {
	if n == nil || !n.Presence.Has(i) {
		return Child{}, 0, false
	}
	k := n.Presence.Rank(i)
	c.Digest, count = n.Digests[k], 1
	if n.Refs != nil {
		c.Ref = n.Refs[k]
	}
	if n.Level > 0 {
		count = n.Counts[k]
	}
	return c, count, true
}

// Digest returns the content name of the node. It is computed anew.
func (n *Node) Digest() digest.Digest {
	return digest.Node(n.Level, (*[32]byte)(&n.Presence), n.Digests)
}

// Blocks returns the number of present blocks under the node: of a leaf its
// children, of an inner node the sum of Counts.
func (n *Node) Blocks() uint64 {
	if n.Level == 0 {
		return uint64(n.Len())
	}
	var sum uint64
	for _, c := range n.Counts {
		sum += uint64(c)
	}
	return sum
}

// Reset makes n an empty node of a level and keeps its memory for Append.
func (n *Node) Reset(level uint8) {
	*n = Node{Level: level, Digests: n.Digests[:0], Refs: n.Refs[:0], Counts: n.Counts[:0]}
}

// Append adds child i. Children come in ascending order: a child that does
// not is a fault of the caller, and panics. Count, the present blocks under
// the child, is not looked at in a leaf.
func (n *Node) Append(i int, d digest.Digest, r snapferry.Ref, count uint32) {
	if i >= Fanout || i <= n.Presence.last() {
		panic(fmt.Sprintf("blockmap: child %d appended after child %d", i, n.Presence.last()))
	}
	n.Presence.Set(i)
	n.Digests = append(n.Digests, d)
	n.Refs = append(n.Refs, r)
	if n.Level > 0 {
		n.Counts = append(n.Counts, count)
	}
}

// Clone returns a node of its own with the content of n.
func (n *Node) Clone() *Node {
	return &Node{
		Level:    n.Level,
		Presence: n.Presence,
		Digests:  slices.Clone(n.Digests),
		Refs:     slices.Clone(n.Refs),
		Counts:   slices.Clone(n.Counts),
	}
}

// copyOf makes n a copy of m in n's own memory.
func (n *Node) copyOf(m *Node) {
	n.Level, n.Presence = m.Level, m.Presence
	n.Digests = append(n.Digests[:0], m.Digests...)
	n.Refs = append(n.Refs[:0], m.Refs...)
	n.Counts = append(n.Counts[:0], m.Counts...)
}

// Check reports whether n can be the node with number index of its level in
// the map of a disk of size bytes: it has a child, none lies at or beyond the
// size, and under each are between one and as many blocks as the size leaves
// room for. The error is of Kind Corrupt and names level and index.
func (n *Node) Check(index uint64, size int64) error {
	if msg := n.malformed(); msg != "" {
		return n.corrupt(index, "%s", msg)
	}
	blocks := Blocks(size)
	if index >= units(size, Span(n.Level)) {
		return n.corrupt(index, "lies beyond the size of %d bytes", size)
	}
	under := blocksUnder(n.Level)
	last := n.Presence.last()
	first := (index<<levelBits + uint64(last)) * under // block
	if first >= blocks {
		return n.corrupt(index, "child %d lies beyond the size of %d bytes", last, size)
	}
	// Only the last child can reach beyond the size; malformed has seen the
	// others.
	if n.Level > 0 && uint64(n.Counts[len(n.Counts)-1]) > blocks-first {
		return n.corrupt(index, "child %d counts %d blocks, but the size of %d bytes leaves room for %d",
			last, n.Counts[len(n.Counts)-1], size, blocks-first)
	}
	return nil
}

func (n *Node) corrupt(index uint64, format string, args ...any) error {
	return snapferry.Errorf(snapferry.Corrupt, "map node at level %d, index %d: %s", n.Level, index, fmt.Sprintf(format, args...))
}

// malformed says which rule that needs no position is broken, or nothing.
func (n *Node) malformed() string {
	if n.Level > RootLevel {
		return fmt.Sprintf("level %d is above %d", n.Level, RootLevel)
	}
	count := n.Presence.Count()
	counts := count
	if n.Level == 0 {
		counts = 0
	}
	switch {
	case count == 0:
		return "no children"
	case len(n.Digests) != count || len(n.Refs) != count && n.Refs != nil || len(n.Counts) != counts:
		return fmt.Sprintf("%d children, but %d digests, %d refs and %d counts", count, len(n.Digests), len(n.Refs), len(n.Counts))
	case n.Level == RootLevel && n.Presence.last() >= rootFanout:
		return fmt.Sprintf("child %d of the root lies beyond 64 TiB", n.Presence.last())
	}
	return n.malformedChild()
}

func (n *Node) malformedChild() string {
	for k := range n.Digests {
		if n.Digests[k].IsZero() {
			return fmt.Sprintf("digest %d is zero", k)
		}
		if n.Level == 0 && n.Digests[k] == zeroBlock {
			return fmt.Sprintf("digest %d is that of a block of zeros", k)
		}
	}
	for k, c := range n.Counts {
		if c == 0 || uint64(c) > blocksUnder(n.Level) {
			return fmt.Sprintf("count %d is %d, not 1 to %d", k, c, blocksUnder(n.Level))
		}
	}
	return ""
}
