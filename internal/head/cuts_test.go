package head_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// fates are how the operation ends in which the power goes, and seeds of
// layertest.Power.Cut: of what is not durable nothing is kept, everything, about
// half, or most.
var fates = []struct {
	how  layertest.How
	seed uint64
}{{layertest.Nothing, 0}, {layertest.Nothing, 6}, {layertest.Nothing, 4}, {layertest.Nothing, 1}, {layertest.Half, 0}, {layertest.Half, 6}}

// A cutPoint is something that is done to a volume while the power may go at each
// operation on the file system, and what must hold whenever it does.
type cutPoint struct {
	name    string
	prepare func(s *survivor)
	// act is what the power is cut in.
	act func(s *survivor)
	// look, if not nil, takes the place of the survivor's: done says that the
	// power went when act had returned.
	look func(s *survivor, done bool)
	// after is what must still work then.
	after func(s *survivor)
}

const cutSize = 128<<10 + 512 // bytes of the volumes

// put writes n sectors of one letter.
func (s *survivor) put(letter byte, first, n int64) {
	s.t.Helper()
	p := bytes.Repeat([]byte{letter}, int(n*sector))
	if _, err := s.v.WriteAt(p, first*sector); !s.ok(err) {
		return
	}
	s.led.write(p, first*sector)
}

// zero zeroes n sectors.
func (s *survivor) zero(first, n int64) {
	s.t.Helper()
	s.must(s.v.Zero(first*sector, n*sector, true))
	s.led.write(make([]byte, n*sector), first*sector)
}

// flush makes durable what was written.
func (s *survivor) flush() {
	s.t.Helper()
	if s.ok(s.v.Sync()) {
		s.led.durable()
	}
}

// sealAll takes a snapshot, which must succeed, and uploads it.
func (s *survivor) sealAll() {
	s.t.Helper()
	got, err := head.Freeze(s.t.Context(), s.v)
	s.must(err)
	s.must(s.v.Settle(s.t.Context(), got[0]))
	s.led.durable()
	s.frozen = append(s.frozen, frozenAt{got[0], s.led.disk()})
	for len(s.frozen) > 0 {
		s.upload()
	}
}

// is reports whether the volume is what a disk is.
func (s *survivor) is(d *disk) bool {
	s.t.Helper()
	got, want := make([]byte, d.size), make([]byte, d.size)
	_, err := s.v.ReadAt(got, 0)
	s.must(err)
	d.read(want, 0)
	return bytes.Equal(got, want)
}

// restless writes into pages of all kinds: some whole, some in part, some to
// zeros; some durable before the last of it, some not.
func (s *survivor) restless() {
	s.t.Helper()
	s.put('a', 3, 100)
	s.zero(40, 20)
	s.flush()
	s.put('b', 50, 30)
	s.put('c', 120, 5)
	s.zero(10, 9)
}

