package segment

import (
	"encoding/binary"
	"sort"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

type trailer struct {
	Header
	slots    int
	offset   uint32 // of the footer, from the body's start
	clearCRC uint32
	infoCRC  uint32
}

func (t *trailer) infoLength() int {
	n := t.slots * infoSize
	if t.Sealed {
		n += SealOverhead
	}
	return n
}

func appendTrailer(dst []byte, t *trailer) []byte {
	start := len(dst)
	dst = append(dst, t.Chain[:]...)
	dst = append(dst, t.Segment[:]...)
	dst = append(dst, uint8(t.Kind), t.flags(), uint8(t.Algorithm), 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(t.slots))
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(t.infoLength()))
	dst = binary.BigEndian.AppendUint32(dst, t.offset)
	dst = binary.BigEndian.AppendUint32(dst, t.clearCRC)
	dst = binary.BigEndian.AppendUint32(dst, t.infoCRC)
	dst = append(dst, 0, 0, 0, 0, version)
	dst = append(dst, magicTail...)
	p := dst[start:]
	binary.BigEndian.PutUint32(p[56:], trailerCRC(p))
	return dst
}

// trailerCRC is over a trailer without its checksum.
func trailerCRC(p []byte) uint32 {
	var b [TrailerSize - 4]byte
	copy(b[:56], p[:56])
	copy(b[56:], p[60:])
	return Checksum(b[:])
}

// decodeTrailer reads the trailer at the end of tail.
func decodeTrailer(tail []byte) (trailer, error) {
	if len(tail) < TrailerSize {
		return trailer{}, corrupt("segment trailer: %d bytes are too few", len(tail))
	}
	p := tail[len(tail)-TrailerSize:]
	if string(p[61:]) != magicTail {
		return trailer{}, corrupt("segment trailer: no magic")
	}
	if err := checkVersion("segment trailer", p[60]); err != nil {
		return trailer{}, err
	}
	if trailerCRC(p) != binary.BigEndian.Uint32(p[56:]) {
		return trailer{}, corrupt("segment trailer: wrong checksum")
	}
	if p[33]&^flagSealed != 0 || p[35]|p[38]|p[39] != 0 {
		return trailer{}, corrupt("segment trailer: reserved bits are set")
	}
	t := trailer{
		Header: Header{
			Segment:   snapferry.SegmentID(p[16:32]),
			Chain:     snapferry.ChainID(p[:16]),
			Kind:      snapferry.FrameKind(p[32]),
			Algorithm: digest.Algorithm(p[34]),
			Sealed:    p[33] == flagSealed,
		},
		slots:    int(binary.BigEndian.Uint16(p[36:])),
		offset:   binary.BigEndian.Uint32(p[44:]),
		clearCRC: binary.BigEndian.Uint32(p[48:]),
		infoCRC:  binary.BigEndian.Uint32(p[52:]),
	}
	if err := t.check(snapferry.Corrupt); err != nil {
		return trailer{}, err
	}
	if t.slots == 0 || int64(t.infoLength()) != int64(binary.BigEndian.Uint32(p[40:])) {
		return trailer{}, corrupt("segment %s: the trailer's counts do not fit together", t.Segment)
	}
	return t, nil
}

// FooterSpan returns how many bytes at the end of a body DecodeFooter needs,
// at most FooterSize(MaxSlots, true), given at least its last TrailerSize
// bytes. The error is of Kind Unsupported for a newer version, else Corrupt.
func FooterSpan(trailer []byte) (n int, err error) {
	t, err := decodeTrailer(trailer)
	if err != nil {
		return 0, err
	}
	return FooterSize(t.slots, t.Sealed), nil
}

// Entry describes one frame of a segment.
type Entry struct {
	Slot   uint16
	Offset uint32 // from the start of the body, in bytes
	Length uint32 // stored bytes
	CRC    uint32 // CRC-32C of the stored bytes
	Info   snapferry.FrameInfo
}

// Verify reports whether stored are the bytes that were written under the
// entry. The error is of Kind Corrupt.
func (e Entry) Verify(stored []byte) error {
	if len(stored) != int(e.Length) {
		return corrupt("slot %d: %d bytes instead of %d", e.Slot, len(stored), e.Length)
	}
	if Checksum(stored) != e.CRC {
		return corrupt("slot %d: wrong checksum", e.Slot)
	}
	return nil
}

// Footer says what a segment holds and where. It is immutable, shares no
// memory with what it was decoded from, and takes 29 bytes a slot.
type Footer struct {
	Header
	clear []byte
	info  []byte // nil when sealed and not opened
}

