package control_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// TestPinAgainAfterRestart: a pin asked again after a restart of the destination.
func TestPinAgainAfterRestart(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	h := control.Host{Region: w.east.Control}
	c := transfer.Caller{Region: "west", Account: "a"}
	id := snapferry.NewCopyID()
	_, err := h.Pin(t.Context(), c, transfer.Pin{Snapshot: s.ID, Copy: id, Incarnation: 1})
	if err != nil {
		t.Errorf("first: %v", err)
	}
	_, err = h.Pin(t.Context(), c, transfer.Pin{Snapshot: s.ID, Copy: id, Incarnation: 2})
	if err != nil {
		t.Errorf("second: %v kind %v", err, snapferry.KindOf(err))
	}
	if err := w.east.Control.Delete(t.Context(), w.atEast, s.ID); err != nil {
		t.Fatal(err)
	}
	_, err = h.Pin(t.Context(), c, transfer.Pin{Snapshot: s.ID, Copy: id, Incarnation: 1})
	if err != nil {
		t.Errorf("after delete: %v kind %v", err, snapferry.KindOf(err))
	}
}

type stuck struct {
	*simtest.Disk
	gate chan struct{}
}

func (d *stuck) ReadAt(p []byte, off int64) (int, error) {
	<-d.gate
	return d.Disk.ReadAt(p, off)
}

