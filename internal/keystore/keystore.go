// Package keystore has the master keys of a region. Their truth is the keyring, one
// sealed object in the bucket (record.Keyring); the metadata has the same bytes, so
// that either heals the other. A change writes the keyring with the next number,
// reads it back, tells the metadata, and then removes the old one: a key is durable
// in both places before anything is sealed with it.
//
// For the vault it is what opens chains: it knows which data key a chain has, and
// has kms.Keyring unwrap it, if the state of the master key allows that.
package keystore

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/kms/filekms"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// Config is what a Store needs.
type Config struct {
	Bucket  *blob.Bucket
	DB      *meta.DB
	Region  snapferry.RegionName
	ID      string                // of the region
	Seal    record.Sealer         // of the keyring; *seal.KeyringKey
	Drivers map[string]kms.Driver // of key services, by name
	Default string                // driver of the keys of which nothing else is said; empty: the embedded one
	Keys    kms.Config            // how long data keys are kept; its Drivers are not used
	Log     *slog.Logger          // nil for none
}

// Store has the master keys of a region and opens the data keys of its chains. It
// is safe for concurrent use.
type Store struct {
	cfg     Config
	keyring *kms.Keyring
	current atomic.Pointer[record.Keyring]
	lookup  func(ctx context.Context, id snapferry.ChainID) (meta.Chain, error)
	changes sync.Mutex // held while the keyring is changed

	mu     sync.Mutex
	chains map[snapferry.ChainID]*chain // guarded by mu
}

// chain is what is remembered of a chain: its data key as it is stored. Nil is a
// plain one.
type chain struct {
	wrapped seal.WrappedKey
	context seal.Context
}

// Open reads the keyring of a region, from the bucket and from the metadata, and
// has both places say the same. The error is Corrupt when neither can be read with
// the region's key: nothing was changed then.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := newStore(cfg)
	if _, err := s.keyring.Driver(s.cfg.Default); err != nil {
		return nil, err
	}
	s.lookup = func(ctx context.Context, id snapferry.ChainID) (row meta.Chain, err error) {
		err = cfg.DB.View(ctx, func(tx *meta.Tx) (err error) {
			row, err = tx.Chain(id)
			return err
		})
		return row, err
	}
	if err := s.reconcile(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Offline returns a Store without a region: of a keyring that was read, and of the
// chains that lookup knows. It only opens what is sealed.
func Offline(cfg Config, ring *record.Keyring, lookup func(ctx context.Context, id snapferry.ChainID) (meta.Chain, error)) *Store {
	s := newStore(cfg)
	s.lookup = lookup
	s.current.Store(ring)
	return s
}

func newStore(cfg Config) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Default == "" {
		cfg.Default = snapferry.EmbeddedKeys
	}
	s := &Store{cfg: cfg, chains: map[snapferry.ChainID]*chain{}}
	drivers := map[string]kms.Driver{snapferry.EmbeddedKeys: &filekms.Driver{Lookup: s.secretOf}}
	for name, d := range cfg.Drivers {
		drivers[name] = d
	}
	cfg.Keys.Drivers, cfg.Keys.Log = drivers, cfg.Log
	s.keyring = kms.New(cfg.Keys)
	return s
}

// Close clears the data keys in memory.
func (s *Store) Close() { s.keyring.Close() }

// Number is that of the newest keyring; 0 when the region has none yet.
func (s *Store) Number() uint64 { return s.current.Load().Number }

// Kept returns how many data keys are in memory.
func (s *Store) Kept() int { return s.keyring.Kept() }

// Health asks each key service whether it would serve this region.
func (s *Store) Health(ctx context.Context) map[string]error {
	all := make(map[string]error, len(s.cfg.Drivers))
	for name, d := range s.cfg.Drivers {
		all[name] = d.Health(ctx)
	}
	return all
}

// stored is a keyring in one of its places.
type stored struct {
	number uint64
	bytes  []byte
	ring   *record.Keyring // nil: none, or err
	err    error
}

const keyHint = "bring back the key file of the region that sealed the keyring; without it nothing encrypted can be opened"

