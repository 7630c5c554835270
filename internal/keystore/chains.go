package keystore

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/seal"
)

// DataKey makes a data key for a chain that is to be sealed with a master key, and
// returns its stored form. It was opened once.
func (s *Store) DataKey(ctx context.Context, key snapferry.Key, id snapferry.ChainID) ([]byte, error) {
	w, err := s.keyring.Make(ctx, key, seal.Context{Account: key.Account, Chain: id, Region: s.cfg.Region})
	if err != nil {
		return nil, err
	}
	return w.Encode()
}

// Admit has a chain be inserted into the metadata, in the caller's transaction, only if its
// data key is wrapped with the newest generation of its master key there: Unavailable else.
// So a rotation, which forgets older generations when it has wrapped again what is in
// the metadata, misses none. A plain chain needs nothing.
func (s *Store) Admit(tx *meta.Tx, c meta.Chain) error {
	if c.Key == "" {
		return nil
	}
	ring := s.current.Load()
	now, err := tx.Keyring()
	if err != nil {
		return err
	}
	if now.Number != ring.Number {
		if ring, err = s.decode(now.Number, now.Sealed); err != nil {
			return err
		}
	}
	i := find(ring, c.Key)
	if i < 0 {
		return snapferry.Errorf(snapferry.KeyUnusable, "key %s is gone", c.Key)
	}
	if have := ring.Keys[i].Generation; have != c.Generation {
		return snapferry.Errorf(snapferry.Unavailable, "key %s was rotated just now", c.Key).WithHint("try again")
	}
	return nil
}

// Try opens the data key of a chain now, whatever is in memory: whether a copy into
// it can be made. A plain chain needs nothing.
func (s *Store) Try(ctx context.Context, id snapferry.ChainID) error {
	c, err := s.chain(ctx, id)
	if err != nil || c == nil {
		return err
	}
	n, err := s.name(c)
	if err != nil {
		return err
	}
	return s.keyring.Prove(ctx, n)
}

// Encrypted reports whether a chain has a data key.
func (s *Store) Encrypted(ctx context.Context, id snapferry.ChainID) (bool, error) {
	c, err := s.chain(ctx, id)
	return c != nil, err
}

// Segment returns the key of a segment of a chain; nil for a plain chain. The error
// is KeyUnusable when the master key may not be used, Unavailable when its service
// does not answer, Corrupt when what is stored is not the chain's data key.
func (s *Store) Segment(ctx context.Context, id snapferry.ChainID, segment snapferry.SegmentID) (k *seal.SegmentKey, err error) {
	err = s.open(ctx, id, func(n kms.Name) error {
		k, err = s.keyring.Segment(ctx, n, segment)
		return err
	})
	return k, err
}

// Record returns the key of a version's records; nil for a plain chain. Errors are
// those of Segment.
func (s *Store) Record(ctx context.Context, id snapferry.ChainID, version snapferry.VersionID) (k *seal.RecordKey, err error) {
	err = s.open(ctx, id, func(n kms.Name) error {
		k, err = s.keyring.Record(ctx, n, version)
		return err
	})
	return k, err
}

// Use calls fn with the data key of a chain, which fn must not keep; with nil for a
// plain chain.
func (s *Store) Use(ctx context.Context, id snapferry.ChainID, fn func(dataKey []byte) error) error {
	used := false
	err := s.open(ctx, id, func(n kms.Name) error {
		used = true
		return s.keyring.Use(ctx, n, fn)
	})
	if err == nil && !used {
		err = fn(nil)
	}
	return err
}

// open calls fn with the name of a chain's data key, if it has one. What is
// remembered may be older than a rotation: it is read again once.
func (s *Store) open(ctx context.Context, id snapferry.ChainID, fn func(kms.Name) error) error {
	for try := 0; ; try++ {
		c, err := s.chain(ctx, id)
		if err != nil || c == nil {
			return err
		}
		n, err := s.name(c)
		if err == nil {
			err = fn(n)
		}
		if !snapferry.IsKind(err, snapferry.Corrupt) || try > 0 {
			return err
		}
		s.Forget(id)
	}
}

// name is the stored data key of a chain with its master key as it is now.
func (s *Store) name(c *chain) (kms.Name, error) {
	ring := s.current.Load()
	i := find(ring, c.wrapped.Key)
	if i < 0 {
		return kms.Name{}, snapferry.Errorf(snapferry.KeyUnusable, "chain %s is sealed with key %s, which region %s does not have", c.context.Chain, c.wrapped.Key, s.cfg.Region).
			WithHint("bring back the keyring that has it")
	}
	return kms.Name{Key: ring.Keys[i].Key, Wrapped: c.wrapped, Context: c.context}, nil
}

// chain returns what is stored of a chain's data key; nil for a plain chain.
func (s *Store) chain(ctx context.Context, id snapferry.ChainID) (*chain, error) {
	s.mu.Lock()
	c, ok := s.chains[id]
	s.mu.Unlock()
	if ok {
		return c, nil
	}
	row, err := s.lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	if c, err = s.stored(row); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.chains) >= maxChains {
		clear(s.chains)
	}
	s.chains[id] = c
	return c, nil
}

const maxChains = 1 << 14

func (s *Store) stored(row meta.Chain) (*chain, error) {
	if len(row.WrappedKey) == 0 {
		return nil, nil
	}
	w, err := seal.DecodeWrapped(row.WrappedKey)
	if err != nil {
		return nil, err
	}
	return &chain{wrapped: w, context: seal.Context{Account: row.Account, Chain: row.ID, Region: s.cfg.Region}}, nil
}

// Forget has what is stored of a chain read again.
func (s *Store) Forget(id snapferry.ChainID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.chains, id)
}

// Rewrap returns the data key of a chain under the newest generation of its master
// key; nil when it is that already.
func (s *Store) Rewrap(ctx context.Context, row meta.Chain) ([]byte, error) {
	c, err := s.stored(row)
	if err != nil || c == nil {
		return nil, err
	}
	n, err := s.name(c)
	if err != nil || c.wrapped.Generation == n.Key.Generation {
		return nil, err
	}
	w, err := s.keyring.Rewrap(ctx, n)
	if err != nil {
		return nil, err
	}
	return w.Encode()
}
