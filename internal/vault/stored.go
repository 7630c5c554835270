package vault

import (
	"context"
	"errors"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/meta"
)

// CountStored counts what a complete version stores (see package meta) and has it
// metered from now on. It reads what the version and its parent do not share. One
// that is gone, or around which something changes meanwhile, is left for another
// time, and is no error.
func (v *Vault) CountStored(ctx context.Context, id snapferry.VersionID, fence Fence) error {
	var row, parent meta.Version
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if row, err = tx.Version(id); err != nil || row.Parent.IsZero() {
			return err
		}
		parent, err = tx.Version(row.Parent)
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	stored, err := v.storedBy(ctx, row, parent)
	if err != nil {
		if err = v.unlessMoved(ctx, &family{self: row}, err); errors.Is(err, errMoved) {
			return nil
		}
		return err
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		now, err := tx.Version(id)
		if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (now.Edge != row.Edge || now.Due) {
			return nil
		}
		if err != nil {
			return err
		}
		return tx.SetStored(id, stored, time.Now())
	})
}

// storedBy walks what a version has and its parent, if that has an id, has not, and
// sums up the stored bytes of what is not dead.
func (v *Vault) storedBy(ctx context.Context, row, parent meta.Version) (stored int64, err error) {
	self, err := v.mapOf(row)
	if err != nil {
		return 0, err
	}
	var near []blockmap.Map
	if !parent.ID.IsZero() {
		m, err := v.mapOf(parent)
		if err != nil {
			return 0, err
		}
		near = append(near, m)
	}
	t := tally{v: v, seen: map[snapferry.SegmentID]*slotSet{}}
	err = blockmap.Only(ctx, self, near, func(_ snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
		fresh, err := t.add(ctx, c.Ref)
		if fresh {
			stored += int64(c.Ref.Length)
		}
		return err
	})
	return stored, err
}
