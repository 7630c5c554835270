//go:build unix

package dirblob

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

const (
	largeBody  = 1 << 20 // bytes from which on a body is preallocated and written past the page cache
	writeChunk = 8 << 20 // bytes of one write
)

// osFS is the file system of the operating system below a directory.
type osFS struct {
	dir      string
	buffered bool
}

func (s *osFS) at(path string) string { return s.dir + "/" + path }

func (s *osFS) Mkdir(path string) error {
	return pathErr("mkdir", s.at(path), unix.Mkdir(s.at(path), 0o700))
}

func (s *osFS) Remove(path string) error {
	return pathErr("unlink", s.at(path), unix.Unlink(s.at(path)))
}

func (s *osFS) RemoveDir(path string) error {
	return pathErr("rmdir", s.at(path), unix.Rmdir(s.at(path)))
}
func (s *osFS) SyncDir(path string) error { return syncDir(s.at(path)) }
func (s *osFS) SyncAll() error            { return syncAll(s.dir) }

func (s *osFS) Rename(from, to string) error {
	return pathErr("rename", s.at(to), renameNoReplace(s.at(from), s.at(to)))
}

func (s *osFS) Create(path string) (writeFile, error) {
	fd, err := open(s.at(path), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return nil, err
	}
	return &osFile{fd: fd, path: s.at(path), buffered: s.buffered}, nil
}

func (s *osFS) Open(path string) (readFile, error) {
	fd, err := open(s.at(path), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return &osFile{fd: fd, path: s.at(path), buffered: s.buffered}, nil
}

func (s *osFS) Size(path string) (int64, error) {
	var st unix.Stat_t
	if err := pathErr("stat", s.at(path), retry(func() error { return unix.Lstat(s.at(path), &st) })); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("%s is not a regular file", s.at(path))
	}
	return st.Size, nil
}

