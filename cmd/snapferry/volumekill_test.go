package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"io"
	"math/rand/v2"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/nbd"
)

var volumeKills = flag.Int("volumekills", 2, "how often TestVolumeSurvivesKills kills a region under clients that write")

const (
	sectorSize = 512
	stretch    = 2048 // sectors of each of the two stretches that sectors has
	// border is where a volume goes on in another file.
	border = 256 << 30
)

// sectors writes to two stretches of a volume and remembers for each sector what
// it may have. A written sector repeats its own number and that of the write.
type sectors struct {
	seed uint64
	mu   sync.Mutex
	last uint64 // write
	log  [2 * stretch]struct {
		writes  []uint64 // twice the number, and 1 for zeros; oldest first; guarded by mu
		acked   int      // the last of them that was answered; guarded by mu
		flushed int      // the last that a flush was answered after; guarded by mu
	}
	ops   atomic.Int64
	marks []*opsMark // guarded by mu
}

// opsMark is closed when so many operations were done.
type opsMark struct {
	at      int64
	reached chan struct{}
}

func newSectors(seed uint64) *sectors {
	x := &sectors{seed: seed}
	for i := range x.log {
		x.log[i].writes = []uint64{1}
	}
	return x
}

// offset is where a sector is: the first stretch at the beginning, the second
// across the border.
func (x *sectors) offset(sector int) int64 {
	if sector < stretch {
		return int64(sector) * sectorSize
	}
	return border + int64(sector-stretch-stretch/2)*sectorSize
}

// fill makes the content of sectors from first on.
func fill(p []byte, first int, write uint64) {
	if write%2 == 1 {
		clear(p)
		return
	}
	for i := range len(p) / sectorSize {
		for at := 0; at < sectorSize; at += 16 {
			binary.BigEndian.PutUint64(p[i*sectorSize+at:], write)
			binary.BigEndian.PutUint64(p[i*sectorSize+at+8:], uint64(first+i))
		}
	}
}

// begin notes that sectors will be written.
func (x *sectors) begin(first, n int, zero bool) (write uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last++
	write = 2 * x.last
	if zero {
		write++
	}
	for i := first; i < first+n; i++ {
		x.log[i].writes = append(x.log[i].writes, write)
	}
	return write
}

// end notes that the write was answered, and that it is durable if it is.
func (x *sectors) end(first, n int, durable bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := first; i < first+n; i++ {
		l := &x.log[i]
		l.acked = len(l.writes) - 1
		if durable {
			l.flushed = l.acked
		}
	}
}

// counts returns how many writes of each sector were answered, and how many were
// begun.
func (x *sectors) counts() (acked, begun []int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range x.log {
		acked, begun = append(acked, x.log[i].acked), append(begun, len(x.log[i].writes)-1)
	}
	return acked, begun
}

// flush flushes, which covers what was answered to all connections.
func (x *sectors) flush(disk *nbd.Client) error {
	acked, _ := x.counts()
	if err := disk.Sync(); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, n := range acked {
		x.log[i].flushed = max(x.log[i].flushed, n)
	}
	return nil
}

// after returns a channel that is closed when n more operations are done.
func (x *sectors) after(n int64) <-chan struct{} {
	m := &opsMark{x.ops.Load() + n, make(chan struct{})}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.marks = append(x.marks, m)
	return m.reached
}

func (x *sectors) done() {
	now := x.ops.Add(1)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.marks = slices.DeleteFunc(x.marks, func(m *opsMark) bool {
		if now >= m.at {
			close(m.reached)
		}
		return now >= m.at
	})
}

// run writes as one of three clients until the server is gone: two share every
// page of the first stretch, the third has the second one.
func (x *sectors) run(disk *nbd.Client, who int) error {
	random := rand.New(rand.NewPCG(x.seed+x.last, uint64(who)))
	for {
		var err error
		if random.IntN(12) == 0 {
			err = x.flush(disk)
		} else {
			err = x.write(disk, random, who)
		}
		if err != nil {
			return err
		}
		x.done()
	}
}

func (x *sectors) write(disk *nbd.Client, random *rand.Rand, who int) error {
	const cell = 5 // sectors: cells lie across pages
	first, n := (2*random.IntN(stretch/cell/2)+who)*cell, 1+random.IntN(cell)
	kind := random.IntN(10)
	if who == 2 {
		n = 1 + random.IntN(128)
		if kind == 1 {
			n = (n + 7) / 8 * 8
		}
		first = stretch + random.IntN(stretch-n+1)
		if kind == 1 {
			first = first / 8 * 8
		}
	} else if kind == 1 {
		kind = 2 // no whole pages to trim
	}
	write := x.begin(first, n, kind == 1 || kind == 2)
	off, length := x.offset(first), int64(n)*sectorSize
	p := make([]byte, length)
	fill(p, first, write)
	var err error
	switch kind {
	case 0:
		err = disk.WriteSync(p, off)
	case 1:
		err = disk.Trim(off, length)
	case 2:
		err = disk.Zero(off, length, random.IntN(2) == 0)
	default:
		_, err = disk.WriteAt(p, off)
	}
	if err == nil {
		x.end(first, n, kind == 0)
	}
	return err
}

