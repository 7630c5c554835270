package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
)

// FS is the file system that layers, and the small files beside them, are kept
// in. Names are slash-separated and relative, as in io/fs; "." is the top. All
// methods may be called concurrently. Errors are snapferry.Errors, made by
// Failure. A name that was made, renamed or removed is durably so after a
// SyncDir of its directory, not before; a rename onto an existing name shows
// the old file or the new one, also after a crash.
type FS interface {
	// OpenFile opens a file for reading and writing. One that is not there is
	// made when create is set, else the error is of Kind NotFound. The content
	// of one that is there stays.
	OpenFile(name string, create bool) (File, error)
	// Mkdir makes a directory; the error is of Kind Exists when something of
	// that name is there.
	Mkdir(name string) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(name string) ([]string, error)
	Rename(from, to string) error
	// Remove removes a file or an empty directory; the error is of Kind NotFound
	// when nothing is there.
	Remove(name string) error
	SyncDir(name string) error
}

// File is an open file of an FS. Its methods may be called concurrently; Close
// waits for nothing, what is under way ends well and what comes later fails.
// ReadAt and WriteAt are those of io: a read that ends with the file returns
// io.EOF. What was written is durable after a Datasync that began later, with
// the length of the file, not before.
type File interface {
	io.ReaderAt
	io.WriterAt
	// ReadNow is a ReadAt that does not wait for a disk: done is false when it
	// would have to, or the file system cannot tell, or the file ends before p
	// is full; p may then hold anything.
	ReadNow(p []byte, off int64) (done bool, err error)
	Datasync() error
	// Punch makes a range read as zeros and gives its space back where the file
	// system can. The length of the file stays.
	Punch(off, n int64) error
	// NextData returns the first range from off on that is not a hole; ok is
	// false when there is none. Where holes cannot be told all is data.
	NextData(off int64) (e extent.Extent, ok bool, err error)
	// Stat returns the length of the file, and the bytes it takes on the disk.
	Stat() (size, allocated int64, err error)
	io.Closer
}

// Copier is a File that can take bytes from another file without them passing
// through this process. It copies n bytes from off of src to off of the file,
// or fewer, and returns how many; an error that is errors.ErrUnsupported says
// that the two files do not allow it.
type Copier interface {
	CopyFrom(src File, off, n int64) (int64, error)
}

// Failure gives an error of the operating system its Kind. doing is what was
// tried, with a name.
func Failure(doing string, err error) error {
	var known *snapferry.Error
	if errors.As(err, &known) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	is := func(errs ...error) bool {
		for _, e := range errs {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	switch {
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		return snapferry.Errorf(snapferry.Full, "%s: %w", doing, err).WithHint("make space on the file system of the volumes")
	case is(syscall.EMFILE, syscall.ENFILE):
		return snapferry.Errorf(snapferry.Full, "%s: %w", doing, err).WithHint("too many open files: raise the limit (ulimit -n)")
	case is(fs.ErrNotExist):
		return snapferry.Errorf(snapferry.NotFound, "%s: %w", doing, err)
	case is(fs.ErrExist):
		return snapferry.Errorf(snapferry.Exists, "%s: %w", doing, err)
	case is(fs.ErrPermission, syscall.EROFS):
		return snapferry.Errorf(snapferry.Unavailable, "%s: %w", doing, err).WithHint("let the server's user write to the directory of the volumes")
	case is(syscall.EIO, syscall.ESTALE, syscall.ENODEV, syscall.ENXIO):
		return snapferry.Errorf(snapferry.Unavailable, "%s: %w", doing, err).WithHint("the disk reports an error: look at the kernel's log")
	}
	return snapferry.Errorf(snapferry.Internal, "%s: %w", doing, err)
}

// failure is Failure of what was done to a name, or nil.
func failure(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	return Failure(verb+" "+name, err)
}
