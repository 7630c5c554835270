package control_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/record"
)

// Faults that histories of concurrent clients came upon: simtest.TestLinearizable.

func smallDisk() *simtest.Disk { return simtest.NewDisk(1<<20).Fill(0, 2) }

// TestDeletedJustNow pins a snapshot while it is deleted: one that comes too late
// does not find it.
func TestDeletedJustNow(t *testing.T) {
	a := newLively(t)
	host, caller := control.Host{Region: a.Control}, transfer.Caller{Region: a.Name, Account: "a"}
	for range 60 {
		s := a.imported("disk", smallDisk())
		var both sync.WaitGroup
		var perr error
		both.Go(func() {
			_, perr = host.Pin(t.Context(), caller, transfer.Pin{Snapshot: s.ID, Copy: snapferry.NewCopyID()})
		})
		both.Go(func() { a.delete(s.ID) })
		both.Wait()
		if perr != nil {
			wantKind(t, "pin what is being deleted", perr, snapferry.NotFound)
		}
	}
}

// TestForcedDeleteTooLate deletes by force what waits for a pin while that is
// released: whoever is faster, it is deleted.
func TestForcedDeleteTooLate(t *testing.T) {
	a := newLively(t)
	host, caller := control.Host{Region: a.Control}, transfer.Caller{Region: a.Name, Account: "a"}
	for range 60 {
		s := a.imported("disk", smallDisk())
		h, err := host.Pin(t.Context(), caller, transfer.Pin{Snapshot: s.ID, Copy: snapferry.NewCopyID()})
		if err != nil {
			t.Fatal(err)
		}
		a.delete(s.ID)
		var both sync.WaitGroup
		both.Go(func() {
			if err := a.Control.Abandon(t.Context(), a.at, s.ID); err != nil {
				wantKind(t, "a forced deletion that comes too late", err, snapferry.NotFound)
			}
		})
		both.Go(func() { _ = host.Release(t.Context(), caller, h, snapferry.EndedDone) })
		both.Wait()
	}
}

// TestDeletedWhileItBegins deletes what an import, a fork and a copy have just made,
// before they answer: they have made it all the same.
func TestDeletedWhileItBegins(t *testing.T) {
	var next atomic.Pointer[func()]
	w := newWorldWith(t, func(o *simtest.Options) {
		o.Committed = func() {
			if fn := next.Load(); fn != nil {
				(*fn)()
			}
		}
	})
	far := w.imported(smallDisk())
	near := w.copy(control.CopyRequest{Source: far.ID})
	w.settled(w.west, w.atWest, near.ID)
	var mu sync.Mutex
	var gone snapferry.SnapshotID
	fn := func() { // deletes what is being made, once
		mu.Lock()
		defer mu.Unlock()
		all, err := w.west.Control.Snapshots(t.Context(), w.atWest, control.Filter{})
		if err != nil || next.Load() == nil || all[0].State.Settled() {
			return
		}
		next.Store(nil)
		if gone = all[0].ID; w.west.Control.Delete(t.Context(), w.atWest, gone) != nil {
			t.Error("it is not deleted")
		}
	}
	for what, begin := range map[string]func() (snapferry.Snapshot, error){
		"import": func() (snapferry.Snapshot, error) {
			return w.west.Control.Import(t.Context(), w.atWest, control.ImportRequest{Volume: "new", Disk: smallDisk(), Close: func() {}})
		},
		"fork": func() (snapferry.Snapshot, error) {
			return w.west.Control.Fork(t.Context(), w.atWest, control.ForkRequest{Source: near.ID, Volume: "fork"})
		},
		"copy": func() (snapferry.Snapshot, error) {
			return w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: far.ID})
		},
	} {
		rest(t, w.west) // else the work of others may be what commits
		next.Store(&fn)
		s, err := begin()
		mu.Lock()
		if err != nil || s.ID != gone || s.State.Settled() {
			t.Errorf("%s: got %s, %s, %v, want %s", what, s.ID, s.State, err, gone)
		}
		mu.Unlock()
	}
}

// recorder is a driver that does something before the next version record is put.
type recorder struct {
	blob.Driver
	next atomic.Pointer[func()]
}

func (r *recorder) Put(ctx context.Context, name string, body []byte) error {
	if strings.HasPrefix(name, record.Prefix()) {
		if fn := r.next.Swap(nil); fn != nil {
			(*fn)()
		}
	}
	return r.Driver.Put(ctx, name, body)
}

