package recovery_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
)

// The newest dump that opens and is what its name says counts, over metadata
// only if it is newer than that.
func TestDumps(t *testing.T) {
	r := newRegion(t)
	token := func(hash string) {
		r.t.Helper()
		r.update(func(tx *meta.Tx) error { return tx.SetAccountToken(r.account, hash) })
	}
	want := func(when, hash string) {
		t.Helper()
		r.view(func(tx *meta.Tx) error {
			a, err := tx.Account(r.account)
			if a.TokenHash != hash {
				t.Errorf("%s: the account has token %q, want %q", when, a.TokenHash, hash)
			}
			return err
		})
	}
	r.take("a", "", disk(map[uint64]int{0: 1}))
	token("one")
	r.dump()
	old := r.keep()
	token("two")
	r.dump()
	token("three") // of this no dump tells
	wantComplete(t, r.recover(merge))
	want("over metadata that is newer", "three")
	r.lose()
	wantComplete(t, r.recover(nil))
	want("from nothing", "two")
	old()
	wantComplete(t, r.recover(merge))
	want("over metadata that is older", "two")
	// An old dump under a new name.
	r.replace(dump.Name(9), r.body(dump.Name(1)))
	r.lose()
	rep := r.recover(nil)
	if all := damages(rep); len(all) != 1 || all[0].Object != dump.Name(9) || rep.Dump != 2 {
		t.Errorf("a renamed dump: used %d, %+v", rep.Dump, rep.Findings)
	}
	want("beside a renamed dump", "two")
	r.wantSnapshots("a")
}

// What a run read wrong, and an interrupted run left in its cache, is read anew.
func TestWrongInCache(t *testing.T) {
	r := small(t)
	for _, name := range r.names("") {
		p := r.body(name)
		if len(p) < 100 {
			continue
		}
		bad := bytes.Clone(p)
		bad[len(bad)-2] ^= 1
		r.replace(name, bad)
		cfg := r.config()
		ctx, cancel := context.WithCancel(r.ctx)
		cfg.Progress = func(phase string, _, _ int64) {
			if phase == recovery.PhaseMetadata { // all is read, and in the cache
				cancel()
			}
		}
		_, err := recovery.Run(ctx, cfg)
		cancel()
		r.replace(name, p)
		if err == nil {
			t.Fatalf("%s: the run was not interrupted", name)
		}
		wantComplete(t, r.dry(nil))
	}
}
