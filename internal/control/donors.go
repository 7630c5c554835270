package control

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
)

// What a copy wants may be in the region already, in another chain: under another key,
// or of another volume. Such a chain is a donor: its blocks are read, checked and
// stored again in the chain of the copy, and need not cross. A copy never depends on
// its donors: what they do not give comes from the source.

// maxDonors is how many versions of other chains a copy looks into.
const maxDonors = 3

// donors are versions that a copy may take content from, held until release.
type donors struct {
	region *Region
	of     []*donor
	beat   func() // called when something came of them
}

type donor struct {
	version  snapferry.VersionID
	snapshot snapferry.SnapshotID // that has it; empty when that was deleted
	m        blockmap.Map
	release  func()
	blocks   atomic.Int64 // that it has of what is wanted, and none before it
}

// donorsOf returns the donors of a copy that goes to a chain, which is zero while it
// does not exist. Those that cannot be read now are none; nothing is an error, for
// everything is at the source.
func (r *Region) donorsOf(ctx context.Context, account snapferry.AccountID, from snapferry.RegionName, d transfer.Description, chain snapferry.ChainID) *donors {
	ds := &donors{region: r, beat: func() {}}
	if from == r.name {
		return ds // the source itself is here
	}
	var rows []meta.Version
	named := map[snapferry.VersionID]snapferry.SnapshotID{}
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		if rows, err = findDonors(tx, account, from, d, chain); err != nil {
			return err
		}
		for _, v := range rows {
			named[v.ID] = visibleParent(tx, v.ID)
		}
		return nil
	})
	if err != nil {
		r.log.WarnContext(ctx, "what the region has in other chains is not looked for", "source", d.Snapshot, "err", err)
		return ds
	}
	for _, v := range rows {
		m, release, err := r.lending(ctx, v)
		if err != nil {
			r.log.InfoContext(ctx, "what the region has in another chain is not used", "version", v.ID, "err", err)
			continue
		}
		ds.of = append(ds.of, &donor{version: v.ID, snapshot: named[v.ID], m: m, release: release})
	}
	return ds
}

// lending holds a version of another chain, whose key must be one that may be used.
func (r *Region) lending(ctx context.Context, v meta.Version) (m blockmap.Map, release func(), err error) {
	if r.keys != nil {
		if err := r.keys.Try(ctx, v.Chain); err != nil {
			return m, nil, err
		}
	}
	return r.reading(ctx, v.ID)
}

// findDonors returns versions of the account, one of a chain, that probably have much
// of what is described: those with its content or that of its ancestors, and what
// another copy of its lineage would be incremental on.
func findDonors(tx *meta.Tx, account snapferry.AccountID, from snapferry.RegionName, d transfer.Description, chain snapferry.ChainID) (all []meta.Version, err error) {
	add := func(v meta.Version) {
		known := func(x meta.Version) bool { return x.Chain == v.Chain }
		if v.State == snapferry.VersionSealed && v.Chain != chain && len(all) < maxDonors && !slices.ContainsFunc(all, known) {
			all = append(all, v)
		}
	}
	for _, want := range append([]digest.Digest{d.Digest}, d.Lineage...) {
		found, err := tx.VersionsByDigest(account, want)
		if err != nil {
			return nil, err
		}
		for _, v := range found {
			add(v)
		}
		if len(all) == maxDonors {
			return all, nil
		}
	}
	chains, err := tx.ChainsByOrigin(account, from, d.Chain)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		vol, err := tx.VolumeByOrigin(account, from, d.VolumeID, c.Key)
		if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return nil, err
		}
		vol.Chain = c.ID
		v, ok, err := chooseBase(tx, vol, d)
		if err != nil {
			return nil, err
		}
		if ok {
			add(v)
		}
	}
	return all, nil
}

// close lets go of what was held.
func (ds *donors) close() {
	if ds == nil {
		return
	}
	for _, d := range ds.of {
		d.release()
	}
	ds.of = nil
}

// donor is what a copy asks; nil when there are none.
func (ds *donors) donor() transfer.Donor {
	if ds == nil || len(ds.of) == 0 {
		return nil
	}
	return ds
}

// used returns the snapshots that have blocks which a plan wants.
func (ds *donors) used() (ids []snapferry.SnapshotID) {
	if ds == nil {
		return nil
	}
	for _, d := range ds.of {
		if d.blocks.Load() > 0 && d.snapshot != "" {
			ids = append(ids, d.snapshot)
		}
	}
	return ids
}

// share calls fn with each donor and what it has of the blocks of a leaf that those
// before it have not.
func (ds *donors) share(ctx context.Context, leaf uint64, n *blockmap.Node, want blockmap.Bitmap, fn func(d *donor, has blockmap.Bitmap)) {
	for _, d := range ds.of {
		if want == (blockmap.Bitmap{}) {
			return
		}
		x, err := d.m.Leaf(ctx, leaf)
		if err != nil || x == nil {
			continue
		}
		var has blockmap.Bitmap
		for i := range want.All() {
			content, _, _ := n.Child(i)
			if have, _, ok := x.Child(i); ok && have == content {
				has.Set(i)
			}
		}
		if has == (blockmap.Bitmap{}) {
			continue
		}
		for i := range has.All() {
			want.Clear(i)
		}
		fn(d, has)
	}
}

// Has implements transfer.Donor.
func (ds *donors) Has(ctx context.Context, leaf uint64, n *blockmap.Node, want blockmap.Bitmap) (all blockmap.Bitmap) {
	ds.share(ctx, leaf, n, want, func(d *donor, has blockmap.Bitmap) {
		d.blocks.Add(int64(has.Count()))
		for i := range has.All() {
			all.Set(i)
		}
	})
	return all
}

// Blocks implements transfer.Donor.
func (ds *donors) Blocks(ctx context.Context, loans []transfer.Loan) (transfer.Frames, error) {
	var parts []mapPart
	for _, l := range loans {
		ds.share(ctx, l.Leaf, l.Node, l.Blocks, func(d *donor, has blockmap.Bitmap) {
			parts = append(parts, mapPart{d.m, transfer.Want{Leaf: l.Leaf, Blocks: has}})
		})
	}
	return &lentFrames{ds.region.newBlockStream(ctx, parts), ds.beat}, nil
}

// lentFrames streams what donors have.
type lentFrames struct {
	blockStream
	beat func()
}

// Next implements transfer.Frames.
func (f *lentFrames) Next() (transfer.Frame, error) {
	x, err := f.next()
	if err == nil {
		f.beat()
	}
	return x, err
}

// Close implements transfer.Frames.
func (f *lentFrames) Close() error {
	f.close()
	return nil
}
