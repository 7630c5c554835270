package blockmap_test

import (
	"context"
	"errors"
	"math"
	"math/bits"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

func TestGeometry(t *testing.T) {
	for level, want := range []int64{16 << 20, 4 << 30, 1 << 40, 256 << 40} {
		if got := blockmap.Span(uint8(level)); got != want {
			t.Errorf("Span(%d): got %d, want %d", level, got, want)
		}
	}
	for _, c := range []struct {
		size           int64
		blocks, leaves uint64
	}{
		{math.MinInt64, 0, 0},
		{0, 0, 0},
		{512, 1, 1},
		{block, 1, 1},
		{block + 512, 2, 1},
		{leafSpan, 256, 1},
		{leafSpan + 512, 257, 2},
		{snapferry.MaxVolumeSize, 1 << 30, 1 << 22},
		{math.MaxInt64, 1 << 47, 1 << 39},
	} {
		if got := blockmap.Blocks(c.size); got != c.blocks {
			t.Errorf("Blocks(%d): got %d, want %d", c.size, got, c.blocks)
		}
		if got := blockmap.Leaves(c.size); got != c.leaves {
			t.Errorf("Leaves(%d): got %d, want %d", c.size, got, c.leaves)
		}
	}
}

func TestBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b blockmap.Bitmap
		var model [blockmap.Fanout]bool
		for _, i := range rapid.SliceOf(rapid.IntRange(0, 255)).Draw(t, "flips") {
			if model[i] = !model[i]; model[i] {
				b.Set(i)
			} else {
				b.Clear(i)
			}
		}
		var want []int
		for i, in := range model {
			if got := b.Has(i); got != in {
				t.Errorf("Has(%d): got %v, want %v", i, got, in)
			}
			if got := b.Rank(i); got != len(want) {
				t.Errorf("Rank(%d): got %d, want %d", i, got, len(want))
			}
			if in {
				want = append(want, i)
			}
		}
		if got := slices.Collect(b.All()); !slices.Equal(got, want) {
			t.Errorf("All: got %v, want %v", got, want)
		}
		if b.Count() != len(want) || b.Rank(256) != len(want) {
			t.Errorf("Count and Rank(256): got %d and %d, want %d", b.Count(), b.Rank(256), len(want))
		}
		if got := b.Next(256); got != 256 {
			t.Errorf("Next(256): got %d, want 256", got)
		}
	})
	var b blockmap.Bitmap
	b.Set(9)
	if b[1] != 2 || bits.OnesCount8(b[0]) != 0 {
		t.Errorf("bit 9 is in %x, want the second bit of the second byte", b)
	}
}

func TestNode(t *testing.T) {
	n := goldenNodes()["inner"]
	d, r, ok := n.Child(200)
	if d != testDigest(5) || r != testRef(8, 1) || !ok {
		t.Errorf("Child(200): got %v, %v, %v", d, r, ok)
	}
	if d, r, ok := n.Child(4); !d.IsZero() || !r.IsZero() || ok {
		t.Errorf("Child(4): got %v, %v, %v, want nothing", d, r, ok)
	}
	if d, r, ok := logical(n).Child(3); d != testDigest(4) || !r.IsZero() || !ok {
		t.Errorf("Child(3) without refs: got %v, %v, %v", d, r, ok)
	}
	if n.Blocks() != 65537 || goldenNodes()["leaf"].Blocks() != 4 {
		t.Errorf("Blocks: got %d and %d, want 65537 and 4", n.Blocks(), goldenNodes()["leaf"].Blocks())
	}
	c := n.Clone()
	c.Digests[0], c.Refs[0], c.Counts[0] = digest.Digest{}, snapferry.Ref{}, 0
	c.Presence.Clear(3)
	if diff := gocmp.Diff(n, goldenNodes()["inner"]); diff != "" {
		t.Errorf("a change of the clone changed the node (-got +want):\n%s", diff)
	}
	if got := testing.AllocsPerRun(10, func() {
		n.Reset(1)
		n.Append(1, testDigest(1), testRef(1, 1), 5)
		n.Append(2, testDigest(1), testRef(1, 1), 5)
	}); got > 4 { // the digests of the test
		t.Errorf("Reset and Append: got %v allocations", got)
	}
	if n.Level != 1 || n.Len() != 2 || n.Blocks() != 10 {
		t.Errorf("after Reset and Append: got %+v", n)
	}
}

