package blobtest

import (
	"context"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

// Quota is a driver over another that has room for so many bytes of objects, as
// a disk or a bucket with a limit has. A Put that does not fit is Full and
// leaves nothing. What lies in the other driver before does not count.
type Quota struct {
	blob.Driver

	mu    sync.Mutex
	sizes map[string]int64
	used  int64
	room  int64
	full  int // puts refused
}

// NewQuota returns a driver with room for a number of bytes.
func NewQuota(d blob.Driver, room int64) *Quota {
	return &Quota{Driver: d, sizes: map[string]int64{}, room: room}
}

// Used returns how many bytes the objects have.
func (q *Quota) Used() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used
}

// Refused returns how many puts did not fit so far.
func (q *Quota) Refused() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.full
}

// Spare sets the room to what is used now and so much more.
func (q *Quota) Spare(n int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.room = q.used + n
}

// Put implements blob.Driver.
func (q *Quota) Put(ctx context.Context, name string, body []byte) error {
	n := int64(len(body))
	if !q.take(n) {
		return snapferry.Errorf(snapferry.Full, "no room for %d bytes", n)
	}
	err := q.Driver.Put(ctx, name, body)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		q.used -= n
		return err
	}
	q.sizes[name] = n
	return nil
}

func (q *Quota) take(n int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used+n > q.room {
		q.full++
		return false
	}
	q.used += n
	return true
}

// Delete implements blob.Driver.
func (q *Quota) Delete(ctx context.Context, name string) error {
	if err := q.Driver.Delete(ctx, name); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used -= q.sizes[name]
	delete(q.sizes, name)
	return nil
}

// Close closes the driver below, if that can be closed.
func (q *Quota) Close() error { return closeDriver(q.Driver) }
