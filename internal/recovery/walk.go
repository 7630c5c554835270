package recovery

import (
	"context"
	"errors"
	"fmt"

	"github.com/maypok86/otter/v2"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/record"
)

const (
	nodeCacheBytes = 32 << 20
	// windowSize is the unit in which node segments are read: a subtree is one
	// contiguous range, so neighbours come along.
	windowSize = 512 << 10
	// maxMissing bounds what is told of one version.
	maxMissing = 5
)

// treeNode is what the walk knows of a version.
type treeNode struct {
	m     blockmap.Map
	known bool     // the root is sound
	whole bool     // all that it refers to is there
	above *version // the nearest version above whose map is whole; nil: none
}

// A walker walks the maps of one chain, parents before children, and only where
// a child's ref is not that of the version above: the cost is the sum of the
// changes. A child of a version that is not whole is held against the next one
// above that is, so nothing is believed because a broken version has it too.
type walker struct {
	inv      *inventory
	nodes    *otter.Cache[nodeKey, *blockmap.Node]
	findings *findings
	chain    snapferry.ChainID
	children map[snapferry.VersionID][]*version

	twice  bool // a slot came into the chain at two versions
	broken bool // a version is not whole
}

type nodeKey struct {
	chain snapferry.ChainID
	ref   snapferry.Ref
}

func newNodeCache() (*otter.Cache[nodeKey, *blockmap.Node], error) {
	c, err := otter.New(&otter.Options[nodeKey, *blockmap.Node]{
		MaximumWeight: nodeCacheBytes,
		Weigher:       func(_ nodeKey, n *blockmap.Node) uint32 { return uint32(256 + 64*n.Len()) },
	})
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "node cache: %w", err)
	}
	return c, nil
}

// walk walks the versions of the chain, which are in order.
func (w *walker) walk(ctx context.Context, order []*version, byID map[snapferry.VersionID]*version, step func()) error {
	w.children = map[snapferry.VersionID][]*version{}
	for _, v := range order {
		w.children[v.parent] = append(w.children[v.parent], v)
		if err := v.decode(w); err != nil {
			v.why = err.Error()
		}
	}
	for _, v := range order {
		if p := byID[v.parent]; p != nil && p.state != record.Forwarded {
			if v.node.above = p; !p.node.whole {
				v.node.above = p.node.above
			}
		}
		if v.node.known {
			if err := w.version(ctx, v); err != nil {
				return err
			}
		}
		if v.node.whole = v.why == ""; !v.node.whole {
			w.broken = true
			what := "the version"
			if v.state != snapferry.VersionSealed {
				what = "the deleted version"
			}
			w.findings.damage("", v.id, "%s cannot be brought back whole: %s", what, v.why)
		}
		step()
	}
	return nil
}

// decode checks the root against the record.
func (v *version) decode(w *walker) error {
	m := blockmap.Map{Size: v.rec.Size, Nodes: w}
	if len(v.rec.Root) > 0 {
		n, err := blockmap.Decode(v.rec.Root)
		if err != nil {
			return err
		}
		if n.Level != blockmap.RootLevel {
			return snapferry.Errorf(snapferry.Corrupt, "the root is a node of level %d", n.Level)
		}
		if err := n.Check(0, v.rec.Size); err != nil {
			return err
		}
		m.Root = n
	}
	if m.Digest() != v.rec.Digest || m.Blocks() != v.rec.Blocks {
		return snapferry.Errorf(snapferry.Corrupt, "the root does not make the digest or the count of the record")
	}
	v.node.m, v.node.known = m, true
	return nil
}

// version walks what a version has and the one above has not.
func (w *walker) version(ctx context.Context, v *version) error {
	var near []blockmap.Map
	if v.node.above != nil {
		near = append(near, v.node.above.node.m)
	}
	spare, err := w.spare(ctx, v, near)
	if err != nil {
		return err
	}
	missing := 0
	err = blockmap.Only(ctx, v.node.m, near, func(kind snapferry.FrameKind, at snapferry.Position, c blockmap.Child) error {
		s := w.inv.segments[segKey{w.chain, c.Ref.Segment}]
		if s != nil {
			s.top = max(s.top, int(c.Ref.Slot))
		}
		if kind == snapferry.BlockFrame && spare[c.Ref.Segment].has(c.Ref.Slot) {
			return nil
		}
		err := w.reach(ctx, v, s, kind, at, c.Ref)
		if err == nil || !isFinding(err) {
			return err
		}
		if missing++; missing == 1 {
			v.why = err.Error()
		}
		if missing > maxMissing {
			return errors.New("enough")
		}
		return nil
	})
	switch {
	case err == nil:
	case missing > maxMissing:
	case isFinding(err):
		if v.why == "" {
			v.why = err.Error()
		}
	default:
		return err
	}
	if missing > maxMissing {
		v.why += ", and more"
	} else if missing > 1 {
		v.why += fmt.Sprintf(", and %d more", missing-1)
	}
	return nil
}

