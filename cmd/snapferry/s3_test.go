package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/blob/s3blob/s3test"
	"github.com/snapferry/snapferry/internal/source"
)

const s3Bucket = "regions"

// s3Regions is two regions in processes of their own: east in S3, west in a
// directory.
type s3Regions struct {
	killed
	store *s3test.Server
	relay *relay // between east and the store; nil when that is fast
}

// pace says what is slow and counted between east and its store.
type pace int

const (
	allFast pace = iota
	slowUploads
	slowDownloads
	watched // nothing is slow, requests can be held
)

// startS3Regions starts both, east with what change makes of its configuration.
func startS3Regions(t *testing.T, slow pace, change ...func(*serverConfig)) *s3Regions {
	t.Helper()
	r := &s3Regions{
		killed: killed{t: t, app: testApp(t), run: map[snapferry.RegionName]*process{}},
		store:  s3test.Start(t, os.Getenv("CI") != "", s3Bucket),
	}
	var err error
	if r.dev, err = prepareDev(t.TempDir(), []snapferry.RegionName{demoEast, demoWest}, "none"); err != nil {
		t.Fatal(err)
	}
	endpoint := r.store.Endpoint
	if slow != allFast {
		r.relay = newRelay(t, strings.TrimPrefix(endpoint, "http://"), slow != slowDownloads, slow == watched)
		endpoint = "http://" + r.relay.listener.Addr().String()
	}
	cfg := r.dev.configs[demoEast]
	for _, fn := range change {
		fn(&cfg)
	}
	r.dev.configs[demoEast] = cfg
	r.move(demoEast, r.place("east", endpoint))
	t.Cleanup(func() {
		for _, p := range r.run {
			p.end()
		}
	})
	r.start(demoEast)
	r.start(demoWest)
	return r
}

// place is a prefix of the store, by an endpoint.
func (r *s3Regions) place(prefix, endpoint string) bucketConfig {
	return bucketConfig{Kind: kindS3, Bucket: s3Bucket, Prefix: prefix, Endpoint: endpoint, Region: s3test.Region, PathStyle: true}
}

// move says in a region's configuration where its bucket is.
func (r *s3Regions) move(region snapferry.RegionName, c bucketConfig) {
	r.t.Helper()
	cfg := r.dev.configs[region]
	cfg.Bucket = c
	r.dev.configs[region] = cfg
	if err := writeYAML(r.dev.configFile(region), cfg); err != nil {
		r.t.Fatal(err)
	}
}

func (r *s3Regions) stop(region snapferry.RegionName) {
	r.run[region].end()
	delete(r.run, region)
}

// cli runs the program against the regions.
func (r *s3Regions) cli(args ...string) ran {
	r.t.Helper()
	return run(r.t, append([]string{"--config", r.dev.path(devClient)}, args...)...)
}

