package job

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

const (
	firstBackoff = time.Second
	lastBackoff  = time.Minute
	lastTries    = 3 // to settle a job at shutdown
)

// run runs the handler and settles the job. ctx ends at shutdown, runCtx also
// for reasons of this run.
func (q *Queue) run(ctx, runCtx context.Context, r *Run, h Handler) {
	err := q.call(runCtx, r, h)
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	q.settle(ctx, r, r.outcome(ctx.Err() != nil, context.Cause(runCtx), err))
	r.stop(nil)
	q.mu.Lock()
	if q.runs[r.Job.ID] == r {
		delete(q.runs, r.Job.ID)
	}
	q.mu.Unlock()
}

// call calls the handler; a handler that panics fails its job, not the region.
func (q *Queue) call(ctx context.Context, r *Run, h Handler) (err error) {
	if h == nil {
		return snapferry.Errorf(snapferry.Unsupported, "no handler for jobs of kind %q", r.Job.Kind)
	}
	defer func() {
		if v := recover(); v != nil {
			q.cfg.Log.Error("handler of a job panicked", "job", r.Job.ID, "kind", r.Job.Kind, "panic", v, "stack", string(debug.Stack()))
			err = snapferry.Errorf(snapferry.Internal, "job %s: a fault in its handler: %v", r.Job.ID, v)
		}
	}()
	return h(ctx, r)
}

// outcome says what becomes of the job after its handler returned err. cause
// is why its context ended, nil if it did not.
func (r *Run) outcome(shutdown bool, cause, err error) Job {
	j := r.Job
	r.mu.Lock()
	j.Progress = r.progress
	r.mu.Unlock()
	j.State, j.RunAfter, j.Error, j.Finished = snapferry.JobDone, time.Time{}, "", time.Now()
	if err == nil {
		return j
	}
	j.Error = err.Error()
	switch {
	case snapferry.IsKind(cause, snapferry.Cancelled):
		j.State = snapferry.JobCancelled
	case shutdown && interrupted(err):
		j.State, j.Error, j.Finished = snapferry.JobQueued, r.Job.Error, time.Time{}
	case snapferry.IsKind(err, snapferry.Unavailable), snapferry.IsKind(cause, snapferry.Unavailable):
		j.State, j.Finished = snapferry.JobQueued, time.Time{}
		j.Attempts++
		j.RunAfter = time.Now().Add(backoff(j.Attempts))
	case snapferry.IsKind(err, snapferry.Cancelled):
		j.State = snapferry.JobCancelled
	default:
		j.State = snapferry.JobFailed
	}
	return j
}

// interrupted reports whether an error at shutdown can come from the shutdown.
func interrupted(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch snapferry.KindOf(err) {
	case snapferry.Internal, snapferry.Unavailable, snapferry.Cancelled:
		return true
	}
	return false
}

// backoff is the pause after a number of attempts.
func backoff(attempts int) time.Duration {
	d := firstBackoff
	for i := 1; i < attempts && d < lastBackoff; i++ {
		d *= 2
	}
	return min(d, lastBackoff)
}

// settle writes the outcome. It tries until it is written or the lease is
// lost, which it is too when a write that seemed to fail was done; at shutdown
// a few times only, for the next start finds the job by its owner.
func (q *Queue) settle(ctx context.Context, r *Run, j Job) {
	pause := 50 * time.Millisecond
	for try := 1; ; try++ {
		err := q.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error { return tx.SettleJob(j) })
		if err == nil {
			q.report(j)
			return
		}
		if snapferry.IsKind(err, snapferry.Conflict) {
			return
		}
		q.cfg.Log.Warn("jobs: settle a job", "job", j.ID, "state", j.State, "error", err)
		if ctx.Err() != nil && try >= lastTries {
			return
		}
		time.Sleep(pause)
		pause = min(2*pause, q.cfg.Lease/3)
	}
}

// report logs how a run ended.
func (q *Queue) report(j Job) {
	log := q.cfg.Log.With("job", j.ID, "kind", j.Kind, "subject", j.Subject, "token", j.Token)
	switch j.State {
	case snapferry.JobFailed:
		log.Error("job failed", "error", j.Error)
	case snapferry.JobQueued:
		log.Warn("job will run again", "error", j.Error, "attempts", j.Attempts, "after", j.RunAfter)
	default:
		log.Info("job ended", "state", j.State)
	}
}
