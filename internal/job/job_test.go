package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

func open(t testing.TB, path string, h meta.Hooks) *meta.DB {
	t.Helper()
	db, err := meta.Open(context.Background(), meta.Config{Path: path, Hooks: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func place(t testing.TB) string { return filepath.Join(t.TempDir(), "meta.db") }

// start runs a queue until the returned function is called, or the test ends.
func start(t testing.TB, q *Queue, handlers map[string]Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := q.Start(ctx, handlers); err != nil {
			t.Errorf("start: %v", err)
		}
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return stop
}

func update(t testing.TB, db *meta.DB, fn func(tx *meta.Tx) error) {
	t.Helper()
	if err := db.Update(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func enqueue(t testing.TB, db *meta.DB, kind string) snapferry.JobID {
	t.Helper()
	id := snapferry.NewJobID()
	update(t, db, func(tx *meta.Tx) error { return Enqueue(tx, Job{ID: id, Kind: kind}) })
	return id
}

func row(t testing.TB, db *meta.DB, id snapferry.JobID) (j Job) {
	t.Helper()
	if err := db.View(context.Background(), func(tx *meta.Tx) (err error) { j, err = tx.Job(id); return err }); err != nil {
		t.Fatal(err)
	}
	return j
}

// await waits until a job is as it should be. Other handles of the file make
// changes too, so it also looks by time.
func await(t testing.TB, db *meta.DB, id snapferry.JobID, ok func(Job) bool) Job {
	t.Helper()
	deadline := time.After(time.Hour) // of the bubble
	for {
		changed := db.Changed()
		j := row(t, db, id)
		if ok(j) {
			return j
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		case <-deadline:
			t.Fatalf("the job stays %+v", j)
		}
	}
}

func awaitState(t testing.TB, db *meta.DB, id snapferry.JobID, want snapferry.JobState) Job {
	t.Helper()
	return await(t, db, id, func(j Job) bool { return j.State == want })
}

func TestEachOnce(t *testing.T) {
	db := open(t, place(t), meta.Hooks{})
	const n = 200
	ids := make(map[snapferry.JobID]bool)
	update(t, db, func(tx *meta.Tx) error {
		clear(ids)
		for range n {
			id := snapferry.NewJobID()
			ids[id] = true
			if err := Enqueue(tx, Job{ID: id, Kind: "k"}); err != nil {
				return err
			}
		}
		return nil
	})
	var mu sync.Mutex
	runs := make(map[snapferry.JobID]int)
	var now, most atomic.Int32
	q := New(db, Config{Owner: "n/1", Workers: 8})
	start(t, q, map[string]Handler{"k": func(ctx context.Context, r *Run) error {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		mu.Lock()
		runs[r.Job.ID]++
		mu.Unlock()
		return db.View(ctx, r.Check)
	}})
	for id := range ids {
		if j := awaitState(t, db, id, snapferry.JobDone); j.Token != 1 || j.Finished.IsZero() {
			t.Errorf("got token %d, end %v", j.Token, j.Finished)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for id := range ids {
		if runs[id] != 1 {
			t.Errorf("job %s ran %d times", id, runs[id])
		}
	}
	if len(runs) != n || most.Load() > 8 {
		t.Errorf("got %d jobs run, %d at a time", len(runs), most.Load())
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, place(t), meta.Hooks{})
		var pauses []time.Duration
		var last time.Time
		start(t, New(db, Config{Owner: "n/1"}), map[string]Handler{"k": func(ctx context.Context, r *Run) error {
			if r.Job.Attempts > 0 {
				pauses = append(pauses, time.Since(last).Round(time.Second/2))
			}
			last = time.Now()
			if r.Job.Attempts == 8 {
				return nil
			}
			return snapferry.Errorf(snapferry.Unavailable, "no source")
		}})
		id := enqueue(t, db, "k")
		j := await(t, db, id, func(j Job) bool { return j.Attempts == 1 })
		if got := []any{j.State, j.Error}; !cmp.Equal(got, []any{snapferry.JobQueued, "no source"}) {
			t.Errorf("between attempts: got %v", got)
		}
		j = awaitState(t, db, id, snapferry.JobDone)
		want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}
		for i := range want {
			want[i] *= time.Second
		}
		if d := cmp.Diff(want, pauses); d != "" {
			t.Errorf("pauses: got (+), want (-):\n%s", d)
		}
		if j.Error != "" || j.Token != 9 {
			t.Errorf("got error %q, token %d", j.Error, j.Token)
		}
	})
}

func TestOutcomes(t *testing.T) {
	db := open(t, place(t), meta.Hooks{})
	handlers := map[string]Handler{
		"done":      func(context.Context, *Run) error { return nil },
		"corrupt":   func(context.Context, *Run) error { return snapferry.Errorf(snapferry.Corrupt, "bad block") },
		"plain":     func(context.Context, *Run) error { return errors.New("what") },
		"cancelled": func(context.Context, *Run) error { return snapferry.Errorf(snapferry.Cancelled, "no more") },
		"panic":     func(context.Context, *Run) error { panic("oh") },
	}
	start(t, New(db, Config{Owner: "n/1"}), handlers)
	for kind, want := range map[string]struct {
		state snapferry.JobState
		error string
	}{
		"done":      {snapferry.JobDone, ""},
		"corrupt":   {snapferry.JobFailed, "bad block"},
		"plain":     {snapferry.JobFailed, "what"},
		"cancelled": {snapferry.JobCancelled, "no more"},
		"panic":     {snapferry.JobFailed, "a fault in its handler: oh"},
		"nobody":    {snapferry.JobFailed, `no handler for jobs of kind "nobody"`},
	} {
		id := enqueue(t, db, kind)
		j := await(t, db, id, func(j Job) bool { return j.State.Terminal() })
		if kind == "panic" {
			want.error = fmt.Sprintf("job %s: %s", id, want.error)
		}
		if j.State != want.state || j.Error != want.error || j.Owner != "" || j.Finished.IsZero() {
			t.Errorf("%s: got %+v, want state %s, error %q", kind, j, want.state, want.error)
		}
	}
	if err := New(db, Config{}).Start(t.Context(), nil); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("without owner: got error %v", err)
	}
	if err := db.Update(t.Context(), func(tx *meta.Tx) error { return Enqueue(tx, Job{}) }); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("without kind: got error %v", err)
	}
}

func TestEnqueueRollsBack(t *testing.T) {
	db := open(t, place(t), meta.Hooks{})
	stop := errors.New("stop")
	id := snapferry.NewJobID()
	err := db.Update(t.Context(), func(tx *meta.Tx) error { return errors.Join(Enqueue(tx, Job{ID: id, Kind: "k"}), stop) })
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	err = db.View(t.Context(), func(tx *meta.Tx) error { _, err := tx.Job(id); return err })
	if !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("got error %v, want NotFound", err)
	}
}

func cancelJob(t testing.TB, db *meta.DB, id snapferry.JobID) (ended bool) {
	t.Helper()
	update(t, db, func(tx *meta.Tx) (err error) { ended, err = Cancel(tx, id); return err })
	return ended
}

// untilEnd is a handler that says when it runs, waits for its context's end and
// reports the cause.
func untilEnd(running chan<- *Run, causes chan<- error) Handler {
	return func(ctx context.Context, r *Run) error {
		running <- r
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return ctx.Err()
	}
}

func TestCancelRunning(t *testing.T) {
	for name, heart := range map[string]time.Duration{"same process": 0, "another process": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := place(t)
				db := open(t, path, meta.Hooks{})
				by := db
				if heart > 0 {
					by = open(t, path, meta.Hooks{})
				}
				running, causes := make(chan *Run, 1), make(chan error, 1)
				start(t, New(db, Config{Owner: "n/1", Lease: 15 * time.Second}), map[string]Handler{"k": untilEnd(running, causes)})
				id := enqueue(t, db, "k")
				<-running
				asked := time.Now()
				if cancelJob(t, by, id) {
					t.Error("a running job was ended at once")
				}
				if cause := <-causes; !snapferry.IsKind(cause, snapferry.Cancelled) {
					t.Errorf("got cause %v, want Cancelled", cause)
				}
				if took := time.Since(asked); took > heart+time.Second {
					t.Errorf("the cancel took %v, want at most %v", took, heart)
				}
				awaitState(t, db, id, snapferry.JobCancelled)
			})
		})
	}
}

func TestCancelQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, place(t), meta.Hooks{})
		id := enqueue(t, db, "k")
		if !cancelJob(t, db, id) {
			t.Error("a job that never ran was not ended at once")
		}
		var runs, cleaned atomic.Int32
		start(t, New(db, Config{Owner: "n/1"}), map[string]Handler{"k": func(ctx context.Context, r *Run) error {
			runs.Add(1)
			if ctx.Err() != nil {
				cleaned.Add(1)
				return context.Cause(ctx)
			}
			return snapferry.Errorf(snapferry.Unavailable, "later")
		}})
		waits := enqueue(t, db, "k")
		await(t, db, waits, func(j Job) bool { return j.Attempts == 4 })
		if cancelJob(t, db, waits) {
			t.Error("a job that ran was ended without a last run")
		}
		awaitState(t, db, waits, snapferry.JobCancelled)
		if got := row(t, db, id); got.State != snapferry.JobCancelled || got.Token != 0 {
			t.Errorf("got %+v for a job that must not run", got)
		}
		if runs.Load() != 5 || cleaned.Load() != 1 {
			t.Errorf("got %d runs, %d to clean up; want 5 and 1", runs.Load(), cleaned.Load())
		}
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, place(t), meta.Hooks{})
		running, causes := make(chan *Run, 1), make(chan error, 1)
		handlers := map[string]Handler{"k": untilEnd(running, causes)}
		stop := start(t, New(db, Config{Owner: "n/1"}), handlers)
		id := enqueue(t, db, "k")
		(<-running).Progress(map[string]int{"done": 5})
		stop()
		<-causes
		j := row(t, db, id)
		if j.State != snapferry.JobQueued || j.Attempts != 0 || !j.RunAfter.IsZero() || j.Error != "" || j.Progress != `{"done":5}` {
			t.Errorf("after the shutdown: got %+v", j)
		}
		began := time.Now()
		start(t, New(db, Config{Owner: "n/2"}), handlers)
		if r := <-running; r.Token != 2 || time.Since(began) > time.Second || r.Job.Progress != `{"done":5}` {
			t.Errorf("got %+v after %v", r.Job, time.Since(began))
		}
	})
}

