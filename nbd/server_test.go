package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapferry/snapferry"
)

// talk reads n bytes.
func (r *raw) read(n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(r.conn, p); err != nil {
		r.t.Fatalf("read %d bytes: %v", n, err)
	}
	return p
}

func (r *raw) write(p []byte) {
	r.t.Helper()
	if _, err := r.conn.Write(p); err != nil {
		r.t.Fatalf("write: %v", err)
	}
}

// greet takes the server's greeting.
func (r *raw) greet() {
	r.t.Helper()
	r.read(18)
	r.write([]byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes})
}

// option sends an option and returns the replies' types and data.
func (r *raw) option(opt uint32, data []byte) (kinds []uint32, datas [][]byte) {
	r.t.Helper()
	r.write(appendOption(nil, opt, data))
	for {
		f := fields{p: r.read(optionReplySize)}
		if magic, of := f.u64(), f.u32(); magic != magicReply || of != opt {
			r.t.Fatalf("reply to option %d has magic %#x and option %d", opt, magic, of)
		}
		kind := f.u32()
		kinds, datas = append(kinds, kind), append(datas, r.read(int(f.u32())))
		if kind == repAck || kind&repError != 0 {
			return kinds, datas
		}
	}
}

// open opens an export, with structured replies and the contexts.
func (r *raw) open(name string, structured bool, contexts ...string) {
	r.t.Helper()
	r.greet()
	if structured {
		r.option(optStructuredReply, nil)
	}
	if len(contexts) > 0 {
		d := binary.BigEndian.AppendUint32(appendString(nil, name), uint32(len(contexts)))
		for _, c := range contexts {
			d = appendString(d, c)
		}
		r.option(optSetMeta, d)
	}
	kinds, _ := r.option(optGo, append(appendString(nil, name), 0, 0))
	if kinds[len(kinds)-1] != repAck {
		r.t.Fatalf("GO: got replies %#x", kinds)
	}
}

// request sends a request and returns the error of its simple reply.
func (r *raw) simple(q request, payload []byte) Errno {
	r.t.Helper()
	r.write(append(appendRequest(nil, &q), payload...))
	f := fields{p: r.read(simpleSize)}
	magic, e, cookie := f.u32(), Errno(f.u32()), f.u64()
	if magic != magicSimple || cookie != q.cookie {
		r.t.Fatalf("%s: reply has magic %#x and cookie %d", q.cmd, magic, cookie)
	}
	return e
}

// client returns a client that speaks the protocol without structured replies.
func simpleClient(t testing.TB, conn net.Conn) *Client {
	t.Helper()
	g, err := greet(t.Context(), conn, &ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	g.fixed = false
	c := newClient()
	if err := g.open(c, &ClientConfig{}); err != nil {
		t.Fatal(err)
	}
	c.start(g)
	t.Cleanup(func() { c.Close() })
	return c
}

// TestDisk holds disks behind every kind of connection against a plain slice,
// with concurrent requests of all sizes.
func TestDisk(t *testing.T) {
	const size = 3 << 20
	devices := map[string]func(*memory) Device{
		"abilities": func(m *memory) Device { return m },
		"plain":     func(m *memory) Device { return plain{m} },
		"sometimes": func(m *memory) Device {
			m.now = func(_ string, off int64) bool { return off>>12&1 == 0 }
			return m
		},
	}
	for name, device := range devices {
		cfg := &ServerConfig{Exports: shelf{"": {Device: device(newMemory(size))}}}
		path := serveAt(t, cfg)
		t.Run(name+"/unix", func(t *testing.T) { testDisk(t, dial(t, path, "", nil)) })
		t.Run(name+"/simple", func(t *testing.T) {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			testDisk(t, simpleClient(t, conn))
		})
		t.Run(name+"/pipe", func(t *testing.T) {
			c, _ := pair(t, cfg, &ClientConfig{})
			testDisk(t, c)
		})
	}
}

func testDisk(t *testing.T, c *Client) {
	const parts = 8
	part := c.Size() / parts
	if err := c.Zero(0, c.Size(), true); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range int64(parts) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			model := make([]byte, part)
			for range 150 {
				off, n := r.Int64N(part), r.Int64N(8<<10)
				if r.IntN(8) == 0 {
					n = r.Int64N(200 << 10)
				}
				n = min(n, part-off)
				if err := change(c, r, model, i*part, off, n); err != nil {
					t.Error(err)
					return
				}
			}
			p := make([]byte, part)
			if n, err := c.ReadAt(p, i*part); n != len(p) || err != nil {
				t.Errorf("read all: got %d, %v", n, err)
			}
			if !bytes.Equal(p, model) {
				t.Errorf("part %d differs", i)
			}
		})
	}
	all.Wait()
}

