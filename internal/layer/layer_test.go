package layer_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// run is what NextSet finds.
type run struct {
	First, N int64
	State    layer.State
}

func runs(l *layer.Layer) (all []run) {
	for page := int64(0); ; {
		first, n, s, ok := l.NextSet(page)
		if !ok {
			return all
		}
		all = append(all, run{first, n, s})
		page = first + n
	}
}

// eachFS runs a test on the real file system and on the one of layertest.
func eachFS(t *testing.T, test func(t *testing.T, fsys layer.FS)) {
	t.Run("memory", func(t *testing.T) { test(t, layertest.New(t)) })
	t.Run("system", func(t *testing.T) { test(t, openDir(t)) })
	t.Run("encrypted memory", func(t *testing.T) { test(t, encrypted{layertest.New(t)}) })
	t.Run("encrypted system", func(t *testing.T) { test(t, encrypted{openDir(t)}) })
}

// encrypted is a file system whose layers are.
type encrypted struct{ layer.FS }

func keysOf(fsys layer.FS) layer.Keys {
	if _, ok := fsys.(encrypted); ok {
		return &layertest.Keys{}
	}
	return nil
}

func openDir(t testing.TB) *layer.Dir {
	t.Helper()
	d, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func create(t testing.TB, fsys layer.FS, dir string, size int64) *layer.Layer {
	t.Helper()
	l, err := layer.Create(fsys, dir, size, keysOf(fsys))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func reopen(t testing.TB, fsys layer.FS, l *layer.Layer) *layer.Layer {
	t.Helper()
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	return mustOpen(t, fsys, l.Size())
}

// mustOpen opens the layer "l".
func mustOpen(t testing.TB, fsys layer.FS, size int64) *layer.Layer {
	t.Helper()
	l, err := layer.Open(fsys, "l", size, keysOf(fsys))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func wantKind(t testing.TB, what string, err error, want snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, want) {
		t.Errorf("%s: got %v, want an error of kind %s", what, err, want)
	}
}

func filled(b byte, pages int) []byte { return bytes.Repeat([]byte{b}, pages*layer.PageSize) }

func mustWrite(t testing.TB, l *layer.Layer, page int64, p []byte) {
	t.Helper()
	if n, err := l.WriteAt(p, page*layer.PageSize); err != nil || n != len(p) {
		t.Fatalf("write of %d bytes at page %d: got %d, %v", len(p), page, n, err)
	}
}

func mustRead(t testing.TB, l *layer.Layer, page int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := l.ReadAt(got, page*layer.PageSize); err != nil || n != len(got) {
		t.Fatalf("read of %d bytes at page %d: got %d, %v", len(got), page, n, err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("page %d: read %d..., want %d...", page, got[0], want[0])
	}
	if done, err := l.ReadNow(got, page*layer.PageSize); err != nil || done && !bytes.Equal(got, want) {
		t.Errorf("page %d: read now: got %v, %v, %d..., want %d...", page, done, err, got[0], want[0])
	}
}

func TestLayer(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys layer.FS) {
		l := create(t, fsys, "l", volume)
		if got := runs(l); got != nil {
			t.Errorf("a new layer: got %v", got)
		}
		mustWrite(t, l, 3, filled(1, 2))
		mustWrite(t, l, stripePages-1, filled(2, 2))
		mustWrite(t, l, 255*stripePages+1<<14-600, filled(3, 1200))
		if err := l.Zero(4, 3); err != nil {
			t.Fatal(err)
		}
		if err := l.Zero(1<<14+1, 3<<14); err != nil {
			t.Fatal(err)
		}
		if err := l.Patch(filled(9, 2)[:512], stripePages*layer.PageSize-256); err != nil {
			t.Fatal(err)
		}
		want := []run{
			{3, 1, layer.Data},
			{4, 3, layer.Zero},
			{1<<14 + 1, 3 << 14, layer.Zero},
			{stripePages - 1, 2, layer.Data},
			{255*stripePages + 1<<14 - 600, 1200, layer.Data},
		}
		for range 2 {
			if diff := cmp.Diff(runs(l), want); diff != "" {
				t.Errorf("what is set (-got +want):\n%s", diff)
			}
			mustRead(t, l, 3, filled(1, 1))
			across := filled(2, 2)
			copy(across[layer.PageSize-256:], filled(9, 1)[:512])
			mustRead(t, l, stripePages-1, across)
			mustRead(t, l, 255*stripePages+1<<14-600, filled(3, 1200))
			if data, zero := l.Pages(); data != 1203 || zero != 3+3<<14 {
				t.Errorf("pages: got %d data, %d zero", data, zero)
			}
			if s, n := l.Run(0, 100); s != layer.Below || n != 3 {
				t.Errorf("run at 0: got %v of %d, want below of 3", s, n)
			}
			if s, n := l.Run(5*stripePages, 1<<40); s != layer.Below || n != 250*stripePages+1<<14-600 {
				t.Errorf("run over many stripes: got %v of %d", s, n)
			}
			l = reopen(t, fsys, l)
		}
		checkAllocated(t, l)
	})
}

// checkAllocated proves that space is counted, and given back.
func checkAllocated(t *testing.T, l *layer.Layer) {
	t.Helper()
	before, err := l.Allocated()
	if data, _ := l.Pages(); err != nil || before < data*layer.PageSize || before > 2*data*layer.PageSize {
		t.Errorf("allocated: got %d, %v, for %d pages", before, err, data)
	}
	if err := l.Zero(255*stripePages, 1<<15); err != nil {
		t.Fatal(err)
	}
	if err := l.Forget(extent.Extent{Off: 0, Len: 256 * stripePages}); err != nil {
		t.Fatal(err)
	}
	after, err := l.Allocated()
	if err != nil || after > before/8 {
		t.Errorf("allocated with nothing set: got %d, %v, before it was %d", after, err, before)
	}
	if got := runs(l); got != nil {
		t.Errorf("with all forgotten: got %v", got)
	}
}

func TestRanges(t *testing.T) {
	fsys := layertest.New(t)
	l := create(t, fsys, "l", 10*layer.PageSize+512)
	for _, test := range []struct {
		what string
		err  error
		want snapferry.Kind
	}{
		{"size 0", second(layer.Create(fsys, "m", 0, nil)), snapferry.Invalid},
		{"too large", second(layer.Create(fsys, "m", volume+512, nil)), snapferry.Invalid},
		{"again", second(layer.Create(fsys, "l", volume, nil)), snapferry.Exists},
		{"open nothing", second(layer.Open(fsys, "m", volume, nil)), snapferry.NotFound},
		{"half a page", second(l.WriteAt(filled(1, 1)[:512], 0)), snapferry.Invalid},
		{"not at a page", second(l.WriteAt(filled(1, 1), 512)), snapferry.Invalid},
		{"behind the end", second(l.WriteAt(filled(1, 2), 10*layer.PageSize)), snapferry.Invalid},
		{"before the start", second(l.WriteAt(filled(1, 2), -layer.PageSize)), snapferry.Invalid},
		{"zero behind the end", l.Zero(3, 9), snapferry.Invalid},
		{"zero of negative length", l.Zero(3, -1), snapferry.Invalid},
		{"zero of all numbers", l.Zero(3, 1<<63-1), snapferry.Invalid},
		{"forget behind the end", l.Forget(extent.Extent{Off: 11, Len: 1}), snapferry.Invalid},
		{"patch of nothing", l.Patch(filled(1, 1), 0), snapferry.Internal},
		{"read of nothing", second(l.ReadAt(filled(1, 1), 0)), snapferry.Corrupt},
		{"shrink", l.Resize(layer.PageSize), snapferry.Invalid},
		{"grow too much", l.Resize(volume + 512), snapferry.Invalid},
		{"absorb a larger one", l.Absorb(t.Context(), create(t, fsys, "large", volume)), snapferry.Invalid},
	} {
		wantKind(t, test.what, test.err, test.want)
	}
	mustWrite(t, l, 10, filled(1, 1)) // the last, which the volume has a part of
	if err := l.Resize(volume); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, l, 10, filled(2, 2))
	mustWrite(t, l, 256*stripePages-1, filled(3, 1))
	l = reopen(t, fsys, l)
	mustRead(t, l, 10, filled(2, 2))
	for _, page := range []int64{-1, -1 << 62, 256 * stripePages, 1<<63 - 1} {
		if s := l.Lookup(page); s != layer.Below {
			t.Errorf("page %d: got %v", page, s)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestRemove(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys layer.FS) {
		l := create(t, fsys, "l", volume)
		mustWrite(t, l, 3, filled(1, 2))
		l.Close()
		if err := layer.Remove(fsys, "l"); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "remove again", layer.Remove(fsys, "l"), snapferry.NotFound)
		names, err := fsys.ReadDir(".")
		if err != nil || len(names) > 0 {
			t.Errorf("left: got %v, %v", names, err)
		}
	})
}

