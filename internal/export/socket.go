package export

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

// maxSocketPath is the longest path of a unix socket that the system takes, in
// bytes.
const maxSocketPath = 107

// checkSocket reports, as Invalid, what cannot be the path of a socket.
func checkSocket(path string) error {
	switch {
	case !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0):
		return snapferry.Errorf(snapferry.Invalid, "%q is not the full path of a socket", path).WithHint("give a path that begins with / and has no . or .. in it")
	case len(path) > maxSocketPath:
		return snapferry.Errorf(snapferry.Invalid, "the path of the socket %s has %d bytes, more than the %d the system allows", path, len(path), maxSocketPath).
			WithHint("give a shorter one with --socket, or set sockets in the region's configuration to a shorter directory")
	}
	return nil
}

// listenSocket listens on a unix socket that only this user can reach. The socket
// of a process that has ended is replaced; one in use, and any other file, is a
// Conflict.
func listenSocket(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, snapferry.Errorf(snapferry.Conflict, "somebody listens on %s already", path).WithHint("choose another path with --socket")
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&os.ModeSocket == 0 {
			return nil, snapferry.Errorf(snapferry.Conflict, "%s is there and is no socket", path).WithHint("choose another path with --socket")
		}
		if err := os.Remove(path); err != nil {
			return nil, socketError("replace", path, err)
		}
	}
	// The mode of what is bound is that of the descriptor.
	private := func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}
	cfg := net.ListenConfig{Control: private}
	l, err := cfg.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, socketError("listen on", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil { // for systems where it is not
		l.Close()
		return nil, socketError("protect", path, err)
	}
	return l, nil
}

func socketError(doing, path string, err error) error {
	kind := snapferry.Unavailable
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		kind = snapferry.NotFound
	case errors.Is(err, os.ErrPermission):
		kind = snapferry.Denied
	}
	var system syscall.Errno
	if errors.As(err, &system) {
		err = system
	}
	return snapferry.Errorf(kind, "%s socket %s: %w", doing, path, err).WithHint("the directory must be there, and the region be able to write to it")
}

// escapePath is a path as the parameter of a URI.
func escapePath(path string) string {
	return strings.NewReplacer("%2F", "/", "+", "%20").Replace(url.QueryEscape(path))
}
