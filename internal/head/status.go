package head

import (
	"context"

	"golang.org/x/time/rate"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// Run returns for how many bytes from off on, at most n, the volume is alike:
// data, or zeros that take no space. It may read nodes of the base's map. Data
// may be zeros, too.
func (v *Volume) Run(ctx context.Context, off, n int64) (length int64, data bool, err error) {
	if err := v.enter(); err != nil {
		return 0, false, err
	}
	defer v.leave()
	if err := v.within(off, n); err != nil {
		return 0, false, err
	}
	vw := v.acquire()
	defer vw.release()
	for pos := off; pos < off+n; {
		end, here, err := v.piece(ctx, vw, pos, off+n)
		switch {
		case err != nil:
			return 0, false, err
		case pos == off:
			data = here
		case here != data:
			return pos - off, data, nil
		}
		pos = end
	}
	return n, data, nil
}

// piece returns to where, at most end, it is alike from pos on.
func (v *Volume) piece(ctx context.Context, vw *view, pos, end int64) (next int64, data bool, err error) {
	most := (end+pageSize-1)/pageSize - pos/pageSize
	_, state, run := vw.find(len(vw.layers), pos/pageSize, most)
	next = min((pos/pageSize+run)*pageSize, end)
	if state != layer.Below || vw.zeros {
		return next, state == layer.Data, nil
	}
	n, data, err := vw.base.image.Run(ctx, pos, next-pos)
	return pos + n, data, err
}

// Dirty returns for how many bytes from off on, at most n, the volume is alike:
// changed since the base was sealed, or not. It is about pages.
func (v *Volume) Dirty(off, n int64) (length int64, dirty bool, err error) {
	if err := v.enter(); err != nil {
		return 0, false, err
	}
	defer v.leave()
	if err := v.within(off, n); err != nil {
		return 0, false, err
	}
	vw := v.acquire()
	defer vw.release()
	above := &view{layers: vw.layers[vw.clean:]}
	for pos := off; pos < off+n; {
		s, _, run := above.find(len(above.layers), pos/pageSize, (off+n+pageSize-1)/pageSize-pos/pageSize)
		switch {
		case pos == off:
			dirty = s != nil
		case dirty != (s != nil):
			return pos - off, dirty, nil
		}
		pos = min((pos/pageSize+run)*pageSize, off+n)
	}
	return n, dirty, nil
}

// Hydrate brings everything that the base has near, within limit bytes a second
// if that is not nil. done, if not nil, is told how far it has come: bytes of the
// disk.
func (v *Volume) Hydrate(ctx context.Context, limit *rate.Limiter, done func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(v.ctx, cancel)()
	for off := int64(0); off < v.size.Load(); {
		n, err := v.hydrateStep(ctx, limit, off)
		if err != nil {
			return err
		}
		if off += n; done != nil {
			done(off)
		}
	}
	return nil
}

// hydrateStep brings some bytes from off on near, and returns how many.
func (v *Volume) hydrateStep(ctx context.Context, limit *rate.Limiter, off int64) (int64, error) {
	if err := v.enter(); err != nil {
		return 0, err
	}
	defer v.leave()
	vw := v.acquire()
	defer vw.release()
	if vw.zeros || vw.cache == nil {
		return v.size.Load() - off, nil
	}
	end := min(off/maxFetch*maxFetch+maxFetch, v.size.Load())
	run, data, err := vw.base.image.Run(ctx, off, v.size.Load()-off)
	if err != nil {
		return 0, err
	}
	if !data {
		return run, nil // nothing to fetch: whoever asks the map is told so
	}
	end = min(end, off+run)
	for pos := off; pos < end; {
		_, state, n := vw.find(len(vw.layers), pos/pageSize, (end+pageSize-1)/pageSize-pos/pageSize)
		next := min((pos/pageSize+n)*pageSize, end)
		if state == layer.Below {
			if _, miss := vw.cache.known(pos, next-pos); miss > 0 && limit != nil {
				if err := wait(ctx, limit, next-pos); err != nil {
					return 0, err
				}
			}
			if err := v.near(ctx, vw, pos, next); err != nil {
				return 0, err
			}
		}
		pos = next
	}
	return end - off, nil
}

// wait waits until n bytes are allowed.
func wait(ctx context.Context, limit *rate.Limiter, n int64) error {
	for n > 0 {
		k := min(n, int64(max(limit.Burst(), 1)))
		if err := limit.WaitN(ctx, int(k)); err != nil {
			return snapferry.Errorf(snapferry.Cancelled, "hydration: %w", err)
		}
		n -= k
	}
	return nil
}
