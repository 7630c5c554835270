package transfer_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// A fault is what happens at some points of a source: at a request for nodes, at
// the opening of a stream of blocks, and at each step of one.
type fault int

const (
	failed      fault = iota // it did nothing and says so
	failedAfter              // it did it, or sent it, and says it failed
	stalled                  // nothing comes until it is given up
	faults
)

func (f fault) String() string { return [...]string{"failed", "failed after", "stalled"}[f] }

// faulty is a source with faults. It counts its points.
type faulty struct {
	*memory
	fault fault
	at    func(point int) bool
	err   error

	mu     sync.Mutex
	points int // guarded by mu, like all that follows
	hit    int // faults that happened
	sent   int // frames
}

// point passes a point; do is what is done there.
func (s *faulty) point(ctx context.Context, do func() error) error {
	s.mu.Lock()
	n := s.points
	s.points++
	hit := s.at != nil && s.at(n)
	if hit {
		s.hit++
	}
	s.mu.Unlock()
	switch {
	case !hit:
		return do()
	case s.fault == stalled:
		<-ctx.Done()
		return ctx.Err()
	case s.fault == failedAfter:
		if err := do(); err != nil {
			return err
		}
	}
	return s.err
}

func (s *faulty) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	return s.point(ctx, func() error { return s.memory.Nodes(ctx, at, fn) })
}

func (s *faulty) Blocks(ctx context.Context, want []transfer.Want) (f transfer.Frames, err error) {
	err = s.point(ctx, func() (err error) {
		f, err = s.memory.Blocks(ctx, want)
		return err
	})
	return &faultyFrames{f, s, ctx}, err
}

type faultyFrames struct {
	transfer.Frames
	s   *faulty
	ctx context.Context
}

func (f *faultyFrames) Next() (x transfer.Frame, err error) {
	err = f.s.point(f.ctx, func() (err error) {
		if x, err = f.Frames.Next(); err == nil {
			f.s.mu.Lock()
			f.s.sent++
			f.s.mu.Unlock()
		}
		return err
	})
	return x, err
}

// faultDisk has a long leaf, which is asked for in parts, and small ones, which
// are asked for together, one of them on a base.
func faultDisk(tb interface{ Fatal(...any) }) (disk, base *memory) {
	d := simtest.NewDisk(5<<30 + 512)
	for i := range uint64(80) {
		d.Fill(i, int(i)+1)
	}
	for i := range uint64(10) {
		d.Fill(1000+i*777, int(i)+1000)
	}
	d.Fill(5<<30/snapferry.BlockSize, 7)
	b := d.Clone(4<<30).Fill(1000, 5).Fill(1010, 6).Fill(9_000, 3)
	return &memory{m: mapOf(tb, d), disk: d}, &memory{m: mapOf(tb, b), disk: b}
}

// TestFaults has each fault at points all over a copy, and twice at points near each
// other: it goes on, what comes is what is there, and no block that came is asked
// for again.
func TestFaults(t *testing.T) {
	disk, base := faultDisk(t)
	run := func(t *testing.T, base blockmap.Map, f fault, at func(int) bool) (*faulty, *transfer.Stats) {
		s := &faulty{memory: disk, fault: f, at: at, err: snapferry.Errorf(snapferry.Unavailable, "the fault")}
		st := new(transfer.Stats)
		sink := newSink(base, disk)
		err := transfer.Run(t.Context(), transfer.Config{Info: disk.info(), Source: s, Sink: sink, Stats: st, Memory: transfer.NewMemory(2 << 20)})
		if err != nil {
			t.Errorf("%v: %v", f, err)
		}
		if got, want := st.Settled.Load(), int64(disk.disk.Present()); got != want {
			t.Errorf("%v: settled %d blocks of %d", f, got, want)
		}
		return s, st
	}
	for name, b := range map[string]blockmap.Map{"full": {Size: disk.m.Size, Nodes: nodes{}}, "increment": base.m} {
		synctestRun(t, name, func(t *testing.T) {
			clean, st := run(t, b, failed, nil)
			want := st.Blocks.Load()
			for f := range faults {
				for k := 0; k < clean.points; k += 1 + k/16 {
					s, st := run(t, b, f, func(n int) bool { return n == k || n == k+7 })
					if got := st.Blocks.Load(); got != want {
						t.Errorf("%v at point %d: %d blocks came, want %d", f, k, got, want)
					}
					if lost := s.sent - int(want); lost < 0 || lost > s.hit {
						t.Errorf("%v at point %d: %d frames were sent for %d blocks, with %d faults", f, k, s.sent, want, s.hit)
					}
				}
			}
		})
	}
}

// TestFinalFaults ends at once on errors that do not pass, whatever else is under
// way, and at last on those that should and do not.
func TestFinalFaults(t *testing.T) {
	disk, _ := faultDisk(t)
	for _, kind := range snapferry.Kinds() {
		synctestRun(t, kind.String(), func(t *testing.T) {
			for _, k := range []int{0, 1, 3, 5, 40, 70} {
				s := &faulty{memory: disk, at: func(n int) bool { return n >= k }, err: snapferry.Errorf(kind, "the fault")}
				began := time.Now()
				err := transfer.Run(t.Context(), transfer.Config{Info: disk.info(), Source: s, Sink: newSink(blockmap.Map{Size: disk.m.Size, Nodes: nodes{}}, disk), Stats: new(transfer.Stats)})
				if !snapferry.IsKind(err, kind) {
					t.Errorf("from point %d on: got %v, want %v", k, err, kind)
				}
				took := time.Since(began)
				if passes := kind == snapferry.Unavailable; passes != (took > 0) || took > 2*time.Second {
					t.Errorf("from point %d on: %v went by", k, took)
				}
			}
		})
	}
}

