package head

import (
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// maxAdmitted is the most that one passage of the gate writes: 1 MiB. A freeze
// waits no longer than for that.
const maxAdmitted = 1 << 20

// WriteAt is io.WriterAt within the volume: a range beyond it is Invalid. It is
// durable after the next Sync. Full when the disk is: then the pages it did not
// come to are as before. What has to be filled up from the base is waited for,
// with errors like those of ReadAt.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	if err := v.enter(); err != nil {
		return 0, err
	}
	defer v.leave()
	_, err := v.write(p, off, true)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteNow writes like WriteAt if nothing has to come from the base for it: done
// is false when something has.
func (v *Volume) WriteNow(p []byte, off int64) (done bool, err error) {
	if err := v.enter(); err != nil {
		return true, err
	}
	defer v.leave()
	return v.write(p, off, false)
}

func (v *Volume) write(p []byte, off int64, wait bool) (done bool, err error) {
	if err := v.within(off, int64(len(p))); err != nil {
		return true, err
	}
	size := v.size.Load()
	for len(p) > 0 {
		n := int64(len(p))
		in := off % pageSize
		switch {
		case in != 0 || n < pageSize:
			n = min(n, pageSize-in)
			done, err = v.patch(p[:n], off, wait, off-in+pageSize > size && in == 0 && off+n == size)
		default:
			n = min(n/pageSize*pageSize, maxAdmitted, shardSpan-off%shardSpan)
			done, err = true, v.writePages(p[:n], off)
		}
		if !done || err != nil {
			return done, err
		}
		p, off = p[n:], off+n
	}
	return true, nil
}

// writePages writes whole pages, of one shard.
func (v *Volume) writePages(p []byte, off int64) error {
	v.gate.RLock()
	defer v.gate.RUnlock()
	shard := v.shard(off)
	shard.RLock()
	defer shard.RUnlock()
	_, err := v.cur.Load().top().WriteAt(p, off)
	return err
}

func (v *Volume) shard(off int64) *sync.RWMutex { return &v.shards[off/shardSpan%shardCount] }

// pageBuffers are pages between two patches.
var pageBuffers = sync.Pool{New: func() any { return new([pageSize]byte) }}

// patch writes p inside of one page. If the top does not have the page it is
// filled up from what is below: that is looked for first and waited for
// outside of the gate, then everything is looked at again inside. whole says that
// p is all there is of the page: it is the last one of the disk.
func (v *Volume) patch(p []byte, off int64, wait, whole bool) (done bool, err error) {
	buf := pageBuffers.Get().(*[pageSize]byte)
	defer pageBuffers.Put(buf)
	page := off / pageSize
	var from *base // what buf was fetched from
	if whole {
		clear(buf[:])
	}
	for {
		done, vw, err := v.patchAdmitted(p, off, buf[:], from, whole)
		if done || err != nil || !wait {
			if vw != nil {
				vw.release()
			}
			return done || err != nil, err
		}
		n := min(pageSize, v.size.Load()-page*pageSize)
		clear(buf[n:])
		err = v.readBelow(v.ctx, vw, buf[:n], page*pageSize)
		from = vw.base
		vw.release()
		if err != nil {
			return true, err
		}
	}
}

// patchAdmitted is the part of patch that a freeze waits for: it touches local
// files only. When the page has to come from the base it returns the view that
// said so, to be released.
func (v *Volume) patchAdmitted(p []byte, off int64, buf []byte, from *base, whole bool) (done bool, miss *view, err error) {
	page, in := off/pageSize, off%pageSize
	v.gate.RLock()
	defer v.gate.RUnlock()
	vw := v.acquire()
	shard := v.shard(off)
	shard.Lock()
	defer shard.Unlock()
	top := vw.top()
	if top.Lookup(page) == layer.Data {
		defer vw.release()
		return true, nil, top.Patch(p, off)
	}
	if !whole {
		ok, err := v.pageBelow(vw, len(vw.layers), page, buf, from)
		if err != nil {
			vw.release()
			return true, nil, err
		}
		if !ok {
			return false, vw, nil
		}
	}
	defer vw.release()
	copy(buf[in:], p)
	_, err = top.WriteAt(buf, page*pageSize)
	return true, nil, err
}

