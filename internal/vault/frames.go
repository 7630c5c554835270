package vault

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
)

// Frame is a block as it is stored, opened but not decompressed.
type Frame struct {
	Block     uint64
	Codec     snapferry.Codec
	RawLength int // plain bytes
	Payload   []byte
}

// A FrameReader reads blocks as they are stored, for a copy. Checksums are
// checked; the digests are for whoever decompresses to check. It is for one
// goroutine.
type FrameReader struct {
	fetch  fetcher
	frames []Frame
}

// NewFrameReader returns a reader of the vault's frames; Close ends it.
func (v *Vault) NewFrameReader() *FrameReader {
	if r, ok := v.readers.Get().(*FrameReader); ok {
		return r
	}
	return &FrameReader{fetch: fetcher{v: v}}
}

// Close ends the reader; what it read is not valid any more.
func (r *FrameReader) Close() { r.fetch.v.readers.Put(r) }

// Shrink gives up a buffer of more than n bytes; what was read is not valid any more.
func (r *FrameReader) Shrink(n int) {
	if cap(r.fetch.buf) > n {
		r.fetch.buf = nil
	}
}

// Read returns the frames of the blocks of a leaf that want has, ascending.
// They are valid until the next call. A block that the map does not have is
// NotFound.
func (r *FrameReader) Read(ctx context.Context, m blockmap.Map, leaf uint64, want blockmap.Bitmap) ([]Frame, error) {
	if want == (blockmap.Bitmap{}) {
		return nil, nil
	}
	n, err := m.Leaf(ctx, leaf)
	if err != nil {
		return nil, err
	}
	for i := range want.All() {
		if n == nil || !n.Presence.Has(i) {
			return nil, snapferry.Errorf(snapferry.NotFound, "the snapshot has no block %d", leaf*blockmap.Fanout+uint64(i))
		}
	}
	frames, err := r.fetch.load(ctx, leaf, n, want)
	if err != nil {
		return nil, err
	}
	r.frames = r.frames[:0]
	for _, f := range frames {
		r.frames = append(r.frames, Frame{
			Block: f.entry.Info.Index, Codec: f.entry.Info.Codec, RawLength: int(f.entry.Info.RawLength), Payload: f.payload,
		})
	}
	return r.frames, nil
}
