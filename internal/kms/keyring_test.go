package kms_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/seal"
)

// fake is a key service in memory that binds nothing and does what a test says.
type fake struct {
	mu    sync.Mutex
	keys  map[string][]byte // by what was given out
	calls atomic.Int32
	spoil func(plain []byte) ([]byte, error) // of what Unwrap answers; nil: nothing
}

func newFake() *fake { return &fake{keys: map[string][]byte{}} }

func (f *fake) NewDataKey(_ context.Context, _ string, dst []byte, _ seal.Context) (plain, wrapped []byte, err error) {
	plain = append(dst, make([]byte, seal.KeySize)...)
	rand.Read(plain)
	wrapped = make([]byte, 16)
	rand.Read(wrapped)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys[string(wrapped)] = bytes.Clone(plain)
	return plain, wrapped, nil
}

func (f *fake) Unwrap(ctx context.Context, _ string, dst, wrapped []byte, _ seal.Context) ([]byte, error) {
	f.calls.Add(1)
	f.mu.Lock()
	key, spoil := f.keys[string(wrapped)], f.spoil
	f.mu.Unlock()
	if key == nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "not of this service")
	}
	if spoil != nil {
		var err error
		if key, err = spoil(bytes.Clone(key)); err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, snapferry.Errorf(snapferry.Unavailable, "%w", ctx.Err())
	}
	return append(dst, key...), nil
}

func (f *fake) Rewrap(_ context.Context, _ string, wrapped []byte, _ seal.Context) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	again := make([]byte, 16)
	rand.Read(again)
	f.keys[string(again)] = f.keys[string(wrapped)]
	return again, nil
}

func (f *fake) Describe(context.Context, string) (kms.Description, error) {
	return kms.Description{Usable: true}, nil
}
func (f *fake) Health(context.Context) error { return nil }

func (f *fake) setSpoil(fn func([]byte) ([]byte, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoil = fn
}

var master = snapferry.Key{ID: "key-00000000000000001", Driver: "fake", External: "x", State: snapferry.KeyEnabled, Generation: 1}

func newKeyring(t *testing.T, f *fake) *kms.Keyring {
	t.Helper()
	k := kms.New(kms.Config{Drivers: map[string]kms.Driver{"fake": f}})
	t.Cleanup(k.Close)
	return k
}

func made(t *testing.T, k *kms.Keyring, chain byte) kms.Name {
	t.Helper()
	n := kms.Name{Key: master, Context: seal.Context{Account: "a", Chain: snapferry.ChainID{chain}, Region: "east"}}
	var err error
	if n.Wrapped, err = k.Make(t.Context(), master, n.Context); err != nil {
		t.Fatal(err)
	}
	return n
}

func used(t *testing.T, k *kms.Keyring, n kms.Name) (key []byte, err error) {
	t.Helper()
	err = k.Use(t.Context(), n, func(p []byte) error { key = bytes.Clone(p); return nil })
	return key, err
}

func wantKind(t *testing.T, what string, err error, want snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		k := newKeyring(t, f)
		n := made(t, k, 1)
		before := f.calls.Load()
		a, err := used(t, k, n)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if b, err := used(t, k, n); err != nil || !bytes.Equal(a, b) {
				t.Fatalf("another key, or %v", err)
			}
		}
		if got := f.calls.Load() - before; got != 1 {
			t.Errorf("the service was asked %d times", got)
		}
		if k.Kept() != 1 {
			t.Errorf("%d keys are kept", k.Kept())
		}
		// In use it is asked for again, now and then.
		for range 20 {
			time.Sleep(time.Minute)
			if _, err := used(t, k, n); err != nil {
				t.Fatal(err)
			}
		}
		if got := f.calls.Load() - before; got < 4 || got > 6 {
			t.Errorf("in 20 minutes the service was asked %d times", got)
		}
		// Out of use it is cleared.
		time.Sleep(2 * kms.DefaultTTL)
		if k.Kept() != 0 {
			t.Errorf("%d keys are kept that nobody uses", k.Kept())
		}
	})
}

