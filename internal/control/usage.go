package control

import (
	"context"
	"encoding/json"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// MaxUsage is how many snapshots Usage takes.
const MaxUsage = 500

// Usage says what deleting snapshots would give back: each by itself, and all
// of them together. It computes what deletion would do; nothing is changed.
// Conflict when one of them is being made.
func (r *Region) Usage(ctx context.Context, account snapferry.AccountID, ids []snapferry.SnapshotID) (snapferry.SnapshotUsage, error) {
	u := snapferry.SnapshotUsage{Snapshots: []snapferry.SnapshotFreed{}}
	if len(ids) == 0 || len(ids) > MaxUsage {
		return u, snapferry.Errorf(snapferry.Invalid, "%d snapshots are not 1 to %d", len(ids), MaxUsage)
	}
	var all []meta.Hold
	seen := map[snapferry.SnapshotID]bool{}
	for _, id := range ids {
		if seen[id] {
			continue
		}
		seen[id] = true
		hold, ok, err := r.holdOf(ctx, account, id)
		if err != nil {
			return u, err
		}
		one := snapferry.SnapshotFreed{ID: id}
		if ok {
			all = append(all, hold)
			if one.Freed, err = r.freed(ctx, []meta.Hold{hold}); err != nil {
				return u, r.deleted(ctx, id, err)
			}
		}
		u.Snapshots = append(u.Snapshots, one)
	}
	if len(all) == 1 {
		for _, s := range u.Snapshots {
			if snapferry.SnapshotID(all[0].Owner) == s.ID {
				u.Together = s.Freed
			}
		}
		return u, nil
	}
	var err error
	u.Together, err = r.freed(ctx, all)
	return u, err
}

// holdOf returns the hold of a settled snapshot on its version; ok is false
// when it has none.
func (r *Region) holdOf(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) (h meta.Hold, ok bool, err error) {
	var s meta.Snapshot
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		s, err = own(tx, account, id)
		return err
	})
	if err != nil || s.Version.IsZero() {
		return h, false, err
	}
	if !s.State.Settled() {
		return h, false, checkReady(s)
	}
	return meta.Hold{Version: s.Version, Kind: vault.HoldSnapshot, Owner: string(id)}, true, nil
}

func (r *Region) freed(ctx context.Context, holds []meta.Hold) (snapferry.Freed, error) {
	if len(holds) == 0 {
		return snapferry.Freed{}, nil
	}
	f, err := r.vault.Freed(ctx, holds)
	return snapferry.Freed{Blocks: f.Blocks, Bytes: f.Bytes, Later: f.Later}, err
}

// RegionUsage says what the region keeps for the account and for all, and
// whether it gives space back.
func (r *Region) RegionUsage(ctx context.Context, account snapferry.AccountID) (snapferry.RegionUsage, error) {
	u := snapferry.RegionUsage{Region: r.name}
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		for _, x := range []struct {
			of  snapferry.AccountID
			dst *snapferry.Space
		}{{"", &u.Total}, {account, &u.Account}} {
			s, err := tx.Space(x.of)
			if err != nil {
				return err
			}
			*x.dst = shownSpace(s)
		}
		jobs, err := tx.JobsOfLane(job.Upkeep, 0)
		if err != nil {
			return err
		}
		for i := range jobs {
			switch {
			case jobs[i].State == snapferry.JobRunning:
				u.Running++
			case jobs[i].Kind != jobSweep:
				u.Queued++
			}
		}
		u.Stopped, err = tx.ReclaimStopped()
		return err
	})
	return u, err
}

func shownSpace(s meta.Space) snapferry.Space {
	return snapferry.Space{
		Snapshots: s.Snapshots, Making: s.Making, Versions: s.Versions, Ghosts: s.Ghosts, Present: s.Present * snapferry.BlockSize,
		Stored: s.Stored, Live: max(s.Stored-s.Dead, 0), Dead: s.Dead, Condemned: s.Doomed, Objects: s.Objects, Small: s.Small,
	}
}

// maxJobs is how many jobs Jobs lists.
const maxJobs = 1000

// Jobs lists the jobs that the region does for itself and that have not ended,
// oldest first, at most 1000.
func (r *Region) Jobs(ctx context.Context) ([]snapferry.RegionJob, error) {
	var rows []meta.Job
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		rows, err = tx.JobsOfLane(job.Upkeep, maxJobs)
		return err
	})
	jobs := make([]snapferry.RegionJob, 0, len(rows))
	for i := range rows {
		j := &rows[i]
		x := snapferry.RegionJob{
			ID: j.ID, Kind: j.Kind, Subject: j.Subject, State: j.State, Attempts: j.Attempts, Error: j.Error, After: j.RunAfter, Created: j.Created,
		}
		if json.Valid([]byte(j.Progress)) {
			x.Progress = json.RawMessage(j.Progress)
		}
		jobs = append(jobs, x)
	}
	return jobs, err
}
