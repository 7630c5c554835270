// Package memblob keeps a bucket's objects in memory, for tests and tools. It
// passes the suite of blobtest; of durability it has none.
package memblob

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

// Driver is a blob.Driver over a map.
type Driver struct {
	mu      sync.RWMutex
	objects map[string][]byte // never changed once there
}

// New returns a driver without objects.
func New() *Driver { return &Driver{objects: map[string][]byte{}} }

// Put implements blob.Driver.
func (d *Driver) Put(ctx context.Context, name string, body []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	own := append([]byte{}, body...)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, taken := d.objects[name]; taken {
		return snapferry.Errorf(snapferry.Exists, "an object of that name is already there")
	}
	d.objects[name] = own
	return nil
}

// ReadAt implements blob.Driver.
func (d *Driver) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	body, err := d.get(ctx, name)
	if err != nil {
		return 0, err
	}
	n := 0
	if off < int64(len(body)) {
		n = copy(p, body[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Size implements blob.Driver.
func (d *Driver) Size(ctx context.Context, name string) (int64, error) {
	body, err := d.get(ctx, name)
	return int64(len(body)), err
}

func (d *Driver) get(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	body, ok := d.objects[name]
	if !ok {
		return nil, snapferry.Errorf(snapferry.NotFound, "no such object")
	}
	return body, nil
}

// List implements blob.Driver.
func (d *Driver) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	d.mu.RLock()
	names := slices.Sorted(maps.Keys(d.objects))
	d.mu.RUnlock()
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) || name <= after {
			continue
		}
		body, err := d.get(ctx, name)
		if snapferry.IsKind(err, snapferry.NotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := fn(blob.Info{Name: name, Size: int64(len(body))}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Delete implements blob.Driver.
func (d *Driver) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.objects, name)
	return nil
}
