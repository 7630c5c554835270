package head

import (
	"context"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// An Image is the content of a sealed version.
type Image interface {
	// Size returns the bytes of the disk; what lies beyond is zero.
	Size() int64
	// Read fills dst with whole blocks of one leaf of the map (16 MiB), verified,
	// zeros where there are none. It may use the capacity of dst.
	Read(ctx context.Context, first uint64, dst []byte) error
	// Run returns for how many bytes from off on, at most n, there is data, or
	// are zeros.
	Run(ctx context.Context, off, n int64) (length int64, data bool, err error)
}

// Config says where a volume is and what it needs.
type Config struct {
	FS  layer.FS
	Dir string // the volume's folder in FS
	// Image opens a version, whenever one becomes the base of the volume.
	Image func(ctx context.Context, id snapferry.VersionID) (Image, error)
	// Released, if not nil, is told when nothing of the volume reads a version
	// any more that was its base.
	Released func(id snapferry.VersionID)
	// Frozen is the highest layer that a snapshot under way needs as it is, or
	// that a version has of which the volume may not have been told; 0 for none.
	Frozen uint64
	Caches *Caches // nil: what was fetched is not kept
	// Keys seals the layers of an encrypted volume; nil: it is not encrypted.
	Keys layer.Keys
	Log  *slog.Logger // nil for none
}

// A Volume is an open live volume. What reads or writes it (ReadAt, ReadNow, WriteAt,
// WriteNow, Trim, Zero, Cache, Run, Dirty, Hydrate, Sync) may be called concurrently
// with each other and with everything else, Close too.
type Volume struct {
	c      Config
	size   atomic.Int64
	ctx    context.Context // ends with Close; not of a request
	cancel context.CancelFunc

	// use is held for reading by calls that read or write; Close waits for them.
	use    sync.RWMutex
	closed bool // guarded by use

	// gate is passed by each write, for as long as it touches local files, and
	// closed for the moment in which another layer becomes the top.
	gate sync.RWMutex
	cur  atomic.Pointer[view]
	// shards keep what fills a page from below apart from what writes it whole, by
	// stretch of shardSpan.
	shards [shardCount]sync.RWMutex
	broken atomic.Pointer[snapferry.Error] // why nothing becomes durable any more

	change sync.Mutex // one change of the stack at a time
	stack  stack      // as it is in the file; guarded by change
	spare  *slab      // the next top; nil: to be made; guarded by change
	tidied sync.Mutex // one merge at a time

	basesMu sync.Mutex
	bases   map[snapferry.VersionID]int // open, of each version; guarded by basesMu

	pauses  pauses
	ahead   ahead
	aheads  atomic.Int32   // reads ahead under way
	behind  sync.WaitGroup // for them
	own     flights        // when there is no cache
	fetched atomic.Int64   // bytes fetched from images
	keep    atomic.Bool    // copies near are not dropped for want of room
}

const (
	shardSpan  = 64 << 20
	shardCount = 16
)

// Create makes the folder of a new volume of size bytes, over a version or, if
// base is zero, over zeros. keys are those of Config. It is durable when it returns.
// A folder that is there already, from a creation that did not end, is replaced.
func Create(fs layer.FS, dir string, size int64, base snapferry.VersionID, keys layer.Keys) error {
	if err := snapferry.CheckSize(size); err != nil {
		return err
	}
	if err := removeAll(fs, dir); err != nil {
		return err
	}
	if err := fs.Mkdir(dir); err != nil {
		return err
	}
	l, err := layer.Create(fs, layerDir(dir, 1), size, keys)
	if err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return err
	}
	s := stack{Size: size, Under: base, Base: base, Next: 2, Layers: []uint64{1}}
	if err := s.save(fs, dir); err != nil {
		return err
	}
	return fs.SyncDir(path.Dir(dir))
}

// Look returns what the folder of a volume says of it, without opening it: its
// size in bytes, its base, and the highest layer whose content that has.
func Look(fs layer.FS, dir string) (size int64, base snapferry.VersionID, clean uint64, err error) {
	s, err := loadStack(fs, dir)
	return s.Size, s.Base, s.Clean, err
}

// Remove removes the folder of a volume that is not open.
func Remove(fs layer.FS, dir string) error {
	// Without its stack it is none any more, whatever else is left.
	if err := fs.Remove(path.Join(dir, stackName)); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return err
	}
	if err := removeAll(fs, dir); err != nil {
		return err
	}
	return fs.SyncDir(path.Dir(dir))
}

