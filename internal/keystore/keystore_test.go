package keystore_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/keystore"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

const (
	alice = snapferry.AccountID("acct-00000000000000001")
	bob   = snapferry.AccountID("acct-00000000000000002")
)

// region is what a keystore stands on.
type region struct {
	*testing.T
	path   string
	db     *meta.DB
	faulty *blobtest.Faulty
	bucket *blob.Bucket
	raw    *blob.Bucket // under faulty, for who changes what must not change
	hooks  meta.Hooks
	key    []byte
}

func newRegion(t *testing.T) *region {
	t.Helper()
	r := &region{T: t, path: filepath.Join(t.TempDir(), "meta.db"), key: bytes.Repeat([]byte{6}, seal.KeySize)}
	driver := memblob.New()
	r.faulty = blobtest.NewFaulty(t, driver)
	r.bucket, r.raw = blob.New(r.faulty), blob.New(driver)
	r.openDB()
	r.update(func(tx *meta.Tx) error {
		for _, id := range []snapferry.AccountID{alice, bob} {
			if err := tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: id, Name: string(id)}, Created: time.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
	t.Cleanup(func() { r.db.Close() })
	return r
}

func (r *region) openDB() {
	r.Helper()
	var err error
	r.db, err = meta.Open(context.Background(), meta.Config{Path: r.path, Hooks: meta.Hooks{
		BeforeCommit: func() error {
			if r.hooks.BeforeCommit != nil {
				return r.hooks.BeforeCommit()
			}
			return nil
		},
		AfterCommit: func() error {
			if r.hooks.AfterCommit != nil {
				return r.hooks.AfterCommit()
			}
			return nil
		},
	}})
	r.must(err)
}

func (r *region) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%v\n%s", err, snapferry.HintOf(err))
	}
}

func (r *region) want(what string, err error, k snapferry.Kind) {
	r.Helper()
	if !snapferry.IsKind(err, k) {
		r.Errorf("%s: got %v, want %v", what, err, k)
	}
}

func (r *region) update(fn func(*meta.Tx) error) {
	r.Helper()
	r.must(r.db.Update(context.Background(), fn))
}

func (r *region) tryOpen() (*keystore.Store, error) {
	r.Helper()
	k, err := seal.NewKeyringKey(r.key)
	r.must(err)
	return keystore.Open(context.Background(), keystore.Config{Bucket: r.bucket, DB: r.db, Region: "east", ID: "id", Seal: k})
}

func (r *region) open() *keystore.Store {
	r.Helper()
	s, err := r.tryOpen()
	r.must(err)
	r.Cleanup(s.Close)
	return s
}

func (r *region) created(s *keystore.Store, alias string) snapferry.Key {
	r.Helper()
	k, err := s.Create(context.Background(), alice, keystore.NewKey{Alias: alias})
	r.must(err)
	return k
}

// chain makes a chain of alice's under a key.
func (r *region) chain(s *keystore.Store, k snapferry.Key) snapferry.ChainID {
	r.Helper()
	c := meta.Chain{ID: snapferry.NewChainID(), Account: alice, Algorithm: digest.SHA256, Created: time.Now()}
	var err error
	c.WrappedKey, err = s.DataKey(context.Background(), k, c.ID)
	r.must(err)
	r.update(func(tx *meta.Tx) error { return tx.InsertChain(c) })
	return c.ID
}

// dataKey opens a chain.
func (r *region) dataKey(s *keystore.Store, id snapferry.ChainID) (key []byte, err error) {
	err = s.Use(context.Background(), id, func(p []byte) error { key = bytes.Clone(p); return nil })
	return key, err
}

// names are the keyrings in the bucket.
func (r *region) names() (names []string) {
	r.Helper()
	r.must(r.bucket.List(context.Background(), record.KeyringPrefix(), "", func(i blob.Info) error {
		names = append(names, i.Name)
		return nil
	}))
	return names
}

func (r *region) same(what string, s *keystore.Store, want []snapferry.Key) {
	r.Helper()
	if d := cmp.Diff(s.Keys(alice), want); d != "" {
		r.Errorf("%s: %s", what, d)
	}
}

