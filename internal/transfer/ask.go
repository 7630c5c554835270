package transfer

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
)

const (
	// A request has at most so many stored bytes, blocks and leaves. A quarter of
	// a leaf is what a source reads at once. See pace.size for smaller ones.
	askBytes  = 4 << 20
	leastAsk  = 1 << 20
	askBlocks = blockmap.Fanout
	askLeaves = 64
	// A leaf is cut into pieces of so many blocks: a quarter, or as many as the least
	// request has if they cannot be compressed.
	quarter   = blockmap.Fanout / 4
	sixteenth = blockmap.Fanout / 16
)

// A leaf is a step with its ticket, until it is filled.
type leaf struct {
	Step
	ticket Ticket
	parts  []*part
	coming atomic.Int32 // parts that have not come whole
	handed atomic.Bool  // to those who fill leaves
}

// borrows reports whether a donor has something of the leaf.
func (l *leaf) borrows() bool { return l.Lent != (blockmap.Bitmap{}) }

// room is the bytes that block i takes at most when it has come. The frames of a donor
// may be longer than the source's, and come in another order.
func (l *leaf) room(i int) int64 {
	if l.borrows() {
		return snapferry.BlockSize
	}
	return lengthOf(l.Node, l.Node.Presence.Rank(i))
}

// A part is what one request brings of a leaf.
type part struct {
	leaf   *leaf
	ask    *ask
	rest   blockmap.Bitmap // blocks that have not come
	near   blockmap.Bitmap // blocks that somebody has already
	lent   blockmap.Bitmap // blocks that came from a donor
	frames []Frame         // that came; ascending when it has come whole
	whole  chan struct{}   // closed when it has come whole
}

// An ask is what one request asks for: part of one leaf, or several small leaves.
// Either a donor has something of each of them, or of none.
type ask struct {
	lent   bool // a donor has something of each
	parts  []*part
	bytes  int64        // stored ones that it wants
	blocks int          // that it wants
	most   int          // chunks for what it wants
	last   int64        // bytes used of the last of them
	chunks [][]byte     // what came
	unused atomic.Int32 // parts that were not filled in
}

// memory is the bytes that an ask takes from when it is made until what it brought
// is filled in.
func (a *ask) memory() int64 { return streamBytes + a.chunkBytes() }

// chunkBytes is the part of it that is not the stream's.
func (a *ask) chunkBytes() int64 { return int64(a.most) * chunkSize }

// add adds a part of a leaf.
func (a *ask) add(l *leaf, want blockmap.Bitmap, bytes int64) {
	p := &part{leaf: l, ask: a, rest: want, whole: make(chan struct{})}
	a.lent = l.borrows()
	for i := range want.All() {
		// As the frames come, or shorter ones, which take no more.
		n := l.room(i)
		if a.most == 0 || a.last+n > chunkSize {
			a.most, a.last = a.most+1, 0
		}
		a.last += n
	}
	l.parts = append(l.parts, p)
	l.coming.Add(1)
	a.parts = append(a.parts, p)
	a.unused.Add(1)
	a.bytes += bytes
	a.blocks += want.Count()
}

// full reports whether an ask of so many bytes has no room for more.
func (a *ask) full(most int64) bool {
	return a.bytes >= most || a.blocks >= askBlocks || len(a.parts) >= askLeaves
}

// lengthOf is the stored bytes of the k-th block of a leaf: its frame is never
// longer.
func lengthOf(n *blockmap.Node, k int) int64 {
	if k >= len(n.Refs) {
		return 0
	}
	return min(int64(n.Refs[k].Length), snapferry.BlockSize)
}

// split cuts what a leaf wants in parts of at most so many bytes, or a little more, at
// quarters or sixteenths of the leaf, and calls add with each.
func split(l *leaf, most int64, add func(want blockmap.Bitmap, bytes int64)) {
	var want blockmap.Bitmap
	var bytes int64
	piece := quarter
	if most < askBytes {
		piece = sixteenth
	}
	for q := 0; q < blockmap.Fanout; q += piece {
		var more blockmap.Bitmap
		var n int64
		for i := l.Want.Next(q); i < q+piece; i = l.Want.Next(i + 1) {
			more.Set(i)
			n += l.room(i)
		}
		if want != (blockmap.Bitmap{}) && bytes+n > most {
			add(want, bytes)
			want, bytes = blockmap.Bitmap{}, 0
		}
		for i := range more.All() {
			want.Set(i)
		}
		bytes += n
	}
	if want != (blockmap.Bitmap{}) {
		add(want, bytes)
	}
}

// takeNear takes what came already out of what an ask wants.
func (a *ask) takeNear(n Near) {
	if n == nil {
		return
	}
	for _, p := range a.parts {
		for i := range p.rest.All() {
			if n.Has(p.leaf.Leaf*blockmap.Fanout + uint64(i)) {
				p.near.Set(i)
			}
		}
		for i := range p.near.All() {
			p.rest.Clear(i)
		}
	}
}

