// Package wire runs the operations of an HTTP dialect. An operation is a value:
// its name, its route, how its request is decoded and what it calls. What all
// have in common is here: request ids, bearer tokens, limits, deadlines, the
// access log, panics, and the one writer of replies and errors.
package wire

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// RequestIDHeader is the reply's header with the id under which the log
	// has the request.
	RequestIDHeader = "Snapferry-Request-Id"
	// MaxBody is the largest body of a request in bytes.
	MaxBody = 1 << 20
	// DefaultLimit is how long an operation may take when it does not say.
	DefaultLimit = 30 * time.Second
)

// Authenticator tells whose token a request carries; Denied when it is
// nobody's. An empty token is asked about too.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (snapferry.Account, error)
}

// Failure is what a caller may know of an error.
type Failure struct {
	Kind      snapferry.Kind
	Message   string
	Hint      string // may be empty
	RequestID string
}

// Dialect is what the operations of a dialect have in common.
type Dialect struct {
	Auth  Authenticator
	Log   *slog.Logger      // nil for none
	Error func(Failure) any // the body of a reply that failed, encoded as JSON
	Event func(Failure) any // the last line of a stream that failed, likewise
}

// Operation is an Op or a Stream.
type Operation interface{ route() route }

// Op is an operation that answers with one value: Q is what its request is
// decoded to, R what is encoded as JSON.
type Op[Q, R any] struct {
	Name   string        // in the log
	Method string        // of HTTP
	Path   string        // pattern of http.ServeMux, without the method
	Status int           // of success; 0 for 200; with 204 R is not encoded
	Limit  time.Duration // 0 for DefaultLimit
	Decode func(*Request) (Q, error)
	Call   func(ctx context.Context, a snapferry.Account, q Q) (R, error)
}

// Stream is an operation that answers with lines of JSON. An error of Open is
// a reply of its own; after that the status is 200, and an error the last
// line.
type Stream[Q, E any] struct {
	Name   string // in the log
	Method string // of HTTP
	Path   string // pattern of http.ServeMux, without the method
	Decode func(*Request) (Q, error)
	Open   func(ctx context.Context, a snapferry.Account, q Q) (Feed[E], error)
}

// Feed makes the lines of a stream: a call of emit each, from any goroutine,
// until it returns. A feed that Open returned is called exactly once. Its
// context ends when the caller goes away.
type Feed[E any] func(ctx context.Context, emit func(E) error) error

// route is an operation without its types.
type route struct {
	name, pattern string
	run           func(context.Context, *exchange) error
}

func (o Op[Q, R]) route() route {
	return route{o.Name, o.Method + " " + o.Path, func(ctx context.Context, x *exchange) error {
		limit := o.Limit
		if limit == 0 {
			limit = DefaultLimit
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		q, err := o.Decode(x.request())
		if err != nil {
			return err
		}
		res, err := o.Call(ctx, x.account, q)
		if err != nil {
			return err
		}
		status := o.Status
		if status == 0 {
			status = http.StatusOK
		}
		return x.reply(status, res)
	}}
}

func (o Stream[Q, E]) route() route {
	return route{o.Name, o.Method + " " + o.Path, func(ctx context.Context, x *exchange) error {
		q, err := o.Decode(x.request())
		if err != nil {
			return err
		}
		feed, err := o.Open(ctx, x.account, q)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		x.lines = newLines(x.w, cancel)
		err = feed(ctx, func(e E) error { return x.lines.emit(e) })
		if lost := x.lines.lostErr(); lost != nil {
			return lost
		}
		if err != nil {
			return err
		}
		return x.lines.close()
	}}
}

// Handler serves the operations of a dialect. What is no operation is not
// found.
func Handler(d Dialect, ops ...Operation) http.Handler {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	for _, o := range ops {
		mux.Handle(o.route().pattern, d.handle(o.route()))
	}
	mux.Handle("/", d.handle(route{name: "none", run: func(_ context.Context, x *exchange) error {
		return snapferry.Errorf(snapferry.NotFound, "there is no operation %s %s", x.r.Method, clip(x.r.URL.Path))
	}}))
	return mux
}

// handle is the way of every request.
func (d Dialect) handle(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		x := &exchange{dialect: d, w: w, r: r, id: newRequestID()}
		w.Header().Set(RequestIDHeader, x.id)
		w.Header().Set("Cache-Control", "no-store")
		err := d.run(rt, x)
		if err != nil {
			err = timely(r.Context(), err)
			x.fail(err)
		}
		d.access(rt, x, time.Since(begin), err)
	})
}

// run authenticates the caller and runs the operation; a panic is an error.
func (d Dialect) run(rt route, x *exchange) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default:
			d.Log.ErrorContext(x.r.Context(), "panic", "op", rt.name, "request", x.id, "panic", p, "stack", string(debug.Stack()))
			err = snapferry.Errorf(snapferry.Internal, "panic: %v", p)
		}
	}()
	x.account, err = d.Auth.Authenticate(x.r.Context(), bearer(x.r))
	if err != nil {
		return err
	}
	return rt.run(x.r.Context(), x)
}

func (d Dialect) access(rt route, x *exchange, took time.Duration, err error) {
	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.String("op", rt.name), slog.String("account", string(x.account.ID)), slog.Int("status", x.status),
		slog.Duration("duration", took), slog.String("request", x.id),
	}
	if err != nil {
		if k := snapferry.KindOf(err); k == snapferry.Internal || k == snapferry.Corrupt {
			level = slog.LevelError
		}
		attrs = append(attrs, slog.Any("err", err))
	}
	d.Log.LogAttrs(x.r.Context(), level, "request", attrs...)
}

// bearer returns the token of a request, or "".
func bearer(r *http.Request) string {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func newRequestID() string {
	var b [8]byte
	rand.Read(b[:])
	return "req-" + hex.EncodeToString(b[:])
}

// clip bounds what of a request is repeated in a message.
func clip(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "..."
	}
	return s
}