// reconcile takes the newest keyring that can be read and has it in both places.
func (s *Store) reconcile(ctx context.Context) error {
	names, err := s.names(ctx)
	if err != nil {
		return err
	}
	known, err := s.known(ctx)
	if err != nil {
		return err
	}
	there := stored{}
	for i := len(names) - 1; i >= 0 && there.ring == nil; i-- {
		if there, err = s.read(ctx, names[i]); err != nil {
			return err
		}
		if there.err != nil {
			s.cfg.Log.ErrorContext(ctx, "a keyring in the bucket cannot be read", "number", names[i], "err", there.err)
		}
	}
	best := there
	if known.ring != nil && (there.ring == nil || known.number > there.number) {
		best = known
	}
	switch {
	case best.ring == nil && there.err == nil && known.err == nil:
		s.current.Store(&record.Keyring{Region: s.cfg.Region, ID: s.cfg.ID})
		return nil
	case best.ring == nil:
		err := there.err
		if err == nil {
			err = known.err
		}
		return snapferry.Errorf(snapferry.KindOf(err), "the keyring of region %s cannot be read: %w", s.cfg.Region, err).WithHint(keyHint)
	case there.ring == nil || there.number < best.number:
		if err := s.heal(ctx, best); err != nil {
			return err
		}
	case known.ring == nil || known.number < best.number:
		err := s.cfg.DB.Update(ctx, func(tx *meta.Tx) error {
			return tx.PutKeyring(meta.Keyring{Number: best.number, Sealed: best.bytes})
		})
		if err != nil {
			return err
		}
	}
	s.current.Store(best.ring)
	s.removeBelow(ctx, names, best.number)
	return nil
}

// heal writes the keyring that the metadata has into the bucket, where it is
// missing, damaged, or an older one.
func (s *Store) heal(ctx context.Context, best stored) error {
	name := record.KeyringName(best.number)
	s.cfg.Log.ErrorContext(ctx, "the keyring in the bucket is missing, damaged or old; it is written again from the metadata", "number", best.number)
	err := s.cfg.Bucket.Put(ctx, name, best.bytes)
	if !snapferry.IsKind(err, snapferry.Exists) {
		return err
	}
	// A damaged one is in the way: the next number says the same.
	s.current.Store(best.ring)
	return s.write(ctx, clone(best.ring), best.number, nil)
}

// names returns the numbers of the keyrings in the bucket, ascending.
func (s *Store) names(ctx context.Context) (numbers []uint64, err error) {
	err = s.cfg.Bucket.List(ctx, record.KeyringPrefix(), "", func(i blob.Info) error {
		if n, err := record.ParseKeyringName(i.Name); err == nil {
			numbers = append(numbers, n)
		}
		return nil
	})
	return numbers, err
}

func (s *Store) known(ctx context.Context) (x stored, err error) {
	err = s.cfg.DB.View(ctx, func(tx *meta.Tx) error {
		k, err := tx.Keyring()
		x.number, x.bytes = k.Number, k.Sealed
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		return x, nil
	}
	if err != nil {
		return x, err
	}
	x.ring, x.err = s.decode(x.number, x.bytes)
	return x, nil
}

// read reads a keyring in the bucket. That it is damaged stands in the result.
func (s *Store) read(ctx context.Context, number uint64) (x stored, err error) {
	x.number = number
	x.bytes, err = s.cfg.Bucket.Get(ctx, record.KeyringName(number), record.MaxKeyringSize)
	if snapferry.IsKind(err, snapferry.NotFound) || snapferry.IsKind(err, snapferry.Corrupt) {
		x.err = err
		return x, nil
	}
	if err != nil {
		return x, err
	}
	x.ring, x.err = s.decode(number, x.bytes)
	return x, nil
}

func (s *Store) decode(number uint64, p []byte) (*record.Keyring, error) {
	k, err := record.DecodeKeyring(p, s.cfg.Seal)
	if err != nil {
		return nil, err
	}
	if k.Number != number || k.Region != s.cfg.Region || k.ID != s.cfg.ID {
		return nil, snapferry.Errorf(snapferry.Corrupt, "it is keyring %d of region %s (%s), not %d of %s (%s)", k.Number, k.Region, k.ID, number, s.cfg.Region, s.cfg.ID)
	}
	return k, nil
}

// removeBelow removes older keyrings: they have secrets that may have been given up
// since.
func (s *Store) removeBelow(ctx context.Context, numbers []uint64, number uint64) {
	for _, n := range numbers {
		if n >= number {
			continue
		}
		if err := s.cfg.Bucket.Delete(ctx, record.KeyringName(n)); err != nil {
			s.cfg.Log.WarnContext(ctx, "an old keyring stays until the next change or start", "number", n, "err", err)
		}
	}
}

// changeTries bounds how often a change is made again over what another process
// has written.
const changeTries = 100

// errChanged says that somebody else has changed the keyring meanwhile.
var errChanged = snapferry.Errorf(snapferry.Conflict, "the keyring was changed meanwhile")

// change makes fn's change of the keyring, and commit's of the metadata with it. fn
// is given a keyring of its own; when it fails, nothing was done.
func (s *Store) change(ctx context.Context, fn func(*record.Keyring) error, commit func(*meta.Tx) error) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	for range changeTries {
		known, err := s.known(ctx)
		if err != nil {
			return err
		}
		if known.number > s.current.Load().Number {
			if known.err != nil {
				return known.err
			}
			s.install(known.ring)
		}
		next := clone(s.current.Load())
		if err := fn(next); err != nil {
			return err
		}
		err = s.write(ctx, next, known.number, commit)
		if !errors.Is(err, errChanged) {
			return err
		}
	}
	return snapferry.Errorf(snapferry.Unavailable, "others change the keyring of region %s", s.cfg.Region).WithHint("try again")
}

