package keystore

import (
	"context"
	"crypto/rand"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/seal"
)

// layerKeys seals the keys of layers under the data key of a chain: an id, which is
// drawn for each, and the sealed key.
type layerKeys struct {
	s     *Store
	chain snapferry.ChainID
}

const layerID = 16

// Layers returns what seals the local layers of a chain's volumes; nil for a plain
// chain. Its errors are those of Segment.
func (s *Store) Layers(ctx context.Context, id snapferry.ChainID) (layer.Keys, error) {
	sealed, err := s.Encrypted(ctx, id)
	if err != nil || !sealed {
		return nil, err
	}
	return layerKeys{s, id}, nil
}

// SealLayerKey implements layer.Keys.
func (k layerKeys) SealLayerKey(place string, key []byte) (sealed []byte, err error) {
	var id [layerID]byte
	rand.Read(id[:])
	return sealed, k.with(id, func(lk *seal.LayerKey) error {
		sealed = lk.Seal(append([]byte(nil), id[:]...), key, place)
		return nil
	})
}

// OpenLayerKey implements layer.Keys.
func (k layerKeys) OpenLayerKey(place string, sealed []byte) (key []byte, err error) {
	if len(sealed) < layerID {
		return nil, snapferry.Errorf(snapferry.Corrupt, "the key of layer %s has %d bytes", place, len(sealed))
	}
	return key, k.with([layerID]byte(sealed), func(lk *seal.LayerKey) error {
		key, err = lk.Open(nil, sealed[layerID:], place)
		return err
	})
}

func (k layerKeys) with(id [layerID]byte, fn func(*seal.LayerKey) error) error {
	// No caller waits for longer than a key service may take; see kms.Config.
	return k.s.Use(context.Background(), k.chain, func(dataKey []byte) error {
		if dataKey == nil {
			return snapferry.Errorf(snapferry.Internal, "chain %s has no data key any more", k.chain)
		}
		lk, err := seal.NewLayerKey(dataKey, k.chain, id)
		if err != nil {
			return err
		}
		return fn(lk)
	})
}
