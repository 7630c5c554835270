package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/internal/transfer"
)

// Handler returns the peer service of a region. It must be served over mutual
// TLS: who calls is told by the certificate.
func Handler(h transfer.Host, log *slog.Logger) http.Handler {
	s := &server{host: h, log: log}
	mux := http.NewServeMux()
	mux.Handle("POST "+pathHello, s.handle(s.hello))
	mux.Handle("POST "+pathDescribe, s.handle(s.describe))
	mux.Handle("POST "+pathMembers, s.handle(s.members))
	mux.Handle("POST "+pathPin, s.handle(s.pin))
	mux.Handle("POST "+pathRenew, s.handle(s.renew))
	mux.Handle("POST "+pathRelease, s.handle(s.release))
	mux.Handle("POST "+pathPins, s.handle(s.pins))
	mux.Handle("POST "+pathNodes, s.handle(s.nodes))
	mux.Handle("POST "+pathBlocks, s.handle(s.blocks))
	return mux
}

type server struct {
	host transfer.Host
	log  *slog.Logger
}

// reply is what a handler answers: a value for JSON, or a stream.
type reply struct {
	value  any
	stream func(*streamWriter) error
	buffer int // of the stream
}

// handle authenticates the caller, runs fn and writes its answer: the only
// place that writes one.
func (s *server) handle(fn func(context.Context, transfer.Caller, []byte) (reply, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := s.caller(r)
		var rep reply
		if err == nil {
			var body []byte
			if body, err = readBody(w, r); err == nil {
				rep, err = fn(r.Context(), caller, body)
			}
		}
		switch {
		case err != nil:
			s.fail(w, r, caller, err)
		case rep.stream != nil:
			s.stream(w, r, caller, rep)
		default:
			writeJSON(w, http.StatusOK, rep.value)
		}
	})
}

// readBody reads a request, which is short and must come soon; the answer may
// be long and take its time.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(stallTime)); err != nil {
		return nil, snapferry.Errorf(snapferry.Unavailable, "read the request: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil {
		err = rc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "read the request: %w", err)
	}
	return body, nil
}

func (s *server) caller(r *http.Request) (transfer.Caller, error) {
	if r.TLS == nil {
		return transfer.Caller{}, snapferry.Errorf(snapferry.Denied, "regions must use TLS")
	}
	region, err := pki.PeerRegion(*r.TLS)
	if err != nil {
		return transfer.Caller{}, err
	}
	c := transfer.Caller{Region: region, Account: r.Header.Get(headerAccount)}
	if r.URL.Path != pathHello && r.Header.Get(headerProtocol) != "1" {
		return c, snapferry.Errorf(snapferry.Unsupported, "region %s speaks protocol %q, this one 1", region, r.Header.Get(headerProtocol)).
			WithHint("run the same version of snapferry in both regions")
	}
	return c, nil
}

func (s *server) stream(w http.ResponseWriter, r *http.Request, c transfer.Caller, rep reply) {
	w.Header().Set("Content-Type", "application/octet-stream")
	flush := gather(r.Context())
	sw, err := newStreamWriter(w, rep.buffer)
	if err == nil {
		err = rep.stream(sw)
		if err != nil {
			s.report(r, c, err)
		}
		err = sw.end(err)
	}
	if ferr := flush(); err == nil {
		err = ferr
	}
	if err != nil {
		s.log.DebugContext(r.Context(), "peer went away", "path", r.URL.Path, "region", c.Region, "err", err)
	}
}

// statuses maps every Kind to an HTTP status.
var statuses = map[snapferry.Kind]int{
	snapferry.Internal: 500, snapferry.Invalid: 400, snapferry.NotFound: 404, snapferry.Exists: 409, snapferry.Conflict: 409, snapferry.Denied: 403,
	snapferry.Unavailable: 503, snapferry.Corrupt: 500, snapferry.Full: 507, snapferry.Unsupported: 501, snapferry.Cancelled: 499,
	snapferry.KeyUnusable: 424,
}