func TestAppendOutOfOrder(t *testing.T) {
	for _, i := range []int{6, 7, 256} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("child %d after child 7: got no panic", i)
				}
			}()
			n := &blockmap.Node{}
			n.Append(7, testDigest(1), testRef(1, 1), 1)
			n.Append(i, testDigest(1), testRef(1, 1), 1)
		}()
	}
}

func TestCheck(t *testing.T) {
	node := func(level uint8, child int, count uint32) *blockmap.Node {
		n := &blockmap.Node{Level: level}
		n.Append(child, testDigest(1), testRef(1, 1), count)
		return n
	}
	const largest = snapferry.MaxVolumeSize
	for _, c := range []struct {
		name  string
		n     *blockmap.Node
		index uint64
		size  int64
		want  string // part of the message; empty: no error
	}{
		{"first block", node(0, 0, 0), 0, 512, ""},
		{"second block in the size", node(0, 1, 0), 0, block + 512, ""},
		{"second block beyond", node(0, 1, 0), 0, block, "level 0, index 0: child 1 lies beyond the size of 65536"},
		{"last leaf", node(0, 255, 0), 1<<22 - 1, largest, ""},
		{"leaf beyond", node(0, 0, 0), 1, leafSpan, "level 0, index 1: lies beyond"},
		{"leaf far beyond", node(0, 0, 0), 1<<64 - 1, largest, "lies beyond"},
		{"leaf of no disk", node(0, 0, 0), 0, 0, "lies beyond"},
		{"negative size", node(0, 0, 0), 0, -512, "lies beyond"},
		{"count fits", node(1, 0, 3), 0, 2*block + 512, ""},
		{"count does not fit", node(1, 0, 4), 0, 2*block + 512, "child 0 counts 4 blocks, but the size of 131584 bytes leaves room for 3"},
		{"count of another index fits", node(1, 1, 1), 2, 513*leafSpan + 512, ""},
		{"count of another index does not", node(1, 1, 2), 2, 513*leafSpan + 512, "leaves room for 1"},
		{"inner child beyond", node(1, 2, 1), 2, 513*leafSpan + 512, "level 1, index 2: child 2 lies beyond"},
		{"full root", node(3, 63, 1<<24), 0, largest, ""},
		{"second root", node(3, 0, 1), 1, largest, "lies beyond"},
		{"root beyond 64 TiB", node(3, 64, 1), 0, math.MaxInt64, "child 64 of the root"},
		{"count 0", node(2, 0, 0), 0, largest, "count 0 is 0"},
		{"count above all", node(2, 0, 65537), 0, largest, "count 0 is 65537"},
		{"no children", &blockmap.Node{Level: 1}, 0, largest, "no children"},
		{"level 4", node(4, 0, 1), 0, largest, "level 4 is above 3"},
		{"digests missing", &blockmap.Node{Presence: blockmap.Bitmap{3}, Digests: make([]digest.Digest, 1)}, 0, largest, "2 children, but 1 digests"},
		{"refs missing", &blockmap.Node{Presence: blockmap.Bitmap{1}, Digests: make([]digest.Digest, 1), Refs: []snapferry.Ref{}}, 0, largest, "0 refs"},
		{"counts missing", &blockmap.Node{Level: 1, Presence: blockmap.Bitmap{1}, Digests: make([]digest.Digest, 1)}, 0, largest, "0 counts"},
		{"counts in a leaf", &blockmap.Node{Presence: blockmap.Bitmap{1}, Digests: make([]digest.Digest, 1), Counts: []uint32{1}}, 0, largest, "1 counts"},
		{"no refs at all", logical(node(1, 0, 3)), 0, largest, ""},
	} {
		err := c.n.Check(c.index, c.size)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: got error %v", c.name, err)
			}
		} else if !snapferry.IsKind(err, snapferry.Corrupt) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want Corrupt with %q", c.name, err, c.want)
		}
	}
}

