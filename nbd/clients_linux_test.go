package nbd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
)

// need skips the test where a program is missing, except on the build machine.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("this test needs %s", p)
			}
			t.Skipf("this test needs %s", p)
		}
	}
}

// program runs a program to its end and returns its output.
func program(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s%s", name, strings.Join(args, " "), err, bad.String(), out.String())
	}
	return out.String()
}

// served serves a disk of size bytes, with data in its first MiB and one MiB
// from the middle on, and returns its URI and file.
func served(t testing.TB, size int64) (uri, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for _, off := range []int64{0, size / 2} {
		pattern(p, int(off)+1)
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	e := &Export{Device: newFileDevice(t, file), MultiConn: true, ExportInfo: ExportInfo{Name: "disk", Description: "for tests"}}
	return "nbd+unix:///disk?socket=" + serveAt(t, &ServerConfig{Exports: shelf{"disk": e}}), file
}

func sameFiles(t testing.TB, got, want string) {
	t.Helper()
	a, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s and %s differ", got, want)
	}
}

func TestQemu(t *testing.T) {
	need(t, "qemu-img", "qemu-io")
	uri, file := served(t, 16<<20)
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(program(t, "qemu-img", "info", "--output=json", "-f", "raw", uri)), &info); err != nil {
		t.Fatal(err)
	}
	if info.Size != 16<<20 {
		t.Errorf("qemu-img info: got %d bytes", info.Size)
	}
	type extent struct {
		Start, Length int64
		Zero          bool
	}
	var extents []extent
	if err := json.Unmarshal([]byte(program(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)), &extents); err != nil {
		t.Fatal(err)
	}
	want := []extent{{0, 1 << 20, false}, {1 << 20, 7 << 20, true}, {8 << 20, 1 << 20, false}, {9 << 20, 7 << 20, true}}
	if diff := cmp.Diff(extents, want); diff != "" {
		t.Errorf("qemu-img map (-got +want):\n%s", diff)
	}
	out := program(t, "qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 0x5a 3000 70000", "-c", "read -P 0x5a 3000 70000",
		"-c", "write -f -P 0x5b 1M 4k", "-c", "flush", "-c", "read -P 0x5b 1M 4k", "-c", "write -z 8M 64k", "-c", "write -z -u 8256k 64k",
		"-c", "read -P 0 8M 128k", "-c", "discard 8M 64k", "-c", "aio_read 0 4M", "-c", "aio_write -P 7 12M 2M", "-c", "aio_flush",
		"-c", "read -P 7 12M 2M", uri)
	if strings.Contains(out, "failed") {
		t.Errorf("qemu-io: %s", out)
	}
	back := filepath.Join(t.TempDir(), "back")
	program(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
	sameFiles(t, back, file)
	other, otherFile := served(t, 16<<20)
	program(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", back, other)
	sameFiles(t, otherFile, back)
}

func TestLibnbd(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy")
	uri, file := served(t, 16<<20)
	got := program(t, "nbdinfo", "--map", uri)
	want := "0 1048576 0 data 1048576 7340032 3 hole,zero 8388608 1048576 0 data 9437184 7340032 3 hole,zero"
	if got = strings.Join(strings.Fields(got), " "); got != want {
		t.Errorf("nbdinfo --map: got %s, want %s", got, want)
	}
	got = program(t, "nbdinfo", "--list", "--json", uri)
	for _, w := range []string{`"export-name": "disk"`, `"description": "for tests"`, `"can_multi_conn": true`, `"base:allocation"`} {
		if !strings.Contains(got, w) {
			t.Errorf("nbdinfo --list: %s is not in %s", w, got)
		}
	}
	back := filepath.Join(t.TempDir(), "back")
	program(t, "nbdcopy", "--connections=4", uri, back)
	sameFiles(t, back, file)
	other, otherFile := served(t, 16<<20)
	program(t, "nbdcopy", "--connections=2", "--flush", file, other)
	sameFiles(t, otherFile, file)
}

func TestNbdsh(t *testing.T) {
	need(t, "nbdsh")
	// Its module is that of the system's python3, of which there may be others.
	nbdsh := []string{"-c", `PATH=/usr/bin:$PATH exec nbdsh "$@"`, "nbdsh", "-c"}
	if err := exec.Command("sh", append(nbdsh, "0")...).Run(); err != nil && os.Getenv("CI") == "" {
		t.Skip("nbdsh does not run here")
	}
	uri, _ := served(t, 16<<20)
	out := program(t, "sh", append(nbdsh, fmt.Sprintf(`
h.add_meta_context("base:allocation")
h.set_strict_mode(0)
h.connect_uri(%q)
def fails(f):
    try:
        f()
        return 0
    except nbd.Error as e:
        return e.errnum
print(h.get_structured_replies_negotiated(), h.can_df(), h.can_multi_conn())
print(fails(lambda: h.pread(512, 16 << 20)), fails(lambda: h.pwrite(b"x", 16 << 20)), fails(lambda: h.zero(16 << 20, 1)))
print(len(h.pread(65536, 0, nbd.CMD_FLAG_DF)))
runs = []
h.block_status(4 << 20, 0, lambda m, o, e, err: runs.extend(e), nbd.CMD_FLAG_REQ_ONE)
print(runs)
h.pwrite(b"hello", 100, nbd.CMD_FLAG_FUA)
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
print(h.pread(4096, 0) == bytearray(4096))
cookies = [h.aio_pread(nbd.Buffer(70000), i * 70000) for i in range(100)]
for c in cookies:
    while not h.aio_command_completed(c):
        h.poll(-1)
h.trim(1 << 20, 0)
h.cache(1 << 20, 0)
h.flush()
h.shutdown()
`, uri))...)
	if want := "True True True\n22 28 28\n65536\n[1048576, 0]\nTrue\n"; out != want {
		t.Errorf("nbdsh: got %q, want %q", out, want)
	}
}

func TestFio(t *testing.T) {
	need(t, "fio")
	if !strings.Contains(program(t, "fio", "--enghelp"), "nbd") {
		t.Skip("this fio has no nbd engine")
	}
	uri, _ := served(t, 16<<20)
	for _, job := range [][]string{
		{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16M"},
		{"--rw=randwrite", "--bs=512-200k", "--iodepth=8", "--size=16M", "--fsync=32"},
		{"--rw=write", "--bs=1M", "--iodepth=4", "--size=16M"},
	} {
		program(t, "fio", append(job, "--name=verify", "--ioengine=nbd", "--uri="+uri, "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--output="+os.DevNull)...)
	}
}

// foreign starts a server of somebody else and returns the URI of its export.
func foreign(t testing.TB, name string, args ...string) string {
	t.Helper()
	need(t, name)
	// The name of a socket has little room.
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	// Both servers take a socket that listens already as systemd hands it over:
	// there is nothing to wait for.
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"`, name}, args...)...)
	cmd.ExtraFiles = []*os.File{f}
	var bad bytes.Buffer
	cmd.Stderr = &bad
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil && t.Failed() {
			t.Logf("%s: %v: %s", name, err, bad.String())
		}
		os.RemoveAll(dir)
	})
	return "nbd+unix:///?socket=" + sock
}

