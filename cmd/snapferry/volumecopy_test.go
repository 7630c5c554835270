package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/nbd"
)

const (
	growingSize = 64 << 20
	growingPart = 256 << 10 // bytes of one read
	// growingKept is how many bytes at the end of the disk nobody reads before the
	// link is cut: they are far until then.
	growingKept = 16 << 20
	readTimeout = time.Minute // of one read, whatever the link does
)

// growing is a volume of a snapshot that is being copied.
type growing struct {
	*served
	disk  *nbd.Client
	copy  snapferry.SnapshotID
	want  []byte // what the volume has
	parts []int  // that are still to be read, in random order
}

// check reads a part, of every fourth after a write into its middle; what comes
// without an error must be right. Every part is checked by one goroutine.
func (g *growing) check(part int) error {
	at := part * growingPart
	began := time.Now()
	defer func() {
		if d := time.Since(began); d > readTimeout {
			g.t.Errorf("part %d: took %v, want at most %v", part, d, readTimeout)
		}
	}()
	if part%4 == 0 {
		p := bytes.Repeat([]byte{byte(part)}, 5000)
		if _, err := g.disk.WriteAt(p, int64(at+1000)); err != nil {
			return err
		}
		copy(g.want[at+1000:], p)
	}
	p := make([]byte, growingPart)
	_, err := g.disk.ReadAt(p, int64(at))
	if err == nil && !bytes.Equal(p, g.want[at:at+growingPart]) {
		g.t.Errorf("part %d: wrong data", part)
	}
	return err
}

// reads checks parts, three at a time, and wants them to be there.
func (g *growing) reads(parts []int) {
	g.t.Helper()
	var readers errgroup.Group
	readers.SetLimit(3)
	for _, part := range parts {
		readers.Go(func() error {
			if err := g.check(part); err != nil {
				g.t.Errorf("part %d: got %v, want what is there", part, err)
			}
			return nil
		})
	}
	_ = readers.Wait() // they return none
}

// take returns the next n parts.
func (g *growing) take(n int) (parts []int) {
	parts, g.parts = g.parts[:n], g.parts[n:]
	return parts
}

// running wants the copy to be under way.
func (g *growing) running(when string) {
	g.t.Helper()
	s, err := g.c.Snapshot(g.t.Context(), g.copy)
	if err != nil || s.State != snapferry.SnapshotCopying {
		g.t.Fatalf("the copy %s: got %s (%s), %v, want that it goes on", when, s.State, s.Reason, err)
	}
	if s.Progress != nil {
		g.t.Logf("%s: %d of %d MiB are copied, %d MiB crossed", when, s.Progress.Done>>20, s.Progress.Total>>20, g.relay.passed.Load()>>20)
	}
}

// moved copies another disk of the same size, of which nobody makes a volume, and
// returns how many bytes crossed.
func (g *growing) moved(r *s3Regions) int64 {
	g.t.Helper()
	other := r.ready(demoEast, r.beginImport(demoEast, random(g.t, growingSize)).ID)
	return r.copied(demoEast, demoWest, other.ID).Counts.Moved
}

