package fsck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/segment"
)

// checkObjects checks every object that must be there: its structure against
// the metadata, and in a deep check all of its bytes.
func (c *checker) checkObjects(ctx context.Context) error {
	var todo []*object
	for _, o := range c.state.objects {
		if o.live() {
			todo = append(todo, o)
			c.total += o.Size
		}
	}
	slices.SortFunc(todo, func(a, b *object) int { return strings.Compare(a.Name, b.Name) })
	return each(ctx, c, todo, func(ctx context.Context, o *object) error {
		err := c.checkObject(ctx, o)
		if err != nil && isFinding(err) {
			c.damage(onObject(o.Name), "%v", err)
			err = nil
		}
		c.looked.Add(1)
		c.step(o.Size)
		return err
	})
}

func (c *checker) checkObject(ctx context.Context, o *object) error {
	if !o.registered {
		return snapferry.Errorf(snapferry.NotFound, "segments lie there, but the metadata does not have the object")
	}
	size, ok := c.bucket.objects[o.Name]
	if !ok { // or it came after the listing
		var err error
		if size, err = c.Bucket.Size(ctx, o.Name); err != nil {
			return err
		}
	}
	if size != o.Size {
		return snapferry.Errorf(snapferry.Corrupt, "has %d bytes, the metadata says %d", size, o.Size)
	}
	r := &objectReader{ctx: ctx, c: c, name: o.Name, size: size}
	parts, err := r.layout(o)
	if err != nil {
		return err
	}
	c.compare(o, parts)
	if !c.Deep {
		return nil
	}
	return c.scrub(r, parts)
}

// compare holds what is in the object against what metadata says is there.
func (c *checker) compare(o *object, parts []*part) {
	found := map[snapferry.SegmentID]*part{}
	stray, size := 0, int64(0)
	for _, p := range parts {
		found[p.Segment] = p
		if p.seg == nil {
			stray, size = stray+1, size+p.Length
		}
	}
	if size > o.Dead { // else their last frames have died
		c.garbage(onObject(o.Name), "%d of its %d segments, with %d bytes, are not registered here; %d bytes are known to be dead", stray, len(parts), size, o.Dead)
	}
	for _, s := range o.segments {
		if s.State != meta.SegmentLive {
			continue
		}
		p := found[s.ID]
		switch {
		case p == nil:
			c.damage(c.onSegment(s), "the object does not have this segment")
		case p.Offset != s.Offset || p.Length != s.Length:
			c.damage(c.onSegment(s), "lies at %d with %d bytes, the metadata says at %d with %d", p.Offset, p.Length, s.Offset, s.Length)
		case p.Generation != s.Generation:
			c.damage(c.onSegment(s), "is of generation %d, the metadata says %d", p.Generation, s.Generation)
		case p.err != nil:
			c.damage(c.onSegment(s), "%v", p.err)
		case p.footer.Sealed != (c.state.chains[s.Chain].Key != ""):
			c.damage(c.onSegment(s), "is sealed in a chain that is not, or not in one that is")
		default:
			if why := p.differs(s); why != "" {
				c.damage(c.onSegment(s), "%s", why)
				continue
			}
			c.account(s, p.footer)
			p.good = true
		}
	}
}

// differs says in what a footer does not agree with the metadata.
func (p *part) differs(s *seg) string {
	f := p.footer
	last := int(f.At(f.Len() - 1).Slot)
	switch {
	case f.Chain != s.Chain:
		return fmt.Sprintf("is of chain %s, the metadata says %s", f.Chain, s.Chain)
	case f.Kind != s.Kind:
		return fmt.Sprintf("holds %s, the metadata says %s", f.Kind, s.Kind)
	case s.Generation == 0 && f.Len() != s.Slots || last >= s.Slots:
		return fmt.Sprintf("has %d slots up to %d, the metadata says %d", f.Len(), last, s.Slots)
	}
	return ""
}

// account settles a segment's slots: what a map reaches must be there, and
// what is there must be reached, or dead.
func (c *checker) account(s *seg, f *segment.Footer) {
	c.frames.Add(int64(f.Len()))
	if !c.Deep {
		return
	}
	for slot := range s.expect {
		if s.expect[slot].IsZero() {
			continue
		}
		if _, ok := f.Find(uint16(slot)); !ok {
			c.damage(c.onFrame(s.ID, slot), "a map refers to this slot, but the segment does not have it")
		}
	}
	writer := c.state.versions[s.Version]
	c.mu.Lock()
	broken, ghosts := c.broken[s.Chain], c.ghosts[s.Chain]
	c.mu.Unlock()
	if broken || writer != nil && writer.State == snapferry.VersionOpen {
		return // not every map is known
	}
	leaks, first, size := 0, 0, int64(0)
	for i := range f.Len() {
		e := f.At(i)
		if s.dead(int(e.Slot)) {
			continue
		}
		if s.expect != nil && !s.expect[e.Slot].IsZero() {
			if ghosts && !s.alive.has(int(e.Slot)) {
				c.held.Add(int64(e.Length))
			}
			continue
		}
		if leaks == 0 {
			first = int(e.Slot)
		}
		leaks, size = leaks+1, size+int64(e.Length)
	}
	if leaks > 0 {
		c.garbage(c.onSegment(s), "leak: %d slots from slot %d on with %d bytes are neither reached by a map nor marked dead", leaks, first, size)
	}
}

