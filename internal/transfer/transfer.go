// Package transfer copies a snapshot from a Source, another region or this
// one, to a Sink, an open version here. It plans by content, moves frames as
// they are stored, and checks every node and block against the source's
// digests before it counts. It does not know where either side is.
package transfer

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// Info is what a source says of the snapshot before anything moves.
type Info struct {
	Size    int64          // bytes of the disk
	Digest  digest.Digest  // of the snapshot
	Root    *blockmap.Node // logical; nil for an empty map
	Present int64          // plain bytes that are not zero
}

// Check reports whether the root is that of the digest.
func (i Info) Check() error {
	if err := snapferry.CheckSize(i.Size); err != nil {
		return snapferry.Errorf(snapferry.Corrupt, "the source's snapshot: %w", err)
	}
	m := blockmap.Map{Size: i.Size, Root: i.Root}
	if i.Root != nil {
		if i.Root.Level != blockmap.RootLevel {
			return snapferry.Errorf(snapferry.Corrupt, "the source sent a node of level %d as the root", i.Root.Level)
		}
		if err := i.Root.Check(0, i.Size); err != nil {
			return snapferry.Errorf(snapferry.Corrupt, "the source's root: %w", err)
		}
	}
	if m.Digest() != i.Digest {
		return snapferry.Errorf(snapferry.Corrupt, "the source's root is not that of digest %s", i.Digest)
	}
	return nil
}

// A Source gives the nodes and blocks of one snapshot. It need not be
// trusted. Methods are called concurrently. Errors of Kind Unavailable may
// pass; others are final. What waits for a source, also a stream's Next, ends when
// the context does that it was asked with.
type Source interface {
	// Nodes calls fn with the logical node at each position, in the order
	// asked for, up to the first that is not there: NotFound. The refs of a leaf
	// say only the stored lengths of its blocks, which no frame exceeds.
	Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error
	// Blocks opens a stream of the frames of the blocks asked for, ascending.
	Blocks(ctx context.Context, want []Want) (Frames, error)
}

// Want names blocks of one leaf.
type Want struct {
	Leaf   uint64
	Blocks blockmap.Bitmap
}

// Frames is a stream of frames.
type Frames interface {
	// Next returns the next frame, valid until the next call; io.EOF after the
	// last.
	Next() (Frame, error)
	Close() error
}

// Frame is a block as the source stores it, compressed but not sealed.
type Frame struct {
	Block     uint64
	Codec     snapferry.Codec
	RawLength int // plain bytes
	Payload   []byte
}

// A Sink is the open version a copy fills.
type Sink interface {
	Size() int64
	// Base is the map the version starts from; what is not filled keeps it.
	Base() blockmap.Map
	// Finished reports whether an earlier run settled a leaf durably.
	Finished(leaf uint64) bool
	// Ticket gives the right to fill a leaf; leaves ascend.
	Ticket(leaf uint64) (Ticket, error)
	// Absent settles a leaf as holding nothing.
	Absent(ctx context.Context, t Ticket) error
	// NewFiller returns a filler of leaves for one goroutine.
	NewFiller() (Filler, error)
}

// Ticket is the right to fill one leaf, the Seq-th of this run.
type Ticket struct{ Leaf, Seq uint64 }

// A Filler fills one leaf after the other.
type Filler interface {
	Begin(ctx context.Context, t Ticket) error
	// Keep sets a block to what the base has there.
	Keep(i int, d digest.Digest) error
	// Put sets a block to plain bytes, as many as lie within the disk.
	Put(i int, plain []byte) error
	// PutFrame sets a block to a frame's content, which must have digest d. The
	// payload must not change before Flush or End.
	PutFrame(i int, d digest.Digest, codec snapferry.Codec, rawLength int, payload []byte) error
	// Flush stores what was set, and needs none of it any more.
	Flush(ctx context.Context) error
	End(ctx context.Context) error
	Close()
}
