package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/source"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
)

var kills = flag.Int("kills", 3, "how often TestUpkeepSurvivesKills kills a region in the middle of each kind of work, and TestRecoverySurvivesKills a recovery")

const (
	deleteSize = 16 << 20
	hotSize    = 1 << 20 // at the beginning of the disk, new in each snapshot
)

// deleting is a region that is killed while it does what deletion leaves to do.
type deleting struct {
	*killed
	ctx   context.Context
	at    *client.Client
	disk  *os.File
	ids   []snapferry.SnapshotID // that are there, oldest first
	paths map[snapferry.SnapshotID]string
	rnd   *rand.Rand
	kind  string // of the job that is killed

	window time.Duration // within which kills come after the beginning
	inside int           // kills in the middle of such a job
	rounds int
}

func newDeleting(t *testing.T, kind string) *deleting {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	k := prepareKilled(t, "s2", demoEast)
	c := k.dev.configs[demoEast]
	c.ReclaimGrace = new(time.Duration) // none
	k.dev.configs[demoEast] = c
	if err := writeYAML(k.dev.configFile(demoEast), c); err != nil {
		t.Fatal(err)
	}
	k.start(demoEast)
	d := &deleting{
		killed: k, ctx: t.Context(), at: k.client(demoEast), paths: map[snapferry.SnapshotID]string{}, rnd: rand.New(rand.NewPCG(seed, 1)),
		kind: kind, window: 4 * time.Millisecond,
	}
	d.disk = create(t, filepath.Join(t.TempDir(), "disk.raw"))
	if err := d.disk.Truncate(deleteSize); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		d.grow()
	}
	return d
}

// random returns n random bytes.
func (d *deleting) random(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(d.rnd.Uint32())
	}
	return p
}

