package peer

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// writeAtOnce is how much of a stream is gathered before it is handed to the
// system: TLS by itself writes one record of 16 KiB at a time, and each wakes
// the reader.
const writeAtOnce = 128 << 10

// Listener makes the connections of a peer service from those of a plain
// listener. ConnContext must be the server's, too.
func Listener(plain net.Listener, tc *tls.Config) net.Listener {
	return tls.NewListener(gatherListener{plain}, tc)
}

// ConnContext remembers a connection for the handler of its requests.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if g, ok := t.NetConn().(*gatherConn); ok {
			return context.WithValue(ctx, gatherKey{}, g)
		}
	}
	return ctx
}

type gatherKey struct{}

type gatherListener struct{ net.Listener }

func (l gatherListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gatherConn{Conn: c}, nil
}

// A gatherConn writes at once, but between gather and flush, when it writes
// larger pieces.
type gatherConn struct {
	net.Conn
	mu        sync.Mutex
	gathering bool   // guarded by mu
	buf       []byte // guarded by mu
}

// gather begins to gather on the connection of a request, if it can; the
// result ends that.
func gather(ctx context.Context) (flush func() error) {
	g, ok := ctx.Value(gatherKey{}).(*gatherConn)
	if !ok {
		return func() error { return nil }
	}
	g.mu.Lock()
	g.gathering = true
	g.mu.Unlock()
	return g.flush
}

func (g *gatherConn) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gathering = false
	err := g.writeOut()
	g.buf = nil
	return err
}

func (g *gatherConn) writeOut() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.send(g.buf)
	g.buf = g.buf[:0]
	return err
}

// patience is how long a peer may take to make room for a piece of a stream: one
// that holds its copies to a low rate reads slowly.
const patience = 10 * time.Minute

// send writes to the system. Who reads nothing for long is given up.
func (g *gatherConn) send(p []byte) (int, error) {
	if err := g.Conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return g.Conn.Write(p)
}

func (g *gatherConn) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.gathering {
		return g.send(p)
	}
	if g.buf == nil {
		g.buf = make([]byte, 0, writeAtOnce+32<<10)
	}
	if g.buf = append(g.buf, p...); len(g.buf) < writeAtOnce {
		return len(p), nil
	}
	if err := g.writeOut(); err != nil {
		return 0, err
	}
	return len(p), nil
}
