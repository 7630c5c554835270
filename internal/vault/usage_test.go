package vault_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// settleCounting does what deletion has left to do and returns what it freed.
func (h *history) settleCounting() (slots, bytes int64) {
	h.t.Helper()
	var st vault.VisitStats
	for {
		var todo []snapferry.VersionID
		h.View(func(tx *meta.Tx) (err error) { todo, err = simtest.Chores(tx); return err })
		if len(todo) == 0 {
			return st.Slots.Load(), st.Bytes.Load()
		}
		if err := h.Vault.VisitAll(context.Background(), todo, nil, &st); err != nil {
			h.fail("visit: %v", err)
		}
	}
}

// TestFreedIsExact predicts, in random chains, what dropping one version, and
// what dropping several, frees; then drops them.
func TestFreedIsExact(t *testing.T) {
	f := simtest.NewFactory(t)
	for i := range (*histories + 2) / 3 {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, f, seed)
			for range 30 {
				if err := h.step(); err != nil {
					h.fail("%v", err)
				}
			}
			for len(h.live) > 0 {
				h.settleCounting()
				var drops []meta.Hold
				for range 1 + h.rnd.IntN(3) {
					if id := pick(h.rnd, h.live); !id.IsZero() {
						h.live = without(h.live, id)
						drops = append(drops, simtest.Hold(id))
					}
				}
				h.predict(drops)
			}
			for len(h.open) > 0 {
				if err := h.abort(pick(h.rnd, h.open)); err != nil {
					h.fail("abort: %v", err)
				}
			}
			h.settleCounting()
			h.WantNothing(t)
		})
	}
}

// predict compares what dropping holds frees with what was said before.
func (h *history) predict(drops []meta.Hold) {
	h.t.Helper()
	want, err := h.Vault.Freed(context.Background(), drops)
	if err != nil {
		h.fail("predict: %v", err)
	}
	for _, d := range drops {
		h.log("drop %s", name(d.Version))
		if err := h.Vault.Release(context.Background(), d, nil); err != nil {
			h.fail("drop: %v", err)
		}
	}
	slots, bytes := h.settleCounting()
	if slots != want.Blocks+want.Nodes || bytes != want.Bytes {
		h.fail("dropping %d freed %d slots, %d bytes; said before: %+v", len(drops), slots, bytes, want)
	}
}

// TestFreedOfForks: what stays because of two children is said, and goes with
// one of them.
func TestFreedOfForks(t *testing.T) {
	h := newHistory(t, simtest.NewFactory(t), 1)
	base := simtest.NewDisk(historySize)
	for i := range uint64(8) {
		base.Fill(i, int(i)+1)
	}
	root, _, err := h.Store(h.vol, snapferry.VersionID{}, base)
	if err != nil {
		t.Fatal(err)
	}
	var forks []snapferry.VersionID
	for i := range 2 {
		id, _, err := h.Store(h.vol, root, base.Clone(historySize).Fill(uint64(i), 100+i).Fill(7, 0))
		if err != nil {
			t.Fatal(err)
		}
		forks = append(forks, id)
	}
	u, err := h.Vault.Freed(t.Context(), []meta.Hold{simtest.Hold(root)})
	if err != nil {
		t.Fatal(err)
	}
	if u.Blocks != 1 || u.Nodes != 0 || u.Later == 0 {
		t.Errorf("a parent of two: got %+v, want one block, and nodes later", u)
	}
	all, err := h.Vault.Freed(t.Context(), []meta.Hold{simtest.Hold(root), simtest.Hold(forks[0])})
	if err != nil {
		t.Fatal(err)
	}
	if all.Blocks != 3 || all.Nodes == 0 || all.Later != 0 {
		t.Errorf("with one of the two: got %+v, want three blocks, and nodes", all)
	}
	before, err := h.Vault.Freed(t.Context(), []meta.Hold{simtest.Hold(root), simtest.Hold(forks[0]), simtest.Hold(forks[1])})
	if err != nil {
		t.Fatal(err)
	}
	h.predict([]meta.Hold{simtest.Hold(root), simtest.Hold(forks[0]), simtest.Hold(forks[1])})
	if before.Later != 0 {
		t.Errorf("all: got %+v", before)
	}
	h.WantNothing(t)
}