// TestKilled leaves rows as killed processes do: those of this node run again
// at once, those of another when their lease has run out.
func TestKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, place(t), meta.Hooks{})
		left := make(map[snapferry.JobID]string)
		for _, owner := range []string{"n/1", "other/1"} {
			id := enqueue(t, db, "k")
			left[id] = owner
			update(t, db, func(tx *meta.Tx) error { _, err := tx.ClaimJob(id, owner); return err })
		}
		began := time.Now()
		type begin struct {
			id    snapferry.JobID
			after time.Duration
		}
		ran := make(chan begin, 2)
		const lease = 15 * time.Second
		start(t, New(db, Config{Owner: "n/2", Lease: lease}), map[string]Handler{"k": func(ctx context.Context, r *Run) error {
			ran <- begin{r.Job.ID, time.Since(began)}
			return nil
		}})
		for range 2 {
			s := <-ran
			switch owner := left[s.id]; {
			case owner == "n/1" && s.after > time.Second:
				t.Errorf("own job ran after %v", s.after)
			case owner == "other/1" && (s.after < lease || s.after > lease+6*time.Second):
				t.Errorf("job of another node ran after %v", s.after)
			}
		}
	})
}

func TestHeartbeatKeepsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := place(t)
		db, other := open(t, path, meta.Hooks{}), open(t, path, meta.Hooks{})
		handler := func(ctx context.Context, r *Run) error {
			for i := range 60 {
				r.Progress(i)
				<-time.After(10 * time.Second)
				if err := db.Update(ctx, r.Check); err != nil {
					return err
				}
			}
			return nil
		}
		start(t, New(db, Config{Owner: "a/1"}), map[string]Handler{"k": handler})
		id := enqueue(t, db, "k")
		await(t, db, id, func(j Job) bool { return j.Owner == "a/1" })
		start(t, New(other, Config{Owner: "b/1"}), map[string]Handler{"k": handler})
		await(t, db, id, func(j Job) bool { return j.Progress == "30" })
		if j := awaitState(t, db, id, snapferry.JobDone); j.Token != 1 || j.Progress != "59" {
			t.Errorf("got %+v", j)
		}
	})
}

