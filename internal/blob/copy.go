package blob

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/snapferry/snapferry"
)

const (
	copyWorkers = 8
	copyBudget  = 160 << 20 // bytes of bodies in memory
	compareSize = 8 << 20   // bytes of one read of a comparison
)

// CopyOptions say how a bucket is copied. The zero value is the default.
type CopyOptions struct {
	// Last is the beginning of the names that are copied when all others are
	// there and verified; "" for none.
	Last string
	// Progress, if not nil, is told how many bytes of all are at their place and
	// verified. Calls do not overlap.
	Progress func(done, total int64)
}

// CopyReport says what Copy did.
type CopyReport struct {
	Objects int64 // verified at their new place
	Bytes   int64 // of these
	Copied  int64 // objects that were not there before
	Moved   int64 // bytes of these
}

// Copy makes every object of one bucket in another, and reads each back from
// there and compares it, byte by byte. Objects that are there already are
// compared alone, so an interrupted copy is called again and goes on. What
// Check left is not copied. Both buckets must be left alone meanwhile.
//
// The error is Conflict, before anything is copied, when the other bucket has
// objects that this one does not have or has with another size; Corrupt when
// bytes there are not those that were read here.
func Copy(ctx context.Context, from, to *Bucket, opts CopyOptions) (CopyReport, error) {
	c := &copier{from: from, to: to, last: opts.Last, progress: opts.Progress, budget: semaphore.NewWeighted(copyBudget)}
	if err := c.survey(ctx); err != nil {
		return c.report, err
	}
	passes := []bool{false}
	if c.last != "" {
		passes = append(passes, true)
	}
	for _, last := range passes {
		if err := c.pass(ctx, last); err != nil {
			return c.report, err
		}
	}
	// A last look at the whole: a list has what was made before.
	missing := 0
	for p, err := range c.pairs(ctx) {
		if err != nil {
			return c.report, err
		}
		if p.there < 0 {
			missing++
		}
	}
	if missing > 0 {
		return c.report, snapferry.Errorf(snapferry.Corrupt, "%d objects that were copied are not listed at their new place", missing).
			WithHint("check the new place with: snapferry bucket check")
	}
	return c.report, nil
}

// copier is one run of Copy.
type copier struct {
	from, to *Bucket
	last     string
	progress func(done, total int64)
	budget   *semaphore.Weighted
	total    int64

	mu     sync.Mutex
	report CopyReport
}

// pair is an object of the source, and what the destination has of that name.
type pair struct {
	name  string
	size  int64
	there int64 // bytes; -1: no such object
}

// maxStrangers is how many names of objects too many are told.
const maxStrangers = 3

// pairs lists both buckets side by side. An object that only the destination
// has is an error.
func (c *copier) pairs(ctx context.Context) iter.Seq2[pair, error] {
	return func(yield func(pair, error) bool) {
		next, stop := iter.Pull2(c.to.all(ctx))
		defer stop()
		var strangers []string
		other, oerr, more := next()
		skip := func(until string) {
			for more && oerr == nil && (until == "" || other.Name < until) {
				strangers = append(strangers, other.Name)
				other, oerr, more = next()
			}
		}
		for i, err := range c.from.all(ctx) {
			if err == nil {
				skip(i.Name)
				err = oerr
			}
			if err != nil {
				yield(pair{}, err)
				return
			}
			p := pair{name: i.Name, size: i.Size, there: -1}
			if more && other.Name == i.Name {
				p.there = other.Size
				other, oerr, more = next()
			}
			if !yield(p, nil) {
				return
			}
		}
		if skip(""); oerr != nil {
			yield(pair{}, oerr)
		} else if len(strangers) > 0 {
			yield(pair{}, snapferry.Errorf(snapferry.Conflict, "the new place has %d objects that the old one does not have, such as %s",
				len(strangers), strings.Join(strangers[:min(len(strangers), maxStrangers)], ", ")).
				WithHint("copy to an empty place, or to one with an interrupted copy of this bucket"))
		}
	}
}

var errEnough = errors.New("enough")

// all lists a bucket but for what Check left.
func (b *Bucket) all(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		err := b.List(ctx, "", "", func(i Info) error {
			if !strings.HasPrefix(i.Name, checkPlace) && !yield(i, nil) {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(Info{}, err)
		}
	}
}

// survey finds out how much there is, and whether the places fit together.
func (c *copier) survey(ctx context.Context) error {
	for p, err := range c.pairs(ctx) {
		if err != nil {
			return err
		}
		if p.there >= 0 && p.there != p.size {
			return snapferry.Errorf(snapferry.Conflict, "object %s has %d bytes, and %d at the new place", p.name, p.size, p.there).
				WithHint("copy to an empty place, or to one with an interrupted copy of this bucket")
		}
		if p.size > MaxBody {
			return snapferry.Errorf(snapferry.Corrupt, "object %s has %d bytes, more than the limit of %d", p.name, p.size, MaxBody)
		}
		c.total += p.size
	}
	return nil
}

// pass copies the objects that come last, or all others.
func (c *copier) pass(ctx context.Context, last bool) error {
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan pair)
	g.Go(func() error {
		defer close(work)
		for p, err := range c.pairs(ctx) {
			if err != nil {
				return err
			}
			if c.last != "" && strings.HasPrefix(p.name, c.last) != last {
				continue
			}
			select {
			case work <- p:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range copyWorkers {
		g.Go(func() error {
			for p := range work {
				if err := c.object(ctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// object copies one object unless it is there, and verifies it.
func (c *copier) object(ctx context.Context, p pair) error {
	need := p.size + compareSize
	if err := c.budget.Acquire(ctx, need); err != nil {
		return err
	}
	defer c.budget.Release(need)
	body := AlignedBuffer(int(p.size))
	if err := c.from.ReadAt(ctx, p.name, body, 0); snapferry.IsKind(err, snapferry.NotFound) {
		return snapferry.Errorf(snapferry.Conflict, "object %s went while the bucket was copied", p.name).WithHint("stop the region that uses the bucket, and copy again")
	} else if err != nil {
		return err
	}
	copied := p.there < 0
	if copied {
		err := c.to.Put(ctx, p.name, body)
		if copied = err == nil; err != nil && !snapferry.IsKind(err, snapferry.Exists) {
			return err
		}
	}
	if err := c.verify(ctx, p.name, body); err != nil {
		return err
	}
	c.done(p.size, copied)
	return nil
}

// verify compares an object at its new place with its bytes.
func (c *copier) verify(ctx context.Context, name string, body []byte) error {
	size, err := c.to.Size(ctx, name)
	if err != nil {
		return err
	}
	same := size == int64(len(body))
	buf := AlignedBuffer(min(len(body), compareSize))
	for off := 0; same && off < len(body); off += len(buf) {
		got := buf[:min(len(buf), len(body)-off)]
		if err := c.to.ReadAt(ctx, name, got, int64(off)); err != nil {
			return err
		}
		same = bytes.Equal(got, body[off:off+len(got)])
	}
	if !same {
		return snapferry.Errorf(snapferry.Corrupt, "object %s has other bytes at the new place", name).
			WithHint("copy to another place; when the object was there before, it is not of this bucket")
	}
	return nil
}

func (c *copier) done(size int64, copied bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Objects++
	c.report.Bytes += size
	if copied {
		c.report.Copied++
		c.report.Moved += size
	}
	if c.progress != nil {
		c.progress(c.report.Bytes, c.total)
	}
}
