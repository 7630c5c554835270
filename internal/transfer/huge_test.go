package transfer_test

import (
	"context"
	"encoding/binary"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// A huge disk is full, and has no content: its leaves are made when they are asked
// for, from their numbers. Only what is above them is kept, 10 KiB a GiB.
type huge struct {
	size    int64
	changed func(block uint64) bool // whether a block is not what it is in other disks
	inner   map[snapferry.Position]*blockmap.Node
	made    atomic.Int64 // leaves made
}

func newHuge(size int64, changed func(uint64) bool) *huge {
	h := &huge{size: size, changed: changed, inner: map[snapferry.Position]*blockmap.Node{}}
	for leaf := range blockmap.Leaves(size) {
		n := h.leaf(leaf)
		h.add(snapferry.Position{Level: 1, Index: leaf / blockmap.Fanout}, int(leaf%blockmap.Fanout), n)
	}
	for level := uint8(2); level <= blockmap.RootLevel; level++ {
		for index := uint64(0); ; index++ {
			n := h.inner[snapferry.Position{Level: level - 1, Index: index}]
			if n == nil {
				break
			}
			h.add(snapferry.Position{Level: level, Index: index / blockmap.Fanout}, int(index%blockmap.Fanout), n)
		}
	}
	h.made.Store(0)
	return h
}

func (h *huge) add(at snapferry.Position, i int, child *blockmap.Node) {
	n := h.inner[at]
	if n == nil {
		n = &blockmap.Node{Level: at.Level}
		h.inner[at] = n
	}
	n.Append(i, child.Digest(), snapferry.Ref{Segment: snapferry.SegmentID{1}, Slot: uint16(i), Length: 9000}, uint32(child.Blocks()))
}

// leaf makes a leaf; each block of it has 30,000 stored bytes.
func (h *huge) leaf(leaf uint64) *blockmap.Node {
	h.made.Add(1)
	n := &blockmap.Node{Digests: make([]digest.Digest, 0, blockmap.Fanout), Refs: make([]snapferry.Ref, 0, blockmap.Fanout)}
	for i := range blockmap.Fanout {
		block := leaf*blockmap.Fanout + uint64(i)
		if block >= blockmap.Blocks(h.size) {
			break
		}
		var d digest.Digest
		binary.BigEndian.PutUint64(d[:], block+1)
		if h.changed(block) {
			d[31] = 1
		}
		n.Append(i, d, snapferry.Ref{Segment: snapferry.SegmentID{1}, Slot: uint16(i), Length: 30_000}, 0)
	}
	return n
}

func (h *huge) node(at snapferry.Position) *blockmap.Node {
	if at.Level == 0 {
		return h.leaf(at.Index)
	}
	return h.inner[at]
}

func (h *huge) root() *blockmap.Node { return h.inner[snapferry.Position{Level: blockmap.RootLevel}] }

func (h *huge) asMap() blockmap.Map { return blockmap.Map{Size: h.size, Root: h.root(), Nodes: h} }

func (h *huge) info() transfer.Info {
	return transfer.Info{Size: h.size, Digest: h.asMap().Digest(), Root: h.root(), Present: int64(h.root().Blocks()) * snapferry.BlockSize}
}

// ReadNode checks digests, as a vault does.
func (h *huge) ReadNode(_ context.Context, at snapferry.Position, d digest.Digest, _ snapferry.Ref) (*blockmap.Node, error) {
	if n := h.node(at); n != nil && n.Digest() == d {
		return n, nil
	}
	return nil, snapferry.Errorf(snapferry.NotFound, "no node %v", d)
}

func (h *huge) Nodes(_ context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	for _, p := range at {
		if err := fn(p, h.node(p)); err != nil {
			return err
		}
	}
	return nil
}

func (h *huge) Blocks(context.Context, []transfer.Want) (transfer.Frames, error) {
	return nil, snapferry.Errorf(snapferry.Internal, "it has no content")
}

// tenthLeaf changes a block in a tenth of the leaves.
func tenthLeaf(block uint64) bool { return block%(10*blockmap.Fanout) == 3*blockmap.Fanout+77 }

// hundredthBlock changes a hundredth of the blocks, anywhere.
func hundredthBlock(block uint64) bool {
	x := (block + 1) * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	return (x^x>>27)%100 == 0
}
