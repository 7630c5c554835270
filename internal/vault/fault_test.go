package vault_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// stored is a region with one version, reopened so that nothing is cached.
func stored(t *testing.T, o simtest.Options) (*simtest.Region, snapferry.VersionID, *simtest.Disk) {
	t.Helper()
	r := simtest.NewRegion(t, o)
	vol := r.Volume(r.Account("a"), "disk")
	d := simtest.NewDisk(5<<30+512).Fill(0, 1).Fill(1, 2).Fill(300, 3).Fill(70000, 4).Fill(81920, 5)
	id, _, err := r.Store(vol, snapferry.VersionID{}, d)
	if err != nil {
		t.Fatal(err)
	}
	r.Restart()
	return r, id, d
}

func segments(r *simtest.Region) (all []meta.Segment) {
	r.View(func(tx *meta.Tx) error {
		return tx.AllSegments(func(s meta.Segment) error { all = append(all, s); return nil })
	})
	return all
}

// TestFlippedByte inverts bytes of every segment: a read fails as Corrupt or
// gives the right bytes, and is right again when the damage is healed.
func TestFlippedByte(t *testing.T) {
	r, id, d := stored(t, simtest.Options{Codec: snapferry.Zstd})
	kinds := map[snapferry.FrameKind]int{}
	for _, s := range segments(r) {
		for off := int64(0); off < s.Length; off += 1 + s.Length/41 {
			r.Faulty.FlipByte(s.Object, s.Offset+off)
			r.Forget()
			got, err := r.Read(id)
			switch {
			case err == nil && got.Digest() != d.Digest():
				t.Fatalf("byte %d of a segment of %s is inverted: wrong bytes without an error", off, s.Kind)
			case err != nil && !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported):
				t.Errorf("byte %d of a segment of %s is inverted: got %v, want Corrupt", off, s.Kind, err)
			case err != nil:
				kinds[s.Kind]++
			}
			r.Faulty.Heal(s.Object)
		}
		r.WantContent(t, id, d)
	}
	if kinds[snapferry.BlockFrame] == 0 || kinds[snapferry.NodeFrame] == 0 {
		t.Errorf("damage was seen in %v, want it in blocks and nodes", kinds)
	}
}

func TestTruncatedAndMissing(t *testing.T) {
	r, id, d := stored(t, simtest.Options{})
	name := segments(r)[0].Object
	for _, size := range []int64{0, 10, 5000, 100_000} {
		r.Faulty.Truncate(name, size)
		r.Restart()
		if _, err := r.Read(id); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("object of %d bytes: got %v, want Corrupt", size, err)
		}
		r.Faulty.Heal(name)
	}
	r.WantContent(t, id, d)
	if err := r.Bucket.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	r.Restart()
	if _, err := r.Read(id); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("missing object: got %v, want Corrupt", err)
	}
}

// TestReadFails gives every request of a read a fault, once.
func TestReadFails(t *testing.T) {
	r, id, d := stored(t, simtest.Options{})
	for n := 1; ; n++ {
		r.Restart()
		before := r.Faulty.Count(blobtest.ReadAt).Requests
		r.Faulty.Fail(blobtest.ReadAt, "", n, blobtest.Mode(n%2))
		got, err := r.Read(id)
		if err == nil && got.Digest() != d.Digest() {
			t.Fatal("wrong bytes without an error")
		}
		if err != nil && !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("request %d failed: got %v, want Unavailable", n, err)
		}
		if err == nil && r.Faulty.Count(blobtest.ReadAt).Requests-before < int64(n) {
			break
		}
		r.Faulty.Restore()
	}
}

// TestStaleLocator moves an object behind the back of a vault that knows where
// it was.
func TestStaleLocator(t *testing.T) {
	d := memblob.New()
	path := filepath.Join(t.TempDir(), "meta.db")
	r, id, disk := stored(t, simtest.Options{Driver: d, DB: path})
	r.WantContent(t, id, disk) // places are cached now
	before := r.Faulty.Count(blobtest.ReadAt).Requests
	r.WantContent(t, id, disk)
	t.Logf("a warm read asks %d times", r.Faulty.Count(blobtest.ReadAt).Requests-before)

	old := segments(r)[0].Object
	moved := old[:len(old)-4] + "beef"
	ctx := context.Background()
	size, err := r.Bucket.Size(ctx, old)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, size)
	if err := r.Bucket.ReadAt(ctx, old, body, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Bucket.Put(ctx, moved, body); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range []string{"UPDATE segments SET object = ? WHERE object = ?", "UPDATE objects SET name = ? WHERE name = ?"} {
		if _, err := db.Exec(q, moved, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Bucket.Delete(ctx, old); err != nil {
		t.Fatal(err)
	}
	r.WantContent(t, id, disk)
	r.Check(t, simtest.NoGarbage)
}

// liar gives leaves whose first digest is wrong.
type liar struct{ blockmap.NodeReader }

func (l liar) ReadNode(ctx context.Context, at snapferry.Position, d digest.Digest, ref snapferry.Ref) (*blockmap.Node, error) {
	n, err := l.NodeReader.ReadNode(ctx, at, d, ref)
	if err == nil && n.Level == 0 {
		n = n.Clone()
		n.Digests[0][7] ^= 1
	}
	return n, err
}

// TestExportChecksDigests exports a map that does not match its frames, whose
// checksums are all right.
func TestExportChecksDigests(t *testing.T) {
	r, id, d := stored(t, simtest.Options{})
	m, err := r.Vault.MapOf(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	m.Nodes = liar{m.Nodes}
	if err := r.Vault.Export(t.Context(), m, simtest.NewDisk(d.Size()), nil); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
}