// TestStopped ends with its context, with nothing left behind.
func TestStopped(t *testing.T) {
	disk, _ := faultDisk(t)
	for _, k := range []int{0, 1, 3, 5, 40, 70} {
		synctestRun(t, fmt.Sprint(k), func(t *testing.T) {
			s := &faulty{memory: disk, fault: stalled, at: func(n int) bool { return n >= k }}
			ctx, cancel := context.WithCancelCause(t.Context())
			why := snapferry.Errorf(snapferry.Cancelled, "enough")
			go func() {
				synctest.Wait()
				cancel(why)
			}()
			err := transfer.Run(ctx, transfer.Config{Info: disk.info(), Source: s, Sink: newSink(blockmap.Map{Size: disk.m.Size, Nodes: nodes{}}, disk), Stats: new(transfer.Stats)})
			if err != why {
				t.Errorf("got %v, want %v", err, why)
			}
		})
	}
}

// slowSource makes each frame take its time; one of its streams is far slower.
type slowSource struct {
	*memory
	frame time.Duration
	mu    sync.Mutex
	opens int
	slow  int           // which stream is slow
	gap   time.Duration // between its frames
}

func (s *slowSource) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := s.memory.Blocks(ctx, want)
	s.mu.Lock()
	defer s.mu.Unlock()
	gap := s.frame
	if s.opens++; s.opens == s.slow {
		gap = s.gap
	}
	return &slowFrames{f, ctx, gap}, err
}

type slowFrames struct {
	transfer.Frames
	ctx context.Context
	gap time.Duration
}

func (f *slowFrames) Next() (transfer.Frame, error) {
	select {
	case <-time.After(f.gap):
		return f.Frames.Next()
	case <-f.ctx.Done():
		return transfer.Frame{}, f.ctx.Err()
	}
}

// TestSlowStream has one stream a hundred times slower than the others: its blocks
// are taken over, the copy takes little longer.
func TestSlowStream(t *testing.T) {
	d := simtest.NewDisk(64 << 20)
	for i := range uint64(d.Size() / snapferry.BlockSize) {
		d.Fill(i, 2*int(i)+2)
	}
	disk := &memory{m: mapOf(t, d), disk: d}
	synctest.Test(t, func(t *testing.T) {
		took := func(slow int) time.Duration {
			s := &slowSource{memory: disk, frame: 20 * time.Millisecond, slow: slow, gap: 2 * time.Second}
			st, began := new(transfer.Stats), time.Now()
			if err := transfer.Run(t.Context(), transfer.Config{Info: disk.info(), Source: s, Sink: newSink(blockmap.Map{Size: d.Size(), Nodes: nodes{}}, disk), Stats: st}); err != nil {
				t.Fatal(err)
			}
			if got := st.Blocks.Load(); got != int64(d.Present()) {
				t.Errorf("%d blocks came of %d", got, d.Present())
			}
			return time.Since(began)
		}
		usual := took(0)
		for _, slow := range []int{1, 10} {
			if got := took(slow); got > usual+12*time.Second {
				t.Errorf("with stream %d slow it took %v, without %v", slow, got, usual)
			}
		}
	})
}

// TestPlanMemory plans for somebody who takes nothing yet: the source is asked for
// a bounded number of leaves, whatever the size.
func TestPlanMemory(t *testing.T) {
	const size = 32 << 30
	base := newHuge(size, func(uint64) bool { return false })
	disk := newHuge(size, hundredthBlock)
	synctest.Test(t, func(t *testing.T) {
		var made []int64
		p := transfer.Planner{Info: disk.info(), Source: disk, Base: base.asMap()}
		taken := int64(0)
		err := p.Run(t.Context(), func(s transfer.Step) error {
			if taken%500 == 0 {
				synctest.Wait() // it looks ahead as far as it does
				made = append(made, disk.made.Load()-taken, base.made.Load()-taken)
			}
			taken++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if most := slices.Max(made); most > transfer.MaxNodes || taken < 1700 {
			t.Errorf("%d leaves were made before they were taken, of %d, want at most %d", most, taken, transfer.MaxNodes)
		}
	})
}

// held is a source that sends nothing until it is let go.
type held struct {
	*memory
	free chan struct{}
}

func (s *held) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	select {
	case <-s.free:
		return s.memory.Blocks(ctx, want)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TestSharedMemory copies several disks at once with memory for nothing: all come to
// their ends, leaves that are more than a request too, and one whose source stands
// still keeps none of the others.
func TestSharedMemory(t *testing.T) {
	d := simtest.NewDisk(64 << 20)
	for i := range d.Size() / snapferry.BlockSize {
		d.Fill(uint64(i), int(i)+1)
	}
	disk := &memory{m: mapOf(t, d), disk: d}
	for _, limit := range []int64{1, 8 << 20, 30 << 20} {
		synctestRun(t, fmt.Sprint(limit), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			mem := transfer.NewMemory(limit)
			run := func(s transfer.Source) chan error {
				ended := make(chan error, 1)
				go func() {
					sink := newSink(blockmap.Map{Size: disk.m.Size, Nodes: nodes{}}, disk)
					ended <- transfer.Run(ctx, transfer.Config{Info: disk.info(), Source: s, Sink: sink, Stats: new(transfer.Stats), Memory: mem})
				}()
				return ended
			}
			slow := &held{disk, make(chan struct{})}
			last := run(slow)
			synctest.Wait()
			var all []chan error
			for range 3 {
				all = append(all, run(disk))
			}
			for _, ended := range all {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			close(slow.free)
			if err := <-last; err != nil {
				t.Errorf("the one that was held: %v", err)
			}
			if mem.Beyond() != 0 {
				t.Errorf("%d bytes are not given back", mem.Beyond())
			}
		})
	}
}
