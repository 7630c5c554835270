package vault

import (
	"context"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// CompactConfig says for whom, and how fast, a chain is compacted.
type CompactConfig struct {
	Job   snapferry.JobID
	Token uint64
	Fence Fence // checked in each transaction; nil for none
	// Limit, if not nil, is how many bytes a second are read and written. It can
	// be changed at any time. What it allows is waited for before a merged object
	// is begun, without holding memory meanwhile.
	Limit *rate.Limiter
	// Progress, if not nil, is told after each merged object what was done so far.
	Progress func(CompactStats)
}

// CompactStats tells what a compaction did.
type CompactStats struct {
	ObjectsIn  int   // objects whose segments were moved; they are condemned
	ObjectsOut int   // merged objects
	Segments   int   // moved
	Read       int64 // bytes read from the bucket
	Written    int64 // bytes put, also of what was given up
	Freed      int64 // bytes of the objects in, less those of the objects out
	GivenUp    int   // merged objects that were given up because something had changed
	Left       int   // objects that this run left alone: damaged, too large, or changed again and again
	// Damaged are objects that were left alone because their bytes are not what
	// they must be; at most 100 are named.
	Damaged []string
}

const maxNamed = 100

// Compact writes the live frames of hollow and of small objects of a chain (see
// plan) into merged objects, verbatim under their segments and slots, and
// condemns the old ones: Reclaim deletes them later. Writers and readers go on
// meanwhile; a reader that was told an old place finds the new one.
//
// A merged object is registered before it is put. Then one transaction moves
// its segments, if each is still where it was read, else the object is given
// up; that is tried again once. It can be interrupted anywhere: what is left is
// the old truth or the new one, and garbage that Sweep knows.
//
// In a bucket without room for a merged object it goes on in the smallest steps
// there are: one hollow object at a time, the one with the least left in it
// first. Each gives back more than it took when Reclaim has been there.
//
// Errors: Conflict when the fence fails or reclaiming is stopped in the region;
// Full when there is no space, not even for the next small step, after what was
// begun was given up; Unavailable. What was done until then stays done, and is
// in the stats.
func (v *Vault) Compact(ctx context.Context, chain snapferry.ChainID, c CompactConfig) (CompactStats, error) {
	if c.Fence == nil {
		c.Fence = noFence
	}
	x := &compaction{v: v, chain: chain, c: c, skip: map[string]bool{}}
	err := x.run(ctx)
	x.stats.Left = len(x.skip)
	return x.stats, err
}

// A compaction is one run of Compact.
type compaction struct {
	v     *Vault
	chain snapferry.ChainID
	c     CompactConfig
	skip  map[string]bool // objects that this run leaves alone
	stats CompactStats
	size  int64 // of the merged object that was tried last
	full  error // why the bucket has no room for one of room bytes
	room  int64
}

func (x *compaction) run(ctx context.Context) error {
	failed := 0
	for {
		batch, err := x.pick(ctx)
		if err != nil || len(batch) == 0 {
			return err
		}
		moved, err := x.merge(ctx, batch)
		if snapferry.IsKind(err, snapferry.Full) && (x.full == nil || x.size < x.room) {
			x.full, x.room = err, x.size
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case moved:
			failed = 0
		case failed == 0:
			failed++
		default:
			// What changes under our hands is left to the next run.
			failed = 0
			for _, s := range batch {
				x.skip[s.row.Name] = true
			}
		}
		if x.c.Progress != nil {
			x.c.Progress(x.stats)
		}
	}
}

// guard is checked in each transaction.
func (x *compaction) guard(tx *meta.Tx) error {
	if err := x.c.Fence(tx); err != nil {
		return err
	}
	return Stopped(tx)
}

// pick chooses the objects that go into the next merged object.
func (x *compaction) pick(ctx context.Context) (batch []*source, err error) {
	err = x.v.db.View(ctx, func(tx *meta.Tx) error {
		if err := x.guard(tx); err != nil {
			return err
		}
		victims, err := candidates(tx, x.chain, func(name string) bool { return x.skip[name] }, len(x.skip))
		if err != nil {
			return err
		}
		if x.full != nil && len(victims) > 0 {
			if victims = least(victims, x.room); len(victims) == 0 {
				return x.full
			}
		}
		want, bytes, segments, slots := mergeShare(victims), int64(0), 0, 0
		for _, o := range victims {
			if bytes >= want || segments >= mergeSegments || slots >= mergeSlots {
				break
			}
			s := &source{row: o}
			if s.segments, err = tx.SegmentsIn(o.Name); err != nil {
				return err
			}
			if len(s.segments) == 0 || len(batch) > 0 && bytes+o.Size-o.Dead > mergeTarget {
				continue
			}
			for i := range s.segments {
				slots += s.segments[i].Slots - s.segments[i].Dead
			}
			segments += len(s.segments)
			bytes += max(o.Size-o.Dead, 0)
			batch = append(batch, s)
		}
		return nil
	})
	return batch, err
}

// merge makes one merged object of a batch. moved is false when nothing was
// moved because something had changed, or nothing was left to move.
func (x *compaction) merge(ctx context.Context, batch []*source) (moved bool, err error) {
	m := &merger{v: x.v, chain: x.chain, sources: batch}
	defer func() { x.stats.Read += m.read.Load() }()
	if err := m.readFooters(ctx); err != nil {
		return false, err
	}
	if err := x.leaveAlone(ctx, m); err != nil {
		return false, err
	}
	m.layOut()
	if over := m.over; over != "" {
		x.skip[over] = true // cannot be: it would be larger than any object
		x.v.spoiled.add(over)
	}
	if len(m.bodies) == 0 {
		return true, nil // all of it is in skip now
	}
	x.size = m.size
	if err := x.pay(ctx, 2*m.size); err != nil {
		return false, err
	}
	buf, err := x.v.pool.get(ctx, int(m.size)+mergeScratch)
	if err != nil {
		return false, err
	}
	defer buf.release()
	for {
		if err := m.copy(ctx, buf.mem); err != nil {
			return false, err
		}
		if !m.damaged() {
			break
		}
		if err := x.leaveAlone(ctx, m); err != nil {
			return false, err
		}
		if m.layOut(); len(m.bodies) == 0 {
			return true, nil
		}
	}
	object, err := m.finish(buf.mem)
	if err != nil {
		return false, err
	}
	return x.place(ctx, m, object)
}

// pay waits until n bytes may be read and written.
func (x *compaction) pay(ctx context.Context, n int64) error {
	for l := x.c.Limit; l != nil && n > 0; {
		k := int(min(n, int64(l.Burst()), 1<<20))
		if l.Limit() == rate.Inf {
			return nil
		}
		if k <= 0 {
			return snapferry.Errorf(snapferry.Invalid, "a rate limit with a burst of %d bytes", l.Burst())
		}
		if err := l.WaitN(ctx, k); err != nil {
			if ctx.Err() != nil {
				return snapferry.Errorf(snapferry.Cancelled, "compact chain %s: %w", x.chain, ctx.Err())
			}
			return snapferry.Errorf(snapferry.Unavailable, "compact chain %s: %w", x.chain, err)
		}
		n -= int64(k)
	}
	return nil
}

// leaveAlone takes the sources that could not be read out of the batch. Those
// that are still where they were are damaged.
func (x *compaction) leaveAlone(ctx context.Context, m *merger) error {
	for _, s := range m.sources {
		if s.damage == nil {
			continue
		}
		x.skip[s.row.Name] = true
		same := false
		err := x.v.db.View(ctx, func(tx *meta.Tx) error {
			now, err := tx.SegmentsIn(s.row.Name)
			same = len(now) > 0
			return err
		})
		if err != nil {
			return err
		}
		if !same {
			continue // all of it was moved or freed meanwhile
		}
		x.v.spoiled.add(s.row.Name)
		if len(x.stats.Damaged) < maxNamed && !slices.Contains(x.stats.Damaged, s.row.Name) {
			x.stats.Damaged = append(x.stats.Damaged, s.row.Name)
		}
		x.v.log.ErrorContext(ctx, "a damaged object is not compacted", "object", s.row.Name, "err", s.damage)
	}
	m.sources = slices.DeleteFunc(m.sources, func(s *source) bool { return s.damage != nil })
	return nil
}

// place registers the merged object, puts it and moves the segments.
func (x *compaction) place(ctx context.Context, m *merger, body []byte) (moved bool, err error) {
	row := meta.Object{
		Name: newObjectName(), Size: int64(len(body)), Chain: x.chain, State: meta.ObjectWriting, Job: x.c.Job, Token: x.c.Token,
	}
	for _, s := range m.sources {
		// As old as the newest of what it holds: it is not one of the chain's new ones.
		if s.row.Created.After(row.Created) {
			row.Created = s.row.Created
		}
	}
	err = x.v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := x.guard(tx); err != nil {
			return err
		}
		return tx.InsertObject(row)
	})
	if err == nil {
		x.stats.Written += row.Size
		err = x.v.bucket.Put(ctx, row.Name, body)
	}
	changed := false
	moves := m.moves()
	if err == nil {
		err = x.v.db.Update(ctx, func(tx *meta.Tx) error {
			changed = false
			if err := x.guard(tx); err != nil {
				return err
			}
			err := tx.MoveSegments(row.Name, moves, time.Now())
			changed = snapferry.IsKind(err, snapferry.Conflict)
			return err
		})
	}
	if err != nil {
		if moved, drop := x.v.dropMerged(ctx, row.Name); drop != nil || !moved {
			if changed {
				x.stats.GivenUp++
				return false, drop
			}
			return false, err
		}
	}
	for i := range moves {
		x.v.loc.forget(moves[i].Segment)
	}
	x.stats.ObjectsIn += len(m.sources)
	x.stats.ObjectsOut++
	x.stats.Segments += len(moves)
	x.stats.Freed -= row.Size
	for _, s := range m.sources {
		x.stats.Freed += s.row.Size
	}
	return true, nil
}

// dropMerged gives a merged object up, unless it is live: the answer to a commit
// can be lost. Its row goes first: from then on nobody can make it live, and
// only then is it garbage.
func (v *Vault) dropMerged(ctx context.Context, name string) (live bool, err error) {
	ctx = context.WithoutCancel(ctx)
	err = v.db.Update(ctx, func(tx *meta.Tx) error {
		o, err := tx.Object(name)
		live = err == nil && o.State != meta.ObjectWriting
		if err != nil && !snapferry.IsKind(err, snapferry.NotFound) || live {
			return err
		}
		_, err = tx.DropWriting(name)
		return err
	})
	if err != nil || live {
		return live, err
	}
	return false, v.bucket.Delete(ctx, name)
}
