package vault_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/record"
)

// pauses is a driver that stops before a put, once, and does something else
// meanwhile, as a process does that was stopped while others went on.
type pauses struct {
	blob.Driver
	mu     sync.Mutex
	prefix string
	then   func()
}

// before runs fn before the next put of a name with a prefix.
func (p *pauses) before(prefix string, fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prefix, p.then = prefix, fn
}

func (p *pauses) Put(ctx context.Context, name string, body []byte) error {
	p.mu.Lock()
	var then func()
	if p.then != nil && strings.HasPrefix(name, p.prefix) {
		then, p.then = p.then, nil
	}
	p.mu.Unlock()
	if then != nil {
		then()
	}
	return p.Driver.Put(ctx, name, body)
}

// pausedTree is a tree over a bucket that can pause.
func pausedTree(t *testing.T) (*tree, *pauses) {
	p := &pauses{Driver: memblob.New()}
	x := &tree{
		Region: simtest.NewRegion(t, simtest.Options{Driver: p}), t: t, ids: map[string]snapferry.VersionID{}, disk: map[string]*simtest.Disk{}, live: map[string]bool{},
	}
	x.vol = x.Volume(x.Account("a"), "disk")
	return x, p
}

func recordsOf(id snapferry.VersionID) string {
	return strings.TrimSuffix(record.Name(id, 0), strings.Repeat("0", 20))
}

// newest decodes the newest record of a version in the bucket; nil when there is
// none.
func (x *tree) newest(id snapferry.VersionID) *record.Record {
	x.t.Helper()
	last := ""
	err := x.Bucket.List(x.t.Context(), recordsOf(id), "", func(i blob.Info) error { last = i.Name; return nil })
	if err != nil {
		x.t.Fatal(err)
	}
	if last == "" {
		return nil
	}
	p, err := x.Bucket.Get(x.t.Context(), last, record.MaxSize)
	if err != nil {
		x.t.Fatal(err)
	}
	r, err := record.Decode(p, x.PublicKey(), nil)
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}

func (x *tree) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

// TestNeighboursChangeInASplice splices the parent of a ghost while the ghost is
// about to be spliced: what only the two had must not be forgotten by both.
func TestNeighboursChangeInASplice(t *testing.T) {
	for _, test := range []struct{ name, first, second string }{
		{"the parent is faster", "b", "a"},
		{"the child is faster", "a", "b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, p := pausedTree(t)
			chainOfThree(x)
			x.must(x.drop("a"))
			x.must(x.drop("b"))
			other := x.Another()
			p.before(recordsOf(x.ids[test.first]), func() { x.must(other.Visit(context.Background(), x.ids[test.second], nil, nil)) })
			x.must(x.Vault.Visit(context.Background(), x.ids[test.first], nil, nil))
			x.must(x.Settle(context.Background()))
			x.WantContent(t, x.ids["c"], x.disk["c"])
			x.Check(t, simtest.NoGarbage)
			x.must(x.dropAndSettle("c"))
			x.WantNothing(t)
		})
	}
}

// TestForwardComesFirst interrupts a splice after its transaction, before the
// child's record is written again: the record of the ghost leads the child's
// to its new parent.
func TestForwardComesFirst(t *testing.T) {
	x := newTree(t, simtest.NewFactory(t))
	chainOfThree(x)
	x.must(x.drop("b"))
	x.Faulty.Fail(blobtest.Put, recordsOf(x.ids["c"])+"*", 1, blobtest.Before)
	if err := x.Settle(context.Background()); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Fatalf("got %v, want Unavailable", err)
	}
	x.View(func(tx *meta.Tx) error {
		c, err := tx.Version(x.ids["c"])
		if c.Parent != x.ids["a"] {
			t.Errorf("the child's parent: got %s, want %s", c.Parent, x.ids["a"])
		}
		return err
	})
	if r := x.newest(x.ids["c"]); r.Parent != x.ids["b"] {
		t.Errorf("the child's record was written: %+v", r)
	}
	r := x.newest(x.ids["b"])
	if r == nil || r.State != record.Forwarded || r.Forward != x.ids["a"] {
		t.Fatalf("the ghost's record does not lead to its parent: %+v", r)
	}
}

// TestForwardStaysWhileItIsNamed visits a ghost that is gone while the record of
// its child still names it.
func TestForwardStaysWhileItIsNamed(t *testing.T) {
	x := newTree(t, simtest.NewFactory(t))
	chainOfThree(x)
	x.must(x.drop("b"))
	x.Faulty.Fail(blobtest.Put, recordsOf(x.ids["c"])+"*", 1, blobtest.Before)
	if err := x.Settle(context.Background()); err == nil {
		t.Fatal("the child's record was written")
	}
	x.must(x.Vault.Visit(context.Background(), x.ids["b"], nil, nil))
	if x.newest(x.ids["b"]) == nil {
		t.Fatal("nothing leads from the child to its parent any more")
	}
	x.must(x.Settle(context.Background()))
	if r := x.newest(x.ids["b"]); r != nil {
		t.Errorf("the record of the ghost stays: %+v", r)
	}
	if r := x.newest(x.ids["c"]); r.Parent != x.ids["a"] {
		t.Errorf("the child's record: got parent %s, want %s", r.Parent, x.ids["a"])
	}
}

