package vault

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// A revision is a new revision of a version's record and the transaction that
// makes it the true one.
type revision struct {
	row    meta.Version // as it is to become
	edge   int64        // of the state that row was made from
	change change       // of its holds
	// forward, in a revision that hands the version's children to forward.
	forwarded bool
	forward   snapferry.VersionID
	fence     Fence
	// commit is called in the transaction with row, its revision set; it must
	// compare the edge, as UpdateVersion does. It may run twice.
	commit func(tx *meta.Tx, row meta.Version) error
}

func noFence(*meta.Tx) error { return nil }

// revise gives a record its number, writes it and commits. The number is
// reserved, and the record made from, a state that the commit then finds
// unchanged, or fails with Conflict. So the newest record in the bucket is that
// of what is committed, or of one step after it: whoever recovers from the
// bucket finds the state before or after the step, and never one that was left
// behind. When the step fails, the record it may have written is a lie as soon
// as its caller gave up: the version is marked, so that the truth is written
// above it.
func (v *Vault) revise(ctx context.Context, r revision) error {
	rec, err := v.record(ctx, r)
	if err != nil {
		return err
	}
	row := r.row
	if row.Revision, err = v.putRecord(ctx, rec, r); err == nil {
		err = v.db.Update(ctx, func(tx *meta.Tx) error {
			if err := r.fence(tx); err != nil {
				return err
			}
			if err := r.commit(tx, row); err != nil {
				return err
			}
			return recorded(tx, row)
		})
	}
	if err != nil {
		v.doubt(ctx, row.ID)
	}
	return err
}

// recorded notes that the newest record of a version is the truth, unless
// somebody else was given a higher revision meanwhile: it may be written and never
// be committed.
func recorded(tx *meta.Tx, row meta.Version) error {
	now, err := tx.Version(row.ID)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil // spliced out
	}
	if err != nil {
		return err
	}
	return tx.SetStale(row.ID, now.Reserved > row.Revision)
}

// doubt marks a version whose newest record may not be the truth. Should that
// fail too, the next start finds it by its reserved revision.
func (v *Vault) doubt(ctx context.Context, id snapferry.VersionID) {
	err := v.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
		row, err := tx.Version(id)
		if err != nil || row.Reserved == row.Revision || row.State == snapferry.VersionOpen {
			return err
		}
		return tx.SetStale(id, true)
	})
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		v.log.WarnContext(ctx, "a version record that was not committed stays until the next start", "version", id, "err", err)
	}
}

// putRecord reserves a revision and writes the record under it. One that is taken
// although it was never given to anybody shows that the metadata is behind.
func (v *Vault) putRecord(ctx context.Context, rec *record.Record, r revision) (uint64, error) {
	err := v.db.Update(ctx, func(tx *meta.Tx) (err error) {
		if err := r.fence(tx); err != nil {
			return err
		}
		if err := notBehind(tx); err != nil {
			return err
		}
		rec.Revision, err = tx.ReserveRevision(rec.Version, r.edge)
		return err
	})
	if err != nil {
		return 0, err
	}
	p, err := rec.Encode(v.sign, nil)
	if err != nil {
		return 0, err
	}
	err = v.bucket.Put(ctx, record.Name(rec.Version, rec.Revision), p)
	if snapferry.IsKind(err, snapferry.Exists) {
		return 0, v.foundBehind(ctx, noFence, "version %s has a record of revision %d, which nobody was allowed to write", rec.Version, rec.Revision)
	}
	return rec.Revision, err
}

// record is what a revision says.
func (v *Vault) record(ctx context.Context, c revision) (*record.Record, error) {
	row := c.row
	r := &record.Record{
		Version: row.ID, Chain: row.Chain, Parent: row.Parent, State: row.State, Region: v.region, Volume: row.Volume,
		Token: row.Token, Algorithm: row.Algorithm, Size: row.Size, Blocks: row.Blocks, Created: row.Created, Root: row.Root, Digest: row.Digest,
	}
	if r.State == snapferry.VersionBroken {
		r.State = snapferry.VersionSealed // that it cannot be read is no news for the bucket
	}
	if c.forwarded {
		r.State, r.Forward = record.Forwarded, c.forward
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
		for _, h := range c.change.apply(holds) {
			if h.Kind == HoldReader {
				continue
			}
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
	if h.Kind == HoldPin {
		return rh, durablePin(tx, h, &rh)
	}
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
	vol, err := tx.Volume(s.VolumeID)
	if err == nil && s.Source != nil && vol.OriginRegion == s.Source.Region {
		rh.SourceLineage = vol.OriginVolume
	}
	return rh, err
}

// durablePin adds who keeps a pin, as far as that is known.
func durablePin(tx *meta.Tx, h meta.Hold, rh *record.Hold) error {
	if h.Pin == nil {
		p, err := tx.Pin(h.Owner)
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Pin = &p
	}
	rh.PinRegion, rh.PinIncarnation, rh.PinCopy, rh.PinSnapshot = h.Pin.Region, h.Pin.Incarnation, h.Pin.Copy, h.Pin.Snapshot
	return nil
}

// rewrite writes the record of a complete version again, because the newest one
// in the bucket is not what the metadata says.
func (v *Vault) rewrite(ctx context.Context, row meta.Version, fence Fence) error {
	return v.revise(ctx, revision{row: row, edge: row.Edge, fence: fence, commit: func(tx *meta.Tx, now meta.Version) error {
		return tx.UpdateVersion(now, row.Edge)
	}})
}

// records lists the names of the records of a version, in order.
func (v *Vault) records(ctx context.Context, id snapferry.VersionID) (names []string, err error) {
	first := record.Name(id, 0)
	prefix := first[:len(first)-len("00000000000000000000")]
	err = v.bucket.List(ctx, prefix, "", func(i blob.Info) error {
		names = append(names, i.Name)
		return nil
	})
	return names, err
}

// recordsUntil is records with the newest until a revision, whether they are
// listed or not: one that a bucket lists late, and that stays when its version
// is forgotten, would be taken for a sign of later times.
func (v *Vault) recordsUntil(ctx context.Context, id snapferry.VersionID, revision uint64) ([]string, error) {
	const newest = 3
	names, err := v.records(ctx, id)
	if err != nil {
		return nil, err
	}
	last := revision - min(revision, newest)
	if n := len(names); n > 0 {
		_, listed, err := record.ParseName(names[n-1])
		if err != nil {
			return nil, err
		}
		last = max(last, listed)
	}
	for n := last + 1; n <= revision; n++ {
		names = append(names, record.Name(id, n))
	}
	return names, nil
}
