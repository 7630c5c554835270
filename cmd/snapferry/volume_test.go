package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/nbd"
)

// tools skips the test when one of the programs is missing; on a build machine
// (CI set) it fails there.
func tools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// output runs a program, which must succeed, and returns what it printed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	p, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, p, stderr.String())
	}
	return string(p)
}

// words makes one space of all that there are, to compare columns.
func words(s string) string { return strings.Join(strings.Fields(s), " ") }

// served is a region with an exported volume.
type served struct {
	*killed
	c      *client.Client
	volume snapferry.Volume
	uri    string
}

func newServed(t *testing.T, size int64) *served {
	t.Helper()
	k := prepareKilled(t, "none", demoEast)
	k.start(demoEast)
	s := &served{killed: k, c: k.client(demoEast)}
	all, err := s.c.CreateVolumes(t.Context(), client.VolumeRequest{Size: size, Name: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	s.volume = all[0]
	s.uri = s.export(s.volume.ID, client.VolumeExportRequest{})
	return s
}

func (s *served) export(id snapferry.VolumeID, req client.VolumeExportRequest) string {
	s.t.Helper()
	v, err := s.c.ExportVolume(s.t.Context(), id, req)
	if err != nil {
		s.t.Fatal(err)
	}
	return v.Export.URI
}

// restart ends the region in order and starts it again.
func (s *served) restart() {
	s.t.Helper()
	s.run[demoEast].end()
	s.start(demoEast)
}

// snapshot takes a snapshot of the volume and waits until it is ready.
func (s *served) snapshot() snapferry.Snapshot {
	s.t.Helper()
	all, err := s.c.SnapshotVolumes(s.t.Context(), client.SnapshotRequest{Volumes: []snapferry.VolumeID{s.volume.ID}})
	if err != nil {
		s.t.Fatal(err)
	}
	return s.ready(all[0].ID)
}

func (s *served) ready(id snapferry.SnapshotID) snapferry.Snapshot {
	s.t.Helper()
	snap, err := s.c.Wait(s.t.Context(), id, nil)
	if err != nil || snap.State != snapferry.SnapshotReady {
		s.t.Fatalf("snapshot: got %s %s, %v, want ready", snap.State, snap.Reason, err)
	}
	return snap
}

// restored makes a volume of a snapshot and returns where it is exported.
func (s *served) restored(id snapferry.SnapshotID) string {
	s.t.Helper()
	all, err := s.c.CreateVolumes(s.t.Context(), client.VolumeRequest{Snapshot: id})
	if err != nil {
		s.t.Fatal(err)
	}
	return s.export(all[0].ID, client.VolumeExportRequest{ReadOnly: true})
}

// rollback puts the volume back to a snapshot and waits for it.
func (s *served) rollback(id snapferry.SnapshotID) {
	s.t.Helper()
	v, err := s.c.RollbackVolume(s.t.Context(), s.volume.ID, client.RollbackRequest{Snapshot: id})
	for err == nil && v.State == snapferry.VolumeRollingBack {
		if err = pause(s.t.Context(), volumePoll); err == nil {
			v, err = s.c.Volume(s.t.Context(), s.volume.ID)
		}
	}
	if err != nil || v.State != snapferry.VolumeAvailable {
		s.t.Fatalf("rollback: got %+v, %v", v, err)
	}
}

// sound checks the whole region.
func (s *served) sound() {
	s.t.Helper()
	report, err := s.c.Fsck(s.t.Context(), true, nil)
	if err != nil || damaged(report) {
		s.t.Errorf("fsck: got %v %+v", err, report)
	}
}

func sameContent(t *testing.T, got, want string) {
	t.Helper()
	if _, err := compareFiles(t.Context(), got, want); err != nil {
		t.Errorf("%s and %s: %v", got, want, err)
	}
}

// TestVolumeClients has the programs that people use work on a volume.
func TestVolumeClients(t *testing.T) {
	tools(t, "qemu-img", "qemu-io", "nbdinfo", "nbdcopy")
	t.Parallel()
	s := newServed(t, 64<<20)
	dir := t.TempDir()
	disk, back := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "back.raw")
	if err := makeSparse(disk, 64<<20, 7); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []extent.Extent{{Off: 40 << 20, Len: 1 << 20}, {Off: 50 << 20, Len: 64 << 10}} { // zeroed and discarded below
		if _, err := f.WriteAt(bytes.Repeat([]byte{'x'}, int(e.Len)), e.Off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := output(t, "qemu-img", "info", s.uri); !strings.Contains(got, "virtual size: 64 MiB") {
		t.Errorf("qemu-img info: got %s", got)
	}
	output(t, "nbdcopy", "--flush", disk, s.uri)
	output(t, "nbdcopy", s.uri, back)
	sameContent(t, back, disk)
	one := s.snapshot()

	output(t, "qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -P 8 2097153 1", "-c", "write -z 40M 1M", "-c", "discard 50M 64k", "-c", "flush", s.uri)
	want := words("0 1048576 0 clean 1048576 65536 1 dirty 1114112 983040 0 clean 2097152 4096 1 dirty 2101248 39841792 0 clean " +
		"41943040 1048576 1 dirty 42991616 9437184 0 clean 52428800 65536 1 dirty 52494336 14614528 0 clean")
	if got := words(output(t, "nbdinfo", "--map=qemu:dirty-bitmap:"+string(one.ID), s.uri)); got != want {
		t.Errorf("what changed: got %s, want %s", got, want)
	}
	s.snapshot() // by its blocks now
	if got := words(output(t, "nbdinfo", "--map=snapferry:changed:"+string(one.ID), s.uri)); !strings.HasPrefix(got, "0 1048576 0 1048576 65536 1 1114112 983040 0 2097152 65536 1") {
		t.Errorf("what changed: got %s", got)
	}
	if got := words(output(t, "nbdinfo", "--map", s.uri)); !strings.Contains(got, "3 hole,zero") {
		t.Errorf("map: got %s", got)
	}
	if got := output(t, "qemu-img", "map", "--output=json", s.uri); !strings.Contains(got, `"start": 0, "length": `) {
		t.Errorf("qemu-img map: got %s", got)
	}
	output(t, "qemu-img", "convert", "-O", "raw", s.uri, back)
	if _, err := compareFiles(t.Context(), back, disk); err == nil {
		t.Error("what was written is not there")
	}

	// A volume of the snapshot has the old content at once, and takes no writes.
	uri := s.restored(one.ID)
	output(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disk)
	if p, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "raw", "-c", "write 0 4k", uri).CombinedOutput(); err == nil {
		t.Errorf("a write to a read-only export: got %s", p)
	}

	// Back, and larger.
	if _, err := s.c.UnexportVolume(t.Context(), s.volume.ID); err != nil {
		t.Fatal(err)
	}
	s.rollback(one.ID)
	s.export(s.volume.ID, client.VolumeExportRequest{})
	output(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri, disk)
	before, err := nbd.Dial(t.Context(), s.uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if _, err := s.c.ResizeVolume(t.Context(), s.volume.ID, 96<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := before.ReadAt(make([]byte, 4096), 64<<20-4096); err != nil || before.Size() != 64<<20 {
		t.Errorf("a connection from before: got size %d, %v", before.Size(), err)
	}
	if got := words(output(t, "nbdinfo", "--size", s.uri)); got != "100663296" {
		t.Errorf("size: got %s", got)
	}
	s.restart()
	if got := words(output(t, "nbdinfo", "--size", s.uri)); got != "100663296" {
		t.Errorf("size after a restart: got %s", got)
	}
	s.sound()
}

// TestVolumeTLS exports a volume over TCP.
func TestVolumeTLS(t *testing.T) {
	tools(t, "nbdinfo", "nbdcopy")
	t.Parallel()
	k := prepareKilled(t, "none", demoEast)
	cfg := k.dev.configs[demoEast]
	cfg.NBDListen = loopback
	if err := writeYAML(k.dev.configFile(demoEast), cfg); err != nil {
		t.Fatal(err)
	}
	k.start(demoEast)
	s := &served{killed: k, c: k.client(demoEast)}
	all, err := s.c.CreateVolumes(t.Context(), client.VolumeRequest{Size: 16 << 20, Count: 2, Name: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	uri := s.export(all[0].ID, client.VolumeExportRequest{TLS: true})
	s.export(all[1].ID, client.VolumeExportRequest{})
	authority, err := pki.Load(k.dev.path("pki"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mine", "strange"} {
		dir := filepath.Join(t.TempDir(), name)
		from := k.dev.path("pki")
		if name == "strange" {
			from = t.TempDir()
			other, err := pki.NewAuthority("other")
			if err == nil {
				err = other.Save(filepath.Join(from, "pki"))
			}
			if err != nil {
				t.Fatal(err)
			}
			from = filepath.Join(from, "pki")
		}
		output(t, "snapferry", "pki", "issue-client", "backup", "--dir", from, "--out", dir)
		if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), authority.CertPEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		with := uri + "?tls-certificates=" + dir
		p, err := exec.CommandContext(t.Context(), "nbdinfo", with).CombinedOutput()
		if in := err == nil; in != (name == "mine") || in && !strings.Contains(string(p), "export-size: 16777216") {
			t.Errorf("%s: got %v %s", name, err, p)
		}
		if name == "mine" {
			list := output(t, "nbdinfo", "--list", with)
			if !strings.Contains(list, string(all[0].ID)) || strings.Contains(list, string(all[1].ID)) {
				t.Errorf("list: got %s, want only the volume that is exported with TLS", list)
			}
			byName := strings.Replace(with, string(all[0].ID), all[0].Name, 1)
			output(t, "nbdcopy", byName, filepath.Join(dir, "disk.raw"))
		}
	}
	plain := strings.Replace(uri, "nbds", "nbd", 1)
	if p, err := exec.CommandContext(t.Context(), "nbdinfo", plain).CombinedOutput(); err == nil {
		t.Errorf("without TLS: got %s", p)
	}
}

// fio runs fio on a stretch of 16 MiB of a volume, in blocks that can be verified
// by themselves.
func fio(uri string, from int64, more ...string) []string {
	return append([]string{
		"--name=volume", "--ioengine=nbd", "--uri=" + uri, "--rw=randwrite", "--bs=4k", "--size=16M", fmt.Sprintf("--offset=%d", from), "--iodepth=8",
		"--verify=crc32c", "--do_verify=0", "--end_fsync=1", "--thread", "--verify_state_save=0",
	}, more...)
}

// TestVolumeSnapshotUnderFio takes snapshots while fio writes: each is the same
// however it is read, and what fio wrote is whole.
func TestVolumeSnapshotUnderFio(t *testing.T) {
	tools(t, "fio", "nbdcopy")
	t.Parallel()
	s := newServed(t, 32<<20)
	output(t, "fio", fio(s.uri, 0)...)
	first := s.snapshot()
	writer := exec.CommandContext(t.Context(), "fio", fio(s.uri, 0, "--rate_iops=2000", "--randseed=5", "--loops=2")...)
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- writer.Wait() }()
	var snaps []snapferry.Snapshot
	for range 3 {
		snaps = append(snaps, s.snapshot())
	}
	if err := <-ended; err != nil {
		t.Errorf("fio: %v", err)
	}
	output(t, "fio", fio(s.uri, 0, "--randseed=5", "--verify_only")...)
	dir := t.TempDir()
	for i, snap := range append(snaps, first) {
		exported, read := filepath.Join(dir, fmt.Sprintf("%d.raw", i)), filepath.Join(dir, fmt.Sprintf("%d.read", i))
		f, err := os.Create(exported)
		if err != nil {
			t.Fatal(err)
		}
		err = s.c.Export(t.Context(), snap.ID, f, nil)
		if cerr := f.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		uri := s.restored(snap.ID)
		output(t, "nbdcopy", uri, read)
		sameContent(t, read, exported)
		if snap.ID == first.ID {
			output(t, "fio", fio(uri, 0, "--verify_only")...)
		}
	}
	s.sound()
}
