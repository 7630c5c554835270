package transfer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// TestMemory compares the budgets of runs with a model: nobody waits who must not,
// nobody gets what is not there, and what all gave back is there again.
func TestMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(0, 64<<20).Draw(t, "limit")
		m := NewMemory(max(limit, 1))
		type one struct {
			*budget
			asks []int64
		}
		var runs []*one
		var lent []int64
		beyond := func() (n int64) {
			for _, r := range runs {
				var used int64
				for _, a := range r.asks {
					used += a
				}
				n += max(used-leastMemory, 0)
			}
			for _, x := range lent {
				n += x
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"join": func(*rapid.T) { runs = append(runs, &one{budget: m.join()}) },
			"leave": func(t *rapid.T) {
				if len(runs) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(runs)-1).Draw(t, "run")
				runs[i].leave()
				runs = append(runs[:i], runs[i+1:]...)
			},
			"ask": func(t *rapid.T) {
				if len(runs) == 0 {
					t.Skip()
				}
				r := runs[rapid.IntRange(0, len(runs)-1).Draw(t, "run")]
				n := rapid.Int64Range(1, 6<<20).Draw(t, "bytes")
				first, before := len(r.asks) == 0, beyond()
				r.asks = append(r.asks, n)
				after := beyond()
				want := first || after == before || after <= max(m.limit-int64(len(runs))*leastMemory, 0)
				if got := r.tryAsk(n); got != want {
					t.Fatalf("a request for %d bytes: got %v, want %v", n, got, want)
				}
				if !want {
					r.asks = r.asks[:len(r.asks)-1]
				}
			},
			"done": func(t *rapid.T) {
				for _, r := range runs {
					if k := len(r.asks) - 1; k >= 0 {
						r.done(r.asks[k], nil)
						r.asks = r.asks[:k]
						return
					}
				}
				t.Skip()
			},
			"lend": func(t *rapid.T) {
				n := rapid.Int64Range(1, 5<<20).Draw(t, "bytes")
				want := beyond()+n <= max(m.limit-int64(len(runs))*leastMemory, 0)
				if got := m.Lend(n); got != want {
					t.Fatalf("%d bytes lent: got %v, want %v", n, got, want)
				}
				if want {
					lent = append(lent, n)
				}
			},
			"return": func(t *rapid.T) {
				if len(lent) == 0 {
					t.Skip()
				}
				m.Return(lent[0])
				lent = lent[1:]
			},
			"": func(t *rapid.T) {
				if got, want := m.beyond, beyond(); got != want {
					t.Fatalf("the budget has %d bytes lent beyond the least, want %d", got, want)
				}
			},
		})
	})
}

// TestMemoryPoorFirst lets one that has less than its share come before one that has
// more and waited longer.
func TestMemoryPoorFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(40 << 20)
		rich, poor := m.join(), m.join()
		if !rich.tryAsk(30 << 20) {
			t.Fatal("the first request has to wait")
		}
		if !poor.tryAsk(leastMemory) {
			t.Fatal("the least memory of another is not there")
		}
		var order []string
		wait := func(b *budget, name string, n int64) {
			go func() {
				if err := b.ask(t.Context(), n); err != nil {
					t.Error(err)
				}
				m.mu.Lock()
				order = append(order, name)
				m.mu.Unlock()
			}()
			synctest.Wait()
		}
		rich.asks++ // it has another, so that it must wait
		wait(rich, "rich", 12<<20)
		wait(poor, "poor", 12<<20)
		rich.give(10 << 20) // there is room for one of them
		synctest.Wait()
		if len(order) != 1 || order[0] != "poor" {
			t.Errorf("got %v, want the poor one alone", order)
		}
		poor.done(12<<20, nil)
		synctest.Wait()
		if len(order) != 2 {
			t.Errorf("got %v, want both", order)
		}
	})
}

// TestMemoryCancel ends a wait with its context, and what waited does not keep others.
func TestMemoryCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(24 << 20)
		a, b := m.join(), m.join()
		if !a.tryAsk(4<<20) || !a.tryAsk(10<<20) || !b.tryAsk(leastMemory) {
			t.Fatal("what is there is refused")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("ended")
		got := make(chan error, 1)
		go func() { got <- b.ask(ctx, 6<<20) }()
		synctest.Wait()
		if m.poor != 1 {
			t.Fatalf("%d wait, want 1", m.poor)
		}
		cancel(why)
		if err := <-got; !errors.Is(err, why) {
			t.Errorf("got %v, want %v", err, why)
		}
		if m.poor != 0 || b.asks != 1 || b.used != leastMemory {
			t.Errorf("after the end %d wait, and it has %d bytes of %d requests", m.poor, b.used, b.asks)
		}
		a.leave()
		b.leave()
		if m.beyond != 0 || m.runs != 0 {
			t.Errorf("after all have left: %d bytes, %d runs", m.beyond, m.runs)
		}
	})
}

// TestMemoryChunks takes back the chunks of a run that ends with some.
func TestMemoryChunks(t *testing.T) {
	m := NewMemory(0)
	a, b := m.join(), m.join()
	seen := map[*byte]bool{}
	for range 20 {
		p, err := a.chunk()
		if err != nil {
			t.Fatal(err)
		}
		seen[&p[:1][0]] = true
	}
	a.leave()
	for range 20 {
		p, err := b.chunk()
		if err != nil {
			t.Fatal(err)
		}
		if !seen[&p[:1][0]] {
			t.Error("a chunk is new while others are idle")
		}
	}
	b.leave()
	if m.mapped != nil {
		t.Error("memory is kept when nobody runs")
	}
}
