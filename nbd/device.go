package nbd

import (
	"context"
	"io"

	"github.com/snapferry/snapferry"
)

// Device is a disk that is served. All methods may be called concurrently, from
// any number of connections. Offsets and lengths are bytes and lie within the
// size; ReadAt and WriteAt do all of p or return an error.
//
// A snapferry.Error is told to the client by its Kind and with its message:
// Full is ENOSPC; Invalid, NotFound, Exists and Unsupported are EINVAL; Denied
// and Conflict are EPERM; Cancelled is ESHUTDOWN; all others, and errors of
// other types, are EIO.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes durable everything whose write, trim or zeroing had returned
	// when Sync was called, whichever connection it came by.
	Sync() error
	// Size is the size of the disk in bytes. It does not change while a
	// connection has it open.
	Size() int64
}

// The following are optional abilities of a Device.
type (
	// Immediate is the ability to know what needs no waiting.
	Immediate interface {
		// ReadNow reads all of p if that needs no waiting: for a fetch, for a
		// disk, for a lock that is held for long. If done is false, p may have
		// been written to, and nothing else happened.
		ReadNow(p []byte, off int64) (done bool, err error)
		// WriteNow writes all of p likewise. If done is false nothing was
		// written.
		WriteNow(p []byte, off int64) (done bool, err error)
	}
	// Trimmer can forget what is stored in a range: what it reads as afterwards
	// is up to the device. Without it TRIM is not offered.
	Trimmer interface {
		Trim(off, n int64) error
	}
	// Zeroer can make a range read as zeroes faster than by writing them. With
	// hole the range may become unallocated. Without it zeroes are written, and
	// FAST_ZERO is refused.
	Zeroer interface {
		Zero(off, n int64, hole bool) error
	}
	// SyncWriter can write and make durable at once, for less than WriteAt and
	// Sync. It makes durable at least p.
	SyncWriter interface {
		WriteSync(p []byte, off int64) error
	}
	// Cacher can prepare a range for reading soon. It may return before it is
	// done. Without it CACHE is not offered.
	Cacher interface {
		Cache(off, n int64) error
	}
	// Holer can tell cheaply, without waiting, what reads as zeroes.
	Holer interface {
		// Hole returns how many bytes from off on, at least 1 and at most n,
		// are alike, and whether they all read as zeroes.
		Hole(off, n int64) (length int64, hole bool)
	}
	// Statuser can report metadata contexts, as base:allocation.
	Statuser interface {
		// Contexts returns the names of all contexts: a namespace, a colon and
		// more, at most 4,096 bytes of UTF-8. It is called in the handshake.
		Contexts() []string
		// Status calls extent for consecutive extents of the context from off
		// on, each with a length of at least 1, until n bytes are covered or
		// extent returns an error, which Status then returns. It may cover more
		// than n bytes with its last extent, or end early after at least one.
		Status(ctx context.Context, name string, off, n int64, extent func(length int64, flags uint32) error) error
	}
)

// ExportInfo is an export in the list of a server.
type ExportInfo struct {
	Name        string // at most 4,096 bytes
	Description string // for people; may be empty
}

// Export is a Device as one connection has it open.
type Export struct {
	ExportInfo
	Device   Device
	ReadOnly bool // writes of all kinds are refused with EPERM
	// MultiConn tells clients that they may use several connections: a Sync by
	// one covers the writes of all, as Device demands it.
	MultiConn bool
	// MinBlock is what offsets and lengths must be multiples of, in bytes: a
	// power of two up to 65,536. 0 is 1.
	MinBlock uint32
	// PreferredBlock is what they better are multiples of, in bytes: a power of
	// two of at least 512 and MinBlock. 0 is 4,096 or MinBlock.
	PreferredBlock uint32
	// MaxPayload is the largest read or write in bytes, at most the constant
	// MaxPayload, which 0 stands for.
	MaxPayload uint32
	// Close, which may be nil, is called once when the connection no longer
	// uses the Device.
	Close func() error
}

// Exports is what a server has to offer. Both methods are called in the
// handshakes of connections, concurrently.
type Exports interface {
	// List returns the exports that anybody may see.
	List(ctx context.Context) ([]ExportInfo, error)
	// Open opens an export for one connection; the empty name is that of the
	// default export. NotFound and Denied are told as such, other errors as
	// reasons of policy, with their messages.
	Open(ctx context.Context, name string) (*Export, error)
}

// check fills in what is not set, and reports what no client could be told.
func (e *Export) check() error {
	if e.MinBlock == 0 {
		e.MinBlock = 1
	}
	if e.PreferredBlock == 0 {
		e.PreferredBlock = max(defaultPreferred, e.MinBlock)
	}
	if e.MaxPayload == 0 {
		e.MaxPayload = MaxPayload
	}
	power := func(n uint32) bool { return n&(n-1) == 0 }
	switch {
	case e.Device == nil:
		return snapferry.Errorf(snapferry.Internal, "the export has no device")
	case e.Device.Size() < 0:
		return snapferry.Errorf(snapferry.Internal, "the device has a size of %d bytes", e.Device.Size())
	case !power(e.MinBlock) || e.MinBlock > 1<<16,
		!power(e.PreferredBlock) || e.PreferredBlock < max(e.MinBlock, 512),
		e.MaxPayload < e.PreferredBlock || e.MaxPayload > MaxPayload:
		return snapferry.Errorf(snapferry.Internal, "block sizes of %d, %d and %d bytes cannot be offered", e.MinBlock, e.PreferredBlock, e.MaxPayload)
	}
	return nil
}

// flags returns the transmission flags of the export.
func (e *Export) flags(structured bool) Flags {
	f := HasFlags | CanFlush | CanFUA
	if structured {
		f |= CanDF
	}
	if e.MultiConn {
		f |= CanMultiConn
	}
	if _, ok := e.Device.(Cacher); ok {
		f |= CanCache
	}
	if e.ReadOnly {
		return f | ReadOnly
	}
	f |= CanWriteZeroes | CanFastZero
	if _, ok := e.Device.(Trimmer); ok {
		f |= CanTrim
	}
	return f
}

// close ends the use of the export.
func (e *Export) close() error {
	if e == nil || e.Close == nil {
		return nil
	}
	return e.Close()
}
