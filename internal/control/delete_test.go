package control_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// every thins out what is tried in all variants.
var every = flag.Int("every", 5, "try every nth order of deletion, and cut the power at every nth point, only")

// alone is one region with an account.
type alone struct {
	*simtest.Region
	t  *testing.T
	at snapferry.AccountID

	files layer.FS // of live volumes; nil: none
}

func newAlone(t *testing.T, f *simtest.Factory) *alone {
	t.Helper()
	a := &alone{Region: f.NewRegion(t, simtest.Options{Jobs: true}), t: t}
	a.at = a.Account("a")
	return a
}

func (a *alone) imported(volume string, d *simtest.Disk) snapferry.Snapshot {
	a.t.Helper()
	s, err := a.Control.Import(a.t.Context(), a.at, control.ImportRequest{Volume: volume, Disk: d, Close: func() {}})
	if err != nil {
		a.t.Fatal(err)
	}
	return a.ready(s.ID, d)
}

func (a *alone) fork(id snapferry.SnapshotID, volume string, d *simtest.Disk) snapferry.Snapshot {
	a.t.Helper()
	s, err := a.Control.Fork(a.t.Context(), a.at, control.ForkRequest{Source: id, Volume: volume})
	if err != nil {
		a.t.Fatal(err)
	}
	return a.ready(s.ID, d)
}

// ready waits for a snapshot and compares it with a disk.
func (a *alone) ready(id snapferry.SnapshotID, d *simtest.Disk) snapferry.Snapshot {
	a.t.Helper()
	s, err := a.Control.Wait(a.t.Context(), a.at, id, -1, patience)
	if err != nil {
		a.t.Fatal(err)
	}
	if s.State != snapferry.SnapshotReady || s.Digest != d.Digest() {
		a.t.Fatalf("snapshot: got %s (%s) %v, want ready %v", s.State, s.Reason, s.Digest, d.Digest())
	}
	a.same(id, d)
	return s
}

func (a *alone) same(id snapferry.SnapshotID, d *simtest.Disk) {
	a.t.Helper()
	got := simtest.NewDisk(d.Size())
	if err := a.Control.Export(a.t.Context(), a.at, id, got, nil); err != nil {
		a.t.Fatal(err)
	}
	if got.Digest() != d.Digest() {
		a.t.Errorf("snapshot %s reads as %v, want %v", id, got.Digest(), d.Digest())
	}
}

func (a *alone) delete(id snapferry.SnapshotID) {
	a.t.Helper()
	if err := a.Control.Delete(a.t.Context(), a.at, id); err != nil {
		a.t.Fatalf("delete %s: %v", id, err)
	}
}

// empty waits until upkeep has ended and wants nothing left, also in the bucket,
// but what two that change one version at once leave to the next sweep.
func (a *alone) empty() {
	a.t.Helper()
	rest(a.t, a.Region)
	a.View(func(tx *meta.Tx) error {
		left, err := tx.AllVersions()
		if len(left) > 0 {
			a.t.Errorf("%d versions are left to the next sweep", len(left))
		}
		return err
	})
	a.Update(sweepNow)
	rest(a.t, a.Region)
	a.WantNothing(a.t)
	objects(a.t, a.Region, 0)
}

// objects wants a number of objects in the bucket.
func objects(t *testing.T, r *simtest.Region, want int) {
	t.Helper()
	n := 0
	err := r.Bucket.List(t.Context(), vault.ObjectPrefix, "", func(blob.Info) error { n++; return nil })
	if err != nil || n != want {
		t.Errorf("%s: got %d objects in the bucket, %v, want %d", r.Name, n, err, want)
	}
}

// increments are disks that change a little from one to the next.
func increments(n int) []*simtest.Disk {
	all := []*simtest.Disk{firstDisk()}
	for i := 1; i < n; i++ {
		all = append(all, all[i-1].Clone(size).Fill(uint64(8*i), 5001+2*i).Fill(uint64(8*i+1), 7001+2*i).Fill(3, 9000+i))
	}
	return all
}

