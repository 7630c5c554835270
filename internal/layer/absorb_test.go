package layer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// stack fills two layers, the upper one so that it covers data, zeros and
// nothing of the lower, and both so that they end in the middle of steps.
func stack(t testing.TB, lower, upper *layer.Layer) {
	for i, l := range []*layer.Layer{lower, upper} {
		mustWrite(t, l, int64(2*i), filled(byte(1+i), 4))
		mustWrite(t, l, stripePages-3, filled(byte(3+i), 3+2*i))
		if err := l.Zero(int64(10+2*i), 4); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, lower, 13, filled(5, 5))
	mustWrite(t, upper, 1000, filled(6, 260)) // more than a step
	if err := upper.Zero(stripePages-2, 1); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*layer.Layer{lower, upper} {
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
	}
}

// merged is what absorbing leaves: each run with the byte it is of.
var merged = map[run]byte{
	{0, 2, layer.Data}:               1,
	{2, 4, layer.Data}:               2,
	{10, 6, layer.Zero}:              0,
	{16, 2, layer.Data}:              5,
	{1000, 260, layer.Data}:          6,
	{stripePages - 3, 1, layer.Data}: 4,
	{stripePages - 2, 1, layer.Zero}: 0,
	{stripePages - 1, 3, layer.Data}: 4,
}

func checkMerged(t testing.TB, l *layer.Layer) {
	t.Helper()
	got := map[run]bool{}
	for page := int64(0); ; {
		first, n, s, ok := l.NextSet(page)
		if !ok {
			break
		}
		for cut := first; cut < first+n; { // runs of one state but different bytes
			k := first + n - cut
			for want := range merged {
				if want.First == cut {
					k = min(k, want.N)
				}
			}
			got[run{cut, k, s}] = true
			cut += k
		}
		page = first + n
	}
	want := map[run]bool{}
	for r, b := range merged {
		want[r] = true
		if r.State == layer.Data && got[r] {
			mustRead(t, l, r.First, filled(b, int(r.N)))
		}
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("merged (-got +want):\n%s", diff)
	}
}

func TestAbsorb(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys layer.FS) {
		lower, upper := create(t, fsys, "l", volume), create(t, fsys, "u", volume)
		stack(t, lower, upper)
		before := runs(upper)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := lower.Absorb(ctx, upper); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: got %v", err)
		}
		for range 2 {
			if err := lower.Absorb(t.Context(), upper); err != nil {
				t.Fatal(err)
			}
			checkMerged(t, lower)
		}
		if lower.Dirty() {
			t.Error("dirty after Absorb")
		}
		if diff := cmp.Diff(runs(upper), before); diff != "" {
			t.Errorf("upper (-got +want):\n%s", diff)
		}
		lower.Close()
		checkMerged(t, mustOpen(t, fsys, volume))
	})
}

// TestAbsorbCrash lets the power go, or an operation fail, at each step of an
// Absorb: the two layers together read as before, and it can be done again.
func TestAbsorbCrash(t *testing.T) {
	faults := []layertest.Fault{{}, {Err: syscall.EIO}, {Err: syscall.EIO, How: layertest.Half}, {Err: syscall.ENOSPC, How: layertest.All}}
	for i, fault := range faults {
		for step, more := 0, true; more; step++ {
			t.Run(fmt.Sprint(i, "/", step), func(t *testing.T) {
				seed := rand.Uint64()
				t.Log("seed", seed)
				fsys := layertest.New(t)
				lower, upper := create(t, fsys, "l", volume), create(t, fsys, "u", volume)
				stack(t, lower, upper)
				first, next := fsys.Ops(), fsys
				fsys.Inject(func(op layertest.Op) layertest.Fault {
					if op.N != first+step {
						return layertest.Fault{}
					}
					if fault.Err == nil {
						next = fsys.Cut(seed)
					}
					return fault
				})
				err := lower.Absorb(t.Context(), upper)
				more = fsys.Ops() > first+step
				if next == fsys {
					next = fsys.Cut(seed)
				}
				lower.Close()
				upper.Close()
				lower = mustOpen(t, next, volume)
				if err != nil {
					checkUpper(t, next, lower)
				}
				checkMerged(t, lower)
			})
			if step > 100 {
				t.Fatal("the steps do not end")
			}
		}
	}
}

// checkUpper absorbs again what is still there.
func checkUpper(t *testing.T, fsys layer.FS, lower *layer.Layer) {
	upper, err := layer.Open(fsys, "u", volume, keysOf(fsys))
	if err != nil {
		t.Fatal(err)
	}
	defer upper.Close()
	mustRead(t, upper, 1000, filled(6, 260))
	if s := lower.Lookup(1); s != layer.Data {
		t.Errorf("page 1, which upper does not have: got %v", s)
	}
	mustRead(t, lower, 0, filled(1, 2))
	if err := lower.Absorb(t.Context(), upper); err != nil {
		t.Fatal(err)
	}
}
