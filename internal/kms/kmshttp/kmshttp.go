// Package kmshttp sends the requests of those drivers that speak plain HTTP with
// their key service. It sends a request again when that may help, reads no more
// of an answer than an answer may have, and clears what it had in memory of both:
// the data keys are in there. What net/http and TLS keep in the buffers of a
// connection it cannot clear.
package kmshttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/neterr"
)

const (
	// MaxAnswer is the most bytes that the body of an answer may have.
	MaxAnswer = 1 << 20
	// MaxText is the most bytes of an answer's own words that Text gives.
	MaxText = 300

	maxAttempts = 10
	attemptTime = 30 * time.Second // of one attempt, when ctx allows more
	firstWait   = 100 * time.Millisecond
	longestWait = 2 * time.Second
	longestHint = 10 * time.Second // that a service may ask to wait
	firstBuffer = 4 << 10
)

// Config is what a Client needs.
type Config struct {
	// Service is the service in messages: what it is and where.
	Service string
	// HTTPClient sends the requests; nil for one of the Client's own, which uses no
	// proxy and trusts RootCAs.
	HTTPClient *http.Client
	// RootCAs are the authorities that a certificate of the service must be of; nil
	// for the system's. Of no use with an HTTPClient.
	RootCAs *x509.CertPool
	// Redirect says whether a request may be sent on to where the service points,
	// as of http.Client.CheckRedirect; nil never follows.
	Redirect func(req *http.Request, via []*http.Request) error
	Log      *slog.Logger // nil for none
}

// Client sends requests to one service. It is safe for concurrent use.
type Client struct {
	http    *http.Client
	service string
	log     *slog.Logger
}

// New returns a client. It sends nothing.
func New(cfg Config) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{service: cfg.Service, log: cfg.Log, http: &http.Client{}}
	if cfg.HTTPClient != nil {
		*c.http = *cfg.HTTPClient
	} else {
		c.http.Transport = &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:     &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: 10 * time.Second,
			ForceAttemptHTTP2:   true,
			DisableCompression:  true,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     time.Minute,
		}
	}
	c.http.CheckRedirect = cfg.Redirect
	if cfg.Redirect == nil {
		c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return c
}

// Close ends the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// ParseAddress reads the address of a service: https:// and a host, with a port
// or without, or http:// when the host is this machine. name is the field's, for
// the error, which is Invalid.
func ParseAddress(name, address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "%s %q is not the address of a key service", name, address).
			WithHint("it looks like https://keys.example.org:8200")
	}
	if u.Scheme == "http" && !isLocal(u.Hostname()) {
		return nil, snapferry.Errorf(snapferry.Invalid, "%s %q is not encrypted: data keys would cross the network for everybody to read", name, address).
			WithHint("use https://; http:// is for addresses of this machine")
	}
	u.Path = ""
	return u, nil
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Request is one attempt of a request.
type Request struct {
	Method string
	URL    string
	Header http.Header
	Body   []byte // Send clears it
}

// Answer is what the service answered. Its Body is cleared when the function that
// judges it returns.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// again is an error after which the request is sent again.
type again struct{ err error }

func (e *again) Error() string { return e.err.Error() }
func (e *again) Unwrap() error { return e.err }

// Again marks an error of judge: the request may be sent again.
func Again(err error) error { return &again{err} }

// Call is a request with all that is needed to send it.
type Call struct {
	// Build makes the next attempt.
	Build func() (Request, error)
	// Judge reads an answer. What it returns is what Send returns, unless it is
	// marked with Again and there is time for another attempt.
	Judge func(Answer) error
	// Once forbids another attempt when the service may have carried out the first.
	Once bool
}

// Send sends a request until Judge is content with the answer, at most ten times
// and while ctx lasts, with pauses that grow and are in part random. The error is
// that of Judge or Build; Unavailable when there is no answer, or it is not one
// of the service; Cancelled when ctx was canceled.
func (c *Client) Send(ctx context.Context, call Call) error {
	for n, wait := 1, firstWait; ; n++ {
		least, err := c.attempt(ctx, call)
		var more *again
		if !errors.As(err, &more) {
			return err
		}
		err = more.err
		if ctx.Err() != nil {
			return c.ended(ctx, err)
		}
		pause := max(least, wait/2+rand.N(wait/2))
		if end, ok := ctx.Deadline(); n == maxAttempts || ok && time.Until(end) < pause {
			return noted(err, n)
		}
		c.log.DebugContext(ctx, "a key service is asked again", "service", c.service, "attempt", n, "err", err)
		if sleep(ctx, pause) != nil {
			return c.ended(ctx, err)
		}
		wait = min(2*wait, longestWait)
	}
}

