package control

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// Labels are what a caller may write on a snapshot.
type Labels struct {
	Name          string
	Description   string
	Tags          snapferry.Tags
	RetentionDays int // 0: for ever
}

const (
	maxName          = 128
	maxDescription   = 1024
	maxRetentionDays = 65536
)

func (l Labels) check() error {
	switch {
	case len(l.Name) > maxName:
		return snapferry.Errorf(snapferry.Invalid, "the name has %d bytes, more than %d", len(l.Name), maxName)
	case len(l.Description) > maxDescription:
		return snapferry.Errorf(snapferry.Invalid, "the description has %d bytes, more than %d", len(l.Description), maxDescription)
	case l.RetentionDays < 0 || l.RetentionDays > maxRetentionDays:
		return snapferry.Errorf(snapferry.Invalid, "retention of %d days is not within 1 to %d", l.RetentionDays, maxRetentionDays)
	}
	return l.Tags.Check()
}

func (l Labels) snapshot(account snapferry.AccountID, size int64) meta.Snapshot {
	now := time.Now()
	s := meta.Snapshot{Snapshot: snapferry.Snapshot{
		ID: snapferry.NewSnapshotID(), Account: account, Name: l.Name, Description: l.Description, Tags: l.Tags, Size: size, Created: now,
	}}
	if l.RetentionDays > 0 {
		s.RetainUntil = now.AddDate(0, 0, l.RetentionDays)
	}
	return s
}

// ImportRequest asks for a snapshot of a disk.
type ImportRequest struct {
	Volume string // name of the lineage
	Sealing
	Labels
	Disk vault.Disk // read by the job
	// Since, if not nil, is Disk too, but its Next gives only what may have changed
	// since the last import into the lineage; nothing else is read if there was one.
	Since vault.Disk
	Close func() // gives the disk back, whatever becomes of the import
}

// Disk that can tell whether it changed while it was read.
type changer interface{ Changed() error }

// Import begins a snapshot of a disk and returns it, creating. It is
// incremental on the newest version of the same volume that is held.
func (r *Region) Import(ctx context.Context, account snapferry.AccountID, req ImportRequest) (snapferry.Snapshot, error) {
	s, err := r.beginImport(ctx, account, req)
	if err != nil {
		req.Close()
		return snapferry.Snapshot{}, err
	}
	return r.justMade(ctx, account, s)
}

func (r *Region) beginImport(ctx context.Context, account snapferry.AccountID, req ImportRequest) (meta.Snapshot, error) {
	if err := snapferry.CheckVolumeName(req.Volume); err != nil {
		return meta.Snapshot{}, err
	}
	if err := req.check(); err != nil {
		return meta.Snapshot{}, err
	}
	if err := snapferry.CheckSize(req.Disk.Size()); err != nil {
		return meta.Snapshot{}, err
	}
	chain, err := r.chainOfLineage(ctx, account, req.Volume, req.Sealing)
	if err != nil {
		return meta.Snapshot{}, err
	}
	s := req.snapshot(account, req.Disk.Size())
	s.State = snapferry.SnapshotCreating
	r.mu.Lock()
	r.imports[s.ID] = &running{disk: req.Disk, since: req.Since, close: req.Close}
	r.mu.Unlock()
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		vol, err := r.localVolume(tx, account, req.Volume, chain, req.Sealing)
		if err != nil {
			return err
		}
		if err := checkNoHead(tx, vol); err != nil {
			return err
		}
		row := meta.Version{ID: snapferry.NewVersionID(), Chain: vol.Chain, Volume: vol.ID, Size: s.Size}
		parent, ok, err := vault.Parent(tx, vol.ID)
		if err != nil {
			return err
		}
		if ok {
			row.Parent, s.Parent = parent.ID, visibleParent(tx, parent.ID)
		}
		if row.Sequence, err = nextSequence(tx, vol.ID); err != nil {
			return err
		}
		if err := vault.Attach(tx, row); err != nil {
			return err
		}
		s.VolumeID, s.Version = vol.ID, row.ID
		if err := tx.InsertSnapshot(s); err != nil {
			return err
		}
		if err := audit(tx, account, "ImportSnapshot", string(s.ID), req.Volume); err != nil {
			return err
		}
		return job.Enqueue(tx, job.Job{Kind: jobImport, Account: account, Subject: string(s.ID)})
	})
	if err != nil {
		r.mu.Lock()
		delete(r.imports, s.ID)
		r.mu.Unlock()
	}
	return s, err
}

