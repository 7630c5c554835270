package blobtest

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

// Mode says which of the two ways a request fails.
type Mode uint8

// The ways to fail. Who asked cannot tell them apart.
const (
	Before Mode = iota // nothing was done
	After              // all was done, only the answer is lost
)

func (m Mode) String() string { return [...]string{"before", "after"}[m&1] }

// Faulty is a driver over another that fails when it is told to, and fails the
// test when an object is changed: overwritten, or deleted and then back with
// other bytes. All methods may be called at once.
type Faulty struct {
	tb   testing.TB
	d    blob.Driver
	slow *Slow // d, delayed and counted
	seed maphash.Seed

	mu        sync.Mutex
	faults    []*fault
	mutations int  // puts and deletes asked for so far
	cut       bool // the power is off, or will be
	cutAt     int  // after how many mutations
	cutMode   Mode
	objects   map[string]*history
	damage    map[string]*damage
}

type fault struct {
	op      Op
	pattern string
	left    int // matching requests that still pass
	mode    Mode
}

// history is what Faulty knows of a name.
type history struct {
	made    bool
	sum     uint64 // of the bytes it was first made with
	deleted bool   // a Delete began at any time
}

// damage is what reads of an object show in place of its bytes.
type damage struct {
	flipped  map[int64]bool
	truncate int64 // -1: whole
}

// NewFaulty returns a driver that behaves until it is told otherwise.
func NewFaulty(tb testing.TB, d blob.Driver) *Faulty {
	return &Faulty{tb: tb, d: d, slow: NewSlow(d, 0), seed: maphash.MakeSeed(), objects: map[string]*history{}, damage: map[string]*damage{}}
}

// Fail makes one request fail with Unavailable: of those with this method
// whose name matches the pattern of path.Match ("" matches all), the nth from
// now on, counted from 1. A List matches by its prefix. Faults add up.
func (f *Faulty) Fail(op Op, pattern string, nth int, mode Mode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault{op: op, pattern: pattern, left: nth - 1, mode: mode})
}

// CutAfter cuts the power after n more puts and deletes: the next one fails in
// the given way, and from then on everything fails with Unavailable, reads
// too, until Restore.
func (f *Faulty) CutAfter(n int, mode Mode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut, f.cutAt, f.cutMode = true, f.mutations+n, mode
}

// IsCut reports whether the power is off.
func (f *Faulty) IsCut() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut && f.mutations > f.cutAt
}

// Restore brings the power back and forgets all faults that are still to come.
// Damage stays.
func (f *Faulty) Restore() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut, f.faults = false, nil
}

// Mutations returns how many puts and deletes were asked for so far.
func (f *Faulty) Mutations() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mutations
}

// FlipByte inverts a byte of an object for all who read it from now on.
func (f *Faulty) FlipByte(name string, off int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.damageOf(name).flipped[off] = true
}

// Truncate lets an object end after size bytes for all who read it from now on.
func (f *Faulty) Truncate(name string, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.damageOf(name).truncate = size
}

// Heal takes all damage of an object away.
func (f *Faulty) Heal(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.damage, name)
}

func (f *Faulty) damageOf(name string) *damage {
	d := f.damage[name]
	if d == nil {
		d = &damage{flipped: map[int64]bool{}, truncate: -1}
		f.damage[name] = d
	}
	return d
}

// Delay sets how long each request waits from now on.
func (f *Faulty) Delay(d time.Duration) { f.slow.Delay(d) }

// Count returns what was asked by one method so far, without what failed Before.
func (f *Faulty) Count(op Op) Count { return f.slow.Count(op) }

