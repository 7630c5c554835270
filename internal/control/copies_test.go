package control_test

import (
	"context"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// world is two regions that know each other, with an account in both.
type world struct {
	t              *testing.T
	east, west     *simtest.Region
	toEast, toWest *simtest.Link
	atEast, atWest snapferry.AccountID
	shelf          *shelf // of west; nil: it has no live volumes
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOver(t, nil)
}

// newWorldOver is newWorld with a driver of the bucket of west.
func newWorldOver(t *testing.T, west blob.Driver) *world {
	t.Helper()
	w := &world{t: t}
	w.east, w.west, w.toEast, w.toWest = simtest.Pair(t, simtest.NewFactory(t), nil, west)
	w.atEast, w.atWest = w.east.Account("a"), w.west.Account("a")
	return w
}

// imported imports a disk into east and waits for the snapshot.
func (w *world) imported(d *simtest.Disk) snapferry.Snapshot {
	w.t.Helper()
	s, err := w.east.Control.Import(w.t.Context(), w.atEast, control.ImportRequest{Volume: "disk", Disk: d, Close: func() {}})
	if err != nil {
		w.t.Fatal(err)
	}
	s = w.settled(w.east, w.atEast, s.ID)
	if s.State != snapferry.SnapshotReady || s.Digest != d.Digest() {
		w.t.Fatalf("import: got %s (%s) %v, want ready %v", s.State, s.Reason, s.Digest, d.Digest())
	}
	return s
}

func (w *world) copy(req control.CopyRequest) snapferry.Snapshot {
	w.t.Helper()
	req.From = "east"
	s, err := w.west.Control.Copy(w.t.Context(), w.atWest, req)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

const patience = 2 * time.Minute

func (w *world) settled(r *simtest.Region, account snapferry.AccountID, id snapferry.SnapshotID) snapferry.Snapshot {
	w.t.Helper()
	s, err := r.Control.Wait(w.t.Context(), account, id, -1, patience)
	if err != nil {
		w.t.Fatal(err)
	}
	if !s.State.Settled() {
		w.t.Fatalf("snapshot %s in %s is %s after %v", id, r.Name, s.State, patience)
	}
	return s
}

// ready waits for a copy and compares it with the disk.
func (w *world) ready(id snapferry.SnapshotID, d *simtest.Disk) snapferry.Snapshot {
	w.t.Helper()
	s := w.settled(w.west, w.atWest, id)
	if s.State != snapferry.SnapshotReady || s.Digest != d.Digest() {
		w.t.Fatalf("copy: got %s (%s) %v, want ready %v", s.State, s.Reason, s.Digest, d.Digest())
	}
	got := simtest.NewDisk(d.Size())
	if err := w.west.Control.Export(w.t.Context(), w.atWest, id, got, nil); err != nil {
		w.t.Fatal(err)
	}
	if got.Digest() != d.Digest() {
		w.t.Errorf("the copy reads as %v, want %v", got.Digest(), d.Digest())
	}
	return s
}

// idle waits until a condition on the metadata of a region holds.
func idle(t *testing.T, r *simtest.Region, what string, ok func(tx *meta.Tx) (bool, error)) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		changed := r.DB.Changed()
		done := false
		r.View(func(tx *meta.Tx) (err error) { done, err = ok(tx); return err })
		if done {
			return
		}
		select {
		case <-changed:
		case <-end.C:
			t.Fatalf("%s did not come in %v", what, patience)
		}
	}
}

func noPins(t *testing.T, r *simtest.Region, id snapferry.SnapshotID) {
	t.Helper()
	idle(t, r, "the end of the pins", func(tx *meta.Tx) (bool, error) {
		pins, err := tx.PinsOf(id)
		return len(pins) == 0, err
	})
}

// gone waits until no job about a snapshot is left and its version is gone.
func gone(t *testing.T, r *simtest.Region, id snapferry.SnapshotID) {
	t.Helper()
	idle(t, r, "the end of the jobs", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOf(string(id))
		for _, j := range jobs {
			if !j.State.Terminal() {
				return false, err
			}
		}
		open, err2 := tx.OpenVersions()
		if err2 != nil {
			return false, err2
		}
		return len(open) == 0, err
	})
}

