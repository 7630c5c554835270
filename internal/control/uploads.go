package control

import (
	"context"
	"encoding/json"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// VolumeSnapshotRequest asks for snapshots of live volumes.
type VolumeSnapshotRequest struct {
	Volumes []snapferry.VolumeID
	Labels
}

// maxSet is how many volumes one snapshot may be of.
const maxSet = 32

// SnapshotVolumes takes a snapshot of each volume, all at the same moment, and
// returns them, a set, creating: what was written before is in them, nothing that is
// written after. There are all of them or, with an error, none. The writes go on
// meanwhile; what has changed is uploaded in the background.
func (r *Region) SnapshotVolumes(ctx context.Context, account snapferry.AccountID, q VolumeSnapshotRequest) ([]snapferry.Snapshot, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	if len(q.Volumes) == 0 || len(q.Volumes) > maxSet {
		return nil, snapferry.Errorf(snapferry.Invalid, "a snapshot of %d volumes; 1 to %d are possible", len(q.Volumes), maxSet)
	}
	// Nobody takes a volume away from here on. Always in the same order, because
	// who waits to do so keeps others out.
	sorted := slices.Sorted(slices.Values(q.Volumes))
	for i, id := range sorted {
		if i > 0 && id == sorted[i-1] {
			return nil, snapferry.Errorf(snapferry.Invalid, "volume %s is named twice", id)
		}
		l := r.live(id)
		l.use.RLock()
		defer l.use.RUnlock()
	}
	return r.snapshotHeld(ctx, account, q)
}

// snapshotHeld is SnapshotVolumes for volumes that nobody takes away meanwhile.
func (r *Region) snapshotHeld(ctx context.Context, account snapferry.AccountID, q VolumeSnapshotRequest) ([]snapferry.Snapshot, error) {
	vols := make([]*head.Volume, len(q.Volumes))
	for i, id := range q.Volumes {
		var err error
		if vols[i], err = r.usable(ctx, account, id); err != nil {
			return nil, err
		}
	}
	if err := r.db.View(ctx, func(tx *meta.Tx) error { return checkPending(tx, q.Volumes) }); err != nil {
		return nil, err
	}
	sizes := make([]int64, len(vols))
	for i, v := range vols {
		sizes[i] = v.Size()
	}
	frozen, err := head.Freeze(ctx, vols...)
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, v := range vols {
		g.Go(func() error { return v.Settle(gctx, frozen[i]) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return r.recordSnapshots(ctx, account, q, frozen, sizes)
}

func checkPending(tx *meta.Tx, ids []snapferry.VolumeID) error {
	for _, id := range ids {
		uploads, err := tx.Uploads(id)
		if err != nil {
			return err
		}
		if len(uploads) >= maxPending {
			return snapferry.Errorf(snapferry.Full, "%d snapshots of volume %s are under way already", len(uploads), id).
				WithHint("wait for one of them with: snapferry snapshot wait %s", uploads[0].Snapshot)
		}
	}
	return nil
}

// recordSnapshots makes the snapshots of frozen, durable layers visible, all in
// one transaction.
func (r *Region) recordSnapshots(ctx context.Context, account snapferry.AccountID, q VolumeSnapshotRequest, frozen []uint64, sizes []int64) ([]snapferry.Snapshot, error) {
	rows := make([]meta.Snapshot, len(frozen))
	set := snapferry.SetID("")
	if len(frozen) > 1 {
		set = snapferry.NewSetID()
	}
	err := r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := checkPending(tx, q.Volumes); err != nil {
			return err
		}
		for i, id := range q.Volumes {
			h, err := ownVolume(tx, account, id)
			if err != nil {
				return err
			}
			if err := checkUsable(h); err != nil {
				return err
			}
			s := q.snapshot(account, sizes[i])
			s.State, s.VolumeID, s.Volume = snapferry.SnapshotCreating, id, h.Name
			if s.Set = set; set != "" {
				s.SetSize = len(frozen)
			}
			rows[i] = s
			if err := tx.InsertSnapshot(s); err != nil {
				return err
			}
			if err := tx.InsertUpload(meta.Upload{Snapshot: s.ID, Volume: id, Layer: frozen[i]}); err != nil {
				return err
			}
			if err := audit(tx, account, "SnapshotVolume", string(s.ID), string(id)); err != nil {
				return err
			}
			if err := enqueueVolumeWork(tx, h); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]snapferry.Snapshot, len(rows))
	for i, s := range rows {
		out[i] = r.shown(s)
	}
	return out, nil
}

// runUpload is the job that makes versions of the frozen layers of a volume, one
// after the other, the oldest first. It is run again as a whole.
func (r *Region) runUpload(ctx context.Context, run *job.Run) error {
	l := r.live(snapferry.VolumeID(run.Job.Subject))
	r.mu.Lock()
	l.more = l.uploading // the other one goes on with it
	busy := l.uploading
	l.uploading = true
	r.mu.Unlock()
	for !busy {
		err := again(r.uploadAll(ctx, run))
		r.mu.Lock()
		l.uploading = l.more && err == nil
		busy, l.more = !l.uploading, false
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Region) uploadAll(ctx context.Context, run *job.Run) error {
	id := snapferry.VolumeID(run.Job.Subject)
	for {
		u, s, ok, err := r.nextUpload(ctx, id)
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if !ok {
			return r.endUploads(ctx, id)
		}
		if open, err := r.baseOpen(ctx, id); err != nil || open {
			return err // the end of the copy enqueues this again
		}
		h, err := r.Live(ctx, id)
		if err != nil {
			return err
		}
		err = r.upload(ctx, run, h, u, s)
		if err == nil || ctx.Err() == nil && r.settled(ctx, s.ID) {
			continue // or it was deleted meanwhile
		}
		if retry(ctx, err) || ctx.Err() != nil {
			return err
		}
		// failSnapshot returns the reason, or why it could not be settled yet.
		if ferr := r.failSnapshot(ctx, s.ID, err); !r.settled(ctx, s.ID) {
			return ferr
		}
	}
}

// baseOpen reports whether the base of a volume is still being copied.
func (r *Region) baseOpen(ctx context.Context, id snapferry.VolumeID) (open bool, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		h, err := tx.Head(id)
		if err != nil || h.Base.IsZero() {
			return err
		}
		row, err := tx.Version(h.Base)
		open = row.State == snapferry.VersionOpen
		return err
	})
	return open, err
}

// endUploads tells a volume that is open of its base, if an upload could not, and
// has its layers merged beside everything else.
func (r *Region) endUploads(ctx context.Context, id snapferry.VolumeID) error {
	l := r.live(id)
	l.use.RLock() // nobody puts it back meanwhile
	defer l.use.RUnlock()
	l.mu.Lock()
	h := l.head
	l.mu.Unlock()
	if h == nil {
		return nil // whoever opens it does
	}
	row, _, err := r.idleHead(ctx, id)
	if err != nil || checkUsable(row) != nil {
		return err
	}
	if err := r.catchUp(ctx, row, h); err != nil {
		return err
	}
	r.afterwards(func(ctx context.Context) {
		if err := h.Tidy(ctx); err != nil {
			r.log.WarnContext(ctx, "merge layers", "volume", id, "err", err)
		}
	})
	return nil
}

func (r *Region) settled(ctx context.Context, id snapferry.SnapshotID) bool {
	s, err := r.snapshotRow(ctx, id)
	return err == nil && s.State.Settled()
}

// nextUpload returns the oldest snapshot of a volume that is to be uploaded. When
// there is none, whatever waited for that is enqueued in the same transaction.
func (r *Region) nextUpload(ctx context.Context, id snapferry.VolumeID) (u meta.Upload, s meta.Snapshot, ok bool, err error) {
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		ok = false
		uploads, err := tx.Uploads(id)
		if err != nil {
			return err
		}
		for _, u = range uploads {
			if s, err = tx.Snapshot(u.Snapshot); err != nil {
				return err
			}
			if !s.State.Settled() {
				ok = true
				return nil
			}
			if err := tx.DeleteUpload(u.Snapshot); err != nil {
				return err
			}
		}
		h, err := tx.Head(id)
		if err != nil {
			return err
		}
		return enqueueVolumeWork(tx, h)
	})
	return u, s, ok, err
}

