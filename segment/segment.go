// Package segment is the form in which a chain's frames are stored. A segment
// is an immutable, numbered set of frames, blocks or nodes but never both; its
// body is a header, the frames, and a footer that says where each frame is and
// what it holds. An object carries the bodies of one or more segments and ends
// in a directory of them. docs/format/segment.md and docs/format/object.md
// have the layouts.
//
// The package does no I/O of its own and holds no keys: a Sealer, when the
// chain is encrypted, seals frames on their way in. Every byte of an object is
// under a CRC-32C that VerifyObject checks without any key.
package segment

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

const (
	// MaxSlots is the largest number of slots of a segment; slots are
	// numbered from 0 to MaxSlots-1.
	MaxSlots = 65535
	// TargetSize is the size in bytes at which a body is full.
	TargetSize = 32 << 20
	// MaxFrame is the largest stored length of a frame in bytes.
	MaxFrame = 1<<24 - 1
	// MaxRaw is the largest length of a frame's content in bytes, before
	// compression and sealing: that of a block.
	MaxRaw = snapferry.BlockSize
	// MaxBody is the largest length of a body in bytes, since offsets have 32
	// bits.
	MaxBody = 1<<32 - 1

	// HeaderSize is the length of a body's header in bytes.
	HeaderSize = 48
	// TrailerSize is the length of the last part of a footer in bytes. It
	// says how long the footer is.
	TrailerSize = 64
	// SealOverhead is what a Sealer adds to a frame and to a footer, in bytes.
	SealOverhead = 28

	version   = 1
	magic     = "SFSEG"
	magicTail = "SFT"

	flagSealed = 1

	clearSize = 2 + 4 + 3 + 4     // slot, offset, length, CRC
	infoSize  = 2 + 1 + 1 + 4 + 8 // slot, codec, level, raw length, index
	minBody   = HeaderSize + 1 + clearSize + infoSize + TrailerSize
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC-32C of p, the checksum of everything here.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// FooterSize returns the length in bytes of the footer of a segment with a
// number of slots present.
func FooterSize(slots int, sealed bool) int {
	n := slots*(clearSize+infoSize) + TrailerSize
	if sealed {
		n += SealOverhead
	}
	return n
}

// Sealer seals and opens what one segment of an encrypted chain stores. Seal
// and SealFooter append SealOverhead bytes more than plain to dst; the openers
// give errors of Kind Corrupt, and Open may be given sealed[:0] as dst.
// *seal.SegmentKey is one.
type Sealer interface {
	Seal(dst, plain []byte, slot uint16, f snapferry.FrameInfo) []byte
	Open(dst, sealed []byte, slot uint16, f snapferry.FrameInfo) ([]byte, error)
	SealFooter(dst, plain []byte) []byte
	OpenFooter(dst, sealed []byte) ([]byte, error)
}

// Header is what is true of a whole segment. It stands at the beginning of a
// body and again in its footer.
type Header struct {
	Segment   snapferry.SegmentID
	Chain     snapferry.ChainID
	Kind      snapferry.FrameKind
	Algorithm digest.Algorithm // that the chain's digests are made with
	Sealed    bool             // frames and infos are encrypted
}

func (h *Header) flags() uint8 {
	if h.Sealed {
		return flagSealed
	}
	return 0
}

// check refuses what no segment can be, with the Kind given for what is wrong
// rather than from a newer version.
func (h *Header) check(kind snapferry.Kind) error {
	switch {
	case h.Kind != snapferry.BlockFrame && h.Kind != snapferry.NodeFrame:
		return snapferry.Errorf(kind, "segment %s: unknown frame kind %d", h.Segment, uint8(h.Kind))
	case h.Segment.IsZero() || h.Chain.IsZero():
		return snapferry.Errorf(kind, "segment %s of chain %s: an id is zero", h.Segment, h.Chain)
	case h.Algorithm != digest.SHA256:
		return snapferry.Errorf(snapferry.Unsupported, "segment %s: unknown digest algorithm %d", h.Segment, uint8(h.Algorithm))
	}
	return nil
}

func appendHeader(dst []byte, h *Header) []byte {
	start := len(dst)
	dst = append(dst, magic...)
	dst = append(dst, version, uint8(h.Kind), h.flags(), uint8(h.Algorithm), 0, 0, 0)
	dst = append(dst, h.Chain[:]...)
	dst = append(dst, h.Segment[:]...)
	return binary.BigEndian.AppendUint32(dst, Checksum(dst[start:]))
}

// DecodeHeader reads the header at the beginning of a body. The error is of
// Kind Unsupported for a newer version, else Corrupt.
func DecodeHeader(p []byte) (Header, error) {
	var h Header
	if len(p) < HeaderSize {
		return h, corrupt("segment header: %d bytes are too few", len(p))
	}
	if string(p[:5]) != magic {
		return h, corrupt("segment header: no magic")
	}
	if err := checkVersion("segment header", p[5]); err != nil {
		return h, err
	}
	if Checksum(p[:44]) != binary.BigEndian.Uint32(p[44:]) {
		return h, corrupt("segment header: wrong checksum")
	}
	if p[7]&^flagSealed != 0 || p[9]|p[10]|p[11] != 0 {
		return h, corrupt("segment header: reserved bits are set")
	}
	h = Header{
		Segment:   snapferry.SegmentID(p[28:44]),
		Chain:     snapferry.ChainID(p[12:28]),
		Kind:      snapferry.FrameKind(p[6]),
		Algorithm: digest.Algorithm(p[8]),
		Sealed:    p[7] == flagSealed,
	}
	return h, h.check(snapferry.Corrupt)
}

// checkInfo says what is wrong with a frame of a segment, or "".
func (h *Header) checkInfo(f snapferry.FrameInfo, stored int) string {
	bits := 32 // of the number of a block: a root spans 2^32
	if f.Kind == snapferry.NodeFrame {
		if f.Level > 2 {
			return "a node's level is above 2"
		}
		bits -= 8 * (int(f.Level) + 1)
	} else if f.Level != 0 {
		return "a block has a level"
	}
	want := int(f.RawLength)
	if h.Sealed {
		want += SealOverhead
		if stored <= SealOverhead {
			return "a sealed frame is empty"
		}
	}
	switch {
	case f.Kind != h.Kind:
		return "a frame of another kind than its segment"
	case f.RawLength < 1 || f.RawLength > MaxRaw:
		return "a raw length out of range"
	case f.Index>>bits != 0:
		return "an index beyond the largest map"
	case stored < 1 || stored > MaxFrame:
		return "a stored length out of range"
	case f.Codec == snapferry.Stored && stored != want:
		return "an uncompressed frame whose stored length does not fit its raw length"
	}
	return ""
}

func checkVersion(what string, v uint8) error {
	switch {
	case v > version:
		return snapferry.Errorf(snapferry.Unsupported, "%s: version %d is newer than this program", what, v)
	case v < version:
		return corrupt("%s: version %d", what, v)
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return snapferry.Errorf(snapferry.Corrupt, format, args...)
}
