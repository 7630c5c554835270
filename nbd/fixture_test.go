package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
)

// memory is a Device in memory with every ability. Pages of zeroes are holes.
type memory struct {
	mu    sync.Mutex
	p     []byte
	syncs int
	unit  int64 // granularity of holes in bytes

	slow   func(cmd string, off int64) // called by what may wait, without mu
	now    func(cmd string, off int64) bool
	failed func(cmd string, off int64) error
}

func newMemory(n int) *memory { return &memory{p: make([]byte, n), unit: 4096} }

func (m *memory) wait(cmd string, off int64) error {
	if m.slow != nil {
		m.slow(cmd, off)
	}
	if m.failed != nil {
		return m.failed(cmd, off)
	}
	return nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := m.wait("read", off); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.p[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := m.wait("write", off); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.p[off:], p), nil
}

func (m *memory) ReadNow(p []byte, off int64) (bool, error) {
	if m.now != nil && !m.now("read", off) {
		return false, nil
	}
	if m.failed != nil {
		if err := m.failed("readnow", off); err != nil {
			return false, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.p[off:])
	return true, nil
}

func (m *memory) WriteNow(p []byte, off int64) (bool, error) {
	if m.now != nil && !m.now("write", off) {
		return false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.p[off:], p)
	return true, nil
}

func (m *memory) Sync() error {
	if err := m.wait("sync", 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	return nil
}

func (m *memory) Size() int64 { return int64(len(m.p)) }

func (m *memory) Trim(off, n int64) error { return m.Zero(off, n, true) }

func (m *memory) Zero(off, n int64, _ bool) error {
	if err := m.wait("zero", off); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.p[off : off+n])
	return nil
}

func (m *memory) Cache(off, _ int64) error { return m.wait("cache", off) }

func (m *memory) Hole(off, n int64) (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := off - off%m.unit
	zero := func(at int64) bool {
		return len(bytes.Trim(m.p[at:min(at+m.unit, int64(len(m.p)))], "\x00")) == 0
	}
	hole := zero(at)
	end := at + m.unit
	for end < off+n && zero(end) == hole {
		end += m.unit
	}
	return min(end-off, n), hole
}

const dirtyContext = "x-test:dirty"

func (m *memory) Contexts() []string { return []string{BaseAllocation, dirtyContext} }

func (m *memory) Status(_ context.Context, name string, off, n int64, extent func(int64, uint32) error) error {
	if err := m.wait("status", off); err != nil {
		return err
	}
	for end := off + n; off < end; {
		length, hole := m.Hole(off, end-off)
		flags := uint32(0)
		switch {
		case name == dirtyContext && !hole:
			flags = 1
		case name == BaseAllocation && hole:
			flags = StateHole | StateZero
		}
		if err := extent(length, flags); err != nil {
			return err
		}
		off += length
	}
	return nil
}

// plain is a Device without abilities.
type plain struct{ Device }

// shelf is Exports of the names it has.
type shelf map[string]*Export

func (s shelf) List(context.Context) ([]ExportInfo, error) {
	var infos []ExportInfo
	for name, e := range s {
		infos = append(infos, ExportInfo{name, e.Description})
	}
	return infos, nil
}

func (s shelf) Open(_ context.Context, name string) (*Export, error) {
	e, ok := s[name]
	if !ok {
		return nil, snapferry.Errorf(snapferry.NotFound, "there is no export %q", name)
	}
	x := *e
	return &x, nil
}

// serveAt serves connections of a unix socket until the test ends, and returns
// the path of the socket.
func serveAt(t testing.TB, cfg *ServerConfig) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { Serve(ctx, conn, cfg) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		all.Wait()
	})
	return path
}

// pair returns a client of a server of cfg over a pipe, and what Serve returns.
func pair(t testing.TB, cfg *ServerConfig, ccfg *ClientConfig) (*Client, <-chan error) {
	t.Helper()
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), a, cfg) }()
	c, err := NewClient(t.Context(), b, ccfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, served
}

// dial connects to the socket that serveAt made.
func dial(t testing.TB, path, export string, cfg *ClientConfig) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "nbd+unix:///"+export+"?socket="+path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantKind(t testing.TB, what string, err error, want snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, want) {
		t.Errorf("%s: got %v, want Kind %v", what, err, want)
	}
}

// pattern fills p with bytes that differ from place to place.
func pattern(p []byte, seed int) {
	for i := range p {
		p[i] = byte((i+seed)*7 + (i+seed)>>8*13 + 1)
	}
}

// raw is the client's end of a connection, for tests that write bytes.
type raw struct {
	t    testing.TB
	conn net.Conn
}

// dialRaw connects to the socket and does no handshake.
func dialRaw(t testing.TB, path string) *raw {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute)) // a test that hangs shall fail
	t.Cleanup(func() { conn.Close() })
	return &raw{t, conn}
}

var errNothing = errors.New("nothing")
