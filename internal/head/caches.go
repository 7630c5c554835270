package head

import (
	"bytes"
	"context"
	"log/slog"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/layer"
)

// Caches keep what was fetched of versions in local files, one for each version,
// shared by all volumes that lie on it. Together with the clean layers of the
// volumes they stay about within a budget: when they are above it, what nobody
// uses goes first, then the clean layers, then parts of what is in use.
type Caches struct {
	fs      layer.FS
	dir     string
	budget  int64
	log     *slog.Logger
	flights flights
	written atomic.Int64 // bytes put since the last look at the budget

	mu      sync.Mutex
	open    map[snapferry.VersionID]*Cache    // guarded by mu
	idle    map[snapferry.VersionID]idleCache // guarded by mu
	volumes map[*Volume]struct{}              // guarded by mu
	closed  bool                              // guarded by mu
	trims   sync.WaitGroup
	trim    atomic.Bool // one is under way
}

// idleCache is one that no volume uses.
type idleCache struct {
	bytes int64
	last  time.Time
}

// A Cache is local copies of pages of one version.
type Cache struct {
	owner   *Caches
	version snapferry.VersionID
	layer   *layer.Layer
	refs    int // guarded by owner.mu
	// mu is shared by those who look for pages and read or write them, and held by
	// who gives pages up.
	mu sync.RWMutex
}

// cacheSize is the size of every cache layer: it has what a version has, and that
// knows its size.
const cacheSize = snapferry.MaxVolumeSize

// OpenCaches opens the caches in a folder, which is made when it is not there.
// budget is in bytes; 0 or less keeps nothing that is not in use.
func OpenCaches(fs layer.FS, dir string, budget int64, log *slog.Logger) (*Caches, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cs := &Caches{
		fs: fs, dir: dir, budget: budget, log: log,
		open: map[snapferry.VersionID]*Cache{}, idle: map[snapferry.VersionID]idleCache{}, volumes: map[*Volume]struct{}{},
	}
	if err := fs.Mkdir(dir); err != nil && !snapferry.IsKind(err, snapferry.Exists) {
		return nil, err
	}
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		id, err := snapferry.ParseVersionID(n)
		if err != nil {
			continue // not ours
		}
		bytes, err := layer.Allocated(fs, cs.path(id))
		if err != nil {
			log.Warn("a cache cannot be read and is removed", "version", n, "err", err)
			if err := layer.Remove(fs, cs.path(id)); err != nil {
				return nil, err
			}
			continue
		}
		cs.idle[id] = idleCache{bytes: bytes}
	}
	return cs, nil
}

func (cs *Caches) path(id snapferry.VersionID) string { return path.Join(cs.dir, id.String()) }

// Close waits for background work and syncs the caches that are in use, so that
// what is near stays near.
func (cs *Caches) Close() error {
	cs.mu.Lock()
	cs.closed = true
	open := cs.list()
	cs.mu.Unlock()
	cs.trims.Wait()
	var err error
	for _, c := range open {
		if serr := c.layer.Sync(); err == nil {
			err = serr
		}
	}
	return err
}

// list returns the open caches; mu is held.
func (cs *Caches) list() (all []*Cache) {
	for _, c := range cs.open {
		all = append(all, c)
	}
	return all
}

// Get returns the cache of a version, to be released. keys are those of the volumes
// over it, nil for plain ones.
func (cs *Caches) Get(id snapferry.VersionID, keys layer.Keys) (*Cache, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.open[id]; c != nil {
		c.refs++
		return c, nil
	}
	l, err := cs.openLayer(id, keys)
	if err != nil {
		return nil, err
	}
	delete(cs.idle, id)
	c := &Cache{owner: cs, version: id, layer: l, refs: 1}
	cs.open[id] = c
	return c, nil
}

// openLayer opens or makes the layer of a cache. One that cannot be read is made
// again: it has nothing that the version does not have.
func (cs *Caches) openLayer(id snapferry.VersionID, keys layer.Keys) (*layer.Layer, error) {
	l, err := layer.Create(cs.fs, cs.path(id), cacheSize, keys)
	if snapferry.IsKind(err, snapferry.Exists) {
		l, err = layer.Open(cs.fs, cs.path(id), cacheSize, keys)
	}
	if !snapferry.IsKind(err, snapferry.Corrupt) {
		return l, err
	}
	cs.log.Warn("a cache cannot be read and is made again", "version", id, "err", err)
	if err := layer.Remove(cs.fs, cs.path(id)); err != nil {
		return nil, err
	}
	return layer.Create(cs.fs, cs.path(id), cacheSize, keys)
}

