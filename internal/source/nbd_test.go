package source_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/source"
	"github.com/snapferry/snapferry/nbd"
)

// shown is a disk that an NBD server shows: its data, and what of it changed.
type shown struct {
	content []byte
	changed []extent.Extent
	plain   bool // it does not tell what is where
}

func (s *shown) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(s.content).ReadAt(p, off)
}
func (s *shown) WriteAt(p []byte, off int64) (int, error) { return 0, errors.New("read only") }
func (s *shown) Sync() error                              { return nil }
func (s *shown) Size() int64                              { return int64(len(s.content)) }

func (s *shown) Contexts() []string {
	if s.plain {
		return nil
	}
	return []string{nbd.BaseAllocation, "qemu:dirty-bitmap:b"}
}

func (s *shown) Status(_ context.Context, name string, off, n int64, fn func(int64, uint32) error) error {
	for at := off / 512 * 512; at < off+n; at += 512 {
		flags := uint32(0)
		if name == nbd.BaseAllocation {
			if bytes.Equal(s.content[at:at+512], make([]byte, 512)) {
				flags = nbd.StateHole | nbd.StateZero
			}
		} else if slices.ContainsFunc(s.changed, func(e extent.Extent) bool { return at >= e.Off && at < e.End() }) {
			flags = 1
		}
		if err := fn(min(at+512, off+n)-max(at, off), flags); err != nil {
			return err
		}
	}
	return nil
}

func (s *shown) List(context.Context) ([]nbd.ExportInfo, error) { return nil, nil }

func (s *shown) Open(_ context.Context, name string) (*nbd.Export, error) {
	if name != "disk" {
		return nil, snapferry.Errorf(snapferry.NotFound, "no export %q", name)
	}
	return &nbd.Export{Device: s, ReadOnly: true}, nil
}

// dial connects to a server of s.
func (s *shown) dial(t *testing.T) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		nbd.Serve(context.Background(), there, &nbd.ServerConfig{Exports: s})
	}()
	t.Cleanup(func() { here.Close(); <-ended })
	return here
}

// allOf returns what next gives, from the beginning.
func allOf(t *testing.T, size int64, next func(int64) (extent.Extent, bool, error)) (all []extent.Extent) {
	t.Helper()
	for off := int64(0); off < size; {
		e, ok, err := next(off)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if e.Off < off || e.Len <= 0 || e.End() > size {
			t.Fatalf("at %d: got %v of a disk of %d", off, e, size)
		}
		all, off = append(all, e), e.End()
	}
	return all
}

