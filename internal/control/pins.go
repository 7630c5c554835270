package control

import (
	"context"
	"errors"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// A pin ends when the copy that holds it releases it; when its region, asked by
// itself at each start and every hour what it holds here, does not know the copy or
// says that it has ended; or when somebody who may breaks it. It never ends by the
// time that has passed: a region that cannot be reached may still need it.

// heldAtOnce is how many pins one answer lists.
const heldAtOnce = 1000

// Pins lists the pins that the caller's region holds here, at most 1000 of those
// that follow one.
func (h Host) Pins(ctx context.Context, c transfer.Caller, after string) (all []transfer.Held, err error) {
	if c.Region != h.name && h.peers[c.Region] == nil {
		return nil, snapferry.Errorf(snapferry.Denied, "region %s does not know region %s", h.name, c.Region)
	}
	err = h.db.View(ctx, func(tx *meta.Tx) error {
		rows, err := tx.AllPins()
		for _, p := range rows {
			if p.Region == c.Region && p.ID > after && len(all) < heldAtOnce {
				all = append(all, transfer.Held{Handle: transfer.Handle{Pin: p.ID, Snapshot: p.Snapshot}, Copy: p.Copy})
			}
		}
		return err
	})
	return all, err
}

const (
	// disownEvery is how often a region looks what it holds elsewhere, and
	// disownAgain when a region could not be asked.
	disownEvery = time.Hour
	disownAgain = 30 * time.Second
)

// disownAll ends, now and every hour until ctx ends, the copies that were left
// reserved, and releases what this region holds in others for copies that it does
// not make any more.
func (r *Region) disownAll(ctx context.Context) {
	for {
		next := disownEvery
		if err := r.abandonReserved(ctx, time.Now().Add(-reserveTime)); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "end copies that nobody came to admit", "err", err)
			next = disownAgain
		}
		for name, as := range r.peers {
			if err := r.disown(ctx, as("")); err != nil && ctx.Err() == nil {
				r.log.DebugContext(ctx, "look what is held in another region", "region", name, "err", err)
				next = disownAgain
			}
		}
		if wait(ctx, nil, next); ctx.Err() != nil {
			return
		}
	}
}

// disown releases the pins of copies that have ended, or that nobody knows: an id is
// in the metadata before its pin is asked for.
func (r *Region) disown(ctx context.Context, from transfer.Remote) error {
	for after := ""; ; {
		held, err := from.Pins(ctx, after)
		if err != nil || len(held) == 0 {
			return err
		}
		for _, x := range held {
			after = x.Pin
			c, err := r.copyRow(ctx, x.Copy)
			if err == nil && !c.State.Terminal() {
				continue
			}
			if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
			if err := from.Release(ctx, x.Handle, c.Ending); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
			r.log.InfoContext(ctx, "released what a copy held that has ended", "copy", x.Copy, "pin", x.Pin, "snapshot", x.Snapshot)
		}
	}
}

// mayOperate reports, as Denied, that an account may not change what belongs to the
// region.
func (r *Region) mayOperate(tx *meta.Tx, account snapferry.AccountID) error {
	a, err := tx.Account(account)
	if err == nil && !r.operators[a.Name] {
		err = snapferry.Errorf(snapferry.Denied, "account %s is not an operator of region %s", a.Name, r.name).
			WithHint("give the account operator: true in the configuration of the region")
	}
	return err
}

// Pins lists what other regions hold here: of the account's snapshots, or of all for
// an operator.
func (r *Region) Pins(ctx context.Context, account snapferry.AccountID) ([]snapferry.Pin, error) {
	pins := []snapferry.Pin{}
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		all := r.mayOperate(tx, account) == nil
		rows, err := tx.AllPins()
		if err != nil {
			return err
		}
		for _, p := range rows {
			s, err := tx.Snapshot(p.Snapshot)
			if err != nil {
				return err
			}
			if all || s.Account == account {
				pins = append(pins, snapferry.Pin{
					ID: p.ID, Snapshot: p.Snapshot, Account: s.Account, Region: p.Region, Copy: p.Copy, Created: p.Created, Seen: p.Seen,
					Deleting: s.State == snapferry.SnapshotDeleting,
				})
			}
		}
		return nil
	})
	return pins, err
}

