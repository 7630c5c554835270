package vault

import (
	"context"
	"errors"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/segment"
)

// A place is where a segment's body is: part of an object.
type place struct {
	object         string
	offset, length int64
	kind           snapferry.FrameKind
}

// locators remembers where segments are and what is in them. Both are small:
// a place is a row, a footer some 25 bytes a frame.
type locators struct {
	v  *Vault
	mu sync.Mutex
	// guarded by mu; dropped whole when they grow past maxLocators
	places  map[snapferry.SegmentID]place
	footers map[snapferry.SegmentID]*segment.Footer
	frames  int
}

const (
	maxPlaces       = 1 << 16
	maxFooterFrames = 1 << 18 // about 12 MiB of entries
)

func newLocators(v *Vault) *locators {
	return &locators{v: v, places: map[snapferry.SegmentID]place{}, footers: map[snapferry.SegmentID]*segment.Footer{}}
}

// place finds a segment; fresh asks the metadata again.
func (l *locators) place(ctx context.Context, id snapferry.SegmentID, fresh bool) (place, error) {
	l.mu.Lock()
	p, ok := l.places[id]
	l.mu.Unlock()
	if ok && !fresh {
		return p, nil
	}
	var s meta.Segment
	err := l.v.db.View(ctx, func(tx *meta.Tx) (err error) {
		s, err = tx.Segment(id)
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && s.State != meta.SegmentLive {
		return place{}, snapferry.Errorf(snapferry.Corrupt, "segment %s is not in the metadata", id).WithHint("run: snapferry fsck --deep")
	}
	if err != nil {
		return place{}, err
	}
	p = place{object: s.Object, offset: s.Offset, length: s.Length, kind: s.Kind}
	l.mu.Lock()
	if len(l.places) >= maxPlaces {
		clear(l.places)
	}
	l.places[id] = p
	l.mu.Unlock()
	return p, nil
}

// forget drops what is remembered of a segment.
func (l *locators) forget(id snapferry.SegmentID) {
	l.v.windows.Invalidate(windowKey{id, 0}) // a small node segment's footer lies there
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.places, id)
	if f := l.footers[id]; f != nil {
		l.frames -= f.Len()
		delete(l.footers, id)
	}
}

// retry runs fn with the place of a segment, and once more with a fresh one
// when the first was stale: the object gone or its bytes not what they must be.
func (l *locators) retry(ctx context.Context, id snapferry.SegmentID, fn func(place, *segment.Footer) error) error {
	for try := 0; ; try++ {
		p, err := l.place(ctx, id, try > 0)
		if err != nil {
			return err
		}
		f, err := l.footer(ctx, id, p)
		if err == nil {
			err = fn(p, f)
		}
		if err == nil || try > 0 || !(snapferry.IsKind(err, snapferry.NotFound) || snapferry.IsKind(err, snapferry.Corrupt)) {
			if snapferry.IsKind(err, snapferry.NotFound) {
				return snapferry.Errorf(snapferry.Corrupt, "segment %s: object %s is missing from the bucket", id, p.object)
			}
			return err
		}
		l.forget(id)
	}
}

// footer reads and remembers the footer of a segment.
func (l *locators) footer(ctx context.Context, id snapferry.SegmentID, p place) (*segment.Footer, error) {
	l.mu.Lock()
	f := l.footers[id]
	l.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := l.v.readFooter(ctx, id, p)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if have := l.footers[id]; have != nil {
		return have, nil
	}
	if l.frames+f.Len() > maxFooterFrames {
		clear(l.footers)
		l.frames = 0
	}
	l.footers[id] = f
	l.frames += f.Len()
	return f, nil
}

// footerGuess is how much of a body's end is read first: the footer of a full
// block segment of ordinary frames fits.
const footerGuess = 64 << 10

func (v *Vault) readFooter(ctx context.Context, id snapferry.SegmentID, p place) (*segment.Footer, error) {
	n := min(p.length, footerGuess)
	var tail []byte
	var err error
	if p.kind == snapferry.NodeFrame && p.length <= windowSize {
		// A small node segment comes whole: its nodes are wanted next.
		if tail, err = v.window(ctx, id, p, 0); err == nil {
			tail = tail[p.length-n:]
		}
	} else {
		tail = make([]byte, n)
		err = v.bucket.ReadAt(ctx, p.object, tail, p.offset+p.length-n)
	}
	if err != nil {
		return nil, err
	}
	if n < segment.TrailerSize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s has only %d bytes", id, p.object, n)
	}
	span, err := segment.FooterSpan(tail[n-segment.TrailerSize:])
	if err == nil && int64(span) > n && int64(span) <= p.length {
		tail = make([]byte, span)
		err = v.bucket.ReadAt(ctx, p.object, tail, p.offset+p.length-int64(span))
	}
	var f *segment.Footer
	if err == nil {
		f, err = segment.DecodeFooter(tail, p.length, nil)
	}
	if err != nil {
		return nil, wrapSegment(err, id, p)
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
