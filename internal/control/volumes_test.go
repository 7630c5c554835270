package control_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// A shelf is an exporter that serves nobody: it opens what it is to serve.
type shelf struct {
	mu   sync.Mutex
	open map[snapferry.VolumeID]snapferry.Export
}

func (s *shelf) Serve(id snapferry.VolumeID, name string, e snapferry.Export) (snapferry.Export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[snapferry.VolumeID]snapferry.Export{}
	}
	e.URI = "nbd+unix:///" + name
	s.open[id] = e
	return e, nil
}

func (s *shelf) Stop(id snapferry.VolumeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, id)
	return nil
}

// newLively is a region alone that has live volumes.
func newLively(t *testing.T) *alone {
	t.Helper()
	return newLivelyOver(t, nil, 64<<20)
}

// newLivelyOver is newLively with a driver of its bucket and a budget of what is
// near.
func newLivelyOver(t *testing.T, d blob.Driver, budget int64) *alone {
	t.Helper()
	return newLivelyOn(t, simtest.Options{Driver: d, CacheBytes: budget}, func(fs layer.FS) layer.FS { return fs })
}

// newLivelyOn is newLively with options, and what a file system is wrapped in.
func newLivelyOn(t *testing.T, o simtest.Options, wrap func(layer.FS) layer.FS) *alone {
	t.Helper()
	dir, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o.Jobs, o.Files, o.Exporter = true, wrap(dir), &shelf{}
	r := simtest.NewRegion(t, o)
	t.Cleanup(func() { r.Stop(); dir.Close() })
	a := &alone{Region: r, t: t, files: o.Files}
	a.at = a.Account("a")
	return a
}

func (a *alone) volume(q control.VolumeRequest) snapferry.Volume {
	a.t.Helper()
	vs, err := a.Control.CreateVolumes(a.t.Context(), a.at, q)
	if err != nil {
		a.t.Fatal(err)
	}
	if vs[0].State != snapferry.VolumeAvailable {
		a.t.Fatalf("volume: got %+v, want available", vs[0])
	}
	return vs[0]
}

// lively is a volume and the disk it must be.
type lively struct {
	*alone
	id   snapferry.VolumeID
	disk *simtest.Disk
	rng  *rand.Rand
	n    int
}

func (l *lively) open() *head.Volume {
	l.t.Helper()
	h, err := l.Control.Live(l.t.Context(), l.id)
	if err != nil {
		l.t.Fatal(err)
	}
	return h
}

// write changes some pages of both.
func (l *lively) write(pages int) {
	l.t.Helper()
	h := l.open()
	for range pages {
		l.n++
		p := bytes.Repeat([]byte{byte(l.n), byte(l.n >> 8), byte(l.rng.IntN(256)), 1}, 1024)
		off := int64(l.rng.IntN(int(l.disk.Size()/4096))) * 4096
		if l.rng.IntN(3) == 0 {
			p, off = p[:512], off+512
		}
		if _, err := h.WriteAt(p, off); err != nil {
			l.t.Fatal(err)
		}
		if _, err := l.disk.WriteAt(p, off); err != nil {
			l.t.Fatal(err)
		}
	}
}

// same compares the volume with the disk.
func (l *lively) same() {
	l.t.Helper()
	got, want := make([]byte, l.disk.Size()), make([]byte, l.disk.Size())
	if _, err := l.open().ReadAt(got, 0); err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.disk.ReadAt(want, 0); err != nil {
		l.t.Fatal(err)
	}
	for i := range want {
		if got[i] != want[i] {
			l.t.Fatalf("volume %s differs from its disk at %d: got %x, want %x", l.id, i, got[i], want[i])
		}
	}
}

// snapshot takes one of a volume, and returns what it must have.
func (l *lively) snapshot() (snapferry.SnapshotID, *simtest.Disk) {
	l.t.Helper()
	s, err := l.Control.SnapshotVolumes(l.t.Context(), l.at, control.VolumeSnapshotRequest{Volumes: []snapferry.VolumeID{l.id}})
	if err != nil {
		l.t.Fatal(err)
	}
	return s[0].ID, l.disk.Clone(l.disk.Size())
}

