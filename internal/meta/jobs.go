package meta

import (
	"time"

	"github.com/snapferry/snapferry"
)

func scanJob(r scanner, j *Job) error {
	return r.Scan(&j.ID, &j.Kind, &j.Account, &j.Subject, &j.State, &j.Payload, &j.Progress, &j.Owner, &j.Beat, &j.Token, &j.Attempts,
		timeColumn{&j.RunAfter}, &j.Cancel, &j.Error, timeColumn{&j.Created}, timeColumn{&j.Finished}, &j.Lane)
}

// InsertJob adds a job.
func (tx *Tx) InsertJob(j Job) error {
	return tx.run(jobInsert, []any{
		string(j.ID), j.Kind, string(j.Account), j.Subject, string(j.State), j.Payload, j.Progress, j.Owner, j.Beat, j.Token, j.Attempts,
		millis(j.RunAfter), truth(j.Cancel), j.Error, millis(j.Created), millis(j.Finished), j.Lane,
	}, "add job %s", j.ID)
}

// Job returns a job by its id.
func (tx *Tx) Job(id snapferry.JobID) (Job, error) {
	return get(tx, jobGet, scanJob, "job", id, string(id))
}

// JobsOf returns the jobs that work on a subject, newest first.
func (tx *Tx) JobsOf(subject string) ([]Job, error) {
	return list(tx, jobsOfSubject, scanJob, "jobs", subject)
}

// RunningJobs returns the running jobs, oldest first.
func (tx *Tx) RunningJobs() ([]Job, error) {
	return list(tx, jobsRunning, scanJob, "jobs")
}

// RunnableJob returns the oldest queued job of a lane whose time has come.
func (tx *Tx) RunnableJob(now time.Time, lane int) (id snapferry.JobID, err error) {
	return get(tx, jobRunnable, func(r scanner, id *snapferry.JobID) error { return r.Scan(id) }, "job", "to run", millis(now), lane)
}

// NextRun returns when the first of the queued jobs that wait may run; the
// zero time when none waits.
func (tx *Tx) NextRun(now time.Time) (time.Time, error) {
	t, err := get(tx, jobNextRun, func(r scanner, t *time.Time) error { return r.Scan(timeColumn{t}) }, "job", "to wait for", millis(now))
	if snapferry.IsKind(err, snapferry.NotFound) {
		return time.Time{}, nil
	}
	return t, err
}

// ClaimJob makes a queued job running, owned by owner, with the next token.
func (tx *Tx) ClaimJob(id snapferry.JobID, owner string) (Job, error) {
	return get(tx, jobClaim, scanJob, "queued job", id, string(id), owner)
}

// BeatJob renews a lease and, unless progress is empty, stores it. It reports
// whether somebody asked for the job's end; Conflict when the lease is lost.
func (tx *Tx) BeatJob(id snapferry.JobID, token uint64, progress string) (cancel bool, err error) {
	cancel, err = get(tx, jobBeat, func(r scanner, c *bool) error { return r.Scan(c) }, "job", id, string(id), token, progress)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return false, leaseLost(id, token)
	}
	return cancel, err
}

// RequeueJob takes a running job from its owner, if its token and beat are
// still those that were seen; else Conflict. The next token fences the owner.
func (tx *Tx) RequeueJob(id snapferry.JobID, token uint64, beat int64) error {
	n, err := tx.exec(jobRequeue, string(id), token, beat)
	if err != nil {
		return fail(err, "take over job %s", id)
	}
	if n == 0 {
		return snapferry.Errorf(snapferry.Conflict, "take over job %s: its owner lives", id)
	}
	return nil
}

// SettleJob ends a run: it writes State, Attempts, RunAfter, Error, Progress
// and Finished of the running job with j's id and token; Conflict when the
// lease is lost.
func (tx *Tx) SettleJob(j Job) error {
	if !snapferry.JobRunning.CanBecome(j.State) {
		return snapferry.Errorf(snapferry.Invalid, "settle job %s: a running job cannot become %s", j.ID, j.State)
	}
	n, err := tx.exec(jobSettle, string(j.ID), j.Token, string(j.State), j.Attempts, millis(j.RunAfter), j.Error, j.Progress, millis(j.Finished))
	if err != nil {
		return fail(err, "settle job %s", j.ID)
	}
	if n == 0 {
		return leaseLost(j.ID, j.Token)
	}
	return nil
}

// CheckLease is the fence: Conflict unless the job runs under the token.
func (tx *Tx) CheckLease(id snapferry.JobID, token uint64) error {
	_, err := get(tx, jobLease, func(r scanner, id *snapferry.JobID) error { return r.Scan(id) }, "job", id, string(id), token)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return leaseLost(id, token)
	}
	return err
}

func leaseLost(id snapferry.JobID, token uint64) error {
	return snapferry.Errorf(snapferry.Conflict, "job %s: the lease with token %d is lost", id, token)
}

// CancelJob ends a job that never ran at once, and reports so; one that ran
// gets a mark for its owner, or for its next one. A job in a final state
// stays as it is, which is a Conflict unless it was cancelled.
func (tx *Tx) CancelJob(id snapferry.JobID, now time.Time) (ended bool, err error) {
	n, err := tx.exec(jobCancelQueued, string(id), millis(now))
	if err != nil || n > 0 {
		return n > 0, fail(err, "cancel job %s", id)
	}
	n, err = tx.exec(jobCancelStarted, string(id))
	if err != nil || n > 0 {
		return false, fail(err, "cancel job %s", id)
	}
	j, err := tx.Job(id)
	switch {
	case err != nil:
		return false, err
	case j.State == snapferry.JobCancelled:
		return true, nil
	}
	return false, snapferry.Errorf(snapferry.Conflict, "cancel job %s: it is %s", id, j.State)
}
