package vault_test

import (
	"context"
	"flag"
	"fmt"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// A tree is a family of versions by name. Each is a disk that differs from its
// parent's, so that each has something of its own, something from above, and
// something that goes from A to B and back.
type tree struct {
	*simtest.Region
	t    *testing.T
	vol  meta.Volume
	ids  map[string]snapferry.VersionID
	disk map[string]*simtest.Disk
	live map[string]bool
}

func newTree(t *testing.T, f *simtest.Factory) *tree {
	x := &tree{
		Region: f.NewRegion(t, simtest.Options{}), t: t, ids: map[string]snapferry.VersionID{}, disk: map[string]*simtest.Disk{}, live: map[string]bool{},
	}
	x.vol = x.Volume(x.Account("a"), "disk")
	return x
}

// grow adds a version below a parent ("": none), with blocks filled from seeds.
func (x *tree) grow(name, parent string, seeds map[uint64]int) *tree {
	x.t.Helper()
	d := simtest.NewDisk(historySize)
	if parent != "" {
		d = x.disk[parent].Clone(historySize)
	}
	for b, s := range seeds {
		d.Fill(b, s)
	}
	id, _, err := x.Store(x.vol, x.ids[parent], d)
	if err != nil {
		x.t.Fatal(err)
	}
	x.ids[name], x.disk[name], x.live[name] = id, d, true
	return x
}

func (x *tree) drop(name string) error {
	return x.Vault.Release(context.Background(), simtest.Hold(x.ids[name]), nil)
}

// dropAndSettle deletes versions and does what is left to do.
func (x *tree) dropAndSettle(names ...string) error {
	for _, name := range names {
		if err := x.drop(name); err != nil {
			return err
		}
	}
	if len(names) == 1 {
		return x.SettleSingly(context.Background())
	}
	return x.Settle(context.Background())
}

// mustDrop deletes versions before the test proper begins.
func (x *tree) mustDrop(names ...string) *tree {
	x.t.Helper()
	if err := x.dropAndSettle(names...); err != nil {
		x.t.Fatal(err)
	}
	for _, name := range names {
		delete(x.live, name)
	}
	return x
}

// families are the trees whose deletions are interrupted everywhere, and what
// is deleted in them.
var families = []struct {
	name   string
	grow   func(*tree) *tree
	delete []string
}{
	{"the middle of three", chainOfThree, []string{"b"}},
	{"the first of three", chainOfThree, []string{"a"}},
	{"the last of three", chainOfThree, []string{"c"}},
	{"two neighbours", chainOfThree, []string{"b", "c"}},
	{"neighbours from above", chainOfThree, []string{"a", "b"}},
	{"all", chainOfThree, []string{"b", "a", "c"}},
	{"the root of a fork", fork, []string{"a"}},
	{"the middle of a fork", fork, []string{"b"}},
	{"a ghost's last but one child", func(x *tree) *tree { return fork(x).mustDrop("b") }, []string{"c"}},
	{"a ghost with a ghost above", func(x *tree) *tree { return fork(x).grow("e", "a", map[uint64]int{0: 3, 70: 1}).mustDrop("b", "a") }, []string{"d"}},
}

func chainOfThree(x *tree) *tree {
	return x.grow("a", "", map[uint64]int{0: 1, 1: 2, 300: 3, 65536: 1}).
		grow("b", "a", map[uint64]int{0: 2, 1: 0, 600: 1}).
		grow("c", "b", map[uint64]int{0: 1, 300: 2})
}

// fork has two children below b, which share some and overwrite some.
func fork(x *tree) *tree {
	return chainOfThree(x).grow("d", "b", map[uint64]int{1: 3, 300: 1})
}

// TestCrashInDeletion interrupts deletions at each put, delete and commit, with
// the power cut and with one failed request, before and after it was done. What
// lives reads the same, the deletion goes on afterwards, and in the end nothing
// is left.
func TestCrashInDeletion(t *testing.T) {
	f := simtest.NewFactory(t)
	for _, fam := range families {
		for _, once := range []bool{false, true} {
			for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
				t.Run(fmt.Sprintf("%s/%v/%s", fam.name, once, mode), func(t *testing.T) {
					t.Parallel()
					for n, hit := 0, true; hit; n++ {
						x := fam.grow(newTree(t, f))
						if once {
							x.Power.FailAt(n, mode)
						} else {
							x.Power.CutAt(n, mode)
						}
						err := x.dropAndSettle(fam.delete...)
						hit = x.Power.Restore()
						if !hit && err != nil {
							t.Fatalf("without a fault: %v", err)
						}
						x.afterCrash(n, once, fam.delete)
						x.Stop()
					}
				})
			}
		}
	}
}

// afterCrash goes on after an interruption at the nth point: what lives reads
// the same, the deletion comes to its end, and so do all others.
func (x *tree) afterCrash(n int, once bool, deleted []string) {
	x.t.Helper()
	if !once {
		x.Restart()
	}
	x.wantLive(deleted)
	// What did not take effect is asked for again.
	for _, name := range deleted {
		if err := x.drop(name); err != nil && !snapferry.IsKind(err, snapferry.Conflict) && !snapferry.IsKind(err, snapferry.NotFound) {
			x.t.Fatalf("point %d: drop %s again: %v", n, name, err)
		}
		delete(x.live, name)
	}
	if err := x.Settle(context.Background()); err != nil {
		x.t.Fatalf("point %d: go on: %v", n, err)
	}
	x.wantLive(nil)
	x.Check(x.t, simtest.NoGarbage)
	for name := range x.live {
		if err := x.dropAndSettle(name); err != nil {
			x.t.Fatalf("point %d: drop %s: %v", n, name, err)
		}
	}
	x.WantNothing(x.t)
	if x.t.Failed() {
		x.t.Fatalf("after an interruption at point %d", n)
	}
}

// wantLive wants every version that lives, but for those that are being
// deleted, to have its content.
func (x *tree) wantLive(but []string) {
	x.t.Helper()
	for name := range x.live {
		going := false
		for _, b := range but {
			going = going || b == name
		}
		if !going {
			x.WantContent(x.t, x.ids[name], x.disk[name])
		}
	}
}

var everyOrder = flag.Int("every-order", 5, "run each nth order of TestForksDeletedInEveryOrder; 1: all")

// TestForksDeletedInEveryOrder deletes the children of a deleted version in
// every order: five forks that share and overwrite.
func TestForksDeletedInEveryOrder(t *testing.T) {
	f := simtest.NewFactory(t)
	names := []string{"1", "2", "3", "4", "5"}
	var orders [][]string
	permute(names, func(o []string) { orders = append(orders, append([]string(nil), o...)) })
	for i, order := range orders {
		if i%*everyOrder != 0 {
			continue
		}
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			x := newTree(t, f)
			x.grow("base", "", map[uint64]int{0: 1, 1: 1, 2: 1, 300: 1, 301: 1, 65536: 1})
			for i, name := range names {
				x.grow(name, "base", map[uint64]int{uint64(i): 5, uint64(300 + i%2): 2 + i/2, 65537: 3})
			}
			x.mustDrop("base")
			x.wantLive(nil)
			for _, name := range order {
				x.mustDrop(name)
				x.wantLive(nil)
			}
			x.WantNothing(t)
		})
	}
}

func permute(s []string, fn func([]string)) {
	if len(s) <= 1 {
		fn(s)
		return
	}
	for i := range s {
		rest := append(append([]string(nil), s[:i]...), s[i+1:]...)
		permute(rest, func(o []string) { fn(append([]string{s[i]}, o...)) })
	}
}
