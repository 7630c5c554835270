package vault

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/meta"
)

const (
	// checkpointMin is the least time between two checkpoints, and
	// checkpointMax the time after which one is due even if no segment closed.
	checkpointMin = 4 * time.Second
	checkpointMax = 8 * time.Second
)

// A Writer fills one open version. Its methods are safe for concurrent use.
type Writer struct {
	v       *Vault
	row     meta.Version
	base    blockmap.Map // the parent's map, or an earlier run's partial one
	pack    *packer
	stages  *stages
	again   bool // an earlier run wrote segments
	prior   snapferry.Counts
	counts  func() snapferry.Counts
	changed atomic.Int64 // plain bytes of blocks that got a slot

	mu       sync.Mutex
	builder  *blockmap.Builder
	tickets  []Ticket // issued and not delivered, ascending
	waiting  map[uint64]delivered
	issued   uint64     // tickets issued
	finished extent.Set // leaves settled, durable or not

	checkpoints bool
	last        time.Time // of the last checkpoint, or the start
	running     bool      // a checkpoint is being made
	made        sync.WaitGroup
	cperr       error
	durable     func(snapferry.Counts) // told what a checkpoint remembers
	reached     atomic.Int64           // see Reached
}

// delivered is a leaf that has ended.
type delivered struct {
	node    *blockmap.Node // nil: nothing is there
	changed int64          // plain bytes of its blocks that were written
}

// Ticket is the right to fill one leaf. Tickets are issued in ascending order
// of leaves; each must come to its End, in any order.
type Ticket struct {
	Leaf uint64
	Seq  uint64 // position among the tickets of this run
}

// WriteConfig says who writes.
type WriteConfig struct {
	Job   snapferry.JobID
	Token uint64
	Fence Fence // nil for none
	// Checkpoints makes the writer checkpoint as it goes, so that another run
	// can go on. Without, an interrupted version can only be aborted.
	Checkpoints bool
	// Counts, if not nil, is what a checkpoint remembers of the work done.
	Counts func() snapferry.Counts
	// Durable, if not nil, is told after each checkpoint what that remembers.
	Durable func(snapferry.Counts)
}

// Write opens a writer on an open version: from nothing, or from the last
// checkpoint of an earlier run.
func (v *Vault) Write(ctx context.Context, id snapferry.VersionID, c WriteConfig) (*Writer, error) {
	if c.Fence == nil {
		c.Fence = func(*meta.Tx) error { return nil }
	}
	if c.Counts == nil {
		c.Counts = func() snapferry.Counts { return snapferry.Counts{} }
	}
	if err := v.dropUnplaced(ctx, id, c.Fence); err != nil {
		return nil, err
	}
	var row, parent meta.Version
	var cp meta.Checkpoint
	var resumed, again bool
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if row, err = tx.Version(id); err != nil {
			return err
		}
		if row.State != snapferry.VersionOpen {
			return snapferry.Errorf(snapferry.Conflict, "version %s is %s, not open", id, row.State)
		}
		if !row.Parent.IsZero() {
			if parent, err = tx.Version(row.Parent); err != nil {
				return err
			}
		}
		cp, err = tx.Checkpoint(id)
		resumed = err == nil
		if err != nil && !resumed && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
		own, err := tx.SegmentsOf(id)
		again = resumed || len(own) > 0
		return err
	})
	if err != nil {
		return nil, err
	}
	w := &Writer{
		v: v, row: row, pack: newPacker(v, row, c.Job, c.Token, c.Fence), again: again,
		waiting: map[uint64]delivered{}, checkpoints: c.Checkpoints, durable: c.Durable, last: time.Now(),
		prior: cp.Counts, counts: c.Counts,
	}
	switch {
	case resumed:
		w.base = blockmap.Map{Size: row.Size, Nodes: v}
		if w.base.Root, err = decodeRoot(cp.Root, row.Size); err == nil {
			err = w.finished.UnmarshalBinary(cp.Finished)
		}
		w.reached.Store(reached(&w.finished, row.Size))
	case !row.Parent.IsZero():
		w.base, err = v.mapOf(parent)
	default:
		w.base = blockmap.Map{Size: row.Size, Nodes: v}
	}
	if err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "version %s: %w", id, err)
	}
	w.stages = v.importStages
	if c.Checkpoints {
		w.stages = v.stages
	}
	v.writing.Add(1)
	w.builder = blockmap.NewBuilder(w.base, row.Size, w.pack)
	return w, nil
}

