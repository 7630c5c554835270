package vault

import (
	"bytes"
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/segment"
)

// windowSize is the unit in which node segments are read: a subtree is one
// contiguous range, so neighbours come along.
const windowSize = 512 << 10

// A windowKey names a range of an object: the number-th of windowSize bytes.
// Objects do not change, so it never means other bytes.
type windowKey struct {
	object string
	number int64
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
			raw, err = v.openFrame(ctx, raw, ref, e.Info, p)
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

// openFrame returns what a stored frame was before it was sealed, if it was.
func (v *Vault) openFrame(ctx context.Context, stored []byte, ref snapferry.Ref, f snapferry.FrameInfo, p place) ([]byte, error) {
	s, err := v.sealerOf(ctx, p.chain, ref.Segment)
	if err != nil || s == nil {
		return stored, err
	}
	return s.Open(nil, stored, ref.Slot, f)
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
	off += p.offset
	first, last := off/windowSize, (off+n-1)/windowSize
	wins, err := v.getWindows(ctx, p, first, last)
	if stale(err) {
		// What lies beside it may be damaged.
		b := make([]byte, n)
		return b, v.bucket.ReadAt(ctx, p.object, b, off)
	}
	if err != nil {
		return nil, err
	}
	var out []byte
	for w := first; w <= last; w++ {
		win := wins[w-first]
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

// getWindows returns windows of an object, from the first to the last. Those that
// are not in the cache come in one read, if they are neighbours.
func (v *Vault) getWindows(ctx context.Context, p place, first, last int64) ([][]byte, error) {
	wins := make([][]byte, last-first+1)
	key := func(i int) windowKey { return windowKey{p.object, first + int64(i)} }
	for i := range wins {
		wins[i], _ = v.windows.GetIfPresent(key(i))
	}
	for i := 0; i < len(wins); {
		end := i
		for end < len(wins) && wins[end] == nil {
			end++
		}
		if end == i {
			i++
			continue
		}
		at := (first + int64(i)) * windowSize
		b := make([]byte, min(int64(end-i)*windowSize, p.end-at))
		if err := v.bucket.ReadAt(ctx, p.object, b, at); err != nil {
			return nil, err
		}
		for alone := end-i == 1; i < end; i++ {
			n := min(windowSize, len(b))
			if wins[i], b = b[:n:n], b[n:]; !alone {
				wins[i] = bytes.Clone(wins[i]) // each is given up by itself
			}
			v.windows.Set(key(i), wins[i])
		}
	}
	return wins, nil
}

// forgetWindows drops the windows of a body's bytes from lo to hi.
func (v *Vault) forgetWindows(p place, lo, hi int64) {
	for w := (p.offset + lo) / windowSize; w*windowSize < p.offset+hi; w++ {
		v.windows.Invalidate(windowKey{p.object, w})
	}
}
