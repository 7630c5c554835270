package blockmap_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Where the parts of a small node are: head 4, bitmap 32, digests 32 each.
const (
	atBitmap  = 4
	atDigests = 36
)

// goldenNodes are the nodes of the golden files.
func goldenNodes() map[string]*blockmap.Node {
	leaf := &blockmap.Node{}
	leaf.Append(0, testDigest(1), testRef(1, 0), 0)
	leaf.Append(7, testDigest(2), testRef(2, 65535), 0)
	leaf.Append(8, testDigest(1), testRef(1, 1), 0)
	leaf.Append(255, testDigest(3), testRef(1, 2), 0)
	leaf.Refs[1].Length = 1<<24 - 1
	leaf.Refs[2].Length = 1

	inner := &blockmap.Node{Level: 2}
	inner.Append(3, testDigest(4), testRef(9, 0), 1)
	inner.Append(200, testDigest(5), testRef(8, 1), 65536)

	single := &blockmap.Node{Level: 3}
	single.Append(63, testDigest(6), testRef(5, 5), 1<<24)

	full := &blockmap.Node{}
	spread := &blockmap.Node{Level: 1} // as long as a node can be
	for i := range blockmap.Fanout {
		full.Append(i, testDigest(i), testRef(1, i), 0)
		spread.Append(i, testDigest(i), testRef(i+1, i), uint32(i+1))
	}
	return map[string]*blockmap.Node{"leaf": leaf, "inner": inner, "single": single, "full-leaf": full, "full-inner": spread}
}