// change does something at random to a part of the disk and to its model.
func change(c *Client, r *rand.Rand, model []byte, base, off, n int64) error {
	want := model[off : off+n]
	switch r.IntN(7) {
	case 0:
		clear(want)
		return c.Zero(base+off, n, r.IntN(2) == 0)
	case 1:
		return c.Sync()
	case 2:
		pattern(want, r.Int())
		return c.WriteSync(want, base+off)
	case 3, 4:
		pattern(want, r.Int())
		_, err := c.WriteAt(want, base+off)
		return err
	}
	p := make([]byte, n)
	if _, err := c.ReadAt(p, base+off); err != nil {
		return err
	}
	if !bytes.Equal(p, want) {
		return errors.New("read other bytes than were written")
	}
	return nil
}

func TestRequestErrors(t *testing.T) {
	m := newMemory(1 << 20)
	cfg := &ServerConfig{Exports: shelf{
		"rw":    {Device: m},
		"ro":    {Device: m, ReadOnly: true},
		"block": {Device: m, MinBlock: 512, PreferredBlock: 4096, MaxPayload: 64 << 10},
		"plain": {Device: plain{m}},
	}}
	path := serveAt(t, cfg)
	p := make([]byte, 512)
	for _, tt := range []struct {
		export  string
		req     request
		payload []byte
		want    Errno
	}{
		{"rw", request{cmd: 8}, nil, EINVAL},
		{"rw", request{cmd: cmdWrite, off: 1<<20 - 511, length: 512}, p, ENOSPC},
		{"rw", request{cmd: cmdWrite, off: 1<<64 - 512, length: 512}, p, ENOSPC},
		{"rw", request{cmd: cmdWriteZeroes, off: 1 << 20, length: 1}, nil, ENOSPC},
		{"rw", request{cmd: cmdTrim, off: 1 << 20, length: 1}, nil, EINVAL},
		{"rw", request{cmd: cmdRead, off: 1 << 20, length: 1}, nil, EINVAL},
		{"rw", request{cmd: cmdRead, off: 1<<64 - 1, length: 2}, nil, EINVAL},
		{"rw", request{cmd: cmdCache, off: 1 << 20, length: 1}, nil, EINVAL},
		{"rw", request{cmd: cmdRead, flags: cmdFlagDF, length: 1}, nil, EINVAL}, // not structured
		{"rw", request{cmd: cmdRead, flags: 1 << 7, length: 1}, nil, EINVAL},
		{"rw", request{cmd: cmdWrite, flags: cmdFlagNoHole, length: 512}, p, EINVAL},
		{"rw", request{cmd: cmdFlush, length: 1}, nil, EINVAL},
		{"rw", request{cmd: cmdBlockStatus, length: 1}, nil, EINVAL},
		{"rw", request{cmd: cmdWrite, flags: cmdFlagFUA, length: 512}, p, 0},
		{"rw", request{cmd: cmdWrite}, nil, 0},
		{"rw", request{cmd: cmdRead}, nil, 0},
		{"rw", request{cmd: cmdWriteZeroes, flags: cmdFlagFastZero | cmdFlagNoHole | cmdFlagFUA, length: 512}, nil, 0},
		{"rw", request{cmd: cmdTrim, flags: cmdFlagFUA, length: 512}, nil, 0},
		{"rw", request{cmd: cmdCache, length: 512}, nil, 0},
		{"rw", request{cmd: cmdFlush, flags: cmdFlagFUA}, nil, 0},
		{"ro", request{cmd: cmdWrite, length: 512}, p, EPERM},
		{"ro", request{cmd: cmdWriteZeroes, length: 512}, nil, EPERM},
		{"ro", request{cmd: cmdTrim, length: 512}, nil, EPERM},
		{"ro", request{cmd: cmdFlush}, nil, 0},
		{"block", request{cmd: cmdWrite, off: 1, length: 512}, p, EINVAL},
		{"block", request{cmd: cmdRead, length: 100}, nil, EINVAL},
		{"block", request{cmd: cmdRead, length: 65 << 10}, nil, EINVAL},
		{"block", request{cmd: cmdWrite, length: 65 << 10}, make([]byte, 65<<10), EINVAL},
		{"plain", request{cmd: cmdTrim, length: 512}, nil, EINVAL},
		{"plain", request{cmd: cmdCache, length: 512}, nil, EINVAL},
		{"plain", request{cmd: cmdWriteZeroes, flags: cmdFlagFastZero, length: 512}, nil, ENOTSUP},
		{"plain", request{cmd: cmdWriteZeroes, length: 1 << 20}, nil, 0},
	} {
		r := dialRaw(t, path)
		r.open(tt.export, false)
		tt.req.cookie = 77
		if got := r.simple(tt.req, tt.payload); got != tt.want {
			t.Errorf("%s: %s flags %#x, %d bytes at %d: got %d, want %d", tt.export, tt.req.cmd, tt.req.flags, tt.req.length, tt.req.off, got, tt.want)
		}
		if got := r.simple(request{cmd: cmdFlush, cookie: 78}, nil); got != 0 {
			t.Errorf("flush after %s: got %d", tt.req.cmd, got)
		}
		r.conn.Close()
	}
}

