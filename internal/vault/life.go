package vault

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// The kinds of holds in use so far.
const (
	HoldSnapshot = string(record.HoldSnapshot)
	HoldVolume   = string(record.HoldVolume)
	HoldPin      = string(record.HoldPin)
	// HoldReader keeps a version while somebody reads it for longer than a
	// request. It is in the metadata only and ends with the process.
	HoldReader = "reader"
)

// Attach inserts a new open version below its parent, if it has one, in the
// caller's transaction. The parent must be sealed, held and of the same chain:
// Conflict otherwise. Until the child is sealed or aborted nothing the parent
// has is freed.
func Attach(tx *meta.Tx, row meta.Version) error {
	if !row.Parent.IsZero() {
		parent, err := tx.Version(row.Parent)
		if err != nil {
			return err
		}
		if parent.State != snapferry.VersionSealed || parent.Chain != row.Chain {
			return snapferry.Errorf(snapferry.Conflict, "version %s is %s and cannot be a parent", parent.ID, parent.State)
		}
		if err := tx.UpdateVersion(parent, parent.Edge); err != nil {
			return err
		}
	}
	row.State, row.Algorithm, row.Created = snapferry.VersionOpen, digest.SHA256, time.Now()
	return tx.InsertVersion(row)
}

// Reattach moves an open version below another parent of its chain, in the
// caller's transaction. Nothing may have been written for it yet: Conflict.
func Reattach(tx *meta.Tx, id, parent snapferry.VersionID) error {
	row, err := tx.Version(id)
	if err != nil {
		return err
	}
	to, err := tx.Version(parent)
	if err != nil {
		return err
	}
	written, err := tx.SegmentsOf(id)
	if err != nil {
		return err
	}
	if row.State != snapferry.VersionOpen || len(written) > 0 {
		return snapferry.Errorf(snapferry.Conflict, "version %s is %s, with %d segments, and cannot change its parent", id, row.State, len(written))
	}
	if to.State != snapferry.VersionSealed || to.Chain != row.Chain {
		return snapferry.Errorf(snapferry.Conflict, "version %s is %s and cannot be a parent", to.ID, to.State)
	}
	for _, neighbour := range []snapferry.VersionID{row.Parent, parent} {
		if err := bump(tx, neighbour); err != nil {
			return err
		}
	}
	// A checkpoint without segments has the refs of the old parent.
	if err := tx.DeleteCheckpoint(id); err != nil {
		return err
	}
	row.Parent = parent
	return tx.UpdateVersion(row, row.Edge)
}

// Parent returns the newest version of a lineage that a new one can be
// incremental on: sealed and held. ok is false when there is none.
func Parent(tx *meta.Tx, volume snapferry.VolumeID) (row meta.Version, ok bool, err error) {
	row, err = tx.NewestSealed(volume)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return meta.Version{}, false, nil
	}
	return row, err == nil, err
}

// Abort ends an open version: its records, its objects and its rows go. It can
// be repeated until it succeeds; a version that is gone already is no error,
// one that is not open is a Conflict. also, if not nil, runs in the last
// transaction.
func (v *Vault) Abort(ctx context.Context, id snapferry.VersionID, also func(*meta.Tx) error) error {
	row, objects, err := v.abortable(ctx, id)
	if err != nil {
		return err
	}
	if row.ID == id {
		// Should this end halfway, no run may go on from what is deleted here.
		err := v.db.Update(ctx, func(tx *meta.Tx) error { return tx.DeleteCheckpoint(id) })
		if err != nil {
			return err
		}
		if err := v.deleteAll(ctx, row, objects); err != nil {
			return err
		}
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := notBehind(tx); err != nil {
			return err
		}
		now, err := tx.Version(id)
		switch {
		case snapferry.IsKind(err, snapferry.NotFound):
		case err != nil:
			return err
		case now.State != snapferry.VersionOpen:
			return snapferry.Errorf(snapferry.Conflict, "version %s is %s, not open", id, now.State)
		default:
			free, err := tx.DeleteSegments(id)
			if err != nil {
				return err
			}
			for _, name := range free { // as well what was placed meanwhile: the sweep finds it then
				objects[name] = true
			}
			for name := range objects {
				if err := tx.DeleteObject(name); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
					return err
				}
			}
			if err := tx.DeleteVersion(id); err != nil {
				return err
			}
			if err := bump(tx, now.Parent); err != nil {
				return err
			}
			if err := buryAborted(tx, now); err != nil {
				return err
			}
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
}

// buryAborted remembers an aborted version of which a seal was allowed to write
// a record: should one still come, it is known to be garbage.
func buryAborted(tx *meta.Tx, row meta.Version) error {
	if row.Reserved == 0 {
		return nil
	}
	return tx.PutGrave(meta.Grave{Version: row.ID, Chain: row.Chain, Revision: row.Reserved, Loose: true, Kept: true})
}

// abortable returns an open version and the objects registered to it.
func (v *Vault) abortable(ctx context.Context, id snapferry.VersionID) (row meta.Version, objects map[string]bool, err error) {
	objects = map[string]bool{}
	err = v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if err := notBehind(tx); err != nil {
			return err
		}
		if row, err = tx.Version(id); err != nil {
			return err
		}
		if row.State != snapferry.VersionOpen {
			return snapferry.Errorf(snapferry.Conflict, "version %s is %s, not open", id, row.State)
		}
		segments, err := tx.SegmentsOf(id)
		for _, s := range segments {
			objects[s.Object] = true
		}
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		return row, objects, nil
	}
	return row, objects, err
}

// deleteAll removes a version's records, so that nothing leads to it, and then
// its objects.
func (v *Vault) deleteAll(ctx context.Context, row meta.Version, objects map[string]bool) error {
	if err := v.dropRecords(ctx, row, noFence); err != nil {
		return err
	}
	for name := range objects {
		if err := v.bucket.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