func (c *Cache) hold() {
	c.owner.mu.Lock()
	defer c.owner.mu.Unlock()
	c.refs++
}

func (c *Cache) release() {
	cs := c.owner
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c.refs--; c.refs > 0 {
		return
	}
	delete(cs.open, c.version)
	err := c.layer.Sync()
	bytes, aerr := c.layer.Allocated()
	cs.idle[c.version] = idleCache{bytes: bytes, last: time.Now()}
	if cerr := c.layer.Close(); err == nil {
		err = cerr
	}
	if err != nil || aerr != nil {
		cs.log.Warn("close a cache", "version", c.version, "err", err, "size", aerr)
	}
}

// read reads the beginning of p as far as it is here: have bytes. Then miss bytes
// are not.
func (c *Cache) read(p []byte, off int64) (have, miss int, err error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for have < len(p) {
		at := off + int64(have)
		state, run := c.layer.Run(at/pageSize, pages(at, len(p)-have))
		n := int(min(int64(len(p)-have), (at/pageSize+run)*pageSize-at))
		switch state {
		case layer.Below:
			return have, n, nil
		case layer.Zero:
			clear(p[have : have+n])
		default:
			if _, err := c.layer.ReadAt(p[have:have+n], at); err != nil {
				return have, 0, err
			}
		}
		have += n
	}
	return have, 0, nil
}

// known is read without reading.
func (c *Cache) known(off, n int64) (have, miss int64) {
	for have < n {
		at := off + have
		state, run := c.layer.Run(at/pageSize, (at+n-have+pageSize-1)/pageSize-at/pageSize)
		m := min(n-have, (at/pageSize+run)*pageSize-at)
		if state == layer.Below {
			return have, m
		}
		have += m
	}
	return have, 0
}

// readNow fills p if all of it is here and in memory.
func (c *Cache) readNow(p []byte, off int64) (done bool, err error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for len(p) > 0 {
		state, run := c.layer.Run(off/pageSize, pages(off, len(p)))
		q := p[:min(int64(len(p)), (off/pageSize+run)*pageSize-off)]
		switch state {
		case layer.Below:
			return false, nil
		case layer.Zero:
			clear(q)
		default:
			if done, err := c.layer.ReadNow(q, off); !done || err != nil {
				return done, err
			}
		}
		p, off = p[len(q):], off+int64(len(q))
	}
	return true, nil
}

var zeroBlock [snapferry.BlockSize]byte

// put takes pages of the version, from page on.
func (c *Cache) put(p []byte, page int64) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for len(p) > 0 {
		n := min(len(p), snapferry.BlockSize)
		var err error
		if bytes.Equal(p[:n], zeroBlock[:n]) {
			err = c.layer.Zero(page, int64(n/pageSize))
		} else {
			_, err = c.layer.WriteAt(p[:n], page*pageSize)
			c.owner.wrote(int64(n))
		}
		if err != nil {
			return err
		}
		p, page = p[n:], page+int64(n/pageSize)
	}
	return nil
}

// wrote has the budget looked at now and then.
func (cs *Caches) wrote(n int64) {
	if cs.written.Add(n) >= max(cs.budget/32, 16<<20) {
		cs.Trim()
	}
}

func (cs *Caches) enter(v *Volume) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.volumes[v] = struct{}{}
}

func (cs *Caches) leave(v *Volume) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.volumes, v)
}

// Trim brings caches and clean layers back within the budget, in the background.
func (cs *Caches) Trim() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed || !cs.trim.CompareAndSwap(false, true) {
		return
	}
	cs.written.Store(0)
	cs.trims.Go(func() {
		defer cs.trim.Store(false)
		if err := cs.fit(context.Background()); err != nil {
			cs.log.Warn("keep caches within their budget", "err", err)
		}
	})
}

// fit gives up what is near until all fits with a tenth to spare.
func (cs *Caches) fit(ctx context.Context) error {
	used, err := cs.Used()
	if err != nil || used <= cs.budget {
		return err
	}
	over := used - cs.budget + cs.budget/10
	for _, step := range []func(context.Context, int64) (int64, error){cs.fitIdle, cs.fitVolumes, cs.fitOpen} {
		freed, err := step(ctx, over)
		if err != nil {
			return err
		}
		if over -= freed; over <= 0 {
			return nil
		}
	}
	return nil
}

