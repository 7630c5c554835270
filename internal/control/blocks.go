package control

import (
	"context"
	"io"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

const (
	// quarter is the bytes of a bitmap that stand for a quarter of a leaf.
	quarter = 8
	// pieceBytes is the most that is read for one of them, with what lies between.
	pieceBytes = 10 * snapferry.BlockSize
)

// A mapPart is blocks of one leaf of a map.
type mapPart struct {
	m blockmap.Map
	transfer.Want
}

// blockStream reads the frames of blocks, a piece at a time, for which it takes memory
// of the region's. It lives as long as who asked for it, whose context it keeps.
type blockStream struct {
	ctx    context.Context
	memory *transfer.Memory
	lent   int64              // of the memory, bytes
	reader *vault.FrameReader // nil: closed
	rest   []mapPart
	from   int // byte of the first part's bitmap that comes next
	frames []vault.Frame
}

func (r *Region) newBlockStream(ctx context.Context, parts []mapPart) blockStream {
	return blockStream{ctx: ctx, memory: r.memory, reader: r.vault.NewFrameReader(), rest: parts}
}

// next returns the next frame, valid until the next call; io.EOF after the last.
func (s *blockStream) next() (transfer.Frame, error) {
	for len(s.frames) == 0 {
		if len(s.rest) == 0 {
			return transfer.Frame{}, io.EOF
		}
		p := s.rest[0]
		piece := s.piece(p.Blocks)
		if piece == (blockmap.Bitmap{}) {
			s.rest, s.from = s.rest[1:], 0
			continue
		}
		var err error
		if s.frames, err = s.reader.Read(s.ctx, p.m, p.Leaf, piece); err != nil {
			return transfer.Frame{}, err
		}
	}
	x := s.frames[0]
	s.frames = s.frames[1:]
	return transfer.Frame(x), nil
}

// piece takes memory for what is read next of the blocks of a leaf, and returns that: to
// the end of a quarter of the leaf, or less when the region's memory has no room for it.
// Eight blocks are read whatever there is. It returns none when none is left.
func (s *blockStream) piece(want blockmap.Bitmap) (part blockmap.Bitmap) {
	for s.from < len(want) && want[s.from] == 0 {
		s.from++
	}
	if s.from == len(want) {
		return part
	}
	n := s.borrow(quarter - s.from%quarter)
	copy(part[s.from:], want[s.from:s.from+n])
	s.from += n
	return part
}

// borrow takes memory for some bytes of a bitmap, at most rest, and returns how many.
func (s *blockStream) borrow(rest int) int {
	s.giveBack()
	for n := rest; n > 1; n = min(n-1, 2) {
		if bytes := int64(n * pieceBytes); s.memory.Lend(bytes) {
			s.lent = bytes
			return n
		}
	}
	s.reader.Shrink(2 * pieceBytes)
	return 1
}

func (s *blockStream) giveBack() {
	if s.lent > 0 {
		s.memory.Return(s.lent)
		s.lent = 0
	}
}

// close ends the stream, once, and reports whether it had not ended before.
func (s *blockStream) close() bool {
	if s.reader == nil {
		return false
	}
	s.reader.Close()
	s.reader, s.frames = nil, nil
	s.giveBack()
	return true
}
