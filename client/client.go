package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	unixScheme   = "unix://"
	dialTimeout  = 10 * time.Second
	replyTimeout = 100 * time.Second // more than a region takes for any reply
	maxReply     = 64 << 20
	maxLine      = 64 << 20 // of a stream; a report of a check is one line

	// RequestIDHeader carries the id under which a region logs a request.
	RequestIDHeader = "Snapferry-Request-Id"
)

// Config says how to reach a region.
type Config struct {
	Address string         // "unix:///path/api.sock", "http://host:port" or "https://host:port"
	Handoff string         // path of the region's handoff socket; empty when it is on another machine
	Token   string         // of the account
	CA      *x509.CertPool // whose certificates an https address may show; nil: those the system trusts
}

// Client is one account's access to one region. It is safe for concurrent use.
// Its errors are of type *snapferry.Error with the region's Kind, message and
// hint; a region that does not answer is Unavailable.
type Client struct {
	base    string
	address string // as it was given, for messages
	handoff string
	token   string
	http    *http.Client
}

// New returns a client of a region; nothing is sent yet. The error is of Kind
// Invalid.
func New(c Config) (*Client, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	tr := &http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: replyTimeout,
		IdleConnTimeout: 30 * time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.CA},
	}
	cl := &Client{base: strings.TrimSuffix(c.Address, "/"), address: c.Address, handoff: c.Handoff, token: c.Token, http: &http.Client{Transport: tr}}
	if path, ok := strings.CutPrefix(c.Address, unixScheme); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, badAddress(c.Address)
		}
		cl.base = "http://region"
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
		return cl, nil
	}
	u, err := url.Parse(c.Address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, badAddress(c.Address)
	}
	return cl, nil
}

func badAddress(s string) error {
	return snapferry.Errorf(snapferry.Invalid, "%q is not the address of a region's API", s).
		WithHint("use unix:///path/api.sock, http://host:port or https://host:port")
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// send makes a request and returns an answer whose status says success; the
// caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		p, err := json.Marshal(body)
		if err != nil {
			return nil, snapferry.Errorf(snapferry.Internal, "encode request: %w", err)
		}
		r = bytes.NewReader(p)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.refused(resp)
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return snapferry.Errorf(snapferry.Unavailable, "the region at %s cannot be reached: %w", c.address, err).
		WithHint("check that the region runs and that its address in the client's configuration is right")
}

// ended is why ctx ended, as an error of the program.
func ended(ctx context.Context) error {
	err := context.Cause(ctx)
	var e *snapferry.Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return snapferry.Errorf(snapferry.Unavailable, "the region did not answer in time: %w", err)
	}
	return snapferry.Errorf(snapferry.Cancelled, "interrupted: %w", err)
}

// refused reads the error that an answer carries.
func (c *Client) refused(resp *http.Response) error {
	var body struct {
		Error Error `json:"error"`
	}
	err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(&body)
	if err != nil || body.Error.Message == "" {
		return snapferry.Errorf(snapferry.Unavailable, "the answer of %s is %s and not that of a region", c.address, resp.Status).
			WithHint("check the region's address in the client's configuration")
	}
	return body.Error.err()
}

// err is the error that its JSON form stands for.
func (e Error) err() error {
	x := &snapferry.Error{Kind: snapferry.ParseKind(e.Kind), Message: e.Message, Hint: e.Hint}
	if x.Kind == snapferry.Internal && e.RequestID != "" && x.Hint == "" {
		x.Hint = "the region's log has the cause under request " + e.RequestID
	}
	return x
}

// do makes a request and decodes its JSON answer into dst, unless dst is nil.
func (c *Client) do(ctx context.Context, method, path string, body, dst any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if dst == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(dst); err != nil {
		return c.broken(ctx, err)
	}
	return nil
}

func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	return snapferry.Errorf(snapferry.Unavailable, "the answer of the region at %s broke off: %w", c.address, err)
}
