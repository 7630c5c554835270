package main

import (
	"crypto/rand"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/blob"
)

// kinds counts the objects of east by the first part of their names.
func (r *s3Regions) kinds() map[string]int {
	r.t.Helper()
	b, err := openBucket(r.t.Context(), r.place("east", r.store.Endpoint), slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	defer b.Close()
	n := map[string]int{}
	err = b.List(r.t.Context(), "", "", func(i blob.Info) error {
		kind, _, _ := strings.Cut(i.Name, "/")
		n[kind]++
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// stopAt waits for a held request, stops the store before it comes there,
// and starts it again when meanwhile has returned.
func (r *s3Regions) stopAt(h *hold, meanwhile func()) {
	r.t.Helper()
	<-h.reached
	r.store.Stop()
	close(h.open)
	if meanwhile != nil {
		meanwhile()
	}
	r.store.Start()
}

// changed is a copy of a disk with other bytes in each of some MiBs.
func changed(t *testing.T, disk string, mib ...int64) string {
	t.Helper()
	p, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range mib {
		rand.Read(p[i<<20 : (i+1)<<20])
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// allEnded is atRest, and no removal waits.
func allEnded(l client.JobList) bool {
	return atRest(l) && !slices.ContainsFunc(l.Jobs, func(j snapferry.RegionJob) bool { return j.Kind != "sweep" })
}

// TestS3DeletionStops stops the store in the middle of a deletion: when its
// record is put, when what is hollow is put again, and when objects are
// removed. All of it goes on by itself, and in the end the bucket has what it
// should, and no more.
func TestS3DeletionStops(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	r := startS3Regions(t, watched, func(c *serverConfig) { c.ReclaimGrace = new(time.Duration) })
	at := r.client(demoEast)
	disks := []string{random(t, 16<<20)}
	disks = append(disks, changed(t, disks[0], 0, 2, 4, 6, 8, 10))
	disks = append(disks, changed(t, disks[1], 1, 3, 5))
	var ids []snapferry.SnapshotID
	for _, d := range disks {
		ids = append(ids, r.ready(demoEast, r.beginImport(demoEast, d).ID).ID)
	}
	settle(t, at, allEnded)
	full := r.kinds()

	record := r.relay.hold("PUT /regions/east/versions/", 1)
	merged := r.relay.hold("PUT /regions/east/objects/", 1)
	removed := r.relay.hold("DELETE /regions/east/objects/", 1)
	deleted := make(chan error, 1)
	go func() { deleted <- at.Delete(t.Context(), ids[0]) }()
	r.stopAt(record, nil)
	if err := <-deleted; err != nil {
		t.Errorf("delete while the store stops: %v", err)
	}
	r.stopAt(merged, nil)
	// This time it is away for longer than requests are tried again.
	r.stopAt(removed, func() { r.logged(demoEast, "job will run again", "kind=reclaim") })
	settle(t, at, allEnded)
	for i := 1; i < len(ids); i++ {
		r.same(demoEast, ids[i], disks[i])
	}
	r.clean(demoEast)
	if u, err := at.RegionUsage(t.Context()); err != nil || u.Total.Dead*4 > u.Total.Live+u.Total.Dead {
		t.Errorf("after a deletion: got %+v, %v, want less than a quarter dead", u.Total, err)
	}
	t.Logf("objects: %v with three snapshots, %v with two", full, r.kinds())

	removed = r.relay.hold("DELETE /regions/east/objects/", 2)
	for _, id := range ids[1:] {
		if err := at.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	r.stopAt(removed, nil)
	settle(t, at, allEnded)
	r.clean(demoEast)
	got := r.kinds()
	t.Logf("objects: %v in the end", got)
	if kinds := slices.Sorted(maps.Keys(got)); !slices.Equal(kinds, []string{"chain", "dump", "incarnation"}) || got["chain"] != 1 || got["incarnation"] != 1 {
		t.Errorf("in the end the bucket has %v, want one mark of a start, the key of the chain, and dumps", got)
	}
}

// TestS3RecoveryStops loses the metadata of a region on S3 and stops the store
// in the middle of the recovery. One that does not come back in time ends the
// recovery with the reason; the next one goes on, also when the store stops
// for a moment again.
func TestS3RecoveryStops(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	r := startS3Regions(t, watched)
	disks := []string{random(t, 8<<20)}
	var ids []snapferry.SnapshotID
	for i := range int64(6) {
		ids = append(ids, r.ready(demoEast, r.beginImport(demoEast, disks[i]).ID).ID)
		disks = append(disks, changed(t, disks[i], i))
	}
	copied := r.copied(demoEast, demoWest, ids[2])
	r.stop(demoEast)
	before := r.kinds()
	directory := r.dev.configs[demoEast].Directory
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(filepath.Join(directory, metadataFile+suffix))
	}
	var got ran
	begin := func() (*hold, <-chan struct{}) {
		h, ended := r.relay.hold("GET /regions/east/", 9), make(chan struct{})
		go func() {
			defer close(ended)
			got = run(t, "recover", "--config", r.dev.configFile(demoEast))
		}()
		return h, ended
	}
	h, ended := begin()
	r.stopAt(h, func() { <-ended })
	got.want(t, 6, "reach bucket regions/east")
	if _, err := os.Stat(filepath.Join(directory, metadataFile)); err == nil {
		t.Error("an interrupted recovery left metadata")
	}
	h, ended = begin()
	r.stopAt(h, nil)
	<-ended
	got.want(t, 0)
	if now := r.kinds(); !maps.Equal(now, before) {
		t.Errorf("recovery made of %v objects %v, want nothing changed", before, now)
	}

	r.start(demoEast)
	for i, id := range ids {
		r.same(demoEast, id, disks[i])
	}
	r.same(demoWest, copied.ID, disks[2])
	r.clean(demoEast, demoWest)
	next := r.ready(demoEast, r.beginImport(demoEast, disks[6]).ID)
	if c := r.copied(demoEast, demoWest, next.ID); c.Counts.Moved > 6<<20 {
		t.Errorf("an increment after recovery moved %d bytes", c.Counts.Moved)
	}
	now := r.kinds()
	t.Logf("objects: %v before, %v after and with one more snapshot", before, now)
	if now["incarnation"] != before["incarnation"]+1 || now["versions"] <= before["versions"] || now["objects"] != before["objects"]+1 || now["chain"] != before["chain"] {
		t.Errorf("objects: got %v, want those of before %v, a mark and a snapshot", now, before)
	}
}
