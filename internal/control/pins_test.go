package control_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// ended waits for a copy to end and wants it to have ended so, and its usage record
// to say that and what it moved.
func (w *world) ended(id snapferry.CopyID, want snapferry.Ending, least int64) snapferry.Copy {
	w.t.Helper()
	idle(w.t, w.west, "the end of the copy", func(tx *meta.Tx) (bool, error) {
		c, err := tx.Copy(id)
		return c.State.Terminal() && c.Metered, err
	})
	c, err := w.west.Control.CopyOf(w.t.Context(), w.atWest, id)
	if err != nil || c.Ending != want {
		w.t.Errorf("the copy: got ending %q (%s), %v, want %s", c.Ending, c.Reason, err, want)
	}
	records, err := w.west.Control.UsageRecords(w.t.Context(), w.atWest, 0, 1000)
	records = slices.DeleteFunc(records, func(u snapferry.UsageRecord) bool { return u.Copy != id })
	if err != nil || len(records) != 1 || records[0].Outcome != want || records[0].Subject != string(c.Snapshot) || records[0].Bytes < least {
		w.t.Errorf("the usage records of the copy: got %+v, %v, want one with outcome %s and at least %d bytes", records, err, want, least)
	}
	return c
}

// cutOff lets the blocks that west asks of east wait; what waits is cut off then.
func (w *world) cutOff() (asked, open chan struct{}) {
	asked, open = make(chan struct{}, 100), make(chan struct{})
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &cutOff{s, asked, open} })
	return asked, open
}

type cutOff struct {
	transfer.Source
	asked, open chan struct{}
}

func (s *cutOff) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	select {
	case <-s.open:
		return s.Source.Blocks(ctx, want)
	case s.asked <- struct{}{}:
	}
	select {
	case <-s.open:
		return nil, snapferry.Errorf(snapferry.Unavailable, "the link was cut")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TestForcedDelete deletes the source of a copy by force, while blocks are under
// way, and while the copy waits for its turn: the copy ends with the one reason for
// that, and nothing stays.
func TestForcedDelete(t *testing.T) {
	for _, waits := range []bool{false, true} {
		w := newWorldWith(t, func(o *simtest.Options) { o.Copies.AtOnce = 1 })
		d := firstDisk()
		s := w.imported(d)
		asked, open := w.cutOff()
		var first snapferry.Snapshot
		if waits {
			first = w.copy(control.CopyRequest{Source: w.many(w.atEast, 1)[0]})
			<-asked
		}
		c := w.copy(control.CopyRequest{Source: s.ID})
		if !waits {
			<-asked
		}
		if err := w.east.Control.Delete(t.Context(), w.atEast, s.ID); err != nil {
			t.Fatal(err)
		}
		got, err := w.east.Control.Snapshot(t.Context(), w.atEast, s.ID)
		if err != nil || got.State != snapferry.SnapshotDeleting || !slices.Equal(got.PinnedBy, []snapferry.PinHolder{{Region: "west", Copy: c.Copy}}) {
			t.Errorf("the pinned source: got %s, pinned by %v, %v, want deleting, pinned by %s", got.State, got.PinnedBy, err, c.Copy)
		}
		if err := w.east.Control.Abandon(t.Context(), w.atEast, s.ID); err != nil {
			t.Fatal(err)
		}
		_, err = w.east.Control.Snapshot(t.Context(), w.atEast, s.ID)
		wantKind(t, "the source that was deleted by force", err, snapferry.NotFound)
		close(open)
		x := w.ended(c.Copy, snapferry.EndedSourceDeleted, 0)
		if !strings.Contains(x.Reason, "was deleted in region east while it was being copied") {
			t.Errorf("got reason %q", x.Reason)
		}
		if got := w.settled(w.west, w.atWest, c.ID); got.State != snapferry.SnapshotFailed || got.Reason != x.Reason {
			t.Errorf("the snapshot: got %s (%s), want it failed (%s)", got.State, got.Reason, x.Reason)
		}
		gone(t, w.west, c.ID)
		if waits {
			w.settled(w.west, w.atWest, first.ID)
		}
		w.check()
	}
}

// TestForcedDeleteUnseen deletes the source of a copy by force while that takes what
// has come as slowly as its limit says, and when everything has come: the copy finds
// out as it renews its pin.
func TestForcedDeleteUnseen(t *testing.T) {
	t.Run("limited", func(t *testing.T) {
		t.Parallel() // it waits for the next renewal
		w := newWorld(t)
		d := simtest.NewDisk(size)
		for i := range uint64(20) {
			d.Fill(i, 2*int(i)+1)
		}
		s := w.imported(d)
		came := make(chan struct{}, 100)
		w.toEast.Wrap(func(src transfer.Source) transfer.Source {
			return &watched{src, func(error) { came <- struct{}{} }}
		})
		c := w.copy(control.CopyRequest{Source: s.ID, Rate: 1 << 10})
		<-came
		if err := w.east.Control.Abandon(t.Context(), w.atEast, s.ID); err != nil {
			t.Fatal(err)
		}
		w.ended(c.Copy, snapferry.EndedSourceDeleted, 0)
		gone(t, w.west, c.ID)
		w.check()
	})
	t.Run("all came", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		s := w.many(w.atEast, 1)[0]
		w.toEast.Wrap(func(src transfer.Source) transfer.Source {
			return &watched{src, func(err error) {
				if !errors.Is(err, io.EOF) {
					return
				}
				if err := w.east.Control.Abandon(t.Context(), w.atEast, s); err != nil {
					t.Error(err)
				}
			}}
		})
		c := w.copy(control.CopyRequest{Source: s})
		w.ended(c.Copy, snapferry.EndedSourceDeleted, 1)
		gone(t, w.west, c.ID)
		w.check()
	})
}