// TestImportDeletedBeforeItsJob: an import deleted before its job ran.
func TestImportDeletedBeforeItsJob(t *testing.T) {
	f := simtest.NewFactory(t)
	east := f.NewRegion(t, simtest.Options{Name: "east", Jobs: true, Workers: 1})
	at := east.Account("a")
	gate := make(chan struct{})
	var closed atomic.Int64
	d := &stuck{firstDisk(), gate}
	one, err := east.Control.Import(t.Context(), at, control.ImportRequest{Volume: "one", Disk: d, Close: func() { closed.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	two, err := east.Control.Import(t.Context(), at, control.ImportRequest{Volume: "two", Disk: firstDisk(), Close: func() { closed.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := east.Control.Delete(t.Context(), at, two.ID); err != nil {
		t.Fatal(err)
	}
	close(gate)
	east.Control.Wait(t.Context(), at, one.ID, -1, patience)
	gone(t, east, two.ID)
	gone(t, east, one.ID)
	if closed.Load() != 2 {
		t.Errorf("closed %d of 2 disks", closed.Load())
	}
}

// TestLongRequestWithToken: a fingerprint of tags with many characters that JSON escapes.
func TestLongRequestWithToken(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	tags := snapferry.Tags{}
	v := make([]byte, 256)
	for i := range v {
		v[i] = '<'
	}
	for i := range 50 {
		tags[string(append([]byte{byte('a' + i%26), byte('a' + i/26)}, v[:126]...))] = string(v)
	}
	c := w.copy(control.CopyRequest{Source: s.ID, Token: "x", Labels: control.Labels{Tags: tags}})
	if got := w.settled(w.west, w.atWest, c.ID); got.State != snapferry.SnapshotReady {
		t.Errorf("the copy is %s: %s", got.State, got.Reason)
	}
}

// TestBaseDeletedBetweenRuns: base changes between runs.
func TestBaseDeletedBetweenRuns(t *testing.T) {
	w := newWorld(t)
	d1 := firstDisk()
	s1 := w.imported(d1)
	d2 := d1.Clone(d1.Size()).Fill(3, 77)
	s2 := w.imported(d2)
	d3 := d2.Clone(d2.Size()).Fill(300, 78)
	s3 := w.imported(d3)
	c1 := w.copy(control.CopyRequest{Source: s1.ID})
	w.ready(c1.ID, d1)
	c2 := w.copy(control.CopyRequest{Source: s2.ID})
	w.ready(c2.ID, d2)
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &cutter{s, 0} })
	c3 := w.copy(control.CopyRequest{Source: s3.ID})
	idle(t, w.west, "a run that was cut", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOf(string(c3.ID))
		return err != nil || jobs[0].Attempts > 0 || jobs[0].State.Terminal(), err
	})
	if err := w.west.Control.Delete(t.Context(), w.atWest, c2.ID); err != nil {
		t.Fatal(err)
	}
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return s })
	w.ready(c3.ID, d3)
	rest(t, w.west)
	w.west.Check(t, simtest.MayGarbage)
}

type liar struct {
	transfer.Remote
	calls *atomic.Int64
	big   snapferry.SnapshotID
}

func (l *liar) Describe(ctx context.Context, id snapferry.SnapshotID) (transfer.Description, error) {
	if l.calls.Add(1) > 1 {
		id = l.big
	}
	return l.Remote.Describe(ctx, id)
}

func (l *liar) Source(h transfer.Handle) transfer.Source {
	return l.Remote.Source(transfer.Handle{Snapshot: l.big})
}

// TestSourceChangesItsSize: the source says another size when the copy runs.
func TestSourceChangesItsSize(t *testing.T) {
	toEast := simtest.NewLink("west")
	f := simtest.NewFactory(t)
	east := f.NewRegion(t, simtest.Options{Name: "east", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": toEast.As}})
	l := &liar{calls: new(atomic.Int64)}
	west := f.NewRegion(t, simtest.Options{Name: "west", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": func(a string) transfer.Remote {
		l.Remote = toEast.As(a)
		return l
	}}})
	toEast.Join(east)
	w := &world{t: t, east: east, west: west}
	w.atEast, w.atWest = east.Account("a"), west.Account("a")
	small := simtest.NewDisk(64<<10).Fill(0, 1)
	s := w.imported(small)
	big := simtest.NewDisk(64<<20).Fill(0, 1).Fill(600, 2)
	b := w.imported(big)
	l.big = b.ID
	c := w.copy(control.CopyRequest{Source: s.ID})
	got := w.settled(west, w.atWest, c.ID)
	if got.State != snapferry.SnapshotFailed || !strings.HasPrefix(got.Reason, "corrupt: ") {
		t.Errorf("got %s (%s), want it failed as corrupt", got.State, got.Reason)
	}
}

// halfReleased deletes a snapshot of east that has a pin, and does the first half of
// that pin's release.
func (w *world) halfReleased(id snapferry.SnapshotID) (transfer.Caller, transfer.Handle) {
	w.t.Helper()
	c := transfer.Caller{Region: "west", Account: "a"}
	x, err := (control.Host{Region: w.east.Control}).Pin(w.t.Context(), c, transfer.Pin{Snapshot: id, Copy: snapferry.NewCopyID(), Incarnation: 1})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.east.Control.Delete(w.t.Context(), w.atEast, id); err != nil {
		w.t.Fatal(err)
	}
	var p meta.Pin
	w.east.View(func(tx *meta.Tx) (err error) { p, err = tx.Pin(x.Pin); return err })
	err = w.east.Vault.Release(w.t.Context(), meta.Hold{Version: p.Version, Kind: "pin", Owner: p.ID}, func(tx *meta.Tx) error { return tx.DeletePin(p.ID) })
	if err != nil {
		w.t.Fatal(err)
	}
	return c, x
}

// TestReleaseCutShort: the region ended between the release of the last pin and the deletion.
func TestReleaseCutShort(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	c, x := w.halfReleased(s.ID)
	w.east.Restart()
	if err := (control.Host{Region: w.east.Control}).Release(t.Context(), c, x, ""); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("released again: %v", err)
	}
	w.east.View(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(s.ID)
		if !s.Version.IsZero() {
			t.Errorf("snapshot is %s for ever", s.State)
		}
		return err
	})
}

// TestDeleteAfterRelease deletes again what waits for pins, by force or not, when the
// last pin was released and whoever did that came no further: it is gone then.
func TestDeleteAfterRelease(t *testing.T) {
	w := newWorld(t)
	for what, del := range map[string]func(context.Context, snapferry.AccountID, snapferry.SnapshotID) error{
		"delete": w.east.Control.Delete, "by force": w.east.Control.Abandon,
	} {
		s := w.imported(firstDisk())
		w.halfReleased(s.ID)
		if err := del(t.Context(), w.atEast, s.ID); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		_, err := w.east.Control.Snapshot(t.Context(), w.atEast, s.ID)
		wantKind(t, what, err, snapferry.NotFound)
	}
	w.check()
}

// TestDeleteAtOnce: several delete one snapshot; each is told that it is gone,
// and no record of a loser stays.
func TestDeleteAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	errs := make(chan error)
	for range 6 {
		go func() { errs <- w.east.Control.Delete(t.Context(), w.atEast, s.ID) }()
	}
	for range 6 {
		if err := <-errs; err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("got %v, want nil or not found", err)
		}
	}
	w.check()
}
