package vault

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

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
	// begin, if not nil, joins the transaction that reserves the number, on the
	// same edge.
	begin func(tx *meta.Tx) error
	// commit is called in the transaction with row, its revision set; it must
	// compare the edge, as UpdateVersion does. It may run twice.
	commit func(tx *meta.Tx, row meta.Version) error

	rec      *record.Record
	reserved bool  // it has its number
	err      error // why it was given up
}

// A leftOut is the error of a revision before which nothing of it was written in
// the transaction: the others in it go on.
type leftOut struct{ error }

func (e leftOut) Unwrap() error { return e.error }

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
	v.reviseAll(ctx, r.fence, []*revision{&r}, true)
	return r.err
}

// puts is how many records are written at a time.
const puts = 8

// reviseAll is revise for records of several versions, in the same two
// transactions. What became of each is in its err; one whose version has changed
// meanwhile does not keep the others, unless they are one whole.
func (v *Vault) reviseAll(ctx context.Context, fence Fence, rs []*revision, whole bool) {
	err := v.db.View(ctx, func(tx *meta.Tx) error {
		region, err := tx.Region()
		for _, r := range rs {
			if err == nil {
				r.rec, r.err = v.recordOf(tx, region.Incarnation, r)
			}
		}
		return err
	})
	for _, r := range rs {
		if err != nil {
			r.err = err
		}
	}
	for _, step := range []func([]*revision){
		func(rs []*revision) { v.reserve(ctx, fence, rs) },
		func(rs []*revision) { v.putRecords(ctx, rs) },
		func(rs []*revision) { v.commitAll(ctx, fence, rs) },
	} {
		step(left(rs))
		if whole {
			giveUp(rs)
		}
	}
	var failed []snapferry.VersionID
	for _, r := range rs {
		if r.err != nil {
			failed = append(failed, r.row.ID)
		}
	}
	v.doubt(ctx, failed)
}

// giveUp gives all revisions up when one of them was.
func giveUp(rs []*revision) {
	i := slices.IndexFunc(rs, func(r *revision) bool { return r.err != nil })
	for _, r := range rs {
		if i >= 0 && r.err == nil {
			r.err = rs[i].err
		}
	}
}

// left are the revisions that were not given up.
func left(rs []*revision) (ok []*revision) {
	for _, r := range rs {
		if r.err == nil {
			ok = append(ok, r)
		}
	}
	return ok
}