func TestKeysStay(t *testing.T) {
	r := newRegion(t)
	s := r.open()
	if s.Number() != 0 || len(r.names()) != 0 {
		t.Error("a region without keys has a keyring")
	}
	k := r.created(s, "db")
	service, err := s.Service(t.Context(), alice)
	r.must(err)
	if again, err := s.Service(t.Context(), alice); err != nil || again.ID != service.ID || again.Kind != snapferry.KeyService {
		t.Errorf("the service key is %+v, then %+v, %v", service, again, err)
	}
	if other, err := s.Service(t.Context(), bob); err != nil || other.ID == service.ID {
		t.Errorf("two accounts have one service key, or %v", err)
	}
	_, err = s.SetDefault(t.Context(), alice, true, "db")
	r.must(err)
	id := r.chain(s, k)
	key, err := r.dataKey(s, id)
	r.must(err)
	want := s.Keys(alice)
	s.Close()

	s = r.open()
	r.same("after a restart", s, want)
	if d := s.Default(alice); !d.Encrypt || d.Key != k.ID {
		t.Errorf("after a restart the default is %+v", d)
	}
	if again, err := r.dataKey(s, id); err != nil || !bytes.Equal(again, key) {
		t.Errorf("after a restart the chain has another key, or %v", err)
	}
	if n := r.names(); len(n) != 1 {
		t.Errorf("old keyrings stay: %v", n)
	}
}

func TestKeyNames(t *testing.T) {
	r := newRegion(t)
	s := r.open()
	ctx := t.Context()
	a, b := r.created(s, "a"), r.created(s, "b")
	for what, try := range map[string]func() error{
		"an alias that is taken": func() error { _, err := s.Create(ctx, alice, keystore.NewKey{Alias: "a"}); return err },
		"that of another key":    func() error { _, err := s.SetAlias(ctx, alice, "b", "a", false); return err },
	} {
		r.want(what, try(), snapferry.Exists)
	}
	for what, try := range map[string]func() error{
		"an alias like an id":     func() error { _, err := s.Create(ctx, alice, keystore.NewKey{Alias: "key-1"}); return err },
		"the service key's alias": func() error { _, err := s.Create(ctx, alice, keystore.NewKey{Alias: "service"}); return err },
		"a long description": func() error {
			_, err := s.Create(ctx, alice, keystore.NewKey{Description: strings.Repeat("x", 2000)})
			return err
		},
		"an embedded key elsewhere": func() error {
			_, err := s.Create(ctx, alice, keystore.NewKey{Driver: "embedded", External: "x"})
			return err
		},
		"a deletion tomorrow":  func() error { _, err := s.ScheduleDeletion(ctx, alice, "a", 1); return err },
		"a deletion in a year": func() error { _, err := s.ScheduleDeletion(ctx, alice, "a", 365); return err },
	} {
		r.want(what, try(), snapferry.Invalid)
	}
	r.want("a driver that there is not", func() error {
		_, err := s.Create(ctx, alice, keystore.NewKey{Driver: "aws", External: "x"})
		return err
	}(), snapferry.Unsupported)
	for what, name := range map[string]string{"another's key": "a", "another's id": string(a.ID)} {
		_, err := s.Resolve(bob, name)
		r.want(what, err, snapferry.NotFound)
		_, err = s.Disable(ctx, bob, name)
		r.want("disable "+what, err, snapferry.NotFound)
		_, err = s.SetDefault(ctx, bob, true, name)
		r.want("default of "+what, err, snapferry.NotFound)
	}
	_, err := s.SetAlias(ctx, alice, "b", "a", true)
	r.must(err)
	if k, err := s.Resolve(alice, "a"); err != nil || k.ID != b.ID || !slices.Equal(k.Aliases, []string{"a", "b"}) {
		t.Errorf("a moved alias names %+v, %v", k, err)
	}
	_, err = s.RemoveAlias(ctx, alice, "a")
	r.must(err)
	_, err = s.Resolve(alice, "a")
	r.want("an alias that was taken away", err, snapferry.NotFound)
}

