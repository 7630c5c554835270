package nbd

import (
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketWire is the wire over a socket, by system calls that block a thread.
// With one request on its way at a time this saves, for each, the read that
// finds nothing and the waiting in epoll; a thread for each connection is its
// price. The socket is none that package net knows: net would keep it in epoll,
// which would wake a thread for nothing whenever bytes arrive.
type socketWire struct{ fd int }

// newWire takes conn over, which is closed when it fails.
func newWire(conn net.Conn) (wire, error) {
	switch conn.(type) {
	case *net.UnixConn, *net.TCPConn:
	default:
		return connWire{conn}, nil
	}
	defer conn.Close() // its descriptor; the socket lives on
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &socketWire{fd}, nil
}

func (w *socketWire) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(w.fd, p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (w *socketWire) WriteOne(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(w.fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (w *socketWire) Write(parts net.Buffers) error {
	for len(parts) > 0 {
		n, err := unix.Writev(w.fd, parts)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for len(parts) > 0 && n >= len(parts[0]) {
			n -= len(parts[0])
			parts = parts[1:]
		}
		if len(parts) > 0 {
			parts[0] = parts[0][n:]
		}
	}
	return nil
}

func (w *socketWire) CloseRead() { unix.Shutdown(w.fd, unix.SHUT_RD) }

func (w *socketWire) Abort() { unix.Shutdown(w.fd, unix.SHUT_RDWR) }

func (w *socketWire) Close() error { return unix.Close(w.fd) }
