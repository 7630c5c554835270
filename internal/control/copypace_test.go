package control

import (
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapferry/snapferry"
)

// TestShares divides a link between copies.
func TestShares(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration, id snapferry.CopyID, bytes int64) need { return need{id, now.Add(d), bytes} }
	for _, tt := range []struct {
		name  string
		needs []need
		of    map[snapferry.CopyID]int64
		rest  int64
	}{
		{"nobody", nil, map[snapferry.CopyID]int64{}, 1000},
		{"one", []need{in(100*time.Second, "a", 50_000)}, map[snapferry.CopyID]int64{"a": 1000}, 450},
		{"the earliest first", []need{in(200*time.Second, "b", 100_000), in(100*time.Second, "a", 40_000)}, map[snapferry.CopyID]int64{"a": 1000, "b": 560}, 50},
		{"too much", []need{in(10*time.Second, "a", 50_000), in(20*time.Second, "b", 1)}, map[snapferry.CopyID]int64{"a": 1000, "b": 50}, 50},
		{"too late", []need{in(-time.Second, "a", 1)}, map[snapferry.CopyID]int64{"a": 1000}, 50},
	} {
		of, rest := shares(1000, tt.needs, now)
		if !maps.Equal(of, tt.of) || rest != tt.rest {
			t.Errorf("%s: got %v and %d, want %v and %d", tt.name, of, rest, tt.of, tt.rest)
		}
	}
}

// TestEnds says when something will end that goes on evenly, or in bursts as
// streams do, or becomes slower: from a tenth on, the end is in the span, and with
// even rates the span is within a fifth of what is left.
func TestEnds(t *testing.T) {
	const total = 3 << 30
	for _, tt := range []struct {
		name  string
		rate  func(at time.Duration) int64 // bytes per second
		even  bool
		tenth float64 // from which part on the end is in the span
	}{
		{"even", func(time.Duration) int64 { return 20 << 20 }, true, 0.1},
		{"slow", func(time.Duration) int64 { return 1 << 20 }, true, 0.1},
		{"bursts", func(at time.Duration) int64 { return []int64{40 << 20, 0, 20 << 20, 20 << 20}[int(at/time.Second)%4] }, false, 0.1},
		{"slower", func(at time.Duration) int64 {
			if at > 30*time.Second {
				return 5 << 20
			}
			return 20 << 20
		}, false, 0.5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, moved := time.Now(), int64(0)
				var e estimator
				type said struct {
					at    time.Time
					moved int64
					span  *snapferry.Span
				}
				var all []said
				for moved < total {
					e.add(time.Now(), moved)
					all = append(all, said{time.Now(), moved, e.ends(time.Now(), total-moved)})
					time.Sleep(time.Second)
					moved += tt.rate(time.Since(began))
				}
				end := time.Now()
				if all[0].span != nil {
					t.Errorf("at the beginning: got %v, want that nobody knows", all[0].span)
				}
				for _, x := range all {
					if float64(x.moved) < tt.tenth*total {
						continue
					}
					if x.span == nil {
						t.Fatalf("after %d bytes nobody knows the end", x.moved)
					}
					if end.Before(x.span.Earliest.Add(-2*time.Second)) || end.After(x.span.Latest.Add(2*time.Second)) {
						t.Fatalf("after %v and %d bytes: got %v to %v, it ended after %v", x.at.Sub(began), x.moved, x.span.Earliest.Sub(began), x.span.Latest.Sub(began), end.Sub(began))
					}
					left := end.Sub(x.at).Seconds()
					if width := x.span.Latest.Sub(x.span.Earliest).Seconds(); tt.even && width > 0.2*left+2*commit.Seconds() {
						t.Fatalf("after %d bytes: the span is %.1f s wide with %.1f s left", x.moved, width, left)
					}
				}
			})
		})
	}
}

// TestStall lets a pulse stop.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse()
		p.beat()
		since := time.Now()
		time.Sleep(stallAfter - time.Second)
		if s := p.stalled("east", time.Now()); s != nil {
			t.Errorf("got %v, want that it lives", s)
		}
		time.Sleep(time.Second)
		for _, tt := range []struct {
			asking, held int32
			cause        string
		}{
			{0, 0, "what has come is not stored yet: the bucket is slow, or away"},
			{1, 0, "region east sends nothing"},
			{1, 1, "the limits let nothing pass"},
		} {
			p.asking.Store(tt.asking)
			p.held.Store(tt.held)
			if s := p.stalled("east", time.Now()); s == nil || s.Cause != tt.cause || !s.Since.Equal(since) {
				t.Errorf("got %+v, want it stalled since %v: %s", s, since, tt.cause)
			}
		}
		p.beat()
		if s := p.stalled("east", time.Now()); s != nil {
			t.Errorf("got %v, want that it lives again", s)
		}
	})
}

// TestMega keeps the text of promises readable.
func TestMega(t *testing.T) {
	if got, want := fmt.Sprint(mega(3<<19)), "1.5 MiB"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