func TestDeleteFreesAll(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	var ids []snapferry.SnapshotID
	disks := increments(4)
	for _, d := range disks {
		ids = append(ids, a.imported("disk", d).ID)
	}
	for _, i := range []int{1, 0, 2} {
		a.delete(ids[i])
		_, err := a.Control.Snapshot(t.Context(), a.at, ids[i])
		wantKind(t, "deleted", err, snapferry.NotFound)
		rest(t, a.Region)
		a.Check(t, simtest.NoGarbage)
		a.same(ids[3], disks[3])
	}
	a.View(func(tx *meta.Tx) error {
		all, err := tx.AllVersions()
		if len(all) != 1 {
			t.Errorf("got %d versions, want the last", len(all))
		}
		return err
	})
	a.delete(ids[3])
	a.empty()
}

// TestDeleteForkParents deletes a tree of forks in every order.
func TestDeleteForkParents(t *testing.T) {
	f := simtest.NewFactory(t)
	for order := 0; order < 24; order += *every {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			a := newAlone(t, f)
			disks := increments(4)
			root := a.imported("disk", disks[0])
			left, right := a.fork(root.ID, "left", disks[0]), a.fork(root.ID, "right", disks[0])
			ids := []snapferry.SnapshotID{root.ID, left.ID, right.ID, a.imported("left", disks[1]).ID}
			want := []*simtest.Disk{disks[0], disks[0], disks[0], disks[1]}
			left2, err := a.Control.Snapshot(t.Context(), a.at, ids[3])
			if err != nil || left2.Parent != left.ID || left2.Counts.Changed > 3*snapferry.BlockSize {
				t.Errorf("import into a fork: got %+v, %v, want three blocks above %s", left2, err, left.ID)
			}
			rest := []int{0, 1, 2, 3}
			for k := order; len(rest) > 0; k /= max(len(rest)+1, 1) {
				i := k % len(rest)
				a.delete(ids[rest[i]])
				rest = append(rest[:i:i], rest[i+1:]...)
				for _, j := range rest {
					a.same(ids[j], want[j])
				}
			}
			a.empty()
		})
	}
}

func TestForkRefused(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	d := firstDisk()
	s := a.imported("disk", d)
	ctx := t.Context()
	_, err := a.Control.Fork(ctx, a.at, control.ForkRequest{Source: s.ID, Volume: "disk"})
	wantKind(t, "a name that is taken", err, snapferry.Exists)
	_, err = a.Control.Fork(ctx, a.at, control.ForkRequest{Source: s.ID, Volume: "a/b"})
	wantKind(t, "a name that is none", err, snapferry.Invalid)
	_, err = a.Control.Fork(ctx, a.Account("b"), control.ForkRequest{Source: s.ID, Volume: "x"})
	wantKind(t, "another account's", err, snapferry.NotFound)
	_, err = a.Control.Fork(ctx, a.at, control.ForkRequest{Source: snapferry.NewSnapshotID(), Volume: "x"})
	wantKind(t, "no snapshot", err, snapferry.NotFound)
	// A volume in which nothing is left is free to be one again.
	f := a.fork(s.ID, "fork", d)
	a.delete(f.ID)
	rest(t, a.Region)
	f = a.fork(s.ID, "fork", d)
	a.delete(s.ID)
	a.delete(f.ID)
	a.empty()
}

// TestForkOfTheDeleted deletes the source right behind the request.
func TestForkOfTheDeleted(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	d := firstDisk()
	s := a.imported("disk", d)
	f, err := a.Control.Fork(t.Context(), a.at, control.ForkRequest{Source: s.ID, Volume: "fork", Labels: control.Labels{Name: "branch", Tags: snapferry.Tags{"k": "v"}}})
	if err != nil {
		t.Fatal(err)
	}
	a.delete(s.ID)
	got := a.ready(f.ID, d)
	if got.Name != "branch" || got.Tags["k"] != "v" || got.Counts.Changed != 0 || got.Counts.Stored != 0 {
		t.Errorf("got %+v", got)
	}
	rest(t, a.Region)
	a.Check(t, simtest.NoGarbage)
	a.delete(f.ID)
	a.empty()
}

