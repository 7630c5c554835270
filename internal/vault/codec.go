package vault

import (
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/snapferry/snapferry"
)

// pays reports whether a compressed form of n bytes is worth keeping for raw
// bytes: it must save a sixteenth, or reading it back costs more than it saves.
func pays(n, raw int) bool { return n <= raw-raw/16 }

// A compressor turns plain blocks into frames. It is for one goroutine.
type compressor struct {
	codec snapferry.Codec
	zstd  *zstd.Encoder
}

func newCompressor(codec snapferry.Codec) (*compressor, error) {
	c := &compressor{codec: codec}
	if codec != snapferry.Zstd {
		return c, nil
	}
	var err error
	c.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(snapferry.BlockSize), zstd.WithLowerEncoderMem(true), zstd.WithSingleSegment(true))
	return c, err
}

// slack is how much longer than its input a compressor's output may be before
// it is thrown away.
const slack = snapferry.BlockSize/4 + 1024

// append appends the frame of plain to dst, which must have room for
// len(plain)+slack bytes, and returns the codec used.
func (c *compressor) append(dst, plain []byte) ([]byte, snapferry.Codec) {
	var out []byte
	switch c.codec {
	case snapferry.Zstd:
		out = c.zstd.EncodeAll(plain, dst)
	case snapferry.S2:
		out = dst[:len(dst)+s2.MaxEncodedLen(len(plain))]
		out = out[:len(dst)+len(s2.Encode(out[len(dst):], plain))]
	}
	if out == nil || !pays(len(out)-len(dst), len(plain)) {
		return append(dst, plain...), snapferry.Stored
	}
	return out, c.codec
}

// A decompressor turns frames into plain bytes. It is for one goroutine.
type decompressor struct{ zstd *zstd.Decoder }

func newDecompressor() (*decompressor, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(8*snapferry.BlockSize), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, err
	}
	return &decompressor{zstd: z}, nil
}

func (d *decompressor) close() { d.zstd.Close() }

// spare is how many bytes behind its output a zstd decoder may overwrite when
// it is to be fast.
const spare = 64

// into decompresses payload into the whole of dst; a result of any other
// length than len(dst) is Corrupt. It may overwrite what lies behind dst, as
// far as its capacity goes but at most spare bytes: with that room it is faster.
func (d *decompressor) into(dst, payload []byte, codec snapferry.Codec) error {
	n := -1
	var err error
	switch codec {
	case snapferry.Stored:
		if len(payload) == len(dst) {
			n = copy(dst, payload)
		}
	case snapferry.Zstd:
		var out []byte
		out, err = d.zstd.DecodeAll(payload, dst[:0:min(cap(dst), len(dst)+spare)])
		n = len(out)
	case snapferry.S2:
		if n, err = s2.DecodedLen(payload); err == nil && n == len(dst) {
			_, err = s2.Decode(dst, payload)
		}
	default:
		return snapferry.Errorf(snapferry.Unsupported, "frame of unknown codec %d", codec).WithHint("read it with a newer snapferry")
	}
	if err != nil {
		return snapferry.Errorf(snapferry.Corrupt, "frame does not decompress (%s): %w", codec, err)
	}
	if n != len(dst) {
		return snapferry.Errorf(snapferry.Corrupt, "frame decompresses to %d bytes, want %d", n, len(dst))
	}
	return nil
}
