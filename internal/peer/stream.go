package peer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/transfer"
)

// The layout of a stream, see docs/format/peer.md: a header, items, and an end
// item that says whether the stream is complete.
const (
	streamMagic   = "SFPS"
	streamVersion = 1
	streamHeader  = 8
	itemHeader    = 20

	itemEnd   = 0
	itemNode  = 1
	itemBlock = 2

	maxNodeItem  = 16 << 10
	maxBlockItem = snapferry.BlockSize
	maxEndItem   = 4 << 10
	nodeBuffer   = 64 << 10  // of a stream of nodes, at each end
	blockBuffer  = 256 << 10 // of one of blocks
)

// An item is a node, a block or the end of a stream:
//
//	type u8 | codec or level u8 | 0 u16 | raw length u32 | index u64 | length u32 | payload
type item struct {
	typ     uint8
	sub     uint8 // codec of a block, level of a node, Kind of an end
	raw     uint32
	index   uint64
	payload []byte
}

func appendStreamHeader(dst []byte) []byte {
	return append(append(dst, streamMagic...), streamVersion, 0, 0, 0)
}

func (it *item) appendHeader(dst []byte) []byte {
	dst = append(dst, it.typ, it.sub, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, it.raw)
	dst = binary.BigEndian.AppendUint64(dst, it.index)
	return binary.BigEndian.AppendUint32(dst, uint32(len(it.payload)))
}

// A streamWriter writes a stream. It is for one goroutine.
type streamWriter struct {
	w       *bufio.Writer
	scratch []byte // for the header of an item
	logical []byte // for a node
}

func newStreamWriter(w io.Writer, buffer int) (*streamWriter, error) {
	s := &streamWriter{w: bufio.NewWriterSize(w, buffer)}
	_, err := s.w.Write(appendStreamHeader(nil))
	return s, err
}

func (s *streamWriter) write(it item) error {
	s.scratch = it.appendHeader(s.scratch[:0])
	if _, err := s.w.Write(s.scratch); err != nil {
		return err
	}
	_, err := s.w.Write(it.payload)
	return err
}

func (s *streamWriter) node(at snapferry.Position, n *blockmap.Node) error {
	p := n.AppendLogical(s.logical[:0])
	raw := uint32(len(p))
	if at.Level == 0 {
		for _, r := range n.Refs {
			p = binary.BigEndian.AppendUint32(p, r.Length)
		}
	}
	s.logical = p
	return s.write(item{typ: itemNode, sub: at.Level, raw: raw, index: at.Index, payload: p})
}

func (s *streamWriter) block(f transfer.Frame) error {
	return s.write(item{typ: itemBlock, sub: uint8(f.Codec), raw: uint32(f.RawLength), index: f.Block, payload: f.Payload})
}

// end writes the end item: err is nil when the stream is complete.
func (s *streamWriter) end(err error) error {
	it := item{typ: itemEnd}
	if err != nil {
		it.sub, it.raw = uint8(snapferry.KindOf(err)), 1
		it.payload = []byte(publicText(err))
		if len(it.payload) > maxEndItem {
			it.payload = it.payload[:maxEndItem]
		}
	}
	if err := s.write(it); err != nil {
		return err
	}
	return s.w.Flush()
}

// publicText is what another region may read of an error.
func publicText(err error) string {
	var e *snapferry.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "internal error"
}

// A streamReader reads a stream. It is for one goroutine.
type streamReader struct {
	r    *bufio.Reader
	held int // bytes of the last payload, which still lies in r
	err  error
}

func newStreamReader(r io.Reader, buffer int) *streamReader {
	return &streamReader{r: bufio.NewReaderSize(r, buffer)}
}

// begin reads the header.
func (s *streamReader) begin() error {
	var h [streamHeader]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		return cut(err)
	}
	if string(h[:4]) != streamMagic || h[5]|h[6]|h[7] != 0 {
		return snapferry.Errorf(snapferry.Corrupt, "the answer is not a stream of this protocol")
	}
	if h[4] != streamVersion {
		return snapferry.Errorf(snapferry.Unsupported, "the stream has version %d, want %d", h[4], streamVersion).WithHint("run the same version of snapferry in both regions")
	}
	return nil
}

