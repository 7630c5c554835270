package fsck

import (
	"context"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
)

// slotKey names a frame.
type slotKey struct {
	segment snapferry.SegmentID
	slot    uint16
}

// An attributor finds out which snapshots use what is damaged. It walks each
// map, but no node twice: under one ref there is always the same.
type attributor struct {
	c         *checker
	bySlot    map[slotKey][]int32 // numbers of findings
	bySegment map[snapferry.SegmentID][]int32
	byWriter  map[snapferry.VersionID][]int32 // of whole segments that a version wrote
	nodes     map[slotKey][]int32             // what is under a node, the node included; ascending
}

// attribute tells of each damage which snapshots suffer.
func (c *checker) attribute(ctx context.Context) error {
	c.coarse()
	a := &attributor{
		c: c, bySlot: map[slotKey][]int32{}, bySegment: map[snapferry.SegmentID][]int32{},
		byWriter: map[snapferry.VersionID][]int32{}, nodes: map[slotKey][]int32{},
	}
	for i, f := range c.findings {
		a.index(int32(i), f)
	}
	if len(a.bySlot)+len(a.bySegment) == 0 {
		return nil
	}
	for _, v := range c.state.order {
		if len(v.snapshots) == 0 || v.root == nil {
			continue
		}
		hits, err := a.under(ctx, snapferry.Position{Level: blockmap.RootLevel}, v.root, v.Size)
		if err != nil {
			return err
		}
		for _, i := range hits {
			c.findings[i].snapshots = append(c.findings[i].snapshots, v.snapshots...)
		}
	}
	for _, f := range c.findings {
		slices.Sort(f.snapshots)
		f.snapshots = slices.Compact(f.snapshots)
	}
	return nil
}

func (a *attributor) index(i int32, f *finding) {
	switch {
	case f.severity != Damage:
	case f.isSlot():
		k := slotKey{f.segment, uint16(f.slot)}
		a.bySlot[k] = append(a.bySlot[k], i)
	case f.isSegment():
		a.indexSegment(i, f.segment)
	case f.isObject():
		if o := a.c.state.objects[f.object]; o != nil {
			for _, s := range o.segments {
				a.indexSegment(i, s.ID)
			}
		}
	default:
		if v := a.c.state.versions[f.version]; v != nil && f.snapshots == nil {
			f.snapshots = slices.Sorted(slices.Values(v.snapshots))
		}
	}
}

func (a *attributor) indexSegment(i int32, id snapferry.SegmentID) {
	a.bySegment[id] = append(a.bySegment[id], i)
	if s := a.c.state.segments[id]; s != nil {
		a.byWriter[s.Version] = append(a.byWriter[s.Version], i)
	}
}

// at returns the findings about one frame.
func (a *attributor) at(ref snapferry.Ref) []int32 {
	s, f := a.bySegment[ref.Segment], a.bySlot[slotKey{ref.Segment, ref.Slot}]
	if len(s) == 0 {
		return f
	}
	return append(slices.Clone(s), f...)
}

// under returns the findings about the frames below a node.
func (a *attributor) under(ctx context.Context, at snapferry.Position, n *blockmap.Node, size int64) ([]int32, error) {
	var hits []int32
	k := -1
	for i := range n.Presence.All() {
		k++
		if at.Level == 0 {
			hits = append(hits, a.at(n.Refs[k])...)
			continue
		}
		child := snapferry.Position{Level: at.Level - 1, Index: at.Index*blockmap.Fanout + uint64(i)}
		below, err := a.node(ctx, child, n, k, size)
		if err != nil {
			return nil, err
		}
		hits = append(hits, below...)
	}
	slices.Sort(hits)
	return slices.Clip(slices.Compact(hits)), nil
}

// node returns the findings about the k-th child of n and what is below.
func (a *attributor) node(ctx context.Context, at snapferry.Position, n *blockmap.Node, k int, size int64) ([]int32, error) {
	ref := n.Refs[k]
	key := slotKey{ref.Segment, ref.Slot}
	if hits, ok := a.nodes[key]; ok {
		return hits, nil
	}
	hits := slices.Clone(a.at(ref))
	child, err := a.c.readNode(ctx, at, n.Digests[k], ref, n.Counts[k], size)
	switch {
	case err == nil:
		below, err := a.under(ctx, at, child, size)
		if err != nil {
			return nil, err
		}
		hits = append(hits, below...)
	case !isFinding(err):
		return nil, err
	case len(hits) == 0: // not found before: a fast check reads no frames
		f := &finding{target: a.c.onSlot(ref), severity: Damage, problem: err.Error()}
		if i := a.c.add(f); i >= 0 {
			a.index(int32(i), f)
			hits = append(hits, int32(i))
		}
	}
	if s := a.c.state.segments[ref.Segment]; err != nil && s != nil {
		// What is below cannot be told. The version that wrote the node wrote
		// it because it wrote something below: if whole segments of it are
		// damaged too, they are taken to be that.
		hits = append(hits, a.byWriter[s.Version]...)
	}
	slices.Sort(hits)
	hits = slices.Clip(slices.Compact(hits))
	a.nodes[key] = hits
	return hits, nil
}

// confirm drops the findings about what changed while the region was looked
// at: they mix two states.
func (c *checker) confirm(ctx context.Context) error {
	if len(c.findings) == 0 {
		return nil
	}
	now, err := readState(ctx, c.DB)
	if err != nil {
		return err
	}
	kept := c.findings[:0]
	for _, f := range c.findings {
		stale, err := c.stale(ctx, f, now)
		if err != nil {
			return err
		}
		if !stale {
			kept = append(kept, f)
		}
	}
	c.findings = kept
	return nil
}

func (c *checker) stale(ctx context.Context, f *finding, now *state) (bool, error) {
	switch {
	case !f.segment.IsZero():
		return !sameSegment(c.state.segments[f.segment], now.segments[f.segment]), nil
	case !f.version.IsZero():
		was, is := c.state.versions[f.version], now.versions[f.version]
		if was == nil && is == nil { // a record that nobody knows
			return c.gone(ctx, f.object)
		}
		return was == nil || is == nil || was.Edge != is.Edge, nil
	}
	was, is := c.state.objects[f.object], now.objects[f.object]
	switch {
	case was == nil && is == nil:
		if f.severity == Damage {
			return now.region.Incarnation != c.state.region.Incarnation, nil
		}
		return c.gone(ctx, f.object)
	case was == nil || is == nil || was.registered != is.registered:
		return true, nil
	}
	return !slices.EqualFunc(was.segments, is.segments, sameSegment), nil
}

func sameSegment(a, b *seg) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.State == b.State && a.Object == b.Object && a.Offset == b.Offset && a.Generation == b.Generation &&
		a.Dead == b.Dead && slices.Equal(a.DeadSlots, b.DeadSlots)
}

// gone reports whether an object of the bucket is not there any more.
func (c *checker) gone(ctx context.Context, name string) (bool, error) {
	if name == "" {
		return false, nil
	}
	_, err := c.Bucket.Size(ctx, name)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return true, nil
	}
	return false, err
}
