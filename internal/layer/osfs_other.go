//go:build unix && !linux

package layer

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry/extent"
)

func datasync(fd int) error { return unix.Fsync(fd) }

func punch(int, int64, int64) error { return unix.ENOSYS }

func preadNow(int, []byte, int64) (int, error) { return 0, unix.ENOSYS }

func nextData(fd int, off int64) (e extent.Extent, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || off >= st.Size {
		return e, false, err
	}
	return extent.Extent{Off: off, Len: st.Size - off}, true, nil
}

func copyRange(int, int, int64, int64) (int64, error) { return 0, errors.ErrUnsupported }
