// Package digest is the content name of things: of a block, of a node of the
// block map, of a whole snapshot. A digest names plain content and nothing
// else, so the same bytes have the same digest in every region, under every
// key and codec. docs/format/digest.md has the definition.
package digest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

const (
	// Size is the length of a digest in bytes.
	Size = 32
	// BlockSize is the length of the plain block a digest names, in bytes.
	BlockSize = 64 << 10
)

// Algorithm is the hash function of a chain.
type Algorithm uint8

// SHA256 is FIPS 180-4 SHA-256, the only algorithm so far. The number is part
// of the formats.
const SHA256 Algorithm = 1

// String returns the name of the algorithm, as it stands before a digest.
func (a Algorithm) String() string {
	if a == SHA256 {
		return strings.TrimSuffix(prefix, ":")
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// Digest is a content name. The zero value names nothing.
type Digest [Size]byte

const prefix = "sha256:"

var (
	nodePrefix     = []byte("snapferry node 1\x00")
	snapshotPrefix = []byte("snapferry snapshot 1\x00")
	zeroBlock      [BlockSize]byte
)

// ErrMismatch says that bytes are not those a digest names.
var ErrMismatch = errors.New("content does not match its digest")

// Block returns the digest of a block. A block shorter than BlockSize, the
// last one of a volume, is padded with zeros; a longer one is a fault of the
// caller and panics.
func Block(p []byte) Digest {
	if len(p) == BlockSize {
		return sha256.Sum256(p)
	}
	h := sha256.New()
	h.Write(p)
	h.Write(zeroBlock[len(p):])
	return sum(h)
}

// Node returns the digest of a map node of a level, given its presence bitmap
// and the digests of the children present, in index order.
func Node(level uint8, presence *[32]byte, children []Digest) Digest {
	h := sha256.New()
	h.Write(nodePrefix)
	h.Write([]byte{level})
	h.Write(presence[:])
	for i := range children {
		h.Write(children[i][:])
	}
	return sum(h)
}

// Snapshot returns the digest of a whole snapshot of size bytes. A zero root
// stands for a map without any block.
func Snapshot(size int64, root Digest) Digest {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(size))
	h := sha256.New()
	h.Write(snapshotPrefix)
	h.Write(b[:])
	h.Write(root[:])
	return sum(h)
}

func sum(h hash.Hash) (d Digest) {
	h.Sum(d[:0])
	return d
}

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns the digest as "sha256:" and 64 hexadecimal digits.
func (d Digest) String() string { return prefix + hex.EncodeToString(d[:]) }

// Parse reads what String printed.
func Parse(s string) (d Digest, err error) {
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || len(digits) != 2*Size || digits != strings.ToLower(digits) {
		return d, fmt.Errorf("digest %.80q: want %q and %d lower-case hexadecimal digits", s, prefix, 2*Size)
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("digest %.80q: %w", s, err)
	}
	return d, nil
}

// MarshalText returns String; the zero digest becomes empty text.
func (d Digest) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return nil, nil
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(p []byte) (err error) {
	if len(p) == 0 {
		*d = Digest{}
		return nil
	}
	*d, err = Parse(string(p))
	return err
}

// A Reader passes on the bytes of another reader and refuses to end unless
// they were exactly those the digest names.
type Reader struct {
	r    io.Reader
	h    hash.Hash
	left int64
	want Digest
}

// NewReader returns a Reader of size bytes whose SHA-256 is want. A stream
// that is shorter ends in io.ErrUnexpectedEOF, one that is longer or differs
// in ErrMismatch; never in io.EOF.
func NewReader(r io.Reader, size int64, want Digest) *Reader {
	return &Reader{r: r, h: sha256.New(), left: size, want: want}
}

func (v *Reader) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, v.end()
	}
	if int64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	v.left -= int64(n)
	if err == io.EOF {
		err = nil
		if v.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

func (v *Reader) end() error {
	var one [1]byte
	if n, _ := io.ReadFull(v.r, one[:]); n > 0 || sum(v.h) != v.want {
		return ErrMismatch
	}
	return io.EOF
}
