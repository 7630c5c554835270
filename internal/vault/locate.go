package vault

import (
	"context"
	"errors"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/segment"
)

// A place is where a segment's body is: part of an object. Objects never
// change, so what was read under a place stays right for that place; it may
// only stop to be where the segment is.
type place struct {
	object         string
	chain          snapferry.ChainID
	offset, length int64
	end            int64 // of the object
	generation     uint32
	kind           snapferry.FrameKind
}

// located is a footer and the place it was read from. With another place of the
// same segment it must never be used.
type located struct {
	place  place
	footer *segment.Footer
}

// locators remembers where segments are and what is in them. Both are small:
// a place is a row, a footer some 29 bytes a frame.
type locators struct {
	v  *Vault
	mu sync.Mutex
	// guarded by mu; dropped whole when they grow past maxPlaces, maxFooters
	places  map[snapferry.SegmentID]place
	footers map[snapferry.SegmentID]located
	weight  int
}

const (
	maxPlaces  = 1 << 16
	maxFooters = 1 << 18 // in frames: about 12 MiB
	// footerWeight is what a footer weighs beside its frames, in frames.
	footerWeight = 8
)

func newLocators(v *Vault) *locators {
	return &locators{v: v, places: map[snapferry.SegmentID]place{}, footers: map[snapferry.SegmentID]located{}}
}