// Trim makes the whole pages in a range read as zeros and gives their space
// back; the rest of the range may keep what it has.
func (v *Volume) Trim(off, n int64) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.within(off, n); err != nil {
		return err
	}
	end := off + n
	if end < v.size.Load() {
		end = end / pageSize * pageSize
	}
	return v.zeroPages((off+pageSize-1)/pageSize*pageSize, end)
}

// Zero makes a range read as zeros. It is as fast as Trim; hole says nothing
// here, because a page of zeros never takes space.
func (v *Volume) Zero(off, n int64, hole bool) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if err := v.within(off, n); err != nil {
		return err
	}
	end, size := off+n, v.size.Load()
	lo, hi := (off+pageSize-1)/pageSize*pageSize, end
	if end < size {
		hi = end / pageSize * pageSize
	}
	var zeros [pageSize]byte
	if lo > hi { // within one page
		_, err := v.write(zeros[:n], off, true)
		return err
	}
	if off < lo {
		if _, err := v.write(zeros[:lo-off], off, true); err != nil {
			return err
		}
	}
	if err := v.zeroPages(lo, hi); err != nil {
		return err
	}
	if hi < end {
		if _, err := v.write(zeros[:end-hi], hi, true); err != nil {
			return err
		}
	}
	return nil
}

// zeroPages makes [off, end) zero: off is that of a page, end too or that of the
// disk.
func (v *Volume) zeroPages(off, end int64) error {
	for off < end {
		next := min(end, off/shardSpan*shardSpan+shardSpan)
		if err := v.zeroAdmitted(off, next); err != nil {
			return err
		}
		off = next
	}
	return nil
}

func (v *Volume) zeroAdmitted(off, end int64) error {
	v.gate.RLock()
	defer v.gate.RUnlock()
	shard := v.shard(off)
	shard.RLock()
	defer shard.RUnlock()
	vw := v.acquire()
	defer vw.release()
	for page, last := off/pageSize, (end+pageSize-1)/pageSize; page < last; {
		_, state, run := vw.find(len(vw.layers), page, last-page)
		// What is zero already stays as it is: a disk that is trimmed as a whole
		// must not fill maps.
		if state == layer.Data || state == layer.Below && !vw.zeros {
			if err := vw.top().Zero(page, run); err != nil {
				return err
			}
		}
		page += run
	}
	return nil
}

// Sync makes everything durable whose write has returned, through whatever
// connection: in each layer that was the top since its last complete sync, from
// the lowest to the top. It may be called again when there was no room for it
// (Full). When the system failed to sync nothing becomes durable any more: it has
// forgotten what it did not write, so the volume must be opened again.
func (v *Volume) Sync() error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	vw := v.acquire()
	defer vw.release()
	return v.syncLayers(vw, len(vw.layers))
}

// syncLayers syncs the first n layers of a view.
func (v *Volume) syncLayers(vw *view, n int) error {
	if err := v.broken.Load(); err != nil {
		return err
	}
	for _, s := range vw.layers[:n] {
		if !s.Dirty() {
			continue
		}
		if err := s.Sync(); err != nil {
			if s.Broken() == nil {
				return snapferry.Errorf(snapferry.KindOf(err), "sync layer %d: %w", s.number, err)
			}
			e := snapferry.Errorf(snapferry.KindOf(err), "sync layer %d: %w", s.number, err).
				WithHint("what was written may not be on the disk: look for its faults, then open the volume again")
			if v.broken.CompareAndSwap(nil, e) {
				v.c.Log.Error("a sync failed; the volume takes no more", "volume", v.c.Dir, "err", err)
			}
			return e
		}
	}
	return nil
}
