package control_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// sealedRegion is a region with snapshots of one lineage under a key: of each the
// content.
type sealedRegion struct {
	*alone
	ids   []snapferry.SnapshotID
	disks []*simtest.Disk
}

func newSealed(t *testing.T, n int) *sealedRegion {
	s := &sealedRegion{alone: newAlone(t, simtest.NewFactory(t))}
	key(t, s.Region, s.at, "one")
	d := simtest.NewDisk(size)
	for b := range uint64(40) {
		d.Fill(b*40, int(b)+1)
	}
	for i := range n {
		d.Fill(uint64(i), 100+i).Fill(700, 200+i)
		x := s.importedAs(d.Clone(size), control.Sealing{Key: "one"})
		s.ids, s.disks = append(s.ids, x.ID), append(s.disks, d.Clone(size))
	}
	return s
}

func (s *sealedRegion) importedAs(d *simtest.Disk, as control.Sealing) snapferry.Snapshot {
	s.t.Helper()
	x, err := s.Control.Import(s.t.Context(), s.at, control.ImportRequest{Volume: "disk", Sealing: as, Disk: d, Close: func() {}})
	if err != nil {
		s.t.Fatal(err)
	}
	return s.ready(x.ID, d)
}

func (s *sealedRegion) change(a control.KeyAction) {
	s.t.Helper()
	if _, err := s.Control.ChangeKey(s.t.Context(), s.at, "one", a); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sealedRegion) remove(i int) {
	s.t.Helper()
	if err := s.Control.Delete(s.t.Context(), s.at, s.ids[i]); err != nil {
		s.t.Fatalf("delete snapshot %d: %v", i, err)
	}
	_, err := s.Control.Snapshot(s.t.Context(), s.at, s.ids[i])
	wantKind(s.t, "show what was deleted", err, snapferry.NotFound)
}

// has exports what is left.
func (s *sealedRegion) has(left ...int) {
	s.t.Helper()
	all, err := s.Control.Snapshots(s.t.Context(), s.at, control.Filter{})
	if err != nil || len(all) != len(left) {
		s.t.Errorf("%d snapshots, %v, want %d", len(all), err, len(left))
	}
	for _, i := range left {
		got := simtest.NewDisk(size)
		if err := s.Control.Export(s.t.Context(), s.at, s.ids[i], got, nil); err != nil || got.Digest() != s.disks[i].Digest() {
			s.t.Errorf("snapshot %d reads as %v, %v, want %v", i, got.Digest(), err, s.disks[i].Digest())
		}
	}
}

// TestDeleteUnderDisabledKey deletes snapshots whose key is disabled, also over a
// restart: what they have stays until the key is enabled, and what is kept is not
// touched.
func TestDeleteUnderDisabledKey(t *testing.T) {
	for _, restart := range []bool{false, true} {
		s := newSealed(t, 5)
		fork := s.fork(s.ids[0], "fork", s.disks[0])
		s.ids, s.disks = append(s.ids, fork.ID), append(s.disks, s.disks[0])
		s.change(control.KeyDisable)
		s.remove(0) // stays, between its children
		s.remove(1)
		s.remove(2)
		s.remove(4)
		wantKind(t, "export", s.Control.Export(t.Context(), s.at, s.ids[3], simtest.NewDisk(size), nil), snapferry.KeyUnusable)
		idle(t, s.Region, "a visit that the key keeps from it", func(tx *meta.Tx) (bool, error) {
			jobs, err := tx.UnsettledJobs()
			return slices.ContainsFunc(jobs, func(j meta.Job) bool { return strings.Contains(j.Error, "disabled") }), err
		})
		if restart {
			s.Restart()
		}
		s.change(control.KeyEnable)
		rest(t, s.Region)
		s.has(3, 5)
		s.View(func(tx *meta.Tx) error {
			versions, err := tx.AllVersions()
			if len(versions) != 3 {
				t.Errorf("%d versions are left, want 3", len(versions))
			}
			for _, v := range versions {
				if v.Stale {
					t.Errorf("version %s is stale", v.ID)
				}
			}
			return err
		})
		s.Check(t, simtest.NoGarbage)
	}
}

