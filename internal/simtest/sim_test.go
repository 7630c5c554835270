package simtest_test

import (
	"flag"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/snapferry/snapferry/internal/simtest"
)

var (
	seeds     = flag.Int("seeds", 24, "worlds of TestSimulation and TestEncryptedSimulation")
	firstSeed = flag.Uint64("seed", 1, "seed of the first world of TestSimulation and TestEncryptedSimulation")
)

// TestSimulation lets worlds live: see simtest.World. One that fails says what was
// done in it, and is lived again with
//
//	go test ./internal/simtest -run TestSimulation -seed N -seeds 1 -count 20
//
// The same is done in it every time; but goroutines that run at the same virtual
// moment take turns as they like, so that a fault which depends on that may want
// several runs, some of them with -cpu 1 and on a busy machine.
func TestSimulation(t *testing.T) { live(t, false) }

// TestEncryptedSimulation is TestSimulation for worlds in which content is encrypted
// under several keys, which are rotated and disabled meanwhile.
func TestEncryptedSimulation(t *testing.T) { live(t, true) }

func live(t *testing.T, keys bool) {
	f := simtest.NewFactory(t)
	fast := flag.Lookup("test.failfast").Value.String() == "true"
	var failed atomic.Bool
	for i := range *seeds {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			if fast && failed.Load() {
				t.Skip("another one has failed")
			}
			synctest.Test(t, func(t *testing.T) {
				t.Cleanup(func() { failed.Store(failed.Load() || t.Failed()) })
				w := simtest.NewWorld(t, f, seed, keys)
				w.Run()
				t.Log(w.Summary())
			})
		})
	}
}
