package meta

import (
	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Sealer keeps the content of encrypted chains, as far as it is in the metadata,
// from who reads only that: digests, and the nodes at the top of maps. A value is
// bound to its place. *seal.MetadataKey is one.
type Sealer interface {
	Seal(place string, plain []byte) []byte
	Open(place string, sealed []byte) ([]byte, error)
	Lookup(account snapferry.AccountID, d digest.Digest) []byte
}

// SealWith gives the metadata the key of what is sealed in it. It is called before
// anybody uses the DB; without it rows of encrypted chains are Unavailable.
func (db *DB) SealWith(s Sealer) { db.sealer = s }

// rowSealer seals what a row has of the content of a chain, if that is encrypted.
type rowSealer struct {
	key    Sealer
	sealed bool
}

func (tx *Tx) sealer(key snapferry.KeyID) rowSealer { return rowSealer{tx.db.sealer, key != ""} }

func placeOf(what string, id snapferry.VersionID) string { return what + " of version " + id.String() }

func (s rowSealer) check() error {
	if s.sealed && s.key == nil {
		return snapferry.Errorf(snapferry.Unavailable, "the metadata has rows of encrypted content, and their key is not here")
	}
	return nil
}

// seal is what is stored of a value; NULL when it is empty.
func (s rowSealer) seal(place string, plain []byte) (any, error) {
	if err := s.check(); err != nil || len(plain) == 0 {
		return nil, err
	}
	if s.sealed {
		return s.key.Seal(place, plain), nil
	}
	return plain, nil
}

// open is the inverse of seal.
func (s rowSealer) open(place string, stored []byte) ([]byte, error) {
	if !s.sealed || len(stored) == 0 {
		return stored, nil
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s.key.Open(place, stored)
}

func (s rowSealer) openDigest(d *digest.Digest, place string, stored []byte) error {
	p, err := s.open(place, stored)
	if err != nil {
		return err
	}
	clear(d[:])
	if len(p) != 0 && copy(d[:], p) != len(p) || len(p) != 0 && len(p) != len(d) {
		return &badColumn{errDigest}
	}
	return nil
}
