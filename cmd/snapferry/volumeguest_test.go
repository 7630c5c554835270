package main

import (
	"bufio"
	"crypto/md5"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
)

var guestDir = flag.String("guest", "", "what testdata/guest.sh fetched, for TestVolumeGuest")

const (
	guestSnapshots = 3
	guestRecords   = 40 // that a guest writes before each snapshot

	// guestInit is what a guest starts from memory: it goes on with its disk.
	guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /root
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
	/bin/busybox insmod /$m.ko
done
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t ext4 /dev/vda /root
exec /bin/busybox switch_root /root /sbin/init "$@"
`
	// guestDisk is what it starts there: it writes records until it is killed, or
	// shows those that are there.
	guestDisk = `#!/bin/busybox sh
alias busybox=/bin/busybox
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
exec >/dev/console
n=0
while [ "$1" = write ]; do
	n=$((n + 1))
	echo "record $n $(echo $n | busybox md5sum)" >>/records
	busybox cp /records /copy.new
	busybox mv /copy.new /copy.$((n % 4))
	busybox rm -f /copy.$(((n + 2) % 4))
	busybox sync
	echo "acked $n"
done
busybox cat /records
echo
busybox mount -o remount,ro / && echo shown
busybox reboot -f
`
)

// guestFiles writes what a guest starts from memory, and its disk of 64 MiB.
func guestFiles(t *testing.T, initrd, disk string) {
	t.Helper()
	shell, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	memory, root := t.TempDir(), t.TempDir()
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{memory, root} {
		for _, name := range []string{"bin", "dev", "proc"} {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		output(t, "cp", "-L", shell, filepath.Join(dir, "bin", "busybox"))
	}
	put(filepath.Join(memory, "init"), guestInit)
	put(filepath.Join(root, "sbin", "init"), guestDisk)
	modules, err := filepath.Glob(filepath.Join(*guestDir, "*.ko"))
	if err != nil || len(modules) == 0 {
		t.Fatalf("%s has no modules, %v: make it with testdata/guest.sh", *guestDir, err)
	}
	output(t, "cp", append(modules, memory)...)
	output(t, "sh", "-c", `cd "$1" && find . | busybox cpio -o -H newc >"$2"`, "sh", memory, initrd)
	output(t, "mkfs.ext4", "-q", "-d", root, disk, "64M")
}

// A guest is a virtual machine that runs from a volume.
type guest struct {
	t     *testing.T
	cmd   *exec.Cmd
	acked atomic.Int64  // the last record that it said was durable
	steps chan struct{} // one for each while somebody waits
	shown []string      // what else it said; after ended
	ended chan struct{}
}

// boot starts a guest, which is to "write" or to "show" what is there.
func boot(t *testing.T, initrd, uri, what string) *guest {
	t.Helper()
	cmd := exec.Command("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", filepath.Join(*guestDir, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet loglevel=1 panic=-1 "+what, "-drive", "file="+uri+",format=raw,if=virtio,cache=none")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, cmd: cmd, steps: make(chan struct{}), ended: make(chan struct{})}
	go g.read(out)
	t.Cleanup(g.kill)
	return g
}

func (g *guest) read(out io.Reader) {
	defer close(g.ended)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		number, ok := strings.CutPrefix(line, "acked ")
		if !ok {
			g.shown = append(g.shown, line)
			continue
		}
		if n, err := strconv.ParseInt(number, 10, 64); err == nil {
			g.acked.Store(n)
		}
		select {
		case g.steps <- struct{}{}:
		default:
		}
	}
	_ = g.cmd.Wait() // it may have been killed
}

// kill ends a guest as a loss of power does.
func (g *guest) kill() {
	_ = g.cmd.Process.Kill() // it may have ended
	<-g.ended
}

// await waits until a guest has written so many records more.
func (g *guest) await(n int64) {
	g.t.Helper()
	for until := g.acked.Load() + n; g.acked.Load() < until; {
		select {
		case <-g.steps:
		case <-g.ended:
			g.t.Fatalf("the guest ended after record %d:\n%s", g.acked.Load(), strings.Join(g.shown, "\n"))
		}
	}
}

// shows starts a guest that shows its records, and wants all up to least there,
// and each only with those before it. It returns the last.
func shows(t *testing.T, initrd, uri string, least int64) (last int64) {
	t.Helper()
	g := boot(t, initrd, uri, "show")
	<-g.ended
	whole := false
	for _, line := range g.shown {
		whole = whole || line == "shown"
		if !strings.HasPrefix(line, "record ") {
			continue
		}
		want := fmt.Sprintf("record %d %x  -", last+1, md5.Sum(fmt.Appendln(nil, last+1)))
		if line == want {
			last++
		} else if last < least || !strings.HasPrefix(want, line) { // else it was not whole yet
			t.Errorf("after record %d: got %q, want %q", last, line, want)
		}
	}
	if !whole || last < least {
		t.Errorf("the guest shows %d records, to the end: %t; want %d\n%s", last, whole, least, strings.Join(g.shown, "\n"))
	}
	return last
}

// over makes a volume of a snapshot the volume, and exports it.
func (s *served) over(id snapferry.SnapshotID) {
	s.t.Helper()
	all, err := s.c.CreateVolumes(s.t.Context(), client.VolumeRequest{Snapshot: id})
	if err != nil {
		s.t.Fatal(err)
	}
	s.volume = all[0]
	s.uri = s.export(s.volume.ID, client.VolumeExportRequest{})
}

// clean wants the file system of the volume, which no guest uses, to be clean.
func (s *served) clean() {
	s.t.Helper()
	f := s.exported(s.snapshot().ID, filepath.Join(s.t.TempDir(), "disk.raw"))
	defer f.Close()
	output(s.t, "e2fsck", "-fn", f.Name())
}

// TestVolumeGuest boots a virtual machine from a volume, takes snapshots while it
// writes, copies them to another region, and boots machines from volumes of the
// copies. At last the machine and its region lose their power. All records that
// were acknowledged are there, and the file systems are clean.
func TestVolumeGuest(t *testing.T) {
	if *guestDir == "" {
		t.Skip("takes minutes; run it with -guest")
	}
	tools(t, "qemu-system-x86_64", "busybox", "mkfs.ext4", "e2fsck")
	k := prepareKilled(t, "zstd", demoEast, demoWest)
	k.start(demoEast)
	k.start(demoWest)
	east, west := &served{killed: k, c: k.client(demoEast)}, &served{killed: k, c: k.client(demoWest)}
	initrd, disk := filepath.Join(t.TempDir(), "initrd"), filepath.Join(t.TempDir(), "disk.raw")
	guestFiles(t, initrd, disk)
	f, err := source.OpenRead(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	snap, err := east.c.Import(t.Context(), client.ImportRequest{Volume: "guest"}, f)
	if err != nil {
		t.Fatal(err)
	}
	east.over(east.ready(snap.ID).ID)
	g := boot(t, initrd, east.uri, "write")
	for range guestSnapshots {
		g.await(guestRecords)
		least := g.acked.Load()
		id := east.snapshot().ID
		c, err := west.c.Copy(t.Context(), client.CopyRequest{From: demoEast, Source: id})
		if err != nil {
			t.Fatal(err)
		}
		west.over(west.ready(c.ID).ID)
		last := shows(t, initrd, west.uri, least)
		west.clean()
		t.Logf("a copy of a snapshot after record %d has %d; the guest is at %d", least, last, g.acked.Load())
	}
	g.await(guestRecords)
	g.kill()
	k.kill(demoEast)
	acked := g.acked.Load()
	t.Logf("killed after record %d, came back with %d", acked, shows(t, initrd, east.uri, acked))
	east.clean()
	east.sound()
	west.sound()
}
