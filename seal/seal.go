// Package seal encrypts what a chain stores: the frames and the footer of a
// segment, and the private part of a version record; the data keys of chains,
// under a master key; and the dumps and the keyrings of a region, under the
// region's key. It is pure: it takes keys as bytes, derives from a data key one
// for each segment or version, and binds to each sealed message the place that
// it belongs to, so that a frame moved anywhere else does not open.
// docs/format/seal.md has the definition.
//
// The cipher is AES-256-GCM with random nonces under keys from HKDF-SHA256,
// all from the standard library, and works in its FIPS-only mode. Random
// nonces bound the use of a derived key to 2^32 messages; a segment has at
// most 65,535 frames, so only healing or rewriting repeats a slot.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/snapferry/snapferry"
)

const (
	// Overhead is what sealing adds to a message, in bytes: a nonce of 12
	// before it and a tag of 16 after it.
	Overhead = 28
	// KeySize is the length of a data key in bytes.
	KeySize = 32

	formatVersion = 1

	frameInfo  = "snapferry segment 1\x00"
	footerInfo = "snapferry footer 1\x00"
	recordInfo = "snapferry record 1\x00"
	dumpInfo   = "snapferry dump 1\x00"

	keyringInfo = "snapferry keyring 1\x00"

	placeSize  = 1 + 16 + 16                       // format version, chain, segment or version
	frameSize  = placeSize + 2 + 1 + 1 + 4 + 1 + 8 // and slot, kind, codec, raw length, level, index
	recordSize = placeSize + 8                     // and revision

	numberedSize = 1 + 8 // format version, number
)

// SegmentKey seals and opens the frames and the footer of one segment. It is
// safe for concurrent use.
type SegmentKey struct {
	segment snapferry.SegmentID
	place   [placeSize]byte
	frames  cipher.AEAD
	footer  cipher.AEAD
	scratch sync.Pool // of *[frameSize]byte that begin with place: an AEAD's arguments escape
}

// NewSegmentKey derives the keys of a segment from its chain's data key. The
// error is of Kind Invalid when the data key is not KeySize bytes long.
func NewSegmentKey(dataKey []byte, chain snapferry.ChainID, segment snapferry.SegmentID) (*SegmentKey, error) {
	k := &SegmentKey{segment: segment, place: place(chain, segment)}
	prk, err := extract(dataKey, segment[:])
	if err != nil {
		return nil, err
	}
	if k.frames, err = expand(prk, frameInfo, chain); err != nil {
		return nil, err
	}
	if k.footer, err = expand(prk, footerInfo, chain); err != nil {
		return nil, err
	}
	return k, nil
}

// Seal appends a frame's sealed form to dst and returns the longer slice:
// nonce, ciphertext, tag; len(plain) + Overhead bytes. plain may begin exactly
// where the appended bytes will, else must not overlap them. It does not
// allocate when dst has the room.
func (k *SegmentKey) Seal(dst, plain []byte, slot uint16, f snapferry.FrameInfo) []byte {
	aad := k.aad(slot, f)
	dst = k.frames.Seal(dst, nil, plain, aad[:])
	k.scratch.Put(aad)
	return dst
}

// Open appends the frame that Seal sealed for the same slot and info to dst.
// Anything else gives an error of Kind Corrupt. dst may be sealed[:0], else must
// not overlap it. It does not allocate more than a nonce when dst has the room.
func (k *SegmentKey) Open(dst, sealed []byte, slot uint16, f snapferry.FrameInfo) ([]byte, error) {
	aad := k.aad(slot, f)
	plain, err := k.frames.Open(dst, nil, sealed, aad[:])
	k.scratch.Put(aad)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "open slot %d of segment %s: %w", slot, k.segment, err)
	}
	return plain, nil
}

// SealFooter appends the sealed form of the footer's private part to dst.
func (k *SegmentKey) SealFooter(dst, plain []byte) []byte {
	return k.footer.Seal(dst, nil, plain, k.place[:])
}

// OpenFooter appends to dst what SealFooter sealed for the same segment.
// Anything else gives an error of Kind Corrupt.
func (k *SegmentKey) OpenFooter(dst, sealed []byte) ([]byte, error) {
	plain, err := k.footer.Open(dst, nil, sealed, k.place[:])
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "open footer of segment %s: %w", k.segment, err)
	}
	return plain, nil
}

func (k *SegmentKey) aad(slot uint16, f snapferry.FrameInfo) *[frameSize]byte {
	b, ok := k.scratch.Get().(*[frameSize]byte)
	if !ok {
		b = new([frameSize]byte)
		copy(b[:], k.place[:])
	}
	p := b[placeSize:]
	binary.BigEndian.PutUint16(p, slot)
	p[2] = uint8(f.Kind)
	p[3] = uint8(f.Codec)
	binary.BigEndian.PutUint32(p[4:], f.RawLength)
	p[8] = f.Level
	binary.BigEndian.PutUint64(p[9:], f.Index)
	return b
}