// rest waits until upkeep has nothing left to do in a region.
func rest(t *testing.T, r *simtest.Region) {
	t.Helper()
	idle(t, r, "the end of upkeep in "+string(r.Name), upkeepEnded)
}

func upkeepEnded(tx *meta.Tx) (bool, error) {
	left, err := simtest.Chores(tx)
	if err != nil || len(left) > 0 {
		return false, err
	}
	jobs, err := tx.JobsOfLane(job.Upkeep, 0)
	for _, j := range jobs {
		if j.Kind != "sweep" || j.RunAfter.IsZero() {
			return false, err
		}
	}
	return true, err
}

func atRest(r *simtest.Region, id snapferry.SnapshotID) (ended bool) {
	r.View(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(id)
		if err == nil && s.State.Settled() {
			ended, err = upkeepEnded(tx)
		}
		return err
	})
	return ended
}

func (w *world) check() {
	w.t.Helper()
	rest(w.t, w.east)
	rest(w.t, w.west)
	w.east.Check(w.t, simtest.NoGarbage)
	w.west.Check(w.t, simtest.NoGarbage)
}

func wantKind(t *testing.T, what string, err error, kind snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

const size = 100<<20 + 512

func firstDisk() *simtest.Disk {
	d := simtest.NewDisk(size)
	for i := range uint64(200) {
		d.Fill(i*8, 2*int(i)+1)
	}
	return d
}

func TestCopyAndIncrement(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	s1 := w.imported(d)
	c1 := w.ready(w.copy(control.CopyRequest{Source: s1.ID, Labels: control.Labels{Name: "first"}}).ID, d)
	if c1.Counts.Present != s1.Counts.Present || c1.Counts.Changed != s1.Counts.Present || c1.Counts.Moved < 200<<16 || c1.Counts.Reused != 0 {
		t.Errorf("counts of the first copy: %+v", c1.Counts)
	}
	if c1.Name != "first" || c1.Source.Snapshot != s1.ID || c1.Source.Region != "east" || c1.Volume != "disk" {
		t.Errorf("the copy says %+v", c1)
	}

	// An increment, and one that ends in the middle of a block that was there.
	for _, next := range []*simtest.Disk{
		d.Clone(size).Fill(8, 9001).Fill(801, 9003).Fill(0, 0),
		d.Clone(90<<20+512).Fill(8, 9001).Fill(801, 9003).Fill(0, 0),
		d.Clone(90<<20+512).Clone(200<<20).Fill(8, 9001).Fill(801, 9003).Fill(0, 0).Fill(3000, 5),
	} {
		s := w.imported(next)
		plan, err := w.west.Control.PlanCopy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: s.ID})
		if err != nil {
			t.Fatal(err)
		}
		c := w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, next)
		if c.Counts.Changed != plan.MoveBlocks<<16 || c.Counts.Changed > 3<<16 {
			t.Errorf("an increment moved %d blocks, plan says %d, want 3 at most", c.Counts.Changed>>16, plan.MoveBlocks)
		}
		if c.Counts.Reused != c.Counts.Present-c.Counts.Changed || plan.ReuseBlocks<<16 != c.Counts.Reused {
			t.Errorf("reused: got %d, plan says %d, want %d", c.Counts.Reused, plan.ReuseBlocks<<16, c.Counts.Present-c.Counts.Changed)
		}
		noPins(t, w.east, s.ID)
	}
	w.check()
}

func TestCopyFull(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	s := w.imported(d)
	w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, d)
	again := w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, d)
	if again.Counts.Moved != 0 || again.Counts.Changed != 0 {
		t.Errorf("a second copy moved %+v", again.Counts)
	}
	full := w.ready(w.copy(control.CopyRequest{Source: s.ID, Full: true}).ID, d)
	if full.Counts.Changed != full.Counts.Present {
		t.Errorf("a full copy moved %+v", full.Counts)
	}
	w.check()
}

func TestCopyWithinRegion(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	s := w.imported(d)
	c, err := w.east.Control.Copy(t.Context(), w.atEast, control.CopyRequest{From: "east", Source: s.ID})
	if err != nil {
		t.Fatal(err)
	}
	c = w.settled(w.east, w.atEast, c.ID)
	if c.State != snapferry.SnapshotReady || c.Digest != d.Digest() || c.Counts.Moved != 0 || c.Counts.Stored != 0 {
		t.Errorf("got %s (%s) %+v", c.State, c.Reason, c.Counts)
	}
	noPins(t, w.east, s.ID)
	w.check()
}