// part is one segment of an object.
type part struct {
	segment.DirEntry
	footer *segment.Footer // nil when err is not
	err    error           // why the structure is not sound
	seg    *seg            // as the metadata has it here; nil: not registered
	good   bool            // sound, and where the metadata says
	sealer segment.Sealer  // opens its frames; nil: they are plain, or not to be opened
}

// objectReader reads one object.
type objectReader struct {
	ctx  context.Context // of the check of this object; io.ReaderAt has no place for it
	c    *checker
	name string
	size int64
	tail []byte // the end of the object
	feed func(p []byte, off int64)
}

// ReadAt implements io.ReaderAt for segment.VerifyObject, and shows what it
// read to feed.
func (r *objectReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.read(p, off); err != nil {
		return 0, err
	}
	if r.feed != nil {
		r.feed(p, off)
	}
	return len(p), nil
}

func (r *objectReader) read(p []byte, off int64) error {
	r.c.bytes.Add(int64(len(p)))
	return r.c.Bucket.ReadAt(r.ctx, r.name, p, off)
}

// slice returns n bytes from off on, from the tail if they are there.
func (r *objectReader) slice(off int64, n int) ([]byte, error) {
	if off < 0 || off+int64(n) > r.size {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%d bytes at %d of an object of %d", n, off, r.size)
	}
	if in := off - (r.size - int64(len(r.tail))); in >= 0 {
		return r.tail[in:][:n], nil
	}
	p := make([]byte, n)
	return p, r.read(p, off)
}

// tailSize is how much of an object's end is read first: the directory, the
// footers of small segments and the last large one are usually there.
const tailSize = 64 << 10

// layout reads header, directory, and the headers and footers of the segments.
func (r *objectReader) layout(o *object) ([]*part, error) {
	n := min(r.size, tailSize)
	r.tail = make([]byte, n)
	if err := r.read(r.tail, r.size-n); err != nil {
		return nil, err
	}
	head, err := r.slice(0, segment.ObjectHeaderSize)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(head, segment.AppendObjectHeader(nil)) {
		return nil, snapferry.Errorf(snapferry.Corrupt, "object header: not that of this version")
	}
	span, err := segment.DirectorySpan(r.tail)
	if err != nil {
		return nil, err
	}
	dir, err := r.slice(r.size-int64(span), span)
	if err != nil {
		return nil, err
	}
	entries, err := segment.DecodeDirectory(dir, r.size)
	if err != nil {
		return nil, err
	}
	parts := make([]*part, len(entries))
	for i, e := range entries {
		parts[i] = &part{DirEntry: e}
		if s := r.c.state.segments[e.Segment]; s != nil && s.Object == o.Name {
			parts[i].seg = s
		}
		if parts[i].footer, parts[i].err = r.footer(parts[i]); parts[i].err != nil && !isFinding(parts[i].err) {
			return nil, parts[i].err
		}
	}
	return parts, nil
}

// footer reads header and footer of a segment.
func (r *objectReader) footer(p *part) (*segment.Footer, error) {
	guess := segment.TrailerSize
	if p.seg != nil {
		guess = segment.FooterSize(max(0, min(p.seg.Slots, segment.MaxSlots)), false)
	}
	guess = int(min(int64(guess), p.Length))
	end := p.Offset + p.Length
	tail, err := r.slice(end-int64(guess), guess)
	if err != nil {
		return nil, err
	}
	span, err := segment.FooterSpan(tail)
	if err != nil {
		return nil, err
	}
	if int64(span) > p.Length {
		return nil, snapferry.Errorf(snapferry.Corrupt, "footer: longer than the segment")
	}
	if span > len(tail) {
		if tail, err = r.slice(end-int64(span), span); err != nil {
			return nil, err
		}
	}
	var s segment.Sealer
	if p.seg != nil {
		if s, err = r.c.sealerOf(r.ctx, p.seg.Chain, p.Segment); err != nil {
			return nil, err
		}
	}
	p.sealer = s
	f, err := segment.DecodeFooter(tail, p.Length, s)
	if err != nil {
		return nil, err
	}
	head, err := r.slice(p.Offset, segment.HeaderSize)
	if err != nil {
		return nil, err
	}
	h, err := segment.DecodeHeader(head)
	if err != nil {
		return nil, err
	}
	if h != f.Header || h.Segment != p.Segment {
		return nil, snapferry.Errorf(snapferry.Corrupt, "segment header, footer and directory do not tell of one segment")
	}
	return f, nil
}