// calm waits until no snapshot of a volume is under way and nothing is left to
// be freed.
func (a *alone) calm(id snapferry.VolumeID) {
	a.t.Helper()
	idle(a.t, a.Region, "volume at rest", func(tx *meta.Tx) (bool, error) {
		uploads, err := tx.Uploads(id)
		if err != nil || len(uploads) > 0 {
			return false, err
		}
		h, err := tx.Head(id)
		if err != nil {
			return snapferry.IsKind(err, snapferry.NotFound), nil
		}
		if h.State == snapferry.VolumeRollingBack || h.State == snapferry.VolumeDeleting {
			return false, nil
		}
		holds, err := tx.HoldsOfKind("volume")
		n := 0
		for _, x := range holds {
			if x.Owner == string(id) {
				n++
			}
		}
		return n <= 1, err
	})
}

// unmade deletes a volume, and waits until it is gone.
func (a *alone) unmade(id snapferry.VolumeID) {
	a.t.Helper()
	if err := a.Control.DeleteVolume(a.t.Context(), a.at, id); err != nil {
		a.t.Fatal(err)
	}
	idle(a.t, a.Region, "volume gone", func(tx *meta.Tx) (bool, error) {
		_, err := tx.Head(id)
		return snapferry.IsKind(err, snapferry.NotFound), nil
	})
}

func newVolume(t *testing.T, a *alone, q control.VolumeRequest, seed uint64) *lively {
	v := a.volume(q)
	return &lively{alone: a, id: v.ID, disk: simtest.NewDisk(v.Size), rng: rand.New(rand.NewPCG(seed, 1))}
}

// Snapshots of a live volume are what it had, through restarts, deletions and
// rollbacks; a volume of a snapshot has it at once; and when all is deleted
// nothing is left.
func TestLiveVolume(t *testing.T) {
	a := newLively(t)
	l := newVolume(t, a, control.VolumeRequest{Size: 5<<20 + 512, Name: "data"}, 1)
	l.write(30)
	first, firstDisk := l.snapshot()
	l.write(20)
	second, secondDisk := l.snapshot()
	l.write(10)
	l.same()
	a.ready(first, firstDisk)
	s := a.ready(second, secondDisk)
	if s.Parent != first || s.Counts.Changed >= firstDisk.Size() {
		t.Errorf("second snapshot: got parent %s, %d bytes changed; want %s, fewer", s.Parent, s.Counts.Changed, first)
	}
	l.calm(l.id)
	a.Restart()
	l.same()

	// A copy of it, larger than it was.
	c := newVolume(t, a, control.VolumeRequest{Snapshot: first, Size: 8 << 20, Name: "copy"}, 2)
	c.disk = firstDisk.Clone(8 << 20)
	c.same()
	c.write(20)
	c.same()
	third, thirdDisk := c.snapshot()
	if s := a.ready(third, thirdDisk); s.Parent != first {
		t.Errorf("snapshot of a volume made from %s: got parent %s", first, s.Parent)
	}

	// What the snapshot under way consists of, when one before it is deleted.
	l.write(5)
	fourth, _ := l.snapshot()
	l.write(5)
	fifth, fifthDisk := l.snapshot()
	if err := a.Control.Delete(t.Context(), a.at, fourth); err != nil {
		t.Fatal(err)
	}
	a.ready(fifth, fifthDisk)
	l.calm(l.id)

	l.write(7)
	before := l.disk.Clone(l.disk.Size())
	v, err := a.Control.RollbackVolume(t.Context(), a.at, l.id, control.RollbackRequest{Snapshot: second})
	if err != nil {
		t.Fatal(err)
	}
	l.calm(l.id)
	l.disk = secondDisk.Clone(v.Size)
	l.same()
	l.write(3)
	l.same()
	safety := a.newest("data")
	a.ready(safety.ID, before)
	a.Restart()
	l.same()
	c.same()

	a.unmade(l.id)
	a.unmade(c.id)
	a.ready(first, firstDisk)
	a.ready(third, thirdDisk)
	all, err := a.Control.Snapshots(t.Context(), a.at, control.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if err := a.Control.Delete(t.Context(), a.at, s.ID); err != nil {
			t.Fatal(err)
		}
	}
	a.empty()
}

