package vault

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/segment"
)

const (
	// mergeReaders is how many objects are read at a time, each in ranges of up
	// to mergeSpan bytes.
	mergeReaders = 4
	mergeSpan    = 2 << 20
	// mergeScratch is the memory of those ranges and of the pages around them.
	mergeScratch = mergeReaders*mergeSpan + blob.Alignment
	// maxMerged is the largest merged object, in bytes.
	maxMerged = bufferSize - mergeScratch
	// footerReaders is how many objects' footers are read at a time.
	footerReaders = 8
)

// A source is an object whose segments are to be moved.
type source struct {
	row      meta.Object
	segments []meta.Segment    // by offset
	footers  []*segment.Footer // of each
	bodies   []*mergedBody     // of each
	damage   error             // why it cannot be read
}

// A mergedBody is a segment in the merged object.
type mergedBody struct {
	source  *source
	number  int // of the segment in its source
	offset  int64
	length  int64
	first   segment.Entry // that is kept
	entry   segment.DirEntry
	written *segment.Writer
	sealer  segment.Sealer // nil: the chain is plain
}

func (b *mergedBody) segment() *meta.Segment  { return &b.source.segments[b.number] }
func (b *mergedBody) footer() *segment.Footer { return b.source.footers[b.number] }

// kept calls fn for each frame of the segment that was not dead when it was
// read, by slot, until fn returns false.
func (b *mergedBody) kept(fn func(segment.Entry) bool) {
	f, dead := b.footer(), slotSet(b.segment().DeadSlots)
	for i := range f.Len() {
		if e := f.At(i); !dead.has(e.Slot) && !fn(e) {
			return
		}
	}
}

// A merger makes one merged object. The footers tell how long each body becomes,
// so each has its place before a frame is read, and every source is read once,
// from its beginning to its end.
type merger struct {
	v       *Vault
	chain   snapferry.ChainID
	sources []*source
	bodies  []*mergedBody // in the order of the merged object
	size    int64         // of the merged object
	over    string        // a source that did not fit, when none did
	read    atomic.Int64  // bytes
}

func (m *merger) damaged() bool {
	return slices.ContainsFunc(m.sources, func(s *source) bool { return s.damage != nil })
}

// note keeps an error that says that a source's bytes are not what they must
// be, and returns others.
func (s *source) note(err error) error {
	switch snapferry.KindOf(err) {
	case snapferry.Corrupt, snapferry.NotFound, snapferry.Unsupported:
		s.damage = err
		return nil
	}
	return err
}

// each runs fn for each source, n at a time.
func (m *merger) each(ctx context.Context, n int, fn func(ctx context.Context, s *source, reader int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for reader := range min(n, len(m.sources)) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(m.sources) {
					return nil
				}
				s := m.sources[i]
				if err := fn(ctx, s, reader); err != nil {
					if err = s.note(err); err != nil {
						return err
					}
				}
			}
		})
	}
	return g.Wait()
}

