package head

import (
	"context"
	"slices"

	"github.com/snapferry/snapferry"
)

// keepClean is how many clean layers a volume has before neighbours are merged:
// each is one more to look into for pages that no higher one has.
const keepClean = 4

// Sealed tells that a version has the content of a frozen layer: it is the base
// from now on. It can be told again. Versions are told in the order of their
// layers. Conflict when the volume has no such layer, or a version has it already.
func (v *Volume) Sealed(ctx context.Context, frozen uint64, id snapferry.VersionID) error {
	v.change.Lock()
	defer v.change.Unlock()
	if v.stack.Base == id && v.stack.Clean >= frozen {
		return nil
	}
	old := v.cur.Load()
	n := old.upTo(frozen)
	if n <= old.clean || n == len(old.layers) || old.layers[n-1].number != frozen {
		return snapferry.Errorf(snapferry.Conflict, "layer %d of the volume is not frozen", frozen)
	}
	b, err := v.openBase(ctx, id)
	if err != nil {
		return err
	}
	next := v.stack.clone()
	next.Base, next.Clean = id, frozen
	if err := next.save(v.c.FS, v.c.Dir); err != nil {
		v.endBase(b)
		return err
	}
	v.stack = next
	v.publish(&view{layers: old.layers, clean: n, base: b, cache: old.cache, zeros: old.zeros})
	return nil
}

// Base returns the version that is the base by the volume's own record, and the
// highest layer whose content it has.
func (v *Volume) Base() (id snapferry.VersionID, clean uint64) {
	v.change.Lock()
	defer v.change.Unlock()
	return v.stack.Base, v.stack.Clean
}

// Rollback gives the volume the content of a version: whatever no version has is
// lost. Nobody may use the volume meanwhile, and no snapshot of it be under way.
// The size stays.
func (v *Volume) Rollback(ctx context.Context, id snapferry.VersionID) (err error) {
	v.change.Lock()
	defer v.change.Unlock()
	if err := v.ready(ctx); err != nil {
		return err
	}
	b, err := v.openBase(ctx, id)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && b.refs.Load() == 0 {
			v.endBase(b)
		}
	}()
	vw := &view{base: b}
	if v.c.Caches != nil {
		if vw.cache, err = v.c.Caches.Get(id, v.c.Keys); err != nil {
			return err
		}
		defer vw.cache.release()
	}
	next := v.stack.clone()
	next.Under, next.Base, next.Clean, next.Layers = id, id, 0, next.Layers[len(next.Layers)-1:]
	if err := next.save(v.c.FS, v.c.Dir); err != nil {
		return err
	}
	v.stack = next
	old := v.cur.Load()
	for _, s := range old.layers {
		s.doomed.Store(true)
	}
	vw.layers, v.spare = []*slab{v.spare}, nil
	v.gate.Lock()
	v.publish(vw)
	v.gate.Unlock()
	return v.ready(ctx)
}

// Tidy keeps the stack low: it merges neighbours among the clean layers until
// few are left, ctx ends or the volume is closed. Reads and writes go on meanwhile.
func (v *Volume) Tidy(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(v.ctx, cancel)()
	v.tidied.Lock()
	defer v.tidied.Unlock()
	for ctx.Err() == nil {
		again, err := v.merge(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if !again {
			break
		}
	}
	return nil
}

// merge merges the two neighbouring clean layers with the fewest pages, if there
// are too many. What the upper one has is written into the lower one, where
// nobody looks for it as long as the upper one is there.
func (v *Volume) merge(ctx context.Context) (again bool, err error) {
	vw := v.acquire()
	defer vw.release()
	if vw.clean <= keepClean {
		return false, nil
	}
	weight := func(i int) int64 {
		data, zero := vw.layers[i].Pages()
		return data + zero/64
	}
	best := 1
	for i := 2; i < vw.clean; i++ {
		if weight(i)+weight(i-1) < weight(best)+weight(best-1) {
			best = i
		}
	}
	lower, upper := vw.layers[best-1], vw.layers[best]
	if err := lower.Absorb(ctx, upper.Layer); err != nil {
		return false, err
	}
	return true, v.drop(func(s *slab) bool { return s == upper }, false)
}

// drop takes clean layers out of the stack. all says that none is left, and that
// what lies below is the base.
func (v *Volume) drop(which func(*slab) bool, all bool) error {
	v.change.Lock()
	defer v.change.Unlock()
	if v.ctx.Err() != nil {
		return nil // closed, or about to be: it stays as it is
	}
	old, next := v.cur.Load(), v.stack.clone()
	vw := &view{base: old.base, cache: old.cache, zeros: old.zeros}
	for i, s := range old.layers {
		if i < old.clean && which(s) {
			next.Layers = slices.DeleteFunc(next.Layers, func(n uint64) bool { return n == s.number })
			continue
		}
		if i < old.clean {
			vw.clean++
		}
		vw.layers = append(vw.layers, s)
	}
	if all {
		next.Under, vw.zeros = next.Base, next.Base.IsZero()
		vw.cache = nil
		if v.c.Caches != nil && !vw.zeros {
			c, err := v.c.Caches.Get(next.Under, v.c.Keys)
			if err != nil {
				return err
			}
			defer c.release()
			vw.cache = c
		}
	}
	if err := next.save(v.c.FS, v.c.Dir); err != nil {
		return err
	}
	v.stack = next
	for i, s := range old.layers {
		if i < old.clean && which(s) {
			s.doomed.Store(true)
		}
	}
	v.publish(vw)
	return nil
}

// dropClean drops all clean layers, for want of room: what they have is read from
// the base again. It returns about how many bytes that gave back.
func (v *Volume) dropClean() (int64, error) {
	v.tidied.Lock()
	defer v.tidied.Unlock()
	freed := v.clean()
	if freed == 0 {
		return 0, nil
	}
	return freed, v.drop(func(*slab) bool { return true }, true)
}

// clean returns how many bytes the clean layers have.
func (v *Volume) clean() (n int64) {
	vw := v.acquire()
	defer vw.release()
	for _, s := range vw.layers[:vw.clean] {
		data, _ := s.Pages()
		n += data * pageSize
	}
	return n
}
