package snapferry

import "fmt"

// FrameKind says what a segment's frames hold. A segment holds one kind.
type FrameKind uint8

// The kinds of frames. The numbers are part of the formats.
const (
	BlockFrame FrameKind = 1 // blocks of a volume
	NodeFrame  FrameKind = 2 // nodes of a map
)

func (k FrameKind) String() string {
	switch k {
	case BlockFrame:
		return "blocks"
	case NodeFrame:
		return "nodes"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Codec says how a frame's plain bytes were compressed.
type Codec uint8

// The codecs. The numbers are part of the formats.
const (
	Stored Codec = 0 // not compressed
	Zstd   Codec = 1 // RFC 8878, one frame without checksum or dictionary
	S2     Codec = 2 // s2 block format of klauspost/compress, no stream framing
)

func (c Codec) String() string {
	switch c {
	case Stored:
		return "none"
	case Zstd:
		return "zstd"
	case S2:
		return "s2"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// ParseCodec reads the name of a codec as users write it: zstd, s2 or none.
func ParseCodec(s string) (Codec, error) {
	for _, c := range []Codec{Stored, Zstd, S2} {
		if s == c.String() {
			return c, nil
		}
	}
	return 0, Errorf(Invalid, "unknown compression %q", s).WithHint("use zstd, s2 or none")
}

// Position is a place in a map: the block with a number, or the node of a
// level with a number. The node (level, i) spans 256^(level+1) blocks from
// block i * 256^(level+1) on.
type Position struct {
	Level uint8  // of a node; 0 for a block
	Index uint64 // number of the block, or of the node in its level
}

// FrameInfo describes a frame without its bytes. It is bound to the frame: as
// additional data of the seal in encrypted chains, by the footer's checksum
// always.
type FrameInfo struct {
	Kind      FrameKind
	Codec     Codec
	RawLength uint32 // bytes of the frame's content before compression and sealing
	Position
}

// Ref is where a frame is: a slot of a segment. Refs are never reused.
type Ref struct {
	Segment SegmentID
	Slot    uint16
	Length  uint32 // stored bytes of the frame, less than 1<<24
}

// IsZero reports whether the ref names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

func (r Ref) String() string { return fmt.Sprintf("%s/%d", r.Segment, r.Slot) }