// readFooters reads the footers of all sources, those that lie close together
// in one range.
func (m *merger) readFooters(ctx context.Context) error {
	return m.each(ctx, footerReaders, func(ctx context.Context, s *source, _ int) error {
		s.footers = make([]*segment.Footer, len(s.segments))
		for i := 0; i < len(s.segments); {
			// From here on as far as one range goes.
			from, to, k := s.footerFrom(i), s.segments[i].Offset+s.segments[i].Length, i+1
			for ; k < len(s.segments); k++ {
				end := s.segments[k].Offset + s.segments[k].Length
				if s.footerFrom(k)-to > readGap || end-from > mergeSpan {
					break
				}
				to = end
			}
			buf := make([]byte, to-from)
			m.read.Add(to - from)
			if err := m.v.bucket.ReadAt(ctx, s.row.Name, buf, from); err != nil {
				return err
			}
			for ; i < k; i++ {
				if err := s.decodeFooter(ctx, m.v, i, buf, from); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// footerFrom returns where the footer of a segment begins at the earliest.
func (s *source) footerFrom(i int) int64 {
	g := &s.segments[i]
	return g.Offset + g.Length - min(g.Length, int64(segment.FooterSize(g.Slots, true)))
}

func (s *source) decodeFooter(ctx context.Context, v *Vault, i int, buf []byte, from int64) error {
	g := &s.segments[i]
	f, err := v.decodeFooter(ctx, buf[:g.Offset+g.Length-from], g.ID, place{object: s.row.Name, chain: g.Chain, offset: g.Offset, length: g.Length})
	if err != nil {
		return err
	}
	n := 0
	for k := range f.Len() {
		if !slotSet(g.DeadSlots).has(f.At(k).Slot) {
			n++
		}
	}
	switch {
	case f.Chain != g.Chain || f.Kind != g.Kind:
		return snapferry.Errorf(snapferry.Corrupt, "segment %s is of chain %s with %s, not of %s with %s", g.ID, f.Chain, f.Kind, g.Chain, g.Kind)
	case n == 0 || n != g.Slots-g.Dead:
		return snapferry.Errorf(snapferry.Corrupt, "segment %s has %d of its %d live slots", g.ID, n, g.Slots-g.Dead)
	}
	s.footers[i] = f
	return nil
}

// layOut gives each body its place: blocks before nodes, blocks by the first
// block, nodes by level and then by the first index. So what a map reads in a
// row lies in a row, and the nodes of the chain share windows. Sources that do
// not fit any more are left to the next merged object.
func (m *merger) layOut() {
	m.bodies, m.size, m.over = nil, segment.ObjectHeaderSize+segment.DirTrailerSize, ""
	var fit []*source
	for _, s := range m.sources {
		size := s.layOut()
		if m.size+size > maxMerged {
			m.over = s.row.Name
			continue
		}
		m.size += size
		m.bodies = append(m.bodies, s.bodies...)
		fit = append(fit, s)
	}
	if m.sources = fit; len(fit) > 0 {
		m.over = "" // it comes next, alone
	}
	slices.SortFunc(m.bodies, func(a, b *mergedBody) int {
		p, q := a.first.Info, b.first.Info
		ida, idb := a.segment().ID, b.segment().ID
		return cmp.Or(cmp.Compare(p.Kind, q.Kind), cmp.Compare(p.Level, q.Level), cmp.Compare(p.Index, q.Index), bytes.Compare(ida[:], idb[:]))
	})
	at := int64(segment.ObjectHeaderSize)
	for _, b := range m.bodies {
		b.offset = at
		at += b.length
	}
}

// layOut computes how long the bodies of a source become, and returns what they
// take in a merged object.
func (s *source) layOut() (size int64) {
	s.bodies = s.bodies[:0]
	for i := range s.segments {
		b := &mergedBody{source: s, number: i}
		n, frames := 0, int64(0)
		b.kept(func(e segment.Entry) bool {
			if n == 0 {
				b.first = e
			}
			n++
			frames += int64(e.Length)
			return true
		})
		b.length = segment.HeaderSize + frames + int64(segment.FooterSize(n, b.footer().Sealed))
		size += b.length + segment.DirEntrySize
		s.bodies = append(s.bodies, b)
	}
	return size
}

// A copied is a frame on its way.
type copied struct {
	body  *mergedBody
	entry segment.Entry
	from  int64 // in the source
}

// copy reads the frames of all sources to their places in mem.
func (m *merger) copy(ctx context.Context, mem []byte) error {
	scratch := mem[(m.size+blob.Alignment-1)&^(blob.Alignment-1):]
	return m.each(ctx, mergeReaders, func(ctx context.Context, s *source, reader int) error {
		return m.copySource(ctx, s, mem, scratch[reader*mergeSpan:][:mergeSpan])
	})
}

func (m *merger) copySource(ctx context.Context, s *source, mem, scratch []byte) error {
	var run []copied
	flush := func() error {
		err := m.copyRun(ctx, s, run, scratch)
		run = run[:0]
		return err
	}
	const most = mergeSpan - 2*blob.Alignment // the pages at both ends are read whole
	for _, b := range s.bodies {
		f := b.footer()
		var err error
		if b.sealer, err = m.v.sealerOf(ctx, m.chain, f.Segment); err != nil {
			return err
		}
		b.written = segment.NewWriter(mem[b.offset:b.offset:b.offset+b.length], f.Header, b.sealer)
		b.kept(func(e segment.Entry) bool {
			from := b.segment().Offset + int64(e.Offset)
			if e.Length > most {
				err = snapferry.Errorf(snapferry.Unsupported, "slot %d of segment %s has %d bytes", e.Slot, f.Segment, e.Length)
				return false
			}
			if n := len(run); n > 0 {
				last := run[n-1].from + int64(run[n-1].entry.Length)
				if from-last > readGap || from+int64(e.Length)-run[0].from > most {
					err = flush()
				}
			}
			run = append(run, copied{b, e, from})
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	if err := flush(); err != nil {
		return err
	}
	for _, b := range s.bodies {
		if _, err := b.written.Close(); err != nil {
			return err
		}
		b.entry = b.written.DirEntry(b.segment().Generation + 1)
		b.entry.Offset = b.offset
		if err := b.check(); err != nil {
			return err
		}
	}
	return nil
}

// check decodes the new footer and compares it with the old one: every frame
// must be there, with the checksum that it had. The writer computed the new ones
// over what lies in the merged object, so this proves those bytes.
func (b *mergedBody) check() error {
	body := b.written.Bytes()
	if int64(len(body)) != b.length {
		return snapferry.Errorf(snapferry.Internal, "segment %s takes %d bytes, not %d", b.entry.Segment, len(body), b.length)
	}
	f, err := segment.DecodeFooter(body, b.length, b.sealer)
	if err != nil {
		return snapferry.Errorf(snapferry.Internal, "a merged segment does not read back: %w", err)
	}
	n := 0
	b.kept(func(old segment.Entry) bool {
		if n >= f.Len() {
			err = snapferry.Errorf(snapferry.Internal, "a merged segment lacks slot %d of %s", old.Slot, f.Segment)
			return false
		}
		e := f.At(n)
		n++
		if e.CRC != old.CRC {
			err = snapferry.Errorf(snapferry.Corrupt, "segment %s in object %s: slot %d: wrong checksum", f.Segment, b.segment().Object, old.Slot)
			return false
		}
		if e.Offset = old.Offset; e != old {
			err = snapferry.Errorf(snapferry.Internal, "a merged segment has %+v, not %+v, of %s", e, old, f.Segment)
		}
		return err == nil
	})
	if err == nil && n != f.Len() {
		err = snapferry.Errorf(snapferry.Internal, "a merged segment has %d frames more than %s", f.Len()-n, f.Segment)
	}
	return err
}

// copyRun reads frames that lie together and appends them to their segments.
func (m *merger) copyRun(ctx context.Context, s *source, run []copied, scratch []byte) error {
	if len(run) == 0 {
		return nil
	}
	last := run[len(run)-1]
	lo := run[0].from &^ (blob.Alignment - 1)
	end := last.from + int64(last.entry.Length)
	hi := max(end, min((end+blob.Alignment-1)&^(blob.Alignment-1), s.row.Size))
	buf := scratch[:hi-lo]
	m.read.Add(hi - lo)
	if err := m.v.bucket.ReadAt(ctx, s.row.Name, buf, lo); err != nil {
		return err
	}
	for _, c := range run {
		// Whether these are the bytes that were written shows in check: the
		// checksum that the new footer has must be that of the old one.
		p := buf[c.from-lo:][:c.entry.Length]
		if err := c.body.written.AppendSlot(c.entry.Slot, c.entry.Info, p); err != nil {
			return err
		}
	}
	return nil
}

// finish puts header and directory around the bodies and reads the directory
// back, as a recovery would: what the object replaces is deleted.
func (m *merger) finish(mem []byte) ([]byte, error) {
	segment.AppendObjectHeader(mem[:0])
	dir := make([]segment.DirEntry, len(m.bodies))
	for i, b := range m.bodies {
		dir[i] = b.entry
	}
	end := m.size - segment.DirTrailerSize - int64(len(dir))*segment.DirEntrySize
	object := segment.AppendDirectory(mem[:end], dir)
	if int64(len(object)) != m.size {
		return nil, snapferry.Errorf(snapferry.Internal, "a merged object takes %d bytes, not %d", len(object), m.size)
	}
	if _, err := segment.DecodeDirectory(object, m.size); err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "a merged object does not read back: %w", err)
	}
	return object, nil
}

// moves says what the metadata is to be told.
func (m *merger) moves() []meta.Move {
	moves := make([]meta.Move, len(m.bodies))
	for i, b := range m.bodies {
		s := b.segment()
		moves[i] = meta.Move{
			Segment: s.ID, From: s.Object, Generation: s.Generation, Offset: b.offset, Length: b.length,
			Kept: func(fn func(uint16, uint32)) {
				b.kept(func(e segment.Entry) bool {
					fn(e.Slot, e.Length)
					return true
				})
			},
		}
	}
	return moves
}
