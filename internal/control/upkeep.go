package control

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// Upkeep is what the region does for itself. Whatever leaves deletion something
// to do with a version enqueues a job for its chain in the same transaction; that
// job frees what it can of the whole chain, what becomes due by that too, and
// enqueues the compaction of the chain and the removal of objects that nobody
// needs.
// Each job can run twice, be interrupted anywhere and be lost with its process:
// what is to be done stands in the metadata, and the next start, or the next
// event of the chain, finds it there.

// The kinds of jobs of upkeep.
const (
	jobFree    = "free"    // subject: a chain
	jobCompact = "compact" // subject: a chain
	jobReclaim = "reclaim" // removes objects that were condemned a while ago
	jobSweep   = "sweep"   // looks for what a crash left in the bucket
)

const (
	// wholeRegion is the subject of jobs about all of it.
	wholeRegion = "region"
	// enqueueBatch is how many jobs one transaction enqueues: in bad times much
	// may be due.
	enqueueBatch = 64
	// freeBatch is how many versions a job of deletion visits in one go.
	freeBatch = 64
	// freeTurn is how long a job frees before it lets other chains have a turn.
	freeTurn = 10 * time.Second
	// Freeing begins a part when no deletion was asked for during quietFor, or
	// at the latest after quietLimit.
	quietFor   = 30 * time.Millisecond
	quietLimit = time.Second
	// sweepEvery is the time between the sweeps of the bucket.
	sweepEvery = 6 * time.Hour
	// keepJobs is how long jobs of upkeep that are done are remembered.
	keepJobs = 7 * 24 * time.Hour
	// defaultGrace is how long after its condemnation an object is removed: by
	// then nobody reads by an old address.
	defaultGrace = time.Minute
)

// freeProgress is what a job of deletion has freed, over all its runs.
type freeProgress struct {
	Slots int64 `json:"slots"`
	Bytes int64 `json:"bytes"` // as stored
}

// compactProgress is what a job of compaction has done in this run.
type compactProgress struct {
	Objects int   `json:"objects"` // that were merged into others
	Read    int64 `json:"read"`    // bytes
	Written int64 `json:"written"` // bytes
	Freed   int64 `json:"freed"`   // bytes
}

func progressOf(st vault.CompactStats) compactProgress {
	return compactProgress{Objects: st.ObjectsIn, Read: st.Read, Written: st.Written, Freed: st.Freed}
}

// reclaimProgress is what was removed from the bucket.
type reclaimProgress struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// sweepProgress is what a sweep removed from the bucket.
type sweepProgress struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
	Records int   `json:"records"`
}

// upkeep are the handlers of upkeep's jobs.
func (r *Region) upkeep() map[string]job.Handler {
	return map[string]job.Handler{
		jobFree: r.runFree, jobCompact: r.runCompact, jobReclaim: r.runReclaim, jobSweep: r.runSweep,
	}
}

// enqueueFree gives a chain in which deletion has something to do its job.
func enqueueFree(tx *meta.Tx, chain snapferry.ChainID) error {
	some, err := tx.HasChores(chain)
	if err != nil || !some {
		return err
	}
	row, err := tx.Chain(chain)
	if err != nil {
		return err
	}
	// One that waits after a failure has something new to do.
	queued, err := tx.HastenJob(jobFree, chain.String())
	if err != nil || queued {
		return err
	}
	return job.Enqueue(tx, job.Job{Kind: jobFree, Account: row.Account, Subject: chain.String(), Lane: job.Upkeep})
}

// freeAround enqueues what an event around a version left to do.
func freeAround(tx *meta.Tx, version snapferry.VersionID) error {
	row, err := tx.Version(version)
	if snapferry.IsKind(err, snapferry.NotFound) {
		var g meta.Grave
		g, err = tx.Grave(version)
		row.Chain = g.Chain
	}
	if snapferry.IsKind(err, snapferry.NotFound) {
		_, err = enqueueFrees(tx, snapferry.ChainID{}) // nobody knows where it was
		return err
	}
	if err != nil {
		return err
	}
	return enqueueFree(tx, row.Chain)
}