var cutPoints = []cutPoint{
	{
		// A layer was pushed, and nobody heard of it: there is no snapshot. What was
		// flushed is there, and the next snapshot has all of the volume.
		name:    "freeze without a record",
		prepare: (*survivor).restless,
		act: func(s *survivor) {
			got, err := head.Freeze(s.t.Context(), s.v)
			if !s.ok(err) {
				return
			}
			s.put('d', 60, 10)
			if s.ok(s.v.Settle(s.t.Context(), got[0])) {
				// It has what was written before the freeze; of what came after it
				// nothing is known.
				before := s.led.clone()
				s.led.durable()
				for i := int64(60); i < 70; i++ {
					s.led.may[i] = before.may[i]
				}
			}
		},
		after: func(s *survivor) {
			if st := s.v.Stats(); st.Layers > 3 {
				s.t.Errorf("got %d layers, want at most 3", st.Layers)
			}
			s.put('e', 64, 1)
			s.sealAll()
		},
	},
	{
		// A flush right behind a freeze covers the frozen layer, which nothing has
		// made durable yet.
		name:    "flush after freeze",
		prepare: (*survivor).restless,
		act: func(s *survivor) {
			got, err := head.Freeze(s.t.Context(), s.v)
			if !s.ok(err) {
				return
			}
			frozen := s.led.disk()
			s.put('d', 48, 8)
			s.flush()
			if s.ok(s.v.Settle(s.t.Context(), got[0])) {
				s.frozen = append(s.frozen, frozenAt{got[0], frozen})
			}
		},
		after: (*survivor).sealAll,
	},
	{
		// The same with two frozen layers, and no write in between: the top is clean.
		name:    "flush after two freezes",
		prepare: (*survivor).restless,
		act: func(s *survivor) {
			for range 2 {
				if _, err := head.Freeze(s.t.Context(), s.v); !s.ok(err) {
					return
				}
			}
			s.flush()
		},
		after: (*survivor).sealAll,
	},
	{
		name: "merge",
		prepare: func(s *survivor) {
			for i := range int64(6) {
				s.put('a'+byte(i), 16*i, 40)
				s.zero(16*i+20, 9)
				s.put('A'+byte(i), 240+i, 1)
				s.sealAll()
			}
			s.put('t', 30, 3)
			s.flush()
		},
		act: func(s *survivor) { s.ok(s.v.Tidy(s.t.Context())) },
		after: func(s *survivor) {
			s.must(s.v.Tidy(s.t.Context()))
			if st := s.v.Stats(); st.Layers > 4+2 {
				s.t.Errorf("got %d layers after merging, want at most 6", st.Layers)
			}
		},
	},
	{
		// Layers that a version has are given up for want of room.
		name: "drop",
		prepare: func(s *survivor) {
			s.must(s.v.Cache(0, cutSize)) // of what lies below, which is another version then
			for i := range int64(3) {
				s.put('a'+byte(i), 16*i, 40)
				s.zero(16*i+20, 9)
				s.sealAll()
			}
			s.put('t', 30, 3)
			s.flush()
			s.must(s.caches.Close())
			s.budget = 0
			s.must(s.v.Close())
			s.openCaches()
			s.reopen()
		},
		act: func(s *survivor) {
			s.caches.Trim()
			s.ok(s.caches.Close()) // waits for it
		},
	},
	{
		name:    "rollback",
		prepare: prepareRollback,
		act: func(s *survivor) {
			s.ok(s.v.Rollback(s.t.Context(), s.sealed[1]))
		},
		// The volume is what it was, or what the version is, and never a mixture.
		look: func(s *survivor, done bool) {
			base, _ := s.v.Base()
			old, back := s.is(s.led.disk()), s.is(s.vs.m[s.sealed[1]])
			switch {
			case old == back:
				s.t.Fatalf("the volume: got the old content %v, that of the version %v, want one of them", old, back)
			case old && (done || base == s.sealed[1]), back && base != s.sealed[1]:
				s.t.Fatalf("the volume has its old content: %v, done: %v, base %s of %v", old, done, base, s.sealed)
			}
		},
		after: func(s *survivor) {
			s.rolling = s.sealed[1]
			s.rollback() // as the job does again
			s.all(s.v.ReadAt, s.led.disk())
			s.put('z', 20, 50)
			s.sealAll()
			if st := s.v.Stats(); st.Layers > 3 {
				s.t.Errorf("got %d layers, want at most 3", st.Layers)
			}
		},
	},
}

// prepareRollback makes versions and writes that are in the last of them: the
// safety snapshot.
func prepareRollback(s *survivor) {
	for i := range int64(2) {
		s.put('a'+byte(i), 30*i, 60)
		s.zero(30*i+20, 9)
		s.sealAll()
	}
	s.put('t', 70, 100)
	s.sealAll()
}

// newScripted is a volume over a version that has something everywhere.
func newScripted(t *testing.T, fate uint64) *survivor {
	t.Helper()
	l := &life{t: t, rng: rand.New(rand.NewPCG(fate, 3)), vs: newVersions(), budget: 1 << 40}
	d := newDisk(cutSize)
	for off := int64(0); off < cutSize; off += sector {
		d.write(bytes.Repeat([]byte{'0' + byte(off/sector%10)}, sector), off)
	}
	l.sealed = append(l.sealed, l.vs.add(d))
	return survive(l, d)
}

// run cuts the power at the nth operation of what is done, and reports whether
// there was one.
func (c *cutPoint) run(t *testing.T, n int, how layertest.How, fate uint64) (cut bool) {
	t.Helper()
	s := newScripted(t, fate)
	if c.prepare != nil {
		c.prepare(s)
	}
	s.arm(n, how)
	c.act(s)
	cut = s.dead.Load()
	s.boot(fate)
	if c.look != nil {
		c.look(s, !cut)
	} else {
		s.look()
	}
	if c.after != nil {
		c.after(s)
	}
	s.all(s.v.ReadAt, s.led.disk())
	s.must(s.v.Close())
	s.must(s.caches.Close())
	if n := s.power.Handles(); n > 0 {
		t.Errorf("%d files are open at the end", n)
	}
	return cut
}

// The power goes at every single operation on the file system of what moves a
// volume from one stack of layers to another, and right behind the last one: the
// operation is half done or not done, and of what was not durable nothing is kept,
// everything, or some. What was flushed is there, a sector is as it was or
// became since, and everything works as before.
func TestEveryCut(t *testing.T) {
	for _, c := range cutPoints {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := 0
			for cut := true; cut; n++ {
				cut = false
				for _, fate := range fates {
					if c.run(t, n, fate.how, fate.seed) {
						cut = true
					}
					if t.Failed() {
						t.Fatalf("the power went at operation %d, with fate %v", n, fate)
					}
				}
			}
			t.Logf("%d operations", n-1)
			if n < 5 {
				t.Errorf("the power was cut at %d operations, want more", n-1)
			}
		})
	}
}