// goneDisk cannot be read, and calls gone when that is tried.
type goneDisk struct {
	*simtest.Disk
	gone func()
}

func (d *goneDisk) ReadAt([]byte, int64) (int, error) {
	d.gone()
	return 0, snapferry.Errorf(snapferry.Invalid, "the disk was pulled out")
}

// TestReasonOfFailedImport makes each point fail behind the failure of an import:
// the reason is told in the end, not what came between it and the record of it.
func TestReasonOfFailedImport(t *testing.T) {
	t.Parallel()
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		failed := true
		for n := 0; failed; n++ {
			a := newAlone(t, simtest.NewFactory(t))
			d := &goneDisk{Disk: firstDisk(), gone: sync.OnceFunc(func() { a.Power.FailAt(n, mode) })}
			s, err := a.Control.Import(t.Context(), a.at, control.ImportRequest{Volume: "disk", Disk: d, Close: func() {}})
			if err != nil {
				t.Fatal(err)
			}
			if s, err = a.Control.Wait(t.Context(), a.at, s.ID, -1, patience); err != nil {
				t.Fatal(err)
			}
			if s.State != snapferry.SnapshotFailed || s.Reason != "invalid: the disk was pulled out" {
				t.Errorf("point %d, mode %d: got %s, %q", n, mode, s.State, s.Reason)
			}
			rest(t, a.Region)
			failed = a.Power.Restore()
			a.delete(s.ID)
			a.empty()
			a.Stop()
			if n == 0 && !failed {
				t.Error("no point failed")
			}
		}
	}
}

// slowTarget waits, at each write but the first few, until it may go on.
type slowTarget struct {
	*simtest.Disk
	asked atomic.Int64
	begun chan struct{}
	open  chan struct{}
}

func (s *slowTarget) WriteAt(p []byte, off int64) (int, error) {
	if s.asked.Add(1) == 2 {
		close(s.begun)
	}
	if s.asked.Load() >= 2 {
		<-s.open
	}
	return s.Disk.WriteAt(p, off)
}

func TestDeleteDuringExport(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	disks := increments(3)
	var ids []snapferry.SnapshotID
	for _, d := range disks {
		ids = append(ids, a.imported("disk", d).ID)
	}
	target := &slowTarget{Disk: simtest.NewDisk(size), begun: make(chan struct{}), open: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- a.Control.Export(context.Background(), a.at, ids[1], target, nil) }()
	<-target.begun
	for _, id := range ids {
		a.delete(id)
	}
	_, err := a.Control.Snapshot(t.Context(), a.at, ids[1])
	wantKind(t, "the snapshot that is still read", err, snapferry.NotFound)
	wantKind(t, "an export of what was deleted", a.Control.Export(t.Context(), a.at, ids[1], simtest.NewDisk(size), nil), snapferry.NotFound)
	rest(t, a.Region)
	a.Forget() // nothing is in caches
	close(target.open)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if target.Digest() != disks[1].Digest() {
		t.Errorf("the export reads as %v, want %v", target.Digest(), disks[1].Digest())
	}
	a.empty()
}

