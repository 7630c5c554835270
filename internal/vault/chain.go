package vault

import (
	"bytes"
	"context"
	"crypto/ed25519"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// chainTries bounds the search for a free number of a chain's object.
const chainTries = 100

// EnsureChain has the object of a chain in the bucket, which says whose it is, and its
// key: before the first version record of the chain.
func (v *Vault) EnsureChain(ctx context.Context, id snapferry.ChainID) error {
	if _, done := v.chains.Load(id); done {
		return nil
	}
	var row meta.Chain
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		row, err = tx.Chain(id)
		return err
	})
	if err != nil {
		return err
	}
	return v.PutChain(ctx, row)
}

// PutChain has an object in the bucket that says what a row does, above all others of the
// chain: at first, and when the data key is wrapped anew, before the metadata has it. What
// it wrote was read back. It is a Conflict when there is one already whose data key is
// wrapped with a later generation: the older one may be forgotten by now.
func (v *Vault) PutChain(ctx context.Context, row meta.Chain) error {
	c, keys, err := v.describeChain(ctx, row)
	if err != nil {
		return err
	}
	least, err := generationOf(row.WrappedKey)
	if err != nil {
		return err
	}
	for range chainTries {
		highest, there, err := v.highestChain(ctx, c, keys)
		if err != nil {
			return err
		}
		if there != nil && sameChain(there, c) {
			v.chains.Store(c.ID, true)
			return nil
		}
		if there != nil {
			have, err := generationOf(there.WrappedKey)
			if err == nil && have > least {
				err = snapferry.Errorf(snapferry.Conflict, "the data key of chain %s is wrapped with generation %d, not %d, by now", c.ID, have, least)
			}
			if err != nil {
				return err
			}
		}
		c.Number = max(highest+1, c.Number+1, least)
		p, err := c.Encode(v.sign)
		if err != nil {
			return err
		}
		name := record.ChainName(c.ID, c.Number)
		err = v.bucket.Put(ctx, name, p)
		if snapferry.IsKind(err, snapferry.Exists) {
			continue // it says the same, or is another's, or damaged
		}
		if err == nil {
			err = v.readsBack(ctx, name, p)
		}
		if err == nil {
			v.chains.Store(c.ID, true)
		}
		return err
	}
	return snapferry.Errorf(snapferry.Conflict, "chain %s has %d objects that say something else", c.ID, chainTries)
}

// generationOf is the generation of the master key that a data key is wrapped with; 1 for
// none. An object of a chain gets no lower number, and it grows with each wrapping: so a
// number that was removed is not given again, also where a bucket lists late.
func generationOf(wrapped []byte) (uint64, error) {
	if wrapped == nil {
		return 1, nil
	}
	w, err := seal.DecodeWrapped(wrapped)
	return max(uint64(w.Generation), 1), err
}

// readsBack checks that an object has what was written into it.
func (v *Vault) readsBack(ctx context.Context, name string, want []byte) error {
	p, err := v.bucket.Get(ctx, name, record.MaxChainSize)
	if err == nil && !bytes.Equal(p, want) {
		err = snapferry.Errorf(snapferry.Corrupt, "%s does not read back as it was written", name)
	}
	return err
}

// chainNumbers lists the numbers of a chain's objects, ascending.
func (v *Vault) chainNumbers(ctx context.Context, id snapferry.ChainID) (numbers []uint64, err error) {
	first := record.ChainName(id, 0)
	err = v.bucket.List(ctx, first[:len(first)-len("00000000000000000000")], "", func(i blob.Info) error {
		if _, n, err := record.ParseChainName(i.Name); err == nil {
			numbers = append(numbers, n)
		}
		return nil
	})
	return numbers, err
}

// highestChain returns the highest number of a chain's objects, or the last that c was
// given if that is higher, 0 for none, and that object; nil when it cannot be read.
func (v *Vault) highestChain(ctx context.Context, c *record.Chain, keys []ed25519.PublicKey) (number uint64, there *record.Chain, err error) {
	numbers, err := v.chainNumbers(ctx, c.ID)
	if err != nil {
		return 0, nil, err
	}
	number = c.Number
	for _, n := range numbers {
		number = max(number, n)
	}
	if number == 0 {
		return 0, nil, nil
	}
	p, err := v.bucket.Get(ctx, record.ChainName(c.ID, number), record.MaxChainSize)
	if err != nil && !snapferry.IsKind(err, snapferry.Corrupt) {
		return 0, nil, err
	}
	there, err = record.DecodeChain(p, keys)
	if err != nil || there.ID != c.ID {
		return number, nil, nil // damaged: a check tells, the next number says it again
	}
	return number, there, nil
}

// DropOldChains removes the objects of a chain below its highest number: their wrapped
// keys were replaced.
func (v *Vault) DropOldChains(ctx context.Context, id snapferry.ChainID) error {
	numbers, err := v.chainNumbers(ctx, id)
	if err != nil {
		return err
	}
	for _, n := range numbers[:max(0, len(numbers)-1)] {
		if err := v.bucket.Delete(ctx, record.ChainName(id, n)); err != nil {
			return err
		}
	}
	return nil
}

func (v *Vault) describeChain(ctx context.Context, row meta.Chain) (c *record.Chain, keys []ed25519.PublicKey, err error) {
	err = v.db.View(ctx, func(tx *meta.Tx) error {
		account, err := tx.Account(row.Account)
		if err != nil {
			return err
		}
		c = &record.Chain{
			ID: row.ID, Region: v.region, Account: account.ID, AccountName: account.Name, Algorithm: row.Algorithm, Created: row.Created,
			OriginRegion: row.OriginRegion, OriginChain: row.OriginChain, WrappedKey: row.WrappedKey,
		}
		keys, err = tx.TrustedKeys()
		return err
	})
	return c, append(keys, v.sign.Public().(ed25519.PublicKey)), err
}

// sameChain reports whether two objects say the same of a chain.
func sameChain(a, b *record.Chain) bool {
	return a.ID == b.ID && a.Account == b.Account && a.OriginRegion == b.OriginRegion && a.OriginChain == b.OriginChain &&
		bytes.Equal(a.WrappedKey, b.WrappedKey)
}
