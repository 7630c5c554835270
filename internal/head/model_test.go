package head_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

var (
	histories = flag.Int("histories", 60, "how many random lives of a volume TestModel runs")
	seed      = flag.Uint64("seed", 1, "the first of them")
)

const page = 4096

// disk is what a volume must be: pages that are not there are zeros.
type disk struct {
	size  int64
	pages map[int64][]byte
}

func newDisk(size int64) *disk { return &disk{size: size, pages: map[int64][]byte{}} }

func (d *disk) clone() *disk {
	c := newDisk(d.size)
	for k, p := range d.pages {
		c.pages[k] = slices.Clone(p)
	}
	return c
}

func (d *disk) write(p []byte, off int64) {
	for len(p) > 0 {
		k, in := off/page, off%page
		q := d.pages[k]
		if q == nil {
			q = make([]byte, page)
			d.pages[k] = q
		}
		n := copy(q[in:], p)
		p, off = p[n:], off+int64(n)
	}
}

func (d *disk) read(p []byte, off int64) {
	clear(p)
	for k, q := range d.pages {
		at := k*page - off
		switch {
		case at >= int64(len(p)) || at <= -page:
		case at >= 0:
			copy(p[at:], q)
		default:
			copy(p, q[-at:])
		}
	}
}

// versions are sealed disks, by id; it is also where their images come from.
type versions struct {
	mu   sync.Mutex
	m    map[snapferry.VersionID]*disk
	gone map[snapferry.VersionID]bool // nothing may read them any more
	fail int                          // how many of the next reads fail
	err  error
}

func newVersions() *versions {
	return &versions{m: map[snapferry.VersionID]*disk{}, gone: map[snapferry.VersionID]bool{}}
}

func (vs *versions) add(d *disk) snapferry.VersionID {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	id := snapferry.NewVersionID()
	vs.m[id] = d
	return id
}

func (vs *versions) open(_ context.Context, id snapferry.VersionID) (head.Image, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.m[id] == nil {
		return nil, snapferry.Errorf(snapferry.NotFound, "no version %s", id)
	}
	delete(vs.gone, id)
	return image{vs, id}, nil
}

func (vs *versions) release(id snapferry.VersionID) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.gone[id] = true
}

type image struct {
	vs *versions
	id snapferry.VersionID
}

func (i image) Size() int64 { return i.vs.m[i.id].size }

func (i image) Read(_ context.Context, first uint64, dst []byte) error {
	i.vs.mu.Lock()
	defer i.vs.mu.Unlock()
	if i.vs.gone[i.id] {
		return errors.New("a version that was released is read")
	}
	if n := uint64(len(dst) / snapferry.BlockSize); len(dst)%snapferry.BlockSize != 0 || n == 0 || first/256 != (first+n-1)/256 {
		return fmt.Errorf("read of %d bytes at block %d", len(dst), first)
	}
	if i.vs.fail > 0 {
		i.vs.fail--
		for k := range dst {
			dst[k] = 0xee
		}
		return i.vs.err
	}
	// What it may use, it uses.
	for k := range dst[len(dst):cap(dst)] {
		dst[len(dst):cap(dst)][k] = 0xdd
	}
	i.vs.m[i.id].read(dst, int64(first)*snapferry.BlockSize)
	return nil
}

func (i image) Run(_ context.Context, off, n int64) (int64, bool, error) {
	d := i.vs.m[i.id]
	has := func(block int64) bool {
		p := make([]byte, snapferry.BlockSize)
		d.read(p, block*snapferry.BlockSize)
		return !bytes.Equal(p, make([]byte, len(p)))
	}
	data := has(off / snapferry.BlockSize)
	for pos := off; pos < off+n; pos = (pos/snapferry.BlockSize + 1) * snapferry.BlockSize {
		if has(pos/snapferry.BlockSize) != data {
			return pos - off, data, nil
		}
	}
	return n, data, nil
}

// A life is a volume and what it must be.
type life struct {
	t       *testing.T
	rng     *rand.Rand
	fs      layer.FS
	vs      *versions
	caches  *head.Caches
	keys    layer.Keys // nil: it is not encrypted
	budget  int64
	v       *head.Volume
	now     *disk
	pending []pending // oldest first
	sealed  []snapferry.VersionID
	n       int
}

type pending struct {
	layer uint64
	disk  *disk
}

