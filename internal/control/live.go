package control

import (
	"context"
	"path"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
)

// This is how volumes come to be open in a process, and how they are closed.

// live is a volume that may be open in this process.
type live struct {
	// use is shared by who freezes, and held by who takes the volume away.
	use  sync.RWMutex
	mu   sync.Mutex
	head *head.Volume // nil: not open; guarded by mu

	hydration *running // while it runs; guarded by Region.mu
	uploading bool     // by a job of this process; guarded by Region.mu
	more      bool     // something came that the job may not have seen; guarded by Region.mu
}

func (r *Region) live(id snapferry.VolumeID) *live {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.volumes[id]
	if l == nil {
		l = &live{}
		r.volumes[id] = l
	}
	return l
}

func volumeDir(id snapferry.VolumeID) string { return path.Join("volumes", string(id)) }

// Live opens a volume, or returns it as it is open already. It stays open until
// it is deleted or the region stops.
func (r *Region) Live(ctx context.Context, id snapferry.VolumeID) (*head.Volume, error) {
	l := r.live(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head != nil {
		return l.head, nil
	}
	if r.closed.Load() {
		return nil, snapferry.Errorf(snapferry.Unavailable, "region %s is stopping", r.name)
	}
	var row meta.Head
	var frozen uint64
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		if row, err = tx.Head(id); err != nil {
			return err
		}
		uploads, err := tx.Uploads(id)
		frozen = row.Layer // which the folder may not know to be clean yet
		for _, u := range uploads {
			frozen = max(frozen, u.Layer)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if row.State == snapferry.VolumeError {
		return nil, checkUsable(row)
	}
	chain, err := r.chainOf(ctx, id)
	if err != nil {
		return nil, err
	}
	keys, err := r.layerKeys(ctx, chain)
	if err != nil {
		return nil, err
	}
	h, err := head.Open(ctx, head.Config{
		FS: r.files.FS, Dir: volumeDir(id), Caches: r.files.Caches, Keys: keys, Frozen: frozen, Log: r.log,
		Image:    r.imageOf,
		Released: func(snapferry.VersionID) { r.afterwards(func(ctx context.Context) { r.dropBases(ctx, id) }) },
	})
	if err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "open volume %s: %w", id, err)
	}
	if err := r.catchUp(ctx, row, h); err != nil {
		if !snapferry.IsKind(err, snapferry.Full) {
			h.Close()
			return nil, err
		}
		// It still reads its old base, which it holds.
		r.log.WarnContext(ctx, "tell a volume of its base", "volume", id, "err", err)
	}
	h.Keep(row.Rate >= 0)
	l.head = h
	r.afterwards(func(ctx context.Context) { r.dropBases(ctx, id) })
	if base, _ := h.Base(); !base.IsZero() {
		r.afterwards(func(context.Context) {
			if err := r.warm(h.Context(), base); err != nil {
				r.log.Debug("the first reads of a volume will take longer", "volume", id, "err", err)
			}
		})
	}
	return h, nil
}

// chainOf returns the chain of a volume.
func (r *Region) chainOf(ctx context.Context, id snapferry.VolumeID) (chain snapferry.ChainID, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		vol, err := tx.Volume(id)
		chain = vol.Chain
		return err
	})
	return chain, err
}

// layerKeys returns what seals the files of a chain's volumes; nil for a plain chain.
func (r *Region) layerKeys(ctx context.Context, chain snapferry.ChainID) (layer.Keys, error) {
	if r.keys == nil {
		return nil, nil
	}
	return r.keys.Layers(ctx, chain)
}

// warm has the way to the blocks of a version in memory, if it is sealed.
func (r *Region) warm(ctx context.Context, version snapferry.VersionID) error {
	row, err := r.versionRow(ctx, version)
	if err != nil || row.State == snapferry.VersionOpen {
		return err
	}
	return r.vault.Warm(ctx, version)
}

// catchUp tells a volume what a crash, or want of room, kept from it: an error of
// Kind Full says that there is still no room for that. One that has no such layer
// is ahead of the metadata, which then learns from it.
func (r *Region) catchUp(ctx context.Context, row meta.Head, h *head.Volume) error {
	base, clean := h.Base()
	if base != row.Base && row.State != snapferry.VolumeRollingBack {
		err := h.Sealed(ctx, row.Layer, row.Base)
		if snapferry.IsKind(err, snapferry.Conflict) {
			err = again(r.followFolder(ctx, row.ID, base, clean))
		}
		if err != nil {
			return err
		}
	}
	if size := h.Size(); size > row.Size {
		return r.db.Update(ctx, func(tx *meta.Tx) error {
			now, err := tx.Head(row.ID)
			if err != nil {
				return err
			}
			now.Size = size
			return tx.UpdateHead(now)
		})
	}
	return nil
}

