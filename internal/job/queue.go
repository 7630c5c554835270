package job

import (
	"context"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// A sighting is what an observer last saw of another owner's job, and since
// when, on its monotonic clock.
type sighting struct {
	token uint64
	beat  int64
	since time.Time
}

// Start runs jobs by the handler of their kind until ctx ends and all handlers
// have returned; the contexts of the handlers end with ctx. It is called once.
func (q *Queue) Start(ctx context.Context, handlers map[string]Handler) error {
	if q.cfg.Owner == "" {
		return snapferry.Errorf(snapferry.Invalid, "start jobs: no owner")
	}
	var workers, heart sync.WaitGroup
	beating, stopBeating := context.WithCancel(context.WithoutCancel(ctx))
	heart.Go(func() { q.heartbeats(beating) })

	freed := make(chan struct{}, 1)
	launch := func(j Job) {
		r, runCtx := q.adopt(ctx, j)
		workers.Go(func() {
			q.run(ctx, runCtx, r, handlers[j.Kind])
			select {
			case freed <- struct{}{}:
			default:
			}
		})
	}
	seen := make(map[snapferry.JobID]sighting)
	q.reclaim(ctx)
	for ctx.Err() == nil {
		changed := q.db.Changed()
		q.observe(ctx, seen)
		for _, j := range q.claim(ctx) {
			launch(j)
		}
		timer := time.NewTimer(q.pause(ctx))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-freed:
		case <-timer.C:
		}
		timer.Stop()
	}
	workers.Wait()
	stopBeating()
	heart.Wait()
	return nil
}

// log reports an error of the queue itself, unless it comes from the end.
func (q *Queue) log(ctx context.Context, doing string, err error) {
	if err != nil && ctx.Err() == nil {
		q.cfg.Log.Warn("jobs: "+doing, "owner", q.cfg.Owner, "error", err)
	}
}

// running reads the rows of all running jobs.
func (q *Queue) running(ctx context.Context) (jobs []Job, err error) {
	err = q.db.View(ctx, func(tx *meta.Tx) error { jobs, err = tx.RunningJobs(); return err })
	return jobs, err
}

// reclaim takes over what earlier processes of this node left.
func (q *Queue) reclaim(ctx context.Context) {
	jobs, err := q.running(ctx)
	q.log(ctx, "look for jobs of an earlier start", err)
	mine := node(q.cfg.Owner)
	for _, j := range jobs {
		if mine != "" && j.Owner != q.cfg.Owner && node(j.Owner) == mine {
			q.requeue(ctx, j, "its process ended")
		}
	}
}

// requeue takes a job from its owner and lets the next worker have it.
func (q *Queue) requeue(ctx context.Context, j Job, why string) {
	err := q.db.Update(ctx, func(tx *meta.Tx) error { return tx.RequeueJob(j.ID, j.Token, j.Beat) })
	if snapferry.IsKind(err, snapferry.Conflict) {
		return // the owner lives after all, or another observer was faster
	}
	q.log(ctx, "take over a job", err)
	if err == nil {
		q.cfg.Log.Info("job taken over", "job", j.ID, "kind", j.Kind, "from", j.Owner, "because", why)
	}
}

// observe looks at the running jobs: cancels those of ours that somebody wants
// to end, and takes over those that have no living owner.
func (q *Queue) observe(ctx context.Context, seen map[snapferry.JobID]sighting) {
	jobs, err := q.running(ctx)
	if err != nil {
		q.log(ctx, "look at running jobs", err)
		return
	}
	now := time.Now()
	there := make(map[snapferry.JobID]bool, len(jobs))
	for _, j := range jobs {
		there[j.ID] = true
		if r := q.owned(j.ID, j.Token); r != nil {
			if j.Cancel {
				r.cancel()
			}
			continue
		}
		if j.Owner == q.cfg.Owner {
			q.requeue(ctx, j, "its claim was not seen to succeed")
			continue
		}
		if s, ok := seen[j.ID]; !ok || s.token != j.Token || s.beat != j.Beat {
			seen[j.ID] = sighting{j.Token, j.Beat, now}
		} else if now.Sub(s.since) >= q.cfg.Lease {
			q.requeue(ctx, j, "its lease ran out")
		}
	}
	for id := range seen {
		if !there[id] {
			delete(seen, id)
		}
	}
}

// owned returns the run of this process under a token, or nil.
func (q *Queue) owned(id snapferry.JobID, token uint64) *Run {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r := q.runs[id]; r != nil && r.Token == token {
		return r
	}
	return nil
}

