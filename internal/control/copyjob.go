package control

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
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
}

// runCopy is the job of a copy. It can be interrupted at any point and goes on
// from its last checkpoint.
func (r *Region) runCopy(ctx context.Context, run *job.Run) error {
	id := snapferry.CopyID(run.Job.Payload)
	c, err := r.copyRow(ctx, id)
	if err != nil {
		return err
	}
	if !c.State.Terminal() {
		err = r.pull(ctx, run, c)
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
				return endCopy(tx, id, snapferry.CopyFailed, err)
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
	if rerr := r.releaseOf(ctx, id); rerr != nil {
		r.log.WarnContext(ctx, "a pin could not be released yet", "copy", id, "err", rerr)
		return again(rerr)
	}
	return err
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
	h := transfer.Handle{Pin: c.Pin, Snapshot: c.Source.Snapshot}
	if c.Pin == "" {
		// Reserved, and the answer to the pin was lost: pinning is idempotent.
		var region meta.Region
		err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
			region, err = tx.Region()
			return err
		})
		if err != nil {
			return err
		}
		h, err = from.Pin(ctx, transfer.Pin{Snapshot: c.Source.Snapshot, Copy: c.ID, Incarnation: region.Incarnation})
		if k := snapferry.KindOf(err); err != nil && (k == snapferry.NotFound || k == snapferry.Conflict || k == snapferry.Denied) {
			return nil // nothing to pin, so nothing pinned
		}
		if err != nil {
			return err
		}
	}
	err = from.Release(ctx, h)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	return err
}

// enqueueCopy adds the job of a copy, unless an earlier copy of the same
// lineage is active: one runs after the other, and each wakes the next.
func enqueueCopy(tx *meta.Tx, volume snapferry.VolumeID, c meta.Copy) error {
	first, ok, err := firstActive(tx, volume)
	if err != nil || !ok || first.ID != c.ID {
		return err
	}
	return job.Enqueue(tx, job.Job{Kind: jobCopy, Account: c.Account, Subject: string(c.Snapshot), Payload: string(c.ID)})
}

// wakeNext gives the copy that waited for one that has ended its job.
func wakeNext(tx *meta.Tx, ended meta.Copy) error {
	if ended.Snapshot == "" {
		return nil
	}
	s, err := tx.Snapshot(ended.Snapshot)
	if err != nil {
		return err
	}
	next, ok, err := firstActive(tx, s.VolumeID)
	if err != nil || !ok {
		return err
	}
	if jobs, err := tx.JobsOf(string(next.Snapshot)); err != nil || len(jobs) > 0 {
		return err
	}
	return enqueueCopy(tx, s.VolumeID, next)
}

// firstActive returns the oldest copy of a lineage that has not ended.
func firstActive(tx *meta.Tx, volume snapferry.VolumeID) (c meta.Copy, ok bool, err error) {
	active, err := tx.ActiveCopies()
	if err != nil {
		return c, false, err
	}
	for _, c := range active {
		if c.Reserved {
			continue
		}
		s, err := tx.Snapshot(c.Snapshot)
		if err != nil || s.VolumeID == volume {
			return c, err == nil, err
		}
	}
	return c, false, nil
}