// read reads all sectors and returns for each what it has, which is not earlier
// than what least says and not later than most.
func (x *sectors) read(t *testing.T, from io.ReaderAt, least, most []int) []uint64 {
	t.Helper()
	var all []byte
	for _, first := range []int{0, stretch} {
		p := make([]byte, stretch*sectorSize)
		if _, err := from.ReadAt(p, x.offset(first)); err != nil {
			t.Fatal(err)
		}
		all = append(all, p...)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	found := make([]uint64, len(x.log))
	want, wrong := make([]byte, sectorSize), 0
	for i := range found {
		got := all[i*sectorSize : (i+1)*sectorSize]
		may := x.log[i].writes[least[i] : most[i]+1]
		at := slices.IndexFunc(may, func(write uint64) bool {
			fill(want, i, write)
			return bytes.Equal(got, want)
		})
		if at < 0 {
			if wrong++; wrong < 5 {
				t.Errorf("sector %d begins with %x: want a write of %v", i, got[:16], may)
			}
			continue
		}
		found[i] = may[at]
	}
	if wrong > 0 {
		t.Fatalf("%d sectors are wrong", wrong)
	}
	return found
}

// check reads the volume again after a kill.
func (x *sectors) check(t *testing.T, disk *nbd.Client) {
	t.Helper()
	_, begun := x.counts()
	least := make([]int, len(x.log))
	for i := range x.log {
		least[i] = x.log[i].flushed
	}
	found := x.read(t, disk, least, begun)
	if err := disk.Sync(); err != nil {
		t.Fatal(err)
	}
	for i, write := range found {
		x.log[i].writes, x.log[i].acked, x.log[i].flushed = []uint64{write}, 0, 0
	}
}

// killing is a region that is killed under clients that write.
type killing struct {
	*served
	x      *sectors
	random *rand.Rand
	shot   struct { // the snapshot that was taken before the kill
		id           snapferry.SnapshotID
		acked, begun []int
		err          error
	}
}

// dial connects to the volume.
func (k *killing) dial() *nbd.Client {
	k.t.Helper()
	disk, err := nbd.Dial(k.t.Context(), k.uri, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	return disk
}

// round lets clients write, takes a snapshot, and kills the region at a random
// moment; then it looks at everything.
func (k *killing) round() {
	k.t.Helper()
	output(k.t, "fio", fio(k.uri, fioAt)...)
	ctx, cancel := context.WithCancel(k.t.Context())
	defer cancel()
	busy := exec.CommandContext(ctx, "fio", fio(k.uri, fioAt+16<<20, "--fsync=16", "--loops=1000")...)
	if err := busy.Start(); err != nil {
		k.t.Fatal(err)
	}
	var writers errgroup.Group
	for who := range 3 {
		disk := k.dial()
		defer disk.Close()
		writers.Go(func() error { return k.x.run(disk, who) })
	}
	taken := make(chan struct{})
	// The snapshot is asked for before the kill, which may come in its middle.
	n := k.random.Int64N(600)
	begin, end := k.x.after(n), k.x.after(n+1+k.random.Int64N(800))
	go func() {
		defer close(taken)
		<-begin
		k.take()
	}()
	<-end
	k.kill(demoEast)
	err := writers.Wait()
	if !snapferry.IsKind(err, snapferry.Unavailable) {
		k.t.Fatalf("a writer: got %v, want the end of its connection", err)
	}
	<-taken
	cancel()
	_ = busy.Wait() // its server is gone
	k.look()
}

// take takes a snapshot; it may fail when the region is killed.
func (k *killing) take() {
	acked, _ := k.x.counts()
	all, err := k.c.SnapshotVolumes(k.t.Context(), client.SnapshotRequest{Volumes: []snapferry.VolumeID{k.volume.ID}})
	_, begun := k.x.counts()
	k.shot.acked, k.shot.begun, k.shot.err = acked, begun, err
	if err == nil {
		k.shot.id = all[0].ID
	}
}

// look checks the snapshot of the round and the volume.
func (k *killing) look() {
	k.t.Helper()
	output(k.t, "fio", fio(k.uri, fioAt, "--verify_only")...)
	if k.shot.err == nil {
		k.ready(k.shot.id)
		all, err := k.c.CreateVolumes(k.t.Context(), client.VolumeRequest{Snapshot: k.shot.id})
		if err != nil {
			k.t.Fatal(err)
		}
		old, err := nbd.Dial(k.t.Context(), k.export(all[0].ID, client.VolumeExportRequest{ReadOnly: true}), nil)
		if err != nil {
			k.t.Fatal(err)
		}
		k.x.read(k.t, old, k.shot.acked, k.shot.begun)
		old.Close()
		if _, err := k.c.UnexportVolume(k.t.Context(), all[0].ID); err != nil {
			k.t.Fatal(err)
		}
		if err := k.c.DeleteVolume(k.t.Context(), all[0].ID); err != nil {
			k.t.Fatal(err)
		}
	} else if !snapferry.IsKind(k.shot.err, snapferry.Unavailable) {
		k.t.Errorf("snapshot: got %v, want it, or that the region is gone", k.shot.err)
	}
	disk := k.dial()
	defer disk.Close()
	k.x.check(k.t, disk)
}

// fioAt is where fio writes.
const fioAt = 40 << 20

// TestVolumeSurvivesKills kills the region under clients that write, trim and
// flush, and in the middle of snapshots: what was flushed is there, everything
// else is as it was before or after, and a snapshot that was answered has what
// was written before it, and nothing of later.
func TestVolumeSurvivesKills(t *testing.T) {
	tools(t, "fio")
	if testing.Short() {
		t.Skip("takes a while")
	}
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	k := &killing{served: newServed(t, border+64<<20), x: newSectors(seed), random: rand.New(rand.NewPCG(seed, 9))}
	answered := 0
	for range *volumeKills {
		k.round()
		if k.shot.err == nil {
			answered++
		}
	}
	k.sound()
	t.Logf("%d kills; %d snapshots were answered before; %d operations", *volumeKills, answered, k.x.ops.Load())
}
