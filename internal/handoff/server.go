package handoff

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

const (
	patience = 5 * time.Second        // for a client to say what it wants
	maxConns = 64                     // served at once; more wait in the kernel
	backOff  = 100 * time.Millisecond // after a connection could not be accepted
)

// Server takes over files on a unix socket. It keeps at most 64 of them, each
// for at most 60 seconds. It is safe for concurrent use.
type Server struct {
	path     string
	log      *slog.Logger
	lock     *os.File // held while the socket is ours
	listener *net.UnixListener
	shelf    *shelf
	close    func() error
}

// New listens at path, with mode 0600; Serve answers. A socket that a dead
// process left is replaced. Errors are Conflict when a live process listens
// there, Exists when something else is at path, Invalid for a path that no
// socket can have, Denied and NotFound as the system says. A file path.lock
// stays behind. log may be nil.
func New(path string, log *slog.Logger) (*Server, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	lock, err := lockPath(path)
	if err != nil {
		return nil, err
	}
	l, err := listen(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	s := &Server{path: path, log: log, lock: lock, listener: l}
	s.shelf = newShelf(func() { log.Info("a file that was handed over was not used in time") })
	s.close = sync.OnceValue(func() error {
		err := l.Close() // removes the socket, while the lock is still held
		s.shelf.close()
		return errors.Join(err, lock.Close())
	})
	return s, nil
}

// lockPath makes this process the one that may listen at path.
func lockPath(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fail("lock", path, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, inUse(path)
	}
	return nil, fail("lock", path, err)
}

func listen(path string) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The mode is set before there is a name, so nobody gets in meanwhile.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fail("listen on", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fail("listen on", path, err)
	}
	return l.(*net.UnixListener), nil
}

// removeStale removes a socket nobody listens on.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fail("listen on", path, err)
	case fi.Mode().Type() != fs.ModeSocket:
		return snapferry.Errorf(snapferry.Exists, "%s is there and is no socket", path).WithHint("remove it, or configure another path for the socket")
	}
	c, err := net.DialTimeout("unix", path, patience)
	if err == nil {
		c.Close()
		return inUse(path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fail("listen on", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail("remove the stale socket", path, err)
	}
	return nil
}

func inUse(path string) error {
	return snapferry.Errorf(snapferry.Conflict, "another process listens on %s", path).WithHint("is the region running already?")
}

// Serve answers clients until ctx ends, then closes the server and returns
// nil.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer func() {
		clients.Wait()
		s.Close()
	}()
	slots := make(chan struct{}, maxConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := s.listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return snapferry.Errorf(snapferry.Unavailable, "handover of files at %s: %w", s.path, err)
		case err != nil: // out of descriptors, for one
			<-slots
			s.log.ErrorContext(ctx, "cannot accept a connection", "socket", s.path, "err", err)
			select {
			case <-time.After(backOff):
			case <-ctx.Done():
			}
			continue
		}
		clients.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, c)
		})
	}
}

// Close stops listening, removes the socket and closes the files nobody took.
// A Serve that runs is ended by its context, not by this.
func (s *Server) Close() error { return s.close() }

// Take returns the file of a handle, which belongs to the caller from here on;
// NotFound when there is none, it was taken, or its time is over.
func (s *Server) Take(handle string) (*os.File, error) {
	if f, ok := s.shelf.take(handle); ok {
		return f, nil
	}
	return nil, snapferry.Errorf(snapferry.NotFound, "no file was handed over under this handle").
		WithHint("hand it over again: a handle is good for one request, within %v", keep)
}

// serve answers one client.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	f, err := receive(c)
	// A reply fits into the socket's buffer; it does not wait for the client.
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	var handle string
	if err == nil {
		handle, err = s.shelf.put(f)
	}
	if err != nil {
		s.log.InfoContext(ctx, "refused a file", "socket", s.path, "err", err)
		_, _ = c.Write(appendRefusal(nil, err)) // who went away does not read it
		return
	}
	if _, err := c.Write([]byte(handle + "\n")); err != nil {
		s.shelf.drop(handle)
	}
}

// receive reads a request and its one descriptor. All others are closed.
func receive(c *net.UnixConn) (f *os.File, err error) {
	var fds []int
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}()
	p := make([]byte, requestSize)
	oob := make([]byte, unix.CmsgSpace(2*4))
	for n := 0; n < len(p); {
		m, oobn, flags, _, err := c.ReadMsgUnix(p[n:], oob)
		got, perr := descriptors(oob[:max(oobn, 0)])
		fds = append(fds, got...)
		switch {
		case err != nil:
			return nil, snapferry.Errorf(snapferry.Invalid, "read the request: %w", err)
		case perr != nil:
			return nil, snapferry.Errorf(snapferry.Invalid, "read the descriptors: %w", perr)
		case flags&unix.MSG_CTRUNC != 0 || len(fds) > 1:
			return nil, snapferry.Errorf(snapferry.Invalid, "the request has more than one descriptor, or one too many for the region")
		case m == 0:
			return nil, snapferry.Errorf(snapferry.Invalid, "the request ends early")
		}
		n += m
	}
	if err := checkRequest(p); err != nil {
		return nil, err
	}
	if len(fds) == 0 {
		return nil, snapferry.Errorf(snapferry.Invalid, "the request has no descriptor")
	}
	return os.NewFile(uintptr(fds[0]), "the disk handed over"), nil
}

// descriptors returns all descriptors of control messages; with an error, those
// found before it.
func descriptors(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	for _, m := range msgs {
		got, perr := unix.ParseUnixRights(&m)
		fds = append(fds, got...)
		if perr != nil {
			err = perr
		}
	}
	return fds, err
}
