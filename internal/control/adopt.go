package control

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// Metadata that was rebuilt from the bucket knows no live volumes, and metadata
// that was merged may know less than their folders do. The folders say what is
// theirs; what they do not say, tags and how they were exported, is lost.

// adoptVolumes makes the volumes known whose folders are there and whose rows are
// not, and releases what volumes held that are gone with their folders.
func (r *Region) adoptVolumes(ctx context.Context) error {
	names, err := r.files.FS.ReadDir("volumes")
	if err != nil {
		return err
	}
	for _, name := range names {
		id, err := snapferry.ParseVolumeID(name)
		if err != nil {
			continue // not ours
		}
		_, _, err = r.idleHead(ctx, id)
		if err == nil {
			continue
		}
		if snapferry.IsKind(err, snapferry.NotFound) {
			err = r.adopt(ctx, id)
		}
		if err != nil {
			// Nothing of it is touched; whoever looks at the log can.
			r.log.ErrorContext(ctx, "the folder of a volume that is not known is left alone", "volume", id, "err", err)
		}
	}
	return r.releaseOrphans(ctx)
}

// adopt makes a volume of a folder.
func (r *Region) adopt(ctx context.Context, id snapferry.VolumeID) error {
	size, base, clean, err := head.Look(r.files.FS, volumeDir(id))
	if err != nil {
		return err
	}
	insert := func(tx *meta.Tx) error {
		vol, err := tx.Volume(id)
		if err != nil {
			return err
		}
		h := meta.Head{ID: id, Account: vol.Account, State: snapferry.VolumeAvailable, Size: size, Base: base, Layer: clean, Rate: -1, Created: time.Now()}
		if err := tx.InsertHead(h); err != nil {
			return err
		}
		return audit(tx, vol.Account, "AdoptVolume", string(id), vol.Name)
	}
	if base.IsZero() {
		err = r.db.Update(ctx, insert)
	} else {
		err = r.orRepair(ctx, base, r.vault.Hold(ctx, volumeHold(base, id), insert))
	}
	if err == nil {
		r.log.InfoContext(ctx, "a volume is known again by its folder", "volume", id)
	}
	return err
}

// followFolder tells the metadata of a newer base that a volume's folder names.
func (r *Region) followFolder(ctx context.Context, id snapferry.VolumeID, base snapferry.VersionID, clean uint64) error {
	err := r.vault.Hold(ctx, volumeHold(base, id), func(tx *meta.Tx) error {
		h, err := tx.Head(id)
		if err != nil {
			return err
		}
		h.Base, h.Layer = base, clean
		return tx.UpdateHead(h)
	})
	return r.orRepair(ctx, base, err)
}

// releaseOrphans releases the versions that were the base of volumes that are
// gone.
func (r *Region) releaseOrphans(ctx context.Context) error {
	var orphans []meta.Hold
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		all, err := tx.HoldsOfKind(vault.HoldVolume)
		for _, x := range all {
			if _, herr := tx.Head(snapferry.VolumeID(x.Owner)); snapferry.IsKind(herr, snapferry.NotFound) {
				orphans = append(orphans, x)
			} else if herr != nil {
				return herr
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, x := range orphans {
		if _, _, _, err := head.Look(r.files.FS, volumeDir(snapferry.VolumeID(x.Owner))); !snapferry.IsKind(err, snapferry.NotFound) {
			continue // its folder is there, and could not be adopted
		}
		err := r.vault.Release(ctx, x, func(tx *meta.Tx) error { return freeAround(tx, x.Version) })
		if r.orRepair(ctx, x.Version, err) != nil {
			r.log.WarnContext(ctx, "what a volume held that is gone stays until the next start", "version", x.Version, "err", err)
		}
	}
	return nil
}
