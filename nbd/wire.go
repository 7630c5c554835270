package nbd

import (
	"net"
	"time"
)

// wire is the connection of a session. One goroutine reads, one at a time
// writes; the others may be called at any time until Close.
type wire interface {
	Read(p []byte) (int, error) // as io.Reader
	// Write writes all of the parts, which it may change, or returns an error.
	Write(parts net.Buffers) error
	// WriteOne writes all of p.
	WriteOne(p []byte) error
	// CloseRead ends a read that waits. What has arrived may still be read.
	CloseRead()
	// Abort ends everything that waits.
	Abort()
	// Close is called once, when nobody uses the wire any more.
	Close() error
}

// connWire is the wire over any connection.
type connWire struct{ conn net.Conn }

func (w connWire) Read(p []byte) (int, error) { return w.conn.Read(p) }

func (w connWire) Write(parts net.Buffers) error {
	_, err := parts.WriteTo(w.conn)
	return err
}

func (w connWire) WriteOne(p []byte) error {
	_, err := w.conn.Write(p)
	return err
}

func (w connWire) CloseRead() { w.conn.SetReadDeadline(time.Unix(1, 0)) }

func (w connWire) Abort() { w.conn.SetDeadline(time.Unix(1, 0)) }

func (w connWire) Close() error { return w.conn.Close() }
