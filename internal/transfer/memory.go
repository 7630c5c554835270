package transfer

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
)

const (
	// DefaultMemory is the budget of a run that names none, in bytes.
	DefaultMemory = 32 << 20
	// chunkSize is the unit in which memory is lent: four blocks that could not
	// be compressed.
	chunkSize = 4 * snapferry.BlockSize
	// nodeBytes is what a leaf that waits takes beside its blocks.
	nodeBytes = 16 << 10
)

// A budget bounds the memory of a run: of leaves that are not filled yet, and of
// what has come of their blocks. What is full holds back the streams, which stop to
// read, and so the source. Only the oldest leaf is never held back: it ends, and
// another is the oldest then. So a leaf gets through that is larger than the
// budget.
type budget struct {
	limit int64

	mu      sync.Mutex
	used    int64           // guarded by mu, like all that follows
	oldest  uint64          // number of the first leaf that is not filled
	filled  map[uint64]bool // later ones that are
	changed chan struct{}   // closed when something of it changes
}

func newBudget(limit int64) *budget {
	return &budget{limit: limit, filled: map[uint64]bool{}, changed: make(chan struct{})}
}

// try takes n bytes for a leaf, by its number, if it can. Otherwise it returns
// what is closed when that may have changed.
func (b *budget) try(leaf uint64, n int64) (changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if leaf != b.oldest && b.used+n > b.limit {
		return b.changed
	}
	b.used += n
	return nil
}

// take waits for n bytes for a leaf.
func (b *budget) take(ctx context.Context, leaf uint64, n int64) error {
	for {
		changed := b.try(leaf, n)
		if changed == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	b.change()
}

// end notes that a leaf is filled.
func (b *budget) end(leaf uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= nodeBytes
	b.filled[leaf] = true
	for b.filled[b.oldest] {
		delete(b.filled, b.oldest)
		b.oldest++
	}
	b.change()
}

func (b *budget) change() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// chunks lends the memory of a budget. It lies outside the heap, which would grow
// to twice of it, and only pages that were ever used count. What was given back
// last is lent first.
type chunks struct {
	mu    sync.Mutex
	mem   []byte   // as it was mapped; guarded by mu, like all that follows
	fresh []byte   // of it, what was never lent
	idle  [][]byte // given back
}

func newChunks(limit int64) (*chunks, error) {
	// The oldest leaf may go beyond the budget; what was not filled of the last
	// chunk of each of its requests counts, too.
	size := int(limit+blockmap.LeafSpan)/chunkSize*chunkSize + 8*chunkSize
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Full, "no memory of %d bytes for a copy: %w", size, err)
	}
	return &chunks{mem: mem, fresh: mem}, nil
}

// get returns an empty chunk.
func (c *chunks) get() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.idle); n > 0 {
		p := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return p[:0]
	}
	if len(c.fresh) < chunkSize {
		return make([]byte, 0, chunkSize)
	}
	p := c.fresh[:0:chunkSize]
	c.fresh = c.fresh[chunkSize:]
	return p
}

func (c *chunks) put(ps [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, ps...)
}

// close ends the memory; nobody may use any of it any more.
func (c *chunks) close() {
	_ = unix.Munmap(c.mem) // cannot fail for a mapping that mmap returned
}