// watched is a source that says what Next of its streams returns, before it does.
type watched struct {
	transfer.Source
	next func(error)
}

type watchedFrames struct {
	transfer.Frames
	next func(error)
}

func (s *watched) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := s.Source.Blocks(ctx, want)
	return &watchedFrames{f, s.next}, err
}

func (f *watchedFrames) Next() (transfer.Frame, error) {
	x, err := f.Frames.Next()
	f.next(err)
	return x, err
}

// TestSourceLost waits for a source that does not come back until its patience ends.
func TestSourceLost(t *testing.T) {
	w := newWorldWith(t, func(o *simtest.Options) { o.Copies.Patience = time.Nanosecond })
	s := w.imported(firstDisk())
	asked, open := w.cutOff()
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	w.toEast.Down(true)
	close(open)
	if got := w.settled(w.west, w.atWest, c.ID); got.State != snapferry.SnapshotFailed || !strings.Contains(got.Reason, "nothing has come from region east for") {
		t.Errorf("got %s (%s), want it failed", got.State, got.Reason)
	}
	w.toEast.Down(false)
	w.ended(c.Copy, snapferry.EndedSourceLost, 0)
	noPins(t, w.east, s.ID)
	w.check()
}

// TestBreakPin breaks the pin of a copy that lives: it takes another and goes on. Of
// one that is gone for ever, a deletion takes effect.
func TestBreakPin(t *testing.T) {
	w := newWorldWith(t, func(*simtest.Options) {})
	root := w.east.Account("root")
	d := firstDisk()
	s := w.imported(d)
	asked, open := w.cutOff()
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	pins, err := w.east.Control.Pins(t.Context(), w.atEast)
	if err != nil || len(pins) != 1 || pins[0].Copy != c.Copy || pins[0].Snapshot != s.ID || pins[0].Region != "west" || pins[0].Deleting {
		t.Fatalf("got pins %+v, %v, want that of the copy", pins, err)
	}
	if others, err := w.east.Control.Pins(t.Context(), w.east.Account("other")); err != nil || len(others) != 0 {
		t.Errorf("another account sees pins %v, %v", others, err)
	}
	wantKind(t, "break a pin without being an operator", w.east.Control.BreakPin(t.Context(), w.atEast, pins[0].ID), snapferry.Denied)
	wantKind(t, "break a pin that is not there", w.east.Control.BreakPin(t.Context(), root, "pin-nothing"), snapferry.NotFound)
	if err := w.east.Control.BreakPin(t.Context(), root, pins[0].ID); err != nil {
		t.Fatal(err)
	}
	noPins(t, w.east, s.ID)
	close(open)
	w.ready(c.ID, d)
	w.ended(c.Copy, snapferry.EndedDone, 1)
	noPins(t, w.east, s.ID)

	// West goes away for ever with a pin on a snapshot that is to be deleted.
	asked, _ = w.shut()
	w.copy(control.CopyRequest{Source: s.ID, Full: true})
	<-asked
	w.toEast.Down(true)
	if err := w.east.Control.Delete(t.Context(), w.atEast, s.ID); err != nil {
		t.Fatal(err)
	}
	pins, err = w.east.Control.Pins(t.Context(), root)
	if err != nil || len(pins) != 1 || !pins[0].Deleting {
		t.Fatalf("got pins %+v, %v, want one of a snapshot that is being deleted", pins, err)
	}
	if err := w.east.Control.BreakPin(t.Context(), root, pins[0].ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.east.Control.Snapshot(t.Context(), w.atEast, s.ID)
	wantKind(t, "the snapshot whose last pin was broken", err, snapferry.NotFound)
	rest(t, w.east)
	w.east.Check(t, simtest.NoGarbage)
}

// breakPin breaks the one pin of east.
func (w *world) breakPin() {
	w.t.Helper()
	pins, err := w.east.Control.Pins(w.t.Context(), w.atEast)
	if err != nil || len(pins) != 1 {
		w.t.Fatalf("got pins %v, %v, want one", pins, err)
	}
	if err := w.east.Control.BreakPin(w.t.Context(), w.east.Account("root"), pins[0].ID); err != nil {
		w.t.Fatal(err)
	}
}

// TestBreakPinSeenLate breaks the pin of a copy, which takes it again as it renews it;
// what it has asked for before fails for that at this moment: it goes on.
func TestBreakPinSeenLate(t *testing.T) {
	t.Parallel() // it waits for the next renewal
	src := &late{asked: make(chan struct{}, 100), open: make(chan struct{}), failed: make(chan struct{})}
	var broken atomic.Bool
	w := newWorldWith(t, func(o *simtest.Options) {
		to := o.Peers["east"]
		o.Peers["east"] = func(account string) transfer.Remote {
			return &pinned{to(account), func() {
				if broken.Swap(false) {
					close(src.open)
					<-src.failed
				}
			}}
		}
	})
	d := firstDisk()
	s := w.imported(d)
	w.toEast.Wrap(func(of transfer.Source) transfer.Source { return &lateSource{of, src} })
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-src.asked
	broken.Store(true)
	w.breakPin()
	w.ready(c.ID, d)
	w.ended(c.Copy, snapferry.EndedDone, 1)
	noPins(t, w.east, s.ID)
	w.check()
}

// late is what sources do that do not know the pin of what was asked before they are
// opened, and say so only then.
type late struct {
	asked, open chan struct{}
	failed      chan struct{} // closed when who asked has given up
	once        sync.Once
}

type lateSource struct {
	transfer.Source
	late *late
}

func (s *lateSource) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	select {
	case <-s.late.open:
		return s.Source.Blocks(ctx, want)
	default:
	}
	s.late.asked <- struct{}{}
	<-s.late.open
	context.AfterFunc(ctx, func() { s.late.once.Do(func() { close(s.late.failed) }) })
	return nil, snapferry.Errorf(snapferry.NotFound, "the pin was broken")
}

