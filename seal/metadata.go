package seal

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

const (
	metadataInfo = "snapferry metadata 1\x00"
	lookupInfo   = "snapferry lookup 1\x00"
)

// MetadataKey seals what the metadata of a region has of the content of encrypted
// chains: digests and the nodes at the top of maps. It is safe for concurrent
// use.
type MetadataKey struct {
	aead   cipher.AEAD
	lookup []byte
}

// NewMetadataKey derives the keys from the region's key, and from a random value
// that stands in the metadata. The error is of Kind Invalid when the region's key
// is not KeySize bytes long.
func NewMetadataKey(regionKey, random []byte) (*MetadataKey, error) {
	salt := sha256.Sum256(random)
	prk, err := extract(regionKey, salt[:])
	if err != nil {
		return nil, err
	}
	k := new(MetadataKey)
	if k.aead, err = expandKey(prk, metadataInfo); err != nil {
		return nil, err
	}
	k.lookup, err = derive(prk, lookupInfo)
	return k, err
}

// Seal returns the sealed form of a value that stands in a place of the metadata:
// len(plain) + Overhead bytes.
func (k *MetadataKey) Seal(place string, plain []byte) []byte {
	return k.aead.Seal(nil, nil, plain, metadataAAD(place))
}

// Open returns the value that Seal sealed for the same place. Anything else gives
// an error of Kind Corrupt.
func (k *MetadataKey) Open(place string, sealed []byte) ([]byte, error) {
	plain, err := k.aead.Open(nil, nil, sealed, metadataAAD(place))
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "open %s in the metadata: %w", place, err)
	}
	return plain, nil
}

func metadataAAD(place string) []byte { return append([]byte{formatVersion}, place...) }

// Lookup returns the value under which a digest of encrypted content of an account
// is searched for: HMAC-SHA256 of account, a zero byte and the digest.
func (k *MetadataKey) Lookup(account snapferry.AccountID, d digest.Digest) []byte {
	m := hmac.New(sha256.New, k.lookup)
	m.Write([]byte(account))
	m.Write([]byte{0})
	m.Write(d[:])
	return m.Sum(nil)
}
