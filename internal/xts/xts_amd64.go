package xts

import (
	"crypto/cipher"
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

var hasAES = cpu.X86.HasAES

// expandKey computes the round keys of AES-256 (FIPS 197, 5.2), and those of the
// equivalent inverse cipher (5.3.5) in the order of their use.
//
//go:noescape
func expandKey(key *[32]byte, enc, dec *[15][16]byte)

// encryptUnit and decryptUnit work on one unit; tweak is that of its first block.
//
//go:noescape
func encryptUnit(keys *[15][16]byte, tweak *[16]byte, dst, src *[UnitSize]byte)

//go:noescape
func decryptUnit(keys *[15][16]byte, tweak *[16]byte, dst, src *[UnitSize]byte)

func (s *schedule) expand(key *[32]byte) { expandKey(key, &s.enc, &s.dec) }

func (s *schedule) unit(dst, src *[UnitSize]byte, tweak cipher.Block, unit uint64, encrypt bool) {
	t := tweaks.Get().(*[16]byte)
	*t = [16]byte{}
	binary.LittleEndian.PutUint64(t[:], unit)
	tweak.Encrypt(t[:], t[:])
	if encrypt {
		encryptUnit(&s.enc, t, dst, src)
	} else {
		decryptUnit(&s.dec, t, dst, src)
	}
	tweaks.Put(t)
}
