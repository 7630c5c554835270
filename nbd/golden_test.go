package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
)

var update = flag.Bool("update", false, "write the golden files anew")

// recorder is the client's end of a connection that writes down what passes:
// a line for every run of bytes in one direction.
type recorder struct {
	net.Conn
	mu  sync.Mutex
	dir byte
	run []byte
	out strings.Builder
}

func (r *recorder) note(dir byte, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if dir != r.dir {
		r.end()
		r.dir = dir
	}
	r.run = append(r.run, p...)
}

// end ends a run. Long runs of one byte are shortened, as 00*4096.
func (r *recorder) end() {
	if len(r.run) == 0 {
		return
	}
	fmt.Fprintf(&r.out, "%c", r.dir)
	for p := r.run; len(p) > 0; {
		n := 1
		for n < len(p) && p[n] == p[0] {
			n++
		}
		if n > 8 {
			fmt.Fprintf(&r.out, " %02x*%d", p[0], n)
			p = p[n:]
			continue
		}
		n = min(len(p), 4)
		fmt.Fprintf(&r.out, " %x", p[:n])
		p = p[n:]
	}
	r.out.WriteByte('\n')
	r.run = r.run[:0]
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.note('S', p[:n])
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) {
	r.note('C', p)
	return r.Conn.Write(p)
}

// parseTranscript returns the bytes of each side of a golden file, line by line.
func parseTranscript(t testing.TB, name string) (dirs []byte, runs [][]byte) {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(p))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		var run []byte
		for _, w := range f[1:] {
			w, times, many := strings.Cut(w, "*")
			b, err := hex.DecodeString(w)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			n := 1
			if many {
				if _, err := fmt.Sscan(times, &n); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			run = append(run, bytes.Repeat(b, n)...)
		}
		dirs, runs = append(dirs, f[0][0]), append(runs, run)
	}
	return dirs, runs
}

// goldenDisk is the disk of the transcripts: 1 MiB of which some pages are not
// zero.
func goldenDisk() *memory {
	m := newMemory(1 << 20)
	for _, page := range []int{0, 1, 3, 8} {
		copy(m.p[page<<12:], bytes.Repeat([]byte{byte(page + 1)}, 4096))
	}
	m.failed = func(cmd string, off int64) error {
		if off == 3<<12 && (cmd == "read" || cmd == "readnow") {
			return snapferry.Errorf(snapferry.Corrupt, "the block is damaged")
		}
		return nil
	}
	return m
}

// conversations are what the goldens record.
var conversations = map[string]struct {
	simple bool
	talk   func(t testing.TB, c *Client)
}{
	"structured": {false, func(t testing.TB, c *Client) {
		ops(t, c)
		if err := c.Status(t.Context(), dirtyContext, 0, 64<<10, func(int64, uint32) error { return nil }); err != nil {
			t.Error(err)
		}
	}},
	"simple": {true, ops},
}

func ops(t testing.TB, c *Client) {
	p := make([]byte, 3<<12)
	check := func(_ int, err error) {
		if err != nil {
			t.Error(err)
		}
	}
	check(c.ReadAt(p[:512], 256))
	check(c.ReadAt(p[:4096], 1<<19))
	check(c.ReadAt(make([]byte, 3<<15), 1<<18))
	_, err := c.ReadAt(p[:4096], 3<<12)
	wantKind(t, "read of a damaged block", err, snapferry.Unavailable)
	check(c.WriteAt([]byte("written"), 1<<19))
	check(0, c.WriteSync([]byte("durable"), 1<<19+100))
	check(0, c.Sync())
	check(0, c.Trim(0, 4096))
	check(0, c.Zero(4096, 4096, false))
	check(0, c.Cache(0, 8192))
}

