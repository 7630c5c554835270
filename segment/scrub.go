package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/snapferry/snapferry"
)

// The parts of an object, as Damage names them.
const (
	PartObjectHeader  = "object header"
	PartDirectory     = "directory"
	PartSegmentHeader = "segment header"
	PartFooter        = "footer"
	PartFrame         = "frame"
	PartBody          = "body"
)

// Damage is one thing that is wrong with an object. As an error it stands in
// the chain of what VerifyObject returns.
type Damage struct {
	Part    string              // one of the Part constants
	Segment snapferry.SegmentID // zero for the object header and the directory
	Slot    int                 // of a frame, else -1
	Detail  string
}

func (d *Damage) Error() string {
	switch {
	case d.Slot >= 0:
		return fmt.Sprintf("slot %d of segment %s: %s", d.Slot, d.Segment, d.Detail)
	case !d.Segment.IsZero():
		return fmt.Sprintf("%s of segment %s: %s", d.Part, d.Segment, d.Detail)
	}
	return fmt.Sprintf("%s: %s", d.Part, d.Detail)
}

// ScrubSegment is one segment of a verified object.
type ScrubSegment struct {
	DirEntry
	Footer *Footer // without infos when sealed; nil when the footer is damaged
}

// Scrub is what VerifyObject found.
type Scrub struct {
	Segments []ScrubSegment // in the order of the directory
	Damage   []*Damage      // everything found wrong; empty for a sound object
}

const (
	scrubBuffer = 1 << 20
	pageSize    = 4096
	minObject   = ObjectHeaderSize + minBody + DirEntrySize + DirTrailerSize
)

// VerifyObject reads a whole object of size bytes and checks every byte of it
// without keys: header, directory, each body, each frame. It goes on after
// damage to a body, so that one pass finds every damaged frame. Beside the
// footers it returns it holds buf, or 1 MiB of its own when buf is smaller.
// Bodies are read in pieces of the size of buf that begin at multiples of 4 KiB
// of the object: with a buf that is page aligned a reader can go past the page
// cache. The error is nil for a sound object; of
// Kind Corrupt, with the first Damage in its chain and the Scrub beside it when the
// directory was readable; of Kind Unsupported for a newer version; or that of
// r, with its Kind.
func VerifyObject(r io.ReaderAt, size int64, buf []byte) (*Scrub, error) {
	if len(buf) < scrubBuffer {
		buf = make([]byte, scrubBuffer)
	}
	v := &verifier{r: r, buf: buf[:len(buf)/pageSize*pageSize]}
	entries, err := v.directory(size)
	if err != nil {
		return nil, verifyError(err)
	}
	for _, e := range entries {
		f, err := v.body(e)
		if err != nil {
			return nil, verifyError(err)
		}
		v.scrub.Segments = append(v.scrub.Segments, ScrubSegment{DirEntry: e, Footer: f})
	}
	if len(v.scrub.Damage) > 0 {
		return &v.scrub, verifyError(v.scrub.Damage[0])
	}
	return &v.scrub, nil
}

func verifyError(err error) error {
	kind := snapferry.KindOf(err)
	var d *Damage
	if errors.As(err, &d) {
		kind = snapferry.Corrupt
	}
	return snapferry.Errorf(kind, "verify object: %w", err)
}

type verifier struct {
	r     io.ReaderAt
	buf   []byte
	scrub Scrub
}

// read fills p or fails: with a Damage when the object ends early, else with
// the reader's error.
func (v *verifier) read(part string, p []byte, off int64) error {
	n, err := v.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
		return &Damage{Part: part, Slot: -1, Detail: fmt.Sprintf("the object ends at byte %d", off+int64(n))}
	}
	return snapferry.Errorf(snapferry.KindOf(err), "read %d bytes at %d: %w", len(p), off, err)
}

// asDamage makes a Damage of a decoder's complaint, but not of a newer version.
func asDamage(part string, id snapferry.SegmentID, err error) error {
	if snapferry.IsKind(err, snapferry.Corrupt) {
		return &Damage{Part: part, Segment: id, Slot: -1, Detail: err.Error()}
	}
	return err
}