// TestSyncWrites proves that a Sync touches what changed, and no more.
func TestSyncWrites(t *testing.T) {
	fsys := layertest.New(t)
	l := create(t, fsys, "l", volume)
	var ops []string
	fsys.After(func(op layertest.Op) {
		if op.N >= 0 {
			ops = append(ops, fmt.Sprint(op.Kind, " ", op.Name, " ", op.Off, "+", op.Len))
		}
	})
	want := func(what string, want ...string) {
		t.Helper()
		ops = nil
		if !l.Dirty() && len(want) > 0 {
			t.Errorf("%s: not dirty", what)
		}
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ops, want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", what, diff)
		}
		if l.Dirty() {
			t.Errorf("%s: dirty after Sync", what)
		}
	}
	want("new")
	mustWrite(t, l, 0, filled(1, 1))
	mustWrite(t, l, 1<<14, filled(1, 1))
	mustWrite(t, l, 5<<14, filled(1, 1))
	if err := l.Zero(stripePages, 1); err != nil {
		t.Fatal(err)
	}
	want("first", "sync l/data.000 0+0", "syncdir l 0+0", "write l/map.000 0+8192", "write l/map.000 20480+4096", "write l/map.001 0+4096", "sync l/map.000 0+0", "sync l/map.001 0+0")
	want("nothing new")
	mustWrite(t, l, 1<<14, filled(2, 1))
	want("old pages", "sync l/data.000 0+0")
	if err := l.Zero(stripePages, 1); err != nil {
		t.Fatal(err)
	}
	want("zero again")
	mustWrite(t, l, 1<<14, filled(2, 2))
	want("one new", "sync l/data.000 0+0", "write l/map.000 4096+4096", "sync l/map.000 0+0")
	l.Close()
	l = mustOpen(t, fsys, volume)
	want("opened", "sync l/data.000 0+0", "syncdir l 0+0", "sync l/map.000 0+0", "sync l/map.001 0+0")
}