func TestShut(t *testing.T) {
	f := newFake()
	k := newKeyring(t, f)
	n := made(t, k, 1)
	if _, err := used(t, k, n); err != nil {
		t.Fatal(err)
	}
	n.Key.State = snapferry.KeyDisabled
	_, err := used(t, k, n)
	wantKind(t, "use of one that is in memory, and disabled", err, snapferry.KeyUnusable)
	k.Shut(master.ID)
	if k.Kept() != 0 {
		t.Error("the key is kept")
	}
	for state, want := range map[snapferry.KeyState]snapferry.Kind{
		snapferry.KeyDisabled: snapferry.KeyUnusable, snapferry.KeyPendingDeletion: snapferry.KeyUnusable, snapferry.KeyDeleted: snapferry.KeyUnusable,
	} {
		n.Key.State = state
		_, err := used(t, k, n)
		wantKind(t, "use of one that is "+string(state), err, want)
		_, err = k.Make(t.Context(), n.Key, n.Context)
		wantKind(t, "a new data key of one that is "+string(state), err, want)
		_, err = k.Rewrap(t.Context(), n)
		wantKind(t, "wrapping again of one that is "+string(state), err, want)
		if snapferry.HintOf(err) == "" && state != snapferry.KeyDeleted {
			t.Errorf("%s: no hint", state)
		}
	}
	n.Key.State = snapferry.KeyEnabled
	if _, err := used(t, k, n); err != nil {
		t.Error(err)
	}
}

// A key that is shut while it is being opened is not kept.
func TestShutMeanwhile(t *testing.T) {
	f := newFake()
	k := newKeyring(t, f)
	n := made(t, k, 1)
	var once sync.Once
	f.setSpoil(func(p []byte) ([]byte, error) {
		once.Do(func() { k.Shut(master.ID) })
		return p, nil
	})
	before := f.calls.Load()
	if _, err := used(t, k, n); err != nil {
		t.Fatal(err)
	}
	if got := f.calls.Load() - before; got != 2 {
		t.Errorf("the service was asked %d times, want twice", got)
	}
}

// What a service answers is not believed.
func TestWrongAnswers(t *testing.T) {
	f := newFake()
	k := newKeyring(t, f)
	n, other := made(t, k, 1), made(t, k, 2)
	moved := n
	moved.Wrapped = other.Wrapped
	_, err := used(t, k, moved)
	wantKind(t, "a wrapped key that was moved to another chain", err, snapferry.Corrupt)
	for what, spoil := range map[string]func([]byte) ([]byte, error){
		"another key": func(p []byte) ([]byte, error) { p[0]++; return p, nil },
		"a short key": func(p []byte) ([]byte, error) { return p[:31], nil },
		"a long key":  func(p []byte) ([]byte, error) { return append(p, 1), nil },
		"nothing":     func([]byte) ([]byte, error) { return nil, nil },
	} {
		f.setSpoil(spoil)
		_, err := used(t, k, n)
		wantKind(t, what, err, snapferry.Corrupt)
		_, err = k.Make(t.Context(), master, n.Context)
		wantKind(t, what+" of a new one", err, snapferry.Corrupt)
	}
	if k.Kept() != 0 {
		t.Error("a wrong key is kept")
	}
	f.setSpoil(nil)
	if _, err := used(t, k, n); err != nil {
		t.Error(err)
	}
	n.Key.Driver = "none"
	_, err = k.Make(t.Context(), n.Key, n.Context)
	wantKind(t, "a driver that the region has not", err, snapferry.Unsupported)
}

