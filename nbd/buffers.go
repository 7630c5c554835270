package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

const (
	pageSize     = 4096
	smallestPool = 12 // buffers are of 1<<12, 1<<13 ... bytes
	largestPool  = 25 // MaxPayload
	headRoom     = 64 // bytes before the data of a buffer, for the header of a reply
)

// buffer is memory for the payload of one request. Its data begins at a page,
// as direct I/O wants it.
type buffer struct {
	head []byte // headRoom bytes, followed by data
	data []byte
	full []byte // data as long as it can be
	pool int
}

// buffers keeps buffers for reuse by the power of two of their size; those that
// are not used go with the next garbage collections.
type buffers struct {
	pools [largestPool - smallestPool + 1]sync.Pool
}

// get returns a buffer with n bytes of data, of any content.
func (b *buffers) get(n int) *buffer {
	pool := max(bits.Len(uint(max(n, 1)-1)), smallestPool) - smallestPool
	buf, _ := b.pools[pool].Get().(*buffer)
	if buf == nil {
		buf = newBuffer(1 << (pool + smallestPool))
		buf.pool = pool
	}
	buf.data = buf.full[:n]
	return buf
}

func (b *buffers) put(buf *buffer) { b.pools[buf.pool].Put(buf) }

func newBuffer(n int) *buffer {
	raw := make([]byte, n+2*pageSize)
	at := pageSize + int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw)))&(pageSize-1))
	return &buffer{head: raw[at-headRoom : at : at+n], full: raw[at : at+n : at+n]}
}

// with returns head, which is at most headRoom bytes, and the data behind it as
// one slice.
func (b *buffer) with(head []byte) []byte {
	at := headRoom - len(head)
	copy(b.head[at:], head)
	return b.head[at : headRoom+len(b.data)]
}
