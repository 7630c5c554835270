package control

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// A volume can be made from a snapshot that is still being copied here. What it
// reads comes from where it is already: the leaves that the copy has settled, the
// base that the copy is incremental on, or else the source, checked as the copy
// checks it. What came from the source so is near, in the cache of the version,
// and the copy takes it from there.

// early is what volumes read of a copy before the copy has it.
type early struct {
	moved  atomic.Int64 // bytes of frames
	blocks atomic.Int64
	mu     sync.Mutex
	image  *transfer.Image // nil: not asked for yet; guarded by mu

	// What comes from the source until the copy commits is in its usage record, and
	// nothing comes after: the commit ends the reads under way, and they and others
	// go on when it is known what became of it.
	gate    sync.Mutex
	next    int
	reads   map[int]context.CancelCauseFunc // under way; guarded by gate, like what follows
	waiting sync.WaitGroup                  // for reads to end
	closed  chan struct{}                   // closed when reads may go on; nil: they may
}

// errCommits ends the reads of a copy that is about to commit.
var errCommits = snapferry.Errorf(snapferry.Unavailable, "the copy is about to commit")

// enter begins a read of a copy, when none is about to commit; leave ends it. The
// read is to end when its context does, and to be begun again if that is with
// errCommits.
func (e *early) enter(ctx context.Context) (inner context.Context, leave func(), err error) {
	e.gate.Lock()
	for e.closed != nil {
		closed := e.closed
		e.gate.Unlock()
		select {
		case <-closed:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		e.gate.Lock()
	}
	defer e.gate.Unlock()
	inner, cancel := context.WithCancelCause(ctx)
	id := e.next
	e.next++
	if e.reads == nil {
		e.reads = map[int]context.CancelCauseFunc{}
	}
	e.reads[id] = cancel
	e.waiting.Add(1)
	return inner, func() {
		e.gate.Lock()
		delete(e.reads, id)
		e.gate.Unlock()
		cancel(nil)
		e.waiting.Done()
	}, nil
}

// shut ends the reads under way and lets nobody read until reopen is called. A
// second time it changes nothing.
func (e *early) shut() {
	e.gate.Lock()
	if e.closed == nil {
		e.closed = make(chan struct{})
	}
	for _, cancel := range e.reads {
		cancel(errCommits)
	}
	e.gate.Unlock()
	e.waiting.Wait()
}

// reopen lets volumes read again: where, they find out.
func (e *early) reopen() {
	e.gate.Lock()
	defer e.gate.Unlock()
	if e.closed != nil {
		close(e.closed)
		e.closed = nil
	}
}

// earlyOf returns that of a copy's version.
func (r *Region) earlyOf(version snapferry.VersionID) *early {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.earlies[version]
	if e == nil {
		e = &early{}
		r.earlies[version] = e
	}
	return e
}

// endEarly forgets that of a version, which is sealed or gone: who waits finds that.
func (r *Region) endEarly(version snapferry.VersionID) {
	r.mu.Lock()
	e := r.earlies[version]
	delete(r.earlies, version)
	r.mu.Unlock()
	if e != nil {
		e.reopen()
	}
}

// imageOf opens a version, for a volume: one that is sealed, or being copied.
func (r *Region) imageOf(ctx context.Context, id snapferry.VersionID) (head.Image, error) {
	row, err := r.versionRow(ctx, id)
	if err != nil {
		return nil, err
	}
	if row.State != snapferry.VersionOpen {
		return r.vault.ImageOf(ctx, id)
	}
	return &growing{r: r, id: id, size: row.Size}, nil
}

func (r *Region) versionRow(ctx context.Context, id snapferry.VersionID) (row meta.Version, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		row, err = tx.Version(id)
		return err
	})
	return row, err
}

// growing is the content of a version that is being copied here.
type growing struct {
	r    *Region
	id   snapferry.VersionID
	size int64
	full atomic.Pointer[vault.Image] // when it is sealed
}

// Size implements head.Image.
func (g *growing) Size() int64 { return g.size }

