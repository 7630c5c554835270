package blobtest

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry/internal/blob"
)

// Op names a method of a driver.
type Op uint8

// The methods of a driver.
const (
	Put Op = iota
	ReadAt
	Size
	List
	Delete
	numOps
)

func (op Op) String() string {
	return [...]string{"put", "read", "size", "list", "delete", "?"}[min(op, numOps)]
}

// Count says how much was asked of a driver.
type Count struct {
	Requests int64
	Bytes    int64 // of bodies put and of ranges read; of lists and sizes, none
}

// Slow is a driver over another that waits before each request, as a store far
// away does, and counts. It is for benchmarks and for tests of how many
// requests something costs.
type Slow struct {
	d        blob.Driver
	delay    atomic.Int64
	requests [numOps]atomic.Int64
	bytes    [numOps]atomic.Int64
}

// NewSlow returns a driver that waits for delay before it passes on a request.
func NewSlow(d blob.Driver, delay time.Duration) *Slow {
	s := &Slow{d: d}
	s.Delay(delay)
	return s
}

// Delay sets how long each request waits from now on.
func (s *Slow) Delay(d time.Duration) { s.delay.Store(int64(d)) }

// Count returns what was asked by one method so far.
func (s *Slow) Count(op Op) Count {
	return Count{Requests: s.requests[op].Load(), Bytes: s.bytes[op].Load()}
}

// Requests returns how often anything was asked so far.
func (s *Slow) Requests() (n int64) {
	for op := range numOps {
		n += s.requests[op].Load()
	}
	return n
}

// Reset sets all counts to zero.
func (s *Slow) Reset() {
	for op := range numOps {
		s.requests[op].Store(0)
		s.bytes[op].Store(0)
	}
}

func (s *Slow) request(ctx context.Context, op Op, bytes int) error {
	s.requests[op].Add(1)
	s.bytes[op].Add(int64(bytes))
	delay := time.Duration(s.delay.Load())
	if delay <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Put implements blob.Driver.
func (s *Slow) Put(ctx context.Context, name string, body []byte) error {
	if err := s.request(ctx, Put, len(body)); err != nil {
		return err
	}
	return s.d.Put(ctx, name, body)
}

// ReadAt implements blob.Driver.
func (s *Slow) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := s.request(ctx, ReadAt, len(p)); err != nil {
		return 0, err
	}
	return s.d.ReadAt(ctx, name, p, off)
}

// Size implements blob.Driver.
func (s *Slow) Size(ctx context.Context, name string) (int64, error) {
	if err := s.request(ctx, Size, 0); err != nil {
		return 0, err
	}
	return s.d.Size(ctx, name)
}

// List implements blob.Driver.
func (s *Slow) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	if err := s.request(ctx, List, 0); err != nil {
		return err
	}
	return s.d.List(ctx, prefix, after, fn)
}

// Delete implements blob.Driver.
func (s *Slow) Delete(ctx context.Context, name string) error {
	if err := s.request(ctx, Delete, 0); err != nil {
		return err
	}
	return s.d.Delete(ctx, name)
}

// Close closes the driver below, if that can be closed.
func (s *Slow) Close() error { return closeDriver(s.d) }
