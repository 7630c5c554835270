package blockmap_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// store keeps nodes in their stored form, as a region does. It refuses what a
// region would refuse: a wrong digest, and a ref used at another position than
// the one it was written for.
type store struct {
	frames map[snapferry.Ref]frame
	writes []snapferry.Ref
	reads  [blockmap.Levels]int

	failAt   int  // the write that fails, counted from 1; 0: none
	failDone bool // it fails after it was done
}

type frame struct {
	at snapferry.Position
	p  []byte
}

var errDisk = errors.New("the disk broke")

func newStore() *store { return &store{frames: map[snapferry.Ref]frame{}} }

func (s *store) ReadNode(ctx context.Context, at snapferry.Position, d digest.Digest, ref snapferry.Ref) (*blockmap.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, ok := s.frames[ref]
	if !ok {
		return nil, snapferry.Errorf(snapferry.NotFound, "no frame %v", ref)
	}
	if f.at != at {
		return nil, snapferry.Errorf(snapferry.Corrupt, "frame %v of %v read at %v", ref, f.at, at)
	}
	s.reads[at.Level]++
	n, err := blockmap.Decode(f.p)
	if err != nil {
		return nil, err
	}
	if n.Digest() != d {
		return nil, snapferry.Errorf(snapferry.Corrupt, "frame %v is not %v", ref, d)
	}
	return n, nil
}

func (s *store) WriteNode(_ context.Context, at snapferry.Position, n *blockmap.Node, d digest.Digest) (snapferry.Ref, error) {
	fails := len(s.writes)+1 == s.failAt
	if fails && !s.failDone {
		return snapferry.Ref{}, errDisk
	}
	p, err := n.AppendBinary(nil)
	if err != nil {
		return snapferry.Ref{}, err
	}
	if n.Digest() != d || n.Level != at.Level || at.Level == blockmap.RootLevel {
		return snapferry.Ref{}, fmt.Errorf("node of level %d written as %v, %v", n.Level, at, d)
	}
	ref := testRef(1000+len(s.frames)/100, len(s.frames)%100)
	ref.Length = uint32(len(p))
	s.frames[ref] = frame{at, p}
	s.writes = append(s.writes, ref)
	if fails {
		return snapferry.Ref{}, errDisk
	}
	return ref, nil
}

// testRef is a ref made up of two numbers.
func testRef(segment, slot int) snapferry.Ref {
	r := snapferry.Ref{Slot: uint16(slot), Length: 4096}
	binary.BigEndian.PutUint64(r.Segment[8:], uint64(segment))
	return r
}

// testDigest is the digest of a made-up block.
func testDigest(i int) digest.Digest { return digest.Snapshot(int64(i), digest.Digest{1}) }

// disk is the plain model of a map.
type disk struct {
	size   int64
	blocks map[uint64]blockmap.Child
}

// leafOf returns the leaf of the model with a number, nil when it is empty.
func (d disk) leafOf(leaf uint64) *blockmap.Node {
	n := &blockmap.Node{}
	if leaf >= 1<<22 {
		return nil
	}
	for i := range blockmap.Fanout {
		if c, ok := d.blocks[leaf*blockmap.Fanout+uint64(i)]; ok {
			n.Append(i, c.Digest, c.Ref, 1)
		}
	}
	if n.Len() == 0 {
		return nil
	}
	return n
}