// checkNoHead refuses to add a disk to the snapshots of a live volume: what it is
// then incremental on would not be what the volume is.
func checkNoHead(tx *meta.Tx, vol meta.Volume) error {
	_, err := tx.Head(vol.ID)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return snapferry.Errorf(snapferry.Conflict, "%q is a live volume; only what is written to it is in its snapshots", vol.Name).
		WithHint("import under another name, or take a snapshot of it with: snapferry snapshot create %s", vol.ID)
}

// localVolume returns the account's lineage of a name, made in a chain when it is new:
// see chainOfLineage. One that was there before stays.
func (r *Region) localVolume(tx *meta.Tx, account snapferry.AccountID, name string, chain meta.Chain, s Sealing) (meta.Volume, error) {
	vol, err := tx.VolumeByName(account, name)
	if err == nil {
		err = s.fits("volume "+name, vol.Key, chain.Key)
	}
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return vol, err
	}
	if err := r.insertChain(tx, chain); err != nil {
		return vol, err
	}
	vol = meta.Volume{ID: snapferry.NewVolumeID(), Account: account, Name: name, Chain: chain.ID, Created: time.Now()}
	return vol, tx.InsertVolume(vol)
}

func nextSequence(tx *meta.Tx, volume snapferry.VolumeID) (int64, error) {
	last, err := tx.LastSequence(volume)
	return last + 1, err
}

// visibleParent names the snapshot of a version, when it has one.
func visibleParent(tx *meta.Tx, id snapferry.VersionID) snapferry.SnapshotID {
	rows, err := tx.SnapshotsOfVersion(id)
	if err != nil || len(rows) == 0 {
		return ""
	}
	return rows[0].ID
}

// runImport is the job that reads the disk. A disk is handed over in memory,
// so an import does not outlive its process: after a restart it fails.
func (r *Region) runImport(ctx context.Context, run *job.Run) error {
	id := snapferry.SnapshotID(run.Job.Subject)
	r.mu.Lock()
	x, err := r.imports[id], r.reasons[id]
	delete(r.imports, id)
	r.mu.Unlock()
	switch {
	case err != nil: // only the end of a run before this one is left
	case x == nil:
		err = r.lostImport(ctx, id)
	default:
		defer x.close()
		err = r.importDisk(ctx, run, id, x)
	}
	if err == nil {
		return nil
	}
	// Until the reason is on record, it is here alone.
	r.mu.Lock()
	r.reasons[id] = err
	r.mu.Unlock()
	end := r.failSnapshot(ctx, id, err)
	if !snapferry.IsKind(end, snapferry.Unavailable) || r.settled(ctx, id) {
		r.mu.Lock()
		delete(r.reasons, id)
		r.mu.Unlock()
	}
	return end
}

// lostImport is why an import that has no disk any more has failed: for the
// reason that is on record, if only the clearing up is left, or by a restart.
func (r *Region) lostImport(ctx context.Context, id snapferry.SnapshotID) error {
	s, err := r.snapshotRow(ctx, id)
	switch {
	case err != nil:
		return err
	case s.Reason != "":
		return snapferry.Errorf(snapferry.Cancelled, "%s", s.Reason)
	}
	return snapferry.Errorf(snapferry.Cancelled, "the import was interrupted by a restart of region %s", r.name).WithHint("import the disk again")
}

func (r *Region) importDisk(ctx context.Context, run *job.Run, id snapferry.SnapshotID, x *running) error {
	s, err := r.snapshotRow(ctx, id)
	if err != nil {
		return err
	}
	w, err := r.vault.Write(ctx, s.Version, vault.WriteConfig{Job: run.Job.ID, Token: run.Token, Fence: run.Check})
	if err != nil {
		return err
	}
	defer w.Close()
	var st vault.ImportStats
	x.started, x.total, x.done = time.Now(), s.Size, st.Done.Load
	x.counts = func() snapferry.Counts {
		return snapferry.Counts{Read: st.Read.Load(), Changed: w.Changed(), Stored: w.Stored()}
	}
	r.setRunning(id, x)
	defer r.setRunning(id, nil)
	if err := fillFrom(ctx, w, x, &st); err != nil {
		return err
	}
	if c, ok := x.disk.(changer); ok {
		if err := c.Changed(); err != nil {
			return err
		}
	}
	_, err = w.Seal(ctx, vault.SealConfig{
		Hold: meta.Hold{Version: s.Version, Kind: vault.HoldSnapshot, Owner: string(id), Created: time.Now()},
		Commit: func(tx *meta.Tx, done vault.Sealed) error {
			return r.settleReady(tx, id, done, snapferry.Counts{
				Present: done.Present, Changed: done.Changed, Read: st.Read.Load(), Stored: done.Stored, Reused: done.Present - done.Changed,
			})
		},
	})
	return err
}

