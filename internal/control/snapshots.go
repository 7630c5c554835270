package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// own returns a snapshot of the account; one of another account, or one that
// was deleted, is not found.
func own(tx *meta.Tx, account snapferry.AccountID, id snapferry.SnapshotID) (meta.Snapshot, error) {
	if _, err := snapferry.ParseSnapshotID(string(id)); err != nil {
		return meta.Snapshot{}, err
	}
	s, err := tx.Snapshot(id)
	if err == nil && s.Account == account && (s.Deleted.IsZero() || s.State == snapferry.SnapshotDeleting && !s.Version.IsZero()) {
		return s, nil
	}
	if err == nil || snapferry.IsKind(err, snapferry.NotFound) {
		err = notFound(id)
	}
	return meta.Snapshot{}, err
}

func notFound(id snapferry.SnapshotID) error {
	return snapferry.Errorf(snapferry.NotFound, "there is no snapshot %s", id).WithHint("list what there is with: snapferry snapshot list --region REGION")
}

// Snapshot returns a snapshot, with its progress while it is being made.
func (r *Region) Snapshot(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) (snapferry.Snapshot, error) {
	var s meta.Snapshot
	var out snapferry.Snapshot
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		if s, err = own(tx, account, id); err == nil {
			out, err = r.shownIn(tx, s, nil)
		}
		return err
	})
	return out, err
}

// justMade returns a snapshot whose making has begun, as it is now; as it was if
// somebody has deleted it since, because it has begun all the same.
func (r *Region) justMade(ctx context.Context, account snapferry.AccountID, s meta.Snapshot) (snapferry.Snapshot, error) {
	now, err := r.Snapshot(ctx, account, s.ID)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return r.shown(s), nil
	}
	return now, err
}

// shownIn is a snapshot as users see it, with what other rows say of it; t may be
// nil.
func (r *Region) shownIn(tx *meta.Tx, s meta.Snapshot, t *turns) (snapferry.Snapshot, error) {
	out := r.shown(s)
	switch {
	case s.State == snapferry.SnapshotDeleting:
		pins, err := tx.PinsOf(s.ID)
		for _, p := range pins {
			out.PinnedBy = append(out.PinnedBy, snapferry.PinHolder{Region: p.Region, Copy: p.Copy})
		}
		return out, err
	case s.State == snapferry.SnapshotCreating && out.Progress == nil:
		var err error
		out.Progress, err = waiting(tx, s)
		return out, err
	case s.State == snapferry.SnapshotCopying && s.Copy != "" && out.Progress == nil:
		c, err := tx.Copy(s.Copy)
		if err != nil {
			return out, err
		}
		x, err := r.shownCopy(tx, c, t)
		if out.Progress, out.Queue = x.Progress, x.Queue; err != nil || len(c.Members) == 1 || x.Progress == nil {
			return out, err
		}
		i := slices.IndexFunc(c.Members, func(m meta.CopyMember) bool { return m.Snapshot == s.ID })
		out.Progress, err = r.remembered(tx, &c, c.Members[max(i, 0)])
		return out, err
	}
	return out, nil
}

// shown is a snapshot as users see it.
func (r *Region) shown(s meta.Snapshot) snapferry.Snapshot {
	out := s.Snapshot
	out.Region = r.name
	if s.State.Settled() {
		return out
	}
	r.mu.Lock()
	x := r.progress[s.ID]
	r.mu.Unlock()
	if x != nil {
		out.Progress, out.Counts = x.show(), x.counts()
	}
	return out
}

// Filter says which snapshots to list; zero fields do not filter.
type Filter struct {
	Volume string
	State  snapferry.SnapshotState
	Set    snapferry.SetID
	Limit  int
	After  snapferry.SnapshotID // those that follow this one
}

// Snapshots lists the account's snapshots, newest first.
func (r *Region) Snapshots(ctx context.Context, account snapferry.AccountID, f Filter) ([]snapferry.Snapshot, error) {
	out := []snapferry.Snapshot{}
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		mf := meta.SnapshotFilter{Volume: f.Volume, State: f.State, Set: f.Set, Limit: f.Limit}
		if f.After != "" {
			// The place of a snapshot that was deleted meanwhile is good too.
			after, err := tx.Snapshot(f.After)
			if err == nil && after.Account != account {
				err = notFound(f.After)
			}
			if err != nil {
				return err
			}
			mf.After = meta.Cursor{Created: after.Created, ID: after.ID}
		}
		rows, err := tx.Snapshots(account, mf)
		if err != nil {
			return err
		}
		var t *turns
		for _, s := range rows {
			if s.State == snapferry.SnapshotCopying && t == nil {
				if t, err = r.turns(tx); err != nil {
					return err
				}
			}
			x, err := r.shownIn(tx, s, t)
			if err != nil {
				return err
			}
			out = append(out, x)
		}
		return nil
	})
	return out, err
}

