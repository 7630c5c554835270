package control_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// newEarlyWorld is a world whose west has live volumes.
func newEarlyWorld(t *testing.T) *world {
	t.Helper()
	fs, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f, shelf := simtest.NewFactory(t), &shelf{}
	w := &world{t: t, shelf: shelf, toEast: simtest.NewLink("west"), toWest: simtest.NewLink("east")}
	w.east = f.NewRegion(t, simtest.Options{Name: "east", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": w.toWest.As}})
	w.west = f.NewRegion(t, simtest.Options{
		Name: "west", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": w.toEast.As}, Files: fs, CacheBytes: 1 << 30, Exporter: shelf,
	})
	w.toEast.Join(w.east)
	w.toWest.Join(w.west)
	t.Cleanup(func() { w.west.Stop(); fs.Close() })
	w.atEast, w.atWest = w.east.Account("a"), w.west.Account("a")
	return w
}

// sieve is a source that lets small requests through, those of who reads at
// random, and keeps the large ones of a copy back until it is opened.
type sieve struct {
	transfer.Source
	asked, open chan struct{}
}

func (s *sieve) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	n := 0
	for _, w := range want {
		n += w.Blocks.Count()
	}
	if n > 16 {
		select {
		case s.asked <- struct{}{}:
		default:
		}
		select {
		case <-s.open:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return s.Source.Blocks(ctx, want)
}

// earlyDisk has some leaves with many blocks.
func earlyDisk() *simtest.Disk {
	d := simtest.NewDisk(80<<20 + 512)
	for b := range uint64(600) {
		d.Fill(b, int(b%90)+1)
	}
	return d.Fill(1280, 5)
}

// A volume made from a copy that has moved nothing yet has the right bytes
// everywhere, can be written and snapshotted, and what it has read does not cross
// again.
func TestVolumeOfRunningCopy(t *testing.T) {
	w := newEarlyWorld(t)
	d := earlyDisk()
	s := w.imported(d)
	gate := &sieve{asked: make(chan struct{}, 1), open: make(chan struct{})}
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &sieve{s, gate.asked, gate.open} })
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-gate.asked

	a := &alone{Region: w.west, t: t, at: w.atWest}
	v := newVolume(t, a, control.VolumeRequest{Snapshot: c.ID, Name: "early"}, 3)
	v.disk = d.Clone(d.Size())
	v.spots(60)
	v.write(20)
	v.spots(30)
	snap, snapDisk := v.snapshot() // waits for the copy
	if n := v.open().Stats().Fetched; n == 0 {
		t.Error("nothing was read from the source")
	}
	wantKind(t, "deletion of a copy that a volume needs", w.west.Control.Delete(t.Context(), w.atWest, c.ID), snapferry.Conflict)

	// A region that comes back in the middle.
	select {
	case <-gate.asked:
	default:
	}
	w.west.Restart()
	w.toWest.Join(w.west)
	<-gate.asked // the copy goes on before anybody has opened the volume
	v.spots(20)

	close(gate.open)
	done := w.ready(c.ID, d)
	v.same()
	a.ready(snap, snapDisk)
	v.same()
	if got, want := done.Counts.Moved, s.Counts.Stored*11/10; got > want {
		t.Errorf("moved %d bytes, want at most %d: what is stored at the source", got, want)
	}
	v.calm(v.id)
	if err := w.west.Control.DeleteVolume(t.Context(), w.atWest, v.id); err != nil {
		t.Fatal(err)
	}
	w.check()
}

// spots compares stretches of a volume and its disk.
func (l *lively) spots(n int) {
	l.t.Helper()
	h := l.open()
	rng := rand.New(rand.NewPCG(uint64(n), 9))
	for range n {
		size := int64(1+rng.IntN(200)) * 512
		off := rng.Int64N(l.disk.Size() - size)
		got, want := make([]byte, size), make([]byte, size)
		if _, err := h.ReadAt(got, off); err != nil {
			l.t.Fatal(err)
		}
		if _, err := l.disk.ReadAt(want, off); err != nil {
			l.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			l.t.Fatalf("%d bytes at %d differ", size, off)
		}
	}
}

// A copy that is given up takes its volumes with it: they end in error, and never
// read as holes.
func TestAbandonedCopy(t *testing.T) {
	w := newEarlyWorld(t)
	d := earlyDisk()
	s := w.imported(d)
	gate := &sieve{asked: make(chan struct{}, 1), open: make(chan struct{})}
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &sieve{s, gate.asked, gate.open} })
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-gate.asked
	a := &alone{Region: w.west, t: t, at: w.atWest}
	v := newVolume(t, a, control.VolumeRequest{Snapshot: c.ID, Name: "early"}, 3)
	v.disk = d.Clone(d.Size())
	v.spots(3)
	h := v.open()
	if _, err := w.west.Control.ExportVolume(t.Context(), w.atWest, v.id, control.ExportRequest{}); err != nil {
		t.Fatal(err)
	}
	second := newVolume(t, a, control.VolumeRequest{Snapshot: c.ID}, 4)
	pending, _ := second.snapshot()
	if err := w.west.Control.Abandon(t.Context(), w.atWest, c.ID); err != nil {
		t.Fatal(err)
	}
	gone(t, w.west, c.ID)
	got, err := w.west.Control.Volume(t.Context(), w.atWest, v.id)
	if err != nil || got.State != snapferry.VolumeError {
		t.Errorf("the volume: got %+v, %v, want error", got, err)
	}
	p := make([]byte, 1<<20)
	if _, err := h.ReadAt(p, 20<<20); err == nil {
		t.Error("a volume without its copy still reads")
	}
	_, err = w.west.Control.SnapshotVolumes(t.Context(), w.atWest, control.VolumeSnapshotRequest{Volumes: []snapferry.VolumeID{v.id}})
	wantKind(t, "a snapshot of a volume in error", err, snapferry.Conflict)
	a.unmade(v.id)
	if n := len(w.shelf.open); n > 0 {
		t.Errorf("%d volumes are still served, want none", n)
	}

	w.west.Restart()
	w.toWest.Join(w.west)
	s, err = w.west.Control.Snapshot(t.Context(), w.atWest, pending)
	if err != nil || s.State != snapferry.SnapshotFailed || s.Reason == "" {
		t.Errorf("the snapshot under way: got %s %q, %v; want failed, and why", s.State, s.Reason, err)
	}
	a.unmade(second.id)
	w.check()
}

