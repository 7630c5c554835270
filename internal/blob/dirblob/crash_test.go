//go:build unix

package dirblob

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
)

// started returns a driver over a file system that was just mounted.
func started(t *testing.T, s *crashFS) *Driver {
	t.Helper()
	d := newDriver(s, "crash", 2)
	if err := d.start(t.Context()); err != nil {
		t.Fatalf("start: %v", err)
	}
	return d
}

// keeps are the choices of what survives a loss of power though not synced.
func keeps() map[string]func() bool {
	all := map[string]func() bool{
		"nothing": func() bool { return false },
		"all":     func() bool { return true },
	}
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 0))
		all[fmt.Sprint("random ", seed)] = func() bool { return r.IntN(2) == 0 }
	}
	return all
}

// content returns an object's bytes, and whether it is there.
func content(t *testing.T, d *Driver, name string) ([]byte, bool) {
	t.Helper()
	p, err := blob.New(d).Get(t.Context(), name, blob.MaxBody)
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		t.Fatalf("get %s: %v", name, err)
	}
	return p, err == nil
}

// wantWhole fails the test if an object is there by half, or absent though it
// must be there, or there though it must not.
func wantWhole(t *testing.T, d *Driver, name string, body []byte, must, mustNot bool) {
	t.Helper()
	got, there := content(t, d, name)
	if there && !bytes.Equal(got, body) {
		t.Errorf("%s is there by half: got %d bytes, want %d", name, len(got), len(body))
	}
	if must && !there {
		t.Errorf("%s is lost", name)
	}
	if mustNot && there {
		t.Errorf("%s is back", name)
	}
	listed := false
	if err := d.List(t.Context(), name, "", func(i blob.Info) error { listed = listed || i.Name == name; return nil }); err != nil {
		t.Error(err)
	}
	if listed != there {
		t.Errorf("%s: got listed %v, want %v", name, listed, there)
	}
}

func wantNoTemps(t *testing.T, s *crashFS) {
	t.Helper()
	entries, err := s.ReadDir(tempDir)
	if err != nil || len(entries) > 0 {
		t.Errorf("temporary files: got %v, %v, want none", entries, err)
	}
}

// everyStep calls test with a file system that holds the object "objects/old1",
// made to fail at each step of what test does, until no step is left.
func everyStep(t *testing.T, cut bool, test func(t *testing.T, s *crashFS, d *Driver)) {
	for how := before; how <= after; how++ {
		for k, more := 0, true; more; k++ {
			t.Run(fmt.Sprintf("%d/%d", how, k), func(t *testing.T) {
				s := newCrashFS()
				d := started(t, s)
				if err := d.Put(t.Context(), "objects/old1", oldBody()); err != nil {
					t.Fatal(err)
				}
				s.failIn(k, how, cut)
				test(t, s, d)
				more = s.fired
				if t.Failed() {
					t.Log("steps:", s.log)
				}
			})
			if k > 100 {
				t.Fatal("the steps do not end")
			}
		}
	}
}

func oldBody() []byte { return blobtest.Bytes(1, 100) }

func TestPowerCutInPut(t *testing.T) {
	body := blobtest.Bytes(2, 1000)
	for _, name := range []string{"objects/old2", "objects/new", "chain/1/key.1"} {
		everyStep(t, true, func(t *testing.T, s *crashFS, d *Driver) {
			err := d.Put(t.Context(), name, body)
			for which, keep := range keeps() {
				s2 := s.reboot(keep)
				d2 := started(t, s2)
				wantNoTemps(t, s2)
				wantWhole(t, d2, "objects/old1", oldBody(), true, false)
				wantWhole(t, d2, name, body, err == nil, false)
				if err := d2.Put(t.Context(), name, body); err != nil && !snapferry.IsKind(err, snapferry.Exists) {
					t.Errorf("put again: %v", err)
				}
				d3 := started(t, s2.reboot(func() bool { return false }))
				wantWhole(t, d3, name, body, true, false)
				if t.Failed() {
					t.Fatalf("after a cut that left %s; put said %v", which, err)
				}
			}
		})
	}
}

func TestFailedStepInPut(t *testing.T) {
	body := blobtest.Bytes(2, 1000)
	everyStep(t, false, func(t *testing.T, s *crashFS, d *Driver) {
		const name = "chain/1/key.1"
		err := d.Put(t.Context(), name, body)
		s.failAt = -1
		wantWhole(t, d, name, body, err == nil, false)
		if err != nil && !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("put: got %v, want an error of kind %s", err, snapferry.Unavailable)
		}
		again := d.Put(t.Context(), name, body)
		if again != nil && !snapferry.IsKind(again, snapferry.Exists) {
			t.Errorf("put again: %v", again)
		}
		wantNoTemps(t, s)
		wantWhole(t, started(t, s.reboot(func() bool { return false })), name, body, true, false)
	})
}

