package meta

import (
	"time"

	"github.com/snapferry/snapferry"
)

// What a version stores is the bytes, as stored, of the frames that it has and its
// parent has not, but for dead ones: so all that is stored is counted once. It is
// the sum of what was written for the version and, of ancestors that were spliced
// out, what it still needs. Whoever changes it says so here, in the same
// transaction, and what was stored until then is added to the usage records: as
// "storage" of the snapshot that shows the version or, when that is deleted, as
// "retained" of its lineage. Each record is of one UTC day.
//
// What nobody has counted yet is not metered; CountStored begins with it.

// The kinds of usage records of what is stored.
const (
	UsageStorage  = "storage"  // subject: a snapshot
	UsageRetained = "retained" // subject: a lineage
)

// storage is what a version stores, and until when that is metered.
type storage struct {
	bytes int64
	until time.Time // zero: it is not counted
}

func (tx *Tx) storage(id snapferry.VersionID) (storage, error) {
	return get(tx, storageGet, func(r scanner, s *storage) error { return r.Scan(&s.bytes, timeColumn{&s.until}) }, "version", id, hexText(id))
}

// Stored returns the bytes that a version stores, and until when they stand in the
// usage records: the zero time when nobody has counted them.
func (tx *Tx) Stored(id snapferry.VersionID) (bytes int64, until time.Time, err error) {
	s, err := tx.storage(id)
	return s.bytes, s.until, err
}

// SetStored says what a version stores from now on.
func (tx *Tx) SetStored(id snapferry.VersionID, bytes int64, now time.Time) error {
	s, err := tx.meterStored(id, now)
	if err != nil {
		return err
	}
	return tx.one(storageSet, []any{hexText(id), bytes, millis(latest(s.until, now))}, "version", id)
}

// AddStored adds to what a version stores. One that is not counted stays so.
func (tx *Tx) AddStored(id snapferry.VersionID, delta int64, now time.Time) error {
	if delta == 0 {
		return nil
	}
	if _, err := tx.meterStored(id, now); err != nil {
		return err
	}
	return tx.run(storageAdd, []any{hexText(id), delta}, "count what version %s stores", id)
}

// HandStored gives what a version stores, which is about to be forgotten, to
// another one; to nobody when that is zero. If one of them is not counted, the
// other must be counted again.
func (tx *Tx) HandStored(from, to snapferry.VersionID, now time.Time) error {
	f, err := tx.meterStored(from, now)
	if err != nil || to.IsZero() {
		return err
	}
	if !f.until.IsZero() {
		return tx.AddStored(to, f.bytes, now)
	}
	return tx.ForgetStored(to, now)
}

// ForgetStored says that what a version stores is to be counted again. It is not
// metered until then.
func (tx *Tx) ForgetStored(id snapferry.VersionID, now time.Time) error {
	if _, err := tx.meterStored(id, now); err != nil {
		return err
	}
	return tx.one(storageSet, []any{hexText(id), 0, 0}, "version", id)
}

// MeterStored adds what a version has stored until now to the usage records: to be
// called before a snapshot begins, or ends, to show it.
func (tx *Tx) MeterStored(id snapferry.VersionID, now time.Time) error {
	_, err := tx.meterStored(id, now)
	return err
}

// meterStored is MeterStored and returns what the version stores. A clock that went
// back adds nothing, and takes nothing away.
func (tx *Tx) meterStored(id snapferry.VersionID, now time.Time) (s storage, err error) {
	if s, err = tx.storage(id); err != nil || s.until.IsZero() {
		return s, err
	}
	for s.until.Before(now.Truncate(time.Millisecond)) {
		end := now
		if next := nextDay(s.until); next.Before(now) {
			end = next
		}
		args := []any{hexText(id), millis(end)}
		if err := tx.run(storageRecord, args, "meter what version %s stores", id); err != nil {
			return s, err
		}
		if err := tx.one(storageMove, args, "version", id); err != nil {
			return s, err
		}
		s.until = end.Truncate(time.Millisecond)
	}
	return s, nil
}

// unmetered returns until when the version is metered of which most is missing, of
// the UTC days that have ended by now; ok is false when nothing is.
func (tx *Tx) unmetered(now time.Time) (first time.Time, ok bool, err error) {
	first, err = get(tx, storageFirst, func(r scanner, t *time.Time) error { return r.Scan(timeColumn{t}) }, "version to meter before", now, millis(startOfDay(now)))
	if snapferry.IsKind(err, snapferry.NotFound) {
		return first, false, nil
	}
	return first, err == nil, err
}

// DayMissing reports whether MeterDay has something to do.
func (tx *Tx) DayMissing(now time.Time) (bool, error) {
	_, missing, err := tx.unmetered(now)
	return missing, err
}

// MeterDay adds what versions have stored in the first UTC day that has ended by
// now and is not in the usage records, for at most limit of them; n is how many
// there were, and so 0 when no day is missing.
func (tx *Tx) MeterDay(now time.Time, limit int) (n int, err error) {
	first, missing, err := tx.unmetered(now)
	if err != nil || !missing {
		return 0, err
	}
	args := []any{limit, millis(nextDay(first))}
	if err := tx.run(storageRecords, args, "meter what was stored on %s", first.Format(time.DateOnly)); err != nil {
		return 0, err
	}
	moved, err := tx.exec(storageMoves, args...)
	return int(moved), fail(err, "meter what was stored on %s", first.Format(time.DateOnly))
}

// Uncounted returns complete versions of which nobody has counted what they store,
// by id, those that follow one, at most limit. Those of which something is being
// freed are left out.
func (tx *Tx) Uncounted(after snapferry.VersionID, limit int) ([]Version, error) {
	return list(tx, storageUncounted, tx.scanVersion, "versions", hexText(after), limit)
}

func startOfDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

func nextDay(t time.Time) time.Time { return startOfDay(t).Add(24 * time.Hour) }

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