// TestDeleteDuringDiff deletes what a difference is read from.
func TestDeleteDuringDiff(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	disks := increments(2)
	one, two := a.imported("disk", disks[0]), a.imported("disk", disks[1])
	n := 0
	err := a.Control.Diff(t.Context(), a.at, one.ID, two.ID, func(extent.Extent) error {
		if n++; n == 1 {
			a.delete(one.ID)
			a.delete(two.ID)
			rest(t, a.Region)
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Errorf("got %d extents, %v", n, err)
	}
	a.empty()
}

// TestDeleteNeighboursAtOnce deletes all of a chain at the same time.
func TestDeleteNeighboursAtOnce(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	disks := increments(6)
	var ids []snapferry.SnapshotID
	for _, d := range disks {
		ids = append(ids, a.imported("disk", d).ID)
	}
	errs := make(chan error, len(ids))
	for _, id := range ids[:5] {
		go func() { errs <- a.Control.Delete(context.Background(), a.at, id) }()
	}
	for range 5 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	rest(t, a.Region)
	a.Check(t, simtest.NoGarbage)
	a.same(ids[5], disks[5])
	a.delete(ids[5])
	a.empty()
}

// TestDeleteAnswersDuringLongCopies: copies occupy all workers of their lane;
// deletions are answered and done.
func TestDeleteAnswersDuringLongCopies(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	atWest := &alone{Region: w.west, t: t, at: w.atWest}
	mine := atWest.imported("mine", d.Clone(size).Fill(1, 1))
	asked, open := w.shut()
	var copies, sources []snapferry.Snapshot
	for i := range 5 {
		s, err := w.east.Control.Import(t.Context(), w.atEast, control.ImportRequest{Volume: fmt.Sprint("disk", i), Disk: d, Close: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, w.settled(w.east, w.atEast, s.ID))
		copies = append(copies, w.copy(control.CopyRequest{Source: s.ID}))
	}
	for range 4 {
		<-asked
	}
	start := time.Now()
	atWest.delete(mine.ID)
	atWest.delete(copies[4].ID) // waits for a worker
	if took := time.Since(start); took > time.Second {
		t.Errorf("two deletions took %v", took)
	}
	rest(t, w.west)
	noPins(t, w.east, sources[4].ID)
	objects(t, w.west, 0)
	close(open)
	for _, c := range copies[:4] {
		w.ready(c.ID, d)
	}
	w.check()
}

// TestBaseFreeIncrement: the snapshots a copy would be based on are deleted in
// east; what west still has is base enough, and the plan says so before.
func TestBaseFreeIncrement(t *testing.T) {
	w := newWorld(t)
	d1 := firstDisk()
	d2 := d1.Clone(size)
	for i := range uint64(20) {
		d2.Fill(500+i, 2001+int(i))
	}
	d3 := d2.Clone(size)
	for i := range uint64(7) {
		d3.Fill(700+i, 3001+int(i))
	}
	s1, s2 := w.imported(d1), w.imported(d2)
	c1 := w.ready(w.copy(control.CopyRequest{Source: s1.ID}).ID, d1)
	c2 := w.ready(w.copy(control.CopyRequest{Source: s2.ID}).ID, d2)
	noPins(t, w.east, s1.ID)
	noPins(t, w.east, s2.ID)
	atEast, atWest := &alone{Region: w.east, t: t, at: w.atEast}, &alone{Region: w.west, t: t, at: w.atWest}
	atEast.delete(s1.ID)
	atEast.delete(s2.ID)
	atWest.delete(c1.ID)
	rest(t, w.east)
	rest(t, w.west)
	s3 := w.imported(d3)
	if s3.Parent != "" {
		t.Errorf("the import after the deletions has the parent %s", s3.Parent)
	}
	plan, err := w.west.Control.PlanCopy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: s3.ID})
	if err != nil {
		t.Fatal(err)
	}
	if plan.MoveBlocks != 7 || plan.Base != c2.ID {
		t.Errorf("plan: got %d blocks on %s (%s), want 7 on %s", plan.MoveBlocks, plan.Base, plan.Reason, c2.ID)
	}
	c3 := w.ready(w.copy(control.CopyRequest{Source: s3.ID}).ID, d3)
	if c3.Counts.Changed != 7*snapferry.BlockSize || c3.Parent != c2.ID {
		t.Errorf("copy: got %d bytes on %q, want %d on %s", c3.Counts.Changed, c3.Parent, 7*snapferry.BlockSize, c2.ID)
	}
	w.check()
	for _, id := range []snapferry.SnapshotID{c2.ID, c3.ID} {
		atWest.delete(id)
	}
	noPins(t, w.east, s3.ID)
	atEast.delete(s3.ID)
	atEast.empty()
	atWest.empty()
}

// TestGhostIsNoBase: what was deleted and stays only as a ghost is not chosen.
func TestGhostIsNoBase(t *testing.T) {
	w := newWorld(t)
	disks := increments(3)
	s := w.imported(disks[0])
	c := w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, disks[0])
	noPins(t, w.east, s.ID)
	atWest := &alone{Region: w.west, t: t, at: w.atWest}
	left, right := atWest.fork(c.ID, "left", disks[0]), atWest.fork(c.ID, "right", disks[0])
	atWest.delete(c.ID) // two children: it stays
	rest(t, w.west)
	plan, err := w.west.Control.PlanCopy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: s.ID})
	if err != nil {
		t.Fatal(err)
	}
	if plan.MoveBlocks != 0 || plan.Base != left.ID && plan.Base != right.ID {
		t.Errorf("plan: got %d blocks on %q, want none on a fork", plan.MoveBlocks, plan.Base)
	}
	atWest.delete(left.ID)
	atWest.delete(right.ID)
	atWest.empty()
	plan, err = w.west.Control.PlanCopy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: s.ID})
	if err != nil || plan.Base != "" || plan.ReuseBlocks != 0 {
		t.Errorf("plan: got %+v, %v, want all of it", plan, err)
	}
}