// upload makes the version of one snapshot.
func (r *Region) upload(ctx context.Context, run *job.Run, h *head.Volume, u meta.Upload, s meta.Snapshot) error {
	c, err := h.Changes(ctx, u.Layer, s.Size)
	if err != nil {
		return err
	}
	var shown atomic.Int64 // never goes back
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		done, err := uploaded(tx, u, s)
		shown.Store(done)
		return err
	})
	if err != nil {
		return err
	}
	// From here on whoever deletes the snapshot waits before clearing up.
	r.setRunning(s.ID, &running{started: time.Now(), total: s.Size, done: shown.Load, counts: noCounts})
	defer r.setRunning(s.ID, nil)
	version, err := r.beginUpload(ctx, run, u, s)
	if err != nil {
		return err
	}
	fence := func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		now, err := tx.Snapshot(s.ID)
		if err == nil && now.State.Settled() {
			err = snapferry.Errorf(snapferry.Conflict, "snapshot %s was deleted", s.ID)
		}
		return err
	}
	var w *vault.Writer
	var st vault.ImportStats
	counts := func() snapferry.Counts {
		n := w.Prior()
		return snapferry.Counts{Read: n.Read + st.Read.Load(), Changed: n.Changed + w.Changed(), Stored: n.Stored + w.Stored()}
	}
	w, err = r.vault.Write(ctx, version, vault.WriteConfig{
		Job: run.Job.ID, Token: run.Token, Fence: fence, Checkpoints: true, Counts: counts,
		Durable: func(snapferry.Counts) { shown.Store(max(shown.Load(), clip(w.Reached(), s.Size))) },
	})
	if err != nil {
		return err
	}
	defer w.Close()
	r.setRunning(s.ID, &running{started: time.Now(), total: s.Size, done: shown.Load, counts: counts})
	if err := w.Update(ctx, c, &st); err != nil {
		if retry(ctx, err) {
			_ = w.Checkpoint(context.WithoutCancel(ctx)) // for the next run, if it can be
		}
		return err
	}
	now := time.Now()
	_, err = w.Seal(ctx, vault.SealConfig{
		Hold: meta.Hold{Version: version, Kind: vault.HoldSnapshot, Owner: string(s.ID), Created: now},
		Also: []meta.Hold{volumeHold(version, u.Volume)},
		Commit: func(tx *meta.Tx, done vault.Sealed) error {
			row, err := tx.Head(u.Volume)
			if err != nil {
				return err
			}
			row.Base, row.Layer = version, u.Layer
			if err := tx.UpdateHead(row); err != nil {
				return err
			}
			if err := tx.DeleteUpload(s.ID); err != nil {
				return err
			}
			n := counts()
			n.Present, n.Reused = done.Present, max(done.Present-n.Changed, 0)
			return r.settleReady(tx, s.ID, done, n)
		},
	})
	if err != nil {
		return err
	}
	if err := h.Sealed(ctx, u.Layer, version); err != nil {
		return again(err) // the volume still reads its old base, which it holds
	}
	r.files.Caches.Trim() // from now on what was uploaded counts
	r.dropBases(ctx, u.Volume)
	return nil
}

