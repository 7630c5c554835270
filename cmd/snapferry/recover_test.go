package main

import (
	"crypto/rand"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
)

// TestRecoverySurvivesKills kills a recovery at random points; it is gone on
// with, and what comes back is all there was.
func TestRecoverySurvivesKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	k := newKilled(t)
	ctx := t.Context()
	c := k.client(demoEast)
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[snapferry.SnapshotID]string{}
	p := make([]byte, 64<<10)
	for i := range 24 {
		rand.Read(p)
		if _, err := f.WriteAt(p, int64(i)<<20); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(32 << 20); err != nil {
			t.Fatal(err)
		}
		d, err := source.OpenRead(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Import(ctx, client.ImportRequest{Volume: "disk"}, d)
		if err == nil {
			s, err = c.Wait(ctx, s.ID, nil)
		}
		if err != nil || s.State != snapferry.SnapshotReady {
			t.Fatalf("import: %v %s", err, s.Reason)
		}
		want[s.ID] = s.Digest.String()
		d.Close()
	}
	k.run[demoEast].end()
	cfg := k.dev.configs[demoEast]
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(filepath.Join(cfg.Directory, metadataFile+suffix))
	}
	exe, err := exec.LookPath("snapferry")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"recover", "--config", k.dev.configFile(demoEast)}
	begin := time.Now()
	if out, err := exec.Command(exe, append(args, "--dry-run")...).CombinedOutput(); err != nil {
		t.Fatalf("dry run: %v\n%s", err, out)
	}
	whole := time.Since(begin)
	for range 6 {
		cmd := exec.Command(exe, args...)
		cmd.Stderr, cmd.Stdout = io.Discard, io.Discard
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n, err := rand.Int(rand.Reader, big.NewInt(int64(whole)))
		if err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(n.Int64()), func() { cmd.Process.Kill() })
		err = cmd.Wait()
		kill.Stop()
		if err == nil {
			break // it was faster
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.Directory, metadataFile)); err != nil {
		if out, err := exec.Command(exe, args...).CombinedOutput(); err != nil {
			t.Fatalf("the last run: %v\n%s", err, out)
		}
	}
	left, err := filepath.Glob(filepath.Join(cfg.Directory, "*.recovering*"))
	if err != nil || len(left) > 0 {
		t.Logf("left by a run that was killed after the end: %v", left)
	}
	k.start(demoEast)
	for id, digest := range want {
		s, err := k.client(demoEast).Snapshot(ctx, id)
		if err != nil || s.State != snapferry.SnapshotReady || s.Digest.String() != digest {
			t.Errorf("snapshot %s: %v, %s %s, want ready %s", id, err, s.State, s.Digest, digest)
		}
	}
	report, err := k.client(demoEast).Fsck(ctx, true, nil)
	if err != nil || damaged(report) {
		t.Errorf("fsck: %v %+v", err, report.Findings)
	}
}