// progressTick is how often a wait looks at progress that is not in the
// metadata.
const progressTick = 200 * time.Millisecond

// Wait returns the snapshot when it has settled, when its progress has gone
// beyond done bytes, or when ctx or the limit ends, whichever comes first.
func (r *Region) Wait(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID, done int64, limit time.Duration) (snapferry.Snapshot, error) {
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	for {
		changed := r.db.Changed()
		s, err := r.Snapshot(ctx, account, id)
		if err != nil || s.State.Settled() || done >= 0 && s.Progress != nil && s.Progress.Done > done {
			return s, err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-end.C:
			return s, nil
		case <-ctx.Done():
			return s, nil
		}
	}
}

// Delete deletes a snapshot; while it is being copied here that cancels the
// copy. The answer comes at once; what only this snapshot held is freed later,
// and not before the last region that pinned it has released it.
//
// While a volume that was made from the snapshot reads what is still being copied
// it is a Conflict; Abandon deletes it then, too.
func (r *Region) Delete(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) error {
	return r.delete(ctx, account, id, false)
}

// Abandon is Delete, and puts volumes that depend on the copy into error, or breaks
// the pins of copies in other regions, which fail.
func (r *Region) Abandon(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) error {
	return r.delete(ctx, account, id, true)
}

func (r *Region) delete(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID, force bool) error {
	defer r.answers.begin()()
	var s meta.Snapshot
	var pins []meta.Pin
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		if s, err = own(tx, account, id); err != nil {
			return err
		}
		pins, err = tx.PinsOf(id)
		return err
	})
	switch {
	case err != nil:
		return err
	case force && len(pins) > 0:
		if err := r.breakPins(ctx, account, pins); err != nil {
			return err
		}
		if s.State == snapferry.SnapshotDeleting {
			return Host{r}.finishDelete(ctx, id)
		}
	case s.State == snapferry.SnapshotDeleting:
		return Host{r}.finishDelete(ctx, id) // whoever released the last pin may have failed to
	case !s.State.Settled():
		if err := r.discard(ctx, s, force); errors.Is(err, errSettled) {
			return r.delete(ctx, account, id, force)
		} else if err != nil {
			return err
		}
		// A job that was cancelled before it ran gives nothing back.
		r.mu.Lock()
		x := r.imports[id]
		delete(r.imports, id)
		delete(r.reasons, id)
		r.mu.Unlock()
		if x != nil {
			x.close()
		}
		return nil
	case s.Version.IsZero():
		return r.db.Update(ctx, func(tx *meta.Tx) error { return forget(tx, account, id) })
	case len(pins) > 0:
		if err := r.db.Update(ctx, func(tx *meta.Tx) error { return markDeleting(tx, account, id) }); err != nil {
			return err
		}
		return Host{r}.finishDelete(ctx, id) // the last pin may have ended just before
	}
	pinned, err := r.release(ctx, s)
	if pinned {
		return r.delete(ctx, account, id, force) // it takes effect with the end of the pin
	}
	return err
}

// release drops the hold of a snapshot that nobody has pinned and forgets the
// snapshot; pinned is true when somebody pinned it meanwhile.
func (r *Region) release(ctx context.Context, s meta.Snapshot) (pinned bool, err error) {
	hold := meta.Hold{Version: s.Version, Kind: vault.HoldSnapshot, Owner: string(s.ID)}
	err = r.vault.Release(ctx, hold, func(tx *meta.Tx) error {
		pins, err := tx.PinsOf(s.ID)
		if err != nil {
			return err
		}
		if pinned = len(pins) > 0; pinned {
			return snapferry.Errorf(snapferry.Exists, "snapshot %s was pinned meanwhile", s.ID)
		}
		if err := forget(tx, s.Account, s.ID); err != nil {
			return err
		}
		return freeAround(tx, s.Version)
	})
	if pinned {
		_ = r.orRepair(ctx, s.Version, err) // the record says already that the hold is dropped
		return true, nil
	}
	if snapferry.IsKind(err, snapferry.Conflict) {
		if now, err2 := r.snapshotRow(ctx, s.ID); err2 == nil && now.Version.IsZero() {
			return false, nil // somebody else has deleted it just now
		}
	}
	return false, r.orRepair(ctx, s.Version, err)
}