// Open opens a volume: everything that was durable, and whatever of later writes
// got to the disk. The caller sees to it that no other process has it open.
func Open(ctx context.Context, c Config) (*Volume, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s, err := loadStack(c.FS, c.Dir)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "volume in %s: %w", c.Dir, err)
	}
	v := &Volume{c: c, stack: s, bases: map[snapferry.VersionID]int{}}
	v.size.Store(s.Size)
	v.ctx, v.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := v.open(ctx); err != nil {
		v.cancel()
		return nil, snapferry.Errorf(snapferry.KindOf(err), "volume in %s: %w", c.Dir, err)
	}
	if c.Caches != nil {
		c.Caches.enter(v)
	}
	return v, nil
}

func (v *Volume) open(ctx context.Context) (err error) {
	vw := &view{zeros: v.stack.Under.IsZero()}
	defer func() {
		if err != nil {
			for _, s := range vw.layers {
				s.Close()
			}
		}
	}()
	if err := v.sweep(); err != nil {
		return err
	}
	for _, number := range v.stack.Layers {
		l, err := layer.Open(v.c.FS, layerDir(v.c.Dir, number), v.stack.Size, v.c.Keys)
		if err != nil {
			return err
		}
		vw.layers = append(vw.layers, v.slab(l, number))
		if number <= v.stack.Clean {
			vw.clean++
		}
	}
	// An empty layer at the top is still the spare, unless what is below it is
	// to stay as it is.
	if n := len(vw.layers); n > 1 && v.stack.Layers[n-2] > max(v.c.Frozen, v.stack.Clean) {
		if data, zero := vw.top().Pages(); data+zero == 0 {
			v.spare, vw.layers = vw.top(), vw.layers[:n-1]
		}
	}
	if !v.stack.Base.IsZero() {
		if vw.base, err = v.openBase(ctx, v.stack.Base); err != nil {
			return err
		}
	}
	if !vw.zeros && v.c.Caches != nil {
		if vw.cache, err = v.c.Caches.Get(v.stack.Under, v.c.Keys); err != nil {
			return err
		}
		defer vw.cache.release()
	}
	v.publish(vw)
	return nil
}