func client(t testing.TB, uri string, contexts ...string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), uri, &ClientConfig{Contexts: contexts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestForeignServers has the client work with other servers, old ones too.
func TestForeignServers(t *testing.T) {
	need(t, "qemu-img", "qemu-nbd", "nbdkit")
	image := func(t *testing.T) string {
		file := filepath.Join(t.TempDir(), "d")
		program(t, "qemu-img", "create", "-q", "-f", "raw", file, "8M")
		return file
	}
	for _, tt := range []struct {
		name string
		uri  func(t *testing.T) string
	}{
		{"qemu-nbd", func(t *testing.T) string {
			return foreign(t, "qemu-nbd", "-f", "raw", "--discard=unmap", "-e", "4", image(t))
		}},
		{"nbdkit", func(t *testing.T) string { return foreign(t, "nbdkit", "-f", "memory", "8M") }},
		{"nbdkit without structured replies", func(t *testing.T) string { return foreign(t, "nbdkit", "-f", "--no-sr", "memory", "8M") }},
		{"nbdkit newstyle without fixed", func(t *testing.T) string { return foreign(t, "nbdkit", "-f", "--mask-handshake=0", "memory", "8M") }},
	} {
		t.Run(tt.name, func(t *testing.T) { testDisk(t, client(t, tt.uri(t), BaseAllocation)) })
	}
	t.Run("nbdkit oldstyle", func(t *testing.T) {
		_, err := Dial(t.Context(), foreign(t, "nbdkit", "-f", "-o", "memory", "8M"), nil)
		wantKind(t, "Dial", err, snapferry.Unsupported)
	})
	t.Run("nbdkit with blocks of 4096", func(t *testing.T) {
		need(t, "nbdkit")
		c := client(t, foreign(t, "nbdkit", "-f", "--filter=blocksize-policy", "memory", "8M",
			"blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"), BaseAllocation)
		if minimum, _, payload := c.BlockSizes(); minimum != 512 || payload != 65536 {
			t.Fatalf("block sizes: got %d and %d", minimum, payload)
		}
		testBlocks(t, c)
	})
}

// TestDirtyBitmap reads a bitmap of qemu, as an import does.
func TestDirtyBitmap(t *testing.T) {
	need(t, "qemu-img", "qemu-io", "qemu-nbd")
	file := filepath.Join(t.TempDir(), "d.qcow2")
	program(t, "qemu-img", "create", "-q", "-f", "qcow2", file, "8M")
	program(t, "qemu-img", "bitmap", "--add", "-g", "65536", "-f", "qcow2", file, "b0")
	program(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 64k", "-c", "write -P 2 2000k 100k", file)
	const name = "qemu:dirty-bitmap:b0"
	c := client(t, foreign(t, "qemu-nbd", "-r", "-f", "qcow2", "-B", "b0", file), name, BaseAllocation)
	if diff := cmp.Diff(c.Contexts(), []string{BaseAllocation, name}); diff != "" {
		t.Fatalf("contexts (-got +want):\n%s", diff)
	}
	type run struct{ Off, Len int64 }
	var dirty []run
	var off int64
	if err := c.Status(t.Context(), name, 0, c.Size(), func(n int64, flags uint32) error {
		if flags&1 != 0 {
			dirty = append(dirty, run{off, n})
		}
		off += n
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(dirty, []run{{1 << 20, 64 << 10}, {1984 << 10, 128 << 10}}); diff != "" {
		t.Errorf("dirty (-got +want):\n%s", diff)
	}
}
