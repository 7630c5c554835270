//go:build unix

package layer

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

func testDir(t *testing.T) (*Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

func testFile(t *testing.T, d *Dir, name string, p []byte) *osFile {
	t.Helper()
	f, err := d.OpenFile(name, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if n, err := f.WriteAt(p, 0); err != nil || n != len(p) {
		t.Fatalf("write %s: got %d, %v", name, n, err)
	}
	return f.(*osFile)
}

func wantKind(t *testing.T, what string, err error, want snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, want) {
		t.Errorf("%s: got %v, want an error of kind %s", what, err, want)
	}
}

func TestDirNames(t *testing.T) {
	d, path := testDir(t)
	steps := []error{
		d.Mkdir("a"), d.Mkdir("a/b"), d.SyncDir("a"),
		testFile(t, d, "a/f", []byte("1")).Datasync(),
		testFile(t, d, "a/g", []byte("2")).Datasync(),
		d.Rename("a/f", "a/g"),
		os.Rename(path, path+".moved"), // the directory stays the same
		d.Mkdir("c"), d.SyncDir("."), d.Remove("c"),
	}
	t.Cleanup(func() { os.RemoveAll(path + ".moved") })
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	names, err := d.ReadDir("a")
	if diff := cmp.Diff(names, []string{"b", "g"}); err != nil || diff != "" {
		t.Errorf("names: %v (-got +want):\n%s", err, diff)
	}
	if p, err := os.ReadFile(filepath.Join(path+".moved", "a/g")); err != nil || string(p) != "1" {
		t.Errorf("renamed: got %q, %v", p, err)
	}
	_, missing := d.OpenFile("a/f", false)
	_, outside := d.OpenFile("../f", true)
	_, noDir := OpenDir(path + ".no")
	wantKind(t, "open what is not there", missing, snapferry.NotFound)
	wantKind(t, "open outside", outside, snapferry.Internal)
	wantKind(t, "open no directory", noDir, snapferry.NotFound)
	wantKind(t, "rename to outside", d.Rename("a/g", "../f"), snapferry.Internal)
	wantKind(t, "mkdir again", d.Mkdir("a"), snapferry.Exists)
	wantKind(t, "remove again", d.Remove("c"), snapferry.NotFound)
	if err := d.Remove("a"); err == nil {
		t.Error("a full directory was removed")
	}
	d.Close()
	if err := d.Mkdir("d"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after close: got %v", err)
	}
}

// TestPunch punches holes where the file system can, and where it cannot.
func TestPunch(t *testing.T) {
	for _, solid := range []bool{false, true} {
		d, _ := testDir(t)
		p := bytes.Repeat([]byte{1}, 1<<20)
		f := testFile(t, d, "f", p)
		f.solid.Store(solid)
		clear(p[4096 : 600<<10])
		clear(p[1<<20-4096:])
		if err := errors.Join(f.Punch(4096, 600<<10-4096), f.Punch(1<<20-4096, 1<<30)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(p)+1)
		if n, err := f.ReadAt(got, 0); n != len(p) || err != io.EOF || !bytes.Equal(got[:n], p) {
			t.Errorf("solid %v: got %d, %v, or another content", solid, n, err)
		}
		size, allocated, err := f.Stat()
		if err != nil || size != int64(len(p)) || !solid && !f.solid.Load() && allocated > 600<<10 {
			t.Errorf("solid %v: got size %d, allocated %d, %v", solid, size, allocated, err)
		}
	}
}

func TestNextData(t *testing.T) {
	d, _ := testDir(t)
	f := testFile(t, d, "f", []byte{1})
	if _, err := f.WriteAt([]byte{1}, 1<<30); err != nil {
		t.Fatal(err)
	}
	e, ok, err := f.NextData(0)
	if err != nil || !ok || e.Off != 0 || e.Len < 1 {
		t.Errorf("at 0: got %v, %v, %v", e, ok, err)
	}
	e, ok, err = f.NextData(max(e.End(), 1<<29)) // a file system without holes has all
	if err == nil && ok {
		ok = e.Off <= 1<<30 && e.End() > 1<<30
	}
	if err != nil || !ok && e.End() != 0 {
		t.Errorf("behind: got %v, %v, %v", e, ok, err)
	}
	if _, ok, err := f.NextData(1<<30 + 1); err != nil || ok {
		t.Errorf("at the end: got %v, %v", ok, err)
	}
}

func TestReadNow(t *testing.T) {
	d, _ := testDir(t)
	f := testFile(t, d, "f", []byte("hello"))
	p := make([]byte, 3)
	if done, err := f.ReadNow(p, 1); err != nil || done && string(p) != "ell" {
		t.Errorf("got %v, %v, %q", done, err, p)
	}
	if done, err := f.ReadNow(p, 4); err != nil || done {
		t.Errorf("across the end: got %v, %v", done, err)
	}
	f.waits.Store(true)
	if done, err := f.ReadNow(p, 1); err != nil || done {
		t.Errorf("where it is not to be had: got %v, %v", done, err)
	}
}

func TestCopyFrom(t *testing.T) {
	d, _ := testDir(t)
	from := testFile(t, d, "from", bytes.Repeat([]byte{1}, 8192))
	to := testFile(t, d, "to", bytes.Repeat([]byte{2}, 8192))
	n, err := to.CopyFrom(from, 4096, 4096)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("the system cannot")
	}
	got := make([]byte, 8192)
	if _, readErr := to.ReadAt(got, 0); err != nil || n != 4096 || readErr != nil || got[4095] != 2 || got[4096] != 1 {
		t.Errorf("got %d, %v, %v, %d, %d", n, err, readErr, got[4095], got[4096])
	}
	if n, err := to.CopyFrom(from, 8192, 4096); n != 0 || err != nil {
		t.Errorf("behind the end: got %d, %v", n, err)
	}
	to.copies.Store(true)
	if _, err := to.CopyFrom(from, 0, 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("where it cannot: got %v", err)
	}
}