// write writes the keyring that follows the current one; base is the number that the
// metadata has. errChanged when that is another's by now.
func (s *Store) write(ctx context.Context, next *record.Keyring, base uint64, commit func(*meta.Tx) error) error {
	old := s.current.Load().Number
	next.Number = max(old, base) + 1
	next.Sort()
	p, err := next.Encode(s.cfg.Seal)
	if err != nil {
		return err
	}
	name := record.KeyringName(next.Number)
	err = s.cfg.Bucket.Put(ctx, name, p)
	if snapferry.IsKind(err, snapferry.Exists) {
		if err := s.adopt(ctx, next.Number, base); err != nil {
			return err
		}
		return errChanged
	}
	if err != nil {
		return err
	}
	back, err := s.cfg.Bucket.Get(ctx, name, record.MaxKeyringSize)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, p) {
		return snapferry.Errorf(snapferry.Corrupt, "keyring %d does not read back as it was written", next.Number)
	}
	err = s.cfg.DB.Update(ctx, func(tx *meta.Tx) error {
		if err := replace(tx, base, meta.Keyring{Number: next.Number, Sealed: p}); err != nil || commit == nil {
			return err
		}
		return commit(tx)
	})
	if err != nil {
		return err
	}
	s.current.Store(next)
	s.removeBelow(ctx, []uint64{base, old, next.Number - 1}, next.Number)
	return nil
}

// replace writes a keyring into the metadata over that with a number: errChanged when
// another one is there. A number that was removed from the bucket can be written there
// again by who does not know of it; here it shows.
func replace(tx *meta.Tx, base uint64, k meta.Keyring) error {
	now, err := tx.Keyring()
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return err
	}
	if now.Number != base && (now.Number != k.Number || !bytes.Equal(now.Sealed, k.Sealed)) {
		return errChanged
	}
	return tx.PutKeyring(k)
}

// adopt takes a keyring that somebody else wrote, or this process without learning
// of it.
func (s *Store) adopt(ctx context.Context, number, base uint64) error {
	x, err := s.read(ctx, number)
	if err != nil {
		return err
	}
	if x.ring == nil {
		// Damaged, or removed by now: one above it says what is true.
		s.cfg.Log.ErrorContext(ctx, "a keyring in the bucket cannot be read; it is passed over", "number", number, "err", x.err)
		ring := clone(s.current.Load())
		ring.Number = number
		s.current.Store(ring)
		return nil
	}
	err = s.cfg.DB.Update(ctx, func(tx *meta.Tx) error { return replace(tx, base, meta.Keyring{Number: x.number, Sealed: x.bytes}) })
	if err == nil {
		s.install(x.ring)
	}
	return err
}

// install makes a keyring the current one, and clears the data keys of master keys
// that may not be used any more.
func (s *Store) install(ring *record.Keyring) {
	s.current.Store(ring)
	for i := range ring.Keys {
		if k := &ring.Keys[i]; k.State != snapferry.KeyEnabled {
			s.keyring.Shut(k.ID)
		}
	}
}

// clone returns a keyring that can be changed.
func clone(k *record.Keyring) *record.Keyring {
	c := *k
	c.Keys, c.Defaults = slices.Clone(k.Keys), slices.Clone(k.Defaults)
	for i := range c.Keys {
		c.Keys[i].Aliases = slices.Clone(c.Keys[i].Aliases)
		c.Keys[i].Generations = slices.Clone(c.Keys[i].Generations)
	}
	return &c
}

// find returns the number of a key in a keyring, or -1.
func find(ring *record.Keyring, id snapferry.KeyID) int {
	return slices.IndexFunc(ring.Keys, func(k record.MasterKey) bool { return k.ID == id })
}

// secretOf is where the embedded driver finds keys.
func (s *Store) secretOf(id snapferry.KeyID) (record.MasterKey, error) {
	ring := s.current.Load()
	if i := find(ring, id); i >= 0 {
		return ring.Keys[i], nil
	}
	return record.MasterKey{}, snapferry.Errorf(snapferry.NotFound, "region %s has no key %s", s.cfg.Region, id)
}

// Expire deletes the secrets of keys whose time has come, and returns when the
// next one is due; zero: none.
func (s *Store) Expire(ctx context.Context, now time.Time) (next time.Time, err error) {
	for _, k := range s.current.Load().Keys {
		if k.State != snapferry.KeyPendingDeletion {
			continue
		}
		if k.DeletesAt.After(now) {
			if next.IsZero() || k.DeletesAt.Before(next) {
				next = k.DeletesAt
			}
			continue
		}
		if err := s.delete(ctx, k.Key); err != nil {
			return next, err
		}
	}
	return next, nil
}