func TestStates(t *testing.T) {
	r := newRegion(t)
	s := r.open()
	ctx := t.Context()
	k := r.created(s, "db")
	id := r.chain(s, k)
	want, err := r.dataKey(s, id)
	r.must(err)
	shut := func(what string) {
		t.Helper()
		_, err := r.dataKey(s, id)
		r.want(what+": open", err, snapferry.KeyUnusable)
		now, err := s.Resolve(alice, "db")
		r.must(err)
		_, err = s.DataKey(ctx, now, snapferry.NewChainID())
		r.want(what+": a new data key", err, snapferry.KeyUnusable)
		r.want(what+": try", s.Try(ctx, id), snapferry.KeyUnusable)
		_, err = s.Rotate(ctx, alice, "db")
		r.want(what+": rotate", err, snapferry.KeyUnusable)
		if s.Kept() != 0 {
			t.Errorf("%s: %d data keys are kept", what, s.Kept())
		}
	}
	_, err = s.Disable(ctx, alice, "db")
	r.must(err)
	shut("disabled")
	_, err = s.Disable(ctx, alice, "db")
	r.must(err) // again
	_, err = s.CancelDeletion(ctx, alice, "db")
	r.want("keep one that is not to be deleted", err, snapferry.Conflict)
	_, err = s.ScheduleDeletion(ctx, alice, "db", 7)
	r.must(err)
	shut("to be deleted")
	_, err = s.Enable(ctx, alice, "db")
	r.want("enable one that is to be deleted", err, snapferry.Conflict)
	_, err = s.CancelDeletion(ctx, alice, "db")
	r.must(err)
	shut("kept")
	_, err = s.Enable(ctx, alice, "db")
	r.must(err)
	if got, err := r.dataKey(s, id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("enabled again it has another key, or %v", err)
	}
}

func TestDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegion(t)
		s := r.open()
		k := r.created(s, "db")
		id := r.chain(s, k)
		_, err := s.SetDefault(t.Context(), alice, true, "db")
		r.must(err)
		p, err := r.bucket.Get(t.Context(), r.names()[0], record.MaxKeyringSize)
		r.must(err)
		secret := secretOf(r, p, k.ID)
		if len(secret) == 0 {
			t.Fatal("no secret")
		}
		_, err = s.ScheduleDeletion(t.Context(), alice, "db", 7)
		r.must(err)
		next, err := s.Expire(t.Context(), time.Now().AddDate(0, 0, 6))
		if err != nil || next.Before(time.Now().AddDate(0, 0, 6)) {
			t.Errorf("a day before: next %v, %v", next, err)
		}
		time.Sleep(7*24*time.Hour + time.Minute)
		_, err = s.Expire(t.Context(), time.Now())
		r.must(err)
		all := s.Keys(alice)
		if len(all) != 1 || all[0].State != snapferry.KeyDeleted {
			t.Errorf("got %+v", all)
		}
		_, err = r.dataKey(s, id)
		r.want("open what it sealed", err, snapferry.KeyUnusable)
		_, err = s.Enable(t.Context(), alice, string(k.ID))
		r.want("enable it", err, snapferry.Conflict)
		if d := s.Default(alice); !d.Encrypt || d.Key != "" {
			t.Errorf("the default is %+v", d)
		}
		names := r.names()
		if len(names) != 1 {
			t.Fatalf("keyrings %v", names)
		}
		p, err = r.bucket.Get(t.Context(), names[0], record.MaxKeyringSize)
		r.must(err)
		if len(secretOf(r, p, k.ID)) > 0 {
			t.Error("its secret stays")
		}
	})
}

func secretOf(r *region, p []byte, id snapferry.KeyID) []byte {
	r.Helper()
	k, err := seal.NewKeyringKey(r.key)
	r.must(err)
	ring, err := record.DecodeKeyring(p, k)
	r.must(err)
	for _, m := range ring.Keys {
		if m.ID == id {
			return m.Generations[0].Secret
		}
	}
	return nil
}

func TestRotation(t *testing.T) {
	r := newRegion(t)
	s := r.open()
	k := r.created(s, "db")
	id := r.chain(s, k)
	want, err := r.dataKey(s, id)
	r.must(err)
	row := func() (c meta.Chain) {
		r.must(r.db.View(t.Context(), func(tx *meta.Tx) (err error) { c, err = tx.Chain(id); return err }))
		return c
	}
	if again, err := s.Rewrap(t.Context(), row()); err != nil || again != nil {
		t.Errorf("nothing to wrap: %x, %v", again, err)
	}
	k, err = s.Rotate(t.Context(), alice, "db")
	r.must(err)
	if k.Generation != 2 || k.Rotated.IsZero() {
		t.Errorf("got %+v", k)
	}
	if got, err := r.dataKey(s, id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("before it is wrapped again: another key, or %v", err)
	}
	c := row()
	c.WrappedKey, err = s.Rewrap(t.Context(), c)
	r.must(err)
	r.update(func(tx *meta.Tx) error { return tx.PutChain(c) })
	r.must(s.Prune(t.Context(), k, 2))
	s.Close()
	s = r.open()
	if got, err := r.dataKey(s, id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("wrapped again: another key, or %v", err)
	}
	if c := row(); c.Generation != 2 || c.Key != k.ID {
		t.Errorf("the chain has generation %d of %s", c.Generation, c.Key)
	}
}

