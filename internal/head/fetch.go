package head

import (
	"context"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

const (
	// maxFetch is the most that is asked of an image at once: 1 MiB.
	maxFetch = 1 << 20
	// leafBlocks is how many blocks a leaf of the map has: what is read at once
	// lies in one.
	leafBlocks = 256
	// blockPages is how many pages a block has.
	blockPages = snapferry.BlockSize / pageSize
	// blockRoom is how much capacity behind the blocks helps an image.
	blockRoom = 64
)

// A flight is a read from an image that is under way, or has just ended.
type flight struct {
	first uint64 // block
	n     int    // blocks
	done  chan struct{}
	buf   []byte // what came; when done, and err is nil
	err   error
	given bool // up: who fetched was closed
}

// A flightKey is a block of a version.
type flightKey struct {
	version snapferry.VersionID
	block   uint64
}

// flights are all reads from images in a region, so that many who want a block
// fetch it once.
type flights struct {
	mu sync.Mutex
	m  map[flightKey]*flight // guarded by mu
}

// claim returns the flight that has the block, or makes one, of at most n blocks
// that nobody else is fetching: then it is the caller's to land.
func (fs *flights) claim(version snapferry.VersionID, first uint64, n int) (f *flight, mine bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.m == nil {
		fs.m = map[flightKey]*flight{}
	}
	if f := fs.m[flightKey{version, first}]; f != nil {
		return f, false
	}
	f = &flight{first: first, done: make(chan struct{})}
	for f.n < n && fs.m[flightKey{version, first + uint64(f.n)}] == nil {
		fs.m[flightKey{version, first + uint64(f.n)}] = f
		f.n++
	}
	return f, true
}

func (fs *flights) land(version snapferry.VersionID, f *flight) {
	fs.mu.Lock()
	for i := range f.n {
		delete(fs.m, flightKey{version, f.first + uint64(i)})
	}
	fs.mu.Unlock()
	close(f.done)
}

// blocksTo returns how many blocks from first on reach to byte end, within one
// leaf and one fetch.
func blocksTo(first uint64, end int64) int {
	n := (end+snapferry.BlockSize-1)/snapferry.BlockSize - int64(first)
	return int(min(n, maxFetch/snapferry.BlockSize, int64(leafBlocks-first%leafBlocks)))
}

// fetch fills p, which neither a layer nor the cache has, from the base, and
// puts the blocks around it into the cache.
func (v *Volume) fetch(ctx context.Context, vw *view, p []byte, off int64) error {
	for len(p) > 0 {
		first := uint64(off / snapferry.BlockSize)
		want, ahead := v.ahead.want(first, blocksTo(first, off+int64(len(p))))
		want = max(min(want, blocksTo(first, v.size.Load())), 1) // not beyond the end
		if vw.cache != nil {
			v.readAhead(ahead)
		}
		n, err := v.fetchBlocks(ctx, vw, first, want, p, off)
		if err != nil {
			return err
		}
		got := min(int64(len(p)), int64(first+uint64(n))*snapferry.BlockSize-off)
		p, off = p[got:], off+got
	}
	return nil
}

// fetchBlocks fetches up to n blocks from first on, and copies what of [off,
// off+len(p)) lies in them to p. It returns how many it has done.
func (v *Volume) fetchBlocks(ctx context.Context, vw *view, first uint64, n int, p []byte, off int64) (int, error) {
	for {
		f, mine := v.flights().claim(vw.base.version, first, n)
		if mine {
			v.fly(ctx, vw, f)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return 0, snapferry.Errorf(snapferry.Unavailable, "the volume is being closed")
		}
		if !mine && f.given {
			continue // who fetched was closed
		}
		if f.err != nil {
			return 0, f.err
		}
		if p != nil {
			copy(p, f.buf[off-int64(f.first)*snapferry.BlockSize:])
		}
		return int(min(f.first+uint64(f.n)-first, uint64(n))), nil
	}
}

// fly carries out a flight.
func (v *Volume) fly(ctx context.Context, vw *view, f *flight) {
	defer v.flights().land(vw.base.version, f)
	buf := make([]byte, f.n*snapferry.BlockSize, f.n*snapferry.BlockSize+blockRoom)
	for lo := 0; lo < f.n; {
		if v.landed(vw, f.first+uint64(lo), buf[lo*snapferry.BlockSize:][:snapferry.BlockSize]) {
			lo++
			continue
		}
		hi := lo + 1
		for hi < f.n && !v.landed(vw, f.first+uint64(hi), buf[hi*snapferry.BlockSize:][:snapferry.BlockSize]) {
			hi++
		}
		if f.err = v.bring(ctx, vw, f, buf, lo, hi); f.err != nil {
			f.given = ctx.Err() != nil
			return
		}
		lo = hi + 1 // that one has landed
	}
	f.buf = buf
}

// landed fills p with a block that came between when it was looked for and when the
// flight began, and reports whether it did.
func (v *Volume) landed(vw *view, block uint64, p []byte) bool {
	if vw.cache == nil {
		return false
	}
	off := int64(block) * snapferry.BlockSize
	if have, _ := vw.cache.known(off, snapferry.BlockSize); have < snapferry.BlockSize {
		return false
	}
	if s, _, run := vw.find(vw.clean, int64(block)*blockPages, blockPages); s != nil || run < blockPages {
		return false // the cache is of the version below all layers
	}
	have, _, err := vw.cache.read(p, off)
	return err == nil && have == snapferry.BlockSize
}

// bring reads blocks lo to hi of a flight from the image, and puts them into the cache.
func (v *Volume) bring(ctx context.Context, vw *view, f *flight, buf []byte, lo, hi int) error {
	dst := buf[lo*snapferry.BlockSize : hi*snapferry.BlockSize]
	if hi < f.n {
		dst = dst[:len(dst):len(dst)] // what is behind it has landed
	}
	if err := v.readImage(ctx, vw.base.image, f.first+uint64(lo), dst); err != nil {
		return err
	}
	v.fetched.Add(int64(len(dst)))
	if vw.cache == nil {
		return nil
	}
	if err := v.admit(vw, f.first+uint64(lo), dst); err != nil {
		// It is only not near: the next reader fetches again.
		v.c.Log.Warn("cache", "volume", v.c.Dir, "err", err)
	}
	return nil
}

// patience is how long to wait before each new try of a read from an image that
// could not be reached: what waits here is a client's read, and its own patience
// is some tens of seconds.
var patience = []time.Duration{
	100 * time.Millisecond, 400 * time.Millisecond, 1600 * time.Millisecond, 4 * time.Second, 8 * time.Second, 15 * time.Second,
}

// lastTry is how long after its beginning a read is tried for the last time: the
// store may have tried for a while itself, each time.
const lastTry = 15 * time.Second

func (v *Volume) readImage(ctx context.Context, im Image, first uint64, buf []byte) error {
	began := time.Now()
	for try := 0; ; try++ {
		err := im.Read(ctx, first, buf)
		if !snapferry.IsKind(err, snapferry.Unavailable) || try == len(patience) || time.Since(began)+patience[try] > lastTry {
			return err
		}
		select {
		case <-time.After(patience[try]):
		case <-ctx.Done():
			return err
		}
	}
}

// admit puts blocks that came into the cache: the pages that are the same in the
// version below all layers, which the cache is of. Those that a clean layer has
// are not.
func (v *Volume) admit(vw *view, first uint64, blocks []byte) error {
	begin := int64(first) * blockPages
	for page, end := begin, begin+int64(len(blocks))/pageSize; page < end; {
		s, _, run := vw.find(vw.clean, page, end-page)
		if s == nil {
			at := (page - begin) * pageSize
			if err := vw.cache.put(blocks[at:at+run*pageSize], page); err != nil {
				return err
			}
		}
		page += run
	}
	return nil
}

func (v *Volume) flights() *flights {
	if v.c.Caches != nil {
		return &v.c.Caches.flights
	}
	return &v.own
}

// ahead notices who reads one block after the other.
type ahead struct {
	mu    sync.Mutex
	next  uint64 // block behind the last fetch
	size  int    // of the last fetch, blocks, as if leaves had no end
	front uint64 // block behind the last that is read ahead; 0: none
}

// want returns how many blocks to fetch when need are needed from first on: more
// and more, as long as it goes on where the last fetch ended. When that cannot
// become more, there are blocks [from, to) to be read ahead.
func (a *ahead) want(first uint64, need int) (n int, blocks [2]uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	follows := first == a.next && a.size > 0
	size := need
	if follows {
		size = max(need, min(2*a.size, maxFetch/snapferry.BlockSize))
	}
	n = int(min(int64(size), maxFetch/snapferry.BlockSize, int64(leafBlocks-first%leafBlocks)))
	a.next, a.size = first+uint64(n), size
	if !follows || size < maxFetch/snapferry.BlockSize {
		a.front = 0
		return n, blocks
	}
	blocks = [2]uint64{max(a.front, a.next), a.next + readAheadBlocks}
	a.front = max(a.front, blocks[1])
	return n, blocks
}

const (
	// readAheadBlocks is how far is read ahead of who reads on and on: 4 MiB.
	readAheadBlocks = 4 << 20 / snapferry.BlockSize
	// maxAhead is how many reads ahead a volume may have under way.
	maxAhead = 8
)

// readAhead brings blocks [from, to) near, beside everything else.
func (v *Volume) readAhead(blocks [2]uint64) {
	from, to := int64(blocks[0])*snapferry.BlockSize, min(int64(blocks[1])*snapferry.BlockSize, v.size.Load())
	for off := from; off < to; off += maxFetch {
		if v.aheads.Add(1) > maxAhead {
			v.aheads.Add(-1)
			return
		}
		n := min(maxFetch, to-off)
		v.behind.Go(func() {
			defer v.aheads.Add(-1)
			if err := v.Cache(off, n); err != nil {
				v.c.Log.Debug("read ahead", "volume", v.c.Dir, "err", err) // who needs it says so
			}
		})
	}
}

// pageBelow puts what a page is, in the first n layers of a view and below, into
// buf. If it comes from the base, buf has it already when it was read from the
// same one (from); else ok is false, and it has to be fetched first.
func (v *Volume) pageBelow(vw *view, n int, page int64, buf []byte, from *base) (ok bool, err error) {
	s, state, _ := vw.find(n, page, 1)
	switch {
	case state == layer.Data:
		_, err := s.ReadAt(buf, page*pageSize)
		return true, err
	case state == layer.Zero || vw.zeros:
		clear(buf)
		return true, nil
	case from != nil && from == vw.base:
		return true, nil
	case vw.cache == nil:
		return false, nil
	}
	have, _, err := vw.cache.read(buf, page*pageSize)
	return have == len(buf), err
}