func noCounts() snapferry.Counts { return snapferry.Counts{} }

// uploaded is the plain bytes of a disk up to which a snapshot is uploaded durably, as
// far as the metadata knows: nothing else is shown, so that whoever goes on from there
// shows no less.
func uploaded(tx *meta.Tx, u meta.Upload, s meta.Snapshot) (int64, error) {
	c, err := tx.Checkpoint(s.Version)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return u.Done, nil
	}
	if err != nil {
		return 0, err
	}
	end, err := vault.Reached(c, s.Size)
	return max(u.Done, clip(end, s.Size)), err
}

// waiting is the progress of the upload of a snapshot that no run is about now; nil
// when it is not that of a live volume.
func waiting(tx *meta.Tx, s meta.Snapshot) (*snapferry.Progress, error) {
	all, err := tx.Uploads(s.VolumeID)
	for _, u := range all {
		if u.Snapshot == s.ID {
			done, err := uploaded(tx, u, s)
			return &snapferry.Progress{Total: s.Size, Done: done, Started: s.Created}, err
		}
	}
	return nil, err
}

// beginUpload makes the open version of a snapshot, over the base of its volume.
// What an earlier run began is gone on with, or aborted when the base is another
// one since.
func (r *Region) beginUpload(ctx context.Context, run *job.Run, u meta.Upload, s meta.Snapshot) (id snapferry.VersionID, err error) {
	if !s.Version.IsZero() {
		var same bool
		err := r.db.View(ctx, func(tx *meta.Tx) error {
			h, err := tx.Head(u.Volume)
			if err != nil {
				return err
			}
			row, err := tx.Version(s.Version)
			if snapferry.IsKind(err, snapferry.NotFound) {
				return nil
			}
			same = row.State == snapferry.VersionOpen && row.Parent == h.Base
			return err
		})
		if err != nil || same {
			return s.Version, err
		}
		// What was shown of it stays so.
		err = r.db.Update(ctx, func(tx *meta.Tx) error {
			if err := run.Check(tx); err != nil {
				return err
			}
			done, err := uploaded(tx, u, s)
			if err != nil {
				return err
			}
			return tx.SetUploadDone(s.ID, done)
		})
		if err != nil {
			return id, err
		}
		if err := r.vault.Abort(ctx, s.Version, func(tx *meta.Tx) error {
			now, err := tx.Snapshot(s.ID)
			if err != nil || now.Version != s.Version {
				return err
			}
			now.Version = snapferry.VersionID{}
			if err := tx.UpdateSnapshot(now); err != nil {
				return err
			}
			return freeAround(tx, s.Version)
		}); err != nil {
			return id, again(err)
		}
	}
	id = snapferry.NewVersionID()
	return id, r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		now, err := tx.Snapshot(s.ID)
		if err != nil {
			return err
		}
		if now.State.Settled() {
			return snapferry.Errorf(snapferry.Conflict, "snapshot %s is %s", s.ID, now.State)
		}
		h, err := tx.Head(u.Volume)
		if err != nil {
			return err
		}
		row := meta.Version{ID: id, Chain: h.Chain, Volume: u.Volume, Parent: h.Base, Size: s.Size}
		if row.Sequence, err = nextSequence(tx, u.Volume); err != nil {
			return err
		}
		if err := vault.Attach(tx, row); err != nil {
			return err
		}
		if now.Version = id; !h.Base.IsZero() {
			now.Parent = visibleParent(tx, h.Base)
		}
		return tx.UpdateSnapshot(now)
	})
}

