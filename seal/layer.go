package seal

import (
	"crypto/cipher"

	"github.com/snapferry/snapferry"
)

const layerInfo = "snapferry layer 1\x00"

// LayerKey seals and opens the key of one local layer of an encrypted volume. It is
// safe for concurrent use.
type LayerKey struct {
	place [placeSize]byte
	aead  cipher.AEAD
}

// NewLayerKey derives the key from the data key of the volume's chain and an id of
// 16 random bytes that the layer has. The error is of Kind Invalid when the data
// key is not KeySize bytes long.
func NewLayerKey(dataKey []byte, chain snapferry.ChainID, id [16]byte) (*LayerKey, error) {
	prk, err := extract(dataKey, id[:])
	if err != nil {
		return nil, err
	}
	aead, err := expand(prk, layerInfo, chain)
	if err != nil {
		return nil, err
	}
	return &LayerKey{place: place(chain, id), aead: aead}, nil
}

// Seal appends the sealed form of the key of the layer in directory dir to dst:
// len(key) + Overhead bytes.
func (k *LayerKey) Seal(dst, key []byte, dir string) []byte {
	return k.aead.Seal(dst, nil, key, k.aad(dir))
}

// Open appends to dst what Seal sealed for the same directory. Anything else gives
// an error of Kind Corrupt.
func (k *LayerKey) Open(dst, sealed []byte, dir string) ([]byte, error) {
	p, err := k.aead.Open(dst, nil, sealed, k.aad(dir))
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "open the key of layer %s: %w", dir, err)
	}
	return p, nil
}

func (k *LayerKey) aad(dir string) []byte { return append(k.place[:len(k.place):len(k.place)], dir...) }
