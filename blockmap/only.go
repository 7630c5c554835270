package blockmap

import (
	"context"

	"github.com/snapferry/snapferry"
)

// Only calls fn with what a map refers to and none of the others does under the
// same ref at the same position: blocks, and nodes of the levels 0 to 2. It is
// the difference that deletion frees, so it compares refs and never digests:
// equal refs cut off the whole subtree, unequal ones are descended into even
// when the digests are equal.
//
// A node comes after everything below it; else positions ascend. The others
// are looked at one after the other, over what is left of the candidates, and a
// node of theirs is read only when some are left: the cost is what differs. The
// walk stops at the first error.
func Only(ctx context.Context, m Map, others []Map, fn func(kind snapferry.FrameKind, at snapferry.Position, c Child) error) error {
	root, err := m.root()
	if err != nil || root == nil {
		return err
	}
	w := onlyWalk{m: m, fn: fn}
	near := make([]rival, 0, len(others))
	for i := range others {
		r, err := others[i].root()
		if err != nil {
			return err
		}
		if r != nil {
			near = append(near, rival{m: &others[i], node: r})
		}
	}
	return w.walk(ctx, snapferry.Position{Level: RootLevel}, root, near)
}

type onlyWalk struct {
	m  Map
	fn func(snapferry.FrameKind, snapferry.Position, Child) error
}

// A rival is the node of another map at the position of the walk. It is read
// when somebody asks.
type rival struct {
	m      *Map
	node   *Node // nil: not read yet
	parent *Node
	at     snapferry.Position // of the parent
	child  int
}

func (r *rival) read(ctx context.Context) (_ *Node, err error) {
	if r.node == nil {
		r.node, err = r.m.readChild(ctx, r.parent, r.at, r.child)
	}
	return r.node, err
}

// walk goes through the node n at a position; near has the others' nodes there,
// those that have one.
func (w *onlyWalk) walk(ctx context.Context, at snapferry.Position, n *Node, near []rival) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	left := n.Presence
	for i := range near {
		if left == (Bitmap{}) {
			return nil
		}
		other, err := near[i].read(ctx)
		if err != nil {
			return err
		}
		for k := range left.All() {
			mine, _, _ := n.child(k)
			if theirs, _, ok := other.child(k); ok && SameRef(mine, theirs) {
				left.Clear(k)
			}
		}
	}
	for k := range left.All() {
		c, count, _ := n.child(k)
		if at.Level == 0 {
			block := snapferry.Position{Index: at.Index<<levelBits | uint64(k)}
			if err := w.fn(snapferry.BlockFrame, block, c); err != nil {
				return err
			}
			continue
		}
		if err := w.down(ctx, at, k, c, count, near); err != nil {
			return err
		}
	}
	return nil
}

// down walks child k of the node at a position and then gives the child itself.
func (w *onlyWalk) down(ctx context.Context, at snapferry.Position, k int, c Child, count uint32, near []rival) error {
	child := below(at, k)
	n, err := w.m.read(ctx, child, c, count)
	if err != nil {
		return err
	}
	var deeper []rival
	for i := range near {
		if p := near[i].node; p.Presence.Has(k) {
			deeper = append(deeper, rival{m: near[i].m, parent: p, at: at, child: k})
		}
	}
	if err := w.walk(ctx, child, n, deeper); err != nil {
		return err
	}
	return w.fn(snapferry.NodeFrame, child, c)
}
