package head_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

var cuts = flag.Int("cuts", 300, "how many power cuts TestPowerCuts makes")

const sector = 512

// A ledger is what each sector of a volume may be after a power cut: what it was
// when it was last made durable, or what it became since. Of the others it says
// what they are.
type ledger struct {
	size int64
	may  map[int64][][]byte // nil: zeros; the last one is what it is
}

func newLedger(d *disk) *ledger {
	l := &ledger{size: d.size, may: map[int64][][]byte{}}
	for k, p := range d.pages {
		for i := int64(0); i < page/sector; i++ {
			l.set(k*page/sector+i, p[i*sector:][:sector])
		}
	}
	return l
}

func norm(p []byte) []byte {
	if bytes.Equal(p, make([]byte, len(p))) {
		return nil
	}
	return slices.Clone(p)
}

func (l *ledger) set(at int64, p []byte) { l.may[at] = [][]byte{norm(p)} }

func (l *ledger) options(at int64) [][]byte {
	if o := l.may[at]; o != nil {
		return o
	}
	return [][]byte{nil}
}

func (l *ledger) write(p []byte, off int64) {
	for ; len(p) > 0; p, off = p[sector:], off+sector {
		l.may[off/sector] = append(slices.Clone(l.options(off/sector)), norm(p[:sector]))
	}
}

// durable forgets what sectors were before they became what they are.
func (l *ledger) durable() {
	for at, o := range l.may {
		l.may[at] = o[len(o)-1:]
	}
}

func (l *ledger) clone() *ledger {
	c := &ledger{size: l.size, may: map[int64][][]byte{}}
	for k, o := range l.may {
		c.may[k] = slices.Clone(o)
	}
	return c
}

// disk is what the sectors are, when nothing is lost.
func (l *ledger) disk() *disk {
	d := newDisk(l.size)
	for at, o := range l.may {
		if p := o[len(o)-1]; p != nil {
			d.write(p, at*sector)
		}
	}
	return d
}

// A survivor is a volume over a file system whose power is cut now and then.
type survivor struct {
	*life
	power *layertest.Power
	led   *ledger
	dead  atomic.Bool // the power is off; what works in the background sees it too
	// What the metadata knows: it is durable when it says so.
	base    snapferry.VersionID
	clean   uint64
	rolling snapferry.VersionID
	frozen  []frozenAt
}

type frozenAt struct {
	layer uint64
	disk  *disk
}

func newSurvivor(t *testing.T, rng *rand.Rand) *survivor {
	l := &life{t: t, rng: rng, vs: newVersions(), budget: 1 << 20, keys: someKeys(rng)}
	d := newDisk(int64(1+rng.IntN(5))<<18 + 512*int64(rng.IntN(9)))
	if rng.IntN(2) == 0 {
		for range 20 {
			p, off := l.content(d.size)
			d.write(p, off)
		}
		l.sealed = append(l.sealed, l.vs.add(d))
	}
	return survive(l, d)
}

// survive gives a life with power to a volume that is what a disk is: over the
// last version that is sealed, if there is one.
func survive(l *life, d *disk) *survivor {
	s := &survivor{life: l, power: layertest.New(l.t)}
	l.fs = s.power
	if n := len(l.sealed); n > 0 {
		s.base = l.sealed[n-1]
	}
	l.openCaches()
	l.must(s.power.SyncDir("."))
	l.must(head.Create(l.fs, "v", d.size, s.base, l.keys))
	s.led = newLedger(d)
	s.reopen()
	return s
}

func (s *survivor) reopen() {
	s.t.Helper()
	c := head.Config{FS: s.power, Dir: "v", Image: s.vs.open, Released: s.vs.release, Caches: s.caches, Keys: s.keys, Frozen: s.clean}
	for _, f := range s.frozen {
		c.Frozen = max(c.Frozen, f.layer)
	}
	var err error
	s.v, err = head.Open(s.t.Context(), c)
	s.must(err)
}

// arm cuts the power at the nth operation from now on, which is done, or not, or
// half.
func (s *survivor) arm(n int, how layertest.How) {
	at := s.power.Ops() + n
	s.power.Inject(func(op layertest.Op) layertest.Fault {
		switch {
		case s.dead.Load():
			return layertest.Fault{Err: syscall.EIO}
		case op.N == at:
			s.dead.Store(true)
			return layertest.Fault{Err: syscall.EIO, How: how}
		}
		return layertest.Fault{}
	})
}

// ok reports whether something went well; it must, as long as there is power.
func (s *survivor) ok(err error) bool {
	s.t.Helper()
	if err != nil && !s.dead.Load() {
		s.t.Fatal(err)
	}
	return err == nil
}

func (s *survivor) step() {
	ctx := s.t.Context()
	switch s.rng.IntN(20) {
	case 0, 1:
		if s.ok(s.v.Sync()) {
			s.led.durable()
		}
	case 2, 3:
		s.freeze()
	case 4, 5:
		s.upload()
	case 6:
		if s.rng.IntN(4) == 0 && len(s.frozen) == 0 && len(s.sealed) > 0 {
			s.rolling = s.sealed[s.rng.IntN(len(s.sealed))]
			s.rollback()
		}
	case 7:
		s.ok(s.v.Tidy(ctx))
	case 8:
		s.ok(s.v.Cache(0, s.led.size))
	case 9:
		s.caches.Trim()
	case 10:
		if s.rng.IntN(3) == 0 {
			size := s.led.size + 512*int64(s.rng.IntN(40))
			if s.ok(s.v.Grow(size)) {
				s.led.size = size
			}
		}
	case 11, 12, 13:
		off, n := s.place(s.led.size, 200<<10)
		lo, hi := (off+page-1)/page*page, (off+n)/page*page
		if off+n == s.led.size {
			hi = off + n
		}
		if s.ok(s.v.Trim(off, n)); lo < hi {
			s.led.write(make([]byte, hi-lo), lo)
		}
	default:
		p, off := s.content(s.led.size)
		_, err := s.v.WriteAt(p, off)
		s.ok(err)
		s.led.write(p, off)
	}
}