// leaves returns the numbers of the leaves that are not empty.
func (d disk) leaves() []uint64 {
	set := map[uint64]bool{}
	for b := range d.blocks {
		set[b/blockmap.Fanout] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// vertex is what the model knows of a node.
type vertex struct {
	Digest digest.Digest
	Blocks uint64
}

// vertices computes every node of the model's map, level by level, without
// package blockmap.
func (d disk) vertices() map[snapferry.Position]vertex {
	all := map[snapferry.Position]vertex{}
	below := map[uint64]vertex{}
	for b, c := range d.blocks {
		below[b] = vertex{c.Digest, 1}
	}
	for level := range uint8(blockmap.Levels) {
		presence := map[uint64]*[32]byte{}
		digests := map[uint64][]digest.Digest{}
		sums := map[uint64]uint64{}
		for _, i := range slices.Sorted(maps.Keys(below)) {
			up := i / 256
			if presence[up] == nil {
				presence[up] = new([32]byte)
			}
			presence[up][i%256/8] |= 1 << (i % 8)
			digests[up] = append(digests[up], below[i].Digest)
			sums[up] += below[i].Blocks
		}
		below = map[uint64]vertex{}
		for i := range presence {
			v := vertex{digest.Node(level, presence[i], digests[i]), sums[i]}
			all[snapferry.Position{Level: level, Index: i}] = v
			below[i] = v
		}
	}
	return all
}

func (d disk) digest() digest.Digest {
	return digest.Snapshot(d.size, d.vertices()[snapferry.Position{Level: blockmap.RootLevel}].Digest)
}

// version is a map beside its model.
type version struct {
	disk
	m blockmap.Map
	// children has the refs of all nodes below the root.
	children map[snapferry.Position]blockmap.Child
	// all has what the model knows of all nodes.
	all map[snapferry.Position]vertex
}

// collect walks the whole of a map and returns its nodes below the root, by
// position, and its blocks, by number.
func collect(t fataler, m blockmap.Map) (nodes map[snapferry.Position]blockmap.Child, blocks map[uint64]blockmap.Child) {
	t.Helper()
	nodes, blocks = map[snapferry.Position]blockmap.Child{}, map[uint64]blockmap.Child{}
	err := blockmap.DiffNodes(t.Context(), blockmap.Map{Size: m.Size}, m, func(at snapferry.Position, n *blockmap.Node) error {
		for i := range n.Presence.All() {
			d, r, _ := n.Child(i)
			index := at.Index*blockmap.Fanout + uint64(i)
			if at.Level == 0 {
				blocks[index] = blockmap.Child{Digest: d, Ref: r}
			} else {
				nodes[snapferry.Position{Level: at.Level - 1, Index: index}] = blockmap.Child{Digest: d, Ref: r}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("walk the map: %v", err)
	}
	return nodes, blocks
}

type fataler interface {
	Helper()
	Context() context.Context
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

const block, leafSpan = snapferry.BlockSize, int64(blockmap.LeafSpan)

// sizes are where the map is about to change its shape.
func sizes() []int64 {
	return []int64{
		512, block, block + 512, 3 * block, leafSpan - 512, leafSpan, leafSpan + 512, 2*leafSpan + 5*block, 256 * leafSpan,
		257*leafSpan + 512, 65536*leafSpan - block, 65536 * leafSpan, 65537*leafSpan + 3*block + 1024, snapferry.MaxVolumeSize,
	}
}

// places are the leaves that tests write to.
func places() []uint64 {
	return []uint64{0, 1, 2, 3, 254, 255, 256, 257, 258, 511, 512, 65534, 65535, 65536, 65537, 65792, 131072, 1<<22 - 257, 1<<22 - 1}
}

// drawNext draws the content of a version after parent and the leaves that its
// builder is given, ascending.
func drawNext(t *rapid.T, parent disk, no int) (next disk, set []uint64) {
	next = disk{parent.size, maps.Clone(parent.blocks)}
	if rapid.IntRange(0, 2).Draw(t, "resize") == 0 || parent.size == 0 {
		next.size = rapid.SampledFrom(sizes()).Draw(t, "size")
	}
	total := blockmap.Blocks(next.size)
	last := total - 1
	maps.DeleteFunc(next.blocks, func(b uint64, _ blockmap.Child) bool { return b >= total })
	given := map[uint64]bool{}
	for _, leaf := range rapid.SliceOfN(rapid.SampledFrom(append(places(), last/blockmap.Fanout)), 0, 8).Draw(t, "leaves") {
		given[leaf] = true
	}
	if _, ok := parent.blocks[last]; ok && next.size < parent.size && next.size%block != 0 {
		given[last/blockmap.Fanout] = true
	}
	for _, leaf := range slices.Sorted(maps.Keys(given)) {
		set = append(set, leaf)
		for _, i := range rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 2, 4, 255}), 0, 4).Draw(t, "blocks") {
			b := leaf*blockmap.Fanout + uint64(i)
			d := testDigest(rapid.IntRange(0, 1).Draw(t, "content"))
			old, had := parent.blocks[b]
			switch {
			case b >= total:
			case rapid.Bool().Draw(t, "absent"):
				delete(next.blocks, b)
			case had && old.Digest == d:
				next.blocks[b] = old // inherited
			default:
				next.blocks[b] = blockmap.Child{Digest: d, Ref: testRef(no, int(leaf%250)*256+i)}
			}
		}
	}
	return next, set
}

// build makes the map of next, with checkpoints and restarts in between, and
// checks what only the builder knows.
func build(t *rapid.T, s *store, parent version, next disk, set []uint64) blockmap.Map {
	start := len(s.writes)
	m := blockmap.Map{Size: next.size, Nodes: s}
	b := blockmap.NewBuilder(parent.m, next.size, s)
	partial := disk{next.size, maps.Clone(parent.blocks)}
	maps.DeleteFunc(partial.blocks, func(b uint64, _ blockmap.Child) bool { return b >= blockmap.Blocks(next.size) })
	for _, leaf := range set {
		if err := b.Set(t.Context(), leaf, next.leafOf(leaf)); err != nil {
			t.Fatalf("set leaf %d: %v", leaf, err)
		}
		for i := range uint64(blockmap.Fanout) {
			delete(partial.blocks, leaf*blockmap.Fanout+i)
			if c, ok := next.blocks[leaf*blockmap.Fanout+i]; ok {
				partial.blocks[leaf*blockmap.Fanout+i] = c
			}
		}
		what := rapid.IntRange(0, 3).Draw(t, "checkpoint")
		if what > 1 {
			continue
		}
		root, err := b.Checkpoint(t.Context())
		if err != nil {
			t.Fatalf("checkpoint after leaf %d: %v", leaf, err)
		}
		m.Root = root
		nodes, blocks := collect(t, m)
		if diff := gocmp.Diff(blocks, partial.blocks); diff != "" {
			t.Fatalf("blocks of the checkpoint after leaf %d (-got +want):\n%s", leaf, diff)
		}
		checkSuperseded(t, s.writes[start:], b.Superseded(), nodes)
		if what == 0 {
			start = len(s.writes)
			b = blockmap.NewBuilder(m, next.size, s)
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatalf("finish: %v", err)
	}
	m.Root = root
	nodes, _ := collect(t, m)
	checkSuperseded(t, s.writes[start:], b.Superseded(), nodes)
	if err := b.Set(t.Context(), 1<<22, nil); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("set after finish: got error %v, want Invalid", err)
	}
	return m
}

// checkSuperseded: of what a builder wrote, superseded is exactly what the map
// does not use.
func checkSuperseded(t *rapid.T, wrote, superseded []snapferry.Ref, nodes map[snapferry.Position]blockmap.Child) {
	used := map[snapferry.Ref]bool{}
	for _, c := range nodes {
		used[c.Ref] = true
	}
	got, want := map[snapferry.Ref]int{}, map[snapferry.Ref]int{}
	for _, r := range superseded {
		got[r]++
	}
	for _, r := range wrote {
		if !used[r] {
			want[r]++
		}
	}
	if diff := gocmp.Diff(got, want); diff != "" {
		t.Fatalf("superseded (-got +want):\n%s", diff)
	}
}

// TestBuilder holds maps built over maps, with checkpoints, restarts and
// resizes, against the model.
func TestBuilder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newStore()
		versions := []version{{disk: disk{blocks: map[uint64]blockmap.Child{}}}}
		for no := range rapid.IntRange(2, 6).Draw(t, "versions") {
			parent := versions[rapid.IntRange(0, len(versions)-1).Draw(t, "parent")]
			before := len(s.writes)
			v := version{}
			var set []uint64
			v.disk, set = drawNext(t, parent.disk, no+1)
			v.m = build(t, s, parent, v.disk, set)
			checkVersion(t, &v, parent, s.writes[before:])
			versions = append(versions, v)
		}
		versions = versions[1:]
		pick := func(label string) version { return versions[rapid.IntRange(0, len(versions)-1).Draw(t, label)] }
		checkLookups(t, s, pick("looked up"))
		checkAt(t, pick("looked at"))
		for _, a := range versions {
			for _, b := range versions {
				checkDiffs(t, a, b)
			}
		}
	})
}