// find finds segments and puts their places where they are asked for, by
// number; fresh asks the metadata again.
func (l *locators) find(ctx context.Context, ids []snapferry.SegmentID, places []place, fresh bool) error {
	var ask []int
	l.mu.Lock()
	for i, id := range ids {
		p, ok := l.places[id]
		if places[i] = p; !ok || fresh {
			ask = append(ask, i)
		}
	}
	l.mu.Unlock()
	if len(ask) == 0 {
		return nil
	}
	err := l.v.db.View(ctx, func(tx *meta.Tx) (err error) {
		for _, i := range ask {
			if places[i], err = placeOf(tx, ids[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.places)+len(ask) > maxPlaces {
		clear(l.places)
	}
	for _, i := range ask {
		l.places[ids[i]] = places[i]
	}
	return nil
}

func placeOf(tx *meta.Tx, id snapferry.SegmentID) (place, error) {
	s, err := tx.Segment(id)
	switch {
	case snapferry.IsKind(err, snapferry.NotFound):
		return place{}, snapferry.Errorf(snapferry.NotFound, "segment %s was freed", id)
	case err != nil:
		return place{}, err
	case s.State != meta.SegmentLive:
		return place{}, snapferry.Errorf(snapferry.Corrupt, "segment %s is not durable", id).WithHint("run: snapferry fsck --deep")
	}
	p := place{object: s.Object, chain: s.Chain, offset: s.Offset, length: s.Length, end: s.Offset + s.Length, generation: s.Generation, kind: s.Kind}
	o, err := tx.Object(s.Object)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return p, nil
	}
	p.end = max(p.end, o.Size)
	return p, err
}

// forget drops what is remembered of a segment.
func (l *locators) forget(id snapferry.SegmentID) {
	l.mu.Lock()
	p, ok := l.places[id]
	delete(l.places, id)
	if f := l.footers[id].footer; f != nil {
		l.weight -= f.Len() + footerWeight
		delete(l.footers, id)
	}
	l.mu.Unlock()
	if ok {
		l.v.forgetWindows(p, p.length-min(p.length, windowSize), p.length) // the footer lies there
	}
}

// noSlot says that a segment does not have a slot.
type noSlot struct{ slot uint16 }

func (e *noSlot) Error() string { return "the segment does not have the slot" }

// stale reports whether an error of a read can come from a place where the
// segment is not any more: the object gone, or its bytes not what they must be.
func stale(err error) bool {
	return snapferry.IsKind(err, snapferry.NotFound) || snapferry.IsKind(err, snapferry.Corrupt)
}

// retry runs fn with the place of a segment, and once more with a fresh one
// when the first was stale.
func (l *locators) retry(ctx context.Context, id snapferry.SegmentID, fn func(place, *segment.Footer) error) error {
	for try := 0; ; try++ {
		places := [1]place{}
		if err := l.find(ctx, []snapferry.SegmentID{id}, places[:], try > 0); err != nil {
			return err
		}
		p := places[0]
		f, err := l.footer(ctx, id, p)
		if err == nil {
			err = fn(p, f)
		}
		if err == nil || !stale(err) {
			return err
		}
		if try > 0 {
			return l.settle(ctx, err, id, p)
		}
		l.forget(id)
	}
}

// settle gives the error of a last try its Kind: what metadata says is there
// and is not is damage, but not what was freed.
func (l *locators) settle(ctx context.Context, err error, id snapferry.SegmentID, p place) error {
	var no *noSlot
	if errors.As(err, &no) && l.freed(ctx, id, no.slot) {
		return snapferry.Errorf(snapferry.NotFound, "slot %d of segment %s was freed", no.slot, id)
	}
	if snapferry.IsKind(err, snapferry.NotFound) {
		return snapferry.Errorf(snapferry.Corrupt, "segment %s: object %s is missing from the bucket", id, p.object)
	}
	return err
}

// freed reports whether a slot that a segment does not have was freed.
func (l *locators) freed(ctx context.Context, id snapferry.SegmentID, slot uint16) (dead bool) {
	_ = l.v.db.View(ctx, func(tx *meta.Tx) error { // without an answer it was not
		s, err := tx.Segment(id)
		dead = snapferry.IsKind(err, snapferry.NotFound) || err == nil && slotSet(s.DeadSlots).has(slot)
		return nil
	})
	return dead
}

// known returns the footer of a segment if it was read from that place before.
func (l *locators) known(id snapferry.SegmentID, p place) *segment.Footer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.footers[id]; f.place == p {
		return f.footer
	}
	return nil
}

// remember keeps a footer.
func (l *locators) remember(id snapferry.SegmentID, p place, f *segment.Footer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.footers[id].footer; old != nil {
		l.weight -= old.Len() + footerWeight
	}
	if l.weight+f.Len()+footerWeight > maxFooters {
		clear(l.footers)
		l.weight = 0
	}
	l.footers[id] = located{place: p, footer: f}
	l.weight += f.Len() + footerWeight
}

// footer reads and remembers the footer of a segment.
func (l *locators) footer(ctx context.Context, id snapferry.SegmentID, p place) (*segment.Footer, error) {
	if f := l.known(id, p); f != nil {
		return f, nil
	}
	f, err := l.v.readFooter(ctx, id, p)
	if err == nil {
		l.remember(id, p, f)
	}
	return f, err
}

const (
	// footerGuess is how much of a body's end is read first: the footer of a full
	// block segment of ordinary frames fits.
	footerGuess = 64 << 10
	// nodeTail is how much before the end of a node segment is read with its footer,
	// in windows: what a version wrote of its map lies in a row, the root last.
	nodeTail = 4
)

func (v *Vault) readFooter(ctx context.Context, id snapferry.SegmentID, p place) (*segment.Footer, error) {
	n := min(p.length, footerGuess)
	tail, err := v.tail(ctx, p, n)
	if err != nil {
		return nil, err
	}
	if n < segment.TrailerSize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s has only %d bytes", id, p.object, n)
	}
	span, err := segment.FooterSpan(tail[n-segment.TrailerSize:])
	if err == nil && int64(span) > n && int64(span) <= p.length {
		tail, err = v.tail(ctx, p, int64(span))
	}
	if err != nil {
		return nil, wrapSegment(err, id, p)
	}
	return v.decodeFooter(ctx, tail, id, p)
}

// tail returns the last n bytes of a body. What has neighbours that may be wanted
// too comes by windows: a node segment, whose nodes are wanted next, and what is
// small and compaction put together.
func (v *Vault) tail(ctx context.Context, p place, n int64) ([]byte, error) {
	switch {
	case p.kind == snapferry.NodeFrame:
		last := (p.offset + p.length - 1) / windowSize
		if _, err := v.getWindows(ctx, p, max(last-nodeTail+1, 0), last); err != nil && !stale(err) {
			return nil, err
		}
		return v.windowed(ctx, p, p.length-n, n)
	case p.generation > 0 && p.length <= windowSize:
		return v.windowed(ctx, p, p.length-n, n)
	}
	b := make([]byte, n)
	return b, v.bucket.ReadAt(ctx, p.object, b, p.offset+p.length-n)
}

// decodeFooter reads the footer at the end of tail, which ends where the body
// does.
func (v *Vault) decodeFooter(ctx context.Context, tail []byte, id snapferry.SegmentID, p place) (*segment.Footer, error) {
	s, err := v.sealerOf(ctx, p.chain, id)
	if err != nil {
		return nil, err
	}
	f, err := segment.DecodeFooter(tail, p.length, s)
	if err != nil {
		return nil, wrapSegment(err, id, p)
	}
	if !f.HasInfo() {
		return nil, snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s is sealed, in chain %s, which is not encrypted", id, p.object, p.chain)
	}
	if f.Segment != id {
		return nil, snapferry.Errorf(snapferry.Corrupt, "object %s has segment %s where %s must be", p.object, f.Segment, id)
	}
	return f, nil
}

// wrapSegment says where bytes were that proved wrong, keeping the Kind.
func wrapSegment(err error, id snapferry.SegmentID, p place) error {
	var e *snapferry.Error
	if errors.As(err, &e) {
		return snapferry.Errorf(e.Kind, "segment %s in object %s: %w", id, p.object, err)
	}
	return snapferry.Errorf(snapferry.Unavailable, "read segment %s in object %s: %w", id, p.object, err)
}
