package control

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/transfer"
)

// stallAfter is how long nothing may come before a copy is shown to stall.
const stallAfter = 30 * time.Second

// A pulse is the sign of life of a copy.
type pulse struct {
	base   time.Time
	last   atomic.Int64 // nanoseconds after base that something came
	asking atomic.Int32 // calls that wait for the source
	held   atomic.Int32 // that wait for a limit
}

func newPulse() *pulse { return &pulse{base: time.Now()} }

func (p *pulse) beat() { p.last.Store(int64(time.Since(p.base))) }

// stalled says since when, and why, nothing comes; nil when something does.
func (p *pulse) stalled(from snapferry.RegionName, now time.Time) *snapferry.Stall {
	since := p.base.Add(time.Duration(p.last.Load()))
	if now.Sub(since) < stallAfter {
		return nil
	}
	s := &snapferry.Stall{Since: since, Cause: "what has come is not stored yet: the bucket is slow, or away"}
	switch {
	case p.held.Load() > 0:
		s.Cause = "the limits let nothing pass"
	case p.asking.Load() > 0:
		s.Cause = "region " + string(from) + " sends nothing"
	}
	return s
}

// pass notes that bytes came, and returns when they pass the limits.
func (p *pulse) pass(ctx context.Context, limits limit.Chain, n int) error {
	p.beat()
	p.held.Add(1)
	defer p.held.Add(-1)
	return limits.Wait(ctx, n)
}

// ask is what waits for the source.
func (p *pulse) ask(fn func() error) error {
	p.asking.Add(1)
	defer p.asking.Add(-1)
	return fn()
}

// watched is the source of a copy, which shows when it is waited for.
type watched struct {
	transfer.Source
	pulse *pulse
}

// Nodes implements transfer.Source.
func (s watched) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	return s.pulse.ask(func() error { return s.Source.Nodes(ctx, at, fn) })
}

// Blocks implements transfer.Source.
func (s watched) Blocks(ctx context.Context, want []transfer.Want) (f transfer.Frames, err error) {
	err = s.pulse.ask(func() error {
		f, err = s.Source.Blocks(ctx, want)
		return err
	})
	if err != nil {
		return nil, err
	}
	return watchedFrames{f, s.pulse}, nil
}

type watchedFrames struct {
	transfer.Frames
	pulse *pulse
}

func (f watchedFrames) Next() (x transfer.Frame, err error) {
	err = f.pulse.ask(func() error {
		x, err = f.Frames.Next()
		return err
	})
	return x, err
}

// itemBytes is what a node or a frame has on the wire beside its payload.
const itemBytes = 20

// limited is a source whose answers pass limits. What it does not take from the
// connection yet the other region does not send.
type limited struct {
	transfer.Source
	limits limit.Chain
}

// Nodes implements transfer.Source.
func (s limited) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	return s.Source.Nodes(ctx, at, func(p snapferry.Position, n *blockmap.Node) error {
		if err := s.limits.Wait(ctx, itemBytes+transfer.WireSize(n)); err != nil {
			return err
		}
		return fn(p, n)
	})
}

// Blocks implements transfer.Source.
func (s limited) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := s.Source.Blocks(ctx, want)
	if err != nil {
		return nil, err
	}
	return &limitedFrames{f, s.limits, ctx}, nil
}

// limitedFrames lives as long as the request it answers, whose context it keeps.
type limitedFrames struct {
	transfer.Frames
	limits limit.Chain
	ctx    context.Context
}

func (f *limitedFrames) Next() (x transfer.Frame, err error) {
	if x, err = f.Frames.Next(); err != nil {
		return x, err
	}
	return x, f.limits.Wait(f.ctx, itemBytes+len(x.Payload))
}

// An estimator says when something will end that goes on as it went.
type estimator struct {
	mu      sync.Mutex
	samples []sample // of the last minute, at most one a second
	first   sample   // the last one before something came; samples begin behind it
}

type sample struct {
	at    time.Time
	bytes int64
}

const (
	// The rate is measured over these times; they differ when it changes.
	shortLook = 10 * time.Second
	longLook  = 60 * time.Second
	// warmUp is how long the rate is not known at first.
	warmUp = 2 * time.Second
	// The span is wider than the rates say, and has a time for the commit.
	widen  = 0.05
	commit = 2 * time.Second
)

// add notes how many bytes there were at a time.
func (e *estimator) add(now time.Time, bytes int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := sample{now, bytes}
	if len(e.samples) == 0 && (e.first.at.IsZero() || bytes <= e.first.bytes) {
		e.first = x // a plan and connections are made: that time is no measure of the link
		return
	}
	if n := len(e.samples); n > 0 && now.Sub(e.samples[n-1].at) < paceEvery/2 {
		return
	}
	for len(e.samples) > 1 && now.Sub(e.samples[1].at) >= longLook {
		e.samples = e.samples[1:]
	}
	e.samples = append(e.samples, x)
}

// rate is that of the last time d, in bytes per second.
func (e *estimator) rateOf(now time.Time, d time.Duration) float64 {
	n := len(e.samples)
	if n == 0 {
		return 0
	}
	from := e.samples[0]
	for _, x := range e.samples {
		if now.Sub(x.at) < d {
			break
		}
		from = x
	}
	last := e.samples[n-1]
	if t := last.at.Sub(from.at); t > 0 {
		return float64(last.bytes-from.bytes) / t.Seconds()
	}
	return 0
}

// recent is the rate of late, in bytes per second; 0: not known.
func (e *estimator) recent(now time.Time) float64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rateOf(now, shortLook)
}

// ends returns when so many further bytes will have come; nil when nobody knows.
func (e *estimator) ends(now time.Time, left int64) *snapferry.Span {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.samples) == 0 || now.Sub(e.first.at) < warmUp {
		return nil
	}
	last := e.samples[len(e.samples)-1]
	// Something began to come between the first two.
	all := float64(last.bytes-e.first.bytes) / max(last.at.Sub(e.first.at).Seconds(), 1)
	short, long := e.rateOf(now, shortLook), e.rateOf(now, longLook)
	slow, fast := min(short, long, max(all, long/2)), max(short, long)
	if slow <= 0 {
		return nil
	}
	after := func(rate, factor float64) time.Time {
		return now.Add(time.Duration(factor * float64(left) / rate * float64(time.Second)))
	}
	return &snapferry.Span{Earliest: after(fast, 1-widen), Latest: after(slow, 1+widen).Add(commit)}
}
