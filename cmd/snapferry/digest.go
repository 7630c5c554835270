package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

// This file computes a snapshot's digest from the bytes of a disk and the
// rules of docs/format/digest.md alone. It shares no code with what makes,
// copies and reads snapshots, so that equal digests prove something.

const (
	digestBlock  = 64 << 10
	digestFanOut = 256
	digestLevels = 4
	digestLeaf   = digestBlock * digestFanOut
	noData       = 1<<63 - 1 // "there is no data from here on"
)

type sum = [sha256.Size]byte

func (a *app) digestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "digest FILE|DEVICE", Short: "Compute the digest that a snapshot of a disk has", Args: cobra.ExactArgs(1),
		Long: `Compute the digest that a snapshot of a disk has, with no region and by another
path than snapshots are made, copied and read: equal digests mean equal disks.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			size, d, err := digestFile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			out := struct {
				Path   string `json:"path"`
				Size   int64  `json:"size"`
				Digest string `json:"digest"`
			}{args[0], size, "sha256:" + hex.EncodeToString(d[:])}
			return a.print(out, func(p *printer) { p.line("%s  %s", out.Digest, out.Path) })
		},
	}
}

// digestFile returns the size and the snapshot digest of a file or device.
func digestFile(ctx context.Context, path string) (int64, sum, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, sum{}, fileError("open", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, sum{}, fileError("look at", path, err)
	}
	device := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !st.Mode().IsRegular() && !device {
		return 0, sum{}, snapferry.Errorf(snapferry.Invalid, "%s is neither a file nor a block device", path)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, sum{}, fileError("find the size of", path, err)
	}
	if err := snapferry.CheckSize(size); err != nil {
		return 0, sum{}, snapferry.Errorf(snapferry.Invalid, "%s: %w", path, err)
	}
	d, err := digestDisk(ctx, f, size)
	if err != nil {
		return 0, sum{}, fileError("read", path, err)
	}
	return size, d, nil
}

// digestDisk hashes the leaves of the disk in parallel, then the nodes above.
func digestDisk(outer context.Context, f *os.File, size int64) (sum, error) {
	var mu sync.Mutex
	nodes := make(map[int64]sum) // leaves at first
	g, ctx := errgroup.WithContext(outer)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for off := int64(0); ctx.Err() == nil; {
		at, err := nextData(f, off)
		if err != nil {
			g.Go(func() error { return err })
		}
		if err != nil || at >= size {
			break
		}
		index := at / digestLeaf
		g.Go(func() error {
			s, err := digestLeafOf(f, index, size)
			if err != nil || s == (sum{}) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			nodes[index] = s
			return nil
		})
		off = (index + 1) * digestLeaf
	}
	if err := g.Wait(); err != nil {
		return sum{}, err
	}
	if err := outer.Err(); err != nil {
		return sum{}, context.Cause(outer)
	}
	for level := byte(1); level < digestLevels; level++ {
		nodes = digestLevel(level, nodes)
	}
	return digestSnapshot(size, nodes[0]), nil
}

// nextData returns the offset of the first data at or after off.
func nextData(f *os.File, off int64) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return noData, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP):
		return off, nil // it cannot tell: everything is data
	case err != nil:
		return off, err
	}
	return at, nil
}

// digestLeafOf returns the digest of a leaf, zero when all its blocks are.
func digestLeafOf(f *os.File, index, size int64) (sum, error) {
	children := make(map[int]sum)
	block := make([]byte, digestBlock)
	start, end := index*digestLeaf, min((index+1)*digestLeaf, size)
	for off, look := start, true; off < end; off += digestBlock {
		if look { // after the start and after zeros there may be a hole
			data, err := nextData(f, off)
			if err != nil || data >= end {
				return digestNode(0, children), err
			}
			off = max(off, data/digestBlock*digestBlock)
		}
		clear(block)
		n := min(size-off, digestBlock)
		if _, err := f.ReadAt(block[:n], off); err != nil {
			return sum{}, errors.Join(errors.New("at offset "+strconv.FormatInt(off, 10)), err)
		}
		if look = allZero(block); !look {
			children[int((off-start)/digestBlock)] = sha256.Sum256(block)
		}
	}
	return digestNode(0, children), nil
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// digestLevel returns the nodes of a level over those below.
func digestLevel(level byte, below map[int64]sum) map[int64]sum {
	children := make(map[int64]map[int]sum)
	for i, s := range below {
		parent := i / digestFanOut
		if children[parent] == nil {
			children[parent] = make(map[int]sum)
		}
		children[parent][int(i%digestFanOut)] = s
	}
	nodes := make(map[int64]sum, len(children))
	for i, c := range children {
		nodes[i] = digestNode(level, c)
	}
	return nodes
}

// digestNode is "snapferry node 1", a zero byte, the level, the presence
// bitmap, and the digests of the children that are present.
func digestNode(level byte, children map[int]sum) sum {
	if len(children) == 0 {
		return sum{}
	}
	var presence [digestFanOut / 8]byte
	var sums []byte
	for i := range digestFanOut {
		if s, ok := children[i]; ok {
			presence[i/8] |= 1 << (i % 8)
			sums = append(sums, s[:]...)
		}
	}
	p := append([]byte("snapferry node 1\x00"), level)
	p = append(p, presence[:]...)
	return sha256.Sum256(append(p, sums...))
}

// digestSnapshot is "snapferry snapshot 1", a zero byte, the size, and the
// digest of the root.
func digestSnapshot(size int64, root sum) sum {
	p := binary.BigEndian.AppendUint64([]byte("snapferry snapshot 1\x00"), uint64(size))
	return sha256.Sum256(append(p, root[:]...))
}
