//go:build unix

package layer

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry/extent"
)

// Dir is the file system of the operating system below one directory, which it
// holds open: it stays the same directory whoever renames it.
type Dir struct {
	fd   handle
	path string
}

// OpenDir opens a directory, which must be there, as an FS.
func OpenDir(path string) (*Dir, error) {
	d := &Dir{path: path}
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, Failure("open directory "+path, err)
	}
	d.fd.fd = fd
	return d, nil
}

// Close closes the directory; files that were opened through it stay open.
func (d *Dir) Close() error { return failure("close directory", d.path, d.fd.close()) }

// in calls fn with the directory's descriptor if name is a good name.
func (d *Dir) in(verb, name string, fn func(fd int) error) error {
	if !fs.ValidPath(name) {
		return failure(verb, name, fs.ErrInvalid)
	}
	if !d.fd.enter() {
		return failure(verb, name, fs.ErrClosed)
	}
	defer d.fd.leave()
	return failure(verb, name, retry(func() error { return fn(d.fd.fd) }))
}

// OpenFile implements FS.
func (d *Dir) OpenFile(name string, create bool) (File, error) {
	flags := unix.O_RDWR
	if create {
		flags |= unix.O_CREAT
	}
	f := &osFile{name: name}
	err := d.in("open", name, func(dir int) (err error) {
		f.fd.fd, err = openat(dir, name, flags)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Mkdir implements FS.
func (d *Dir) Mkdir(name string) error {
	return d.in("make directory", name, func(dir int) error { return unix.Mkdirat(dir, name, 0o700) })
}

// ReadDir implements FS.
func (d *Dir) ReadDir(name string) ([]string, error) {
	var names []string
	err := d.in("read directory", name, func(dir int) error {
		fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		names, err = f.Readdirnames(-1)
		return err
	})
	slices.Sort(names)
	return names, err
}

// Rename implements FS.
func (d *Dir) Rename(from, to string) error {
	if !fs.ValidPath(to) {
		return failure("rename to", to, fs.ErrInvalid)
	}
	return d.in("rename", from, func(dir int) error { return unix.Renameat(dir, from, dir, to) })
}

// Remove implements FS.
func (d *Dir) Remove(name string) error {
	return d.in("remove", name, func(dir int) error {
		err := unix.Unlinkat(dir, name, 0)
		if err == unix.EISDIR || err == unix.EPERM { // EPERM: a directory, in the words of POSIX
			if dirErr := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); dirErr != unix.ENOTDIR {
				err = dirErr
			}
		}
		return err
	})
}

// SyncDir implements FS.
func (d *Dir) SyncDir(name string) error {
	return d.in("sync directory", name, func(dir int) error {
		fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return retry(func() error { return unix.Fsync(fd) })
	})
}

// handle is a descriptor that is closed when its last user has left: its number
// may be another file's from then on.
type handle struct {
	fd    int
	users atomic.Int64 // less closed once it was closed
}

const closed = 1 << 62

// enter reports whether fd can be used; leave must follow then.
func (h *handle) enter() bool {
	for {
		n := h.users.Load()
		if n < 0 {
			return false
		}
		if h.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (h *handle) leave() {
	if h.users.Add(-1) == -closed {
		unix.Close(h.fd) // what was to be durable was synced
	}
}

func (h *handle) close() error {
	for {
		n := h.users.Load()
		if n < 0 {
			return fs.ErrClosed
		}
		if h.users.CompareAndSwap(n, n-closed) {
			if n > 0 {
				return nil
			}
			return unix.Close(h.fd)
		}
	}
}

// osFile is a file, in its own number: reads and writes allocate nothing.
type osFile struct {
	fd     handle
	name   string
	waits  atomic.Bool // ReadNow is not to be had
	solid  atomic.Bool // holes cannot be punched
	copies atomic.Bool // bytes must be copied by hand
}

// Close implements File. It is never tried again: see handle.
func (f *osFile) Close() error { return failure("close", f.name, f.fd.close()) }

// ReadAt implements File.
func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if !f.fd.enter() {
		return 0, failure("read", f.name, fs.ErrClosed)
	}
	defer f.fd.leave()
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, failure("read", f.name, err)
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

// maxWrite is the most that is written by one call of the system. A file system
// keeps in memory in one piece what came in one, up to some MiB (a large folio),
// and later goes through all blocks of that piece for each page written in it: on
// ext4 of Linux 6.18 a page costs 50 us of CPU in pieces of 1 MiB, and 7 in those
// of 64 KiB.
const maxWrite = 64 << 10

// WriteAt implements File.
func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.fd.enter() {
		return 0, failure("write", f.name, fs.ErrClosed)
	}
	defer f.fd.leave()
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd.fd, p[done:min(len(p), done+maxWrite)], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, failure("write", f.name, err)
		case n == 0:
			return done, failure("write", f.name, io.ErrShortWrite)
		default:
			done += n
		}
	}
	return done, nil
}

// ReadNow implements File.
func (f *osFile) ReadNow(p []byte, off int64) (bool, error) {
	if f.waits.Load() {
		return false, nil
	}
	if !f.fd.enter() {
		return false, failure("read", f.name, fs.ErrClosed)
	}
	defer f.fd.leave()
	n, err := preadNow(f.fd.fd, p, off)
	switch err {
	case nil, unix.EAGAIN, unix.EINTR:
		return err == nil && n == len(p), nil
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		f.waits.Store(true)
		return false, nil
	}
	return false, failure("read", f.name, err)
}

// with is for calls that are not so many that an allocation would matter.
func (f *osFile) with(verb string, fn func(fd int) error) error {
	if !f.fd.enter() {
		return failure(verb, f.name, fs.ErrClosed)
	}
	defer f.fd.leave()
	return failure(verb, f.name, retry(func() error { return fn(f.fd.fd) }))
}

// Datasync implements File.
func (f *osFile) Datasync() error { return f.with("sync", datasync) }

// Punch implements File.
func (f *osFile) Punch(off, n int64) error {
	if !f.solid.Load() {
		err := f.with("punch a hole in", func(fd int) error { return punch(fd, off, n) })
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return err
		}
		f.solid.Store(true)
	}
	size, _, err := f.Stat()
	if err != nil {
		return err
	}
	for end := min(off+n, size); off < end; {
		k := min(end-off, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:k], off); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// zeros is never written to.
var zeros [256 << 10]byte

// NextData implements File.
func (f *osFile) NextData(off int64) (e extent.Extent, ok bool, err error) {
	err = f.with("find the data of", func(fd int) error {
		e, ok, err = nextData(fd, off)
		return err
	})
	return e, ok, err
}

// Stat implements File.
func (f *osFile) Stat() (size, allocated int64, err error) {
	var st unix.Stat_t
	err = f.with("stat", func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Size, int64(st.Blocks) * 512, err
}

// CopyFrom implements Copier.
func (f *osFile) CopyFrom(src File, off, n int64) (int64, error) {
	s, ok := src.(*osFile)
	if !ok || f.copies.Load() {
		return 0, errors.ErrUnsupported
	}
	var done int64
	err := f.with("copy to", func(to int) error {
		return s.with("copy from", func(from int) (err error) {
			done, err = copyRange(from, to, off, n)
			return err
		})
	})
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		f.copies.Store(true)
		return 0, errors.ErrUnsupported
	}
	return done, err
}

func openat(dir int, name string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0o600)
		return err
	})
	return fd, err
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
