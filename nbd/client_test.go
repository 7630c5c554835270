package nbd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
)

func TestParseURI(t *testing.T) {
	for in, want := range map[string]URI{
		"nbd://example.com":                            {Network: "tcp", Address: "example.com:10809", Hostname: "example.com"},
		"nbd://example.com:99/disk":                    {Network: "tcp", Address: "example.com:99", Export: "disk", Hostname: "example.com"},
		"nbd://example.com//disk":                      {Network: "tcp", Address: "example.com:10809", Export: "/disk", Hostname: "example.com"},
		"nbd://[::1]/hello%20world":                    {Network: "tcp", Address: "[::1]:10809", Export: "hello world", Hostname: "::1"},
		"nbds://h/x?tls-verify-peer=0&tls-type=x509":   {Network: "tcp", Address: "h:10809", Export: "x", TLS: true, Hostname: "h", NoVerify: true},
		"nbd+unix:///disk?socket=/run/s":               {Network: "unix", Address: "/run/s", Export: "disk"},
		"nbd+unix:///?socket=%00/abstract":             {Network: "unix", Address: "@/abstract"},
		"nbds+unix:///?socket=s&tls-hostname=host.org": {Network: "unix", Address: "s", TLS: true, Hostname: "host.org"},
	} {
		got, err := ParseURI(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if diff := cmp.Diff(*got, want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", in, diff)
		}
	}
	for in, want := range map[string]snapferry.Kind{
		"":                                snapferry.Invalid,
		"http://example.com/":             snapferry.Invalid,
		"nbd:example.com":                 snapferry.Invalid,
		"nbd:///disk":                     snapferry.Invalid,
		"nbd+unix:///disk":                snapferry.Invalid,
		"nbd+unix://host/disk?socket=s":   snapferry.Invalid,
		"nbd://host/?socket=s":            snapferry.Invalid,
		"nbd://host/?unknown=1":           snapferry.Invalid,
		"nbd+unix:///?socket=a&socket=b":  snapferry.Invalid,
		"nbds://host/?tls-type=psk":       snapferry.Unsupported,
		"nbds://host/?tls-verify-peer=no": snapferry.Invalid,
		"nbd://host/%zz":                  snapferry.Invalid,
	} {
		_, err := ParseURI(in)
		wantKind(t, in, err, want)
	}
}

func TestClientOpens(t *testing.T) {
	m := newMemory(1 << 20)
	path := serveAt(t, &ServerConfig{Exports: shelf{
		"disk":  {Device: m, MultiConn: true, ExportInfo: ExportInfo{Name: "disk", Description: "a disk"}},
		"ro":    {Device: plain{m}, ReadOnly: true},
		"block": {Device: m, MinBlock: 512, MaxPayload: 1 << 16},
	}})
	c := dial(t, path, "disk", &ClientConfig{Contexts: []string{dirtyContext, "qemu:dirty-bitmap:none", BaseAllocation}})
	if diff := cmp.Diff(c.Contexts(), []string{BaseAllocation, dirtyContext}); diff != "" {
		t.Errorf("contexts (-got +want):\n%s", diff)
	}
	if c.Size() != 1<<20 || c.Description() != "a disk" {
		t.Errorf("got %d bytes, %q", c.Size(), c.Description())
	}
	if want := HasFlags | CanFlush | CanFUA | CanTrim | CanWriteZeroes | CanDF | CanMultiConn | CanCache | CanFastZero; c.Flags() != want {
		t.Errorf("flags: got %b, want %b", c.Flags(), want)
	}
	ro := dial(t, path, "ro", nil)
	if want := HasFlags | ReadOnly | CanFlush | CanFUA | CanDF; ro.Flags() != want {
		t.Errorf("flags of a read-only export: got %b, want %b", ro.Flags(), want)
	}
	_, err := ro.WriteAt(make([]byte, 1), 0)
	wantKind(t, "write to a read-only export", err, snapferry.Denied)
	wantKind(t, "cache without the ability", ro.Cache(0, 1), snapferry.Unsupported)
	_, err = Dial(t.Context(), "nbd+unix:///none?socket="+path, nil)
	wantKind(t, "unknown export", err, snapferry.NotFound)
	_, err = Dial(t.Context(), "nbd+unix:///?socket="+path+".none", nil)
	wantKind(t, "no server", err, snapferry.Unavailable)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	infos, err := List(t.Context(), conn, &ClientConfig{})
	if err != nil || len(infos) != 3 {
		t.Errorf("list: got %v, %v", infos, err)
	}
	testBlocks(t, dial(t, path, "block", &ClientConfig{Contexts: []string{BaseAllocation}}))
}

// testBlocks reads across the blocks of a server that wants multiples of 512.
func testBlocks(t *testing.T, c *Client) {
	p := make([]byte, 300<<10)
	pattern(p, 4)
	if _, err := c.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 200<<10+3)
	if n, err := c.ReadAt(got, 1001); n != len(got) || err != nil || !bytes.Equal(got, p[1001:1001+len(got)]) {
		t.Errorf("unaligned read: got %d, %v", n, err)
	}
	_, err := c.WriteAt(p[:100], 0)
	wantKind(t, "unaligned write", err, snapferry.Invalid)
	if err := c.Cache(5, 6); err != nil {
		t.Error(err)
	}
	var sum int64
	if err := c.Status(t.Context(), BaseAllocation, 5, 1000, func(n int64, _ uint32) error {
		sum += n
		return nil
	}); err != nil || sum != 1000 {
		t.Errorf("status: got %d bytes, %v", sum, err)
	}
	if n, err := c.ReadAt(make([]byte, 10), c.Size()-4); n != 4 || err == nil {
		t.Errorf("read over the end: got %d, %v", n, err)
	}
}