// What a volume that is only written to has in the bucket by now is kept within
// the budget.
func TestUploadedCountsForBudget(t *testing.T) {
	const budget = 1 << 20
	a := newLivelyOver(t, nil, budget)
	l := newVolume(t, a, control.VolumeRequest{Size: 8 << 20, Name: "data"}, 1)
	for range 2 {
		l.write(600)
		a.ready(l.snapshot())
		l.calm(l.id)
	}
	a.Restart() // waits for what works in the background
	if st := l.open().Stats(); st.Near > budget || st.Dirty > 0 {
		t.Errorf("got %d bytes near and %d only here, want at most %d and none", st.Near, st.Dirty, budget)
	}
	l.same()
}

// A rollback whose safety snapshot does not come about is none: nothing is lost.
func TestRollbackNotSafe(t *testing.T) {
	m := &meddler{Driver: memblob.New()}
	a := newLivelyOver(t, m, 64<<20)
	l := newVolume(t, a, control.VolumeRequest{Size: 1 << 20, Name: "data"}, 1)
	l.write(9)
	first, firstDisk := l.snapshot()
	a.ready(first, firstDisk)
	l.calm(l.id)
	l.write(9)
	asked, let := make(chan struct{}, 10), make(chan struct{})
	m.set(func(name string) {
		if strings.HasPrefix(name, "objects/") {
			asked <- struct{}{}
			<-let
		}
	})
	if _, err := a.Control.RollbackVolume(t.Context(), a.at, l.id, control.RollbackRequest{Snapshot: first}); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := a.Control.Delete(t.Context(), a.at, a.newest("data").ID); err != nil {
		t.Fatal(err)
	}
	close(let)
	l.calm(l.id)
	v, err := a.Control.Volume(t.Context(), a.at, l.id)
	if err != nil || v.State != snapferry.VolumeAvailable || v.Reason == "" {
		t.Errorf("the volume: got %+v, %v; want it as it was, and why", v, err)
	}
	l.same()
	if _, err := a.Control.RollbackVolume(t.Context(), a.at, l.id, control.RollbackRequest{Snapshot: first, NoSafety: true}); err != nil {
		t.Fatal(err)
	}
	l.calm(l.id)
	l.disk = firstDisk
	l.same()
}

// offline changes the metadata while the region is stopped.
func (a *alone) offline(fn func(tx *meta.Tx) error) {
	a.t.Helper()
	a.Offline(func(path string, _ *blob.Bucket) {
		db, err := meta.Open(a.t.Context(), meta.Config{Path: path})
		if err == nil {
			err = db.Update(a.t.Context(), fn)
		}
		if err == nil {
			err = db.Close()
		}
		if err != nil {
			a.t.Fatal(err)
		}
	})
	<-a.Control.Started()
}

// forget makes what the metadata says of a volume's base what it was earlier.
func (l *lively) forget(old meta.Head) {
	l.t.Helper()
	l.offline(func(tx *meta.Tx) error {
		h, err := tx.Head(l.id)
		if err != nil {
			return err
		}
		h.Base, h.Layer = old.Base, old.Layer
		return tx.UpdateHead(h)
	})
}

