package dirblob

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
)

// mount mounts a small file system, or skips the test where it may not.
func mount(t *testing.T, kind string) string {
	t.Helper()
	dir := t.TempDir()
	var err error
	switch kind {
	case "tmpfs":
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m")
	default:
		image := filepath.Join(t.TempDir(), "image")
		err = os.WriteFile(image, nil, 0o600)
		if err == nil {
			err = os.Truncate(image, 16<<20)
		}
		for _, args := range [][]string{{"mkfs." + kind, "-q", image}, {"mount", "-o", "loop", image, dir}} {
			if err == nil {
				var out []byte
				if out, err = exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					err = errors.New(string(out) + err.Error())
				}
			}
		}
	}
	if err != nil {
		if os.Geteuid() == 0 && os.Getenv("CI") != "" {
			t.Fatalf("mount %s: %v", kind, err)
		}
		t.Skipf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestFull fills a file system.
func TestFull(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			if os.Geteuid() != 0 && os.Getenv("CI") == "" {
				t.Skip("needs root to mount")
			}
			d := mustOpen(t, mount(t, kind), nil)
			b := blob.New(d)
			defer b.Close()
			for _, size := range []int{1<<20 + 11, 200_000} {
				testFull(t, b, d, size)
			}
		})
	}
}

func testFull(t *testing.T, b *blob.Bucket, d *Driver, size int) {
	ctx := t.Context()
	body := blob.AlignedBuffer(size)
	copy(body, blobtest.Bytes(5, size))
	name := func(i int) string { return "objects/" + string(rune('a'+i/26)) + string(rune('a'+i%26)) + "x" }
	n := 0
	var err error
	for ; n < 200; n++ {
		if err = b.Put(ctx, name(n), body); err != nil {
			break
		}
	}
	if !snapferry.IsKind(err, snapferry.Full) || snapferry.HintOf(err) == "" {
		t.Fatalf("put number %d: got %v, want an error of kind %s with a hint", n, err, snapferry.Full)
	}
	if _, err := b.Size(ctx, name(n)); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("what did not fit: got %v, want an error of kind %s", err, snapferry.NotFound)
	}
	listed := 0
	if err := b.List(ctx, "", "", func(i blob.Info) error {
		if listed++; i.Size != int64(size) {
			t.Errorf("%s has %d bytes, want %d", i.Name, i.Size, size)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if listed != n {
		t.Errorf("%d objects are listed, want %d", listed, n)
	}
	if left, err := d.fs.ReadDir(tempDir); err != nil || len(left) > 0 {
		t.Errorf("temporary files: got %v, %v, want none", left, err)
	}
	if err := b.Delete(ctx, name(0)); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(ctx, name(n), body); err != nil {
		t.Errorf("put after space was made: %v", err)
	}
	for i := range n + 1 {
		if err := b.Delete(ctx, name(i)); err != nil {
			t.Fatal(err)
		}
	}
}
