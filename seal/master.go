package seal

import (
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"

	"github.com/snapferry/snapferry"
)

const (
	// MaxContext is the longest account or region in a Context in bytes.
	MaxContext = 255
	// CheckSize is the length of a Check in bytes.
	CheckSize = sha256.Size

	contextInfo = "snapferry context 1\x00"
	masterInfo  = "snapferry master 1\x00"
	checkInfo   = "snapferry check 1\x00"
)

// Context is the place of a chain's data key. A wrapped key is bound to it.
type Context struct {
	Account snapferry.AccountID
	Chain   snapferry.ChainID
	Region  snapferry.RegionName
}

// Bytes returns the one form of the context. The error is of Kind Invalid when
// account or region are longer than MaxContext.
func (c Context) Bytes() ([]byte, error) {
	if len(c.Account) > MaxContext || len(c.Region) > MaxContext {
		return nil, snapferry.Errorf(snapferry.Invalid, "an account or region of more than %d bytes", MaxContext)
	}
	p := append([]byte(contextInfo), uint8(len(c.Account)))
	p = append(p, c.Account...)
	p = append(p, c.Chain[:]...)
	p = append(p, uint8(len(c.Region)))
	return append(p, c.Region...), nil
}

// Check is a value that only a chain's data key gives in its context. Whoever
// unwraps the key compares it: so neither a key service that answers with
// another key, nor a wrapped key that was moved to another chain, goes
// unnoticed, also with services that bind no context.
type Check [CheckSize]byte

// NewCheck computes the check of a data key. The error is of Kind Invalid.
func NewCheck(dataKey []byte, c Context) (check Check, err error) {
	context, err := c.Bytes()
	if err != nil {
		return check, err
	}
	salt := sha256.Sum256(context)
	prk, err := extract(dataKey, salt[:])
	if err != nil {
		return check, err
	}
	p, err := derive(prk, checkInfo)
	copy(check[:], p)
	return check, err
}

// MasterKey wraps data keys: it is one generation of a master key of the
// embedded keyring. It is safe for concurrent use.
type MasterKey struct{ aead cipher.AEAD }

// NewMasterKey derives the wrapping key from 32 random bytes. The error is of
// Kind Invalid when there are not 32.
func NewMasterKey(secret []byte) (*MasterKey, error) {
	prk, err := extract(secret, nil)
	if err != nil {
		return nil, err
	}
	aead, err := expandKey(prk, masterInfo)
	if err != nil {
		return nil, err
	}
	return &MasterKey{aead: aead}, nil
}

// Wrap appends the sealed form of a data key to dst: KeySize + Overhead bytes.
// generation is bound to it.
func (k *MasterKey) Wrap(dst, dataKey []byte, generation uint32, c Context) ([]byte, error) {
	aad, err := wrapAAD(generation, c)
	if err != nil {
		return nil, err
	}
	return k.aead.Seal(dst, nil, dataKey, aad), nil
}

// Unwrap appends to dst the data key that Wrap wrapped for the same generation
// and context. Anything else gives an error of Kind Corrupt.
func (k *MasterKey) Unwrap(dst, wrapped []byte, generation uint32, c Context) ([]byte, error) {
	aad, err := wrapAAD(generation, c)
	if err != nil {
		return nil, err
	}
	p, err := k.aead.Open(dst, nil, wrapped, aad)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "unwrap the data key of chain %s: %w", c.Chain, err)
	}
	return p, nil
}

func wrapAAD(generation uint32, c Context) ([]byte, error) {
	p, err := c.Bytes()
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint32(p, generation), nil
}
