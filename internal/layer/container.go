package layer

import (
	"encoding/binary"
	"math/bits"
	"sort"
	"sync/atomic"
)

const (
	pagesPerMap = 1 << 14          // pages whose states are one page of a map file
	words       = pagesPerMap / 32 // of a bitmap
	maxArray    = 512              // entries of an array; a bitmap has the size of 2,048
)

// container is the states of the 16,384 pages of one map page, in one of three
// forms; nil is a container of which every page is Below. The form, the array
// and the uniform state never change: who changes a container puts another one
// in its place, but for the words of a bitmap.
type container struct {
	uniform State                 // of all pages, if it is not Below
	frozen  bool                  // a Sync reads the bitmap: it must not change; under the container's lock
	set     [numStates]uint16     // pages of a state in array and bitmap; under the container's lock
	array   []uint16              // page<<2 | state, ascending
	bitmap  *[words]atomic.Uint64 // two bits a page
}

var (
	allData = &container{uniform: Data}
	allZero = &container{uniform: Zero}
)

func uniform(s State) *container {
	switch s {
	case Data:
		return allData
	case Zero:
		return allZero
	}
	return nil
}

// spread is a word of which all pages have a state.
func spread(s State) uint64 { return 0x5555555555555555 * uint64(s) }

// look returns the state of a page.
func (c *container) look(page int) State {
	switch {
	case c == nil:
		return Below
	case c.uniform != Below:
		return c.uniform
	case c.bitmap != nil:
		return State(c.bitmap[page/32].Load() >> (page % 32 * 2) & 3)
	}
	if i := c.find(page); i < len(c.array) && int(c.array[i]>>2) == page {
		return State(c.array[i] & 3)
	}
	return Below
}

// find returns the index of the first entry of the array from page on.
func (c *container) find(page int) int {
	i, j := 0, len(c.array)
	for i < j {
		h := int(uint(i+j) >> 1)
		if int(c.array[h]>>2) < page {
			i = h + 1
		} else {
			j = h
		}
	}
	return i
}

// run returns the state of a page, and how many pages from it on have it.
func (c *container) run(page int) (State, int) {
	switch {
	case c == nil:
		return Below, pagesPerMap - page
	case c.uniform != Below:
		return c.uniform, pagesPerMap - page
	case c.bitmap != nil:
		s := c.look(page)
		return s, c.runOf(page, s)
	}
	i := c.find(page)
	if i == len(c.array) {
		return Below, pagesPerMap - page
	}
	if first := int(c.array[i] >> 2); first > page {
		return Below, first - page
	}
	entry, n := c.array[i], 1
	for i+n < len(c.array) && c.array[i+n] == entry+uint16(n)<<2 {
		n++
	}
	return State(entry & 3), n
}

// runOf returns how many pages of a bitmap from page on have state s.
func (c *container) runOf(page int, s State) int {
	want, at := spread(s), page
	for at < pagesPerMap {
		other := (c.bitmap[at/32].Load() ^ want) >> (at % 32 * 2)
		if other != 0 {
			return max(at+bits.TrailingZeros64(other)/2-page, 1) // 1: it was written meanwhile
		}
		at = (at/32 + 1) * 32
	}
	return pagesPerMap - page
}

// with returns a container that says state s of n pages from page on, and else
// what c says, and by how many pages each state has more now. It may be c.
// Callers hold the container's lock.
func (c *container) with(page, n int, s State) (*container, [numStates]int) {
	if n == pagesPerMap {
		change := c.counts()
		for i := range change {
			change[i] = -change[i]
		}
		change[s] += pagesPerMap
		return uniform(s), change
	}
	if c == nil || c.uniform == Below && c.bitmap == nil {
		return c.withArray(page, n, s)
	}
	return c.withBitmap(page, n, s)
}

// counts returns how many pages have each state.
func (c *container) counts() (n [numStates]int) {
	switch {
	case c == nil:
	case c.uniform != Below:
		n[c.uniform] = pagesPerMap
	default:
		n[Data], n[Zero] = int(c.set[Data]), int(c.set[Zero])
	}
	n[Below] = pagesPerMap - n[Data] - n[Zero]
	return n
}

func (c *container) withArray(page, n int, s State) (*container, [numStates]int) {
	var old []uint16
	if c != nil {
		old = c.array
	}
	var change [numStates]int
	i := sort.Search(len(old), func(i int) bool { return int(old[i]>>2) >= page })
	j := i
	for ; j < len(old) && int(old[j]>>2) < page+n; j++ {
		change[old[j]&3]--
	}
	if s == Below {
		change[Below] += j - i
		n = 0
	} else {
		change[s] += n
		change[Below] -= n - (j - i)
	}
	size := len(old) - (j - i) + n
	if size > maxArray {
		return c.toBitmap().withBitmap(page, n, s)
	}
	if size == 0 {
		return nil, change
	}
	array := make([]uint16, size)
	copy(array, old[:i])
	for k := range n {
		array[i+k] = uint16(page+k)<<2 | uint16(s)
	}
	copy(array[i+n:], old[j:])
	next := &container{array: array}
	if c != nil {
		next.set = c.set
	}
	next.add(change)
	return next, change
}

