package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/internal/transfer"
)

// Client reaches another region. It is safe for concurrent use.
type Client struct {
	region snapferry.RegionName
	base   string
	http   *http.Client
	stall  time.Duration
}

// stallTime is how long a stream may go without a byte before it is given up.
const stallTime = 30 * time.Second

// NewClient returns a client of the region at an address (host:port).
func NewClient(region snapferry.RegionName, address string, tc *tls.Config) *Client {
	return &Client{region: region, base: "https://" + address, stall: stallTime, http: &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
		DialTLSContext: dialer(tc), DisableCompression: true,
		MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, ReadBufferSize: 64 << 10,
		ResponseHeaderTimeout: stallTime,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: a connection a stream
	}}}
}

const (
	dialTime   = 10 * time.Second
	readAtOnce = 128 << 10
)

// dialer returns how connections are made: TLS over TCP, with a buffer below
// TLS, which by itself asks the system for one record of 16 KiB at a time.
func dialer(tc *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTime)
		defer cancel()
		var d net.Dialer
		raw, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		cfg := tc.Clone()
		if host, _, err := net.SplitHostPort(address); err == nil && cfg.ServerName == "" {
			cfg.ServerName = host
		}
		conn := tls.Client(&bufferedConn{Conn: raw, r: bufio.NewReaderSize(raw, readAtOnce)}, cfg)
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return conn, nil
	}
}

// bufferedConn reads ahead.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// noRedirect keeps requests at the region they are for.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// As returns the region as seen on behalf of an account.
func (c *Client) As(account string) transfer.Remote { return &remote{c, account} }

type remote struct {
	*Client
	account string
}

// do sends a request and returns the answer's body, which the caller closes.
func (r *remote) do(ctx context.Context, path string, req any) (io.ReadCloser, error) {
	p, err := json.Marshal(req)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "encode request: %w", err)
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+path, bytes.NewReader(p))
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "address of region %s: %w", r.region, err)
	}
	hr.Header.Set("Content-Type", "application/json")
	hr.Header.Set(headerProtocol, "1")
	hr.Header.Set(headerAccount, r.account)
	resp, err := r.http.Do(hr)
	if err != nil {
		return nil, r.unreachable(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var f failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(&f); err != nil || f.Message == "" {
		return nil, snapferry.Errorf(snapferry.Unavailable, "region %s answered %s", r.region, resp.Status)
	}
	if snapferry.ParseKind(f.Kind) == snapferry.Internal {
		f.Kind = snapferry.Unavailable.String()
	}
	return nil, snapferry.Errorf(snapferry.ParseKind(f.Kind), "region %s: %w", r.region, f.err())
}

// unreachable says why a region could not be asked.
func (r *remote) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e := pki.Explain(r.region, err); snapferry.IsKind(e, snapferry.Denied) {
		return e
	}
	return snapferry.Errorf(snapferry.Unavailable, "region %s cannot be reached: %w", r.region, err).
		WithHint("check that the region runs and that its peer address in the configuration is right")
}

// ask sends a request and decodes a JSON answer.
func (r *remote) ask(ctx context.Context, path string, req, into any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*stallTime, snapferry.Errorf(snapferry.Unavailable, "region %s did not answer within %s", r.region, 2*stallTime))
	defer cancel()
	body, err := r.do(ctx, path, req)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxReply)).Decode(into); err != nil {
		return snapferry.Errorf(snapferry.Unavailable, "region %s: its answer: %w", r.region, err)
	}
	return nil
}

func (r *remote) Hello(ctx context.Context) (h transfer.Hello, err error) {
	if err := r.ask(ctx, pathHello, struct{}{}, &h); err != nil {
		return h, err
	}
	if h.Region != r.region {
		return h, snapferry.Errorf(snapferry.Conflict, "the region at %s calls itself %s, not %s", r.base, h.Region, r.region)
	}
	if h.Protocol != Protocol {
		return h, snapferry.Errorf(snapferry.Unsupported, "region %s speaks protocol %d, this one %d", r.region, h.Protocol, Protocol).
			WithHint("run the same version of snapferry in both regions")
	}
	return h, nil
}

func (r *remote) Describe(ctx context.Context, id snapferry.SnapshotID) (transfer.Description, error) {
	var x description
	if err := r.ask(ctx, pathDescribe, describeRequest{Snapshot: id}, &x); err != nil {
		return transfer.Description{}, err
	}
	d, err := x.decode()
	if err == nil && d.Snapshot != id {
		err = snapferry.Errorf(snapferry.Corrupt, "it describes %s instead of %s", d.Snapshot, id)
	}
	if err != nil {
		return d, snapferry.Errorf(snapferry.KindOf(err), "region %s: %w", r.region, err)
	}
	return d, nil
}

