package nbd

import (
	"context"
	"sync"
	"time"
)

// grace does something some time after a context has ended, unless it is ended
// before.
type grace struct {
	quit chan struct{}
	done sync.WaitGroup
}

func newGrace(ctx context.Context, after time.Duration, f func()) *grace {
	g := &grace{quit: make(chan struct{})}
	g.done.Go(func() {
		select {
		case <-ctx.Done():
		case <-g.quit:
			return
		}
		t := time.NewTimer(after)
		defer t.Stop()
		select {
		case <-t.C:
			f()
		case <-g.quit:
		}
	})
	return g
}

func (g *grace) end() {
	close(g.quit)
	g.done.Wait()
}