// RollbackRequest asks for a volume to be put back to a snapshot.
type RollbackRequest struct {
	Snapshot snapferry.SnapshotID
	NoSafety bool // do not take a snapshot of what it has now
}

// RollbackVolume puts a volume that is not exported back to a snapshot of its
// family: one whose content it descends from, or that was made of it. What it has
// now is kept as a snapshot, unless that is declined; the volume can be used again
// when that is ready. Its size stays.
func (r *Region) RollbackVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, q RollbackRequest) (snapferry.Volume, error) {
	// Nobody may export it, and write, between its snapshot and the end.
	l := r.live(id)
	l.use.Lock()
	defer l.use.Unlock()
	if _, err := r.usable(ctx, account, id); err != nil {
		return snapferry.Volume{}, err
	}
	version, err := r.rollbackTarget(ctx, account, id, q.Snapshot)
	if err != nil {
		return snapferry.Volume{}, err
	}
	var safety snapferry.SnapshotID
	if !q.NoSafety {
		taken, err := r.snapshotHeld(ctx, account, VolumeSnapshotRequest{Volumes: []snapferry.VolumeID{id}, Labels: Labels{
			Name: "before-rollback", Description: "What volume " + string(id) + " had before it was put back to " + string(q.Snapshot),
		}})
		if err != nil {
			return snapferry.Volume{}, err
		}
		safety = taken[0].ID
	}
	err = r.vault.Hold(ctx, volumeHold(version, id), func(tx *meta.Tx) error {
		h, err := ownVolume(tx, account, id)
		if err != nil {
			return err
		}
		if h.State == snapferry.VolumeExported {
			return snapferry.Errorf(snapferry.Conflict, "volume %s is exported", id).WithHint("end that with: snapferry volume unexport %s", id)
		}
		h.State, h.Rollback, h.Safety = snapferry.VolumeRollingBack, q.Snapshot, safety
		h.Reason, h.Hint = "", ""
		if err := tx.UpdateHead(h); err != nil {
			return err
		}
		if err := audit(tx, account, "RollbackVolume", string(id), string(q.Snapshot)); err != nil {
			return err
		}
		return enqueueVolumeWork(tx, h)
	})
	if err != nil {
		return snapferry.Volume{}, r.orRepair(ctx, version, r.deleted(ctx, q.Snapshot, err))
	}
	return r.Volume(ctx, account, id)
}