// TestVolumeOfSlowCopy makes a volume of a snapshot of which a tenth is copied, and
// reads all of it in random order: while the copy goes on, while the link is slow,
// and while it is cut and comes back. It reads the right bytes, waits, or gets an
// error, and after that it goes on; a snapshot of the volume is ready after the
// copy; and nothing crosses twice.
func TestVolumeOfSlowCopy(t *testing.T) {
	if testing.Short() {
		t.Skip("waits until a read is given up")
	}
	t.Parallel()
	k := newKilled(t)
	k.relay.mend(0)
	r := &s3Regions{killed: *k}
	path := random(t, growingSize)
	from := r.ready(demoEast, r.beginImport(demoEast, path).ID)
	g := &growing{served: &served{killed: k, c: k.client(demoWest)}}
	alone := g.moved(r)
	before := k.relay.passed.Load()

	k.relay.mend(4 << 20)
	tenth := k.relay.after(growingSize / 10)
	c, err := g.c.Copy(t.Context(), client.CopyRequest{From: demoEast, Source: from.ID})
	if err != nil {
		t.Fatal(err)
	}
	g.copy = c.ID
	<-tenth
	if g.want, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	all, err := g.c.CreateVolumes(t.Context(), client.VolumeRequest{Snapshot: c.ID, Name: "early"})
	if err != nil {
		t.Fatal(err)
	}
	g.volume = all[0]
	if g.disk, err = nbd.Dial(t.Context(), g.export(g.volume.ID, client.VolumeExportRequest{}), nil); err != nil {
		t.Fatal(err)
	}
	defer g.disk.Close()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const open = (growingSize - growingKept) / growingPart
	g.parts = rand.New(rand.NewPCG(seed, 1)).Perm(open)

	g.running("at the beginning")
	g.reads(g.take(24))
	g.running("after the first reads")
	k.relay.mend(1 << 20)
	g.reads(g.take(12))
	g.running("over a slow link")
	taken, err := g.c.SnapshotVolumes(t.Context(), client.SnapshotRequest{Volumes: []snapferry.VolumeID{g.volume.ID}})
	if err != nil {
		t.Fatal(err)
	}
	snap, snapWant := taken[0].ID, bytes.Clone(g.want)

	// A cut that is short: the read waits.
	last := growingSize/growingPart - 1
	reading := make(chan error, 1)
	k.relay.cut()
	go func() { reading <- g.check(last) }()
	short := time.NewTimer(3 * time.Second)
	defer short.Stop()
	select {
	case err := <-reading:
		t.Errorf("a read without the link did not wait: %v", err)
		reading <- nil
	case <-short.C:
	}
	k.relay.mend(1 << 20)
	if err := <-reading; err != nil {
		t.Errorf("a read while the link was cut for a short time: %v", err)
	}
	g.reads([]int{last - 8})

	// A cut that lasts: the read fails, and what is near goes on.
	k.relay.cut()
	began := time.Now()
	if err := g.check(last - 16); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("a read without the link: got %v, want an error of input or output", err)
	}
	t.Logf("a read without the link was given up after %v", time.Since(began))
	g.reads([]int{last})
	g.running("without the link")
	if s, err := g.c.Snapshot(t.Context(), snap); err != nil || s.State != snapferry.SnapshotCreating {
		t.Errorf("the snapshot of the volume: got %s (%s), %v, want that it waits for the copy", s.State, s.Reason, err)
	}
	k.relay.mend(relayRate)
	g.reads([]int{last - 16})
	for _, i := range rand.New(rand.NewPCG(seed, 2)).Perm(growingKept / growingPart) {
		g.parts = append(g.parts, open+i)
	}
	g.reads(g.parts)

	done := g.ready(c.ID)
	if done.Digest != from.Digest {
		t.Errorf("the copy: got digest %s, want %s", done.Digest, from.Digest)
	}
	passed := k.relay.passed.Load() - before
	t.Logf("%d KiB moved, %d KiB without a volume; %d KiB crossed; %d KiB repeated", done.Counts.Moved>>10, alone>>10, passed>>10, done.Counts.Repeated>>10)
	// What was under way when the link was cut crosses again.
	if most := alone*11/10 + done.Counts.Repeated; done.Counts.Moved > most || passed > most {
		t.Errorf("%d bytes moved, %d crossed, want at most %d", done.Counts.Moved, passed, most)
	}
	g.ready(snap)
	got, err := os.ReadFile(g.exported(snap, filepath.Join(t.TempDir(), "snap.raw")).Name())
	if err != nil || !bytes.Equal(got, snapWant) {
		t.Errorf("the snapshot of the volume has other bytes than the volume had, %v", err)
	}
	for _, region := range []snapferry.RegionName{demoEast, demoWest} {
		if report, err := k.client(region).Fsck(t.Context(), true, nil); err != nil || damaged(report) {
			t.Errorf("fsck of %s: got %v %+v", region, err, report)
		}
	}
}