// grow changes the disk, imports it, and keeps what it was.
func (d *deleting) grow() {
	d.t.Helper()
	_, err := d.disk.WriteAt(d.random(hotSize), 0)
	for range 12 {
		p := d.random(48 << 10)
		if err == nil {
			_, err = d.disk.WriteAt(p, d.rnd.Int64N(deleteSize-int64(len(p))))
		}
	}
	if err != nil {
		d.t.Fatal(err)
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
	if _, err := io.Copy(create(d.t, path), io.NewSectionReader(d.disk, 0, deleteSize)); err != nil {
		d.t.Fatal(err)
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

func (d *deleting) data(elem ...string) string {
	return filepath.Join(append([]string{d.dev.configs[demoEast].Directory}, elem...)...)
}

// watch looks at the metadata of the region from outside, and changes nothing
// there, not even when its process is gone.
func (d *deleting) watch() *sql.DB {
	d.t.Helper()
	db, err := sql.Open("sqlite", "file:"+d.data(metadataFile)+"?mode=ro&_pragma=busy_timeout(1000)")
	if err != nil {
		d.t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

// running reports whether a job of the kind runs, or did when its process ended.
func (d *deleting) running(db *sql.DB) bool {
	n := 0
	err := db.QueryRow("SELECT count(*) FROM jobs WHERE state = 'running' AND kind = ?", d.kind).Scan(&n)
	return err == nil && n > 0 // there may be no table yet
}

// begins waits until a job of the kind runs; false when none does in time.
func (d *deleting) begins(db *sql.DB) bool {
	end := time.NewTimer(3 * time.Second)
	defer end.Stop()
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for !d.running(db) {
		select {
		case <-tick.C:
		case <-end.C:
			return false
		}
	}
	return true
}

// strike kills the region, at a random moment after now, and counts whether that
// was in the middle of a job of the kind.
func (d *deleting) strike(db *sql.DB) {
	d.t.Helper()
	wait := time.NewTimer(time.Duration(d.rnd.Int64N(int64(d.window))))
	<-wait.C
	d.end(demoEast)
	d.rounds++
	// So that kills come all over the time that such a job takes.
	if d.running(db) {
		d.inside++
		d.window = min(d.window*5/4, time.Second)
	} else {
		d.window = max(d.window*2/3, 500*time.Microsecond)
	}
	if err := db.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// drop deletes a random snapshot but the newest, again until that was answered,
// while the region is killed in the middle of what that leads to.
func (d *deleting) drop() {
	d.t.Helper()
	i := d.rnd.IntN(len(d.ids) - 1)
	id := d.ids[i]
	db := d.watch()
	answered := make(chan error, 1)
	go func() { answered <- d.at.Delete(d.ctx, id) }()
	d.begins(db)
	d.strike(db)
	if err := <-answered; err != nil && !snapferry.IsKind(err, snapferry.Unavailable) {
		d.t.Fatalf("delete %s: %v", id, err)
	}
	d.start(demoEast)
	err := d.at.Delete(d.ctx, id)
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		d.t.Fatalf("delete %s again: %v", id, err)
	}
	d.ids = append(d.ids[:i:i], d.ids[i+1:]...)
	os.Remove(d.paths[id])
}

// sweep strews garbage about in a region that is away and kills it in the sweep
// of its start.
func (d *deleting) sweep() {
	d.t.Helper()
	d.end(demoEast)
	d.offline(func(db *meta.DB, bucket *blob.Bucket) error {
		var all []meta.Version
		err := db.View(d.ctx, func(tx *meta.Tx) (err error) { all, err = tx.AllVersions(); return err })
		if err != nil {
			return err
		}
		newest := all[slices.IndexFunc(all, func(v meta.Version) bool { return v.State == snapferry.VersionSealed })]
		for i := range 6 {
			if err := simtest.Litter(d.ctx, db, bucket, newest.ID, fmt.Sprintf("%06d%d", d.rounds, i)); err != nil {
				return err
			}
		}
		return nil
	})
	p, err := d.app.startProcess(demoEast, d.dev.configFile(demoEast), d.dev.path(string(demoEast), "log"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.run[demoEast] = p
	db := d.watch()
	d.begins(db)
	d.strike(db)
	d.start(demoEast)
}

// offline opens what the region has while no process runs it.
func (d *deleting) offline(fn func(*meta.DB, *blob.Bucket) error) {
	d.t.Helper()
	c := d.dev.configs[demoEast]
	bucket, err := openBucket(d.ctx, c.Bucket.withDefault(c.Directory), nil)
	if err != nil {
		d.t.Fatal(err)
	}
	defer bucket.Close()
	db := openMeta(d.t, d.data(metadataFile), meta.Hooks{})
	if err := errors.Join(fn(db, bucket), db.Close()); err != nil {
		d.t.Fatal(err)
	}
}

// settle waits until nothing is left to do but a sweep to come.
func (d *deleting) settle() {
	d.t.Helper()
	settle(d.t, d.at, func(l client.JobList) bool {
		return !slices.ContainsFunc(l.Jobs, func(j snapferry.RegionJob) bool {
			return j.Kind != "sweep" || j.State != snapferry.JobQueued || j.After.Before(time.Now())
		})
	})
}

// settle waits until a region's upkeep has ended.
func settle(t *testing.T, at *client.Client, ended func(client.JobList) bool) {
	t.Helper()
	end := time.NewTimer(2 * time.Minute)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		jobs, err := at.Jobs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ended(client.JobList{Jobs: jobs}) {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("upkeep does not come to rest: %+v", jobs)
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

// empty deletes everything and wants nothing left, neither in the metadata nor in
// the bucket, and nothing stopped.
func (d *deleting) empty() {
	d.t.Helper()
	for _, id := range d.ids {
		if err := d.at.Delete(d.ctx, id); err != nil {
			d.t.Fatal(err)
		}
	}
	d.ids = nil
	d.settle()
	d.kill(demoEast) // its start sweeps
	d.settle()
	u, err := d.at.RegionUsage(d.ctx)
	if err != nil || u.Total.Versions != 0 || u.Total.Live != 0 || u.Stopped != "" {
		d.t.Errorf("in the end: got %+v, %v, want nothing left", u, err)
	}
	d.verify()
	d.end(demoEast)
	d.offline(func(_ *meta.DB, bucket *blob.Bucket) (err error) {
		for _, prefix := range []string{vault.ObjectPrefix, record.Prefix(), "check/"} {
			err = errors.Join(err, bucket.List(d.ctx, prefix, "", func(i blob.Info) error {
				d.t.Errorf("%s is left in the bucket", i.Name)
				return nil
			}))
		}
		return err
	})
}

// TestUpkeepSurvivesKills kills a region in the middle of each kind of work that
// deletion leads to, as a loss of power would: what is there stays right, what
// was deleted is freed in the end. "make kills" is the long form.
func TestUpkeepSurvivesKills(t *testing.T) {
	for _, test := range []struct{ name, kind string }{
		{"deletion", "free"},
		{"compaction", "compact"},
		{"removal", "reclaim"},
		{"sweep", "sweep"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newDeleting(t, test.kind)
			for d.inside < *kills && d.rounds < 20+4**kills {
				if test.kind == "sweep" {
					d.sweep()
					if d.rounds%5 == 0 {
						d.grow()
					}
				} else {
					d.grow()
					d.drop()
				}
				if d.rnd.IntN(5) == 0 {
					d.verify() // while upkeep is at it
				}
			}
			t.Logf("%d kills, %d in the middle of a job of kind %s", d.rounds, d.inside, d.kind)
			if d.inside < *kills {
				t.Errorf("only %d kills came in the middle, want %d", d.inside, *kills)
			}
			d.settle()
			d.verify()
			d.empty()
		})
	}
}
