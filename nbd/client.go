package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// clientBuffer is the read buffer of a client.
	clientBuffer = 64 << 10
	// largestRange is the longest trim, zeroing or status that is asked for at
	// once, in bytes.
	largestRange = 1 << 30
)

// ClientConfig says what a client wants of a server.
type ClientConfig struct {
	// Export is the name of the export; the empty one is the server's default.
	// Dial takes it from the URI instead.
	Export string
	// TLS, when it is not nil, must be begun before anything is asked.
	TLS *tls.Config
	// Contexts are the metadata contexts to select. Those that the server does
	// not have are not selected: see Client.Contexts.
	Contexts []string
	// Handshake is the time that the handshake may take. 0 is 30 seconds.
	Handshake time.Duration
}

// Client is a disk on an NBD server. All methods may be called concurrently,
// and requests are sent without waiting for earlier ones.
//
// The Kind of an error says what went wrong: Unavailable, the connection broke
// or was closed, or the server had an error of input or output; Corrupt, the
// server sent what is no reply to what was asked; Invalid, Denied, Full and
// Unsupported as the server said, or as the request would have been refused.
// After a Corrupt reply, or a broken connection, every request fails.
//
// A Client has the methods of a Device and of its abilities except Immediate
// and Holer. Which of them the server offers is in Flags; the others fail as
// Unsupported.
type Client struct {
	conn        net.Conn
	r           *bufio.Reader
	size        int64
	flags       Flags
	structured  bool
	contexts    []metaContext
	description string
	minBlock    uint32
	preferred   uint32
	maxPayload  uint32

	writing sync.Mutex // held to write to conn
	head    []byte     // under writing

	mu     sync.Mutex
	calls  map[uint64]*call // sent, and not answered
	cookie uint64           // the last one
	err    error            // why no more requests can be done

	ended chan struct{} // the goroutine that reads has ended
}

// Dial connects to an export by its URI, see ParseURI. With nbds TLS is begun
// with cfg.TLS, or with the certificates of the system. cfg may be nil. Errors
// are those of ParseURI and NewClient; Unavailable when there is no connection.
func Dial(ctx context.Context, uri string, cfg *ClientConfig) (*Client, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	var c ClientConfig
	if cfg != nil {
		c = *cfg
	}
	c.Export = u.Export
	if u.TLS {
		c.TLS = u.tlsConfig(c.TLS)
	}
	conn, err := new(net.Dialer).DialContext(ctx, u.Network, u.Address)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Unavailable, "connect to the NBD server: %w", err)
	}
	return NewClient(ctx, conn, &c)
}

// tlsConfig returns base, or what is usual, with what the URI says.
func (r *URI) tlsConfig(base *tls.Config) *tls.Config {
	t := &tls.Config{}
	if base != nil {
		t = base.Clone()
	}
	if t.ServerName == "" {
		t.ServerName = r.Hostname
	}
	t.InsecureSkipVerify = t.InsecureSkipVerify || r.NoVerify
	return t
}

