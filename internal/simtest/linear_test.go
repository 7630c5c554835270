package simtest

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

var (
	linearHistories = flag.Int("histories", 8, "histories of TestLinearizable")
	linearFirst     = flag.Uint64("history", 1, "seed of the first history of TestLinearizable")
)

// linearLimit is how long the check of a history may take, and then that of each
// family in it; what is not decided by then counts as passed, and is told.
const linearLimit = 5 * time.Second

// TestLinearizable has clients make, copy, look at, restore, cancel and delete
// snapshots of two regions at once, some of them under faults, and wants an order
// of what they did, within the times in which they did it, in which every answer
// is the right one: see spec. A history that has none is written as a page that
// shows it. Its clients do the same again with
//
//	go test ./internal/simtest -run TestLinearizable -history N -histories 1 -count 50
//
// but not at the same moments.
func TestLinearizable(t *testing.T) {
	f := NewFactory(t)
	fast := flag.Lookup("test.failfast").Value.String() == "true"
	var failed atomic.Bool
	var undecided atomic.Int64
	var mu sync.Mutex
	tally := map[string]int{} // of operations, by what they did and how that ended; guarded by mu
	t.Run("histories", func(t *testing.T) {
		for i := range *linearHistories {
			seed := *linearFirst + uint64(i)
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				if fast && failed.Load() {
					t.Skip("another one has failed")
				}
				t.Cleanup(func() { failed.Store(failed.Load() || t.Failed()) })
				h := newHistory(t, f, seed)
				h.run()
				mu.Lock()
				h.count(tally)
				mu.Unlock()
				switch v := h.check(linearLimit); v.result {
				case porcupine.Illegal:
					t.Errorf("seed %d: no order of its %d operations explains their answers: see %s\n%s\nagain: go test ./internal/simtest -run TestLinearizable -history %d -histories 1 -count 50",
						seed, len(v.ops), visualize(t, seed, v), v.stuck(), seed)
				case porcupine.Unknown:
					undecided.Add(1)
					t.Logf("seed %d: not decided within %v: %d operations", seed, linearLimit, len(h.ops))
				}
			})
		}
	})
	t.Logf("%d histories, %d not decided, of: %v", *linearHistories, undecided.Load(), tally)
}

// visualize writes a history as a page, which stays, and returns its path.
func visualize(t *testing.T, seed uint64, v verdict) string {
	t.Helper()
	f, err := os.CreateTemp("", fmt.Sprintf("snapferry-history-%d-*.html", seed))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := porcupine.Visualize(v.model, v.info, f); err != nil {
		t.Error(err)
	}
	return f.Name()
}