func TestFromNBD(t *testing.T) {
	s := &shown{content: make([]byte, 3<<20+512), changed: []extent.Extent{{Off: 4096, Len: 1024}, {Off: 2 << 20, Len: 512}}}
	rng := rand.New(rand.NewPCG(1, 1))
	data := []extent.Extent{{Off: 0, Len: 512}, {Off: 65536, Len: 4096}, {Off: 3 << 20, Len: 512}}
	for _, e := range data {
		for i := e.Off; i < e.End(); i++ {
			s.content[i] = byte(1 + rng.IntN(255))
		}
	}
	r, err := source.FromNBD(t.Context(), s.dial(t), source.RemoteConfig{ClientConfig: nbd.ClientConfig{Export: "disk"}, Bitmap: "b", Name: "it"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if diff := cmp.Diff(allOf(t, r.Size(), r.Next), data); diff != "" {
		t.Errorf("data (-got +want):\n%s", diff)
	}
	d, ok := r.Since()
	if !ok {
		t.Fatal("no bitmap")
	}
	if diff := cmp.Diff(allOf(t, d.Size(), d.Next), s.changed); diff != "" {
		t.Errorf("changed (-got +want):\n%s", diff)
	}
	for range 200 { // any order
		off := rng.Int64N(r.Size())
		e, ok, err := r.Next(off)
		i := slices.IndexFunc(data, func(e extent.Extent) bool { return e.End() > off })
		if err != nil || ok != (i >= 0) || ok && (e.Off != max(off, data[i].Off) || e.End() != data[i].End()) {
			t.Fatalf("next at %d: got %v %v %v", off, e, ok, err)
		}
	}
	got := make([]byte, r.Size())
	if _, err := r.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, s.content) {
		t.Errorf("content differs, or %v", err)
	}
}

// A server that cannot tell what is where has data everywhere.
func TestFromPlainNBD(t *testing.T) {
	s := &shown{content: make([]byte, 1<<20), plain: true}
	r, err := source.FromNBD(t.Context(), s.dial(t), source.RemoteConfig{ClientConfig: nbd.ClientConfig{Export: "disk"}, Name: "it"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if diff := cmp.Diff(allOf(t, r.Size(), r.Next), []extent.Extent{{Off: 0, Len: 1 << 20}}); diff != "" {
		t.Errorf("data (-got +want):\n%s", diff)
	}
	if _, ok := r.Since(); ok {
		t.Error("a bitmap that was not asked for")
	}
}

func TestFromNBDRefused(t *testing.T) {
	for name, test := range map[string]struct {
		size   int
		export string
		bitmap string
		want   snapferry.Kind
	}{
		"no export":  {1 << 20, "other", "", snapferry.NotFound},
		"no bitmap":  {1 << 20, "disk", "c", snapferry.NotFound},
		"odd size":   {1000, "disk", "", snapferry.Invalid},
		"empty disk": {0, "disk", "", snapferry.Invalid},
	} {
		s := &shown{content: make([]byte, test.size)}
		_, err := source.FromNBD(t.Context(), s.dial(t), source.RemoteConfig{ClientConfig: nbd.ClientConfig{Export: test.export}, Bitmap: test.bitmap, Name: "it"})
		if !snapferry.IsKind(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestFormatOf(t *testing.T) {
	for path, want := range map[string]string{
		"a.raw": "raw", "a": "raw", "a.img": "raw", "a.qcow2": "qcow2", "A.QCOW2": "qcow2", "b/a.vmdk": "vmdk", "a.vhd": "vpc", "a.vhdx": "vhdx", "a.vdi": "vdi", "qcow2": "raw",
	} {
		if got := source.FormatOf(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	if got, err := source.CheckFormat("vhd"); err != nil || got != "vpc" {
		t.Errorf("vhd: got %s, %v", got, err)
	}
	if _, err := source.CheckFormat("iso"); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("iso: got %v", err)
	}
}

// Images of all formats read as the disk that was converted to them; of a qcow2
// with a bitmap what changed since is known.
func TestServe(t *testing.T) {
	needTools(t, "qemu-img", "qemu-nbd", "qemu-io")
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	content := make([]byte, 8<<20)
	for i := 1 << 20; i < 2<<20; i++ {
		content[i] = byte(i>>8) | 1
	}
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"qcow2", "vmdk", "vpc", "vhdx", "vdi"} {
		path := filepath.Join(dir, "disk."+format)
		args := []string{"convert", "-f", "raw", "-O", format}
		if format == "vpc" {
			args = append(args, "-o", "force_size=on") // else its geometry makes the disk larger
		}
		run(t, "qemu-img", append(args, raw, path)...)
		if format == "qcow2" {
			run(t, "qemu-img", "bitmap", "--add", "-g", "65536", path, "since")
			run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 3M 64k", path)
			copy(content[3<<20:], bytes.Repeat([]byte{7}, 64<<10))
			defer clear(content[3<<20 : 3<<20+64<<10])
		}
		bitmap := map[string]string{"qcow2": "since"}[format]
		conn, err := source.Serve(t.Context(), path, format, bitmap)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		r, err := source.FromNBD(t.Context(), conn, source.RemoteConfig{Bitmap: bitmap, Name: path})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		got := make([]byte, r.Size())
		if _, err := r.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, content) {
			t.Errorf("%s: content differs, or %v", format, err)
		}
		if d, ok := r.Since(); ok {
			if diff := cmp.Diff(allOf(t, d.Size(), d.Next), []extent.Extent{{Off: 3 << 20, Len: 64 << 10}}); diff != "" {
				t.Errorf("%s: changed (-got +want):\n%s", format, diff)
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		if format == "qcow2" {
			clear(content[3<<20 : 3<<20+64<<10])
		}
	}
	if _, err := source.Serve(t.Context(), raw, "qcow2", ""); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("a raw disk as qcow2: got %v", err)
	}
	if _, err := source.Serve(t.Context(), filepath.Join(dir, "none.qcow2"), "qcow2", ""); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("no image: got %v", err)
	}
	t.Setenv("PATH", dir)
	if _, err := source.Serve(t.Context(), raw, "qcow2", ""); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("without qemu-nbd: got %v", err)
	}
}