// NewClient does the handshake over conn, which it owns, and opens an export.
// When ctx ends before it is done, it fails. Errors: NotFound, there is no such
// export; Denied, the server does not want this client, or without TLS;
// Unsupported, the server does not speak the newstyle handshake, or no TLS
// where that was wanted; Unavailable and Corrupt as those of Client.
func NewClient(ctx context.Context, conn net.Conn, cfg *ClientConfig) (*Client, error) {
	g, err := greet(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	c := newClient()
	if err := g.open(c, cfg); err != nil {
		return nil, g.fail(ctx, err)
	}
	if err := g.done(); err != nil {
		return nil, g.fail(ctx, err)
	}
	c.start(g)
	return c, nil
}

func newClient() *Client {
	return &Client{
		calls: make(map[uint64]*call), ended: make(chan struct{}),
		minBlock: 1, preferred: defaultPreferred, maxPayload: defaultPayload,
	}
}

// start begins transmission after the handshake.
func (c *Client) start(g *greeting) {
	c.conn = g.conn
	c.r = bufio.NewReaderSize(c.conn, clientBuffer)
	go c.receive()
}

// List asks a server for its exports over conn, which it owns and closes. The
// Export and the Contexts of cfg do not matter. Errors are those of NewClient;
// Denied when the server does not want to tell.
func List(ctx context.Context, conn net.Conn, cfg *ClientConfig) ([]ExportInfo, error) {
	g, err := greet(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	infos, err := g.list()
	if err != nil {
		return nil, g.fail(ctx, err)
	}
	g.abort()
	return infos, nil
}

// Size returns the size of the disk in bytes.
func (c *Client) Size() int64 { return c.size }

// Flags returns what the server can do.
func (c *Client) Flags() Flags { return c.flags }

// Description returns what the server says of the export, for people; it may be
// empty.
func (c *Client) Description() string { return c.description }

// BlockSizes returns, in bytes, what offsets and lengths must be multiples of,
// what they better are multiples of, and the largest payload. The methods split
// what is larger, and reads need not be aligned.
func (c *Client) BlockSizes() (minimum, preferred, payload uint32) {
	return c.minBlock, c.preferred, c.maxPayload
}

// Contexts returns the names of the metadata contexts that were selected.
func (c *Client) Contexts() []string {
	names := make([]string, len(c.contexts))
	for i, m := range c.contexts {
		names[i] = m.name
	}
	return names
}

// Close ends the connection, and fails what is not answered yet. It waits for
// nothing but its own goroutine.
func (c *Client) Close() error {
	c.mu.Lock()
	broken := c.err != nil
	if !broken {
		c.err = snapferry.Errorf(snapferry.Unavailable, "the connection to the NBD server was closed")
	}
	c.mu.Unlock()
	if !broken {
		// For the farewell a moment is enough; who is stuck in a write holds the
		// lock, and is freed by the deadline.
		c.conn.SetWriteDeadline(time.Now().Add(time.Second))
		c.writing.Lock()
		c.conn.Write(appendRequest(nil, &request{cmd: cmdDisc})) // a server that misses it sees the end of the connection
		c.writing.Unlock()
	}
	err := c.conn.Close()
	<-c.ended
	if broken || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// check returns what is wrong with a range.
func (c *Client) check(off, n int64) error {
	if off < 0 || n < 0 || off > c.size || n > c.size-off {
		return snapferry.Errorf(snapferry.Invalid, "the range of %d bytes from %d on is not within the disk of %d bytes", n, off, c.size)
	}
	return nil
}

// checkChange returns what is wrong with a change of a range.
func (c *Client) checkChange(off, n int64, need Flags, what string) error {
	if err := c.check(off, n); err != nil {
		return err
	}
	if c.flags.Has(ReadOnly) {
		return snapferry.Errorf(snapferry.Denied, "the export is read-only")
	}
	if !c.flags.Has(need) {
		return snapferry.Errorf(snapferry.Unsupported, "the NBD server does not offer to %s", what)
	}
	if (off|n)&int64(c.minBlock-1) != 0 {
		return snapferry.Errorf(snapferry.Invalid, "the NBD server wants multiples of %d bytes", c.minBlock)
	}
	return nil
}

// ReadAt reads all of p, or returns an error. Behind the end of the disk it
// reads what there is and returns io.EOF.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, c.check(off, int64(len(p)))
	}
	var end error
	if left := max(c.size-off, 0); int64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	step := c.step(int64(c.maxPayload))
	for n := 0; n < len(p); {
		m, err := c.readSome(p[n:], off+int64(n), step)
		if err != nil {
			return n, err
		}
		n += m
	}
	return len(p), end
}

// step returns the longest range, of at most n bytes, that fits the server's
// blocks.
func (c *Client) step(n int64) int64 {
	return max(n&^int64(c.minBlock-1), int64(c.minBlock))
}

// readSome reads the first bytes of p, with one request of at most step bytes
// that fits the blocks of the server.
func (c *Client) readSome(p []byte, off, step int64) (int, error) {
	mask := int64(c.minBlock - 1)
	from := off &^ mask
	to := min((off+int64(len(p))+mask)&^mask, from+step, c.size)
	if to <= off {
		return 0, snapferry.Errorf(snapferry.Invalid, "the NBD server wants multiples of %d bytes", c.minBlock)
	}
	q := p
	if from != off || to > off+int64(len(p)) {
		q = make([]byte, to-from)
	}
	k := call{req: request{cmd: cmdRead, off: uint64(from), length: uint32(to - from)}, p: q[:to-from]}
	if err := c.do(&k, nil); err != nil {
		return 0, err
	}
	if from != off || to > off+int64(len(p)) {
		return copy(p, q[off-from:]), nil
	}
	return int(to - from), nil
}

// WriteAt writes p. The range must fit the server's blocks; what the server has
// done of it when there is an error is not known.
func (c *Client) WriteAt(p []byte, off int64) (int, error) { return c.write(p, off, 0) }

// WriteSync writes p and makes it durable.
func (c *Client) WriteSync(p []byte, off int64) error {
	flags := uint16(0)
	if c.flags.Has(CanFUA) {
		flags = cmdFlagFUA
	}
	if _, err := c.write(p, off, flags); err != nil || flags != 0 {
		return err
	}
	return c.Sync()
}

func (c *Client) write(p []byte, off int64, flags uint16) (int, error) {
	if err := c.checkChange(off, int64(len(p)), 0, "write"); err != nil {
		return 0, err
	}
	step := int(c.step(int64(c.maxPayload)))
	for n := 0; n < len(p); {
		q := p[n:min(n+step, len(p))]
		k := call{req: request{cmd: cmdWrite, flags: flags, off: uint64(off) + uint64(n), length: uint32(len(q))}}
		if err := c.do(&k, q); err != nil {
			return n, err
		}
		n += len(q)
	}
	return len(p), nil
}

// Sync makes everything durable that was written and answered. It does nothing
// where the server does not offer it: such a server has nothing to flush.
func (c *Client) Sync() error {
	if !c.flags.Has(CanFlush) {
		return nil
	}
	return c.do(&call{req: request{cmd: cmdFlush}}, nil)
}

// Trim tells the server that a range is no longer needed; what it reads as
// afterwards is not known.
func (c *Client) Trim(off, n int64) error {
	if err := c.checkChange(off, n, CanTrim, "trim"); err != nil {
		return err
	}
	return c.ranges(off, n, cmdTrim, 0)
}

// Zero makes a range read as zeroes; with hole it may become unallocated.
func (c *Client) Zero(off, n int64, hole bool) error {
	flags := uint16(cmdFlagNoHole)
	if hole {
		flags = 0
	}
	if err := c.checkChange(off, n, CanWriteZeroes, "write zeroes"); err != nil {
		return err
	}
	return c.ranges(off, n, cmdWriteZeroes, flags)
}

// Cache tells the server that a range will be read. A range that does not fit
// the server's blocks is made larger.
func (c *Client) Cache(off, n int64) error {
	if err := c.check(off, n); err != nil {
		return err
	}
	if !c.flags.Has(CanCache) {
		return snapferry.Errorf(snapferry.Unsupported, "the NBD server does not offer to cache")
	}
	mask := int64(c.minBlock - 1)
	from := off &^ mask
	return c.ranges(from, min((off+n+mask)&^mask, c.size)-from, cmdCache, 0)
}

func (c *Client) ranges(off, n int64, cmd command, flags uint16) error {
	for n > 0 {
		m := min(n, largestRange)
		k := call{req: request{cmd: cmd, flags: flags, off: uint64(off), length: uint32(m)}}
		if err := c.do(&k, nil); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// Status calls extent for the extents of a selected context in the range of n
// bytes from off on, in ascending order and without gaps; neighbours may have
// the same flags. It ends with the first error of extent. NotFound says that
// the context was not selected.
func (c *Client) Status(ctx context.Context, name string, off, n int64, extent func(length int64, flags uint32) error) error {
	if err := c.check(off, n); err != nil {
		return err
	}
	index := -1
	for i, m := range c.contexts {
		if m.name == name {
			index = i
		}
	}
	if index < 0 {
		return snapferry.Errorf(snapferry.NotFound, "the NBD server has no metadata context %q here", name)
	}
	mask := int64(c.minBlock - 1)
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return snapferry.Errorf(snapferry.Cancelled, "block status: %w", err)
		}
		at := off &^ mask
		to := min((end+mask)&^mask, at+largestRange, c.size)
		k := call{
			req:    request{cmd: cmdBlockStatus, off: uint64(at), length: uint32(to - at)},
			status: make([][]statusExtent, len(c.contexts)),
		}
		if err := c.do(&k, nil); err != nil {
			return err
		}
		for _, e := range k.status[index] {
			// at <= off < end: an extent ends at at, and counts from off on.
			at += int64(e.length)
			length := min(at, end) - off
			if length <= 0 {
				continue
			}
			if err := extent(length, e.flags); err != nil {
				return err
			}
			off += length
		}
	}
	return nil
}
