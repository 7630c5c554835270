package source_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

// needRoot skips a test that mounts things where that is not possible; on the
// build machine (CI set) it fails there.
func needRoot(t *testing.T, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		lacks(t, "root")
	}
	needTools(t, tools...)
}

// needTools does so where a program is missing.
func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			lacks(t, tool)
		}
	}
}

func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		lack := name + " " + strings.Join(args, " ") + ": " + string(out)
		if os.Getenv("CI") == "" {
			t.Skip("cannot do here: " + lack)
		}
		t.Fatal(lack)
	}
	return strings.TrimSpace(string(out))
}

// loopDevice makes a block device of size bytes over a sparse file and returns
// both paths.
func loopDevice(t *testing.T, size int64) (device, backing string) {
	t.Helper()
	needRoot(t, "losetup")
	backing = sparseFile(t, t.TempDir(), size)
	device = run(t, "losetup", "--find", "--show", backing)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	return device, backing
}

// mount mounts a file system until the test ends.
func mount(t *testing.T, device, kind, options string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount(device, dir, kind, 0, options); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("cannot mount %s here: %v", kind, err)
		}
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func mountXFS(t *testing.T) string {
	t.Helper()
	needRoot(t, "losetup", "mkfs.xfs")
	device, _ := loopDevice(t, 320<<20)
	run(t, "mkfs.xfs", "-q", device)
	return mount(t, device, "xfs", "")
}

// folders returns a directory on each file system there is to test on.
func folders(t *testing.T) map[string]func(*testing.T) string {
	t.Helper()
	return map[string]func(*testing.T) string{
		"temp":  func(t *testing.T) string { return t.TempDir() },
		"tmpfs": func(t *testing.T) string { return mount(t, "none", "tmpfs", "size=64m") },
		"xfs":   mountXFS,
	}
}

func sparseFile(t *testing.T, dir string, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "disk*.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func writeAt(t *testing.T, name string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// wantKind checks the Kind of an error, that its message names what it is
// about, and that refusals come with a remedy.
func wantKind(t *testing.T, err error, kind snapferry.Kind, name string) {
	t.Helper()
	switch {
	case err == nil:
		t.Fatalf("got no error, want one of kind %v", kind)
	case snapferry.KindOf(err) != kind:
		t.Fatalf("got kind %v (%v), want %v", snapferry.KindOf(err), err, kind)
	case !strings.Contains(err.Error(), name):
		t.Errorf("message %q does not name %s", err, name)
	case snapferry.HintOf(err) == "":
		t.Errorf("%q has no hint", err)
	}
}

// asNobody runs fn on a thread that has no rights to the files of root.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		fn()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setfsuid(65534); err != nil {
			t.Errorf("setfsuid: %v", err)
			return
		}
		fn()
	}()
	<-done
}

func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func temp(t *testing.T, name string) string { return filepath.Join(t.TempDir(), name) }