// checkVersion checks content, digest, counts and the reference rule.
func checkVersion(t *rapid.T, v *version, parent version, wrote []snapferry.Ref) {
	if got, want := v.m.Digest(), v.digest(); got != want {
		t.Errorf("digest: got %v, want %v", got, want)
	}
	if got, want := v.m.Blocks(), uint64(len(v.blocks)); got != want {
		t.Errorf("present blocks: got %d, want %d", got, want)
	}
	nodes, blocks := collect(t, v.m)
	if diff := gocmp.Diff(blocks, v.blocks); diff != "" {
		t.Errorf("blocks (-got +want):\n%s", diff)
	}
	v.children = nodes
	v.all = v.vertices()
	want := maps.Clone(v.all)
	delete(want, snapferry.Position{Level: blockmap.RootLevel})
	if got, want := len(nodes), len(want); got != want {
		t.Errorf("nodes below the root: got %d, want %d", got, want)
	}
	for at, c := range nodes {
		if c.Digest != want[at].Digest {
			t.Errorf("digest at %v: got %v, want %v", at, c.Digest, want[at].Digest)
		}
		if old, ok := parent.children[at]; ok && old.Digest == c.Digest {
			if c.Ref != old.Ref {
				t.Errorf("ref at %v: got %v, want the parent's %v", at, c.Ref, old.Ref)
			}
		} else if !slices.Contains(wrote, c.Ref) {
			t.Errorf("ref at %v: got %v, want a new one", at, c.Ref)
		}
	}
}

