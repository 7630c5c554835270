package record

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Decode reads a stored record. The signature is checked before anything but
// the version of the format. A sealed private part is opened with s, or left
// out when s is nil (Private is false); with a Sealer a plain private part is
// refused. The error is of Kind Unsupported for a newer version or a field
// that must be understood and is not known, Invalid for a key of the wrong
// length, else Corrupt. The record shares no memory with p.
func Decode(p []byte, key ed25519.PublicKey, s Sealer) (*Record, error) {
	return DecodeTrusted(p, []ed25519.PublicKey{key}, s)
}

// DecodeTrusted is Decode for a region that had several keys: the record must be
// signed with one of them.
func DecodeTrusted(p []byte, keys []ed25519.PublicKey, s Sealer) (*Record, error) {
	fields, err := open(p, magic, MaxSize, keys)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "decode record: %w", err)
	}
	r, err := decodeFields(fields, s)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "decode record: %w", err)
	}
	return r, nil
}

// open checks magic, version and signature and returns what is between.
func open(p []byte, magic string, limit int, keys []ed25519.PublicKey) ([]byte, error) {
	for _, k := range keys {
		if err := checkPublicKey(k); err != nil {
			return nil, err
		}
	}
	head := len(magic) + 1
	switch {
	case len(p) < head+ed25519.SignatureSize || len(p) > limit:
		return nil, snapferry.Errorf(snapferry.Corrupt, "%d bytes are too few or too many", len(p))
	case string(p[:len(magic)]) != magic || p[len(magic)] == 0:
		return nil, snapferry.Errorf(snapferry.Corrupt, "no magic")
	case p[len(magic)] > version:
		return nil, snapferry.Errorf(snapferry.Unsupported, "version %d is newer than this program", p[len(magic)])
	}
	signed := p[:len(p)-ed25519.SignatureSize]
	for _, k := range keys {
		if ed25519.Verify(k, signed, p[len(signed):]) {
			return signed[head:], nil
		}
	}
	return nil, snapferry.Errorf(snapferry.Corrupt, "the signature is not that of this region")
}

func decodeFields(p []byte, s Sealer) (*Record, error) {
	f := &fieldReader{rest: p}
	r := new(Record)
	r.Version = snapferry.VersionID(f.need(tagVersion, 16))
	r.Revision = f.u64(tagRevision)
	r.Chain = snapferry.ChainID(f.need(tagChain, 16))
	r.Parent = snapferry.VersionID(f.may(tagParent, 16))
	state := f.u8(tagState)
	r.Forward = snapferry.VersionID(f.may(tagForward, 16))
	r.Region = snapferry.RegionName(f.text(tagRegion))
	r.Account = snapferry.AccountID(f.text(tagAccount))
	r.Volume = snapferry.VolumeID(f.text(tagVolume))
	r.Incarnation = f.u64(tagIncarnation)
	r.Token = f.u64(tagToken)
	r.Algorithm = digest.Algorithm(f.u8(tagAlgorithm))
	r.Size = int64(f.u64(tagSize))
	r.Blocks = f.u64(tagBlocks)
	r.Created = f.time(tagCreated)
	r.Set = f.set(tagSet)
	plain, sealed := f.bytes(tagPrivate), f.bytes(tagSealed)
	f.end()
	r.extra = f.extra
	if f.err != nil {
		return nil, f.err
	}
	if int(state) < len(states) {
		r.State = states[state]
	}
	if r.Algorithm != digest.SHA256 {
		return nil, snapferry.Errorf(snapferry.Unsupported, "unknown digest algorithm %d", uint8(r.Algorithm))
	}
	if why := r.check(); why != "" {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s", why)
	}
	return r, r.openPrivate(plain, sealed, s)
}

func (r *Record) openPrivate(plain, sealed []byte, s Sealer) error {
	switch {
	case sealed != nil && plain != nil:
		return snapferry.Errorf(snapferry.Corrupt, "two private parts")
	case sealed != nil && s == nil:
		r.closed = true
		return nil
	case sealed != nil:
		var err error
		if plain, err = s.Open(nil, sealed, r.Revision); err != nil {
			return err
		}
	case s != nil:
		return snapferry.Errorf(snapferry.Corrupt, "the private part is not sealed, in an encrypted chain")
	}
	f := &fieldReader{rest: plain}
	r.Root = bytes.Clone(f.bytes(tagRoot))
	r.Digest = digest.Digest(f.may(tagDigest, digest.Size))
	holds := f.bytes(tagHolds)
	f.end()
	r.privateExtra = f.extra
	if f.err != nil {
		return f.err
	}
	if err := r.decodeHolds(holds); err != nil {
		return err
	}
	if why := r.checkPrivate(); why != "" {
		return snapferry.Errorf(snapferry.Corrupt, "%s", why)
	}
	return nil
}

