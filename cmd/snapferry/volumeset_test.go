package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/nbd"
)

var sets = flag.Int("sets", 10, "how many snapshots of three volumes TestVolumeSets takes")

const (
	pageSize = 4096
	// setPages is how many pages of each volume the writer uses, over and over.
	setPages = 512
)

// ordered writes rising numbers to volumes: each to the first, then to the
// second, then to the third.
type ordered struct {
	disks []*nbd.Client
	begun []atomic.Uint64 // the last number that was sent to each
	acked []atomic.Uint64 // and of those the last that was answered
	quit  chan struct{}
}

func page(number uint64) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, number), pageSize/8)
}

func (o *ordered) run() error {
	for number := uint64(1); ; number++ {
		for i, disk := range o.disks {
			select {
			case <-o.quit:
				return nil
			default:
			}
			o.begun[i].Store(number)
			if _, err := disk.WriteAt(page(number), int64(number%setPages)*pageSize); err != nil {
				return err
			}
			o.acked[i].Store(number)
		}
	}
}

// lastNumber returns the last number that was written to a volume, which must
// have every number before it, but for those that were overwritten, and no other.
func lastNumber(from io.ReaderAt) (last uint64, err error) {
	p := make([]byte, setPages*pageSize)
	if _, err := from.ReadAt(p, 0); err != nil {
		return 0, err
	}
	for at := 0; at < len(p); at += pageSize {
		last = max(last, binary.BigEndian.Uint64(p[at:]))
	}
	for at := range uint64(setPages) {
		want := last - (last-at)%setPages // the last one that goes here
		if want > last {
			want = 0 // none yet
		}
		if got := p[at*pageSize : (at+1)*pageSize]; !bytes.Equal(got, page(want)) {
			return last, fmt.Errorf("page %d begins with %x, want %d everywhere, because %d is there", at, got[:16], want, last)
		}
	}
	return last, nil
}

func newOrdered(t *testing.T, s *served, all []snapferry.VolumeID) *ordered {
	t.Helper()
	o := &ordered{begun: make([]atomic.Uint64, len(all)), acked: make([]atomic.Uint64, len(all)), quit: make(chan struct{})}
	for _, id := range all {
		disk, err := nbd.Dial(t.Context(), s.export(id, client.VolumeExportRequest{}), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { disk.Close() })
		o.disks = append(o.disks, disk)
	}
	return o
}

// snapshotSet takes a snapshot of all volumes with the program, and returns them
// in the order of the volumes.
func (s *served) snapshotSet(all []snapferry.VolumeID) []snapferry.Snapshot {
	s.t.Helper()
	args := []string{"--config", s.dev.path(devClient), "snapshot", "create", "-o", "json"}
	for _, id := range all {
		args = append(args, string(id))
	}
	var taken struct{ Snapshots []snapferry.Snapshot }
	r := run(s.t, args...)
	if err := json.Unmarshal([]byte(r.stdout), &taken); r.code != exitOK || err != nil || len(taken.Snapshots) != len(all) {
		s.t.Fatalf("snapshot create: got exit code %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	return taken.Snapshots
}

// exported writes a snapshot to a file.
func (s *served) exported(id snapferry.SnapshotID, path string) *os.File {
	s.t.Helper()
	f, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.c.Export(s.t.Context(), id, f, nil); err != nil {
		s.t.Fatal(err)
	}
	return f
}

// TestVolumeSets takes snapshots of three volumes, to which one writer writes in
// a known order: none shows a later write without the earlier.
func TestVolumeSets(t *testing.T) {
	t.Parallel()
	s := newServed(t, 16<<20)
	more, err := s.c.CreateVolumes(t.Context(), client.VolumeRequest{Size: 16 << 20, Name: "more", Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	all := []snapferry.VolumeID{s.volume.ID, more[0].ID, more[1].ID}
	o := newOrdered(t, s, all)
	writing := make(chan error, 1)
	go func() { writing <- o.run() }()
	path := filepath.Join(t.TempDir(), "disk.raw")
	apart := 0
	for range *sets {
		var least, most, last [3]uint64
		for i := range all {
			least[i] = o.acked[i].Load()
		}
		taken := s.snapshotSet(all)
		for i := range all {
			most[i] = o.begun[i].Load()
		}
		for i, x := range taken {
			f := s.exported(s.ready(x.ID).ID, path)
			if last[i], err = lastNumber(f); err != nil {
				t.Errorf("volume %d: %v", i, err)
			}
			f.Close()
			if last[i] < least[i] || last[i] > most[i] {
				t.Errorf("volume %d ends with %d, want from %d to %d", i, last[i], least[i], most[i])
			}
		}
		if last[1] > last[0] || last[2] > last[1] || last[2]+1 < last[0] {
			t.Errorf("the volumes end with %d: a later write is there without an earlier one", last)
		}
		if last[2] != last[0] {
			apart++
		}
	}
	close(o.quit)
	if err := <-writing; err != nil {
		t.Errorf("writer: %v", err)
	}
	s.sound()
	t.Logf("%d sets, %d of them between the writes of one number; %d numbers", *sets, apart, o.acked[2].Load())
}
