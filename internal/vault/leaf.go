package vault

import (
	"bytes"
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// A LeafWriter fills leaves of an open version, one after the other. It is for
// one goroutine; several work on one Writer.
type LeafWriter struct {
	w      *Writer
	comp   *compressor
	dec    *decompressor
	plain  []byte // scratch for one block
	base   *blockmap.Node
	leaf   uint64
	seq    uint64
	frames []staged
	data   []byte // the frames' payloads; lent by the vault from Begin to End
	bare   bool   // begun by BeginFrames
	stored int    // blocks that have their places already
	has    blockmap.Bitmap
	digest [blockmap.Fanout]digest.Digest
	refs   [blockmap.Fanout]snapferry.Ref
}

// NewLeafWriter returns one more filler of leaves; Close ends it.
func (w *Writer) NewLeafWriter() (*LeafWriter, error) {
	comp, err := newCompressor(w.v.codec)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "compressor: %w", err)
	}
	dec, err := newDecompressor()
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "decompressor: %w", err)
	}
	return &LeafWriter{w: w, comp: comp, dec: dec, plain: make([]byte, snapferry.BlockSize, snapferry.BlockSize+spare)}, nil
}

// Close frees what the writer holds.
func (l *LeafWriter) Close() {
	l.giveBack()
	l.dec.close()
}

// Begin starts the leaf of a ticket. All its blocks are absent at first. It
// waits while too many leaves are being filled in the region.
func (l *LeafWriter) Begin(ctx context.Context, t Ticket) (err error) {
	if t.Leaf >= blockmap.Leaves(l.w.row.Size) {
		return snapferry.Errorf(snapferry.Invalid, "leaf %d lies beyond the size of %d bytes", t.Leaf, l.w.row.Size)
	}
	if l.data == nil {
		l.data = l.w.stages.try()
	}
	if l.data == nil {
		// Those who have a stage may be waiting for budget: what waits for a
		// stage holds none.
		if err := l.w.pack.yield(ctx); err != nil {
			return err
		}
		if l.data, err = l.w.stages.get(ctx); err != nil {
			return err
		}
	}
	l.data, l.bare = l.data[:0], false
	return l.begin(ctx, t)
}

// BeginFrames is Begin for a leaf whose frames are the caller's: what PutFrame is
// given must stay as it is until Flush or End. It waits for nothing.
func (l *LeafWriter) BeginFrames(ctx context.Context, t Ticket) error {
	if t.Leaf >= blockmap.Leaves(l.w.row.Size) {
		return snapferry.Errorf(snapferry.Invalid, "leaf %d lies beyond the size of %d bytes", t.Leaf, l.w.row.Size)
	}
	l.bare = true
	return l.begin(ctx, t)
}

func (l *LeafWriter) begin(ctx context.Context, t Ticket) (err error) {
	l.leaf, l.seq, l.stored = t.Leaf, t.Seq, 0
	l.frames = l.frames[:0]
	l.has = blockmap.Bitmap{}
	l.base, err = l.w.base.Leaf(ctx, t.Leaf)
	return err
}

// KeepAll sets every block to what the base has there, before some are Put.
func (l *LeafWriter) KeepAll() {
	if l.base == nil {
		return
	}
	l.has = l.base.Presence
	for i := range l.has.All() {
		l.digest[i], l.refs[i], _ = l.base.Child(i)
	}
}

// giveBack returns the stage to the vault.
func (l *LeafWriter) giveBack() {
	if l.data != nil {
		l.w.stages.put(l.data)
		l.data = nil
	}
}

var zeros [snapferry.BlockSize]byte

// Put sets block i of the leaf to plain bytes: 65,536, or fewer at the end of
// the disk. Zeros stay absent, equal content keeps the base's ref.
func (l *LeafWriter) Put(i int, plain []byte) error {
	if bytes.Equal(plain, zeros[:len(plain)]) {
		l.has.Clear(i)
		return nil
	}
	d := digest.Block(plain)
	if l.inherit(i, d) {
		return nil
	}
	if l.bare {
		out, codec := l.comp.append(make([]byte, 0, len(plain)+slack), plain)
		l.stage(i, d, codec, len(plain), bytes.Clone(out))
		return nil
	}
	off := len(l.data)
	out, codec := l.comp.append(l.data[off:off:cap(l.data)], plain)
	l.data = l.data[:off+len(out)]
	l.stage(i, d, codec, len(plain), out)
	return nil
}