// rollbackTarget returns the version of a snapshot that a volume may be put back
// to, in its state as of now.
func (r *Region) rollbackTarget(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, snap snapferry.SnapshotID) (version snapferry.VersionID, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		h, err := ownVolume(tx, account, id)
		if err != nil {
			return err
		}
		if h.State == snapferry.VolumeExported {
			return snapferry.Errorf(snapferry.Conflict, "volume %s is exported", id).WithHint("end that with: snapferry volume unexport %s", id)
		}
		s, err := own(tx, account, snap)
		if err != nil {
			return err
		}
		if err := checkReady(s); err != nil {
			return err
		}
		row, err := tx.Version(s.Version)
		if err != nil {
			return err
		}
		if row.Chain != h.Chain {
			return snapferry.Errorf(snapferry.Invalid, "snapshot %s is not of the family of volume %s", snap, id).
				WithHint("make a volume of it with: snapferry volume create --snapshot %s", snap)
		}
		if s.Size > h.Size {
			return snapferry.Errorf(snapferry.Invalid, "snapshot %s of %d bytes is larger than volume %s of %d", snap, s.Size, id, h.Size).
				WithHint("make the volume larger first with: snapferry volume resize %s --size %d", id, s.Size)
		}
		version = s.Version
		return nil
	})
	return version, err
}

// runRollback is the job that puts a volume back, when the snapshots under way
// are ready.
func (r *Region) runRollback(ctx context.Context, run *job.Run) error {
	id := snapferry.VolumeID(run.Job.Subject)
	l := r.live(id)
	l.use.Lock()
	defer l.use.Unlock()
	row, busy, err := r.idleHead(ctx, id)
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (busy || row.State != snapferry.VolumeRollingBack) {
		return nil // the end of the upload enqueues this again
	}
	if err != nil {
		return err
	}
	h, err := r.Live(ctx, id)
	if err != nil {
		return again(err)
	}
	if safe, err := r.isSafe(ctx, row); err != nil || !safe {
		if err == nil {
			err = r.keepAsIs(ctx, row)
		}
		return again(err)
	}
	version, err := r.rollbackVersion(ctx, row)
	if err != nil {
		return err
	}
	if err := h.Rollback(ctx, version); err != nil {
		return again(err)
	}
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		now, err := tx.Head(id)
		if err != nil {
			return err
		}
		now.Base, now.Layer, now.State, now.Rollback, now.Safety = version, 0, snapferry.VolumeAvailable, "", ""
		return tx.UpdateHead(now)
	})
	if err != nil {
		return again(err)
	}
	r.dropBases(ctx, id)
	return nil
}

