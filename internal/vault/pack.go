package vault

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/segment"
)

const (
	// nodeSegment is the size in bytes at which a node segment closes.
	nodeSegment = 8 << 20
	// around is more than an object's header and directory take.
	around = 64 << 10
	// putsInFlight is how many objects of one version are written at a time.
	putsInFlight = 2
)

// ObjectPrefix begins the names of the objects that hold segments.
const ObjectPrefix = "objects/"

func newObjectName() string {
	var b [16]byte
	rand.Read(b[:])
	return ObjectPrefix + hex.EncodeToString(b[:])
}

// Fence fails the transaction it is called in when its caller has lost the
// right to write: the job's lease.
type Fence func(*meta.Tx) error

// A packer fills the segments of one open version and puts them in objects:
// block segments as they fill up, node segments a level each, and what is
// small together. Segments are registered in the metadata before their object
// is written; where they are is told at the next checkpoint or at the seal.
type packer struct {
	v       *Vault
	version snapferry.VersionID
	chain   snapferry.ChainID
	sealed  bool // the chain is encrypted
	job     snapferry.JobID
	token   uint64
	fence   Fence

	mu     sync.Mutex
	blocks *open                              // guarded by mu
	nodes  [blockmap.RootLevel]*segmentBuffer // guarded by mu
	closed time.Time                          // when a segment was last closed; guarded by mu
	framed int64                              // stored bytes of all frames so far; guarded by mu
	slots  chan struct{}                      // one for each put in flight

	putMu   sync.Mutex
	puts    []chan struct{} // closed when a put ended, one each; guarded by putMu
	err     error           // of the first put that failed; guarded by putMu
	durable []object        // put, but not yet placed; guarded by putMu
	stored  int64           // bytes put; guarded by putMu
}

// open is the block segment being filled.
type open struct {
	buf *buffer
	segmentBuffer
}

type segmentBuffer struct {
	id   snapferry.SegmentID
	kind snapferry.FrameKind
	w    *segment.Writer
}

// object is one that has been put, with its segments.
type object struct {
	row      meta.Object
	segments []meta.Segment
}

func newPacker(v *Vault, row meta.Version, job snapferry.JobID, token uint64, fence Fence) *packer {
	return &packer{v: v, version: row.ID, chain: row.Chain, sealed: row.Key != "", job: job, token: token, fence: fence, slots: make(chan struct{}, putsInFlight)}
}

func (p *packer) begin(ctx context.Context, buf []byte, kind snapferry.FrameKind) (segmentBuffer, error) {
	id := snapferry.NewSegmentID()
	s, err := p.v.sealerOf(ctx, p.chain, id)
	if err == nil && (s != nil) != p.sealed {
		err = snapferry.Errorf(snapferry.Internal, "the key of chain %s is not what the metadata says", p.chain)
	}
	if err != nil {
		return segmentBuffer{}, err
	}
	return segmentBuffer{id: id, kind: kind, w: segment.NewWriter(buf, segment.Header{
		Segment: id, Chain: p.chain, Kind: kind, Algorithm: digest.SHA256,
	}, s)}, nil
}

// staged is a block that waits in a leaf writer for its slot.
type staged struct {
	block   int
	info    snapferry.FrameInfo
	payload []byte
}