// Metadata that knows nothing of a volume, or less than its folder does, learns it
// from there; what is in no snapshot is not lost. What a volume held whose folder
// is gone is freed.
func TestVolumesAreAdopted(t *testing.T) {
	a := newLively(t)
	l := newVolume(t, a, control.VolumeRequest{Size: 1 << 20, Name: "data"}, 1)
	l.write(9)
	first, firstDisk := l.snapshot()
	a.ready(first, firstDisk)
	l.calm(l.id)
	var old meta.Head
	a.View(func(tx *meta.Tx) (err error) {
		old, err = tx.Head(l.id)
		return err
	})
	l.write(9)
	second, secondDisk := l.snapshot()
	a.ready(second, secondDisk)
	l.write(9)
	l.calm(l.id)

	a.offline(func(tx *meta.Tx) error { return tx.DeleteHead(l.id) })
	l.same()
	l.write(3)
	l.same()

	l.forget(old)
	l.same()
	third, thirdDisk := l.snapshot()
	if s := a.ready(third, thirdDisk); s.Parent != second {
		t.Errorf("third snapshot: got parent %s, want %s", s.Parent, second)
	}
	l.calm(l.id)

	// One that has been put back since.
	a.View(func(tx *meta.Tx) (err error) {
		old, err = tx.Head(l.id)
		return err
	})
	if _, err := a.Control.RollbackVolume(t.Context(), a.at, l.id, control.RollbackRequest{Snapshot: first, NoSafety: true}); err != nil {
		t.Fatal(err)
	}
	l.calm(l.id)
	l.disk = firstDisk.Clone(firstDisk.Size())
	l.write(2)
	l.forget(old)
	l.same()
	fourth, fourthDisk := l.snapshot()
	if s := a.ready(fourth, fourthDisk); s.Parent != first {
		t.Errorf("fourth snapshot: got parent %s, want %s", s.Parent, first)
	}
	l.calm(l.id)

	a.offline(func(tx *meta.Tx) error {
		if err := head.Remove(a.files, "volumes/"+string(l.id)); err != nil {
			return err
		}
		return tx.DeleteHead(l.id)
	})
	all, err := a.Control.Snapshots(t.Context(), a.at, control.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if err := a.Control.Delete(t.Context(), a.at, s.ID); err != nil {
			t.Fatal(err)
		}
	}
	a.empty()
}

// newest returns the newest snapshot of a lineage.
func (a *alone) newest(volume string) snapferry.Snapshot {
	a.t.Helper()
	all, err := a.Control.Snapshots(a.t.Context(), a.at, control.Filter{Volume: volume, Limit: 1})
	if err != nil || len(all) == 0 {
		a.t.Fatalf("no snapshot of %s: %v", volume, err)
	}
	return all[0]
}