func TestCopyEmptyAndTiny(t *testing.T) {
	w := newWorld(t)
	for _, d := range []*simtest.Disk{
		simtest.NewDisk(512), simtest.NewDisk(64 << 40), simtest.NewDisk(512).Fill(0, 1),
		simtest.NewDisk(64<<40).Fill(1<<30-1, 3).Fill(0, 2), simtest.NewDisk(64 << 40),
	} {
		s := w.imported(d)
		w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, d)
	}
	w.check()
}

func TestCopyRefused(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	other := w.west.Account("b")
	w.east.Account("b")
	ctx := t.Context()
	_, err := w.west.Control.Copy(ctx, other, control.CopyRequest{From: "east", Source: s.ID})
	wantKind(t, "foreign account", err, snapferry.NotFound)
	lonely := w.west.Account("lonely")
	_, err = w.west.Control.Copy(ctx, lonely, control.CopyRequest{From: "east", Source: s.ID})
	wantKind(t, "account that east does not have", err, snapferry.Denied)
	_, err = w.west.Control.Copy(ctx, w.atWest, control.CopyRequest{From: "north", Source: s.ID})
	wantKind(t, "unknown region", err, snapferry.NotFound)
	_, err = w.west.Control.Copy(ctx, w.atWest, control.CopyRequest{From: "east", Source: "snap-1"})
	wantKind(t, "malformed id", err, snapferry.Invalid)
	_, err = w.west.Control.Copy(ctx, w.atWest, control.CopyRequest{From: "east", Source: snapferry.NewSnapshotID()})
	wantKind(t, "no such snapshot", err, snapferry.NotFound)
	w.toEast.Down(true)
	_, err = w.west.Control.Copy(ctx, w.atWest, control.CopyRequest{From: "east", Source: s.ID})
	wantKind(t, "peer down", err, snapferry.Unavailable)
	w.toEast.Down(false)
	if err := w.east.Control.Delete(ctx, w.atEast, s.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.west.Control.Copy(ctx, w.atWest, control.CopyRequest{From: "east", Source: s.ID})
	wantKind(t, "deleted source", err, snapferry.NotFound)
	w.check()
}

func TestCopyToken(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	s := w.imported(d)
	req := control.CopyRequest{Source: s.ID, Token: "once"}
	one := w.copy(req)
	two := w.copy(req)
	if one.ID != two.ID {
		t.Errorf("a repeated request made %s and %s", one.ID, two.ID)
	}
	req.From, req.Full = "east", true
	_, err := w.west.Control.Copy(t.Context(), w.atWest, req)
	wantKind(t, "another request under the token", err, snapferry.Conflict)

	// Many at once make one.
	ids := make(chan snapferry.SnapshotID, 8)
	for range cap(ids) {
		go func() {
			s, err := w.west.Control.Copy(context.Background(), w.atWest, control.CopyRequest{From: "east", Source: s.ID, Token: "many"})
			if err != nil {
				t.Errorf("at once: %v", err)
			}
			ids <- s.ID
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first {
			t.Errorf("requests at once made %s and %s", first, id)
		}
	}
	w.ready(one.ID, d)
	w.ready(first, d)
	noPins(t, w.east, s.ID)
	w.check()
}

// gate is a source whose blocks wait until it is opened, or the context ends.
type gate struct {
	transfer.Source
	asked chan struct{} // gets one for each request that waits
	open  chan struct{}
}

func (g *gate) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	select {
	case g.asked <- struct{}{}:
	case <-g.open:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case <-g.open:
		return g.Source.Blocks(ctx, want)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// shut lets the blocks that west asks of east wait.
func (w *world) shut() (asked, open chan struct{}) {
	asked, open = make(chan struct{}, 100), make(chan struct{})
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &gate{Source: s, asked: asked, open: open} })
	return asked, open
}

func TestCancelByDelete(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	asked, _ := w.shut()
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	if err := w.west.Control.Delete(t.Context(), w.atWest, c.ID); err != nil {
		t.Fatal(err)
	}
	_, err := w.west.Control.Snapshot(t.Context(), w.atWest, c.ID)
	wantKind(t, "the cancelled copy's snapshot", err, snapferry.NotFound)
	gone(t, w.west, c.ID)
	noPins(t, w.east, s.ID)
	x, err := w.west.Control.CopyOf(t.Context(), w.atWest, c.Copy)
	if err != nil || x.State != snapferry.CopyCancelled {
		t.Errorf("the copy: got %s, %v, want cancelled", x.State, err)
	}
	w.check()
}

func TestDeleteWhilePinned(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	s := w.imported(d)
	asked, open := w.shut()
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	if err := w.east.Control.Delete(t.Context(), w.atEast, s.ID); err != nil {
		t.Fatal(err)
	}
	got, err := w.east.Control.Snapshot(t.Context(), w.atEast, s.ID)
	if err != nil || got.State != snapferry.SnapshotDeleting {
		t.Errorf("the pinned source: got %s, %v, want deleting", got.State, err)
	}
	_, err = w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: s.ID})
	wantKind(t, "another copy of a source that is being deleted", err, snapferry.Conflict)
	close(open)
	w.ready(c.ID, d)
	noPins(t, w.east, s.ID)
	idle(t, w.east, "the deletion", func(tx *meta.Tx) (bool, error) {
		s, err := tx.Snapshot(s.ID)
		return s.Version.IsZero(), err
	})
	_, err = w.east.Control.Snapshot(t.Context(), w.atEast, s.ID)
	wantKind(t, "the deleted source", err, snapferry.NotFound)
	w.check()
}