// scrubBuffer is the size of the pieces in which objects are read.
const scrubBuffer = 2 << 20

// scrub reads the whole object, once: segment.VerifyObject checks every byte
// against the checksums, and what it reads goes by a content checker.
func (c *checker) scrub(r *objectReader, parts []*part) error {
	cc, err := newContentChecker(c, parts)
	if err != nil {
		return err
	}
	defer cc.dec.Close()
	r.tail, r.feed = nil, cc.feed
	s, err := segment.VerifyObject(r, r.size, blob.AlignedBuffer(scrubBuffer))
	if s == nil {
		return err
	}
	for _, d := range s.Damage {
		t := c.onFrame(d.Segment, d.Slot)
		t.object = r.name
		c.damage(t, "%v", d)
	}
	return nil
}

// A contentChecker sees the bytes of an object go by, in order, puts the
// frames together that maps reach and checks what they hold.
type contentChecker struct {
	c     *checker
	dec   *vault.Decompressor
	parts []*part
	part  int    // index of the segment that is read
	frame int    // index of the next frame in it
	carry []byte // beginning of a frame that did not end with what was read
	plain []byte
	// opened is a frame as it was before it was sealed.
	opened []byte
}

func newContentChecker(c *checker, parts []*part) (*contentChecker, error) {
	dec, err := vault.NewDecompressor()
	if err != nil {
		return nil, err
	}
	return &contentChecker{c: c, dec: dec, parts: parts, plain: vault.BlockBuffer()}, nil
}

// feed takes the bytes from off on. Headers and footers that are read between
// the frames, out of order, are none of its business.
func (x *contentChecker) feed(p []byte, off int64) {
	end := off + int64(len(p))
	for x.part < len(x.parts) {
		b := x.parts[x.part]
		if !b.good || x.frame == b.footer.Len() {
			x.part, x.frame, x.carry = x.part+1, 0, x.carry[:0]
			continue
		}
		e := b.footer.At(x.frame)
		from := b.Offset + int64(e.Offset) + int64(len(x.carry))
		to := b.Offset + int64(e.Offset) + int64(e.Length)
		if from < off || from >= end {
			return
		}
		if to > end {
			x.carry = append(x.carry, p[from-off:]...)
			return
		}
		payload := p[from-off : to-off]
		if len(x.carry) > 0 {
			x.carry = append(x.carry, payload...)
			payload = x.carry
		}
		x.check(b, e, payload)
		x.frame, x.carry = x.frame+1, x.carry[:0]
	}
}

// check checks one frame against what the maps say of it.
func (x *contentChecker) check(b *part, e segment.Entry, payload []byte) {
	if b.seg.expect == nil || b.seg.expect[e.Slot].IsZero() || !b.footer.HasInfo() {
		return
	}
	d, err := x.digest(b, e, payload)
	if err == nil {
		if e.Info.Index>>indexBits == 0 && expectation(d, e.Info.Position, e.Length) == b.seg.expect[e.Slot] {
			return
		}
		err = errors.New("content, place or length are not what the map says")
	}
	if crc := e.Verify(payload); crc != nil {
		err = crc
	}
	x.c.damage(x.c.onFrame(b.Segment, int(e.Slot)), "%v", err)
}

func (x *contentChecker) digest(b *part, e segment.Entry, payload []byte) (d digest.Digest, err error) {
	if b.sealer != nil {
		if x.opened, err = b.sealer.Open(x.opened[:0], payload, e.Slot, e.Info); err != nil {
			x.opened = x.opened[:0]
			return d, err
		}
		payload = x.opened
	}
	if e.Info.Kind == snapferry.BlockFrame {
		return x.dec.Block(x.plain, payload, e.Info)
	}
	return nodeDigest(e, payload)
}

func nodeDigest(e segment.Entry, payload []byte) (digest.Digest, error) {
	if e.Info.Codec != snapferry.Stored {
		return digest.Digest{}, snapferry.Errorf(snapferry.Unsupported, "node frame of codec %d", e.Info.Codec)
	}
	n, err := blockmap.Decode(payload)
	if err != nil {
		return digest.Digest{}, err
	}
	if n.Level != e.Info.Level {
		return digest.Digest{}, snapferry.Errorf(snapferry.Corrupt, "node of level %d where level %d must be", n.Level, e.Info.Level)
	}
	return n.Digest(), nil
}