// enqueueFrees gives the chains from after on, at most enqueueBatch, in which
// deletion has something to do their jobs, and returns the last one of them.
func enqueueFrees(tx *meta.Tx, after snapferry.ChainID) (last snapferry.ChainID, err error) {
	chains, err := tx.ChoreChains(after, enqueueBatch)
	for _, c := range chains {
		if err == nil {
			err = enqueueFree(tx, c)
			last = c
		}
	}
	return last, err
}

// freeAfter is freeAround as vault operations want it.
func freeAfter(version snapferry.VersionID) func(*meta.Tx) error {
	return func(tx *meta.Tx) error { return freeAround(tx, version) }
}

// enqueueOnce adds a job of upkeep unless one of its kind about its subject is
// queued. One that runs does not count: it may be past what this is about.
func enqueueOnce(tx *meta.Tx, j job.Job) error {
	if _, err := tx.QueuedJob(j.Kind, j.Subject); !snapferry.IsKind(err, snapferry.NotFound) {
		return err
	}
	j.Lane = job.Upkeep
	return job.Enqueue(tx, j)
}

// makeRoom enqueues what gives back space that is dead: the compaction of a
// chain that needs one, and the removal of what is condemned.
func (r *Region) makeRoom(tx *meta.Tx, chain snapferry.ChainID) error {
	if err := r.enqueueCompact(tx, chain); err != nil {
		return err
	}
	return r.enqueueReclaim(tx)
}

// enqueueCompact adds the compaction of a chain if it needs one. One that runs
// looks itself when it has ended, and so after this transaction: none has to
// wait behind it.
func (r *Region) enqueueCompact(tx *meta.Tx, chain snapferry.ChainID) error {
	need, err := r.vault.NeedsCompaction(tx, chain)
	if err != nil || !need || r.compacting(chain) {
		return err
	}
	row, err := tx.Chain(chain)
	if err != nil {
		return err
	}
	return enqueueOnce(tx, job.Job{Kind: jobCompact, Account: row.Account, Subject: chain.String()})
}

// farFuture is after everything.
var farFuture = time.UnixMilli(1 << 50)

func (r *Region) enqueueReclaim(tx *meta.Tx) error {
	first, err := tx.Condemned(farFuture, 1)
	if err != nil || len(first) == 0 {
		return err
	}
	return enqueueOnce(tx, job.Job{Kind: jobReclaim, Subject: wholeRegion, RunAfter: first[0].Since.Add(r.grace)})
}

// startUpkeep takes up what earlier processes left: readers that are gone,
// records that may not be the truth, deletions without a job, and a sweep.
func (r *Region) startUpkeep(ctx context.Context) error {
	err := r.vault.Start(ctx)
	if err == nil {
		err = r.db.Update(ctx, func(tx *meta.Tx) error {
			if id, err := tx.QueuedJob(jobSweep, wholeRegion); err == nil {
				if ended, err := job.Cancel(tx, id); err != nil || !ended {
					return err // it ran, and runs once more
				}
			} else if !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
			return enqueueOnce(tx, job.Job{Kind: jobSweep, Subject: wholeRegion})
		})
	}
	if err == nil {
		err = r.enqueueAll(ctx)
	}
	return err
}

// enqueueAll gives what deletion has left to do in the whole region its jobs.
func (r *Region) enqueueAll(ctx context.Context) error {
	var at, last snapferry.ChainID
	for {
		err := r.db.Update(ctx, func(tx *meta.Tx) (err error) {
			last, err = enqueueFrees(tx, at)
			return err
		})
		if err != nil || last.IsZero() {
			return err
		}
		at = last
	}
}

// freeing knows which chains this process frees, and where another job came for
// one meanwhile: who is at it does that one's work too.
type freeing struct {
	mu     sync.Mutex
	chains map[snapferry.ChainID]bool // true: another job came
}

// begin reports whether nobody is at the chain.
func (f *freeing) begin(chain snapferry.ChainID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, busy := f.chains[chain]
	if f.chains == nil {
		f.chains = map[snapferry.ChainID]bool{}
	}
	f.chains[chain] = busy
	return !busy
}

// end leaves the chain and reports whether another job came meanwhile.
func (f *freeing) end(chain snapferry.ChainID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	came := f.chains[chain]
	delete(f.chains, chain)
	return came
}

