package filekms_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/kms/filekms"
	"github.com/snapferry/snapferry/internal/kms/kmstest"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// ring is master keys in memory.
type ring struct {
	filekms.Driver
	mu   sync.Mutex
	keys map[snapferry.KeyID]*record.MasterKey
}

func newRing(ids ...snapferry.KeyID) *ring {
	r := &ring{keys: map[snapferry.KeyID]*record.MasterKey{}}
	for _, id := range ids {
		r.keys[id] = &record.MasterKey{Key: snapferry.Key{ID: id, State: snapferry.KeyEnabled}}
		r.rotate(id)
	}
	r.Lookup = func(id snapferry.KeyID) (record.MasterKey, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if m := r.keys[id]; m != nil {
			return *m, nil
		}
		return record.MasterKey{}, snapferry.Errorf(snapferry.NotFound, "no key %s", id)
	}
	return r
}

func (r *ring) rotate(id snapferry.KeyID) {
	m := r.keys[id]
	m.Generation++
	g := record.Generation{Number: m.Generation, Secret: make([]byte, record.SecretSize), Created: time.Now()}
	rand.Read(g.Secret)
	m.Generations = append(m.Generations, g)
}

// Rotate implements kms.Rotator: the region does that for this driver.
func (r *ring) Rotate(_ context.Context, key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rotate(snapferry.KeyID(key))
	return nil
}

const (
	one = snapferry.KeyID("key-00000000000000001")
	two = snapferry.KeyID("key-00000000000000002")
)

var _ kms.Rotator = (*ring)(nil)

func TestConformance(t *testing.T) {
	kmstest.Conform(t, func(*testing.T) *kmstest.Harness {
		return &kmstest.Harness{Driver: newRing(one, two), Key: string(one), Other: string(two), Missing: "key-00000000000000009", Binds: true}
	})
}

// A deleted key, and a generation that is gone, open nothing.
func TestGone(t *testing.T) {
	r := newRing(one)
	place := seal.Context{Account: "a", Chain: snapferry.ChainID{1}, Region: "east"}
	_, wrapped, err := r.NewDataKey(t.Context(), string(one), nil, place)
	if err != nil {
		t.Fatal(err)
	}
	r.rotate(one)
	r.keys[one].Generations = r.keys[one].Generations[1:]
	if _, err := r.Unwrap(t.Context(), string(one), nil, wrapped, place); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("a generation that is gone: got %v, want Corrupt", err)
	}
	r.keys[one].State = snapferry.KeyDeleted
	if _, err := r.Unwrap(t.Context(), string(one), nil, wrapped, place); !snapferry.IsKind(err, snapferry.KeyUnusable) {
		t.Errorf("a deleted key: got %v, want KeyUnusable", err)
	}
	if bytes.Contains(wrapped, r.keys[one].Generations[0].Secret) {
		t.Error("the secret lies in what it wrapped")
	}
}
