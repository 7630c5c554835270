package recovery

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/segment"
)

// tailSize is how much of an object's end is read first: the directory, the
// footers and, of small versions, all nodes are usually there.
const tailSize = 32 << 10

// object is one of the bucket's, with what its directory says.
type object struct {
	name   string
	size   int64
	bodies []*body
}

// body is a segment in an object: one place where the segment could be.
type body struct {
	segment.DirEntry
	object *object
	header segment.Header
	slots  int // present
	last   int // highest slot
}

// segKey names a segment of a chain. The chain is that of the footer.
type segKey struct {
	chain   snapferry.ChainID
	segment snapferry.SegmentID
}

// seg is a segment and where it may be. After the objects were read only the
// walk of its chain uses it.
type seg struct {
	id      snapferry.SegmentID
	places  []*body // the best first
	chosen  int
	reached slots
	n       int // slots reached
	top     int // highest slot that any map names
	writer  snapferry.VersionID
}

func (s *seg) at() *body { return s.places[s.chosen] }

// slots is a set of slots of one segment.
type slots []byte

func (s slots) has(slot uint16) bool { return int(slot)/8 < len(s) && s[slot/8]&(1<<(slot%8)) != 0 }

func (s *slots) add(slot uint16) {
	for len(*s) <= int(slot)/8 {
		*s = append(*s, 0)
	}
	(*s)[slot/8] |= 1 << (slot % 8)
}

// inventory is what the objects of the bucket hold.
type inventory struct {
	cache    *cache
	sealer   func(ctx context.Context, chain snapferry.ChainID, id snapferry.SegmentID) (segment.Sealer, error)
	findings *findings
	objects  []*object
	segments map[segKey]*seg

	mu      sync.Mutex
	footers map[*body]*segment.Footer // a few
	frames  int
}

// maxFooterFrames bounds the footers in memory (about 12 MiB).
const maxFooterFrames = 1 << 18

// readObject reads the directory and the footers of an object.
func (v *inventory) readObject(ctx context.Context, o *object) error {
	n := min(o.size, tailSize)
	tail, err := v.cache.read(ctx, o.name, o.size, o.size-n, n)
	if err != nil {
		return err
	}
	span, err := segment.DirectorySpan(tail)
	if err != nil {
		return err
	}
	if int64(span) > o.size {
		return snapferry.Errorf(snapferry.Corrupt, "directory: longer than the object")
	}
	dir, err := v.cache.read(ctx, o.name, o.size, o.size-int64(span), int64(span))
	if err != nil {
		return err
	}
	entries, err := segment.DecodeDirectory(dir, o.size)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b := &body{DirEntry: e, object: o}
		f, err := v.readFooter(ctx, b)
		if err != nil {
			if !isFinding(err) {
				return err
			}
			v.findings.damage(o.name, snapferry.VersionID{}, "segment %s: %v", e.Segment, err)
			continue
		}
		b.header, b.slots, b.last = f.Header, f.Len(), int(f.At(f.Len()-1).Slot)
		o.bodies = append(o.bodies, b)
	}
	return nil
}

func (v *inventory) readFooter(ctx context.Context, b *body) (*segment.Footer, error) {
	end := b.Offset + b.Length
	tail, err := v.cache.read(ctx, b.object.name, b.object.size, end-segment.TrailerSize, segment.TrailerSize)
	if err != nil {
		return nil, err
	}
	span, err := segment.FooterSpan(tail)
	if err != nil {
		return nil, err
	}
	if int64(span) > b.Length {
		return nil, snapferry.Errorf(snapferry.Corrupt, "footer: longer than the segment")
	}
	if tail, err = v.cache.read(ctx, b.object.name, b.object.size, end-int64(span), int64(span)); err != nil {
		return nil, err
	}
	s, err := v.sealer(ctx, b.header.Chain, b.Segment)
	if err != nil {
		return nil, err
	}
	f, err := segment.DecodeFooter(tail, b.Length, s)
	if err == nil && f.Segment != b.Segment {
		err = snapferry.Errorf(snapferry.Corrupt, "its footer is that of segment %s", f.Segment)
	}
	return f, err
}

// footer returns the footer of a body, from memory if it is there.
func (v *inventory) footer(ctx context.Context, b *body) (*segment.Footer, error) {
	v.mu.Lock()
	f := v.footers[b]
	v.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := v.readFooter(ctx, b)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.frames+f.Len() > maxFooterFrames {
		clear(v.footers)
		v.frames = 0
	}
	if v.footers[b] == nil {
		v.footers[b] = f
		v.frames += f.Len()
	}
	return f, nil
}

