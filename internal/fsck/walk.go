package fsck

import (
	"context"
	"encoding/binary"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// expectation folds what a map says of a frame, its digest, its position and
// its stored length, into the 32 bytes that are kept for each frame. Level,
// index and length have 56 bits; zero stands for a slot that nobody reached.
func expectation(d digest.Digest, at snapferry.Position, length uint32) digest.Digest {
	tag := uint64(length)<<32 | uint64(at.Level)<<indexBits | at.Index
	binary.BigEndian.PutUint64(d[:], binary.BigEndian.Uint64(d[:])^tag)
	return d
}

// indexBits is the number of bits of the largest disk's block numbers.
const indexBits = 30

// A walker walks the maps of one chain, parents before children, and only where
// a child's ref is not its parent's: the cost is the sum of the changes. So it
// comes to each frame where the frame came into the chain, and the reference
// rule says that this happens once.
type walker struct {
	c     *checker
	v     *version // whose map is walked
	again int64    // positions of v with the parent's digest, but another ref
}

// walkMaps walks the maps of every version and tells each slot that they reach
// what must be there.
func (c *checker) walkMaps(ctx context.Context) error {
	if !c.Deep {
		return nil
	}
	number := map[snapferry.ChainID]int{}
	var chains [][]*version
	for _, v := range c.state.order {
		i, ok := number[v.Chain]
		if !ok {
			i = len(chains)
			number[v.Chain] = i
			chains = append(chains, nil)
		}
		chains[i] = append(chains[i], v)
	}
	return each(ctx, c, chains, func(ctx context.Context, versions []*version) error {
		ghosts := false
		for _, v := range versions {
			ghosts = ghosts || v.State == snapferry.VersionGhost
			if err := c.walkVersion(ctx, v); err != nil {
				return err
			}
		}
		for _, v := range versions {
			if !ghosts || v.State == snapferry.VersionGhost || v.root == nil {
				continue
			}
			if err := c.markAlive(ctx, snapferry.Position{Level: blockmap.RootLevel}, v.root, v.Size); err != nil {
				return err
			}
		}
		if ghosts {
			c.setGhosts(versions[0].Chain)
		}
		return nil
	})
}

func (c *checker) walkVersion(ctx context.Context, v *version) error {
	if v.root == nil || c.isLocked(v.Chain) {
		return nil
	}
	w := &walker{c: c, v: v}
	var parent *blockmap.Node
	blind := false
	if v.parent != nil {
		parent, blind = v.parent.root, v.parent.unknown
	}
	if err := w.node(ctx, snapferry.Position{Level: blockmap.RootLevel}, v.root, parent, blind); err != nil {
		return err
	}
	if w.again == 0 {
		return nil
	}
	// After the parent was spliced out, a child can rightly have what its new
	// parent has under another ref. Its first record tells.
	r, err := c.readRecord(ctx, record.Name(v.ID, 1), nil)
	if err != nil && !isFinding(err) {
		return err
	}
	if err == nil && r.Parent == v.Parent || v.State == snapferry.VersionOpen {
		c.garbage(onVersion(v.ID), "stores %d blocks and nodes again that its parent has at the same place", w.again)
	}
	return nil
}

// node walks one node, n, against what the parent version has at its position,
// p or nil. Blind means that this is not known.
func (w *walker) node(ctx context.Context, at snapferry.Position, n, p *blockmap.Node, blind bool) error {
	k := -1
	for i := range n.Presence.All() {
		k++
		d, ref := n.Digests[k], n.Refs[k]
		pd, pref, inParent := digest.Digest{}, snapferry.Ref{}, false
		if p != nil {
			pd, pref, inParent = p.Child(i)
		}
		if inParent && pref == ref {
			if pd != d || at.Level > 0 && p.Counts[p.Presence.Rank(i)] != n.Counts[k] {
				w.c.damage(w.c.onSlot(ref), "version %s says of it what its parent does not", w.v.ID)
			}
			continue
		}
		if inParent && pd == d && !blind {
			w.again++
		}
		if at.Level == 0 {
			block := snapferry.Position{Index: at.Index*blockmap.Fanout + uint64(i)}
			if err := w.reach(ctx, snapferry.BlockFrame, block, d, ref, blind); err != nil {
				return err
			}
			continue
		}
		child := snapferry.Position{Level: at.Level - 1, Index: at.Index*blockmap.Fanout + uint64(i)}
		if err := w.child(ctx, child, n, k, p, i, blind); err != nil {
			return err
		}
	}
	return nil
}

// child walks the k-th child of n, which is at a position and which the parent
// version's node p has as child i, if at all.
func (w *walker) child(ctx context.Context, at snapferry.Position, n *blockmap.Node, k int, p *blockmap.Node, i int, blind bool) error {
	if err := w.reach(ctx, snapferry.NodeFrame, at, n.Digests[k], n.Refs[k], blind); err != nil {
		return err
	}
	node, err := w.c.readNode(ctx, at, n.Digests[k], n.Refs[k], n.Counts[k], w.v.Size)
	if err != nil {
		if !isFinding(err) {
			return w.c.locked(w.v.Chain, err)
		}
		w.c.setBroken(w.v.Chain)
		w.c.add(&finding{target: w.c.onSlot(n.Refs[k]), severity: Damage, soft: true, problem: err.Error()})
		return nil
	}
	var below *blockmap.Node
	if p != nil && p.Presence.Has(i) {
		j := p.Presence.Rank(i)
		below, err = w.c.readNode(ctx, at, p.Digests[j], p.Refs[j], p.Counts[j], w.v.parent.Size)
		if err != nil && !isFinding(err) {
			return err
		}
		blind = blind || err != nil // it was found when the parent was walked
	}
	return w.node(ctx, at, node, below, blind)
}

// readNode reads a node and checks it against its digest, its place and its
// parent's count.
func (c *checker) readNode(ctx context.Context, at snapferry.Position, d digest.Digest, ref snapferry.Ref, count uint32, size int64) (*blockmap.Node, error) {
	n, err := c.Vault.ReadNode(ctx, at, d, ref)
	if err != nil {
		return nil, err
	}
	if err := n.Check(at.Index, size); err != nil {
		return nil, err
	}
	if n.Blocks() != uint64(count) {
		return nil, snapferry.Errorf(snapferry.Corrupt, "map node at level %d, index %d has %d blocks, its parent counts %d", at.Level, at.Index, n.Blocks(), count)
	}
	return n, nil
}

// reach notes what must be in the slot that the version has at a position, not
// from its parent.
func (w *walker) reach(ctx context.Context, kind snapferry.FrameKind, at snapferry.Position, d digest.Digest, ref snapferry.Ref, blind bool) error {
	s := w.c.state.segments[ref.Segment]
	switch {
	case s == nil && w.spare(kind):
		return w.reachDead(ctx, kind, at, ref)
	case s == nil:
		w.c.damage(w.c.onUnknown(ref), "a map refers to this segment, but the metadata does not have it")
	case s.State != meta.SegmentLive:
		w.c.damage(w.c.onSegment(s), "a map refers to this segment, but it is not durable")
	case s.Chain != w.v.Chain:
		w.c.damage(w.c.onSegment(s), "version %s of chain %s refers to this segment of chain %s", w.v.ID, w.v.Chain, s.Chain)
	case s.Kind != kind:
		w.c.damage(w.c.onSegment(s), "version %s has %s here, the segment holds %s", w.v.ID, kind, s.Kind)
	case int(ref.Slot) >= s.Slots:
		w.c.damage(w.c.onSlot(ref), "version %s refers to this slot, but the segment has only %d", w.v.ID, s.Slots)
	case s.dead(int(ref.Slot)):
		return w.reachDead(ctx, kind, at, ref)
	default:
		w.expect(s, at, d, ref, blind)
	}
	return nil
}

func (w *walker) expect(s *seg, at snapferry.Position, d digest.Digest, ref snapferry.Ref, blind bool) {
	if s.expect == nil {
		s.expect = make([]digest.Digest, s.Slots)
	}
	want := expectation(d, at, ref.Length)
	have := &s.expect[ref.Slot]
	switch {
	case have.IsZero():
		*have = want
	case *have != want:
		w.c.damage(w.c.onSlot(ref), "two maps say different things of this slot; one is that of version %s", w.v.ID)
		return
	case !blind:
		w.c.damage(w.c.onSlot(ref), "against the reference rule, version %s has this slot neither from its parent nor of its own", w.v.ID)
		return
	}
	if owner := w.c.state.versions[s.Version]; owner != nil && owner != w.v && !blind {
		w.c.damage(w.c.onSlot(ref), "against the reference rule, version %s has this slot of version %s, not from its parent", w.v.ID, s.Version)
	}
}

// spare reports whether the version can do without a frame of a kind: a ghost
// is there for its nodes.
func (w *walker) spare(kind snapferry.FrameKind) bool {
	return w.v.State == snapferry.VersionGhost && kind == snapferry.BlockFrame
}

// reachDead looks at a slot that is marked dead, or whose segment is gone. Only
// a ghost may have one, and only a block that none of its children has.
func (w *walker) reachDead(ctx context.Context, kind snapferry.FrameKind, at snapferry.Position, ref snapferry.Ref) error {
	holder := w.v
	if w.spare(kind) {
		holder = nil
		for _, child := range w.v.children {
			m := blockmap.Map{Size: child.Size, Root: child.root, Nodes: w.c.Vault}
			_, have, ok, err := m.Block(ctx, at.Index)
			if err != nil && !isFinding(err) {
				return err
			}
			if err == nil && ok && have == ref {
				holder = child
			}
		}
	}
	if holder != nil {
		w.c.damage(w.c.onSlot(ref), "marked dead, but version %s has it", holder.ID)
	}
	return nil
}

// markAlive notes what versions that live have below a node. What is reached and
// not alive is there for deleted versions only.
func (c *checker) markAlive(ctx context.Context, at snapferry.Position, n *blockmap.Node, size int64) error {
	k := -1
	for i := range n.Presence.All() {
		k++
		ref := n.Refs[k]
		s := c.state.segments[ref.Segment]
		if s == nil || s.alive.has(int(ref.Slot)) {
			continue
		}
		s.alive.add(int(ref.Slot))
		if at.Level == 0 {
			continue
		}
		child := snapferry.Position{Level: at.Level - 1, Index: at.Index*blockmap.Fanout + uint64(i)}
		node, err := c.readNode(ctx, child, n.Digests[k], ref, n.Counts[k], size)
		if err == nil {
			err = c.markAlive(ctx, child, node, size)
		}
		if err != nil && !isFinding(err) {
			return err
		}
	}
	return nil
}

func (c *checker) setGhosts(id snapferry.ChainID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ghosts[id] = true
}