// fillFrom reads all of a disk, or what has changed if that is known and the parent
// has the rest.
func fillFrom(ctx context.Context, w *vault.Writer, x *running, st *vault.ImportStats) error {
	if base := w.Base(); x.since != nil && base.Root != nil && base.Size <= w.Size() {
		return w.Update(ctx, x.since, st)
	}
	return w.Import(ctx, x.disk, st)
}

func (r *Region) snapshotRow(ctx context.Context, id snapferry.SnapshotID) (s meta.Snapshot, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		s, err = tx.Snapshot(id)
		return err
	})
	return s, err
}

// settleReady makes a snapshot ready in the transaction that seals its
// version.
func (r *Region) settleReady(tx *meta.Tx, id snapferry.SnapshotID, done vault.Sealed, c snapferry.Counts) error {
	s, err := tx.Snapshot(id)
	if err != nil {
		return err
	}
	s.State, s.Digest, s.Settled, s.Counts = snapferry.SnapshotReady, done.Digest, time.Now(), c
	if err := tx.UpdateSnapshot(s); err != nil {
		return err
	}
	if err := meter(tx, s.Account, meterStored, id, c.Stored); err != nil {
		return err
	}
	// A parent that was being deleted waited for this; and many small objects
	// become few large ones.
	row, err := tx.Version(done.Version)
	if err != nil {
		return err
	}
	if err := enqueueFree(tx, row.Chain); err != nil {
		return err
	}
	return r.enqueueCompact(tx, row.Chain)
}

// failSnapshot ends the making of a snapshot for a reason that its owner sees,
// and clears up. It returns the reason, or why it could not yet be settled.
func (r *Region) failSnapshot(ctx context.Context, id snapferry.SnapshotID, reason error) error {
	if ctx.Err() != nil && !snapferry.IsKind(context.Cause(ctx), snapferry.Cancelled) {
		return again(reason) // a shutdown: the next start settles it
	}
	ctx = context.WithoutCancel(ctx)
	s, err := r.snapshotRow(ctx, id)
	if err != nil {
		return err
	}
	if s.State.Settled() {
		return reason // deleted meanwhile: a discard job clears up; or sealed, and only the answer was lost
	}
	// The reason first: clearing up may take more than one try, and a restart.
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		now, err := tx.Snapshot(id)
		if err != nil || now.State.Settled() || now.Reason != "" {
			return err
		}
		now.Reason, now.Hint = publicReason(reason)
		if err := detach(tx, now.Version, "the copy of snapshot "+string(id)+" failed: "+now.Reason); err != nil {
			return err
		}
		return tx.UpdateSnapshot(now)
	})
	if err == nil {
		err = r.vault.Abort(ctx, s.Version, func(tx *meta.Tx) error {
			now, err := tx.Snapshot(id)
			if err != nil || now.State.Settled() {
				return err
			}
			now.State, now.Settled, now.Version = snapferry.SnapshotFailed, time.Now(), snapferry.VersionID{}
			if err := tx.UpdateSnapshot(now); err != nil {
				return err
			}
			return freeAround(tx, s.Version)
		})
	}
	if err != nil {
		return snapferry.Errorf(snapferry.Unavailable, "clear up after %q: %w", reason, err)
	}
	r.endEarly(s.Version)
	r.log.WarnContext(ctx, "snapshot failed", "snapshot", id, "err", reason)
	return reason
}

// publicReason is what an owner may read of why something failed.
func publicReason(err error) (reason, hint string) {
	var e *snapferry.Error
	if errors.As(err, &e) {
		return e.Kind.String() + ": " + e.Message, snapferry.HintOf(err)
	}
	return "internal error", "the region's log has the cause"
}