// random makes a disk that does not compress.
func random(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	p := make([]byte, size)
	rand.Read(p)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// beginImport begins an import and returns the snapshot that it makes.
func (r *s3Regions) beginImport(region snapferry.RegionName, path string) snapferry.Snapshot {
	r.t.Helper()
	f, err := source.OpenRead(path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	s, err := r.client(region).Import(r.t.Context(), client.ImportRequest{Volume: "disk"}, f)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// settled waits for a snapshot.
func (r *s3Regions) settled(region snapferry.RegionName, id snapferry.SnapshotID) snapferry.Snapshot {
	r.t.Helper()
	s, err := r.client(region).Wait(r.t.Context(), id, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *s3Regions) ready(region snapferry.RegionName, id snapferry.SnapshotID) snapferry.Snapshot {
	r.t.Helper()
	s := r.settled(region, id)
	if s.State != snapferry.SnapshotReady {
		r.t.Fatalf("snapshot %s in %s is %s: %s (%s)", id, region, s.State, s.Reason, s.Hint)
	}
	return s
}

func (r *s3Regions) copied(from, to snapferry.RegionName, id snapferry.SnapshotID) snapferry.Snapshot {
	r.t.Helper()
	s, err := r.client(to).Copy(r.t.Context(), client.CopyRequest{From: from, Source: id})
	if err != nil {
		r.t.Fatal(err)
	}
	return r.ready(to, s.ID)
}

// same exports a snapshot and compares it with a disk.
func (r *s3Regions) same(region snapferry.RegionName, id snapferry.SnapshotID, disk string) {
	r.t.Helper()
	back := filepath.Join(r.t.TempDir(), "back.raw")
	r.cli("snapshot", "export", string(id), back, "--region", string(region)).want(r.t, 0)
	if _, err := compareFiles(context.Background(), disk, back); err != nil {
		r.t.Errorf("snapshot %s in %s: %v", id, region, err)
	}
}

func (r *s3Regions) clean(regions ...snapferry.RegionName) {
	r.t.Helper()
	for _, region := range regions {
		r.cli("fsck", "--deep", "--region", string(region)).want(r.t, 0, "clean")
	}
}

// TestS3Regions runs a region on S3 beside one on a directory, copies both
// ways, moves the one to a directory and back to S3, and deletes.
func TestS3Regions(t *testing.T) {
	t.Parallel()
	r := startS3Regions(t, allFast)
	east, west := random(t, 24<<20), random(t, 8<<20)
	e := r.ready(demoEast, r.beginImport(demoEast, east).ID)
	w := r.ready(demoWest, r.beginImport(demoWest, west).ID)
	inWest := r.copied(demoEast, demoWest, e.ID)
	inEast := r.copied(demoWest, demoEast, w.ID)
	if inWest.Digest != e.Digest || inEast.Digest != w.Digest {
		t.Errorf("digests: got %s and %s, want %s and %s", inWest.Digest, inEast.Digest, e.Digest, w.Digest)
	}
	r.same(demoWest, inWest.ID, east)
	r.same(demoEast, inEast.ID, west)
	r.cli("snapshot", "delete", string(inEast.ID), "--region", "east").want(t, 0)
	r.clean(demoEast, demoWest)

	dir := bucketConfig{Kind: kindDirectory, Path: filepath.Join(t.TempDir(), "moved")}
	for _, to := range []bucketConfig{dir, r.place("back/again", r.store.Endpoint)} {
		file := r.dev.configFile(demoEast)
		address := "dir:" + to.Path
		if to.Kind == kindS3 {
			address = "s3://" + s3Bucket + "/" + to.Prefix + "?path_style=true&region=us-east-1&endpoint=" + to.Endpoint
		} else {
			run(t, "bucket", "copy", file, address).want(t, 4, "in use by process")
		}
		r.stop(demoEast)
		run(t, "bucket", "copy", file, address).want(t, 0)
		run(t, "bucket", "copy", file, address).want(t, 0, "copied    0")
		r.move(demoEast, to)
		r.start(demoEast)
		r.same(demoEast, e.ID, east)
		r.clean(demoEast)
	}
	again := r.copied(demoWest, demoEast, w.ID)
	r.same(demoEast, again.ID, west)
	for _, id := range []snapferry.SnapshotID{again.ID, e.ID} {
		r.cli("snapshot", "delete", string(id), "--region", "east").want(t, 0)
	}
	r.clean(demoEast, demoWest)
}

// TestS3Shared has two regions in one bucket: apart by their prefixes, and
// refused when they are not.
func TestS3Shared(t *testing.T) {
	t.Parallel()
	store := s3test.Start(t, os.Getenv("CI") != "", s3Bucket)
	d, err := prepareDev(t.TempDir(), []snapferry.RegionName{demoEast, demoWest}, "")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	in := func(region snapferry.RegionName, prefix string) serverConfig {
		c := d.configs[region]
		c.Bucket = bucketConfig{Kind: kindS3, Bucket: s3Bucket, Prefix: prefix, Endpoint: store.Endpoint, PathStyle: true}
		return c
	}
	for _, prefix := range []string{"", "a"} {
		s, err := openRegion(t.Context(), in(demoEast, prefix), log)
		if prefix == "a" { // its metadata belong to the first
			if !snapferry.IsKind(err, snapferry.Conflict) {
				t.Errorf("east at another prefix: got %v, want a conflict", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		// A second process of the region is kept out by the lock, whatever its
		// bucket is.
		if _, err := openRegion(t.Context(), in(demoEast, "b"), log); !snapferry.IsKind(err, snapferry.Conflict) || !strings.Contains(err.Error(), "in use by process") {
			t.Errorf("east twice: got %v, want a conflict", err)
		}
		if _, err := openRegion(t.Context(), in(demoWest, ""), log); !snapferry.IsKind(err, snapferry.Conflict) || !strings.Contains(err.Error(), "belongs to region east") {
			t.Errorf("west in the bucket of east: got %v, want a conflict", err)
		}
		w, err := openRegion(t.Context(), in(demoWest, "west"), log)
		if err != nil {
			t.Fatalf("west beside east: %v", err)
		}
		if err := w.close(); err != nil {
			t.Error(err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestS3Stops stops the store in the middle of an import, a copy each way and
// an export, as a loss of power would. What was begun goes on when the store
// is back soon.
func TestS3Stops(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	const size, part = 40 << 20, 12 << 20
	disk := random(t, size)
	t.Run("writes", func(t *testing.T) {
		t.Parallel()
		r := startS3Regions(t, slowUploads)
		due := r.relay.after(part)
		s := r.beginImport(demoEast, disk)
		<-due
		r.store.Stop()
		r.store.Start()
		e := r.ready(demoEast, s.ID)
		w := r.ready(demoWest, r.beginImport(demoWest, random(t, size)).ID)
		due = r.relay.after(part)
		c, err := r.client(demoEast).Copy(t.Context(), client.CopyRequest{From: demoWest, Source: w.ID})
		if err != nil {
			t.Fatal(err)
		}
		<-due
		r.store.Stop()
		r.store.Start()
		if got := r.ready(demoEast, c.ID); got.Digest != w.Digest {
			t.Errorf("the copy has digest %s, want %s", got.Digest, w.Digest)
		}
		r.clean(demoEast, demoWest)
		r.same(demoEast, e.ID, disk)
	})
	t.Run("reads", func(t *testing.T) {
		t.Parallel()
		r := startS3Regions(t, slowDownloads)
		e := r.ready(demoEast, r.beginImport(demoEast, disk).ID)
		due := r.relay.after(part)
		c, err := r.client(demoWest).Copy(t.Context(), client.CopyRequest{From: demoEast, Source: e.ID})
		if err != nil {
			t.Fatal(err)
		}
		<-due
		r.store.Stop()
		r.store.Start()
		if got := r.ready(demoWest, c.ID); got.Digest != e.Digest {
			t.Errorf("the copy has digest %s, want %s", got.Digest, e.Digest)
		}
		due = r.relay.after(part)
		back := filepath.Join(t.TempDir(), "back.raw")
		done := make(chan ran, 1)
		go func() { done <- r.cli("snapshot", "export", string(e.ID), back, "--region", "east") }()
		<-due
		r.store.Stop()
		r.store.Start()
		got := <-done
		got.want(t, 0)
		if _, err := compareFiles(context.Background(), disk, back); err != nil {
			t.Error(err)
		}
		r.clean(demoEast, demoWest)
	})
}

// logged waits until a region has logged a line with both texts.
func (r *s3Regions) logged(region snapferry.RegionName, a, b string) {
	r.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(2 * time.Minute)
	defer limit.Stop()
	for {
		text, err := os.ReadFile(r.dev.path(string(region), "log"))
		if err != nil {
			r.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, a) && strings.Contains(line, b) {
				return
			}
		}
		select {
		case <-tick.C:
		case <-limit.C:
			r.t.Fatalf("region %s did not log %q with %q", region, a, b)
		}
	}
}

// TestS3Gone has a store that does not come back in time: an import and an
// export fail and leave nothing behind, a copy waits for it.
func TestS3Gone(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	const size, part = 40 << 20, 12 << 20
	r := startS3Regions(t, slowUploads)
	disk := random(t, size)
	w := r.ready(demoWest, r.beginImport(demoWest, disk).ID)
	due := r.relay.after(part)
	s := r.beginImport(demoEast, random(t, size))
	<-due
	r.store.Stop()
	c, err := r.client(demoEast).Copy(t.Context(), client.CopyRequest{From: demoWest, Source: w.ID})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"kind=import", "kind=copy"} {
		r.logged(demoEast, "job will run again", kind)
	}
	r.store.Start()
	if got := r.settled(demoEast, s.ID); got.State != snapferry.SnapshotFailed || !strings.Contains(got.Reason, "reach bucket regions/east") {
		t.Errorf("the import is %s: %s, want failed with the store's address", got.State, got.Reason)
	}
	if got := r.ready(demoEast, c.ID); got.Digest != w.Digest {
		t.Errorf("the copy has digest %s, want %s", got.Digest, w.Digest)
	}
	r.clean(demoEast, demoWest)
	r.store.Stop()
	back := filepath.Join(t.TempDir(), "back.raw")
	r.cli("snapshot", "export", string(c.ID), back, "--region", "east").want(t, 6, "reach bucket regions/east")
	if _, err := os.Stat(back); err == nil {
		t.Error("a failed export left a file")
	}
	r.store.Start()
	r.same(demoEast, c.ID, disk)
	r.clean(demoEast)
}
