package control_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// marker is what is written to encrypted volumes, and must not be found anywhere.
var marker = []byte("never-in-the-clear-")

func marked(n int) []byte { return bytes.Repeat(marker, n/len(marker)+1)[:n] }

// clearIn returns the files of a folder that have the marker in the clear.
func clearIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		p, err := os.ReadFile(path)
		if bytes.Contains(p, marker) {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestEncryptedVolume writes to an encrypted volume whole pages and parts of pages,
// takes a snapshot, and makes a volume of that: all are encrypted with one key, and
// what was written stands in no file and no object; of a plain one it does.
func TestEncryptedVolume(t *testing.T) {
	t.Parallel()
	t.Run("plain", func(t *testing.T) { testEncryptedVolume(t, control.Sealing{}) })
	t.Run("encrypted", func(t *testing.T) { testEncryptedVolume(t, control.Sealing{Key: "one"}) })
}

func testEncryptedVolume(t *testing.T, sealing control.Sealing) {
	dir := t.TempDir()
	files, err := layer.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	a := newLivelyOn(t, simtest.Options{CacheBytes: 1 << 30}, func(layer.FS) layer.FS { return files })
	t.Cleanup(func() { a.Stop(); files.Close() })
	want := snapferry.KeyID("")
	if one := key(t, a.Region, a.at, "one"); sealing.Key != "" {
		want = one.ID
	}
	key(t, a.Region, a.at, "two")
	const size = 3 << 20
	v := a.volume(control.VolumeRequest{Name: "first", Size: size, Count: 1, Sealing: sealing})
	if v.Key != want || v.Encrypted != (want != "") {
		t.Errorf("the volume has key %q, encrypted %v", v.Key, v.Encrypted)
	}
	l := &lively{alone: a, id: v.ID, disk: simtest.NewDisk(size), rng: rand.New(rand.NewPCG(1, 1))}
	put := func(p []byte, off int64) {
		if _, err := l.open().WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		if _, err := l.disk.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	put(marked(100_000), 4096)
	put(marked(700), 1<<20+512)
	put(marked(40), 4096+700)
	id, disk := l.snapshot()
	l.write(40)
	put(marked(512), 2<<20)
	a.calm(v.ID)
	if s := a.ready(id, disk); s.Key != want || s.Encrypted != (want != "") {
		t.Errorf("the snapshot has key %q, encrypted %v", s.Key, s.Encrypted)
	}
	a.Restart()
	l.same()
	w := a.volume(control.VolumeRequest{Name: "second", Snapshot: id, Count: 1})
	if w.Key != want {
		t.Errorf("the volume of the snapshot has key %q", w.Key)
	}
	again := &lively{alone: a, id: w.ID, disk: disk.Clone(size), rng: rand.New(rand.NewPCG(2, 1))}
	again.same() // what was read is near now
	again.write(20)
	again.same()
	_, err = a.Control.CreateVolumes(t.Context(), a.at, control.VolumeRequest{Snapshot: id, Count: 1, Sealing: control.Sealing{Key: "two"}})
	wantKind(t, "a volume with another key than its snapshot", err, snapferry.Conflict)
	found := clearIn(t, dir)
	err = a.Bucket.List(t.Context(), "", "", func(i blob.Info) error {
		p, err := a.Bucket.Get(t.Context(), i.Name, blob.MaxBody)
		if bytes.Contains(p, marker) {
			found = append(found, i.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case want != "" && len(found) > 0:
		t.Errorf("the marker is in %q", found)
	case want == "" && len(found) < 3: // a layer, what is near of the snapshot, a segment
		t.Errorf("the marker is in %q only: this search finds nothing", found)
	}
}

// TestVolumeOfDisabledKey disables the key of a volume that is served: what is here
// is read and written on, what has to be fetched is refused, and a snapshot waits. It
// is not opened again before the key is enabled; then all is as it was.
func TestVolumeOfDisabledKey(t *testing.T) {
	t.Parallel()
	a := newLivelyOver(t, nil, 1<<30)
	key(t, a.Region, a.at, "one")
	set := func(do control.KeyAction) {
		t.Helper()
		if _, err := a.Control.ChangeKey(t.Context(), a.at, "one", do); err != nil {
			t.Fatal(err)
		}
	}
	const size = 8 << 20
	first := a.volume(control.VolumeRequest{Name: "first", Size: size, Count: 1, Sealing: control.Sealing{Key: "one"}})
	l := &lively{alone: a, id: first.ID, disk: simtest.NewDisk(size), rng: rand.New(rand.NewPCG(1, 1))}
	l.write(200)
	id, _ := l.snapshot()
	a.calm(first.ID)
	v := a.volume(control.VolumeRequest{Name: "second", Snapshot: id, Count: 1})
	k := &lively{alone: a, id: v.ID, disk: l.disk.Clone(size), rng: rand.New(rand.NewPCG(2, 1))}
	near := make([]byte, 4096)
	if _, err := k.open().ReadAt(near, 0); err != nil {
		t.Fatal(err)
	}

	set(control.KeyDisable)
	p := make([]byte, size)
	if _, err := l.open().ReadAt(p, 0); err != nil {
		t.Errorf("what is here cannot be read: %v", err)
	}
	l.write(50)
	if err := l.open().Sync(); err != nil {
		t.Errorf("sync: %v", err)
	}
	if _, err := k.open().ReadAt(near, 0); err != nil {
		t.Errorf("what is near cannot be read: %v", err)
	}
	_, err := k.open().ReadAt(p, 0)
	wantKind(t, "what has to be fetched", err, snapferry.KeyUnusable)
	_, err = a.Control.CreateVolumes(t.Context(), a.at, control.VolumeRequest{Snapshot: id, Count: 1})
	wantKind(t, "a new volume of the snapshot", err, snapferry.KeyUnusable)
	_, err = a.Control.CreateVolumes(t.Context(), a.at, control.VolumeRequest{Size: size, Count: 1, Sealing: control.Sealing{Key: "one"}})
	wantKind(t, "a new volume with the key", err, snapferry.KeyUnusable)
	waits, disk := l.snapshot()
	idle(t, a.Region, "the upload that waits", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOf(string(l.id))
		for _, j := range jobs {
			if strings.Contains(j.Error, "disabled") {
				return true, err
			}
		}
		return false, err
	})
	s, err := a.Control.Snapshot(t.Context(), a.at, waits)
	if err != nil || s.State != snapferry.SnapshotCreating {
		t.Errorf("a snapshot under a disabled key: got %s, %v, want creating", s.State, err)
	}
	a.Restart()
	for _, id := range []snapferry.VolumeID{l.id, k.id} {
		_, err := a.Control.Live(t.Context(), id)
		wantKind(t, "open", err, snapferry.KeyUnusable)
		if snapferry.HintOf(err) == "" {
			t.Error("open: no hint")
		}
	}

	set(control.KeyEnable)
	l.same()
	k.same()
	a.ready(waits, disk)
	a.calm(l.id)
	l.same()
}

// TestLazyReadWaitsForKey disables a key at the moment in which a read waits for the
// bucket: the read ends with the content or with the reason, never with other bytes.
func TestLazyReadWaitsForKey(t *testing.T) {
	t.Parallel()
	a := newLivelyOver(t, nil, 1<<30)
	key(t, a.Region, a.at, "one")
	const size = 32 << 20
	first := a.volume(control.VolumeRequest{Name: "first", Size: size, Count: 1, Sealing: control.Sealing{Key: "one"}})
	l := &lively{alone: a, id: first.ID, disk: simtest.NewDisk(size), rng: rand.New(rand.NewPCG(1, 1))}
	l.write(2000)
	id, _ := l.snapshot()
	a.calm(first.ID)
	v := a.volume(control.VolumeRequest{Name: "second", Snapshot: id, Count: 1})
	k := &lively{alone: a, id: v.ID, disk: l.disk.Clone(size), rng: rand.New(rand.NewPCG(2, 1))}
	h := k.open()
	want := make([]byte, size)
	if _, err := k.disk.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	refused, whole := 0, 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p := make([]byte, 64<<10)
		for off := int64(0); off < size; off += int64(len(p)) {
			switch _, err := h.ReadAt(p, off); {
			case err == nil && !bytes.Equal(p, want[off:off+int64(len(p))]):
				t.Errorf("at %d: other bytes", off)
			case err == nil:
				whole++
			case snapferry.IsKind(err, snapferry.KeyUnusable):
				refused++
				off -= int64(len(p))
				time.Sleep(time.Millisecond)
			default:
				t.Errorf("at %d: %v", off, err)
			}
		}
	}()
	for i := 0; ; i++ {
		do := control.KeyDisable
		if i%2 == 1 {
			do = control.KeyEnable
		}
		if _, err := a.Control.ChangeKey(t.Context(), a.at, "one", do); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ended:
			if i%2 == 0 {
				continue // enabled in the end
			}
			if refused == 0 || whole != size/(64<<10) {
				t.Errorf("%d reads were refused, %d went through", refused, whole)
			}
			k.same()
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// TestVolumeMadeLater starts a region that was to make a volume whose key is disabled by
// now: the volume is made when the key is enabled.
func TestVolumeMadeLater(t *testing.T) {
	t.Parallel()
	a := newLivelyOver(t, nil, 1<<30)
	key(t, a.Region, a.at, "one")
	v := a.volume(control.VolumeRequest{Name: "v", Size: 1 << 20, Count: 1, Sealing: control.Sealing{Key: "one"}})
	set := func(do control.KeyAction) {
		t.Helper()
		if _, err := a.Control.ChangeKey(t.Context(), a.at, "one", do); err != nil {
			t.Fatal(err)
		}
	}
	set(control.KeyDisable)
	id := snapferry.NewVolumeID() // as a crash leaves it just after its transaction
	a.Update(func(tx *meta.Tx) error {
		h, err := tx.Head(v.ID)
		vol, err2 := tx.Volume(v.ID)
		h.ID, h.State, vol.ID, vol.Name = id, snapferry.VolumeCreating, id, "later"
		return errors.Join(err, err2, tx.InsertVolume(vol), tx.InsertHead(h))
	})
	state := func(want snapferry.VolumeState) func(*meta.Tx) (bool, error) {
		return func(tx *meta.Tx) (bool, error) {
			h, err := tx.Head(id)
			return h.State == want, err
		}
	}
	a.Restart()
	idle(t, a.Region, "the job that waits", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOf(string(id))
		return slices.ContainsFunc(jobs, func(j meta.Job) bool { return strings.Contains(j.Error, "disabled") }), err
	})
	idle(t, a.Region, "the volume that waits", state(snapferry.VolumeCreating))
	set(control.KeyEnable)
	idle(t, a.Region, "the volume", state(snapferry.VolumeAvailable))
	l := &lively{alone: a, id: id, disk: simtest.NewDisk(1 << 20), rng: rand.New(rand.NewPCG(1, 1))}
	l.write(20)
	l.same()
}
