package vault

import (
	"cmp"
	"context"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/segment"
)

const (
	// readSpan is the most that one ranged read of block frames asks for.
	readSpan = 4 << 20
	// readGap is the largest gap between two frames that is read over rather
	// than around.
	readGap = 128 << 10
	// readSlack is how much more than what is wanted a body may have to be read
	// whole, footer and all, when its footer is not known.
	readSlack = 4 << 10
)

// maxLoad is the most that the frames of a leaf take: they are no longer than
// their blocks, but for the seal, and lie in some runs.
const maxLoad = blockmap.LeafSpan + 1<<20

// A frame is one block as it is stored.
type frame struct {
	block   int // in its leaf
	entry   segment.Entry
	payload []byte
}

// A fetcher reads the frames of leaves in few ranged reads. It is for one
// goroutine; its buffers are reused.
type fetcher struct {
	v      *Vault
	buf    []byte
	frames []frame
	wants  []wanted
	places []place
	ids    []snapferry.SegmentID
	pieces []piece
}

// wanted is what a leaf wants of one segment.
type wanted struct {
	id     snapferry.SegmentID
	place  place
	footer *segment.Footer // nil: comes with the body, which is read whole
	sealer segment.Sealer  // nil: the chain is plain
	slots  []wantedSlot
	length int64 // of the wanted frames, bytes
}

type wantedSlot struct {
	block int // in the leaf
	slot  uint16
}

// A piece is a range of an object that is to be read: one frame, or the whole
// body of a segment.
type piece struct {
	from, to int64 // in the object
	want     int   // number of the segment
	frame    int   // number of the frame; -1: whole body
}

// load returns the frames of the blocks of leaf that want has, in the order of
// blocks. Their checksums are good; the caller must check the digests. They
// are valid until the next load.
func (r *fetcher) load(ctx context.Context, leaf uint64, n *blockmap.Node, want blockmap.Bitmap) ([]frame, error) {
	r.frames, r.buf = r.frames[:0], r.buf[:0]
	total := r.collect(n, want)
	if total = min(total, maxLoad); cap(r.buf) < total {
		r.buf = blob.AlignedBuffer(total + total/4)
	}
	for try := 0; ; try++ {
		if err := r.place(ctx, try > 0); err != nil {
			return nil, err
		}
		failed, err := r.loadAll(ctx, leaf, try > 0)
		if err != nil {
			return nil, err
		}
		if len(failed) == 0 {
			break
		}
		for i := range failed {
			r.v.loc.forget(failed[i].id)
		}
		r.wants = failed
	}
	slices.SortFunc(r.frames, func(a, b frame) int { return a.block - b.block })
	return r.frames, nil
}

// collect sets r.wants to what is wanted of each segment, and returns about how
// many bytes that is.
func (r *fetcher) collect(n *blockmap.Node, want blockmap.Bitmap) (total int) {
	number := map[snapferry.SegmentID]int{}
	r.wants = r.wants[:0]
	for b := range want.All() {
		_, ref, ok := n.Child(b)
		if !ok {
			continue
		}
		total += int(ref.Length) + 2*readSlack
		i, ok := number[ref.Segment]
		if !ok {
			i = len(r.wants)
			number[ref.Segment] = i
			r.wants = append(r.wants, wanted{id: ref.Segment})
		}
		w := &r.wants[i]
		w.slots = append(w.slots, wantedSlot{b, ref.Slot})
		w.length += int64(ref.Length)
	}
	return total
}

// place finds the wanted segments and orders them as they lie in their objects.
func (r *fetcher) place(ctx context.Context, fresh bool) error {
	r.ids = r.ids[:0]
	for i := range r.wants {
		r.ids = append(r.ids, r.wants[i].id)
	}
	r.places = slices.Grow(r.places[:0], len(r.ids))[:len(r.ids)]
	if err := r.v.loc.find(ctx, r.ids, r.places, fresh); err != nil {
		return err
	}
	for i := range r.wants {
		r.wants[i].place = r.places[i]
	}
	slices.SortFunc(r.wants, func(a, b wanted) int {
		return cmp.Or(cmp.Compare(a.place.object, b.place.object), cmp.Compare(a.place.offset, b.place.offset))
	})
	return nil
}

// loadAll loads what is wanted, object by object. It returns what could not be
// loaded from where it was thought to be; the last time that is an error.
func (r *fetcher) loadAll(ctx context.Context, leaf uint64, last bool) (failed []wanted, err error) {
	for rest := r.wants; len(rest) > 0; {
		k := 1
		for k < len(rest) && rest[k].place.object == rest[0].place.object {
			k++
		}
		frames, used := len(r.frames), len(r.buf)
		bad, err := r.loadObject(ctx, leaf, rest[:k])
		if err != nil {
			r.frames, r.buf = r.frames[:frames], r.buf[:used]
			if last || !stale(err) {
				return nil, r.v.loc.settle(ctx, err, bad.id, bad.place)
			}
			failed = append(failed, rest[:k]...)
		}
		rest = rest[k:]
	}
	return failed, nil
}