// TestPurgeUnderDisabledKey deletes all that is sealed with a disabled key: it goes, and
// gives its space back, and the chain can be used again.
func TestPurgeUnderDisabledKey(t *testing.T) {
	s := newSealed(t, 4)
	s.change(control.KeyDisable)
	for i := range s.ids {
		s.remove(i)
	}
	s.empty()
	s.change(control.KeyEnable)
	again := s.imported("disk", s.disks[2].Clone(size))
	if !again.Encrypted {
		t.Error("the lineage is not encrypted any more")
	}
	s.ids, s.disks = append(s.ids, again.ID), append(s.disks, s.disks[2])
	s.has(4)
	rest(t, s.Region)
	s.Check(t, simtest.NoGarbage)
}

// TestPurgeUnderDeletedKey deletes what is sealed with a key that is gone for ever.
func TestPurgeUnderDeletedKey(t *testing.T) {
	s := newSealed(t, 3)
	if _, err := s.Control.ScheduleKeyDeletion(t.Context(), s.at, "one", 7); err != nil {
		t.Fatal(err)
	}
	s.remove(1)
	if _, err := s.Keys.Expire(t.Context(), time.Now().AddDate(0, 0, 8)); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	wantKind(t, "export", s.Control.Export(t.Context(), s.at, s.ids[0], simtest.NewDisk(size), nil), snapferry.KeyUnusable)
	s.remove(0)
	s.Restart()
	s.remove(2)
	s.empty()
	s.has()
}

// TestCancelUnderDisabledKeys ends a copy while the keys of both ends are disabled: pins
// are released, and what the copy had is gone.
func TestCancelUnderDisabledKeys(t *testing.T) {
	w := newWorld(t)
	key(t, w.east, w.atEast, "A")
	key(t, w.west, w.atWest, "one")
	d := firstDisk()
	s := w.importedAs("disk", d, control.Sealing{Key: "A"})
	asked, _ := w.shut()
	c := w.copy(control.CopyRequest{Source: s.ID, Sealing: control.Sealing{Key: "one"}})
	<-asked
	for _, x := range []struct {
		r       *simtest.Region
		account snapferry.AccountID
		name    string
	}{{w.east, w.atEast, "A"}, {w.west, w.atWest, "one"}} {
		if _, err := x.r.Control.ChangeKey(t.Context(), x.account, x.name, control.KeyDisable); err != nil {
			t.Fatal(err)
		}
	}
	// The source is deleted, and goes with the pin.
	if err := w.east.Control.Delete(t.Context(), w.atEast, s.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.west.Control.Delete(t.Context(), w.atWest, c.ID); err != nil {
		t.Fatal(err)
	}
	gone(t, w.west, c.ID)
	noPins(t, w.east, s.ID)
	idle(t, w.east, "the end of the source", func(tx *meta.Tx) (bool, error) {
		all, err := tx.AllVersions()
		return len(all) == 0, err
	})
	rest(t, w.east)
	w.east.WantNothing(t)
	w.west.Check(t, simtest.MayGarbage)
}

// TestPurgeCutShort cuts the power at the points of a purge, starts again, and has the
// key enabled or not then.
func TestPurgeCutShort(t *testing.T) {
	f := simtest.NewFactory(t)
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		for n, done := int(mode), false; !done; n += *every {
			s := &sealedRegion{alone: newAlone(t, f)}
			key(t, s.Region, s.at, "one")
			d := simtest.NewDisk(1<<20).Fill(0, 1).Fill(1, 2)
			for i := range 3 {
				s.ids = append(s.ids, s.importedAs(d.Fill(1, 3+i).Clone(1<<20), control.Sealing{Key: "one"}).ID)
			}
			rest(t, s.Region)
			s.change(control.KeyDisable)
			s.remove(1)
			s.remove(0)
			s.Power.CutAt(n, mode)
			if err := s.Control.Delete(t.Context(), s.at, s.ids[2]); err == nil {
				settleOrDark(t, s.Region, s.ids[2])
			}
			done = !s.Power.Restore()
			s.Restart()
			if n%2 == 0 {
				s.change(control.KeyEnable)
			}
			if err := s.Control.Delete(t.Context(), s.at, s.ids[2]); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
				t.Fatalf("%v, cut at %d: deleted again: %v", mode, n, err)
			}
			s.empty()
			s.Stop()
			if t.Failed() {
				t.Fatalf("%v, cut at %d", mode, n)
			}
		}
	}
}