// index puts the places of each segment in order: the highest generation first,
// and of two that differ in one generation the one whose bytes are sound.
func (v *inventory) index(ctx context.Context) error {
	for _, o := range v.objects {
		for _, b := range o.bodies {
			k := segKey{b.header.Chain, b.Segment}
			s := v.segments[k]
			if s == nil {
				s = &seg{id: b.Segment, top: -1}
				v.segments[k] = s
			}
			s.places = append(s.places, b)
		}
	}
	for _, s := range v.segments {
		slices.SortFunc(s.places, func(a, b *body) int {
			return cmp.Or(cmp.Compare(b.Generation, a.Generation), cmp.Compare(a.object.name, b.object.name))
		})
		if err := v.judge(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// judge looks at places of one generation that hold different bytes: those that
// are not sound go behind the others.
func (v *inventory) judge(ctx context.Context, s *seg) error {
	differ := false
	for i := 1; i < len(s.places); i++ {
		a, b := s.places[i-1], s.places[i]
		differ = differ || a.Generation == b.Generation && (a.CRC != b.CRC || a.Length != b.Length)
	}
	if !differ {
		return nil
	}
	var bad []*body
	for _, b := range s.places {
		err := v.verify(ctx, b)
		if err != nil && !isFinding(err) {
			return err
		}
		if err != nil {
			v.findings.damage(b.object.name, snapferry.VersionID{}, "segment %s, of which there are several in one generation: %v", s.id, err)
			bad = append(bad, b)
			continue
		}
		v.findings.note(b.object.name, snapferry.VersionID{}, "segment %s: there are several of generation %d that differ", s.id, b.Generation)
	}
	s.places = append(slices.DeleteFunc(s.places, func(b *body) bool { return slices.Contains(bad, b) }), bad...)
	return nil
}

// verify reads all of a body and checks each of its frames.
func (v *inventory) verify(ctx context.Context, b *body) error {
	f, err := v.footer(ctx, b)
	if err != nil {
		return err
	}
	p := make([]byte, b.Length)
	if err := v.cache.bucket.ReadAt(ctx, b.object.name, p, b.Offset); err != nil {
		return err
	}
	if segment.Checksum(p) != b.CRC {
		return snapferry.Errorf(snapferry.Corrupt, "its bytes are not those of the directory's checksum")
	}
	for i := range f.Len() {
		e := f.At(i)
		if err := e.Verify(p[e.Offset:][:e.Length]); err != nil {
			return err
		}
	}
	return nil
}

// entry returns what a place of a segment says of a slot; an error of Kind
// Corrupt when it is not what a map wants there.
func (v *inventory) entry(ctx context.Context, b *body, kind snapferry.FrameKind, at snapferry.Position, ref snapferry.Ref) (segment.Entry, error) {
	f, err := v.footer(ctx, b)
	if err != nil {
		return segment.Entry{}, err
	}
	e, ok := f.Find(ref.Slot)
	switch {
	case !ok:
		return e, snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s does not have slot %d", ref.Segment, b.object.name, ref.Slot)
	case !f.HasInfo():
		return e, snapferry.Errorf(snapferry.Unsupported, "segment %s is sealed, and the key of chain %s cannot be used", ref.Segment, b.header.Chain)
	case e.Info.Kind != kind || e.Info.Position != at || e.Length != ref.Length:
		return e, snapferry.Errorf(snapferry.Corrupt, "slot %d of segment %s in object %s has %s %s of %d bytes, not %s %s of %d",
			ref.Slot, ref.Segment, b.object.name, e.Info.Kind, place(e.Info.Position), e.Length, kind, place(at), ref.Length)
	}
	return e, nil
}

func place(at snapferry.Position) string { return fmt.Sprintf("%d/%d", at.Level, at.Index) }

// want settles that a map has a frame: another place of the segment is chosen
// when the present one does not have it and that one has everything. It returns
// why the frame is missing.
func (v *inventory) want(ctx context.Context, s *seg, kind snapferry.FrameKind, at snapferry.Position, ref snapferry.Ref) error {
	_, err := v.entry(ctx, s.at(), kind, at, ref)
	if err == nil || !isFinding(err) {
		return err
	}
	for i, b := range s.places {
		if i == s.chosen {
			continue
		}
		_, other := v.entry(ctx, b, kind, at, ref)
		if other == nil {
			var all bool
			if all, other = v.hasAll(ctx, b, s.reached); other == nil && all {
				v.findings.note(s.at().object.name, snapferry.VersionID{}, "segment %s of generation %d lacks slots; that of generation %d in object %s has them",
					s.id, s.at().Generation, b.Generation, b.object.name)
				s.chosen = i
				return nil
			}
		}
		if other != nil && !isFinding(other) {
			return other
		}
	}
	return err
}

// hasAll reports whether a place has all slots of a set.
func (v *inventory) hasAll(ctx context.Context, b *body, set slots) (bool, error) {
	f, err := v.footer(ctx, b)
	if err != nil {
		return false, err
	}
	for i, bits := range set {
		for j := range 8 {
			if bits&(1<<j) == 0 {
				continue
			}
			if _, ok := f.Find(uint16(i*8 + j)); !ok {
				return false, nil
			}
		}
	}
	return true, nil
}

// isFinding reports whether an error tells of the bucket's state, rather than
// of our not being able to look.
func isFinding(err error) bool {
	switch snapferry.KindOf(err) {
	case snapferry.Corrupt, snapferry.NotFound, snapferry.Unsupported:
		return true
	}
	return false
}

func lessKey(a, b segKey) int {
	return cmp.Or(bytes.Compare(a.chain[:], b.chain[:]), bytes.Compare(a.segment[:], b.segment[:]))
}
