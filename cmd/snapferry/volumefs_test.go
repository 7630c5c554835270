package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

var fsSnapshots = flag.Int("fssnapshots", 6, "how many snapshots of each file system TestVolumeFileSystems takes")

// mounts skips a test that mounts what it makes where it cannot. On a build
// machine only the lack of the devices is a reason.
func mounts(t *testing.T, devices ...string) {
	t.Helper()
	for _, device := range devices {
		if _, err := os.Stat(device); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root")
		}
		t.Skip("this test needs root")
	}
	tools(t, "losetup", "mount", "umount")
}

// undo runs a program at the end of a test, when its context has ended.
func undo(t *testing.T, name string, args ...string) (ok bool) {
	t.Helper()
	p, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, p)
	}
	return err == nil
}

// fuseFile makes a file of an export, until the test ends.
func fuseFile(t *testing.T, uri string) string {
	t.Helper()
	dir, pid := t.TempDir(), filepath.Join(t.TempDir(), "pid")
	var stderr bytes.Buffer
	cmd := exec.Command("nbdfuse", "--pidfile", pid, filepath.Join(dir, "disk"), uri)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for { // it writes the file when it is ready
		if p, err := os.ReadFile(pid); err == nil && len(p) > 0 {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("nbdfuse: %v\n%s", err, stderr.String())
		case <-time.After(volumePoll):
		}
	}
	t.Cleanup(func() {
		if !undo(t, "fusermount3", "-u", dir) {
			_ = cmd.Process.Kill() // else it does not end
		}
		if err := <-ended; err != nil {
			t.Errorf("nbdfuse: %v\n%s", err, stderr.String())
		}
	})
	return filepath.Join(dir, "disk")
}

// loopDevice makes a block device of a file, until the test ends. Whoever has
// the device open for a moment (a scan for file systems, a search for a free
// device) makes the kernel detach it only when they close it, and until then
// it holds the file, and with it the mount of [fuseFile].
func loopDevice(t *testing.T, path string) string {
	t.Helper()
	device := strings.TrimSpace(output(t, "losetup", "--find", "--show", path))
	t.Cleanup(func() {
		if !undo(t, "losetup", "-d", device) {
			return
		}
		backing := filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file")
		for end := time.Now().Add(time.Minute); ; time.Sleep(volumePoll) {
			p, err := os.ReadFile(backing)
			if err != nil || strings.TrimSpace(string(p)) != path {
				return // it is free, or someone else's already
			}
			if time.Now().After(end) {
				t.Errorf("%s still holds %s", device, path)
				return
			}
		}
	})
	return device
}

// A fileSystem is one kind of them.
type fileSystem struct {
	name    string
	mkfs    []string // that makes one, before its device
	options string   // with which its copy can be mounted beside it
	fsck    []string // that only looks, before its device
}

var fileSystems = []fileSystem{
	{"ext4", []string{"mkfs.ext4", "-q"}, "rw", []string{"e2fsck", "-fn"}},
	{"xfs", []string{"mkfs.xfs", "-q"}, "nouuid", []string{"xfs_repair", "-n"}},
}

func (f fileSystem) run(t *testing.T, cmd []string, device string) {
	t.Helper()
	output(t, cmd[0], append(cmd[1:len(cmd):len(cmd)], device)...)
}

// mounted has a device mounted while fn runs, and looks at the file system
// afterwards.
func (f fileSystem) mounted(t *testing.T, device string, fn func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	output(t, "mount", "-t", f.name, "-o", f.options, device, dir)
	func() {
		defer undo(t, "umount", dir)
		fn(dir)
	}()
	f.run(t, f.fsck, device)
}

const (
	logRecords = 256 // in a log of a recorder
	logsKept   = 4
	slots      = 8
	slotsKept  = 4
)

// A recorder is an application that writes numbered records, each durable before
// the next: first to a file that replaces another one, while an older one is
// removed, then to the end of a log.
type recorder struct {
	dir          string
	begun, acked atomic.Uint64
	steps        chan struct{} // one for each that was made durable while somebody waits; closed at the end
	quit         chan struct{}
}

// recordBytes is a record: number, length, anything, and a checksum.
func recordBytes(number uint64) []byte {
	random := rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint64(make([]byte, 24), number)))
	body := make([]byte, 100+random.Uint64()%6000)
	random.Read(body)
	p := binary.BigEndian.AppendUint64(nil, number)
	p = append(binary.BigEndian.AppendUint32(p, uint32(len(body))), body...)
	return binary.BigEndian.AppendUint32(p, crc32.ChecksumIEEE(p))
}