func TestPeerDownThenUp(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	s := w.imported(d)
	asked, open := w.shut()
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	w.toEast.Down(true)
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return s })
	close(open) // what is under way still comes; the rest fails
	idle(t, w.west, "a run that failed, or the end", func(tx *meta.Tx) (bool, error) {
		jobs, err := tx.JobsOf(string(c.ID))
		return err != nil || jobs[0].Attempts > 0 || jobs[0].State == snapferry.JobDone, err
	})
	w.toEast.Down(false)
	w.ready(c.ID, d)
	noPins(t, w.east, s.ID)
	w.check()
}

// cutter is a source that fails after a number of blocks.
type cutter struct {
	transfer.Source
	left int
}

func (c *cutter) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := c.Source.Blocks(ctx, want)
	return &cutFrames{f, c.left}, err
}

type cutFrames struct {
	transfer.Frames
	left int
}

func (f *cutFrames) Next() (transfer.Frame, error) {
	if f.left--; f.left < 0 {
		return transfer.Frame{}, snapferry.Errorf(snapferry.Unavailable, "the link was cut")
	}
	return f.Frames.Next()
}

// TestInterruptedCopyGoesOn restarts the destination in the middle of a copy,
// again and again; what arrived does not come again.
func TestInterruptedCopyGoesOn(t *testing.T) {
	w := newWorld(t)
	d := firstDisk() // seven leaves: one batch
	s := w.imported(d)
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &cutter{s, 70} })
	c := w.copy(control.CopyRequest{Source: s.ID})
	var shown int64
	for range 3 {
		idle(t, w.west, "a run that was cut", func(tx *meta.Tx) (bool, error) {
			jobs, err := tx.JobsOf(string(c.ID))
			return err != nil || jobs[0].Attempts > 0 || jobs[0].State.Terminal(), err
		})
		w.west.Restart()
		x, err := w.west.Control.Snapshot(t.Context(), w.atWest, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if x.Progress != nil {
			if x.Progress.Done < shown {
				t.Errorf("progress went back from %d to %d", shown, x.Progress.Done)
			}
			shown = x.Progress.Done
		}
	}
	got := w.ready(c.ID, d)
	if got.Counts.Changed < got.Counts.Present || got.Counts.Changed > 2*got.Counts.Present {
		t.Errorf("moved %d plain bytes of %d", got.Counts.Changed, got.Counts.Present)
	}
	noPins(t, w.east, s.ID)
	rest(t, w.east)
	w.east.Check(t, simtest.NoGarbage)
	rest(t, w.west)
	w.west.Check(t, simtest.MayGarbage)
}

