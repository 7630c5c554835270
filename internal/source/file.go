package source

import (
	"errors"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

// OpenRead opens the file or block device at path for FromFile, without ever
// waiting for a pipe or a terminal. What it refuses, and with which Kinds, is
// said at Open.
func OpenRead(path string) (*os.File, error) {
	f, err := openFile(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, fail("open", path, err)
	}
	if _, err := inspect(f, path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// OpenWrite opens or makes the file at path, or opens the block device there,
// for ToFile; created says that it made a new file. What is at path already is
// refused with Kind Exists unless force is set, a device in use (mounted, or
// part of another device) with Kind Conflict always. A new file is readable by
// its owner only. Nothing of the content is changed yet.
func OpenWrite(path string, force bool) (f *os.File, created bool, err error) {
	f, err = openFile(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err == nil {
		return f, true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return nil, false, fail("create", path, err)
	}
	flags := unix.O_RDWR
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
		case unix.S_IFBLK:
			flags |= unix.O_EXCL // for a device: nobody else has it mounted
		default:
			return nil, false, notDisk(path, st.Mode)
		}
	}
	if !force {
		return nil, false, snapferry.Errorf(snapferry.Exists, "%s exists already", path).
			WithHint("give another name, or --force to overwrite what is there")
	}
	f, err = openFile(path, flags, 0)
	if err != nil {
		return nil, false, fail("open", path, err)
	}
	if _, err := inspect(f, path); err != nil {
		f.Close()
		return nil, false, err
	}
	return f, false, nil
}

// openFile opens path without blocking on what is not a disk, then sets the
// descriptor to blocking.
func openFile(path string, flags int, mode uint32) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_LARGEFILE, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// facts are what is known of an open file.
type facts struct {
	size   int64
	mtime  unix.Timespec // of a regular file
	device bool          // a block device
}

// inspect finds the size of a regular file or block device and refuses
// everything else with Kind Invalid.
func inspect(f *os.File, name string) (facts, error) {
	var st unix.Stat_t
	var size int64
	err := control(f, func(fd int) error {
		if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
			return err
		}
		size = st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			var err error
			size, err = deviceSize(fd)
			return err
		}
		return nil
	})
	if err != nil {
		return facts{}, fail("inspect", name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return facts{size: size, mtime: st.Mtim}, nil
	case unix.S_IFBLK:
		return facts{size: size, device: true}, nil
	}
	return facts{}, notDisk(name, st.Mode)
}

func notDisk(name string, mode uint32) error {
	what := "no regular file"
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		what = "a directory"
	case unix.S_IFCHR:
		what = "a character device"
	case unix.S_IFIFO:
		what = "a pipe"
	case unix.S_IFSOCK:
		what = "a socket"
	}
	return snapferry.Errorf(snapferry.Invalid, "%s is %s, not a disk", name, what).WithHint("give a raw image file or a block device")
}

func deviceSize(fd int) (int64, error) {
	var size uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, errno
	}
	return int64(size), nil
}

// handle is an open file that is ours, or one that shares position and flags
// with a descriptor of somebody else.
type handle struct {
	*os.File
	name     string
	borrowed bool
	position int64 // of a borrowed description, when it was taken
	direct   bool  // O_DIRECT was set when it was taken
}

// own takes over f, which nobody else has.
func own(f *os.File, name string) *handle { return &handle{File: f, name: name} }

// borrow makes a descriptor of our own for the open file of f. want is the
// access needed, unix.O_RDONLY or unix.O_WRONLY. What was opened without that
// access is refused with Kind Denied: whoever handed it over has not shown
// that the kernel lets them.
func borrow(f *os.File, name string, want int) (*handle, error) {
	h := &handle{name: name, borrowed: true}
	var dup, flags int
	err := control(f, func(fd int) (err error) {
		if flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
			return err
		}
		if h.position, err = unix.Seek(fd, 0, io.SeekCurrent); err != nil {
			h.position = 0 // no file with positions: inspect refuses it
		}
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fail("take over", name, err)
	}
	h.File = os.NewFile(uintptr(dup), name)
	h.direct = flags&unix.O_DIRECT != 0
	access := flags & unix.O_ACCMODE
	switch {
	case flags&unix.O_PATH != 0, access != want && access != unix.O_RDWR:
		err = snapferry.Errorf(snapferry.Denied, "%s was not opened for %s", name, accessName(want))
	case want == unix.O_WRONLY && flags&unix.O_APPEND != 0:
		err = snapferry.Errorf(snapferry.Invalid, "%s was opened for appending", name).WithHint("open it without O_APPEND (in a shell: 1<> instead of >>)")
	}
	if err != nil {
		h.File.Close()
		return nil, err
	}
	return h, nil
}