func TestPowerCutInDelete(t *testing.T) {
	everyStep(t, true, func(t *testing.T, s *crashFS, d *Driver) {
		err := d.Delete(t.Context(), "objects/old1")
		for which, keep := range keeps() {
			d2 := started(t, s.reboot(keep))
			wantWhole(t, d2, "objects/old1", oldBody(), false, err == nil)
			if t.Failed() {
				t.Fatalf("after a cut that left %s; delete said %v", which, err)
			}
		}
	})
}

func TestFailedStepInDelete(t *testing.T) {
	everyStep(t, false, func(t *testing.T, s *crashFS, d *Driver) {
		err := d.Delete(t.Context(), "objects/old1")
		s.failAt = -1
		wantWhole(t, d, "objects/old1", oldBody(), false, err == nil)
		if err := d.Delete(t.Context(), "objects/old1"); err != nil {
			t.Errorf("delete again: %v", err)
		}
		wantWhole(t, started(t, s.reboot(func() bool { return false })), "objects/old1", nil, false, true)
		if err := d.Put(t.Context(), "objects/old1", oldBody()); err != nil {
			t.Errorf("put what was deleted: %v", err)
		}
		wantWhole(t, started(t, s.reboot(func() bool { return false })), "objects/old1", oldBody(), true, false)
	})
}

// TestKill proves that what can be seen after a start is durable, though the
// run before was killed when it had not synced.
func TestKill(t *testing.T) {
	for _, op := range []func(*Driver, context.Context) error{
		func(d *Driver, ctx context.Context) error { return d.Put(ctx, "objects/old2", oldBody()) },
		func(d *Driver, ctx context.Context) error { return d.Delete(ctx, "objects/old1") },
	} {
		everyStep(t, true, func(t *testing.T, s *crashFS, d *Driver) {
			op(d, t.Context())
			s.off, s.failAt = false, -1 // not a loss of power, only the end of that run
			d2 := started(t, s)
			_, there1 := content(t, d2, "objects/old1")
			_, there2 := content(t, d2, "objects/old2")
			d3 := started(t, s.reboot(func() bool { return false }))
			wantWhole(t, d3, "objects/old1", oldBody(), there1, !there1)
			wantWhole(t, d3, "objects/old2", oldBody(), there2, !there2)
		})
	}
}

// TestRandomHistories puts and deletes a few names, with failures, kills and
// losses of power, and compares with what was acknowledged.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		names := []string{"a/one", "a/onf", "a/b/one", "a/two", "c"}
		must := map[string]bool{} // absent: unknown
		for _, n := range names {
			must[n] = false
		}
		s := newCrashFS()
		d := started(t, s)
		for range 40 {
			if r.IntN(3) == 0 {
				s.failIn(r.IntN(12), how(r.IntN(3)), r.IntN(2) == 0)
			}
			i := r.IntN(len(names))
			name, body := names[i], blobtest.Bytes(uint64(i), 50+i)
			var err error
			put := r.IntN(2) == 0
			if put {
				err = d.Put(t.Context(), name, body)
			} else {
				err = d.Delete(t.Context(), name)
			}
			there, known := must[name]
			switch {
			case err == nil && put && known && there:
				t.Errorf("seed %d: %s was made twice", seed, name)
			case snapferry.IsKind(err, snapferry.Exists) && known && !there:
				t.Errorf("seed %d: %s exists though it was not made", seed, name)
			}
			if err == nil || snapferry.IsKind(err, snapferry.Exists) {
				must[name] = put
			} else {
				delete(must, name)
			}
			switch {
			case s.off || r.IntN(5) == 0:
				s = s.reboot(func() bool { return r.IntN(3) == 0 })
				d = started(t, s)
			case r.IntN(5) == 0: // killed: nothing is lost, but nothing more is synced
				s.failAt = -1
				d = started(t, s)
			}
			s.failAt = -1
			for i, name := range names {
				there, known := must[name]
				wantWhole(t, d, name, blobtest.Bytes(uint64(i), 50+i), known && there, known && !there)
			}
			if t.Failed() {
				t.Fatalf("seed %d, steps: %v", seed, s.log)
			}
		}
	}
}