// parts is where the content of a growing version is, at one time.
type parts struct {
	here   *vault.Image // what the copy has settled, by its last checkpoint
	leaves func(leaf uint64) bool
	base   *vault.Image // what the copy is incremental on; nil: nothing
	far    *transfer.Image
}

// Read implements head.Image.
func (g *growing) Read(ctx context.Context, first uint64, dst []byte) error {
	for {
		im, err := g.sealed(ctx)
		if err == nil && im == nil {
			im, err = g.readOpen(ctx, first, dst)
			if err == nil && im == nil || err != nil && !errors.Is(err, errCommits) {
				return err
			}
		}
		if err == nil {
			return im.Read(ctx, first, dst)
		}
		if !errors.Is(err, errCommits) {
			return err
		}
	}
}

// readOpen is Read while the version is open; once it is sealed it returns its
// image, and has read nothing.
func (g *growing) readOpen(ctx context.Context, first uint64, dst []byte) (*vault.Image, error) {
	ctx, leave, err := g.r.earlyOf(g.id).enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	// What is open now stays so: its commit waits for those that have entered.
	im, err := g.sealed(ctx)
	if im != nil {
		g.r.endEarly(g.id) // which enter may have made
	}
	if im != nil || err != nil {
		return im, ended(ctx, err)
	}
	if err = g.readParts(ctx, first, dst); snapferry.IsKind(err, snapferry.NotFound) {
		err = g.blame(ctx, err)
	}
	return nil, ended(ctx, err)
}

// blame looks for the reason why the source is not found. When the pin of the copy
// was broken, and is there again, the read may be tried again: Unavailable.
func (g *growing) blame(ctx context.Context, err error) error {
	c, m, err2 := g.r.memberOf(ctx, g.id)
	if err2 != nil || c.State.Terminal() {
		return err
	}
	from, err2 := g.r.remote(ctx, c.Source.Region, c.Account)
	if err2 != nil {
		return err
	}
	why := g.r.blame(ctx, from, &c, m, err)
	if errors.Is(why, err) {
		return errTakenAgain // by the copy, just now
	}
	return why
}

// ended makes an error of what was ended for a commit errCommits.
func ended(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errCommits) {
		return errCommits
	}
	return err
}

// since returns the image of a version that was sealed while its parts were read,
// which makes those unreadable: the pin of the source is released then. It is nil
// when that is not why they are.
func (g *growing) since(ctx context.Context) *vault.Image {
	im, err := g.sealed(ctx)
	if err != nil {
		return nil
	}
	return im
}

// readParts reads each block where it is.
func (g *growing) readParts(ctx context.Context, first uint64, dst []byte) error {
	p, err := g.parts(ctx)
	if err != nil {
		return err
	}
	leaf, lo := first/blockmap.Fanout, int(first%blockmap.Fanout)
	if p.leaves(leaf) {
		return p.here.Read(ctx, first, dst)
	}
	n, err := p.far.Leaf(ctx, leaf)
	if err != nil {
		return err
	}
	clear(dst)
	var remote, local blockmap.Bitmap
	var have *blockmap.Node
	if p.base != nil && leaf < blockmap.Leaves(p.base.Size()) {
		if have, err = p.base.Map().Leaf(ctx, leaf); err != nil {
			return err
		}
	}
	for i := lo; i < lo+len(dst)/snapferry.BlockSize; i++ {
		d, _, ok := n.Child(i)
		if !ok {
			continue
		}
		if hd, _, hok := have.Child(i); hok && hd == d {
			local.Set(i)
		} else {
			remote.Set(i)
		}
	}
	for i := range local.All() {
		at := (i - lo) * snapferry.BlockSize
		if err := p.base.Read(ctx, leaf*blockmap.Fanout+uint64(i), dst[at:at+snapferry.BlockSize:at+snapferry.BlockSize]); err != nil {
			return err
		}
	}
	if remote == (blockmap.Bitmap{}) {
		return nil
	}
	return p.far.Read(ctx, leaf, n, remote, lo, dst)
}