// Has reports whether all of a block of a version is here.
func (cs *Caches) Has(id snapferry.VersionID, block uint64) bool {
	c := cs.lookUp(id)
	if c == nil {
		return false
	}
	defer c.release()
	have, _ := c.known(int64(block)*snapferry.BlockSize, snapferry.BlockSize)
	return have == snapferry.BlockSize
}

// Read fills dst with a block of a version if all of it is here.
func (cs *Caches) Read(id snapferry.VersionID, block uint64, dst []byte) bool {
	c := cs.lookUp(id)
	if c == nil {
		return false
	}
	defer c.release()
	have, _, err := c.read(dst[:snapferry.BlockSize], int64(block)*snapferry.BlockSize)
	return err == nil && have == snapferry.BlockSize
}

// Hold has what is near of a version found by Has and Read until release, also
// while no volume is open over it. keys are as for Get.
func (cs *Caches) Hold(id snapferry.VersionID, keys layer.Keys) (release func()) {
	cs.mu.Lock()
	_, idle := cs.idle[id]
	none := !idle && cs.open[id] == nil
	cs.mu.Unlock()
	if none {
		return func() {} // a volume that comes makes it
	}
	c, err := cs.Get(id, keys)
	if err != nil {
		cs.log.Warn("open a cache", "version", id, "err", err) // it is only not near
		return func() {}
	}
	return c.release
}

// lookUp returns the cache of a version if it is in use, to be released.
func (cs *Caches) lookUp(id snapferry.VersionID) *Cache {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.open[id]
	if c != nil {
		c.refs++
	}
	return c
}

// Used returns the bytes of all caches and clean layers.
func (cs *Caches) Used() (used int64, err error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, i := range cs.idle {
		used += i.bytes
	}
	for _, c := range cs.open {
		n, err := c.layer.Allocated()
		if err != nil {
			return 0, err
		}
		used += n
	}
	for v := range cs.volumes {
		used += v.clean()
	}
	return used, nil
}

// fitIdle removes caches that nobody uses, the one used longest ago first.
func (cs *Caches) fitIdle(_ context.Context, over int64) (freed int64, err error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	ids := make([]snapferry.VersionID, 0, len(cs.idle))
	for id := range cs.idle {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b snapferry.VersionID) int { return cs.idle[a].last.Compare(cs.idle[b].last) })
	for _, id := range ids {
		if freed >= over {
			break
		}
		if err := layer.Remove(cs.fs, cs.path(id)); err != nil {
			return freed, err
		}
		freed += cs.idle[id].bytes
		delete(cs.idle, id)
	}
	return freed, nil
}

// fitVolumes drops clean layers, the largest first.
func (cs *Caches) fitVolumes(_ context.Context, over int64) (freed int64, err error) {
	type weighed struct {
		v *Volume
		n int64
	}
	var all []weighed
	cs.mu.Lock()
	for v := range cs.volumes {
		if !v.keep.Load() {
			all = append(all, weighed{v, v.clean()})
		}
	}
	cs.mu.Unlock()
	slices.SortFunc(all, func(a, b weighed) int { return int(min(max(b.n-a.n, -1), 1)) })
	for _, w := range all {
		if freed >= over || w.n == 0 {
			break
		}
		n, err := w.v.dropClean()
		if err != nil {
			return freed, err
		}
		freed += n
	}
	return freed, nil
}

// fitOpen gives up parts of caches that are in use, but not by volumes that are
// to stay near.
func (cs *Caches) fitOpen(ctx context.Context, over int64) (freed int64, err error) {
	keep := map[*Cache]bool{}
	cs.mu.Lock()
	for v := range cs.volumes {
		if v.keep.Load() {
			keep[v.cur.Load().cache] = true
		}
	}
	open := cs.list()
	for _, c := range open {
		c.refs++
	}
	cs.mu.Unlock()
	defer func() {
		for _, c := range open {
			c.release()
		}
	}()
	for _, c := range open {
		for page := int64(0); !keep[c] && freed < over && ctx.Err() == nil; {
			at, n, state, ok := c.layer.NextSet(page)
			if !ok {
				break
			}
			if n = min(n, shardSpan/pageSize); state == layer.Data {
				if err := c.forget(at, n); err != nil {
					return freed, err
				}
				freed += n * pageSize
			}
			page = at + n
		}
	}
	return freed, nil
}

func (c *Cache) forget(page, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.layer.Forget(extent.Extent{Off: page, Len: n})
}
