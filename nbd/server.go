package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/snapferry/snapferry"
)

// ServerConfig says how connections are served. It may be shared by any number
// of them and is not changed.
type ServerConfig struct {
	Exports Exports
	// TLS is offered to clients when it is not nil. Who may connect is what it
	// verifies.
	TLS *tls.Config
	// RequireTLS refuses everything to clients that do not begin it.
	RequireTLS bool
	// Handshake is the time in which a client must have chosen its export. 0 is
	// 30 seconds.
	Handshake time.Duration
	// Grace is the time that requests in work, and the writing of their
	// replies, get when ctx has ended. 0 is 10 seconds.
	Grace time.Duration
	// Workers is how many requests of a connection, of those that wait for
	// something, are in work at a time. 0 is 32.
	Workers int
}

const (
	defaultHandshake = 30 * time.Second
	defaultGrace     = 10 * time.Second
	defaultWorkers   = 32
)

// Serve serves one connection, from its handshake to its end. It owns conn and
// has closed it, and the export, when it returns.
//
// When ctx ends, a handshake is broken off. Later no more requests are read;
// those already read are answered with ESHUTDOWN, those in work as they end,
// and the connection is closed.
//
// The error is nil when the client went away in an orderly manner, and when
// the server did because ctx ended. It is Invalid when the client did not keep
// to the protocol, Denied when it was refused TLS, Unavailable when the
// connection broke, and of the Kind of the device's or the exports' error when
// closing the export failed.
func Serve(ctx context.Context, conn net.Conn, cfg *ServerConfig) error {
	c := *cfg
	if c.Handshake == 0 {
		c.Handshake = defaultHandshake
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	if c.Workers == 0 {
		c.Workers = defaultWorkers
	}
	noDelay(conn)
	h := &handshake{cfg: &c, conn: conn}
	err := h.run(ctx)
	if err != nil || h.chosen == nil {
		return errors.Join(serveError(ctx, err), h.chosen.close(), h.opened.close(), h.conn.Close())
	}
	w, err := newWire(h.conn)
	if err != nil {
		return errors.Join(serveError(ctx, err), h.chosen.close())
	}
	s := newSession(&c, h, w)
	return errors.Join(serveError(ctx, s.run(ctx)), h.chosen.close())
}

// serveError makes what Serve returns of what ended a connection.
func serveError(ctx context.Context, err error) error {
	var e *snapferry.Error
	switch {
	case err == nil, ctx.Err() != nil:
		return nil
	case errors.As(err, &e):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return snapferry.Errorf(snapferry.Invalid, "the client ended the connection in the middle of a message")
	}
	return snapferry.Errorf(snapferry.Unavailable, "the connection to the client broke: %w", err)
}

// noDelay has small replies sent at once.
func noDelay(conn net.Conn) {
	if c, ok := conn.(interface{ SetNoDelay(bool) error }); ok {
		c.SetNoDelay(true) // for speed only
	}
}
