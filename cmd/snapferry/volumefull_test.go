package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/nbd"
)

const (
	smallSize = 128 << 20 // of the file system of a region
	spareSize = 80 << 20  // of what is removed there to make room, for as much as the rest again
)

// small makes a small file system, until the test ends.
func small(t *testing.T, kind string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if kind == "tmpfs" {
		output(t, "mount", "-t", "tmpfs", "-o", "size=128M", "tmpfs", dir)
	} else {
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, smallSize); err != nil {
			t.Fatal(err)
		}
		output(t, "mkfs."+kind, "-q", image)
		output(t, "mount", "-o", "loop", image, dir)
	}
	t.Cleanup(func() { undo(t, "umount", dir) })
	return dir
}

// filling is a volume on a file system without room.
type filling struct {
	*killing
	disk   *nbd.Client
	filled int64 // bytes from fioAt on
	full   int   // operations for which there was no room
	worked int
}

// reaches connects again, and wants what was flushed.
func (f *filling) reaches() {
	f.t.Helper()
	f.disk = f.dial()
	f.t.Cleanup(func() { f.disk.Close() })
	f.x.check(f.t, f.disk)
}

// fill writes to the volume until there is no room for a page.
func (f *filling) fill() {
	f.t.Helper()
	for size := 1 << 20; size >= pageSize; {
		p := make([]byte, size)
		rand.NewChaCha8([32]byte{}).Read(p)
		_, err := f.disk.WriteAt(p, fioAt+f.filled)
		switch {
		case err == nil:
			f.filled += int64(size)
		case snapferry.IsKind(err, snapferry.Full):
			size /= 4
		default:
			f.t.Fatalf("fill after %d bytes: %v", f.filled, err)
		}
		if f.filled > smallSize {
			f.t.Fatalf("%d bytes had room", f.filled)
		}
	}
}

// work does operations of all kinds, for which there may be room or not.
func (f *filling) work() {
	f.t.Helper()
	for i := range 600 {
		var err error
		if i%12 == 0 {
			err = f.x.flush(f.disk)
		} else {
			err = f.x.write(f.disk, f.random, i%3)
		}
		switch {
		case err == nil:
			f.worked++
		case snapferry.IsKind(err, snapferry.Full):
			f.full++
		default:
			f.t.Fatalf("operation %d: %v", i, err)
		}
	}
}

// TestVolumeOnFullDisk has a disk with live volumes run full, be it that of the
// whole region or theirs alone: clients are told so, what was flushed stays,
// through a restart and a kill as well, and all goes on when there is room.
func TestVolumeOnFullDisk(t *testing.T) {
	t.Parallel()
	mounts(t, "/dev/loop-control")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for name, test := range map[string]struct {
		kind  string
		whole bool // the region has no other disk
	}{
		"volumes on ext4": {"ext4", false},
		"all on ext4":     {"ext4", true},
		"all on tmpfs":    {"tmpfs", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tools(t, "mkfs.ext4")
			dir := small(t, test.kind)
			k := prepareKilled(t, "none", demoEast)
			cfg := k.dev.configs[demoEast]
			cfg.Volumes = filepath.Join(dir, "region")
			if test.whole {
				cfg.Directory, cfg.Sockets = cfg.Volumes, filepath.Join(filepath.Dir(cfg.Handoff), "volumes")
			}
			if err := writeYAML(k.dev.configFile(demoEast), cfg); err != nil {
				t.Fatal(err)
			}
			k.start(demoEast)
			s := &served{killed: k, c: k.client(demoEast)}
			all, err := s.c.CreateVolumes(t.Context(), client.VolumeRequest{Size: border + 512<<20})
			if err != nil {
				t.Fatal(err)
			}
			s.volume = all[0]
			s.uri = s.export(s.volume.ID, client.VolumeExportRequest{})
			f := &filling{killing: &killing{served: s, x: newSectors(seed), random: rand.New(rand.NewPCG(seed, 1))}}
			f.runs(dir, !test.whole)
		})
	}
}

// runs fills the disk and makes room again; again says whether the region can be
// started without.
func (f *filling) runs(dir string, again bool) {
	spare := filepath.Join(dir, "spare")
	if err := os.WriteFile(spare, make([]byte, spareSize), 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.reaches()
	f.work()
	if f.full > 0 {
		f.t.Fatalf("there was no room for %d operations, before the disk was full", f.full)
	}
	f.fill()
	f.work()
	f.reaches()
	f.fill()
	f.take() // what was deleted meanwhile may be room enough
	if err := f.shot.err; err != nil && !snapferry.IsKind(err, snapferry.Full) {
		f.t.Errorf("a snapshot without room: got %v, want %s", err, snapferry.Full)
	}
	f.t.Logf("a snapshot without room: %v", f.shot.err)
	if again {
		f.restart()
		f.reaches()
		f.work()
		f.kill(demoEast)
		f.reaches()
	}
	f.t.Logf("%d operations worked, for %d there was no room", f.worked, f.full)
	if f.full == 0 {
		f.t.Error("there was room for everything")
	}

	if err := os.Remove(spare); err != nil {
		f.t.Fatal(err)
	}
	f.full = 0
	f.work()
	if f.full > 0 {
		f.t.Errorf("there was no room for %d operations, when there was", f.full)
	}
	f.take()
	if f.shot.err != nil {
		f.t.Fatal(f.shot.err)
	}
	f.ready(f.shot.id)
	f.restart()
	f.reaches()
	f.sound()
}
