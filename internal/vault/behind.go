package vault

import (
	"context"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// Metadata of an earlier time knows less than its bucket. Whoever believes it
// deletes what has become real since, and writes the past above the present. It
// shows by version records that it does not know, or never gave a number; then
// nothing is deleted and no record written before snapferry recover --merge has
// run.

// behindMark stands in the reason for which reclaiming is stopped when the
// metadata is behind.
const behindMark = "the metadata is older than the bucket"

const mergeHint = "stop the region and run: snapferry recover --merge"

// notBehind fails with Conflict while the metadata is known to be behind its
// bucket.
func notBehind(tx *meta.Tx) error {
	why, err := tx.ReclaimStopped()
	if err != nil || !strings.Contains(why, behindMark) {
		return err
	}
	return snapferry.Errorf(snapferry.Conflict, "%s", why).WithHint(mergeHint)
}

// foundBehind stops reclaiming, because something shows that the metadata is
// behind, and returns the error that says so.
func (v *Vault) foundBehind(ctx context.Context, fence Fence, format string, args ...any) error {
	why := snapferry.Errorf(snapferry.Conflict, format, args...).Message + ": " + behindMark + "; run snapferry recover --merge"
	err := v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		return tx.StopReclaim(why)
	})
	if err != nil {
		return err
	}
	v.log.ErrorContext(ctx, "nothing is reclaimed any more", "why", why)
	return snapferry.Errorf(snapferry.Conflict, "%s", why).WithHint(mergeHint)
}

// ownRecords lists the names of the records of an open version: of seals that
// did not commit. One that nobody was allowed to write shows that the version
// was sealed in a later time than the metadata is of.
func (v *Vault) ownRecords(ctx context.Context, row meta.Version, fence Fence) ([]string, error) {
	names, err := v.records(ctx, row.ID)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	_, last, err := record.ParseName(names[len(names)-1])
	if err != nil {
		return nil, err
	}
	// Revisions are reserved before their records are put: what the metadata says
	// after the records were listed counts. One that is gone since reserves none.
	err = v.db.View(ctx, func(tx *meta.Tx) error {
		now, err := tx.Version(row.ID)
		row.Reserved = max(row.Reserved, now.Reserved)
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		return names, nil
	}
	if err != nil {
		return nil, err
	}
	if last > row.Reserved {
		return nil, v.foundBehind(ctx, fence, "version %s is being written, and has a record of revision %d", row.ID, last)
	}
	return names, nil
}

// dropRecords removes the records of an open version, so that nothing in the
// bucket leads to what is to be deleted of it.
func (v *Vault) dropRecords(ctx context.Context, row meta.Version, fence Fence) error {
	names, err := v.ownRecords(ctx, row, fence)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := v.bucket.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