func (s *server) fail(w http.ResponseWriter, r *http.Request, c transfer.Caller, err error) {
	s.report(r, c, err)
	kind := snapferry.KindOf(err)
	writeJSON(w, statuses[kind], failure{Kind: kind.String(), Message: publicText(err), Hint: snapferry.HintOf(err)})
}

func (s *server) report(r *http.Request, c transfer.Caller, err error) {
	level := slog.LevelInfo
	if k := snapferry.KindOf(err); k == snapferry.Internal || k == snapferry.Corrupt {
		level = slog.LevelError
	}
	if errors.Is(err, context.Canceled) {
		level = slog.LevelDebug
	}
	s.log.Log(r.Context(), level, "peer request failed", "path", r.URL.Path, "region", c.Region, "account", c.Account, "err", err)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// Who does not read the answer does not get it.
	_ = json.NewEncoder(w).Encode(v)
}

func decode(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return snapferry.Errorf(snapferry.Invalid, "request body: %w", err)
	}
	return nil
}

func (s *server) hello(ctx context.Context, c transfer.Caller, _ []byte) (reply, error) {
	h, err := s.host.Hello(ctx, c)
	h.Protocol = Protocol
	return reply{value: h}, err
}

func (s *server) describe(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var req describeRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	d, err := s.host.Describe(ctx, c, req.Snapshot)
	return reply{value: describe(d)}, err
}

func (s *server) members(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var req membersRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	ids, err := s.host.Members(ctx, c, req.Set)
	return reply{value: membersReply{ids}}, err
}

func (s *server) pin(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var req transfer.Pin
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	h, err := s.host.Pin(ctx, c, req)
	return reply{value: h}, err
}

func (s *server) renew(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var h transfer.Handle
	if err := decode(body, &h); err != nil {
		return reply{}, err
	}
	return reply{value: struct{}{}}, s.host.Renew(ctx, c, h)
}

func (s *server) release(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var req releaseRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	return reply{value: struct{}{}}, s.host.Release(ctx, c, req.Handle, req.Ending)
}

func (s *server) pins(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var req pinsRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	held, err := s.host.Pins(ctx, c, req.After)
	return reply{value: pinsReply{held}}, err
}

func (s *server) nodes(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var req nodesRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	if len(req.At) > maxAsk {
		return reply{}, snapferry.Errorf(snapferry.Invalid, "%d nodes asked for, more than %d", len(req.At), maxAsk)
	}
	src, err := s.host.Source(ctx, c, req.Handle)
	if err != nil {
		return reply{}, err
	}
	at := make([]snapferry.Position, len(req.At))
	for i, p := range req.At {
		at[i] = snapferry.Position(p)
	}
	return reply{buffer: nodeBuffer, stream: func(w *streamWriter) error {
		return src.Nodes(ctx, at, func(at snapferry.Position, n *blockmap.Node) error { return w.node(at, n) })
	}}, nil
}

func (s *server) blocks(ctx context.Context, c transfer.Caller, body []byte) (reply, error) {
	var req blocksRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	if len(req.Want) > maxAsk {
		return reply{}, snapferry.Errorf(snapferry.Invalid, "blocks of %d leaves asked for, more than %d", len(req.Want), maxAsk)
	}
	wants := make([]transfer.Want, len(req.Want))
	for i, x := range req.Want {
		if len(x.Blocks) != len(wants[i].Blocks) {
			return reply{}, snapferry.Errorf(snapferry.Invalid, "bitmap of %d bytes, want %d", len(x.Blocks), len(wants[i].Blocks))
		}
		wants[i] = transfer.Want{Leaf: x.Leaf, Blocks: blockmap.Bitmap(x.Blocks)}
	}
	src, err := s.host.Source(ctx, c, req.Handle)
	if err != nil {
		return reply{}, err
	}
	frames, err := src.Blocks(ctx, wants)
	if err != nil {
		return reply{}, err
	}
	return reply{buffer: blockBuffer, stream: func(w *streamWriter) error {
		defer frames.Close()
		for {
			f, err := frames.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = w.block(f)
			}
			if err != nil {
				return err
			}
		}
	}}, nil
}