// TestAttachToWhatGoes attaches below versions that are being deleted: one that
// stays for its children, and one that is about to go.
func TestAttachToWhatGoes(t *testing.T) {
	x := fork(newTree(t, simtest.NewFactory(t)))
	x.mustDrop("b")
	x.must(x.drop("c"))
	for _, name := range []string{"b", "c"} {
		if _, err := x.Attach(x.vol, x.ids[name], historySize); !snapferry.IsKind(err, snapferry.Conflict) {
			t.Errorf("attach below %s: got %v, want Conflict", name, err)
		}
	}
	x.must(x.Settle(context.Background()))
	x.Check(t, simtest.NoGarbage)
}

// breakRule makes the chain one whose tree cannot be trusted: b has no parent any
// more, with all it has from it, and nobody has proven anything.
func (x *tree) breakRule(path string) {
	x.t.Helper()
	x.Update(func(tx *meta.Tx) error {
		b, err := tx.Version(x.ids["b"])
		if err != nil {
			return err
		}
		b.Parent = snapferry.VersionID{}
		return tx.UpdateVersion(b, b.Edge)
	})
	db, err := sql.Open("sqlite", path)
	x.must(err)
	defer db.Close()
	_, err = db.Exec("UPDATE chains SET proven = 0")
	x.must(err)
}

// TestUnprovenChain deletes in a chain whose tree breaks the rule: by difference
// that would free what others have.
func TestUnprovenChain(t *testing.T) {
	for _, order := range [][]string{{"a", "b", "c"}, {"b", "a", "c"}, {"c", "b", "a"}} {
		t.Run(strings.Join(order, " "), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "meta.db")
			x := newTree(t, simtest.NewFactory(t))
			x.Stop()
			x.Region = simtest.NewFactory(t).NewRegion(t, simtest.Options{DB: path})
			x.vol = x.Volume(x.Account("a"), "disk")
			chainOfThree(x)
			x.breakRule(path)
			for _, name := range order {
				x.mustDrop(name)
				x.wantLive(nil)
			}
			x.WantNothing(t)
		})
	}
}

// TestUnprovenChainIsProven deletes in a chain that is not proven and keeps the
// rule: the first deletion walks all of it and proves it.
func TestUnprovenChainIsProven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	x := newTree(t, simtest.NewFactory(t))
	x.Stop()
	x.Region = simtest.NewFactory(t).NewRegion(t, simtest.Options{DB: path})
	x.vol = x.Volume(x.Account("a"), "disk")
	fork(x)
	db, err := sql.Open("sqlite", path)
	x.must(err)
	defer db.Close()
	_, err = db.Exec("UPDATE chains SET proven = 0")
	x.must(err)
	x.mustDrop("b")
	x.View(func(tx *meta.Tx) error {
		c, err := tx.Chain(x.vol.Chain)
		if !c.Proven {
			t.Error("the chain is not proven")
		}
		return err
	})
	x.wantLive(nil)
	x.Check(t, simtest.NoGarbage)
	x.mustDrop("c", "a", "d")
	x.WantNothing(t)
}

// TestZombie lets a writer of a version record stop before it writes, until the
// version is gone: what it writes then is garbage, and known to be.
func TestZombie(t *testing.T) {
	t.Run("seal", func(t *testing.T) {
		x, p := pausedTree(t)
		x.grow("a", "", map[uint64]int{0: 1, 300: 2})
		id, err := x.Attach(x.vol, x.ids["a"], historySize)
		x.must(err)
		p.before(recordsOf(id), func() { x.must(x.Another().Abort(context.Background(), id, nil)) })
		if _, err := x.FillVersion(id, x.disk["a"].Clone(historySize).Fill(0, 3)); err == nil {
			t.Fatal("sealed a version that was aborted")
		}
		x.wantZombie(id)
	})
	t.Run("hold", func(t *testing.T) {
		x, p := pausedTree(t)
		chainOfThree(x)
		id, other := x.ids["b"], x.Another()
		p.before(recordsOf(id), func() {
			x.must(other.Release(context.Background(), simtest.Hold(id), nil))
			x.must(x.Settle(context.Background()))
		})
		h := simtest.Hold(id)
		h.Owner = "pin-late"
		if err := x.Vault.Hold(context.Background(), h, nil); err == nil {
			t.Fatal("held a version that is gone")
		}
		x.wantZombie(id)
	})
	t.Run("visit", func(t *testing.T) {
		x, p := pausedTree(t)
		chainOfThree(x)
		id, other := x.ids["b"], x.Another()
		x.must(x.drop("b"))
		p.before(recordsOf(id), func() { x.must(other.Visit(context.Background(), id, nil, nil)) })
		x.must(x.Vault.Visit(context.Background(), id, nil, nil))
		x.wantZombie(id)
	})
}

// wantZombie wants a record of a version that is gone, harmless.
func (x *tree) wantZombie(id snapferry.VersionID) {
	x.t.Helper()
	if x.newest(id) == nil {
		x.t.Fatal("the zombie wrote nothing: the test is not one")
	}
	x.must(x.Settle(context.Background()))
	x.Check(x.t, simtest.MayGarbage) // with fsck, which wants no unknown record
	x.View(func(tx *meta.Tx) error {
		g, err := tx.Grave(id)
		if !g.Kept || !g.Loose {
			x.t.Errorf("the grave: got %+v, want it kept", g)
		}
		return err
	})
}
