package segment_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/seal"
	"github.com/snapferry/snapferry/segment"
)

var update = flag.Bool("update", false, "write the golden files")

var chain = snapferry.ChainID{0xc0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

func header(n byte, kind snapferry.FrameKind) segment.Header {
	return segment.Header{Segment: snapferry.SegmentID{0x5e, n, 15: 0xff}, Chain: chain, Kind: kind, Algorithm: digest.SHA256}
}

// frame is a frame as a sample has it, under a slot.
type frame struct {
	slot    uint16
	info    snapferry.FrameInfo
	payload []byte
}

type sampleSegment struct {
	header     segment.Header
	generation uint32
	frames     []frame
}

// stored is a frame that compression did not shorten.
func stored(kind snapferry.FrameKind, slot uint16, level uint8, index uint64, payload string) frame {
	return frame{slot, snapferry.FrameInfo{
		Kind: kind, Codec: snapferry.Stored, RawLength: uint32(len(payload)),
		Position: snapferry.Position{Level: level, Index: index},
	}, []byte(payload)}
}

// samples are the segments of the golden objects: blocks; nodes; blocks that a
// compaction left.
func samples() []sampleSegment {
	block, node := snapferry.BlockFrame, snapferry.NodeFrame
	zstd := frame{1, snapferry.FrameInfo{
		Kind: block, Codec: snapferry.Zstd, RawLength: 65536,
		Position: snapferry.Position{Index: 1<<32 - 1},
	}, bytes.Repeat([]byte("not really zstd "), 8)}
	last := stored(block, 65534, 0, 1<<30-1, "the last slot")
	return []sampleSegment{
		{header(1, block), 0, []frame{stored(block, 0, 0, 0, "block 0"), zstd, stored(block, 2, 0, 2, "b")}},
		{header(2, node), 0, []frame{stored(node, 0, 0, 65535, "leaf"), stored(node, 1, 1, 255, "inner"), stored(node, 2, 2, 63, "top")}},
		{header(3, block), 4, []frame{stored(block, 1, 0, 7, "seven"), stored(block, 300, 0, 8, "eight"), last}},
	}
}

// sealer returns the Sealer of a sample; nil makes everything plain.
type sealer func(segment.Header) segment.Sealer

func plain(segment.Header) segment.Sealer { return nil }

func sealed(h segment.Header) segment.Sealer {
	k, err := seal.NewSegmentKey(bytes.Repeat([]byte{0xda}, seal.KeySize), h.Chain, h.Segment)
	if err != nil {
		panic(err)
	}
	return k
}

// body appends the body of a sample to buf.
func body(t testing.TB, buf []byte, ss sampleSegment, s segment.Sealer) *segment.Writer {
	t.Helper()
	w := segment.NewWriter(buf, ss.header, s)
	for _, f := range ss.frames {
		p := f.payload
		if s != nil {
			p = s.Seal(nil, p, f.slot, f.info)
		}
		if err := w.AppendSlot(f.slot, f.info, p); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// object makes an object of samples.
func object(t testing.TB, all []sampleSegment, s sealer) []byte {
	t.Helper()
	buf := segment.AppendObjectHeader(nil)
	var dir []segment.DirEntry
	for _, ss := range all {
		w := body(t, buf, ss, s(ss.header))
		size := w.Size()
		var err error
		if buf, err = w.Close(); err != nil {
			t.Fatal(err)
		}
		if w.Size() != size || len(w.Bytes()) != size {
			t.Fatalf("closed body of %d bytes, announced as %d", len(w.Bytes()), size)
		}
		dir = append(dir, w.DirEntry(ss.generation))
	}
	return segment.AppendDirectory(buf, dir)
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
