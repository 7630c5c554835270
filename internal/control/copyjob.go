package control

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

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
	if p != nil && c.State != snapferry.CopyDone {
		p.shut()
	}
	if c.State == snapferry.CopyFailed {
		if err == nil {
			err = failureOf(c)
		}
		for _, m := range c.Members {
			if err2 := r.failSnapshot(ctx, m.Snapshot, err); snapferry.IsKind(err2, snapferry.Unavailable) {
				return err2
			}
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

// movedBy is what a copy has moved for each of its snapshots, over all its runs.
func movedBy(p *puller, j job.Job) []int64 {
	if p != nil {
		return p.moved()
	}
	seen := readProgress(j)
	return seen.moved()
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
	if ended := (*endedError)(nil); errors.As(err, &ended) {
		return ctx.Err() != nil
	}
	// A key that may not be used now may be enabled again.
	return snapferry.IsKind(err, snapferry.Unavailable) || snapferry.IsKind(err, snapferry.KeyUnusable) || ctx.Err() != nil
}

func (r *Region) copyRow(ctx context.Context, id snapferry.CopyID) (c meta.Copy, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		c, err = tx.Copy(id)
		return err
	})
	return c, err
}

// releaseOf releases the pins of a copy that has ended. One that is gone is no
// error.
func (r *Region) releaseOf(ctx context.Context, id snapferry.CopyID) error {
	c, err := r.copyRow(ctx, id)
	if err != nil || !c.State.Terminal() {
		return err
	}
	from, err := r.remote(ctx, c.Source.Region, c.Account)
	if err != nil {
		return err
	}
	for _, m := range c.Members {
		if err := r.releaseMember(ctx, from, &c, m); err != nil {
			return err
		}
	}
	return nil
}

func (r *Region) releaseMember(ctx context.Context, from transfer.Remote, c *meta.Copy, m meta.CopyMember) (err error) {
	h := handleOf(m)
	if m.Pin == "" {
		// Reserved, and the answer to the pin was lost: pinning is idempotent.
		h, err = r.pin(ctx, from, c, m.Source)
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

// pull moves the content and seals the versions.
func (r *Region) pull(ctx context.Context, p *puller) error {
	run, c := p.run, &p.copy
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyPlanning, nil); err != nil {
		return err
	}
	if err := r.db.View(ctx, p.resume); err != nil {
		return err
	}
	for _, m := range p.parts {
		m.early = r.earlyOf(m.row.Version)
	}
	r.setPulling(c.ID, p.running())
	defer r.setPulling(c.ID, nil)
	for _, m := range p.parts {
		r.setRunning(m.row.ID, m.running(p.pulse.base))
		defer r.setRunning(m.row.ID, nil)
	}
	from, err := r.remote(ctx, c.Source.Region, c.Account)
	if err != nil {
		return err
	}
	for _, m := range p.parts {
		if err := r.openPart(ctx, p, m, from); err != nil {
			return err
		}
		defer m.w.Close()
		if m.lend = r.lendTo(ctx, p, m); m.lend != nil {
			defer m.lend.close()
			m.cfg.Donor = m.lend.donor()
		}
	}
	pinned, stop := r.renewing(ctx, from, p)
	defer stop()
	if err := r.planCopyRun(pinned, p, from); err != nil {
		return err
	}
	for _, m := range p.parts {
		if err := r.movePart(pinned, p, m, from); err != nil {
			return err
		}
	}
	stop()
	if err := r.renew(ctx, from, c); err != nil {
		return err
	}
	return r.commitCopy(ctx, p)
}

// openPart opens the version of a part, and takes over what earlier runs left.
func (r *Region) openPart(ctx context.Context, p *puller, m *part, from transfer.Remote) (err error) {
	run, id := p.run, p.copy.ID
	if m.d, err = sourceOf(ctx, from, &p.copy, m.member.Source); err != nil {
		return err
	}
	if err := r.rebase(ctx, run, &p.copy, m); err != nil {
		return err
	}
	fence := func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		now, err := tx.Copy(id)
		if err == nil && now.State.Terminal() {
			err = snapferry.Errorf(snapferry.Cancelled, "copy %s was cancelled", id)
		}
		return err
	}
	w, err := r.vault.Write(ctx, m.row.Version, vault.WriteConfig{Job: run.Job.ID, Token: run.Token, Fence: fence, Checkpoints: true, Counts: m.counts, Durable: m.durable})
	if err != nil {
		return err
	}
	m.begin(w)
	chain := r.limits.chain(r.name, &p.copy)
	m.cfg = transfer.Config{
		Info: m.d.Info, Source: watched{from.Source(handleOf(m.member)), p.pulse}, Sink: sink{w}, Stats: &m.stats, Memory: r.memory,
		Limit: func(ctx context.Context, n int) error { return p.pulse.pass(ctx, chain, itemBytes+n) },
	}
	return nil
}

