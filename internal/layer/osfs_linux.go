package layer

import (
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry/extent"
)

func datasync(fd int) error { return unix.Fdatasync(fd) }

func punch(fd int, off, n int64) error {
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// preadNow reads what needs no waiting for the disk.
func preadNow(fd int, p []byte, off int64) (int, error) {
	iov := [1][]byte{p}
	return unix.Preadv2(fd, iov[:], off, unix.RWF_NOWAIT)
}

func nextData(fd int, off int64) (e extent.Extent, ok bool, err error) {
	from, err := unix.Seek(fd, off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
	return extent.Extent{Off: from, Len: to - from}, err == nil, err
}

func copyRange(from, to int, off, n int64) (int64, error) {
	in, out := off, off
	done, err := unix.CopyFileRange(from, &in, to, &out, int(n), 0)
	return int64(done), err
}
