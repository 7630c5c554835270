package nbd

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketWire is the wire over a socket, by system calls that may block a
// thread. With few requests on their way at a time this saves, for each, the
// read that finds nothing and the waiting in epoll: half of the CPU time of a
// small read. The socket is none that package net knows: net would keep it in
// its epoll, which would wake a thread for nothing whenever bytes arrive.
//
// A thread that is blocked keeps its share of GOMAXPROCS for up to 10 ms, from
// goroutines that have something to do. So who reads while there are some, and
// all who write, wait at a gate instead, where only the goroutine waits.
type socketWire struct {
	fd      int
	in, out gate
}

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
	return &socketWire{fd, gate{fd: fd, events: unix.EPOLLIN | unix.EPOLLRDHUP}, gate{fd: fd, events: unix.EPOLLOUT}}, nil
}

func (w *socketWire) Read(p []byte, busy bool) (int, error) {
	flags := 0
	if busy {
		flags = unix.MSG_DONTWAIT
	}
	for {
		// unix.Recvfrom would allocate for an address.
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(w.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags), 0, 0)
		switch {
		case errno == unix.EAGAIN:
			if err := w.in.wait(); err != nil {
				return 0, err
			}
		case errno == unix.EINTR:
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		default:
			return int(n), nil
		}
	}
}

func (w *socketWire) Write(p []byte) error {
	for len(p) > 0 {
		n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(w.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			if err := w.out.wait(); err != nil {
				return err
			}
		case errno == unix.EINTR:
		case errno != 0:
			return errno
		default:
			p = p[n:]
		}
	}
	return nil
}

func (w *socketWire) WriteParts(parts net.Buffers) error {
	for len(parts) > 0 {
		n, err := unix.SendmsgBuffers(w.fd, parts, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case nil:
		case unix.EAGAIN:
			if err := w.out.wait(); err != nil {
				return err
			}
			continue
		case unix.EINTR:
			continue
		default:
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

func (w *socketWire) Close() error {
	w.in.close()
	w.out.close()
	return unix.Close(w.fd)
}

// gate is where one goroutine waits for a socket. It is an epoll of its own,
// which the epoll of the Go runtime looks at, and in which the socket is armed
// for one event while somebody waits. It is made when it is first needed.
type gate struct {
	fd     int
	events uint32
	epoll  int
	file   *os.File // of epoll
	raw    syscall.RawConn
	added  bool // fd is in epoll
	armed  bool // and an event of it is waited for
	err    error
	got    [1]unix.EpollEvent
	check  func(uintptr) bool
}

func (g *gate) open() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // so that package os waits for it
		unix.Close(epoll)
		return err
	}
	file := os.NewFile(uintptr(epoll), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return err
	}
	g.epoll, g.file, g.raw, g.check = epoll, file, raw, g.woken
	return nil
}

// woken arms the socket when it is called first: from then on the runtime looks
// for what wakes. Later it reports whether the event has come, and takes it,
// without which the next would not show.
func (g *gate) woken(uintptr) bool {
	if !g.armed {
		g.armed = true
		g.err = g.arm()
		return g.err != nil
	}
	n, err := unix.EpollWait(g.epoll, g.got[:], 0)
	if err == unix.EINTR {
		n, err = unix.EpollWait(g.epoll, g.got[:], 0)
	}
	g.err = err
	return n > 0 || err != nil
}

func (g *gate) arm() error {
	op := unix.EPOLL_CTL_MOD
	if !g.added {
		op = unix.EPOLL_CTL_ADD
	}
	g.added = true
	return unix.EpollCtl(g.epoll, op, g.fd, &unix.EpollEvent{Events: g.events | unix.EPOLLONESHOT})
}

// wait waits until the socket can be read from or written to, or has ended.
func (g *gate) wait() error {
	if g.file == nil {
		if err := g.open(); err != nil {
			return err
		}
	}
	g.armed = false
	if err := g.raw.Read(g.check); err != nil {
		return err
	}
	return g.err
}

func (g *gate) close() {
	if g.file != nil {
		g.file.Close()
	}
}