func encode(t testing.TB, n *blockmap.Node) []byte {
	t.Helper()
	p, err := n.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// logical returns n as it is without refs.
func logical(n *blockmap.Node) *blockmap.Node {
	n = n.Clone()
	n.Refs = nil
	return n
}

func TestGolden(t *testing.T) {
	for name, n := range goldenNodes() {
		stored, crossing := encode(t, n), n.AppendLogical(nil)
		for file, got := range map[string][]byte{name + ".stored": stored, name + ".logical": crossing} {
			if *update {
				if err := os.WriteFile("testdata/"+file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile("testdata/" + file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: got %x, want %x", file, got, want)
			}
		}
		back, err := blockmap.Decode(stored)
		if diff := gocmp.Diff(back, n); err != nil || diff != "" {
			t.Errorf("%s: decoded with error %v (-got +want):\n%s", name, err, diff)
		}
		back, err = blockmap.DecodeLogical(crossing)
		if diff := gocmp.Diff(back, logical(n)); err != nil || diff != "" {
			t.Errorf("%s: logical form decoded with error %v (-got +want):\n%s", name, err, diff)
		}
		if back.Digest() != n.Digest() {
			t.Errorf("%s: the digest depends on the form", name)
		}
	}
	if got := len(encode(t, goldenNodes()["full-inner"])); got != blockmap.MaxEncoded {
		t.Errorf("the longest node has %d bytes, want MaxEncoded, %d", got, blockmap.MaxEncoded)
	}
}

// patch returns p with bytes overwritten and, for a stored form, the checksum
// made right again.
func patch(p []byte, isStored bool, at int, with ...byte) []byte {
	p = slices.Clone(p)
	copy(p[at:], with)
	if isStored {
		seal(p)
	}
	return p
}

func seal(p []byte) {
	body := p[:len(p)-4]
	binary.BigEndian.PutUint32(p[len(p)-4:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

func TestMalformed(t *testing.T) {
	nodes := goldenNodes()
	leaf, inner := encode(t, nodes["leaf"]), encode(t, nodes["inner"])
	root, full := encode(t, nodes["single"]), encode(t, nodes["full-leaf"])
	logicalLeaf, logicalInner := nodes["leaf"].AppendLogical(nil), nodes["inner"].AppendLogical(nil)
	zeros := digest.Block(nil)
	table := atDigests + 4*32  // of leaf: 2 ids
	refs := table + 2*16       // of leaf: 4 refs
	counts := len(inner) - 4*3 // of inner: 2 counts and the checksum
	for _, c := range []struct {
		name   string
		p      []byte
		kind   snapferry.Kind
		want   string // part of the message
		decode func([]byte) (*blockmap.Node, error)
	}{
		{"nothing", nil, snapferry.Corrupt, "no version", blockmap.Decode},
		{"version 0", patch(leaf, true, 0, 0), snapferry.Corrupt, "no version", blockmap.Decode},
		{"version 2", patch(leaf, true, 0, 2), snapferry.Unsupported, "version 2 is newer", blockmap.Decode},
		{"version 2 and nothing else", []byte{2}, snapferry.Unsupported, "version 2 is newer", blockmap.Decode},
		{"level 4", patch(leaf, true, 1, 4), snapferry.Corrupt, "level 4 is above 3", blockmap.Decode},
		{"short head", leaf[:35], snapferry.Corrupt, "too few", blockmap.Decode},
		{"head alone", leaf[:39], snapferry.Corrupt, "too few", blockmap.Decode},
		{"checksum", patch(leaf, false, len(leaf)-1, leaf[len(leaf)-1]^1), snapferry.Corrupt, "CRC-32C", blockmap.Decode},
		{"no segments", patch(leaf, true, 2, 0, 0), snapferry.Corrupt, "no segments", blockmap.Decode},
		{"more segments than bytes", patch(leaf, true, 2, 0xff, 0xff), snapferry.Corrupt, "bytes, want", blockmap.Decode},
		{"257 segments", patch(append(slices.Clone(full), make([]byte, 256*16)...), true, 2, 1, 1), snapferry.Corrupt, "257 segments for 256 children", blockmap.Decode},
		{"no children", patch(append(slices.Clone(leaf[:36]), make([]byte, 2*16+4)...), true, atBitmap, make([]byte, 32)...), snapferry.Corrupt, "2 segments for 0 children", blockmap.Decode},
		{"one more child", patch(leaf, true, atBitmap, 0x83), snapferry.Corrupt, "bytes, want", blockmap.Decode},
		{"one child less", patch(leaf, true, atBitmap, 0x80), snapferry.Corrupt, "bytes, want", blockmap.Decode},
		{"trailing byte", patch(append(slices.Clone(leaf), 0), true, 0, 1), snapferry.Corrupt, "bytes, want", blockmap.Decode},
		{"leaf with another level", patch(leaf, true, 1, 1), snapferry.Corrupt, "bytes, want", blockmap.Decode},
		{"zero digest", patch(leaf, true, atDigests+32, make([]byte, 32)...), snapferry.Corrupt, "digest 1 is zero", blockmap.Decode},
		{"block of zeros", patch(leaf, true, atDigests+64, zeros[:]...), snapferry.Corrupt, "digest 2 is that of a block of zeros", blockmap.Decode},
		{"zero segment", patch(leaf, true, table, make([]byte, 16)...), snapferry.Corrupt, "segment 0 is zero or repeated", blockmap.Decode},
		{"segment repeated", patch(leaf, true, table+16, leaf[table:table+16]...), snapferry.Corrupt, "segment 1 is zero or repeated", blockmap.Decode},
		{"segments not in order of use", patch(leaf, true, refs, 1), snapferry.Corrupt, "ref 0 uses segment 1", blockmap.Decode},
		{"segment out of the table", patch(leaf, true, refs+2*6, 2), snapferry.Corrupt, "ref 2 uses segment 2 of 2", blockmap.Decode},
		{"segment not used", patch(leaf, true, refs+6, 0), snapferry.Corrupt, "segment 1 is not used", blockmap.Decode},
		{"frame of no bytes", patch(leaf, true, refs+3, 0, 0, 0), snapferry.Corrupt, "ref 0 has no bytes", blockmap.Decode},
		{"count 0", patch(inner, true, counts, 0, 0, 0, 0), snapferry.Corrupt, "count 0 is 0, not 1 to 65536", blockmap.Decode},
		{"count too large", patch(inner, true, counts+4, 0, 1, 0, 1), snapferry.Corrupt, "count 1 is 65537, not 1 to 65536", blockmap.Decode},
		{"root beyond 64 TiB", patch(root, true, atBitmap+7, 0, 1), snapferry.Corrupt, "child 64 of the root", blockmap.Decode},
		{"logical form as stored", logicalLeaf, snapferry.Corrupt, "no segments", blockmap.Decode},

		{"logical: nothing", nil, snapferry.Corrupt, "no version", blockmap.DecodeLogical},
		{"logical: version 2", patch(logicalLeaf, false, 0, 2), snapferry.Unsupported, "version 2 is newer", blockmap.DecodeLogical},
		{"logical: stored form", leaf, snapferry.Corrupt, "2 segments in a logical form", blockmap.DecodeLogical},
		{"logical: level 4", patch(logicalLeaf, false, 1, 4), snapferry.Corrupt, "level 4 is above 3", blockmap.DecodeLogical},
		{"logical: no children", patch(logicalLeaf[:36], false, atBitmap, make([]byte, 32)...), snapferry.Corrupt, "no children", blockmap.DecodeLogical},
		{"logical: trailing byte", append(slices.Clone(logicalLeaf), 0), snapferry.Corrupt, "bytes, want", blockmap.DecodeLogical},
		{"logical: zero digest", patch(logicalLeaf, false, atDigests, make([]byte, 32)...), snapferry.Corrupt, "digest 0 is zero", blockmap.DecodeLogical},
		{"logical: block of zeros", patch(logicalLeaf, false, atDigests, zeros[:]...), snapferry.Corrupt, "block of zeros", blockmap.DecodeLogical},
		{"logical: count 0", patch(logicalInner, false, len(logicalInner)-4, 0, 0, 0, 0), snapferry.Corrupt, "count 1 is 0", blockmap.DecodeLogical},
	} {
		n, err := c.decode(c.p)
		if n != nil || !snapferry.IsKind(err, c.kind) {
			t.Errorf("%s: got %v, %v, want kind %v", c.name, n, err, c.kind)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %q, want one with %q", c.name, err, c.want)
		}
	}
}

// TestDamage: no cut and no flipped bit of a stored form goes unseen, nor does a
// cut of a logical one.
func TestDamage(t *testing.T) {
	for name, n := range goldenNodes() {
		if n.Len() > 10 {
			continue
		}
		p, l := encode(t, n), n.AppendLogical(nil)
		for i := range p {
			if _, err := blockmap.Decode(p[:i]); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s cut to %d bytes: got error %v, want Corrupt", name, i, err)
			}
		}
		for i := range l {
			if _, err := blockmap.DecodeLogical(l[:i]); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s, logical, cut to %d bytes: got error %v, want Corrupt", name, i, err)
			}
		}
		for bit := range len(p) * 8 {
			q := slices.Clone(p)
			q[bit/8] ^= 1 << (bit % 8)
			if _, err := blockmap.Decode(q); !snapferry.IsKind(err, snapferry.Corrupt) && q[0] <= 1 {
				t.Errorf("%s with bit %d flipped: got error %v, want Corrupt", name, bit, err)
			}
		}
	}
}

func TestEncodeInvalid(t *testing.T) {
	for name, change := range map[string]func(*blockmap.Node){
		"empty":         func(n *blockmap.Node) { n.Reset(0) },
		"no refs":       func(n *blockmap.Node) { n.Refs = nil },
		"a ref less":    func(n *blockmap.Node) { n.Refs = n.Refs[1:] },
		"zero segment":  func(n *blockmap.Node) { n.Refs[1].Segment = snapferry.SegmentID{} },
		"no length":     func(n *blockmap.Node) { n.Refs[1].Length = 0 },
		"length 1<<24":  func(n *blockmap.Node) { n.Refs[1].Length = 1 << 24 },
		"level 4":       func(n *blockmap.Node) { n.Level = 4 },
		"zero digest":   func(n *blockmap.Node) { n.Digests[0] = digest.Digest{} },
		"counts beyond": func(n *blockmap.Node) { n.Counts = []uint32{1, 1, 1, 1} },
	} {
		n := goldenNodes()["leaf"]
		change(n)
		p, err := n.AppendBinary([]byte("abc"))
		if !snapferry.IsKind(err, snapferry.Invalid) || string(p) != "abc" {
			t.Errorf("%s: got %q, %v, want what was there and Invalid", name, p, err)
		}
	}
}

func TestEncodeDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 2*blockmap.MaxEncoded)
	for name, n := range goldenNodes() {
		if got := testing.AllocsPerRun(20, func() {
			p, _ := n.AppendBinary(buf)
			n.AppendLogical(p)
		}); got != 0 {
			t.Errorf("%s: got %v allocations, want 0", name, got)
		}
	}
}

// TestSegmentTable: nodes with any mix of segments come back, also where their
// ids fall on one another in the table.
func TestSegmentTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := &blockmap.Node{}
		few := rapid.IntRange(1, 256).Draw(t, "segments")
		for i := range rapid.IntRange(1, 256).Draw(t, "children") {
			r := testRef(1, i)
			k := uint64(rapid.IntRange(1, few).Draw(t, "segment"))
			binary.BigEndian.PutUint64(r.Segment[:8], k)
			binary.BigEndian.PutUint64(r.Segment[8:], k+uint64(i%2)<<60)
			n.Append(i, testDigest(i), r, 0)
		}
		p, err := n.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		back, err := blockmap.Decode(p)
		if diff := gocmp.Diff(back, n, gocmp.Transformer("nil", func(c []uint32) int { return len(c) })); err != nil || diff != "" {
			t.Errorf("error %v (-got +want):\n%s", err, diff)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, n := range goldenNodes() {
		f.Add(encode(f, n))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		fuzzOne(t, p, blockmap.Decode, (*blockmap.Node).AppendBinary)
		if len(p) >= 4 { // as one who can compute a checksum would send it
			p = slices.Clone(p)
			seal(p)
			fuzzOne(t, p, blockmap.Decode, (*blockmap.Node).AppendBinary)
		}
	})
}

func FuzzDecodeLogical(f *testing.F) {
	for _, n := range goldenNodes() {
		f.Add(n.AppendLogical(nil))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		fuzzOne(t, p, blockmap.DecodeLogical, func(n *blockmap.Node, dst []byte) ([]byte, error) {
			return n.AppendLogical(dst), nil
		})
	})
}

// fuzzOne: what is decoded is written again as the same bytes, and every method
// can be called on it.
func fuzzOne(t *testing.T, p []byte, decode func([]byte) (*blockmap.Node, error), encode func(*blockmap.Node, []byte) ([]byte, error)) {
	n, err := decode(p)
	if err != nil {
		if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
			t.Errorf("error of Kind %v: %v", snapferry.KindOf(err), err)
		}
		return
	}
	if got, err := encode(n, nil); err != nil || !bytes.Equal(got, p) {
		t.Errorf("written again: got %x, %v, want %x", got, err, p)
	}
	for i := range blockmap.Fanout {
		n.Child(i)
	}
	if n.Blocks() < uint64(n.Len()) {
		t.Errorf("%d blocks under %d children", n.Blocks(), n.Len())
	}
	for _, index := range []uint64{0, 1, 1 << 40, 1<<64 - 1} {
		for _, size := range []int64{-1, 0, 512, snapferry.MaxVolumeSize, 1<<63 - 1} {
			if err := n.Check(index, size); err != nil && !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("Check(%d, %d): %v", index, size, err)
			}
		}
	}
}