// TestFull proves that a full disk costs nothing that was there.
func TestFull(t *testing.T) {
	fsys := layertest.New(t)
	l := create(t, fsys, "l", volume)
	mustWrite(t, l, 0, filled(1, 4))
	fsys.Limit(fsys.Used() + 2*layer.PageSize)
	_, err := l.WriteAt(filled(2, 6), 2*layer.PageSize)
	wantKind(t, "write", err, snapferry.Full)
	if diff := cmp.Diff(runs(l), []run{{0, 4, layer.Data}}); diff != "" {
		t.Errorf("after a write that failed (-got +want):\n%s", diff)
	}
	for range 3 {
		wantKind(t, "sync", l.Sync(), snapferry.Full)
		if !l.Dirty() || l.Broken() != nil {
			t.Errorf("got dirty %v, broken %v", l.Dirty(), l.Broken())
		}
	}
	fsys.Limit(-1)
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	next := fsys.Cut(0)
	l = mustOpen(t, next, volume)
	if diff := cmp.Diff(runs(l), []run{{0, 4, layer.Data}}); diff != "" {
		t.Errorf("after a cut (-got +want):\n%s", diff)
	}
}

// TestFailedSync proves that a failed sync is failed for good, whatever it did.
func TestFailedSync(t *testing.T) {
	for n := range 3 { // data, directory, map
		for _, how := range []layertest.How{layertest.Nothing, layertest.All} {
			fsys := layertest.New(t)
			l := create(t, fsys, "l", volume)
			mustWrite(t, l, 0, filled(1, 4))
			syncs := 0
			fsys.Inject(func(op layertest.Op) layertest.Fault {
				if op.Kind != layertest.Sync && op.Kind != layertest.SyncDir {
					return layertest.Fault{}
				}
				if syncs++; syncs != n+1 {
					return layertest.Fault{}
				}
				return layertest.Fault{Err: syscall.ENOSPC, How: how}
			})
			for range 3 {
				wantKind(t, "sync", l.Sync(), snapferry.Unavailable)
				wantKind(t, "forget", l.Forget(extent.Extent{Len: 1}), snapferry.Unavailable)
			}
			if l.Broken() == nil || !l.Dirty() {
				t.Errorf("got broken %v, dirty %v", l.Broken(), l.Dirty())
			}
			if syncs != n+1 {
				t.Errorf("%d syncs of the system, want %d: what failed is not tried again", syncs, n+1)
			}
			l.Close()
		}
	}
}

