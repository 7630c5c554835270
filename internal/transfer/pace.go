package transfer

import (
	"context"
	"sync"
	"time"
)

const (
	// defaultStreams is how many streams there are at a time at most.
	defaultStreams = 32
	// minAsked is how many bytes are under way at least where there is work: four
	// requests.
	minAsked = 4 * askBytes
	// longHold is what a stream may wait for other reasons than the source without
	// a difference to its rate.
	longHold = 10 * time.Millisecond
	// paceTick is how often the pace is looked at.
	paceTick = 500 * time.Millisecond
)

// A pace says when there may be one more request, by what was measured. What was
// asked for and has not come must be twice what the link holds, its delay times
// its rate: then the next answer stands behind the last one when that ends. If the
// connections are slow each by itself, as those of a lossy link are, it is more of
// them that bring more; whether that is so it tries now and then.
type pace struct {
	most int // streams
	probe

	mu      sync.Mutex
	flights map[*flight]bool // guarded by mu, like all that follows
	asked   int64            // bytes that flights have not brought
	delay   time.Duration    // from a request to its first frame: the least of late
	rate    float64          // bytes a second, of late
	came    int64            // bytes since the last tick
	full    bool             // somebody waited for his turn since then
	typical float64          // bytes a second of one stream, of late
	ticks   int
	last    time.Time     // tick
	freed   chan struct{} // has one element when there may be room for a stream
}

// A flight is a request that is under way, all tries of it.
type flight struct {
	cancel   context.CancelCauseFunc // nil between tries
	patience time.Duration
	left     int64     // bytes that have not come
	began    time.Time // the try
	total    int64     // bytes that came of the try
	last     time.Time // when something came, or the try began
	first    bool      // nothing has come of the try
	held     bool      // it waits for memory, or a limit, not for the source
	bytes    int64     // that came since streams were compared last
	old      bool      // the try was under way then
}

func newPace(most int) *pace {
	return &pace{most: most, probe: probe{factor: 1}, flights: map[*flight]bool{}, freed: make(chan struct{}, 1), last: time.Now()}
}

// window is how many bytes are to be under way.
func (p *pace) window() int64 {
	return int64(p.factor * max(minAsked, 2*p.rate*p.delay.Seconds()+askBytes))
}

// size is how many bytes a request is to be for. Where it is more streams that bring
// more they are smaller, because a request takes memory for all that it may bring.
func (p *pace) size() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(int64(askBytes/p.factor), leastAsk)
}

// enter waits until there may be one more flight, for so many bytes.
func (p *pace) enter(ctx context.Context, bytes int64) (*flight, error) {
	for {
		p.mu.Lock()
		n := len(p.flights)
		if n == 0 || n < p.most && p.asked < p.window() {
			f := &flight{left: bytes}
			p.flights[f] = true
			p.asked += bytes
			p.mu.Unlock()
			return f, nil
		}
		p.full = true
		p.mu.Unlock()
		select {
		case <-p.freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// leave ends what enter began.
func (p *pace) leave(f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flights, f)
	p.asked -= f.left
	p.wake()
}

func (p *pace) wake() {
	select {
	case p.freed <- struct{}{}:
	default:
	}
}

// start returns the context of one try of a flight, and what ends it.
func (p *pace) start(ctx context.Context, f *flight) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.patience *= 2; f.patience == 0 {
		f.patience = patience
	}
	f.began, f.total, f.first, f.bytes, f.old, f.cancel = time.Now(), 0, true, 0, false, cancel
	f.last = f.began
	return ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended(f, time.Now())
		f.cancel = nil
		cancel(nil)
	}
}

// arrived notes a frame.
func (p *pace) arrived(f *flight, bytes int) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.first {
		// The first requests also pay for their connections.
		if d := now.Sub(f.last); p.delay == 0 || d < p.delay {
			p.delay = d
		} else {
			p.delay += min((d-p.delay)/16, p.delay/16)
		}
	}
	f.last, f.first = now, false
	f.bytes += int64(bytes)
	f.total += int64(bytes)
	p.came += int64(bytes)
	n := min(int64(bytes), f.left)
	f.left -= n
	if p.asked -= n; p.asked < p.window() {
		p.wake()
	}
}

// hold runs what may let a flight wait, for memory or a limit. While it does, and if
// that took long, the flight is not compared with others.
func (p *pace) hold(f *flight, fn func() error) error {
	began := time.Now()
	p.mu.Lock()
	f.held = true
	p.mu.Unlock()
	err := fn()
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.held = false; now.Sub(began) >= longHold {
		f.old, f.last = false, now
	}
	return err
}

// run looks at the pace until ctx ends.
func (p *pace) run(ctx context.Context) {
	t := time.NewTicker(paceTick)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			p.tick(now)
		case <-ctx.Done():
			return
		}
	}
}

func (p *pace) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := now.Sub(p.last).Seconds(); d > 0 {
		rate := float64(p.came) / d
		p.rate += (rate - p.rate) * 3 / 10
		p.note(rate, p.full)
	}
	p.came, p.last, p.full = 0, now, false
	p.wake()
	p.stalled(now)
	if p.ticks++; p.ticks%slowTicks == 0 {
		p.compare()
	}
}

// A probe finds out whether more under way brings more: it tries half as much
// again, keeps it where the rate grew by a sixth of that or more, and otherwise
// goes back and waits.
type probe struct {
	factor  float64
	ticks   int     // of this time
	sum     float64 // of the rates of its ticks
	before  float64 // the rate before it grew; 0 when it did not
	waiting int     // times until the next try
}

const (
	probeTicks = 3
	probeWaits = 8
	probeMost  = 16 // factor
)

// note takes the rate of a tick. One in which nobody waited for his turn says
// nothing.
func (p *probe) note(rate float64, full bool) {
	if !full {
		return
	}
	p.sum += rate
	if p.ticks++; p.ticks < probeTicks {
		return
	}
	mean := p.sum / probeTicks
	p.sum, p.ticks = 0, 0
	switch {
	case p.before > 0 && mean < p.before*13/12:
		p.factor /= 1.5
		p.before, p.waiting = 0, probeWaits
	case p.waiting > 0:
		p.waiting--
	case p.factor < probeMost:
		p.before = mean
		p.factor *= 1.5
	}
}
