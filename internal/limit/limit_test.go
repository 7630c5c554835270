package limit

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
)

// near wants a time within a tenth of what it should be.
func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if diff := (got - want).Abs(); diff > want/10+2*burst {
		t.Errorf("%s: took %v, want about %v", what, got, want)
	}
}

// pass lets n bytes pass in pieces and returns how long that took.
func pass(t *testing.T, w interface {
	Wait(context.Context, int) error
}, n, piece int,
) time.Duration {
	t.Helper()
	began := time.Now()
	for ; n > 0; n -= piece {
		if err := w.Wait(t.Context(), min(piece, n)); err != nil {
			t.Error(err)
		}
	}
	return time.Since(began)
}

func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBucket(1 << 20)
		near(t, "one", pass(t, b, 10<<20, 64<<10), 10*time.Second)
		near(t, "large pieces", pass(t, b, 10<<20, 3<<20), 10*time.Second)
		near(t, "a chain", pass(t, Chain{NewBucket(0), b, NewBucket(4 << 20)}, 10<<20, 64<<10), 10*time.Second)

		// All that use it share the rate, and none is left behind.
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { near(t, "one of 20", pass(t, b, 1<<20, 64<<10), 20*time.Second) })
		}
		all.Wait()

		b.Set(0)
		near(t, "no limit", pass(t, b, 100<<20, 64<<10), 0)
		b.Set(minRate)
		near(t, "a low rate", pass(t, b, 128<<10, 64<<10), 64*time.Second)
	})
}

// TestChange changes the rate of a bucket that some wait for.
func TestChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBucket(minRate)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { near(t, "after the change", pass(t, b, 1<<20, 64<<10), 5*time.Second) })
		}
		time.Sleep(time.Second)
		b.Set(1 << 20)
		if got := b.Rate(); got != 1<<20 {
			t.Errorf("got rate %d, want %d", got, 1<<20)
		}
		all.Wait()
	})
}

// TestEnd ends the context of one that waits: what it had asked for is there for
// the others.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBucket(1 << 20)
		pass(t, b, 1<<20, 64<<10)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		ended := make(chan error)
		b.Set(64 << 10)
		go func() { ended <- b.Wait(ctx, 1<<20) }()
		synctest.Wait()
		cancel(why)
		if err := <-ended; !errors.Is(err, why) {
			t.Errorf("got %v, want %v", err, why)
		}
		near(t, "after another gave up", pass(t, b, 256<<10, 64<<10), 4*time.Second)
	})
}

func clock(s string) Clock {
	c, err := ParseClock(s)
	if err != nil {
		panic(err)
	}
	return c
}

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", "2026-05-04 "+s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestPlan(t *testing.T) {
	p := Plan{Rate: 1 << 20, Windows: []Window{{clock("22:00"), clock("06:00"), 0}, {clock("12:00"), clock("13:30"), 1 << 10}}}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		now, until string
		rate       int64
	}{
		{"00:00:00", "06:00:00", 0},
		{"05:59:59", "06:00:00", 0},
		{"06:00:00", "12:00:00", 1 << 20},
		{"12:00:00", "13:30:00", 1 << 10},
		{"13:29:30", "13:30:00", 1 << 10},
		{"13:30:00", "22:00:00", 1 << 20},
	} {
		if r, until := p.At(at(tt.now)); r != tt.rate || !until.Equal(at(tt.until)) {
			t.Errorf("%s: got %d until %v, want %d until %s", tt.now, r, until, tt.rate, tt.until)
		}
	}
	if r, until := p.At(at("22:00:00")); r != 0 || until.Sub(at("22:00:00")) != 8*time.Hour {
		t.Errorf("at night: got %d until %v", r, until)
	}
	if got, want := p.Bytes(at("11:00:00"), at("14:30:00")), int64(2*3600<<20+5400<<10); got != want {
		t.Errorf("bytes of the day: got %d, want %d", got, want)
	}
	if got := p.Bytes(at("21:00:00"), at("23:00:00")); got != Unlimited {
		t.Errorf("bytes of the night: got %d, want no limit", got)
	}
	if got := p.End(at("11:00:00"), 3600<<20+5400<<10+60<<20); !got.Equal(at("13:31:00")) {
		t.Errorf("the end: got %v, want 13:31", got)
	}
	if got := p.End(at("21:00:00"), 1<<50); !got.Equal(at("22:00:00")) {
		t.Errorf("the end at night: got %v, want 22:00", got)
	}
	if got := (Plan{}).End(at("21:00:00"), 1<<50); !got.Equal(at("21:00:00")) {
		t.Errorf("without limits: got %v, want at once", got)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var back Plan
	if err := json.Unmarshal(text, &back); err != nil || !cmp.Equal(back, p) {
		t.Errorf("%s: got %v, %v", text, back, err)
	}
}

func TestBadPlans(t *testing.T) {
	w := func(from, to string, rate int64) Window { return Window{clock(from), clock(to), rate} }
	for name, p := range map[string]Plan{
		"less than 0": {Rate: -1},
		"too low":     {Rate: 1},
		"too high":    {Rate: MaxRate + 1},
		"empty":       {Windows: []Window{w("10:00", "10:00", 0)}},
		"overlap":     {Windows: []Window{w("10:00", "12:00", 0), w("11:59", "13:00", 0)}},
		"at night":    {Windows: []Window{w("22:00", "06:00", 0), w("05:00", "07:00", 0)}},
		"window":      {Windows: []Window{w("10:00", "12:00", -5)}},
		"too many":    {Windows: make([]Window, maxWindows+1)},
	} {
		if err := p.Check(); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	for _, s := range []string{"", "24:00", "1:60", "noon", "10:00:00", "-1:00"} {
		if _, err := ParseClock(s); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("time of day %q: got %v, want Invalid", s, err)
		}
	}
}
