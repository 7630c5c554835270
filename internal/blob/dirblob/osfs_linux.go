package dirblob

import (
	"errors"

	"golang.org/x/sys/unix"
)

// directFlag opens a file past the page cache.
const directFlag = unix.O_DIRECT

func fsync(fd int) error { return unix.Fsync(fd) }

func syncAll(dir string) error {
	fd, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return pathErr("syncfs", dir, retry(func() error { return unix.Syncfs(fd) }))
}

// preallocate takes the space of a file; a file system that cannot is fine.
func preallocate(fd int, size int64) error {
	err := retry(func() error { return unix.Fallocate(fd, 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// setDirect lets writes go past the page cache, or through it again.
func setDirect(fd int, on bool) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if on {
		flags |= unix.O_DIRECT
	} else {
		flags &^= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
	return err
}

// startWriteback is a hint: the sync that follows reports what goes wrong.
func startWriteback(fd int, off, n int64) {
	unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

func renameNoReplace(from, to string) error {
	err := retry(func() error { return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return linkNoReplace(from, to)
	}
	return err
}
