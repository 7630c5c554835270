package transfer

import (
	"context"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
)

// Stats counts what a run does while it runs.
type Stats struct {
	Settled atomic.Int64 // blocks whose place in the version is decided
	Reused  atomic.Int64 // blocks of them that the base had
	Moved   atomic.Int64 // bytes of frames that came from the source, filled in or not
	Blocks  atomic.Int64 // blocks that came from the source, likewise
	Lent    atomic.Int64 // blocks that a donor gave, likewise
}

// Config is what a run needs.
type Config struct {
	Info   Info
	Source Source
	Sink   Sink
	Stats  *Stats
	// Streams is how many streams of blocks there are at most; 0 for 32. How many
	// there are goes by the delay and the rate that are measured.
	Streams int
	// Memory bounds the bytes of what was asked for and is not filled in yet; nil
	// for one of DefaultMemory for this run alone.
	Memory *Memory
	// Limit, if not nil, is called with the bytes of each frame, and about those of
	// each node, that came, before the next one of its stream is taken, and may wait.
	Limit func(ctx context.Context, bytes int) error
	// Near, if not nil, has blocks that came from the source already, for somebody
	// who could not wait.
	Near Near
	// Donor, if not nil, has blocks that the region of the sink has elsewhere.
	Donor Donor
}

// Near has plain blocks of the snapshot that is copied. What it has is checked
// again. Its methods are called concurrently.
type Near interface {
	Has(block uint64) bool
	// Read fills dst, 65,536 bytes; false when it cannot.
	Read(block uint64, dst []byte) bool
}

// A run is what the goroutines of one Run share: one that plans and asks, one for
// each stream, which brings what was asked for, and a few that fill it in.
type run struct {
	Config
	budget *budget
	pace   *pace
	ready  chan *leaf // leaves to be filled: all of their blocks have come, or must not wait
}

const (
	// maxFillers is how many leaves are filled at a time at most.
	maxFillers = 4
	// minFillers is how many at least: one may wait for what the memory of another,
	// which has all, would let come.
	minFillers = 2
)

// Run fills the sink with the source's content. Everything is checked against
// the source's digests before it counts; what an earlier run settled durably
// is not asked for again.
//
// What fails with Unavailable, is cut, stands still or falls behind is asked for
// again, that piece alone and as far as it did not come; the run fails only when
// it failed several times and nothing else came meanwhile. Errors of other Kinds
// end it at once.
// A source must end its streams when their context ends.
//
// When Run returns nil all leaves have ended; sealing, which proves the whole
// digest, is the caller's.
func Run(ctx context.Context, c Config) error {
	if c.Streams == 0 {
		c.Streams = defaultStreams
	}
	if c.Memory == nil {
		c.Memory = NewMemory(0)
	}
	if have := c.Sink.Size(); c.Info.Size != have {
		return snapferry.Errorf(snapferry.Corrupt, "the source says that the disk has %d bytes, the copy was begun with %d", c.Info.Size, have)
	}
	r := &run{Config: c, budget: c.Memory.join(), pace: newPace(c.Streams), ready: make(chan *leaf, askLeaves)}
	defer r.budget.leave()
	g, ctx := errgroup.WithContext(ctx)
	watched, unwatch := context.WithCancel(ctx)
	g.Go(func() error { r.pace.run(watched); return nil })
	for range min(max(runtime.GOMAXPROCS(0), minFillers), maxFillers) {
		g.Go(func() error { return r.fillers(ctx) })
	}
	g.Go(func() error {
		defer unwatch()
		defer close(r.ready)
		streams, ctx := errgroup.WithContext(ctx)
		err := r.dispatch(ctx, streams)
		if err2 := streams.Wait(); err == nil || err2 != nil {
			err = err2
		}
		return err
	})
	return g.Wait()
}

// dispatch plans, and makes requests for what must move as fast as the pace and the
// memory allow.
func (r *run) dispatch(ctx context.Context, streams *errgroup.Group) error {
	d := &dispatcher{run: r, streams: streams, next: &ask{}}
	p := Planner{Info: r.Info, Source: r.Source, Base: r.Sink.Base(), Donor: r.Donor, Limit: r.Limit}
	err := p.Run(ctx, func(s Step) error {
		if s.Node != nil && r.Sink.Finished(s.Leaf) {
			return snapferry.Errorf(snapferry.Corrupt, "leaf %d was finished by an earlier run but differs from the source", s.Leaf)
		}
		t, err := r.Sink.Ticket(s.Leaf)
		if err != nil {
			return err
		}
		if s.Node == nil {
			return r.Sink.Absent(ctx, t)
		}
		return d.leaf(ctx, &leaf{Step: s, ticket: t})
	})
	if err != nil {
		return err
	}
	// What the planner pruned the base has already.
	pruned := r.Info.Present/snapferry.BlockSize - p.settled
	r.Stats.Settled.Add(pruned)
	r.Stats.Reused.Add(pruned)
	return d.flush(ctx)
}

// A dispatcher puts what leaves want into requests.
type dispatcher struct {
	*run
	streams *errgroup.Group
	next    *ask // of small leaves
}

// leaf lets a leaf be filled.
func (d *dispatcher) leaf(ctx context.Context, l *leaf) error {
	if !d.budget.tryLeaf() {
		// What was put together may be what the memory waits for.
		if err := d.flush(ctx); err != nil {
			return err
		}
		if err := d.budget.leaf(ctx); err != nil {
			return err
		}
	}
	if l.Want == (blockmap.Bitmap{}) {
		// It is only put together anew, of what the base has.
		return d.hand(ctx, l)
	}
	var bytes int64
	for i := range l.Want.All() {
		bytes += l.room(i)
	}
	most := d.pace.size()
	if d.next.lent != l.borrows() || d.next.bytes+bytes > most || d.next.blocks+l.Want.Count() > askBlocks {
		if err := d.flush(ctx); err != nil {
			return err
		}
	}
	if bytes <= most {
		d.next.add(l, l.Want, bytes)
		if d.next.full(most) {
			return d.flush(ctx)
		}
		return nil
	}
	// Its parts count before the first of them can come.
	var asks []*ask
	split(l, most, func(want blockmap.Bitmap, bytes int64) {
		a := &ask{}
		a.add(l, want, bytes)
		asks = append(asks, a)
	})
	for _, a := range asks {
		d.next = a
		if err := d.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// flush makes the request that was put together, when there may be one more.
func (d *dispatcher) flush(ctx context.Context) error {
	a := d.next
	d.next = &ask{}
	if len(a.parts) == 0 {
		return nil
	}
	f, err := d.pace.enter(ctx, a.bytes)
	if err != nil {
		return err
	}
	if err := d.reserve(ctx, a); err != nil {
		d.pace.leave(f)
		return err
	}
	d.streams.Go(func() error {
		defer d.budget.give(streamBytes)
		defer d.pace.leave(f)
		return d.fetch(ctx, a, f)
	})
	return nil
}

// reserve takes the memory of an ask.
func (d *dispatcher) reserve(ctx context.Context, a *ask) error {
	if d.budget.tryAsk(a.memory()) {
		return nil
	}
	if p := a.parts[0]; p != p.leaf.parts[0] {
		// What has come of the leaf has what the rest of it waits for.
		if err := d.hand(ctx, p.leaf); err != nil {
			return err
		}
	}
	return d.budget.ask(ctx, a.memory())
}

// hand gives a leaf to those who fill leaves, once.
func (r *run) hand(ctx context.Context, l *leaf) error {
	if l.handed.Swap(true) {
		return nil
	}
	select {
	case r.ready <- l:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
