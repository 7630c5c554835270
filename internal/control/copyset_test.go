package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// setWorld is a world in whose east there are live volumes.
type setWorld struct {
	*world
	vols []*lively
}

func newSetWorld(t *testing.T, volumes int, change func(west *simtest.Options)) *setWorld {
	t.Helper()
	dir, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := simtest.NewFactory(t)
	w := &world{t: t, toEast: simtest.NewLink("west"), toWest: simtest.NewLink("east")}
	w.east = f.NewRegion(t, simtest.Options{
		Name: "east", Jobs: true, Files: dir, Exporter: &shelf{},
		Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": w.toWest.As},
	})
	o := simtest.Options{Name: "west", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": w.toEast.As}}
	change(&o)
	w.west = f.NewRegion(t, o)
	t.Cleanup(func() { w.east.Stop(); dir.Close() })
	w.toEast.Join(w.east)
	w.toWest.Join(w.west)
	w.atEast, w.atWest = w.east.Account("a"), w.west.Account("a")
	sw := &setWorld{world: w}
	a := &alone{Region: w.east, t: t, at: w.atEast}
	for i := range volumes {
		sw.vols = append(sw.vols, newVolume(t, a, control.VolumeRequest{Name: fmt.Sprint("vol", i), Size: int64(i+1) * (20 << 20)}, uint64(i)))
	}
	return sw
}

// set writes to all volumes and takes a snapshot of them; the disks are in the order
// of the snapshots.
func (w *setWorld) set(pages int) (set snapferry.SetID, of []snapferry.Snapshot, disks []*simtest.Disk) {
	w.t.Helper()
	var q control.VolumeSnapshotRequest
	for _, v := range w.vols {
		v.write(pages)
		q.Volumes = append(q.Volumes, v.id)
	}
	of, err := w.east.Control.SnapshotVolumes(w.t.Context(), w.atEast, q)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range of {
		of[i] = w.settled(w.east, w.atEast, of[i].ID)
		if of[i].State != snapferry.SnapshotReady || of[i].Set == "" || of[i].Set != of[0].Set || of[i].SetSize != len(w.vols) {
			w.t.Fatalf("got %s of set %q of %d, want ready, of one set of %d", of[i].State, of[i].Set, of[i].SetSize, len(w.vols))
		}
		disks = append(disks, w.vols[i].disk.Clone(w.vols[i].disk.Size()))
	}
	return of[0].Set, of, disks
}

func (w *setWorld) copySet(set snapferry.SetID, change func(*control.CopyRequest)) snapferry.Copy {
	w.t.Helper()
	req := control.CopyRequest{From: "east", Set: set}
	if change != nil {
		change(&req)
	}
	c, err := w.west.Control.CopySet(w.t.Context(), w.atWest, req)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(c.Parts) != len(w.vols) || c.Set == "" || c.Set == set || c.Source.Set != set || c.Snapshot != c.Parts[0].Snapshot {
		w.t.Fatalf("the copy: got %+v, want one of set %s", c, set)
	}
	return c
}

// whole waits for the end of a copy, and looks all the time whether some of its
// snapshots are ready and others not.
func (w *setWorld) whole(id snapferry.CopyID) snapferry.Copy {
	w.t.Helper()
	var c meta.Copy
	idle(w.t, w.west, "the end of the copy", func(tx *meta.Tx) (bool, error) {
		var err error
		if c, err = tx.Copy(id); err != nil {
			return false, err
		}
		ready := 0
		for _, m := range c.Members {
			s, err := tx.Snapshot(m.Snapshot)
			if err != nil {
				return false, err
			}
			if s.State == snapferry.SnapshotReady {
				ready++
			}
		}
		if ready != 0 && ready != len(c.Members) || (ready > 0) != (c.State == snapferry.CopyDone) {
			w.t.Errorf("the copy is %s, and %d of its %d snapshots are ready", c.State, ready, len(c.Members))
		}
		return c.State.Terminal() && c.Metered, nil
	})
	x, err := w.west.Control.CopyOf(w.t.Context(), w.atWest, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

// arrived wants a copy to be done and its snapshots to be equal to the disks.
func (w *setWorld) arrived(c snapferry.Copy, of []snapferry.Snapshot, disks []*simtest.Disk) {
	w.t.Helper()
	if x := w.whole(c.ID); x.Ending != snapferry.EndedDone {
		w.t.Fatalf("the copy: got ending %s (%s), want done", x.Ending, x.Reason)
	}
	var bytes int64
	for _, p := range c.Parts {
		i := slices.IndexFunc(of, func(s snapferry.Snapshot) bool { return s.ID == p.Source })
		if i < 0 {
			w.t.Fatalf("a part is of %s, which is not of the set", p.Source)
		}
		s := w.ready(p.Snapshot, disks[i])
		if s.Set != c.Set || s.SetSize != len(of) || s.Copy != c.ID || s.Source == nil || s.Source.Snapshot != p.Source || s.Volume != of[i].Volume {
			w.t.Errorf("a snapshot of the copy: got %+v", s)
		}
		bytes += s.Counts.Moved
	}
	records, err := w.west.Control.UsageRecords(w.t.Context(), w.atWest, 0, 1000)
	var metered int64
	n := 0
	for _, u := range records {
		if u.Copy == c.ID && u.Kind == "received" {
			metered += u.Bytes
			n++
		}
	}
	if err != nil || n != len(of) || metered != bytes {
		w.t.Errorf("got %d usage records of %d bytes, %v, want %d of %d", n, metered, err, len(of), bytes)
	}
	for i := range of {
		noPins(w.t, w.east, of[i].ID)
	}
}

// nothing wants nothing of a copy to be left, but failed snapshots.
func (w *setWorld) nothing(c snapferry.Copy) {
	w.t.Helper()
	for _, p := range c.Parts {
		gone(w.t, w.west, p.Snapshot)
		noPins(w.t, w.east, p.Source)
	}
	w.check()
}

// TestCopySet copies sets: whole, incremental, and through restarts of both regions.
func TestCopySet(t *testing.T) {
	w := newSetWorld(t, 3, func(*simtest.Options) {})
	set, of, disks := w.set(300)
	plan, err := w.west.Control.PlanCopy(t.Context(), w.atWest, control.CopyRequest{From: "east", Set: set})
	var present int64
	for _, s := range of {
		present += s.Counts.Present
	}
	if err != nil || plan.Size != 6*(20<<20) || plan.Present != present || plan.MoveBytes == 0 || !strings.HasPrefix(plan.Reason, "full, because") {
		t.Errorf("the plan: got %+v, %v, want all of %d bytes to move", plan, err, present)
	}
	token := func(r *control.CopyRequest) { r.Token = "once" }
	c := w.copySet(set, token)
	if again := w.copySet(set, token); again.ID != c.ID {
		t.Errorf("the same request made copies %s and %s", c.ID, again.ID)
	}
	if _, err := w.west.Control.CopySet(t.Context(), w.atWest, control.CopyRequest{From: "east", Set: set, Token: "once", Full: true}); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("another request with the token: got %v, want a conflict", err)
	}
	w.arrived(c, of, disks)
	all, err := w.west.Control.Copies(t.Context(), w.atWest, control.CopyFilter{})
	if err != nil || len(all) != 1 || len(all[0].Parts) != 3 {
		t.Errorf("the copies: got %+v, %v, want one with three parts", all, err)
	}
	list, err := w.west.Control.Snapshots(t.Context(), w.atWest, control.Filter{Set: c.Set})
	if err != nil || len(list) != 3 {
		t.Errorf("the snapshots of the set: got %d, %v, want 3", len(list), err)
	}

	set2, of2, disks2 := w.set(20)
	plan, err = w.west.Control.PlanCopy(t.Context(), w.atWest, control.CopyRequest{From: "east", Set: set2})
	if err != nil || plan.ReuseBlocks == 0 || strings.Count(plan.Reason, "incremental on") != 3 {
		t.Errorf("the plan: got %+v, %v, want three increments", plan, err)
	}
	// Both regions end while a part has come.
	h := &halter{left: 3, reached: make(chan struct{}), open: make(chan struct{})}
	w.toEast.Wrap(func(src transfer.Source) transfer.Source { return &halting{src, h} })
	c2 := w.copySet(set2, nil)
	<-h.reached
	w.west.Stop()
	w.toEast.Wrap(nil)
	w.east.Stop()
	w.east.Restart()
	w.west.Restart()
	w.toEast.Join(w.east)
	w.toWest.Join(w.west)
	w.arrived(c2, of2, disks2)
	for _, p := range c2.Parts {
		s, err := w.west.Control.Snapshot(t.Context(), w.atWest, p.Snapshot)
		if err != nil || s.Parent == "" || s.Counts.Reused == 0 {
			t.Errorf("%s: got parent %q and %d bytes reused, %v; want an increment", p.Snapshot, s.Parent, s.Counts.Reused, err)
		}
	}
	w.check()

	// What is left of a set whose members are deleted is no set to be copied, and each
	// of its snapshots is.
	if err := w.east.Control.Delete(t.Context(), w.atEast, of[1].ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.west.Control.CopySet(t.Context(), w.atWest, control.CopyRequest{From: "east", Set: set})
	wantKind(t, "copy a set of which a snapshot was deleted", err, snapferry.Conflict)
	w.ready(w.copy(control.CopyRequest{Source: of[0].ID}).ID, disks[0])
	w.check()
}

func TestCopySetRefused(t *testing.T) {
	w := newSetWorld(t, 2, func(*simtest.Options) {})
	set, of, _ := w.set(10)
	other := w.west.Account("other")
	w.east.Account("other")
	for name, x := range map[string]struct {
		account snapferry.AccountID
		req     control.CopyRequest
		kind    snapferry.Kind
	}{
		"nothing":          {w.atWest, control.CopyRequest{From: "east"}, snapferry.Invalid},
		"a snapshot":       {w.atWest, control.CopyRequest{From: "east", Source: of[0].ID}, snapferry.Invalid},
		"both":             {w.atWest, control.CopyRequest{From: "east", Source: of[0].ID, Set: set}, snapferry.Invalid},
		"no id":            {w.atWest, control.CopyRequest{From: "east", Set: "set-x"}, snapferry.Invalid},
		"a snapshot's id":  {w.atWest, control.CopyRequest{From: "east", Set: snapferry.SetID(of[0].ID)}, snapferry.Invalid},
		"unknown":          {w.atWest, control.CopyRequest{From: "east", Set: snapferry.NewSetID()}, snapferry.NotFound},
		"of another":       {other, control.CopyRequest{From: "east", Set: set}, snapferry.NotFound},
		"unknown region":   {w.atWest, control.CopyRequest{From: "north", Set: set}, snapferry.NotFound},
		"of its own":       {w.atWest, control.CopyRequest{From: "west", Set: set}, snapferry.NotFound},
		"at too high rate": {w.atWest, control.CopyRequest{From: "east", Set: set, Rate: 1}, snapferry.Invalid},
	} {
		_, err := w.west.Control.CopySet(t.Context(), x.account, x.req)
		wantKind(t, name, err, x.kind)
	}
	_, err := w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Set: set})
	wantKind(t, "a set in place of a snapshot", err, snapferry.Invalid)
	for _, s := range of {
		noPins(t, w.east, s.ID)
	}

	// One that is not uploaded yet.
	var q control.VolumeSnapshotRequest
	for _, v := range w.vols {
		q.Volumes = append(q.Volumes, v.id)
	}
	w.east.Update(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(of[1].ID)
		s.ID, s.State, s.Version, s.Set, s.SetSize = snapferry.NewSnapshotID(), snapferry.SnapshotCreating, snapferry.VersionID{}, "set-0123456789abcdef0", 1
		if err == nil {
			err = tx.InsertSnapshot(s)
		}
		return err
	})
	_, err = w.west.Control.CopySet(t.Context(), w.atWest, control.CopyRequest{From: "east", Set: "set-0123456789abcdef0"})
	wantKind(t, "a set that is being made", err, snapferry.Conflict)
}

