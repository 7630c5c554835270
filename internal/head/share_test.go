package head_test

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
)

// two are two volumes over the same version, with a cache.
func two(t *testing.T) (vs *versions, caches *head.Caches, base *disk, vols [2]*head.Volume) {
	t.Helper()
	vs, base = newVersions(), newDisk(4<<20)
	for off := int64(0); off < base.size; off += page {
		base.write(bytes.Repeat([]byte{byte(off / page), 1}, page/2), off)
	}
	id := vs.add(base)
	fs := tempFS(t)
	caches, err := head.OpenCaches(fs, "caches", 1<<40, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, dir := range []string{"a", "b"} {
		if err := head.Create(fs, dir, base.size, id, nil); err != nil {
			t.Fatal(err)
		}
		if vols[i], err = head.Open(t.Context(), head.Config{FS: fs, Dir: dir, Image: vs.open, Caches: caches}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { vols[i].Close() })
	}
	return vs, caches, base, vols
}

func wantAt(t *testing.T, v *head.Volume, d *disk, off, n int64) {
	t.Helper()
	got, want := make([]byte, n), make([]byte, n)
	if _, err := v.ReadAt(got, off); err != nil {
		t.Fatal(err)
	}
	d.read(want, off)
	if !bytes.Equal(got, want) {
		t.Errorf("at %d: got %x, want %x", off, got[:8], want[:8])
	}
}

// What one volume fetches of its newer base does not become what another one
// reads, although they share the cache of the version they began with.
func TestCacheIsOfItsVersion(t *testing.T) {
	vs, _, base, vols := two(t)
	a, b := vols[0], vols[1]
	p := bytes.Repeat([]byte{0xaa}, page)
	if _, err := a.WriteAt(p, 3*snapferry.BlockSize); err != nil {
		t.Fatal(err)
	}
	frozen, err := head.Freeze(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	next := base.clone()
	next.write(p, 3*snapferry.BlockSize)
	if err := a.Sealed(t.Context(), frozen[0], vs.add(next)); err != nil {
		t.Fatal(err)
	}
	wantAt(t, a, next, 3*snapferry.BlockSize+page, page) // fetches the block
	wantAt(t, b, base, 3*snapferry.BlockSize, 2*page)
	wantAt(t, a, next, 3*snapferry.BlockSize, 2*page)
}

// Many who want the same blocks fetch them once, and for both volumes; also who looked
// for one just before it came.
func TestFetchOnce(t *testing.T) {
	_, _, base, vols := two(t)
	var wrong atomic.Int64
	for off := int64(0); off < base.size; off += snapferry.BlockSize {
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				got, want := make([]byte, snapferry.BlockSize), make([]byte, snapferry.BlockSize)
				base.read(want, off)
				if _, err := vols[i%2].ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
					wrong.Add(1)
				}
			})
		}
		wg.Wait()
		if n := vols[0].Stats().Fetched + vols[1].Stats().Fetched; n > base.size {
			t.Fatalf("fetched %d bytes by byte %d", n, off)
		}
	}
	if wrong.Load() > 0 {
		t.Errorf("%d readers got something else", wrong.Load())
	}
	if n := vols[0].Stats().Fetched + vols[1].Stats().Fetched; n != base.size {
		t.Errorf("fetched %d bytes of %d", n, base.size)
	}
}
