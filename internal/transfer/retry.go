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
	// firstPause is the time between the first two tries; it doubles each time.
	firstPause = 100 * time.Millisecond
)

// persist calls fn until it succeeds, fails for good, or has failed with
// Unavailable tries times in a row without any progress: 1.5 s of pauses, or a
// little less. What it waits for passes elsewhere meanwhile: only fn's piece of
// the work waits.
func persist(ctx context.Context, fn func() (progress bool, err error)) error {
	pause := firstPause
	for left := tries; ; {
		progress, err := fn()
		if err == nil || ctx.Err() != nil || !snapferry.IsKind(err, snapferry.Unavailable) {
			return err
		}
		if progress {
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
		pause *= 2
	}
}

// silence ends what it watches when nothing comes for a time: see beat.
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

func (s *silence) beat() { s.timer.Reset(s.after) }

// why prefers the reason for which a context ended to what that did to others.
func why(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