// BreakPin takes a pin away from the region that holds it, for an operator: that
// region is gone for ever. If it is not, its copy takes the pin again while the
// snapshot is there, and fails when it is not.
func (r *Region) BreakPin(ctx context.Context, account snapferry.AccountID, id string) error {
	var p meta.Pin
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		if err = r.mayOperate(tx, account); err == nil {
			p, err = tx.Pin(id)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := r.breakPin(ctx, account, p); err != nil {
		return err
	}
	return Host{r}.finishDelete(ctx, p.Snapshot)
}

// breakPin ends a pin against the will of who holds it.
func (r *Region) breakPin(ctx context.Context, account snapferry.AccountID, p meta.Pin) error {
	hold := meta.Hold{Version: p.Version, Kind: vault.HoldPin, Owner: p.ID}
	err := r.vault.Release(ctx, hold, func(tx *meta.Tx) error {
		if err := tx.DeletePin(p.ID); err != nil {
			return err
		}
		if err := audit(tx, account, "BreakPin", string(p.Snapshot), string(p.Region)+"/"+string(p.Copy)); err != nil {
			return err
		}
		return freeAround(tx, p.Version)
	})
	if snapferry.IsKind(err, snapferry.Conflict) {
		// One that has ended just now, with the version, is no conflict.
		verr := r.db.View(ctx, func(tx *meta.Tx) error { _, err := tx.Pin(p.ID); return err })
		if snapferry.IsKind(verr, snapferry.NotFound) {
			return verr
		}
	}
	return r.orRepair(ctx, p.Version, err)
}

// breakPins ends all pins of a snapshot.
func (r *Region) breakPins(ctx context.Context, account snapferry.AccountID, pins []meta.Pin) error {
	for _, p := range pins {
		if err := r.breakPin(ctx, account, p); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
	}
	return nil
}

// sourceOf returns what the region that a copy reads from says of one of its sources.
func sourceOf(ctx context.Context, from transfer.Remote, c *meta.Copy, id snapferry.SnapshotID) (d transfer.Description, err error) {
	d, err = from.Describe(ctx, id)
	if snapferry.IsKind(err, snapferry.NotFound) {
		err = &endedError{
			snapferry.Errorf(snapferry.NotFound, "snapshot %s was deleted in region %s while it was being copied", id, c.Source.Region),
			snapferry.EndedSourceDeleted,
		}
	}
	return d, err
}

// handleOf is by what right a copy reads a source.
func handleOf(m meta.CopyMember) transfer.Handle {
	return transfer.Handle{Pin: m.Pin, Snapshot: m.Source}
}

// pin takes the pin of a copy on a source, or finds it.
func (r *Region) pin(ctx context.Context, from transfer.Remote, c *meta.Copy, id snapferry.SnapshotID) (h transfer.Handle, err error) {
	var region meta.Region
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		region, err = tx.Region()
		return err
	})
	if err != nil {
		return h, err
	}
	return from.Pin(ctx, transfer.Pin{Snapshot: id, Copy: c.ID, Incarnation: region.Incarnation})
}

const (
	// renewEvery is how often a copy under way renews its pin.
	renewEvery = 10 * time.Second
	// renewTime is how long the answer to that may take.
	renewTime = 10 * time.Second
)

// errTakenAgain ends a run whose pin was broken: what was asked for before may fail yet
// for that, and the next run asks again.
var errTakenAgain = snapferry.Errorf(snapferry.Unavailable, "the pin of the copy was broken, and taken again")