// TestTakeover stops the heart of a worker that goes on working: another takes
// its job, and what the zombie commits is refused.
func TestTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := place(t)
		var frozen atomic.Bool
		db := open(t, path, meta.Hooks{BeforeCommit: func() error {
			if frozen.Load() {
				return errors.New("disk does not answer")
			}
			return nil
		}})
		other := open(t, path, meta.Hooks{})
		running, wake, refused := make(chan *Run, 1), make(chan struct{}), make(chan error, 1)
		start(t, New(db, Config{Owner: "a/1"}), map[string]Handler{"k": func(ctx context.Context, r *Run) error {
			running <- r
			<-wake
			err := db.Update(context.Background(), func(tx *meta.Tx) error {
				return errors.Join(r.Check(tx), tx.AddUsage(meta.Usage{Subject: "zombie"}))
			})
			refused <- err
			return err
		}})
		id := enqueue(t, db, "k")
		zombie := <-running
		frozen.Store(true)
		began := time.Now()

		heirs := make(chan *Run, 1)
		finish := make(chan struct{})
		start(t, New(other, Config{Owner: "b/1"}), map[string]Handler{"k": func(ctx context.Context, r *Run) error {
			heirs <- r
			<-finish
			return other.Update(ctx, func(tx *meta.Tx) error { return errors.Join(r.Check(tx), tx.AddUsage(meta.Usage{Subject: "heir"})) })
		}})
		heir := <-heirs
		if took := time.Since(began); took < 15*time.Second || took > 26*time.Second {
			t.Errorf("taken over after %v, want the lease time and what it takes to see it", took)
		}
		if heir.Token <= zombie.Token {
			t.Errorf("got token %d after %d", heir.Token, zombie.Token)
		}
		frozen.Store(false)
		close(wake)
		if err := <-refused; !snapferry.IsKind(err, snapferry.Conflict) {
			t.Errorf("the zombie's commit: got error %v, want Conflict", err)
		}
		close(finish)
		awaitState(t, other, id, snapferry.JobDone)
		for subject, want := range map[string]int{"zombie": 0, "heir": 1} {
			err := other.View(context.Background(), func(tx *meta.Tx) error {
				u, err := tx.Usage(subject)
				if len(u) != want {
					t.Errorf("got %d commits of the %s, want %d", len(u), subject, want)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// TestSelfFence: a worker that cannot renew its lease stops by itself.
func TestSelfFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var frozen atomic.Bool
		db := open(t, place(t), meta.Hooks{BeforeCommit: func() error {
			if frozen.Load() {
				return errors.New("disk does not answer")
			}
			return nil
		}})
		running, causes := make(chan *Run, 2), make(chan error, 2)
		start(t, New(db, Config{Owner: "a/1"}), map[string]Handler{"k": untilEnd(running, causes)})
		id := enqueue(t, db, "k")
		<-running
		frozen.Store(true)
		began := time.Now()
		if cause := <-causes; !snapferry.IsKind(cause, snapferry.Unavailable) {
			t.Errorf("got cause %v, want Unavailable", cause)
		}
		if took := time.Since(began); took < 10*time.Second || took > 21*time.Second {
			t.Errorf("stopped after %v", took)
		}
		frozen.Store(false)
		<-running // the same queue runs it again
		if j := row(t, db, id); j.Attempts != 1 {
			t.Errorf("got %+v", j)
		}
	})
}

// TestCommitFaults lets commits fail at random, half of them without effect and
// half with: every job ends, and its effect is there once.
func TestCommitFaults(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { commitFaults(t, seed) })
		})
	}
}

func commitFaults(t *testing.T, seed uint64) {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0))
	fault := func() error {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(4) == 0 {
			return snapferry.Errorf(snapferry.Unavailable, "power cut")
		}
		return nil
	}
	path := place(t)
	db := open(t, path, meta.Hooks{BeforeCommit: fault, AfterCommit: fault})
	calm := open(t, path, meta.Hooks{})
	ids := make([]snapferry.JobID, 15)
	for i := range ids {
		ids[i] = enqueue(t, calm, "k")
	}
	handlers := map[string]Handler{"k": func(ctx context.Context, r *Run) error {
		return db.Update(ctx, func(tx *meta.Tx) error {
			if err := r.Check(tx); err != nil {
				return err
			}
			err := tx.InsertRequest(meta.Request{Account: "a", Token: string(r.Job.ID)})
			if snapferry.IsKind(err, snapferry.Exists) {
				return nil // an earlier attempt did it
			}
			return errors.Join(err, tx.AddUsage(meta.Usage{Subject: string(r.Job.ID)}))
		})
	}}
	stop := start(t, New(db, Config{Owner: "n/1", Workers: 3}), handlers)
	awaitState(t, calm, ids[len(ids)/2], snapferry.JobDone)
	stop()
	start(t, New(db, Config{Owner: "n/2", Workers: 3}), handlers)
	for _, id := range ids {
		awaitState(t, calm, id, snapferry.JobDone)
		err := calm.View(context.Background(), func(tx *meta.Tx) error {
			u, err := tx.Usage(string(id))
			if len(u) != 1 {
				t.Errorf("job %s: got %d effects, want 1", id, len(u))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, place(t), meta.Hooks{})
		running, causes := make(chan *Run, 1), make(chan error, 1)
		start(t, New(db, Config{Owner: "n/1"}), map[string]Handler{"k": untilEnd(running, causes)})
		id := enqueue(t, db, "k")
		r := <-running
		r.Progress(snapferry.Progress{Total: 10, Done: 3})
		r.Progress(func() {}) // has no JSON
		j := await(t, db, id, func(j Job) bool { return j.Progress != "" })
		var p snapferry.Progress
		if err := json.Unmarshal([]byte(j.Progress), &p); err != nil || p.Done != 3 {
			t.Errorf("got progress %q, error %v", j.Progress, err)
		}
		cancelJob(t, db, id)
		<-causes
	})
}