// Run implements head.Image. What is far is told a leaf at a time.
func (g *growing) Run(ctx context.Context, off, n int64) (length int64, data bool, err error) {
	im, err := g.sealed(ctx)
	if im == nil && err == nil {
		if length, data, err = g.gatherRun(ctx, off, n); err == nil {
			return length, data, nil
		}
		im = g.since(ctx)
	}
	if im == nil {
		return 0, false, err
	}
	return im.Run(ctx, off, n)
}

// gatherRun is Run of the parts.
func (g *growing) gatherRun(ctx context.Context, off, n int64) (length int64, data bool, err error) {
	if off >= g.size {
		return n, false, nil
	}
	p, err := g.parts(ctx)
	if err != nil {
		return 0, false, err
	}
	leaf := uint64(off / blockmap.LeafSpan)
	start := int64(leaf) * blockmap.LeafSpan
	node, err := p.far.Leaf(ctx, leaf)
	if err != nil {
		return 0, false, err
	}
	i := int((off - start) / snapferry.BlockSize)
	has := func(i int) bool { _, _, ok := node.Child(i); return ok }
	data = has(i)
	for i < blockmap.Fanout && has(i) == data {
		i++
	}
	return min(n, start+int64(i)*snapferry.BlockSize-off), data, nil
}

// sealed returns the image of the version when it is; nil while it is copied.
func (g *growing) sealed(ctx context.Context) (*vault.Image, error) {
	if im := g.full.Load(); im != nil {
		return im, nil
	}
	row, err := g.r.versionRow(ctx, g.id)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil, snapferry.Errorf(snapferry.Conflict, "the copy that this volume was made from has failed")
	}
	if err != nil || row.State == snapferry.VersionOpen {
		return nil, err
	}
	im, err := g.r.vault.ImageOf(ctx, g.id)
	if err == nil {
		g.full.Store(im)
	}
	return im, err
}

// parts returns where the content is now.
func (g *growing) parts(ctx context.Context) (p parts, err error) {
	here, leaves, err := g.r.vault.PartOf(ctx, g.id)
	if err != nil {
		return p, err
	}
	p.here, p.leaves = here, func(leaf uint64) bool { return leaves.Contains(int64(leaf)) }
	row, err := g.r.versionRow(ctx, g.id)
	if err != nil {
		return p, err
	}
	if !row.Parent.IsZero() {
		if p.base, err = g.r.vault.ImageOf(ctx, row.Parent); err != nil {
			return p, err
		}
	}
	p.far, err = g.r.far(ctx, g.id)
	return p, err
}

// memberOf returns the copy that makes a version, and what it is of that.
func (r *Region) memberOf(ctx context.Context, version snapferry.VersionID) (c meta.Copy, member meta.CopyMember, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		rows, err := tx.SnapshotsOfVersion(version)
		if err != nil {
			return err
		}
		if len(rows) == 0 || rows[0].Copy == "" {
			return snapferry.Errorf(snapferry.Conflict, "version %s is not that of a copy", version)
		}
		c, err = tx.Copy(rows[0].Copy)
		for _, m := range c.Members {
			if m.Snapshot == rows[0].ID {
				member = m
			}
		}
		return err
	})
	return c, member, err
}

// far returns the image of the source of a copy.
func (r *Region) far(ctx context.Context, version snapferry.VersionID) (*transfer.Image, error) {
	e := r.earlyOf(version)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.image != nil {
		return e.image, nil
	}
	c, member, err := r.memberOf(ctx, version)
	if err != nil {
		return nil, err
	}
	from, err := r.remote(ctx, c.Source.Region, c.Account)
	if err != nil {
		return nil, err
	}
	d, err := from.Describe(ctx, member.Source)
	if err != nil {
		return nil, err
	}
	chain := r.limits.chain(r.name, &c)
	e.image, err = transfer.NewImage(transfer.ImageConfig{
		Info: d.Info, Open: openFrame,
		Source: limited{counted{from.Source(handleOf(member)), e}, chain},
	})
	return e.image, err
}