// discardPayload is what a discard job clears up.
type discardPayload struct {
	Snapshot snapferry.SnapshotID `json:"snapshot,omitempty"` // what the job that makes it is about
	Versions []string             `json:"versions,omitempty"` // of each member of a copy; empty: none to be aborted
	Copy     snapferry.CopyID     `json:"copy,omitempty"`
}

func enqueueDiscard(tx *meta.Tx, account snapferry.AccountID, p discardPayload) error {
	text, err := json.Marshal(p)
	if err != nil {
		return snapferry.Errorf(snapferry.Internal, "encode job: %w", err)
	}
	// With upkeep, so that it does not wait for long copies.
	return job.Enqueue(tx, job.Job{Kind: jobDiscard, Account: account, Subject: string(p.Snapshot), Payload: string(text), Lane: job.Upkeep})
}

// ReleaseLater has the pin of a copy that has ended released at the source, in
// the caller's transaction, as soon as the source can be reached.
func ReleaseLater(tx *meta.Tx, account snapferry.AccountID, id snapferry.CopyID) error {
	return enqueueDiscard(tx, account, discardPayload{Copy: id})
}

// runDiscard is the job that clears up after a snapshot that was deleted while
// it was being made.
func (r *Region) runDiscard(ctx context.Context, run *job.Run) error {
	var p discardPayload
	if err := json.Unmarshal([]byte(run.Job.Payload), &p); err != nil {
		return snapferry.Errorf(snapferry.Internal, "decode job: %w", err)
	}
	if len(p.Versions) > 0 {
		if err := r.awaitEnd(ctx, p.Snapshot); err != nil {
			return err
		}
	}
	early := make([]int64, len(p.Versions)) // that no run of the copy has counted
	versions := make([]snapferry.VersionID, len(p.Versions))
	for i, text := range p.Versions {
		if text == "" {
			continue
		}
		version, err := snapferry.ParseVersionID(text)
		if err != nil {
			return err
		}
		e := r.earlyOf(version)
		e.shut()
		if err := r.vault.Abort(ctx, version, freeAfter(version)); err != nil {
			return again(err)
		}
		early[i], versions[i] = e.moved.Load(), version
	}
	if p.Copy != "" {
		if err := r.meterDiscarded(ctx, p, early); err != nil {
			return again(err)
		}
	}
	for _, version := range versions {
		r.endEarly(version)
	}
	if p.Copy == "" {
		return nil
	}
	return again(r.releaseOf(ctx, p.Copy))
}

// again makes an error one that is tried again: clearing up has no end but
// success.
func again(err error) error {
	if err == nil || snapferry.IsKind(err, snapferry.Unavailable) {
		return err
	}
	return snapferry.Errorf(snapferry.Unavailable, "clear up: %w", err)
}

// endPatience is how long a discard occupies a worker while the job before it
// comes to its end; then it is tried again.
const endPatience = 5 * time.Second

// awaitEnd returns when no job but discards works on a snapshot any more;
// Unavailable when that takes long.
func (r *Region) awaitEnd(ctx context.Context, id snapferry.SnapshotID) error {
	long := time.NewTimer(endPatience)
	defer long.Stop()
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	for {
		changed := r.db.Changed()
		busy := false
		err := r.db.View(ctx, func(tx *meta.Tx) error {
			jobs, err := tx.JobsOf(string(id))
			for _, j := range jobs {
				busy = busy || j.Kind != jobDiscard && !j.State.Terminal()
			}
			return err
		})
		r.mu.Lock()
		busy = busy || r.progress[id] != nil // an upload, which is a job about its volume
		r.mu.Unlock()
		if err != nil || !busy {
			return err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-long.C:
			return snapferry.Errorf(snapferry.Unavailable, "the making of snapshot %s has not come to its end yet", id)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Export writes a ready snapshot to a target of its size. done counts plain
// bytes written. The target is not synced. A snapshot that is deleted meanwhile
// is exported to its end.
func (r *Region) Export(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID, t vault.Target, done *atomic.Int64) error {
	m, release, err := r.readyMap(ctx, account, id)
	if err != nil {
		return err
	}
	defer release()
	return r.vault.Export(ctx, m, t, done)
}
