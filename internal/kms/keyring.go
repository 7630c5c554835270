package kms

import (
	"context"
	"crypto/subtle"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/seal"
)

const (
	// DefaultTTL is how long a data key is kept after its last use, and how often one
	// that is in use is asked for again.
	DefaultTTL = 5 * time.Minute
	// DefaultGrace is how long a data key that is in use is kept while its service
	// does not answer.
	DefaultGrace = time.Hour
	// DefaultTimeout is how long one request to a driver may take.
	DefaultTimeout = 10 * time.Second

	// maxSubkeys is how many keys of segments are kept of one data key.
	maxSubkeys = 1024
)

// Config is what a Keyring needs. Zero values are the defaults.
type Config struct {
	Drivers map[string]Driver // by the names that keys give
	TTL     time.Duration
	Grace   time.Duration
	Timeout time.Duration
	Log     *slog.Logger // nil for none
}

// Keyring makes and opens the data keys of chains. It is safe for concurrent use.
type Keyring struct {
	cfg     Config
	opening singleflight.Group

	mu      sync.Mutex
	secrets secrets                       // guarded by mu
	open    map[snapferry.ChainID]*opened // guarded by mu
	epoch   map[snapferry.KeyID]uint64    // how often it was shut; guarded by mu
	timer   *time.Timer                   // of the next look at open; guarded by mu
	closed  bool                          // guarded by mu
}

// Name is a chain's data key as it is stored, and its master key.
type Name struct {
	Key     snapferry.Key
	Wrapped seal.WrappedKey
	Context seal.Context
}

// opened is a data key in memory.
type opened struct {
	name     Name
	key      *[seal.KeySize]byte
	checked  time.Time // when the driver gave it
	asked    time.Time // when the driver was asked last, as far as the next question goes
	used     time.Time
	segments map[snapferry.SegmentID]*seal.SegmentKey
}

// New returns a keyring; Close clears what it keeps.
func New(cfg Config) *Keyring {
	if cfg.TTL <= 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.Grace <= 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Keyring{cfg: cfg, open: map[snapferry.ChainID]*opened{}, epoch: map[snapferry.KeyID]uint64{}}
}

// Driver returns the driver of a name. The error is Unsupported when the region
// has none.
func (k *Keyring) Driver(name string) (Driver, error) {
	if d := k.cfg.Drivers[name]; d != nil {
		return d, nil
	}
	return nil, snapferry.Errorf(snapferry.Unsupported, "the region has no keys of driver %q", name).
		WithHint("configure it under keys: in the configuration of the region")
}

// External is how the driver of a key names it.
func External(key snapferry.Key) string {
	if key.External != "" {
		return key.External
	}
	return string(key.ID)
}

// usable refuses a key that must not open anything.
func usable(key snapferry.Key) error {
	switch key.State {
	case snapferry.KeyEnabled:
		return nil
	case snapferry.KeyDisabled:
		return snapferry.Errorf(snapferry.KeyUnusable, "key %s is disabled", key.ID).WithHint("enable it with: snapferry key enable %s", key.ID)
	case snapferry.KeyPendingDeletion:
		return snapferry.Errorf(snapferry.KeyUnusable, "key %s waits for its deletion", key.ID).
			WithHint("keep it with: snapferry key cancel-deletion %s, and then: snapferry key enable %s", key.ID, key.ID)
	}
	return snapferry.Errorf(snapferry.KeyUnusable, "key %s was deleted; what is sealed with it cannot be opened any more", key.ID)
}

// call runs one request to a driver, which may not take longer than the timeout.
func (k *Keyring) call(ctx context.Context, key snapferry.Key, what string, fn func(context.Context, Driver) error) error {
	d, err := k.Driver(key.Driver)
	if err != nil {
		return err
	}
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	err = fn(ctx, d)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && outer.Err() == nil {
		return snapferry.Errorf(snapferry.Unavailable, "%s with key %s: driver %s did not answer within %v", what, key.ID, key.Driver, k.cfg.Timeout)
	}
	return snapferry.Errorf(snapferry.KindOf(err), "%s with key %s: %w", what, key.ID, err)
}