// answers lets upkeep wait while deletions are being answered: both write the
// metadata, one after the other.
type answers struct {
	running atomic.Int64
	last    atomic.Int64 // when one was answered last, in nanoseconds since 1970
}

// begin notes that a deletion is to be answered until end is called.
func (a *answers) begin() (end func()) {
	a.running.Add(1)
	return func() {
		a.last.Store(time.Now().UnixNano())
		a.running.Add(-1)
	}
}

// wait returns when it has been quiet for quietFor, but does not wait longer than
// quietLimit.
func (a *answers) wait(ctx context.Context) error {
	tick := time.NewTicker(quietFor / 3)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < quietLimit; {
		if a.running.Load() == 0 && time.Now().UnixNano()-a.last.Load() >= int64(quietFor) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// runFree is the job that does what deletion has left to do in a chain.
func (r *Region) runFree(ctx context.Context, run *job.Run) error {
	chain, err := snapferry.ParseChainID(run.Job.Subject)
	if err != nil {
		return err
	}
	var st vault.VisitStats
	var before freeProgress
	if run.Job.Progress != "" {
		// What cannot be read counts as nothing: only figures are lost.
		_ = json.Unmarshal([]byte(run.Job.Progress), &before)
	}
	st.Slots.Store(before.Slots)
	st.Bytes.Store(before.Bytes)
	for more := true; more && r.freeing.begin(chain); {
		err = reporting(run, func() any { return freeProgress{st.Slots.Load(), st.Bytes.Load()} }, func() error {
			return r.free(ctx, run, chain, &st)
		})
		more = r.freeing.end(chain) && ctx.Err() == nil
	}
	if err != nil || st.Bytes.Load() == 0 {
		return again(err)
	}
	return again(r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		return tx.AddUsage(meta.Usage{Account: run.Job.Account, Kind: "freed", Subject: run.Job.Subject, Bytes: st.Bytes.Load(), At: time.Now()})
	}))
}

// free does what deletion has left to do in a chain, and enqueues what gives the
// space back, also when it does not come to its end.
func (r *Region) free(ctx context.Context, run *job.Run, chain snapferry.ChainID, st *vault.VisitStats) error {
	more, err := r.freeChain(ctx, run, chain, st)
	if ctx.Err() != nil {
		return err
	}
	uerr := r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		if more && err == nil {
			if err := enqueueFree(tx, chain); err != nil {
				return err
			}
		}
		return r.makeRoom(tx, chain)
	})
	if err == nil {
		err = uerr
	}
	return err
}

// freeChain visits what is to be visited in a chain until nothing is. more is
// true when it took its turn and has to let others have theirs.
func (r *Region) freeChain(ctx context.Context, run *job.Run, chain snapferry.ChainID, st *vault.VisitStats) (more bool, err error) {
	began := time.Now()
	var before []snapferry.VersionID
	for {
		var todo []snapferry.VersionID
		lerr := r.db.View(ctx, func(tx *meta.Tx) (err error) {
			todo, err = tx.Chores(chain)
			return err
		})
		switch {
		case lerr != nil:
			return false, lerr
		case len(todo) == 0 || err != nil && slices.Equal(todo, before):
			return false, err
		case slices.Equal(todo, before):
			return false, snapferry.Errorf(snapferry.Unavailable, "deletion has more to do with version %s, and has to wait for its neighbours", todo[0])
		}
		before = todo
		for part := range slices.Chunk(todo, freeBatch) {
			if time.Since(began) > freeTurn {
				return true, err
			}
			if err := r.answers.wait(ctx); err != nil {
				return false, err
			}
			verr := r.vault.VisitAll(ctx, part, run.Check, st)
			if vault.Ends(verr) {
				return false, verr
			}
			if err == nil {
				err = verr
			}
		}
	}
}

// reportEvery is how often a job of upkeep says how far it has come.
const reportEvery = time.Second

// reporting does some work and tells meanwhile, and at the end, how far it has
// come.
func reporting(run *job.Run, progress func() any, work func() error) error {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				run.Progress(progress())
			case <-stop:
				run.Progress(progress())
				return
			}
		}
	}()
	defer func() {
		close(stop)
		<-ended
	}()
	return work()
}

// compacting reports whether the compaction of a chain runs.
func (r *Region) compacting(chain snapferry.ChainID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.compacts[chain]
}

