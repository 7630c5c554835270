// Package blob is a region's bucket: whole objects with names, made once,
// never changed, read in ranges, listed in order, deleted. Bucket is what the
// rest of the program uses; a Driver is what a place to store things has to
// offer. dirblob keeps objects in a directory, s3blob in an S3 store, memblob in
// memory; blobtest has the suite that every driver passes, and drivers that
// fail on purpose. Check proves what a place must give, Copy moves a bucket.
package blob

import (
	"context"
	"errors"
	"strings"

	"github.com/snapferry/snapferry"
)

const (
	// MaxBody is the largest object in bytes (64 MiB).
	MaxBody = 64 << 20
	// MaxName is the longest name of an object in bytes.
	MaxName = 200
)

// Driver is a place that stores objects. Bucket checks names, offsets and
// sizes before it calls a driver.
//
// Consistency: what Put made is seen by every ReadAt, Size and List that
// begins after Put returned, and what Delete removed by none. An object is
// seen whole or not at all. List gives every name that is there from its
// beginning to its end; names that come or go meanwhile may be given or not.
//
// Durability: what Put and Delete did when they return nil survives a loss of
// power, and so does the object over which Put reports Exists. When they
// return another error, they may have done it or not, but never by half.
//
// Retries: a driver of local files does not try again, one of a store across a
// network does, within a budget; who calls may, when the error is Unavailable.
// A Put called again may find its own object and report Exists; the further
// attempts of one call never do.
//
// Concurrency: all methods may be called at once from any goroutine. A method
// returns soon after ctx is done, and may have done its work by then.
type Driver interface {
	// Put makes an object, or fails with Exists when the name is taken,
	// whatever is stored there, and with Full when there is no space. Of
	// several that make one name at once exactly one wins. The body has at most
	// MaxBody bytes; Put does not change it, nor keep it after returning.
	Put(ctx context.Context, name string, body []byte) error
	// ReadAt reads from byte off of an object on. It fills p unless the object
	// ends first; then it returns the number of bytes read, and nil or io.EOF.
	// The error is NotFound when there is no such object.
	ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error)
	// Size returns the length of an object in bytes, or NotFound.
	Size(ctx context.Context, name string) (int64, error)
	// List calls fn for each object whose name begins with prefix and is
	// greater than after, in ascending order of the names' bytes. It holds no
	// lock meanwhile: fn may use the driver. An error of fn ends the listing
	// and is returned.
	List(ctx context.Context, prefix, after string, fn func(Info) error) error
	// Delete removes an object. To remove what is not there is no error.
	Delete(ctx context.Context, name string) error
}

// Info says what List knows of an object.
type Info struct {
	Name string
	Size int64 // bytes
}

// CheckName reports whether name can be the name of an object: parts of
// lower-case letters, digits, dots, underscores and hyphens that do not begin
// with a dot, joined by slashes; at most MaxName bytes. The error is of Kind
// Invalid.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return snapferry.Errorf(snapferry.Invalid, "object name of %d bytes: want 1 to %d", len(name), MaxName)
	}
	start := true
	for i := range len(name) {
		c := name[i]
		if c == '/' && start || c == '.' && start || !nameByte(c) {
			return badName(name)
		}
		start = c == '/'
	}
	if start {
		return badName(name)
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-' || c == '/'
}

func badName(name string) error {
	return snapferry.Errorf(snapferry.Invalid, "%q is not an object name", name).
		WithHint("use a-z 0-9 . _ - in parts joined by /; no part is empty or begins with a dot")
}

func checkPrefix(prefix string) error {
	if len(prefix) > MaxName || strings.ContainsFunc(prefix, func(r rune) bool { return r >= 0x80 || !nameByte(byte(r)) }) {
		return snapferry.Errorf(snapferry.Invalid, "%.220q is not the beginning of an object name", prefix)
	}
	return nil
}

// wrap says what was being done when err happened. The Kind stays; errors of
// a context get theirs.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return snapferry.Errorf(kindOf(err), "%s %s: %w", op, name, err)
}

func kindOf(err error) snapferry.Kind {
	var e *snapferry.Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled):
		return snapferry.Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return snapferry.Unavailable
	}
	return snapferry.Internal
}
