package control

import (
	"context"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/meta"
)

// CopyOf returns a copy of the account, with its place in the queue or its
// progress.
func (r *Region) CopyOf(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID) (x snapferry.Copy, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		c, err := ownCopy(tx, account, id)
		if err == nil {
			x, err = r.shownCopy(tx, c, nil)
		}
		return err
	})
	return x, err
}

// ownCopy returns a copy of the account that was admitted.
func ownCopy(tx *meta.Tx, account snapferry.AccountID, id snapferry.CopyID) (meta.Copy, error) {
	c, err := tx.Copy(id)
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (c.Account != account || c.Reserved) {
		return meta.Copy{}, snapferry.Errorf(snapferry.NotFound, "there is no copy %s", id).WithHint("list what there is with: snapferry copy list --region REGION")
	}
	return c, err
}

// CopyFilter says which copies to list; zero fields do not filter.
type CopyFilter struct {
	Active bool // only those that have not ended
	Limit  int
	After  snapferry.CopyID // those that follow this one
}

// Copies lists the account's copies, newest first.
func (r *Region) Copies(ctx context.Context, account snapferry.AccountID, f CopyFilter) ([]snapferry.Copy, error) {
	all := []snapferry.Copy{}
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		mf := meta.CopyFilter{Active: f.Active, Limit: f.Limit}
		if f.After != "" {
			var err error
			if mf.After, err = ownCopy(tx, account, f.After); err != nil {
				return err
			}
		}
		rows, err := tx.Copies(account, mf)
		if err != nil {
			return err
		}
		t, err := r.turns(tx)
		if err != nil {
			return err
		}
		for _, c := range rows {
			x, err := r.shownCopy(tx, c, t)
			if err != nil {
				return err
			}
			all = append(all, x)
		}
		return nil
	})
	return all, err
}

// shownCopy is a copy as users see it; t may be nil.
func (r *Region) shownCopy(tx *meta.Tx, c meta.Copy, t *turns) (snapferry.Copy, error) {
	x := c.Copy
	if c.State.Terminal() {
		return x, nil
	}
	if c.Started.IsZero() {
		var err error
		if t == nil {
			if t, err = r.turns(tx); err != nil {
				return x, err
			}
		}
		x.Queue = t.place(c.ID)
		return x, nil
	}
	var err error
	x.Progress, err = r.copyProgress(tx, &c)
	return x, err
}

// copyProgress is the progress of a copy whose turn has come: of the run here, or
// what the job that runs elsewhere, or waits, remembers.
func (r *Region) copyProgress(tx *meta.Tx, c *meta.Copy) (*snapferry.Progress, error) {
	if x := r.pullingOf(c.ID); x != nil {
		return x.show(), nil
	}
	return r.remembered(tx, c, c.Members...)
}

// remembered is the progress of some of the snapshots of a copy as its job, which runs
// elsewhere or waits, remembers it.
func (r *Region) remembered(tx *meta.Tx, c *meta.Copy, some ...meta.CopyMember) (*snapferry.Progress, error) {
	jobs, err := tx.JobsOf(string(c.Snapshot))
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(jobs, func(j meta.Job) bool { return j.Kind == jobCopy })
	if i < 0 {
		return nil, nil
	}
	j, seen := jobs[i], readProgress(jobs[i])
	p := &snapferry.Progress{Started: c.Started}
	for k, m := range c.Members {
		if !slices.Contains(some, m) {
			continue
		}
		s, err := tx.Snapshot(m.Snapshot)
		if err != nil {
			return nil, err
		}
		x := seen.part(k)
		done, err := settledOf(tx, s, x)
		if err != nil {
			return nil, err
		}
		p.Total, p.Done = p.Total+s.Counts.Present, p.Done+done
		p.Reused, p.Moved, p.ToMove = p.Reused+x.Reused, p.Moved+x.Moved, p.ToMove+x.ToMove
	}
	if j.State == snapferry.JobQueued && j.Error != "" {
		p.Stalled = &snapferry.Stall{Since: seen.Last, Cause: j.Error, Again: j.RunAfter}
		if seen.Last.IsZero() {
			p.Stalled.Since = c.Started
		}
	}
	return p, nil
}

// SetCopyRate changes how many bytes per second may cross for a copy, 0 for no
// limit of its own, also while it is under way.
func (r *Region) SetCopyRate(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID, rate int64) (x snapferry.Copy, err error) {
	if err := limit.CheckRate(rate); err != nil {
		return x, err
	}
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		c, err := ownCopy(tx, account, id)
		if err != nil {
			return err
		}
		if c.State.Terminal() {
			return snapferry.Errorf(snapferry.Conflict, "copy %s is %s", id, c.State)
		}
		c.Rate = rate
		if err := tx.UpdateCopy(c); err != nil {
			return err
		}
		if err := audit(tx, account, "SetCopyRate", string(id), mega(rate)+"/s"); err != nil {
			return err
		}
		x, err = r.shownCopy(tx, c, nil)
		return err
	})
	if err == nil {
		r.limits.setOwn(id, rate)
	}
	return x, err
}

// watchEvery is how often a watch looks at what is not in the metadata.
const watchEvery = time.Second

// WatchCopy calls emit with a copy as it is, and whenever that has changed, until it
// has ended or emit returns an error.
func (r *Region) WatchCopy(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID, emit func(snapferry.Copy) error) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		c, err := r.CopyOf(ctx, account, id)
		if err != nil {
			return err
		}
		if err := emit(c); err != nil || c.State.Terminal() {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