func TestDeviceErrors(t *testing.T) {
	m := newMemory(1 << 20)
	var mu sync.Mutex
	var fails error
	m.failed = func(string, int64) error {
		mu.Lock()
		defer mu.Unlock()
		return fails
	}
	path := serveAt(t, &ServerConfig{Exports: shelf{"": {Device: m}}})
	c := dial(t, path, "", &ClientConfig{Contexts: []string{BaseAllocation}})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	simple := simpleClient(t, conn)
	for _, kind := range snapferry.Kinds() {
		mu.Lock()
		fails = snapferry.Errorf(kind, "the reason")
		mu.Unlock()
		want := kindOf(errnoOf(kind))
		p := make([]byte, 100<<10)
		pattern(p, 3)
		for i, c := range []*Client{c, simple} {
			if i == 0 { // not to be known as a hole
				m.mu.Lock()
				pattern(m.p, 5)
				m.mu.Unlock()
				err := c.Status(t.Context(), BaseAllocation, 0, 512, func(int64, uint32) error { return nil })
				wantKind(t, "status", err, want)
			}
			_, err := c.ReadAt(p[:4096], 0)
			wantKind(t, "small read", err, want)
			if !errors.Is(err, errnoOf(kind)) {
				t.Errorf("small read: got %v, want %v", err, errnoOf(kind))
			}
			if i == 0 && !bytes.Contains([]byte(err.Error()), []byte("the reason")) {
				t.Errorf("small read: got %v without the reason", err)
			}
			_, err = c.ReadAt(p, 0)
			wantKind(t, "large read", err, want)
			_, err = c.WriteAt(p, 0)
			wantKind(t, "large write", err, want)
			wantKind(t, "sync", c.Sync(), want)
			wantKind(t, "trim", c.Trim(0, 512), want)
		}
	}
}

func TestErrnoTable(t *testing.T) {
	want := map[snapferry.Kind]Errno{
		snapferry.Internal: EIO, snapferry.Invalid: EINVAL, snapferry.NotFound: EINVAL, snapferry.Exists: EINVAL,
		snapferry.Conflict: EPERM, snapferry.Denied: EPERM, snapferry.Unavailable: EIO, snapferry.Corrupt: EIO, snapferry.KeyUnusable: EIO,
		snapferry.Full: ENOSPC, snapferry.Unsupported: EINVAL, snapferry.Cancelled: ESHUTDOWN,
	}
	for _, k := range snapferry.Kinds() {
		w, ok := want[k]
		if got := errnoOf(k); !ok || got != w {
			t.Errorf("%v: got %v, want %v (in the table: %v)", k, got, w, ok)
		}
		if e, why := fault(snapferry.Errorf(k, "x")); e != w || why != "x" {
			t.Errorf("fault of %v: got %v, %q", k, e, why)
		}
	}
	for e, want := range map[Errno]snapferry.Kind{
		EPERM: snapferry.Denied, EIO: snapferry.Unavailable, ENOMEM: snapferry.Unavailable, EINVAL: snapferry.Invalid,
		ENOSPC: snapferry.Full, EOVERFLOW: snapferry.Invalid, ENOTSUP: snapferry.Unsupported, ESHUTDOWN: snapferry.Unavailable, 4711: snapferry.Invalid,
	} {
		if got := kindOf(e); got != want {
			t.Errorf("%v: got %v, want %v", e, got, want)
		}
	}
	for _, err := range []error{context.Canceled, net.ErrClosed} {
		if e, _ := fault(err); e != ESHUTDOWN {
			t.Errorf("%v: got %v", err, e)
		}
	}
	if e, why := fault(errors.New("secret")); e != EIO || why != "" {
		t.Errorf("foreign error: got %v, %q", e, why)
	}
}

