package segment

import (
	"encoding/binary"
	"errors"

	"github.com/snapferry/snapferry"
)

var errClosed = errors.New("the segment is closed")

// Writer makes the body of a segment in memory, at the end of a buffer that
// may already hold the beginning of an object. It is not safe for concurrent
// use.
type Writer struct {
	buf   []byte
	start int
	h     Header
	s     Sealer
	clear []byte // clear part of the footer so far
	info  []byte // info part of the footer so far, plain
	next  int    // lowest free slot
	err   error  // why nothing can be appended
}

// NewWriter begins a body at the end of buf, whose capacity it uses. A nil
// Sealer makes a plain segment; h.Sealed is set from it. A header that no
// segment can have shows as an error of Append and Close.
func NewWriter(buf []byte, h Header, s Sealer) *Writer {
	w := new(Writer)
	w.Reset(buf, h, s)
	return w
}

// Reset makes w what NewWriter returns and keeps its memory.
func (w *Writer) Reset(buf []byte, h Header, s Sealer) {
	h.Sealed = s != nil
	*w = Writer{buf: appendHeader(buf, &h), start: len(buf), h: h, s: s, clear: w.clear[:0], info: w.info[:0], err: h.check(snapferry.Invalid)}
}

// Append adds a frame under the next slot and returns the slot and the frame's
// stored length in bytes. payload is the frame's content as compressed with
// f.Codec, f.RawLength bytes before that; it is sealed here if the segment is.
// A payload that lies exactly where Tail pointed is taken in place. Append
// does not allocate while the buffer has room. The error is of Kind Invalid,
// and the segment unchanged, for a frame that does not belong here or when the
// segment has no slot or no room left.
func (w *Writer) Append(f snapferry.FrameInfo, payload []byte) (slot uint16, length uint32, err error) {
	stored := len(payload)
	if w.s != nil {
		stored += SealOverhead
	}
	if err := w.admit(w.next, f, stored); err != nil {
		return 0, 0, err
	}
	slot = uint16(w.next)
	at := len(w.buf)
	switch {
	case w.s != nil:
		w.buf = w.s.Seal(w.buf, payload, slot, f)
	case w.atTail(payload):
		w.buf = w.buf[:at+len(payload)]
	default:
		w.buf = append(w.buf, payload...)
	}
	w.note(slot, f, at)
	return slot, uint32(len(w.buf) - at), nil
}

// AppendSlot adds a stored frame verbatim, sealed if the segment is, under its
// own slot, which must be above all slots added before. It is for compaction
// and healing, which keep the slots of a segment. Errors are those of Append.
func (w *Writer) AppendSlot(slot uint16, f snapferry.FrameInfo, stored []byte) error {
	if w.err == nil && int(slot) < w.next {
		return snapferry.Errorf(snapferry.Invalid, "append to segment %s: slot %d is not above the last one", w.h.Segment, slot)
	}
	if err := w.admit(int(slot), f, len(stored)); err != nil {
		return err
	}
	at := len(w.buf)
	w.buf = append(w.buf, stored...)
	w.note(slot, f, at)
	return nil
}

func (w *Writer) admit(slot int, f snapferry.FrameInfo, stored int) error {
	if w.err != nil {
		return snapferry.Errorf(snapferry.Invalid, "append to segment %s: %w", w.h.Segment, w.err)
	}
	if slot >= MaxSlots {
		return snapferry.Errorf(snapferry.Invalid, "append to segment %s: more than %d slots", w.h.Segment, MaxSlots)
	}
	if why := w.h.checkInfo(f, stored); why != "" {
		return snapferry.Errorf(snapferry.Invalid, "append to segment %s: %s", w.h.Segment, why)
	}
	if int64(w.Size())+int64(stored)+clearSize+infoSize > MaxBody {
		return snapferry.Errorf(snapferry.Invalid, "append to segment %s: more than %d bytes", w.h.Segment, int64(MaxBody))
	}
	return nil
}

// note puts the frame from buf[at] to the end into the footer.
func (w *Writer) note(slot uint16, f snapferry.FrameInfo, at int) {
	stored := w.buf[at:]
	n := len(stored)
	c := binary.BigEndian.AppendUint16(w.clear, slot)
	c = binary.BigEndian.AppendUint32(c, uint32(at-w.start))
	c = append(c, uint8(n>>16), uint8(n>>8), uint8(n))
	w.clear = binary.BigEndian.AppendUint32(c, Checksum(stored))
	i := binary.BigEndian.AppendUint16(w.info, slot)
	i = append(i, uint8(f.Codec), f.Level)
	i = binary.BigEndian.AppendUint32(i, f.RawLength)
	w.info = binary.BigEndian.AppendUint64(i, f.Index)
	w.next = int(slot) + 1
}

// Tail returns an empty slice over the free space at the end of the buffer. A
// compressor may append its output to it and hand the result to Append; in a
// plain segment it is then not copied, if it fitted. The slice is good until
// the next call of another method.
func (w *Writer) Tail() []byte { return w.buf[len(w.buf):] }

func (w *Writer) atTail(p []byte) bool {
	at := len(w.buf)
	return len(p) > 0 && cap(w.buf)-at >= len(p) && &w.buf[:at+1][at] == &p[0]
}

// Slots returns the number of frames.
func (w *Writer) Slots() int { return len(w.clear) / clearSize }

// Size returns the length in bytes that the body has when closed now.
func (w *Writer) Size() int {
	if w.err == errClosed {
		return len(w.buf) - w.start
	}
	return len(w.buf) - w.start + FooterSize(w.Slots(), w.h.Sealed)
}

// Full reports whether the segment should be closed before a frame with a
// payload of next bytes: its slots are used up, or the body would pass
// TargetSize. An empty segment is never full.
func (w *Writer) Full(next int) bool {
	if w.h.Sealed {
		next += SealOverhead
	}
	return w.next >= MaxSlots || w.Slots() > 0 && w.Size()+next+clearSize+infoSize > TargetSize
}

// Start returns the offset of the body in the buffer.
func (w *Writer) Start() int { return w.start }

// Bytes returns the body as far as it is written. It is good until the next
// call of Append, AppendSlot, Close or Reset.
func (w *Writer) Bytes() []byte { return w.buf[w.start:] }

// Close writes the footer and returns the whole buffer, with what was in it
// before the body. The error is of Kind Invalid when the segment has no frame
// or is closed already.
func (w *Writer) Close() ([]byte, error) {
	if w.err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "close segment %s: %w", w.h.Segment, w.err)
	}
	if w.Slots() == 0 {
		return nil, snapferry.Errorf(snapferry.Invalid, "close segment %s: it has no frames", w.h.Segment)
	}
	t := trailer{Header: w.h, slots: w.Slots(), offset: uint32(len(w.buf) - w.start), clearCRC: Checksum(w.clear)}
	w.buf = append(w.buf, w.clear...)
	at := len(w.buf)
	if w.s != nil {
		w.buf = w.s.SealFooter(w.buf, w.info)
	} else {
		w.buf = append(w.buf, w.info...)
	}
	t.infoCRC = Checksum(w.buf[at:])
	w.buf = appendTrailer(w.buf, &t)
	w.err = errClosed
	return w.buf, nil
}

// DirEntry returns the closed body's entry for the directory of an object that
// begins where the buffer does.
func (w *Writer) DirEntry(generation uint32) DirEntry {
	body := w.Bytes()
	return DirEntry{Segment: w.h.Segment, Generation: generation, Offset: int64(w.start), Length: int64(len(body)), CRC: Checksum(body)}
}