func (r *recorder) log(number uint64) string {
	return filepath.Join(r.dir, fmt.Sprintf("log.%d", number/logRecords))
}

func (r *recorder) slot(number uint64) string {
	return filepath.Join(r.dir, fmt.Sprintf("slot.%d", number%slots))
}

// durable syncs a file or directory and closes it.
func (r *recorder) durable(f *os.File, err error) error {
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	select {
	case r.steps <- struct{}{}:
	default:
	}
	return err
}

// append makes the record the end of a file, which need not be there.
func (r *recorder) append(path string, number uint64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.Write(recordBytes(number))
	}
	return r.durable(f, err)
}

// write writes a record; then it is durable.
func (r *recorder) write(number uint64) error {
	fresh := filepath.Join(r.dir, "fresh")
	if err := r.append(fresh, number); err != nil {
		return err
	}
	if err := os.Rename(fresh, r.slot(number)); err != nil {
		return err
	}
	if number > slotsKept {
		if err := os.Remove(r.slot(number - slotsKept)); err != nil {
			return err
		}
	}
	if number%logRecords == 0 && number/logRecords >= logsKept {
		if err := os.Remove(r.log(number - logsKept*logRecords)); err != nil {
			return err
		}
	}
	if err := r.durable(os.Open(r.dir)); err != nil {
		return err
	}
	if err := r.append(r.log(number), number); err != nil {
		return err
	}
	return r.durable(os.Open(r.dir))
}

// run writes until it is to quit.
func (r *recorder) run() error {
	defer close(r.steps)
	for number := uint64(1); ; number++ {
		select {
		case <-r.quit:
			return nil
		default:
		}
		r.begun.Store(number)
		if err := r.write(number); err != nil {
			return fmt.Errorf("record %d: %w", number, err)
		}
		r.acked.Store(number)
	}
}

// readIfThere reads a file; one that is not there is nil.
func readIfThere(path string) ([]byte, error) {
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return p, err
}

// lastRecord returns the last record that a recorder left in a directory, and an
// error if that is not from least to most, or what is there is not what it left.
func lastRecord(dir string, least, most uint64) (last uint64, err error) {
	r := &recorder{dir: dir}
	// Older logs may be gone.
	end := uint64(max(0, int64(most/logRecords)-logsKept+1)) * logRecords
	last = max(end, 1) - 1
	for last+1 >= end {
		p, err := readIfThere(r.log(end))
		if err != nil {
			return last, err
		}
		for end += logRecords; len(p) > 0 && last+1 < end; last++ {
			want := recordBytes(last + 1)
			if len(p) < len(want) && bytes.HasPrefix(want, p) {
				break // the rest of it was not written yet
			}
			if !bytes.HasPrefix(p, want) {
				return last, fmt.Errorf("record %d begins with %x, want %x", last+1, p[:min(16, len(p))], want[:16])
			}
			p = p[len(want):]
		}
		if last+1 == end && len(p) > 0 {
			return last, fmt.Errorf("%d bytes behind record %d at the end of its log", len(p), last)
		}
	}
	if _, err := os.Stat(r.log(end)); !errors.Is(err, fs.ErrNotExist) {
		return last, fmt.Errorf("the log after that of record %d, the last one: got %v, want none", last, err)
	}
	if last < least || last > most {
		return last, fmt.Errorf("the last record is %d, want from %d to %d", last, least, most)
	}
	return last, r.checkSlots(last)
}

// checkSlots wants the slots to be as they were after the last record, or after
// what comes before the next one's end.
func (r *recorder) checkSlots(last uint64) error {
	after := func(last, slot uint64) []byte {
		for number := last; number > 0 && number+slotsKept > last; number-- {
			if number%slots == slot {
				return recordBytes(number)
			}
		}
		return nil
	}
	for slot := range uint64(slots) {
		p, err := readIfThere(r.slot(slot))
		if err != nil {
			return err
		}
		if !bytes.Equal(p, after(last, slot)) && !bytes.Equal(p, after(last+1, slot)) {
			return fmt.Errorf("slot %d after record %d: got %d bytes, %x, want %x", slot, last, len(p), p[:min(16, len(p))], after(last, slot))
		}
	}
	return nil
}

