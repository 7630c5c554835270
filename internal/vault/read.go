package vault

import (
	"cmp"
	"context"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/segment"
)

// windowSize is the unit in which node segments are read: a subtree is one
// contiguous range, so neighbours come along.
const windowSize = 512 << 10

type windowKey struct {
	segment snapferry.SegmentID
	number  int64
}

// ReadNode implements blockmap.NodeReader: from the cache, else from the
// bucket, checked against its digest and position.
func (v *Vault) ReadNode(ctx context.Context, at snapferry.Position, d digest.Digest, ref snapferry.Ref) (*blockmap.Node, error) {
	if n, ok := v.nodes.GetIfPresent(ref); ok && n.Level == at.Level && n.Digest() == d {
		return n, nil
	}
	var n *blockmap.Node
	err := v.loc.retry(ctx, ref.Segment, func(p place, f *segment.Footer) error {
		e, ok := f.Find(ref.Slot)
		if !ok || e.Info.Kind != snapferry.NodeFrame {
			return snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s has no node in slot %d", ref.Segment, p.object, ref.Slot)
		}
		raw, err := v.nodeBytes(ctx, p, f, e)
		if err == nil {
			n, err = decodeNode(raw, at, d, e.Info)
		}
		if err != nil {
			v.forgetWindows(ref.Segment, e)
			return wrapSegment(err, ref.Segment, p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.nodes.Set(ref, n)
	return n, nil
}

func decodeNode(raw []byte, at snapferry.Position, d digest.Digest, f snapferry.FrameInfo) (*blockmap.Node, error) {
	if f.Codec != snapferry.Stored {
		return nil, snapferry.Errorf(snapferry.Unsupported, "node frame of codec %d", f.Codec)
	}
	if f.Position != at {
		return nil, snapferry.Errorf(snapferry.Corrupt, "node of level %d, index %d where level %d, index %d must be", f.Level, f.Index, at.Level, at.Index)
	}
	n, err := blockmap.Decode(raw)
	if err != nil {
		return nil, err
	}
	if n.Level != at.Level || n.Digest() != d {
		return nil, snapferry.Errorf(snapferry.Corrupt, "node of level %d, index %d: %w", at.Level, at.Index, digest.ErrMismatch)
	}
	return n, nil
}

// nodeBytes returns the stored bytes of a node frame by way of its windows.
func (v *Vault) nodeBytes(ctx context.Context, p place, f *segment.Footer, e segment.Entry) ([]byte, error) {
	first, last := int64(e.Offset)/windowSize, (int64(e.Offset)+int64(e.Length)-1)/windowSize
	var out []byte
	for w := first; w <= last; w++ {
		win, err := v.window(ctx, f.Segment, p, w)
		if err != nil {
			return nil, err
		}
		lo := max(int64(e.Offset)-w*windowSize, 0)
		hi := min(int64(e.Offset)+int64(e.Length)-w*windowSize, int64(len(win)))
		if lo >= hi {
			return nil, snapferry.Errorf(snapferry.Corrupt, "frame in slot %d ends beyond the segment", e.Slot)
		}
		if first == last {
			out = win[lo:hi]
		} else {
			out = append(out, win[lo:hi]...)
		}
	}
	return out, e.Verify(out)
}

func (v *Vault) window(ctx context.Context, id snapferry.SegmentID, p place, w int64) ([]byte, error) {
	k := windowKey{id, w}
	if b, ok := v.windows.GetIfPresent(k); ok {
		return b, nil
	}
	n := min(windowSize, p.length-w*windowSize)
	if n <= 0 {
		return nil, snapferry.Errorf(snapferry.Corrupt, "segment %s has %d bytes, less than its frames need", id, p.length)
	}
	b := make([]byte, n)
	if err := v.bucket.ReadAt(ctx, p.object, b, p.offset+w*windowSize); err != nil {
		return nil, err
	}
	v.windows.Set(k, b)
	return b, nil
}

func (v *Vault) forgetWindows(id snapferry.SegmentID, e segment.Entry) {
	for w := int64(e.Offset) / windowSize; w <= (int64(e.Offset)+int64(e.Length)-1)/windowSize; w++ {
		v.windows.Invalidate(windowKey{id, w})
	}
}

const (
	// readSpan is the most that one ranged read of block frames asks for.
	readSpan = 4 << 20
	// readGap is the largest gap between two frames that is read over rather
	// than around.
	readGap = 128 << 10
)

// maxLoad is the most that the frames of a leaf take: they are no longer than
// their blocks, but for the seal, and lie in some runs.
const maxLoad = blockmap.LeafSpan + 1<<20

// A frame is one block as it is stored.
type frame struct {
	block   int // in its leaf
	entry   segment.Entry
	payload []byte
}

// A fetcher reads the frames of leaves in few ranged reads. It is for one
// goroutine; its buffers are reused.
type fetcher struct {
	v      *Vault
	buf    []byte
	frames []frame
}

// load returns the frames of the blocks of leaf that want has, in the order of
// blocks. Their checksums are good; the caller must check the digests. They
// are valid until the next load.
func (r *fetcher) load(ctx context.Context, leaf uint64, n *blockmap.Node, want blockmap.Bitmap) ([]frame, error) {
	r.frames = r.frames[:0]
	total := 0
	for b := range want.All() {
		_, ref, _ := n.Child(b)
		total += int(ref.Length) + 4<<10
	}
	if total = min(total, maxLoad); cap(r.buf) < total {
		r.buf = blob.AlignedBuffer(total + total/4)
	}
	r.buf = r.buf[:0]
	var done []snapferry.SegmentID
	for b := range want.All() {
		_, ref, ok := n.Child(b)
		id := ref.Segment
		if !ok || slices.Contains(done, id) {
			continue
		}
		done = append(done, id)
		frames, used := len(r.frames), len(r.buf)
		err := r.v.loc.retry(ctx, id, func(p place, f *segment.Footer) error {
			r.frames, r.buf = r.frames[:frames], r.buf[:used]
			err := r.locate(leaf, n, want, id, f)
			for todo := r.frames[frames:]; err == nil && len(todo) > 0; {
				k := runOf(todo)
				err = r.read(ctx, p, todo[:k])
				todo = todo[k:]
			}
			if err != nil {
				return wrapSegment(err, id, p)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(r.frames, func(a, b frame) int { return a.block - b.block })
	return r.frames, nil
}

// locate appends to r.frames the wanted frames that lie in one segment, in the
// order of their place.
func (r *fetcher) locate(leaf uint64, n *blockmap.Node, want blockmap.Bitmap, id snapferry.SegmentID, f *segment.Footer) error {
	from, i := len(r.frames), -1
	for b := range blockmap.Fanout {
		if !n.Presence.Has(b) {
			continue
		}
		if i++; n.Refs[i].Segment != id || !want.Has(b) {
			continue
		}
		e, ok := f.Find(n.Refs[i].Slot)
		at := snapferry.Position{Index: leaf*blockmap.Fanout + uint64(b)}
		if !ok || e.Info.Kind != snapferry.BlockFrame || e.Info.Position != at {
			return snapferry.Errorf(snapferry.Corrupt, "slot %d does not have block %d", n.Refs[i].Slot, at.Index)
		}
		r.frames = append(r.frames, frame{block: b, entry: e})
	}
	slices.SortFunc(r.frames[from:], func(a, b frame) int { return cmp.Compare(a.entry.Offset, b.entry.Offset) })
	return nil
}

// runOf returns how many frames from the first one on make one ranged read.
func runOf(fs []frame) int {
	start := fs[0].entry.Offset
	for k := 1; k < len(fs); k++ {
		prev, e := fs[k-1].entry, fs[k].entry
		if e.Offset-(prev.Offset+prev.Length) > readGap || e.Offset+e.Length-start > readSpan {
			return k
		}
	}
	return len(fs)
}

// read fetches the frames of one run and checks their checksums. It reads whole
// pages into whole pages, so that a bucket in a directory can go past the page
// cache.
func (r *fetcher) read(ctx context.Context, p place, run []frame) error {
	start, last := p.offset+int64(run[0].entry.Offset), run[len(run)-1].entry
	end := p.offset + int64(last.Offset) + int64(last.Length)
	lo, hi := start&^(blob.Alignment-1), min((end+blob.Alignment-1)&^(blob.Alignment-1), p.offset+p.length)
	n, from := int(hi-lo), (len(r.buf)+blob.Alignment-1)&^(blob.Alignment-1)
	if cap(r.buf) < from+n {
		// Frames that were read keep the old buffer alive.
		r.buf, from = blob.AlignedBuffer(max(n, cap(r.buf)))[:0], 0
	}
	r.buf = r.buf[:from+n]
	buf := r.buf[from:]
	if err := r.v.bucket.ReadAt(ctx, p.object, buf, lo); err != nil {
		return err
	}
	for i := range run {
		f := &run[i]
		f.payload = buf[p.offset+int64(f.entry.Offset)-lo:][:f.entry.Length]
		if err := f.entry.Verify(f.payload); err != nil {
			return err
		}
	}
	return nil
}