func TestStatus(t *testing.T) {
	m := newMemory(8 << 20)
	for i := 0; i < len(m.p); i += 3 * 4096 {
		m.p[i] = 1
	}
	path := serveAt(t, &ServerConfig{Exports: shelf{"": {Device: m}}})
	c := dial(t, path, "", &ClientConfig{Contexts: m.Contexts()})
	for _, name := range m.Contexts() {
		type run struct {
			n     int64
			flags uint32
		}
		collect := func(d Statuser, off, n int64) []run {
			var runs []run
			if err := d.Status(t.Context(), name, off, n, func(n int64, flags uint32) error {
				if k := len(runs); k > 0 && runs[k-1].flags == flags {
					runs[k-1].n += n
				} else {
					runs = append(runs, run{n, flags})
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return runs
		}
		for _, r := range [][2]int64{{0, 8 << 20}, {4096, 4096}, {100, 20000}, {8<<20 - 1, 1}} {
			if diff := cmp.Diff(collect(c, r[0], r[1]), collect(m, r[0], r[1]), cmp.AllowUnexported(run{})); diff != "" {
				t.Errorf("%s of %d bytes at %d (-got +want):\n%s", name, r[1], r[0], diff)
			}
		}
	}
	wantKind(t, "other context", c.Status(t.Context(), "base:other", 0, 1, nil), snapferry.NotFound)
	err := c.Status(t.Context(), BaseAllocation, 0, 1<<20, func(int64, uint32) error { return errNothing })
	if err != errNothing {
		t.Errorf("error of the caller: got %v", err)
	}
}

// TestManyExtents has more extents than a reply.
func TestManyExtents(t *testing.T) {
	m := newMemory(3 * maxExtents * 16)
	m.unit = 16
	for i := 0; i < len(m.p); i += 32 {
		m.p[i] = 1
	}
	c, _ := pair(t, &ServerConfig{Exports: shelf{"": {Device: m}}}, &ClientConfig{Contexts: []string{dirtyContext}})
	var n, sum int64
	if err := c.Status(t.Context(), dirtyContext, 0, c.Size(), func(length int64, _ uint32) error {
		n, sum = n+1, sum+length
		return nil
	}); err != nil || n != 3*maxExtents || sum != c.Size() {
		t.Errorf("got %d extents of %d bytes, %v", n, sum, err)
	}
}

// certificate returns configurations of a server and of a client that trusts it.
func certificate(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"nbd.test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: roots, ServerName: "nbd.test"}
}

func TestTLS(t *testing.T) {
	server, client := certificate(t)
	m := newMemory(1 << 20)
	exports := shelf{"": {Device: m}}
	required := serveAt(t, &ServerConfig{Exports: exports, TLS: server, RequireTLS: true})
	c, err := Dial(t.Context(), "nbds+unix:///?tls-hostname=nbd.test&socket="+required, &ClientConfig{TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	testDisk(t, c)
	_, err = Dial(t.Context(), "nbd+unix:///?socket="+required, nil)
	wantKind(t, "no TLS where it is required", err, snapferry.Denied)
	if snapferry.HintOf(err) == "" {
		t.Errorf("%v has no hint", err)
	}
	_, err = Dial(t.Context(), "nbds+unix:///?tls-hostname=other.test&socket="+required, &ClientConfig{TLS: &tls.Config{RootCAs: client.RootCAs}})
	wantKind(t, "other name", err, snapferry.Denied)
	without := serveAt(t, &ServerConfig{Exports: exports})
	_, err = Dial(t.Context(), "nbds+unix:///?socket="+without, &ClientConfig{TLS: client})
	wantKind(t, "TLS that is not offered", err, snapferry.Unsupported)
	optional := serveAt(t, &ServerConfig{Exports: exports, TLS: server})
	r := dialRaw(t, optional)
	r.greet()
	r.option(optStructuredReply, nil)
	r.option(optStartTLS, nil)
	r.conn = tls.Client(r.conn, client)
	if kinds, _ := r.option(optStartTLS, nil); kinds[0] != repErrInvalid {
		t.Errorf("TLS twice: got %#x", kinds)
	}
	// What was negotiated before does not count.
	if kinds, _ := r.option(optSetMeta, append(appendString(nil, ""), 0, 0, 0, 0)); kinds[0] != repErrInvalid {
		t.Errorf("contexts without structured replies: got %#x", kinds)
	}
	r = dialRaw(t, required)
	r.greet()
	for _, opt := range []uint32{optList, optInfo, optStructuredReply, 99} {
		if kinds, _ := r.option(opt, nil); kinds[0] != repErrTLSReqd {
			t.Errorf("option %d before TLS: got %#x", opt, kinds)
		}
	}
}

func TestOptions(t *testing.T) {
	path := serveAt(t, &ServerConfig{Exports: shelf{"d": {Device: newMemory(1 << 20)}}})
	r := dialRaw(t, path)
	r.greet()
	meta := func(name string, queries ...string) []byte {
		d := binary.BigEndian.AppendUint32(appendString(nil, name), uint32(len(queries)))
		for _, q := range queries {
			d = appendString(d, q)
		}
		return d
	}
	for _, tt := range []struct {
		name string
		opt  uint32
		data []byte
		want []uint32
	}{
		{"unknown", 99, []byte("x"), []uint32{repErrUnsup}},
		{"extended headers", 11, nil, []uint32{repErrUnsup}},
		{"too long", optInfo, make([]byte, maxOption+1), []uint32{repErrTooBig}},
		{"list with data", optList, []byte("x"), []uint32{repErrInvalid}},
		{"list", optList, nil, []uint32{repServer, repAck}},
		{"TLS", optStartTLS, nil, []uint32{repErrUnsup}},
		{"contexts too early", optSetMeta, meta("d"), []uint32{repErrInvalid}},
		{"structured with data", optStructuredReply, []byte("x"), []uint32{repErrInvalid}},
		{"structured", optStructuredReply, nil, []uint32{repAck}},
		{"no information", optInfo, append(appendString(nil, "d"), 0, 0), []uint32{repInfo, repInfo, repAck}},
		{"all information", optInfo, append(appendString(nil, "d"), 0, 5, 0, 0, 0, 1, 0, 2, 0, 3, 0, 99), []uint32{repInfo, repInfo, repInfo, repAck}},
		{"cut information", optInfo, append(appendString(nil, "d"), 0, 5, 0), []uint32{repErrInvalid}},
		{"long name", optInfo, append(appendString(nil, string(make([]byte, 5000))), 0, 0), []uint32{repErrInvalid}},
		{"unknown export", optInfo, append(appendString(nil, "e"), 0, 0), []uint32{repErrUnknown}},
		{"list contexts", optListMeta, meta("d"), []uint32{repMetaContext, repMetaContext, repAck}},
		{"list a name space", optListMeta, meta("d", "base:"), []uint32{repMetaContext, repAck}},
		{"set a name space", optSetMeta, meta("d", "base:"), []uint32{repAck}},
		{"set unknown", optSetMeta, meta("d", "base:x", "y:z"), []uint32{repAck}},
		{"set", optSetMeta, meta("d", dirtyContext, BaseAllocation), []uint32{repMetaContext, repMetaContext, repAck}},
		{"cut contexts", optSetMeta, meta("d", "base:x")[:20], []uint32{repErrInvalid}},
		{"many queries", optSetMeta, append(appendString(nil, "d"), 0xff, 0xff, 0xff, 0xff), []uint32{repErrInvalid}},
		{"contexts of an unknown export", optSetMeta, meta("e", "base:x"), []uint32{repErrUnknown}},
		{"abort", optAbort, []byte("ignored"), []uint32{repAck}},
	} {
		got, _ := r.option(tt.opt, tt.data)
		if diff := cmp.Diff(got, tt.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", tt.name, diff)
		}
	}
}

// TestClientContextEnds ends a handshake with a server that says nothing.
func TestClientContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, b := net.Pipe()
	defer a.Close()
	cancel()
	_, err := NewClient(ctx, b, &ClientConfig{})
	wantKind(t, "NewClient", err, snapferry.Cancelled)
}

// TestBrokenConnection breaks a connection with requests on their way.
func TestBrokenConnection(t *testing.T) {
	m := newMemory(1 << 20)
	pattern(m.p, 2) // no hole
	begun, release := make(chan struct{}), make(chan struct{})
	m.now = func(string, int64) bool { return false }
	m.slow = func(string, int64) {
		close(begun)
		<-release
	}
	c, _ := pair(t, &ServerConfig{Exports: shelf{"": {Device: m}}}, &ClientConfig{})
	failed := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		failed <- err
	}()
	<-begun
	c.conn.Close()
	wantKind(t, "request on its way", <-failed, snapferry.Unavailable)
	wantKind(t, "later request", c.Sync(), snapferry.Unavailable)
	close(release)
}

// waiting returns a client that has three calls on their way, whose replies are
// in p: a read of 4,096 bytes at 8,192 with the cookie 1, a block status of
// 1 MiB with 2, a flush with 3.
func waiting(p []byte, structured bool) (*Client, [3]*call) {
	c := newClient()
	c.conn = &script{}
	c.r = bufio.NewReader(bytes.NewReader(p))
	c.structured = structured
	c.contexts = []metaContext{{1, BaseAllocation}, {7, "x:y"}}
	calls := [3]*call{
		{req: request{cmd: cmdRead, cookie: 1, off: 8192, length: 4096}, p: make([]byte, 4096)},
		{req: request{cmd: cmdBlockStatus, cookie: 2, length: 1 << 20}, status: make([][]statusExtent, 2)},
		{req: request{cmd: cmdFlush, cookie: 3}},
	}
	for _, k := range calls {
		k.done = make(chan struct{})
		c.calls[k.req.cookie] = k
	}
	return c, calls
}

func statusChunkOf(cookie uint64, flags uint16, id uint32, pairs ...uint32) []byte {
	p := appendChunk(nil, cookie, flags, chunkStatus, 4+4*len(pairs))
	p = binary.BigEndian.AppendUint32(p, id)
	for _, n := range pairs {
		p = binary.BigEndian.AppendUint32(p, n)
	}
	return p
}

func dataOf(flags uint16, off uint64, n int) []byte {
	return append(appendDataChunk(nil, 1, flags, off, n), make([]byte, n)...)
}

func join(ps ...[]byte) []byte { return bytes.Join(ps, nil) }

func TestReplies(t *testing.T) {
	whole := dataOf(chunkDone, 8192, 4096)
	none := appendChunk(nil, 1, chunkDone, chunkNone, 0)
	for name, tt := range map[string]struct {
		p    []byte
		want snapferry.Kind // of the first call
	}{
		"data":            {whole, 255},
		"data in pieces":  {join(dataOf(0, 10240, 2048), dataOf(0, 8192, 1024), appendHoleChunk(nil, 1, chunkDone, 9216, 1024)), 255},
		"hole and none":   {join(appendHoleChunk(nil, 1, 0, 8192, 4096), none), 255},
		"error":           {appendErrorChunk(nil, 1, ENOSPC, "no"), snapferry.Full},
		"data then error": {join(dataOf(0, 8192, 4096), appendErrorChunk(nil, 1, EIO, "")), snapferry.Unavailable},
		"unknown errno":   {appendErrorChunk(nil, 1, 4711, "what"), snapferry.Invalid},
		"unknown error":   {append(appendChunk(nil, 1, chunkDone, chunkError|99, 6), 0, 0, 0, 1, 0, 0), snapferry.Denied},
		"error at offset": {append(appendChunk(nil, 1, chunkDone, chunkErrorOffset, 14), 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0), snapferry.Unavailable},

		"gap":                   {join(dataOf(0, 8192, 1024), none), snapferry.Corrupt},
		"overlap":               {join(dataOf(0, 8192, 1024), dataOf(0, 9000, 1024)), snapferry.Corrupt},
		"before":                {dataOf(0, 8191, 2), snapferry.Corrupt},
		"behind":                {dataOf(0, 12287, 2), snapferry.Corrupt},
		"far behind":            {dataOf(0, 1<<63, 2), snapferry.Corrupt},
		"empty data":            {dataOf(0, 8192, 0), snapferry.Corrupt},
		"empty hole":            {appendHoleChunk(nil, 1, 0, 8192, 0), snapferry.Corrupt},
		"none, not done":        {appendChunk(nil, 1, 0, chunkNone, 0), snapferry.Corrupt},
		"unknown chunk":         {appendChunk(nil, 1, chunkDone, 99, 0), snapferry.Corrupt},
		"status for a read":     {statusChunkOf(1, chunkDone, 1, 512, 0), snapferry.Corrupt},
		"data for a flush":      {append(appendDataChunk(nil, 3, chunkDone, 0, 1), 0), snapferry.Corrupt},
		"simple for a read":     {appendSimple(nil, 1, 0), snapferry.Corrupt},
		"unknown cookie":        {appendSimple(nil, 9, 0), snapferry.Corrupt},
		"answered twice":        {join(whole, whole), 255},
		"garbage":               {make([]byte, 64), snapferry.Corrupt},
		"error zero":            {appendErrorChunk(nil, 1, 0, ""), snapferry.Corrupt},
		"error without length":  {appendChunk(nil, 1, chunkDone, chunkPlainError, 5), snapferry.Corrupt},
		"error, long message":   {append(appendChunk(nil, 1, chunkDone, chunkPlainError, 6), 0, 0, 0, 1, 0, 1), snapferry.Corrupt},
		"huge error":            {appendChunk(nil, 1, chunkDone, chunkPlainError, 1<<20), snapferry.Corrupt},
		"error at wrong offset": {append(appendChunk(nil, 1, chunkDone, chunkErrorOffset, 14), make([]byte, 14)...), snapferry.Corrupt},
		"cut":                   {whole[:100], snapferry.Unavailable},
		"nothing":               {nil, snapferry.Unavailable},
	} {
		c, calls := waiting(tt.p, true)
		c.receive()
		if tt.want == 255 {
			if calls[0].err != nil {
				t.Errorf("%s: got %v", name, calls[0].err)
			}
			continue
		}
		wantKind(t, name, calls[0].err, tt.want)
	}
}

func TestStatusReplies(t *testing.T) {
	one := statusChunkOf(2, 0, 1, 512, 1, 1<<21, 0)
	for name, tt := range map[string]struct {
		p    []byte
		good bool
	}{
		"both":           {join(one, statusChunkOf(2, chunkDone, 7, 512, 0)), true},
		"other order":    {join(statusChunkOf(2, 0, 7, 512, 0), statusChunkOf(2, chunkDone, 1, 512, 0)), true},
		"one left out":   {statusChunkOf(2, chunkDone, 1, 512, 1), false},
		"twice":          {join(one, one), false},
		"unknown id":     {statusChunkOf(2, 0, 3, 512, 0), false},
		"empty extent":   {statusChunkOf(2, 0, 1, 0, 0), false},
		"extent too far": {statusChunkOf(2, 0, 1, 1<<20, 0, 512, 0), false},
		"no extent":      {statusChunkOf(2, 0, 1), false},
		"half an extent": {statusChunkOf(2, 0, 1, 512), false},
		"too many":       {appendChunk(nil, 2, 0, chunkStatus, 4+8*(1<<20+1)), false},
	} {
		c, calls := waiting(tt.p, true)
		c.receive()
		if tt.good != (calls[1].err == nil) || !tt.good && !snapferry.IsKind(calls[1].err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want it good: %v", name, calls[1].err, tt.good)
		}
	}
	c, calls := waiting(join(appendSimple(nil, 1, 0), make([]byte, 4096), appendSimple(nil, 3, ESHUTDOWN), one), false)
	c.receive()
	if calls[0].err != nil {
		t.Errorf("simple read: got %v", calls[0].err)
	}
	wantKind(t, "flush", calls[2].err, snapferry.Unavailable)
	wantKind(t, "structured reply that was not negotiated", calls[1].err, snapferry.Corrupt)
}

// TestServersOfNonsense has servers whose handshake is wrong.
func TestServersOfNonsense(t *testing.T) {
	hello := func(flags uint16) []byte {
		p := binary.BigEndian.AppendUint64(nil, magicInit)
		p = binary.BigEndian.AppendUint64(p, magicOption)
		return binary.BigEndian.AppendUint16(p, flags)
	}
	fixed := hello(flagFixedNewstyle | flagNoZeroes)
	ack := appendOptionReply(nil, optStructuredReply, repAck, nil)
	unsup := appendOptionReply(nil, optStructuredReply, repErrUnsup, nil)
	export := append([]byte{0, infoExport, 0, 0, 0, 0, 0, 1, 0, 0}, 0, 1)
	for name, tt := range map[string]struct {
		p    []byte
		want snapferry.Kind
	}{
		"silence":             {nil, snapferry.Unavailable},
		"other protocol":      {[]byte("SSH-2.0-OpenSSH_9.6 and more"), snapferry.Corrupt},
		"oldstyle":            {binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, magicInit), magicOldstyle), 0), snapferry.Unsupported},
		"ends after hello":    {fixed, snapferry.Unavailable},
		"wrong option":        {join(fixed, appendOptionReply(nil, optList, repAck, nil)), snapferry.Corrupt},
		"ack with data":       {join(fixed, appendOptionReply(nil, optStructuredReply, repAck, []byte{1})), snapferry.Corrupt},
		"unasked reply":       {join(fixed, appendOptionReply(nil, optStructuredReply, repServer, nil)), snapferry.Corrupt},
		"long reply":          {join(fixed, appendOptionReply(nil, optStructuredReply, repErrUnsup, make([]byte, 1<<20))), snapferry.Corrupt},
		"no information":      {join(fixed, ack, appendOptionReply(nil, optGo, repAck, nil)), snapferry.Corrupt},
		"short information":   {join(fixed, ack, appendOptionReply(nil, optGo, repInfo, export[:8])), snapferry.Corrupt},
		"negative size":       {join(fixed, ack, appendOptionReply(nil, optGo, repInfo, append([]byte{0, infoExport, 255}, export[3:]...))), snapferry.Corrupt},
		"block of 3 bytes":    {join(fixed, unsup, appendOptionReply(nil, optGo, repInfo, []byte{0, infoBlockSize, 0, 0, 0, 3, 0, 0, 2, 0, 1, 0, 0, 0})), snapferry.Corrupt},
		"policy":              {join(fixed, unsup, appendOptionReply(nil, optGo, repErrPolicy, []byte("not\x01you"))), snapferry.Denied},
		"shutdown":            {join(fixed, appendOptionReply(nil, optStructuredReply, repErrShutdown, nil)), snapferry.Unavailable},
		"old way, refused":    {join(fixed, unsup, appendOptionReply(nil, optGo, repErrUnsup, nil)), snapferry.NotFound},
		"unfixed, refused":    {hello(0), snapferry.NotFound},
		"unfixed, cut answer": {join(hello(flagNoZeroes), make([]byte, 5)), snapferry.Unavailable},
	} {
		_, err := NewClient(t.Context(), &script{in: tt.p}, &ClientConfig{})
		wantKind(t, name, err, tt.want)
	}
	for name, p := range map[string][]byte{
		"old way": join(fixed, unsup, appendOptionReply(nil, optGo, repErrUnsup, nil), export[2:]),
		"unfixed": join(hello(0), export[2:], make([]byte, 124)),
	} {
		c, err := NewClient(t.Context(), &script{in: p}, &ClientConfig{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.Size() != 1<<16 || c.Flags() != HasFlags {
			t.Errorf("%s: got %d bytes, flags %b", name, c.Size(), c.Flags())
		}
		c.Close()
	}
}
