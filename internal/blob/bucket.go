package blob

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"

	"github.com/snapferry/snapferry"
)

// Bucket is the store of a region's objects: a Driver with names, offsets and
// sizes checked, and errors that say what was being done to which object. All
// methods may be called at once; what the Driver promises of consistency and
// durability holds for the Bucket.
type Bucket struct {
	d Driver

	mu     sync.Mutex
	users  int // operations that run
	closed bool
	idle   chan struct{} // made by Close, closed when the last user left
}

// New returns a bucket over a driver, which then belongs to the bucket.
func New(d Driver) *Bucket { return &Bucket{d: d} }

// Put makes an object of at most MaxBody bytes and returns when it is durable.
// The error is Exists when the name is taken, whatever is stored there; Full
// when there is no space; any other leaves open whether the object was made,
// but it is never there in part. Large bodies from an AlignedBuffer are
// cheapest.
func (b *Bucket) Put(ctx context.Context, name string, body []byte) error {
	if err := b.enter(ctx, name); err != nil {
		return wrap("put", name, err)
	}
	defer b.leave()
	if len(body) > MaxBody {
		return snapferry.Errorf(snapferry.Invalid, "put %s: %d bytes are more than the limit of %d", name, len(body), MaxBody)
	}
	return wrap("put", name, b.d.Put(ctx, name, body))
}

// ReadAt fills p with the bytes of an object from off on. The error is
// NotFound when there is no such object, and Corrupt when it ends too early.
func (b *Bucket) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := b.enter(ctx, name); err != nil {
		return wrap("read", name, err)
	}
	defer b.leave()
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return snapferry.Errorf(snapferry.Invalid, "read %s: no object has an offset %d", name, off)
	}
	return b.readFull(ctx, name, p, off)
}

func (b *Bucket) readFull(ctx context.Context, name string, p []byte, off int64) error {
	n, err := b.d.ReadAt(ctx, name, p, off)
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return wrap("read", name, err)
	}
	end := off + int64(len(p))
	size, err := b.d.Size(ctx, name)
	if err != nil {
		return wrap("read", name, err)
	}
	if size >= end { // the driver broke its contract
		return snapferry.Errorf(snapferry.Unavailable, "read %s: %d of %d bytes came", name, n, len(p))
	}
	return snapferry.Errorf(snapferry.Corrupt, "read %s: object %s is %d bytes shorter than %d", name, name, end-size, end)
}

// Get returns a whole object of at most limit bytes; a longer one is Corrupt.
// The error is NotFound when there is no such object.
func (b *Bucket) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := b.enter(ctx, name); err != nil {
		return nil, wrap("get", name, err)
	}
	defer b.leave()
	size, err := b.d.Size(ctx, name)
	if err != nil {
		return nil, wrap("get", name, err)
	}
	if size > limit {
		return nil, snapferry.Errorf(snapferry.Corrupt, "get %s: object %s has %d bytes, more than the limit of %d", name, name, size, limit)
	}
	p := make([]byte, size)
	if size == 0 {
		return p, nil
	}
	if err := b.readFull(ctx, name, p, 0); err != nil {
		return nil, err
	}
	return p, nil
}

// Size returns the length of an object in bytes, or NotFound.
func (b *Bucket) Size(ctx context.Context, name string) (int64, error) {
	if err := b.enter(ctx, name); err != nil {
		return 0, wrap("size of", name, err)
	}
	defer b.leave()
	n, err := b.d.Size(ctx, name)
	return n, wrap("size of", name, err)
}

// List calls fn for each object whose name begins with prefix and is greater
// than after, in ascending order of the names' bytes. Names that come or go
// meanwhile may be given or not. fn may use the bucket; its error ends the
// listing and is returned as it is.
func (b *Bucket) List(ctx context.Context, prefix, after string, fn func(Info) error) error {
	if err := checkPrefix(prefix); err != nil {
		return wrap("list", "objects", err)
	}
	if err := b.begin(ctx); err != nil {
		return wrap("list", prefix, err)
	}
	defer b.leave()
	var fnErr error
	err := b.d.List(ctx, prefix, after, func(i Info) error {
		if fnErr = ctx.Err(); fnErr != nil {
			fnErr = wrap("list", prefix, fnErr)
		} else {
			fnErr = fn(i)
		}
		return fnErr
	})
	if fnErr != nil {
		return fnErr
	}
	return wrap("list", prefix, err)
}

// Delete removes an object, and returns when that is durable. To remove what
// is not there is no error.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	if err := b.enter(ctx, name); err != nil {
		return wrap("delete", name, err)
	}
	defer b.leave()
	return wrap("delete", name, b.d.Delete(ctx, name))
}

// Close lets the operations that run come to their end, refuses others with
// Conflict, and closes the driver if it is an io.Closer. To close again does
// nothing. It must not be called from within List.
func (b *Bucket) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.idle = make(chan struct{})
	if b.users == 0 {
		close(b.idle)
	}
	b.mu.Unlock()
	<-b.idle
	if c, ok := b.d.(io.Closer); ok {
		return wrap("close", "bucket", c.Close())
	}
	return nil
}

func (b *Bucket) enter(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return b.begin(ctx)
}

func (b *Bucket) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return snapferry.Errorf(snapferry.Conflict, "the bucket is closed")
	}
	b.users++
	return nil
}

func (b *Bucket) leave() {
	b.mu.Lock()
	b.users--
	if b.closed && b.users == 0 {
		close(b.idle)
	}
	b.mu.Unlock()
}