// decide says how a request must fail, if at all.
func (f *Faulty) decide(op Op, name string) (mode Mode, fail bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut && f.mutations > f.cutAt {
		return Before, true
	}
	if op == Put || op == Delete {
		f.mutations++
		if f.cut && f.mutations > f.cutAt {
			return f.cutMode, true
		}
	}
	f.faults = slices.DeleteFunc(f.faults, func(x *fault) bool {
		if x.op != op || !matches(x.pattern, name) {
			return false
		}
		x.left--
		if x.left < 0 && !fail {
			mode, fail = x.mode, true
			return true
		}
		return false
	})
	return mode, fail
}

func matches(pattern, name string) bool {
	ok, _ := path.Match(pattern, name)
	return ok || pattern == ""
}

// run does a request, or fails it, or both.
func (f *Faulty) run(op Op, name string, do func() error) error {
	mode, fail := f.decide(op, name)
	if fail && mode == Before {
		return snapferry.Errorf(snapferry.Unavailable, "%s failed on purpose, nothing done", op)
	}
	err := do()
	if fail {
		return snapferry.Errorf(snapferry.Unavailable, "%s failed on purpose, after it was done", op)
	}
	return err
}

// Put implements blob.Driver.
func (f *Faulty) Put(ctx context.Context, name string, body []byte) error {
	return f.run(Put, name, func() error {
		err := f.slow.Put(ctx, name, body)
		if err == nil {
			f.made(name, maphash.Bytes(f.seed, body))
		}
		return err
	})
}

func (f *Faulty) made(name string, sum uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.historyOf(name)
	switch {
	case !h.made:
		h.made, h.sum = true, sum
	case !h.deleted:
		f.tb.Errorf("object %s was overwritten", name)
	case h.sum != sum:
		f.tb.Errorf("object %s was deleted and came back with other bytes", name)
	}
}

func (f *Faulty) historyOf(name string) *history {
	h := f.objects[name]
	if h == nil {
		h = &history{}
		f.objects[name] = h
	}
	return h
}

// ReadAt implements blob.Driver.
func (f *Faulty) ReadAt(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	err = f.run(ReadAt, name, func() error {
		n, err = f.slow.ReadAt(ctx, name, p, off)
		n, err = f.spoil(name, p, off, n, err)
		return err
	})
	if err != nil && err != io.EOF {
		return 0, err
	}
	return n, err
}

func (f *Faulty) spoil(name string, p []byte, off int64, n int, err error) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.damage[name]
	if d == nil || err != nil && err != io.EOF {
		return n, err
	}
	if d.truncate >= 0 && off+int64(n) > d.truncate {
		n, err = int(max(0, d.truncate-off)), io.EOF
	}
	for i := range d.flipped {
		if i >= off && i < off+int64(n) {
			p[i-off] ^= 0xff
		}
	}
	return n, err
}

func (f *Faulty) cropped(name string, size int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.damage[name]; d != nil && d.truncate >= 0 {
		return min(size, d.truncate)
	}
	return size
}

// Size implements blob.Driver.
func (f *Faulty) Size(ctx context.Context, name string) (size int64, err error) {
	err = f.run(Size, name, func() error {
		size, err = f.slow.Size(ctx, name)
		return err
	})
	return f.cropped(name, size), err
}

// List implements blob.Driver.
func (f *Faulty) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	return f.run(List, prefix, func() error {
		return f.slow.List(ctx, prefix, after, func(i blob.Info) error {
			i.Size = f.cropped(i.Name, i.Size)
			return fn(i)
		})
	})
}

// Delete implements blob.Driver.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	return f.run(Delete, name, func() error {
		f.mu.Lock()
		f.historyOf(name).deleted = true
		f.mu.Unlock()
		return f.slow.Delete(ctx, name)
	})
}

// Close closes the driver below, if that can be closed.
func (f *Faulty) Close() error { return f.slow.Close() }

// String helps to read a failed test.
func (f *Faulty) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("faulty: %d puts and deletes, cut %v at %d (%s), %d faults to come", f.mutations, f.cut, f.cutAt, f.cutMode, len(f.faults))
}

func closeDriver(d blob.Driver) error {
	if c, ok := d.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
