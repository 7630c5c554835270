package main

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
)

var kills = flag.Int("kills", 4, "how often TestDeletionSurvivesKills kills a region, and TestRecoverySurvivesKills a recovery")

// deleting is a region that is killed while it deletes.
type deleting struct {
	*killed
	ctx   context.Context
	at    *client.Client
	disk  *os.File
	ids   []snapferry.SnapshotID // that are there, oldest first
	paths map[snapferry.SnapshotID]string
	rnd   *rand.Rand
}

// grow changes the disk at random places, imports it, and keeps what it was.
func (d *deleting) grow() {
	d.t.Helper()
	p := make([]byte, 48<<10)
	for range 40 {
		for i := range p {
			p[i] = byte(d.rnd.Uint32())
		}
		if _, err := d.disk.WriteAt(p, d.rnd.Int64N(deleteSize-int64(len(p)))); err != nil {
			d.t.Fatal(err)
		}
	}
	f, err := source.OpenRead(d.disk.Name())
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	s, err := d.at.Import(d.ctx, client.ImportRequest{Volume: "disk"}, f)
	if err == nil {
		s, err = d.at.Wait(d.ctx, s.ID, nil)
	}
	if err != nil || s.State != snapferry.SnapshotReady {
		d.t.Fatalf("import: %v, %s (%s)", err, s.State, s.Reason)
	}
	path := filepath.Join(d.t.TempDir(), "kept.raw")
	if err := d.at.Export(d.ctx, s.ID, create(d.t, path), nil); err != nil {
		d.t.Fatal(err)
	}
	if _, err := compareFiles(d.ctx, path, d.disk.Name()); err != nil {
		d.t.Fatalf("export of %s: %v", s.ID, err)
	}
	d.ids, d.paths[s.ID] = append(d.ids, s.ID), path
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

const deleteSize = 48 << 20

// drop deletes a random snapshot, again until that was answered, while the
// region is killed at a random moment.
func (d *deleting) drop() {
	d.t.Helper()
	i := d.rnd.IntN(len(d.ids))
	id := d.ids[i]
	answered := make(chan error, 1)
	go func() { answered <- d.at.Delete(d.ctx, id) }()
	wait := time.NewTimer(time.Duration(d.rnd.Int64N(int64(30 * time.Millisecond))))
	<-wait.C
	d.kill(demoEast)
	if err := <-answered; err != nil && !snapferry.IsKind(err, snapferry.Unavailable) {
		d.t.Fatalf("delete %s: %v", id, err)
	}
	err := d.at.Delete(d.ctx, id)
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		d.t.Fatalf("delete %s again: %v", id, err)
	}
	d.ids = append(d.ids[:i:i], d.ids[i+1:]...)
	os.Remove(d.paths[id])
}

// settle waits until upkeep is at rest.
func (d *deleting) settle() {
	d.t.Helper()
	end := time.NewTimer(time.Minute)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		jobs, err := d.at.Jobs(d.ctx)
		if err != nil {
			d.t.Fatal(err)
		}
		if atRest(client.JobList{Jobs: jobs}) {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			d.t.Fatalf("upkeep does not come to rest: %+v", jobs)
		}
	}
}

// verify exports all that is there, and checks the region.
func (d *deleting) verify() {
	d.t.Helper()
	for _, id := range d.ids {
		path := filepath.Join(d.t.TempDir(), "out.raw")
		err := d.at.Export(d.ctx, id, create(d.t, path), nil)
		if err == nil {
			_, err = compareFiles(d.ctx, path, d.paths[id])
		}
		if err = errors.Join(err, os.Remove(path)); err != nil {
			d.t.Fatalf("export of %s: %v", id, err)
		}
	}
	report, err := d.at.Fsck(d.ctx, true, nil)
	if err != nil || damaged(report) {
		d.t.Fatalf("fsck: %v %+v", err, report.Findings)
	}
}

// TestDeletionSurvivesKills kills a region in the middle of deletions, as a
// loss of power would: what is there stays right, what was deleted is freed in
// the end. go test -run DeletionSurvives -kills 100 is the long form.
func TestDeletionSurvivesKills(t *testing.T) {
	t.Parallel()
	k := newKilled(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	d := &deleting{killed: k, ctx: t.Context(), at: k.client(demoEast), paths: map[snapferry.SnapshotID]string{}, rnd: rand.New(rand.NewPCG(seed, 1))}
	d.disk = create(t, filepath.Join(t.TempDir(), "disk.raw"))
	if err := d.disk.Truncate(deleteSize); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		d.grow()
	}
	for range *kills {
		d.grow()
		d.drop()
		if d.rnd.IntN(3) == 0 {
			d.verify() // while upkeep is at it
		}
	}
	d.settle()
	d.verify()
	for _, id := range d.ids {
		if err := d.at.Delete(d.ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	d.ids = nil
	d.settle()
	u, err := d.at.RegionUsage(d.ctx)
	if err != nil || u.Total.Versions != 0 || u.Total.Live != 0 || u.Stopped != "" {
		t.Errorf("in the end: got %+v, %v, want nothing left", u, err)
	}
	d.verify()
}