// pipeServer serves over a pipe and returns the client's end.
func pipeServer(t testing.TB, ctx context.Context, cfg *ServerConfig) (*raw, <-chan error) {
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, a, cfg) }()
	return &raw{t, b}, served
}

// TestStalls has requests that are done by the turn itself stall, one of each
// kind: what comes after them is served, and they are when they can be.
func TestStalls(t *testing.T) {
	for _, tt := range []struct {
		name string
		req  request
		done bool // what the device says after the stall
	}{
		{"read", request{cmd: cmdRead, length: 4096}, true},
		{"read not done", request{cmd: cmdRead, length: 4096}, false},
		{"write", request{cmd: cmdWrite, length: 4096}, true},
		{"write not done", request{cmd: cmdWrite, length: 4096}, false},
		{"sync", request{cmd: cmdFlush}, true},
		{"zero", request{cmd: cmdWriteZeroes, length: 4096}, true},
		{"write through", request{cmd: cmdWrite, flags: cmdFlagFUA, length: 4096}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testStall(t, tt.req, tt.done) })
		})
	}
}

func testStall(t *testing.T, q request, done bool) {
	m := newMemory(1 << 20)
	pattern(m.p, 9)
	release := make(chan struct{})
	var once sync.Once
	stall := func() { once.Do(func() { <-release }) }
	m.now = func(_ string, off int64) bool {
		if off == 0 {
			stall()
			return done
		}
		return true
	}
	m.slow = func(_ string, off int64) {
		if off == 0 {
			stall()
		}
	}
	r, served := pipeServer(t, t.Context(), &ServerConfig{Exports: shelf{"": {Device: m}}})
	r.open("", false)
	q.cookie = 1
	payload := make([]byte, 0, 4096)
	if q.cmd == cmdWrite {
		payload = payload[:4096]
		pattern(payload, 11)
	}
	began := time.Now()
	// A reply of before that is not written yet, the one that stalls, and half
	// of one after it: with a flush nothing may lie behind it.
	p := appendRequest(nil, &request{cmd: cmdRead, cookie: 8, off: 8192, length: 512})
	p = append(appendRequest(p, &q), payload...)
	after := appendRequest(nil, &request{cmd: cmdRead, cookie: 9, off: 4096, length: 512})
	if q.cmd == cmdRead || q.cmd == cmdWrite && q.flags == 0 {
		p = append(p, after[:10]...)
		after = after[10:]
	}
	r.write(p)
	want := append(appendSimple(nil, 8, 0), m.p[8192:8192+512]...)
	if got := r.read(len(want)); !bytes.Equal(got, want) {
		t.Error("the reply before the stall differs")
	}
	r.write(after)
	want = append(appendSimple(nil, 9, 0), m.p[4096:4096+512]...)
	if got := r.read(len(want)); !bytes.Equal(got, want) {
		t.Error("the reply after the stall differs")
	}
	if d := time.Since(began); d < patience || d > 2*patience {
		t.Errorf("the turn was passed after %v", d)
	}
	close(release)
	want = appendSimple(nil, 1, 0)
	if q.cmd == cmdRead {
		want = append(want, m.p[:4096]...)
	}
	if got := r.read(len(want)); !bytes.Equal(got, want) {
		t.Errorf("the reply of the stall differs: got %x", got[:simpleSize])
	}
	if q.cmd == cmdWrite && !bytes.Equal(m.p[:4096], payload) {
		t.Error("the write of the stall is not on the disk")
	}
	r.write(appendRequest(nil, &request{cmd: cmdDisc}))
	if err := <-served; err != nil {
		t.Errorf("Serve: got %v", err)
	}
}