// Make makes a data key for a new chain and returns its stored form. The key was
// unwrapped again, and was the same.
func (k *Keyring) Make(ctx context.Context, key snapferry.Key, c seal.Context) (seal.WrappedKey, error) {
	w := seal.WrappedKey{Key: key.ID, Generation: key.Generation}
	if err := usable(key); err != nil {
		return w, err
	}
	plain, err := k.secret()
	if err != nil {
		return w, err
	}
	defer k.forget(plain)
	err = k.call(ctx, key, "make a data key", func(ctx context.Context, d Driver) error {
		p, blob, err := d.NewDataKey(ctx, External(key), plain[:0], c)
		if err != nil {
			return err
		}
		w.Blob = blob
		return place(plain, p)
	})
	if err != nil {
		return w, err
	}
	if w.Check, err = seal.NewCheck(plain[:], c); err != nil {
		return w, err
	}
	return w, k.Prove(ctx, Name{key, w, c})
}

// place has what a driver answered in the memory that it was given.
func place(dst *[seal.KeySize]byte, p []byte) error {
	if len(p) != seal.KeySize {
		return snapferry.Errorf(snapferry.Corrupt, "it gave a data key of %d bytes, not %d", len(p), seal.KeySize)
	}
	if &p[0] != &dst[0] {
		copy(dst[:], p)
		clear(p)
	}
	return nil
}

// secret returns memory for a data key; forget takes it back.
func (k *Keyring) secret() (*[seal.KeySize]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.secrets.get()
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Unavailable, "memory for a data key: %w", err)
	}
	return p, nil
}

func (k *Keyring) forget(p *[seal.KeySize]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.secrets.put(p)
}

// Prove asks the driver for a data key now, whatever is kept, and checks that it
// is the right one.
func (k *Keyring) Prove(ctx context.Context, n Name) error {
	plain, err := k.secret()
	if err != nil {
		return err
	}
	defer k.forget(plain)
	return k.unwrap(ctx, n, plain)
}

func (k *Keyring) unwrap(ctx context.Context, n Name, plain *[seal.KeySize]byte) error {
	if err := usable(n.Key); err != nil {
		return err
	}
	err := k.call(ctx, n.Key, "unwrap the data key of chain "+n.Context.Chain.String(), func(ctx context.Context, d Driver) error {
		p, err := d.Unwrap(ctx, External(n.Key), plain[:0], n.Wrapped.Blob, n.Context)
		if err != nil {
			return err
		}
		return place(plain, p)
	})
	if err != nil {
		return err
	}
	check, err := seal.NewCheck(plain[:], n.Context)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(check[:], n.Wrapped.Check[:]) != 1 {
		return snapferry.Errorf(snapferry.Corrupt, "what key %s unwraps is not the data key of chain %s", n.Key.ID, n.Context.Chain).
			WithHint("the wrapped key was moved or changed, or the key service answers with another key: bring back the right one, then run: snapferry fsck --deep")
	}
	return nil
}

// Rewrap returns a data key under the newest generation of its master key. It was
// unwrapped again, and was the same.
func (k *Keyring) Rewrap(ctx context.Context, n Name) (seal.WrappedKey, error) {
	w := n.Wrapped
	if err := usable(n.Key); err != nil {
		return w, err
	}
	err := k.call(ctx, n.Key, "wrap the data key of chain "+n.Context.Chain.String()+" again", func(ctx context.Context, d Driver) (err error) {
		w.Blob, err = d.Rewrap(ctx, External(n.Key), n.Wrapped.Blob, n.Context)
		return err
	})
	if err != nil {
		return w, err
	}
	w.Generation = n.Key.Generation
	return w, k.Prove(ctx, Name{n.Key, w, n.Context})
}

// Use opens a chain's data key and calls fn with it. fn must not keep it. While
// the key is kept no driver is asked.
func (k *Keyring) Use(ctx context.Context, n Name, fn func(dataKey []byte) error) error {
	return k.with(ctx, n, func(o *opened) error { return fn(o.key[:]) })
}

// Segment returns the key of a segment of a chain.
func (k *Keyring) Segment(ctx context.Context, n Name, id snapferry.SegmentID) (s *seal.SegmentKey, err error) {
	err = k.with(ctx, n, func(o *opened) error {
		if s = o.segments[id]; s != nil {
			return nil
		}
		if s, err = seal.NewSegmentKey(o.key[:], n.Context.Chain, id); err != nil {
			return err
		}
		if len(o.segments) >= maxSubkeys {
			clear(o.segments)
		}
		o.segments[id] = s
		return nil
	})
	return s, err
}

