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
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// A door is a bucket whose next read of an object waits once it is shut.
type door struct {
	blob.Driver
	shut         atomic.Bool
	asleep, open chan struct{}
}

func newDoor() *door {
	return &door{Driver: memblob.New(), asleep: make(chan struct{}), open: make(chan struct{})}
}

func (d *door) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if strings.HasPrefix(name, vault.ObjectPrefix) && d.shut.CompareAndSwap(true, false) {
		close(d.asleep)
		<-d.open
	}
	return d.Driver.ReadAt(ctx, name, p, off)
}

func (d *door) wait(t *testing.T) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	select {
	case <-d.asleep:
	case <-end.C:
		t.Fatal("nobody came to the door")
	}
}

// TestLostLease: a job of deletion falls asleep and is ended by somebody else;
// when it wakes it changes nothing.
func TestLostLease(t *testing.T) {
	d := newDoor()
	a := &alone{Region: simtest.NewFactory(t).NewRegion(t, simtest.Options{Jobs: true, Workers: 1, Driver: d}), t: t}
	a.at = a.Account("a")
	disks := increments(2)
	one, two := a.imported("disk", disks[0]), a.imported("disk", disks[1])
	rest(t, a.Region)
	a.Restart() // nothing is in caches
	rest(t, a.Region)
	var version snapferry.VersionID
	a.View(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(one.ID)
		version = s.Version
		return err
	})
	d.shut.Store(true)
	a.delete(one.ID)
	d.wait(t)
	a.Update(func(tx *meta.Tx) error { return tx.EndJobs("somebody else", time.Now()) })
	close(d.open)
	// There is one worker: when it does the next job, it has ended this one.
	next := job.Job{ID: snapferry.NewJobID(), Kind: "reclaim", Subject: "next", Lane: job.Upkeep}
	a.Update(func(tx *meta.Tx) error { return job.Enqueue(tx, next) })
	idle(t, a.Region, "the next job", func(tx *meta.Tx) (bool, error) {
		j, err := tx.Job(next.ID)
		return j.State.Terminal(), err
	})
	a.View(func(tx *meta.Tx) error {
		row, err := tx.Version(version)
		if err != nil || row.State != snapferry.VersionGhost || !row.Due {
			t.Errorf("the deleted version: %s, due %t, %v, want a ghost as it was", row.State, row.Due, err)
		}
		return nil
	})
	a.Restart()
	rest(t, a.Region)
	a.Check(t, simtest.NoGarbage)
	a.same(two.ID, disks[1])
	a.delete(two.ID)
	a.empty()
}

// TestSweepComesAgain: a sweep that has ended has left the next one.
func TestSweepComesAgain(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	idle(t, a.Region, "the end of a sweep", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOf("region")
		for _, j := range jobs {
			if j.Kind == "sweep" && j.State == snapferry.JobDone {
				return true, err
			}
		}
		return false, err
	})
	a.View(func(tx *meta.Tx) error {
		id, err := tx.QueuedJob("sweep", "region")
		if err != nil {
			t.Errorf("the next sweep: %v", err)
			return nil
		}
		j, err := tx.Job(id)
		if in := time.Until(j.RunAfter); in < time.Hour || in > 6*time.Hour {
			t.Errorf("the next sweep comes in %v", in)
		}
		return err
	})
}

// TestGrace: an object that nobody needs stays for the grace.
func TestGrace(t *testing.T) {
	a := &alone{Region: simtest.NewFactory(t).NewRegion(t, simtest.Options{Jobs: true, Grace: time.Hour}), t: t}
	a.at = a.Account("a")
	d := firstDisk()
	s := a.imported("disk", d)
	a.delete(s.ID)
	idle(t, a.Region, "the job that removes objects", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOf("region")
		for _, j := range jobs {
			if j.Kind == "reclaim" {
				if in := time.Until(j.RunAfter); in < time.Minute || in > time.Hour {
					t.Errorf("objects are removed in %v, want in an hour", in)
				}
				return true, err
			}
		}
		return false, err
	})
	a.View(func(tx *meta.Tx) error {
		all, err := tx.Condemned(time.Now().Add(time.Minute), 0)
		for _, o := range all {
			if _, err := a.Bucket.Size(t.Context(), o.Name); err != nil {
				t.Errorf("condemned object %s: %v", o.Name, err)
			}
		}
		if len(all) == 0 {
			t.Error("no object waits")
		}
		return err
	})
}

// TestPinsAreTheirRegions: a pin is ended by the region that made it.
func TestPinsAreTheirRegions(t *testing.T) {
	peers := map[snapferry.RegionName]func(string) transfer.Remote{"west": simtest.NewLink("east").As, "north": simtest.NewLink("east").As}
	a := &alone{Region: simtest.NewFactory(t).NewRegion(t, simtest.Options{Jobs: true, Peers: peers}), t: t}
	a.at = a.Account("a")
	s := a.imported("disk", firstDisk())
	h, c := control.Host{Region: a.Control}, transfer.Caller{Region: "west", Account: "a"}
	x, err := h.Pin(t.Context(), c, transfer.Pin{Snapshot: s.ID, Copy: snapferry.NewCopyID(), Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	a.delete(s.ID)
	err = h.Release(t.Context(), transfer.Caller{Region: "north", Account: "a"}, x, "")
	wantKind(t, "the release by another region", err, snapferry.NotFound)
	if now, err := a.Control.Snapshot(t.Context(), a.at, s.ID); err != nil || now.State != snapferry.SnapshotDeleting {
		t.Errorf("the pinned snapshot: %s, %v, want deleting", now.State, err)
	}
	if err := h.Release(t.Context(), c, x, ""); err != nil {
		t.Fatal(err)
	}
	_, err = a.Control.Snapshot(t.Context(), a.at, s.ID)
	wantKind(t, "the snapshot without its pin", err, snapferry.NotFound)
	a.empty()
}

// TestDeleteThatFails: one step of a deletion fails, or did what it was to do
// and says that it failed. The snapshot is there or it is not, its record says
// the same without a restart, and it can be deleted again.
func TestDeleteThatFails(t *testing.T) {
	f := simtest.NewFactory(t)
	d := simtest.NewDisk(1<<20).Fill(0, 1)
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		for n, done := 0, false; !done; n++ {
			a := newAlone(t, f)
			s := a.imported("disk", d)
			rest(t, a.Region)
			a.Power.FailAt(n, mode)
			err := a.Control.Delete(t.Context(), a.at, s.ID)
			done = err == nil
			a.Power.Restore()
			if err != nil {
				rest(t, a.Region)
				a.Check(t, simtest.MayGarbage)
				if now, err := a.Control.Snapshot(t.Context(), a.at, s.ID); err == nil && now.State == snapferry.SnapshotReady {
					a.same(s.ID, d)
				}
				if err := a.Control.Delete(t.Context(), a.at, s.ID); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
					t.Fatalf("%v, failed at %d: deleted again: %v", mode, n, err)
				}
			}
			a.empty()
			a.Stop()
			if t.Failed() {
				t.Fatalf("%v, failed at %d", mode, n)
			}
		}
	}
}
