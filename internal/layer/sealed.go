package layer

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"path"
	"slices"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/xts"
)

// Keys seals the keys of encrypted layers. place is the layer's directory: what
// was sealed for one opens for that one only, else the error is of Kind Corrupt.
// Other errors are those of whoever has the keys.
type Keys interface {
	SealLayerKey(place string, key []byte) ([]byte, error)
	OpenLayerKey(place string, sealed []byte) ([]byte, error)
}

const (
	keyFile    = "key"
	keyMagic   = "SFLKY"
	keyVersion = 1
	keyHead    = 8 // bytes before what was sealed
	maxSealed  = 4096

	sectorSize = 512
	// chunkSize is what is encrypted and written at a time.
	chunkSize = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeKey is the content of a key file, see docs/format/layer.md.
func encodeKey(sealed []byte) []byte {
	p := append([]byte(keyMagic), keyVersion)
	p = binary.BigEndian.AppendUint16(p, uint16(len(sealed)))
	p = append(p, sealed...)
	return binary.BigEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

func decodeKey(p []byte) (sealed []byte, err error) {
	bad := func(what string) ([]byte, error) {
		return nil, snapferry.Errorf(snapferry.Corrupt, "key of a layer: %s", what)
	}
	if len(p) < keyHead+4 || string(p[:len(keyMagic)]) != keyMagic {
		return bad("not one")
	}
	if crc32.Checksum(p[:len(p)-4], castagnoli) != binary.BigEndian.Uint32(p[len(p)-4:]) {
		return bad("wrong checksum")
	}
	if p[len(keyMagic)] != keyVersion {
		return nil, snapferry.Errorf(snapferry.Unsupported, "key of a layer, of version %d", p[len(keyMagic)]).WithHint("use a newer snapferry")
	}
	n := int(binary.BigEndian.Uint16(p[len(keyMagic)+1:]))
	if n == 0 || n > maxSealed || keyHead+n+4 != len(p) {
		return bad("wrong length")
	}
	return p[keyHead : keyHead+n], nil
}

// newKey gives a layer without files a key.
func (l *Layer) newKey(keys Keys) error {
	key := make([]byte, xts.KeySize)
	rand.Read(key)
	defer clear(key)
	sealed, err := keys.SealLayerKey(l.dir, key)
	if err != nil {
		return err
	}
	if len(sealed) == 0 || len(sealed) > maxSealed {
		return snapferry.Errorf(snapferry.Internal, "layer %s: a sealed key of %d bytes", l.dir, len(sealed))
	}
	if err := ReplaceFile(l.fs, l.dir, keyFile, encodeKey(sealed)); err != nil {
		return err
	}
	l.cipher, err = xts.New(key)
	return err
}

// loadKey opens the key of a layer that has the files names, as far as there is to
// be one.
func (l *Layer) loadKey(keys Keys, names []string) error {
	has := slices.Contains(names, keyFile)
	switch {
	case has && keys == nil:
		return l.corrupt("it is encrypted, and its volume is not")
	case keys == nil:
		return nil
	case !has && slices.ContainsFunc(names, isContent):
		return l.corrupt("it is not encrypted, and its volume is")
	case !has: // what made it was cut short
		return l.newKey(keys)
	}
	p, err := ReadFile(l.fs, path.Join(l.dir, keyFile))
	if err != nil {
		return err
	}
	sealed, err := decodeKey(p)
	if err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "layer %s: %w", l.dir, err)
	}
	key, err := keys.OpenLayerKey(l.dir, sealed)
	if err != nil {
		return err
	}
	defer clear(key)
	if l.cipher, err = xts.New(key); err != nil {
		return l.corrupt("%v", err)
	}
	return nil
}

func isContent(name string) bool {
	_, _, ok := parseName(name)
	return ok
}

// dataOf returns a data file as the layer reads and writes it.
func (l *Layer) dataOf(f File, stripe int) File {
	if l.cipher == nil {
		return f
	}
	return &sealedFile{File: f, cipher: l.cipher, first: uint64(stripe) * stripePages}
}