func TestVolumeRefused(t *testing.T) {
	a := newLively(t)
	ctx := t.Context()
	l := newVolume(t, a, control.VolumeRequest{Size: 1 << 20, Name: "data"}, 1)
	l.write(3)
	snap, disk := l.snapshot()
	a.ready(snap, disk)
	other := a.Account("b")
	create := func(q control.VolumeRequest) error {
		_, err := a.Control.CreateVolumes(ctx, a.at, q)
		return err
	}
	wantKind(t, "no size", create(control.VolumeRequest{}), snapferry.Invalid)
	wantKind(t, "odd size", create(control.VolumeRequest{Size: 1000}), snapferry.Invalid)
	wantKind(t, "65 TiB", create(control.VolumeRequest{Size: 65 << 40}), snapferry.Invalid)
	wantKind(t, "too many", create(control.VolumeRequest{Size: 512, Count: 101}), snapferry.Invalid)
	wantKind(t, "bad name", create(control.VolumeRequest{Size: 512, Name: "a b"}), snapferry.Invalid)
	wantKind(t, "the name again", create(control.VolumeRequest{Size: 512, Name: "data"}), snapferry.Exists)
	wantKind(t, "too small", create(control.VolumeRequest{Size: 512, Snapshot: snap}), snapferry.Invalid)
	wantKind(t, "no snapshot", create(control.VolumeRequest{Snapshot: snapferry.NewSnapshotID()}), snapferry.NotFound)
	_, err := a.Control.CreateVolumes(ctx, other, control.VolumeRequest{Snapshot: snap})
	wantKind(t, "a snapshot of others", err, snapferry.NotFound)
	_, err = a.Control.Volume(ctx, other, l.id)
	wantKind(t, "a volume of others", err, snapferry.NotFound)
	_, err = a.Control.ResizeVolume(ctx, a.at, l.id, 512)
	wantKind(t, "shrink", err, snapferry.Invalid)
	_, err = a.Control.SnapshotVolumes(ctx, a.at, control.VolumeSnapshotRequest{Volumes: []snapferry.VolumeID{l.id, l.id}})
	wantKind(t, "twice", err, snapferry.Invalid)
	_, err = a.Control.SnapshotVolumes(ctx, a.at, control.VolumeSnapshotRequest{})
	wantKind(t, "of nothing", err, snapferry.Invalid)
	foreign := a.imported("foreign", firstDisk())
	_, err = a.Control.RollbackVolume(ctx, a.at, l.id, control.RollbackRequest{Snapshot: foreign.ID})
	wantKind(t, "back to another family", err, snapferry.Invalid)

	if _, err := a.Control.ExportVolume(ctx, a.at, l.id, control.ExportRequest{}); err != nil {
		t.Fatal(err)
	}
	_, err = a.Control.ExportVolume(ctx, a.at, l.id, control.ExportRequest{})
	if err != nil {
		t.Errorf("export again: %v", err)
	}
	_, err = a.Control.ExportVolume(ctx, a.at, l.id, control.ExportRequest{TLS: true})
	wantKind(t, "export otherwise", err, snapferry.Conflict)
	_, err = a.Control.RollbackVolume(ctx, a.at, l.id, control.RollbackRequest{Snapshot: snap})
	wantKind(t, "back while exported", err, snapferry.Conflict)
	wantKind(t, "delete while exported", a.Control.DeleteVolume(ctx, a.at, l.id), snapferry.Conflict)
	a.Restart()
	v, err := a.Control.Volume(ctx, a.at, l.id)
	if err != nil || v.State != snapferry.VolumeExported {
		t.Errorf("after a restart: got %+v, %v", v, err)
	}
	if v, err = a.Control.UnexportVolume(ctx, a.at, l.id); err != nil || v.Export != nil {
		t.Errorf("unexport: got %+v, %v", v, err)
	}
	if err := a.Control.DeleteVolume(ctx, a.at, l.id); err != nil {
		t.Fatal(err)
	}
	_, err = a.Control.ExportVolume(ctx, a.at, l.id, control.ExportRequest{})
	if !snapferry.IsKind(err, snapferry.Conflict) && !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("export of a deleted volume: got %v", err)
	}
}

