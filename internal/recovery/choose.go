package recovery

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/record"
)

// found is one version record of the bucket, or why it cannot be used.
type found struct {
	name     string
	version  snapferry.VersionID // of the name
	revision uint64
	record   *record.Record
	err      error
}

// version is what is to become of a version.
type version struct {
	id       snapferry.VersionID
	rec      *record.Record // the true one; nil: none can be used
	highest  uint64         // revision in the bucket, good or not
	stale    bool           // the record must be written again
	unsure   bool           // a revision above the true one cannot be read
	newer    bool           // a newer program wrote the highest revision
	parent   snapferry.VersionID
	state    snapferry.VersionState
	holds    []record.Hold
	volume   snapferry.VolumeID
	sequence int64
	node     treeNode
	why      string // why it is broken
}

// A forest is the versions of the bucket by chain, after the choice among
// revisions and with forwards followed.
type forest struct {
	versions map[snapferry.VersionID]*version // with a record that counts, forwarded ones too
	unusable map[snapferry.VersionID]*version // no record can be used
	order    map[snapferry.ChainID][]*version // not forwarded, parents first
	graves   map[snapferry.VersionID]*grave   // forwarded
	unproven map[snapferry.ChainID]bool       // the tree is not as it should be
}

// grave is a version that was being spliced out.
type grave struct {
	v     *version
	child snapferry.VersionID // whose record still leads here
}

// choose decides for each version which revision is true: among those that can
// be read and are what their name says, the one with the highest fencing token,
// among these the highest revision.
func choose(all []found, region snapferry.RegionName, fs *findings) *forest {
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(bytes.Compare(a.version[:], b.version[:]), cmp.Compare(a.revision, b.revision))
	})
	f := &forest{
		versions: map[snapferry.VersionID]*version{}, unusable: map[snapferry.VersionID]*version{}, order: map[snapferry.ChainID][]*version{},
		graves: map[snapferry.VersionID]*grave{}, unproven: map[snapferry.ChainID]bool{},
	}
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].version == all[0].version {
			n++
		}
		if v := chooseOne(all[:n], region, fs); v.rec != nil {
			f.versions[v.id] = v
		} else {
			f.unusable[v.id] = v
		}
		all = all[n:]
	}
	return f
}

// chooseOne decides among the revisions of one version, ascending.
func chooseOne(all []found, region snapferry.RegionName, fs *findings) *version {
	v := &version{id: all[0].version, highest: all[len(all)-1].revision}
	newer := uint64(0) // highest revision of a newer format
	for i := range all {
		x := &all[i]
		if x.err == nil {
			x.err = belongs(x, region)
		}
		switch {
		case x.err != nil:
			fs.damage(x.name, v.id, "version record: %v", x.err)
			if snapferry.IsKind(x.err, snapferry.Unsupported) {
				newer = x.revision
			}
		case v.rec == nil || x.record.Token >= v.rec.Token:
			v.rec = x.record
		default:
			fs.note(x.name, v.id, "version record: written under the token %d after that of %d; it does not count", x.record.Token, v.rec.Token)
		}
	}
	if v.rec == nil {
		v.newer = newer > 0
		return v
	}
	if newer > v.rec.Revision {
		v.rec = nil // what a newer program said is true, and not known
		v.newer = true
		return v
	}
	if chain := all[0].record; chain != nil && chain.Chain != v.rec.Chain {
		fs.damage(all[0].name, v.id, "version record: of chain %s, a later one is of chain %s", chain.Chain, v.rec.Chain)
	}
	v.unsure = slices.ContainsFunc(all, func(x found) bool { return x.err != nil && x.revision > v.rec.Revision })
	v.stale = v.rec.Revision < v.highest
	v.state, v.parent, v.holds, v.volume = v.rec.State, v.rec.Parent, v.rec.Holds, v.rec.Volume
	return v
}

