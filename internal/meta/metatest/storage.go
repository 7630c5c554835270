package metatest

import (
	"errors"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// A period is what a usage record of what is stored says.
type period struct {
	Kind, Subject string
	Bytes         int64
	From, At      time.Time
}

func (w World) periods(t testing.TB, db *meta.DB) (all []period) {
	t.Helper()
	for _, u := range read(t, db, func(tx *meta.Tx) ([]meta.Usage, error) { return tx.UsageOf(w.Account.ID, 0, 0) }) {
		all = append(all, period{u.Kind, u.Subject, u.Bytes, u.From, u.At})
	}
	return all
}

// kept adds a snapshot with a sealed version that stores bytes.
func (w World) kept(t testing.TB, db *meta.DB, n int, bytes int64, since time.Time) (meta.Version, meta.Snapshot) {
	t.Helper()
	v, s := w.version(n), w.snapshot(n)
	v.State = snapferry.VersionSealed
	s.Version, s.State = v.ID, snapferry.SnapshotReady
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.InsertVersion(v), tx.InsertSnapshot(s), tx.SetStored(v.ID, bytes, since))
	})
	return v, s
}

func (w World) stored(t testing.TB, db *meta.DB, v meta.Version) (bytes int64, until time.Time) {
	t.Helper()
	view(t, db, func(tx *meta.Tx) (err error) { bytes, until, err = tx.Stored(v.ID); return err })
	return bytes, until
}

func day(d, hour int) time.Time { return time.Date(2027, 3, d, hour, 0, 0, 0, time.UTC) }

// testStorage changes what two versions store, and hands it on.
func testStorage(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	a, sa := w.kept(t, db, 1, 1000, day(1, 6))
	b, sb := w.kept(t, db, 2, 10, day(1, 6))
	lineage := string(w.Volume.ID)

	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.AddStored(a.ID, -1, day(1, 9)), tx.AddStored(a.ID, 0, day(1, 10)), tx.AddStored(a.ID, -99, day(1, 12)))
	})
	want := []period{{"storage", string(sa.ID), 1000, day(1, 6), day(1, 9)}, {"storage", string(sa.ID), 999, day(1, 9), day(1, 12)}}
	same(t, "of a version that became smaller", w.periods(t, db), want)

	// Twice, and by a clock that went back: nothing more.
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.MeterStored(a.ID, day(1, 12)), tx.MeterStored(a.ID, day(1, 11)), tx.SetStored(a.ID, 900, day(1, 8)))
	})
	same(t, "by a clock that went back", w.periods(t, db), want)
	if bytes, until := w.stored(t, db, a); bytes != 900 || !until.Equal(day(1, 12)) {
		t.Errorf("got %d bytes, metered until %v", bytes, until)
	}

	// Its snapshot goes, over midnight, and then the version, which leaves the rest.
	update(t, db, func(tx *meta.Tx) error {
		if err := tx.MeterStored(a.ID, day(2, 1)); err != nil {
			return err
		}
		sa.Version, sa.State, sa.Deleted = snapferry.VersionID{}, snapferry.SnapshotDeleting, day(2, 1)
		return tx.UpdateSnapshot(sa)
	})
	update(t, db, func(tx *meta.Tx) error { return tx.HandStored(a.ID, b.ID, day(2, 2)) })
	update(t, db, func(tx *meta.Tx) error { return tx.MeterStored(b.ID, day(2, 3)) })
	want = append(want,
		period{"storage", string(sa.ID), 900, day(1, 12), day(2, 0)}, period{"storage", string(sa.ID), 900, day(2, 0), day(2, 1)},
		period{"retained", lineage, 900, day(2, 1), day(2, 2)},
		period{"storage", string(sb.ID), 10, day(1, 6), day(2, 0)}, period{"storage", string(sb.ID), 10, day(2, 0), day(2, 2)},
		period{"storage", string(sb.ID), 910, day(2, 2), day(2, 3)})
	same(t, "of one that was handed on", w.periods(t, db), want)

	// What nobody has counted is not metered, and what takes it over neither.
	c, _ := w.kept(t, db, 3, 7, day(2, 3))
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.ForgetStored(c.ID, day(2, 3)), tx.AddStored(c.ID, 5, day(2, 4)), tx.HandStored(c.ID, b.ID, day(2, 5)), tx.AddStored(b.ID, 5, day(2, 6)))
	})
	want = append(want, period{"storage", string(sb.ID), 910, day(2, 3), day(2, 5)})
	same(t, "of one that was not counted", w.periods(t, db), want)
	for i, v := range []meta.Version{b, c} {
		if bytes, until := w.stored(t, db, v); bytes != 0 || !until.IsZero() {
			t.Errorf("version %d, not counted: got %d bytes, metered until %v", i, bytes, until)
		}
	}
	open := w.addVersion(t, db, 4, snapferry.VersionID{})
	ghost := w.version(5)
	ghost.State = snapferry.VersionGhost
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertVersion(ghost), tx.SetDue(ghost.ID, true)) })
	uncounted := func() (ids []snapferry.VersionID) {
		for _, v := range read(t, db, func(tx *meta.Tx) ([]meta.Version, error) { return tx.Uncounted(snapferry.VersionID{}, 10) }) {
			ids = append(ids, v.ID)
		}
		return ids
	}
	if got := uncounted(); len(got) != 2 {
		t.Errorf("to be counted: got %v, want %s and %s; not %s, which is open, nor %s, of which something is freed", got, b.ID, c.ID, open.ID, ghost.ID)
	}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.SetDue(ghost.ID, false), tx.SetStored(c.ID, 7, day(3, 1)))
	})
	if got := uncounted(); len(got) != 2 {
		t.Errorf("to be counted: got %v, want %s and %s", got, b.ID, ghost.ID)
	}
	err := db.Update(t.Context(), func(tx *meta.Tx) error { return tx.SetStored(snapferry.NewVersionID(), 1, day(3, 1)) })
	wantKind(t, err, snapferry.NotFound)
}

