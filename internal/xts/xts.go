// Package xts is AES-256 in XTS mode (IEEE Std 1619-2018, NIST SP 800-38E), by
// units of 4,096 bytes: what the data files of encrypted layers are in.
//
// XTS hides content and keeps its length. It does not authenticate: who can write
// to the medium can turn each block of 16 bytes into noise, or back into what it
// was once at that place, and nothing here tells. A unit that is written twice
// with the same content is the same on the medium.
//
// Where the machine has instructions for AES eight blocks are worked on at a
// time, else it is golang.org/x/crypto/xts; both give the same bytes.
package xts

import (
	"crypto/aes"
	"crypto/cipher"
	"sync"

	"golang.org/x/crypto/xts"

	"github.com/snapferry/snapferry"
)

const (
	// UnitSize is what is encrypted as one, in bytes: the data unit of the standard.
	UnitSize = 4096
	// KeySize is the length of a key in bytes: two of AES-256, for the data and for
	// the tweak.
	KeySize = 64
)

// A Cipher encrypts and decrypts units under one key. It is safe for concurrent
// use.
type Cipher struct {
	twin  *xts.Cipher
	tweak cipher.Block
	keys  schedule
	fast  bool
}

// schedule has the round keys of AES-256 in both directions, in the order in
// which they are used.
type schedule struct {
	enc, dec [15][16]byte
}

// tweaks are for one unit each: what is given to a cipher.Block escapes.
var tweaks = sync.Pool{New: func() any { return new([16]byte) }}

// New returns a cipher. The error is of Kind Invalid when the key is not KeySize
// bytes long, or when its halves are equal, which the standard forbids.
func New(key []byte) (*Cipher, error) {
	if len(key) != KeySize {
		return nil, snapferry.Errorf(snapferry.Invalid, "an XTS key has %d bytes, this one %d", KeySize, len(key))
	}
	if [KeySize / 2]byte(key) == [KeySize / 2]byte(key[KeySize/2:]) {
		return nil, snapferry.Errorf(snapferry.Invalid, "the halves of an XTS key are equal")
	}
	c := &Cipher{fast: hasAES}
	var err error
	if c.tweak, err = aes.NewCipher(key[KeySize/2:]); err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "XTS: %w", err)
	}
	if c.twin, err = xts.NewCipher(aes.NewCipher, key); err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "XTS: %w", err)
	}
	if c.fast {
		c.keys.expand((*[KeySize / 2]byte)(key))
	}
	return c, nil
}

// Encrypt encrypts whole units, the first of which has number unit, from src to
// dst, which has their length. They are the same memory or do not overlap.
func (c *Cipher) Encrypt(dst, src []byte, unit uint64) { c.crypt(dst, src, unit, true) }

// Decrypt is the inverse of Encrypt.
func (c *Cipher) Decrypt(dst, src []byte, unit uint64) { c.crypt(dst, src, unit, false) }

func (c *Cipher) crypt(dst, src []byte, unit uint64, encrypt bool) {
	if len(src)%UnitSize != 0 || len(dst) != len(src) {
		panic("xts: not whole units")
	}
	for ; len(src) > 0; dst, src, unit = dst[UnitSize:], src[UnitSize:], unit+1 {
		switch {
		case c.fast:
			c.keys.unit((*[UnitSize]byte)(dst), (*[UnitSize]byte)(src), c.tweak, unit, encrypt)
		case encrypt:
			c.twin.Encrypt(dst[:UnitSize], src[:UnitSize], unit)
		default:
			c.twin.Decrypt(dst[:UnitSize], src[:UnitSize], unit)
		}
	}
}
