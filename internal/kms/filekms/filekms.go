// Package filekms is the driver of master keys that a region has itself: their
// secrets are in the region's keyring (record.Keyring). A data key is wrapped
// with AES-256-GCM under a generation of the master key, with its context as
// additional data; docs/format/seal.md has the definition.
package filekms

import (
	"context"
	"crypto/rand"
	"encoding/binary"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// Driver wraps data keys under master keys that Lookup finds.
type Driver struct {
	// Lookup returns a master key of the keyring; NotFound when there is none.
	Lookup func(snapferry.KeyID) (record.MasterKey, error)
}

// header is the number of the generation that is in front of what it wrapped.
const header = 4

func (d *Driver) find(key string) (record.MasterKey, error) {
	m, err := d.Lookup(snapferry.KeyID(key))
	if snapferry.IsKind(err, snapferry.NotFound) {
		return m, snapferry.Errorf(snapferry.KeyUnusable, "there is no key %s: %w", key, err)
	}
	if err == nil && m.State == snapferry.KeyDeleted {
		err = snapferry.Errorf(snapferry.KeyUnusable, "key %s was deleted", key)
	}
	return m, err
}

// generation returns a generation of a master key, ready for use; number 0 is the
// newest.
func (d *Driver) generation(key string, number uint32) (*seal.MasterKey, uint32, error) {
	m, err := d.find(key)
	if err != nil {
		return nil, 0, err
	}
	if number == 0 {
		number = m.Generation
	}
	for _, g := range m.Generations {
		if g.Number == number {
			k, err := seal.NewMasterKey(g.Secret)
			return k, number, err
		}
	}
	return nil, 0, snapferry.Errorf(snapferry.Corrupt, "key %s has no generation %d", key, number)
}

// NewDataKey implements kms.Driver.
func (d *Driver) NewDataKey(_ context.Context, key string, dst []byte, c seal.Context) (plain, wrapped []byte, err error) {
	n := len(dst)
	plain = append(dst, make([]byte, seal.KeySize)...)
	rand.Read(plain[n:])
	wrapped, err = d.wrap(key, plain[n:], c)
	return plain, wrapped, err
}

func (d *Driver) wrap(key string, plain []byte, c seal.Context) ([]byte, error) {
	k, number, err := d.generation(key, 0)
	if err != nil {
		return nil, err
	}
	return k.Wrap(binary.BigEndian.AppendUint32(nil, number), plain, number, c)
}

// Unwrap implements kms.Driver.
func (d *Driver) Unwrap(_ context.Context, key string, dst, wrapped []byte, c seal.Context) ([]byte, error) {
	if len(wrapped) != header+seal.KeySize+seal.Overhead || binary.BigEndian.Uint32(wrapped) == 0 {
		return nil, snapferry.Errorf(snapferry.Corrupt, "a wrapped data key of %d bytes", len(wrapped))
	}
	k, number, err := d.generation(key, binary.BigEndian.Uint32(wrapped))
	if err != nil {
		return nil, err
	}
	return k.Unwrap(dst, wrapped[header:], number, c)
}

// Rewrap implements kms.Driver.
func (d *Driver) Rewrap(ctx context.Context, key string, wrapped []byte, c seal.Context) ([]byte, error) {
	var room [seal.KeySize]byte
	plain, err := d.Unwrap(ctx, key, room[:0], wrapped, c)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return d.wrap(key, plain, c)
}

// Describe implements kms.Driver.
func (d *Driver) Describe(_ context.Context, key string) (kms.Description, error) {
	m, err := d.Lookup(snapferry.KeyID(key))
	return kms.Description{Name: key, Usable: err == nil && m.State != snapferry.KeyDeleted, State: string(m.State)}, err
}

// Health implements kms.Driver.
func (d *Driver) Health(context.Context) error { return nil }
