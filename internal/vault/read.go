package vault

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/segment"
)

// windowSize is the unit in which node segments are read: a subtree is one
// contiguous range, so neighbours come along.
const windowSize = 512 << 10

// A windowKey names a range of an object: the number-th of windowSize bytes from
// byte anchor on. Objects do not change, so it never means other bytes.
type windowKey struct {
	object         string
	anchor, number int64
}

// anchor is where the windows of a body begin: at the body, but in a compacted
// object at the object, so that neighbours share them.
func (p place) anchor() int64 {
	if p.generation > 0 {
		return 0
	}
	return p.offset
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
		if !ok {
			return snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s has no node in slot %d: %w", ref.Segment, p.object, ref.Slot, &noSlot{ref.Slot})
		}
		if e.Info.Kind != snapferry.NodeFrame {
			return snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s has no node in slot %d", ref.Segment, p.object, ref.Slot)
		}
		raw, err := v.windowed(ctx, p, int64(e.Offset), int64(e.Length))
		if err == nil {
			err = e.Verify(raw)
		}
		if err == nil {
			n, err = decodeNode(raw, at, d, e.Info)
		}
		if err != nil {
			v.forgetWindows(p, int64(e.Offset), int64(e.Offset)+int64(e.Length))
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

// windowed returns n bytes of a body from off on by way of windows. They must not
// be changed.
func (v *Vault) windowed(ctx context.Context, p place, off, n int64) ([]byte, error) {
	if n <= 0 || off+n > p.length {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%d bytes at %d of a segment of %d", n, off, p.length)
	}
	off += p.offset - p.anchor()
	first, last := off/windowSize, (off+n-1)/windowSize
	var out []byte
	for w := first; w <= last; w++ {
		win, err := v.window(ctx, p, w)
		if err != nil {
			return nil, err
		}
		lo, hi := max(off-w*windowSize, 0), min(off+n-w*windowSize, windowSize)
		if hi > int64(len(win)) {
			return nil, snapferry.Errorf(snapferry.Corrupt, "object %s ends before a segment that lies there", p.object)
		}
		if first == last {
			return win[lo:hi], nil
		}
		out = append(out, win[lo:hi]...)
	}
	return out, nil
}

func (v *Vault) window(ctx context.Context, p place, w int64) ([]byte, error) {
	k := windowKey{p.object, p.anchor(), w}
	if b, ok := v.windows.GetIfPresent(k); ok {
		return b, nil
	}
	at := k.anchor + w*windowSize
	b := make([]byte, min(windowSize, p.end-at))
	if err := v.bucket.ReadAt(ctx, p.object, b, at); err != nil {
		return nil, err
	}
	v.windows.Set(k, b)
	return b, nil
}

// forgetWindows drops the windows of a body's bytes from lo to hi.
func (v *Vault) forgetWindows(p place, lo, hi int64) {
	d := p.offset - p.anchor()
	for w := (lo + d) / windowSize; w*windowSize < hi+d; w++ {
		v.windows.Invalidate(windowKey{p.object, p.anchor(), w})
	}
}