// renewing renews the pins of a copy until it is stopped, and ends the context with
// the error of renew when there is one.
func (r *Region) renewing(ctx context.Context, from transfer.Remote, p *puller) (_ context.Context, stop func()) {
	ctx, end := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for wait(ctx, nil, renewEvery); ctx.Err() == nil; wait(ctx, nil, renewEvery) {
			p.pinning.Lock()
			if err := r.renew(ctx, from, &p.copy); err != nil {
				end(err)
			}
			p.pinning.Unlock()
		}
	}()
	return ctx, func() { end(nil); <-ended }
}

// renew renews the pins of a copy, and takes those again that were broken. Its error
// is errTakenAgain, or an endedError when there is nothing left to pin or to pin it for.
// A source that cannot be asked is none.
func (r *Region) renew(ctx context.Context, from transfer.Remote, c *meta.Copy) error {
	ctx, stop := context.WithTimeout(ctx, renewTime)
	defer stop()
	for _, m := range c.Members {
		err := from.Renew(ctx, handleOf(m))
		if snapferry.IsKind(err, snapferry.NotFound) {
			err = r.repin(ctx, from, c, m.Source)
		}
		if endsRun(err) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			r.log.DebugContext(ctx, "renew the pin of a copy", "copy", c.ID, "err", err)
		}
	}
	return nil
}

// endsRun reports whether an error of the pins of a copy ends its run.
func endsRun(err error) bool {
	var gone *endedError
	return errors.As(err, &gone) || errors.Is(err, errTakenAgain)
}

// repin takes a pin of a copy again that was broken: errTakenAgain when it has. An
// endedError says that the source was deleted, or that the copy has ended.
func (r *Region) repin(ctx context.Context, from transfer.Remote, c *meta.Copy, id snapferry.SnapshotID) error {
	if _, err := sourceOf(ctx, from, c, id); err != nil {
		return err
	}
	h, err := r.pin(ctx, from, c, id)
	if err == nil {
		return r.keepsOrReleases(ctx, from, c.ID, h)
	}
	if _, gone := sourceOf(ctx, from, c, id); gone != nil {
		return gone // it is deleted just now
	}
	return snapferry.Errorf(snapferry.Unavailable, "the pin of the copy was broken, and could not be taken again: %w", err)
}

// keepsOrReleases returns errTakenAgain when a copy whose pin was taken again just
// now needs it. One that another process, or another request, has ended meanwhile may
// have released its pins before that: nobody else would release this one.
func (r *Region) keepsOrReleases(ctx context.Context, from transfer.Remote, id snapferry.CopyID, h transfer.Handle) error {
	// What ended the copy may have ended the context of who took the pin, too.
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
	defer stop()
	c, err := r.copyRow(ctx, id)
	if err != nil || !c.State.Terminal() {
		return errTakenAgain
	}
	if err := from.Release(ctx, h, c.Ending); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		r.log.DebugContext(ctx, "a pin of a copy that has ended stays until the next look", "copy", id, "err", err)
	}
	return &endedError{snapferry.Errorf(snapferry.Cancelled, "copy %s has ended", id), c.Ending}
}

// blame looks for the reason of an error that came while a copy was reading a source:
// when its pin was broken, it takes a new one, if there is something left to pin.
func (r *Region) blame(ctx context.Context, from transfer.Remote, c *meta.Copy, m meta.CopyMember, err error) error {
	if !snapferry.IsKind(err, snapferry.NotFound) || ctx.Err() != nil {
		return err
	}
	err2 := from.Renew(ctx, handleOf(m))
	if err2 == nil {
		return err // it is not that
	}
	if snapferry.IsKind(err2, snapferry.NotFound) {
		err2 = r.repin(ctx, from, c, m.Source)
	}
	return err2
}

// blameRun is blame for a run, whose ctx ends for what a renewal of the pins finds.
func (r *Region) blameRun(ctx context.Context, from transfer.Remote, p *puller, m meta.CopyMember, err error) error {
	p.pinning.Lock()
	defer p.pinning.Unlock()
	if cause := context.Cause(ctx); endsRun(cause) {
		return cause
	}
	return r.blame(ctx, from, &p.copy, m, err)
}