func (v *verifier) directory(size int64) ([]DirEntry, error) {
	if size < minObject {
		return nil, &Damage{Part: PartDirectory, Slot: -1, Detail: fmt.Sprintf("%d bytes are too few for an object", size)}
	}
	head := v.buf[:ObjectHeaderSize]
	if err := v.read(PartObjectHeader, head, 0); err != nil {
		return nil, err
	}
	if err := checkObjectHeader(head); err != nil {
		return nil, asDamage(PartObjectHeader, snapferry.SegmentID{}, err)
	}
	tail := v.buf[:DirTrailerSize]
	if err := v.read(PartDirectory, tail, size-DirTrailerSize); err != nil {
		return nil, err
	}
	n, err := DirectorySpan(tail)
	if err == nil && int64(n) > size {
		err = corrupt("directory: longer than the object")
	}
	if err != nil {
		return nil, asDamage(PartDirectory, snapferry.SegmentID{}, err)
	}
	tail = make([]byte, n)
	if err := v.read(PartDirectory, tail, size-int64(n)); err != nil {
		return nil, err
	}
	entries, err := DecodeDirectory(tail, size)
	return entries, asDamage(PartDirectory, snapferry.SegmentID{}, err)
}

// body checks one body. Its damage goes to v.scrub; the error is for what
// stops the scrub.
func (v *verifier) body(e DirEntry) (*Footer, error) {
	known := len(v.scrub.Damage)
	f, err := v.footer(e)
	if err != nil && !v.note(err) {
		return nil, err
	}
	head := v.buf[:HeaderSize]
	if err := v.read(PartSegmentHeader, head, e.Offset); err != nil {
		return nil, err
	}
	h, err := DecodeHeader(head)
	if err == nil && (h.Segment != e.Segment || f != nil && h != f.Header) {
		err = corrupt("it is not that of the footer and the directory")
	}
	if err != nil && !v.note(asDamage(PartSegmentHeader, e.Segment, err)) {
		return nil, err
	}
	crc, err := v.frames(e, f)
	if err != nil {
		return nil, err
	}
	if crc != e.CRC && len(v.scrub.Damage) == known {
		v.note(&Damage{Part: PartBody, Segment: e.Segment, Slot: -1, Detail: "wrong checksum"})
	}
	return f, nil
}

// note records damage and reports whether err was some.
func (v *verifier) note(err error) bool {
	var d *Damage
	if errors.As(err, &d) {
		v.scrub.Damage = append(v.scrub.Damage, d)
		return true
	}
	return false
}

func (v *verifier) footer(e DirEntry) (*Footer, error) {
	end := e.Offset + e.Length
	tail := v.buf[:TrailerSize]
	if err := v.read(PartFooter, tail, end-TrailerSize); err != nil {
		return nil, err
	}
	n, err := FooterSpan(tail)
	if err == nil && int64(n) > e.Length-HeaderSize {
		err = corrupt("longer than the body")
	}
	if err != nil {
		return nil, asDamage(PartFooter, e.Segment, err)
	}
	if tail = v.buf; n > len(tail) {
		tail = make([]byte, n)
	}
	tail = tail[:n]
	if err := v.read(PartFooter, tail, end-int64(n)); err != nil {
		return nil, err
	}
	f, err := DecodeFooter(tail, e.Length, nil)
	if err == nil && f.Segment != e.Segment {
		err = corrupt("it is that of segment %s", f.Segment)
	}
	if err != nil {
		return nil, asDamage(PartFooter, e.Segment, err)
	}
	return f, nil
}

// frames reads a whole body, checks the frames that its footer names, and
// returns the checksum of it all.
func (v *verifier) frames(e DirEntry, f *Footer) (crc uint32, err error) {
	var frame uint32 // checksum of the present frame so far
	next, slots := 0, 0
	if f != nil {
		slots = f.Len()
	}
	for pos := int64(0); pos < e.Length; {
		at := e.Offset + pos
		chunk := v.buf[:min(int64(len(v.buf))-at%pageSize, e.Length-pos)]
		if err := v.read(PartBody, chunk, at); err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, castagnoli, chunk)
		end := pos + int64(len(chunk))
		for next < slots {
			at := f.At(next)
			from, to := int64(at.Offset), int64(at.Offset)+int64(at.Length)
			if from >= end {
				break
			}
			frame = crc32.Update(frame, castagnoli, chunk[max(from, pos)-pos:min(to, end)-pos])
			if to > end {
				break
			}
			if frame != at.CRC {
				v.note(&Damage{Part: PartFrame, Segment: e.Segment, Slot: int(at.Slot), Detail: "wrong checksum"})
			}
			next, frame = next+1, 0
		}
		pos = end
	}
	return crc, nil
}
