package head

import (
	"encoding/binary"
	"hash/crc32"
	"path"
	"slices"
	"strconv"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// A stack says what a volume is made of. It is replaced as a whole, so that a
// crash leaves the old one or the new one. Its binary form is described in
// docs/format/stack.md.
//
// The layers from the lowest to the highest, over the content of version under,
// are the volume. Those up to layer clean hold nothing that version base does
// not have: they are a copy, kept to be near. So each page below all layers is
// the same in under and in base, and zero when under is none.
type stack struct {
	Size  int64
	Under snapferry.VersionID // zero: nothing, all zeros
	Base  snapferry.VersionID // zero: nothing was sealed yet
	Clean uint64              // highest layer whose content base has; 0: none
	Next  uint64              // number of the next layer to be made
	// Layers are their numbers, ascending. The last one takes the writes after a
	// restart: it is the spare, or was made the top before.
	Layers []uint64
}

const (
	stackMagic   = "SFHS"
	stackVersion = 1
	stackHead    = 68 // bytes before the layers
	// maxLayers bounds what a stack may name: freezes wait long before.
	maxLayers = 1024
	stackName = "stack"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *stack) encode() []byte {
	p := make([]byte, stackHead, stackHead+8*len(s.Layers)+4)
	copy(p, stackMagic)
	p[4] = stackVersion
	binary.BigEndian.PutUint64(p[8:], uint64(s.Size))
	copy(p[16:], s.Under[:])
	copy(p[32:], s.Base[:])
	binary.BigEndian.PutUint64(p[48:], s.Clean)
	binary.BigEndian.PutUint64(p[56:], s.Next)
	binary.BigEndian.PutUint32(p[64:], uint32(len(s.Layers)))
	for _, l := range s.Layers {
		p = binary.BigEndian.AppendUint64(p, l)
	}
	return binary.BigEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// decodeStack reads what encode wrote. Corrupt for anything else, Unsupported
// for a newer version.
func decodeStack(p []byte) (s stack, err error) {
	bad := func(what string) (stack, error) {
		return stack{}, snapferry.Errorf(snapferry.Corrupt, "stack record: %s", what)
	}
	if len(p) < stackHead+4 || string(p[:4]) != stackMagic {
		return bad("not one")
	}
	body, sum := p[:len(p)-4], binary.BigEndian.Uint32(p[len(p)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return bad("wrong checksum")
	}
	if p[4] != stackVersion {
		return stack{}, snapferry.Errorf(snapferry.Unsupported, "stack record of version %d", p[4]).WithHint("use a newer snapferry")
	}
	if p[5]|p[6]|p[7] != 0 {
		return bad("reserved bytes are set")
	}
	s.Size = int64(binary.BigEndian.Uint64(p[8:]))
	copy(s.Under[:], p[16:])
	copy(s.Base[:], p[32:])
	s.Clean, s.Next = binary.BigEndian.Uint64(p[48:]), binary.BigEndian.Uint64(p[56:])
	n := binary.BigEndian.Uint32(p[64:])
	if n > maxLayers || len(body) != stackHead+8*int(n) {
		return bad("wrong length")
	}
	for i := range int(n) {
		s.Layers = append(s.Layers, binary.BigEndian.Uint64(body[stackHead+8*i:]))
	}
	return s, s.check()
}

// check reports, as Corrupt, a stack that cannot be.
func (s *stack) check() error {
	if err := snapferry.CheckSize(s.Size); err != nil {
		return snapferry.Errorf(snapferry.Corrupt, "stack record: %w", err)
	}
	last := uint64(0)
	for _, l := range s.Layers {
		if l <= last || l >= s.Next {
			return snapferry.Errorf(snapferry.Corrupt, "stack record: layer %d after %d, next is %d", l, last, s.Next)
		}
		last = l
	}
	switch {
	case len(s.Layers) == 0:
		return snapferry.Errorf(snapferry.Corrupt, "stack record: no layer")
	case s.Clean >= last:
		return snapferry.Errorf(snapferry.Corrupt, "stack record: the top, layer %d, is clean", last)
	case s.Base.IsZero() && (s.Clean != 0 || !s.Under.IsZero()):
		return snapferry.Errorf(snapferry.Corrupt, "stack record: clean without a base")
	}
	return nil
}

// clone returns a copy that shares nothing.
func (s *stack) clone() stack {
	c := *s
	c.Layers = slices.Clone(s.Layers)
	return c
}

const layerPrefix = "layer."

// layerDir is the folder of a layer of the volume in dir.
func layerDir(dir string, number uint64) string {
	return path.Join(dir, layerPrefix+strconv.FormatUint(number, 10))
}

// save makes s the stack of the volume in dir, durably.
func (s *stack) save(fs layer.FS, dir string) error {
	if err := s.check(); err != nil {
		return err
	}
	return layer.ReplaceFile(fs, dir, stackName, s.encode())
}

func loadStack(fs layer.FS, dir string) (stack, error) {
	p, err := layer.ReadFile(fs, path.Join(dir, stackName))
	if err != nil {
		return stack{}, err
	}
	return decodeStack(p)
}