// TestDisown leaves pins in east of copies that west does not know, or has ended:
// the next start of west releases them, and no other.
func TestDisown(t *testing.T) {
	w := newWorldWith(t, func(*simtest.Options) {})
	d := firstDisk()
	s := w.imported(d)
	asked, open := w.shut()
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	host, caller := control.Host{Region: w.east.Control}, transfer.Caller{Region: "west", Account: "a"}
	own, err := w.east.Control.Pins(t.Context(), w.atEast)
	if err != nil || len(own) != 1 {
		t.Fatalf("got pins %v, %v, want one", own, err)
	}
	// Pins are looked at in the order of their ids: one of a copy that nobody knows
	// comes after that of the copy.
	for last := ""; last < own[0].ID; {
		h, err := host.Pin(t.Context(), caller, transfer.Pin{Snapshot: s.ID, Copy: snapferry.NewCopyID(), Incarnation: 1})
		if err != nil {
			t.Fatal(err)
		}
		last = h.Pin
	}
	w.west.Restart()
	w.toWest.Join(w.west)
	left := func() (pins []meta.Pin) {
		w.east.View(func(tx *meta.Tx) (err error) { pins, err = tx.PinsOf(s.ID); return err })
		return pins
	}
	idle(t, w.east, "the release of what nobody knows", func(tx *meta.Tx) (bool, error) {
		pins, err := tx.PinsOf(s.ID)
		return len(pins) <= 1, err
	})
	if pins := left(); len(pins) != 1 || pins[0].Copy != c.Copy {
		t.Errorf("got pins %+v, want that of the copy that goes on", pins)
	}
	close(open)
	w.ready(c.ID, d)
	noPins(t, w.east, s.ID)
	w.check()
}

