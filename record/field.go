package record

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/snapferry/snapferry"
)

// critical marks a field that a reader must understand. Every field that version
// 1 began with is.
const critical = 1 << 15

// Fields of a record.
const (
	tagVersion = critical | (iota + 1)
	tagRevision
	tagChain
	tagParent
	tagState
	tagForward
	tagRegion
	tagAccount
	tagVolume
	tagIncarnation
	tagToken
	tagAlgorithm
	tagSize
	tagBlocks
	tagCreated
	tagSet
	tagPrivate
	tagSealed
)

// Fields of the private part.
const (
	tagRoot = critical | (iota + 1)
	tagDigest
	tagHolds
)

// Fields of a hold.
const (
	tagKind = critical | (iota + 1)
	tagOwner
	tagName
	tagDescription
	tagVolumeName
	tagTags
	tagHoldCreated
	tagRetainUntil
	tagLockUntil
	tagSourceRegion
	tagSourceSnapshot
	tagSourceVolume
)

// Fields of a hold that a reader may ignore.
const (
	tagSourceLineage = iota + 13
	tagPinRegion
	tagPinIncarnation
	tagPinCopy
	tagPinSnapshot
	tagSetSize
)

const fieldHeader = 2 + 4 // tag, length of the value

type field struct {
	tag   uint16
	value []byte // never empty: a field without value is not written
}

func number(tag uint16) uint16 { return tag &^ critical }

// fieldList collects fields for writing; empty values are left out.
type fieldList []field

func (l *fieldList) bytes(tag uint16, v []byte) {
	if len(v) > 0 {
		*l = append(*l, field{tag, v})
	}
}

func (l *fieldList) text(tag uint16, s string) { l.bytes(tag, []byte(s)) }
func (l *fieldList) u8(tag uint16, v uint8)    { l.bytes(tag, []byte{v}) }
func (l *fieldList) u64(tag uint16, v uint64)  { l.bytes(tag, binary.BigEndian.AppendUint64(nil, v)) }

// id writes an id unless it is zero.
func (l *fieldList) id(tag uint16, v [16]byte) {
	if v != [16]byte{} {
		l.bytes(tag, v[:])
	}
}

// append writes the fields, with those of a later version of the format, in
// the order of their numbers.
func (l fieldList) append(dst []byte, extra []field) []byte {
	all := slices.Concat(l, extra)
	slices.SortFunc(all, func(a, b field) int { return int(number(a.tag)) - int(number(b.tag)) })
	for _, f := range all {
		dst = binary.BigEndian.AppendUint16(dst, f.tag)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(f.value)))
		dst = append(dst, f.value...)
	}
	return dst
}

// fieldReader takes fields one after the other in the order of their numbers.
// It remembers the first thing wrong; what it returns after that is zero.
type fieldReader struct {
	rest  []byte
	last  int   // number of the last field, taken or passed over
	next  field // the field at hand, if ready
	ready bool
	extra []field // fields passed over that need not be understood
	err   error
}

func (r *fieldReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = snapferry.Errorf(snapferry.Corrupt, format, args...)
	}
}

// peek makes the next field ready; false at the end or after an error.
func (r *fieldReader) peek() bool {
	if r.ready || r.err != nil || len(r.rest) == 0 {
		return r.ready && r.err == nil
	}
	if len(r.rest) < fieldHeader {
		r.fail("a field is cut off")
		return false
	}
	tag, n := binary.BigEndian.Uint16(r.rest), binary.BigEndian.Uint32(r.rest[2:])
	switch {
	case int(number(tag)) <= r.last:
		r.fail("field %d is out of order", number(tag))
		return false
	case n == 0 || int64(n) > int64(len(r.rest)-fieldHeader):
		r.fail("field %d has %d bytes", number(tag), n)
		return false
	}
	end := fieldHeader + int(n)
	r.next = field{tag, r.rest[fieldHeader:end:end]}
	r.rest, r.last, r.ready = r.rest[end:], int(number(tag)), true
	return true
}

// bytes takes the value of a field; nil when it is absent.
func (r *fieldReader) bytes(tag uint16) []byte {
	for r.peek() && number(r.next.tag) < number(tag) {
		r.pass()
	}
	if !r.peek() || number(r.next.tag) != number(tag) {
		return nil
	}
	if r.next.tag != tag {
		r.fail("field %d is not marked as it must be", number(tag))
		return nil
	}
	r.ready = false
	return r.next.value
}

// pass keeps a field that this program does not know.
func (r *fieldReader) pass() {
	r.ready = false
	if r.next.tag&critical != 0 && r.err == nil {
		r.err = snapferry.Errorf(snapferry.Unsupported, "field %d must be understood and is not known to this program", number(r.next.tag))
		return
	}
	r.extra = append(r.extra, field{r.next.tag, bytes.Clone(r.next.value)})
}

// end passes over what is left.
func (r *fieldReader) end() {
	for r.peek() {
		r.pass()
	}
}

// need is bytes of a field that must be there with n bytes.
func (r *fieldReader) need(tag uint16, n int) []byte {
	p := r.bytes(tag)
	if len(p) != n {
		r.fail("field %d has %d bytes instead of %d", number(tag), len(p), n)
	}
	if r.err != nil {
		return make([]byte, n)
	}
	return p
}

// may is need for a field that may be absent, as one of zeros is.
func (r *fieldReader) may(tag uint16, n int) []byte {
	p := r.bytes(tag)
	if p == nil {
		return make([]byte, n)
	}
	if len(p) != n || len(bytes.Trim(p, "\x00")) == 0 {
		r.fail("field %d is zero or has %d bytes instead of %d", number(tag), len(p), n)
		return make([]byte, n)
	}
	return p
}

func (r *fieldReader) text(tag uint16) string { return string(r.bytes(tag)) }
func (r *fieldReader) u8(tag uint16) uint8    { return r.need(tag, 1)[0] }
func (r *fieldReader) u64(tag uint16) uint64  { return binary.BigEndian.Uint64(r.need(tag, 8)) }