// claim makes as many jobs ours as there are free workers.
func (q *Queue) claim(ctx context.Context) []Job {
	free := [lanes]int{Work: q.cfg.Workers, Upkeep: q.cfg.Upkeep, Copies: q.cfg.Copies}
	q.mu.Lock()
	for _, r := range q.runs {
		free[r.Job.Lane]--
	}
	q.mu.Unlock()
	now := time.Now()
	waiting := false
	err := q.db.View(ctx, func(tx *meta.Tx) error {
		for lane, n := range free {
			if n <= 0 {
				continue
			}
			_, err := tx.RunnableJob(now, lane)
			if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
			waiting = waiting || err == nil
		}
		return nil
	})
	if err != nil {
		q.log(ctx, "look for a job", err)
	}
	if err != nil || !waiting {
		return nil
	}
	var claimed []Job
	err = q.db.Update(ctx, func(tx *meta.Tx) error {
		claimed = claimed[:0]
		for lane, n := range free {
			jobs, err := q.claimIn(tx, lane, n, now)
			if err != nil {
				return err
			}
			claimed = append(claimed, jobs...)
		}
		return nil
	})
	if err != nil {
		q.log(ctx, "claim jobs", err) // if it was done all the same, observe finds them
		return nil
	}
	return claimed
}

// claimIn makes at most n jobs of a lane ours.
func (q *Queue) claimIn(tx *meta.Tx, lane, n int, now time.Time) (claimed []Job, err error) {
	for len(claimed) < n {
		id, err := tx.RunnableJob(now, lane)
		if snapferry.IsKind(err, snapferry.NotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		j, err := tx.ClaimJob(id, q.cfg.Owner)
		if err != nil {
			return nil, err
		}
		claimed = append(claimed, j)
	}
	return claimed, nil
}

// pause is how long to wait without being woken.
func (q *Queue) pause(ctx context.Context) time.Duration {
	now := time.Now()
	var next time.Time
	err := q.db.View(ctx, func(tx *meta.Tx) (err error) { next, err = tx.NextRun(now); return err })
	q.log(ctx, "look for waiting jobs", err)
	if next.IsZero() || next.Sub(now) > q.cfg.Poll {
		return q.cfg.Poll
	}
	return max(next.Sub(now), time.Millisecond)
}

// adopt makes the run of a claimed job.
func (q *Queue) adopt(ctx context.Context, j Job) (*Run, context.Context) {
	runCtx, stop := context.WithCancelCause(ctx)
	r := &Run{Job: j, Token: j.Token, stop: stop, queue: q, beaten: time.Now(), progress: j.Progress}
	q.mu.Lock()
	old := q.runs[j.ID]
	q.runs[j.ID] = r
	q.mu.Unlock()
	if old != nil {
		q.lose(old) // another node took the job from us, and gave it back
	}
	if j.Cancel {
		r.cancel()
	}
	return r, runCtx
}

func (r *Run) cancel() {
	r.stop(snapferry.Errorf(snapferry.Cancelled, "job %s was cancelled", r.Job.ID))
}

// heartbeats renews the leases of all runs, in one transaction, until ctx ends.
func (q *Queue) heartbeats(ctx context.Context) {
	tick := time.NewTicker(q.cfg.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		q.mu.Lock()
		runs := make([]*Run, 0, len(q.runs))
		for _, r := range q.runs {
			runs = append(runs, r)
		}
		q.mu.Unlock()
		if len(runs) > 0 {
			q.beat(ctx, runs)
		}
	}
}

// A pulse is the answer of one heartbeat.
type pulse struct {
	progress     string
	cancel, lost bool
}

func (q *Queue) beat(ctx context.Context, runs []*Run) {
	started := time.Now()
	pulses := make([]pulse, len(runs))
	err := q.db.Update(ctx, func(tx *meta.Tx) error {
		for i, r := range runs {
			p := pulse{progress: r.unstored()}
			var err error
			p.cancel, err = tx.BeatJob(r.Job.ID, r.Token, p.progress)
			p.lost = snapferry.IsKind(err, snapferry.Conflict)
			if err != nil && !p.lost {
				return err
			}
			pulses[i] = p
		}
		return nil
	})
	q.log(ctx, "renew leases", err)
	for i, r := range runs {
		switch p := pulses[i]; {
		case err != nil:
			if time.Since(r.beaten) >= q.cfg.Lease {
				r.stop(snapferry.Errorf(snapferry.Unavailable, "job %s: the lease could not be renewed: %w", r.Job.ID, err))
			}
		case p.lost:
			q.lose(r)
		default:
			r.beaten = started
			r.stored(p.progress)
			if p.cancel {
				r.cancel()
			}
		}
	}
}

// lose stops a run whose job has another owner now.
func (q *Queue) lose(r *Run) {
	r.mu.Lock()
	ending := r.ending
	r.mu.Unlock()
	if ending {
		return // settled a moment ago
	}
	q.cfg.Log.Warn("lease of a job lost", "job", r.Job.ID, "kind", r.Job.Kind, "token", r.Token)
	r.stop(snapferry.Errorf(snapferry.Conflict, "job %s: the lease with token %d is lost", r.Job.ID, r.Token))
}
