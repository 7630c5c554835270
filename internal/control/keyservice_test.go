package control_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/seal"
)

// keyService is a key service with one key, to which things happen.
type keyService struct {
	mu    sync.Mutex
	spoil func(ctx context.Context, key []byte) error // nil: it is well; guarded by mu
	made  atomic.Int32                                // data keys
}

func (s *keyService) set(spoil func(ctx context.Context, key []byte) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoil = spoil
}

func (s *keyService) answer(ctx context.Context, key []byte) error {
	s.mu.Lock()
	spoil := s.spoil
	s.mu.Unlock()
	if spoil == nil {
		return nil
	}
	return spoil(ctx, key)
}

func (*keyService) master() *seal.MasterKey {
	k, err := seal.NewMasterKey(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		panic(err)
	}
	return k
}

func (s *keyService) NewDataKey(ctx context.Context, _ string, dst []byte, c seal.Context) (plain, wrapped []byte, err error) {
	s.made.Add(1)
	plain = append(dst, simtest.Content(time.Now().Nanosecond())[:seal.KeySize]...)
	if wrapped, err = s.master().Wrap(nil, plain[len(dst):], 1, c); err != nil {
		return nil, nil, err
	}
	return plain, wrapped, s.answer(ctx, plain[len(dst):])
}

func (s *keyService) Unwrap(ctx context.Context, _ string, dst, wrapped []byte, c seal.Context) ([]byte, error) {
	plain, err := s.master().Unwrap(dst, wrapped, 1, c)
	if err != nil {
		return nil, err
	}
	return plain, s.answer(ctx, plain[len(dst):])
}

func (s *keyService) Rewrap(ctx context.Context, _ string, wrapped []byte, _ seal.Context) ([]byte, error) {
	return wrapped, s.answer(ctx, nil)
}

func (s *keyService) Describe(ctx context.Context, key string) (kms.Description, error) {
	return kms.Description{Name: key, Usable: true}, s.answer(ctx, nil)
}

func (s *keyService) Health(ctx context.Context) error { return s.answer(ctx, nil) }

// TestDataKeysAreForChains counts the data keys that are made: one for each chain, and none
// for what goes to one that is there. What an account wants of new lineages keeps
// nothing from those that it has.
func TestDataKeysAreForChains(t *testing.T) {
	service := &keyService{}
	a := &alone{Region: simtest.NewRegion(t, simtest.Options{Jobs: true, KeyServices: map[string]kms.Driver{"service": service}}), t: t}
	a.at = a.Account("a")
	for _, alias := range []string{"one", "two"} {
		if _, err := a.Control.CreateKey(t.Context(), a.at, control.KeyRequest{Alias: alias, Driver: "service", External: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	service.made.Store(0) // keys are tried when they are created
	d := firstDisk()
	plain := a.imported("plain", d)
	if _, err := a.Control.SetEncryptByDefault(t.Context(), a.at, true, "one"); err != nil {
		t.Fatal(err)
	}
	want := func(what string, n int32) {
		t.Helper()
		if got := service.made.Load(); got != n {
			t.Errorf("%s: %d data keys, want %d", what, got, n)
		}
	}
	a.imported("sealed", d)
	a.imported("sealed", d)
	a.imported("plain", d)
	want("two lineages, of which one is encrypted", 1)
	for range 2 {
		s, err := a.Control.Copy(t.Context(), a.at, control.CopyRequest{From: a.Name, Source: plain.ID, Sealing: control.Sealing{Key: "two"}})
		if err != nil {
			t.Fatal(err)
		}
		a.ready(s.ID, d)
	}
	want("and copies of one under another key", 2)
	if _, err := a.Control.ChangeKey(t.Context(), a.at, "one", control.KeyDisable); err != nil {
		t.Fatal(err)
	}
	a.imported("plain", d)
	_, err := a.Control.Import(t.Context(), a.at, control.ImportRequest{Volume: "new", Disk: d, Close: func() {}})
	wantKind(t, "a new lineage while the default key is disabled", err, snapferry.KeyUnusable)
	_, err = a.Control.Import(t.Context(), a.at, control.ImportRequest{Volume: "plain", Sealing: control.Sealing{Key: "two"}, Disk: d, Close: func() {}})
	wantKind(t, "another key than the lineage has", err, snapferry.Conflict)
}

// TestKeyServiceMeanwhile lets something happen to the key service of a destination
// while a copy runs: the copy waits for the end of what may have one, and fails for the
// reason of what has none. Then all is as ever.
func TestKeyServiceMeanwhile(t *testing.T) {
	t.Parallel()
	const keyTTL = 100 * time.Millisecond
	unavailable := func(what string) func(context.Context, []byte) error {
		return func(context.Context, []byte) error { return snapferry.Errorf(snapferry.Unavailable, "%s", what) }
	}
	for name, c := range map[string]struct {
		spoil func(ctx context.Context, key []byte) error
		says  string
		fails bool // for good
	}{
		"down":       {spoil: unavailable("connection refused"), says: "connection refused"},
		"throttling": {spoil: unavailable("too many requests"), says: "too many requests"},
		"slow": {spoil: func(ctx context.Context, _ []byte) error {
			<-ctx.Done()
			return ctx.Err()
		}, says: "did not answer"},
		"denied": {spoil: func(context.Context, []byte) error {
			return snapferry.Errorf(snapferry.Denied, "the role may not use it")
		}, says: "may not use it", fails: true},
		"another key's data": {spoil: func(_ context.Context, key []byte) error {
			if key != nil {
				key[0] ^= 1
			}
			return nil
		}, says: "corrupt", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &keyService{}
			w := newWorldWith(t, func(o *simtest.Options) {
				o.KeyServices = map[string]kms.Driver{"service": s}
				// Long enough for a busy machine to use a key within it.
				o.Keys = kms.Config{TTL: keyTTL, Grace: time.Millisecond, Timeout: 100 * time.Millisecond}
			})
			if _, err := w.west.Control.CreateKey(t.Context(), w.atWest, control.KeyRequest{Alias: "one", Driver: "service", External: "one"}); err != nil {
				t.Fatal(err)
			}
			d := firstDisk()
			from := w.importedAs("disk", d, control.Sealing{})
			asked, open := w.shut()
			x := w.copy(control.CopyRequest{Source: from.ID, Sealing: control.Sealing{Key: "one"}})
			<-asked
			s.set(c.spoil)
			_, err := w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: from.ID, Full: true, Sealing: control.Sealing{Key: "one"}})
			if err == nil || snapferry.KindOf(err) == snapferry.Internal {
				t.Errorf("another copy: got %v", err)
			}
			time.Sleep(2 * keyTTL)
			close(open)
			if c.fails {
				now := w.settled(w.west, w.atWest, x.ID)
				if now.State != snapferry.SnapshotFailed || !strings.Contains(strings.ToLower(now.Reason), c.says) {
					t.Errorf("got %s (%s), want failed for %q", now.State, now.Reason, c.says)
				}
			} else {
				idle(t, w.west, "the job that waits", func(tx *meta.Tx) (bool, error) {
					jobs, err := tx.JobsOf(string(x.ID))
					for _, j := range jobs {
						if strings.Contains(j.Error, c.says) {
							return true, err
						}
					}
					return false, err
				})
			}
			s.set(nil)
			if c.fails {
				if x, err = w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: from.ID, Sealing: control.Sealing{Key: "one"}}); err != nil {
					t.Fatal(err)
				}
			}
			w.ready(x.ID, d)
			w.check()
		})
	}
}
