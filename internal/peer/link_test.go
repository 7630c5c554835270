package peer_test

import (
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/linktest"
)

// TestBrokenLink breaks all connections of a copy again and again, also in the
// middle of frames. The copy goes on in the same run: every block comes once.
func TestBrokenLink(t *testing.T) {
	const size = 24 << 20
	p := pair(t, &linktest.Shape{Rate: 64 << 20, RoundTrip: 5 * time.Millisecond})
	s := p.imported(t, "disk", random(size))
	ctx := t.Context()
	c, err := p.west.Control.Copy(ctx, p.inWest, control.CopyRequest{From: "east", Source: s.ID, Full: true})
	if err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		next := int64(1 << 20)
		for breaks := 0; breaks < 4; {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			if _, back := p.link.Passed(); back >= next {
				p.link.Break()
				breaks++
				next = back + 5<<20 + 12_345
			}
		}
	}()
	for err == nil && !c.State.Settled() {
		c, err = p.west.Control.Wait(ctx, p.inWest, c.ID, -1, time.Minute)
	}
	close(stop)
	<-ended
	if err != nil || c.State != snapferry.SnapshotReady || c.Digest != s.Digest {
		t.Fatalf("copy: %v, %s (%s)", err, c.State, c.Reason)
	}
	if c.Counts.Moved != size || c.Counts.Repeated != 0 {
		t.Errorf("%d bytes moved, %d plain ones again, want %d and none", c.Counts.Moved, c.Counts.Repeated, size)
	}
}