// dropUnplaced clears away what an earlier run of an open version registered
// and never placed: nothing refers to it, but for the record of a seal that did
// not commit, which goes first.
func (v *Vault) dropUnplaced(ctx context.Context, id snapferry.VersionID, fence Fence) error {
	var row meta.Version
	var all []meta.Segment
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		// What is listed while the fence holds is not of a later run.
		if err := fence(tx); err != nil {
			return err
		}
		if err := notBehind(tx); err != nil {
			return err
		}
		if row, err = tx.Version(id); err != nil {
			return err
		}
		all, err = tx.SegmentsOf(id)
		return err
	})
	if err != nil || row.State != snapferry.VersionOpen || row.Reserved == 0 && len(all) == 0 {
		return err
	}
	if err := v.dropRecords(ctx, row, fence); err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(s meta.Segment) bool { return s.State != meta.SegmentWriting })
	if err != nil || len(all) == 0 {
		return err
	}
	for _, s := range all {
		if err := v.bucket.Delete(ctx, s.Object); err != nil {
			return err
		}
	}
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := fence(tx); err != nil {
			return err
		}
		for _, s := range all {
			if _, err := tx.DeleteSegment(s.ID); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
		}
		return nil
	})
}

// Base returns the map the version starts from: its parent's, or what an
// earlier run left. Positions never filled keep its content.
func (w *Writer) Base() blockmap.Map { return w.base }

// Size returns the bytes of the disk.
func (w *Writer) Size() int64 { return w.row.Size }

// Chain returns the chain that the version belongs to.
func (w *Writer) Chain() snapferry.ChainID { return w.row.Chain }

// Prior returns what earlier runs had counted at the checkpoint this one goes
// on from.
func (w *Writer) Prior() snapferry.Counts { return w.prior }

// Finished reports whether an earlier run settled a leaf durably.
func (w *Writer) Finished(leaf uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.finished.Contains(int64(leaf))
}

// Reached returns the place on the disk, in bytes, up to which a checkpoint has all
// leaves: those that follow it are still to come.
func (w *Writer) Reached() int64 { return w.reached.Load() }

// Reached returns the place on a disk of a size up to which a checkpoint has all
// leaves, as Writer.Reached does.
func Reached(c meta.Checkpoint, size int64) (int64, error) {
	var finished extent.Set
	if err := finished.UnmarshalBinary(c.Finished); err != nil {
		return 0, snapferry.Errorf(snapferry.KindOf(err), "checkpoint of version %s: %w", c.Version, err)
	}
	return reached(&finished, size), nil
}

// reached is the end of the last of the leaves, which are finished in their order.
func reached(finished *extent.Set, size int64) (end int64) {
	for e := range finished.All() {
		end = e.End()
	}
	return min(end*blockmap.LeafSpan, size)
}

// Changed returns the plain bytes of the blocks written so far, of leaves that are
// in order: what a checkpoint says of them is not written again.
func (w *Writer) Changed() int64 { return w.changed.Load() }

// Stored returns the bytes this run put into the bucket so far.
func (w *Writer) Stored() int64 {
	w.pack.putMu.Lock()
	defer w.pack.putMu.Unlock()
	return w.pack.stored
}

// Ticket gives the right to fill a leaf; leaves must ascend.
func (w *Writer) Ticket(leaf uint64) (Ticket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.tickets); n > 0 && w.tickets[n-1].Leaf >= leaf {
		return Ticket{}, snapferry.Errorf(snapferry.Internal, "leaf %d after leaf %d", leaf, w.tickets[n-1].Leaf)
	}
	t := Ticket{Leaf: leaf, Seq: w.issued}
	w.issued++
	w.tickets = append(w.tickets, t)
	return t, nil
}