func (r *remote) Members(ctx context.Context, set snapferry.SetID) ([]snapferry.SnapshotID, error) {
	var x membersReply
	if err := r.ask(ctx, pathMembers, membersRequest{set}, &x); err != nil {
		return nil, err
	}
	for _, id := range x.Snapshots {
		if _, err := snapferry.ParseSnapshotID(string(id)); err != nil {
			return nil, snapferry.Errorf(snapferry.Corrupt, "region %s: its list of the snapshots of set %s: %w", r.region, set, err)
		}
	}
	return x.Snapshots, nil
}

func (r *remote) Pin(ctx context.Context, p transfer.Pin) (h transfer.Handle, err error) {
	return h, r.ask(ctx, pathPin, p, &h)
}

func (r *remote) Renew(ctx context.Context, h transfer.Handle) error {
	return r.ask(ctx, pathRenew, h, &struct{}{})
}

func (r *remote) Release(ctx context.Context, h transfer.Handle, ending snapferry.Ending) error {
	return r.ask(ctx, pathRelease, releaseRequest{h, ending}, &struct{}{})
}

func (r *remote) Pins(ctx context.Context, after string) ([]transfer.Held, error) {
	var x pinsReply
	if err := r.ask(ctx, pathPins, pinsRequest{After: after}, &x); err != nil {
		return nil, err
	}
	for i, p := range x.Pins {
		if p.Pin <= after || i > 0 && p.Pin <= x.Pins[i-1].Pin {
			return nil, snapferry.Errorf(snapferry.Corrupt, "region %s: its list of pins is not in order", r.region)
		}
	}
	return x.Pins, nil
}

func (r *remote) Source(h transfer.Handle) transfer.Source { return &source{r, h} }

type source struct {
	*remote
	handle transfer.Handle
}

func (s *source) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	req := nodesRequest{Handle: s.handle}
	for _, p := range at {
		req.At = append(req.At, position(p))
	}
	st, err := s.open(ctx, pathNodes, nodeBuffer, req)
	if err != nil {
		return err
	}
	defer st.Close()
	for {
		it, err := st.next(itemNode)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return st.cause(err)
		}
		p, n, err := it.node()
		if err != nil {
			return s.blame(err)
		}
		if err := fn(p, n); err != nil {
			return err
		}
	}
}

// blame says which region an error is about.
func (s *source) blame(err error) error {
	return snapferry.Errorf(snapferry.KindOf(err), "region %s: %w", s.region, err)
}

func (s *source) Blocks(ctx context.Context, wants []transfer.Want) (transfer.Frames, error) {
	req := blocksRequest{Handle: s.handle}
	for i := range wants {
		req.Want = append(req.Want, want{Leaf: wants[i].Leaf, Blocks: wants[i].Blocks[:]})
	}
	return s.open(ctx, pathBlocks, blockBuffer, req)
}

// open starts a stream that is given up when no byte comes for the stall time.
func (s *source) open(ctx context.Context, path string, buffer int, req any) (*stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	body, err := s.do(ctx, path, req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	w := &watched{r: body, after: s.stall, cancel: func() {
		cancel(snapferry.Errorf(snapferry.Unavailable, "region %s sent nothing for %s", s.region, s.stall))
	}}
	w.timer = time.AfterFunc(s.stall, w.cancel)
	st := &stream{streamReader: newStreamReader(w, buffer), source: s, ctx: func() error { return context.Cause(ctx) }, close: func() error {
		w.timer.Stop()
		cancel(nil)
		return body.Close()
	}}
	if err := st.begin(); err != nil {
		err = st.cause(err)
		st.Close()
		return nil, err
	}
	return st, nil
}

// watched is a reader that calls cancel when a read takes too long.
type watched struct {
	r      io.Reader
	after  time.Duration
	timer  *time.Timer
	cancel func()
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.after)
	n, err := w.r.Read(p)
	w.timer.Stop()
	return n, err
}

// stream is the answer to a request for nodes or blocks.
type stream struct {
	*streamReader
	source *source
	ctx    func() error // why the request was given up, or nil
	close  func() error
}

// cause prefers the reason the request was given up to what that did to it.
func (s *stream) cause(err error) error {
	if why := s.ctx(); why != nil {
		return why
	}
	return s.source.blame(err)
}

func (s *stream) Next() (transfer.Frame, error) {
	it, err := s.next(itemBlock)
	if errors.Is(err, io.EOF) {
		return transfer.Frame{}, io.EOF
	}
	if err != nil {
		return transfer.Frame{}, s.cause(err)
	}
	return transfer.Frame{Block: it.index, Codec: snapferry.Codec(it.sub), RawLength: int(it.raw), Payload: it.payload}, nil
}

// Close ends the stream. One that was read to its end leaves its connection to
// others.
func (s *stream) Close() error { return s.close() }
