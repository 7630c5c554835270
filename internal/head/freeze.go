package head

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/layer"
)

// Freeze stops the writes of all volumes for one moment, the same for all of
// them, and makes a new layer the top of each. It returns the highest frozen layer
// of each, in the order of vols: the content of a snapshot. Every write that had
// returned before is in it, none that begins after Freeze returned. Settle makes
// it durable. A volume must not be given twice.
//
// How long the writes wait does not depend on any size: until those that touch
// local files right now are done.
func Freeze(ctx context.Context, vols ...*Volume) ([]uint64, error) {
	order := slices.Clone(vols)
	slices.SortFunc(order, func(a, b *Volume) int { return cmp.Compare(a.c.Dir, b.c.Dir) })
	for i, v := range order {
		if i > 0 && v == order[i-1] {
			return nil, snapferry.Errorf(snapferry.Invalid, "the same volume twice")
		}
	}
	for _, v := range order {
		v.change.Lock()
		defer v.change.Unlock()
		if err := v.ready(ctx); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	for _, v := range order {
		v.gate.Lock()
	}
	for _, v := range order {
		v.push()
	}
	for _, v := range slices.Backward(order) {
		v.gate.Unlock()
	}
	pause := time.Since(start)
	numbers := make([]uint64, len(vols))
	for i, v := range vols {
		v.pauses.add(pause)
		layers := v.cur.Load().layers
		numbers[i] = layers[len(layers)-2].number
	}
	return numbers, nil
}

// ready has the spare there: an empty layer, durable, and named by the stack as
// the highest one.
func (v *Volume) ready(ctx context.Context) error {
	switch {
	case v.spare != nil:
		return nil
	case v.ctx.Err() != nil:
		return snapferry.Errorf(snapferry.Conflict, "the volume is being closed")
	case len(v.stack.Layers) >= maxLayers:
		return snapferry.Errorf(snapferry.Full, "the volume has %d layers", len(v.stack.Layers)).
			WithHint("wait until its snapshots are ready")
	}
	next := v.stack.clone()
	number := next.Next
	dir := layerDir(v.c.Dir, number)
	l, err := layer.Create(v.c.FS, dir, next.Size, v.c.Keys)
	if snapferry.IsKind(err, snapferry.Exists) {
		// Left by a try that failed, and empty. It stays: the stack of that try may
		// be on the disk and name it.
		l, err = layer.Open(v.c.FS, dir, next.Size, v.c.Keys)
	}
	if err != nil {
		return err
	}
	if err := v.c.FS.SyncDir(v.c.Dir); err != nil {
		l.Close()
		return err
	}
	next.Layers, next.Next = append(next.Layers, number), number+1
	if err := next.save(v.c.FS, v.c.Dir); err != nil {
		l.Close()
		return err
	}
	v.stack, v.spare = next, v.slab(l, number)
	return nil
}

// push makes the spare the top. The gate is closed.
func (v *Volume) push() {
	old := v.cur.Load()
	vw := &view{layers: append(slices.Clone(old.layers), v.spare), clean: old.clean, base: old.base, cache: old.cache, zeros: old.zeros}
	v.spare = nil
	v.publish(vw)
}

// Settle makes the content of a frozen layer durable, with all below it, and
// prepares the next freeze. Only then may a snapshot be recorded.
func (v *Volume) Settle(ctx context.Context, frozen uint64) error {
	vw := v.acquire()
	defer vw.release()
	if err := v.syncLayers(vw, vw.upTo(frozen)); err != nil {
		return err
	}
	v.change.Lock()
	defer v.change.Unlock()
	if err := v.ready(ctx); err != nil {
		// The next freeze says so.
		v.c.Log.Warn("prepare the next freeze", "volume", v.c.Dir, "err", err)
	}
	return nil
}

// upTo returns how many layers of the view have at most this number.
func (vw *view) upTo(number uint64) int {
	n := 0
	for n < len(vw.layers) && vw.layers[n].number <= number {
		n++
	}
	return n
}

// Changes is the content of a frozen layer, for the upload: a disk that knows
// what no version has yet.
type Changes struct {
	ctx    context.Context
	v      *Volume
	frozen uint64
	size   int64
}

// Changes returns the content at a frozen layer. Next goes through what the base
// does not have: ask for it when every older frozen layer is sealed, and before
// a newer one is. size is that of the snapshot. Reads end with ctx.
func (v *Volume) Changes(ctx context.Context, frozen uint64, size int64) (*Changes, error) {
	vw := v.acquire()
	defer vw.release()
	if n := vw.upTo(frozen); n < len(vw.layers) && (n <= vw.clean || vw.layers[n-1].number != frozen) {
		return nil, snapferry.Errorf(snapferry.NotFound, "the volume has no frozen layer %d", frozen)
	}
	return &Changes{ctx: ctx, v: v, frozen: frozen, size: size}, nil
}

// Size returns the bytes of the disk.
func (c *Changes) Size() int64 { return c.size }

// ReadAt reads the disk as it was at the freeze.
func (c *Changes) ReadAt(p []byte, off int64) (int, error) {
	if err := c.v.enter(); err != nil {
		return 0, err
	}
	defer c.v.leave()
	if off < 0 || off+int64(len(p)) > c.size {
		return 0, snapferry.Errorf(snapferry.Invalid, "%d bytes at %d are not within %d", len(p), off, c.size)
	}
	vw := c.v.acquire()
	defer vw.release()
	if err := c.v.readThrough(c.ctx, vw, vw.upTo(c.frozen), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Next returns the first extent at or after off that the base may not have. Zeros
// where the base has a hole, or there is no base, are none: a disk that was trimmed as a whole has no
// more to read than its base has. It may read nodes of the base's map.
func (c *Changes) Next(off int64) (e extent.Extent, ok bool, err error) {
	if err := c.v.enter(); err != nil {
		return e, false, err
	}
	defer c.v.leave()
	vw := c.v.acquire()
	defer vw.release()
	for _, s := range vw.layers[vw.clean:vw.upTo(c.frozen)] {
		x, found, err := c.next(vw.base, s, off)
		if err != nil {
			return extent.Extent{}, false, err
		}
		if found && (!ok || x.Off < e.Off) {
			e, ok = x, true
		}
	}
	return e, ok, nil
}

// next is Next of one layer.
func (c *Changes) next(b *base, s *slab, off int64) (e extent.Extent, ok bool, err error) {
	for off < c.size {
		page, n, state, ok := s.NextSet(off / pageSize)
		lo, hi := max(page*pageSize, off), min((page+n)*pageSize, c.size)
		if !ok || lo >= hi {
			return e, false, nil
		}
		if state == layer.Data {
			return extent.Extent{Off: lo, Len: hi - lo}, true, nil
		}
		if b == nil {
			off = hi
			continue
		}
		length, data, err := b.image.Run(c.ctx, lo, hi-lo)
		if err != nil || data {
			return extent.Extent{Off: lo, Len: length}, err == nil, err
		}
		off = lo + length
	}
	return e, false, nil
}
