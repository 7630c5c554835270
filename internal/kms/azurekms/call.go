package azurekms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
)

// call is what became of the attempts of one request; the transport of the driver
// finds it in the context.
type call struct {
	ended <-chan struct{} // closed when the caller's time is over

	mu       sync.Mutex
	attempts int
	last     error // of the last attempt, nil when it was answered as it should be
	asked    bool  // for a token, by the last answer
}

type callKey struct{}

// add takes the outcome of what was sent.
func (c *call) add(resp *http.Response, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = err == nil && resp.StatusCode == http.StatusUnauthorized && resp.Header.Get("WWW-Authenticate") != ""
	if c.asked {
		return // no attempt: it is followed by one with a token
	}
	c.attempts++
	select {
	case <-c.ended:
		if err != nil {
			return // it says nothing, the one before may
		}
	default:
	}
	c.last = err
	if err == nil && resp.StatusCode != http.StatusOK {
		c.last = fmt.Errorf("it answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
}

func (c *call) state() (attempts int, asked bool, last error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.attempts, c.asked, c.last
}

// do runs one request with its further attempts, in its turn, and clears the
// answer.
func (d *Driver) do(ctx context.Context, what string, fn func(context.Context) error) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return ended(ctx, fmt.Sprintf("wait behind %d calls to %s", d.cfg.Limit, d.where), nil)
	}
	c := &call{ended: ctx.Done()}
	var answer *http.Response
	err := fn(policy.WithCaptureResponse(context.WithValue(ctx, callKey{}, c), &answer))
	err = d.fail(ctx, what, err, c)
	if answer != nil {
		if p, e := runtime.Payload(answer); e == nil {
			clear(p)
		}
	}
	if err != nil {
		d.cfg.Log.DebugContext(ctx, "key vault", "request", what, "err", err)
	}
	return err
}

// withDeadline bounds a call whose caller does not.
func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, requestTime)
}

// httpClient returns a client that follows no redirects.
func httpClient(given *http.Client, attempt time.Duration) *http.Client {
	var c http.Client
	if given != nil {
		c = *given
	} else {
		c.Transport = &http.Transport{
			DialContext:         (&net.Dialer{Timeout: attempt, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: attempt,
			MaxIdleConnsPerHost: defaultLimit,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
		}
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// maxAnswer is the longest answer in bytes; those of the service have a few KiB.
const maxAnswer = 256 << 10

var (
	errTooLong = errors.New("the answer is too long")
	errOdd     = errors.New("the answer cannot be read")
)

// limited is a transport that gives the SDK only answers that it can bear: whole,
// not without end, JSON when they are good, and with a challenge that it can parse.
type limited struct {
	client *http.Client
	counts bool // tell the call what became of an attempt
}

// Do implements policy.Transporter.
func (l limited) Do(r *http.Request) (*http.Response, error) {
	resp, err := l.do(r)
	if c, ok := r.Context().Value(callKey{}).(*call); ok && l.counts {
		c.add(resp, err)
	}
	return resp, err
}

func (l limited) do(r *http.Request) (*http.Response, error) {
	if err := own(r); err != nil {
		return nil, err
	}
	resp, err := l.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		clear(p)
		return nil, err
	case len(p) > maxAnswer:
		clear(p)
		return nil, errTooLong
	case resp.StatusCode == http.StatusOK && !json.Valid(p):
		clear(p)
		return nil, errOdd
	case resp.StatusCode != http.StatusOK && resp.StatusCode < 400:
		clear(p) // an error of the SDK would show it
		p = nil
	}
	resp.Body = &body{Reader: bytes.NewReader(p), p: p}
	if resp.StatusCode == http.StatusUnauthorized && !parsable(resp.Header.Get("WWW-Authenticate")) {
		resp.Header.Del("WWW-Authenticate")
	}
	return resp, nil
}

// own gives a request a body that is its own. The SDK rewinds the one that all
// attempts share, which net/http may still be reading when it has the answer to
// one.
func own(r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	p, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	r.Body, r.GetBody = &sent{r: bytes.NewReader(p), p: p}, nil
	return nil
}

// sent is the body of a request, which is cleared when it has gone.
type sent struct {
	mu sync.Mutex
	r  *bytes.Reader
	p  []byte
}

// Read implements io.Reader.
func (s *sent) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.Read(p)
}

// Close implements io.Closer. net/http may call it during a Read.
func (s *sent) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.r.Reset(nil)
	clear(s.p)
	return nil
}

// body is an answer that is cleared when it has been read.
type body struct {
	*bytes.Reader
	p []byte
}

// Close implements io.Closer.
func (b *body) Close() error {
	clear(b.p)
	return nil
}

// parsable reports whether the SDK can parse a challenge: it takes the tenant for
// what stands behind the third slash, and panics when there is none.
func parsable(challenge string) bool {
	for _, part := range strings.Split(strings.ReplaceAll(challenge, "Bearer ", ""), " ") {
		key, value, _ := strings.Cut(part, "=")
		if value = strings.Trim(value, `",`); key == "authorization" && value != "" && strings.Count(value, "/") < 3 {
			return false
		}
	}
	return true
}
