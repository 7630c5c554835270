// Package limit holds what may cross between regions to so many bytes a second:
// token buckets that any number of connections share and that may change while
// they are in use, and plans by the time of day that say how fast they fill.
package limit

import (
	"context"
	"sync"
	"time"
)

// burst is how much may pass at once after a pause, as time at the bucket's rate.
const burst = 100 * time.Millisecond

// A Bucket lets so many bytes a second pass, for all that use it together. Those
// that wait pass in the order in which they came. It is safe for concurrent use.
//
// It is not x/time/rate, whose reservations keep the times they were given when the
// rate changes: with a low rate that is too long.
type Bucket struct {
	turn chan struct{} // has an element while somebody waits for bytes

	mu      sync.Mutex
	rate    float64 // bytes per second; 0: no limit
	bytes   float64 // that may pass; less than 0 when more did
	at      time.Time
	changed chan struct{} // closed by Set
}

// NewBucket returns a bucket of a rate in bytes per second; 0 is no limit.
func NewBucket(bytes int64) *Bucket {
	return &Bucket{turn: make(chan struct{}, 1), rate: float64(max(bytes, 0)), at: time.Now(), changed: make(chan struct{})}
}

// Set changes the rate, in bytes per second, also for those that wait already; 0
// is no limit.
func (b *Bucket) Set(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := float64(max(bytes, 0))
	if r == b.rate {
		return
	}
	b.fill()
	if b.rate == 0 {
		b.bytes = 0
	}
	b.rate = r
	close(b.changed)
	b.changed = make(chan struct{})
}

// Rate returns the rate in bytes per second; 0 is no limit.
func (b *Bucket) Rate() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(b.rate)
}

// fill adds what has become free since the last time.
func (b *Bucket) fill() {
	now := time.Now()
	b.bytes = min(b.bytes+b.rate*now.Sub(b.at).Seconds(), b.rate*burst.Seconds())
	b.at = now
}

// take lets n bytes pass, or says how long to wait before asking again.
func (b *Bucket) take(n int) (wait time.Duration, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate == 0 {
		return 0, nil
	}
	if b.fill(); b.bytes >= 0 {
		b.bytes -= float64(n) // the next one pays for what it had not
		return 0, nil
	}
	return time.Duration(-b.bytes/b.rate*float64(time.Second)) + 1, b.changed
}

// Wait returns when n bytes may pass, or when ctx ends, with its cause.
func (b *Bucket) Wait(ctx context.Context, n int) error {
	if n <= 0 {
		return nil
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		wait, changed := b.take(n)
		if wait == 0 {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// A Chain is buckets that bytes pass one after the other: that of a copy, of its
// account, of the link.
type Chain []*Bucket

// Wait returns when n bytes may pass all buckets, or when ctx ends, with its cause.
func (c Chain) Wait(ctx context.Context, n int) error {
	for _, b := range c {
		if err := b.Wait(ctx, n); err != nil {
			return err
		}
	}
	return nil
}
