package vault

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/segment"
)

const (
	// share is the unit in which segment buffers borrow from the budget.
	share = 8 << 20
	// bufferSize is the address space of one segment buffer: a full segment,
	// its footer, the node segments packed behind it and the object around them.
	bufferSize = segment.TargetSize + 12<<20
	// keepIdle is how many unused buffers keep their pages.
	keepIdle = 2
)

// A pool lends page-aligned buffers for segments out of the region's byte
// budget. A buffer is address space; its pages are paid for in shares as the
// segment grows, and a segment that gets no further share closes early. So
// memory follows the budget, not the number of writers.
type pool struct {
	budget *semaphore.Weighted
	mu     sync.Mutex
	idle   [][]byte
}

func newPool(budget int64) *pool {
	return &pool{budget: semaphore.NewWeighted(max(budget, 2*share))}
}

// A buffer is address space of bufferSize bytes of which paid may be touched.
type buffer struct {
	pool *pool
	mem  []byte
	paid int
}

// get waits for a first share.
func (p *pool) get(ctx context.Context) (*buffer, error) {
	if err := p.budget.Acquire(ctx, share); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		mem := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return &buffer{pool: p, mem: mem, paid: share}, nil
	}
	mem, err := unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		p.budget.Release(share)
		return nil, snapferry.Errorf(snapferry.Full, "no memory for a segment buffer of %d bytes: %w", bufferSize, err)
	}
	// Huge pages make the disk's part of a put cheaper; without them it works too.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return &buffer{pool: p, mem: mem, paid: share}, nil
}

// grow pays until n bytes may be touched; false when the budget is used up.
func (b *buffer) grow(n int) bool {
	for b.paid < n {
		if b.paid+share > bufferSize+share || !b.pool.budget.TryAcquire(share) {
			return false
		}
		b.paid += share
	}
	return true
}

// release gives the buffer and its shares back.
func (b *buffer) release() {
	if b == nil || b.mem == nil {
		return
	}
	p := b.pool
	p.mu.Lock()
	if len(p.idle) < keepIdle {
		p.idle = append(p.idle, b.mem)
	} else {
		// Unmapping cannot fail for a mapping that mmap returned.
		_ = unix.Munmap(b.mem)
	}
	p.mu.Unlock()
	p.budget.Release(int64(b.paid))
	b.mem = nil
}