// PutFrame sets block i to the content of a frame as another region stored
// it. The frame is decompressed and checked against d, then kept as it is.
func (l *LeafWriter) PutFrame(i int, d digest.Digest, codec snapferry.Codec, rawLength int, payload []byte) error {
	if l.inherit(i, d) {
		return nil
	}
	at := l.leaf*blockmap.Fanout + uint64(i)
	if rawLength < 1 || rawLength > snapferry.BlockSize || len(payload) > rawLength || len(payload) == 0 {
		return snapferry.Errorf(snapferry.Corrupt, "block %d: frame of %d bytes for %d plain ones", at, len(payload), rawLength)
	}
	clear(l.plain[rawLength:])
	if err := l.dec.into(l.plain[:rawLength], payload, codec); err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "block %d: %w", at, err)
	}
	if digest.Block(l.plain) != d {
		return snapferry.Errorf(snapferry.Corrupt, "block %d: %w", at, digest.ErrMismatch)
	}
	if bytes.Equal(l.plain, zeros[:]) {
		return snapferry.Errorf(snapferry.Corrupt, "block %d is all zero and must be absent", at)
	}
	// The frame may be of a time when the disk was smaller or larger: what
	// counts is that nothing lies beyond the size.
	if beyond := l.plain[blockLength(at, l.w.row.Size):]; !bytes.Equal(beyond, zeros[:len(beyond)]) {
		return snapferry.Errorf(snapferry.Corrupt, "block %d has content beyond the size of the disk", at)
	}
	if !l.bare {
		off := len(l.data)
		l.data = append(l.data, payload...)
		payload = l.data[off:]
	}
	l.stage(i, d, codec, rawLength, payload)
	return nil
}

// Keep sets block i to what the base has there, which must be d.
func (l *LeafWriter) Keep(i int, d digest.Digest) error {
	if !l.inherit(i, d) {
		return snapferry.Errorf(snapferry.Corrupt, "block %d is not what the base has", l.leaf*blockmap.Fanout+uint64(i))
	}
	return nil
}

// blockLength is how many bytes of block at lie within a disk of size bytes.
func blockLength(at uint64, size int64) int {
	return int(min(size-int64(at)*snapferry.BlockSize, snapferry.BlockSize))
}

// inherit takes the base's ref when it has d at block i.
func (l *LeafWriter) inherit(i int, d digest.Digest) bool {
	if l.base == nil {
		return false
	}
	have, ref, ok := l.base.Child(i)
	if !ok || have != d {
		return false
	}
	l.has.Set(i)
	l.digest[i], l.refs[i] = d, ref
	return true
}

func (l *LeafWriter) stage(i int, d digest.Digest, codec snapferry.Codec, raw int, payload []byte) {
	l.has.Set(i)
	l.digest[i] = d
	l.frames = append(l.frames, staged{block: i, payload: payload, info: snapferry.FrameInfo{
		Kind: snapferry.BlockFrame, Codec: codec, RawLength: uint32(raw),
		Position: snapferry.Position{Index: l.leaf*blockmap.Fanout + uint64(i)},
	}})
}

// Flush gives the blocks that were put their places. Those of a leaf whose blocks
// are not given theirs all at once may lie in several segments.
func (l *LeafWriter) Flush(ctx context.Context) error {
	if err := l.w.pack.add(ctx, l.frames, &l.refs); err != nil {
		return err
	}
	l.stored += len(l.frames)
	l.frames, l.data = l.frames[:0], l.data[:0]
	return nil
}

// End gives the new blocks their places and hands the leaf over.
func (l *LeafWriter) End(ctx context.Context) error {
	err := l.Flush(ctx)
	l.giveBack()
	if err != nil {
		return err
	}
	n := &blockmap.Node{}
	for i := range blockmap.Fanout {
		if l.has.Has(i) {
			n.Append(i, l.digest[i], l.refs[i], 0)
		}
	}
	return l.w.deliver(ctx, l.seq, delivered{node: n, changed: int64(l.stored) * snapferry.BlockSize})
}