// Nothing is made from a copy that is about to be given up: its version goes.
func TestVolumeOfFailingCopy(t *testing.T) {
	w := newEarlyWorld(t)
	s := w.imported(earlyDisk())
	gate := &sieve{asked: make(chan struct{}, 1), open: make(chan struct{})}
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &sieve{s, gate.asked, gate.open} })
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-gate.asked
	w.west.Update(func(tx *meta.Tx) error {
		row, err := tx.Snapshot(c.ID)
		if err != nil {
			return err
		}
		row.Reason = "corrupt: told so"
		return tx.UpdateSnapshot(row)
	})
	_, err := w.west.Control.CreateVolumes(t.Context(), w.atWest, control.VolumeRequest{Snapshot: c.ID})
	wantKind(t, "a volume of a copy that fails", err, snapferry.Conflict)
	close(gate.open)
}

// bystander is a source that counts what comes, keeps back the large requests of a
// copy as a sieve does, and each small one after its first frame.
type bystander struct {
	sieve
	came      *atomic.Int64
	held, let chan struct{}
}

func (s *bystander) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := s.sieve.Blocks(ctx, want)
	if err != nil {
		return nil, err
	}
	n := 0
	for _, w := range want {
		n += w.Blocks.Count()
	}
	return &heldFrames{Frames: f, ctx: ctx, s: s, small: n <= 16}, nil
}

type heldFrames struct {
	transfer.Frames
	ctx   context.Context // of the request
	s     *bystander
	small bool
	n     int
}

func (f *heldFrames) Next() (transfer.Frame, error) {
	if f.n++; f.small && f.n == 2 {
		select {
		case f.s.held <- struct{}{}:
		default:
		}
		select {
		case <-f.s.let:
		case <-f.ctx.Done():
			return transfer.Frame{}, context.Cause(f.ctx)
		}
	}
	x, err := f.Frames.Next()
	if err == nil {
		f.s.came.Add(int64(len(x.Payload)))
	}
	return x, err
}

// TestReadAtTheEnd has a volume read from the source when the copy commits, or is
// given up: whatever came is in the one usage record, and the reader gets its bytes
// from where they are then.
func TestReadAtTheEnd(t *testing.T) {
	for _, given := range []bool{false, true} {
		w := newEarlyWorld(t)
		d := earlyDisk()
		s := w.imported(d)
		gate := &bystander{
			sieve: sieve{asked: make(chan struct{}, 1), open: make(chan struct{})},
			came:  &atomic.Int64{}, held: make(chan struct{}, 1), let: make(chan struct{}),
		}
		w.toEast.Wrap(func(s transfer.Source) transfer.Source {
			return &bystander{sieve{s, gate.asked, gate.open}, gate.came, gate.held, gate.let}
		})
		c := w.copy(control.CopyRequest{Source: s.ID})
		<-gate.asked
		a := &alone{Region: w.west, t: t, at: w.atWest}
		v := newVolume(t, a, control.VolumeRequest{Snapshot: c.ID, Name: "early"}, 3)
		h := v.open()
		got, want := make([]byte, 256<<10), make([]byte, 256<<10)
		read := make(chan error, 1)
		go func() {
			_, err := h.ReadAt(got, 20<<20)
			read <- err
		}()
		<-gate.held
		ending := snapferry.EndedDone
		if given {
			ending = snapferry.EndedCancelled
			if err := w.west.Control.Abandon(t.Context(), w.atWest, c.ID); err != nil {
				t.Fatal(err)
			}
			gone(t, w.west, c.ID)
		} else {
			close(gate.open)
			w.ready(c.ID, d)
		}
		close(gate.let)
		if err := <-read; (err == nil) == given {
			t.Errorf("given up: %v; the read: %v", given, err)
		}
		if _, err := d.ReadAt(want, 20<<20); err != nil {
			t.Fatal(err)
		}
		if !given && !bytes.Equal(got, want) {
			t.Error("the read got other bytes")
		}
		records, err := w.west.Control.UsageRecords(t.Context(), w.atWest, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		var received []snapferry.UsageRecord
		for _, u := range records {
			if u.Kind == "received" {
				received = append(received, u)
			}
		}
		if len(received) != 1 || received[0].Bytes != gate.came.Load() || received[0].Outcome != ending || received[0].Bytes == 0 {
			t.Errorf("%d bytes came: got records %+v", gate.came.Load(), received)
		}
	}
}
