package handoff

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

// Send hands f over to the region that listens at path and returns its handle.
// The caller keeps f and may close it. Errors are Unavailable when no region
// listens there, Denied when the caller may not connect, Cancelled when ctx
// ended, and what the region answered, for one Full.
func Send(ctx context.Context, path string, f *os.File) (handle string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return "", sendError(ctx, path, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := conn.(*net.UnixConn)
	raw, err := f.SyscallConn()
	if err != nil {
		return "", snapferry.Errorf(snapferry.Invalid, "hand over %s: %w", f.Name(), err)
	}
	var werr error
	err = raw.Control(func(fd uintptr) {
		_, _, werr = c.WriteMsgUnix(appendRequest(nil), unix.UnixRights(int(fd)), nil)
	})
	if err != nil {
		return "", snapferry.Errorf(snapferry.Invalid, "hand over %s: %w", f.Name(), err)
	}
	// A region that refused early has answered nevertheless.
	line, rerr := bufio.NewReader(io.LimitReader(c, maxReply)).ReadBytes('\n')
	if len(line) == 0 {
		return "", sendError(ctx, path, errors.Join(werr, rerr))
	}
	return parseReply(line)
}

func sendError(ctx context.Context, path string, err error) error {
	const here = "a disk is handed over on one machine: the region must run on this machine, with %s as its socket"
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return snapferry.Errorf(snapferry.Cancelled, "hand over a file at %s: %w", path, ctx.Err())
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOTSOCK):
		return snapferry.Errorf(snapferry.Unavailable, "no region listens on %s: %w", path, cause(err)).WithHint(here, path)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return snapferry.Errorf(snapferry.Denied, "hand over a file at %s: %w", path, cause(err)).WithHint("run this as the user of the region, or as root")
	}
	return snapferry.Errorf(snapferry.Unavailable, "hand over a file at %s: %w", path, err)
}

// fail is an error of the system about the socket at path.
func fail(verb, path string, err error) error {
	kind := snapferry.Unavailable
	switch {
	case errors.Is(err, unix.ENOENT):
		kind = snapferry.NotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		kind = snapferry.Denied
	case errors.Is(err, unix.EADDRINUSE):
		kind = snapferry.Conflict
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		kind = snapferry.Invalid
	}
	return snapferry.Errorf(kind, "%s %s: %w", verb, path, cause(err))
}

// cause is the system's own word, without the operation and path around it.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