// TestShutdown ends the context while a request is in work.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(1 << 20)
		begun, release := make(chan struct{}), make(chan struct{})
		m.now = func(string, int64) bool { return false }
		m.slow = func(string, int64) {
			close(begun)
			<-release
		}
		ctx, cancel := context.WithCancel(t.Context())
		r, served := pipeServer(t, ctx, &ServerConfig{Exports: shelf{"": {Device: m}}})
		r.open("", false)
		r.write(appendRequest(nil, &request{cmd: cmdRead, cookie: 1, length: 512}))
		<-begun
		cancel()
		synctest.Wait()
		close(release)
		if got, want := r.read(simpleSize + 512)[:simpleSize], appendSimple(nil, 1, 0); !bytes.Equal(got, want) {
			t.Errorf("request in work: got %x, want %x", got, want)
		}
		if _, err := r.conn.Read(make([]byte, 1)); err == nil {
			t.Error("the connection goes on")
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: got %v", err)
		}
	})
}

// TestShutdownReply wants ESHUTDOWN for what was read and not begun.
func TestShutdownReply(t *testing.T) {
	m := newMemory(1 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	path := make(chan struct{})
	m.now = func(_ string, off int64) bool {
		if off == 0 {
			close(path)
			<-ctx.Done()
			synctest.Wait()
		}
		return true
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel = context.WithCancel(t.Context())
		path = make(chan struct{})
		r, served := pipeServer(t, ctx, &ServerConfig{Exports: shelf{"": {Device: m}}})
		r.open("", false)
		p := appendRequest(nil, &request{cmd: cmdRead, cookie: 1, length: 512})
		r.write(appendRequest(p, &request{cmd: cmdRead, cookie: 2, off: 4096, length: 512}))
		<-path
		cancel()
		r.read(simpleSize + 512)
		if got, want := r.read(simpleSize), appendSimple(nil, 2, ESHUTDOWN); !bytes.Equal(got, want) {
			t.Errorf("second request: got %x, want %x", got, want)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: got %v", err)
		}
	})
	cancel()
}

// TestDeaf has a client that sends and never reads: it is read from only so
// far, others are served, and it goes when the server does.
func TestDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		// One worker: who waits for a mutex holds the time of a synctest.
		cfg := &ServerConfig{Exports: shelf{"": {Device: newMemory(1 << 20)}}, Workers: 1}
		r, served := pipeServer(t, ctx, cfg)
		r.open("", false)
		stopped := make(chan int)
		go func() {
			n := 0
			p := appendRequest(nil, &request{cmd: cmdRead, cookie: 1, length: 1 << 20})
			for {
				if _, err := r.conn.Write(p); err != nil {
					stopped <- n
					return
				}
				n++
			}
		}()
		synctest.Wait()
		c, other := pair(t, cfg, &ClientConfig{})
		if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
			t.Errorf("other connection: %v", err)
		}
		c.Close()
		if err := <-other; err != nil {
			t.Errorf("Serve of the other: got %v", err)
		}
		began := time.Now()
		cancel()
		<-served
		if d := time.Since(began); d > defaultGrace+time.Second {
			t.Errorf("Serve returned after %v", d)
		}
		if n := <-stopped; n > 2*queued+inputSize/requestSize {
			t.Errorf("%d requests were read", n)
		}
	})
}

func TestIdleHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, served := pipeServer(t, t.Context(), &ServerConfig{Exports: shelf{}})
		r.greet()
		began := time.Now()
		wantKind(t, "Serve", <-served, snapferry.Unavailable)
		if d := time.Since(began); d != defaultHandshake {
			t.Errorf("the handshake ended after %v", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r, served = pipeServer(t, ctx, &ServerConfig{Exports: shelf{}})
		r.greet()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: got %v", err)
		}
	})
}

// TestCuts ends a connection after every byte of what a client sends, and wants
// an error except where a message ends.
func TestCuts(t *testing.T) {
	greeting := []byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes}
	option := appendOption(nil, optGo, append(appendString(nil, ""), 0, 0))
	write := append(appendRequest(nil, &request{cmd: cmdWrite, cookie: 1, length: 100}), make([]byte, 100)...)
	large := append(appendRequest(nil, &request{cmd: cmdWrite, cookie: 2, length: smallOp + 1}), make([]byte, smallOp+1)...)
	whole := map[int]bool{0: true}
	var all []byte
	for _, p := range [][]byte{greeting, option, write, large} {
		all = append(all, p...)
		whole[len(all)] = true
	}
	step := 1
	for n := 0; n <= len(all); n += step {
		conn := &script{in: all[:n]}
		err := Serve(t.Context(), conn, &ServerConfig{Exports: shelf{"": {Device: newMemory(1 << 20)}}})
		if (err == nil) != whole[n] {
			t.Errorf("after %d bytes: got %v", n, err)
		}
		if err != nil {
			wantKind(t, "cut", err, snapferry.Invalid)
		}
		if n > len(all)-smallOp && n < len(all)-500 {
			step = 499
		} else {
			step = 1
		}
	}
}