// Absent settles the leaf of a ticket as holding nothing.
func (w *Writer) Absent(ctx context.Context, t Ticket) error {
	return w.deliver(ctx, t.Seq, delivered{})
}

// deliver takes a leaf and passes on to the builder what is in order now.
func (w *Writer) deliver(ctx context.Context, seq uint64, d delivered) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[seq] = d
	for len(w.tickets) > 0 {
		t := w.tickets[0]
		d, ok := w.waiting[t.Seq]
		if !ok {
			break
		}
		delete(w.waiting, t.Seq)
		w.tickets = w.tickets[1:]
		if err := w.builder.Set(ctx, t.Leaf, d.node); err != nil {
			return err
		}
		w.changed.Add(d.changed)
		w.finished.Add(extent.Extent{Off: int64(t.Leaf), Len: 1})
	}
	return w.checkpointIfDue(ctx)
}

// checkpointIfDue starts a checkpoint beside the callers when it is time.
func (w *Writer) checkpointIfDue(ctx context.Context) error {
	if !w.checkpoints || w.running || w.cperr != nil {
		return w.cperr
	}
	since := time.Since(w.last)
	if since < checkpointMin || since < checkpointMax && !w.pack.closedSince(w.last) {
		return nil
	}
	return w.startCheckpoint(ctx)
}

func (p *packer) closedSince(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed.After(t)
}

// startCheckpoint cuts the segments under w.mu, so that the partial map and
// what is finished belong together, and makes them durable beside the callers.
func (w *Writer) startCheckpoint(ctx context.Context) error {
	root, err := w.builder.Checkpoint(ctx)
	if err != nil {
		return err
	}
	rootBytes, err := encodeRoot(root)
	if err != nil {
		return err
	}
	finished, err := w.finished.AppendBinary(nil)
	if err != nil {
		return err
	}
	if err := w.pack.cut(ctx); err != nil {
		return err
	}
	counts, end := w.counts(), reached(&w.finished, w.row.Size)
	w.running = true
	w.made.Go(func() {
		err := w.checkpoint(context.WithoutCancel(ctx), rootBytes, finished, counts)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.running, w.last, w.cperr = false, time.Now(), err
		if err == nil {
			w.reached.Store(end)
		}
		if err == nil && w.durable != nil {
			w.durable(counts)
		}
	})
	return nil
}

func (w *Writer) checkpoint(ctx context.Context, root, finished []byte, counts snapferry.Counts) error {
	if err := w.pack.wait(); err != nil {
		return err
	}
	counts.Stored = w.counts().Stored // with what was being put
	taken := w.pack.take()
	return w.v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := w.pack.fence(tx); err != nil {
			return err
		}
		if err := placeAll(tx, taken); err != nil {
			return err
		}
		return tx.PutCheckpoint(meta.Checkpoint{Version: w.row.ID, Root: root, Finished: finished, Counts: counts, Updated: time.Now()})
	})
}

// Checkpoint makes everything delivered so far durable, to be gone on from.
func (w *Writer) Checkpoint(ctx context.Context) error {
	w.made.Wait()
	w.mu.Lock()
	err := w.cperr
	if err == nil {
		err = w.startCheckpoint(ctx)
	}
	w.mu.Unlock()
	w.made.Wait()
	if err == nil {
		w.mu.Lock()
		err = w.cperr
		w.mu.Unlock()
	}
	return err
}

// Close ends a writer: it must be called once, sealed or not. A version that
// was not sealed stays open.
func (w *Writer) Close() {
	w.made.Wait()
	w.pack.drop()
	if w.v.writing.Add(-1) == 0 {
		w.v.pool.trim()
		w.v.stages.trim()
		w.v.importStages.trim()
	}
}