func (r *Record) decodeHolds(p []byte) error {
	for len(p) > 0 {
		if len(p) < 4 || int64(binary.BigEndian.Uint32(p)) > int64(len(p)-4) {
			return snapferry.Errorf(snapferry.Corrupt, "hold %d is cut off", len(r.Holds))
		}
		end := 4 + int(binary.BigEndian.Uint32(p))
		h, err := decodeHold(p[4:end])
		if err != nil {
			return snapferry.Errorf(snapferry.KindOf(err), "hold %d: %w", len(r.Holds), err)
		}
		r.Holds = append(r.Holds, h)
		p = p[end:]
	}
	return nil
}

func decodeHold(p []byte) (Hold, error) {
	f := &fieldReader{rest: p}
	var h Hold
	kind := f.u8(tagKind)
	h.Owner = f.text(tagOwner)
	h.Name = f.text(tagName)
	h.Description = f.text(tagDescription)
	h.VolumeName = f.text(tagVolumeName)
	h.Tags = f.tags(tagTags)
	h.Created = f.time(tagHoldCreated)
	h.RetainUntil = f.time(tagRetainUntil)
	h.LockUntil = f.time(tagLockUntil)
	h.SourceRegion = snapferry.RegionName(f.text(tagSourceRegion))
	h.SourceSnapshot = snapferry.SnapshotID(f.text(tagSourceSnapshot))
	h.SourceVolume = f.text(tagSourceVolume)
	h.SourceLineage = snapferry.VolumeID(f.text(tagSourceLineage))
	h.PinRegion = snapferry.RegionName(f.text(tagPinRegion))
	h.PinIncarnation = binary.BigEndian.Uint64(f.may(tagPinIncarnation, 8))
	h.PinCopy = snapferry.CopyID(f.text(tagPinCopy))
	h.PinSnapshot = snapferry.SnapshotID(f.text(tagPinSnapshot))
	h.SetSize = binary.BigEndian.Uint64(f.may(tagSetSize, 8))
	f.end()
	h.extra = f.extra
	if f.err == nil && int(kind) >= len(holdKinds) {
		return Hold{}, snapferry.Errorf(snapferry.Unsupported, "unknown kind %d", kind)
	}
	if f.err == nil {
		h.Kind = holdKinds[kind]
	}
	return h, f.err
}

func (r *fieldReader) time(tag uint16) time.Time {
	ms := binary.BigEndian.Uint64(r.may(tag, 8))
	if ms > maxTime {
		r.fail("field %d is a time out of range", number(tag))
		ms = 0
	}
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

func (r *fieldReader) set(tag uint16) *Set {
	p := r.bytes(tag)
	if p == nil {
		return nil
	}
	n := int(p[0])
	if len(p) < 1+n || (len(p)-1-n)%16 != 0 {
		r.fail("field %d is cut off", number(tag))
		return nil
	}
	s := &Set{ID: string(p[1 : 1+n])}
	for p = p[1+n:]; len(p) > 0; p = p[16:] {
		s.Members = append(s.Members, snapferry.VersionID(p[:16]))
	}
	return s
}

func (r *fieldReader) tags(tag uint16) snapferry.Tags {
	p := r.bytes(tag)
	if p == nil {
		return nil
	}
	tags, last := make(snapferry.Tags), ""
	for len(p) > 0 {
		k, rest, ok := cutPrefixed(p, 1)
		v, rest, ok2 := cutPrefixed(rest, 2)
		if !ok || !ok2 || k <= last {
			r.fail("field %d: tags are cut off or out of order", number(tag))
			return nil
		}
		tags[k], last, p = v, k, rest
	}
	return tags
}

// cutPrefixed takes a text off p that follows its length in n bytes.
func cutPrefixed(p []byte, n int) (text string, rest []byte, ok bool) {
	if len(p) < n {
		return "", nil, false
	}
	length := 0
	for _, b := range p[:n] {
		length = length<<8 | int(b)
	}
	if p = p[n:]; len(p) < length {
		return "", nil, false
	}
	return string(p[:length]), p[length:], true
}
