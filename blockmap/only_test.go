package blockmap

import (
	"context"
	"testing"

	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// family is a forest of maps over one store of nodes, whose leaves the tests
// write themselves.
type family struct {
	t     *rapid.T
	nodes *memory
	maps  []Map
}

// memory keeps written nodes by ref.
type memory struct {
	next  uint16
	nodes map[snapferry.Ref]*Node
	reads int
}

var familySegment = snapferry.SegmentID{1}

func (m *memory) ref() snapferry.Ref {
	m.next++
	return snapferry.Ref{Segment: familySegment, Slot: m.next, Length: 100}
}

func (m *memory) WriteNode(_ context.Context, _ snapferry.Position, n *Node, _ digest.Digest) (snapferry.Ref, error) {
	r := m.ref()
	m.nodes[r] = n.Clone()
	return r, nil
}

func (m *memory) ReadNode(_ context.Context, _ snapferry.Position, _ digest.Digest, ref snapferry.Ref) (*Node, error) {
	m.reads++
	return m.nodes[ref], nil
}

const familySize = 5 << 30

// familyBlocks lie in three leaves under two nodes of level 1.
var familyBlocks = []uint64{0, 1, 255, 256, 300, 65536, 65537}

// child adds a map over one that is there, -1 for none, in which some blocks
// are set to a content of few, or made absent.
func (f *family) child(parent int) {
	base := Map{Size: familySize, Nodes: f.nodes}
	if parent >= 0 {
		base = f.maps[parent]
	}
	ctx := context.Background()
	leaves := map[uint64]*Node{}
	set := map[uint64]int{}
	for range rapid.IntRange(0, 4).Draw(f.t, "changes") {
		set[rapid.SampledFrom(familyBlocks).Draw(f.t, "block")] = rapid.IntRange(0, 3).Draw(f.t, "content")
	}
	for _, leaf := range []uint64{0, 1, 256} {
		old, err := base.Leaf(ctx, leaf)
		if err != nil {
			f.t.Fatal(err)
		}
		n := &Node{}
		for i := range Fanout {
			block := leaf*Fanout + uint64(i)
			content, changed := set[block]
			c, _, had := old.child(i)
			switch want := (digest.Digest{byte(content), 1}); {
			case changed && content == 0 || !changed && !had:
			case !changed || had && c.Digest == want: // inheritance is mandatory
				n.Append(i, c.Digest, c.Ref, 0)
			default:
				n.Append(i, want, f.nodes.ref(), 0)
			}
		}
		leaves[leaf] = n
	}
	b := NewBuilder(base, familySize, f.nodes)
	for _, leaf := range []uint64{0, 1, 256} {
		if err := b.Set(ctx, leaf, leaves[leaf]); err != nil {
			f.t.Fatal(err)
		}
	}
	root, err := b.Finish(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	f.maps = append(f.maps, Map{Size: familySize, Root: root, Nodes: f.nodes})
}

// all returns every ref of a map.
func (f *family) all(m Map) map[snapferry.Ref]bool {
	refs := map[snapferry.Ref]bool{}
	var walk func(n *Node)
	walk = func(n *Node) {
		if n == nil {
			return
		}
		for _, r := range n.Refs {
			refs[r] = true
			if n.Level > 0 {
				walk(f.nodes.nodes[r])
			}
		}
	}
	walk(m.Root)
	return refs
}

// TestOnly holds Only against the difference of the sets of all refs: in maps
// that come from each other as versions do, whatever has a ref has it at the
// same position.
func TestOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &family{t: t, nodes: &memory{nodes: map[snapferry.Ref]*Node{}}}
		f.child(-1)
		for range rapid.IntRange(1, 5).Draw(t, "maps") {
			f.child(rapid.IntRange(-1, len(f.maps)-1).Draw(t, "parent"))
		}
		self := rapid.IntRange(0, len(f.maps)-1).Draw(t, "self")
		want := f.all(f.maps[self])
		var others []Map
		for i, m := range f.maps {
			if i != self && rapid.Bool().Draw(t, "other") {
				others = append(others, m)
				for r := range f.all(m) {
					delete(want, r)
				}
			}
		}
		var below []snapferry.Position
		err := Only(t.Context(), f.maps[self], others, func(kind snapferry.FrameKind, at snapferry.Position, c Child) error {
			if !want[c.Ref] {
				t.Errorf("%v %v: not expected, or twice", at, c.Ref)
			}
			delete(want, c.Ref)
			if kind == snapferry.BlockFrame {
				below = append(below, at)
				return nil
			}
			for len(below) > 0 { // a node comes after what is below it
				if b := below[len(below)-1]; b.Index>>levelBits != at.Index && at.Level == 0 {
					break
				}
				below = below[:len(below)-1]
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for r := range want {
			t.Errorf("missing %v", r)
		}
		if len(below) > 0 {
			t.Errorf("%v come after their leaf", below)
		}
	})
}

// TestOnlyReadsWhatDiffers walks a large map against one that differs in one
// block: one path is read in each.
func TestOnlyReadsWhatDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &family{t: t, nodes: &memory{nodes: map[snapferry.Ref]*Node{}}}
		f.child(-1)
		f.child(0)
		f.nodes.reads = 0
		equal := f.maps[0]
		if err := Only(t.Context(), f.maps[0], []Map{f.maps[1], equal}, func(snapferry.FrameKind, snapferry.Position, Child) error {
			t.Errorf("something is only in a map that is compared with itself")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		before := f.nodes.reads
		if err := Only(t.Context(), equal, []Map{equal, f.maps[1]}, nil); err != nil {
			t.Fatal(err)
		}
		if f.nodes.reads != before {
			t.Errorf("a map compared with itself first: %d nodes were read", f.nodes.reads-before)
		}
	})
}