// checkLookups checks Leaf, Leaves, Block and Cursor.
func checkLookups(t *rapid.T, s *store, v version) {
	present := v.leaves()
	c := v.m.Cursor()
	for _, from := range append(places(), 1<<22, 1<<24, 1<<63) {
		leafReads := s.reads[0]
		got, ok, err := c.Next(t.Context(), from)
		i, _ := slices.BinarySearch(present, from)
		if err != nil || ok != (i < len(present)) || ok && got != present[i] {
			t.Errorf("Next(%d): got %d, %v, %v in %v", from, got, ok, err, present)
		}
		ch, blocks, has, err := c.Child(t.Context(), from)
		if s.reads[0] != leafReads {
			t.Errorf("Next(%d) and Child read %d leaves", from, s.reads[0]-leafReads)
		}
		want := v.leafOf(from)
		if err != nil || has != (want != nil) || has && (ch != v.children[snapferry.Position{Index: from}] || int(blocks) != want.Len()) {
			t.Errorf("Child(%d): got %v, %d, %v, %v", from, ch, blocks, has, err)
		}
		leaf, err := v.m.Leaf(t.Context(), from)
		if diff := gocmp.Diff(leaf, want); err != nil || diff != "" {
			t.Errorf("Leaf(%d): error %v (-got +want):\n%s", from, err, diff)
		}
		d, r, ok, err := v.m.Block(t.Context(), from*blockmap.Fanout+1)
		if want, wantOK := v.blocks[from*blockmap.Fanout+1]; from < 1<<24 && (err != nil || ok != wantOK || ok && (d != want.Digest || r != want.Ref)) {
			t.Errorf("Block of leaf %d: got %v, %v, %v, %v", from, d, r, ok, err)
		}
	}
	from := rapid.SampledFrom(places()).Draw(t, "from")
	var got []uint64
	err := v.m.Leaves(t.Context(), from, func(leaf uint64, n *blockmap.Node) error {
		got = append(got, leaf)
		if diff := gocmp.Diff(n, v.leafOf(leaf)); diff != "" {
			t.Errorf("Leaves, leaf %d (-got +want):\n%s", leaf, diff)
		}
		return nil
	})
	i, _ := slices.BinarySearch(present, from)
	if err != nil || !slices.Equal(got, present[i:]) {
		t.Errorf("Leaves from %d: got %v, %v, want %v", from, got, err, present[i:])
	}
}