// TestCopySetEnds ends a copy of a set in all ways while a part of it has come: no
// snapshot of it is ready then, or later.
func TestCopySetEnds(t *testing.T) {
	for name, end := range map[string]func(w *setWorld, c snapferry.Copy) error{
		"cancelled": func(w *setWorld, c snapferry.Copy) error {
			return w.west.Control.CancelCopy(w.t.Context(), w.atWest, c.ID, false)
		},
		"cancelled by the deletion of a snapshot": func(w *setWorld, c snapferry.Copy) error {
			return w.west.Control.Delete(w.t.Context(), w.atWest, c.Parts[1].Snapshot)
		},
		"source-deleted": func(w *setWorld, c snapferry.Copy) error {
			return w.east.Control.Abandon(w.t.Context(), w.atEast, c.Parts[2].Source)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newSetWorld(t, 3, func(*simtest.Options) {})
			set, _, _ := w.set(100)
			came, open := make(chan struct{}, 1000), make(chan struct{})
			w.toEast.Wrap(func(src transfer.Source) transfer.Source {
				return &watched{src, func(error) { came <- struct{}{}; <-open }}
			})
			c := w.copySet(set, nil)
			<-came
			if err := end(w, c); err != nil {
				t.Fatal(err)
			}
			close(open)
			want, _, _ := strings.Cut(name, " ")
			if x := w.whole(c.ID); string(x.Ending) != want {
				t.Errorf("got ending %s (%s), want %s", x.Ending, x.Reason, want)
			}
			w.toEast.Wrap(nil)
			for _, p := range c.Parts {
				s, err := w.west.Control.Snapshot(t.Context(), w.atWest, p.Snapshot)
				if want == "cancelled" && !snapferry.IsKind(err, snapferry.NotFound) {
					t.Errorf("%s: got %s, %v, want it gone", p.Snapshot, s.State, err)
				}
				if want != "cancelled" {
					if s = w.settled(w.west, w.atWest, p.Snapshot); s.State != snapferry.SnapshotFailed {
						t.Errorf("%s: got %s, want failed", p.Snapshot, s.State)
					}
				}
			}
			w.nothing(c)
			if err := w.west.Control.CancelCopy(t.Context(), w.atWest, c.ID, true); (err == nil) != (want == "cancelled") {
				t.Errorf("cancel it again: %v", err)
			}
			other := w.west.Account("b")
			_, err := w.west.Control.CopyOf(t.Context(), other, c.ID)
			wantKind(t, "the copy of another account", err, snapferry.NotFound)
			wantKind(t, "cancel that of another account", w.west.Control.CancelCopy(t.Context(), other, c.ID, true), snapferry.NotFound)
		})
	}
}

