package meta

import (
	"math"
	"time"

	"github.com/snapferry/snapferry"
)

func orAll(limit int) int64 {
	if limit == 0 {
		return math.MaxInt64
	}
	return int64(limit)
}

// QueuedJob returns the oldest job of a kind about a subject that is queued;
// NotFound when there is none.
func (tx *Tx) QueuedJob(kind, subject string) (id snapferry.JobID, err error) {
	return get(tx, jobQueued, func(r scanner, id *snapferry.JobID) error { return r.Scan(id) }, "queued job about", subject, subject, kind)
}

// HastenJob lets a queued job of a kind about a subject run at once; false when
// there is none.
func (tx *Tx) HastenJob(kind, subject string) (queued bool, err error) {
	some, err := list(tx, jobHasten, func(r scanner, id *snapferry.JobID) error { return r.Scan(id) }, "queued jobs", subject, kind)
	return len(some) > 0, err
}

// MoveVolume puts a lineage that has no versions into another chain; NotFound
// when it has some, or is not there.
func (tx *Tx) MoveVolume(id snapferry.VolumeID, chain snapferry.ChainID) error {
	return tx.one(volumeMove, []any{string(id), hexText(chain)}, "volume without versions", id)
}

// JobsOfLane returns at most limit (0: all) of the jobs of a lane that have not
// ended, oldest first.
func (tx *Tx) JobsOfLane(lane, limit int) ([]Job, error) {
	return list(tx, jobsOfLane, scanJob, "jobs", lane, orAll(limit))
}

// PruneJobs forgets the jobs of a lane that were done, or cancelled, before a
// time.
func (tx *Tx) PruneJobs(lane int, before time.Time) error {
	return tx.run(jobsPrune, []any{lane, millis(before)}, "forget jobs")
}

// Space is what an account, or all of a region, keeps.
type Space struct {
	Snapshots int64 // that are ready
	Making    int64 // snapshots that are being made
	Present   int64 // blocks of the ready snapshots, each counted by itself
	Versions  int64 // of all states
	Open      int64 // versions that are being made
	Ghosts    int64 // versions that no snapshot holds any more
	Objects   int64 // of segments in the bucket, condemned ones left out
	Small     int64 // of them, smaller than 8 MiB
	Stored    int64 // their bytes
	Dead      int64 // of them, bytes that nobody needs
	Condemned int64 // objects that are to be removed
	Doomed    int64 // their bytes
}

// Space sums up what an account keeps; all accounts when it is empty. Objects
// that a compaction is writing are left out.
func (tx *Tx) Space(account snapferry.AccountID) (s Space, err error) {
	err = tx.each(usageVersions, []any{string(account)}, func(r scanner) error {
		var state snapferry.VersionState
		var n, blocks int64
		if err := r.Scan(&state, &n, &blocks); err != nil {
			return err
		}
		s.Versions += n
		switch state {
		case snapferry.VersionOpen:
			s.Open = n
		case snapferry.VersionGhost:
			s.Ghosts = n
		}
		return nil
	})
	if err != nil {
		return s, fail(err, "sum up versions")
	}
	err = tx.each(usageSnapshots, []any{string(account)}, func(r scanner) error {
		var state snapferry.SnapshotState
		var n, blocks int64
		if err := r.Scan(&state, &n, &blocks); err != nil {
			return err
		}
		switch {
		case state == snapferry.SnapshotReady:
			s.Snapshots, s.Present = n, blocks
		case !state.Settled():
			s.Making += n
		}
		return nil
	})
	if err != nil {
		return s, fail(err, "sum up snapshots")
	}
	return s, fail(tx.spaceOfObjects(account, &s), "sum up objects")
}

func (tx *Tx) spaceOfObjects(account snapferry.AccountID, s *Space) error {
	return tx.each(usageObjects, []any{string(account)}, func(r scanner) error {
		var state ObjectState
		var n, size, dead, small int64
		if err := r.Scan(&state, &n, &size, &dead, &small); err != nil {
			return err
		}
		switch state {
		case ObjectLive:
			s.Objects, s.Stored, s.Dead, s.Small = n, size, dead, small
		case ObjectCondemned:
			s.Condemned, s.Doomed = n, size
		}
		return nil
	})
}
