package kms

import (
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry/seal"
)

// secrets is memory for data keys: it is not swapped, not in core dumps where the
// kernel allows that, and not moved by the garbage collector.
type secrets struct {
	free []*[seal.KeySize]byte
}

// page is how much is mapped at a time, in bytes.
const page = 4096

func (s *secrets) get() (*[seal.KeySize]byte, error) {
	if len(s.free) == 0 {
		p, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return nil, err
		}
		// Both are as far as the system allows: a container may lock little.
		_ = unix.Mlock(p)
		_ = unix.Madvise(p, unix.MADV_DONTDUMP)
		for ; len(p) >= seal.KeySize; p = p[seal.KeySize:] {
			s.free = append(s.free, (*[seal.KeySize]byte)(p))
		}
	}
	k := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return k, nil
}

// put clears a key and takes its memory back.
func (s *secrets) put(k *[seal.KeySize]byte) {
	clear(k[:])
	s.free = append(s.free, k)
}
