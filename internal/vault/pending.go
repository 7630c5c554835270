package vault

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// NeedsCompaction is to come.
func (v *Vault) NeedsCompaction(tx *meta.Tx, chain snapferry.ChainID) (bool, error) { return false, nil }

// Reclaim is to come.
func (v *Vault) Reclaim(ctx context.Context, grace time.Duration, fence Fence) error {
	var all []meta.Object
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if err := Stopped(tx); err != nil {
			return err
		}
		all, err = tx.Condemned(time.Now().Add(-grace), 0)
		return err
	})
	if err != nil {
		return err
	}
	for _, o := range all {
		if err := v.bucket.Delete(ctx, o.Name); err != nil {
			return err
		}
		err := v.db.Update(ctx, func(tx *meta.Tx) error {
			if err := fence(tx); err != nil {
				return err
			}
			return tx.DeleteObject(o.Name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