// reader is a NodeReader that answers as it was told, without verification.
type reader map[snapferry.Position]*blockmap.Node

func (r reader) ReadNode(_ context.Context, at snapferry.Position, _ digest.Digest, _ snapferry.Ref) (*blockmap.Node, error) {
	if n, ok := r[at]; ok {
		return n, nil
	}
	return nil, snapferry.Errorf(snapferry.Unavailable, "the store is away")
}

// path makes the nodes above leaf 0, so that it is present.
func path(leaf *blockmap.Node) (root *blockmap.Node, r reader) {
	r = reader{{Level: 0}: leaf}
	n := leaf
	for level := uint8(1); level <= blockmap.RootLevel; level++ {
		up := &blockmap.Node{Level: level}
		up.Append(0, n.Digest(), testRef(1, 1), uint32(n.Blocks()))
		r[snapferry.Position{Level: level}] = up
		n = up
	}
	return n, r
}

// TestHostileMap: no walk believes a node that does not fit.
func TestHostileMap(t *testing.T) {
	leaf := goldenNodes()["leaf"]
	small := &blockmap.Node{}
	small.Append(0, testDigest(1), testRef(1, 1), 0)
	for _, c := range []struct {
		name   string
		change func(m *blockmap.Map, r reader)
		kind   snapferry.Kind
		want   string
	}{
		{"leaf is an inner node", func(_ *blockmap.Map, r reader) { r[snapferry.Position{}] = r[snapferry.Position{Level: 1}] }, snapferry.Corrupt, "level 0, index 0: is of level 1"},
		{"inner node is a leaf", func(_ *blockmap.Map, r reader) { r[snapferry.Position{Level: 2}] = leaf }, snapferry.Corrupt, "level 2, index 0: is of level 0"},
		{"leaf of fewer blocks", func(_ *blockmap.Map, r reader) { r[snapferry.Position{}] = small }, snapferry.Corrupt, "level 0, index 0: has 1 blocks, but its parent counts 4"},
		{"inner node counts more", func(_ *blockmap.Map, r reader) { r[snapferry.Position{Level: 1}].Counts[0]++ }, snapferry.Corrupt, "level 1, index 0: has 5 blocks, but its parent counts 4"},
		{"root counts more", func(m *blockmap.Map, _ reader) { m.Root.Counts[0]++ }, snapferry.Corrupt, "level 2, index 0: has 4 blocks, but its parent counts 5"},
		{"leaf beyond the size", func(m *blockmap.Map, _ reader) { m.Size = 255 * block }, snapferry.Corrupt, "child 255 lies beyond"},
		{"root beyond the size", func(m *blockmap.Map, _ reader) { m.Size = 2 * block }, snapferry.Corrupt, "leaves room for 2"},
		{"root of level 2", func(m *blockmap.Map, r reader) { m.Root = r[snapferry.Position{Level: 2}] }, snapferry.Corrupt, "is of level 2, want 3"},
		{"store away", func(_ *blockmap.Map, r reader) { delete(r, snapferry.Position{Level: 1}) }, snapferry.Unavailable, "level 1, index 0: the store is away"},
	} {
		root, r := path(leaf)
		m := blockmap.Map{Size: leafSpan, Root: root, Nodes: r}
		c.change(&m, r)
		empty := blockmap.Map{Size: leafSpan}
		never := func(x, y blockmap.Child) bool { return false }
		walks := map[string]func() error{
			"Leaf":   func() error { _, err := m.Leaf(t.Context(), 0); return err },
			"Block":  func() error { _, _, _, err := m.Block(t.Context(), 0); return err },
			"Leaves": func() error { return m.Leaves(t.Context(), 0, func(uint64, *blockmap.Node) error { return nil }) },
			"Diff from": func() error {
				return blockmap.Diff(t.Context(), m, empty, never, func(uint64, *blockmap.Node, *blockmap.Node) error { return nil })
			},
			"Diff to": func() error {
				return blockmap.Diff(t.Context(), empty, m, never, func(uint64, *blockmap.Node, *blockmap.Node) error { return nil })
			},
			"DiffNodes": func() error {
				return blockmap.DiffNodes(t.Context(), empty, m, func(snapferry.Position, *blockmap.Node) error { return nil })
			},
		}
		for walk, run := range walks {
			if err := run(); !snapferry.IsKind(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %s: got error %v, want %v with %q", c.name, walk, err, c.kind, c.want)
			}
		}
	}
}

