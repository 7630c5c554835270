package transfer

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

const (
	// DefaultMemory is the budget of a run that shares none with others, in bytes.
	DefaultMemory = 96 << 20
	// chunkSize is the unit in which memory is lent: four blocks that could not
	// be compressed.
	chunkSize = 4 * snapferry.BlockSize
	// nodeBytes is what a leaf that waits takes beside its blocks.
	nodeBytes = 16 << 10
	// streamBytes is what a request that is under way takes beside the blocks:
	// buffers of the stream and of its connection.
	streamBytes = 512 << 10
	// leastMemory is what each run may take whatever the others have: a request,
	// and the leaves it is of.
	leastMemory = askBytes + 4*chunkSize
	// mapAtOnce is how much the memory of chunks grows by.
	mapAtOnce = 16 * chunkSize
)

// Memory is a budget of bytes that runs share, and what is read for others with
// them. A request takes what it may bring before it is made, so none that is under
// way waits for memory, and all come to an end, whatever the others do. Each run may
// have one request at any time, and leastMemory; of what is left, who has less than
// an equal share comes before who has more. Its methods are safe for concurrent use.
type Memory struct {
	limit int64
	chunks

	mu      sync.Mutex
	runs    int           // guarded by mu, like all that follows
	beyond  int64         // what runs have beyond leastMemory, and what Lend lent
	poor    int           // that wait and have less than their share
	changed chan struct{} // closed when something of it changes
}

// NewMemory returns a budget of so many bytes; 0 for DefaultMemory. It may be
// exceeded as far as leastMemory of all runs together is more.
func NewMemory(limit int64) *Memory {
	if limit == 0 {
		limit = DefaultMemory
	}
	return &Memory{limit: limit, changed: make(chan struct{})}
}

// room is what is there beyond what each run may have anyway.
func (m *Memory) room() int64 { return max(m.limit-int64(m.runs)*leastMemory, 0) }

func (m *Memory) change() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Lend takes n bytes, if they are there, for what is no run. Who gets none makes do
// with less.
func (m *Memory) Lend(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.beyond+n > m.room() || m.poor > 0 {
		return false
	}
	m.beyond += n
	return true
}

// Return gives back what Lend took.
func (m *Memory) Return(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.beyond -= n
	m.change()
}

// A budget is what one run has of a Memory.
type budget struct {
	m *Memory

	used   int64            // guarded by m.mu, like all that follows
	leaves int              // that have their nodeBytes
	asks   int              // that have their memory
	lent   map[*byte][]byte // chunks
}

// join returns the budget of one more run; leave ends it.
func (m *Memory) join() *budget {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.runs++
	return &budget{m: m, lent: map[*byte][]byte{}}
}

// leave gives all back. Nobody may use any of it any more.
func (b *budget) leave() {
	m := b.m
	m.mu.Lock()
	defer m.mu.Unlock()
	b.add(-b.used)
	for _, p := range b.lent {
		m.put(p)
	}
	b.lent = nil
	if m.runs--; m.runs == 0 {
		m.trim()
	}
	m.change()
}

func (b *budget) add(n int64) {
	before := max(b.used-leastMemory, 0)
	b.used += n
	b.m.beyond += max(b.used-leastMemory, 0) - before
}

// may reports whether the run may take n bytes. asPoor is set for one that was told
// to wait and was poor then.
func (b *budget) may(n int64, asPoor bool) (ok, poor bool) {
	m := b.m
	more := max(b.used+n-leastMemory, 0) - max(b.used-leastMemory, 0)
	if more == 0 {
		return true, true
	}
	poor = b.used+n <= m.limit/int64(m.runs)
	others := m.poor
	if asPoor {
		others--
	}
	return m.beyond+more <= m.room() && (poor || others == 0), poor
}

// take waits for n bytes. always says, with the Memory locked, that they are taken
// whatever is left.
func (b *budget) take(ctx context.Context, n int64, always func() bool, taken func()) error {
	m := b.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for poor := false; ; {
		ok, now := b.may(n, poor)
		if poor {
			m.poor--
		}
		if ok || always() {
			b.add(n)
			taken()
			if poor && m.poor == 0 {
				m.change() // the others may go on
			}
			return nil
		}
		was := poor
		if poor = now; poor {
			m.poor++
		} else if was && m.poor == 0 {
			m.change()
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
			m.mu.Lock()
		case <-ctx.Done():
			m.mu.Lock()
			if poor {
				m.poor--
				m.change()
			}
			return context.Cause(ctx)
		}
	}
}

// tryLeaf and leaf take what a leaf has beside its blocks; a run without any has it
// always.
func (b *budget) tryLeaf() bool {
	m := b.m
	m.mu.Lock()
	defer m.mu.Unlock()
	ok, _ := b.may(nodeBytes, false)
	if !ok && b.leaves > 0 {
		return false
	}
	b.add(nodeBytes)
	b.leaves++
	return true
}

func (b *budget) leaf(ctx context.Context) error {
	return b.take(ctx, nodeBytes, func() bool { return b.leaves == 0 }, func() { b.leaves++ })
}

// tryAsk and ask take what a request may bring; a run without any has it always.
func (b *budget) tryAsk(n int64) bool {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	ok, _ := b.may(n, false)
	if !ok && b.asks > 0 {
		return false
	}
	b.add(n)
	b.asks++
	return true
}

func (b *budget) ask(ctx context.Context, n int64) error {
	return b.take(ctx, n, func() bool { return b.asks == 0 }, func() { b.asks++ })
}

// end gives back what leaf took.
func (b *budget) end() {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.leaves--
	b.add(-nodeBytes)
	b.m.change()
}

// give gives back n bytes of what ask took.
func (b *budget) give(n int64) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.add(-n)
	b.m.change()
}

// done gives back the rest of what ask took, and the chunks.
func (b *budget) done(n int64, ps [][]byte) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	for _, p := range ps {
		delete(b.lent, &p[:1][0])
		b.m.put(p)
	}
	b.asks--
	b.add(-n)
	b.m.change()
}

// chunk returns an empty chunk.
func (b *budget) chunk() ([]byte, error) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	p, err := b.m.get()
	if err == nil {
		b.lent[&p[:1][0]] = p
	}
	return p, err
}

// chunks is the memory that is lent. It lies outside the heap, which would grow to
// twice of it, and only pages that were ever used count. What was given back last
// is lent first. A Memory's lock guards it.
type chunks struct {
	mapped [][]byte // as the system gave it
	fresh  []byte   // of the last, what was never lent
	idle   [][]byte // given back
}

// get returns an empty chunk; Full when the system gives none.
func (c *chunks) get() ([]byte, error) {
	if n := len(c.idle); n > 0 {
		p := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return p[:0], nil
	}
	if len(c.fresh) < chunkSize {
		mem, err := unix.Mmap(-1, 0, mapAtOnce, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return nil, snapferry.Errorf(snapferry.Full, "no memory of %d bytes for a copy: %w", mapAtOnce, err)
		}
		c.mapped, c.fresh = append(c.mapped, mem), mem
	}
	p := c.fresh[:0:chunkSize]
	c.fresh = c.fresh[chunkSize:]
	return p, nil
}

func (c *chunks) put(p []byte) { c.idle = append(c.idle, p) }

// trim gives all back to the system; nothing may be lent.
func (c *chunks) trim() {
	for _, mem := range c.mapped {
		_ = unix.Munmap(mem) // cannot fail for a mapping that mmap returned
	}
	*c = chunks{}
}