// lockCompaction reports whether the caller may compact a chain. One does at a
// time: two would read the same objects, and one of them for nothing.
func (r *Region) lockCompaction(chain snapferry.ChainID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.compacts[chain] {
		return false
	}
	r.compacts[chain] = true
	return true
}

func (r *Region) unlockCompaction(chain snapferry.ChainID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.compacts, chain)
}

// runCompact is the job that writes what lives in hollow and small objects of
// a chain into new ones.
func (r *Region) runCompact(ctx context.Context, run *job.Run) error {
	chain, err := snapferry.ParseChainID(run.Job.Subject)
	if err != nil {
		return err
	}
	if !r.lockCompaction(chain) {
		return nil // who has it looks whether more is to be done
	}
	st, err := r.compact(ctx, run, chain)
	run.Progress(progressOf(st))
	for _, name := range st.Damaged {
		r.log.ErrorContext(ctx, "an object is damaged and is left alone by compaction", "object", name, "chain", chain)
	}
	ended, stuck := err, false
	err = r.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		// What was moved gives its room back also when the rest was not.
		if err := r.enqueueReclaim(tx); err != nil || ended != nil {
			return err
		}
		if st.ObjectsOut > 0 || st.Left == 0 {
			return r.enqueueCompact(tx, chain)
		}
		stuck, err = r.vault.NeedsCompaction(tx, chain)
		return err
	})
	switch {
	case ended != nil:
		return again(ended)
	case err == nil && stuck:
		// This job once more, after a while: a new one would begin at once.
		err = snapferry.Errorf(snapferry.Unavailable, "compact chain %s: %d objects could not be moved", chain, st.Left)
	}
	return again(err)
}

// compact compacts a chain that is locked for it, and unlocks it.
func (r *Region) compact(ctx context.Context, run *job.Run, chain snapferry.ChainID) (vault.CompactStats, error) {
	defer r.unlockCompaction(chain)
	return r.vault.Compact(ctx, chain, vault.CompactConfig{
		Job: run.Job.ID, Token: run.Token, Fence: run.Check, Limit: r.pace,
		Progress: func(st vault.CompactStats) { run.Progress(progressOf(st)) },
	})
}

// runReclaim is the job that removes what was condemned long enough ago.
func (r *Region) runReclaim(ctx context.Context, run *job.Run) error {
	st, err := r.vault.Reclaim(ctx, time.Now().Add(-r.grace), run.Check)
	run.Progress(reclaimProgress{Objects: st.Objects, Bytes: st.Bytes})
	if err != nil {
		return again(err)
	}
	return again(r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		return r.enqueueReclaim(tx)
	}))
}

// runSweep is the job that counts what has to be counted, looks through the bucket,
// and then for whatever upkeep has left to do in the region.
func (r *Region) runSweep(ctx context.Context, run *job.Run) error {
	if err := r.countStored(ctx, run.Check); err != nil {
		return again(err)
	}
	st, reason := r.vault.Sweep(ctx, run.Check)
	run.Progress(sweepProgress{Objects: st.Objects, Bytes: st.Bytes, Records: st.Records})
	for _, name := range st.Left {
		r.log.WarnContext(ctx, "an object is not registered, and cannot be read", "object", name)
	}
	if retry(ctx, reason) {
		return again(reason)
	}
	if reason != nil {
		r.log.ErrorContext(ctx, "the bucket could not be swept", "err", reason)
	}
	if err := r.finishDeletes(ctx); err != nil {
		return again(err)
	}
	if err := r.enqueueAll(ctx); err != nil {
		return again(err)
	}
	err := r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		if err := tx.PruneJobs(job.Upkeep, time.Now().Add(-keepJobs)); err != nil {
			return err
		}
		chains, err := tx.Chains()
		if err != nil {
			return err
		}
		for _, c := range chains {
			if err := r.enqueueCompact(tx, c.ID); err != nil {
				return err
			}
		}
		if err := r.enqueueReclaim(tx); err != nil {
			return err
		}
		return enqueueOnce(tx, job.Job{Kind: jobSweep, Subject: wholeRegion, RunAfter: time.Now().Add(sweepEvery)})
	})
	if err != nil {
		return again(err)
	}
	return reason
}
