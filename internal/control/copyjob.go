package control

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// copyProgress is what the heartbeat of a copy's job remembers: all that ever
// arrived, also what a crash then lost.
type copyProgress struct {
	Done     int64 `json:"done"`     // plain bytes settled durably, the most ever shown
	Moved    int64 `json:"moved"`    // bytes received
	Received int64 `json:"received"` // plain bytes received
	Reused   int64 `json:"reused"`   // plain bytes that were here
	ToMove   int64 `json:"to_move"`  // bytes that are still to come

	Last time.Time     `json:"last,omitzero"` // when something came
	Idle time.Duration `json:"idle"`          // how long runs and waits were without an advance
}

// runCopy is the job of a copy. It can be interrupted at any point and goes on
// from its last checkpoint.
func (r *Region) runCopy(ctx context.Context, run *job.Run) error {
	id := snapferry.CopyID(run.Job.Payload)
	c, err := r.copyRow(ctx, id)
	if err != nil {
		return err
	}
	var p *puller
	if !c.State.Terminal() {
		p = newPuller(run, c)
		err = r.pull(ctx, p)
		p.report() // however it ended: what it moved is metered
		if ctx.Err() == nil && err != nil {
			err = p.patience(err, r.copies.Patience)
		}
		if retry(ctx, err) {
			return err
		}
		if err != nil {
			// From here on no run pulls again, also if this one ends halfway. One
			// that has lost its lease has no say in that.
			err2 := r.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
				if err := run.Check(tx); err != nil {
					return err
				}
				return r.endCopy(tx, id, endingOf(err), err)
			})
			if err2 != nil {
				return again(err2)
			}
		}
		var err2 error
		if c, err2 = r.copyRow(ctx, id); err2 != nil {
			return again(err2)
		}
	}
	if c.State == snapferry.CopyFailed {
		if err == nil {
			err = failureOf(c)
		}
		if err2 := r.failSnapshot(ctx, c.Snapshot, err); snapferry.IsKind(err2, snapferry.Unavailable) {
			return err2
		}
	}
	if err2 := r.meterCopy(ctx, id, movedBy(p, run.Job)); err2 != nil {
		return again(err2)
	}
	if rerr := r.releaseOf(ctx, id); rerr != nil {
		r.log.WarnContext(ctx, "a pin could not be released yet", "copy", id, "err", rerr)
		return again(rerr)
	}
	return err
}

// movedBy is what a copy has moved, over all its runs.
func movedBy(p *puller, j job.Job) int64 {
	if p != nil {
		return p.counts().Moved
	}
	return readProgress(j).Moved
}

func readProgress(j job.Job) (p copyProgress) {
	if j.Progress != "" {
		// What cannot be read counts as nothing: only figures are lost.
		_ = json.Unmarshal([]byte(j.Progress), &p)
	}
	return p
}

// An ended error says why a copy ended.
type endedError struct {
	error
	ending snapferry.Ending
}

func (e *endedError) Unwrap() error { return e.error }

// endingOf is why a copy ends that ended in err.
func endingOf(err error) snapferry.Ending {
	var e *endedError
	switch {
	case errors.As(err, &e):
		return e.ending
	case snapferry.IsKind(err, snapferry.Cancelled):
		return snapferry.EndedCancelled
	}
	return snapferry.EndedFailed
}

// failureOf is the error with which an earlier run ended a copy.
func failureOf(c meta.Copy) error {
	kind, text, ok := strings.Cut(c.Reason, ": ")
	if !ok {
		text = c.Reason
	}
	return snapferry.Errorf(snapferry.ParseKind(kind), "%s", text)
}

// retry reports whether a copy that ended in err goes on in another run.
func retry(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	return snapferry.IsKind(err, snapferry.Unavailable) || ctx.Err() != nil
}

func (r *Region) copyRow(ctx context.Context, id snapferry.CopyID) (c meta.Copy, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		c, err = tx.Copy(id)
		return err
	})
	return c, err
}

