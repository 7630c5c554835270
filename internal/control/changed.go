package control

import (
	"context"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/meta"
)

// maxSince is how many snapshots of a volume SnapshotsOfVolume returns.
const maxSince = 1000

// SnapshotsOfVolume returns the snapshots that ChangedSince can tell the changes
// since: the ready ones of a live volume, the newest 1,000, and the one that it
// was made from.
func (r *Region) SnapshotsOfVolume(ctx context.Context, volume snapferry.VolumeID) (ids []snapferry.SnapshotID, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		h, err := tx.Head(volume)
		if err != nil {
			return err
		}
		rows, err := tx.Snapshots(h.Account, meta.SnapshotFilter{VolumeID: volume, State: snapferry.SnapshotReady, Limit: maxSince})
		for _, s := range rows {
			ids = append(ids, s.ID)
		}
		if err != nil || h.Snapshot == "" {
			return err
		}
		if s, err := tx.Snapshot(h.Snapshot); err == nil && s.State == snapferry.SnapshotReady && s.VolumeID != volume {
			ids = append(ids, s.ID)
		}
		return nil
	})
	return ids, err
}

// Changes answers what of a volume has changed since one of its snapshots: more
// than has may be said to, nothing less. It is safe for concurrent use.
type Changes struct {
	region   *Region
	volume   *head.Volume
	snapshot blockmap.Map
	release  func()

	mu   sync.Mutex
	base snapferry.VersionID // that sealed is about; guarded by mu
	// sealed is what differs between the snapshot and base; guarded by mu.
	sealed *coarseSet
}

// ChangedSince returns what of a live volume has changed since a ready snapshot
// of it, or since the one that it was made from. It keeps the snapshot's version
// until Close. NotFound for other snapshots, Conflict for one that is not ready.
func (r *Region) ChangedSince(ctx context.Context, volume snapferry.VolumeID, id snapferry.SnapshotID) (*Changes, error) {
	var account snapferry.AccountID
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		h, err := tx.Head(volume)
		if err != nil {
			return err
		}
		s, err := own(tx, h.Account, id)
		if err == nil && s.VolumeID != volume && id != h.Snapshot {
			return notFound(id)
		}
		account = h.Account
		return err
	})
	if err != nil {
		return nil, err
	}
	h, err := r.Live(ctx, volume)
	if err != nil {
		return nil, err
	}
	m, release, err := r.readyMap(ctx, account, id)
	if err != nil {
		return nil, err
	}
	return &Changes{region: r, volume: h, snapshot: m, release: release}, nil
}

// Close gives the snapshot's version back.
func (c *Changes) Close() { c.release() }

// Run returns for how many bytes from off on, at most n, the volume is alike:
// changed, or not. n is at least 1. The first call reads what differs between
// the maps of the snapshot and of the volume's base, as does one after another
// snapshot of the volume became ready.
func (c *Changes) Run(ctx context.Context, off, n int64) (length int64, changed bool, err error) {
	for {
		sealed, base, err := c.differences(ctx)
		if err != nil {
			return 0, false, err
		}
		length, changed, err = c.volume.Dirty(off, n)
		if err != nil {
			return 0, false, err
		}
		// What was dirty may be in a newer base by now.
		if now, _ := c.volume.Base(); now != base {
			continue
		}
		if !changed {
			length, changed = sealed.set.Run(off, length)
		} else if more, also := sealed.set.Run(off, n); also {
			length = max(length, more)
		}
		return length, changed, nil
	}
}

// differences returns what differs between the snapshot and the volume's base,
// and that.
func (c *Changes) differences(ctx context.Context) (*coarseSet, snapferry.VersionID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		base, _ := c.volume.Base()
		if c.sealed != nil && base == c.base {
			return c.sealed, base, nil
		}
		set, err := c.compare(ctx, base)
		if now, _ := c.volume.Base(); err != nil && now != base {
			continue // it may be gone
		}
		if err != nil {
			return nil, base, err
		}
		c.sealed, c.base = set, base
	}
}

// compare reads what differs between the snapshot and a version.
func (c *Changes) compare(ctx context.Context, base snapferry.VersionID) (*coarseSet, error) {
	m := blockmap.Map{Size: c.snapshot.Size}
	if !base.IsZero() {
		var release func()
		var err error
		if m, release, err = c.region.reading(ctx, base); err != nil {
			return nil, err
		}
		defer release()
	}
	set := &coarseSet{grain: snapferry.BlockSize, most: maxChanges}
	err := blockmap.Diff(ctx, c.snapshot, m, blockmap.SameDigest, func(leaf uint64, la, lb *blockmap.Node) error {
		changed := blockmap.Changed(la, lb)
		for i := range changed.All() {
			set.add(int64(leaf)*blockmap.LeafSpan + int64(i)*snapferry.BlockSize)
		}
		return nil
	})
	return set, err
}

// maxChanges bounds the memory of a coarseSet: 4 MiB.
const maxChanges = 1 << 18

// coarseSet is a set of grains of bytes. One of too many extents takes a larger
// grain, and with that more than was added.
type coarseSet struct {
	set   extent.Set
	grain int64
	most  int // extents
}

// add adds the grain that off lies in.
func (s *coarseSet) add(off int64) {
	s.set.Add(extent.Extent{Off: off / s.grain * s.grain, Len: s.grain})
	for s.set.Count() > s.most {
		s.grain *= 2
		var coarse extent.Set
		for e := range s.set.All() {
			from := e.Off / s.grain * s.grain
			to := (e.End() + s.grain - 1) / s.grain * s.grain
			coarse.Add(extent.Extent{Off: from, Len: to - from})
		}
		s.set = coarse
	}
}