// TestSweepUnderDisabledKey sweeps while something that is not counted is sealed with a key
// that may not be used.
func TestSweepUnderDisabledKey(t *testing.T) {
	s := newSealed(t, 1)
	s.change(control.KeyDisable)
	s.Update(func(tx *meta.Tx) error {
		versions, err := tx.AllVersions()
		if err == nil {
			err = tx.ForgetStored(versions[0].ID, time.Now())
		}
		return errors.Join(err, sweepNow(tx))
	})
	rest(t, s.Region)
	s.change(control.KeyEnable)
	s.Update(sweepNow)
	rest(t, s.Region)
	s.Check(t, simtest.NoGarbage)
}

// rotating is a key service whose keys can be rotated.
type rotating struct{ *keyService }

func (rotating) Rotate(context.Context, string) error { return nil }

// TestRotatedMeanwhile rotates a key after the data key of a new chain was wrapped with it, and
// before the chain is in the metadata: it is refused, for the generation that it is wrapped
// with is forgotten.
func TestRotatedMeanwhile(t *testing.T) {
	service := &keyService{}
	a := &alone{Region: simtest.NewRegion(t, simtest.Options{Jobs: true, KeyServices: map[string]kms.Driver{"service": rotating{service}}}), t: t}
	a.at = a.Account("a")
	k, err := a.Control.CreateKey(t.Context(), a.at, control.KeyRequest{Alias: "one", Driver: "service", External: "x"})
	if err != nil {
		t.Fatal(err)
	}
	var rotated atomic.Bool
	service.set(func(context.Context, []byte) error {
		if !rotated.Swap(true) {
			if _, err := a.Control.ChangeKey(context.Background(), a.at, "one", control.KeyRotate); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	q := control.ImportRequest{Volume: "disk", Sealing: control.Sealing{Key: "one"}, Disk: firstDisk(), Close: func() {}}
	_, err = a.Control.Import(t.Context(), a.at, q)
	wantKind(t, "with a key that was rotated just now", err, snapferry.Unavailable)
	s, err := a.Control.Import(t.Context(), a.at, q)
	if err != nil {
		t.Fatal(err)
	}
	a.ready(s.ID, firstDisk())
	rest(t, a.Region)
	a.View(func(tx *meta.Tx) error {
		chains, err := tx.ChainsOfKey(k.ID)
		if len(chains) != 1 || chains[0].Generation != 2 {
			t.Errorf("chains %+v, want one of generation 2", chains)
		}
		return err
	})
}

// TestRotations rotates a key several times: each time the newest object of the chain says
// what the metadata does, and the objects with older wrapped keys are gone.
func TestRotations(t *testing.T) {
	s := newSealed(t, 1)
	var older, newest meta.Chain
	for range 4 {
		k, err := s.Control.ChangeKey(t.Context(), s.at, "one", control.KeyRotate)
		if err != nil {
			t.Fatal(err)
		}
		var chains []meta.Chain
		idle(t, s.Region, "the end of the rotation", func(tx *meta.Tx) (bool, error) {
			var err error
			chains, err = tx.ChainsOfKey(k.ID)
			return len(chains) == 1 && chains[0].Generation == k.Generation, err
		})
		rest(t, s.Region)
		s.CheckChain(t, chains[0])
		older, newest = newest, chains[0]
		n := 0
		err = s.Bucket.List(t.Context(), "chain/", "", func(blob.Info) error { n++; return nil })
		if err != nil || n != 1 {
			t.Errorf("generation %d: %d objects of the chain, %v, want 1", k.Generation, n, err)
		}
	}
	// A process that slept while the key was rotated does not put the older one above it.
	wantKind(t, "an older wrapped key", s.Vault.PutChain(t.Context(), older), snapferry.Conflict)
	s.CheckChain(t, newest)
	s.Restart()
	s.has(0)
}
