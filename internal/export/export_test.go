package export_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/export"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/nbd"
)

const size = 1 << 20

// region has volumes that are never snapshotted.
type region struct {
	fs *layer.Dir

	mu   sync.Mutex
	open map[snapferry.VolumeID]*head.Volume
}

func newRegion(t *testing.T) *region {
	fs, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &region{fs: fs, open: map[snapferry.VolumeID]*head.Volume{}}
	t.Cleanup(func() {
		for _, v := range r.open {
			v.Close()
		}
		fs.Close()
	})
	return r
}

func (r *region) Live(ctx context.Context, id snapferry.VolumeID) (*head.Volume, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.open[id]; v != nil {
		return v, nil
	}
	if strings.HasPrefix(string(id), "broken") {
		return nil, snapferry.Errorf(snapferry.Corrupt, "volume %s is broken", id)
	}
	if err := head.Create(r.fs, string(id), size, snapferry.VersionID{}, nil); err != nil {
		return nil, err
	}
	v, err := head.Open(ctx, head.Config{FS: r.fs, Dir: string(id)})
	r.open[id] = v
	return v, err
}

func (r *region) SnapshotsOfVolume(context.Context, snapferry.VolumeID) ([]snapferry.SnapshotID, error) {
	return []snapferry.SnapshotID{"snap-2", "snap-1"}, nil
}

func (r *region) ChangedSince(_ context.Context, _ snapferry.VolumeID, id snapferry.SnapshotID) (*control.Changes, error) {
	return nil, snapferry.Errorf(snapferry.NotFound, "there is no snapshot %s", id)
}

// server serves the volumes of a region.
type server struct {
	*export.Server
	region *region
	dir    string
}