// fetch brings what an ask wants, and hands on each leaf that is whole. A request
// that fails and may not the next time is made again for what did not come.
func (r *run) fetch(ctx context.Context, a *ask, f *flight) error {
	a.takeNear(r.Near)
	if err := r.borrow(ctx, a); err != nil {
		return err
	}
	for _, p := range a.parts {
		if p.rest == (blockmap.Bitmap{}) {
			if err := r.came(ctx, p); err != nil {
				return err
			}
		}
	}
	seen := r.Stats.Blocks.Load()
	return persist(ctx, func() (came bool, err error) {
		ctx, end := r.pace.start(ctx, f)
		defer end()
		err = r.stream(ctx, a, f)
		before := seen
		seen = r.Stats.Blocks.Load()
		return seen > before, why(ctx, err)
	})
}

// stream makes one request for what has not come of an ask.
func (r *run) stream(ctx context.Context, a *ask, f *flight) error {
	var want []Want
	var left []*part
	for _, p := range a.parts {
		if p.rest != (blockmap.Bitmap{}) {
			want, left = append(want, Want{Leaf: p.leaf.Leaf, Blocks: p.rest}), append(left, p)
		}
	}
	if len(want) == 0 {
		return nil
	}
	frames, err := r.Source.Blocks(ctx, want)
	if err != nil {
		return err
	}
	defer frames.Close()
	for _, p := range left {
		for i := p.rest.Next(0); i < blockmap.Fanout; i = p.rest.Next(i + 1) {
			fr, err := frames.Next()
			if errors.Is(err, io.EOF) {
				return snapferry.Errorf(snapferry.Unavailable, "the source ended its stream early")
			}
			if err != nil {
				return err
			}
			r.pace.arrived(f, len(fr.Payload))
			if err := r.pace.hold(f, func() error { return r.pass(ctx, fr) }); err != nil {
				return err
			}
			if most := lengthOf(p.leaf.Node, p.leaf.Node.Presence.Rank(i)); int64(len(fr.Payload)) > most {
				return snapferry.Errorf(snapferry.Corrupt, "the source sent %d bytes for block %d, which has %d by its map", len(fr.Payload), fr.Block, most)
			}
			if err := r.keep(p, i, fr); err != nil {
				return err
			}
		}
		if err := r.came(ctx, p); err != nil {
			return err
		}
	}
	_, err = frames.Next()
	switch {
	case err == nil:
		return snapferry.Errorf(snapferry.Corrupt, "the source sent more blocks than were asked for")
	case errors.Is(err, io.EOF) || snapferry.IsKind(err, snapferry.Unavailable):
		return nil // all is here, also if the end was cut
	}
	return err
}

// pass counts a frame that came, and returns when it passes the limit.
func (r *run) pass(ctx context.Context, f Frame) error {
	r.Stats.Moved.Add(int64(len(f.Payload)))
	r.Stats.Blocks.Add(1)
	if r.Limit == nil {
		return nil
	}
	return r.Limit(ctx, len(f.Payload))
}

// keep copies a frame, which must be that of block i.
func (r *run) keep(p *part, i int, f Frame) error {
	if at := p.leaf.Leaf*blockmap.Fanout + uint64(i); f.Block != at {
		return snapferry.Errorf(snapferry.Corrupt, "the source sent block %d where %d was asked for", f.Block, at)
	}
	a := p.ask
	k := len(a.chunks) - 1
	if k < 0 || cap(a.chunks[k])-len(a.chunks[k]) < len(f.Payload) {
		c, err := r.budget.chunk()
		if err != nil {
			return err
		}
		a.chunks = append(a.chunks, c)
		k++
	}
	off := len(a.chunks[k])
	a.chunks[k] = append(a.chunks[k], f.Payload...)
	f.Payload = a.chunks[k][off:]
	p.frames = append(p.frames, f)
	p.rest.Clear(i)
	return nil
}

// came notes that a part is whole; with the last one its leaf can be filled.
func (r *run) came(ctx context.Context, p *part) error {
	if p.lent != (blockmap.Bitmap{}) {
		slices.SortFunc(p.frames, func(x, y Frame) int { return cmp.Compare(x.Block, y.Block) })
	}
	close(p.whole)
	if p.leaf.coming.Add(-1) > 0 {
		return nil
	}
	return r.hand(ctx, p.leaf)
}

// used gives back the memory of parts that were filled in.
func (r *run) used(parts []*part) {
	for _, p := range parts {
		p.frames = nil
		if a := p.ask; a.unused.Add(-1) == 0 {
			r.budget.done(a.chunkBytes(), a.chunks)
			a.chunks = nil
		}
	}
}
