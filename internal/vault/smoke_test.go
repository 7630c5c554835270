package vault

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/dirblob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/source"
)

func TestSmoke(t *testing.T) {
	img := os.Getenv("IMG")
	if img == "" {
		t.Skip()
	}
	ctx := context.Background()
	dir := "/tmp/scratch/smoke"
	os.RemoveAll(dir)
	os.MkdirAll(dir, 0o755)
	db, err := meta.Open(ctx, meta.Config{Path: dir + "/meta.db"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := dirblob.Open(ctx, dir+"/bucket", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := ed25519.GenerateKey(nil)
	v, err := New(Config{Bucket: blob.New(d), DB: db, Region: "east", Sign: key, Codec: snapferry.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	acct := snapferry.NewAccountID()
	chain := snapferry.NewChainID()
	vol := snapferry.NewVolumeID()
	err = db.Update(ctx, func(tx *meta.Tx) error {
		if err := tx.PutRegion(meta.Region{Name: "east", ID: "x", SignKey: key, LookupKey: key[:32], Created: time.Now()}); err != nil {
			return err
		}
		if err := tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: acct, Name: "a"}, Created: time.Now()}); err != nil {
			return err
		}
		if err := tx.InsertChain(meta.Chain{ID: chain, Account: acct, Algorithm: 1, Proven: true, Created: time.Now()}); err != nil {
			return err
		}
		return tx.InsertVolume(meta.Volume{ID: vol, Account: acct, Name: "disk", Chain: chain, Created: time.Now()})
	})
	if err != nil {
		t.Fatal(err)
	}
	var parent snapferry.VersionID
	for i, name := range []string{"v1.raw", "v2.raw"} {
		t0 := time.Now()
		u0 := cpu()
		disk, err := source.Open(img + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		id := snapferry.NewVersionID()
		err = db.Update(ctx, func(tx *meta.Tx) error {
			return Attach(tx, meta.Version{ID: id, Chain: chain, Volume: vol, Parent: parent, Size: disk.Size(), Sequence: int64(i)})
		})
		if err != nil {
			t.Fatal(err)
		}
		w, err := v.Write(ctx, id, WriteConfig{})
		if err != nil {
			t.Fatal(err)
		}
		var st ImportStats
		if err := w.Import(ctx, disk, &st); err != nil {
			t.Fatal(err)
		}
		t1 := time.Now()
		s, err := w.Seal(ctx, SealConfig{Hold: meta.Hold{Version: id, Kind: "volume", Owner: "x", Created: time.Now()}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s: %v (seal %v) cpu %v %v present %d changed %d stored %.1f MiB rss %d MiB\n", name, time.Since(t0), time.Since(t1), cpu()-u0, s.Digest, s.Present, s.Changed, float64(s.Stored)/(1<<20), rss())
		parent = id
	}
	t0 := time.Now()
	u0 := cpu()
	out, err := source.Create("/tmp/scratch/out.raw", 4<<30, true)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v.MapOf(ctx, parent)
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Int64
	if err := v.Export(ctx, m, out, &done); err != nil {
		t.Fatal(err)
	}
	t1 := time.Now()
	if err := out.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("export %v (finish %v) direct %v cpu %v rss %d MiB\n", time.Since(t0), time.Since(t1), out.Direct(), cpu()-u0, rss())
}

func cpu() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func rss() int64 {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return r.Maxrss >> 10
}