// releaseOf releases the pin of a copy that has ended. A pin that is gone is
// no error.
func (r *Region) releaseOf(ctx context.Context, id snapferry.CopyID) error {
	c, err := r.copyRow(ctx, id)
	if err != nil || !c.State.Terminal() {
		return err
	}
	from, err := r.remote(ctx, c.Source.Region, c.Account)
	if err != nil {
		return err
	}
	h := handleOf(c)
	if c.Pin == "" {
		// Reserved, and the answer to the pin was lost: pinning is idempotent.
		h, err = r.pin(ctx, from, c)
		if k := snapferry.KindOf(err); err != nil && (k == snapferry.NotFound || k == snapferry.Conflict || k == snapferry.Denied) {
			return nil // nothing to pin, so nothing pinned
		}
		if err != nil {
			return err
		}
	}
	err = from.Release(ctx, h, c.Ending)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	return err
}

// pull moves the content and seals the version.
func (r *Region) pull(ctx context.Context, p *puller) error {
	run, c := p.run, p.copy
	s, err := r.snapshotRow(ctx, c.Snapshot)
	if err != nil {
		return err
	}
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyPlanning, nil); err != nil {
		return err
	}
	if err := r.db.View(ctx, func(tx *meta.Tx) error { return p.resume(tx, s) }); err != nil {
		return err
	}
	p.early = r.earlyOf(s.Version)
	r.setRunning(s.ID, &running{started: p.pulse.base, total: p.total, done: p.done, counts: p.counts, pull: p})
	defer r.setRunning(s.ID, nil)
	from, d, err := r.sourceOf(ctx, c)
	if err != nil {
		return err
	}
	if err := r.rebase(ctx, run, c, d); err != nil {
		return err
	}
	fence := func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		now, err := tx.Copy(c.ID)
		if err == nil && now.State.Terminal() {
			err = snapferry.Errorf(snapferry.Cancelled, "copy %s was cancelled", c.ID)
		}
		return err
	}
	w, err := r.vault.Write(ctx, s.Version, vault.WriteConfig{Job: run.Job.ID, Token: run.Token, Fence: fence, Checkpoints: true, Counts: p.counts, Durable: p.durable})
	if err != nil {
		return err
	}
	defer w.Close()
	p.begin(w, d.Present)
	chain := r.limits.chain(r.name, &c)
	cfg := transfer.Config{
		Info: d.Info, Source: watched{from.Source(handleOf(c)), p.pulse}, Sink: sink{w}, Stats: &p.stats, Memory: r.memory,
		Limit: func(ctx context.Context, n int) error { return p.pulse.pass(ctx, chain, itemBytes+n) },
	}
	pinned, stop := r.renewing(ctx, c)
	defer stop()
	if err := r.planCopyRun(pinned, p, cfg, s.Parent); err != nil {
		return r.blame(pinned, c, err)
	}
	if r.files.Caches != nil {
		defer r.files.Caches.Hold(s.Version)()
		cfg.Near = near{r.files.Caches, s.Version}
	}
	if err = transfer.Run(pinned, cfg); err != nil {
		if ctx.Err() != nil || passes(err) {
			// What has arrived is kept for the next run, if it can be.
			_ = w.Checkpoint(context.WithoutCancel(ctx))
		}
		return r.blame(pinned, c, err)
	}
	stop()
	if err := r.renew(ctx, c); err != nil {
		return err
	}
	return r.commitCopy(ctx, p, w, s, d)
}

// planCopyRun finds out what is to cross in this run, and begins to move it.
func (r *Region) planCopyRun(ctx context.Context, p *puller, cfg transfer.Config, base snapferry.SnapshotID) error {
	planner := transfer.Planner{Info: cfg.Info, Source: cfg.Source, Base: p.w.Base(), Limit: cfg.Limit}
	if err := planner.Run(ctx, func(transfer.Step) error { return nil }); err != nil {
		return err
	}
	plan := planned(cfg.Info, planner.Totals, base, p.copy.Full)
	p.expect(plan.MoveBytes)
	return r.moveCopy(ctx, p.run, p.copy.ID, snapferry.CopyMoving, &plan)
}