func (c *container) add(change [numStates]int) {
	c.set[Data] = uint16(int(c.set[Data]) + change[Data])
	c.set[Zero] = uint16(int(c.set[Zero]) + change[Zero])
}

// toBitmap returns a copy of c in the form of a bitmap.
func (c *container) toBitmap() *container {
	next := &container{bitmap: new([words]atomic.Uint64)}
	n := c.counts()
	next.set[Data], next.set[Zero] = uint16(n[Data]), uint16(n[Zero])
	for i := range next.bitmap {
		switch {
		case c == nil:
		case c.uniform != Below:
			next.bitmap[i].Store(spread(c.uniform))
		case c.bitmap != nil:
			next.bitmap[i].Store(c.bitmap[i].Load())
		}
	}
	if c != nil {
		for _, e := range c.array {
			w := &next.bitmap[e>>2/32]
			w.Store(w.Load() | uint64(e&3)<<(e>>2%32*2))
		}
	}
	return next
}

func (c *container) withBitmap(page, n int, s State) (*container, [numStates]int) {
	if c.bitmap == nil || c.frozen {
		c = c.toBitmap()
	}
	var change [numStates]int
	for at, end := page, page+n; at < end; {
		k := min(32-at%32, end-at)
		mask := ^uint64(0) >> (64 - 2*k) << (at % 32 * 2)
		was := c.bitmap[at/32].Load()
		data, zero := bits.OnesCount64(was&mask&spread(Data)), bits.OnesCount64(was&mask&spread(Zero))
		change[Below] -= k - data - zero
		change[Data] -= data
		change[Zero] -= zero
		change[s] += k
		c.bitmap[at/32].Store(was&^mask | spread(s)&mask)
		at += k
	}
	c.add(change)
	switch n := c.counts(); pagesPerMap {
	case n[Data]:
		return allData, change
	case n[Zero]:
		return allZero, change
	case n[Below]:
		return nil, change
	}
	return c, change
}

// encode writes the map page of c to p.
func (c *container) encode(p []byte) {
	switch {
	case c == nil:
		clear(p[:mapPage])
	case c.uniform != Below:
		for i := range words {
			binary.LittleEndian.PutUint64(p[8*i:], spread(c.uniform))
		}
	case c.bitmap != nil:
		for i := range words {
			binary.LittleEndian.PutUint64(p[8*i:], c.bitmap[i].Load())
		}
	default:
		clear(p[:mapPage])
		for _, e := range c.array {
			p[e>>2/4] |= byte(e&3) << (e >> 2 % 4 * 2)
		}
	}
}

// decode returns the container whose map page is p, in its smallest form; ok is
// false when there is a page of no known state in it.
func decode(p []byte) (c *container, ok bool) {
	var n [numStates]int
	for i := range words {
		w := binary.LittleEndian.Uint64(p[8*i:])
		data, zero := w&spread(Data), w&spread(Zero)
		if data&(zero>>1) != 0 {
			return nil, false
		}
		n[Data] += bits.OnesCount64(data)
		n[Zero] += bits.OnesCount64(zero)
	}
	switch {
	case n[Data]+n[Zero] == 0:
		return nil, true
	case n[Data] == pagesPerMap:
		return allData, true
	case n[Zero] == pagesPerMap:
		return allZero, true
	}
	c = &container{set: [numStates]uint16{Data: uint16(n[Data]), Zero: uint16(n[Zero])}}
	if n[Data]+n[Zero] > maxArray {
		c.bitmap = new([words]atomic.Uint64)
		for i := range c.bitmap {
			c.bitmap[i].Store(binary.LittleEndian.Uint64(p[8*i:]))
		}
		return c, true
	}
	array := make([]uint16, 0, n[Data]+n[Zero])
	for i := range words {
		for w := binary.LittleEndian.Uint64(p[8*i:]); w != 0; {
			k := bits.TrailingZeros64(w) / 2
			array = append(array, uint16(32*i+k)<<2|uint16(w>>(2*k)&3))
			w &^= 3 << (2 * k)
		}
	}
	c.array = array
	return c, true
}

// last returns the highest page of state s, or -1.
func (c *container) last(s State) int {
	if c.counts()[s] == 0 {
		return -1
	}
	page := pagesPerMap - 1
	for c.look(page) != s {
		page--
	}
	return page
}

// memory returns the bytes that c takes.
func (c *container) memory() int64 {
	switch {
	case c == nil, c.uniform != Below:
		return 0
	case c.bitmap != nil:
		return containerSize + 8*words
	}
	return containerSize + 2*int64(cap(c.array))
}
