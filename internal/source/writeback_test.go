package source

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry/extent"
)

func newTarget(t *testing.T, size int64) (*Target, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	target, err := Create(name, size, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target, name
}

func TestNote(t *testing.T) {
	var target Target
	const mib = 1 << 20
	steps := []struct {
		e    extent.Extent
		want extent.Extent
		full bool
	}{
		{extent.Extent{Off: 8 * mib, Len: 4 * mib}, extent.Extent{}, false},
		{extent.Extent{Off: 4 * mib, Len: 3 * mib}, extent.Extent{}, false},
		{extent.Extent{Off: 12 * mib, Len: mib}, extent.Extent{Off: 4 * mib, Len: 9 * mib}, true},
		{extent.Extent{Off: 0, Len: mib}, extent.Extent{}, false},
		{extent.Extent{Off: 1 * mib, Len: 8 * mib}, extent.Extent{Off: 0, Len: 9 * mib}, true},
	}
	for i, step := range steps {
		got, full := target.note(step.e)
		if diff := cmp.Diff(got, step.want); diff != "" || full != step.full {
			t.Errorf("step %d: got full %v, want %v (-got +want):\n%s", i, full, step.full, diff)
		}
	}
}

// TestLoseDirect: a file that stops taking direct writes gets buffered ones.
func TestLoseDirect(t *testing.T) {
	target, name := newTarget(t, 24<<20)
	want := bytes.Repeat([]byte("snapferry!!!"), 2<<20)
	half := len(want) / 2
	if _, err := target.WriteAt(want[:half], 0); err != nil {
		t.Fatal(err)
	}
	if err := target.loseDirect(); err != nil {
		t.Fatal(err)
	}
	if target.Direct() {
		t.Error("it is direct still")
	}
	for off := half; off < len(want); off += 1 << 20 { // enough for write-back
		if _, err := target.WriteAt(want[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs (%v)", err)
	}
}

// TestStaysDirect: after a write of odd size the next one is direct again.
func TestStaysDirect(t *testing.T) {
	target, _ := newTarget(t, 3*Alignment)
	for _, n := range []int{1, Alignment, Alignment + 1, 2*Alignment - 1} {
		if _, err := target.WriteAt(make([]byte, n), 1); err != nil {
			t.Fatal(err)
		}
		flags, err := unix.FcntlInt(target.h.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := flags&unix.O_DIRECT != 0; got != target.Direct() {
			t.Errorf("after %d bytes: got O_DIRECT %v, want %v", n, got, target.Direct())
		}
	}
}

// TestRefusedDirect: memory that is aligned at an offset that is not, which is
// how a system refuses what it promised.
func TestRefusedDirect(t *testing.T) {
	target, name := newTarget(t, 3*Alignment)
	if !target.Direct() {
		t.Skip("the temporary folder takes no direct writes")
	}
	p := alignedBuffer(Alignment)
	for i := range p {
		p[i] = 1
	}
	if n, err := target.writeDirect(p, 100); n != len(p) || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
	if err := target.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 3*Alignment)
	copy(want[100:], p)
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs (%v)", err)
	}
}

func TestWriteZeros(t *testing.T) {
	target, name := newTarget(t, 4<<20)
	want := bytes.Repeat([]byte{1}, 4<<20)
	if _, err := target.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := target.writeZeros(t.Context(), extent.Extent{Off: 1000, Len: 3 << 20}); err != nil {
		t.Fatal(err)
	}
	clear(want[1000 : 1000+3<<20])
	if err := target.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs (%v)", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := target.writeZeros(ctx, extent.Extent{Off: 0, Len: 1}); err == nil {
		t.Error("went on after the context ended")
	}
}

// TestNoAllocation: blocks are read and written without garbage.
func TestNoAllocation(t *testing.T) {
	target, name := newTarget(t, 1<<20)
	p := alignedBuffer(64 << 10)
	if got := testing.AllocsPerRun(20, func() {
		if _, err := target.WriteAt(p, 128<<10); err != nil {
			t.Fatal(err)
		}
	}); target.Direct() && got != 0 {
		t.Errorf("a write allocates %v times", got)
	}
	d, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := testing.AllocsPerRun(20, func() {
		if _, err := d.ReadAt(p, 128<<10); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("a read allocates %v times", got)
	}
}
