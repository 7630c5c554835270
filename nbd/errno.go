package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/snapferry/snapferry"
)

// Errno is an error as the protocol sends it. The list of the protocol is
// closed; a client takes any other number for EINVAL.
type Errno uint32

// The error numbers of the protocol.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// Error returns what the number means, so that an Errno is an error.
func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "out of memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left"
	case EOVERFLOW:
		return "value too large"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is being shut down"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// errnoOf is the table from a Kind to what a client is told. Cancelled is the
// Kind of what ends because the server does. It is exhaustive.
func errnoOf(k snapferry.Kind) Errno {
	switch k {
	case snapferry.Invalid, snapferry.NotFound, snapferry.Exists:
		return EINVAL
	case snapferry.Denied, snapferry.Conflict:
		return EPERM
	case snapferry.Full:
		return ENOSPC
	case snapferry.Unsupported:
		return EINVAL
	case snapferry.Cancelled:
		return ESHUTDOWN
	case snapferry.Internal, snapferry.Unavailable, snapferry.Corrupt, snapferry.KeyUnusable:
		return EIO
	}
	return EIO
}

// kindOf is the table from what a server says to a Kind.
func kindOf(e Errno) snapferry.Kind {
	switch e {
	case EPERM:
		return snapferry.Denied
	case EIO, ENOMEM, ESHUTDOWN:
		return snapferry.Unavailable
	case ENOSPC:
		return snapferry.Full
	case ENOTSUP:
		return snapferry.Unsupported
	}
	return snapferry.Invalid // EINVAL, EOVERFLOW, and what the protocol does not know
}

// fault is what a client is told of err, which is not nil: an error number, and
// a message when one is safe to show.
func fault(err error) (Errno, string) {
	var e *snapferry.Error
	var number Errno
	switch {
	case errors.As(err, &number):
		return number, ""
	case errors.As(err, &e):
		return errnoOf(e.Kind), e.Message
	case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
		return ESHUTDOWN, ""
	}
	return EIO, ""
}