// TestCloseOnce proves that a descriptor is closed once, with its last user: the
// next file has its number.
func TestCloseOnce(t *testing.T) {
	d, _ := testDir(t)
	p := []byte{1}
	f := testFile(t, d, "f", p)
	if !f.fd.enter() {
		t.Fatal("an open file cannot be used")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pread(f.fd.fd, p, 0); err != nil {
		t.Errorf("closed under its user: %v", err)
	}
	f.fd.leave()
	g := testFile(t, d, "g", p)
	if g.fd.fd != f.fd.fd {
		t.Errorf("the descriptor is still open: got %d, then %d", f.fd.fd, g.fd.fd)
	}
	for range 3 {
		if _, err := f.ReadAt(p, 0); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("read: got %v, want %v", err, fs.ErrClosed)
		}
		if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("close: got %v, want %v", err, fs.ErrClosed)
		}
	}
	if _, err := g.ReadAt(p, 0); err != nil {
		t.Errorf("the next file was closed: %v", err)
	}
}

// TestCloseInUse closes a file while it is read: what is under way is right, or
// an error, and never another file's.
func TestCloseInUse(t *testing.T) {
	d, _ := testDir(t)
	for range 50 {
		f := testFile(t, d, "f", bytes.Repeat([]byte{1}, 4096))
		other := bytes.Repeat([]byte{2}, 4096)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				p := make([]byte, 4096)
				for {
					_, err := f.ReadAt(p, 0)
					if errors.Is(err, fs.ErrClosed) {
						return
					}
					if err != nil || p[0] != 1 {
						t.Errorf("got %v, %d", err, p[0])
						return
					}
				}
			})
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		testFile(t, d, "g", other).Close() // takes the number, if it is free
		wg.Wait()
		if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("close again: got %v", err)
		}
	}
}
