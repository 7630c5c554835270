package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// fillers fills leaves as they are whole, one after the other, until there are no
// more.
func (r *run) fillers(ctx context.Context) error {
	f, err := r.Sink.NewFiller()
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		select {
		case l, ok := <-r.ready:
			if !ok {
				return nil
			}
			if err := r.fill(ctx, f, l); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil // who ended it says why
		}
	}
}

// fill fills a leaf. Where not all of it has come, what has gives its memory back
// before the rest is waited for.
func (r *run) fill(ctx context.Context, f Filler, l *leaf) error {
	if err := f.Begin(ctx, l.ticket); err != nil {
		return err
	}
	kept := l.Node.Presence // what the base has
	next := 0
	// keep sets what stands before block i.
	keep := func(i int) error {
		for ; next < i; next++ {
			if !kept.Has(next) || l.Want.Has(next) {
				continue
			}
			d, _, _ := l.Node.Child(next)
			if err := f.Keep(next, d); err != nil {
				return err
			}
		}
		return nil
	}
	filled := l.parts[:0:0]
	for _, p := range l.parts {
		select {
		case <-p.whole:
		default:
			if err := f.Flush(ctx); err != nil {
				return err
			}
			r.used(filled)
			filled = filled[:0]
			select {
			case <-p.whole:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := r.fillPart(ctx, f, p, keep); err != nil {
			return err
		}
		filled = append(filled, p)
	}
	if err := keep(blockmap.Fanout); err != nil {
		return err
	}
	if err := f.End(ctx); err != nil {
		return err
	}
	r.used(filled)
	r.budget.end()
	blocks, moved := int64(l.Node.Len()), int64(l.Want.Count())
	r.Stats.Settled.Add(blocks)
	r.Stats.Reused.Add(blocks - moved)
	return nil
}

// fillPart sets the blocks of a part, and what is kept between them.
func (r *run) fillPart(ctx context.Context, f Filler, p *part, keep func(int) error) error {
	frames := p.frames
	var buf []byte
	for len(frames) > 0 || p.near != (blockmap.Bitmap{}) {
		i := p.near.Next(0)
		if len(frames) > 0 {
			i = min(i, int(frames[0].Block%blockmap.Fanout))
		}
		if err := keep(i); err != nil {
			return err
		}
		d, _, _ := p.leaf.Node.Child(i)
		if p.near.Has(i) {
			p.near.Clear(i)
			if buf == nil {
				buf = make([]byte, snapferry.BlockSize)
			}
			if err := r.putNear(ctx, f, p.leaf, i, d, buf); err != nil {
				return err
			}
			continue
		}
		fr := frames[0]
		frames = frames[1:]
		err := error(nil)
		if p.lent.Has(i) {
			err = r.putLent(ctx, f, p.leaf, i, d, fr)
		} else {
			err = put(f, i, d, fr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put sets a block to a frame.
func put(f Filler, i int, d digest.Digest, fr Frame) error {
	if err := f.PutFrame(i, d, fr.Codec, fr.RawLength, fr.Payload); err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "from the source: %w", err)
	}
	return nil
}

// putNear sets a block that somebody had already; if it is gone again, or is not
// what it must be, it is asked for after all.
func (r *run) putNear(ctx context.Context, f Filler, l *leaf, i int, d digest.Digest, buf []byte) error {
	at := l.Leaf*blockmap.Fanout + uint64(i)
	if r.Near.Read(at, buf) && digest.Block(buf) == d {
		return f.Put(i, buf[:min(r.Info.Size-int64(at)*snapferry.BlockSize, snapferry.BlockSize)])
	}
	return r.putAsked(ctx, f, l, i, d)
}

// putAsked asks for a block alone, and sets it.
func (r *run) putAsked(ctx context.Context, f Filler, l *leaf, i int, d digest.Digest) error {
	return persist(ctx, func() (bool, error) {
		ctx, s, stop := watch(ctx, nodeSilence)
		defer stop()
		return false, why(ctx, r.putOne(ctx, f, l, i, d, s))
	})
}

// putOne asks for one block and sets it.
func (r *run) putOne(ctx context.Context, f Filler, l *leaf, i int, d digest.Digest, s *silence) error {
	var one blockmap.Bitmap
	one.Set(i)
	frames, err := r.Source.Blocks(ctx, []Want{{Leaf: l.Leaf, Blocks: one}})
	if err != nil {
		return err
	}
	defer frames.Close()
	fr, err := frames.Next()
	if errors.Is(err, io.EOF) {
		return snapferry.Errorf(snapferry.Unavailable, "the source ended its stream early")
	}
	if err != nil {
		return err
	}
	if err := s.hold(func() error { return r.pass(ctx, fr) }); err != nil {
		return err
	}
	if at := l.Leaf*blockmap.Fanout + uint64(i); fr.Block != at {
		return snapferry.Errorf(snapferry.Corrupt, "the source sent block %d where %d was asked for", fr.Block, at)
	}
	// The frame is valid until the stream ends, and has to be until the leaf does.
	fr.Payload = bytes.Clone(fr.Payload)
	return put(f, i, d, fr)
}