// RecordKey seals and opens the private part of one version's records. It is
// safe for concurrent use.
type RecordKey struct {
	version snapferry.VersionID
	place   [placeSize]byte
	aead    cipher.AEAD
}

// NewRecordKey derives the key of a version's records from its chain's data
// key. The error is of Kind Invalid when the data key is not KeySize bytes
// long.
func NewRecordKey(dataKey []byte, chain snapferry.ChainID, version snapferry.VersionID) (*RecordKey, error) {
	prk, err := extract(dataKey, version[:])
	if err != nil {
		return nil, err
	}
	aead, err := expand(prk, recordInfo, chain)
	if err != nil {
		return nil, err
	}
	return &RecordKey{version: version, place: place(chain, version), aead: aead}, nil
}

// Seal appends the sealed form of a record's private part to dst: len(plain) +
// Overhead bytes.
func (k *RecordKey) Seal(dst, plain []byte, revision uint64) []byte {
	return k.aead.Seal(dst, nil, plain, k.aad(revision))
}

// Open appends to dst what Seal sealed for the same version and revision.
// Anything else gives an error of Kind Corrupt.
func (k *RecordKey) Open(dst, sealed []byte, revision uint64) ([]byte, error) {
	plain, err := k.aead.Open(dst, nil, sealed, k.aad(revision))
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "open record %d of version %s: %w", revision, k.version, err)
	}
	return plain, nil
}

func (k *RecordKey) aad(revision uint64) []byte {
	b := make([]byte, 0, recordSize)
	b = append(b, k.place[:]...)
	return binary.BigEndian.AppendUint64(b, revision)
}

// DumpKey seals and opens the dumps of one region's metadata. It is safe for
// concurrent use.
type DumpKey struct{ numbered }

// NewDumpKey derives the key of a region's dumps from the region's key. The
// error is of Kind Invalid when that is not KeySize bytes long.
func NewDumpKey(regionKey []byte) (*DumpKey, error) {
	n, err := newNumbered(regionKey, dumpInfo, "dump")
	return &DumpKey{n}, err
}

// KeyringKey seals and opens the keyrings of one region. It is safe for
// concurrent use.
type KeyringKey struct{ numbered }

// NewKeyringKey derives the key of a region's keyrings from the region's key.
// The error is of Kind Invalid when that is not KeySize bytes long.
func NewKeyringKey(regionKey []byte) (*KeyringKey, error) {
	n, err := newNumbered(regionKey, keyringInfo, "keyring")
	return &KeyringKey{n}, err
}

// numbered seals what a region has of which each has a number.
type numbered struct {
	what string
	aead cipher.AEAD
}

func newNumbered(regionKey []byte, info, what string) (numbered, error) {
	if len(regionKey) != KeySize {
		return numbered{}, snapferry.Errorf(snapferry.Invalid, "a region's key has %d bytes, this one %d", KeySize, len(regionKey))
	}
	prk, err := extract(regionKey, nil)
	if err != nil {
		return numbered{}, err
	}
	aead, err := expandKey(prk, info)
	return numbered{what, aead}, err
}

// Seal appends the sealed form of plain to dst: len(plain) + Overhead bytes.
func (k *numbered) Seal(dst, plain []byte, number uint64) []byte {
	return k.aead.Seal(dst, nil, plain, numberedAAD(number))
}

// Open appends to dst what Seal sealed for the same number. Anything else gives
// an error of Kind Corrupt.
func (k *numbered) Open(dst, sealed []byte, number uint64) ([]byte, error) {
	plain, err := k.aead.Open(dst, nil, sealed, numberedAAD(number))
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "open %s %d: %w", k.what, number, err)
	}
	return plain, nil
}

func numberedAAD(number uint64) []byte {
	b := make([]byte, 1, numberedSize)
	b[0] = formatVersion
	return binary.BigEndian.AppendUint64(b, number)
}

func place(chain snapferry.ChainID, id [16]byte) (p [placeSize]byte) {
	p[0] = formatVersion
	copy(p[1:], chain[:])
	copy(p[17:], id[:])
	return p
}

func expand(prk []byte, info string, chain snapferry.ChainID) (cipher.AEAD, error) {
	return expandKey(prk, info+string(chain[:]))
}

func expandKey(prk []byte, info string) (cipher.AEAD, error) {
	key, err := derive(prk, info)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "derive key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "derive key: %w", err)
	}
	clear(key)
	return aead, nil
}

// derive is the second half of HKDF-SHA256.
func derive(prk []byte, info string) ([]byte, error) {
	key, err := hkdf.Expand(sha256.New, prk, info, KeySize)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "derive key: %w", err)
	}
	return key, nil
}