// sweep removes layers that the stack does not name: those of steps that a crash
// cut off.
func (v *Volume) sweep() error {
	names, err := v.c.FS.ReadDir(v.c.Dir)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, l := range v.stack.Layers {
		known[path.Base(layerDir(v.c.Dir, l))] = true
	}
	for _, n := range names {
		if strings.HasPrefix(n, layerPrefix) && !known[n] {
			if err := layer.Remove(v.c.FS, path.Join(v.c.Dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// openBase opens a version, to be published; else endBase ends it.
func (v *Volume) openBase(ctx context.Context, id snapferry.VersionID) (*base, error) {
	im, err := v.c.Image(ctx, id)
	if err != nil {
		return nil, err
	}
	v.basesMu.Lock()
	defer v.basesMu.Unlock()
	v.bases[id]++
	return &base{version: id, image: im, end: v.endBase}, nil
}

func (v *Volume) endBase(b *base) {
	v.basesMu.Lock()
	v.bases[b.version]--
	last := v.bases[b.version] == 0
	if last {
		delete(v.bases, b.version)
	}
	v.basesMu.Unlock()
	if last && v.c.Released != nil && v.ctx.Err() == nil {
		v.c.Released(b.version)
	}
}

func (v *Volume) slab(l *layer.Layer, number uint64) *slab {
	return &slab{Layer: l, number: number, end: v.endSlab}
}

// endSlab closes a layer that no view has any more.
func (v *Volume) endSlab(s *slab) {
	if err := s.Close(); err != nil {
		v.c.Log.Error("close layer", "volume", v.c.Dir, "layer", s.number, "err", err)
	}
	if s.doomed.Load() {
		// What is left is removed when the volume is opened.
		if err := layer.Remove(v.c.FS, layerDir(v.c.Dir, s.number)); err != nil {
			v.c.Log.Error("remove layer", "volume", v.c.Dir, "layer", s.number, "err", err)
		}
	}
}

// Interrupt ends whatever waits for the base, with an error, and lets nothing wait
// for it any more. It is for the time before Close.
func (v *Volume) Interrupt() { v.cancel() }

// Context ends when nothing of the volume is wanted any more.
func (v *Volume) Context() context.Context { return v.ctx }

// enter begins a call that reads or writes; leave ends it. Conflict when the volume
// is closed.
func (v *Volume) enter() error {
	v.use.RLock()
	if v.closed {
		v.use.RUnlock()
		return snapferry.Errorf(snapferry.Conflict, "the volume in %s is closed", v.c.Dir)
	}
	return nil
}

func (v *Volume) leave() { v.use.RUnlock() }

// Close waits for calls that read or write, of which those end with an error that
// wait for the base, and then syncs and closes the volume. Such calls fail from
// then on, with Conflict; others nobody may make any more.
func (v *Volume) Close() error {
	v.cancel()
	v.use.Lock()
	v.closed = true
	v.use.Unlock()
	v.behind.Wait()
	vw := v.acquire() // Tidy and the caches may still publish another one
	err := v.syncLayers(vw, len(vw.layers))
	vw.release()
	if v.c.Caches != nil {
		v.c.Caches.leave(v)
	}
	v.change.Lock()
	defer v.change.Unlock()
	if v.spare != nil {
		if cerr := v.spare.Close(); err == nil {
			err = cerr
		}
	}
	v.cur.Load().release()
	return err
}

// Size returns the bytes of the disk.
func (v *Volume) Size() int64 { return v.size.Load() }

// Grow makes the volume larger; what is new reads as zeros. Invalid if size is
// less than it has.
func (v *Volume) Grow(size int64) error {
	if err := snapferry.CheckSize(size); err != nil {
		return err
	}
	v.change.Lock()
	defer v.change.Unlock()
	if size < v.stack.Size {
		return snapferry.Errorf(snapferry.Invalid, "a volume of %d bytes cannot shrink to %d", v.stack.Size, size)
	}
	if size == v.stack.Size {
		return nil
	}
	next := v.stack.clone()
	next.Size = size
	if err := next.save(v.c.FS, v.c.Dir); err != nil {
		return err
	}
	v.stack = next
	layers := v.cur.Load().layers
	if v.spare != nil {
		layers = append(slices.Clone(layers), v.spare)
	}
	for _, s := range layers {
		if err := s.Resize(size); err != nil {
			return err
		}
	}
	v.size.Store(size)
	return nil
}

// Keep says whether what is near is to stay near, whatever else needs room.
func (v *Volume) Keep(keep bool) { v.keep.Store(keep) }

// Uses reports whether anything of the volume reads a version, or would after a
// restart.
func (v *Volume) Uses(id snapferry.VersionID) bool {
	if base, _ := v.Base(); base == id {
		return true
	}
	v.basesMu.Lock()
	defer v.basesMu.Unlock()
	return v.bases[id] > 0
}

// Stats tells what a volume has here.
type Stats struct {
	Layers  int   // that it is made of
	Dirty   int64 // bytes of pages that no version has yet
	Near    int64 // bytes of pages that the base has too
	Pauses  snapferry.Pauses
	Fetched int64 // bytes read from the base since it was opened
}

// Stats returns what the volume has here, now.
func (v *Volume) Stats() Stats {
	vw := v.acquire()
	defer vw.release()
	st := Stats{Layers: len(vw.layers), Fetched: v.fetched.Load(), Pauses: v.pauses.get()}
	for i, s := range vw.layers {
		data, _ := s.Pages()
		if i < vw.clean {
			st.Near += data * pageSize
		} else {
			st.Dirty += data * pageSize
		}
	}
	if vw.cache != nil {
		data, _ := vw.cache.layer.Pages()
		st.Near += data * pageSize
	}
	return st
}

// pauses are how long freezes stopped the writes.
type pauses struct {
	mu sync.Mutex
	p  snapferry.Pauses
}

func (p *pauses) add(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p.Count++
	p.p.Longest, p.p.Last = max(p.p.Longest, d), d
}

func (p *pauses) get() snapferry.Pauses {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.p
}

// removeAll removes what is in the folder of a volume, and the folder: layers and
// small files. One that is not there is no error.
func removeAll(fs layer.FS, dir string) error {
	names, err := fs.ReadDir(dir)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		name := path.Join(dir, n)
		if strings.HasPrefix(n, layerPrefix) {
			err = layer.Remove(fs, name)
		} else {
			err = fs.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return fs.Remove(dir)
}
