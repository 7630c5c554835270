package head_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// slow is an image that answers when it is let.
type slow struct {
	head.Image
	asked chan struct{} // one for each read that waits
	let   chan struct{} // closed: all may go on
}

func (s *slow) Read(ctx context.Context, first uint64, dst []byte) error {
	select {
	case s.asked <- struct{}{}:
	default:
	}
	select {
	case <-s.let:
	case <-ctx.Done():
		return snapferry.Errorf(snapferry.Cancelled, "given up")
	}
	return s.Image.Read(ctx, first, dst)
}

// A read of the base that hangs holds up nothing but who needs it: neither a
// freeze, nor writes of whole pages, nor the upload of what is here; and a write
// that was waiting for it ends up in the layer that is the top then.
func TestFreezeWhileFetchHangs(t *testing.T) {
	vs, base := newVersions(), newDisk(1<<20)
	base.write(bytes.Repeat([]byte{7}, 1<<20), 0)
	id := vs.add(base)
	fs := tempFS(t)
	if err := head.Create(fs, "v", base.size, id, nil); err != nil {
		t.Fatal(err)
	}
	im := &slow{asked: make(chan struct{}, 10), let: make(chan struct{})}
	v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v", Image: func(ctx context.Context, id snapferry.VersionID) (head.Image, error) {
		i, err := vs.open(ctx, id)
		im.Image = i
		return im, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() { // a part of a page that is not here
		if _, err := v.WriteAt([]byte("half a page waits"), 100); err != nil {
			t.Error(err)
		}
	})
	<-im.asked
	waiting.Go(func() { // whole pages, and a part of one at each end
		if err := v.Zero(320<<10+100, 2*page, true); err != nil {
			t.Error(err)
		}
	})
	<-im.asked
	waiting.Go(func() {
		p := make([]byte, 10)
		if _, err := v.ReadAt(p, 512<<10); err != nil || p[0] != 7 {
			t.Errorf("read: got %v, %v", p, err)
		}
	})
	<-im.asked
	if done, err := v.WriteNow([]byte("x"), 200<<10); done || err != nil {
		t.Errorf("WriteNow of a part of a page: got %v, %v", done, err)
	}
	if done, err := v.ReadNow(make([]byte, 10), 700<<10); done || err != nil {
		t.Errorf("ReadNow of what is not here: got %v, %v", done, err)
	}
	if _, err := v.WriteAt(bytes.Repeat([]byte{1}, page), 64<<10); err != nil {
		t.Fatal(err)
	}
	frozen, err := head.Freeze(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Settle(t.Context(), frozen[0]); err != nil {
		t.Fatal(err)
	}
	c, err := v.Changes(t.Context(), frozen[0], base.size)
	if err != nil {
		t.Fatal(err)
	}
	e, ok, err := c.Next(0)
	if err != nil || !ok || e.Off != 64<<10 || e.Len != page {
		t.Errorf("changed: got %v %v %v, want the page at 64 KiB alone", e, ok, err)
	}
	close(im.let)
	waiting.Wait()
	p := make([]byte, page)
	if _, err := c.ReadAt(p, 0); err != nil || p[100] != 7 {
		t.Errorf("the frozen content has a write that ended later: %q, %v", p[98:120], err)
	}
	if _, err := v.ReadAt(p, 0); err != nil || string(p[100:117]) != "half a page waits" || p[99] != 7 || p[117] != 7 {
		t.Errorf("after the wait: got %q, %v", p[98:120], err)
	}
	p = make([]byte, 2*page+200)
	want := bytes.Repeat([]byte{7}, len(p))
	clear(want[100 : len(p)-100])
	if _, err := v.ReadAt(p, 320<<10); err != nil || !bytes.Equal(p, want) {
		t.Errorf("zeros after the wait: got other bytes, %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// Closing a volume ends what waits for the base.
func TestCloseWhileFetchHangs(t *testing.T) {
	vs, base := newVersions(), newDisk(1<<20)
	id := vs.add(base)
	fs := tempFS(t)
	if err := head.Create(fs, "v", base.size, id, nil); err != nil {
		t.Fatal(err)
	}
	im := &slow{asked: make(chan struct{}, 10), let: make(chan struct{})}
	v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v", Image: func(ctx context.Context, id snapferry.VersionID) (head.Image, error) {
		i, err := vs.open(ctx, id)
		im.Image = i
		return im, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := v.ReadAt(make([]byte, 10), 0)
		failed <- err
	}()
	<-im.asked
	v.Interrupt()
	if err := <-failed; !snapferry.IsKind(err, snapferry.Cancelled) && !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("a read of a closed volume: got %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// Many write sectors of the same pages, each its own ones, while layers are
// frozen, sealed, merged and dropped below them: no write is lost, and no snapshot
// has one that began after it.
func TestConcurrentWriters(t *testing.T) {
	const writers, size = 8, 3 << 20
	vs, base := newVersions(), newDisk(size)
	for off := int64(0); off < size; off += sector {
		base.write(bytes.Repeat([]byte{0xff}, sector), off)
	}
	id := vs.add(base)
	fs := tempFS(t)
	caches, err := head.OpenCaches(fs, "caches", 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := head.Create(fs, "v", size, id, nil); err != nil {
		t.Fatal(err)
	}
	v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v", Image: vs.open, Released: vs.release, Caches: caches})
	if err != nil {
		t.Fatal(err)
	}
	last := make([][]uint32, writers) // what each wrote, by sector
	stop := make(chan struct{})
	var group sync.WaitGroup
	for w := range writers {
		last[w] = make([]uint32, size/sector)
		rng := rand.New(rand.NewPCG(uint64(w), 5))
		group.Go(func() {
			p := make([]byte, sector)
			for n := uint32(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				// Each writer has every eighth sector: those of all are in every page.
				at := int64(rng.IntN(size/sector/writers))*writers + int64(w)
				for i := 0; i < sector; i += 4 {
					binary.BigEndian.PutUint32(p[i:], n)
				}
				if n%16 == 0 {
					if err := v.Zero(at*sector, sector, true); err != nil {
						t.Error(err)
						return
					}
					last[w][at] = 0
					continue
				}
				if _, err := v.WriteAt(p, at*sector); err != nil {
					t.Error(err)
					return
				}
				last[w][at] = n
			}
		})
	}
	sealed := id
	for range 25 {
		frozen, err := head.Freeze(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Settle(t.Context(), frozen[0]); err != nil {
			t.Fatal(err)
		}
		c, err := v.Changes(t.Context(), frozen[0], size)
		if err != nil {
			t.Fatal(err)
		}
		next := vs.m[sealed].clone()
		p := make([]byte, size)
		if _, err := c.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		for off := int64(0); ; {
			e, ok, err := c.Next(off)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			next.write(p[e.Off:e.End()], e.Off)
			off = e.End()
		}
		q := make([]byte, size)
		next.read(q, 0)
		if !bytes.Equal(p, q) {
			t.Fatal("what is said to have changed is not all that has")
		}
		if _, err := c.ReadAt(q, 0); err != nil || !bytes.Equal(p, q) {
			t.Fatalf("what is frozen has changed: %v", err)
		}
		sealed = vs.add(next)
		if err := v.Sealed(t.Context(), frozen[0], sealed); err != nil {
			t.Fatal(err)
		}
		caches.Trim()
		if err := v.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	group.Wait()
	p := make([]byte, size)
	if _, err := v.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	for at := range int64(size / sector) {
		got, want := binary.BigEndian.Uint32(p[at*sector:]), last[at%writers][at]
		untouched := want == 0 && got == 0xffffffff
		if got != want && !untouched {
			t.Fatalf("sector %d: got write %d, want %d", at, got, want)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := caches.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCloseBesideAll closes a volume while everything is done to it: what is under
// way ends, whatever it waits for, what comes later is refused, and no file is used
// when it is closed.
func TestCloseBesideAll(t *testing.T) {
	t.Parallel()
	for round := range 60 {
		vs, base := newVersions(), newDisk(8<<20)
		base.write(bytes.Repeat([]byte{7}, 8<<20), 0)
		id := vs.add(base)
		fs := layertest.New(t)
		caches, err := head.OpenCaches(fs, "caches", 1<<30, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := head.Create(fs, "v", base.size, id, nil); err != nil {
			t.Fatal(err)
		}
		open := vs.open
		if round%2 == 1 { // the base never answers
			open = func(ctx context.Context, id snapferry.VersionID) (head.Image, error) {
				i, err := vs.open(ctx, id)
				return &slow{Image: i, asked: make(chan struct{}, 10)}, err
			}
		}
		v, err := head.Open(t.Context(), head.Config{FS: fs, Dir: "v", Image: open, Caches: caches})
		if err != nil {
			t.Fatal(err)
		}
		var closed atomic.Bool
		var all sync.WaitGroup
		for n, do := range []func(p []byte, off int64) error{
			func(p []byte, off int64) error { _, err := v.ReadAt(p, off); return err },
			func(p []byte, off int64) error { _, err := v.ReadNow(p, off); return err },
			func(p []byte, off int64) error { _, err := v.WriteAt(p, off); return err },
			func(p []byte, off int64) error { _, err := v.WriteNow(p[:page], off); return err },
			func(p []byte, off int64) error { return v.Zero(off, int64(len(p)), true) },
			func(p []byte, off int64) error { return v.Trim(off, int64(len(p))) },
			func(p []byte, off int64) error { return v.Cache(off, int64(len(p))) },
			func(_ []byte, off int64) error { _, _, err := v.Run(t.Context(), off, page); return err },
			func(_ []byte, off int64) error { _, _, err := v.Dirty(off, page); return err },
			func([]byte, int64) error { return v.Sync() },
			func([]byte, int64) error { return v.Hydrate(t.Context(), nil, nil) },
		} {
			all.Go(func() {
				p := make([]byte, 3*page)
				for i := 0; ; i++ {
					late := closed.Load()
					err := do(p, int64((n*7919+i*104729)%(8<<20-4*page)/512*512))
					switch {
					case snapferry.IsKind(err, snapferry.Conflict):
						return
					case late:
						t.Errorf("call %d: got %v after Close, want Conflict", n, err)
						return
					case err == nil:
					case v.Context().Err() == nil:
						t.Errorf("call %d: %v", n, err)
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(round%6) * 200 * time.Microsecond)
		if err := v.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		closed.Store(true)
		all.Wait()
		if n := fs.Handles(); n != 0 {
			t.Fatalf("round %d: %d files are open", round, n)
		}
	}
}