// add gives the frames of one leaf their slots, all in one segment so that a
// leaf is one ranged read, and sets their refs.
func (p *packer) add(ctx context.Context, frames []staged, refs *[blockmap.Fanout]snapferry.Ref) error {
	if len(frames) == 0 {
		return nil
	}
	need := 0
	for i := range frames {
		need += len(frames[i].payload)
	}
	if p.sealed {
		need += len(frames) * segment.SealOverhead
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocks != nil && !p.fits(need, len(frames)) {
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	if p.blocks == nil {
		buf, err := p.v.pool.get(ctx, need+segment.FooterSize(len(frames), p.sealed)+around)
		if err != nil {
			return err
		}
		s, err := p.begin(ctx, segment.AppendObjectHeader(buf.mem[:0]), snapferry.BlockFrame)
		if err != nil {
			buf.release()
			return err
		}
		p.blocks = &open{buf: buf, segmentBuffer: s}
	}
	for i := range frames {
		slot, n, err := p.blocks.w.Append(frames[i].info, frames[i].payload)
		if err != nil {
			return err
		}
		refs[frames[i].block] = snapferry.Ref{Segment: p.blocks.id, Slot: slot, Length: n}
		p.framed += int64(n)
	}
	return nil
}

// fits reports whether n more bytes in k frames have room in the open block
// segment and in the budget.
func (p *packer) fits(n, k int) bool {
	w := p.blocks.w
	size := w.Size() + n + segment.FooterSize(k, p.sealed)
	return size <= segment.TargetSize && w.Slots()+k <= segment.MaxSlots && p.blocks.buf.grow(size+around)
}

// WriteNode implements blockmap.NodeWriter.
func (p *packer) WriteNode(ctx context.Context, at snapferry.Position, n *blockmap.Node, _ digest.Digest) (snapferry.Ref, error) {
	raw, err := n.AppendBinary(nil)
	if err != nil {
		return snapferry.Ref{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.nodes[at.Level]
	if s != nil && s.w.Size()+len(raw) > nodeSegment {
		if err := p.flushNodes(ctx, s); err != nil {
			return snapferry.Ref{}, err
		}
		s = nil
	}
	if s == nil {
		b, err := p.begin(ctx, nil, snapferry.NodeFrame)
		if err != nil {
			return snapferry.Ref{}, err
		}
		s = &b
		p.nodes[at.Level] = s
	}
	slot, length, err := s.w.Append(snapferry.FrameInfo{Kind: snapferry.NodeFrame, RawLength: uint32(len(raw)), Position: at}, raw)
	p.framed += int64(length)
	return snapferry.Ref{Segment: s.id, Slot: slot, Length: length}, err
}

// flush closes the block segment and puts it as an object of its own.
func (p *packer) flush(ctx context.Context) error {
	o := p.blocks
	p.blocks = nil
	return p.fail(p.put(ctx, o.buf, []segmentBuffer{o.segmentBuffer}))
}

// fail remembers the first error with which frames were lost that have refs
// already: nothing may be made durable by this packer after that.
func (p *packer) fail(err error) error {
	p.putMu.Lock()
	defer p.putMu.Unlock()
	if p.err == nil {
		p.err = err
	}
	return err
}

// yield closes the open block segment, so that its share of the budget comes
// free.
func (p *packer) yield(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocks == nil {
		return nil
	}
	return p.flush(ctx)
}

// flushNodes puts one full node segment as an object of its own.
func (p *packer) flushNodes(ctx context.Context, s *segmentBuffer) error {
	buf, err := p.v.pool.get(ctx, s.w.Size()+around)
	if err != nil {
		return p.fail(err)
	}
	return p.fail(p.put(ctx, buf, []segmentBuffer{*s}))
}

// cut closes every open segment; what there is of nodes goes behind the blocks
// into one object.
func (p *packer) cut(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []segmentBuffer
	var buf *buffer
	if p.blocks != nil {
		buf, all = p.blocks.buf, append(all, p.blocks.segmentBuffer)
		p.blocks = nil
	}
	for l, s := range p.nodes {
		if s == nil {
			continue
		}
		p.nodes[l] = nil
		if buf != nil && !buf.grow(sizeOf(all)+s.w.Size()+around) {
			if err := p.put(ctx, buf, all); err != nil {
				return p.fail(err)
			}
			buf, all = nil, nil
		}
		if buf == nil {
			var err error
			if buf, err = p.v.pool.get(ctx, s.w.Size()+around); err != nil {
				return p.fail(err)
			}
		}
		all = append(all, *s)
	}
	if buf == nil {
		return nil
	}
	return p.fail(p.put(ctx, buf, all))
}

func sizeOf(all []segmentBuffer) (n int) {
	for _, s := range all {
		n += s.w.Size()
	}
	return n
}

// put closes segments, makes one object of them in buf and writes it beside
// the caller, who may go on filling others.
func (p *packer) put(ctx context.Context, buf *buffer, all []segmentBuffer) error {
	p.closed = time.Now()
	name := newObjectName()
	body, rows, err := p.pack(buf, name, all)
	if err != nil {
		buf.release()
		return err
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		buf.release()
		return context.Cause(ctx)
	}
	ended := make(chan struct{})
	p.putMu.Lock()
	p.puts = append(p.puts, ended)
	p.putMu.Unlock()
	go func() {
		defer close(ended)
		defer func() { <-p.slots }()
		defer buf.release()
		// A put that has begun runs to its end, whoever gives up: the wait is
		// short, and an object is then there or not, never in between.
		err := p.write(context.WithoutCancel(ctx), name, body, rows)
		p.putMu.Lock()
		defer p.putMu.Unlock()
		if err != nil {
			if p.err == nil {
				p.err = err
			}
			return
		}
		p.stored += int64(len(body))
		p.durable = append(p.durable, object{row: meta.Object{Name: name, Size: int64(len(body)), Created: time.Now(), Chain: p.chain}, segments: rows})
	}()
	return p.failed()
}

// pack closes the segments into buf, behind each other, and appends the
// directory. The first may lie in buf already.
func (p *packer) pack(buf *buffer, name string, all []segmentBuffer) ([]byte, []meta.Segment, error) {
	var body []byte
	var dir []segment.DirEntry
	var rows []meta.Segment
	for i, s := range all {
		closed, err := s.w.Close()
		if err != nil {
			return nil, nil, err
		}
		e := s.w.DirEntry(0)
		if i == 0 && s.kind == snapferry.BlockFrame {
			body = closed // lies in buf, behind the object's header
		} else {
			if body == nil {
				body = segment.AppendObjectHeader(buf.mem[:0])
			}
			e.Offset = int64(len(body))
			body = append(body, closed...)
		}
		dir = append(dir, e)
		rows = append(rows, meta.Segment{
			ID: s.id, Chain: p.chain, Version: p.version, Kind: s.kind, State: meta.SegmentWriting,
			Object: name, Offset: e.Offset, Length: e.Length, Slots: s.w.Slots(), Job: p.job, Token: p.token,
		})
	}
	return segment.AppendDirectory(body, dir), rows, nil
}

func (p *packer) write(ctx context.Context, name string, body []byte, rows []meta.Segment) error {
	err := p.v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := p.fence(tx); err != nil {
			return err
		}
		return tx.InsertSegments(rows)
	})
	if err != nil {
		return err
	}
	return p.v.bucket.Put(ctx, name, body)
}

// allFrames is the stored bytes of the frames that this run has written.
func (p *packer) allFrames() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.framed
}

func (p *packer) failed() error {
	p.putMu.Lock()
	defer p.putMu.Unlock()
	return p.err
}

// wait returns when everything put before it was called has ended.
func (p *packer) wait() error {
	p.putMu.Lock()
	puts := p.puts
	p.puts = nil
	p.putMu.Unlock()
	for _, ended := range puts {
		<-ended
	}
	return p.failed()
}

// placeAll tells the metadata where the durable segments are. taken must be what
// take returned, so that a transaction that runs twice does the same twice.
func placeAll(tx *meta.Tx, taken []object) error {
	for _, o := range taken {
		if err := tx.PlaceSegments(o.row, o.segments); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) take() []object {
	p.putMu.Lock()
	defer p.putMu.Unlock()
	taken := p.durable
	p.durable = nil
	return taken
}

// drop gives back what is open and waits for the puts in flight.
func (p *packer) drop() {
	p.mu.Lock()
	if p.blocks != nil {
		p.blocks.buf.release()
		p.blocks = nil
	}
	p.mu.Unlock()
	_ = p.wait() // whoever drops has an error of its own
}