// The keyring in one of its places is spoiled; at the next start both have it.
func TestHealing(t *testing.T) {
	for name, spoil := range map[string]func(r *region, older, newer stored){
		"nothing":                 func(*region, stored, stored) {},
		"removed from the bucket": func(r *region, _, newer stored) { r.remove(newer.name) },
		"damaged in the bucket": func(r *region, _, newer stored) {
			r.remove(newer.name)
			r.put(newer.name, newer.body[:len(newer.body)-1])
		},
		"another's in the bucket":    func(r *region, older, newer stored) { r.remove(newer.name); r.put(newer.name, older.body) },
		"rolled back in the bucket":  func(r *region, older, newer stored) { r.remove(newer.name); r.put(older.name, older.body) },
		"an older one in the bucket": func(r *region, older, _ stored) { r.put(older.name, older.body) },
		"none in the metadata": func(r *region, _, _ stored) {
			r.update(func(tx *meta.Tx) error { return tx.PutKeyring(meta.Keyring{Number: 1, Sealed: []byte("x")}) })
		},
		"an older one in the metadata": func(r *region, older, _ stored) {
			r.update(func(tx *meta.Tx) error { return tx.PutKeyring(meta.Keyring{Number: older.number, Sealed: older.body}) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t)
			r.bucket = r.raw
			s := r.open()
			k := r.created(s, "a")
			id := r.chain(s, k)
			older := r.stored()
			_, err := s.Disable(t.Context(), alice, "a")
			r.must(err)
			newer := r.stored()
			want := s.Keys(alice)
			s.Close()
			spoil(r, older, newer)

			for range 2 {
				s = r.open()
				r.same("after the start", s, want)
				_, err = r.dataKey(s, id)
				r.want("open with a disabled key", err, snapferry.KeyUnusable)
				s.Close()
			}
			now := r.stored()
			var row meta.Keyring
			r.must(r.db.View(t.Context(), func(tx *meta.Tx) (err error) { row, err = tx.Keyring(); return err }))
			if row.Number != now.number || !bytes.Equal(row.Sealed, now.body) || now.number < newer.number {
				t.Errorf("the metadata has keyring %d, the bucket %d, it was %d", row.Number, now.number, newer.number)
			}
			if n := r.names(); len(n) != 1 {
				t.Errorf("keyrings %v", n)
			}
			s = r.open()
			r.created(s, "more")
		})
	}
}

type stored struct {
	name   string
	number uint64
	body   []byte
}

func (r *region) stored() stored {
	r.Helper()
	names := r.names()
	x := stored{name: names[len(names)-1]}
	var err error
	x.body, err = r.bucket.Get(context.Background(), x.name, record.MaxKeyringSize)
	r.must(err)
	x.number, err = record.ParseKeyringName(x.name)
	r.must(err)
	return x
}

func (r *region) remove(name string) { r.Helper(); r.must(r.raw.Delete(context.Background(), name)) }

func (r *region) put(name string, p []byte) {
	r.Helper()
	r.must(r.raw.Put(context.Background(), name, p))
}

// With another key nothing is opened, and nothing is changed.
func TestWrongKey(t *testing.T) {
	r := newRegion(t)
	s := r.open()
	r.created(s, "a")
	want, keys := r.stored(), s.Keys(alice)
	s.Close()
	right := r.key
	r.key = bytes.Repeat([]byte{7}, seal.KeySize)
	_, err := r.tryOpen()
	r.want("open with another region's key", err, snapferry.Corrupt)
	if snapferry.HintOf(err) == "" {
		t.Error("no hint")
	}
	if got := r.stored(); got.name != want.name || !bytes.Equal(got.body, want.body) {
		t.Error("the keyring was changed")
	}
	r.key = right
	r.same("with the right key", r.open(), keys)
}

