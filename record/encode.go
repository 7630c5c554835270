package record

import (
	"crypto/ed25519"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Encode returns the record as stored, signed with the region's key, its
// private part sealed when s is not nil. The holds are put in order. The error
// is of Kind Invalid for values that no record can have, or when the private
// part is not known; Full when the record is longer than MaxSize.
func (r *Record) Encode(key ed25519.PrivateKey, s Sealer) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, snapferry.Errorf(snapferry.Invalid, "a region's private key has %d bytes, this one %d", ed25519.PrivateKeySize, len(key))
	}
	if r.closed {
		return nil, r.invalid("its private part is not open")
	}
	sorted := *r
	sorted.Holds = slices.Clone(r.Holds)
	slices.SortFunc(sorted.Holds, func(a, b Hold) int { return a.compare(&b) })
	r = &sorted
	if why := r.check(); why != "" {
		return nil, r.invalid(why)
	}
	if why := r.checkPrivate(); why != "" {
		return nil, r.invalid(why)
	}
	if r.Algorithm != digest.SHA256 {
		return nil, r.invalid("unknown digest algorithm")
	}
	fields := r.fields()
	if private := r.private(); s != nil {
		fields.bytes(tagSealed, s.Seal(nil, private, r.Revision))
	} else {
		fields.bytes(tagPrivate, private)
	}
	p := append([]byte(magic), version)
	p = fields.append(p, r.extra)
	p = append(p, ed25519.Sign(key, p)...)
	if len(p) > MaxSize {
		return nil, snapferry.Errorf(snapferry.Full, "record %d of version %s has %d bytes, more than %d", r.Revision, r.Version, len(p), MaxSize)
	}
	return p, nil
}

func (r *Record) invalid(why string) error {
	return snapferry.Errorf(snapferry.Invalid, "encode record %d of version %s: %s", r.Revision, r.Version, why)
}

func (r *Record) fields() fieldList {
	var l fieldList
	l.id(tagVersion, r.Version)
	l.u64(tagRevision, r.Revision)
	l.id(tagChain, r.Chain)
	l.id(tagParent, r.Parent)
	l.u8(tagState, stateNumber(r.State))
	l.id(tagForward, r.Forward)
	l.text(tagRegion, string(r.Region))
	l.text(tagAccount, string(r.Account))
	l.text(tagVolume, string(r.Volume))
	l.u64(tagIncarnation, r.Incarnation)
	l.u64(tagToken, r.Token)
	l.u8(tagAlgorithm, uint8(r.Algorithm))
	l.u64(tagSize, uint64(r.Size))
	l.u64(tagBlocks, r.Blocks)
	l.time(tagCreated, r.Created)
	if r.Set != nil {
		p := append([]byte{uint8(len(r.Set.ID))}, r.Set.ID...)
		for _, m := range r.Set.Members {
			p = append(p, m[:]...)
		}
		l.bytes(tagSet, p)
	}
	return l
}

func (l *fieldList) time(tag uint16, t time.Time) {
	if !t.IsZero() {
		l.u64(tag, uint64(t.UnixMilli()))
	}
}

// private returns the plain form of the private part.
func (r *Record) private() []byte {
	var l fieldList
	l.bytes(tagRoot, r.Root)
	if !r.Digest.IsZero() {
		l.bytes(tagDigest, r.Digest[:])
	}
	var holds []byte
	for i := range r.Holds {
		p := r.Holds[i].encode()
		holds = binary.BigEndian.AppendUint32(holds, uint32(len(p)))
		holds = append(holds, p...)
	}
	l.bytes(tagHolds, holds)
	return l.append(nil, r.privateExtra)
}

func (h *Hold) encode() []byte {
	var l fieldList
	l.u8(tagKind, h.Kind.number())
	l.text(tagOwner, h.Owner)
	l.text(tagName, h.Name)
	l.text(tagDescription, h.Description)
	l.text(tagVolumeName, h.VolumeName)
	l.bytes(tagTags, encodeTags(h.Tags))
	l.time(tagHoldCreated, h.Created)
	l.time(tagRetainUntil, h.RetainUntil)
	l.time(tagLockUntil, h.LockUntil)
	l.text(tagSourceRegion, string(h.SourceRegion))
	l.text(tagSourceSnapshot, string(h.SourceSnapshot))
	l.text(tagSourceVolume, h.SourceVolume)
	l.text(tagSourceLineage, string(h.SourceLineage))
	l.text(tagPinRegion, string(h.PinRegion))
	if h.PinIncarnation != 0 {
		l.u64(tagPinIncarnation, h.PinIncarnation)
	}
	l.text(tagPinCopy, string(h.PinCopy))
	l.text(tagPinSnapshot, string(h.PinSnapshot))
	if h.SetSize != 0 {
		l.u64(tagSetSize, h.SetSize)
	}
	return l.append(nil, h.extra)
}

func encodeTags(tags snapferry.Tags) []byte {
	var p []byte
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		v := tags[k]
		p = append(p, uint8(len(k)))
		p = append(p, k...)
		p = binary.BigEndian.AppendUint16(p, uint16(len(v)))
		p = append(p, v...)
	}
	return p
}
