// Package kms opens the data keys of chains. A Driver is one place where master
// keys are: the region's own keyring (filekms), or a key management service. The
// Keyring is what the rest of the program uses: it makes data keys and proves
// them before they are used, unwraps them, checks that what a driver answers is
// the key that was asked for, and keeps them for a while, in memory that is not
// swapped and that it clears.
package kms

import (
	"context"

	"github.com/snapferry/snapferry/seal"
)

// Driver is one place of master keys. A key is named as the place names it.
//
// Every call carries the context that the data key belongs to; a driver binds it
// as its service can (encryption context, associated data), and must not give out
// a key in another one if the service can tell. The Keyring proves the context in
// any case.
//
// Errors: KeyUnusable when the master key is disabled, waits for its deletion, is
// gone or was never there; Denied when the service refuses the caller; Corrupt
// when wrapped is not what the key made in that context; Unavailable when the
// service cannot be reached, is throttling, or fails. A driver retries what can
// be retried within the deadline of ctx, and returns soon after ctx ends. All
// methods may be called at once.
type Driver interface {
	// NewDataKey makes a data key of seal.KeySize random bytes, appends it to dst,
	// which has the room, and wraps it under the newest generation of the master
	// key. Who calls clears the plain key.
	NewDataKey(ctx context.Context, key string, dst []byte, c seal.Context) (plain, wrapped []byte, err error)
	// Unwrap appends to dst, which has the room, the data key that was wrapped.
	Unwrap(ctx context.Context, key string, dst, wrapped []byte, c seal.Context) ([]byte, error)
	// Rewrap wraps a data key again under the newest generation of its master key,
	// inside the service if that can.
	Rewrap(ctx context.Context, key string, wrapped []byte, c seal.Context) ([]byte, error)
	// Describe tells about a master key. NotFound when there is none.
	Describe(ctx context.Context, key string) (Description, error)
	// Health returns nil when the service answers and would serve this caller.
	Health(ctx context.Context) error
}

// Rotator is a driver that can make a new generation of a master key.
type Rotator interface {
	Rotate(ctx context.Context, key string) error
}

// Description is what a service says of a master key.
type Description struct {
	Name   string // its full name there
	Usable bool
	State  string // in the service's own word, when it is not usable
}