// isSafe reports whether what a volume has before it is put back is in a snapshot,
// or given up. One that was ready and was deleted since was given up, too.
func (r *Region) isSafe(ctx context.Context, row meta.Head) (bool, error) {
	if row.Safety == "" {
		return true, nil
	}
	s, err := r.snapshotRow(ctx, row.Safety)
	return err == nil && !s.Digest.IsZero(), err
}

// keepAsIs ends a rollback whose safety snapshot did not become ready: the volume
// keeps what it has, and says why.
func (r *Region) keepAsIs(ctx context.Context, row meta.Head) error {
	err := r.db.Update(ctx, func(tx *meta.Tx) error {
		now, err := tx.Head(row.ID)
		if err != nil || now.State != snapferry.VolumeRollingBack {
			return err
		}
		now.Reason = "it was not put back to " + string(row.Rollback) + ": the snapshot of what it has, " + string(row.Safety) + ", did not become ready"
		now.Hint = "see why with: snapferry snapshot show " + string(row.Safety) + "; then roll back again"
		now.State, now.Rollback, now.Safety = snapferry.VolumeAvailable, "", ""
		return tx.UpdateHead(now)
	})
	if err == nil {
		r.dropBases(ctx, row.ID)
	}
	return err
}

// rollbackVersion returns the version that a volume is being put back to: that of
// the snapshot or, if that was deleted since, the one that the volume holds.
func (r *Region) rollbackVersion(ctx context.Context, row meta.Head) (snapferry.VersionID, error) {
	if s, err := r.snapshotRow(ctx, row.Rollback); err == nil && !s.Version.IsZero() {
		return s.Version, nil
	}
	holds, err := r.volumeHolds(ctx, row.ID)
	if err != nil {
		return snapferry.VersionID{}, err
	}
	for _, x := range holds {
		if x.Version != row.Base {
			return x.Version, nil
		}
	}
	return row.Base, nil
}

// hydratePayload is how a hydration is to be run.
type hydratePayload struct {
	Rate int64 `json:"rate"` // bytes per second; 0: without limit
}

// HydrateVolume has everything that a volume reads from the bucket brought near,
// at most rate bytes a second, 0 for no limit, and kept near.
func (r *Region) HydrateVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, rate int64) (snapferry.Volume, error) {
	if rate < 0 {
		return snapferry.Volume{}, snapferry.Errorf(snapferry.Invalid, "a rate of %d bytes a second", rate)
	}
	h, err := r.usable(ctx, account, id)
	if err != nil {
		return snapferry.Volume{}, err
	}
	text, err := json.Marshal(hydratePayload{Rate: rate})
	if err != nil {
		return snapferry.Volume{}, snapferry.Errorf(snapferry.Internal, "encode job: %w", err)
	}
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		row, err := ownVolume(tx, account, id)
		if err != nil {
			return err
		}
		row.Rate = rate
		if err := tx.UpdateHead(row); err != nil {
			return err
		}
		if err := audit(tx, account, "HydrateVolume", string(id), ""); err != nil {
			return err
		}
		return job.Enqueue(tx, job.Job{Kind: jobHydrate, Account: account, Subject: string(id), Payload: string(text)})
	})
	if err != nil {
		return snapferry.Volume{}, err
	}
	h.Keep(true)
	return r.Volume(ctx, account, id)
}

// runHydrate is the job that brings a volume near.
func (r *Region) runHydrate(ctx context.Context, run *job.Run) error {
	var p hydratePayload
	if err := json.Unmarshal([]byte(run.Job.Payload), &p); err != nil {
		return snapferry.Errorf(snapferry.Internal, "decode job: %w", err)
	}
	id := snapferry.VolumeID(run.Job.Subject)
	h, err := r.Live(ctx, id)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var done atomic.Int64
	x := &running{started: time.Now(), total: h.Size(), done: done.Load}
	l := r.live(id)
	r.mu.Lock()
	l.hydration = x
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if l.hydration == x {
			l.hydration = nil
		}
	}()
	return h.Hydrate(ctx, limiter(p.Rate), done.Store)
}
