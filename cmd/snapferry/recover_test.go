package main

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
)

// recovering is a region whose recovery is killed.
type recovering struct {
	*killed
	ctx  context.Context
	rnd  *rand.Rand
	exe  string
	meta string // file
	disk *os.File
	want map[snapferry.SnapshotID]string // digests of what is there
}

const recoverSize = 8 << 20

// grow imports the disk after changes at random places.
func (r *recovering) grow() (id snapferry.SnapshotID) {
	r.t.Helper()
	p := make([]byte, 48<<10)
	for range 4 {
		for i := range p {
			p[i] = byte(r.rnd.Uint32())
		}
		if _, err := r.disk.WriteAt(p, r.rnd.Int64N(recoverSize-int64(len(p)))); err != nil {
			r.t.Fatal(err)
		}
	}
	d, err := source.OpenRead(r.disk.Name())
	if err != nil {
		r.t.Fatal(err)
	}
	defer d.Close()
	c := r.client(demoEast)
	defer c.Close()
	s, err := c.Import(r.ctx, client.ImportRequest{Volume: "disk"}, d)
	if err == nil {
		s, err = c.Wait(r.ctx, s.ID, nil)
	}
	if err != nil || s.State != snapferry.SnapshotReady {
		r.t.Fatalf("import: %v %s", err, s.Reason)
	}
	r.want[s.ID] = s.Digest.String()
	return s.ID
}

// behave lets the region serve, and compares it with what it was.
func (r *recovering) behave() {
	r.t.Helper()
	r.start(demoEast)
	c := r.client(demoEast)
	defer c.Close()
	var all []snapferry.Snapshot
	err := c.Snapshots(r.ctx, client.Filter{}, func(s snapferry.Snapshot) error {
		all = append(all, s)
		return nil
	})
	if err != nil || len(all) != len(r.want) {
		r.t.Fatalf("%d snapshots, %v, want %d", len(all), err, len(r.want))
	}
	for _, s := range all {
		if s.State != snapferry.SnapshotReady || s.Digest.String() != r.want[s.ID] {
			r.t.Errorf("snapshot %s: %s %s, want ready %s", s.ID, s.State, s.Digest, r.want[s.ID])
		}
	}
	report, err := c.Fsck(r.ctx, true, nil)
	if err != nil || damaged(report) {
		r.t.Fatalf("fsck: %v %+v", err, report.Findings)
	}
	u, err := c.RegionUsage(r.ctx)
	if err != nil || u.Stopped != "" {
		r.t.Fatalf("usage: %v, stopped: %s", err, u.Stopped)
	}
	r.run[demoEast].end()
}

// lose removes the metadata, or puts an old one in its place.
func (r *recovering) lose(old []byte) {
	r.t.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(r.meta + suffix)
	}
	if old == nil {
		return
	}
	if err := os.WriteFile(r.meta, old, 0o600); err != nil {
		r.t.Fatal(err)
	}
	kept, err := filepath.Glob(r.meta + ".before-merge-*")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, name := range kept {
		os.Remove(name)
	}
}

// rounds loses the metadata, kills recoveries of it, lets one come to its end,
// and looks at the region; until so many were killed.
func (r *recovering) rounds(old []byte, n int) {
	r.t.Helper()
	args := []string{"recover", "--config", r.dev.configFile(demoEast)}
	if old != nil {
		args = append(args, "--merge")
	}
	r.lose(old)
	begin := time.Now()
	if out, err := exec.Command(r.exe, args...).CombinedOutput(); err != nil {
		r.t.Fatalf("undisturbed: %v\n%s", err, out)
	}
	whole := time.Since(begin)
	r.behave()
	killed, rounds, late := 0, 0, 0
	for killed < n {
		r.lose(old)
		rounds++
		for range 1 + r.rnd.IntN(4) {
			if !r.once(args, whole) {
				break
			}
			if killed++; old == nil && there(r.meta) {
				late++ // killed after the metadata was in its place
				break
			}
		}
		if old != nil || !there(r.meta) {
			if out, err := exec.Command(r.exe, args...).CombinedOutput(); err != nil {
				r.t.Fatalf("round %d, the last run: %v\n%s", rounds, err, out)
			}
		}
		r.behave()
		if r.t.Failed() {
			r.t.Fatalf("round %d", rounds)
		}
	}
	r.t.Logf("%d recoveries killed in %d rounds (%d of them when all was done), one takes %v", killed, rounds, late, whole.Round(time.Millisecond))
}

// once kills a recovery at a random moment; it was faster when that is false.
func (r *recovering) once(args []string, whole time.Duration) bool {
	r.t.Helper()
	cmd := exec.Command(r.exe, args...)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	kill := time.AfterFunc(time.Duration(r.rnd.Int64N(int64(whole))), func() { cmd.Process.Kill() })
	defer kill.Stop()
	return cmd.Wait() != nil && cmd.ProcessState.ExitCode() < 0
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestRecoverySurvivesKills kills recoveries at random moments, from nothing and
// over old metadata; they are gone on with, and what comes back is all there
// was. go test -run RecoverySurvives -kills 100 is the long form.
func TestRecoverySurvivesKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	exe, err := exec.LookPath("snapferry")
	if err != nil {
		t.Fatal(err)
	}
	k := newKilled(t)
	r := &recovering{
		killed: k, ctx: t.Context(), rnd: rand.New(rand.NewPCG(seed, 1)), exe: exe, want: map[snapferry.SnapshotID]string{},
		meta: filepath.Join(k.dev.configs[demoEast].Directory, metadataFile), disk: create(t, filepath.Join(t.TempDir(), "disk.raw")),
	}
	k.run[demoWest].end()
	if err := r.disk.Truncate(recoverSize); err != nil {
		t.Fatal(err)
	}
	var ids []snapferry.SnapshotID
	for range 6 {
		ids = append(ids, r.grow())
	}
	k.run[demoEast].end()
	old, err := os.ReadFile(r.meta)
	if err != nil || len(old) == 0 || there(r.meta+"-wal") {
		t.Fatalf("the metadata of a region that has ended: %d bytes, %v", len(old), err)
	}
	// Life goes on after the old metadata.
	k.start(demoEast)
	for range 3 {
		r.grow()
	}
	c := k.client(demoEast)
	for _, id := range []snapferry.SnapshotID{ids[0], ids[3]} {
		if err := c.Delete(r.ctx, id); err != nil {
			t.Fatal(err)
		}
		delete(r.want, id)
	}
	k.run[demoEast].end()
	r.rounds(nil, *kills)
	r.rounds(old, *kills)
}
