package recovery_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

var histories = flag.Int("histories", 6, "random histories of TestHistories")

// step does something at random.
func (r *region) step(rnd *rand.Rand, n int) {
	r.t.Helper()
	names := r.all()
	switch k := rnd.IntN(10); {
	case k < 5 || len(names) == 0:
		parent, d := "", disk(nil)
		if len(names) > 0 && rnd.IntN(8) > 0 {
			parent = names[rnd.IntN(len(names))]
			d = r.snaps[parent].disk
		}
		seeds := map[uint64]int{}
		for range 1 + rnd.IntN(3) {
			seeds[[]uint64{0, 1, 2, 255, 256, 600}[rnd.IntN(6)]] = rnd.IntN(12) // few contents: what was there comes again
		}
		r.take(fmt.Sprintf("s%02d", n), parent, changed(d, seeds))
	case k < 8:
		r.delete(names[rnd.IntN(len(names))])
	case k < 9:
		var todo []snapferry.VersionID
		r.view(func(tx *meta.Tx) (err error) {
			todo, err = simtest.Chores(tx)
			return err
		})
		if len(todo) > 0 {
			r.must(r.vault.Visit(r.ctx, todo[rnd.IntN(len(todo))], nil, nil))
		}
	default:
		r.compact()
	}
}

// compact moves what lives into few objects, and removes the old ones at once.
func (r *region) compact() {
	r.t.Helper()
	var chains []meta.Chain
	r.view(func(tx *meta.Tx) (err error) {
		chains, err = tx.Chains()
		return err
	})
	for _, c := range chains {
		_, err := r.vault.Compact(r.ctx, c.ID, vault.CompactConfig{})
		r.must(err)
	}
}

// Whatever happened, after a recovery the metadata is what it was: at once from
// nothing, over any state it ever had, and when life goes on.
func TestHistories(t *testing.T) {
	n := *histories
	if testing.Short() {
		n = 2
	}
	for seed := range n {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(seed), 11))
			r := newRegion(t)
			var back func()
			for i := range 40 {
				if i == 15 {
					back = r.keep()
				}
				r.step(rnd, i)
			}
			r.dump()
			r.wantSnapshots(r.all()...)
			snaps := maps.Clone(r.snaps)
			r.settle()
			want := r.state()
			r.lose()
			wantComplete(t, r.recover(nil))
			r.wantClean()
			r.wantSnapshots(r.all()...)
			r.settle()
			r.same(r.state(), want)
			if back(); rnd.IntN(2) == 0 {
				r.bucketAhead(rnd)
				snaps = maps.Clone(r.snaps)
			}
			rep := r.recover(merge)
			if len(rep.Missing) > 0 { // deleted after the last dump
				r.wantStopped(true)
				rep = r.recover(accept)
			}
			wantComplete(t, rep)
			r.wantStopped(false)
			r.snaps = snaps
			r.settle()
			r.wantClean()
			r.wantSnapshots(r.all()...)
			for i := range 10 {
				r.step(rnd, 50+i)
			}
			for _, name := range slices.Clone(r.all()) {
				r.delete(name)
			}
			r.settle()
			r.wantClean()
			if s := r.state(); len(s.Versions)+len(s.Segments) > 0 {
				t.Errorf("left with the last snapshot gone: %d versions, %d segments", len(s.Versions), len(s.Segments))
			}
		})
	}
}

// bucketAhead is a recovery from nothing that went on for a while, and then the
// old metadata again.
func (r *region) bucketAhead(rnd *rand.Rand) {
	r.t.Helper()
	back := r.keep()
	r.lose()
	wantComplete(r.t, r.recover(nil))
	for i := range 5 {
		r.step(rnd, 90+i)
	}
	back()
}