// TestVolumeOfDeleted deletes a snapshot that is pinned while a volume is made of
// it: no volume comes of what is deleted already.
func TestVolumeOfDeleted(t *testing.T) {
	r := &recorder{Driver: memblob.New()}
	a := newLivelyOver(t, r, 0)
	s := a.imported("disk", firstDisk())
	caller := transfer.Caller{Region: a.Name, Account: "a"}
	if _, err := (control.Host{Region: a.Control}).Pin(t.Context(), caller, transfer.Pin{Snapshot: s.ID, Copy: snapferry.NewCopyID()}); err != nil {
		t.Fatal(err)
	}
	fn := func() { a.delete(s.ID) }
	r.next.Store(&fn)
	_, err := a.Control.CreateVolumes(t.Context(), a.at, control.VolumeRequest{Snapshot: s.ID, Name: "late"})
	wantKind(t, "a volume of what is being deleted", err, snapferry.Conflict)
	all, err := a.Control.Volumes(t.Context(), a.at, "")
	if err != nil || len(all) > 0 {
		t.Errorf("got volumes %+v, %v, want none", all, err)
	}
}

// meeting is the way to another region on which something happens before a
// request.
type meeting struct {
	transfer.Remote
	sources  *atomic.Int32
	describe *atomic.Pointer[func()]
	blocks   *atomic.Pointer[func(ctx context.Context, source int32)]
}

func (m *meeting) Describe(ctx context.Context, id snapferry.SnapshotID) (transfer.Description, error) {
	if fn := m.describe.Swap(nil); fn != nil {
		(*fn)()
	}
	return m.Remote.Describe(ctx, id)
}

func (m *meeting) Source(h transfer.Handle) transfer.Source {
	return &meetingSource{m.Remote.Source(h), m, m.sources.Add(1)}
}

type meetingSource struct {
	transfer.Source
	meeting *meeting
	number  int32 // from 1, in the order in which they were opened
}

func (s *meetingSource) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	if fn := s.meeting.blocks.Load(); fn != nil {
		(*fn)(ctx, s.number)
	}
	return s.Source.Blocks(ctx, want)
}

// newMeeting is a world with a meeting on the way from west to east; west has live
// volumes.
func newMeeting(t *testing.T) (w *world, m *meeting) {
	t.Helper()
	m = &meeting{sources: &atomic.Int32{}, describe: &atomic.Pointer[func()]{}, blocks: &atomic.Pointer[func(context.Context, int32)]{}}
	fs, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w = newWorldWith(t, func(o *simtest.Options) {
		o.Files, o.CacheBytes, o.Exporter = fs, 1<<30, &shelf{}
		to := o.Peers["east"]
		o.Peers["east"] = func(account string) transfer.Remote { return &meeting{to(account), m.sources, m.describe, m.blocks} }
	})
	t.Cleanup(func() { w.west.Stop(); fs.Close() })
	return w, m
}

