package transfer

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
)

// Stats counts what a run does while it runs.
type Stats struct {
	Settled atomic.Int64 // blocks whose place in the version is decided
	Reused  atomic.Int64 // blocks of them that the base had
	Moved   atomic.Int64 // bytes of frames that came from the source
	Blocks  atomic.Int64 // blocks that came from the source
}

// Config is what a run needs.
type Config struct {
	Info    Info
	Source  Source
	Sink    Sink
	Stats   *Stats
	Streams int // block streams at a time; 0 for 4
	// Settle, if not nil, is told how many blocks a leaf settles, when it ends.
	Settle func(leaf uint64, blocks int64)
	// Near, if not nil, has blocks that came from the source already, for somebody
	// who could not wait.
	Near Near
}

// Near has plain blocks of the snapshot that is copied. What it has is checked
// again. Its methods are called concurrently.
type Near interface {
	Has(block uint64) bool
	// Read fills dst, 65,536 bytes; false when it cannot.
	Read(block uint64, dst []byte) bool
}

// Pruned stands for the leaf in Config.Settle when blocks are settled by equal
// subtrees.
const Pruned = ^uint64(0)

const (
	defaultStreams = 4
	// A batch, what one stream is asked for, has at most so many stored bytes
	// or leaves.
	batchBytes  = 8 << 20
	batchLeaves = 16
)

