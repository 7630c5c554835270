package control

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// The kinds of metered facts.
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

// UsageRecords lists the metered facts of the account that were added after the one
// with an id, at most limit.
func (r *Region) UsageRecords(ctx context.Context, account snapferry.AccountID, after int64, limit int) ([]snapferry.UsageRecord, error) {
	out := []snapferry.UsageRecord{}
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		rows, err := tx.UsageOf(account, after, limit)
		for _, u := range rows {
			out = append(out, snapferry.UsageRecord{ID: u.ID, Kind: u.Kind, Subject: u.Subject, Bytes: u.Bytes, Count: u.Count, At: u.At, Copy: u.Copy, Outcome: u.Outcome})
		}
		return err
	})
	return out, err
}

// meterDiscarded meters a copy that was cancelled, by what its job remembers.
func (r *Region) meterDiscarded(ctx context.Context, p discardPayload) error {
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		jobs, err := tx.JobsOf(string(p.Snapshot))
		if err != nil || p.Snapshot == "" {
			return err
		}
		var moved []int64
		for i := range jobs {
			if jobs[i].Kind == jobCopy {
				seen := readProgress(jobs[i])
				moved = seen.moved()
			}
		}
		return meterCopy(tx, p.Copy, moved)
	})
}
