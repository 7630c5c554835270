package control_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// A stay is what a usage record says of bytes that stay.
type stay struct {
	Kind    string
	Subject string
	Bytes   int64
	From    time.Time
	At      time.Time
}

// stays are the records of what is stored, by subject, in order.
func (a *alone) stays() map[string][]stay {
	a.t.Helper()
	all, err := a.Control.UsageRecords(a.t.Context(), a.at, 0, 1<<20)
	if err != nil {
		a.t.Fatal(err)
	}
	of := map[string][]stay{}
	for _, u := range all {
		if u.Kind == meta.UsageStorage || u.Kind == meta.UsageRetained {
			of[u.Subject] = append(of[u.Subject], stay{u.Kind, u.Subject, u.Bytes, u.From, u.At})
		}
	}
	return of
}

// days are stays of bytes from a time until another, a record for each day.
func days(kind, subject string, bytes int64, from, until time.Time) (all []stay) {
	for from.Before(until) {
		end := from.Truncate(24 * time.Hour).Add(24 * time.Hour)
		if until.Before(end) {
			end = until
		}
		all = append(all, stay{kind, subject, bytes, from, end})
		from = end
	}
	return all
}

// down stops the region for a time.
func (a *alone) down(d time.Duration) {
	a.t.Helper()
	a.Stop()
	time.Sleep(d) // in a bubble
	a.Restart()
	<-a.Control.Started()
}

// rowOf returns what the metadata has of a snapshot.
func (a *alone) rowOf(id snapferry.SnapshotID) (s meta.Snapshot) {
	a.t.Helper()
	a.View(func(tx *meta.Tx) (err error) { s, err = tx.Snapshot(id); return err })
	return s
}

func (a *alone) storedBy(id snapferry.SnapshotID) (bytes int64) {
	a.t.Helper()
	a.View(func(tx *meta.Tx) (err error) { bytes, _, err = tx.Stored(a.rowOf(id).Version); return err })
	return bytes
}

// TestStorageIsMetered lets two snapshots live for some days, most of which the
// region is down, and deletes the older one in the middle of a day: what each
// stored, and when, is in the usage records, and what the younger needs of the
// older one passes to it.
func TestStorageIsMetered(t *testing.T) {
	f := simtest.NewFactory(t)
	synctest.Test(t, func(t *testing.T) {
		a := &alone{Region: f.NewRegion(t, simtest.Options{Jobs: true, Poll: 10 * time.Second}), t: t}
		t.Cleanup(a.Stop)
		a.at = a.Account("a")
		d := firstDisk()
		one := a.imported("disk", d)
		older := a.storedBy(one.ID)
		a.down(36 * time.Hour)
		midnight := time.Now().UTC().Truncate(24 * time.Hour)
		first := days("storage", string(one.ID), older, a.rowOf(one.ID).Settled, midnight)
		if diff := cmp.Diff(a.stays()[string(one.ID)], first); diff != "" {
			t.Errorf("at once after the start (-got +want):\n%s", diff)
		}
		two := a.imported("disk", d.Clone(size).Fill(0, 77).Fill(1, 79).Fill(1500, 81))
		rest(t, a.Region)
		a.down(72 * time.Hour)

		// Over a midnight at work.
		time.Sleep(12*time.Hour + time.Minute)
		usage, err := a.Control.Usage(t.Context(), a.at, []snapferry.SnapshotID{one.ID})
		if err != nil {
			t.Fatal(err)
		}
		freed := usage.Together.Bytes
		younger := a.storedBy(two.ID)
		if freed == 0 || younger == 0 || older <= freed {
			t.Fatalf("the older stores %d bytes, of which %d go, the younger %d", older, freed, younger)
		}
		rows := []meta.Snapshot{a.rowOf(one.ID), a.rowOf(two.ID)}
		midnight = time.Now().UTC().Truncate(24 * time.Hour)
		before := a.stays()
		if diff := cmp.Diff(before[string(one.ID)], days("storage", string(one.ID), older, rows[0].Settled, midnight)); diff != "" {
			t.Errorf("the older until midnight (-got +want):\n%s", diff)
		}
		time.Sleep(6 * time.Hour)
		a.delete(one.ID)
		deleted := a.rowOf(one.ID).Deleted
		rest(t, a.Region)
		a.down(30 * time.Hour)

		got := a.stays()
		if diff := cmp.Diff(got[string(one.ID)], days("storage", string(one.ID), older, rows[0].Settled, deleted)); diff != "" {
			t.Errorf("the older one (-got +want):\n%s", diff)
		}
		retained := got[string(rows[0].VolumeID)]
		if len(retained) == 0 || !retained[0].From.Equal(deleted) || retained[0].Bytes != older || retained[0].Kind != "retained" {
			t.Fatalf("between the deletion and its job: got %+v, want %d bytes from %v on", retained, older, deleted)
		}
		passed := retained[len(retained)-1].At
		if passed.Sub(deleted) > time.Minute {
			t.Errorf("retained for %v", passed.Sub(deleted))
		}
		want := days("storage", string(two.ID), younger, rows[1].Settled, passed)
		want = append(want, days("storage", string(two.ID), younger+older-freed, passed, time.Now().UTC().Truncate(24*time.Hour))...)
		if diff := cmp.Diff(got[string(two.ID)], want); diff != "" {
			t.Errorf("the younger one (-got +want):\n%s", diff)
		}
		a.Check(t, simtest.NoGarbage)
		a.delete(two.ID)
		a.empty()
	})
}