// Whatever step of a change fails, having been done or not, the next one works, and a
// restart shows what it left.
func TestFaults(t *testing.T) {
	fault := snapferry.Errorf(snapferry.Unavailable, "on purpose")
	once := func(fn *func() error) {
		*fn = func() error { *fn = nil; return fault }
	}
	for name, inject := range map[string]func(r *region){
		"the put fails":           func(r *region) { r.faulty.Fail(blobtest.Put, record.KeyringPrefix()+"*", 1, blobtest.Before) },
		"the put was done":        func(r *region) { r.faulty.Fail(blobtest.Put, record.KeyringPrefix()+"*", 1, blobtest.After) },
		"the read back fails":     func(r *region) { r.faulty.Fail(blobtest.ReadAt, record.KeyringPrefix()+"*", 1, blobtest.Before) },
		"the commit fails":        func(r *region) { once(&r.hooks.BeforeCommit) },
		"the commit was done":     func(r *region) { once(&r.hooks.AfterCommit) },
		"the old one stays":       func(r *region) { r.faulty.Fail(blobtest.Delete, record.KeyringPrefix()+"*", 1, blobtest.Before) },
		"the old one was removed": func(r *region) { r.faulty.Fail(blobtest.Delete, record.KeyringPrefix()+"*", 1, blobtest.After) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t)
			s := r.open()
			a := r.created(s, "a")
			id := r.chain(s, a)
			want, err := r.dataKey(s, id)
			r.must(err)
			inject(r)
			_, err = s.Create(t.Context(), alice, keystore.NewKey{Alias: "b"})
			failed := err != nil
			if failed {
				r.want("the change", err, snapferry.Unavailable)
			}
			b, berr := s.Resolve(alice, "b")
			if !failed && berr != nil {
				t.Errorf("the new key: %v", berr)
			}
			c := r.created(s, "c")
			_ = b
			keys := s.Keys(alice)
			s.Close()
			s = r.open()
			r.same("after a restart", s, keys)
			if _, err := s.Resolve(alice, "c"); err != nil || c.ID == "" {
				t.Errorf("a key that was answered is gone: %v", err)
			}
			if got, err := r.dataKey(s, id); err != nil || !bytes.Equal(got, want) {
				t.Errorf("another data key, or %v", err)
			}
		})
	}
}

// A keyring that does not read back as it was written is not used: nothing is sealed with a
// key that nobody could open again.
func TestReadBack(t *testing.T) {
	r := newRegion(t)
	s := r.open()
	a := r.created(s, "a")
	name := record.KeyringName(s.Number() + 1)
	r.faulty.FlipByte(name, 20)
	_, err := s.Create(t.Context(), alice, keystore.NewKey{Alias: "b"})
	r.want("a key whose keyring is damaged", err, snapferry.Corrupt)
	_, err = s.Resolve(alice, "b")
	r.want("that key", err, snapferry.NotFound)
	r.created(s, "c")
	keys := s.Keys(alice)
	s.Close()
	s = r.open()
	r.same("after a restart", s, keys)
	if got, err := s.Resolve(alice, "a"); err != nil || got.ID != a.ID {
		t.Errorf("the first key: %v", err)
	}
}

// Two processes of a region that change keys at once lose nothing. One that is behind
// may write a number that was removed: nobody reads it.
func TestTwoProcesses(t *testing.T) {
	r := newRegion(t)
	r.bucket = r.raw
	one, two := r.open(), r.open()
	var all sync.WaitGroup
	const n = 15
	for i, s := range []*keystore.Store{one, two} {
		all.Go(func() {
			for k := range n {
				for {
					_, err := s.Create(context.Background(), alice, keystore.NewKey{Alias: fmt.Sprintf("k%d-%d", i, k)})
					if err == nil {
						break
					}
					if !snapferry.IsKind(err, snapferry.Unavailable) {
						t.Errorf("create: %v", err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	if got := len(r.open().Keys(alice)); got != 2*n {
		t.Errorf("%d keys of %d", got, 2*n)
	}
}

// A wrapped key that was moved to another chain, or changed, opens nothing.
func TestMovedKey(t *testing.T) {
	r := newRegion(t)
	s := r.open()
	k := r.created(s, "a")
	one, two := r.chain(s, k), r.chain(s, k)
	r.update(func(tx *meta.Tx) error {
		a, err := tx.Chain(one)
		if err != nil {
			return err
		}
		b, err := tx.Chain(two)
		if err != nil {
			return err
		}
		a.WrappedKey = b.WrappedKey
		return tx.PutChain(a)
	})
	_, err := r.dataKey(s, one)
	r.want("another chain's key", err, snapferry.Corrupt)
	if _, err := r.dataKey(s, two); err != nil {
		t.Error(err)
	}
	random := make([]byte, 200)
	rand.Read(random)
	r.want("no wrapped key at all", r.db.Update(t.Context(), func(tx *meta.Tx) error {
		return tx.PutChain(meta.Chain{ID: one, WrappedKey: random})
	}), snapferry.Corrupt)
}
