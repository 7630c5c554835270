package seal

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/snapferry/snapferry"
)

const (
	// MaxWrapped is the largest length of a WrappedKey in bytes.
	MaxWrapped = 16 << 10

	wrappedMagic = "SFWRK"
)

// WrappedKey is the data key of a chain as it is stored: under a master key, with
// the Check that tells whether what comes out is that key.
type WrappedKey struct {
	Key        snapferry.KeyID // the master key
	Generation uint32          // of it, as the region counts
	Check      Check
	Blob       []byte // what the driver of the master key made
}

// Encode returns the stored form. The error is of Kind Invalid for values that no
// wrapped key can have.
func (w *WrappedKey) Encode() ([]byte, error) {
	if _, err := snapferry.ParseKeyID(string(w.Key)); err != nil {
		return nil, err
	}
	p := append([]byte(wrappedMagic), formatVersion, uint8(len(w.Key)))
	p = append(p, w.Key...)
	p = binary.BigEndian.AppendUint32(p, w.Generation)
	p = append(p, w.Check[:]...)
	p = append(p, w.Blob...)
	if w.Generation == 0 || len(w.Blob) == 0 || len(p) > MaxWrapped {
		return nil, snapferry.Errorf(snapferry.Invalid, "a data key wrapped with generation %d of key %s in %d bytes", w.Generation, w.Key, len(w.Blob))
	}
	return p, nil
}

// DecodeWrapped reads the stored form of a wrapped key. The error is of Kind
// Unsupported for a newer version, else Corrupt. It shares no memory with p.
func DecodeWrapped(p []byte) (WrappedKey, error) {
	const head = len(wrappedMagic) + 2
	corrupt := func(why string) (WrappedKey, error) {
		return WrappedKey{}, snapferry.Errorf(snapferry.Corrupt, "decode wrapped data key: %s", why)
	}
	switch {
	case len(p) < head || len(p) > MaxWrapped:
		return corrupt("it is too short or too long")
	case string(p[:len(wrappedMagic)]) != wrappedMagic || p[len(wrappedMagic)] == 0:
		return corrupt("no magic")
	case p[len(wrappedMagic)] > formatVersion:
		return WrappedKey{}, snapferry.Errorf(snapferry.Unsupported, "decode wrapped data key: version %d is newer than this program", p[len(wrappedMagic)])
	}
	n := int(p[head-1])
	if len(p) < head+n+4+CheckSize+1 {
		return corrupt("it is cut off")
	}
	id, rest := string(p[head:head+n]), p[head+n:]
	w := WrappedKey{Key: snapferry.KeyID(id), Generation: binary.BigEndian.Uint32(rest), Check: Check(rest[4 : 4+CheckSize])}
	if _, err := snapferry.ParseKeyID(id); err != nil || !utf8.ValidString(id) {
		return corrupt("no id of a key")
	}
	if w.Generation == 0 {
		return corrupt("the generation is zero")
	}
	w.Blob = bytes.Clone(rest[4+CheckSize:])
	return w, nil
}