func newLife(t *testing.T, fs layer.FS, seed uint64) *life {
	l := &life{t: t, rng: rand.New(rand.NewPCG(seed, 7)), fs: fs, vs: newVersions()}
	size := []int64{20 * page, 1 << 20, 3<<20 + 512, 64<<20 + 20*page + 1536, 40<<20 + 512}[l.rng.IntN(5)]
	l.budget = []int64{0, 1 << 20, 1 << 40}[l.rng.IntN(3)]
	l.keys = someKeys(l.rng)
	l.now = newDisk(size)
	base := snapferry.VersionID{}
	if l.rng.IntN(2) == 0 {
		d := newDisk(max(size-int64(l.rng.IntN(10))*512, 512))
		for range l.rng.IntN(60) {
			p, off := l.content(d.size)
			d.write(p, off)
		}
		base = l.vs.add(d)
		l.now = d.clone()
		l.now.size = size
		l.sealed = append(l.sealed, base)
	}
	l.openCaches()
	l.must(head.Create(fs, "v", size, base, l.keys))
	l.open()
	return l
}

// someKeys makes every second volume one that is encrypted.
func someKeys(rng *rand.Rand) layer.Keys {
	if rng.IntN(2) == 0 {
		return nil
	}
	return &layertest.Keys{}
}

func (l *life) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) openCaches() {
	var err error
	l.caches, err = head.OpenCaches(l.fs, "caches", l.budget, nil)
	l.must(err)
}

func (l *life) config() head.Config {
	frozen := uint64(0)
	if n := len(l.pending); n > 0 {
		frozen = l.pending[n-1].layer
	}
	return head.Config{FS: l.fs, Dir: "v", Image: l.vs.open, Released: l.vs.release, Frozen: frozen, Caches: l.caches, Keys: l.keys}
}

func (l *life) open() {
	var err error
	l.v, err = head.Open(l.t.Context(), l.config())
	l.must(err)
}

// place is a range to do something with: where pages, blocks, leaves and shards
// meet more often than elsewhere.
func (l *life) place(size int64, most int64) (off, n int64) {
	around := []int64{0, size, 64 << 10, 1 << 20, 16 << 20, 64 << 20}[l.rng.IntN(6)]
	off = min(max(around+int64(l.rng.IntN(400)-200)*512, 0), size-512)
	if l.rng.IntN(3) == 0 {
		off = off / page * page
	}
	n = min(int64(1+l.rng.IntN(int(most/512)))*512, size-off)
	if l.rng.IntN(3) == 0 {
		n = min(max(n/page*page, page), size-off)
	}
	return off, n
}

// content is bytes to write: different every time, sometimes zeros.
func (l *life) content(size int64) (p []byte, off int64) {
	off, n := l.place(size, 160<<10)
	p = make([]byte, n)
	if l.rng.IntN(8) > 0 {
		l.n++
		for i := 0; i < len(p); i += 8 {
			binary.BigEndian.PutUint64(p[i:], uint64(l.n)<<32|uint64(i))
		}
	}
	return p, off
}

func (l *life) write() {
	p, off := l.content(l.now.size)
	if l.rng.IntN(3) == 0 {
		done, err := l.v.WriteNow(p, off)
		l.must(err)
		if done {
			l.now.write(p, off)
			return
		}
	}
	_, err := l.v.WriteAt(p, off)
	l.must(err)
	l.now.write(p, off)
}

func (l *life) zero() {
	off, n := l.place(l.now.size, 300<<10)
	if l.rng.IntN(2) == 0 {
		l.must(l.v.Zero(off, n, true))
		l.now.write(make([]byte, n), off)
		return
	}
	l.must(l.v.Trim(off, n))
	lo, hi := (off+page-1)/page*page, (off+n)/page*page
	if off+n == l.now.size {
		hi = off + n
	}
	if lo < hi {
		l.now.write(make([]byte, hi-lo), lo)
	}
}

func (l *life) read() {
	off, n := l.place(l.now.size, 700<<10)
	got, want := make([]byte, n), make([]byte, n)
	l.now.read(want, off)
	if done, err := l.v.ReadNow(got, off); err != nil || done && !bytes.Equal(got, want) {
		l.t.Fatalf("ReadNow of %d at %d: got other bytes, or %v", n, off, err)
	}
	if l.rng.IntN(20) == 0 {
		l.vs.fail, l.vs.err = 1, snapferry.Errorf(snapferry.Corrupt, "injected")
		if _, err := l.v.ReadAt(got, off); err == nil && !bytes.Equal(got, want) {
			l.t.Fatal("wrong bytes after a failed fetch")
		}
		l.vs.fail = 0
	}
	_, err := l.v.ReadAt(got, off)
	l.must(err)
	l.same(got, want, off)
}

func (l *life) same(got, want []byte, off int64) {
	l.t.Helper()
	for i := range want {
		if got[i] != want[i] {
			l.t.Fatalf("at %d (page %d, byte %d): got %x, want %x", off+int64(i), (off+int64(i))/page, (off+int64(i))%page,
				got[i:min(i+8, len(got))], want[i:min(i+8, len(got))])
		}
	}
}