// TestConcurrent has many goroutines write neighbouring pages, of which each
// writes its own, and read and sync meanwhile.
func TestConcurrent(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys layer.FS) {
		const writers, rounds, each = 4, 250, 400
		l := create(t, fsys, "l", volume)
		pageOf := func(w, i int) int64 { return 2*stripePages - 800 + int64(i*writers+w) }
		last := make([]map[int]byte, writers)
		stop := make(chan struct{})
		var wg, others sync.WaitGroup
		for w := range writers {
			last[w] = map[int]byte{}
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(w), 9))
				for range rounds {
					i, b := r.IntN(each), byte(1+r.IntN(250))
					if r.IntN(4) == 0 {
						b = 0
					}
					if err := writePage(l, pageOf(w, i), b); err != nil {
						t.Error(err)
					}
					last[w][i] = b
					if r.IntN(40) == 0 {
						if err := l.Sync(); err != nil {
							t.Error(err)
						}
					}
					if err := checkPage(l, pageOf(w, i), b); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range 2 {
			others.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					runs(l)
					l.Dirty()
					if err := l.Sync(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		others.Wait()
		l = reopen(t, fsys, l)
		pages := int64(0)
		for w := range writers {
			pages += int64(len(last[w]))
			for i, b := range last[w] {
				if err := checkPage(l, pageOf(w, i), b); err != nil {
					t.Error(err)
				}
			}
		}
		if data, zero := l.Pages(); data+zero != pages {
			t.Errorf("got %d data, %d zero, want %d", data, zero, pages)
		}
	})
}

// writePage writes a page of one byte; 0 makes it Zero.
func writePage(l *layer.Layer, page int64, b byte) error {
	if b == 0 {
		return l.Zero(page, 1)
	}
	if l.Lookup(page) == layer.Data {
		return l.Patch(filled(b, 1), page*layer.PageSize)
	}
	_, err := l.WriteAt(filled(b, 1), page*layer.PageSize)
	return err
}

func checkPage(l *layer.Layer, page int64, b byte) error {
	got := make([]byte, layer.PageSize)
	switch l.Lookup(page) {
	case layer.Below:
		return fmt.Errorf("page %d is below", page)
	case layer.Data:
		if _, err := l.ReadAt(got, page*layer.PageSize); err != nil {
			return err
		}
	}
	if !bytes.Equal(got, filled(b, 1)) {
		return fmt.Errorf("page %d: got %d..., want %d", page, got[0], b)
	}
	return nil
}

