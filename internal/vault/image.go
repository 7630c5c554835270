package vault

import (
	"context"
	"math"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/meta"
)

// An Image reads the blocks of a map at random, for a disk that is used before
// it is all there. Whoever reads keeps the version held. It is safe for
// concurrent use.
type Image struct {
	v *Vault
	m blockmap.Map
}

// Image returns an Image of a map.
func (v *Vault) Image(m blockmap.Map) *Image { return &Image{v: v, m: m} }

// ImageOf returns an Image of a sealed version.
func (v *Vault) ImageOf(ctx context.Context, id snapferry.VersionID) (*Image, error) {
	m, err := v.MapOf(ctx, id)
	if err != nil {
		return nil, err
	}
	return v.Image(m), nil
}

// PartOf returns an Image of an open version as its last checkpoint has it, and
// the leaves in which that is what the version will have. Whoever reads keeps the
// version from being aborted, or reads nothing of it after an error.
func (v *Vault) PartOf(ctx context.Context, id snapferry.VersionID) (im *Image, leaves extent.Set, err error) {
	var row meta.Version
	var cp meta.Checkpoint
	err = v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if row, err = tx.Version(id); err != nil {
			return err
		}
		cp, err = tx.Checkpoint(id)
		return err
	})
	m := blockmap.Map{Size: row.Size, Nodes: v}
	switch {
	case snapferry.IsKind(err, snapferry.NotFound) && row.ID == id:
		return v.Image(m), leaves, nil // no checkpoint yet
	case err != nil:
		return nil, leaves, err
	}
	if m.Root, err = decodeRoot(cp.Root, row.Size); err == nil {
		err = leaves.UnmarshalBinary(cp.Finished)
	}
	return v.Image(m), leaves, err
}

// warmSegments is how many segments Warm looks into at most.
const warmSegments = 64

// Warm reads what the first reads of a sealed version would wait for, beside its
// blocks: the top of its map, and the footers of the segments that it and its
// nearest ancestors have written, up to a number of them.
func (v *Vault) Warm(ctx context.Context, id snapferry.VersionID) error {
	var segments []snapferry.SegmentID
	err := v.db.View(ctx, func(tx *meta.Tx) error {
		for !id.IsZero() && len(segments) < warmSegments {
			row, err := tx.Version(id)
			if err != nil {
				return err
			}
			all, err := tx.SegmentsOf(id)
			if err != nil {
				return err
			}
			for _, s := range all {
				if s.State == meta.SegmentLive && len(segments) < warmSegments {
					segments = append(segments, s.ID)
				}
			}
			id = row.Parent
		}
		return nil
	})
	if err != nil {
		return err
	}
	places := make([]place, len(segments))
	if err := v.loc.find(ctx, segments, places, false); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, s := range segments {
		g.Go(func() error {
			_, err := v.loc.footer(ctx, s, places[i])
			return err
		})
	}
	return g.Wait()
}

// Size returns the bytes of the disk.
func (im *Image) Size() int64 { return im.m.Size }

// Map returns the map that is read.
func (im *Image) Map() blockmap.Map { return im.m }

// Run returns for how many bytes from off on, at most n, the disk is alike: in
// blocks that are there (data), or in such as are zero. It reads nodes only.
func (im *Image) Run(ctx context.Context, off, n int64) (length int64, data bool, err error) {
	c := im.m.Cursor()
	for pos := off; pos < off+n; {
		end, here, err := im.piece(ctx, c, pos)
		switch {
		case err != nil:
			return 0, false, err
		case pos == off:
			data = here
		case here != data:
			return pos - off, data, nil
		}
		pos = end
	}
	return n, data, nil
}

// piece returns where a stretch that begins at pos and is alike ends, at the end
// of a leaf at the latest if it is data.
func (im *Image) piece(ctx context.Context, c *blockmap.Cursor, pos int64) (end int64, data bool, err error) {
	if pos >= im.m.Size {
		return math.MaxInt64, false, nil
	}
	leaf := uint64(pos / blockmap.LeafSpan)
	next, ok, err := c.Next(ctx, leaf)
	if err != nil || !ok {
		return math.MaxInt64, false, err
	}
	if next > leaf {
		return int64(next) * blockmap.LeafSpan, false, nil
	}
	node, err := c.Leaf(ctx, leaf)
	if err != nil {
		return 0, false, err
	}
	start := int64(leaf) * blockmap.LeafSpan
	i := int((pos - start) / snapferry.BlockSize)
	data = node.Presence.Has(i)
	for i < blockmap.Fanout && node.Presence.Has(i) == data {
		i++
	}
	return start + int64(i)*snapferry.BlockSize, data, nil
}

// decoders are decompressors between two reads.
var decoders = sync.Pool{}

// BlockRoom is how many bytes more than the blocks themselves a buffer for
// Image.Read has to have, for the fast decompressor.
const BlockRoom = spare

// Read fills dst with whole blocks of one leaf, from block first on: len(dst) is
// a multiple of 65,536, and up to BlockRoom bytes behind it, as far as its
// capacity goes, may be overwritten. What is not there, or lies beyond the
// size, is zero. Each digest was checked. The frames come in as few ranged
// reads as they lie in.
//
// Errors: Corrupt when the stored bytes are not what the map says, Unavailable
// when the bucket does not answer.
func (im *Image) Read(ctx context.Context, first uint64, dst []byte) error {
	leaf, lo := first/blockmap.Fanout, int(first%blockmap.Fanout)
	count := len(dst) / snapferry.BlockSize
	if count*snapferry.BlockSize != len(dst) || lo+count > blockmap.Fanout {
		return snapferry.Errorf(snapferry.Internal, "read of %d bytes at block %d is not of whole blocks of one leaf", len(dst), first)
	}
	var n *blockmap.Node
	if leaf < blockmap.Leaves(im.m.Size) {
		var err error
		if n, err = im.m.Leaf(ctx, leaf); err != nil {
			return err
		}
	}
	var want blockmap.Bitmap
	for i := range count {
		if n != nil && n.Presence.Has(lo+i) {
			want.Set(lo + i)
		} else {
			clear(dst[i*snapferry.BlockSize:][:snapferry.BlockSize])
		}
	}
	if want == (blockmap.Bitmap{}) {
		return nil
	}
	r := im.v.NewFrameReader()
	defer r.Close()
	frames, err := r.fetch.load(ctx, leaf, n, want)
	if err != nil {
		return err
	}
	dec, err := borrowDecoder()
	if err != nil {
		return err
	}
	defer decoders.Put(dec)
	for _, f := range frames {
		d, ref, _ := n.Child(f.block)
		at := (f.block - lo) * snapferry.BlockSize
		// In ascending order: what the decoder overwrites behind a block is
		// written afterwards, or was cleared and is cleared again.
		if err := dec.block(dst[at:at+snapferry.BlockSize], f.payload, f.entry.Info, d, ref); err != nil {
			return err
		}
		if next := f.block - lo + 1; next < count && !want.Has(lo+next) {
			clear(dst[at+snapferry.BlockSize:][:min(spare, len(dst)-at-snapferry.BlockSize)])
		}
	}
	return nil
}

func borrowDecoder() (*decompressor, error) {
	if d, ok := decoders.Get().(*decompressor); ok {
		return d, nil
	}
	d, err := newDecompressor()
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "decompressor: %w", err)
	}
	return d, nil
}