func TestGarbage(t *testing.T) {
	good := []byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes}
	opened := append(good, appendOption(nil, optGo, append(appendString(nil, ""), 0, 0))...)
	for name, p := range map[string][]byte{
		"flags":         {0, 0, 0, 4},
		"option":        append(bytes.Clone(good), make([]byte, 16)...),
		"huge option":   append(bytes.Clone(good), appendOption(nil, optGo, nil)[:12]...),
		"request":       append(bytes.Clone(opened), make([]byte, requestSize)...),
		"huge write":    append(bytes.Clone(opened), appendRequest(nil, &request{cmd: cmdWrite, length: 1<<32 - 1})...),
		"old magic":     append(bytes.Clone(opened), 0x12, 0x56, 0x09, 0x53),
		"export name":   append(bytes.Clone(good), appendOption(nil, optExportName, []byte("none"))...),
		"after a write": append(appendRequest(bytes.Clone(opened), &request{cmd: cmdWrite, length: 4}), make([]byte, 64)...),
	} {
		if name == "huge option" {
			p = append(p, 0xff, 0xff, 0xff, 0xff)
		}
		err := Serve(t.Context(), &script{in: p}, &ServerConfig{Exports: shelf{"": {Device: newMemory(1 << 20)}}})
		if !snapferry.IsKind(err, snapferry.Invalid) && !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// script is a connection whose other side has sent in and does not look at what
// comes.
type script struct {
	net.Conn
	in     []byte
	mu     sync.Mutex
	out    bytes.Buffer
	closed atomic.Bool
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *script) Close() error {
	s.closed.Store(true)
	return nil
}

func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// TestAllocations wants a small read and a small write to allocate nothing.
func TestAllocations(t *testing.T) {
	m := newMemory(1 << 20)
	pattern(m.p, 1)
	r := dialRaw(t, serveAt(t, &ServerConfig{Exports: shelf{"": {Device: m}}}))
	r.open("", false)
	read := appendRequest(nil, &request{cmd: cmdRead, cookie: 1, length: 4096})
	write := append(appendRequest(nil, &request{cmd: cmdWrite, cookie: 2, length: 4096}), make([]byte, 4096)...)
	p := append(read, write...)
	got := make([]byte, 2*simpleSize+4096)
	if n := testing.AllocsPerRun(200, func() {
		r.conn.Write(p)
		if _, err := io.ReadFull(r.conn, got); err != nil {
			t.Error(err)
		}
	}); n >= 1 {
		t.Errorf("a read and a write: %v allocations", n)
	}
}

// TestSpread has a device that takes its time with what it calls immediate: of
// a burst, workers do the most.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(1 << 20)
		var handed atomic.Int32
		m.now = func(string, int64) bool {
			<-time.After(100 * time.Microsecond)
			return true
		}
		m.slow = func(string, int64) { handed.Add(1) }
		r, served := pipeServer(t, t.Context(), &ServerConfig{Exports: shelf{"": {Device: m}}})
		r.open("", false)
		const burst, n = 32, 5
		var p []byte
		for i := range uint64(burst) {
			p = appendRequest(p, &request{cmd: cmdRead, cookie: i, off: i << 12, length: 512})
			p = append(appendRequest(p, &request{cmd: cmdWrite, cookie: i, off: i << 12, length: 512}), make([]byte, 512)...)
		}
		for range n {
			r.write(p)
			r.read(burst * (2*simpleSize + 512))
		}
		if got := handed.Load(); got < burst {
			t.Errorf("%d of %d requests were handed to workers", got, 2*burst*n)
		}
		r.write(appendRequest(nil, &request{cmd: cmdDisc}))
		if err := <-served; err != nil {
			t.Errorf("Serve: got %v", err)
		}
	})
}
