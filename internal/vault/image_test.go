package vault_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// changes is a disk of which only some extents are said to have changed, and
// nothing else may be read.
type changes struct {
	*simtest.Disk
	t       *testing.T
	changed extent.Set
}

func (c *changes) Next(off int64) (extent.Extent, bool, error) {
	for e := range c.changed.All() {
		if e.End() > off {
			from := max(e.Off, off)
			return extent.Extent{Off: from, Len: e.End() - from}, true, nil
		}
	}
	return extent.Extent{}, false, nil
}

func (c *changes) ReadAt(p []byte, off int64) (int, error) {
	for at := off / snapferry.BlockSize * snapferry.BlockSize; at < off+int64(len(p)); at += snapferry.BlockSize {
		if e, ok, _ := c.Next(at); !ok || e.Off >= at+snapferry.BlockSize {
			c.t.Errorf("block at %d was read, and has not changed", at)
		}
	}
	return c.Disk.ReadAt(p, off)
}

// Whatever changed and however little is told of it, an update makes the version
// that an import of everything makes, and an Image reads it back.
func TestUpdateIsImport(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	for round := range 30 {
		r := simtest.NewRegion(t, simtest.Options{})
		vol := r.Volume(r.Account("a"), "disk")
		size := int64(3*blockmap.LeafSpan + 5*snapferry.BlockSize + 512)
		base := simtest.NewDisk(size)
		for range rng.IntN(300) {
			base.Fill(uint64(rng.IntN(int(blockmap.Blocks(size)))), rng.IntN(9))
		}
		parent, _, err := r.Store(vol, snapferry.VersionID{}, base)
		if err != nil {
			t.Fatal(err)
		}
		if rng.IntN(2) == 0 {
			size += int64(rng.IntN(2*blockmap.LeafSpan/512)) * 512
		}
		next := &changes{Disk: base.Clone(size), t: t}
		for range rng.IntN(40) {
			b := rng.IntN(int(blockmap.Blocks(size)))
			next.Fill(uint64(b), rng.IntN(9))
			next.changed.Add(extent.Extent{Off: int64(b)*snapferry.BlockSize + int64(rng.IntN(8))*4096, Len: 4096})
		}
		next.changed.Remove(extent.Extent{Off: size, Len: 1 << 40})
		id, err := r.Attach(vol, parent, size)
		if err != nil {
			t.Fatal(err)
		}
		w, err := r.Vault.Write(t.Context(), id, vault.WriteConfig{})
		if err != nil {
			t.Fatal(err)
		}
		var st vault.ImportStats
		if err := w.Update(t.Context(), next, &st); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id)}); err != nil {
			t.Fatal(err)
		}
		w.Close()
		r.WantContent(t, id, next.Disk)
		wantImage(t, rng, r, id, next.Disk)
		r.Check(t, simtest.NoGarbage)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

func wantImage(t *testing.T, rng *rand.Rand, r *simtest.Region, id snapferry.VersionID, d *simtest.Disk) {
	t.Helper()
	im, err := r.Vault.ImageOf(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	blocks := int(blockmap.Blocks(d.Size()))
	for range 30 {
		first := rng.IntN(blocks + 10)
		n := 1 + rng.IntN(min(40, blockmap.Fanout-first%blockmap.Fanout))
		got := bytes.Repeat([]byte{7}, n*snapferry.BlockSize+vault.BlockRoom)
		if err := im.Read(t.Context(), uint64(first), got[:n*snapferry.BlockSize]); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, n*snapferry.BlockSize)
		off := int64(first) * snapferry.BlockSize
		if in := min(d.Size()-off, int64(len(want))); in > 0 {
			if _, err := d.ReadAt(want[:in], off); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got[:len(want)], want) {
			t.Errorf("%d blocks at %d are not the disk's", n, first)
		}
	}
	zero := make([]byte, snapferry.BlockSize)
	for off := int64(0); off < d.Size()+snapferry.BlockSize; {
		n, data, err := im.Run(t.Context(), off, d.Size()+snapferry.BlockSize-off)
		if err != nil || n <= 0 {
			t.Fatalf("run at %d: got %d, %v", off, n, err)
		}
		for at := off; at < min(off+n, d.Size()); at += snapferry.BlockSize {
			p := make([]byte, min(snapferry.BlockSize, d.Size()-at))
			if _, err := d.ReadAt(p, at); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(p, zero[:len(p)]) == data {
				t.Errorf("block at %d: got data %v", at, data)
			}
		}
		off += n
	}
}