// A service that does not answer ends nothing that is in use, for a while.
func TestServiceDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		k := newKeyring(t, f)
		n, idle := made(t, k, 1), made(t, k, 2)
		if _, err := used(t, k, n); err != nil {
			t.Fatal(err)
		}
		f.setSpoil(func([]byte) ([]byte, error) { return nil, snapferry.Errorf(snapferry.Unavailable, "down") })
		_, err := used(t, k, idle)
		wantKind(t, "one that is not in memory", err, snapferry.Unavailable)
		for began := time.Now(); time.Since(began) < kms.DefaultGrace-kms.DefaultTTL; time.Sleep(time.Minute) {
			if _, err := used(t, k, n); err != nil {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
		}
		time.Sleep(time.Minute)
		for range 2 * int(kms.DefaultTTL/time.Minute) {
			time.Sleep(time.Minute)
			_, err = used(t, k, n)
		}
		wantKind(t, "after the time of grace", err, snapferry.Unavailable)
		if k.Kept() != 0 {
			t.Error("the key is kept")
		}
		f.setSpoil(nil)
		if _, err := used(t, k, n); err != nil {
			t.Error(err)
		}
	})
}

// A service that refuses ends it at once.
func TestServiceRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		k := newKeyring(t, f)
		n := made(t, k, 1)
		if _, err := used(t, k, n); err != nil {
			t.Fatal(err)
		}
		f.setSpoil(func([]byte) ([]byte, error) { return nil, snapferry.Errorf(snapferry.KeyUnusable, "disabled there") })
		time.Sleep(kms.DefaultTTL + time.Second)
		_, err := used(t, k, n)
		wantKind(t, "a key that is disabled in its service", err, snapferry.KeyUnusable)
		if k.Kept() != 0 {
			t.Error("the key is kept")
		}
	})
}

func TestSlowService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		k := newKeyring(t, f)
		n := made(t, k, 1)
		f.setSpoil(func(p []byte) ([]byte, error) { time.Sleep(time.Minute); return p, nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := k.Use(ctx, n, func([]byte) error { return nil })
		if err == nil {
			t.Error("it waited beyond its context")
		}
		_, err = used(t, k, n)
		wantKind(t, "a slow service", err, snapferry.Unavailable)
		time.Sleep(2 * time.Minute)
	})
}

func TestOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		k := newKeyring(t, f)
		n := made(t, k, 1)
		before := f.calls.Load()
		gate := make(chan struct{})
		f.setSpoil(func(p []byte) ([]byte, error) { <-gate; return p, nil })
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				if _, err := k.Segment(t.Context(), n, snapferry.SegmentID{byte(i + 1)}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		all.Wait()
		if got := f.calls.Load() - before; got != 1 {
			t.Errorf("the service was asked %d times", got)
		}
	})
}

func TestRewrap(t *testing.T) {
	f := newFake()
	k := newKeyring(t, f)
	n := made(t, k, 1)
	a, err := used(t, k, n)
	if err != nil {
		t.Fatal(err)
	}
	n.Key.Generation = 2
	w, err := k.Rewrap(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if w.Generation != 2 || bytes.Equal(w.Blob, n.Wrapped.Blob) || w.Check != n.Wrapped.Check {
		t.Errorf("got %+v of %+v", w, n.Wrapped)
	}
	f.setSpoil(func(p []byte) ([]byte, error) { p[0]++; return p, nil })
	_, err = k.Rewrap(t.Context(), n)
	wantKind(t, "what does not open any more when it was wrapped again", err, snapferry.Corrupt)
	f.setSpoil(nil)
	k.Shut(master.ID)
	n.Wrapped = w
	if b, err := used(t, k, n); err != nil || !bytes.Equal(a, b) {
		t.Errorf("another key, or %v", err)
	}
}

func TestClosed(t *testing.T) {
	f := newFake()
	k := newKeyring(t, f)
	n := made(t, k, 1)
	if _, err := used(t, k, n); err != nil {
		t.Fatal(err)
	}
	k.Close()
	if k.Kept() != 0 {
		t.Error("a key is kept")
	}
	_, err := used(t, k, n)
	wantKind(t, "use of a closed keyring", err, snapferry.Unavailable)
}
