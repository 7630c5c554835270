package vault

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/segment"
)

const (
	// share is the unit in which segment buffers borrow from the budget.
	share = 8 << 20
	// bufferSize is the address space of one segment buffer: a full segment,
	// its footer, the node segments packed behind it and the object around them.
	bufferSize = segment.TargetSize + 12<<20
	// minBudget lets one writer fill a segment while another of its is written.
	minBudget = 2 * (segment.TargetSize + share)
	// keepIdle is how many unused buffers keep their pages.
	keepIdle = 2
)

// A pool lends page-aligned buffers for segments out of the region's byte
// budget. A buffer is address space; its pages are paid for in shares as the
// segment grows, and a segment that gets no further share closes early. So
// memory follows the budget, not the number of writers.
type pool struct {
	budget *semaphore.Weighted
	plenty int64 // bytes up to which it does not matter what idle buffers have
	mu     sync.Mutex
	idle   []buffer // not lent; guarded by mu, like what follows
	paid   int64    // for all that are lent
}

func newPool(budget int64) *pool {
	budget = max(budget, minBudget)
	return &pool{budget: semaphore.NewWeighted(budget), plenty: budget / 2}
}

// A buffer is address space of bufferSize bytes of which paid may be touched, and
// touched may have been.
type buffer struct {
	pool          *pool
	mem           []byte
	paid, touched int
}

// get waits for the shares that n bytes need, all at once: whoever waits holds
// nothing, so that those who hold something come to an end.
func (p *pool) get(ctx context.Context, n int) (*buffer, error) {
	paid := (n + share - 1) / share * share
	if err := p.budget.Acquire(ctx, int64(paid)); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paid += int64(paid)
	if n := len(p.idle); n > 0 {
		b := p.idle[n-1]
		p.idle = p.idle[:n-1]
		if b.touched > paid && p.paid > p.plenty {
			// What others pay for must be there for them.
			_ = unix.Madvise(b.mem[min(paid, bufferSize):min(b.touched, bufferSize)], unix.MADV_DONTNEED) // else it stays
			b.touched = paid
		}
		return &buffer{pool: p, mem: b.mem, paid: paid, touched: max(b.touched, paid)}, nil
	}
	mem, err := unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		p.paid -= int64(paid)
		p.budget.Release(int64(paid))
		return nil, snapferry.Errorf(snapferry.Full, "no memory for a segment buffer of %d bytes: %w", bufferSize, err)
	}
	// Huge pages make the disk's part of a put cheaper; without them it works too.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return &buffer{pool: p, mem: mem, paid: paid, touched: paid}, nil
}

// grow pays until n bytes may be touched; false when the budget is used up.
func (b *buffer) grow(n int) bool {
	for b.paid < n {
		if !b.pool.budget.TryAcquire(share) {
			return false
		}
		b.paid += share
		b.touched = max(b.touched, b.paid)
		b.pool.mu.Lock()
		b.pool.paid += share
		b.pool.mu.Unlock()
	}
	return true
}

// trim gives the memory of what is not lent back to the system.
func (p *pool) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.idle {
		_ = unix.Munmap(b.mem) // cannot fail for a mapping that mmap returned
	}
	p.idle = nil
}

// release gives the buffer and its shares back.
func (b *buffer) release() {
	if b == nil || b.mem == nil {
		return
	}
	p := b.pool
	p.mu.Lock()
	p.paid -= int64(b.paid)
	if len(p.idle) < keepIdle && p.paid <= p.plenty {
		p.idle = append(p.idle, *b)
	} else {
		// Unmapping cannot fail for a mapping that mmap returned.
		_ = unix.Munmap(b.mem)
	}
	p.mu.Unlock()
	p.budget.Release(int64(b.paid))
	b.mem = nil
}

// stageSize holds the frames of any leaf and what a compressor needs behind
// the last one.
const stageSize = blockmap.LeafSpan + slack

// stages lends the memory in which leaves are put together, to a bounded
// number of leaves at a time. The one used last is lent first, and only the
// pages that were ever written take memory.
type stages struct {
	free chan struct{} // one for each that may still be lent
	mu   sync.Mutex
	idle [][]byte // guarded by mu
}

func newStages(n int) *stages {
	s := &stages{free: make(chan struct{}, n)}
	for range n {
		s.free <- struct{}{}
	}
	return s
}

// get waits for a stage.
func (s *stages) get(ctx context.Context) ([]byte, error) {
	select {
	case <-s.free:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return s.take()
}

// try returns a stage if there is one now, else nil.
func (s *stages) try() []byte {
	select {
	case <-s.free:
	default:
		return nil
	}
	p, err := s.take()
	if err != nil {
		return nil // get says why
	}
	return p
}

func (s *stages) take() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.idle); n > 0 {
		p := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return p, nil
	}
	p, err := unix.Mmap(-1, 0, stageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		s.free <- struct{}{}
		return nil, snapferry.Errorf(snapferry.Full, "no memory for a leaf of %d bytes: %w", stageSize, err)
	}
	return p, nil
}

func (s *stages) put(p []byte) {
	s.mu.Lock()
	s.idle = append(s.idle, p[:cap(p)])
	s.mu.Unlock()
	s.free <- struct{}{}
}

// trim gives the memory of what is not lent back to the system.
func (s *stages) trim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.idle {
		_ = unix.Munmap(p) // cannot fail for a mapping that mmap returned
	}
	s.idle = nil
}
