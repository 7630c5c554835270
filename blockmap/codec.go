package blockmap

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// The sizes of the parts of a node's binary forms, in bytes.
const (
	version = 1

	headSize   = 4 + Fanout/8 // version, level, number of segments, bitmap
	idSize     = 16
	refSize    = 1 + 2 + 3 // index of the segment, slot, stored length
	countSize  = 4
	crcSize    = 4
	maxFrame   = 1<<24 - 1
	maxLogical = headSize + Fanout*(digest.Size+countSize)

	// MaxEncoded is the length of the longest stored form of a node in bytes.
	MaxEncoded = maxLogical + Fanout*(idSize+refSize) + crcSize
)

// AppendBinary appends the stored form of the node, with refs, to dst
// (docs/format/blockmap.md). The error is of Kind Invalid when n is not a
// well-formed node whose every child has a ref.
func (n *Node) AppendBinary(dst []byte) ([]byte, error) {
	if msg := n.malformed(); msg != "" {
		return dst, snapferry.Errorf(snapferry.Invalid, "encode map node of level %d: %s", n.Level, msg)
	}
	if n.Refs == nil {
		return dst, snapferry.Errorf(snapferry.Invalid, "encode map node of level %d: no refs", n.Level)
	}
	var table segmentTable
	start := len(dst)
	dst = n.appendHead(dst)
	var refs [Fanout * refSize]byte
	for k := range n.Refs {
		r := &n.Refs[k]
		if r.Segment.IsZero() || r.Length == 0 || r.Length > maxFrame {
			return dst[:start], snapferry.Errorf(snapferry.Invalid, "encode map node of level %d: ref %d is %s with %d bytes", n.Level, k, r, r.Length)
		}
		i, isNew := table.index(&r.Segment)
		if isNew {
			dst = append(dst, r.Segment[:]...)
		}
		p := refs[k*refSize:]
		p[0] = byte(i)
		binary.BigEndian.PutUint16(p[1:], r.Slot)
		putUint24(p[3:], r.Length)
	}
	binary.BigEndian.PutUint16(dst[start+2:], uint16(table.n))
	dst = append(dst, refs[:len(n.Refs)*refSize]...)
	dst = n.appendCounts(dst)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli)), nil
}

// AppendLogical appends the logical form of the node, which has no refs and no
// checksum, to dst (docs/format/blockmap.md). It crosses between regions, where
// the digest is checked. A node that is not well-formed makes a form that
// DecodeLogical refuses.
func (n *Node) AppendLogical(dst []byte) []byte {
	return n.appendCounts(n.appendHead(dst))
}

func (n *Node) appendHead(dst []byte) []byte {
	dst = append(dst, version, n.Level, 0, 0)
	dst = append(dst, n.Presence[:]...)
	for k := range n.Digests {
		dst = append(dst, n.Digests[k][:]...)
	}
	return dst
}

func (n *Node) appendCounts(dst []byte) []byte {
	for _, c := range n.Counts {
		dst = binary.BigEndian.AppendUint32(dst, c)
	}
	return dst
}