// TestWalksStop: the error of a callback ends a walk and comes back as it is,
// and so does the end of the context.
func TestWalksStop(t *testing.T) {
	s := newStore()
	a, b := twoLeaves(t, s)
	stop := errors.New("stop")
	calls := 0
	leafFn := func(uint64, *blockmap.Node, *blockmap.Node) error { calls++; return stop }
	if err := blockmap.Diff(t.Context(), a, b, blockmap.SameDigest, leafFn); err != stop || calls != 1 {
		t.Errorf("Diff: got %v after %d calls, want stop after 1", err, calls)
	}
	calls = 0
	nodeFn := func(snapferry.Position, *blockmap.Node) error { calls++; return stop }
	if err := blockmap.DiffNodes(t.Context(), a, b, nodeFn); err != stop || calls != 1 {
		t.Errorf("DiffNodes: got %v after %d calls, want stop after 1", err, calls)
	}
	calls = 0
	if err := b.Leaves(t.Context(), 0, func(uint64, *blockmap.Node) error { calls++; return stop }); err != stop || calls != 1 {
		t.Errorf("Leaves: got %v after %d calls, want stop after 1", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := blockmap.Diff(ctx, a, b, blockmap.SameDigest, leafFn); !errors.Is(err, context.Canceled) {
		t.Errorf("Diff: got %v, want Canceled", err)
	}
	if err := blockmap.DiffNodes(ctx, a, b, nodeFn); !errors.Is(err, context.Canceled) {
		t.Errorf("DiffNodes: got %v, want Canceled", err)
	}
	if err := b.Leaves(ctx, 0, func(uint64, *blockmap.Node) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Leaves: got %v, want Canceled", err)
	}
}

// twoLeaves makes an empty map and one with two leaves in different subtrees.
func twoLeaves(t *testing.T, s *store) (empty, m blockmap.Map) {
	t.Helper()
	empty = blockmap.Map{Size: 1 << 40, Nodes: s}
	b := blockmap.NewBuilder(empty, empty.Size, s)
	for _, leaf := range []uint64{0, 300} {
		n := &blockmap.Node{}
		n.Append(9, testDigest(1), testRef(1, int(leaf)), 0)
		if err := b.Set(t.Context(), leaf, n); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return empty, blockmap.Map{Size: empty.Size, Root: root, Nodes: s}
}

// TestSame: by which sign the same content under another ref is seen.
func TestSame(t *testing.T) {
	x := blockmap.Child{Digest: testDigest(1), Ref: testRef(1, 1)}
	moved := blockmap.Child{Digest: testDigest(1), Ref: testRef(1, 2)}
	if !blockmap.SameDigest(x, moved) || blockmap.SameRef(x, moved) {
		t.Error("the same content under another ref: want the same by digest alone")
	}
	if !blockmap.SameRef(x, x) {
		t.Error("SameRef of a child and itself: got false")
	}
	if bare := (blockmap.Child{Digest: testDigest(1)}); blockmap.SameRef(bare, bare) {
		t.Error("SameRef of children without refs: got true")
	}
}

// TestToggle: a block that went from A to B and back is no difference to a user,
// but is one to deletion, however deep.
func TestToggle(t *testing.T) {
	s := newStore()
	_, m1 := twoLeaves(t, s)
	set := func(base blockmap.Map, leaf uint64, content, slot int) blockmap.Map {
		b := blockmap.NewBuilder(base, base.Size, s)
		n := &blockmap.Node{}
		n.Append(9, testDigest(content), testRef(7, slot), 0)
		if err := b.Set(t.Context(), leaf, n); err != nil {
			t.Fatal(err)
		}
		root, err := b.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return blockmap.Map{Size: base.Size, Root: root, Nodes: s}
	}
	m3 := set(set(m1, 300, 2, 0), 300, 1, 1)
	if m1.Digest() != m3.Digest() {
		t.Error("equal content has different digests")
	}
	leaves := func(same func(x, y blockmap.Child) bool) (got []uint64) {
		err := blockmap.Diff(t.Context(), m1, m3, same, func(leaf uint64, la, lb *blockmap.Node) error {
			if n := blockmap.Changed(la, lb); n.Count() != 0 {
				t.Errorf("leaf %d: %d blocks changed, want none", leaf, n.Count())
			}
			got = append(got, leaf)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	byDigest, byRef := leaves(blockmap.SameDigest), leaves(blockmap.SameRef)
	if len(byDigest) != 0 || !slices.Equal(byRef, []uint64{300}) {
		t.Errorf("differences: got %v by digest, %v by ref, want none and [300]", byDigest, byRef)
	}
	// With another leaf changed too, only the way to that one is sent.
	var sent []snapferry.Position
	err := blockmap.DiffNodes(t.Context(), m1, set(m3, 0, 2, 2), func(at snapferry.Position, _ *blockmap.Node) error {
		sent = append(sent, at)
		return nil
	})
	if diff := gocmp.Diff(sent, []snapferry.Position{{Level: 3}, {Level: 2}, {Level: 1}, {Level: 0}}); err != nil || diff != "" {
		t.Errorf("nodes to send: error %v (-got +want):\n%s", err, diff)
	}
}

// TestDiffReadsLittle: equal subtrees are not read.
func TestDiffReadsLittle(t *testing.T) {
	s := newStore()
	_, m := twoLeaves(t, s)
	s.reads = [blockmap.Levels]int{}
	err := blockmap.Diff(t.Context(), m, m, blockmap.SameDigest, func(uint64, *blockmap.Node, *blockmap.Node) error {
		return errors.New("a difference")
	})
	if err != nil || s.reads != [blockmap.Levels]int{} {
		t.Errorf("a map and itself: got error %v and reads %v, want none", err, s.reads)
	}
}

func TestBuilderRefuses(t *testing.T) {
	ok := func() *blockmap.Node { return goldenNodes()["leaf"] }
	for _, c := range []struct {
		name string
		size int64
		run  func(b *blockmap.Builder) error
		kind snapferry.Kind
	}{
		{"the same leaf twice", 1 << 40, func(b *blockmap.Builder) error {
			return errors.Join(b.Set(t.Context(), 5, ok()), b.Set(t.Context(), 5, ok()))
		}, snapferry.Invalid},
		{"descending leaves", 1 << 40, func(b *blockmap.Builder) error {
			return errors.Join(b.Set(t.Context(), 5, nil), b.Set(t.Context(), 4, nil))
		}, snapferry.Invalid},
		{"leaf beyond the size", leafSpan, func(b *blockmap.Builder) error { return b.Set(t.Context(), 1, ok()) }, snapferry.Invalid},
		{"block beyond the size", block, func(b *blockmap.Builder) error { return b.Set(t.Context(), 0, ok()) }, snapferry.Corrupt},
		{"inner node", 1 << 40, func(b *blockmap.Builder) error { return b.Set(t.Context(), 0, goldenNodes()["inner"]) }, snapferry.Invalid},
		{"leaf without refs", 1 << 40, func(b *blockmap.Builder) error { return b.Set(t.Context(), 0, logical(ok())) }, snapferry.Invalid},
		{"size 0", 0, func(b *blockmap.Builder) error { _, err := b.Finish(t.Context()); return err }, snapferry.Invalid},
		{"size above 64 TiB", snapferry.MaxVolumeSize + 512, func(b *blockmap.Builder) error { _, err := b.Checkpoint(t.Context()); return err }, snapferry.Invalid},
	} {
		b := blockmap.NewBuilder(blockmap.Map{Size: c.size}, c.size, newStore())
		err := c.run(b)
		if !snapferry.IsKind(err, c.kind) {
			t.Errorf("%s: got error %v, want %v", c.name, err, c.kind)
		}
		if root, err := b.Finish(t.Context()); root != nil || !snapferry.IsKind(err, c.kind) {
			t.Errorf("%s: finish after it: got %v, %v, want the same error", c.name, root, err)
		}
	}
}

// TestBuilderShrinks: a size that ends in a block of the base needs that leaf.
func TestBuilderShrinks(t *testing.T) {
	s := newStore()
	base := blockmap.Map{Size: 1 << 40, Nodes: s}
	b := blockmap.NewBuilder(base, base.Size, s)
	if err := b.Set(t.Context(), 0, goldenNodes()["full-leaf"]); err != nil {
		t.Fatal(err)
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base.Root = root
	for _, c := range []struct {
		size int64
		want uint64 // blocks; 0: the leaf must be set
	}{{leafSpan, 256}, {leafSpan - 512, 0}, {block, 1}, {block - 512, 0}, {block + 512, 0}, {5 * block, 5}} {
		b := blockmap.NewBuilder(base, c.size, s)
		root, err := b.Finish(t.Context())
		switch {
		case c.want == 0 && !snapferry.IsKind(err, snapferry.Invalid):
			t.Errorf("size %d: got error %v, want Invalid", c.size, err)
		case c.want > 0 && (err != nil || root.Blocks() != c.want):
			t.Errorf("size %d: got %v, %v, want %d blocks", c.size, root, err, c.want)
		}
		b = blockmap.NewBuilder(base, c.size, s)
		if err := b.Set(t.Context(), 0, nil); err != nil {
			t.Fatal(err)
		}
		if root, err := b.Finish(t.Context()); root != nil || err != nil {
			t.Errorf("size %d, leaf absent: got %v, %v, want an empty map", c.size, root, err)
		}
	}
}

// TestBuilderFaults breaks each write of a build in turn, in both ways, and
// goes on from the last checkpoint: the map is the same as without a fault.
func TestBuilderFaults(t *testing.T) {
	run := func(s *store, base blockmap.Map, from int) (partial blockmap.Map, settled int, err error) {
		b := blockmap.NewBuilder(base, base.Size, s)
		partial = base
		for i := from; i < len(places()); i++ {
			n := &blockmap.Node{}
			n.Append(i, testDigest(i), testRef(1, i), 0)
			if err := b.Set(t.Context(), places()[i], n); err != nil {
				return partial, from, err
			}
			if i%3 == 2 {
				root, err := b.Checkpoint(t.Context())
				if err != nil {
					return partial, from, err
				}
				partial.Root, from = root, i+1
			}
		}
		root, err := b.Finish(t.Context())
		if err == nil {
			partial.Root = root
		}
		return partial, from, err
	}
	clean := newStore()
	empty := blockmap.Map{Size: snapferry.MaxVolumeSize, Nodes: clean}
	want, _, err := run(clean, empty, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= len(clean.writes); at++ {
		for _, done := range []bool{false, true} {
			s := newStore()
			s.failAt, s.failDone = at, done
			m := blockmap.Map{Size: empty.Size, Nodes: s}
			m, settled, err := run(s, m, 0)
			if !errors.Is(err, errDisk) {
				t.Fatalf("write %d broken: got error %v, want the disk's", at, err)
			}
			s.failAt = 0
			m, _, err = run(s, m, settled)
			if err != nil || m.Digest() != want.Digest() {
				t.Errorf("write %d broken (done: %v): got %v, %v, want %v", at, done, m.Digest(), err, want.Digest())
			}
			collect(t, m)
		}
	}
}

// TestBuilderReadsLittle: one changed leaf costs the path to it.
func TestBuilderReadsLittle(t *testing.T) {
	s := newStore()
	base := blockmap.Map{Size: snapferry.MaxVolumeSize, Nodes: s}
	b := blockmap.NewBuilder(base, base.Size, s)
	for _, leaf := range places() {
		if err := b.Set(t.Context(), leaf, goldenNodes()["leaf"]); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base.Root = root
	s.reads, s.writes = [blockmap.Levels]int{}, nil
	b = blockmap.NewBuilder(base, base.Size, s)
	if err := b.Set(t.Context(), 256, goldenNodes()["full-leaf"]); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := [blockmap.Levels]int{0, 1, 1, 0}; s.reads != want || len(s.writes) != 3 {
		t.Errorf("got reads %v and %d writes, want %v and 3", s.reads, len(s.writes), want)
	}
}

// TestBuilderCheckpointTwice: a checkpoint writes what changed since the last
// one, and nothing else.
func TestBuilderCheckpointTwice(t *testing.T) {
	s := newStore()
	base := blockmap.Map{Size: 1 << 40, Nodes: s}
	b := blockmap.NewBuilder(base, base.Size, s)
	if err := b.Set(t.Context(), 0, goldenNodes()["leaf"]); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := b.Checkpoint(t.Context()); err != nil || len(s.writes) != 3 || len(b.Superseded()) != 0 {
			t.Errorf("got error %v, %d writes, %d superseded, want the leaf and 2 nodes above it, none superseded", err, len(s.writes), len(b.Superseded()))
		}
	}
	for _, leaf := range []uint64{1, 256} { // the second one closes a node of the checkpoint
		if err := b.Set(t.Context(), leaf, goldenNodes()["leaf"]); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.Superseded(); len(got) != 0 {
		t.Errorf("superseded is %v before the next root, but the checkpoint uses it", got)
	}
	if _, err := b.Finish(t.Context()); err != nil || len(s.writes) != 8 || !slices.Equal(b.Superseded(), s.writes[1:3]) {
		t.Errorf("got error %v, %d writes, superseded %v, want 8 writes and the nodes of the checkpoint", err, len(s.writes), b.Superseded())
	}
}

// TestBuilderCheckpointWhileShrinking: before the leaf in which the new size
// ends is set, a checkpoint is valid; and when that leaf turns out to be the
// base's, its ref is, also after a restart.
func TestBuilderCheckpointWhileShrinking(t *testing.T) {
	s := newStore()
	base := blockmap.Map{Size: 1 << 40, Nodes: s}
	b := blockmap.NewBuilder(base, base.Size, s)
	last := &blockmap.Node{}
	last.Append(2, testDigest(1), testRef(1, 1), 0)
	for leaf, n := range []*blockmap.Node{goldenNodes()["leaf"], last, goldenNodes()["leaf"]} {
		if err := b.Set(t.Context(), uint64(leaf), n); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base.Root = root
	want, _, _, err := base.Cursor().Child(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, restart := range []bool{false, true} {
		m := blockmap.Map{Size: leafSpan + 2*block + 512, Nodes: s}
		b = blockmap.NewBuilder(base, m.Size, s)
		if err := b.Set(t.Context(), 0, nil); err != nil {
			t.Fatal(err)
		}
		if m.Root, err = b.Checkpoint(t.Context()); err != nil {
			t.Fatalf("checkpoint: %v", err)
		}
		if nodes, blocks := collect(t, m); len(nodes) != 3 || len(blocks) != 1 {
			t.Errorf("the checkpoint has %d nodes below the root and %d blocks, want 3 and 1", len(nodes), len(blocks))
		}
		if restart {
			b = blockmap.NewBuilder(m, m.Size, s)
		}
		if err := b.Set(t.Context(), 1, last); err != nil {
			t.Fatal(err)
		}
		if m.Root, err = b.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, _, _, err := m.Cursor().Child(t.Context(), 1); err != nil || got != want {
			t.Errorf("restart %v: got leaf %v, %v, want the base's %v", restart, got, err, want)
		}
	}
}