func (s *survivor) freeze() {
	if len(s.frozen) == 4 {
		return
	}
	got, err := head.Freeze(s.t.Context(), s.v)
	if !s.ok(err) {
		return
	}
	if s.rng.IntN(2) == 0 { // a flush between freezing and settling
		p, off := s.content(s.led.size)
		before := s.led.clone()
		_, err := s.v.WriteAt(p, off)
		wrote := s.ok(err)
		s.led.write(p, off)
		if s.ok(s.v.Sync()) && wrote {
			s.led.durable()
		}
		if s.ok(s.v.Settle(s.t.Context(), got[0])) {
			s.frozen = append(s.frozen, frozenAt{got[0], before.disk()})
		}
		return
	}
	if s.ok(s.v.Settle(s.t.Context(), got[0])) {
		s.led.durable()
		s.frozen = append(s.frozen, frozenAt{got[0], s.led.disk()})
	}
}

func (s *survivor) upload() {
	if len(s.frozen) == 0 {
		return
	}
	f := s.frozen[0]
	c, err := s.v.Changes(s.t.Context(), f.layer, f.disk.size)
	if !s.ok(err) {
		return
	}
	got := newDisk(f.disk.size)
	if !s.base.IsZero() {
		got = s.vs.m[s.base].clone()
		got.size = f.disk.size
	}
	for off := int64(0); ; {
		e, ok, err := c.Next(off)
		if !s.ok(err) {
			return
		}
		if !ok {
			break
		}
		p := make([]byte, e.Len)
		if _, err := c.ReadAt(p, e.Off); !s.ok(err) {
			return
		}
		got.write(p, e.Off)
		off = e.End()
	}
	s.all(func(p []byte, off int64) (int, error) { got.read(p, off); return len(p), nil }, f.disk)
	s.base, s.clean = s.vs.add(got), f.layer
	s.frozen, s.sealed = s.frozen[1:], append(s.sealed, s.base)
	s.ok(s.v.Sealed(s.t.Context(), s.clean, s.base))
}

func (s *survivor) rollback() {
	if !s.ok(s.v.Rollback(s.t.Context(), s.rolling)) {
		return
	}
	d := s.vs.m[s.rolling].clone()
	d.size = s.led.size
	s.led = newLedger(d)
	s.base, s.clean, s.rolling = s.rolling, 0, snapferry.VersionID{}
}

// revive cuts the power and brings it back, and wants the volume to be what it may
// be.
func (s *survivor) revive() {
	s.t.Helper()
	s.boot(s.rng.Uint64())
	s.look()
}

// boot cuts the power, with a seed that says what is lost, and brings it back.
func (s *survivor) boot(fate uint64) {
	s.t.Helper()
	s.dead.Store(true)
	_ = s.caches.Close() // waits for what works in the background
	s.power = s.power.Cut(fate)
	s.fs = s.power
	s.dead.Store(false)
	s.openCaches()
	s.reopen()
}

// look does what the metadata of a volume that is opened would have done, and
// wants the volume to be what it may be.
func (s *survivor) look() {
	s.t.Helper()
	if size := s.v.Size(); size > s.led.size {
		s.led.size = size // grown, and only the answer was lost
	}
	if base, _ := s.v.Base(); base != s.base && s.rolling.IsZero() {
		s.must(s.v.Sealed(s.t.Context(), s.clean, s.base))
	}
	if !s.rolling.IsZero() {
		s.rollback()
	}
	p := make([]byte, s.led.size)
	_, err := s.v.ReadAt(p, 0)
	s.must(err)
	for at := int64(0); at < s.led.size/sector; at++ {
		q := p[at*sector:][:sector]
		if !slices.ContainsFunc(s.led.options(at), func(o []byte) bool { return bytes.Equal(norm(o), norm(q)) }) {
			s.t.Fatalf("sector %d is %x after a cut, which it never was since it was durable: %d contents it was, the last %x",
				at, q[:8], len(s.led.options(at)), head8(s.led.options(at)))
		}
		s.led.set(at, q)
	}
	for _, f := range s.frozen {
		c, err := s.v.Changes(s.t.Context(), f.layer, f.disk.size)
		s.must(err)
		s.all(c.ReadAt, f.disk)
	}
}

func head8(o [][]byte) []byte {
	last := o[len(o)-1]
	return last[:min(8, len(last))]
}

// Whatever the power does, and whenever: what was synced is there, a sector is
// what it was or became since, and the content of a snapshot that was recorded
// is what the volume had when it was frozen.
func TestPowerCuts(t *testing.T) {
	const lives = 20 // cuts of one volume
	for i := range (*cuts + lives - 1) / lives {
		seed := *seed + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := newSurvivor(t, rand.New(rand.NewPCG(seed, 3)))
			for range lives {
				s.arm(s.rng.IntN(150), layertest.How(s.rng.IntN(3)))
				for !s.dead.Load() {
					s.step()
				}
				s.revive()
			}
			for len(s.frozen) > 0 {
				s.upload()
			}
			s.all(s.v.ReadAt, s.led.disk())
			s.must(s.v.Close())
			s.must(s.caches.Close())
			if n := s.power.Handles(); n > 0 {
				t.Errorf("%d files are open at the end", n)
			}
		})
	}
}