// TestDeleteCutShort cuts the power at the points of a deletion and its upkeep,
// and starts again.
func TestDeleteCutShort(t *testing.T) {
	f := simtest.NewFactory(t)
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		for n, done := int(mode), false; !done; n += *every {
			a := newAlone(t, f)
			disks := []*simtest.Disk{simtest.NewDisk(1<<20).Fill(0, 1).Fill(1, 2)}
			disks = append(disks, disks[0].Clone(1<<20).Fill(1, 3), disks[0].Clone(1<<20).Fill(0, 5))
			var ids []snapferry.SnapshotID
			for _, d := range disks {
				ids = append(ids, a.imported("disk", d).ID)
			}
			rest(t, a.Region)
			a.Power.CutAt(n, mode)
			err := a.Control.Delete(t.Context(), a.at, ids[1])
			if err == nil {
				settleOrDark(t, a.Region, ids[0])
			}
			done = !a.Power.Restore()
			a.Restart()
			if err := a.Control.Delete(t.Context(), a.at, ids[1]); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
				t.Fatalf("%v, cut at %d: deleted again: %v", mode, n, err)
			}
			rest(t, a.Region)
			a.Check(t, simtest.MayGarbage)
			a.same(ids[0], disks[0])
			a.same(ids[2], disks[2])
			a.delete(ids[0])
			a.delete(ids[2])
			a.empty()
			a.Stop()
			if t.Failed() {
				t.Fatalf("%v, cut at %d", mode, n)
			}
		}
	}
}

// TestDeleteFreesNeighbours: what can go by the deletion of another goes with it.
func TestDeleteFreesNeighbours(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	disks := increments(3)
	root := a.imported("disk", disks[0])
	a.fork(root.ID, "fork", disks[0])
	left, right := a.imported("disk", disks[1]), a.imported("fork", disks[2])
	fork, err := a.Control.Snapshots(t.Context(), a.at, control.Filter{Volume: "fork"})
	if err != nil {
		t.Fatal(err)
	}
	a.delete(root.ID)
	for _, s := range fork {
		if s.ID != right.ID {
			a.delete(s.ID)
		}
	}
	rest(t, a.Region)
	a.delete(left.ID)
	rest(t, a.Region)
	a.View(func(tx *meta.Tx) error {
		all, err := tx.AllVersions()
		if len(all) != 1 {
			t.Errorf("%d versions are left, want the one of the snapshot that is", len(all))
		}
		return err
	})
	a.same(right.ID, disks[2])
	a.delete(right.ID)
	a.empty()
}

// TestStartTakesUp: what deletion has left to do, and has no job, gets one at the
// next start.
func TestStartTakesUp(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	s := a.imported("disk", firstDisk())
	rest(t, a.Region)
	a.Update(func(tx *meta.Tx) error {
		row, err := tx.Snapshot(s.ID)
		if err != nil {
			return err
		}
		return tx.SetStale(row.Version, true)
	})
	a.Restart()
	rest(t, a.Region)
	a.delete(s.ID)
	a.empty()
}

// settleOrDark waits until a snapshot has settled and upkeep has nothing left to
// do, or the power is off.
func settleOrDark(t *testing.T, r *simtest.Region, id snapferry.SnapshotID) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if r.Power.Off() || atRest(r, id) {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("upkeep did not come to its end in %v", patience)
		}
	}
}