// TestCopySetTurn wants a copy of a set to be one copy in the queue, and to wait for
// the lineage of each of its members.
func TestCopySetTurn(t *testing.T) {
	w := newSetWorld(t, 2, func(o *simtest.Options) { o.Copies.AtOnce = 2 })
	set, of, disks := w.set(50)
	asked, open := w.shut()
	one := w.copy(control.CopyRequest{Source: of[1].ID})
	<-asked
	c := w.copySet(set, nil)
	x, err := w.west.Control.CopyOf(t.Context(), w.atWest, c.ID)
	if err != nil || x.Queue == nil || x.Queue.Position != 1 || !strings.Contains(x.Queue.Reason, "of the same volume") {
		t.Errorf("the copy of the set: got %+v, %v, want it to wait for %s", x.Queue, err, one.Copy)
	}
	for _, p := range c.Parts {
		s, err := w.west.Control.Snapshot(t.Context(), w.atWest, p.Snapshot)
		if err != nil || s.Queue == nil || s.Queue.Position != 1 {
			t.Errorf("%s: got queue %+v, %v", p.Snapshot, s.Queue, err)
		}
	}
	close(open)
	w.toEast.Wrap(nil)
	w.arrived(c, of, disks)
	w.ready(one.ID, disks[1])
	w.check()
}

