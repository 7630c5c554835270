package control

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// ForkRequest asks for a new lineage that begins with what a snapshot has.
type ForkRequest struct {
	Source snapferry.SnapshotID
	Volume string // name of the new lineage
	Labels
}

// Fork makes a lineage and in it a snapshot with the content of another, and
// returns that, creating. No data moves: the two share all, until one of them is
// deleted. Imports into the lineage are incremental on it, and from then on the
// lineages go their own ways. Exists when the account has a lineage of that
// name that has snapshots. The source may be deleted at once.
func (r *Region) Fork(ctx context.Context, account snapferry.AccountID, req ForkRequest) (snapferry.Snapshot, error) {
	if err := snapferry.CheckVolumeName(req.Volume); err != nil {
		return snapferry.Snapshot{}, err
	}
	if err := req.check(); err != nil {
		return snapferry.Snapshot{}, err
	}
	var s meta.Snapshot
	err := r.db.Update(ctx, func(tx *meta.Tx) (err error) {
		s, err = beginFork(tx, account, req)
		return err
	})
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	return r.justMade(ctx, account, s)
}

func beginFork(tx *meta.Tx, account snapferry.AccountID, req ForkRequest) (s meta.Snapshot, err error) {
	source, err := own(tx, account, req.Source)
	if err != nil {
		return s, err
	}
	if err := checkReady(source); err != nil {
		return s, err
	}
	base, err := tx.Version(source.Version)
	if err != nil {
		return s, err
	}
	vol, err := newLineage(tx, account, req.Volume, snapferry.NewVolumeID(), base.Chain)
	if err != nil {
		return s, err
	}
	row := meta.Version{ID: snapferry.NewVersionID(), Chain: vol.Chain, Volume: vol.ID, Parent: base.ID, Size: base.Size, Sequence: 1}
	if err := vault.Attach(tx, row); err != nil {
		return s, err
	}
	s = req.snapshot(account, base.Size)
	s.State, s.VolumeID, s.Version, s.Parent = snapferry.SnapshotCreating, vol.ID, row.ID, source.ID
	if err := tx.InsertSnapshot(s); err != nil {
		return s, err
	}
	if err := audit(tx, account, "ForkSnapshot", string(s.ID), string(source.ID)+" as "+req.Volume); err != nil {
		return s, err
	}
	return s, job.Enqueue(tx, job.Job{Kind: jobFork, Account: account, Subject: string(s.ID)})
}

// newLineage makes a lineage in a chain that is there, with an id, or takes one
// of that name in which nothing is left.
func newLineage(tx *meta.Tx, account snapferry.AccountID, name string, id snapferry.VolumeID, chain snapferry.ChainID) (meta.Volume, error) {
	vol, err := tx.VolumeByName(account, name)
	if err == nil {
		err = tx.MoveVolume(vol.ID, chain) // if all its snapshots are gone
		if snapferry.IsKind(err, snapferry.NotFound) {
			return vol, snapferry.Errorf(snapferry.Exists, "the account has a volume %q already", name).WithHint("choose another name for the new volume")
		}
		vol.Chain = chain
		return vol, err
	}
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return vol, err
	}
	vol = meta.Volume{ID: id, Account: account, Name: name, Chain: chain, Created: time.Now()}
	return vol, tx.InsertVolume(vol)
}

// runFork is the job that completes a fork. It has nothing to write but the
// version's record, so it is run again as a whole.
func (r *Region) runFork(ctx context.Context, run *job.Run) error {
	id := snapferry.SnapshotID(run.Job.Subject)
	s, err := r.snapshotRow(ctx, id)
	if err != nil || s.State.Settled() {
		return err // sealed, and only the answer was lost; or deleted
	}
	err = r.sealFork(ctx, run, s)
	switch {
	case snapferry.IsKind(err, snapferry.KeyUnusable):
		return snapferry.Errorf(snapferry.Unavailable, "%w", err)
	case err == nil || retry(ctx, err):
		return err
	}
	return r.failSnapshot(ctx, id, err)
}

func (r *Region) sealFork(ctx context.Context, run *job.Run, s meta.Snapshot) error {
	w, err := r.vault.Write(ctx, s.Version, vault.WriteConfig{Job: run.Job.ID, Token: run.Token, Fence: run.Check})
	if err != nil {
		return err
	}
	defer w.Close()
	base := w.Base()
	_, err = w.Seal(ctx, vault.SealConfig{
		Want: base.Digest(),
		Hold: meta.Hold{Version: s.Version, Kind: vault.HoldSnapshot, Owner: string(s.ID), Created: time.Now()},
		Commit: func(tx *meta.Tx, done vault.Sealed) error {
			return r.settleReady(tx, s.ID, done, snapferry.Counts{Present: done.Present, Reused: done.Present})
		},
	})
	return err
}