// DecodeFooter reads the footer at the end of tail, the last FooterSpan bytes
// or more of a body of bodyLength bytes. Without a Sealer the infos of a
// sealed segment stay closed (HasInfo is false), which is enough to check the
// stored bytes. With a Sealer a plain segment is refused. The error is of Kind
// Unsupported for a newer version, else Corrupt.
func DecodeFooter(tail []byte, bodyLength int64, s Sealer) (*Footer, error) {
	t, err := decodeTrailer(tail)
	if err != nil {
		return nil, err
	}
	n := FooterSize(t.slots, t.Sealed)
	if len(tail) < n {
		return nil, corrupt("segment %s: the footer has %d bytes, here are %d", t.Segment, n, len(tail))
	}
	if int64(t.offset)+int64(n) != bodyLength {
		return nil, corrupt("segment %s: the footer is not at the end of the body", t.Segment)
	}
	if s != nil && !t.Sealed {
		return nil, corrupt("segment %s: not sealed, in an encrypted chain", t.Segment)
	}
	tail = tail[len(tail)-n:]
	clearPart, info := tail[:t.slots*clearSize], tail[t.slots*clearSize:n-TrailerSize]
	if Checksum(clearPart) != t.clearCRC {
		return nil, corrupt("segment %s: wrong checksum of the footer's clear part", t.Segment)
	}
	if Checksum(info) != t.infoCRC {
		return nil, corrupt("segment %s: wrong checksum of the footer's info part", t.Segment)
	}
	f := &Footer{Header: t.Header, clear: append([]byte(nil), clearPart...)}
	if err := f.checkClear(t.offset); err != nil {
		return nil, err
	}
	if !t.Sealed {
		f.info = append([]byte(nil), info...)
	} else if s != nil {
		if f.info, err = s.OpenFooter(make([]byte, 0, t.slots*infoSize), info); err != nil {
			return nil, err
		}
	}
	if err := f.checkInfos(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *Footer) checkClear(end uint32) error {
	offset, last := int64(HeaderSize), -1
	for i := range f.Len() {
		e := f.At(i)
		if int(e.Slot) <= last || e.Slot >= MaxSlots {
			return corrupt("segment %s: slot %d out of order", f.Segment, e.Slot)
		}
		if int64(e.Offset) != offset || e.Length == 0 {
			return corrupt("segment %s: slot %d is not where the one before it ends", f.Segment, e.Slot)
		}
		last = int(e.Slot)
		offset += int64(e.Length)
	}
	if offset != int64(end) {
		return corrupt("segment %s: the frames do not end at the footer", f.Segment)
	}
	return nil
}

func (f *Footer) checkInfos() error {
	if f.info == nil {
		return nil
	}
	if len(f.info) != f.Len()*infoSize {
		return corrupt("segment %s: %d bytes of infos for %d slots", f.Segment, len(f.info), f.Len())
	}
	for i := range f.Len() {
		e := f.At(i)
		if slot := binary.BigEndian.Uint16(f.info[i*infoSize:]); slot != e.Slot {
			return corrupt("segment %s: info of slot %d in the place of slot %d", f.Segment, slot, e.Slot)
		}
		if why := f.checkInfo(e.Info, int(e.Length)); why != "" {
			return corrupt("segment %s: slot %d: %s", f.Segment, e.Slot, why)
		}
	}
	return nil
}

// Len returns the number of frames.
func (f *Footer) Len() int { return len(f.clear) / clearSize }

// HasInfo reports whether entries have their Info beyond its Kind. It is false
// for a sealed segment whose footer was decoded without a Sealer.
func (f *Footer) HasInfo() bool { return f.info != nil }

// At returns the i-th entry by slot, 0 <= i < Len.
func (f *Footer) At(i int) Entry {
	p := f.clear[i*clearSize : (i+1)*clearSize]
	e := Entry{
		Slot:   binary.BigEndian.Uint16(p),
		Offset: binary.BigEndian.Uint32(p[2:]),
		Length: uint32(p[6])<<16 | uint32(p[7])<<8 | uint32(p[8]),
		CRC:    binary.BigEndian.Uint32(p[9:]),
		Info:   snapferry.FrameInfo{Kind: f.Kind},
	}
	if f.info != nil {
		q := f.info[i*infoSize : (i+1)*infoSize]
		e.Info.Codec = snapferry.Codec(q[2])
		e.Info.Level = q[3]
		e.Info.RawLength = binary.BigEndian.Uint32(q[4:])
		e.Info.Index = binary.BigEndian.Uint64(q[8:])
	}
	return e
}

func (f *Footer) slotAt(i int) uint16 { return binary.BigEndian.Uint16(f.clear[i*clearSize:]) }

// Find returns the entry of a slot. It is false when the segment, as
// compacted, does not have the slot.
func (f *Footer) Find(slot uint16) (Entry, bool) {
	// A slot's entry is never after its own number, and before compaction at it.
	i := int(slot)
	if i >= f.Len() || f.slotAt(i) != slot {
		i = sort.Search(min(i, f.Len()), func(j int) bool { return f.slotAt(j) >= slot })
	}
	if i >= f.Len() || f.slotAt(i) != slot {
		return Entry{}, false
	}
	return f.At(i), true
}