// TestStoppedReclaim: while nothing is reclaimed deletion is answered, and its
// job says why it waits.
func TestStoppedReclaim(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	d := firstDisk()
	s := a.imported("disk", d)
	rest(t, a.Region)
	a.Update(func(tx *meta.Tx) error { return tx.StopReclaim("the bucket knows more") })
	a.delete(s.ID)
	idle(t, a.Region, "a try", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOfLane(job.Upkeep, 0)
		for _, j := range jobs {
			if j.Kind == "free" && j.Attempts > 0 && strings.Contains(j.Error, "the bucket knows more") {
				return true, err
			}
		}
		return false, err
	})
	u, err := a.Control.RegionUsage(t.Context(), a.at)
	if err != nil || u.Stopped != "the bucket knows more" || u.Total.Ghosts != 1 || u.Total.Live == 0 || u.Queued == 0 {
		t.Errorf("usage: got %+v, %v, want it stopped, with a ghost", u, err)
	}
	a.Update(func(tx *meta.Tx) error { return tx.StopReclaim("") })
	a.empty()
	u, err = a.Control.RegionUsage(t.Context(), a.at)
	if want := (snapferry.RegionUsage{Region: "east"}); err != nil || u != want {
		t.Errorf("usage: got %+v, %v, want nothing left", u, err)
	}
}

// TestUsage says what deletion frees while an import and a copy depend on it.
func TestUsage(t *testing.T) {
	w := newWorld(t)
	atEast := &alone{Region: w.east, t: t, at: w.atEast}
	disks := increments(2)
	one, two := atEast.imported("disk", disks[0]), atEast.imported("disk", disks[1])
	usage := func(ids ...snapferry.SnapshotID) snapferry.SnapshotUsage {
		t.Helper()
		u, err := w.east.Control.Usage(t.Context(), w.atEast, ids)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	free := usage(one.ID, two.ID)
	if free.Snapshots[0].Blocks != 1 || free.Snapshots[1].Blocks != 3 || free.Together.Blocks != 203 || free.Together.Later != 0 {
		t.Errorf("usage: got %+v, want 1 and 3 blocks, 203 together", free)
	}
	asked, open := w.shut()
	c := w.copy(control.CopyRequest{Source: two.ID})
	<-asked
	pinned := usage(one.ID, two.ID)
	if pinned.Snapshots[0] != free.Snapshots[0] || pinned.Snapshots[1].Bytes != 0 || pinned.Snapshots[1].Later != free.Snapshots[1].Bytes {
		t.Errorf("while it is copied: got %+v, want its bytes later", pinned)
	}
	_, err := w.west.Control.Usage(t.Context(), w.atWest, []snapferry.SnapshotID{c.ID})
	wantKind(t, "usage of a copy under way", err, snapferry.Conflict)
	close(open)
	w.ready(c.ID, disks[1])
	w.check()
}

// TestForkCutShort cuts the power at every point of a fork.
func TestForkCutShort(t *testing.T) {
	f := simtest.NewFactory(t)
	d := simtest.NewDisk(1<<20).Fill(0, 1)
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		for n, done := 0, false; !done; n++ {
			a := newAlone(t, f)
			s := a.imported("disk", d)
			rest(t, a.Region)
			a.Power.CutAt(n, mode)
			x, err := a.Control.Fork(t.Context(), a.at, control.ForkRequest{Source: s.ID, Volume: "fork"})
			if err == nil {
				settleOrDark(t, a.Region, x.ID)
			}
			done = !a.Power.Restore()
			a.Restart()
			all, err := a.Control.Snapshots(t.Context(), a.at, control.Filter{Volume: "fork"})
			if err != nil || len(all) > 1 {
				t.Fatalf("%v, cut at %d: %d snapshots, %v", mode, n, len(all), err)
			}
			for _, x := range all {
				a.ready(x.ID, d)
				a.delete(x.ID)
			}
			a.delete(s.ID)
			a.empty()
			a.Stop()
			if t.Failed() {
				t.Fatalf("%v, cut at %d", mode, n)
			}
		}
	}
}