// TestGolden compares conversations of the client with the server byte by byte
// with what they were.
func TestGolden(t *testing.T) {
	for name, conversation := range conversations {
		a, b := net.Pipe()
		served := make(chan error, 1)
		cfg := &ServerConfig{Exports: shelf{"disk": {Device: goldenDisk(), ExportInfo: ExportInfo{Name: "disk", Description: "golden"}}}}
		go func() { served <- Serve(t.Context(), a, cfg) }()
		r := &recorder{Conn: b}
		g, err := greet(t.Context(), r, &ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		g.fixed = !conversation.simple
		c := newClient()
		if err := g.open(c, &ClientConfig{Export: "disk", Contexts: []string{dirtyContext, BaseAllocation}}); err != nil {
			t.Fatal(err)
		}
		c.start(g)
		conversation.talk(t, c)
		c.Close()
		if err := <-served; err != nil {
			t.Errorf("%s: Serve: got %v", name, err)
		}
		r.end()
		file := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(file, []byte(r.out.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r.out.String(), string(want)); diff != "" {
			t.Errorf("%s (-got +want):\n%s", name, diff)
		}
	}
}

// clientBytes returns what the client says in a golden file.
func clientBytes(t testing.TB, name string, dir byte) []byte {
	dirs, runs := parseTranscript(t, filepath.Join("testdata", name+".txt"))
	var p []byte
	for i, run := range runs {
		if dirs[i] == dir {
			p = append(p, run...)
		}
	}
	return p
}

// FuzzServe feeds a server what a client may send. It must come to an end, and
// close what it opened.
func FuzzServe(f *testing.F) {
	for name := range conversations {
		f.Add(clientBytes(f, name, 'C'))
	}
	f.Add([]byte{0, 0, 0, 3})
	f.Fuzz(func(t *testing.T, p []byte) {
		closed := 0
		opened := 0
		cfg := &ServerConfig{Exports: counting{goldenDisk(), &opened, &closed}, Workers: 2}
		conn := &script{in: p}
		Serve(t.Context(), conn, cfg)
		if opened != closed || !conn.closed.Load() {
			t.Errorf("%d exports were opened and %d closed; the connection was closed: %v", opened, closed, conn.closed.Load())
		}
	})
}

// counting is Exports that counts.
type counting struct {
	device         Device
	opened, closed *int
}

func (c counting) List(context.Context) ([]ExportInfo, error) {
	return []ExportInfo{{"disk", "x"}}, nil
}

func (c counting) Open(context.Context, string) (*Export, error) {
	*c.opened++
	return &Export{Device: c.device, Close: func() error {
		*c.closed++
		return nil
	}}, nil
}

// FuzzReplies feeds a client what a server may send in transmission.
func FuzzReplies(f *testing.F) {
	for name := range conversations {
		f.Add(clientBytes(f, name, 'S'), name == "structured")
	}
	f.Add(dataOf(chunkDone, 8192, 4096), true)
	f.Add(join(statusChunkOf(2, 0, 1, 512, 1, 1<<21, 0), statusChunkOf(2, chunkDone, 7, 1<<20, 0)), true)
	f.Add(appendErrorChunk(appendSimple(nil, 3, 0), 1, EIO, "why"), true)
	f.Fuzz(func(t *testing.T, p []byte, structured bool) {
		c, calls := waiting(p, structured)
		c.receive()
		for _, k := range calls {
			<-k.done
			if k.err == nil && k.req.cmd == cmdRead && structured && k.got.Total() != int64(len(k.p)) {
				t.Errorf("a read of %d bytes succeeded with %d", len(k.p), k.got.Total())
			}
		}
	})
}

// FuzzGreeting feeds a client what a server may send in the handshake.
func FuzzGreeting(f *testing.F) {
	for name := range conversations {
		f.Add(clientBytes(f, name, 'S'))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		cfg := &ClientConfig{Export: "disk", Contexts: []string{BaseAllocation, dirtyContext}}
		c, err := NewClient(t.Context(), &script{in: p}, cfg)
		if err == nil {
			c.Close()
		}
		if _, err := List(t.Context(), &script{in: p}, cfg); err != nil && snapferry.IsKind(err, snapferry.Internal) {
			t.Error(err)
		}
		if _, err := ParseURI(string(p)); err != nil && snapferry.IsKind(err, snapferry.Internal) {
			t.Error(err)
		}
	})
}