// together runs fn for each revision in one transaction.
func (v *Vault) together(ctx context.Context, rs []*revision, guard Fence, fn func(tx *meta.Tx, r *revision) error) {
	if len(rs) == 0 {
		return
	}
	errs := make([]error, len(rs))
	err := v.db.Update(ctx, func(tx *meta.Tx) error {
		clear(errs)
		if err := guard(tx); err != nil {
			return err
		}
		for i, r := range rs {
			err := fn(tx, r)
			var out leftOut
			if errors.As(err, &out) {
				errs[i] = out.error
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	for i, r := range rs {
		if r.err = errs[i]; err != nil {
			r.err = err
		}
	}
}

// reserve gives records their numbers.
func (v *Vault) reserve(ctx context.Context, fence Fence, rs []*revision) {
	guard := func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		return notBehind(tx)
	}
	v.together(ctx, rs, guard, func(tx *meta.Tx, r *revision) (err error) {
		r.rec.Revision, err = tx.ReserveRevision(r.rec.Version, r.edge)
		if snapferry.IsKind(err, snapferry.Conflict) || snapferry.IsKind(err, snapferry.NotFound) {
			return leftOut{err}
		}
		if err != nil || r.begin == nil {
			return err
		}
		return r.begin(tx)
	})
	for _, r := range left(rs) {
		r.reserved = true
	}
}

// putRecords writes records under the numbers they were given.
func (v *Vault) putRecords(ctx context.Context, rs []*revision) {
	var g errgroup.Group // one that cannot be written does not keep the others
	g.SetLimit(puts)
	for _, r := range rs {
		g.Go(func() error {
			r.err = v.putRecord(ctx, r.rec)
			return nil
		})
	}
	_ = g.Wait()
}

// putRecord writes a record. A number that is taken although it was never given
// to anybody shows that the metadata is behind.
func (v *Vault) putRecord(ctx context.Context, rec *record.Record) error {
	s, err := v.recordSealer(ctx, rec.Chain, rec.Version)
	if err != nil {
		return err
	}
	p, err := rec.Encode(v.sign, s)
	if err != nil {
		return err
	}
	err = v.bucket.Put(ctx, record.Name(rec.Version, rec.Revision), p)
	if snapferry.IsKind(err, snapferry.Exists) {
		return v.foundBehind(ctx, noFence, "version %s has a record of revision %d, which nobody was allowed to write", rec.Version, rec.Revision)
	}
	return err
}

// commitAll makes what the records say true.
func (v *Vault) commitAll(ctx context.Context, fence Fence, rs []*revision) {
	v.together(ctx, rs, fence, func(tx *meta.Tx, r *revision) error {
		row := r.row
		row.Revision = r.rec.Revision
		if err := r.commit(tx, row); err != nil {
			return err
		}
		return recorded(tx, row)
	})
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

// doubt marks versions whose newest record may not be the truth. Should that
// fail too, the next start finds them by their reserved revision.
func (v *Vault) doubt(ctx context.Context, ids []snapferry.VersionID) {
	if len(ids) == 0 {
		return
	}
	err := v.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
		for _, id := range ids {
			row, err := tx.Version(id)
			if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (row.Reserved == row.Revision || row.State == snapferry.VersionOpen) {
				continue
			}
			if err == nil {
				err = tx.SetStale(id, true)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		v.log.WarnContext(ctx, "version records that were not committed stay until the next start", "versions", ids, "err", err)
	}
}

// recordOf is what a revision says.
func (v *Vault) recordOf(tx *meta.Tx, incarnation uint64, c *revision) (*record.Record, error) {
	row := c.row
	r := &record.Record{
		Version: row.ID, Chain: row.Chain, Parent: row.Parent, State: row.State, Region: v.region, Incarnation: incarnation, Volume: row.Volume,
		Token: row.Token, Algorithm: row.Algorithm, Size: row.Size, Blocks: row.Blocks, Created: row.Created, Root: row.Root, Digest: row.Digest,
	}
	if r.State == snapferry.VersionBroken {
		r.State = snapferry.VersionSealed // that it cannot be read is no news for the bucket
	}
	if c.forwarded {
		r.State, r.Forward = record.Forwarded, c.forward
	}
	chain, err := tx.Chain(row.Chain)
	if err != nil {
		return nil, err
	}
	r.Account = chain.Account
	holds, err := tx.Holds(row.ID)
	if err != nil {
		return nil, err
	}
	for _, h := range c.change.apply(holds) {
		if h.Kind == HoldReader {
			continue
		}
		rh, err := durableHold(tx, h)
		if err != nil {
			return nil, err
		}
		r.Holds = append(r.Holds, rh)
		if h.Kind == HoldSnapshot && r.Set == nil {
			if r.Set, err = setOf(tx, snapferry.SnapshotID(h.Owner), row.ID); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// setOf is what a record says of the set that a snapshot of version is a member of:
// the versions of its members, as far as they are known and not deleted.
func setOf(tx *meta.Tx, id snapferry.SnapshotID, version snapferry.VersionID) (*record.Set, error) {
	s, err := tx.Snapshot(id)
	if err != nil || s.Set == "" {
		return nil, err
	}
	all, err := tx.SnapshotsOfSet(s.Set)
	set := &record.Set{ID: string(s.Set)}
	for _, m := range all {
		if v := m.Version; !v.IsZero() && !slices.Contains(set.Members, v) {
			set.Members = append(set.Members, v)
		}
	}
	if !slices.Contains(set.Members, version) {
		set.Members = append(set.Members, version)
	}
	return set, err
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
	rh.Created, rh.RetainUntil, rh.SetSize = s.Created, s.RetainUntil, uint64(s.SetSize)
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
	r := rewriting(row)
	v.reviseAll(ctx, fence, []*revision{r}, true)
	return r.err
}

// rewriting is the revision that says again what a version is.
func rewriting(row meta.Version) *revision {
	return &revision{row: row, edge: row.Edge, commit: func(tx *meta.Tx, now meta.Version) error {
		err := tx.UpdateVersion(now, row.Edge)
		if snapferry.IsKind(err, snapferry.Conflict) || snapferry.IsKind(err, snapferry.NotFound) {
			return leftOut{err}
		}
		return err
	}}
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
