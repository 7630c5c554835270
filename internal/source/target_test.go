package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/source"
)

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	old := sparseFile(t, dir, page)
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		size       int64
		force      bool
		kind       snapferry.Kind
		message    string
	}{
		{"exists", old, page, false, snapferry.Exists, old},
		{"folder", dir, page, false, snapferry.Invalid, dir},
		{"folder, forced", dir, page, true, snapferry.Invalid, dir},
		{"pipe, forced", pipe, page, true, snapferry.Invalid, pipe},
		{"null, forced", "/dev/null", page, true, snapferry.Invalid, "/dev/null"},
		{"no folder", filepath.Join(dir, "no", "disk"), page, false, snapferry.NotFound, "no/disk"},
		{"below a file", filepath.Join(old, "disk"), page, false, snapferry.NotFound, old},
		{"empty", filepath.Join(dir, "new"), 0, false, snapferry.Invalid, "size"},
		{"odd", filepath.Join(dir, "new"), 1000, false, snapferry.Invalid, "size"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := source.Create(test.path, test.size, test.force)
			wantKind(t, err, test.kind, test.message)
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("a refused target was made")
	}
	locked := filepath.Join(dir, "locked")
	if err := os.Mkdir(locked, 0o555); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		_, err := source.Create(filepath.Join(locked, "new"), page, false)
		if !snapferry.IsKind(err, snapferry.Denied) {
			t.Errorf("in a folder of somebody else: got %v, want Denied", err)
		}
	})
}