// checkAt looks up every vertex and places without one, by one cursor in any order.
func checkAt(t *rapid.T, v version) {
	all := v.vertices()
	var at []snapferry.Position
	for level := range uint8(blockmap.Levels + 1) {
		for _, p := range append(places(), 1<<24) {
			at = append(at, snapferry.Position{Level: level, Index: p >> (8 * level)}, snapferry.Position{Level: level, Index: p})
		}
	}
	for p := range all {
		at = append(at, p)
	}
	c := v.m.Cursor()
	for _, p := range at {
		n, err := c.At(t.Context(), p)
		want, ok := all[p]
		if err != nil || (n != nil) != ok || ok && (n.Level != p.Level || n.Digest() != want.Digest) {
			t.Errorf("At(%v): got %v, %v, want %v, %v", p, n, err, want, ok)
		}
	}
}

// checkDiffs checks Diff, DiffNodes and Changed of two versions.
func checkDiffs(t *rapid.T, a, b version) {
	both := slices.Compact(slices.Sorted(slices.Values(append(a.leaves(), b.leaves()...))))
	for name, same := range map[string]func(x, y blockmap.Child) bool{"digest": blockmap.SameDigest, "ref": blockmap.SameRef} {
		var want, got []uint64
		for _, leaf := range both {
			x, inA := a.children[snapferry.Position{Index: leaf}]
			y, inB := b.children[snapferry.Position{Index: leaf}]
			if inA != inB || !same(x, y) {
				want = append(want, leaf)
			}
		}
		err := blockmap.Diff(t.Context(), a.m, b.m, same, func(leaf uint64, la, lb *blockmap.Node) error {
			got = append(got, leaf)
			if diff := gocmp.Diff([]*blockmap.Node{la, lb}, []*blockmap.Node{a.leafOf(leaf), b.leafOf(leaf)}); diff != "" {
				t.Errorf("difference by %s, leaf %d (-got +want):\n%s", name, leaf, diff)
			}
			checkChanged(t, a.disk, b.disk, leaf, blockmap.Changed(la, lb))
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("difference by %s: got leaves %v, %v, want %v", name, got, err, want)
		}
	}
	var want, got []snapferry.Position
	for at, v := range b.all {
		if a.all[at] != v {
			want = append(want, at)
		}
	}
	slices.SortFunc(want, preOrder)
	err := blockmap.DiffNodes(t.Context(), a.m, b.m, func(at snapferry.Position, n *blockmap.Node) error {
		got = append(got, at)
		if n.Digest() != b.all[at].Digest {
			t.Errorf("difference in nodes: the node at %v is another one", at)
		}
		return nil
	})
	if diff := gocmp.Diff(got, want); err != nil || diff != "" {
		t.Errorf("difference in nodes: error %v (-got +want):\n%s", err, diff)
	}
}

func preOrder(x, y snapferry.Position) int {
	return cmp.Or(cmp.Compare(x.Index<<(8*x.Level), y.Index<<(8*y.Level)), cmp.Compare(y.Level, x.Level))
}

func checkChanged(t *rapid.T, a, b disk, leaf uint64, changed blockmap.Bitmap) {
	for i := range blockmap.Fanout {
		x, inA := a.blocks[leaf*blockmap.Fanout+uint64(i)]
		y, inB := b.blocks[leaf*blockmap.Fanout+uint64(i)]
		if got, want := changed.Has(i), inA != inB || x.Digest != y.Digest; got != want {
			t.Errorf("leaf %d, block %d: changed is %v, want %v", leaf, i, got, want)
		}
	}
}
