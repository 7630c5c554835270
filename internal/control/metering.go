package control

import (
	"context"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// The kinds of metered facts, beside meta.UsageStorage and meta.UsageRetained.
const (
	meterStored   = "stored"   // added to the bucket by an import
	meterReceived = "received" // by a copy, over all its runs; how that ended stands beside it
	meterSent     = "sent"     // to a copy of another region, or of this one, with the requests that were answered
)

// meterCopy adds what a copy that has ended has moved for each of its snapshots to
// the usage records, once.
func meterCopy(tx *meta.Tx, id snapferry.CopyID, moved []int64) error {
	c, err := tx.Copy(id)
	if err != nil || c.Metered || !c.State.Terminal() || c.Snapshot == "" {
		return err
	}
	c.Metered = true
	if err := tx.UpdateCopy(c); err != nil {
		return err
	}
	now := time.Now()
	for i, m := range c.Members {
		u := meta.Usage{Account: c.Account, Kind: meterReceived, Subject: string(m.Snapshot), At: now, Copy: id, Outcome: c.Ending}
		if i < len(moved) {
			u.Bytes = moved[i]
		}
		if err := tx.AddUsage(u); err != nil {
			return err
		}
	}
	return nil
}

func (r *Region) meterCopy(ctx context.Context, id snapferry.CopyID, moved []int64) error {
	return r.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error { return meterCopy(tx, id, moved) })
}

// meterBatch is how many versions are metered in one transaction.
const meterBatch = 1000

// MeterDays adds what was stored on the UTC days that have ended by now, and are not
// in the usage records, to them. Whoever else does so at the same time, or was
// interrupted in the middle, adds nothing twice.
func (r *Region) MeterDays(ctx context.Context, now time.Time) error {
	for {
		missing := false
		err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
			missing, err = tx.DayMissing(now)
			return err
		})
		if err != nil || !missing {
			return err
		}
		err = r.db.Update(ctx, func(tx *meta.Tx) error {
			_, err := tx.MeterDay(now, meterBatch)
			return err
		})
		if err != nil {
			return err
		}
	}
}

// countStored counts what the versions store of which nobody knows: those that were
// there before this was metered, and those that were rebuilt from the bucket. One
// that cannot be read is left for the next time.
func (r *Region) countStored(ctx context.Context, fence vault.Fence) error {
	var last snapferry.VersionID
	for {
		var rows []meta.Version
		err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
			rows, err = tx.Uncounted(last, meterBatch)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		for i := range rows {
			last = rows[i].ID
			err := r.vault.CountStored(ctx, last, fence)
			shut := snapferry.IsKind(err, snapferry.KeyUnusable) // one account's key keeps nobody else's content from being counted
			if !shut && retry(ctx, err) || snapferry.IsKind(err, snapferry.Conflict) {
				return err
			}
			if err != nil {
				r.log.WarnContext(ctx, "what a version stores could not be counted, and is not metered", "version", last, "err", err)
			}
		}
	}
}

// UsageRecords lists the metered facts of the account that were added after the one
// with an id, at most limit.
func (r *Region) UsageRecords(ctx context.Context, account snapferry.AccountID, after int64, limit int) ([]snapferry.UsageRecord, error) {
	out := []snapferry.UsageRecord{}
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		rows, err := tx.UsageOf(account, after, limit)
		for _, u := range rows {
			out = append(out, snapferry.UsageRecord{ID: u.ID, Kind: u.Kind, Subject: u.Subject, Bytes: u.Bytes, Count: u.Count, From: u.From, At: u.At, Copy: u.Copy, Outcome: u.Outcome})
		}
		return err
	})
	return out, err
}

// meterDiscarded meters a copy that was cancelled, by what its job remembers, and
// the bytes that came beside it for each snapshot.
func (r *Region) meterDiscarded(ctx context.Context, p discardPayload, beside []int64) error {
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		jobs, err := tx.JobsOf(string(p.Snapshot))
		if err != nil || p.Snapshot == "" {
			return err
		}
		moved := slices.Clone(beside)
		for i := range jobs {
			if jobs[i].Kind != jobCopy {
				continue
			}
			seen := readProgress(jobs[i])
			for k := range moved {
				moved[k] += seen.part(k).Moved
			}
		}
		return meterCopy(tx, p.Copy, moved)
	})
}
