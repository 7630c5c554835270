package vault

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/blob"
)

// A Disk is what can be imported. ReadAt is called concurrently.
type Disk interface {
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
	// Next returns the first extent at or after off that may hold data; ok is
	// false when only zeros follow.
	Next(off int64) (e extent.Extent, ok bool, err error)
}

// inSize is the unit in which an import reads its disk: 1 MiB.
const inSize = 1 << 20

// ImportStats counts plain bytes while an import runs.
type ImportStats struct {
	Read atomic.Int64 // read from the disk
	Done atomic.Int64 // position reached, holes included
}

// Import fills the version with the content of a disk of its size. It reads
// each extent of data once and nothing of the holes.
func (w *Writer) Import(ctx context.Context, d Disk, st *ImportStats) error {
	return w.fill(ctx, d, st, false)
}

// Update fills the version with what is new of a disk of its size: d.Next gives
// the extents that may differ from the parent, and only whole blocks around
// them are read. The rest is the parent's, and costs nothing. Leaves that an
// earlier run of the same disk settled are left as they are.
func (w *Writer) Update(ctx context.Context, d Disk, st *ImportStats) error {
	return w.fill(ctx, d, st, true)
}

func (w *Writer) fill(ctx context.Context, d Disk, st *ImportStats, update bool) error {
	g, ctx := errgroup.WithContext(ctx)
	tickets := make(chan importStep)
	for range w.v.workers {
		g.Go(func() error {
			if update {
				background() // the disk is in use
			}
			l, err := w.NewLeafWriter()
			if err != nil {
				return err
			}
			defer l.Close()
			r := importer{disk: d, leaf: l, buf: blob.AlignedBuffer(inSize), stats: st, update: update}
			for s := range tickets {
				if err := r.fill(ctx, s); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(tickets)
		return w.dispatch(ctx, d, st, tickets, update)
	})
	return g.Wait()
}

// importStep is one leaf of the disk and where it has data.
type importStep struct {
	ticket Ticket
	data   []extent.Extent
}

// dispatch hands out, in ascending order, the leaves where the disk has data;
// those where only the base has some are settled as absent, or, in an update,
// left as they are.
func (w *Writer) dispatch(ctx context.Context, d Disk, st *ImportStats, out chan<- importStep, update bool) error {
	data := dataLeaves{disk: d}
	base := w.base.Cursor()
	leaves := blockmap.Leaves(w.row.Size)
	for from := uint64(0); ; {
		dl, extents, dok, err := data.next(from)
		if err != nil {
			return err
		}
		bl, bok := uint64(0), false
		if !update {
			if bl, bok, err = base.Next(ctx, from); err != nil {
				return err
			}
		}
		if bok && bl >= leaves {
			bok = false // beyond the new size: the builder drops it
		}
		if !dok && !bok {
			st.Done.Store(w.row.Size)
			return nil
		}
		leaf := dl
		if !dok || bok && bl < dl {
			leaf, extents = bl, nil
		}
		if update && w.Finished(leaf) {
			from = leaf + 1
			continue
		}
		t, err := w.Ticket(leaf)
		if err != nil {
			return err
		}
		if extents == nil {
			if err := w.Absent(ctx, t); err != nil {
				return err
			}
		} else {
			select {
			case out <- importStep{t, extents}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		st.Done.Store(min(int64(leaf)*blockmap.LeafSpan, w.row.Size))
		from = leaf + 1
	}
}

// dataLeaves walks the leaves in which a disk may have data.
type dataLeaves struct {
	disk Disk
	cur  extent.Extent // of data, at or before what was asked for last
	end  bool
}

// next returns the first leaf from a number on that has data, and its extents.
func (w *dataLeaves) next(from uint64) (leaf uint64, data []extent.Extent, ok bool, err error) {
	off := int64(from) * blockmap.LeafSpan
	if err := w.seek(off); err != nil || w.end {
		return 0, nil, false, err
	}
	leaf = uint64(max(w.cur.Off, off)) / uint64(blockmap.LeafSpan)
	lo, hi := int64(leaf)*blockmap.LeafSpan, min(int64(leaf+1)*blockmap.LeafSpan, w.disk.Size())
	for !w.end && w.cur.Off < hi {
		a, b := max(w.cur.Off, lo), min(w.cur.End(), hi)
		data = append(data, extent.Extent{Off: a, Len: b - a})
		if w.cur.End() >= hi {
			break
		}
		if err := w.seek(w.cur.End()); err != nil {
			return 0, nil, false, err
		}
	}
	return leaf, data, true, nil
}

// seek makes cur the first extent that ends after off.
func (w *dataLeaves) seek(off int64) error {
	if w.end || w.cur.End() > off {
		return nil
	}
	if off >= w.disk.Size() {
		w.end = true
		return nil
	}
	e, ok, err := w.disk.Next(off)
	if err != nil {
		return err
	}
	w.cur, w.end = e, !ok
	return nil
}

// An importer fills leaves from a disk. It is for one goroutine.
type importer struct {
	disk   Disk
	leaf   *LeafWriter
	buf    []byte
	stats  *ImportStats
	update bool
}

func (r *importer) fill(ctx context.Context, s importStep) error {
	if err := r.leaf.Begin(ctx, s.ticket); err != nil {
		return err
	}
	if r.update {
		r.leaf.KeepAll()
	}
	start, size := int64(s.ticket.Leaf)*blockmap.LeafSpan, r.disk.Size()
	for pos, rest := start, s.data; ; {
		// The next run of whole blocks that touch data, within the buffer.
		for len(rest) > 0 && rest[0].End() <= pos {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			break
		}
		lo := max(pos, rest[0].Off/snapferry.BlockSize*snapferry.BlockSize)
		hi := min((rest[0].End()+snapferry.BlockSize-1)/snapferry.BlockSize*snapferry.BlockSize, lo+inSize, size)
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		p := r.buf[:hi-lo]
		if _, err := r.disk.ReadAt(p, lo); err != nil {
			return err
		}
		r.stats.Read.Add(hi - lo)
		for i := int((lo - start) / snapferry.BlockSize); len(p) > 0; i++ {
			n := min(len(p), snapferry.BlockSize)
			if err := r.leaf.Put(i, p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
		pos = hi
	}
	return r.leaf.End(ctx)
}