// TestMetering wants the usage records of copies that end in different ways to say
// so, and what they moved.
func TestMetering(t *testing.T) {
	w := newWorldWith(t, func(*simtest.Options) {})
	d := firstDisk()
	s := w.imported(d)
	c := w.copy(control.CopyRequest{Source: s.ID})
	done := w.ready(c.ID, d)
	w.ended(c.Copy, snapferry.EndedDone, done.Counts.Moved)

	// One that is cancelled, and one that is failed, when a part has come: exactly
	// that is metered.
	for _, end := range []struct {
		ending snapferry.Ending
		how    func(c snapferry.Snapshot) error
	}{
		{snapferry.EndedCancelled, func(c snapferry.Snapshot) error { return w.west.Control.Delete(t.Context(), w.atWest, c.ID) }},
		{snapferry.EndedSourceDeleted, func(snapferry.Snapshot) error { return w.east.Control.Abandon(t.Context(), w.atEast, s.ID) }},
	} {
		h := &halter{left: 20, reached: make(chan struct{}), open: make(chan struct{})}
		w.toEast.Wrap(func(src transfer.Source) transfer.Source { return &halting{src, h} })
		c := w.copy(control.CopyRequest{Source: s.ID, Full: true})
		<-h.reached
		if err := end.how(c); err != nil {
			t.Fatal(err)
		}
		close(h.open)
		w.ended(c.Copy, end.ending, 1)
		records, err := w.west.Control.UsageRecords(t.Context(), w.atWest, 0, 1000)
		if u := records[len(records)-1]; err != nil || u.Bytes != h.passed.Load() {
			t.Errorf("%s: %d bytes are metered, %d came, %v", end.ending, u.Bytes, h.passed.Load(), err)
		}
		noPins(t, w.east, s.ID)
		w.sent(c.Copy, end.ending, h.passed.Load())
		w.toEast.Wrap(nil)
	}
	w.check()
}

// sent wants the usage records of east to say that at least so many bytes went to a
// copy, and how that ended: one that broke its pin does not say it.
func (w *world) sent(id snapferry.CopyID, want snapferry.Ending, least int64) {
	w.t.Helper()
	w.east.Stop() // adds what it has not yet
	w.east.Restart()
	w.toEast.Join(w.east)
	records, err := w.east.Control.UsageRecords(w.t.Context(), w.atEast, 0, 1000)
	var sum int64
	outcome := snapferry.Ending("")
	for _, u := range records {
		if u.Kind == "sent" && u.Copy == id {
			sum += u.Bytes
			outcome = u.Outcome
			if u.Count == 0 {
				w.t.Errorf("a record without requests: %+v", u)
			}
		}
	}
	if want == snapferry.EndedSourceDeleted {
		want = ""
	}
	if err != nil || sum < least || outcome != want {
		w.t.Errorf("sent to copy %s: got %d bytes, outcome %q, %v, want at least %d and %q", id, sum, outcome, err, least, want)
	}
}

// A halter lets a number of blocks pass, and then none until it is opened; then
// they fail, unless the context has ended.
type halter struct {
	mu            sync.Mutex
	left          int
	passed        atomic.Int64 // bytes
	reached, open chan struct{}
}

type halting struct {
	transfer.Source
	h *halter
}

type haltFrames struct {
	transfer.Frames
	h   *halter
	ctx context.Context
}

func (s *halting) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := s.Source.Blocks(ctx, want)
	return &haltFrames{f, s.h, ctx}, err
}

func (f *haltFrames) Next() (transfer.Frame, error) {
	f.h.mu.Lock()
	f.h.left--
	left := f.h.left
	f.h.mu.Unlock()
	if left == -1 {
		close(f.h.reached)
	}
	if left < 0 {
		select {
		case <-f.h.open:
			return transfer.Frame{}, snapferry.Errorf(snapferry.NotFound, "the pin was broken")
		case <-f.ctx.Done():
			return transfer.Frame{}, context.Cause(f.ctx)
		}
	}
	x, err := f.Frames.Next()
	f.h.passed.Add(int64(len(x.Payload)))
	return x, err
}
