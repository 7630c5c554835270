package head

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// within reports, as Invalid, a range that the volume does not have.
func (v *Volume) within(off, n int64) error {
	if size := v.size.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return snapferry.Errorf(snapferry.Invalid, "%d bytes at %d are not within a volume of %d bytes", n, off, size)
	}
	return nil
}

// ReadAt is io.ReaderAt within the volume: a range beyond it is Invalid. What has
// to come from the base is waited for: Unavailable when the bucket does not
// answer, Corrupt when what it has is wrong, and p is then undefined.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if err := v.enter(); err != nil {
		return 0, err
	}
	defer v.leave()
	if err := v.within(off, int64(len(p))); err != nil {
		return 0, err
	}
	vw := v.acquire()
	defer vw.release()
	if err := v.readThrough(v.ctx, vw, len(vw.layers), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readThrough reads from the first n layers of a view and what is below.
func (v *Volume) readThrough(ctx context.Context, vw *view, n int, p []byte, off int64) error {
	for len(p) > 0 {
		s, state, run := vw.find(n, off/pageSize, pages(off, len(p)))
		q := p[:min(int64(len(p)), (off/pageSize+run)*pageSize-off)]
		var err error
		switch {
		case state == layer.Data:
			_, err = s.ReadAt(q, off)
		case state == layer.Zero || vw.zeros:
			clear(q)
		default:
			err = v.readBelow(ctx, vw, q, off)
		}
		if err != nil {
			return err
		}
		p, off = p[len(q):], off+int64(len(q))
	}
	return nil
}

// pages returns how many pages n bytes at off touch.
func pages(off int64, n int) int64 {
	return (off+int64(n)+pageSize-1)/pageSize - off/pageSize
}

// ReadNow reads like ReadAt if everything is at hand in memory: done is false
// when it is not, and p then undefined.
func (v *Volume) ReadNow(p []byte, off int64) (done bool, err error) {
	if err := v.enter(); err != nil {
		return true, err
	}
	defer v.leave()
	if err := v.within(off, int64(len(p))); err != nil {
		return true, err
	}
	vw := v.acquire()
	defer vw.release()
	for len(p) > 0 {
		s, state, run := vw.find(len(vw.layers), off/pageSize, pages(off, len(p)))
		q := p[:min(int64(len(p)), (off/pageSize+run)*pageSize-off)]
		switch {
		case state == layer.Data:
			if done, err := s.ReadNow(q, off); !done || err != nil {
				return done, err
			}
		case state == layer.Zero || vw.zeros:
			clear(q)
		case vw.cache == nil:
			return false, nil
		default:
			if done, err := vw.cache.readNow(q, off); !done || err != nil {
				return done, err
			}
		}
		p, off = p[len(q):], off+int64(len(q))
	}
	return true, nil
}

// readBelow reads what no layer has: from the cache, else from the base.
func (v *Volume) readBelow(ctx context.Context, vw *view, p []byte, off int64) error {
	for len(p) > 0 {
		n := len(p)
		if vw.cache != nil {
			have, miss, err := vw.cache.read(p, off)
			if err != nil {
				return err
			}
			p, off, n = p[have:], off+int64(have), miss
		}
		if n == 0 {
			continue
		}
		if err := v.fetch(ctx, vw, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Cache brings what a range has at the base near, without reading it.
func (v *Volume) Cache(off, n int64) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.within(off, n); err != nil {
		return err
	}
	vw := v.acquire()
	defer vw.release()
	if vw.zeros || vw.cache == nil {
		return nil
	}
	for end := off + n; off < end; {
		_, state, run := vw.find(len(vw.layers), off/pageSize, pages(off, int(min(end-off, maxFetch))))
		next := min((off/pageSize+run)*pageSize, end)
		if state == layer.Below {
			if err := v.near(v.ctx, vw, off, next); err != nil {
				return err
			}
		}
		off = next
	}
	return nil
}

// near brings [off, end), which no layer has, into the cache.
func (v *Volume) near(ctx context.Context, vw *view, off, end int64) error {
	for off < end {
		have, miss := vw.cache.known(off, end-off)
		off += have
		if miss == 0 {
			continue
		}
		first := uint64(off / snapferry.BlockSize)
		n, err := v.fetchBlocks(ctx, vw, first, blocksTo(first, off+miss), nil, 0)
		if err != nil {
			return err
		}
		off = min(int64(first+uint64(n))*snapferry.BlockSize, end)
	}
	return nil
}