// TestAllocations proves that reading, and writing what is Data already, make
// no garbage.
func TestAllocations(t *testing.T) {
	l := create(t, openDir(t), "l", volume)
	for range 600 {
		mustWrite(t, l, rand.Int64N(1<<14), filled(1, 1))
	}
	mustWrite(t, l, 1<<14, filled(1, 8))
	p := filled(2, 8)
	for what, fn := range map[string]func(){
		"write":  func() { mustWrite(t, l, 1<<14, p) },
		"patch":  func() { l.Patch(p[:100], 1<<14*layer.PageSize+50) },
		"read":   func() { l.ReadAt(p, 1<<14*layer.PageSize) },
		"now":    func() { l.ReadNow(p, 1<<14*layer.PageSize) },
		"lookup": func() { l.Lookup(100) },
		"run":    func() { l.Run(0, 1<<20) },
	} {
		if n := testing.AllocsPerRun(100, fn); n > 0 {
			t.Errorf("%s: got %v allocations, want none", what, n)
		}
	}
}

// TestGolden holds the map file against the one that is kept.
func TestGolden(t *testing.T) {
	dir := t.TempDir()
	d, err := layer.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l := create(t, d, "l", 1<<30)
	mustWrite(t, l, 1, filled(1, 3))
	mustWrite(t, l, 1<<14-1, filled(1, 2))
	if err := l.Zero(2, 1); err != nil {
		t.Fatal(err)
	}
	if err := l.Zero(7, 10); err != nil {
		t.Fatal(err)
	}
	want := runs(l)
	l = reopen(t, d, l)
	got, err := os.ReadFile(filepath.Join(dir, "l/map.000"))
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/map.000")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, golden); diff != "" {
		t.Errorf("map file (-got +want):\n%s", diff)
	}
	if err := os.WriteFile(filepath.Join(dir, "l/map.000"), golden, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = mustOpen(t, d, 1<<30)
	if diff := cmp.Diff(runs(l), want); diff != "" {
		t.Errorf("read from the golden (-got +want):\n%s", diff)
	}
}

// TestCorrupt opens directories that no layer has written.
func TestCorrupt(t *testing.T) {
	const size = 1 << 30
	write := func(name string, p []byte, off int64) func(testing.TB, layer.FS) {
		return func(t testing.TB, fsys layer.FS) { writeFile(t, fsys, name, p, off) }
	}
	for name, damage := range map[string]func(testing.TB, layer.FS){
		"state 3":           write("l/map.000", []byte{0x30}, 40_000),
		"page behind":       write("l/map.000", []byte{2}, size/layer.PageSize/4),
		"map too long":      write("l/map.000", []byte{0}, 16<<20),
		"data too short":    write("l/map.000", []byte{1}, 4),
		"stripe behind":     write("l/map.001", nil, 0),
		"foreign file":      write("l/notes", nil, 0),
		"temporary file":    write("l/map.000.tmp", nil, 0),
		"data file missing": func(t testing.TB, fsys layer.FS) { fsys.Remove("l/data.000") },
	} {
		t.Run(name, func(t *testing.T) {
			fsys := layertest.New(t)
			l := create(t, fsys, "l", size)
			mustWrite(t, l, 3, filled(1, 2))
			l = reopen(t, fsys, l)
			damage(t, fsys)
			l.Close()
			_, err := layer.Open(fsys, "l", size, keysOf(fsys))
			wantKind(t, "open", err, snapferry.Corrupt)
			if n := fsys.Handles(); n > 0 {
				t.Errorf("%d files are still open", n)
			}
		})
	}
}

func writeFile(t testing.TB, fsys layer.FS, name string, p []byte, off int64) {
	t.Helper()
	f, err := fsys.OpenFile(name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func TestClosed(t *testing.T) {
	d := openDir(t)
	l := create(t, d, "l", volume)
	mustWrite(t, l, 3, filled(1, 2))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"write": second(l.WriteAt(filled(1, 1), 0)),
		"read":  second(l.ReadAt(filled(1, 1), 3*layer.PageSize)),
		"now":   second(l.ReadNow(filled(1, 1), 3*layer.PageSize)),
		"sync":  l.Sync(),
		"zero":  l.Zero(3, 1),
		"touch": l.Zero(stripePages, 1),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: got %v, want %v", what, err, fs.ErrClosed)
		}
	}
}