// orRepair returns err, with which a change of a version's holds failed, and has
// a job write the version's record again: the change may have left one that says
// what did not come about.
func (r *Region) orRepair(ctx context.Context, version snapferry.VersionID, err error) error {
	if err == nil {
		return nil
	}
	if rerr := r.db.Update(context.WithoutCancel(ctx), freeAfter(version)); rerr != nil {
		r.log.WarnContext(ctx, "a version record that was not committed stays until the next sweep or start", "version", version, "err", rerr)
	}
	return err
}

func markDeleting(tx *meta.Tx, account snapferry.AccountID, id snapferry.SnapshotID) error {
	s, err := own(tx, account, id)
	if err != nil {
		return err
	}
	s.State, s.Deleted = snapferry.SnapshotDeleting, time.Now()
	if err := tx.UpdateSnapshot(s); err != nil {
		return err
	}
	return audit(tx, account, "DeleteSnapshot", string(id), "")
}

// forget makes a snapshot invisible for ever; its row stays for the record.
func forget(tx *meta.Tx, account snapferry.AccountID, id snapferry.SnapshotID) error {
	s, err := tx.Snapshot(id)
	if err != nil {
		return err
	}
	marked, now := s.State == snapferry.SnapshotDeleting, time.Now()
	if !s.Version.IsZero() {
		if err := tx.MeterStored(s.Version, now); err != nil {
			return err
		}
	}
	s.State, s.Deleted, s.Version = snapferry.SnapshotDeleting, now, snapferry.VersionID{}
	if err := tx.UpdateSnapshot(s); err != nil || marked {
		return err
	}
	return audit(tx, account, "DeleteSnapshot", string(id), "")
}

// errSettled is the error of discard when there is nothing to end any more.
var errSettled = snapferry.Errorf(snapferry.Conflict, "the snapshot has settled meanwhile")

// discard ends the making of a snapshot, or of all those that one copy makes: they
// are gone for their owner at once, jobs clear up.
func (r *Region) discard(ctx context.Context, s meta.Snapshot, force bool) error {
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		now, err := own(tx, s.Account, s.ID)
		if err != nil {
			return err
		}
		if now.State.Settled() {
			return errSettled
		}
		if now.Copy == "" {
			version, err := unmake(tx, now, force)
			if err != nil {
				return err
			}
			return enqueueDiscard(tx, s.Account, discardPayload{Snapshot: s.ID, Versions: []string{version}})
		}
		c, err := tx.Copy(now.Copy)
		if err != nil {
			return err
		}
		return r.discardCopy(tx, c, force, "the snapshot was deleted while it was being copied")
	})
}

// CancelCopy ends a copy of the account that has not ended: it is gone with all the
// snapshots that it makes. Volumes that were made of them make it a Conflict; with
// force they are in error then.
func (r *Region) CancelCopy(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID, force bool) error {
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		c, err := ownCopy(tx, account, id)
		switch {
		case err != nil:
			return err
		case c.State == snapferry.CopyCancelled:
			return nil
		case c.State.Terminal():
			return snapferry.Errorf(snapferry.Conflict, "copy %s is %s", id, c.State)
		}
		return r.discardCopy(tx, c, force, "the copy was cancelled")
	})
}

// discardCopy ends a copy, and the making of its snapshots.
func (r *Region) discardCopy(tx *meta.Tx, c meta.Copy, force bool, why string) error {
	p := discardPayload{Snapshot: c.Snapshot, Copy: c.ID, Versions: make([]string, len(c.Members))}
	for i, m := range c.Members {
		s, err := tx.Snapshot(m.Snapshot)
		if err != nil {
			return err
		}
		if s.State.Settled() {
			continue // it failed already
		}
		if p.Versions[i], err = unmake(tx, s, force); err != nil {
			return err
		}
	}
	if err := enqueueDiscard(tx, c.Account, p); err != nil {
		return err
	}
	return r.endCopy(tx, c.ID, snapferry.EndedCancelled, snapferry.Errorf(snapferry.Cancelled, "%s", why))
}

