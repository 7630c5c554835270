package head_test

import (
	"bytes"
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// A sync for which there is no room can be called again: then everything is
// durable.
func TestSyncWithoutRoom(t *testing.T) {
	fs := layertest.New(t)
	if err := head.Create(fs, "v", 1<<20, snapferry.VersionID{}, nil); err != nil {
		t.Fatal(err)
	}
	v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v"})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{5}, page)
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	fs.Limit(fs.Used())
	for range 2 {
		if err := v.Sync(); !snapferry.IsKind(err, snapferry.Full) {
			t.Errorf("sync without room: got %v, want %s", err, snapferry.Full)
		}
	}
	if _, err := v.WriteAt(want, 64<<10); !snapferry.IsKind(err, snapferry.Full) {
		t.Errorf("write without room: got %v, want %s", err, snapferry.Full)
	}
	fs.Limit(-1)
	if err := v.Sync(); err != nil {
		t.Fatalf("sync with room again: %v", err)
	}
	again, err := head.Open(t.Context(), head.Config{FS: fs.Cut(1), Dir: "v"})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, page)
	if _, err := again.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after a cut: got %v, %v", got[:1], err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

// A freeze that failed, at whatever step and whether or not that was done, can be
// tried again, also when the volume has grown; and the volume can be opened after
// each.
func TestFreezeIsTriedAgain(t *testing.T) {
	for _, how := range []layertest.How{layertest.Nothing, layertest.All} {
		failed := 0
		for step := range 12 { // more than there are
			if freezeFails(t, step, how) {
				failed++
			}
		}
		if failed < 8 {
			t.Errorf("%d steps of a freeze failed, want all that make a layer and a stack durable", failed)
		}
	}
}

// freezeFails lets a step of a freeze fail, and reports whether the freeze did.
func freezeFails(t *testing.T, step int, how layertest.How) bool {
	t.Helper()
	fs := layertest.New(t)
	if err := head.Create(fs, "v", 1<<20, snapferry.VersionID{}, nil); err != nil {
		t.Fatal(err)
	}
	v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v"})
	if err != nil {
		t.Fatal(err)
	}
	frozen, later := bytes.Repeat([]byte{5}, page), bytes.Repeat([]byte{6}, page)
	write := func(p []byte) {
		t.Helper()
		if _, err := v.WriteAt(p, 0); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if err := v.Sync(); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
	}
	write(frozen)
	fs.Inject(layertest.Nth(fs.Ops()+step, syscall.ENOSPC, how))
	_, err = head.Freeze(t.Context(), v)
	fs.Inject(nil)
	failed := err != nil
	if failed {
		if !snapferry.IsKind(err, snapferry.Full) {
			t.Errorf("step %d: got %v, want %s", step, err, snapferry.Full)
		}
		write(frozen)
		if err := v.Grow(2 << 20); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		layers, err := head.Freeze(t.Context(), v)
		if err != nil {
			t.Fatalf("step %d, tried again: %v", step, err)
		}
		if err := v.Settle(t.Context(), layers[0]); err != nil {
			t.Fatal(err)
		}
		write(later)
		if _, err := v.WriteAt(later, 2<<20-page); err != nil {
			t.Errorf("step %d: where the volume has grown: %v", step, err)
		}
		c, err := v.Changes(t.Context(), layers[0], 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, page)
		if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, frozen) {
			t.Errorf("step %d: frozen is %v, %v, want %v", step, got[:1], err, frozen[:1])
		}
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	v, err = head.Open(t.Context(), head.Config{FS: fs.Cut(1), Dir: "v"})
	if err != nil {
		t.Fatalf("step %d, after a cut: %v", step, err)
	}
	want := frozen
	if failed {
		want = later
	}
	got := make([]byte, page)
	if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("step %d, after a cut: got %v, %v, want %v", step, got[:1], err, want[:1])
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	return failed
}

// away is an image whose store takes a while to say that it is away.
type away struct{ head.Image }

func (away) Read(context.Context, uint64, []byte) error {
	<-time.After(12 * time.Second) // of the bubble
	return snapferry.Errorf(snapferry.Unavailable, "the store is away")
}

// A read of what cannot be had ends before its client's patience does.
func TestReadIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := layertest.New(t)
		vs, base := newVersions(), newDisk(1<<20)
		id := vs.add(base)
		if err := head.Create(fs, "v", base.size, id, nil); err != nil {
			t.Fatal(err)
		}
		v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v", Image: func(ctx context.Context, id snapferry.VersionID) (head.Image, error) {
			i, err := vs.open(ctx, id)
			return away{i}, err
		}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := v.ReadAt(make([]byte, page), 0); !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("got %v, want %s", err, snapferry.Unavailable)
		}
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("a read was given up after %v", took)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
}