// Record returns the key of a version's records.
func (k *Keyring) Record(ctx context.Context, n Name, id snapferry.VersionID) (r *seal.RecordKey, err error) {
	err = k.with(ctx, n, func(o *opened) error {
		r, err = seal.NewRecordKey(o.key[:], n.Context.Chain, id)
		return err
	})
	return r, err
}

// with calls fn with a data key, under the lock.
func (k *Keyring) with(ctx context.Context, n Name, fn func(*opened) error) error {
	if err := usable(n.Key); err != nil {
		return err
	}
	for range 3 {
		k.mu.Lock()
		o := k.open[n.Context.Chain]
		now := time.Now()
		if o != nil && o.name.Wrapped.Check != n.Wrapped.Check {
			k.drop(o) // the chain has another key: of an id that was used before
			o = nil
		}
		if o != nil && now.Sub(o.asked) < k.cfg.TTL {
			o.used = now
			err := fn(o)
			k.mu.Unlock()
			return err
		}
		k.mu.Unlock()
		if err := k.load(ctx, n, o); err != nil {
			return err
		}
	}
	return snapferry.Errorf(snapferry.Unavailable, "key %s was shut while the data key of chain %s was opened", n.Key.ID, n.Context.Chain)
}

// load has a data key opened by its driver, once for all that wait for it; old is
// the one that is to be asked for again.
func (k *Keyring) load(ctx context.Context, n Name, old *opened) error {
	result := k.opening.DoChan(n.Context.Chain.String(), func() (any, error) {
		// Not the context of one of those who wait: the timeout bounds it.
		return nil, k.loadOne(context.WithoutCancel(ctx), n, old)
	})
	select {
	case r := <-result:
		return r.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (k *Keyring) loadOne(ctx context.Context, n Name, old *opened) error {
	k.mu.Lock()
	epoch, closed := k.epoch[n.Key.ID], k.closed
	k.mu.Unlock()
	if closed {
		return snapferry.Errorf(snapferry.Unavailable, "the keyring is closed")
	}
	plain, err := k.secret()
	if err != nil {
		return err
	}
	err = k.unwrap(ctx, n, plain)
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if err != nil || k.closed || k.epoch[n.Key.ID] != epoch {
		k.secrets.put(plain)
		if old == nil || k.open[n.Context.Chain] != old {
			return err
		}
		if snapferry.IsKind(err, snapferry.Unavailable) && now.Sub(old.checked) < k.cfg.TTL+k.cfg.Grace {
			k.cfg.Log.WarnContext(ctx, "a data key is used on, though its key service does not answer", "key", n.Key.ID, "chain", n.Context.Chain, "err", err)
			old.asked = now.Add(-k.cfg.TTL * 3 / 4)
			return nil
		}
		k.drop(old)
		return err
	}
	if o := k.open[n.Context.Chain]; o != nil {
		k.drop(o)
	}
	k.open[n.Context.Chain] = &opened{name: n, key: plain, checked: now, asked: now, used: now, segments: map[snapferry.SegmentID]*seal.SegmentKey{}}
	k.arm()
	return nil
}

// drop clears a data key. The caller holds mu.
func (k *Keyring) drop(o *opened) {
	if k.open[o.name.Context.Chain] == o {
		delete(k.open, o.name.Context.Chain)
	}
	k.secrets.put(o.key)
	clear(o.segments)
}

// arm sees to it that somebody looks when the next key may be due. The caller holds
// mu.
func (k *Keyring) arm() {
	if k.timer == nil && len(k.open) > 0 && !k.closed {
		k.timer = time.AfterFunc(k.cfg.TTL/4, k.expire)
	}
}

// expire clears the keys that nobody has used for the TTL.
func (k *Keyring) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = nil
	now := time.Now()
	for _, o := range k.open {
		if now.Sub(o.used) >= k.cfg.TTL {
			k.drop(o)
		}
	}
	k.arm()
}

// Shut clears all data keys that are wrapped with a master key. One that is being
// opened just now is not kept.
func (k *Keyring) Shut(key snapferry.KeyID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epoch[key]++
	for _, o := range k.open {
		if o.name.Key.ID == key {
			k.drop(o)
		}
	}
}

// Kept returns how many data keys are in memory.
func (k *Keyring) Kept() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.open)
}

// Close clears all data keys; nothing is opened after that.
func (k *Keyring) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	for _, o := range k.open {
		k.drop(o)
	}
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}