// in is the same for a part of the test.
func (s *served) in(t *testing.T) *served {
	k := *s.killed
	k.t = t
	return &served{killed: &k, c: s.c, volume: s.volume, uri: s.uri}
}

// disk makes a file of a snapshot, until the test ends: of what was exported, or
// of a volume.
func (s *served) disk(id snapferry.SnapshotID, volume bool) string {
	s.t.Helper()
	if !volume {
		f := s.exported(id, filepath.Join(s.t.TempDir(), "disk.raw"))
		defer f.Close()
		return f.Name()
	}
	all, err := s.c.CreateVolumes(s.t.Context(), client.VolumeRequest{Snapshot: id})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx := context.Background() // that of the test has ended
		if _, err := s.c.UnexportVolume(ctx, all[0].ID); err != nil {
			s.t.Error(err)
		}
		if err := s.c.DeleteVolume(ctx, all[0].ID); err != nil {
			s.t.Error(err)
		}
	})
	return fuseFile(s.t, s.export(all[0].ID, client.VolumeExportRequest{}))
}

// ballast makes a large file, that is durable.
func ballast(t *testing.T, dir string, seed uint64) (path string) {
	t.Helper()
	path = filepath.Join(dir, "ballast")
	p := make([]byte, ballastSize)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(p)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, "sync", "-f", dir)
	return path
}

const ballastSize = 32 << 20

// trims wants the space of a file that was removed to be given back.
func (s *served) trims(dir string) {
	s.t.Helper()
	dirty := func() int64 {
		v, err := s.c.Volume(s.t.Context(), s.volume.ID)
		if err != nil || v.Local == nil {
			s.t.Fatalf("volume: got %+v, %v", v, err)
		}
		return v.Local.Dirty
	}
	path := ballast(s.t, dir, 0)
	filled := dirty()
	if err := os.Remove(path); err != nil {
		s.t.Fatal(err)
	}
	now := filled
	for range 100 { // XFS frees what was removed a while later
		output(s.t, "sync", "-f", dir)
		output(s.t, "fstrim", dir)
		if now = dirty(); now <= filled-ballastSize*3/4 {
			return
		}
		if err := pause(s.t.Context(), volumePoll); err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Errorf("%d bytes are only here, and %d after a trim of %d", filled, now, ballastSize)
}

// TestVolumeFileSystems takes snapshots of volumes with file systems, to which an
// application writes: in each the file system is clean once its journal was
// replayed, and has every record that was durable before the snapshot, and each
// record only with those before it.
func TestVolumeFileSystems(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	mounts(t, "/dev/fuse", "/dev/loop-control")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, f := range fileSystems {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			tools(t, "nbdfuse", "fusermount3", f.mkfs[0], f.fsck[0], "fstrim")
			f.soak(t, newServed(t, 512<<20), rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func (f fileSystem) soak(t *testing.T, s *served, random *rand.Rand) {
	device := loopDevice(t, fuseFile(t, s.uri))
	f.run(t, f.mkfs, device)
	f.mounted(t, device, func(dir string) {
		r := &recorder{dir: dir, steps: make(chan struct{}), quit: make(chan struct{})}
		ended := make(chan error, 1)
		go func() { ended <- r.run() }()
		stop := sync.OnceValue(func() error { close(r.quit); return <-ended })
		defer stop()
		for i := range *fsSnapshots {
			ballast(t, dir, uint64(i)) // so that the upload takes a while
			for range random.IntN(400) {
				<-r.steps
			}
			least := r.acked.Load()
			all, err := s.c.SnapshotVolumes(t.Context(), client.SnapshotRequest{Volumes: []snapferry.VolumeID{s.volume.ID}})
			if err != nil {
				t.Fatal(err)
			}
			most := r.begun.Load()
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				s := s.in(t)
				device := loopDevice(t, s.disk(s.ready(all[0].ID).ID, i%3 == 2))
				f.mounted(t, device, func(dir string) {
					last, err := lastRecord(dir, least, most)
					if err != nil {
						t.Error(err)
					}
					t.Logf("records up to %d, of %d to %d", last, least, most)
				})
			})
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		acked := r.acked.Load()
		if _, err := lastRecord(dir, acked, acked); err != nil {
			t.Errorf("at the end: %v", err)
		}
		s.trims(dir)
		t.Logf("%d snapshots, %d records", *fsSnapshots, acked)
	})
	s.sound()
}
