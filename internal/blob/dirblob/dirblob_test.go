//go:build unix

package dirblob

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
)

func mustOpen(tb testing.TB, dir string, opts *Options) *Driver {
	tb.Helper()
	d, err := Open(tb.Context(), dir, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func TestConformance(t *testing.T) {
	for name, opts := range map[string]*Options{"Default": nil, "Buffered": {Buffered: true}, "OneOpenFile": {OpenFiles: 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			blobtest.RunConformance(t, func(t *testing.T) blob.Driver { return mustOpen(t, t.TempDir(), opts) })
		})
	}
}

func TestConformanceOfCrashFS(t *testing.T) {
	blobtest.RunConformance(t, func(t *testing.T) blob.Driver { return started(t, newCrashFS()) })
}

func TestLayout(t *testing.T) {
	dir := t.TempDir()
	d := mustOpen(t, dir, nil)
	defer d.Close()
	for _, name := range []string{"objects/ab12cd", "chain/1/key.1", "x"} {
		if err := d.Put(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Delete(t.Context(), "chain/1/key.1"); err != nil {
		t.Fatal(err)
	}
	if got, want := tree(t, dir), []string{"LOCK", "objects", "objects/ab+", "objects/ab+/ab12cd", "tmp", "x+", "x+/x"}; !slices.Equal(got, want) {
		t.Errorf("files differ (-want +got):\n%s", cmp.Diff(want, got))
	}
}

func tree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if p != dir {
			paths = append(paths, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there")
	d := mustOpen(t, dir, nil)
	if err := d.Put(t.Context(), "objects/ab12", []byte("x")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), dir, nil)
	if !snapferry.IsKind(err, snapferry.Conflict) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("open twice: got %v, want a conflict that names the directory and the process", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// What lies there that is not ours is neither listed nor removed.
	for _, p := range []string{"tmp/17", "tmp/x", "README", "objects/stray", "objects/ab+/zz", "objects/ab+/.hid", "lost+found/x", "UPPER/ab+/ab"} {
		p = filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("?"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d = mustOpen(t, dir, nil)
	defer d.Close()
	var got []string
	if err := d.List(t.Context(), "", "", func(i blob.Info) error { got = append(got, i.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"objects/ab12"}; !slices.Equal(got, want) {
		t.Errorf("list: got %q, want %q", got, want)
	}
	paths := tree(t, dir)
	if slices.Contains(paths, "tmp/17") || slices.Contains(paths, "tmp/x") {
		t.Errorf("leftovers are still there: %q", paths)
	}
	if !slices.Contains(paths, "README") || !slices.Contains(paths, "objects/stray") {
		t.Errorf("files of others are gone: %q", paths)
	}
}

func TestOpenNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if d, err := Open(t.Context(), dir, nil); !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("open %s: got %v, %v, want an error of kind %s", dir, d, err, snapferry.Unavailable)
		}
	}
}

// TestReopen proves that objects outlive the driver, written either way.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	aligned := blob.AlignedBuffer(9<<20 + 5)
	copy(aligned, blobtest.Bytes(1, len(aligned)))
	bodies := map[string][]byte{"objects/direct": aligned, "objects/buffered": aligned[1:], "objects/small": aligned[:10], "objects/empty": {}}
	d := mustOpen(t, dir, nil)
	for name, body := range bodies {
		if err := d.Put(t.Context(), name, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = mustOpen(t, dir, nil)
	defer d.Close()
	for name, body := range bodies {
		if got, there := content(t, d, name); !there || !bytes.Equal(got, body) {
			t.Errorf("%s: got %d bytes, there %v, want %d bytes", name, len(got), there, len(body))
		}
		got, err := os.ReadFile(filepath.Join(dir, "objects", name[8:10]+"+", name[8:]))
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("file of %s: got %d bytes, %v, want %d", name, len(got), err, len(body))
		}
	}
}

func TestLinkNoReplace(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	for i, rename := range []func(string, string) error{linkNoReplace, renameNoReplace} {
		os.Remove(to)
		for _, body := range []string{"one", "two"} {
			if err := os.WriteFile(from, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := rename(from, to); (err == nil) != (body == "one") || err != nil && !os.IsExist(err) {
				t.Errorf("%d: rename %q: got %v", i, body, err)
			}
		}
		if got, err := os.ReadFile(to); string(got) != "one" || err != nil {
			t.Errorf("%d: got %q, %v, want %q", i, got, err, "one")
		}
	}
}

// TestOpenFiles proves that reads keep at most so many files open, and none of
// a deleted object.
func TestOpenFiles(t *testing.T) {
	d := mustOpen(t, t.TempDir(), &Options{OpenFiles: 3})
	name := func(i int) string { return fmt.Sprintf("objects/%02d", i) }
	for i := range 10 {
		if err := d.Put(t.Context(), name(i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var p [1]byte
			for i := range 100 {
				if n, err := d.ReadAt(t.Context(), name(i%10), p[:], 0); n != 1 || err != nil || p[0] != byte(i%10) {
					t.Errorf("read %s: got %d, %v", name(i%10), n, err)
				}
			}
		})
	}
	wg.Wait()
	if got := d.files.recent.Len(); got != 3 || len(d.files.byName) != 3 {
		t.Errorf("%d files are open, want 3", got)
	}
	for i := range 10 {
		if err := d.Delete(t.Context(), name(i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.files.recent.Len(); got != 0 {
		t.Errorf("%d files of deleted objects are open, want 0", got)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestDropWhileOpening proves that a file opened before its object was deleted
// is not kept for those who read after.
func TestDropWhileOpening(t *testing.T) {
	var c fileCache
	opened := 0
	c.start(3, func(name string) (readFile, error) {
		if opened++; opened == 1 {
			c.drop(name)
		}
		return &crashFile{s: newCrashFS(), n: &inode{}}, nil
	})
	for range 3 {
		f, err := c.acquire("a")
		if err != nil {
			t.Fatal(err)
		}
		c.release(f)
	}
	if opened != 2 {
		t.Errorf("the file was opened %d times, want 2", opened)
	}
}

// TestDirectRefused writes from memory that the system may not take past the
// page cache.
func TestDirectRefused(t *testing.T) {
	dir := t.TempDir()
	body := blob.AlignedBuffer(9<<20 + 10)[1:]
	copy(body, blobtest.Bytes(1, len(body)))
	f, err := (&osFS{dir: dir}).Create("file")
	if err != nil {
		t.Fatal(err)
	}
	o := f.(*osFile)
	if err := setDirect(o.fd, true); err != nil {
		t.Skipf("this file system writes through its cache only: %v", err)
	}
	done, err := o.writeDirect(body)
	if err == nil {
		err = o.writeFrom(body, done)
	}
	if err != nil {
		t.Errorf("write: %v after %d bytes", err, done)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got[:min(len(got), len(body))], body) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(body))
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	d := mustOpen(t, t.TempDir(), nil)
	b := blob.New(d)
	defer b.Close()
	if err := b.Put(t.Context(), "objects/ab12", make([]byte, 1<<16)); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	ctx := t.Context()
	allocs := testing.AllocsPerRun(100, func() {
		if err := b.ReadAt(ctx, "objects/ab12", p, 8192); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("a read makes %v allocations, want 0", allocs)
	}
}

// rusage is the time that the process spent on processors.
type rusage struct{ cpu time.Duration }

func (r *rusage) now(tb testing.TB) {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		tb.Fatal(err)
	}
	r.cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func BenchmarkPut32MiB(b *testing.B) {
	d := mustOpen(b, b.TempDir(), nil)
	defer d.Close()
	body := blob.AlignedBuffer(32 << 20)
	copy(body, blobtest.Bytes(1, len(body)))
	b.SetBytes(int64(len(body)))
	var start, end rusage
	start.now(b)
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("objects/%08x", i)
		if err := d.Put(b.Context(), name, body); err != nil {
			b.Fatal(err)
		}
		if err := d.Delete(b.Context(), name); err != nil {
			b.Fatal(err)
		}
	}
	end.now(b)
	b.ReportMetric(float64(end.cpu-start.cpu)/1e6/float64(b.N), "cpu-ms/op")
}

func BenchmarkRead64KiB(b *testing.B) {
	d := mustOpen(b, b.TempDir(), nil)
	defer d.Close()
	if err := d.Put(b.Context(), "objects/ab12", make([]byte, 32<<20)); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if _, err := d.ReadAt(b.Context(), "objects/ab12", p, int64(i%512)<<16); err != nil {
			b.Fatal(err)
		}
	}
}
