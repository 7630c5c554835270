// Package extent is half-open ranges of int64 numbers and sparse sets of them:
// the data of a disk in bytes, the finished leaves of a checkpoint by number.
// It knows nothing of what the numbers count.
//
// # Binary form of a Set
//
// A version byte, 1, and then for each extent in ascending order two unsigned
// varints of encoding/binary: the gap, from the end of the extent before (from
// 0 for the first) to the start of this one, and the length. There is exactly
// one form of a set: varints are of minimal length, lengths are at least 1, so
// is each gap but the first, no end is above 1<<63 - 1, and the last extent
// ends with the input.
package extent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"
)

var (
	// ErrMalformed says that bytes are not the binary form of a Set.
	ErrMalformed = errors.New("malformed set of extents")
	// ErrVersion says that the binary form of a Set is of a newer version.
	ErrVersion = errors.New("set of extents of an unknown version")
)

const version = 1

// Extent is the Len numbers from Off on. One whose Len is not positive is
// empty.
type Extent struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// End returns the first number after the extent. It is at most 1<<63 - 1, also
// where Off+Len would be more, and Off when the extent is empty.
func (e Extent) End() int64 {
	if e.Len <= 0 {
		return e.Off
	}
	if e.Off > math.MaxInt64-e.Len {
		return math.MaxInt64
	}
	return e.Off + e.Len
}

// A Set is a set of numbers from 0 to 1<<63 - 2, kept as extents that are
// ascending, disjoint and as long as they can be. The zero value is the empty
// set. It is not safe for concurrent use.
type Set struct {
	runs []run
}

type run struct{ from, to int64 } // from < to

// Add puts the numbers of e into the set. Negative numbers are left out.
func (s *Set) Add(e Extent) {
	r := run{max(e.Off, 0), e.End()}
	if r.from >= r.to {
		return
	}
	// The runs i to j-1 overlap or touch r.
	i := s.search(r.from)
	j := i
	for j < len(s.runs) && s.runs[j].from <= r.to {
		j++
	}
	if i < j {
		r.from = min(r.from, s.runs[i].from)
		r.to = max(r.to, s.runs[j-1].to)
	}
	if j == i+1 {
		s.runs[i] = r
		return
	}
	s.runs = slices.Replace(s.runs, i, j, r)
}

// Remove takes the numbers of e out of the set.
func (s *Set) Remove(e Extent) {
	from, to := e.Off, e.End()
	if from >= to {
		return
	}
	i := s.search(from)
	j := i
	var rest [2]run
	keep := rest[:0]
	for ; j < len(s.runs) && s.runs[j].from < to; j++ {
		if r := s.runs[j]; r.from < from {
			keep = append(keep, run{r.from, from})
		}
		if r := s.runs[j]; r.to > to {
			keep = append(keep, run{to, r.to})
		}
	}
	s.runs = slices.Replace(s.runs, i, j, keep...)
}

// search returns the index of the first run that ends at or after off. The
// end of the set is looked at first: sets are mostly filled in order.
func (s *Set) search(off int64) int {
	n := len(s.runs)
	if n == 0 || s.runs[n-1].to < off {
		return n
	}
	if n == 1 || s.runs[n-2].to < off {
		return n - 1
	}
	return sort.Search(n, func(i int) bool { return s.runs[i].to >= off })
}

// Contains reports whether off is in the set.
func (s *Set) Contains(off int64) bool {
	if off == math.MaxInt64 {
		return false
	}
	i := s.search(off + 1)
	return i < len(s.runs) && s.runs[i].from <= off
}

// Run returns for how many numbers from off on, at most n, it is the same whether
// they are in the set, and whether they are. n is at least 1.
func (s *Set) Run(off, n int64) (length int64, in bool) {
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].to > off })
	switch {
	case i == len(s.runs):
		return n, false
	case s.runs[i].from <= off:
		return min(n, s.runs[i].to-off), true
	}
	return min(n, s.runs[i].from-off), false
}

// All goes through the extents in ascending order. The set must not change
// meanwhile.
func (s *Set) All() iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		for _, r := range s.runs {
			if !yield(Extent{r.from, r.to - r.from}) {
				return
			}
		}
	}
}

// Count returns the number of extents.
func (s *Set) Count() int { return len(s.runs) }

// Total returns the count of numbers in the set, the sum of all lengths.
func (s *Set) Total() int64 {
	var n int64
	for _, r := range s.runs {
		n += r.to - r.from
	}
	return n
}

// AppendBinary appends the binary form of the set to dst. The error is always
// nil: it is there for encoding.BinaryAppender.
func (s *Set) AppendBinary(dst []byte) ([]byte, error) {
	dst = append(dst, version)
	var at int64
	for _, r := range s.runs {
		dst = binary.AppendUvarint(dst, uint64(r.from-at))
		dst = binary.AppendUvarint(dst, uint64(r.to-r.from))
		at = r.to
	}
	return dst, nil
}

// UnmarshalBinary makes the set the one whose binary form is p. On an error,
// which wraps ErrMalformed or ErrVersion, the set is as it was. It allocates at
// most 8 bytes for each byte of p.
func (s *Set) UnmarshalBinary(p []byte) error {
	switch {
	case len(p) == 0 || p[0] == 0:
		return fmt.Errorf("%w: no version", ErrMalformed)
	case p[0] > version:
		return fmt.Errorf("%w: %d", ErrVersion, p[0])
	}
	p = p[1:]
	runs := make([]run, 0, pairs(p))
	var at int64
	for len(p) > 0 {
		gap, n := uvarint(p)
		if n == 0 || gap > uint64(math.MaxInt64-at) || gap == 0 && len(runs) > 0 {
			return fmt.Errorf("%w: gap before extent %d", ErrMalformed, len(runs))
		}
		p = p[n:]
		from := at + int64(gap)
		length, n := uvarint(p)
		if n == 0 || length == 0 || length > uint64(math.MaxInt64-from) {
			return fmt.Errorf("%w: length of extent %d", ErrMalformed, len(runs))
		}
		p = p[n:]
		at = from + int64(length)
		runs = append(runs, run{from, at})
	}
	s.runs = runs
	return nil
}

// pairs counts the pairs of varints that p can hold.
func pairs(p []byte) int {
	n := 0
	for _, b := range p {
		if b < 0x80 {
			n++
		}
	}
	return n / 2
}

// uvarint is binary.Uvarint that refuses, with n = 0, what AppendUvarint would
// not have written.
func uvarint(p []byte) (x uint64, n int) {
	x, n = binary.Uvarint(p)
	if n <= 0 || n > 1 && p[n-1] == 0 {
		return 0, 0
	}
	return x, n
}
