package vault

import (
	"context"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// HoldSnapshot and HoldPin are the kinds of holds in use so far.
const (
	HoldSnapshot = string(record.HoldSnapshot)
	HoldPin      = string(record.HoldPin)
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
	all, err := tx.VersionsOf(volume)
	if err != nil {
		return row, false, err
	}
	for _, row := range all {
		if row.State == snapferry.VersionSealed {
			return row, true, nil
		}
	}
	return row, false, nil
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
		if err := v.deleteAll(ctx, id, objects); err != nil {
			return err
		}
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		now, err := tx.Version(id)
		switch {
		case snapferry.IsKind(err, snapferry.NotFound):
		case err != nil:
			return err
		case now.State != snapferry.VersionOpen:
			return snapferry.Errorf(snapferry.Conflict, "version %s is %s, not open", id, now.State)
		default:
			if _, err := tx.DeleteSegments(id); err != nil {
				return err
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
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
}

// abortable returns an open version and the objects registered to it.
func (v *Vault) abortable(ctx context.Context, id snapferry.VersionID) (row meta.Version, objects map[string]bool, err error) {
	objects = map[string]bool{}
	err = v.db.View(ctx, func(tx *meta.Tx) (err error) {
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
func (v *Vault) deleteAll(ctx context.Context, id snapferry.VersionID, objects map[string]bool) error {
	names, err := v.records(ctx, id)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := v.bucket.Delete(ctx, name); err != nil {
			return err
		}
	}
	for name := range objects {
		if err := v.bucket.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Hold adds a hold to a sealed version: first in its record, then in the
// metadata, where also, if not nil, joins the transaction. A version without
// any hold left takes no new one: Conflict.
func (v *Vault) Hold(ctx context.Context, h meta.Hold, also func(*meta.Tx) error) error {
	return v.rehold(ctx, h.Version, change{add: []meta.Hold{h}}, also)
}

// Release drops a hold. With the last one the version becomes a ghost: nothing
// can attach to it any more, and what only it has can be freed. A hold that is
// not there is no error.
func (v *Vault) Release(ctx context.Context, h meta.Hold, also func(*meta.Tx) error) error {
	return v.rehold(ctx, h.Version, change{drop: []meta.Hold{h}}, also)
}

// change is what a new revision of a record says of holds.
type change struct{ add, drop []meta.Hold }

func sameHold(a, b meta.Hold) bool { return a.Kind == b.Kind && a.Owner == b.Owner }

func (c change) apply(holds []meta.Hold) []meta.Hold {
	holds = slices.DeleteFunc(slices.Clone(holds), func(h meta.Hold) bool {
		return slices.ContainsFunc(c.drop, func(d meta.Hold) bool { return sameHold(h, d) })
	})
	for _, a := range c.add {
		if !slices.ContainsFunc(holds, func(h meta.Hold) bool { return sameHold(h, a) }) {
			holds = append(holds, a)
		}
	}
	return holds
}

// reholdTries bounds how often a change of holds starts again because another
// change of the same version came between its record and its commit.
const reholdTries = 20

func (v *Vault) rehold(ctx context.Context, id snapferry.VersionID, c change, also func(*meta.Tx) error) error {
	// One after the other: the record of one that then fails to commit is void.
	lock := &v.reholds[int(id[0])%len(v.reholds)]
	lock.Lock()
	defer lock.Unlock()
	var err error
	for range reholdTries {
		if err = v.reholdOnce(ctx, id, c, also); !snapferry.IsKind(err, snapferry.Conflict) {
			return err
		}
	}
	return err
}

func (v *Vault) reholdOnce(ctx context.Context, id snapferry.VersionID, c change, also func(*meta.Tx) error) error {
	var row meta.Version
	var holds []meta.Hold
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if row, err = tx.Version(id); err != nil {
			return err
		}
		holds, err = tx.Holds(id)
		return err
	})
	if err != nil {
		return err
	}
	if row.State != snapferry.VersionSealed {
		return snapferry.Errorf(snapferry.Conflict, "version %s is %s", id, row.State)
	}
	edge := row.Edge
	if len(c.apply(holds)) == 0 {
		row.State = snapferry.VersionGhost
	}
	if row.Revision, err = v.writeRecord(ctx, row, c); err != nil {
		return err
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := tx.UpdateVersion(row, edge); err != nil {
			return err
		}
		for _, h := range c.drop {
			if err := tx.DropHold(h.Version, h.Kind, h.Owner); err != nil {
				return err
			}
		}
		for _, h := range c.add {
			if err := tx.PutHold(h); err != nil {
				return err
			}
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
}

// revisionTries bounds the search for a free revision: each taken one is from a
// writer whose commit did not come.
const revisionTries = 1000

// writeRecord writes the next free revision of a version's record and returns
// its number.
func (v *Vault) writeRecord(ctx context.Context, row meta.Version, c change) (uint64, error) {
	r, err := v.record(ctx, row, c)
	if err != nil {
		return 0, err
	}
	for r.Revision = row.Revision + 1; r.Revision <= row.Revision+revisionTries; r.Revision++ {
		p, err := r.Encode(v.sign, nil)
		if err != nil {
			return 0, err
		}
		err = v.bucket.Put(ctx, record.Name(r.Version, r.Revision), p)
		if !snapferry.IsKind(err, snapferry.Exists) {
			return r.Revision, err
		}
	}
	return 0, snapferry.Errorf(snapferry.Conflict, "version %s has %d revisions that nobody committed", row.ID, revisionTries)
}

func (v *Vault) record(ctx context.Context, row meta.Version, c change) (*record.Record, error) {
	r := &record.Record{
		Version: row.ID, Chain: row.Chain, Parent: row.Parent, State: row.State, Region: v.region, Volume: row.Volume,
		Token: row.Token, Algorithm: row.Algorithm, Size: row.Size, Blocks: row.Blocks, Created: row.Created, Root: row.Root, Digest: row.Digest,
	}
	err := v.db.View(ctx, func(tx *meta.Tx) error {
		region, err := tx.Region()
		if err != nil {
			return err
		}
		r.Incarnation = region.Incarnation
		chain, err := tx.Chain(row.Chain)
		if err != nil {
			return err
		}
		r.Account = chain.Account
		holds, err := tx.Holds(row.ID)
		if err != nil {
			return err
		}
		r.Holds = r.Holds[:0]
		for _, h := range c.apply(holds) {
			rh, err := durableHold(tx, h)
			if err != nil {
				return err
			}
			r.Holds = append(r.Holds, rh)
		}
		return nil
	})
	return r, err
}

// durableHold is what a record says of a hold: enough to show it again.
func durableHold(tx *meta.Tx, h meta.Hold) (record.Hold, error) {
	rh := record.Hold{Kind: record.HoldKind(h.Kind), Owner: h.Owner, Created: h.Created}
	if h.Kind != HoldSnapshot {
		return rh, nil
	}
	s, err := tx.Snapshot(snapferry.SnapshotID(h.Owner))
	if err != nil {
		return rh, err
	}
	rh.Name, rh.Description, rh.VolumeName, rh.Tags = s.Name, s.Description, s.Volume, s.Tags
	rh.Created, rh.RetainUntil = s.Created, s.RetainUntil
	if s.Source != nil {
		rh.SourceRegion, rh.SourceSnapshot, rh.SourceVolume = s.Source.Region, s.Source.Snapshot, s.SourceVolume
	}
	return rh, nil
}

// records lists the names of the records of a version.
func (v *Vault) records(ctx context.Context, id snapferry.VersionID) (names []string, err error) {
	first := record.Name(id, 0)
	prefix := first[:len(first)-len("00000000000000000000")]
	err = v.bucket.List(ctx, prefix, "", func(i blob.Info) error {
		names = append(names, i.Name)
		return nil
	})
	return names, err
}
