package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

const regionLockFile = "LOCK"

// regionLock is the lock of a region's directory: one process has it, whatever
// kind of bucket the region has. The system takes it away when that ends.
type regionLock struct{ file *os.File }

// lockRegion locks a region's directory. The error is Conflict when another
// process has it.
func lockRegion(directory string) (*regionLock, error) {
	path := filepath.Join(directory, regionLockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EINTR {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 20)) // only for the message
		err := snapferry.Errorf(snapferry.Conflict, "the region's directory %s is in use by process %s", directory, strings.TrimSpace(string(pid))).
			WithHint("end that process; a region runs once")
		return nil, errors.Join(err, f.Close())
	}
	if err == nil {
		if err = f.Truncate(0); err == nil {
			_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
		}
		if err == nil || errors.Is(err, unix.ENOSPC) {
			return &regionLock{f}, nil
		}
	}
	return nil, errors.Join(snapferry.Errorf(snapferry.Unavailable, "lock %s: %w", path, err), f.Close())
}

// Close gives the lock back.
func (l *regionLock) Close() error { return l.file.Close() }
