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
	"github.com/snapferry/snapferry/internal/toxitest"
	"github.com/snapferry/snapferry/nbd"
)

const (
	growingPart = 256 << 10   // bytes of one read
	readTimeout = time.Minute // of one read, whatever the link does
)

// A link leads from west to east, and can be broken.
type link interface {
	cut()            // ends all connections and lets nobody through
	mend(rate int64) // lets them through again at so many bytes per second
}

// toxic is a link of toxiproxy, whose rates are of each connection.
type toxic struct{ *toxitest.Proxy }

func (p toxic) cut()            { p.Cut() }
func (p toxic) mend(rate int64) { p.Only(toxitest.Rate(rate)) }

// growing is a volume of a snapshot that is being copied.
type growing struct {
	*served
	link   link
	disk   *nbd.Client
	copy   snapferry.SnapshotID
	before int64  // bytes that had crossed before the copy
	want   []byte // what the volume has
	parts  []int  // that are still to be read, in random order
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

// reads checks parts, six at a time, and wants them to be there.
func (g *growing) reads(parts []int) {
	g.t.Helper()
	var readers errgroup.Group
	readers.SetLimit(6)
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

// newGrowing begins a copy of a disk over a link of a rate, and makes a volume of it
// when a tenth has crossed. It returns what is copied, and how many bytes the copy
// of another disk of this size moved, of which nobody made a volume. The link is one
// of the server, or the relay, which counts in any case.
func newGrowing(t *testing.T, size, rate int64, server *toxitest.Server) (g *growing, from snapferry.Snapshot, alone int64) {
	t.Helper()
	var k *killed
	var between link
	if server == nil {
		k = newKilled(t)
		between = k.relay
	} else {
		k = newKilledBehind(t, func(relay string) string {
			p := server.Proxy(relay)
			between = toxic{p}
			return p.Address
		})
	}
	k.relay.mend(0)
	r := &s3Regions{killed: *k}
	other := r.ready(demoEast, r.beginImport(demoEast, random(t, int(size))).ID)
	alone = r.copied(demoEast, demoWest, other.ID).Counts.Moved
	path := random(t, int(size))
	from = r.ready(demoEast, r.beginImport(demoEast, path).ID)

	g = &growing{served: &served{killed: k, c: k.client(demoWest)}, link: between}
	g.before = k.relay.passed.Load()
	g.link.mend(rate)
	tenth := k.relay.after(size / 10)
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
	t.Cleanup(func() { g.disk.Close() })
	return g, from, alone
}

// ended waits for the copy, which must be what it is of and have moved at most so
// many bytes; nearly as few crossed the relay, unless they go on to a proxy, which
// loses what it holds when it is cut.
func (g *growing) ended(from snapferry.Snapshot, most int64) {
	g.t.Helper()
	done := g.ready(g.copy)
	if done.Digest != from.Digest {
		g.t.Errorf("the copy: got digest %s, want %s", done.Digest, from.Digest)
	}
	passed := g.relay.passed.Load() - g.before
	g.t.Logf("%d KiB moved; %d KiB crossed; %d KiB repeated", done.Counts.Moved>>10, passed>>10, done.Counts.Repeated>>10)
	if _, holds := g.link.(toxic); done.Counts.Moved > most || !holds && passed > most+most/20 {
		g.t.Errorf("%d bytes moved, %d crossed, want at most %d", done.Counts.Moved, passed, most)
	}
}

// TestVolumeOfCopy makes a volume of a snapshot of which a tenth is copied, and
// reads in random order what the copy has not come to yet: the right bytes from
// the beginning, and none of them crosses again. Then it reads everything.
func TestVolumeOfCopy(t *testing.T) {
	t.Parallel()
	const size, far = 160 << 20, 32 << 20
	g, from, alone := newGrowing(t, size, 2*relayRate, nil)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d KiB moved without a volume", seed, alone>>10)
	random := rand.New(rand.NewPCG(seed, 1))
	for _, i := range random.Perm(far / growingPart) {
		g.parts = append(g.parts, size/growingPart-1-i)
	}
	g.reads(g.parts)
	g.running("after the first reads")
	g.ended(from, alone*11/10)
	g.reads(random.Perm(size / growingPart))
}

// TestVolumeOfSlowCopy reads from such a volume while the link is slow, and while it
// is cut or swallows what comes, and comes back: reads give the right bytes, wait, or
// end with an error, and go on later; a snapshot of the volume is ready after the copy.
func TestVolumeOfSlowCopy(t *testing.T) {
	if testing.Short() {
		t.Skip("waits until a read is given up")
	}
	// One after the other, and beside no other test: how much crosses again goes by how
	// fast the machine takes in what comes.
	t.Run("relay", func(t *testing.T) { overSlowLink(t, nil) })
	t.Run("toxiproxy", func(t *testing.T) { overSlowLink(t, toxitest.Start(t, os.Getenv("CI") != "")) })
}

func overSlowLink(t *testing.T, server *toxitest.Server) {
	const size, kept = 64 << 20, 16 << 20 // nobody reads what is kept before the link is cut
	rate := int64(4 << 20)
	if server != nil {
		rate /= 2 // of each connection
	}
	g, from, alone := newGrowing(t, size, rate, server)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d KiB moved without a volume", seed, alone>>10)
	random := rand.New(rand.NewPCG(seed, 1))
	const open, last = (size - kept) / growingPart, size/growingPart - 1
	g.parts = random.Perm(open)

	g.reads(g.take(24))
	g.link.mend(1 << 20)
	g.reads(g.take(12))
	g.running("over a slow link")
	taken, err := g.c.SnapshotVolumes(t.Context(), client.SnapshotRequest{Volumes: []snapferry.VolumeID{g.volume.ID}})
	if err != nil {
		t.Fatal(err)
	}
	snap, snapWant := taken[0].ID, bytes.Clone(g.want)

	// A cut that is short: the read waits.
	reading := make(chan error, 1)
	g.link.cut()
	go func() { reading <- g.check(last) }()
	select {
	case err := <-reading:
		t.Fatalf("a read without the link: got %v, want that it waits", err)
	case <-time.After(3 * time.Second):
	}
	g.link.mend(1 << 20)
	if err := <-reading; err != nil {
		t.Errorf("a read while the link was cut for a short time: got %v, want what is there", err)
	}
	g.reads([]int{last - 8})

	// A link that swallows what comes back, with no word of it: the read waits.
	if p, ok := g.link.(toxic); ok {
		p.Only(toxitest.Swallow())
		go func() { reading <- g.check(last - 24) }()
		select {
		case err := <-reading:
			t.Fatalf("a read over a link that swallows: got %v, want that it waits", err)
		case <-time.After(3 * time.Second):
		}
		g.link.mend(1 << 20)
		if err := <-reading; err != nil {
			t.Errorf("a read while the link swallowed for a short time: got %v, want what is there", err)
		}
	}

	// A cut that lasts: the read fails, and what is near goes on.
	g.link.cut()
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
	g.link.mend(relayRate)
	g.reads([]int{last - 16})
	for _, i := range random.Perm(kept / growingPart) {
		g.parts = append(g.parts, open+i)
	}
	g.reads(g.parts)

	// All leaves of this disk are under way all the time: what was read of them, and
	// what had come of them when the link was cut, crosses again.
	g.ended(from, 2*alone)
	g.ready(snap)
	f := g.exported(snap, filepath.Join(t.TempDir(), "snap.raw"))
	defer f.Close()
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, snapWant) {
		t.Errorf("the snapshot of the volume has other bytes than the volume had, %v", err)
	}
	for _, region := range []snapferry.RegionName{demoEast, demoWest} {
		if report, err := g.client(region).Fsck(t.Context(), true, nil); err != nil || damaged(report) {
			t.Errorf("fsck of %s: got %v %+v", region, err, report)
		}
	}
}