// loadObject loads what is wanted of the segments in one object. With an error
// it returns the segment that it is about.
func (r *fetcher) loadObject(ctx context.Context, leaf uint64, wants []wanted) (bad *wanted, err error) {
	r.pieces = r.pieces[:0]
	for i := range wants {
		w := &wants[i]
		p := w.place
		if w.sealer, err = r.v.sealerOf(ctx, p.chain, w.id); err != nil {
			return w, err
		}
		if w.footer = r.v.loc.known(w.id, p); w.footer == nil {
			if p.length <= w.length+w.length/4+readSlack {
				r.pieces = append(r.pieces, piece{from: p.offset, to: p.offset + p.length, want: i, frame: -1})
				continue
			}
			if w.footer, err = r.v.loc.footer(ctx, w.id, p); err != nil {
				return w, err
			}
		}
		from := len(r.frames)
		if err := r.locate(leaf, w); err != nil {
			return w, wrapSegment(err, w.id, p)
		}
		for j := from; j < len(r.frames); j++ {
			at := p.offset + int64(r.frames[j].entry.Offset)
			r.pieces = append(r.pieces, piece{from: at, to: at + int64(r.frames[j].entry.Length), want: i, frame: j})
		}
	}
	slices.SortFunc(r.pieces, func(a, b piece) int { return cmp.Compare(a.from, b.from) })
	for todo := r.pieces; len(todo) > 0; {
		k := runOf(todo)
		if bad, err := r.read(ctx, leaf, wants, todo[:k]); err != nil {
			return bad, err
		}
		todo = todo[k:]
	}
	return nil, nil
}

// locate appends to r.frames the frames that are wanted of a segment whose
// footer is known.
func (r *fetcher) locate(leaf uint64, w *wanted) error {
	for _, s := range w.slots {
		e, ok := w.footer.Find(s.slot)
		at := snapferry.Position{Index: leaf*blockmap.Fanout + uint64(s.block)}
		if !ok {
			return snapferry.Errorf(snapferry.Corrupt, "slot %d does not have block %d: %w", s.slot, at.Index, &noSlot{s.slot})
		}
		if e.Info.Kind != snapferry.BlockFrame || e.Info.Position != at {
			return snapferry.Errorf(snapferry.Corrupt, "slot %d does not have block %d", s.slot, at.Index)
		}
		r.frames = append(r.frames, frame{block: s.block, entry: e})
	}
	return nil
}

// runOf returns how many pieces from the first one on make one ranged read.
func runOf(ps []piece) int {
	start, end := ps[0].from, ps[0].to
	for k := 1; k < len(ps); k++ {
		if ps[k].from-end > readGap || ps[k].to-start > readSpan {
			return k
		}
		end = max(end, ps[k].to)
	}
	return len(ps)
}

// read fetches one run and checks the checksums of its frames. It reads whole
// pages into whole pages, so that a bucket in a directory can go past the page
// cache.
func (r *fetcher) read(ctx context.Context, leaf uint64, wants []wanted, run []piece) (bad *wanted, err error) {
	bad = &wants[run[0].want]
	start, end := run[0].from, run[len(run)-1].to
	// Of the object's end only what metadata vouches for is sure to be there.
	limit := int64(0)
	for i := range run {
		p := wants[run[i].want].place
		limit = max(limit, p.offset+p.length)
	}
	lo, hi := start&^(blob.Alignment-1), min((end+blob.Alignment-1)&^(blob.Alignment-1), max(limit, end))
	n, from := int(hi-lo), (len(r.buf)+blob.Alignment-1)&^(blob.Alignment-1)
	if cap(r.buf) < from+n {
		// Frames that were read keep the old buffer alive.
		r.buf, from = blob.AlignedBuffer(max(n, cap(r.buf)))[:0], 0
	}
	r.buf = r.buf[:from+n]
	buf := r.buf[from:]
	if err := r.v.bucket.ReadAt(ctx, wants[run[0].want].place.object, buf, lo); err != nil {
		return bad, wrapSegment(err, bad.id, bad.place)
	}
	for _, x := range run {
		w, p := &wants[x.want], buf[x.from-lo:x.to-lo]
		if x.frame < 0 {
			err = r.unpack(ctx, leaf, w, p)
		} else {
			err = r.take(x.frame, w.sealer, p)
		}
		if err != nil {
			return w, wrapSegment(err, w.id, w.place)
		}
	}
	return nil, nil
}

// take checks a stored frame, and opens it where it lies if it is sealed.
func (r *fetcher) take(i int, s segment.Sealer, stored []byte) (err error) {
	f := &r.frames[i]
	f.payload = stored
	if err := f.entry.Verify(stored); err != nil || s == nil {
		return err
	}
	f.payload, err = s.Open(stored[:0:len(stored)], stored, f.entry.Slot, f.entry.Info)
	return err
}

// unpack takes the frames that are wanted of a body that was read whole.
func (r *fetcher) unpack(ctx context.Context, leaf uint64, w *wanted, body []byte) (err error) {
	if w.footer, err = r.v.decodeFooter(ctx, body, w.id, w.place); err != nil {
		return err
	}
	r.v.loc.remember(w.id, w.place, w.footer)
	from := len(r.frames)
	if err := r.locate(leaf, w); err != nil {
		return err
	}
	for i := from; i < len(r.frames); i++ {
		e := r.frames[i].entry
		if err := r.take(i, w.sealer, body[e.Offset:][:e.Length]); err != nil {
			return err
		}
	}
	return nil
}
