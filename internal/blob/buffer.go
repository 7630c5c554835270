package blob

import "unsafe"

// Alignment is what the address of a buffer should be a multiple of, in bytes,
// so that a driver can write it past the page cache.
const Alignment = 4096

// hugePage is the size in bytes of the pages a large buffer should be made of.
const hugePage = 2 << 20

// AlignedBuffer returns n zero bytes that begin at a multiple of Alignment.
// Who writes large objects builds them in such a buffer, and uses it again. A
// buffer of some MiB is made of huge pages where the system has them: that
// halves what it costs to hand it to a disk.
func AlignedBuffer(n int) []byte {
	if n < hugePage {
		return aligned(n, Alignment)
	}
	b := aligned(n, hugePage)
	adviseHuge(b[:n&^(hugePage-1)])
	return b
}

// aligned takes more than it needs and returns the part that begins well.
func aligned(n, to int) []byte {
	b := make([]byte, n+to)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (to - 1)
	return b[skip : skip+n : skip+n]
}

// Aligned reports whether p begins at a multiple of Alignment.
func Aligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))&(Alignment-1) == 0
}
