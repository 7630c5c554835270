package vault_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// bringBack lets the region go on with an old copy of its metadata.
func (x *tree) bringBack(old string) {
	x.t.Helper()
	x.Offline(func(path string, _ *blob.Bucket) {
		for _, suffix := range []string{"-wal", "-shm"} {
			os.Remove(path + suffix)
		}
		x.must(os.Rename(old, path))
	})
}

// merge recovers the region over the metadata it has.
func (x *tree) merge() {
	x.t.Helper()
	x.Offline(func(path string, bucket *blob.Bucket) {
		report, err := recovery.Run(context.Background(), recovery.Config{Bucket: bucket, Path: path, Region: x.Name, ID: "region", Merge: true, RegionKey: x.Secret()})
		x.must(err)
		if !report.Complete {
			x.t.Errorf("the recovery is not complete: %+v", report)
		}
	})
}

func (x *tree) wantStopped(stopped bool) {
	x.t.Helper()
	x.View(func(tx *meta.Tx) error {
		if err := vault.Stopped(tx); (err != nil) != stopped {
			x.t.Errorf("reclaiming stopped: got %v, want %v", err, stopped)
		}
		return nil
	})
}

// TestBehindOpen brings metadata back in which a version is being written that
// was sealed since: neither to abort it nor to go on with it may take away what
// is real.
func TestBehindOpen(t *testing.T) {
	for name, op := range map[string]func(*tree, snapferry.VersionID) error{
		"abort": func(x *tree, id snapferry.VersionID) error { return x.Vault.Abort(context.Background(), id, nil) },
		"write": func(x *tree, id snapferry.VersionID) error {
			w, err := x.Vault.Write(context.Background(), id, vault.WriteConfig{})
			if err == nil {
				w.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTree(t, simtest.NewFactory(t))
			x.grow("a", "", map[uint64]int{0: 1, 300: 2})
			d := x.disk["a"].Clone(historySize).Fill(0, 3).Fill(301, 1)
			id, w := open(t, x.Region, x.vol, x.ids["a"], historySize)
			putLeaf(t, w, 0, map[int]int{0: 3})
			if err := w.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			old := filepath.Join(t.TempDir(), "old.db")
			x.CopyDB(old) // with a segment that is placed, one that will be, and a checkpoint
			putLeaf(t, w, 1, map[int]int{300 - 256: 2, 301 - 256: 1})
			_, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id)})
			x.must(err)
			w.Close()
			x.bringBack(old)
			if err := op(x, id); !snapferry.IsKind(err, snapferry.Conflict) {
				t.Errorf("got %v, want Conflict", err)
			}
			x.wantStopped(true)
			if err := op(x, id); !snapferry.IsKind(err, snapferry.Conflict) {
				t.Errorf("again: got %v, want Conflict", err)
			}
			x.merge()
			x.wantStopped(false)
			x.WantContent(t, id, d)
			x.wantLive(nil)
			x.Check(t, simtest.NoGarbage)
		})
	}
}

// TestBehindHolds brings metadata back that knows less of a version's holds than
// its record: what is true in the bucket is not written over.
func TestBehindHolds(t *testing.T) {
	x := newTree(t, simtest.NewFactory(t))
	chainOfThree(x)
	old := filepath.Join(t.TempDir(), "old.db")
	x.CopyDB(old)
	more := simtest.Hold(x.ids["b"])
	more.Owner = "pin-more"
	x.must(x.Vault.Hold(t.Context(), more, nil))
	x.bringBack(old)
	if err := x.drop("b"); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("release: got %v, want Conflict", err)
	}
	x.wantStopped(true)
	if err := x.drop("c"); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("release of another, when it is known: got %v, want Conflict", err)
	}
	x.merge()
	x.View(func(tx *meta.Tx) error {
		holds, err := tx.Holds(x.ids["b"])
		if len(holds) != 2 {
			t.Errorf("got %d holds, want 2", len(holds))
		}
		return err
	})
	x.must(x.Vault.Release(t.Context(), more, nil))
	x.mustDrop("b")
	x.wantLive(nil)
	x.Check(t, simtest.NoGarbage)
}
