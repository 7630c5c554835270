// Package job runs durable background work: jobs are rows that a worker claims
// under a lease with a fencing token, so that a job outlives the process that
// runs it and no two processes ever commit for the same job.
//
// Contract. A handler may run any number of times for one job, and may be
// stopped at any point by the death of the process: it works in steps that can
// be taken up again, and calls Run.Check in each transaction it commits. While
// it runs, the queue bumps the row's beat every third of the lease. A lease is
// lost when an observer saw the beat unchanged for the whole lease time on its
// own monotonic clock; wall clocks play no part in it. The one who takes over
// raises the token first, so what the former owner still commits is refused
// with Conflict. Jobs that an earlier process of the same node left are taken
// over at once.
package job

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// Job is a job's row.
type Job = meta.Job

// The lanes of jobs. Each has workers of its own.
const (
	Work   = iota // what users asked for and wait for
	Upkeep        // what the region does for itself: deletion, compaction, ...
	Copies        // copies whose turn has come
	lanes
)

// Enqueue adds a job in the caller's transaction; it runs after the commit. ID
// and Created are filled when they are zero, State is always queued.
func Enqueue(tx *meta.Tx, j Job) error {
	if j.Kind == "" {
		return snapferry.Errorf(snapferry.Invalid, "add a job: it has no kind")
	}
	if j.ID == "" {
		j.ID = snapferry.NewJobID()
	}
	if j.Created.IsZero() {
		j.Created = time.Now()
	}
	if j.Lane < 0 || j.Lane >= lanes {
		return snapferry.Errorf(snapferry.Invalid, "add a job: there is no lane %d", j.Lane)
	}
	j.State, j.Owner, j.Token, j.Beat, j.Attempts, j.Cancel = snapferry.JobQueued, "", 0, 0, 0, false
	return tx.InsertJob(j)
}

// Cancel ends a job in the caller's transaction. A job that never ran is
// cancelled at once, and ended is true: what it was for is the caller's to
// settle, in the same transaction. Of a job that ran, the context of its run
// ends with a cause of Kind Cancelled, at once when it runs in this process, at
// the next heartbeat elsewhere; one that waits for another attempt runs once
// more with a context that has ended, to clean up. A job that is done or failed
// is a Conflict; one already cancelled is not.
func Cancel(tx *meta.Tx, id snapferry.JobID) (ended bool, err error) {
	return tx.CancelJob(id, time.Now())
}

// Handler does the work of one kind of job. What it returns settles the job:
// nil is done; Unavailable means again, after 1 to 60 seconds; anything else is
// the reason of the failure. An error at shutdown means again, at the next
// start, and one after Cancel means cancelled.
type Handler func(ctx context.Context, r *Run) error

// Config says how a Queue works.
type Config struct {
	Owner   string        // "node/process", unique for each start of a process
	Lease   time.Duration // after which a silent owner loses a job; 15 s when 0
	Poll    time.Duration // how often to look without being woken; a third of the lease, at most 5 s, when 0
	Workers int           // jobs of users at a time; 4 when 0
	Upkeep  int           // jobs of upkeep at a time; 2 when 0
	Copies  int           // copies at a time; 32 when 0
	Log     *slog.Logger  // nil: none
}

// Queue claims jobs and runs them.
type Queue struct {
	db  *meta.DB
	cfg Config

	mu   sync.Mutex
	runs map[snapferry.JobID]*Run // that this process owns
}

// New makes a Queue; Start sets it to work.
func New(db *meta.DB, cfg Config) *Queue {
	if cfg.Lease <= 0 {
		cfg.Lease = 15 * time.Second
	}
	if cfg.Poll <= 0 {
		cfg.Poll = min(cfg.Lease/3, 5*time.Second)
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 4
	}
	if cfg.Upkeep <= 0 {
		cfg.Upkeep = 2
	}
	if cfg.Copies <= 0 {
		cfg.Copies = 32
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Queue{db: db, cfg: cfg, runs: make(map[snapferry.JobID]*Run)}
}

// node is the part of an owner that all processes of a node share.
func node(owner string) string { return owner[:strings.LastIndexByte(owner, '/')+1] }

// A Run is one run of a job.
type Run struct {
	Job   Job    // as it was claimed
	Token uint64 // fencing token of this run

	stop   context.CancelCauseFunc
	queue  *Queue
	beaten time.Time // last renewal of the lease; of the heartbeat alone

	mu       sync.Mutex
	progress string // the last, as JSON
	fresh    bool   // not stored yet
	ending   bool   // the handler has returned
}

// Progress remembers p, as JSON, as the state of the run; the next heartbeat
// stores it. Values that JSON cannot express are dropped.
func (r *Run) Progress(p any) {
	text, err := json.Marshal(p)
	if err != nil {
		r.queue.cfg.Log.Error("progress of a job cannot be stored", "job", r.Job.ID, "error", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress, r.fresh = string(text), true
}

// Advanced says that the run, whatever it will return, has come further: it counts
// as the first attempt. It is for the handler alone.
func (r *Run) Advanced() { r.Job.Attempts = 0 }

// Wait is how long the job will wait if the handler returns Unavailable.
func (r *Run) Wait() time.Duration { return backoff(r.Job.Attempts + 1) }

// Check is the fence: it returns Conflict when the run's lease was lost, so
// that the transaction does not commit.
func (r *Run) Check(tx *meta.Tx) error { return tx.CheckLease(r.Job.ID, r.Token) }

// unstored returns progress to store, or "" when there is none.
func (r *Run) unstored() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.fresh {
		return ""
	}
	return r.progress
}

// stored notes that p is stored.
func (r *Run) stored(p string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fresh = r.fresh && r.progress != p
}