// commitCopy seals the version, and makes the snapshot ready.
func (r *Region) commitCopy(ctx context.Context, p *puller, w *vault.Writer, s meta.Snapshot, d transfer.Description) error {
	id := p.copy.ID
	if err := r.moveCopy(ctx, p.run, id, snapferry.CopyCommitting, nil); err != nil {
		return err
	}
	holds, err := r.baseHolds(ctx, s.Version)
	if err != nil {
		return err
	}
	_, err = w.Seal(ctx, vault.SealConfig{
		Want: d.Digest, Also: holds,
		Hold: meta.Hold{Version: s.Version, Kind: vault.HoldSnapshot, Owner: string(s.ID), Created: time.Now()},
		Commit: func(tx *meta.Tx, done vault.Sealed) error {
			counts := p.counts()
			counts.Repeated = max(counts.Repeated, p.received()-counts.Changed)
			if err := r.settleReady(tx, s.ID, done, counts); err != nil {
				return err
			}
			if err := wakeHeads(tx, s.Version, len(holds)); err != nil {
				return err
			}
			if err := r.endCopy(tx, id, snapferry.EndedDone, nil); err != nil {
				return err
			}
			return meterCopy(tx, id, counts.Moved)
		},
	})
	if err == nil {
		r.endEarly(s.Version)
	}
	return err
}

// baseHolds returns the holds of the volumes that are made from a version which
// is being copied.
func (r *Region) baseHolds(ctx context.Context, version snapferry.VersionID) (holds []meta.Hold, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		heads, err := tx.HeadsOn(version)
		for _, h := range heads {
			holds = append(holds, volumeHold(version, h.ID))
		}
		return err
	})
	return holds, err
}

// wakeHeads gives the volumes on a version that is sealed now what waited for
// that. There must be as many as hold it: Unavailable, to be tried again, when
// there are others since.
func wakeHeads(tx *meta.Tx, version snapferry.VersionID, holds int) error {
	heads, err := tx.HeadsOn(version)
	if err != nil {
		return err
	}
	if len(heads) != holds {
		return snapferry.Errorf(snapferry.Unavailable, "volumes were made from the snapshot, or deleted, just now")
	}
	for _, h := range heads {
		if err := enqueueVolumeWork(tx, h); err != nil {
			return err
		}
	}
	return nil
}

// rebase chooses the base of a copy again when its turn comes and nothing has
// been written for it: a copy it waited for may have brought a better one.
func (r *Region) rebase(ctx context.Context, run *job.Run, c meta.Copy, d transfer.Description) error {
	if c.Full {
		return nil
	}
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		s, err := tx.Snapshot(c.Snapshot)
		if err != nil || s.Version.IsZero() {
			return err
		}
		row, err := tx.Version(s.Version)
		if err != nil {
			return err
		}
		written, err := tx.SegmentsOf(row.ID)
		if err != nil || len(written) > 0 {
			return err
		}
		vol, err := tx.Volume(s.VolumeID)
		if err != nil {
			return err
		}
		base, ok, err := chooseBase(tx, vol, d)
		if err != nil || !ok || base.ID == row.Parent {
			return err
		}
		if err := vault.Reattach(tx, row.ID, base.ID); err != nil {
			return err
		}
		s.Parent = visibleParent(tx, base.ID)
		if err := tx.UpdateSnapshot(s); err != nil {
			return err
		}
		now, err := tx.Copy(c.ID)
		if err != nil {
			return err
		}
		now.Base = base.ID
		return tx.UpdateCopy(now)
	})
}

// A puller counts what a copy does, over all its runs.
type puller struct {
	run   *job.Run
	copy  meta.Copy
	stats transfer.Stats
	seen  copyProgress // of earlier runs, as the last heartbeat saw them
	early *early       // what volumes read ahead of the copy
	pulse *pulse
	rate  estimator // of the bytes that cross

	telling sync.Mutex // held by report

	mu       sync.Mutex
	total    int64 // plain bytes to settle; guarded by mu, like all that follows
	w        *vault.Writer
	prior    snapferry.Counts // of earlier runs, as far as it was durable
	before   int64            // plain bytes that arrived in earlier runs
	shown    int64            // plain bytes, the most ever shown
	expected int64            // bytes that are to cross, with those of earlier runs; 0: not known yet
}