// Run fills the sink with the source's content. Everything is checked against
// the source's digests before it counts; what an earlier run settled durably
// is not asked for again. When Run returns nil all leaves have ended; sealing,
// which proves the whole digest, is the caller's.
func Run(ctx context.Context, c Config) error {
	if c.Streams == 0 {
		c.Streams = defaultStreams
	}
	if have := c.Sink.Size(); c.Info.Size != have {
		return snapferry.Errorf(snapferry.Corrupt, "the source says that the disk has %d bytes, the copy was begun with %d", c.Info.Size, have)
	}
	g, ctx := errgroup.WithContext(ctx)
	batches := make(chan []job)
	for range c.Streams {
		g.Go(func() error {
			f, err := c.Sink.NewFiller()
			if err != nil {
				return err
			}
			defer f.Close()
			for b := range batches {
				if err := c.move(ctx, f, b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(batches)
		return c.dispatch(ctx, batches)
	})
	return g.Wait()
}

// job is a step with its ticket.
type job struct {
	Step
	ticket Ticket
	near   blockmap.Bitmap // blocks that came already; they are not in Want any more
}

// near takes what came already out of what a job wants.
func (c *Config) near(j *job) {
	if c.Near == nil {
		return
	}
	for i := range j.Want.All() {
		if c.Near.Has(j.Leaf*blockmap.Fanout + uint64(i)) {
			j.near.Set(i)
		}
	}
	for i := range j.near.All() {
		j.Want.Clear(i)
	}
}

// putNear sets a block that came already; if it is gone again, or is not what it
// must be, it is asked for once more.
func (c *Config) putNear(ctx context.Context, f Filler, j *job, i int, buf []byte) error {
	at := j.Leaf*blockmap.Fanout + uint64(i)
	d, _, _ := j.Node.Child(i)
	if c.Near.Read(at, buf) && digest.Block(buf) == d {
		return f.Put(i, buf[:min(c.Info.Size-int64(at)*snapferry.BlockSize, snapferry.BlockSize)])
	}
	var one blockmap.Bitmap
	one.Set(i)
	frames, err := c.Source.Blocks(ctx, []Want{{Leaf: j.Leaf, Blocks: one}})
	if err != nil {
		return err
	}
	defer frames.Close()
	return c.put(f, j, i, d, frames)
}

// dispatch plans and hands out batches of steps.
func (c *Config) dispatch(ctx context.Context, out chan<- []job) error {
	var batch []job
	var bytes int64
	send := func() error {
		if len(batch) == 0 {
			return nil
		}
		select {
		case out <- batch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		batch, bytes = nil, 0
		return nil
	}
	p := Planner{Info: c.Info, Source: c.Source, Base: c.Sink.Base()}
	err := p.Run(ctx, func(s Step) error {
		if s.Node != nil && c.Sink.Finished(s.Leaf) {
			return snapferry.Errorf(snapferry.Corrupt, "leaf %d was finished by an earlier run but differs from the source", s.Leaf)
		}
		t, err := c.Sink.Ticket(s.Leaf)
		if err != nil {
			return err
		}
		if s.Node == nil {
			return c.Sink.Absent(ctx, t)
		}
		batch = append(batch, job{Step: s, ticket: t})
		if bytes += s.Bytes; bytes >= batchBytes || len(batch) >= batchLeaves {
			return send()
		}
		return nil
	})
	if err != nil {
		return err
	}
	// What the planner pruned the base has already.
	pruned := c.Info.Present/snapferry.BlockSize - p.settled
	c.Stats.Settled.Add(pruned)
	c.Stats.Reused.Add(pruned)
	if c.Settle != nil {
		c.Settle(Pruned, pruned)
	}
	return send()
}

// move fills the leaves of a batch from one stream of blocks.
func (c *Config) move(ctx context.Context, f Filler, batch []job) error {
	var want []Want
	for i := range batch {
		j := &batch[i]
		c.near(j)
		if j.Want != (blockmap.Bitmap{}) {
			want = append(want, Want{Leaf: j.Leaf, Blocks: j.Want})
		}
	}
	var frames Frames = none{}
	if len(want) > 0 {
		var err error
		if frames, err = c.Source.Blocks(ctx, want); err != nil {
			return err
		}
	}
	defer frames.Close()
	for i := range batch {
		j := &batch[i]
		if err := f.Begin(ctx, j.ticket); err != nil {
			return err
		}
		if err := c.fill(ctx, f, j, frames); err != nil {
			return err
		}
		if err := f.End(ctx); err != nil {
			return err
		}
		blocks, moved := int64(j.Node.Len()), int64(j.Want.Count()+j.near.Count())
		c.Stats.Settled.Add(blocks)
		c.Stats.Reused.Add(blocks - moved)
		if c.Settle != nil {
			c.Settle(j.Leaf, blocks)
		}
	}
	if _, err := frames.Next(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = snapferry.Errorf(snapferry.Corrupt, "the source sent more blocks than were asked for")
		}
		return err
	}
	return nil
}

// fill sets the blocks of one leaf.
func (c *Config) fill(ctx context.Context, f Filler, j *job, frames Frames) error {
	var buf []byte
	for i := range blockmap.Fanout {
		d, _, ok := j.Node.Child(i)
		if !ok {
			continue
		}
		var err error
		switch {
		case j.near.Has(i):
			if buf == nil {
				buf = make([]byte, snapferry.BlockSize)
			}
			err = c.putNear(ctx, f, j, i, buf)
		case j.Want.Has(i):
			err = c.put(f, j, i, d, frames)
		default:
			err = f.Keep(i, d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put sets a block to the next frame of a stream.
func (c *Config) put(f Filler, j *job, i int, d digest.Digest, frames Frames) error {
	fr, err := frames.Next()
	if errors.Is(err, io.EOF) {
		return snapferry.Errorf(snapferry.Unavailable, "the source ended its stream early")
	}
	if err != nil {
		return err
	}
	if at := j.Leaf*blockmap.Fanout + uint64(i); fr.Block != at {
		return snapferry.Errorf(snapferry.Corrupt, "the source sent block %d where %d was asked for", fr.Block, at)
	}
	if err := f.PutFrame(i, d, fr.Codec, fr.RawLength, fr.Payload); err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "from the source: %w", err)
	}
	c.Stats.Moved.Add(int64(len(fr.Payload)))
	c.Stats.Blocks.Add(1)
	return nil
}

// none is the stream of no frames.
type none struct{}

func (none) Next() (Frame, error) { return Frame{}, io.EOF }
func (none) Close() error         { return nil }
