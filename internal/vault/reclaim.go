package vault

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// ReclaimStats tells what was deleted from the bucket.
type ReclaimStats struct {
	Objects int
	Bytes   int64
}

const (
	// reclaimPage is how many objects are deleted between two transactions.
	reclaimPage = 256
	// deletes is how many objects are deleted at a time.
	deletes = 8
)

// Reclaim deletes the objects that were condemned until a time, from the bucket
// and then from the metadata. Readers that know no newer place than such an
// object must have ended: the caller keeps a grace of their longest request.
//
// It can be interrupted anywhere and called again, also by several at once.
// Errors: Conflict when the fence fails or reclaiming is stopped in the region;
// Unavailable when the bucket does not delete. What was deleted until then is
// in the stats; of the rest nothing is lost.
func (v *Vault) Reclaim(ctx context.Context, until time.Time, fence Fence) (st ReclaimStats, err error) {
	if fence == nil {
		fence = noFence
	}
	for {
		todo, err := v.reclaimable(ctx, until, fence)
		if err != nil || len(todo) == 0 {
			return st, err
		}
		gone, err := v.deleteObjects(ctx, todo)
		st.Objects += len(gone)
		for _, o := range gone {
			st.Bytes += o.Size
		}
		if e := v.forgetObjects(ctx, gone, fence); err == nil {
			err = e
		}
		if err != nil {
			return st, err
		}
	}
}

// reclaimable returns condemned objects, each without any segment.
func (v *Vault) reclaimable(ctx context.Context, until time.Time, fence Fence) (todo []meta.Object, err error) {
	err = v.db.View(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		if err := Stopped(tx); err != nil {
			return err
		}
		if todo, err = tx.Condemned(until, reclaimPage); err != nil {
			return err
		}
		for _, o := range todo {
			left, err := tx.SegmentsIn(o.Name)
			if err != nil {
				return err
			}
			if len(left) > 0 {
				return snapferry.Errorf(snapferry.Internal, "object %s is condemned, but %d segments lie there", o.Name, len(left)).
					WithHint("run: snapferry fsck --deep")
			}
		}
		return nil
	})
	return todo, err
}

// deleteObjects deletes objects from the bucket and returns those that are gone.
func (v *Vault) deleteObjects(ctx context.Context, todo []meta.Object) (gone []meta.Object, err error) {
	done := make([]bool, len(todo))
	var g errgroup.Group // one that cannot be deleted does not keep the others
	g.SetLimit(deletes)
	for i, o := range todo {
		g.Go(func() error {
			err := v.bucket.Delete(ctx, o.Name)
			done[i] = err == nil
			return err
		})
	}
	if err = g.Wait(); err != nil && !snapferry.IsKind(err, snapferry.Cancelled) && !snapferry.IsKind(err, snapferry.Unavailable) {
		err = snapferry.Errorf(snapferry.Unavailable, "the bucket does not delete: %w", err)
	}
	for i, o := range todo {
		if done[i] {
			gone = append(gone, o)
		}
	}
	return gone, err
}

// forgetObjects deletes the rows of objects that are gone from the bucket.
func (v *Vault) forgetObjects(ctx context.Context, gone []meta.Object, fence Fence) error {
	if len(gone) == 0 {
		return nil
	}
	return v.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		for _, o := range gone {
			if err := tx.DeleteObject(o.Name); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
		}
		return nil
	})
}