func belongs(x *found, region snapferry.RegionName) error {
	r := x.record
	switch {
	case r.Version != x.version || r.Revision != x.revision:
		return snapferry.Errorf(snapferry.Corrupt, "it is revision %d of version %s", r.Revision, r.Version)
	case r.Region != region:
		return snapferry.Errorf(snapferry.Corrupt, "it is of region %s", r.Region)
	case !r.Private():
		return snapferry.Errorf(snapferry.Unsupported, "its private part is sealed, and this program has no keys")
	}
	return nil
}

// link follows forwards, puts the versions of each chain in order, parents
// first, and finds loops.
func (f *forest) link(fs *findings) {
	ids := make([]snapferry.VersionID, 0, len(f.versions))
	for id := range f.versions {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b snapferry.VersionID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		if v := f.versions[id]; v.state == record.Forwarded {
			f.graves[id] = &grave{v: v}
		}
	}
	for _, id := range ids {
		if v := f.versions[id]; v.state != record.Forwarded {
			f.follow(v, fs)
		}
	}
	done := map[snapferry.VersionID]bool{}
	for _, id := range ids {
		f.place(f.versions[id], done, fs)
	}
	for _, all := range f.order {
		f.number(all)
	}
}

// follow finds the parent that a version has when those that were being removed
// are gone.
func (f *forest) follow(v *version, fs *findings) {
	seen := map[snapferry.VersionID]bool{}
	at := v.rec.Parent
	for !at.IsZero() {
		p := f.versions[at]
		switch {
		case seen[at]:
			fs.damage("", v.id, "version record: the forwards from its parent %s go in a circle", v.rec.Parent)
			f.unproven[v.rec.Chain] = true
			at = snapferry.VersionID{}
			continue
		case p == nil:
			fs.damage("", v.id, "version record: its parent %s has no record that can be read", at)
			f.unproven[v.rec.Chain] = true
			at = snapferry.VersionID{}
			continue
		case p.rec.Chain != v.rec.Chain:
			fs.damage("", v.id, "version record: its parent %s is of another chain", at)
			f.unproven[v.rec.Chain] = true
			at = snapferry.VersionID{}
			continue
		}
		if p.state != record.Forwarded {
			break
		}
		seen[at] = true
		if g := f.graves[at]; g.child.IsZero() {
			g.child = v.id
		}
		at = p.rec.Forward
	}
	v.parent = at
	v.stale = v.stale || v.parent != v.rec.Parent
}

// place puts a version behind its parents in the order of its chain. A chain of
// parents can be long: no recursion.
func (f *forest) place(v *version, done map[snapferry.VersionID]bool, fs *findings) {
	var up []*version
	on := map[snapferry.VersionID]bool{}
	for v != nil && v.state != record.Forwarded && !done[v.id] {
		up = append(up, v)
		on[v.id] = true
		if on[v.parent] {
			fs.damage("", v.id, "version record: its parents go in a circle")
			f.unproven[v.rec.Chain] = true
			v.parent, v.stale = snapferry.VersionID{}, true
			break
		}
		v = f.versions[v.parent]
	}
	for _, v := range slices.Backward(up) {
		done[v.id] = true
		f.order[v.rec.Chain] = append(f.order[v.rec.Chain], v)
	}
}

// number gives the versions of each lineage their place in it, by age; a child
// is never before its parent.
func (f *forest) number(all []*version) {
	depth := map[snapferry.VersionID]int{}
	for _, v := range all {
		depth[v.id] = depth[v.parent] + 1
	}
	byVolume := map[snapferry.VolumeID][]*version{}
	for _, v := range all {
		byVolume[v.volume] = append(byVolume[v.volume], v)
	}
	for _, list := range byVolume {
		slices.SortStableFunc(list, func(a, b *version) int {
			return cmp.Or(a.rec.Created.Compare(b.rec.Created), cmp.Compare(depth[a.id], depth[b.id]), bytes.Compare(a.id[:], b.id[:]))
		})
		for i, v := range list {
			v.sequence = int64(i + 1)
		}
	}
}
