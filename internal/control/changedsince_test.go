package control_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/simtest"
)

// since is a snapshot, what it has, and what is said to have changed.
type since struct {
	id      snapferry.SnapshotID
	disk    *simtest.Disk
	changes *control.Changes
}

// check compares what is said to have changed since x with what has.
func (l *lively) check(x since) {
	l.t.Helper()
	size := l.disk.Size()
	then, now := make([]byte, size), make([]byte, size)
	if _, err := x.disk.ReadAt(then, 0); err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.disk.ReadAt(now, 0); err != nil {
		l.t.Fatal(err)
	}
	touched := func(from, to int64) bool { return !bytes.Equal(then[from:to], now[from:to]) }
	for off := int64(0); off < size; {
		n, changed, err := x.changes.Run(l.t.Context(), off, size-off)
		if err != nil || n < 1 {
			l.t.Fatalf("changes since %s at %d: got %d bytes, %v", x.id, off, n, err)
		}
		if !changed && touched(off, off+n) {
			l.t.Errorf("changes since %s: %d bytes at %d have changed and are said not to", x.id, n, off)
		}
		for at := off - off%snapferry.BlockSize; changed && at < off+n; at += snapferry.BlockSize {
			if !touched(at, min(at+snapferry.BlockSize, size)) {
				l.t.Errorf("changes since %s: the block at %d is said to have changed", x.id, at)
			}
		}
		off += n
	}
}

// TestChangedSince asks what has changed since snapshots, by answers that are
// kept while the volume goes on.
func TestChangedSince(t *testing.T) {
	a := newLively(t)
	v := a.volume(control.VolumeRequest{Size: 8<<20 + 512, Name: "disk"})
	l := &lively{alone: a, id: v.ID, disk: simtest.NewDisk(8<<20 + 512), rng: rand.New(rand.NewPCG(3, 4))}
	var all []since
	for range 6 {
		l.write(5)
		id, disk := l.snapshot()
		a.calm(v.ID)
		c, err := a.Control.ChangedSince(t.Context(), v.ID, id)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, since{id, disk, c})
		for i, x := range all {
			if l.check(x); i == len(all)-1 {
				l.write(3)
				l.check(x)
			}
		}
	}
	// What is being answered about can be deleted.
	if err := a.Control.Delete(t.Context(), a.at, all[0].id); err != nil {
		t.Fatal(err)
	}
	l.check(all[0])
	if _, err := a.Control.ChangedSince(t.Context(), v.ID, all[0].id); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("since a snapshot that was deleted: got %v, want NotFound", err)
	}
	// A volume knows its own snapshots, and the one that it was made from.
	copied := a.volume(control.VolumeRequest{Snapshot: all[2].id, Name: "copy"})
	for id, want := range map[snapferry.SnapshotID]bool{all[2].id: true, all[3].id: false} {
		c, err := a.Control.ChangedSince(t.Context(), copied.ID, id)
		if err == nil {
			n, changed, rerr := c.Run(t.Context(), 0, 8<<20+512)
			if rerr != nil || changed || n != 8<<20+512 {
				t.Errorf("a new volume: got %d bytes changed: %v, %v", n, changed, rerr)
			}
			c.Close()
		}
		if (err == nil) != want || err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("of another volume since %s: got %v, want an answer: %v", id, err, want)
		}
	}
	ids, err := a.Control.SnapshotsOfVolume(t.Context(), copied.ID)
	if err != nil || len(ids) != 1 || ids[0] != all[2].id {
		t.Errorf("snapshots of a copy: got %v, %v", ids, err)
	}
	if ids, err = a.Control.SnapshotsOfVolume(t.Context(), v.ID); err != nil || len(ids) != len(all)-1 {
		t.Errorf("snapshots: got %v, %v", ids, err)
	}
}