// sealedFile is a data file whose pages are encrypted, each as one unit with the
// number of the page in the volume. It is no Copier: the key is the layer's own.
//
// A sector that is zeros on the disk is zeros: nobody wrote it, or it was punched,
// while a state that says data was left by a crash. No content is encrypted to 512
// zeros.
type sealedFile struct {
	File
	cipher *xts.Cipher
	first  uint64
}

// chunks are for what is encrypted, and singles for pages of which only a part is
// read or written.
var (
	chunks  = sync.Pool{New: func() any { return new([chunkSize]byte) }}
	singles = sync.Pool{New: func() any { return new([PageSize]byte) }}
)

// open decrypts whole pages that stood at off.
func (f *sealedFile) open(p []byte, off int64) {
	for ; len(p) > 0; p, off = p[PageSize:], off+PageSize {
		page := p[:PageSize]
		var holes uint8
		for i := range PageSize / sectorSize {
			if isZero(page[i*sectorSize:][:sectorSize]) {
				holes |= 1 << i
			}
		}
		if holes != 0xff {
			f.cipher.Decrypt(page, page, f.first+uint64(off/PageSize))
		}
		for i := range PageSize / sectorSize {
			if holes&(1<<i) != 0 {
				clear(page[i*sectorSize:][:sectorSize])
			}
		}
	}
}

func isZero(p []byte) bool {
	for ; len(p) > 0; p = p[8:] {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
	}
	return true
}

// each calls whole with stretches of whole pages of p, which is at off, and part
// with what is in one page only.
func each(p []byte, off int64, whole, part func(p []byte, off int64) error) (n int, err error) {
	for n < len(p) {
		at, q := off+int64(n), p[n:]
		if k := len(q) &^ (PageSize - 1); at%PageSize == 0 && k > 0 {
			q, err = q[:k], whole(q[:k], at)
		} else {
			q = q[:min(int64(len(q)), PageSize-at%PageSize)]
			err = part(q, at)
		}
		if err != nil {
			return n, err
		}
		n += len(q)
	}
	return n, nil
}

// ReadAt implements File.
func (f *sealedFile) ReadAt(p []byte, off int64) (int, error) {
	return each(p, off, f.read, func(q []byte, at int64) error {
		page := singles.Get().(*[PageSize]byte)
		defer singles.Put(page)
		if err := f.read(page[:], at&^(PageSize-1)); err != nil {
			return err
		}
		copy(q, page[at%PageSize:])
		return nil
	})
}

func (f *sealedFile) read(p []byte, off int64) error {
	n, err := f.File.ReadAt(p, off)
	if err != nil {
		clear(p[n:])
		if !errors.Is(err, io.EOF) || n < len(p) {
			return err
		}
	}
	f.open(p, off)
	return nil
}

// errWaits says that a read would have to wait.
var errWaits = errors.New("it would have to wait")

// ReadNow implements File.
func (f *sealedFile) ReadNow(p []byte, off int64) (done bool, err error) {
	_, err = each(p, off, f.readNow, func(q []byte, at int64) error {
		page := singles.Get().(*[PageSize]byte)
		defer singles.Put(page)
		if err := f.readNow(page[:], at&^(PageSize-1)); err != nil {
			return err
		}
		copy(q, page[at%PageSize:])
		return nil
	})
	if errors.Is(err, errWaits) {
		return false, nil
	}
	return err == nil, err
}

func (f *sealedFile) readNow(p []byte, off int64) error {
	done, err := f.File.ReadNow(p, off)
	if err != nil {
		return err
	}
	if !done {
		return errWaits
	}
	f.open(p, off)
	return nil
}

// WriteAt implements File. A page of which only a part is written is read first.
func (f *sealedFile) WriteAt(p []byte, off int64) (int, error) {
	return each(p, off, f.write, func(q []byte, at int64) error {
		page := singles.Get().(*[PageSize]byte)
		defer singles.Put(page)
		start := at &^ (PageSize - 1)
		if err := f.read(page[:], start); err != nil {
			return err
		}
		copy(page[at%PageSize:], q)
		return f.write(page[:], start)
	})
}

func (f *sealedFile) write(p []byte, off int64) error {
	c := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(c)
	for len(p) > 0 {
		n := min(len(p), chunkSize)
		f.cipher.Encrypt(c[:n], p[:n], f.first+uint64(off/PageSize))
		if _, err := f.File.WriteAt(c[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
