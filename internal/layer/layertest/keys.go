package layertest

import (
	"bytes"
	"crypto/sha256"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// Keys are keys for layers, sealed by nothing that deserves the name: each place
// opens what it sealed, and nothing else.
type Keys struct {
	Fail func() error // nil, or returns what fails
}

var _ layer.Keys = (*Keys)(nil)

func (k *Keys) fails() error {
	if k.Fail == nil {
		return nil
	}
	return k.Fail()
}

// SealLayerKey implements layer.Keys.
func (k *Keys) SealLayerKey(place string, key []byte) ([]byte, error) {
	if err := k.fails(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(place))
	sealed := bytes.Clone(sum[:])
	for i, b := range key {
		sealed = append(sealed, b^sum[i%len(sum)])
	}
	return sealed, nil
}

// OpenLayerKey implements layer.Keys.
func (k *Keys) OpenLayerKey(place string, sealed []byte) ([]byte, error) {
	if err := k.fails(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(place))
	if !bytes.HasPrefix(sealed, sum[:]) {
		return nil, snapferry.Errorf(snapferry.Corrupt, "the key of another layer than %s", place)
	}
	key := bytes.Clone(sealed[len(sum):])
	for i := range key {
		key[i] ^= sum[i%len(sum)]
	}
	return key, nil
}