// Several volumes are frozen between two writes: what one of them has of a
// sequence of writes to all is never ahead of what another has.
func TestBarrier(t *testing.T) {
	a := newLively(t)
	var ids []snapferry.VolumeID
	var heads []*head.Volume
	for range 3 {
		l := newVolume(t, a, control.VolumeRequest{Size: 1 << 20}, 1)
		ids, heads = append(ids, l.id), append(heads, l.open())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		p := make([]byte, 4096)
		for n := uint32(1); ctx.Err() == nil; n++ {
			for _, h := range heads {
				for i := 0; i < len(p); i += 4 {
					p[i], p[i+1], p[i+2], p[i+3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
				}
				if _, err := h.WriteAt(p, 4096*int64(n%7)); err != nil {
					t.Error(err)
					return
				}
				if _, err := h.WriteAt(p, 512<<10); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	var sets [][]snapferry.Snapshot
	for range 20 {
		set, err := a.Control.SnapshotVolumes(t.Context(), a.at, control.VolumeSnapshotRequest{Volumes: ids})
		if err != nil {
			t.Fatal(err)
		}
		for i := range set {
			s, err := a.Control.Wait(t.Context(), a.at, set[i].ID, -1, patience)
			if err != nil || s.State != snapferry.SnapshotReady {
				t.Fatalf("snapshot: got %s (%s), %v", s.State, s.Reason, err)
			}
		}
		sets = append(sets, set)
	}
	cancel()
	writer.Wait()
	for _, set := range sets {
		var last [3]uint32
		for i, s := range set {
			d := simtest.NewDisk(1 << 20)
			if err := a.Control.Export(t.Context(), a.at, s.ID, d, nil); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4)
			if _, err := d.ReadAt(p, 512<<10); err != nil {
				t.Fatal(err)
			}
			last[i] = uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
		}
		if last[0] < last[1] || last[1] < last[2] || last[0]-last[2] > 1 {
			t.Errorf("a set has the writes up to %d of its three volumes", last)
		}
	}
}

// crowded is a file system on which a volume's record of what it is made of may
// have no room.
type crowded struct {
	layer.FS
	full atomic.Bool
}

func (c *crowded) OpenFile(name string, create bool) (layer.File, error) {
	if create && path.Base(name) == "stack.new" && c.full.Load() {
		return nil, layer.Failure("make "+name, syscall.ENOSPC)
	}
	return c.FS.OpenFile(name, create)
}

// A volume that could not be told of its new base can be used, written to or not
// since, also after a restart, and is told when there is room.
func TestNoRoomToBeTold(t *testing.T) {
	for _, written := range []bool{false, true} {
		for _, room := range []bool{false, true} {
			t.Run(fmt.Sprintf("written %t, room %t", written, room), func(t *testing.T) {
				fs := &crowded{}
				a := newLivelyOn(t, simtest.Options{CacheBytes: 64 << 20}, func(dir layer.FS) layer.FS { fs.FS = dir; return fs })
				l := newVolume(t, a, control.VolumeRequest{Size: 5 << 20, Name: "data"}, 1)
				l.write(30)
				a.ready(l.snapshot())
				l.calm(l.id)
				l.write(10)
				fs.full.Store(true)
				a.ready(l.snapshot())
				if written {
					l.write(10)
				}
				l.same()
				if room {
					fs.full.Store(false)
				}
				a.Restart()
				l.same()
				l.write(10)
				l.same()
				fs.full.Store(false)
				a.Restart()
				l.same()
				if st := l.open().Stats(); st.Near == 0 {
					t.Errorf("got %d bytes near, %d only here, want the snapshots near", st.Near, st.Dirty)
				}
				a.ready(l.snapshot())
				l.calm(l.id)
				l.same()
			})
		}
	}
}

// flaky is a file system whose files cannot be read once, at the nth read.
type flaky struct {
	layer.FS
	reads, at atomic.Int64
}

type flakyFile struct {
	layer.File
	fs *flaky
}

func (f *flaky) OpenFile(name string, create bool) (layer.File, error) {
	file, err := f.FS.OpenFile(name, create)
	return flakyFile{file, f}, err
}

func (f flakyFile) ReadAt(p []byte, off int64) (int, error) {
	if f.fs.reads.Add(1) == f.fs.at.Load() {
		return 0, snapferry.Errorf(snapferry.Unavailable, "cannot be read just now")
	}
	return f.File.ReadAt(p, off)
}

// An upload that is interrupted goes on where it was.
func TestUploadGoesOn(t *testing.T) {
	fs := &flaky{}
	a := newLivelyOn(t, simtest.Options{CacheBytes: 64 << 20}, func(dir layer.FS) layer.FS { fs.FS = dir; return fs })
	l := newVolume(t, a, control.VolumeRequest{Size: 384 << 20, Name: "data"}, 1) // many leaves: a few are under way at a time
	l.write(900)
	fs.reads.Store(0)
	first, firstDisk := l.snapshot()
	a.ready(first, firstDisk)
	all := fs.reads.Load()
	l.calm(l.id)

	// All of it is changed again.
	l.disk, l.rng = simtest.NewDisk(l.disk.Size()), rand.New(rand.NewPCG(1, 1))
	h := l.open()
	if err := h.Zero(0, l.disk.Size(), false); err != nil {
		t.Fatal(err)
	}
	l.write(900)
	fs.reads.Store(0)
	fs.at.Store(all * 3 / 4)
	second, secondDisk := l.snapshot()
	s := a.ready(second, secondDisk)
	if n := fs.reads.Load() - fs.at.Load(); n > all*3/4 {
		t.Errorf("%d of %d reads after the one that failed, want less than three quarters", n, all)
	}
	if s.Counts.Changed != s.Counts.Present || s.Counts.Read < s.Counts.Present {
		t.Errorf("counts: got %+v; want what is present changed, each block once, and all read", s.Counts)
	}
	l.calm(l.id)
	l.same()
}
