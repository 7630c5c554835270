package transfer

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// An Image reads the content of a source at random, before or while it is copied:
// each node and block is checked against the source's digests, as a copy does.
// It is safe for concurrent use.
type Image struct {
	c ImageConfig

	mu    sync.Mutex
	nodes map[snapferry.Position]*blockmap.Node // leaves and what is above; guarded by mu
}

// ImageConfig is what an Image needs.
type ImageConfig struct {
	Info   Info
	Source Source
	// Open fills dst, a whole block, with the content of a frame, padded with
	// zeros, and reports, as Corrupt, one that has not digest d.
	Open func(dst []byte, f Frame, d digest.Digest) error
}

// imageNodes is how many nodes of an Image are remembered, of at most 9 KiB.
const imageNodes = 1024

// NewImage returns an Image of a source. Corrupt when its root is not that of its
// digest.
func NewImage(c ImageConfig) (*Image, error) {
	if err := c.Info.Check(); err != nil {
		return nil, err
	}
	return &Image{c: c, nodes: map[snapferry.Position]*blockmap.Node{}}, nil
}

// Size returns the bytes of the disk.
func (im *Image) Size() int64 { return im.c.Info.Size }

// Node returns the logical node at a position, nil when it is absent.
func (im *Image) Node(ctx context.Context, at snapferry.Position) (*blockmap.Node, error) {
	n, here := im.c.Info.Root, snapferry.Position{Level: blockmap.RootLevel}
	for n != nil && here.Level > at.Level {
		i := int(at.Index >> (8 * (here.Level - 1 - at.Level)) % blockmap.Fanout)
		if _, _, ok := n.Child(i); !ok {
			return nil, nil
		}
		here = below(here, i)
		next, err := im.child(ctx, n, i, here)
		if err != nil {
			return nil, err
		}
		n = next
	}
	return n, nil
}

func (im *Image) child(ctx context.Context, parent *blockmap.Node, i int, at snapferry.Position) (n *blockmap.Node, err error) {
	im.mu.Lock()
	n = im.nodes[at]
	im.mu.Unlock()
	if n != nil {
		return n, nil
	}
	err = im.c.Source.Nodes(ctx, []snapferry.Position{at}, func(got snapferry.Position, x *blockmap.Node) error {
		if got != at || n != nil {
			return snapferry.Errorf(snapferry.Corrupt, "the source sent a node of level %d, index %d that was not asked for", got.Level, got.Index)
		}
		n = x
		return checkChild(parent, i, at, x, im.c.Info.Size)
	})
	if err == nil && n == nil {
		err = snapferry.Errorf(snapferry.Unavailable, "the source sent no node of level %d, index %d", at.Level, at.Index)
	}
	if err != nil {
		return nil, err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if len(im.nodes) >= imageNodes {
		for k := range im.nodes { // any of them
			delete(im.nodes, k)
			break
		}
	}
	im.nodes[at] = n
	return n, nil
}

// Leaf returns the logical leaf with a number, nil when it is absent.
func (im *Image) Leaf(ctx context.Context, leaf uint64) (*blockmap.Node, error) {
	if leaf >= blockmap.Leaves(im.c.Info.Size) {
		return nil, nil
	}
	return im.Node(ctx, snapferry.Position{Index: leaf})
}

// Read fills the blocks of one leaf that want has into dst, which begins with block
// first of the leaf; want names blocks that the leaf has.
func (im *Image) Read(ctx context.Context, leaf uint64, n *blockmap.Node, want blockmap.Bitmap, first int, dst []byte) error {
	frames, err := im.c.Source.Blocks(ctx, []Want{{Leaf: leaf, Blocks: want}})
	if err != nil {
		return err
	}
	defer frames.Close()
	for i := range want.All() {
		f, err := frames.Next()
		if errors.Is(err, io.EOF) {
			return snapferry.Errorf(snapferry.Unavailable, "the source ended its stream early")
		}
		if err != nil {
			return err
		}
		if at := leaf*blockmap.Fanout + uint64(i); f.Block != at {
			return snapferry.Errorf(snapferry.Corrupt, "the source sent block %d where %d was asked for", f.Block, at)
		}
		d, _, _ := n.Child(i)
		if err := im.c.Open(dst[(i-first)*snapferry.BlockSize:][:snapferry.BlockSize], f, d); err != nil {
			return snapferry.Errorf(snapferry.KindOf(err), "from the source: %w", err)
		}
	}
	return nil
}