// newServer starts a server; c has what it needs beside a region and a place.
func newServer(t *testing.T, c export.Config) *server {
	s := &server{region: newRegion(t), dir: t.TempDir()}
	c.Region, c.Sockets = func() export.Region { return s.region }, s.dir
	s.Server = export.New(c)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func (s *server) serve(t *testing.T, id snapferry.VolumeID, name string, e snapferry.Export) snapferry.Export {
	t.Helper()
	e, err := s.Serve(id, name, e)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// dial connects to an export of a socket.
func dial(t *testing.T, socket, name string) (*nbd.Client, error) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c, err := nbd.NewClient(t.Context(), conn, &nbd.ClientConfig{Export: name, Contexts: []string{nbd.BaseAllocation, "qemu:dirty-bitmap:snap-1"}})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func mustDial(t *testing.T, socket, name string) *nbd.Client {
	t.Helper()
	c, err := dial(t, socket, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSocket(t *testing.T) {
	s := newServer(t, export.Config{})
	e := s.serve(t, "vol-1", "web", snapferry.Export{})
	if want := filepath.Join(s.dir, "vol-1.sock"); e.Socket != want || e.URI != "nbd+unix:///?socket="+want {
		t.Errorf("export: got %+v", e)
	}
	if st, err := os.Stat(e.Socket); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: got %v, %v", st, err)
	}
	// By all its names, the connections are of one disk.
	for i, name := range []string{"", "web", "vol-1"} {
		c := mustDial(t, e.Socket, name)
		p := []byte{byte(i)}
		if _, err := c.WriteAt(p, int64(i)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, i+1)
		if _, err := c.ReadAt(got, 0); err != nil || !slices.Equal(got, []byte{0, 1, 2}[:i+1]) {
			t.Errorf("by %q: got %v, %v", name, got, err)
		}
		if f := c.Flags(); !f.Has(nbd.CanMultiConn|nbd.CanTrim|nbd.CanFastZero|nbd.CanCache) || f.Has(nbd.ReadOnly) {
			t.Errorf("by %q: got flags %b", name, f)
		}
		if got := c.Contexts(); !slices.Equal(got, []string{nbd.BaseAllocation, "qemu:dirty-bitmap:snap-1"}) {
			t.Errorf("by %q: got contexts %v", name, got)
		}
	}
	if _, err := dial(t, e.Socket, "other"); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("by another name: got %v, want NotFound", err)
	}
	conn, err := net.Dial("unix", e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	list, err := nbd.List(t.Context(), conn, &nbd.ClientConfig{})
	if err != nil || len(list) != 1 || list[0].Name != "web" || !strings.Contains(list[0].Description, "vol-1") {
		t.Errorf("list: got %+v, %v", list, err)
	}

	broken := s.serve(t, "broken-1", "broken", snapferry.Export{})
	if c, err := dial(t, broken.Socket, ""); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a volume that cannot be opened: got %v, %v", c, err)
	}
}

func TestReadOnly(t *testing.T) {
	s := newServer(t, export.Config{})
	e := s.serve(t, "vol-1", "web", snapferry.Export{ReadOnly: true})
	c := mustDial(t, e.Socket, "")
	if _, err := c.WriteAt([]byte{1}, 0); !snapferry.IsKind(err, snapferry.Denied) && !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("write: got %v", err)
	}
	if !c.Flags().Has(nbd.ReadOnly) {
		t.Error("the export does not say that it is read-only")
	}
}

// TestStop ends an export under its clients, and begins it again.
func TestStop(t *testing.T) {
	s := newServer(t, export.Config{})
	e := s.serve(t, "vol-1", "web", snapferry.Export{})
	other := mustDial(t, s.serve(t, "vol-2", "db", snapferry.Export{}).Socket, "")
	if _, err := s.Serve("vol-1", "web", snapferry.Export{}); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("a second time: got %v, want Conflict", err)
	}
	c := mustDial(t, e.Socket, "")
	silent, err := net.Dial("unix", e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if _, err := c.WriteAt([]byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // that it is not served is no error
		if err := s.Stop("vol-1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("a connection survived its export")
	}
	if _, err := os.Lstat(e.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: got %v, want that it is gone", err)
	}
	if _, err := other.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("a connection to another volume: got %v", err)
	}
	again := s.serve(t, "vol-1", "web", e)
	if again != e {
		t.Errorf("again: got %+v, want %+v", again, e)
	}
	p := make([]byte, 4)
	if _, err := mustDial(t, e.Socket, "").ReadAt(p, 0); err != nil || string(p) != "kept" {
		t.Errorf("again: got %q, %v", p, err)
	}
}

func TestSocketPaths(t *testing.T) {
	s := newServer(t, export.Config{})
	used := s.serve(t, "vol-used", "used", snapferry.Export{})
	file := filepath.Join(s.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]snapferry.Kind{
		used.Socket:                            snapferry.Conflict,
		file:                                   snapferry.Conflict,
		s.dir:                                  snapferry.Conflict,
		"x.sock":                               snapferry.Invalid,
		s.dir + "/../x.sock":                   snapferry.Invalid,
		s.dir + "/" + strings.Repeat("x", 108): snapferry.Invalid,
		s.dir + "/none/x.sock":                 snapferry.NotFound,
		file + "/x.sock":                       snapferry.NotFound,
	} {
		if _, err := s.Serve("vol-1", "web", snapferry.Export{Socket: path}); !snapferry.IsKind(err, want) || snapferry.HintOf(err) == "" {
			t.Errorf("%s: got %v, want %v with a hint", path, err, want)
		}
	}
	// What a process that died has left.
	stale := filepath.Join(s.dir, "a stale+one.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	e := s.serve(t, "vol-1", "web", snapferry.Export{Socket: stale})
	c, err := nbd.Dial(t.Context(), e.URI, nil)
	if err != nil {
		t.Fatalf("%s: %v", e.URI, err)
	}
	c.Close()
	if _, err := s.Serve("vol-2", "db", snapferry.Export{TLS: true}); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("TLS without an address: got %v, want Unsupported", err)
	}
}

// TestConnections has one connection too many.
func TestConnections(t *testing.T) {
	s := newServer(t, export.Config{Connections: 2})
	e := s.serve(t, "vol-1", "web", snapferry.Export{})
	first := mustDial(t, e.Socket, "")
	mustDial(t, e.Socket, "")
	conn, err := net.Dial("unix", e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if p, err := io.ReadAll(conn); len(p) > 0 {
		t.Errorf("the third: got %d bytes, %v, want nothing", len(p), err)
	}
	first.Close()
	// The server has seen that when it lets the next one in.
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := dial(t, e.Socket, ""); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("after one has gone: got %v", err)
		}
	}
}