func newPuller(run *job.Run, c meta.Copy) *puller {
	p := &puller{run: run, copy: c, seen: readProgress(run.Job), pulse: newPulse()}
	p.prior.Moved, p.before = p.seen.Moved, p.seen.Received
	return p
}

// resume shows what earlier runs have shown.
func (p *puller) resume(tx *meta.Tx, s meta.Snapshot) (err error) {
	p.total = s.Counts.Present // as the source said when the copy was admitted
	p.seen.Done, err = settledOf(tx, s, p.seen)
	p.shown = p.seen.Done
	return err
}

// settledOf is the plain bytes of a copy that are settled durably, as far as the
// metadata knows.
func settledOf(tx *meta.Tx, s meta.Snapshot, seen copyProgress) (int64, error) {
	c, err := tx.Checkpoint(s.Version)
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return 0, err
	}
	return max(seen.Done, clip(c.Counts.Changed+c.Counts.Reused, s.Counts.Present)), nil
}

// begin takes over what the writer's checkpoint remembers. What arrived after
// that checkpoint was lost and has to come again.
func (p *puller) begin(w *vault.Writer, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w, p.prior, p.total = w, w.Prior(), total
	p.before = max(p.seen.Received, p.prior.Changed+p.prior.Repeated)
	p.prior.Repeated = p.before - p.prior.Changed
	p.prior.Moved = max(p.prior.Moved, p.seen.Moved)
	p.shown = max(p.shown, p.clip(p.prior.Changed+p.prior.Reused)) // as durable does
}

// expect notes how many bytes are to cross in this run.
func (p *puller) expect(bytes int64) {
	moved := p.counts().Moved
	p.mu.Lock()
	p.expected = moved + bytes
	p.mu.Unlock()
	p.report()
}

// toMove is how many bytes are still to cross.
func (p *puller) toMove() int64 {
	moved := p.counts().Moved
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.expected > 0:
		return max(p.expected-moved, 0)
	case p.seen.ToMove > 0:
		return p.seen.ToMove
	case p.copy.Plan != nil:
		return p.copy.Plan.MoveBytes // as it was when the copy was promised
	}
	return 0
}

// came reports whether something has come in this run.
func (p *puller) came() bool { return p.pulse.last.Load() > 0 }

// advanced reports whether the run has made more durable than all before it.
func (p *puller) advanced() bool { return p.done() > p.seen.Done }

// ends returns when the copy will end, if it goes on as it does.
func (p *puller) ends(now time.Time) *snapferry.Span {
	p.rate.add(now, p.counts().Moved)
	return p.rate.ends(now, p.toMove())
}

// show adds what is known of a copy to its progress.
func (p *puller) show(x *snapferry.Progress) {
	now, counts := time.Now(), p.counts()
	x.Reused, x.Moved, x.ToMove = counts.Reused, counts.Moved, p.toMove()
	x.Ends = p.ends(now)
	x.MoveRate = p.rate.recent(now)
	if x.Stalled = p.pulse.stalled(p.copy.Source.Region, now); x.Stalled != nil {
		x.Ends, x.Rate, x.MoveRate = nil, 0, 0
	}
}