// counted is the source of a copy that volumes read: what comes of it counts, also
// when whoever asked does not wait for it.
type counted struct {
	transfer.Source
	early *early
}

// Blocks implements transfer.Source.
func (s counted) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := s.Source.Blocks(ctx, want)
	if err != nil {
		return nil, err
	}
	return countedFrames{f, s.early}, nil
}

type countedFrames struct {
	transfer.Frames
	early *early
}

func (f countedFrames) Next() (x transfer.Frame, err error) {
	if x, err = f.Frames.Next(); err == nil {
		f.early.moved.Add(int64(len(x.Payload)))
		f.early.blocks.Add(1)
	}
	return x, err
}

// decoders are decompressors between two frames.
var decoders = sync.Pool{}

// openFrame fills dst with the content of a frame of another region.
func openFrame(dst []byte, f transfer.Frame, d digest.Digest) error {
	dec, ok := decoders.Get().(*vault.Decompressor)
	if !ok {
		var err error
		if dec, err = vault.NewDecompressor(); err != nil {
			return err
		}
	}
	defer decoders.Put(dec)
	if f.RawLength < 1 || f.RawLength > len(dst) {
		return snapferry.Errorf(snapferry.Corrupt, "block %d: frame of %d plain bytes", f.Block, f.RawLength)
	}
	return dec.Fill(dst, f.Payload, snapferry.FrameInfo{Codec: f.Codec, RawLength: uint32(f.RawLength), Position: snapferry.Position{Index: f.Block}}, d)
}

// near is what volumes have read of a copy, for the copy.
type near struct {
	caches  *head.Caches
	version snapferry.VersionID
}

func (n near) Has(block uint64) bool              { return n.caches.Has(n.version, block) }
func (n near) Read(block uint64, dst []byte) bool { return n.caches.Read(n.version, block, dst) }

// detach puts the volumes that read a version which is to be aborted into error,
// in the caller's transaction: they must not serve holes. Their snapshots under
// way, which were to lie on that version, fail.
func detach(tx *meta.Tx, version snapferry.VersionID, reason string) error {
	if version.IsZero() {
		return nil
	}
	heads, err := tx.HeadsOn(version)
	if err != nil {
		return err
	}
	for _, h := range heads {
		h.Base = snapferry.VersionID{}
		if h.State != snapferry.VolumeDeleting {
			h.State = snapferry.VolumeError
		}
		h.Reason, h.Hint = reason, "delete it, and make a volume of another snapshot"
		if err := tx.UpdateHead(h); err != nil {
			return err
		}
		if err := failUploads(tx, h); err != nil {
			return err
		}
		if err := enqueueVolumeWork(tx, h); err != nil {
			return err
		}
	}
	return nil
}

// failUploads fails the snapshots under way of a volume in which nothing can be
// read any more.
func failUploads(tx *meta.Tx, h meta.Head) error {
	uploads, err := tx.Uploads(h.ID)
	if err != nil {
		return err
	}
	for _, u := range uploads {
		s, err := tx.Snapshot(u.Snapshot)
		if err != nil {
			return err
		}
		if !s.State.Settled() {
			s.State, s.Settled = snapferry.SnapshotFailed, time.Now()
			s.Reason, s.Hint = h.Reason, h.Hint
			if err := tx.UpdateSnapshot(s); err != nil {
				return err
			}
		}
		if err := tx.DeleteUpload(u.Snapshot); err != nil {
			return err
		}
	}
	return nil
}

// checkUnused reports, as Conflict, that volumes read a version that is being
// copied.
func checkUnused(tx *meta.Tx, version snapferry.VersionID, id snapferry.SnapshotID) error {
	if version.IsZero() {
		return nil
	}
	heads, err := tx.HeadsOn(version)
	if err != nil || len(heads) == 0 {
		return err
	}
	return snapferry.Errorf(snapferry.Conflict, "volume %s is made from snapshot %s, which is still being copied", heads[0].ID, id).
		WithHint("wait for the copy, delete the volume, or give the volume up with --force")
}