// testStorageDays adds days that are missing, a few versions at a time, and once.
func testStorageDays(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	_, old := w.kept(t, db, 1, 100, day(1, 12))
	late, young := w.kept(t, db, 2, 200, day(3, 6))
	w.kept(t, db, 3, 0, day(1, 0))
	meter := func(now time.Time) (steps int) {
		t.Helper()
		for {
			var n int
			update(t, db, func(tx *meta.Tx) (err error) {
				missing, err := tx.DayMissing(now)
				if err != nil {
					return err
				}
				if n, err = tx.MeterDay(now, 1); (n > 0) != missing {
					t.Errorf("%d versions were metered, and that is missing: %v", n, missing)
				}
				return err
			})
			if n == 0 {
				return steps
			}
			steps++
		}
	}
	if n := meter(day(1, 23)); n != 0 {
		t.Errorf("a day that has not ended: %d steps", n)
	}
	if n := meter(day(4, 5)); n != 3+1+3 {
		t.Errorf("after three days: got %d steps, want one for each version and day", n)
	}
	want := []period{
		{"storage", string(old.ID), 100, day(1, 12), day(2, 0)},
		{"storage", string(old.ID), 100, day(2, 0), day(3, 0)},
		{"storage", string(old.ID), 100, day(3, 0), day(4, 0)},
		{"storage", string(young.ID), 200, day(3, 6), day(4, 0)},
	}
	byStart := func(all []period, subject snapferry.SnapshotID) (of []period) {
		for _, x := range all {
			if x.Subject == string(subject) {
				of = append(of, x)
			}
		}
		return of
	}
	got := w.periods(t, db)
	same(t, "days", append(byStart(got, old.ID), byStart(got, young.ID)...), want)
	if n := meter(day(4, 5)); n != 0 || len(w.periods(t, db)) != len(want) {
		t.Errorf("the same days again: %d steps, %v", n, w.periods(t, db))
	}
	// Who changes something after midnight and before the day was added adds it.
	update(t, db, func(tx *meta.Tx) error { return tx.MeterStored(late.ID, day(5, 1)) })
	meter(day(5, 2))
	same(t, "of a change after midnight", byStart(w.periods(t, db), young.ID)[1:], []period{
		{"storage", string(young.ID), 200, day(4, 0), day(5, 0)}, {"storage", string(young.ID), 200, day(5, 0), day(5, 1)},
	})
}

// testStorageAtScale adds a day of 10,000 snapshots in a few transactions.
func testStorageAtScale(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	const n = 10_000
	update(t, db, func(tx *meta.Tx) error {
		for i := range n {
			v, s := w.version(i), w.snapshot(i)
			v.State = snapferry.VersionSealed
			s.Version, s.State = v.ID, snapferry.SnapshotReady
			if err := errors.Join(tx.InsertVersion(v), tx.InsertSnapshot(s), tx.SetStored(v.ID, 1, day(1, 12))); err != nil {
				return err
			}
		}
		return nil
	})
	for i := range n/1000 + 1 {
		var got int
		update(t, db, func(tx *meta.Tx) (err error) { got, err = tx.MeterDay(day(2, 0), 1000); return err })
		if want := min(1000, n-1000*i); got != want {
			t.Fatalf("transaction %d metered %d versions, want %d", i, got, want)
		}
	}
	if got := len(w.periods(t, db)); got != n {
		t.Errorf("got %d records, want %d", got, n)
	}
}