// Decode reads the stored form of a node. Exactly the bytes that AppendBinary
// writes are accepted; p is not kept. Errors are of Kind Corrupt, and of Kind
// Unsupported for a higher version. Where the node stands in a map it cannot
// know: see Check.
func Decode(p []byte) (*Node, error) {
	segments, err := readHead(p)
	if err != nil {
		return nil, err
	}
	if segments == 0 {
		return nil, malformed("no segments")
	}
	if len(p) < headSize+crcSize {
		return nil, malformed("%d bytes are too few", len(p))
	}
	body, sum := p[:len(p)-crcSize], binary.BigEndian.Uint32(p[len(p)-crcSize:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, malformed("CRC-32C is %08x, want %08x", got, sum)
	}
	return decode(body, segments)
}

// DecodeLogical reads the logical form of a node; its Refs are nil. Exactly the
// bytes that AppendLogical writes for a well-formed node are accepted; p is not
// kept. Errors are those of Decode.
func DecodeLogical(p []byte) (*Node, error) {
	segments, err := readHead(p)
	if err != nil {
		return nil, err
	}
	if segments != 0 {
		return nil, malformed("%d segments in a logical form", segments)
	}
	return decode(p, 0)
}

// readHead checks version and level and returns the number of segments.
func readHead(p []byte) (segments int, err error) {
	switch {
	case len(p) == 0 || p[0] == 0:
		return 0, malformed("no version")
	case p[0] > version:
		return 0, snapferry.Errorf(snapferry.Unsupported, "decode map node: version %d is newer than %d", p[0], version).
			WithHint("use a newer snapferry")
	case len(p) < headSize:
		return 0, malformed("%d bytes are too few", len(p))
	case p[1] > RootLevel:
		return 0, malformed("level %d is above %d", p[1], RootLevel)
	}
	return int(binary.BigEndian.Uint16(p[2:])), nil
}

// decode reads what stands before the checksum. With no segments there are no
// refs either.
func decode(p []byte, segments int) (*Node, error) {
	n := &Node{Level: p[1], Presence: Bitmap(p[4:headSize])}
	count := n.Presence.Count()
	want := headSize + count*digest.Size
	if segments > 0 {
		want += segments*idSize + count*refSize
	}
	if n.Level > 0 {
		want += count * countSize
	}
	if len(p) != want {
		return nil, malformed("%d bytes, want %d for %d children in %d segments", len(p), want, count, segments)
	}
	p = p[headSize:]
	n.Digests = make([]digest.Digest, count)
	for k := range n.Digests {
		n.Digests[k] = digest.Digest(p[:digest.Size])
		p = p[digest.Size:]
	}
	if segments > 0 {
		if err := n.decodeRefs(p, segments); err != nil {
			return nil, err
		}
		p = p[segments*idSize+count*refSize:]
	}
	if n.Level > 0 {
		n.Counts = make([]uint32, count)
		for k := range n.Counts {
			n.Counts[k] = binary.BigEndian.Uint32(p[k*countSize:])
		}
	}
	if msg := n.malformed(); msg != "" {
		return nil, malformed("%s", msg)
	}
	return n, nil
}

// decodeRefs reads the table of segments and the refs, which p is long enough
// for. The table must be what AppendBinary makes: distinct segments in order
// of first use.
func (n *Node) decodeRefs(p []byte, segments int) error {
	if segments > n.Presence.Count() {
		return malformed("%d segments for %d children", segments, n.Presence.Count())
	}
	ids, p := p[:segments*idSize], p[segments*idSize:]
	var table segmentTable
	for i := range segments {
		id := snapferry.SegmentID(ids[i*idSize:])
		if _, isNew := table.index(&id); !isNew || id.IsZero() {
			return malformed("segment %d is zero or repeated", i)
		}
	}
	n.Refs = make([]snapferry.Ref, n.Presence.Count())
	used := 0
	for k := range n.Refs {
		i := int(p[0])
		if i > used || i >= segments {
			return malformed("ref %d uses segment %d of %d before segment %d", k, i, segments, used)
		}
		if i == used {
			used++
		}
		r := &n.Refs[k]
		r.Segment = snapferry.SegmentID(ids[i*idSize:])
		r.Slot = binary.BigEndian.Uint16(p[1:])
		r.Length = uint24(p[3:])
		if r.Length == 0 {
			return malformed("ref %d has no bytes", k)
		}
		p = p[refSize:]
	}
	if used != segments {
		return malformed("segment %d is not used", used)
	}
	return nil
}

func malformed(format string, args ...any) error {
	return snapferry.Errorf(snapferry.Corrupt, "decode map node: "+format, args...)
}

func putUint24(p []byte, v uint32) { p[0], p[1], p[2] = byte(v>>16), byte(v>>8), byte(v) }

func uint24(p []byte) uint32 { return uint32(p[0])<<16 | uint32(p[1])<<8 | uint32(p[2]) }

// castagnoli is the table of CRC-32C.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segmentTable numbers distinct segment ids in order of first use: at most 256
// of them, in a small hash table that lives on the stack.
type segmentTable struct {
	n     int
	last  int // the last index given; runs of one segment are the usual case
	ids   [Fanout]snapferry.SegmentID
	cells [2 * Fanout]uint16 // index + 1; 0 is free
}

// index returns the number of id, and whether this is its first use.
func (t *segmentTable) index(id *snapferry.SegmentID) (i int, isNew bool) {
	if t.n > 0 && t.ids[t.last] == *id {
		return t.last, false
	}
	h := binary.LittleEndian.Uint64(id[:]) ^ binary.LittleEndian.Uint64(id[8:])
	h = h * 0x9e3779b97f4a7c15 >> 55 // 9 bits
	for ; t.cells[h] != 0; h = (h + 1) % uint64(len(t.cells)) {
		if i = int(t.cells[h]) - 1; t.ids[i] == *id {
			t.last = i
			return i, false
		}
	}
	t.ids[t.n] = *id
	t.n++
	t.cells[h] = uint16(t.n)
	t.last = t.n - 1
	return t.last, true
}
