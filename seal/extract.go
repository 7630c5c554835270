package seal

import (
	"crypto/sha256"
	"hash"
	"sync"

	"github.com/snapferry/snapferry"
)

// An extractor is the first half of HKDF-SHA256 (RFC 5869, 2.2) for secrets that
// must not stay in memory: HMAC-SHA256(key = salt, message = secret), of which
// crypto/hkdf leaves the message in buffers that nobody clears. It has all
// memory of its own and overwrites what held the secret: the hash's buffer, and
// by a second sum the copies that the first made on the stack.
type extractor struct {
	h     hash.Hash
	block [sha256.BlockSize]byte
	sum   [sha256.Size]byte
}

var extractors = sync.Pool{New: func() any { return &extractor{h: sha256.New()} }}

// extract returns the pseudorandom key of a secret of KeySize bytes.
func extract(secret, salt []byte) ([]byte, error) {
	if len(secret) != KeySize {
		return nil, snapferry.Errorf(snapferry.Invalid, "a data key has %d bytes, this one %d", KeySize, len(secret))
	}
	if len(salt) > sha256.BlockSize {
		return nil, snapferry.Errorf(snapferry.Internal, "derive key: a salt of %d bytes", len(salt))
	}
	x := extractors.Get().(*extractor)
	x.inner(secret, salt)
	inner := x.sum
	x.pad(salt, 0x5c)
	x.h.Reset()
	x.h.Write(x.block[:])
	x.h.Write(inner[:])
	prk := x.h.Sum(nil)
	x.wipe()
	extractors.Put(x)
	return prk, nil
}

func (x *extractor) inner(secret, salt []byte) {
	x.pad(salt, 0x36)
	x.h.Reset()
	x.h.Write(x.block[:])
	x.h.Write(secret)
	x.h.Sum(x.sum[:0])
}

func (x *extractor) pad(salt []byte, with byte) {
	clear(x.block[:])
	copy(x.block[:], salt)
	for i := range x.block {
		x.block[i] ^= with
	}
}

// wipe does what inner did, with nothing secret.
func (x *extractor) wipe() {
	var nothing [KeySize]byte
	x.inner(nothing[:], nil)
	clear(x.sum[:])
}