// all compares the whole volume with what it must be.
func (l *life) all(read func(p []byte, off int64) (int, error), d *disk) {
	l.t.Helper()
	most := min(d.size, 1<<20)
	got, want := make([]byte, most), make([]byte, most)
	for off := int64(0); off < d.size; off += int64(len(got)) {
		n := min(d.size-off, int64(len(got)))
		if _, err := read(got[:n], off); err != nil {
			l.t.Fatal(err)
		}
		d.read(want[:n], off)
		l.same(got[:n], want[:n], off)
	}
}

func (l *life) freeze() {
	if len(l.pending) == 5 {
		return
	}
	got, err := head.Freeze(l.t.Context(), l.v)
	l.must(err)
	if l.rng.IntN(4) > 0 {
		l.must(l.v.Settle(l.t.Context(), got[0]))
	}
	l.pending = append(l.pending, pending{got[0], l.now.clone()})
}

// upload makes a version of the oldest frozen content, out of what the base has
// and what is said to have changed.
func (l *life) upload() {
	if len(l.pending) == 0 {
		return
	}
	x := l.pending[0]
	c, err := l.v.Changes(l.t.Context(), x.layer, x.disk.size)
	l.must(err)
	if l.rng.IntN(3) == 0 {
		l.all(c.ReadAt, x.disk)
	}
	next := newDisk(x.disk.size)
	if base, _ := l.v.Base(); !base.IsZero() {
		next = l.vs.m[base].clone()
		next.size = x.disk.size
	}
	for off := int64(0); ; {
		e, ok, err := c.Next(off)
		l.must(err)
		if !ok {
			break
		}
		lo, hi := e.Off/snapferry.BlockSize*snapferry.BlockSize, min((e.End()+snapferry.BlockSize-1)/snapferry.BlockSize*snapferry.BlockSize, next.size)
		p := make([]byte, hi-lo)
		_, err = c.ReadAt(p, lo)
		l.must(err)
		next.write(p, lo)
		off = e.End()
	}
	got, want := newDisk(next.size), x.disk
	got.pages = next.pages
	l.all(func(p []byte, off int64) (int, error) { got.read(p, off); return len(p), nil }, want)
	id := l.vs.add(next)
	l.must(l.v.Sealed(l.t.Context(), x.layer, id))
	l.must(l.v.Sealed(l.t.Context(), x.layer, id))
	l.pending, l.sealed = l.pending[1:], append(l.sealed, id)
}

func (l *life) rollback() {
	if len(l.pending) > 0 || len(l.sealed) == 0 {
		return
	}
	id := l.sealed[l.rng.IntN(len(l.sealed))]
	l.must(l.v.Rollback(l.t.Context(), id))
	size := l.now.size
	l.now = l.vs.m[id].clone()
	l.now.size = size
}

func (l *life) reopen() {
	l.must(l.v.Close())
	if l.rng.IntN(2) == 0 {
		l.must(l.caches.Close())
		l.openCaches()
	}
	l.open()
}

func (l *life) step() {
	switch l.rng.IntN(40) {
	case 0, 1, 2:
		l.freeze()
	case 3, 4, 5:
		l.upload()
	case 6:
		if l.rng.IntN(3) == 0 {
			l.rollback()
		}
	case 7:
		l.reopen()
	case 8:
		l.must(l.v.Tidy(l.t.Context()))
	case 9:
		l.caches.Trim()
	case 10:
		if l.rng.IntN(4) == 0 && l.now.size < 70<<20 {
			l.now.size += int64(l.rng.IntN(40)) * 512
			l.must(l.v.Grow(l.now.size))
		}
	case 11:
		l.must(l.v.Sync())
	case 12:
		l.must(l.v.Cache(l.place(l.now.size, 2<<20)))
	case 13:
		if l.rng.IntN(4) == 0 {
			l.must(l.v.Hydrate(l.t.Context(), nil, nil))
		}
	case 14, 15, 16, 17, 18:
		l.zero()
	case 19, 20, 21, 22, 23, 24, 25, 26:
		l.read()
	default:
		l.write()
	}
}

// A volume is a byte array, whatever is done to it and around it.
func TestModel(t *testing.T) {
	for i := range *histories {
		s := *seed + uint64(i)
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			t.Parallel()
			l := newLife(t, tempFS(t), s)
			for range 200 {
				l.step()
			}
			l.all(l.v.ReadAt, l.now)
			for len(l.pending) > 0 {
				l.upload()
			}
			l.all(l.v.ReadAt, l.now)
			l.must(l.v.Tidy(t.Context()))
			if st := l.v.Stats(); st.Layers > 4+2 {
				t.Errorf("%d layers after tidying", st.Layers)
			}
			l.all(l.v.ReadAt, l.now)
			l.must(l.v.Close())
			l.must(l.caches.Close())
			l.must(head.Remove(l.fs, "v"))
			if names, err := l.fs.ReadDir("."); err != nil || !slices.Equal(names, []string{"caches"}) {
				t.Errorf("left: %v, %v", names, err)
			}
		})
	}
}

func tempFS(t testing.TB) layer.FS {
	d, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
