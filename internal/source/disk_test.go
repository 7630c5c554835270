package source_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/source"
)

const page = 4096

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, size := range map[string]int64{"empty": 0, "odd": 511, "odd2": 1 << 20 * 3 / 2 * 1001 / 1000, "fine": 512} {
		f, err := os.Create(in(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for _, err := range []error{
		unix.Mkfifo(in("pipe"), 0o666), os.Symlink("nowhere", in("dangling")), os.Symlink("circle", in("circle")), os.Mkdir(in("folder"), 0o777),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", in("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	tests := []struct {
		path string
		kind snapferry.Kind
	}{
		{in("missing"), snapferry.NotFound},
		{in("missing/disk"), snapferry.NotFound},
		{in("fine/disk"), snapferry.NotFound},
		{in("dangling"), snapferry.NotFound},
		{in("circle"), snapferry.Invalid},
		{in("folder"), snapferry.Invalid},
		{in("pipe"), snapferry.Invalid},
		{in("socket"), snapferry.Unavailable},
		{"/dev/null", snapferry.Invalid},
		{in("empty"), snapferry.Invalid},
		{in("odd"), snapferry.Invalid},
		{in("odd2"), snapferry.Invalid},
		{in(strings.Repeat("n", 300)), snapferry.Invalid},
		{"", snapferry.NotFound},
	}
	for _, test := range tests {
		t.Run(filepath.Base(test.path), func(t *testing.T) {
			d, err := source.Open(test.path)
			if err == nil {
				d.Close()
			}
			wantKind(t, err, test.kind, test.path)
		})
	}
}

func TestOpenDenied(t *testing.T) {
	name := sparseFile(t, t.TempDir(), page)
	if err := os.Chmod(name, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	asNobody(t, func() { _, err = source.Open(name) })
	wantKind(t, err, snapferry.Denied, name)
}

func TestTooLarge(t *testing.T) {
	dir := mount(t, "none", "tmpfs", "size=1m")
	_, err := source.Open(sparseFile(t, dir, snapferry.MaxVolumeSize+512))
	if !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("a disk of 64 TiB and a sector: got %v, want Invalid", err)
	}
}

func TestReadAt(t *testing.T) {
	name := sparseFile(t, t.TempDir(), 3*512)
	writeAt(t, name, []byte("end"), 3*512-3)
	d, err := source.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Size(); got != 3*512 {
		t.Errorf("size: got %d, want %d", got, 3*512)
	}
	tests := []struct {
		off  int64
		n    int
		want string
		err  error
	}{
		{0, 2, "\x00\x00", nil},
		{3*512 - 3, 3, "end", nil},
		{3*512 - 3, 4, "end", io.EOF},
		{3*512 - 1, 100, "d", io.EOF},
		{3 * 512, 1, "", io.EOF},
		{1 << 60, 1, "", io.EOF},
	}
	for _, test := range tests {
		p := make([]byte, test.n)
		n, err := d.ReadAt(p, test.off)
		if string(p[:n]) != test.want || !errors.Is(err, test.err) {
			t.Errorf("read %d at %d: got %q, %v, want %q, %v", test.n, test.off, p[:n], err, test.want, test.err)
		}
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("read at -1: got %v, want Invalid", err)
	}
}

// data returns all extents of a disk, after checking what Next promises.
func data(t *testing.T, d *source.Disk) []extent.Extent {
	t.Helper()
	var all []extent.Extent
	for off := int64(0); ; {
		e, ok, err := d.Next(off)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		if e.Off < off || e.Len <= 0 || e.Off+e.Len > d.Size() {
			t.Fatalf("Next(%d) of %d bytes: got %+v", off, d.Size(), e)
		}
		all = append(all, e)
		off = e.Off + e.Len
	}
}

func TestNext(t *testing.T) {
	const mib = 1 << 20
	tests := []struct {
		name   string
		size   int64
		writes []extent.Extent
		want   []extent.Extent
	}{
		{"nothing", 8 * mib, nil, nil},
		{"everything", 2 * mib, []extent.Extent{{Off: 0, Len: 2 * mib}}, []extent.Extent{{Off: 0, Len: 2 * mib}}},
		{"islands", 16 * mib, []extent.Extent{{Off: 4 * mib, Len: mib}, {Off: 8 * mib, Len: 64 << 10}}, []extent.Extent{{Off: 4 * mib, Len: mib}, {Off: 8 * mib, Len: 64 << 10}}},
		{"the last sector", 8*mib + 512, []extent.Extent{{Off: 8 * mib, Len: 512}}, []extent.Extent{{Off: 8 * mib, Len: 512}}},
	}
	for fs, folder := range folders(t) {
		t.Run(fs, func(t *testing.T) {
			dir := folder(t)
			for _, test := range tests {
				t.Run(test.name, func(t *testing.T) {
					name := sparseFile(t, dir, test.size)
					defer os.Remove(name)
					for _, e := range test.writes {
						writeAt(t, name, fill(int(e.Len), 1), e.Off)
					}
					d, err := source.Open(name)
					if err != nil {
						t.Fatal(err)
					}
					defer d.Close()
					got := data(t, d)
					if fs == "temp" && test.name != "everything" && len(got) == 1 && got[0].Len == test.size {
						t.Skip("the file system of the temporary folder does not tell holes")
					}
					if diff := cmp.Diff(got, test.want); diff != "" {
						t.Errorf("extents (-got +want):\n%s", diff)
					}
					if _, _, err := d.Next(-1); !snapferry.IsKind(err, snapferry.Invalid) {
						t.Errorf("Next(-1): got %v, want Invalid", err)
					}
				})
			}
		})
	}
}

// TestHuge has the largest disk there is, on file systems that hold it.
func TestHuge(t *testing.T) {
	const last = snapferry.MaxVolumeSize - page
	for fs, folder := range folders(t) {
		if fs == "temp" {
			continue
		}
		t.Run(fs, func(t *testing.T) {
			name := filepath.Join(folder(t), "huge.raw")
			target, err := source.Create(name, snapferry.MaxVolumeSize, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := target.ZeroRange(t.Context(), extent.Extent{Off: page, Len: last}); err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{0, 1 << 45, last} {
				if _, err := target.WriteAt(fill(page, 7), off); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(target.Finish(t.Context()), target.Close()); err != nil {
				t.Fatal(err)
			}
			d, err := source.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			got := data(t, d)
			want := []extent.Extent{{Off: 0, Len: page}, {Off: 1 << 45, Len: page}, {Off: last, Len: page}}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("extents (-got +want):\n%s", diff)
			}
			if got := allocated(t, name); got > 1<<20 {
				t.Errorf("three pages take %d bytes of the file system", got)
			}
		})
	}
}

func TestBlockDevice(t *testing.T) {
	const size = 3<<20 + 512
	device, backing := loopDevice(t, size)
	d, err := source.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Size(); got != size {
		t.Errorf("size: got %d, want %d", got, size)
	}
	want := []extent.Extent{{Off: 0, Len: size}}
	if diff := cmp.Diff(data(t, d), want); diff != "" {
		t.Errorf("extents (-got +want):\n%s", diff)
	}
	if err := d.Changed(); err != nil {
		t.Errorf("unchanged: got %v", err)
	}
	if err := os.Truncate(backing, 2*size); err != nil {
		t.Fatal(err)
	}
	run(t, "losetup", "-c", device)
	wantKind(t, d.Changed(), snapferry.Conflict, device)
}

func TestChanged(t *testing.T) {
	const size = 1 << 20
	tests := []struct {
		name   string
		change func(name string) error
		read   bool // reading the end sees it too
	}{
		{"longer", func(name string) error { return os.Truncate(name, 2*size) }, false},
		{"shorter", func(name string) error { return os.Truncate(name, size/2) }, true},
		{"written", func(name string) error { return os.Chtimes(name, time.Time{}, time.Now().Add(time.Hour)) }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			name := sparseFile(t, t.TempDir(), size)
			writeAt(t, name, fill(size, 1), 0)
			d, err := source.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := d.ReadAt(make([]byte, size), 0); err != nil {
				t.Fatal(err)
			}
			if err := d.Changed(); err != nil {
				t.Fatalf("unchanged: got %v", err)
			}
			if err := test.change(name); err != nil {
				t.Fatal(err)
			}
			wantKind(t, d.Changed(), snapferry.Conflict, name)
			data(t, d)
			_, err = d.ReadAt(make([]byte, page), size-page)
			if !test.read && err != nil {
				t.Errorf("read: got %v", err)
			}
			if test.read {
				wantKind(t, err, snapferry.Conflict, name)
			}
		})
	}
}

func TestFromFile(t *testing.T) {
	name := sparseFile(t, t.TempDir(), 1<<20)
	writeAt(t, name, fill(page, 9), 512<<10)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	direct := setFlag(t, f, unix.O_DIRECT)
	if _, err := f.Seek(777, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	d, err := source.FromFile(f, "passed")
	if err != nil {
		t.Fatal(err)
	}
	data(t, d)
	p := make([]byte, 3)
	if _, err := d.ReadAt(p, 512<<10+1); err != nil || !bytes.Equal(p, fill(3, 9)) {
		t.Errorf("read of odd bytes: got %v, %v", p, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if at, err := f.Seek(0, io.SeekCurrent); at != 777 || err != nil {
		t.Errorf("the caller's position: got %d, %v, want 777", at, err)
	}
	if got := flags(t, f)&unix.O_DIRECT != 0; got != direct {
		t.Errorf("the caller's O_DIRECT: got %v, want %v", got, direct)
	}

	// The caller may close first.
	if d, err = source.FromFile(f, "passed"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Errorf("read after the caller closed: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := source.FromFile(f, "passed"); err == nil {
		t.Error("a closed file was accepted")
	}
}

// TestFromFileDenied: a descriptor proves only the right it was opened with.
func TestFromFileDenied(t *testing.T) {
	name := sparseFile(t, t.TempDir(), page)
	for _, flags := range []int{os.O_WRONLY, unix.O_PATH} {
		f, err := os.OpenFile(name, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := source.FromFile(f, "passed"); !snapferry.IsKind(err, snapferry.Denied) {
			t.Errorf("flags %#x: got %v, want Denied", flags, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_, err = source.FromFile(r, "passed")
	wantKind(t, err, snapferry.Invalid, "passed")
}

func flags(t *testing.T, f *os.File) int {
	t.Helper()
	fl, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fl
}

// setFlag sets a flag where the file system knows it, and reports that.
func setFlag(t *testing.T, f *os.File, flag int) bool {
	t.Helper()
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags(t, f)|flag)
	return err == nil
}