// afterwards runs fn beside everything else; the region waits for it when it
// stops.
func (r *Region) afterwards(fn func(context.Context)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return // the next start does it
	}
	r.behind.Go(func() { fn(context.Background()) })
}

// closeVolumes ends everything that uses local files.
func (r *Region) closeVolumes() {
	r.mu.Lock()
	r.closed.Store(true)
	all := make(map[snapferry.VolumeID]*live, len(r.volumes))
	for id, l := range r.volumes {
		all[id] = l
	}
	r.mu.Unlock()
	for _, l := range all {
		l.interrupt()
	}
	r.behind.Wait()
	for id, l := range all {
		r.stopServing(id, l)
		l.mu.Lock()
		r.closeVolume(id, l)
		l.mu.Unlock()
	}
}

// interrupt ends whatever waits for the base of a volume, and merges.
func (l *live) interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head != nil {
		l.head.Interrupt()
	}
}

// stopServing ends the connections to a volume, which can be closed then.
func (r *Region) stopServing(id snapferry.VolumeID, l *live) {
	l.interrupt() // else a client's read may wait for the bucket
	if r.files.Exporter == nil {
		return
	}
	if err := r.files.Exporter.Stop(id); err != nil {
		r.log.Error("stop serving a volume", "volume", id, "err", err)
	}
}

// closeVolume closes a volume, if it is open; l.mu is held.
func (r *Region) closeVolume(id snapferry.VolumeID, l *live) {
	if l.head == nil {
		return
	}
	if err := l.head.Close(); err != nil {
		r.log.Error("close volume", "volume", id, "err", err)
	}
	l.head = nil
}

// startVolumes takes up what the last process of the region left.
func (r *Region) startVolumes(ctx context.Context) error {
	if r.files.FS == nil {
		return nil
	}
	// The folder of all volumes may be new, and not be there after a power cut.
	if err := r.files.FS.SyncDir("."); err != nil {
		return err
	}
	if err := r.adoptVolumes(ctx); err != nil {
		return err
	}
	var rows []meta.Head
	err := r.db.Update(ctx, func(tx *meta.Tx) (err error) {
		if rows, err = tx.Heads(""); err != nil {
			return err
		}
		for _, h := range rows {
			if err := enqueueVolumeWork(tx, h); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, h := range rows {
		if h.State == snapferry.VolumeCreating {
			err := r.makeVolume(ctx, h, true)
			if snapferry.IsKind(err, snapferry.KeyUnusable) {
				err = r.db.Update(ctx, func(tx *meta.Tx) error {
					return job.Enqueue(tx, job.Job{Kind: jobMake, Account: h.Account, Subject: string(h.ID), Lane: job.Upkeep})
				})
			}
			if err != nil {
				r.log.Error("a volume could not be made", "volume", h.ID, "err", err)
			}
		}
		if h.State == snapferry.VolumeExported && r.files.Exporter != nil {
			if _, err := r.files.Exporter.Serve(h.ID, h.Name, *h.Export); err != nil {
				r.log.Error("a volume could not be served again", "volume", h.ID, "err", err)
			}
		}
	}
	return nil
}

// enqueueVolumeWork gives a volume the jobs for which something is to be done.
func enqueueVolumeWork(tx *meta.Tx, h meta.Head) error {
	uploads, err := tx.Uploads(h.ID)
	if err != nil {
		return err
	}
	kind, lane := "", 0
	switch {
	case len(uploads) > 0:
		kind = jobUpload // what follows is enqueued by its end
	case h.State == snapferry.VolumeDeleting:
		kind, lane = jobUnmake, job.Upkeep
	case h.State == snapferry.VolumeRollingBack:
		kind, lane = jobRollback, job.Upkeep
	default:
		return nil
	}
	queued, err := tx.HastenJob(kind, string(h.ID))
	if err != nil || queued {
		return err
	}
	return job.Enqueue(tx, job.Job{Kind: kind, Account: h.Account, Subject: string(h.ID), Lane: lane})
}