// fakeSet makes a set of snapshots in east that were not taken at one moment.
func (w *world) fakeSet(ids ...snapferry.SnapshotID) snapferry.SetID {
	w.t.Helper()
	set := snapferry.NewSetID()
	w.east.Update(func(tx *meta.Tx) error {
		for _, id := range ids {
			s, err := tx.Snapshot(id)
			if err != nil {
				return err
			}
			s.Set, s.SetSize = set, len(ids)
			if err := tx.PutSnapshot(s); err != nil {
				return err
			}
		}
		return nil
	})
	return set
}

// halves reports, as an error, that some snapshots of a set in west are ready and
// others not.
func (w *world) halves(c snapferry.CopyID) (x snapferry.Copy, err error) {
	if x, err = w.west.Control.CopyOf(w.t.Context(), w.atWest, c); err != nil {
		return x, err
	}
	list, err := w.west.Control.Snapshots(w.t.Context(), w.atWest, control.Filter{Set: x.Set, State: snapferry.SnapshotReady})
	if want := map[bool]int{true: len(x.Parts)}[x.State == snapferry.CopyDone]; err == nil && len(list) != want {
		err = fmt.Errorf("copy %s is %s, and %d of its %d snapshots are ready", c, x.State, len(list), len(x.Parts))
	}
	return x, err
}

// TestCopySetCutShort cuts the power of west at the points of a copy of a set, and
// starts again; or lets one step fail, or do its work and say that it failed. Whether
// the copy was admitted or not, its snapshots are all ready in the end or all not.
func TestCopySetCutShort(t *testing.T) {
	for _, once := range []bool{false, true} {
		for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
			for n, done := int(mode), false; !done; n += *every {
				w := newWorldWith(t, func(*simtest.Options) {})
				set := w.fakeSet(w.many(w.atEast, 2)...)
				rest(t, w.west)
				if once {
					w.west.Power.FailAt(n, mode)
				} else {
					w.west.Power.CutAt(n, mode)
				}
				c, err := w.west.Control.CopySet(t.Context(), w.atWest, control.CopyRequest{From: "east", Set: set})
				if err == nil {
					settleOrDark(t, w.west, c.Snapshot)
				}
				done = !w.west.Power.Restore()
				if !once {
					w.west.Restart()
					w.toWest.Join(w.west)
				}
				all, err := w.west.Control.Copies(t.Context(), w.atWest, control.CopyFilter{})
				if err != nil || len(all) > 1 {
					t.Fatalf("got %d copies, %v", len(all), err)
				}
				for _, c := range all {
					w.settled(w.west, w.atWest, c.Snapshot)
					x, err := w.halves(c.ID)
					if err != nil || x.State != snapferry.CopyDone {
						t.Errorf("the copy is %s (%s), %v", x.State, x.Reason, err)
					}
				}
				rest(t, w.west)
				w.west.Check(t, simtest.MayGarbage)
				w.west.Stop()
				w.east.Stop()
				if t.Failed() {
					t.Fatalf("%v, once %v, cut at %d", mode, once, n)
				}
			}
		}
	}
}