func accessName(want int) string {
	if want == unix.O_RDONLY {
		return "reading"
	}
	return "writing"
}

// setDirect sets or clears O_DIRECT.
func (h *handle) setDirect(on bool) error {
	return control(h.File, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		next := flags &^ unix.O_DIRECT
		if on {
			next |= unix.O_DIRECT
		}
		if next == flags {
			return nil
		}
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, next)
		return err
	})
}

// close puts position and flags of a borrowed file back and closes it.
func (h *handle) close() error {
	var err error
	if h.borrowed {
		err = h.setDirect(h.direct)
		_, seekErr := h.Seek(h.position, io.SeekStart)
		err = errors.Join(err, seekErr)
	}
	return errors.Join(err, h.File.Close())
}

// control runs fn with the descriptor of f, which stays open meanwhile.
func control(f *os.File, fn func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	if err := conn.Control(func(fd uintptr) { fnErr = fn(int(fd)) }); err != nil {
		return err
	}
	return fnErr
}

// retry runs a system call until no signal interrupts it.
func retry(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}

// failures says what the errors of the system mean for the caller. The first
// match counts; what is not here is Internal.
var failures = []struct {
	err  unix.Errno
	kind snapferry.Kind
	hint string
}{
	{unix.ENOENT, snapferry.NotFound, "check the path"},
	{unix.ENOTDIR, snapferry.NotFound, "check the path"},
	{unix.EACCES, snapferry.Denied, "run it as a user who has the right, or change the file's mode"},
	{unix.EPERM, snapferry.Denied, "run it as a user who has the right"},
	{unix.EROFS, snapferry.Denied, "the file system is read-only"},
	{unix.EISDIR, snapferry.Invalid, "give a raw image file or a block device"},
	{unix.ELOOP, snapferry.Invalid, "the path goes in a circle of symbolic links"},
	{unix.ENAMETOOLONG, snapferry.Invalid, "give a shorter path"},
	{unix.EFBIG, snapferry.Invalid, "the file system cannot hold so large a file (ext4 ends at 16 TiB): use XFS or a block device"},
	{unix.EBUSY, snapferry.Conflict, "unmount it first"},
	{unix.ETXTBSY, snapferry.Conflict, "somebody runs it or swaps to it"},
	{unix.ENOSPC, snapferry.Full, "free space, or choose another place"},
	{unix.EDQUOT, snapferry.Full, "raise the disk quota, or choose another place"},
	{unix.EMFILE, snapferry.Full, "too many open files: raise the limit (ulimit -n)"},
	{unix.ENFILE, snapferry.Full, "too many open files in the system"},
	{unix.ENXIO, snapferry.Unavailable, "there is no device behind it, or it is a pipe or socket"},
	{unix.ENODEV, snapferry.Unavailable, "there is no device behind it"},
	{unix.ENOMEDIUM, snapferry.Unavailable, "there is no medium in the device"},
	{unix.EIO, snapferry.Unavailable, "the disk reports an error: look at the kernel's log"},
	{unix.ESTALE, snapferry.Unavailable, "the file server has lost the file"},
}

// fail gives an error of the system its Kind and hint.
func fail(verb, name string, err error) error {
	var known *snapferry.Error
	if errors.As(err, &known) {
		return err
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err // the name is in our message already
	}
	for _, f := range failures {
		if errors.Is(err, f.err) {
			return snapferry.Errorf(f.kind, "%s %s: %w", verb, name, err).WithHint("%s", f.hint)
		}
	}
	return snapferry.Errorf(snapferry.Internal, "%s %s: %w", verb, name, err)
}