func (s *osFS) ReadDir(path string) ([]entry, error) {
	f, err := os.Open(s.at(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	entries := make([]entry, len(found))
	for i, e := range found {
		entries[i] = entry{name: e.Name(), dir: e.IsDir()}
	}
	return entries, nil
}

// osFile is a file, in its own numbers: reads take no lock and allocate nothing.
type osFile struct {
	fd       int
	path     string
	buffered bool

	once   sync.Once
	direct int // a second number for reads past the page cache, -1 when there is none
}

// largeRead is from how many bytes on an aligned read goes past the page
// cache: what is read in such pieces is read once, and would only push out
// what is read again.
const largeRead = 256 << 10

// Close is never tried again: the number may be another file's by then.
func (f *osFile) Close() error {
	f.once.Do(func() { f.direct = -1 })
	if f.direct >= 0 {
		unix.Close(f.direct) // was only read: there is nothing to lose
	}
	if err := unix.Close(f.fd); err != nil && err != unix.EINTR {
		return pathErr("close", f.path, err)
	}
	return nil
}

// readDirect reads whole pages past the page cache, as far as that goes.
func (f *osFile) readDirect(p []byte, off int64) int {
	f.once.Do(func() {
		var err error
		if f.direct, err = open(fmt.Sprintf("/proc/self/fd/%d", f.fd), unix.O_RDONLY|directFlag); err != nil {
			f.direct = -1
		}
	})
	done := 0
	for f.direct >= 0 && done < len(p) {
		n, err := unix.Pread(f.direct, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < blob.Alignment {
			break // the page cache can do it, or says why not
		}
		done += n &^ (blob.Alignment - 1)
	}
	return done
}

func (f *osFile) Sync() error {
	return pathErr("fsync", f.path, retry(func() error { return fsync(f.fd) }))
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	if len(p) >= largeRead && off%blob.Alignment == 0 && blob.Aligned(p) && !f.buffered {
		done = f.readDirect(p[:len(p)&^(blob.Alignment-1)], off)
	}
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathErr("pread", f.path, err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// WriteBody writes a small body through the page cache. The space of a large
// one is taken at once, so that a full disk is known early; then it is written
// past the page cache, if its memory is aligned and the file system can.
func (f *osFile) WriteBody(p []byte) error {
	if len(p) < largeBody {
		return f.writeFrom(p, 0)
	}
	if err := preallocate(f.fd, (int64(len(p))+blob.Alignment-1)&^(blob.Alignment-1)); err != nil {
		return pathErr("fallocate", f.path, err)
	}
	done := 0
	if !f.buffered && blob.Aligned(p) && setDirect(f.fd, true) == nil {
		var err error
		if done, err = f.writeDirect(p); err != nil {
			return err
		}
	}
	if done < len(p) {
		if err := f.writeFrom(p, done); err != nil {
			return err
		}
	}
	return pathErr("ftruncate", f.path, retry(func() error { return unix.Ftruncate(f.fd, int64(len(p))) }))
}

// writeDirect writes whole pages of aligned memory, the last filled up with
// zeros. When the file system does not take that, it returns how many bytes
// are written, and the file goes through the page cache again.
func (f *osFile) writeDirect(p []byte) (int, error) {
	done := 0
	whole := len(p) &^ (blob.Alignment - 1)
	for done < whole {
		n, err := f.pwrite(p[done:min(whole, done+writeChunk)], int64(done))
		done += n &^ (blob.Alignment - 1)
		if errors.Is(err, unix.EINVAL) || err == nil && n < blob.Alignment {
			return done, pathErr("fcntl", f.path, setDirect(f.fd, false))
		}
		if err != nil {
			return done, err
		}
	}
	if whole == len(p) {
		return done, nil
	}
	page := blob.AlignedBuffer(blob.Alignment)
	copy(page, p[whole:])
	n, err := f.pwrite(page, int64(whole))
	if errors.Is(err, unix.EINVAL) || err == nil && n < len(page) {
		return done, pathErr("fcntl", f.path, setDirect(f.fd, false))
	}
	return len(p), err
}

// writeFrom writes the bytes from done on through the page cache, and lets the
// disk begin with those of a large body before the sync asks for them.
func (f *osFile) writeFrom(p []byte, done int) error {
	for done < len(p) {
		n, err := f.pwrite(p[done:min(len(p), done+writeChunk)], int64(done))
		if err != nil {
			return err
		}
		if n == 0 {
			return pathErr("pwrite", f.path, io.ErrShortWrite)
		}
		if len(p) >= largeBody {
			startWriteback(f.fd, int64(done), int64(n))
		}
		done += n
	}
	return nil
}

func (f *osFile) pwrite(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pwrite(f.fd, p, off)
		if err != unix.EINTR {
			return max(n, 0), pathErr("pwrite", f.path, err)
		}
	}
}

func open(path string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		return err
	})
	return fd, pathErr("open", path, err)
}

func syncDir(path string) error {
	fd, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return pathErr("fsync", path, retry(func() error { return fsync(fd) }))
}

// makeDir makes a directory and those above it, durably.
func makeDir(dir string) error {
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		return pathErr("open", dir, unix.ENOTDIR)
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(dir)
	if err := makeDir(above); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(above)
}

// lockDir locks a directory for this process until the result is closed.
func lockDir(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Unavailable, "lock bucket directory: %w", err)
	}
	err = retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		// Only for the message of who comes second.
		if err = f.Truncate(0); err == nil {
			_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
		}
		if err == nil || errors.Is(err, unix.ENOSPC) {
			return f, nil
		}
	}
	defer f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, snapferry.Errorf(snapferry.Conflict, "the bucket directory %s is in use by process %s", dir, strings.TrimSpace(string(pid))).
			WithHint("end that process, or give each server a directory of its own")
	}
	return nil, snapferry.Errorf(snapferry.Unavailable, "lock bucket directory %s: %w", dir, err)
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func pathErr(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// linkNoReplace renames where the system has no rename that never replaces. A
// first name that stays is removed at the next Open.
func linkNoReplace(from, to string) error {
	if err := retry(func() error { return unix.Link(from, to) }); err != nil {
		return err
	}
	unix.Unlink(from)
	return nil
}
