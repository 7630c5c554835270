package simtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/extent"
)

// A Disk is a sparse disk in memory: what an import reads and an export
// writes. Its methods are safe for concurrent use.
type Disk struct {
	size int64

	mu     sync.Mutex
	blocks map[uint64][]byte // of 64 KiB each; one of zeros may be there
	reads  int64             // bytes read
}

// NewDisk returns a disk of zeros.
func NewDisk(size int64) *Disk { return &Disk{size: size, blocks: map[uint64][]byte{}} }

// Fill sets a block to content made from a seed, random or compressible by its
// parity, and cuts it at the end of the disk. Seed 0 makes zeros.
func (d *Disk) Fill(block uint64, seed int) *Disk {
	p := Content(seed)
	d.mu.Lock()
	defer d.mu.Unlock()
	if room := d.size - int64(block)*snapferry.BlockSize; room < int64(len(p)) {
		clear(p[max(room, 0):])
	}
	d.blocks[block] = p
	return d
}

// Content is a block of bytes made from a seed: zeros of 0, else different for
// every seed; incompressible when it is odd.
func Content(seed int) []byte {
	p := make([]byte, snapferry.BlockSize)
	if seed == 0 {
		return p
	}
	var sum [32]byte
	for i := 0; i < len(p); i += len(sum) {
		if i == 0 || seed%2 == 1 {
			sum = sha256.Sum256(fmt.Appendf(nil, "%d %d", seed, i))
		}
		copy(p[i:], sum[:])
	}
	return p
}

// Clone returns a disk of another size with the same content as far as that
// goes.
func (d *Disk) Clone(size int64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := NewDisk(size)
	for b, p := range d.blocks {
		if off := int64(b) * snapferry.BlockSize; off < size {
			c.blocks[b] = slices.Clone(p)
			clear(c.blocks[b][min(size-off, snapferry.BlockSize):])
		}
	}
	return c
}

// Size returns the bytes of the disk.
func (d *Disk) Size() int64 { return d.size }

// Read returns how many bytes were read so far.
func (d *Disk) Read() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reads
}

// ReadAt implements vault.Disk.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, snapferry.Errorf(snapferry.Internal, "read of %d bytes at %d of a disk of %d", len(p), off, d.size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads += int64(len(p))
	clear(p)
	for n := 0; n < len(p); {
		at := off + int64(n)
		k := min(len(p)-n, snapferry.BlockSize-int(at%snapferry.BlockSize))
		copy(p[n:n+k], d.block(at)[at%snapferry.BlockSize:])
		n += k
	}
	return len(p), nil
}

var zeros [snapferry.BlockSize]byte

func (d *Disk) block(off int64) []byte {
	if p := d.blocks[uint64(off/snapferry.BlockSize)]; p != nil {
		return p
	}
	return zeros[:]
}

// Next implements vault.Disk: blocks that were ever filled hold data.
func (d *Disk) Next(off int64) (e extent.Extent, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range slices.Sorted(maps.Keys(d.blocks)) {
		from := int64(b) * snapferry.BlockSize
		to := min(from+snapferry.BlockSize, d.size)
		switch {
		case from >= d.size || to <= off:
			continue
		case !ok:
			e, ok = extent.Extent{Off: max(from, off), Len: to - max(from, off)}, true
		case e.End() != from:
			return e, true, nil
		default:
			e.Len = to - e.Off
		}
	}
	return e, ok, nil
}

// WriteAt implements vault.Target.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, snapferry.Errorf(snapferry.Internal, "write of %d bytes at %d of a disk of %d", len(p), off, d.size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := 0; n < len(p); {
		at := off + int64(n)
		k := min(len(p)-n, snapferry.BlockSize-int(at%snapferry.BlockSize))
		b := uint64(at / snapferry.BlockSize)
		if d.blocks[b] == nil {
			d.blocks[b] = make([]byte, snapferry.BlockSize)
		}
		copy(d.blocks[b][at%snapferry.BlockSize:], p[n:n+k])
		n += k
	}
	return len(p), nil
}

// get is ReadAt, and put WriteAt, within the disk.
func (d *Disk) get(p []byte, off int64) {
	if _, err := d.ReadAt(p, off); err != nil {
		panic(err) // the caller knows the size
	}
}

func (d *Disk) put(p []byte, off int64) {
	if _, err := d.WriteAt(p, off); err != nil {
		panic(err)
	}
}

// present returns the numbers of the blocks that are not zero, ascending.
func (d *Disk) present() (bs []uint64) {
	for b, p := range d.blocks {
		if !bytes.Equal(p, zeros[:]) {
			bs = append(bs, b)
		}
	}
	slices.Sort(bs)
	return bs
}

// Present returns how many blocks are not zero.
func (d *Disk) Present() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.present())
}

// Differs returns how many blocks that are not zero differ from those of
// another disk.
func (d *Disk) Differs(o *Disk) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.present() {
		if !bytes.Equal(d.blocks[b], o.block(int64(b)*snapferry.BlockSize)) {
			n++
		}
	}
	return n
}

// Digest computes the digest of the content from its definition alone.
func (d *Disk) Digest() digest.Digest {
	d.mu.Lock()
	defer d.mu.Unlock()
	level := map[uint64][32]byte{}
	for _, b := range d.present() {
		level[b] = sha256.Sum256(d.blocks[b])
	}
	for l := range byte(4) {
		up := map[uint64][32]byte{}
		for i := range level {
			if _, ok := up[i/256]; !ok {
				up[i/256] = nodeDigest(l, i/256, level)
			}
		}
		level = up
	}
	root := level[0] // zeros when empty
	h := sha256.New()
	h.Write([]byte("snapferry snapshot 1\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(d.size)))
	h.Write(root[:])
	return digest.Digest(h.Sum(nil))
}

func nodeDigest(level byte, index uint64, children map[uint64][32]byte) [32]byte {
	var bitmap [32]byte
	var sums []byte
	for i := range uint64(256) {
		if d, ok := children[index*256+i]; ok {
			bitmap[i/8] |= 1 << (i % 8)
			sums = append(sums, d[:]...)
		}
	}
	h := sha256.New()
	h.Write([]byte("snapferry node 1\x00"))
	h.Write([]byte{level})
	h.Write(bitmap[:])
	h.Write(sums)
	return [32]byte(h.Sum(nil))
}