// TestRestartWhileMoving ends the destination while streams wait.
func TestRestartWhileMoving(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	s := w.imported(d)
	asked, open := w.shut()
	c := w.copy(control.CopyRequest{Source: s.ID})
	<-asked
	w.west.Restart()
	<-asked
	close(open)
	w.ready(c.ID, d)
	noPins(t, w.east, s.ID)
	rest(t, w.east)
	w.east.Check(t, simtest.NoGarbage)
	rest(t, w.west)
	w.west.Check(t, simtest.MayGarbage)
}

// TestQueueOfOneLineage begins more copies of one lineage than there are
// workers, while the first fails and must run again.
func TestQueueOfOneLineage(t *testing.T) {
	w := newWorld(t)
	d := firstDisk()
	var snaps []snapferry.Snapshot
	var disks []*simtest.Disk
	for i := range 6 {
		d = d.Clone(size).Fill(uint64(i), 7001+2*i)
		disks = append(disks, d)
		snaps = append(snaps, w.imported(d))
	}
	asked, open := w.shut()
	var copies []snapferry.Snapshot
	for _, s := range snaps {
		copies = append(copies, w.copy(control.CopyRequest{Source: s.ID}))
	}
	<-asked
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return &cutter{s, 190} })
	close(open)
	for i, c := range copies {
		s := w.ready(c.ID, disks[i])
		// All were admitted before the first was there; each has chosen its base
		// when its turn came.
		if i > 0 && (s.Parent != copies[i-1].ID || s.Counts.Changed > snapferry.BlockSize) {
			t.Errorf("copy %d: got parent %q and %d bytes changed, want parent %s and one block", i, s.Parent, s.Counts.Changed, copies[i-1].ID)
		}
	}
	for _, s := range snaps {
		noPins(t, w.east, s.ID)
	}
	rest(t, w.east)
	w.east.Check(t, simtest.NoGarbage)
	rest(t, w.west)
	w.west.Check(t, simtest.MayGarbage)
}

// TestCorruptSource copies from a source whose blocks are not what its map
// says: the copy fails, with a reason, and leaves nothing.
func TestCorruptSource(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	w.toEast.Wrap(func(s transfer.Source) transfer.Source { return swapper{s} })
	c := w.settled(w.west, w.atWest, w.copy(control.CopyRequest{Source: s.ID}).ID)
	if c.State != snapferry.SnapshotFailed || c.Reason == "" {
		t.Errorf("got %s %q, want failed and a reason", c.State, c.Reason)
	}
	gone(t, w.west, c.ID)
	noPins(t, w.east, s.ID)
	if err := w.west.Control.Delete(t.Context(), w.atWest, c.ID); err != nil {
		t.Error(err)
	}
	w.check()
}

// swapper gives every block other content.
type swapper struct{ transfer.Source }

func (s swapper) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := s.Source.Blocks(ctx, want)
	return swapFrames{f}, err
}

type swapFrames struct{ transfer.Frames }

func (f swapFrames) Next() (transfer.Frame, error) {
	x, err := f.Frames.Next()
	x.Payload = append([]byte{1}, x.Payload...)[:len(x.Payload)]
	return x, err
}

// TestCopyShrunkWithinZeros copies a disk that was made smaller where nothing
// was: the block it ends in has the digest it had, and lengths that do not fit.
func TestCopyShrunkWithinZeros(t *testing.T) {
	w := newWorld(t)
	const end = 90<<20 + 512
	small := simtest.NewDisk(end).Fill(3, 1).Fill(90*16, 3)
	for _, d := range []*simtest.Disk{small, small.Clone(100 << 20), small} {
		s := w.imported(d)
		w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, d)
		w.ready(w.copy(control.CopyRequest{Source: s.ID, Full: true}).ID, d)
	}
	// To a region that has only the larger one.
	s := w.imported(small.Clone(100<<20).Fill(9, 9))
	w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, small.Clone(100<<20).Fill(9, 9))
	s = w.imported(small.Clone(end).Fill(9, 9))
	w.ready(w.copy(control.CopyRequest{Source: s.ID}).ID, small.Clone(end).Fill(9, 9))
	w.check()
}