// unmake ends the making of one snapshot, and returns the version that is to be
// aborted.
func unmake(tx *meta.Tx, s meta.Snapshot, force bool) (version string, err error) {
	if force {
		err = detach(tx, s.Version, "the copy of snapshot "+string(s.ID)+" was ended")
	} else {
		err = checkUnused(tx, s.Version, s.ID)
	}
	if err != nil {
		return "", err
	}
	if err := forget(tx, s.Account, s.ID); err != nil {
		return "", err
	}
	return s.Version.String(), cancelJobs(tx, string(s.ID))
}

// cancelJobs ends the jobs about a subject that have not ended.
func cancelJobs(tx *meta.Tx, subject string) error {
	jobs, err := tx.JobsOf(subject)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.State.Terminal() || j.Kind == jobDiscard {
			continue
		}
		if _, err := job.Cancel(tx, j.ID); err != nil {
			return err
		}
	}
	return nil
}

// Diff calls fn with the extents in which b differs from a, ascending. Both
// must be ready snapshots of the account; their sizes may differ.
func (r *Region) Diff(ctx context.Context, account snapferry.AccountID, a, b snapferry.SnapshotID, fn func(extent.Extent) error) error {
	ma, releaseA, err := r.readyMap(ctx, account, a)
	if err != nil {
		return err
	}
	defer releaseA()
	mb, releaseB, err := r.readyMap(ctx, account, b)
	if err != nil {
		return err
	}
	defer releaseB()
	size := max(ma.Size, mb.Size)
	var last extent.Extent
	err = blockmap.Diff(ctx, ma, mb, blockmap.SameDigest, func(leaf uint64, la, lb *blockmap.Node) error {
		changed := blockmap.Changed(la, lb)
		for i := range changed.All() {
			off := int64(leaf)*blockmap.LeafSpan + int64(i)*snapferry.BlockSize
			e := extent.Extent{Off: off, Len: min(snapferry.BlockSize, size-off)}
			if last.Len > 0 && last.End() == e.Off {
				last.Len += e.Len
				continue
			}
			if last.Len > 0 {
				if err := fn(last); err != nil {
					return err
				}
			}
			last = e
		}
		return nil
	})
	if err == nil && last.Len > 0 {
		err = fn(last)
	}
	return err
}

// readyMap returns the map of a ready snapshot of the account, which stays
// readable until release is called, whatever becomes of the snapshot.
func (r *Region) readyMap(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) (m blockmap.Map, release func(), err error) {
	s, err := r.ready(ctx, account, id)
	if err != nil {
		return m, nil, err
	}
	if m, release, err = r.reading(ctx, s.Version); err != nil {
		return m, nil, r.deleted(ctx, id, err)
	}
	return m, release, nil
}

// reading returns the map of a version, which stays until release is called.
func (r *Region) reading(ctx context.Context, version snapferry.VersionID) (m blockmap.Map, release func(), err error) {
	if release, err = r.vault.Reading(ctx, version, freeAfter(version)); err != nil {
		return m, nil, err
	}
	if m, err = r.vault.MapOf(ctx, version); err != nil {
		release()
		return m, nil, err
	}
	return m, release, nil
}

// deleted makes an error of reading a snapshot, without a hold of one's own,
// NotFound if the snapshot was deleted meanwhile.
func (r *Region) deleted(ctx context.Context, id snapferry.SnapshotID, err error) error {
	if err == nil {
		return nil
	}
	now, rerr := r.snapshotRow(ctx, id)
	switch {
	case rerr == nil && now.Version.IsZero():
		return snapferry.Errorf(snapferry.NotFound, "snapshot %s was deleted", id)
	case snapferry.IsKind(err, snapferry.NotFound):
		return snapferry.Errorf(snapferry.Corrupt, "snapshot %s is ready, but the metadata lacks its version: %w", id, err).WithHint("see what else is wrong with: snapferry fsck --deep")
	}
	return err
}

// ready returns a snapshot that can be read; Conflict when it cannot yet.
func (r *Region) ready(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) (s meta.Snapshot, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		s, err = own(tx, account, id)
		return err
	})
	if err != nil {
		return s, err
	}
	return s, checkReady(s)
}

func checkReady(s meta.Snapshot) error {
	if s.State == snapferry.SnapshotReady {
		return nil
	}
	e := snapferry.Errorf(snapferry.Conflict, "snapshot %s is %s, not ready", s.ID, s.State)
	if !s.State.Settled() {
		return e.WithHint("wait for it with: snapferry snapshot wait %s", s.ID)
	}
	return e
}