// cut is the error of a stream that ended without an end item.
func cut(err error) error {
	var e *snapferry.Error
	if errors.As(err, &e) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // io.EOF says that a stream is complete
	}
	return snapferry.Errorf(snapferry.Unavailable, "the stream was cut: %w", err)
}

// next returns the next item of a type, valid until the next call; io.EOF
// after a complete stream.
func (s *streamReader) next(typ uint8) (item, error) {
	if s.err == nil {
		var it item
		if it, s.err = s.read(typ); s.err == nil {
			return it, nil
		}
	}
	return item{}, s.err
}

func (s *streamReader) read(typ uint8) (item, error) {
	if _, err := s.r.Discard(s.held); err != nil {
		return item{}, cut(err)
	}
	s.held = 0
	var h [itemHeader]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		return item{}, cut(err)
	}
	it := item{typ: h[0], sub: h[1], raw: binary.BigEndian.Uint32(h[4:]), index: binary.BigEndian.Uint64(h[8:])}
	n := binary.BigEndian.Uint32(h[16:])
	limit := uint32(maxEndItem)
	switch {
	case it.typ != itemEnd && it.typ != typ || h[2]|h[3] != 0:
		return it, snapferry.Errorf(snapferry.Corrupt, "the stream has an item of type %d where %d was expected", it.typ, typ)
	case it.typ == itemNode:
		limit = maxNodeItem
	case it.typ == itemBlock:
		limit = maxBlockItem
	}
	if n > limit {
		return it, snapferry.Errorf(snapferry.Corrupt, "the stream has an item of %d bytes, more than %d", n, limit)
	}
	var err error
	if it.payload, err = s.r.Peek(int(n)); err != nil {
		return it, cut(err)
	}
	if s.held = int(n); it.typ != itemEnd {
		return it, nil
	}
	it.payload = bytes.Clone(it.payload)
	if _, err := s.r.Discard(s.held); err != nil {
		return it, cut(err)
	}
	s.held = 0
	if it.raw > 1 || it.index != 0 || it.raw == 0 && (it.sub != 0 || n != 0) {
		return it, snapferry.Errorf(snapferry.Corrupt, "the stream has a malformed end")
	}
	// To see the end of the answer also frees its connection for others.
	if _, err := s.r.Peek(1); err == nil {
		return it, snapferry.Errorf(snapferry.Corrupt, "the stream goes on after its end")
	} else if it.raw == 0 && errors.Is(err, io.EOF) {
		return it, io.EOF
	} else if it.raw == 0 {
		return it, cut(err)
	}
	return it, snapferry.Errorf(remoteKind(it.sub), "%s", it.payload)
}

// remoteKind is the Kind of an error that a peer reported, as it matters here:
// what the peer calls internal may pass.
func remoteKind(k uint8) snapferry.Kind {
	if kind := snapferry.Kind(k); int(k) < len(snapferry.Kinds()) && kind != snapferry.Internal {
		return kind
	}
	return snapferry.Unavailable
}

// node decodes a node item.
func (it item) node() (snapferry.Position, *blockmap.Node, error) {
	at := snapferry.Position{Level: it.sub, Index: it.index}
	if int(it.raw) > len(it.payload) {
		return at, nil, snapferry.Errorf(snapferry.Corrupt, "node item of %d bytes claims %d", len(it.payload), it.raw)
	}
	n, err := blockmap.DecodeLogical(it.payload[:it.raw])
	if err != nil {
		return at, nil, err
	}
	lengths := it.payload[it.raw:]
	if n.Level != 0 {
		if len(lengths) != 0 {
			return at, nil, snapferry.Errorf(snapferry.Corrupt, "inner node with %d bytes too many", len(lengths))
		}
		return at, n, nil
	}
	if len(lengths) != 4*n.Len() {
		return at, nil, snapferry.Errorf(snapferry.Corrupt, "leaf of %d blocks with %d bytes of lengths", n.Len(), len(lengths))
	}
	n.Refs = make([]snapferry.Ref, n.Len())
	for i := range n.Refs {
		n.Refs[i].Length = binary.BigEndian.Uint32(lengths[4*i:])
	}
	return at, n, nil
}