// TestGrow has a volume grow under a connection.
func TestGrow(t *testing.T) {
	s := newServer(t, export.Config{})
	e := s.serve(t, "vol-1", "web", snapferry.Export{})
	before, err := nbd.Dial(t.Context(), e.URI, &nbd.ClientConfig{Contexts: []string{nbd.BaseAllocation}})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	v, err := s.region.Live(t.Context(), "vol-1")
	if err == nil {
		err = v.Grow(2 * size)
	}
	if err != nil {
		t.Fatal(err)
	}
	var covered int64
	err = before.Status(t.Context(), nbd.BaseAllocation, 0, size, func(n int64, flags uint32) error {
		if flags != nbd.StateHole|nbd.StateZero {
			t.Errorf("an empty disk: got flags %d", flags)
		}
		covered += n
		return nil
	})
	if err != nil || covered != size || before.Size() != size {
		t.Errorf("before: got %d bytes of %d, %v", covered, before.Size(), err)
	}
	after := mustDial(t, e.Socket, "")
	if after.Size() != 2*size {
		t.Errorf("after: got %d bytes", after.Size())
	}
	if err := after.Status(t.Context(), "qemu:dirty-bitmap:snap-1", 0, size, func(int64, uint32) error { return nil }); err == nil {
		t.Error("the changes since a snapshot that is gone: got no error")
	}
}

// secure is an installation with a region.
type secure struct {
	server, client *tls.Config
}

func newSecure(t *testing.T) secure {
	t.Helper()
	authority, err := pki.NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certPEM, keyPEM, err := authority.Issue("east", []string{"127.0.0.1"}, time.Hour)
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "pem"), certPEM, 0o600), os.WriteFile(filepath.Join(dir, "key"), keyPEM, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.LoadIdentity(filepath.Join(dir, "pem"), filepath.Join(dir, "key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCA(authority.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err = authority.IssueClient("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return secure{pki.VolumeServerConfig(id, ca), &tls.Config{RootCAs: ca, Certificates: []tls.Certificate{cert}, ServerName: "127.0.0.1"}}
}

func TestTLS(t *testing.T) {
	sec := newSecure(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, export.Config{Listener: l, TLS: sec.server, Address: l.Addr().String()})
	e := s.serve(t, "vol-1", "web", snapferry.Export{TLS: true})
	if want := fmt.Sprintf("nbds://%s/vol-1", l.Addr()); e.URI != want || e.Socket != "" {
		t.Errorf("export: got %+v, want %s", e, want)
	}
	s.serve(t, "vol-2", "db", snapferry.Export{TLS: true})
	s.serve(t, "vol-3", "db", snapferry.Export{TLS: true})
	s.serve(t, "vol-4", "private", snapferry.Export{})
	dial := func(name string, client *tls.Config) (*nbd.Client, error) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := nbd.NewClient(t.Context(), conn, &nbd.ClientConfig{Export: name, TLS: client})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return c, err
	}
	var open []*nbd.Client
	for _, name := range []string{"vol-1", "web", "vol-2"} {
		c, err := dial(name, sec.client)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		open = append(open, c)
	}
	for _, name := range []string{"db", "", "vol-4", "private"} {
		if _, err := dial(name, sec.client); err == nil {
			t.Errorf("%q: got no error", name)
		}
	}
	if _, err := dial("vol-1", nil); err == nil {
		t.Error("without TLS: got no error")
	}
	if _, err := dial("vol-1", newSecure(t).client); err == nil {
		t.Error("with a certificate of others: got no error")
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	list, err := nbd.List(t.Context(), conn, &nbd.ClientConfig{TLS: sec.client})
	if err != nil || len(list) != 3 || list[0].Name != "vol-1" || list[2].Name != "vol-3" {
		t.Errorf("list: got %+v, %v", list, err)
	}
	if err := s.Stop("vol-1"); err != nil {
		t.Fatal(err)
	}
	for i, c := range open {
		if _, err := c.ReadAt(make([]byte, 1), 0); (err == nil) != (i == 2) {
			t.Errorf("connection %d after the end of vol-1: got %v", i, err)
		}
	}
	if _, err := dial("vol-1", sec.client); err == nil {
		t.Error("a volume that is served no longer: got no error")
	}
}
