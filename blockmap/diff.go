package blockmap

import (
	"context"

	"github.com/snapferry/snapferry"
)

// SameDigest reports whether two children have the same content. It is right
// for planning a copy, for differences shown to users and for deciding
// inheritance. It is wrong for deletion.
func SameDigest(x, y Child) bool { return x.Digest == y.Digest }

// SameRef reports whether two children are one stored frame. It is right for
// deletion by difference: one content can be stored under two refs (a block
// that went from A to B and back to A), and then pruning by digest would leak
// the frames below, or free those that are in use. Children without a ref are
// never the same.
func SameRef(x, y Child) bool {
	return x.Ref.Segment == y.Ref.Segment && x.Ref.Slot == y.Ref.Slot && !x.Ref.Segment.IsZero()
}

// Diff walks two maps and calls fn with each pair of leaves that same does not
// call the same, in ascending order; nil stands for an absent leaf. Subtrees
// that are the same are not read. The walk stops at the first error.
func Diff(ctx context.Context, a, b Map, same func(x, y Child) bool, fn func(leaf uint64, la, lb *Node) error) error {
	ra, err := a.root()
	if err != nil {
		return err
	}
	rb, err := b.root()
	if err != nil {
		return err
	}
	w := differ{a: a, b: b, same: same, fn: fn}
	return w.walk(ctx, snapferry.Position{Level: RootLevel}, ra, rb)
}

type differ struct {
	a, b Map
	same func(x, y Child) bool
	fn   func(leaf uint64, la, lb *Node) error
}

// walk goes through the children of two inner nodes at one position, of which
// either may be nil.
func (w *differ) walk(ctx context.Context, at snapferry.Position, na, nb *Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	either := union(na, nb)
	for i := either.Next(0); i < Fanout; i = either.Next(i + 1) {
		ca, _, oka := na.child(i)
		cb, _, okb := nb.child(i)
		if oka && okb && w.same(ca, cb) {
			continue
		}
		la, err := w.a.readChild(ctx, na, at, i)
		if err != nil {
			return err
		}
		lb, err := w.b.readChild(ctx, nb, at, i)
		if err != nil {
			return err
		}
		if child := below(at, i); child.Level > 0 {
			err = w.walk(ctx, child, la, lb)
		} else {
			err = w.fn(child.Index, la, lb)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// union returns the children that either node has.
func union(na, nb *Node) (u Bitmap) {
	if na != nil {
		u = na.Presence
	}
	if nb != nil {
		for i := range u {
			u[i] |= nb.Presence[i]
		}
	}
	return u
}

// DiffNodes calls fn with each node of b whose digest a does not have at that
// position: parents before children, the root first, children in ascending
// order. It is what somebody who has a needs to learn b. Subtrees of equal
// digest are not read, of a no leaves are. The walk stops at the first error.
func DiffNodes(ctx context.Context, a, b Map, fn func(at snapferry.Position, n *Node) error) error {
	ra, err := a.root()
	if err != nil {
		return err
	}
	rb, err := b.root()
	if err != nil || rb == nil || ra != nil && ra.Digest() == rb.Digest() {
		return err
	}
	w := nodeDiffer{a: a, b: b, fn: fn}
	return w.walk(ctx, snapferry.Position{Level: RootLevel}, ra, rb)
}

type nodeDiffer struct {
	a, b Map
	fn   func(at snapferry.Position, n *Node) error
}

// walk handles the node nb at a position, where a has na (nil: none, or a
// leaf) of another digest.
func (w *nodeDiffer) walk(ctx context.Context, at snapferry.Position, na, nb *Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.fn(at, nb); err != nil || at.Level == 0 {
		return err
	}
	for i := nb.Presence.Next(0); i < Fanout; i = nb.Presence.Next(i + 1) {
		ca, _, oka := na.child(i)
		cb, count, _ := nb.child(i)
		if oka && SameDigest(ca, cb) {
			continue
		}
		var la *Node
		var err error
		if at.Level > 1 {
			if la, err = w.a.readChild(ctx, na, at, i); err != nil {
				return err
			}
		}
		lb, err := w.b.read(ctx, below(at, i), cb, count)
		if err != nil {
			return err
		}
		if err := w.walk(ctx, below(at, i), la, lb); err != nil {
			return err
		}
	}
	return nil
}

// Changed returns the blocks of a leaf that differ by digest between two
// leaves; nil stands for an absent leaf.
func Changed(la, lb *Node) Bitmap {
	changed := union(la, lb)
	if la == nil || lb == nil {
		return changed
	}
	var ka, kb int
	for i := changed.Next(0); i < Fanout; i = changed.Next(i + 1) {
		ina, inb := la.Presence.Has(i), lb.Presence.Has(i)
		if ina && inb && la.Digests[ka] == lb.Digests[kb] {
			changed.Clear(i)
		}
		if ina {
			ka++
		}
		if inb {
			kb++
		}
	}
	return changed
}