// lendTo returns what a part may take content from; nil when all of it is to cross.
func (r *Region) lendTo(ctx context.Context, p *puller, m *part) *donors {
	if p.copy.Full {
		return nil
	}
	ds := r.donorsOf(ctx, p.copy.Account, p.copy.Source.Region, m.d, m.w.Chain())
	ds.beat = p.pulse.beat
	return ds
}

// planCopyRun finds out what is to cross in this run, and begins to move it.
func (r *Region) planCopyRun(ctx context.Context, p *puller, from transfer.Remote) error {
	var plans []snapferry.Plan
	for _, m := range p.parts {
		planner := transfer.Planner{Info: m.cfg.Info, Source: m.cfg.Source, Base: m.w.Base(), Donor: m.cfg.Donor, Limit: m.cfg.Limit}
		if err := planner.Run(ctx, func(transfer.Step) error { return nil }); err != nil {
			return r.blameRun(ctx, from, p, m.member, err)
		}
		plan := planned(m.cfg.Info, planner.Totals, m.row.Parent, m.lend.used(), p.copy.Full)
		m.expect(plan.MoveBytes)
		plans = append(plans, plan)
	}
	p.report()
	sum := planSum(plans)
	return r.moveCopy(ctx, p.run, p.copy.ID, snapferry.CopyMoving, &sum)
}

// movePart moves the content of one snapshot.
func (r *Region) movePart(ctx context.Context, p *puller, m *part, from transfer.Remote) error {
	cfg := m.cfg
	if r.files.Caches != nil {
		keys, err := r.layerKeys(ctx, m.w.Chain())
		if err != nil {
			return err
		}
		defer r.files.Caches.Hold(m.row.Version, keys)()
		cfg.Near = near{r.files.Caches, m.row.Version}
	}
	err := transfer.Run(ctx, cfg)
	if err == nil && len(p.parts) > 1 {
		return m.w.Checkpoint(ctx) // the commit may be far away
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil || passes(err) {
		// What has arrived is kept for the next run, if it can be.
		_ = m.w.Checkpoint(context.WithoutCancel(ctx))
	}
	return r.blameRun(ctx, from, p, m.member, err)
}

// commitCopy seals the versions, and makes the snapshots ready, all at once.
func (r *Region) commitCopy(ctx context.Context, p *puller) error {
	id := p.copy.ID
	if err := r.moveCopy(ctx, p.run, id, snapferry.CopyCommitting, nil); err != nil {
		return err
	}
	all := make([]vault.Sealing, len(p.parts))
	for i, m := range p.parts {
		holds, err := r.baseHolds(ctx, m.row.Version)
		if err != nil {
			return err
		}
		all[i] = vault.Sealing{Writer: m.w, Config: vault.SealConfig{
			Want: m.d.Digest, Also: holds,
			Hold: meta.Hold{Version: m.row.Version, Kind: vault.HoldSnapshot, Owner: string(m.row.ID), Created: time.Now()},
			Commit: func(tx *meta.Tx, done vault.Sealed) error {
				m.early.shut()
				counts := m.counts()
				counts.Repeated = max(counts.Repeated, m.received()+counts.Lent-counts.Changed)
				if err := r.settleReady(tx, m.row.ID, done, counts); err != nil {
					return err
				}
				if err := wakeHeads(tx, m.row.Version, len(holds)); err != nil || i > 0 {
					return err
				}
				// All of this is one transaction.
				if err := r.endCopy(tx, id, snapferry.EndedDone, nil); err != nil {
					return err
				}
				return meterCopy(tx, id, p.moved())
			},
		}}
	}
	_, err := vault.SealAll(ctx, all)
	for _, m := range p.parts {
		if err == nil {
			r.endEarly(m.row.Version)
		}
		m.early.reopen() // who waits finds the version sealed or, if that failed, open
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

// rebase chooses the base of a part again when the turn of its copy comes and nothing
// has been written for it: a copy it waited for may have brought a better one.
func (r *Region) rebase(ctx context.Context, run *job.Run, c *meta.Copy, m *part) error {
	if c.Full {
		return nil
	}
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		s, err := tx.Snapshot(m.member.Snapshot)
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
		base, ok, err := chooseBase(tx, vol, m.d)
		if err != nil || !ok || base.ID == row.Parent {
			return err
		}
		if err := vault.Reattach(tx, row.ID, base.ID); err != nil {
			return err
		}
		s.Parent = visibleParent(tx, base.ID)
		m.row.Parent = s.Parent
		return tx.UpdateSnapshot(s)
	})
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