// early makes a volume of west of a snapshot that is being copied, and opens it.
func (w *world) early(id snapferry.SnapshotID) *head.Volume {
	w.t.Helper()
	all, err := w.west.Control.CreateVolumes(w.t.Context(), w.atWest, control.VolumeRequest{Snapshot: id, Name: "early"})
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := w.west.Control.Live(w.t.Context(), all[0].ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// reads compares the first block of a volume with that of a disk.
func (w *world) reads(v *head.Volume, d *simtest.Disk) {
	w.t.Helper()
	got, want := make([]byte, snapferry.BlockSize), make([]byte, snapferry.BlockSize)
	if _, err := v.ReadAt(got, 0); err != nil {
		w.t.Fatal(err)
	}
	if _, err := d.ReadAt(want, 0); err != nil {
		w.t.Fatal(err)
	}
	if string(got) != string(want) {
		w.t.Error("the volume has other bytes than the source")
	}
}

// TestRepeatedMeanwhile repeats a request under its token while the first is under
// way; before the second asks for the source, the first comes to its end and the
// source is deleted: both have the one answer.
func TestRepeatedMeanwhile(t *testing.T) {
	w, m := newMeeting(t)
	s := w.imported(firstDisk())
	req := control.CopyRequest{Source: s.ID, Token: "once"}
	var first snapferry.Snapshot
	fn := func() {
		first = w.copy(req)
		w.ready(first.ID, firstDisk())
		noPins(t, w.east, s.ID)
		if err := w.east.Control.Delete(t.Context(), w.atEast, s.ID); err != nil {
			t.Error(err)
		}
	}
	m.describe.Store(&fn)
	if second := w.copy(req); second.ID != first.ID {
		t.Errorf("asked for again it is %s, it was %s", second.ID, first.ID)
	}
}

// TestReadAtEndOfCopy reads a volume that lies on a copy under way; while it asks
// the source for what the copy has not yet, the copy comes to its end, which ends
// what is asked, and lets go of the source: the read does not fail.
func TestReadAtEndOfCopy(t *testing.T) {
	w, m := newMeeting(t)
	d := simtest.NewDisk(16 << 20)
	for b := range uint64(200) {
		d.Fill(b, int(b)+1)
	}
	s := w.imported(d)
	asked, open := make(chan struct{}), make(chan struct{})
	var once, meet sync.Once
	var c snapferry.Snapshot
	fn := func(ctx context.Context, source int32) {
		if source == 1 { // that of the copy
			once.Do(func() { close(asked) })
			select {
			case <-open:
			case <-ctx.Done():
			}
			return
		}
		meet.Do(func() {
			close(open)
			select {
			case <-ctx.Done():
			case <-time.After(patience):
				t.Error("the copy does not end what is asked of its source")
			}
		})
	}
	m.blocks.Store(&fn)
	c = w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	v := w.early(c.ID)
	w.reads(v, d)
	w.settled(w.west, w.atWest, c.ID)
	noPins(t, w.east, s.ID)
}

// TestReadAfterBrokenPin reads a volume that lies on a copy under way, whose pin was
// broken and whose source is there: the read takes the pin again, and does not fail.
func TestReadAfterBrokenPin(t *testing.T) {
	w, m := newMeeting(t)
	d := smallDisk()
	s := w.imported(d)
	asked, open := make(chan struct{}), make(chan struct{})
	var once sync.Once
	fn := func(ctx context.Context, source int32) {
		if source > 1 { // not that of the copy
			return
		}
		once.Do(func() { close(asked) })
		select {
		case <-open:
		case <-ctx.Done():
		}
	}
	m.blocks.Store(&fn)
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	v := w.early(c.ID)
	w.breakPin()
	w.reads(v, d)
	close(open)
	w.ready(c.ID, d)
	noPins(t, w.east, s.ID)
}

// TestPinTakenTooLate has a process that does not know that its copy was ended by
// another one find its pin gone, and take it again, also if it is stopped in that
// moment: no pin is left.
func TestPinTakenTooLate(t *testing.T) {
	w, m := newMeeting(t)
	s := w.imported(smallDisk())
	fn := func(ctx context.Context, _ int32) { <-ctx.Done() }
	m.blocks.Store(&fn)
	c := w.copy(control.CopyRequest{Source: s.ID})
	if err := w.west.Control.CancelCopy(t.Context(), w.atWest, c.Copy, false); err != nil {
		t.Fatal(err)
	}
	noPins(t, w.east, s.ID)
	for _, stopped := range []bool{false, true} {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		from := &pinned{w.toEast.As("a"), func() {
			if stopped {
				stop()
			}
		}}
		if err := w.west.Control.Repin(ctx, from, c.Copy); snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("stopped %v: got %v: the copy goes on", stopped, err)
		}
		if pins, err := w.east.Control.Pins(t.Context(), w.atEast); err != nil || len(pins) > 0 {
			t.Errorf("stopped %v: got pins %v, %v, want none", stopped, pins, err)
		}
	}
}

// pinned is a region at which something happens when a pin was taken.
type pinned struct {
	transfer.Remote
	then func()
}

func (p *pinned) Pin(ctx context.Context, x transfer.Pin) (transfer.Handle, error) {
	defer p.then()
	return p.Remote.Pin(ctx, x)
}

// TestDeleteOfSettledJustNow deletes a snapshot that is being made; when the deletion
// comes to end that, it has failed just before: it is deleted all the same.
func TestDeleteOfSettledJustNow(t *testing.T) {
	w := newWorld(t)
	s := w.imported(smallDisk())
	var row meta.Snapshot
	w.east.Update(func(tx *meta.Tx) (err error) {
		if row, err = tx.Snapshot(s.ID); err != nil {
			return err
		}
		row.ID, row.State, row.Version = snapferry.NewSnapshotID(), snapferry.SnapshotCreating, snapferry.VersionID{}
		return tx.InsertSnapshot(row)
	})
	deleted := make(chan error, 1)
	w.east.Update(func(tx *meta.Tx) error {
		go func() { deleted <- w.east.Control.Delete(t.Context(), w.atEast, row.ID) }()
		time.Sleep(100 * time.Millisecond) // it has looked, and waits to change what it saw
		row.State = snapferry.SnapshotFailed
		return tx.UpdateSnapshot(row)
	})
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	_, err := w.east.Control.Snapshot(t.Context(), w.atEast, row.ID)
	wantKind(t, "the deleted snapshot", err, snapferry.NotFound)
}