// TestDaysAreMeteredOnce meters days that are missing by several at once, and with
// the power cut at each step, before or after it was done.
func TestDaysAreMeteredOnce(t *testing.T) {
	f := simtest.NewFactory(t)
	for n := range 4 {
		for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
			a := &alone{Region: f.NewRegion(t, simtest.Options{}), t: t}
			a.at = a.Account("a")
			vol := a.Volume(a.at, "disk")
			var parent snapferry.VersionID
			for i := range 3 {
				id, _, err := a.Store(vol, parent, simtest.NewDisk(1<<20).Fill(uint64(i), i+1))
				if err != nil {
					t.Fatal(err)
				}
				parent = id
			}
			later := time.Now().Add(3 * 24 * time.Hour)
			if n > 0 {
				a.Power.FailAt(n-1, mode)
				if err := a.Control.MeterDays(t.Context(), later); !snapferry.IsKind(err, snapferry.Unavailable) {
					t.Errorf("point %d: got %v, want that the power was cut", n-1, err)
				}
				a.Restart()
			}
			var both sync.WaitGroup
			for range 3 {
				both.Go(func() {
					if err := a.Control.MeterDays(t.Context(), later); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
			got := a.stays()[string(vol.ID)]
			starts := map[time.Time]int{}
			for _, x := range got {
				starts[x.At]++
			}
			if len(got) != 9 || len(starts) != 3 {
				t.Errorf("point %d: got %d records that end at %v, want one for each of 3 versions and 3 days", n-1, len(got), starts)
			}
			a.Stop()
		}
	}
}

// TestStorageIsCounted counts what versions store of which that was forgotten, as
// when the metadata was made by an older program, at the next start: also of one
// that is deleted and needed by two others. What happens to them before is of no
// account.
func TestStorageIsCounted(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	d := firstDisk()
	one := a.imported("disk", d)
	left := a.fork(one.ID, "left", d)
	right := a.imported("disk", d.Clone(size).Fill(0, 91))
	last := a.imported("left", d.Clone(size).Fill(0, 93))
	a.delete(left.ID)
	a.delete(one.ID) // of which nobody needs the first block any more
	rest(t, a.Region)
	stored := func() (all []int64) {
		a.View(func(tx *meta.Tx) error {
			versions, err := tx.AllVersions()
			for _, v := range versions {
				bytes, until, serr := tx.Stored(v.ID)
				if serr != nil || until.IsZero() {
					return serr
				}
				all = append(all, bytes)
			}
			return err
		})
		return all
	}
	want := stored()
	if len(want) != 3 {
		t.Fatalf("got %v, want what 3 versions store, one of them deleted", want)
	}
	forget := func(state snapferry.VersionState) {
		a.Update(func(tx *meta.Tx) error {
			versions, err := tx.AllVersions()
			for _, v := range versions {
				if err == nil && v.State == state {
					err = tx.ForgetStored(v.ID, time.Now())
				}
			}
			return err
		})
	}
	forget(snapferry.VersionGhost)
	forget(snapferry.VersionSealed)
	a.Restart()
	idle(t, a.Region, "the count", func(tx *meta.Tx) (bool, error) {
		some, err := tx.Uncounted(snapferry.VersionID{}, 10)
		return len(some) == 0, err
	})
	rest(t, a.Region)
	if got := stored(); !slices.Equal(got, want) {
		t.Errorf("counted again: got %v, want %v", got, want)
	}
	a.Check(t, simtest.NoGarbage)
	// Deleted while nobody knows what it stores: whoever takes it over is counted.
	forget(snapferry.VersionGhost)
	a.delete(right.ID)
	rest(t, a.Region)
	a.Update(sweepNow)
	rest(t, a.Region)
	if a.storedBy(last.ID) == 0 {
		t.Error("what took over from one that was not counted is not counted")
	}
	a.Check(t, simtest.NoGarbage)
}

// TestRecordsAreOfTheirAccount lists records of what is stored to nobody else.
func TestRecordsAreOfTheirAccount(t *testing.T) {
	a := newAlone(t, simtest.NewFactory(t))
	s := a.imported("disk", firstDisk())
	other := a.Account("b")
	if err := a.Control.MeterDays(t.Context(), time.Now().Add(48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := a.stays()[string(s.ID)]; len(got) < 2 {
		t.Errorf("after two days: got %v", got)
	}
	all, err := a.Control.UsageRecords(t.Context(), other, 0, 10)
	if err != nil || len(all) > 0 {
		t.Errorf("to another account: got %v, %v", all, err)
	}
}
