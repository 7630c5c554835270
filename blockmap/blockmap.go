// Package blockmap is the Merkle map of a disk: which 64 KiB blocks are
// present, the digest of each and the ref under which it is stored. It has the
// codec of the map's nodes, look-up and walks, differences of two maps, and
// the Builder that makes the map of a new version over that of its parent.
//
// A map is a radix tree of fan-out 256 that always has four levels, so a
// resize never changes its height: a leaf covers 16 MiB, then 4 GiB, 1 TiB,
// and the root 256 TiB, of which a disk may use the first 64. A block of zeros
// is absent, and so is a subtree without a present block. Equal disks have
// equal trees; only refs differ. docs/format/blockmap.md has the definition
// and the two binary forms of a node.
//
// The package does no I/O of its own: nodes come through a NodeReader and go
// through a NodeWriter.
package blockmap

import (
	"context"
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

const (
	// Fanout is the number of children a node can have.
	Fanout = 256
	// Levels is the number of levels of every map.
	Levels = 4
	// RootLevel is the level of the root; leaves are of level 0.
	RootLevel = Levels - 1
	// LeafSpan is the number of plain bytes a leaf covers (16 MiB).
	LeafSpan = Fanout * snapferry.BlockSize

	// levelBits is the number of bits of a block's number that one level uses.
	levelBits = 8
	// rootFanout is the number of children the root can have: 64 of 1 TiB.
	rootFanout = snapferry.MaxVolumeSize / (snapferry.BlockSize << (RootLevel * levelBits))
	// maxLeaves is the number of leaves of the largest disk.
	maxLeaves = snapferry.MaxVolumeSize / LeafSpan
)

// Span returns the number of plain bytes that one node of a level covers:
// 16 MiB, 4 GiB, 1 TiB and 256 TiB for the levels 0 to 3.
func Span(level uint8) int64 { return LeafSpan << (levelBits * level) }

// Blocks returns the number of blocks of a disk of size bytes; the last one
// may be partial.
func Blocks(size int64) uint64 { return units(size, snapferry.BlockSize) }

// Leaves returns the number of leaves that a disk of size bytes can have.
func Leaves(size int64) uint64 { return units(size, LeafSpan) }

func units(size, unit int64) uint64 {
	if size <= 0 {
		return 0
	}
	return uint64((size-1)/unit + 1)
}

// blocksUnder returns the number of blocks that one child of a node of a level
// covers.
func blocksUnder(level uint8) uint64 { return 1 << (levelBits * level) }

// NodeReader gives the nodes of maps. It may be asked by several goroutines.
type NodeReader interface {
	// ReadNode returns the node at a position whose Digest is d, read from ref
	// where the reader goes by refs. It has verified the digest and the level.
	// The node is shared: nobody changes it. Errors are of Kind Corrupt when
	// the bytes are not those of d, NotFound or Unavailable when there are none.
	ReadNode(ctx context.Context, at snapferry.Position, d digest.Digest, ref snapferry.Ref) (*Node, error)
}

// NodeWriter takes the nodes that a Builder makes, of the levels 0 to 2.
type NodeWriter interface {
	// WriteNode stores n, whose digest is d, and returns where. It does not
	// keep n. Durability is the writer's affair.
	WriteNode(ctx context.Context, at snapferry.Position, n *Node, d digest.Digest) (snapferry.Ref, error)
}

// Bitmap says which children of a node are present: child i is bit i%8, from
// the least significant, of byte i/8. An i is 0 to 255.
type Bitmap [Fanout / 8]byte

// Has reports whether bit i is set.
func (b *Bitmap) Has(i int) bool { return b[i/8]&(1<<(i%8)) != 0 }

// Set sets bit i.
func (b *Bitmap) Set(i int) { b[i/8] |= 1 << (i % 8) }

// Clear clears bit i.
func (b *Bitmap) Clear(i int) { b[i/8] &^= 1 << (i % 8) }

// Count returns the number of bits set.
func (b *Bitmap) Count() int {
	return bits.OnesCount64(b.word(0)) + bits.OnesCount64(b.word(1)) +
		bits.OnesCount64(b.word(2)) + bits.OnesCount64(b.word(3))
}

// Rank returns the number of bits set below bit i, which may be 256.
func (b *Bitmap) Rank(i int) int {
	n := 0
	for w := range i / 64 {
		n += bits.OnesCount64(b.word(w))
	}
	if i%64 != 0 {
		n += bits.OnesCount64(b.word(i/64) << (64 - i%64))
	}
	return n
}

// Next returns the first bit set at or after bit i, which may be 256; 256 when
// there is none.
func (b *Bitmap) Next(i int) int {
	if i >= Fanout {
		return Fanout
	}
	w := b.word(i/64) >> (i % 64) << (i % 64)
	for k := i / 64; ; w = b.word(k) {
		if w != 0 {
			return k*64 + bits.TrailingZeros64(w)
		}
		if k++; k == Fanout/64 {
			return Fanout
		}
	}
}

// All goes through the bits set, in ascending order.
func (b *Bitmap) All() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := b.Next(0); i < Fanout; i = b.Next(i + 1) {
			if !yield(i) {
				return
			}
		}
	}
}

// last returns the highest bit set, -1 when there is none.
func (b *Bitmap) last() int {
	for k := Fanout/64 - 1; k >= 0; k-- {
		if w := b.word(k); w != 0 {
			return k*64 + bits.Len64(w) - 1
		}
	}
	return -1
}

func (b *Bitmap) word(k int) uint64 { return binary.LittleEndian.Uint64(b[8*k:]) }