// attempt sends the request once. least is how long the service wants to be left
// in peace.
func (c *Client) attempt(ctx context.Context, call Call) (least time.Duration, err error) {
	if ctx.Err() != nil {
		return 0, c.ended(ctx, nil)
	}
	r, err := call.Build()
	sent := &secret{p: r.Body}
	defer sent.clear()
	if err != nil {
		return 0, err
	}
	inner, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	req, err := http.NewRequestWithContext(inner, r.Method, r.URL, nil)
	if err != nil { // the URL is not in the message
		return 0, snapferry.Errorf(snapferry.Internal, "a request to %s cannot be made", c.service)
	}
	req.Header = r.Header
	if len(r.Body) > 0 {
		req.ContentLength = int64(len(r.Body))
		req.Body = &reader{secret: sent}
		req.GetBody = func() (io.ReadCloser, error) { return &reader{secret: sent}, nil }
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, c.unreachable(ctx, err, call.Once)
	}
	defer resp.Body.Close()
	body, err := readAnswer(resp.Body)
	defer clear(body)
	if err == nil {
		err = call.Judge(Answer{Status: resp.StatusCode, Header: resp.Header, Body: body})
		return asked(resp.Header), err
	}
	if errors.Is(err, errTooLong) {
		return 0, snapferry.Errorf(snapferry.Unavailable, "%s answers with more than %d bytes: it is no key service", c.service, MaxAnswer)
	}
	return 0, c.unreachable(ctx, err, call.Once)
}

// unreachable is the error of an attempt without an answer, or with a part of one.
func (c *Client) unreachable(ctx context.Context, err error, once bool) error {
	if ctx.Err() != nil {
		return c.ended(ctx, nil)
	}
	var own *snapferry.Error // of Redirect
	if errors.As(err, &own) {
		return own
	}
	e := snapferry.Errorf(snapferry.Unavailable, "reach %s: %w", c.service, neterr.Innermost(err))
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		return e.WithHint("give the certificate of the service's authority as ca")
	case errors.As(err, &host):
		return e.WithHint("use a name that the service's certificate has as its address")
	case errors.As(err, &invalid), errors.As(err, &record):
		return e
	}
	var op *net.OpError
	if once && !(errors.As(err, &op) && op.Op == "dial") {
		return e.WithHint("it is not known whether the service did it: look there before you try again")
	}
	return Again(e)
}

// ended is the error of a request whose ctx ended; last is that of the attempt
// before, if there is one.
func (c *Client) ended(ctx context.Context, last error) error {
	if last == nil {
		last = errors.New("it did not answer in time")
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return snapferry.Errorf(snapferry.Cancelled, "the request to %s was canceled", c.service)
	}
	return snapferry.Errorf(snapferry.Unavailable, "ask %s: %w", c.service, last)
}

// noted adds to an error how often the request was sent.
func noted(err error, n int) error {
	var e *snapferry.Error
	if n == 1 || !errors.As(err, &e) {
		return err
	}
	said := *e
	said.Message = fmt.Sprintf("%s, after %d attempts", e.Message, n)
	return &said
}

// asked reads how many seconds the service wants to be left in peace.
func asked(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, longestHint)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errTooLong = errors.New("the answer is too long")

// readAnswer reads a body into memory that is cleared when it is not used any
// more; the caller clears what is returned.
func readAnswer(r io.Reader) ([]byte, error) {
	p := make([]byte, 0, firstBuffer)
	for {
		if len(p) == cap(p) {
			more := make([]byte, len(p), 2*cap(p))
			copy(more, p)
			clear(p)
			p = more
		}
		n, err := r.Read(p[len(p):cap(p)])
		p = p[:len(p)+n]
		switch {
		case len(p) > MaxAnswer:
			return p, errTooLong
		case errors.Is(err, io.EOF):
			return p, nil
		case err != nil:
			return p, err
		}
	}
}

// secret is the body of a request until it is cleared. Connections may want to
// read when the request is over: they get an error then.
type secret struct {
	mu   sync.Mutex
	p    []byte // guarded by mu
	gone bool   // guarded by mu
}

func (s *secret) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.p)
	s.gone = true
}

type reader struct {
	*secret
	off int
}

func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return 0, errors.New("the request is over")
	}
	if r.off == len(r.p) {
		return 0, io.EOF
	}
	n := copy(p, r.p[r.off:])
	r.off += n
	return n, nil
}

func (r *reader) Close() error { return nil }

// Text makes a service's own words fit for a message: one line, not long, and
// nothing at all when one of the secrets is in them.
func Text(words string, secrets ...[]byte) string {
	for _, s := range secrets {
		if len(s) > 0 && bytes.Contains([]byte(words), s) {
			return "(its words are left out: they have a secret in them)"
		}
	}
	p := []rune(words)
	for i, r := range p {
		if r < ' ' || r == 0x7f {
			p[i] = ' '
		}
	}
	if len(p) > MaxText {
		p = append(p[:MaxText], '…')
	}
	return string(p)
}
