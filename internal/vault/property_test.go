package vault_test

import (
	"context"
	"flag"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// TestMain makes fewer random checks where nobody asked for a number: each
// opens a database.
func TestMain(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "rapid.checks" })
	if !asked {
		if err := flag.Set("rapid.checks", "30"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// drawSize draws the size of a disk, seldom a multiple of the block size.
func drawSize(t *rapid.T, label string) int64 {
	blocks := rapid.OneOf(rapid.Int64Range(1, 40), rapid.Int64Range(250, 1024), rapid.Int64Range(1<<18, 1<<18+600)).Draw(t, label)
	return blocks*snapferry.BlockSize - rapid.SampledFrom([]int64{0, 0, 512, 60 << 10, 63<<10 + 512}).Draw(t, label+" cut")
}

// change fills some blocks of a disk, also with zeros, where it hurts.
func change(t *rapid.T, d *simtest.Disk) {
	last := int64(blockmap.Blocks(d.Size()) - 1)
	for range rapid.IntRange(0, 6).Draw(t, "changes") {
		b := rapid.OneOf(
			rapid.Int64Range(0, min(last, 5)), rapid.Int64Range(max(0, last-2), last),
			rapid.Int64Range(0, last), rapid.SampledFrom([]int64{255, 256, 511, 65535, 65536}),
		).Draw(t, "block")
		d.Fill(uint64(min(b, last)), rapid.IntRange(0, 5).Draw(t, "seed"))
	}
}

// inherited fails unless a version has the parent's ref wherever it has the
// parent's digest.
func inherited(t *rapid.T, r *simtest.Region, parent, child snapferry.VersionID) {
	ctx := context.Background()
	mp, err := r.Vault.MapOf(ctx, parent)
	if err != nil {
		t.Fatal(err)
	}
	mc, err := r.Vault.MapOf(ctx, child)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(at snapferry.Position, p, c *blockmap.Node)
	walk = func(at snapferry.Position, p, c *blockmap.Node) {
		if p == nil || c == nil {
			return
		}
		for i := range c.Presence.All() {
			dp, rp, ok := p.Child(i)
			dc, rc, _ := c.Child(i)
			if !ok {
				continue
			}
			if dp == dc {
				if rp != rc {
					t.Errorf("level %d, index %d, child %d has the parent's digest but not its ref", at.Level, at.Index, i)
				}
				continue
			}
			if rp == rc {
				t.Errorf("level %d, index %d, child %d differs from the parent and has its ref", at.Level, at.Index, i)
			}
			if at.Level == 0 {
				continue
			}
			below := snapferry.Position{Level: at.Level - 1, Index: at.Index*blockmap.Fanout + uint64(i)}
			np, err := mp.At(ctx, below)
			if err != nil {
				t.Fatal(err)
			}
			nc, err := mc.At(ctx, below)
			if err != nil {
				t.Fatal(err)
			}
			walk(below, np, nc)
		}
	}
	walk(snapferry.Position{Level: blockmap.RootLevel}, mp.Root, mc.Root)
}

// TestImport imports random disks over random parents, in chains and forks,
// and reads them back, before and after a restart.
func TestImport(t *testing.T) {
	f := simtest.NewFactory(t)
	rapid.Check(t, func(rt *rapid.T) {
		codec := rapid.SampledFrom([]snapferry.Codec{snapferry.Stored, snapferry.Zstd, snapferry.S2}).Draw(rt, "codec")
		r := f.NewRegion(t, simtest.Options{Codec: codec})
		defer r.Stop()
		vol := r.Volume(r.Account("a"), "disk")
		var ids []snapferry.VersionID
		disks := map[snapferry.VersionID]*simtest.Disk{{}: simtest.NewDisk(0)}
		for range rapid.IntRange(1, 5).Draw(rt, "versions") {
			parent := rapid.SampledFrom(append([]snapferry.VersionID{{}}, ids...)).Draw(rt, "parent")
			size := disks[parent].Size()
			if parent.IsZero() || rapid.Bool().Draw(rt, "resize") {
				size = drawSize(rt, "size")
			}
			d := disks[parent].Clone(size)
			change(rt, d)
			id, s, err := r.Store(vol, parent, d)
			if err != nil {
				rt.Fatal(err)
			}
			if want := int64(d.Differs(disks[parent])) * snapferry.BlockSize; s.Changed != want {
				rt.Errorf("changed: got %d, want %d", s.Changed, want)
			}
			if want := int64(d.Present()) * snapferry.BlockSize; s.Present != want {
				rt.Errorf("present: got %d, want %d", s.Present, want)
			}
			if !parent.IsZero() {
				inherited(rt, r, parent, id)
			}
			ids, disks[id] = append(ids, id), d
		}
		if rapid.Bool().Draw(rt, "restart") {
			r.Restart()
		}
		for _, id := range ids {
			r.WantContent(rt, id, disks[id])
		}
		r.Check(rt, simtest.NoGarbage)
	})
}

// TestImportUnchanged imports the same content again: no block is stored, and
// holes are not read.
func TestImportUnchanged(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	d := simtest.NewDisk(40 << 20)
	for i := range uint64(64) {
		d.Fill(i*7, int(i)*2+1)
	}
	first, s1, err := r.Store(vol, snapferry.VersionID{}, d)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.Read(), int64(64*snapferry.BlockSize); got != want {
		t.Errorf("read: got %d bytes, want %d", got, want)
	}
	_, s2, err := r.Store(vol, first, d)
	if err != nil {
		t.Fatal(err)
	}
	if s2.Changed != 0 || s2.Stored != 0 || s2.Digest != s1.Digest {
		t.Errorf("unchanged: got %+v, want digest %v and nothing stored", s2, s1.Digest)
	}
	r.Check(t, simtest.NoGarbage)
}

// TestAbort leaves nothing behind.
func TestAbort(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	d := simtest.NewDisk(40<<20 + 512)
	d.Fill(0, 1).Fill(300, 3).Fill(640, 5)
	parent, _, err := r.Store(vol, snapferry.VersionID{}, d)
	if err != nil {
		t.Fatal(err)
	}
	before := r.Faulty.Mutations()
	id, w := open(t, r, vol, parent, d.Size())
	putLeaf(t, w, 0, map[int]int{0: 7})
	if err := w.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if r.Faulty.Mutations() == before {
		t.Fatal("nothing was written that could be aborted")
	}
	for range 2 { // it can be repeated
		if err := r.Vault.Abort(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.View(func(tx *meta.Tx) error {
		if _, err := tx.Version(id); !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("the version: got %v, want NotFound", err)
		}
		if _, err := tx.Checkpoint(id); !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("the checkpoint: got %v, want NotFound", err)
		}
		return nil
	})
	if err := r.Vault.Abort(t.Context(), parent, nil); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("abort of a sealed version: got %v, want Conflict", err)
	}
	r.WantContent(t, parent, d)
	r.Check(t, simtest.NoGarbage)
}
