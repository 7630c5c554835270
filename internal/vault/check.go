package vault

import (
	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// A Decompressor turns frames of blocks back into plain bytes, for whoever
// checks what is stored. It is for one goroutine; Close frees what it holds.
type Decompressor struct{ dec *decompressor }

// NewDecompressor returns a Decompressor for every codec there is.
func NewDecompressor() (*Decompressor, error) {
	dec, err := newDecompressor()
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "decompressor: %w", err)
	}
	return &Decompressor{dec: dec}, nil
}

// Close frees what the decompressor holds.
func (d *Decompressor) Close() { d.dec.close() }

// BlockBuffer returns memory for Block.
func BlockBuffer() []byte { return make([]byte, snapferry.BlockSize, snapferry.BlockSize+spare) }

// Fill fills dst, a whole block, with the content of the payload of a frame,
// padded with zeros. The error is of Kind Corrupt when that has not digest want.
func (d *Decompressor) Fill(dst, payload []byte, info snapferry.FrameInfo, want digest.Digest) error {
	return d.dec.block(dst[:snapferry.BlockSize:snapferry.BlockSize], payload, info, want, snapferry.Ref{})
}

// Block returns the digest of the block in the payload of a frame. What has to
// be decompressed or padded goes through dst, which BlockBuffer made. The error is
// of Kind Corrupt when the payload is not a block as info tells it, and of
// Kind Unsupported for a codec of a newer version.
func (d *Decompressor) Block(dst, payload []byte, info snapferry.FrameInfo) (digest.Digest, error) {
	if int64(info.RawLength) > int64(len(dst)) {
		return digest.Digest{}, snapferry.Errorf(snapferry.Corrupt, "frame claims %d bytes, more than a block", info.RawLength)
	}
	if info.Codec == snapferry.Stored && len(payload) == snapferry.BlockSize && info.RawLength == snapferry.BlockSize {
		return digest.Block(payload), nil // no need for a copy
	}
	if err := d.dec.into(dst[:info.RawLength], payload, info.Codec); err != nil {
		return digest.Digest{}, err
	}
	clear(dst[info.RawLength:])
	return digest.Block(dst), nil
}
