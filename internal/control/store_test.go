package control_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// on is a region with an account over a driver.
func on(t *testing.T, d blob.Driver) *alone {
	t.Helper()
	a := &alone{Region: simtest.NewRegion(t, simtest.Options{Jobs: true, Driver: d}), t: t}
	a.at = a.Account("a")
	return a
}

// random is a disk of n blocks that do not compress.
func random(n, seed int) *simtest.Disk {
	d := simtest.NewDisk(size)
	for i := range n {
		d.Fill(uint64(i), 2*(seed*10000+i)+1)
	}
	return d
}

// TestBucketFull fills a bucket: what finds no room fails as full and gives back
// what it took, all else stays as it is, and deletion makes room again.
func TestBucketFull(t *testing.T) {
	quota := blobtest.NewQuota(memblob.New(), 1<<40)
	a := on(t, quota)
	first, second := random(160, 1), random(160, 2)
	one := a.imported("one", first)
	rest(t, a.Region)
	quota.Spare(5 << 20)
	before := quota.Used()
	for range 2 {
		s, err := a.Control.Import(t.Context(), a.at, control.ImportRequest{Volume: "two", Disk: second, Close: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		s, err = a.Control.Wait(t.Context(), a.at, s.ID, -1, patience)
		if err != nil || s.State != snapferry.SnapshotFailed || !strings.Contains(s.Reason, "no room") {
			t.Fatalf("import into a full bucket: got %s (%s), %v, want it failed", s.State, s.Reason, err)
		}
		rest(t, a.Region)
		gone(t, a.Region, s.ID)
		if got := quota.Used(); got != before {
			t.Errorf("a failed import left %d bytes", got-before)
		}
		a.same(one.ID, first)
		a.delete(s.ID)
	}
	if quota.Refused() == 0 {
		t.Error("no put was refused")
	}

	// Without room for a single record nothing can be deleted, and nothing is
	// lost; with room for some records all can.
	quota.Spare(0)
	wantKind(t, "delete in a bucket without any room", a.Control.Delete(t.Context(), a.at, one.ID), snapferry.Full)
	a.same(one.ID, first)
	quota.Spare(4 << 10)
	a.delete(one.ID)
	a.empty()
	a.imported("two", second)
	rest(t, a.Region)
	a.Check(t, simtest.NoGarbage)
}

// TestCopyIntoFull copies into a region without room: the copy waits, says why, and
// goes on when there is room; when its patience ends it fails as full, and leaves
// nothing, there or at its source.
func TestCopyIntoFull(t *testing.T) {
	for _, impatient := range []bool{false, true} {
		quota := blobtest.NewQuota(memblob.New(), 1<<20)
		w := newWorldWith(t, func(o *simtest.Options) {
			o.Driver = quota
			if impatient {
				o.Copies.Patience = time.Nanosecond
			}
		})
		d := firstDisk()
		s := w.imported(d)
		c := w.copy(control.CopyRequest{Source: s.ID})
		if !impatient {
			idle(t, w.west, "a run that found no room", func(tx *meta.Tx) (bool, error) {
				jobs, err := tx.JobsOf(string(c.ID))
				return err == nil && jobs[0].State == snapferry.JobQueued && jobs[0].Error != "", err
			})
			x, err := w.west.Control.CopyOf(t.Context(), w.atWest, c.Copy)
			if err != nil || x.Progress == nil || x.Progress.Stalled == nil || !strings.Contains(x.Progress.Stalled.Cause, "there is no room") || x.Progress.Stalled.Again.IsZero() {
				t.Errorf("a copy that found no room: got %+v, %v, want it stalled, to be tried again", x.Progress, err)
			}
			quota.Spare(1 << 30)
			w.ready(c.ID, d)
			w.check()
			continue
		}
		if c = w.settled(w.west, w.atWest, c.ID); c.State != snapferry.SnapshotFailed || !strings.Contains(c.Reason, "no room") {
			t.Errorf("got %s (%s), want it failed", c.State, c.Reason)
		}
		w.ended(c.Copy, snapferry.EndedFull, 0)
		gone(t, w.west, c.ID)
		noPins(t, w.east, s.ID)
		if got := quota.Used(); got != 0 {
			t.Errorf("a failed copy left %d bytes", got)
		}
		quota.Spare(1 << 30)
		w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, d)
		w.check()
	}
}

// meddler is a driver that does something at each put of an object.
type meddler struct {
	blob.Driver
	puts atomic.Int64
	at   atomic.Pointer[func(name string)]
}

func (m *meddler) set(fn func(name string)) { m.at.Store(&fn) }

func (m *meddler) Put(ctx context.Context, name string, body []byte) error {
	if fn := m.at.Load(); fn != nil && *fn != nil && strings.HasPrefix(name, vault.ObjectPrefix) {
		m.puts.Add(1)
		(*fn)(name)
	}
	return m.Driver.Put(ctx, name, body)
}

// next returns a disk that differs in half of the blocks, other ones each time.
func next(d *simtest.Disk, seed int) *simtest.Disk {
	d = d.Clone(size)
	for i := range uint64(20) {
		d.Fill((i+uint64(seed)*7)%40, 2*(seed*10000+int(i))+1)
	}
	return d
}

// halves makes snapshots of which each has half the blocks of the one before.
func (a *alone) halves(n int) (ids []snapferry.SnapshotID) {
	a.t.Helper()
	d := random(40, 99)
	for i := range n {
		ids = append(ids, a.imported("disk", d).ID)
		d = next(d, i)
	}
	rest(a.t, a.Region)
	return ids
}

// compactions returns the jobs of compaction that have not ended.
func compactions(tx *meta.Tx) (all []meta.Job, err error) {
	jobs, err := tx.JobsOfLane(job.Upkeep, 0)
	for _, j := range jobs {
		if j.Kind == "compact" && !j.State.Terminal() {
			all = append(all, j)
		}
	}
	return all, err
}

// TestCompactionInVain has a compaction that moves nothing, because what it puts
// is always taken from it: it is tried again after a pause, by one job.
func TestCompactionInVain(t *testing.T) {
	m := &meddler{Driver: memblob.New()}
	a := on(t, m)
	ids := a.halves(2)
	m.set(func(name string) {
		// Without its row nobody can make the object live.
		a.Update(func(tx *meta.Tx) error { _, err := tx.DropWriting(name); return err })
	})
	a.delete(ids[0])
	idle(t, a.Region, "a compaction that waits", func(tx *meta.Tx) (bool, error) {
		jobs, err := compactions(tx)
		if len(jobs) > 1 {
			t.Errorf("got %d compactions of a chain, want one", len(jobs))
		}
		return len(jobs) == 1 && jobs[0].Attempts > 0 && strings.Contains(jobs[0].Error, "could not be moved"), err
	})
	if n := m.puts.Load(); n > 4 {
		t.Errorf("%d objects were put in vain", n)
	}
	m.set(nil)
	rest(t, a.Region)
	a.Check(t, simtest.NoGarbage)
}

// TestOneCompaction has more to compact while a chain is compacted: no second
// job comes for it, and in the end all is done.
func TestOneCompaction(t *testing.T) {
	m := &meddler{Driver: memblob.New()}
	a := on(t, m)
	ids := a.halves(5)
	asked, open := make(chan struct{}, 100), make(chan struct{})
	m.set(func(string) {
		asked <- struct{}{}
		<-open
	})
	a.delete(ids[0])
	<-asked
	for _, id := range ids[1:4] {
		a.delete(id)
	}
	var chain snapferry.ChainID
	idle(t, a.Region, "the end of deletion", func(tx *meta.Tx) (bool, error) {
		jobs, err := compactions(tx)
		if err != nil {
			return false, err
		}
		if len(jobs) != 1 {
			t.Errorf("got %d compactions, want one", len(jobs))
			return true, nil
		}
		if chain, err = snapferry.ParseChainID(jobs[0].Subject); err != nil {
			return false, err
		}
		left, err := tx.Chores(chain)
		return len(left) == 0, err
	})
	if n := m.puts.Load(); n != 1 {
		t.Errorf("%d merged objects are being put, want one", n)
	}
	close(open)
	rest(t, a.Region)
	a.View(func(tx *meta.Tx) error {
		need, err := a.Vault.NeedsCompaction(tx, chain)
		if err != nil || need {
			t.Errorf("in the end another compaction is needed: %v, %v", need, err)
		}
		return nil
	})
	a.Check(t, simtest.NoGarbage)
}

// stubborn is a driver that refuses deletes, and lists what it listed before,
// while it is told to.
type stubborn struct {
	blob.Driver
	keeps atomic.Bool
	old   atomic.Pointer[[]blob.Info]
}

func (s *stubborn) Delete(ctx context.Context, name string) error {
	if s.keeps.Load() {
		return snapferry.Errorf(snapferry.Denied, "deletes are not allowed")
	}
	return s.Driver.Delete(ctx, name)
}

func (s *stubborn) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	old := s.old.Load()
	if old == nil {
		return s.Driver.List(ctx, prefix, after, fn)
	}
	for _, i := range *old {
		if strings.HasPrefix(i.Name, prefix) && i.Name > after {
			if err := fn(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// late lets lists show what is there now until they are on time again.
func (s *stubborn) late(t *testing.T, yes bool) {
	t.Helper()
	s.old.Store(nil)
	if !yes {
		return
	}
	all := []blob.Info{}
	if err := s.Driver.List(t.Context(), "", "", func(i blob.Info) error { all = append(all, i); return nil }); err != nil {
		t.Fatal(err)
	}
	s.old.Store(&all)
}

// TestDeletesRefused has a bucket that does not delete: snapshots can be
// deleted all the same, the region works on and says what waits and why, and
// when the bucket deletes again the space comes back.
func TestDeletesRefused(t *testing.T) {
	s := &stubborn{Driver: memblob.New()}
	a := on(t, s)
	disks := increments(2)
	one, two := a.imported("disk", disks[0]), a.imported("disk", disks[1])
	rest(t, a.Region)
	s.keeps.Store(true)
	a.delete(one.ID)
	a.same(two.ID, disks[1])
	a.delete(two.ID)
	idle(t, a.Region, "a removal that was refused", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOfLane(job.Upkeep, 0)
		for _, j := range jobs {
			if j.Attempts > 0 && strings.Contains(j.Error, "deletes are not allowed") {
				return true, err
			}
		}
		return false, err
	})
	jobs, err := a.Control.Jobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	said := false
	for _, j := range jobs {
		said = said || strings.Contains(j.Error, "deletes are not allowed")
	}
	u, err := a.Control.RegionUsage(t.Context(), a.at)
	if err != nil || !said || u.Queued+u.Running == 0 {
		t.Errorf("got jobs %+v and usage %+v, %v, want them to tell", jobs, u, err)
	}
	a.imported("other", disks[0])
	s.keeps.Store(false)
	rest(t, a.Region)
	a.Check(t, simtest.NoGarbage)
}

// TestListsLate has a bucket whose lists are behind, which its check found out
// before if it is always so: what is new is not taken for lost, what is gone is
// not taken for unknown, and nothing that is needed is removed.
func TestListsLate(t *testing.T) {
	s := &stubborn{Driver: memblob.New()}
	a := on(t, s)
	disks := increments(3)
	one := a.imported("disk", disks[0])
	two := a.imported("disk", disks[1])
	rest(t, a.Region)
	for range 2 {
		s.late(t, true)
		a.delete(one.ID)
		rest(t, a.Region)
		three := a.imported("disk", disks[2])
		if _, err := a.Vault.Sweep(t.Context(), nil); err != nil {
			t.Fatalf("sweep: %v", err)
		}
		a.Restart()
		rest(t, a.Region)
		a.View(func(tx *meta.Tx) error {
			if err := vault.Stopped(tx); err != nil {
				t.Errorf("lists that are late: %v", err)
			}
			return nil
		})
		a.same(two.ID, disks[1])
		a.same(three.ID, disks[2])
		s.late(t, false)
		one, two = two, three
		disks[1] = disks[2]
		disks[2] = next(disks[2], 7)
	}
	a.Restart()
	rest(t, a.Region)
	a.Check(t, simtest.NoGarbage)
}
