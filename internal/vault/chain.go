package vault

import (
	"bytes"
	"context"
	"crypto/ed25519"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// chainTries bounds the search for a free number of a chain's object.
const chainTries = 100

// EnsureChain has the object of a chain in the bucket, which says whose it is:
// before the first version record of the chain, and again when the key of the
// chain has changed.
func (v *Vault) EnsureChain(ctx context.Context, id snapferry.ChainID) error {
	if _, done := v.chains.Load(id); done {
		return nil
	}
	c, keys, err := v.describeChain(ctx, id)
	if err != nil {
		return err
	}
	for c.Number = 1; c.Number <= chainTries; c.Number++ {
		p, err := c.Encode(v.sign)
		if err != nil {
			return err
		}
		name := record.ChainName(id, c.Number)
		err = v.bucket.Put(ctx, name, p)
		if snapferry.IsKind(err, snapferry.Exists) {
			var same bool
			if same, err = v.sameChain(ctx, name, c, keys); err == nil && !same {
				continue
			}
		}
		if err == nil {
			v.chains.Store(id, true)
		}
		return err
	}
	return snapferry.Errorf(snapferry.Conflict, "chain %s has %d objects that say something else", id, chainTries)
}

func (v *Vault) describeChain(ctx context.Context, id snapferry.ChainID) (c *record.Chain, keys []ed25519.PublicKey, err error) {
	err = v.db.View(ctx, func(tx *meta.Tx) error {
		row, err := tx.Chain(id)
		if err != nil {
			return err
		}
		account, err := tx.Account(row.Account)
		if err != nil {
			return err
		}
		c = &record.Chain{
			ID: id, Region: v.region, Account: account.ID, AccountName: account.Name, Algorithm: row.Algorithm, Created: row.Created,
			OriginRegion: row.OriginRegion, OriginChain: row.OriginChain, WrappedKey: row.WrappedKey,
		}
		keys, err = tx.TrustedKeys()
		return err
	})
	return c, append(keys, v.sign.Public().(ed25519.PublicKey)), err
}

// sameChain reports whether an object in the bucket says of a chain what c does.
func (v *Vault) sameChain(ctx context.Context, name string, c *record.Chain, keys []ed25519.PublicKey) (bool, error) {
	p, err := v.bucket.Get(ctx, name, record.MaxChainSize)
	if err != nil && !snapferry.IsKind(err, snapferry.Corrupt) {
		return false, err
	}
	there, err := record.DecodeChain(p, keys)
	if err != nil {
		return false, nil // damaged: a check tells, the next number says it again
	}
	return there.ID == c.ID && there.Account == c.Account && there.OriginRegion == c.OriginRegion && there.OriginChain == c.OriginChain &&
		bytes.Equal(there.WrappedKey, c.WrappedKey), nil
}