// patience makes an error final that passes, when there was no advance for too
// long, and one of a full bucket one that passes.
func (p *puller) patience(err error, limit time.Duration) error {
	if !passes(err) {
		return err
	}
	idle := p.seen.Idle + time.Since(p.pulse.base) + p.run.Wait()
	if p.advanced() {
		idle = 0
		p.run.Advanced()
	}
	p.mu.Lock()
	p.seen.Idle = idle
	p.mu.Unlock()
	p.report()
	full := snapferry.IsKind(err, snapferry.Full)
	switch {
	case idle > limit && full:
		return &endedError{snapferry.Errorf(snapferry.Full, "there was no room for %v: %w", limit, err), snapferry.EndedFull}
	case idle > limit:
		return &endedError{snapferry.Errorf(snapferry.NotFound, "nothing has come from region %s for %v: %w", p.copy.Source.Region, limit, err), snapferry.EndedSourceLost}
	case full:
		return snapferry.Errorf(snapferry.Unavailable, "there is no room: %w", err)
	}
	return err
}

// passes reports whether an error of a copy may pass.
func passes(err error) bool {
	return snapferry.IsKind(err, snapferry.Unavailable) || snapferry.IsKind(err, snapferry.Full)
}

// clip keeps what is shown below the total: that is reached by the commit.
func (p *puller) clip(done int64) int64 { return clip(done, p.total) }

func clip(done, total int64) int64 { return min(done, max(total-snapferry.BlockSize, 0)) }

// durable notes what a checkpoint remembers: nothing else is shown, so that whoever
// goes on from there shows no less.
func (p *puller) durable(c snapferry.Counts) {
	p.mu.Lock()
	p.shown = max(p.shown, p.clip(c.Changed+c.Reused))
	p.mu.Unlock()
	p.report()
}

// report gives the heartbeat what it is to remember.
func (p *puller) report() {
	p.telling.Lock() // else an older one could come last
	defer p.telling.Unlock()
	x := copyProgress{Done: p.done(), Received: p.received(), ToMove: p.toMove()}
	counts := p.counts()
	x.Moved, x.Reused = counts.Moved, counts.Reused
	p.mu.Lock()
	x.Idle, x.Last = p.seen.Idle, p.seen.Last
	p.mu.Unlock()
	if p.came() {
		x.Last = p.pulse.base.Add(time.Duration(p.pulse.last.Load()))
	}
	p.run.Progress(x)
}

// received is all plain bytes that ever arrived, as far as that is known.
func (p *puller) received() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeEarly()
	return p.before + p.stats.Blocks.Load()*snapferry.BlockSize
}

// takeEarly counts what volumes read ahead of the copy as the copy's.
func (p *puller) takeEarly() {
	if p.early != nil {
		p.stats.Moved.Add(p.early.moved.Swap(0))
		p.stats.Blocks.Add(p.early.blocks.Swap(0))
	}
}

// done is what has been settled durably; it never goes back.
func (p *puller) done() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown
}

// counts sums up all runs so far.
func (p *puller) counts() snapferry.Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.prior
	c.Present = p.total
	p.takeEarly()
	c.Moved += p.stats.Moved.Load()
	c.Reused += p.stats.Reused.Load() * snapferry.BlockSize
	if p.w != nil {
		c.Changed += p.w.Changed()
		c.Stored += p.w.Stored()
	}
	// A leaf that ended while a checkpoint was cut may have come twice.
	if twice := c.Changed - c.Present; twice > 0 {
		c.Changed, c.Repeated = c.Present, c.Repeated+twice
	}
	// What earlier runs brought is in the base of this one; that is not reuse.
	c.Reused = max(min(c.Reused, p.total-c.Changed), 0)
	return c
}

// sink is an open version as the copy engine sees it.
type sink struct{ *vault.Writer }

func (s sink) Ticket(leaf uint64) (transfer.Ticket, error) {
	t, err := s.Writer.Ticket(leaf)
	return transfer.Ticket(t), err
}

func (s sink) Absent(ctx context.Context, t transfer.Ticket) error {
	return s.Writer.Absent(ctx, vault.Ticket(t))
}

func (s sink) NewFiller() (transfer.Filler, error) {
	l, err := s.NewLeafWriter()
	if err != nil {
		return nil, err
	}
	return filler{l}, nil
}

type filler struct{ *vault.LeafWriter }

func (f filler) Begin(ctx context.Context, t transfer.Ticket) error {
	return f.BeginFrames(ctx, vault.Ticket(t))
}
