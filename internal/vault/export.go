package vault

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
)

// A Target takes the bytes of a disk. Everything it does not get is zero. It
// is called concurrently, with buffers that are page aligned and, but for the
// disk's end, whole pages.
type Target interface {
	WriteAt(p []byte, off int64) (int, error)
}

const (
	// exporters is how many leaves an export works on for each core: while one
	// is decompressed the other is read.
	exporters = 2
	// maxExporters bounds the leaves, of up to 16 MiB as stored, that one export
	// has in memory.
	maxExporters = 8
	// outSize is the unit in which an export writes: 1 MiB.
	outSize   = 1 << 20
	outBlocks = outSize / snapferry.BlockSize
)

// Export writes the blocks of m to t; what is absent it leaves alone. Each
// block's digest is checked before its bytes go to t. done, if not nil, counts
// plain bytes written. It does not sync t.
func (v *Vault) Export(ctx context.Context, m blockmap.Map, t Target, done *atomic.Int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type step struct {
		leaf uint64
		node *blockmap.Node
	}
	steps := make(chan step)
	g, ctx := errgroup.WithContext(ctx)
	out := newWriteBehind(ctx, g, t, exporters*v.workers, done)
	workers, wctx := errgroup.WithContext(ctx)
	for range min(exporters*v.workers, maxExporters) {
		workers.Go(func() error {
			x, err := v.newExporter(out)
			if err != nil {
				return err
			}
			defer x.close()
			for s := range steps {
				if err := x.leaf(wctx, s.leaf, s.node, m.Size); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		err := m.Leaves(wctx, 0, func(leaf uint64, n *blockmap.Node) error {
			select {
			case steps <- step{leaf, n}:
				return nil
			case <-wctx.Done():
				return wctx.Err()
			}
		})
		close(steps)
		if werr := workers.Wait(); werr != nil {
			err = werr
		}
		out.close()
		return err
	})
	return g.Wait()
}

// An exporter turns leaves into runs of plain bytes. It is for one goroutine.
type exporter struct {
	out   *writeBehind
	fetch fetcher
	dec   *decompressor
}

func (v *Vault) newExporter(out *writeBehind) (*exporter, error) {
	dec, err := newDecompressor()
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "decompressor: %w", err)
	}
	return &exporter{out: out, fetch: fetcher{v: v}, dec: dec}, nil
}

func (x *exporter) close() { x.dec.close() }

// leaf exports one leaf, a stretch of outBlocks at a time: a stretch's blocks,
// wherever their frames lie, become one write.
func (x *exporter) leaf(ctx context.Context, leaf uint64, n *blockmap.Node, size int64) error {
	frames, err := x.fetch.load(ctx, leaf, n, n.Presence)
	if err != nil {
		return err
	}
	for len(frames) > 0 {
		lo := frames[0].block / outBlocks * outBlocks
		w := write{}
		if w.buf, err = x.out.get(ctx); err != nil {
			return err
		}
		var have blockmap.Bitmap
		for len(frames) > 0 && frames[0].block < lo+outBlocks {
			f := frames[0]
			frames = frames[1:]
			d, ref, _ := n.Child(f.block)
			if err := x.dec.block(w.buf[(f.block-lo)*snapferry.BlockSize:][:snapferry.BlockSize], f.payload, f.entry.Info, d, ref); err != nil {
				return err
			}
			have.Set(f.block)
		}
		w.split(have, lo, int64(leaf)*blockmap.LeafSpan, size)
		if err := x.out.put(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// block fills dst with the content of a frame, padded with zeros, and checks
// its digest.
func (d *decompressor) block(dst, payload []byte, info snapferry.FrameInfo, want digest.Digest, ref snapferry.Ref) error {
	if int(info.RawLength) > len(dst) {
		return snapferry.Errorf(snapferry.Corrupt, "block %d in %s claims %d bytes", info.Index, ref, info.RawLength)
	}
	if err := d.into(dst[:info.RawLength], payload, info.Codec); err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "block %d in %s: %w", info.Index, ref, err)
	}
	clear(dst[info.RawLength:])
	if digest.Block(dst) != want {
		return snapferry.Errorf(snapferry.Corrupt, "block %d in %s: %w", info.Index, ref, digest.ErrMismatch)
	}
	return nil
}

// A writeBehind writes to a target beside those who make the bytes: a bounded
// number of buffers go round between them.
type writeBehind struct {
	target Target
	free   chan []byte
	todo   chan write
	done   *atomic.Int64
}

type write struct {
	buf   []byte
	parts [outBlocks]part
	n     int
}

type part struct {
	p   []byte
	off int64
}

// split sets the parts of a write to the stretches of blocks that have has,
// from block lo of a leaf that begins at byte off of a disk of size bytes.
func (w *write) split(have blockmap.Bitmap, lo int, off, size int64) {
	for b := lo; b < lo+outBlocks; b++ {
		if !have.Has(b) {
			continue
		}
		first := b
		for b+1 < lo+outBlocks && have.Has(b+1) {
			b++
		}
		from := off + int64(first)*snapferry.BlockSize
		end := min(off+int64(b+1)*snapferry.BlockSize, size)
		w.parts[w.n] = part{p: w.buf[(first-lo)*snapferry.BlockSize:][:end-from], off: from}
		w.n++
	}
}

const writers = 4

func newWriteBehind(ctx context.Context, g *errgroup.Group, t Target, buffers int, done *atomic.Int64) *writeBehind {
	buffers += writers
	w := &writeBehind{target: t, free: make(chan []byte, buffers), todo: make(chan write, buffers), done: done}
	for range buffers {
		w.free <- nil // made when it is needed: a small export needs few
	}
	for range writers {
		g.Go(func() error { return w.run(ctx) })
	}
	return w
}

func (w *writeBehind) get(ctx context.Context) ([]byte, error) {
	select {
	case b := <-w.free:
		if b == nil {
			b = blob.AlignedBuffer(outSize + blob.Alignment)[:outSize] // room for the decompressor
		}
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (w *writeBehind) put(ctx context.Context, x write) error {
	select {
	case w.todo <- x:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close says that nothing more comes.
func (w *writeBehind) close() { close(w.todo) }

func (w *writeBehind) run(ctx context.Context) error {
	for {
		select {
		case x, ok := <-w.todo:
			if !ok {
				return nil
			}
			for _, p := range x.parts[:x.n] {
				if _, err := w.target.WriteAt(p.p, p.off); err != nil {
					return err
				}
				if w.done != nil {
					w.done.Add(int64(len(p.p)))
				}
			}
			w.free <- x.buf
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
