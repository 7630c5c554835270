package transfer

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// tries is how often a source is asked for the same thing while nothing comes.
	tries = 5
	// firstPause is the time between the first two tries; it doubles each time, to
	// maxPause.
	firstPause = 100 * time.Millisecond
	maxPause   = 2 * time.Second
)

// persist calls fn until it succeeds, fails for good, or has failed with
// Unavailable tries times in a row and nothing came: after 1.5 s of pauses, or a
// little less. fn says whether something has come since the try before, of its
// piece or of others: then the source is there, and it begins to count, and to
// wait, anew. Only fn's piece of the work waits.
func persist(ctx context.Context, fn func() (came bool, err error)) error {
	pause := firstPause
	for left := tries; ; {
		came, err := fn()
		if err == nil || ctx.Err() != nil || !snapferry.IsKind(err, snapferry.Unavailable) {
			return err
		}
		if came {
			left, pause = tries, firstPause
		}
		if left--; left == 0 {
			return err
		}
		// Pieces that were cut together do not come back together.
		t := time.NewTimer(pause - rand.N(pause/4))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, maxPause)
	}
}

// silence ends what it watches when nothing comes for a time: see hold.
type silence struct {
	timer *time.Timer
	after time.Duration
}

// watch returns a context that ends, as Unavailable, when nothing comes for a
// time, and what is told when something came. stop ends the watch.
func watch(ctx context.Context, after time.Duration) (_ context.Context, s *silence, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(after, func() {
		cancel(snapferry.Errorf(snapferry.Unavailable, "the source sent nothing for %s", after))
	})
	return ctx, &silence{timer: t, after: after}, func() { t.Stop(); cancel(nil) }
}

// hold notes that something came, and that what fn waits for is no silence.
func (s *silence) hold(fn func() error) error {
	s.timer.Stop()
	err := fn()
	s.timer.Reset(s.after)
	return err
}

// why prefers the reason for which a context ended to what that did to others.
func why(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
