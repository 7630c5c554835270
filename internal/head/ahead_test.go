package head_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// together is an image whose reads of 1 MiB wait until three are under way.
type together struct {
	head.Image
	mu    sync.Mutex
	under int
	three chan struct{}
}

func (w *together) Read(ctx context.Context, first uint64, dst []byte) error {
	if len(dst) == 1<<20 {
		w.mu.Lock()
		if w.under++; w.under == 3 {
			close(w.three)
		}
		w.mu.Unlock()
		<-w.three
	}
	return w.Image.Read(ctx, first, dst)
}

// Who reads on and on does not wait for each read of the bucket by itself, and
// what was read ahead is not read again.
func TestReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vs, disk := newVersions(), newDisk(20<<20)
		for off := int64(0); off < disk.size; off += 64 << 10 {
			disk.write(bytes.Repeat([]byte{byte(off>>16) | 1}, 64<<10), off)
		}
		id := vs.add(disk)
		fs := layertest.New(t)
		if err := head.Create(fs, "v", disk.size, id, nil); err != nil {
			t.Fatal(err)
		}
		caches, err := head.OpenCaches(fs, "caches", 1<<30, nil)
		if err != nil {
			t.Fatal(err)
		}
		im := &together{three: make(chan struct{})}
		im.Image, err = vs.open(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v", Caches: caches, Image: func(context.Context, snapferry.VersionID) (head.Image, error) { return im, nil }})
		if err != nil {
			t.Fatal(err)
		}
		got, want := make([]byte, 128<<10), make([]byte, 128<<10)
		for off := int64(0); off < disk.size; off += int64(len(got)) {
			if _, err := v.ReadAt(got, off); err != nil {
				t.Fatal(err)
			}
			if disk.read(want, off); !bytes.Equal(got, want) {
				t.Fatalf("128 KiB at %d differ", off)
			}
		}
		synctest.Wait()
		// What ends between a look into the cache and the claim comes once more.
		if n := v.Stats().Fetched; n < disk.size || n > disk.size+2<<20 {
			t.Errorf("fetched %d bytes for a volume of %d", n, disk.size)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		if err := caches.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
