package nbd

import (
	"net"
	"time"
)

// wire is the connection of a session. One goroutine reads, one at a time
// writes; CloseRead and Abort may be called at any time until Close.
type wire interface {
	// Read is as that of io.Reader. busy says that other goroutines have
	// something to do meanwhile.
	Read(p []byte, busy bool) (int, error)
	// Write writes all of p.
	Write(p []byte) error
	// WriteParts writes all of the parts, which it may change.
	WriteParts(parts net.Buffers) error
	// CloseRead ends a read that waits. What has arrived may still be read.
	CloseRead()
	// Abort ends everything that waits.
	Abort()
	// Close is called once, when nobody uses the wire any more.
	Close() error
}

// connWire is the wire over any connection.
type connWire struct{ conn net.Conn }

func (w connWire) Read(p []byte, _ bool) (int, error) { return w.conn.Read(p) }

func (w connWire) Write(p []byte) error {
	_, err := w.conn.Write(p)
	return err
}

func (w connWire) WriteParts(parts net.Buffers) error {
	_, err := parts.WriteTo(w.conn)
	return err
}

func (w connWire) CloseRead() { w.conn.SetReadDeadline(time.Unix(1, 0)) }

func (w connWire) Abort() { w.conn.SetDeadline(time.Unix(1, 0)) }

func (w connWire) Close() error { return w.conn.Close() }