// pull moves the content and seals the version.
func (r *Region) pull(ctx context.Context, run *job.Run, c meta.Copy) error {
	s, err := r.snapshotRow(ctx, c.Snapshot)
	if err != nil {
		return err
	}
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyPlanning); err != nil {
		return err
	}
	from, err := r.remote(ctx, c.Source.Region, c.Account)
	if err != nil {
		return err
	}
	d, err := from.Describe(ctx, c.Source.Snapshot)
	if err != nil {
		return err
	}
	if err := r.rebase(ctx, run, c, d); err != nil {
		return err
	}
	p := newPuller(run, d.Present)
	p.early = r.earlyOf(s.Version)
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
	p.begin(w)
	x := &running{started: time.Now(), total: d.Present, done: p.done, counts: p.counts}
	r.setRunning(s.ID, x)
	defer r.setRunning(s.ID, nil)
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyMoving); err != nil {
		return err
	}
	source := from.Source(transfer.Handle{Pin: c.Pin, Snapshot: c.Source.Snapshot})
	cfg := transfer.Config{Info: d.Info, Source: source, Sink: sink{w}, Stats: &p.stats, Settle: p.settle}
	if r.files.Caches != nil {
		defer r.files.Caches.Hold(s.Version)()
		cfg.Near = near{r.files.Caches, s.Version}
	}
	err = transfer.Run(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil || snapferry.IsKind(err, snapferry.Unavailable) {
			// What has arrived is kept for the next run, if it can be.
			_ = w.Checkpoint(context.WithoutCancel(ctx))
			p.report()
		}
		return err
	}
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyCommitting); err != nil {
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
			if err := meter(tx, s.Account, "received", s.ID, counts.Moved); err != nil {
				return err
			}
			if err := wakeHeads(tx, s.Version, len(holds)); err != nil {
				return err
			}
			return endCopy(tx, c.ID, snapferry.CopyDone, nil)
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
	total int64
	stats transfer.Stats
	seen  copyProgress // of earlier runs, as the last heartbeat saw them
	early *early       // what volumes read ahead of the copy

	mu      sync.Mutex
	w       *vault.Writer    // guarded by mu, like all that follows
	prior   snapferry.Counts // of earlier runs, as far as it was durable
	before  int64            // plain bytes that arrived in earlier runs
	pending map[uint64]int64 // blocks of leaves that ended and are not durable yet
	settled int64            // blocks durable
	shown   int64            // plain bytes, the most ever shown
}

func newPuller(run *job.Run, total int64) *puller {
	p := &puller{run: run, total: total, pending: map[uint64]int64{}}
	if run.Job.Progress != "" {
		// What cannot be read counts as nothing: only figures are lost.
		_ = json.Unmarshal([]byte(run.Job.Progress), &p.seen)
	}
	p.shown = p.seen.Done
	return p
}

// begin takes over what the writer's checkpoint remembers. What arrived after
// that checkpoint was lost and has to come again.
func (p *puller) begin(w *vault.Writer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w, p.prior = w, w.Prior()
	p.before = max(p.seen.Received, p.prior.Changed+p.prior.Repeated)
	p.prior.Repeated = p.before - p.prior.Changed
	p.prior.Moved = max(p.prior.Moved, p.seen.Moved)
	p.shown = max(p.shown, p.clip(p.prior.Changed+p.prior.Reused))
}

// clip keeps what is shown below the total: that is reached by the commit.
func (p *puller) clip(done int64) int64 {
	return min(done, max(p.total-snapferry.BlockSize, 0))
}

// settle notes a leaf that has ended.
func (p *puller) settle(leaf uint64, blocks int64) {
	p.mu.Lock()
	if leaf == transfer.Pruned {
		p.settled += blocks // the base has them, durably
	} else {
		p.pending[leaf] = blocks
	}
	p.mu.Unlock()
	p.report()
}

// durable notes the leaves a checkpoint made durable.
func (p *puller) durable(set extent.Set) {
	p.mu.Lock()
	for leaf, blocks := range p.pending {
		if set.Contains(int64(leaf)) {
			p.settled += blocks
			delete(p.pending, leaf)
		}
	}
	p.mu.Unlock()
	p.report()
}

// report gives the heartbeat what it is to remember.
func (p *puller) report() {
	p.run.Progress(copyProgress{Done: p.done(), Moved: p.counts().Moved, Received: p.received()})
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
	p.shown = max(p.shown, p.clip(p.settled*snapferry.BlockSize))
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
	return f.LeafWriter.Begin(ctx, vault.Ticket(t))
}