// TestTooLargeForFileSystem: ext4 ends at 16 TiB, and nothing stays behind.
func TestTooLargeForFileSystem(t *testing.T) {
	name := temp(t, "huge.raw")
	target, err := source.Create(name, snapferry.MaxVolumeSize, false)
	if err == nil {
		target.Close()
		t.Skip("the file system of the temporary folder holds 64 TiB")
	}
	wantKind(t, err, snapferry.Invalid, name)
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestCloseWithoutFinish(t *testing.T) {
	name := temp(t, "disk.raw")
	for _, finish := range []bool{false, true} {
		target, err := source.Create(name, page, false)
		if err != nil {
			t.Fatal(err)
		}
		if finish {
			if err := target.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := target.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(name); (err == nil) != finish {
			t.Errorf("finished %v: file there: %v", finish, err == nil)
		}
	}
	// What was there before is not removed.
	target, err := source.Create(name, page, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
}

func TestForce(t *testing.T) {
	name := temp(t, "disk.raw")
	if err := os.WriteFile(name, fill(3*page, 5), 0o666); err != nil {
		t.Fatal(err)
	}
	target, err := source.Create(name, 2*page, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(target.Finish(t.Context()), target.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, make([]byte, 2*page)) {
		t.Error("old content shines through")
	}
}

// TestWrites sends random writes and holes of every alignment to a target and
// to a slice in memory, several at once in ranges of their own.
func TestWrites(t *testing.T) {
	const lane, lanes, tail = 2 << 20, 3, 512
	for fs, folder := range folders(t) {
		t.Run(fs, func(t *testing.T) {
			name := filepath.Join(folder(t), "disk.raw")
			model := make([]byte, lanes*lane+tail)
			target, err := source.Create(name, int64(len(model)), false)
			if err != nil {
				t.Fatal(err)
			}
			defer target.Close()
			if fs == "xfs" && !target.Direct() {
				t.Error("writes to XFS are not direct")
			}
			var wg sync.WaitGroup
			for i := range lanes {
				wg.Go(func() {
					if err := scribble(t.Context(), target, model, int64(i)*lane, lane, uint64(i)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if _, err := target.WriteAt(fill(tail, 3), lanes*lane); err != nil {
				t.Fatal(err)
			}
			copy(model[lanes*lane:], fill(tail, 3))
			if err := target.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, model) {
				t.Errorf("content differs from the model, first at %d of %d (file has %d)", firstDifference(got, model), len(model), len(got))
			}
		})
	}
}

// scribble writes at random within [base, base+span) of target and model.
func scribble(ctx context.Context, target *source.Target, model []byte, base, span int64, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	memory := make([]byte, 256<<10+page)
	noise := make([]byte, 2*len(memory))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for range 150 {
		off := rng.Int64N(span)
		n := 1 + rng.Int64N(min(span-off, 256<<10))
		if rng.IntN(2) == 0 { // whole pages
			off &^= page - 1
			n = min((n+page-1)&^(page-1), span-off)
		}
		at := base + off
		if rng.IntN(4) == 0 {
			if err := target.ZeroRange(ctx, extent.Extent{Off: at, Len: n}); err != nil {
				return err
			}
			clear(model[at : at+n])
			continue
		}
		p := memory[rng.IntN(2)*rng.IntN(page):][:n]
		copy(p, noise[rng.IntN(len(memory)):])
		if got, err := target.WriteAt(p, at); err != nil || got != len(p) {
			return fmt.Errorf("write %d at %d: %d, %w", n, at, got, err)
		}
		copy(model[at:], p)
	}
	return nil
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestOutOfRange(t *testing.T) {
	target, err := source.Create(temp(t, "disk.raw"), page, false)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	for _, e := range []extent.Extent{{Off: -1, Len: 1}, {Off: page, Len: 1}, {Off: page - 1, Len: 2}, {Off: 1 << 62, Len: 1}} {
		if _, err := target.WriteAt(make([]byte, e.Len), e.Off); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("write %+v: got %v, want Invalid", e, err)
		}
		if err := target.ZeroRange(t.Context(), e); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("zero %+v: got %v, want Invalid", e, err)
		}
	}
	if err := target.ZeroRange(t.Context(), extent.Extent{Off: 1, Len: 1<<63 - 1}); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("zero with overflow: got %v, want Invalid", err)
	}
}

func TestCancelled(t *testing.T) {
	target, err := source.Create(temp(t, "disk.raw"), page, false)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if _, err := target.WriteAt(fill(page, 1), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := target.ZeroRange(ctx, extent.Extent{Off: 0, Len: page}); !snapferry.IsKind(err, snapferry.Cancelled) {
		t.Errorf("zero: got %v, want Cancelled", err)
	}
	if err := target.Finish(ctx); !snapferry.IsKind(err, snapferry.Cancelled) {
		t.Errorf("finish: got %v, want Cancelled", err)
	}
}

func TestFull(t *testing.T) {
	name := filepath.Join(mount(t, "none", "tmpfs", "size=1m"), "disk.raw")
	target, err := source.Create(name, 4<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	_, err = target.WriteAt(fill(2<<20, 1), 0)
	wantKind(t, err, snapferry.Full, name)
}

func TestToFile(t *testing.T) {
	name := temp(t, "disk.raw")
	f, created, err := source.OpenWrite(name, false)
	if err != nil || !created {
		t.Fatalf("got created %v, %v", created, err)
	}
	defer f.Close()
	if _, err := f.WriteString("old content"); err != nil {
		t.Fatal(err)
	}
	before := flags(t, f)
	target, err := source.ToFile(f, 2*page)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.WriteAt(fill(page, 1), page); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(target.Finish(t.Context()), target.Close()); err != nil {
		t.Fatal(err)
	}
	if got := flags(t, f); got != before {
		t.Errorf("the caller's flags: got %#x, want %#x", got, before)
	}
	if at, err := f.Seek(0, io.SeekCurrent); at != int64(len("old content")) || err != nil {
		t.Errorf("the caller's position: got %d, %v", at, err)
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if want := append(make([]byte, page), fill(page, 1)...); !bytes.Equal(got, want) {
		t.Error("content differs")
	}
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		t.Errorf("others may use the image: mode %v", st.Mode())
	}
}

func TestToFileRefuses(t *testing.T) {
	name := temp(t, "disk.raw")
	if err := os.WriteFile(name, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for flags, kind := range map[int]snapferry.Kind{
		os.O_RDONLY: snapferry.Denied, unix.O_PATH: snapferry.Denied, os.O_WRONLY | os.O_APPEND: snapferry.Invalid,
	} {
		f, err := os.OpenFile(name, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := source.ToFile(f, page); !snapferry.IsKind(err, kind) {
			t.Errorf("flags %#x: got %v, want %v", flags, err, kind)
		}
	}
	if got, err := os.ReadFile(name); string(got) != "precious" {
		t.Errorf("content: got %q, %v", got, err)
	}
}

func TestDeviceTarget(t *testing.T) {
	const size = 4 << 20
	device, _ := loopDevice(t, size+page)
	writeAt(t, device, fill(size+page, 0xaa), 0)

	_, err := source.Create(device, size, false)
	wantKind(t, err, snapferry.Exists, device)
	_, err = source.Create(device, 2*size, true)
	wantKind(t, err, snapferry.Invalid, device)

	target, err := source.Create(device, size, true)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if !target.Device() || target.Size() != size {
		t.Errorf("got device %v, size %d", target.Device(), target.Size())
	}
	want := fill(size+page, 0xaa)
	for _, e := range []extent.Extent{{Off: 0, Len: 1 << 20}, {Off: 2<<20 + 512, Len: 512}, {Off: 3<<20 + 100, Len: 9000}} {
		if err := target.ZeroRange(t.Context(), e); err != nil {
			t.Fatalf("zero %+v: %v", e, err)
		}
		clear(want[e.Off : e.Off+e.Len])
	}
	if _, err := target.WriteAt(fill(1000, 1), size-1000); err != nil {
		t.Fatal(err)
	}
	copy(want[size-1000:], fill(1000, 1))
	if err := errors.Join(target.Finish(t.Context()), target.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(device)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("content differs, first at %d", firstDifference(got, want))
	}
}

func TestDeviceInUse(t *testing.T) {
	needRoot(t, "losetup", "mkfs.ext4")
	device, _ := loopDevice(t, 4<<20)
	run(t, "mkfs.ext4", "-q", device)
	mount(t, device, "ext4", "")
	_, err := source.Create(device, 1<<20, true)
	wantKind(t, err, snapferry.Conflict, device)
}
