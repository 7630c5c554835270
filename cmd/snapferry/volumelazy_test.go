package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/nbd"
)

const (
	lazySize = 32 << 20
	lazyRead = 1 << 20
)

// lazy is a volume over a snapshot that lies in the bucket alone.
type lazy struct {
	t    *testing.T
	uri  string
	disk *nbd.Client
	want []byte // what the snapshot has
}

func newLazy(t *testing.T, k *killed, c *client.Client, path string, id snapferry.SnapshotID) *lazy {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.CreateVolumes(t.Context(), client.VolumeRequest{Snapshot: id})
	if err != nil {
		t.Fatal(err)
	}
	s := &served{killed: k, c: c}
	l := &lazy{t: t, uri: s.export(all[0].ID, client.VolumeExportRequest{}), want: want}
	l.dial()
	return l
}

func (l *lazy) dial() {
	l.t.Helper()
	disk, err := nbd.Dial(l.t.Context(), l.uri, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { disk.Close() })
	l.disk = disk
}

// read reads the number-th MiB; what comes without an error must be right.
func (l *lazy) read(number int) error {
	p, at := make([]byte, lazyRead), number*lazyRead
	_, err := l.disk.ReadAt(p, int64(at))
	if err == nil && !bytes.Equal(p, l.want[at:at+lazyRead]) {
		l.t.Errorf("MiB %d: wrong data", number)
	}
	return err
}

// reads wants a read to succeed.
func (l *lazy) reads(number int) {
	l.t.Helper()
	if err := l.read(number); err != nil {
		l.t.Errorf("MiB %d: got %v, want what is there", number, err)
	}
}

// TestVolumeOverStoreThatStops reads what lies in a store that stalls, goes away
// and comes back: reads wait, end with an error at last, and are never wrong.
func TestVolumeOverStoreThatStops(t *testing.T) {
	if testing.Short() {
		t.Skip("waits until a read is given up")
	}
	t.Parallel()
	r := startS3Regions(t, watched)
	path := random(t, lazySize)
	s := r.ready(demoEast, r.beginImport(demoEast, path).ID)
	l := newLazy(t, &r.killed, r.client(demoEast), path, s.ID)
	l.reads(0)

	// A request that stalls holds its own read, and no other client's writes.
	stalled := r.relay.hold("GET", 1)
	reading := make(chan error, 1)
	go func() { reading <- l.read(4) }()
	<-stalled.reached
	if _, err := l.disk.WriteAt(l.want[:lazyRead], 0); err != nil {
		t.Errorf("a write beside a read that waits: %v", err)
	}
	if _, err := r.client(demoEast).SnapshotVolumes(t.Context(), client.SnapshotRequest{Volumes: []snapferry.VolumeID{l.volume(r)}}); err != nil {
		t.Errorf("a snapshot beside a read that waits: %v", err)
	}
	select {
	case err := <-reading:
		t.Errorf("the read did not wait: %v", err)
	default:
	}
	close(stalled.open)
	if err := <-reading; err != nil {
		t.Errorf("a read through a stall: %v", err)
	}

	// The store goes away under a read and comes back while it is tried again.
	cut := r.relay.hold("GET", 1)
	go func() { reading <- l.read(8) }()
	<-cut.reached
	r.store.Stop()
	close(cut.open)
	r.store.Start()
	if err := <-reading; err != nil {
		t.Errorf("a read while the store was restarted: %v", err)
	}

	// It stays away: the read fails, what is near goes on, and so does the rest
	// when it is back.
	r.store.Stop()
	began := time.Now()
	if err := l.read(16); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("a read without the store: got %v, want an error of input or output", err)
	}
	t.Logf("a read without the store was given up after %v", time.Since(began))
	l.reads(4)
	if _, err := l.disk.WriteAt(l.want[20*lazyRead:21*lazyRead], 20*lazyRead); err != nil {
		t.Errorf("a write of whole pages without the store: %v", err)
	}
	if err := l.disk.Sync(); err != nil {
		t.Errorf("flush without the store: %v", err)
	}
	r.store.Start()
	for number := range len(l.want) / lazyRead {
		l.reads(number)
	}
}

// volume is the only one of the region.
func (l *lazy) volume(r *s3Regions) snapferry.VolumeID {
	l.t.Helper()
	all, err := r.client(demoEast).Volumes(l.t.Context(), "")
	if err != nil || len(all) != 1 {
		l.t.Fatalf("volumes: got %d, %v", len(all), err)
	}
	return all[0].ID
}

// objects lists the objects of a bucket in a directory that may have blocks.
func objects(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Size() > 1<<20 {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil || len(paths) == 0 {
		t.Fatalf("the bucket has %d objects with blocks, %v", len(paths), err)
	}
	return paths
}

// TestVolumeOverDamagedBucket takes objects away, and changes them, below a
// volume: its reads fail, and go on when the objects are as they were.
func TestVolumeOverDamagedBucket(t *testing.T) {
	if testing.Short() {
		t.Skip("waits until reads are given up")
	}
	t.Parallel()
	k := prepareKilled(t, "none", demoEast)
	k.start(demoEast)
	path := random(t, lazySize)
	r := &s3Regions{killed: *k}
	s := r.ready(demoEast, r.beginImport(demoEast, path).ID)
	l := newLazy(t, k, k.client(demoEast), path, s.ID)
	l.reads(0)
	paths := objects(t, filepath.Join(k.dev.configs[demoEast].Directory, "bucket"))
	away := t.TempDir()
	k.run[demoEast].end() // it may have them open
	for i, p := range paths {
		if err := os.Rename(p, filepath.Join(away, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	k.start(demoEast)
	l.dial()
	for number := 4; number < 8; number++ {
		if err := l.read(number); !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("MiB %d without its object: got %v, want an error of input or output", number, err)
		}
	}
	l.reads(0)
	for i, p := range paths {
		if err := os.Rename(filepath.Join(away, strconv.Itoa(i)), p); err != nil {
			t.Fatal(err)
		}
		spoil(t, p)
	}
	bad := 0
	for number := 8; number < 16; number++ {
		if l.read(number) != nil {
			bad++
		}
	}
	if bad == 0 {
		t.Error("every read of a damaged object succeeded")
	}
	for _, p := range paths {
		spoil(t, p) // that undoes it
	}
	for number := range len(l.want) / lazyRead {
		l.reads(number)
	}
}

// spoil inverts a byte of every 256 KiB of a file, behind its first MiB.
func spoil(t *testing.T, path string) {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 1 << 20; at < len(p)-256<<10; at += 256 << 10 {
		p[at] = ^p[at]
	}
	st, err := os.Stat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = os.WriteFile(path, p, 0o600)
	}
	if err == nil {
		err = os.Chmod(path, st.Mode())
	}
	if err != nil {
		t.Fatal(err)
	}
}
