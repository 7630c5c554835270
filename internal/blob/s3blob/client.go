package s3blob

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go/logging"

	"github.com/snapferry/snapferry"
)

const (
	dialTime   = 10 * time.Second
	idleConns  = 64 // kept open: as many requests as a region sends at a time
	connBuffer = 64 << 10

	// A request may take that long in all, with its further attempts, and longer
	// for each byte of its body.
	requestTime = 2 * time.Minute
	slowest     = 256 << 10 // bytes per second
)

// transport returns the HTTP client of a driver. It begins with the SDK's, so
// that AWS_CA_BUNDLE counts.
func transport(sdk aws.Config, cfg Config, conns *connections) (*awshttp.BuildableClient, error) {
	base, ok := sdk.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		base = awshttp.NewBuildableClient()
	}
	var roots *x509.CertPool
	if cfg.CAFile != "" {
		p, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, snapferry.Errorf(snapferry.Invalid, "read ca_file: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(p) {
			return nil, snapferry.Errorf(snapferry.Invalid, "there is no certificate in ca_file %s", cfg.CAFile)
		}
	}
	dialer := &net.Dialer{Timeout: dialTime, KeepAlive: 30 * time.Second}
	return base.WithTransportOptions(func(t *http.Transport) {
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return conns.add(&stallConn{Conn: c, stall: cfg.Stall, of: conns}), nil
		}
		t.MaxIdleConns, t.MaxIdleConnsPerHost = idleConns, idleConns
		t.IdleConnTimeout = cfg.Stall / 2
		t.ReadBufferSize, t.WriteBufferSize = connBuffer, connBuffer
		t.ForceAttemptHTTP2 = false // one object, one connection: a lost packet stalls one
		t.DisableCompression = true
		if roots != nil {
			if t.TLSClientConfig == nil {
				t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
			}
			t.TLSClientConfig.RootCAs = roots
		}
	}), nil
}

// connections are those of a driver. The SDK's client keeps them idle for a while
// and has no way to end them.
type connections struct {
	mu     sync.Mutex
	open   map[*stallConn]struct{}
	closed bool
}

func (s *connections) add(c *stallConn) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*stallConn]struct{}{}
	}
	s.open[c] = struct{}{}
	if s.closed {
		c.Conn.Close() // dialled for a request that was cancelled
	}
	return c
}

func (s *connections) remove(c *stallConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *connections) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		c.Conn.Close()
	}
}

// stallConn is a connection that fails when no byte moves for a while, however
// long a body takes in all.
type stallConn struct {
	net.Conn
	stall time.Duration
	of    *connections
}

func (c *stallConn) Close() error {
	c.of.remove(c)
	return c.Conn.Close()
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write gives the answer more time too: it comes when the body has gone.
func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// within returns a context for a request with a body of n bytes.
func within(ctx context.Context, n int) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTime+time.Duration(n)*time.Second/slowest)
}

// sdkLog passes on what the SDK has to say.
type sdkLog struct{ log *slog.Logger }

func (l sdkLog) Logf(_ logging.Classification, format string, v ...any) {
	l.log.Debug("aws sdk", "message", fmt.Sprintf(format, v...))
}