// spare returns the blocks of a ghost that neither the version above nor any
// child has: they were freed, or are to be, and may be gone.
func (w *walker) spare(ctx context.Context, v *version, near []blockmap.Map) (map[snapferry.SegmentID]slots, error) {
	if v.state != snapferry.VersionGhost {
		return nil, nil
	}
	for _, c := range w.children[v.id] {
		if !c.node.known {
			return nil, nil // it may have all of them
		}
		near = append(near, c.node.m)
	}
	free := map[snapferry.SegmentID]slots{}
	err := blockmap.Only(ctx, v.node.m, near, func(kind snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
		if kind == snapferry.BlockFrame {
			set := free[c.Ref.Segment]
			set.add(c.Ref.Slot)
			free[c.Ref.Segment] = set
		}
		return nil
	})
	if err != nil && isFinding(err) {
		return nil, nil
	}
	return free, err
}

// reach notes that a map has a frame, not from the version above.
func (w *walker) reach(ctx context.Context, v *version, s *seg, kind snapferry.FrameKind, at snapferry.Position, ref snapferry.Ref) error {
	if s == nil {
		return snapferry.Errorf(snapferry.NotFound, "segment %s, which has %s %s, is not in the bucket", ref.Segment, kind, place(at))
	}
	if err := w.inv.want(ctx, s, kind, at, ref); err != nil {
		return err
	}
	if s.reached.has(ref.Slot) {
		w.twice = true
		return nil
	}
	s.reached.add(ref.Slot)
	s.n++
	if s.writer.IsZero() {
		s.writer = v.id
	}
	return nil
}

// ReadNode implements blockmap.NodeReader: from the chosen place of the segment,
// else from any other where the node is sound.
func (w *walker) ReadNode(ctx context.Context, at snapferry.Position, d digest.Digest, ref snapferry.Ref) (*blockmap.Node, error) {
	k := nodeKey{w.chain, ref}
	if n, ok := w.nodes.GetIfPresent(k); ok && n.Level == at.Level && n.Digest() == d {
		return n, nil
	}
	s := w.inv.segments[segKey{w.chain, ref.Segment}]
	if s == nil {
		return nil, snapferry.Errorf(snapferry.NotFound, "segment %s, which has node %s, is not in the bucket", ref.Segment, place(at))
	}
	if err := w.inv.want(ctx, s, snapferry.NodeFrame, at, ref); err != nil {
		return nil, err
	}
	n, err := w.inv.readNode(ctx, s.at(), at, d, ref)
	for i := 0; i < len(s.places) && err != nil; i++ {
		if !isFinding(err) {
			return nil, err
		}
		if i == s.chosen {
			continue
		}
		other, err2 := w.inv.readNode(ctx, s.places[i], at, d, ref)
		if err2 != nil {
			continue
		}
		all, err2 := w.inv.hasAll(ctx, s.places[i], s.reached)
		if err2 == nil && all {
			w.findings.damage(s.at().object.name, snapferry.VersionID{}, "%v; taken from object %s instead", err, s.places[i].object.name)
			n, err = other, nil
			s.chosen = i
		}
	}
	if err != nil {
		return nil, err
	}
	w.nodes.Set(k, n)
	return n, nil
}

func (v *inventory) readNode(ctx context.Context, b *body, at snapferry.Position, d digest.Digest, ref snapferry.Ref) (*blockmap.Node, error) {
	e, err := v.entry(ctx, b, snapferry.NodeFrame, at, ref)
	if err != nil {
		return nil, err
	}
	from, end := int64(e.Offset), int64(e.Offset)+int64(e.Length)
	lo := from / windowSize * windowSize
	p, err := v.cache.window(ctx, b.object, b.Offset+from, b.Offset+end, b.Offset+lo, b.Offset+min(lo+windowSize, b.Length))
	if err != nil {
		return nil, err
	}
	bad := e.Verify(p)
	if s, err := v.sealer(ctx, b.header.Chain, b.Segment); err != nil {
		return nil, err
	} else if s != nil && bad == nil {
		p, bad = s.Open(nil, p, ref.Slot, e.Info)
	}
	n, err := decodeNode(bad, p, e.Info.Codec, at, d)
	if err != nil {
		err = snapferry.Errorf(snapferry.KindOf(err), "object %s, slot %d of segment %s: %w", b.object.name, ref.Slot, ref.Segment, err)
		if err2 := v.cache.drop(b.object.name); err2 != nil {
			return nil, err2
		}
	}
	return n, err
}

func decodeNode(err error, p []byte, codec snapferry.Codec, at snapferry.Position, d digest.Digest) (*blockmap.Node, error) {
	if err != nil {
		return nil, err
	}
	if codec != snapferry.Stored {
		return nil, snapferry.Errorf(snapferry.Unsupported, "node frame of codec %d", codec)
	}
	n, err := blockmap.Decode(p)
	if err != nil {
		return nil, err
	}
	if n.Level != at.Level || n.Digest() != d {
		return nil, snapferry.Errorf(snapferry.Corrupt, "node %s: %w", place(at), digest.ErrMismatch)
	}
	return n, nil
}
