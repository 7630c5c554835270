package vault_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/segment"
)

// hooked is a driver that lets a test step in between.
type hooked struct {
	blob.Driver
	mu    sync.Mutex
	hooks []*hook
}

type hook struct {
	op     blobtest.Op
	prefix string
	after  bool
	always bool
	fn     func() error
}

// once runs fn, once, before or after a request whose name, or prefix, begins
// with prefix. An error of fn is that of the request.
func (h *hooked) once(op blobtest.Op, prefix string, after bool, fn func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hooks = append(h.hooks, &hook{op: op, prefix: prefix, after: after, fn: fn})
}

// always is once, for every request before it is done.
func (h *hooked) always(op blobtest.Op, prefix string, fn func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hooks = append(h.hooks, &hook{op: op, prefix: prefix, always: true, fn: fn})
}

func (h *hooked) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hooks = nil
}

func (h *hooked) run(op blobtest.Op, name string, after bool) error {
	h.mu.Lock()
	var fns []func() error
	left := h.hooks[:0:0]
	for _, k := range h.hooks {
		if k.op == op && k.after == after && strings.HasPrefix(name, k.prefix) {
			fns = append(fns, k.fn)
			if !k.always {
				continue
			}
		}
		left = append(left, k)
	}
	h.hooks = left
	h.mu.Unlock()
	for _, fn := range fns {
		if err := fn(); err != nil {
			return err
		}
	}
	return nil
}

func (h *hooked) around(op blobtest.Op, name string, do func() error) error {
	if err := h.run(op, name, false); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return h.run(op, name, true)
}

func (h *hooked) Put(ctx context.Context, name string, body []byte) error {
	return h.around(blobtest.Put, name, func() error { return h.Driver.Put(ctx, name, body) })
}

func (h *hooked) Delete(ctx context.Context, name string) error {
	return h.around(blobtest.Delete, name, func() error { return h.Driver.Delete(ctx, name) })
}

func (h *hooked) ReadAt(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	if err := h.run(blobtest.ReadAt, name, false); err != nil {
		return 0, err
	}
	return h.Driver.ReadAt(ctx, name, p, off)
}

func (h *hooked) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	return h.around(blobtest.List, prefix, func() error { return h.Driver.List(ctx, prefix, after, fn) })
}

// holed is a region whose objects have holes: three versions of a chain, of
// which some that lay between were deleted.
type holed struct {
	*simtest.Region
	driver *hooked
	vol    meta.Volume
	ids    []snapferry.VersionID
	disks  map[snapferry.VersionID]*simtest.Disk
}

func newHoled(t testing.TB, o simtest.Options) *holed {
	t.Helper()
	h := &holed{driver: &hooked{Driver: memblob.New()}, disks: map[snapferry.VersionID]*simtest.Disk{}}
	if o.Driver == nil {
		o.Driver = h.driver
	}
	h.Region = simtest.NewRegion(t, o)
	h.vol = h.Volume(h.Account("a"), "disk")
	d := simtest.NewDisk(41<<20 + 512)
	for i := range uint64(40) {
		d.Fill(i*16, int(i)+1)
	}
	var parent snapferry.VersionID
	var dead []snapferry.VersionID
	for round := range 5 {
		id, _, err := h.Store(h.vol, parent, d)
		if err != nil {
			t.Fatal(err)
		}
		h.disks[id] = d
		if round%2 == 1 {
			dead = append(dead, id)
		} else {
			h.ids = append(h.ids, id)
		}
		parent = id
		d = d.Clone(d.Size())
		for i := range uint64(20) {
			d.Fill((i+uint64(round)*7)%40*16, 100*(round+1)+int(i))
		}
	}
	for _, id := range append(dead, h.ids[0]) {
		h.delete(t, id)
	}
	h.ids = h.ids[1:]
	return h
}

func (h *holed) delete(t testing.TB, id snapferry.VersionID) {
	t.Helper()
	if err := h.Vault.Release(context.Background(), simtest.Hold(id), nil); err != nil {
		t.Fatal(err)
	}
	if err := h.Settle(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func (h *holed) compact(v *vault.Vault) (vault.CompactStats, error) {
	return v.Compact(context.Background(), h.vol.Chain, vault.CompactConfig{})
}

// want fails the test unless everything reads, by this vault and by a new one.
func (h *holed) want(t testing.TB, g simtest.Garbage) {
	t.Helper()
	for range 2 {
		for _, id := range h.ids {
			h.WantContent(t, id, h.disks[id])
		}
		h.Forget()
	}
	h.Check(t, g)
}

// objects returns the objects of a state.
func (h *holed) objects(state meta.ObjectState) (all []meta.Object) {
	h.View(func(tx *meta.Tx) error {
		return tx.AllObjects(func(o meta.Object) error {
			if o.State == state {
				all = append(all, o)
			}
			return nil
		})
	})
	return all
}

func (h *holed) needs() (yes bool) {
	h.View(func(tx *meta.Tx) (err error) {
		yes, err = h.Vault.NeedsCompaction(tx, h.vol.Chain)
		return err
	})
	return yes
}

func (h *holed) reclaim(t testing.TB) vault.ReclaimStats {
	t.Helper()
	st, err := h.Vault.Reclaim(context.Background(), time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	if left := h.objects(meta.ObjectCondemned); len(left) > 0 {
		t.Errorf("%d condemned objects are left", len(left))
	}
	return st
}

func TestCompact(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	if !h.needs() {
		t.Fatal("nothing is hollow")
	}
	before := int64(0)
	for _, o := range h.objects(meta.ObjectLive) {
		before += o.Size
	}
	h.want(t, simtest.NoGarbage)
	st, err := h.compact(h.Vault)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", st)
	if st.ObjectsOut != 1 || st.ObjectsIn < 2 || st.Freed <= 0 {
		t.Errorf("got %+v, want some objects in one", st)
	}
	after := int64(0)
	for _, o := range h.objects(meta.ObjectLive) {
		after += o.Size
		if o.Dead > 0 && o.Chain.IsZero() {
			t.Errorf("object %+v", o)
		}
	}
	if got := before - after; got != st.Freed {
		t.Errorf("freed: got %d, want %d", st.Freed, got)
	}
	h.want(t, simtest.NoGarbage)
	if h.needs() {
		t.Error("right after a compaction another one is needed")
	}
	if again, err := h.compact(h.Vault); err != nil || again.ObjectsIn > 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if st := h.reclaim(t); st.Objects == 0 || st.Bytes == 0 {
		t.Errorf("reclaimed: %+v", st)
	}
	h.want(t, simtest.NoGarbage)
	for _, id := range h.ids {
		h.delete(t, id)
	}
	h.ids = nil
	h.reclaim(t)
	h.WantNothing(t)
	h.Check(t, simtest.NoGarbage)
}

// TestCompactSmall merges the objects of many small versions, and counts what a
// read of the newest asks for.
func TestCompactSmall(t *testing.T) {
	t.Parallel()
	h := &holed{driver: &hooked{Driver: memblob.New()}, disks: map[snapferry.VersionID]*simtest.Disk{}}
	h.Region = simtest.NewRegion(t, simtest.Options{Driver: h.driver})
	h.vol = h.Volume(h.Account("a"), "disk")
	d := simtest.NewDisk(64 << 20)
	rng := rand.New(rand.NewPCG(1, 2))
	var parent snapferry.VersionID
	for i := range 150 {
		d = d.Clone(d.Size()).Fill(rng.Uint64N(1024), 2*i+1)
		id, _, err := h.Store(h.vol, parent, d)
		if err != nil {
			t.Fatal(err)
		}
		parent, h.disks[id] = id, d
		if i%50 == 49 {
			h.ids = append(h.ids, id)
		}
	}
	requests := func() int64 {
		h.Forget()
		before := h.Faulty.Count(blobtest.ReadAt)
		if _, err := h.Read(parent); err != nil {
			t.Fatal(err)
		}
		return h.Faulty.Count(blobtest.ReadAt).Requests - before.Requests
	}
	before := requests()
	reads := h.Faulty.Count(blobtest.ReadAt).Requests
	st, err := h.compact(h.Vault)
	if err != nil {
		t.Fatal(err)
	}
	reads = h.Faulty.Count(blobtest.ReadAt).Requests - reads
	h.reclaim(t)
	live := h.objects(meta.ObjectLive)
	t.Logf("%+v in %d reads; %d objects; an export of the newest takes %d requests instead of %d", st, reads, len(live), requests(), before)
	if len(live) > 64+8 {
		t.Errorf("%d objects are left", len(live))
	}
	if got := requests(); got > 64+24 || got >= before {
		t.Errorf("an export takes %d requests, before it took %d", got, before)
	}
	if h.needs() {
		t.Error("another compaction is needed")
	}
	h.want(t, simtest.NoGarbage)
}

// TestCompactLeavesOpen: a version that is being written keeps its objects, and
// its abort deletes nothing else.
func TestCompactLeavesOpen(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	id, w := open(t, h.Region, h.vol, h.ids[0], h.disks[h.ids[0]].Size())
	for leaf := range uint64(3) {
		putLeaf(t, w, leaf, map[int]int{0: 900 + int(leaf), 1: 910, 2: 920, 3: 930})
		if err := w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	mine := map[string]bool{}
	h.Update(func(tx *meta.Tx) error {
		own, err := tx.SegmentsOf(id)
		for _, s := range own {
			mine[s.Object] = true
			if s.Kind == snapferry.BlockFrame && err == nil {
				_, _, err = tx.MarkDead(s.ID, []meta.DeadSlot{{Slot: 0, Length: 1 << 16}, {Slot: 1, Length: 1 << 16}}, time.Now())
			}
		}
		return err
	})
	if _, err := h.compact(h.Vault); err != nil {
		t.Fatal(err)
	}
	h.View(func(tx *meta.Tx) error {
		own, err := tx.SegmentsOf(id)
		for _, s := range own {
			if !mine[s.Object] || s.Generation > 0 {
				t.Errorf("segment %s of an open version was moved", s.ID)
			}
		}
		return err
	})
	w.Close()
	if err := h.Vault.Abort(t.Context(), id, nil); err != nil {
		t.Fatal(err)
	}
	h.want(t, simtest.NoGarbage)
}

// TestCrashInCompact: whatever fails, every version reads, what is left over is
// known, and another run comes to its end.
func TestCrashInCompact(t *testing.T) {
	t.Parallel()
	var id snapferry.VersionID
	var d *simtest.Disk
	everywhere(t, func(t *testing.T, s *scene) {
		id, d = hollowScene(t, s)
	}, func(s *scene) error {
		if _, err := s.Vault.Compact(context.Background(), s.vol.Chain, vault.CompactConfig{}); err != nil {
			return err
		}
		_, err := s.Vault.Reclaim(context.Background(), time.Now().Add(time.Hour), nil)
		return err
	}, func(t *testing.T, s *scene, err error) {
		s.WantContent(t, id, d)
		s.Check(t, simtest.MayGarbage)
		if _, err := s.Vault.Sweep(t.Context(), nil); err != nil {
			t.Errorf("sweep: %v", err)
		}
		s.Check(t, simtest.NoGarbage)
		if _, err := s.Vault.Compact(t.Context(), s.vol.Chain, vault.CompactConfig{}); err != nil {
			t.Errorf("again: %v", err)
		}
		if _, err := s.Vault.Reclaim(t.Context(), time.Now().Add(time.Hour), nil); err != nil {
			t.Errorf("reclaim again: %v", err)
		}
		s.View(func(tx *meta.Tx) error {
			return tx.AllObjects(func(o meta.Object) error {
				if o.State != meta.ObjectLive || o.Dead*4 >= o.Size {
					t.Errorf("object %s is left, %s, with %d of %d bytes dead", o.Name, o.State, o.Dead, o.Size)
				}
				return nil
			})
		})
		s.WantContent(t, id, d)
		s.Check(t, simtest.NoGarbage)
	})
}

// hollowScene seals the child, puts another below it and deletes the child: some
// of what it wrote lives on.
func hollowScene(t *testing.T, s *scene) (snapferry.VersionID, *simtest.Disk) {
	t.Helper()
	if _, err := s.FillVersion(s.child, s.next); err != nil {
		t.Fatal(err)
	}
	d := s.next.Clone(s.next.Size()).Fill(640, 11)
	id, _, err := s.Store(s.vol, s.child, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Vault.Release(t.Context(), simtest.Hold(s.child), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	return id, d
}

// TestCrashInSweep leaves all kinds of garbage and cuts the power while it is
// swept.
func TestCrashInSweep(t *testing.T) {
	t.Parallel()
	var id snapferry.VersionID
	var d *simtest.Disk
	everywhere(t, func(t *testing.T, s *scene) {
		id, d = hollowScene(t, s)
		litter(t, s.Region, id)
	}, func(s *scene) error {
		_, err := s.Vault.Sweep(context.Background(), nil)
		return err
	}, func(t *testing.T, s *scene, err error) {
		s.Check(t, simtest.MayGarbage)
		if _, err := s.Vault.Sweep(t.Context(), nil); err != nil {
			t.Errorf("again: %v", err)
		}
		s.WantContent(t, id, d)
		s.Check(t, simtest.NoGarbage)
	})
}

// litter leaves garbage of every kind in a region.
func litter(t testing.TB, r *simtest.Region, of snapferry.VersionID) {
	t.Helper()
	ctx := context.Background()
	if err := simtest.Litter(ctx, r.DB, r.Bucket, of, ""); err != nil {
		t.Fatal(err)
	}
	for range 5 { // superseded records
		if err := r.Vault.Hold(ctx, meta.Hold{Version: of, Kind: vault.HoldPin, Owner: "pin-more", Created: time.Now()}, nil); err != nil {
			t.Fatal(err)
		}
		if err := r.Vault.Release(ctx, meta.Hold{Version: of, Kind: vault.HoldPin, Owner: "pin-more"}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCompactRandom compacts random chains under eight readers, with a fault
// somewhere, and reclaims at once.
func TestCompactRandom(t *testing.T) {
	t.Parallel()
	f := simtest.NewFactory(t)
	rapid.Check(t, func(rt *rapid.T) {
		r := f.NewRegion(t, simtest.Options{Codec: rapid.SampledFrom([]snapferry.Codec{snapferry.Stored, snapferry.Zstd}).Draw(rt, "codec")})
		defer r.Stop()
		vol := r.Volume(r.Account("a"), "disk")
		disks := map[snapferry.VersionID]*simtest.Disk{{}: simtest.NewDisk(0)}
		var ids []snapferry.VersionID
		for range rapid.IntRange(2, 7).Draw(rt, "versions") {
			parent := rapid.SampledFrom(append([]snapferry.VersionID{{}}, ids...)).Draw(rt, "parent")
			size := disks[parent].Size()
			if parent.IsZero() {
				size = drawSize(rt, "size")
			}
			d := disks[parent].Clone(size)
			change(rt, d)
			change(rt, d)
			id, _, err := r.Store(vol, parent, d)
			if err != nil {
				rt.Fatal(err)
			}
			ids, disks[id] = append(ids, id), d
		}
		var live []snapferry.VersionID
		for _, id := range ids {
			if rapid.IntRange(0, 2).Draw(rt, "fate") > 0 {
				live = append(live, id)
			} else if err := r.Vault.Release(context.Background(), simtest.Hold(id), nil); err != nil {
				rt.Fatal(err)
			}
		}
		if err := r.Settle(context.Background()); err != nil {
			rt.Fatal(err)
		}
		fault := rapid.IntRange(-1, 12).Draw(rt, "fault")
		stop := startReaders(r, live, disks)
		if fault >= 0 {
			r.Power.FailAt(fault, blobtest.Mode(rapid.IntRange(0, 1).Draw(rt, "mode")))
		}
		_, err := r.Vault.Compact(context.Background(), vol.Chain, vault.CompactConfig{})
		if err == nil {
			_, err = r.Vault.Reclaim(context.Background(), time.Now().Add(time.Hour), nil)
		}
		if failed := r.Power.Restore(); err != nil && !failed {
			rt.Errorf("without a fault: %v", err)
		}
		if err := stop(); err != nil {
			rt.Errorf("a reader: %v", err)
		}
		if rapid.Bool().Draw(rt, "restart") {
			r.Restart()
		}
		if _, err := r.Vault.Compact(context.Background(), vol.Chain, vault.CompactConfig{}); err != nil {
			rt.Error(err)
		}
		if _, err := r.Vault.Sweep(context.Background(), nil); err != nil {
			rt.Error(err)
		}
		for _, id := range live {
			r.WantContent(rt, id, disks[id])
		}
		r.Check(rt, simtest.NoGarbage)
	})
}

// startReaders reads versions again and again, eight at a time, until stop,
// which returns what was wrong.
func startReaders(r *simtest.Region, live []snapferry.VersionID, disks map[snapferry.VersionID]*simtest.Disk) (stop func() error) {
	if len(live) == 0 {
		return func() error { return nil }
	}
	var end atomic.Bool
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			for n := i; ; n++ {
				id := live[n%len(live)]
				got, err := r.Read(id)
				if err == nil && got.Digest() != disks[id].Digest() {
					err = fmt.Errorf("version %s has wrong content", id)
				}
				if err != nil || end.Load() {
					errs <- err
					return
				}
			}
		}()
	}
	return func() error {
		end.Store(true)
		var all []error
		for range 8 {
			all = append(all, <-errs)
		}
		return errors.Join(all...)
	}
}

// TestCompactorsRace: while one has put its object another one does the whole
// work. Its object stays behind, a second one with the same segments and
// generations.
func TestCompactorsRace(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	heir, err := vault.New(vault.Config{Bucket: h.Bucket, DB: h.DB, Region: h.Name})
	if err != nil {
		t.Fatal(err)
	}
	var inner vault.CompactStats
	h.driver.once(blobtest.Put, vault.ObjectPrefix, true, func() (err error) {
		h.Faulty.Fail(blobtest.Delete, vault.ObjectPrefix+"*", 1, blobtest.Before)
		inner, err = h.compact(heir)
		return err
	})
	st, err := h.compact(h.Vault)
	if !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("the delete of what was given up fails: got %v", err)
	}
	if st.GivenUp != 1 || st.ObjectsOut != 0 || inner.ObjectsOut != 1 {
		t.Errorf("got %+v and %+v", st, inner)
	}
	if st, err = h.compact(h.Vault); err != nil || st.ObjectsIn > 0 {
		t.Errorf("again: %+v, %v", st, err)
	}
	h.want(t, simtest.MayGarbage)
	swept, err := h.Vault.Sweep(t.Context(), nil)
	if err != nil || swept.Objects != 1 {
		t.Errorf("sweep: %+v, %v", swept, err)
	}
	h.reclaim(t)
	h.want(t, simtest.NoGarbage)
}

// TestDeathDuringCompaction deletes versions between put and commit: frames, and
// whole segments.
func TestDeathDuringCompaction(t *testing.T) {
	t.Parallel()
	for name, victims := range map[string]func(h *holed) []snapferry.VersionID{
		"one": func(h *holed) []snapferry.VersionID { return h.ids[:1] },
		"all": func(h *holed) []snapferry.VersionID { return h.ids },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHoled(t, simtest.Options{})
			gone := victims(h)
			h.driver.once(blobtest.Put, vault.ObjectPrefix, true, func() error {
				for _, id := range gone {
					h.delete(t, id)
				}
				return nil
			})
			st, err := h.compact(h.Vault)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", st)
			h.ids = h.ids[len(gone):]
			h.want(t, simtest.NoGarbage)
			if h.needs() {
				t.Error("another compaction is needed")
			}
			h.reclaim(t)
			if len(h.ids) == 0 {
				h.WantNothing(t)
			}
			h.want(t, simtest.NoGarbage)
		})
	}
}

// TestFenceInCompaction: who lost the lease between put and commit changes
// nothing.
func TestFenceInCompaction(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	lost := snapferry.Errorf(snapferry.Conflict, "the lease is lost")
	var over atomic.Bool
	h.driver.once(blobtest.Put, vault.ObjectPrefix, true, func() error { over.Store(true); return nil })
	_, err := h.Vault.Compact(t.Context(), h.vol.Chain, vault.CompactConfig{Fence: func(*meta.Tx) error {
		if over.Load() {
			return lost
		}
		return nil
	}})
	if !errors.Is(err, lost) {
		t.Errorf("got %v, want the fence's", err)
	}
	if n := len(h.objects(meta.ObjectCondemned)); n > 1 { // the first version's
		t.Errorf("%d objects are condemned", n)
	}
	h.want(t, simtest.NoGarbage)
}

// TestStaleAfterCompaction reads with a vault that knows only the places before
// a compaction, all of whose old objects are gone.
func TestStaleAfterCompaction(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	other, err := vault.New(vault.Config{Bucket: h.Bucket, DB: h.DB, Region: h.Name})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // generation after generation
		for _, id := range h.ids {
			h.WantContent(t, id, h.disks[id]) // all places and footers are cached
		}
		if _, err := h.compact(other); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Reclaim(t.Context(), time.Now().Add(time.Hour), nil); err != nil {
			t.Fatal(err)
		}
		for _, id := range h.ids {
			h.WantContent(t, id, h.disks[id])
		}
		// A hole for the next round.
		last := h.ids[len(h.ids)-1]
		d := h.disks[last].Clone(h.disks[last].Size())
		for i := range uint64(25) {
			d.Fill(i*16, 5000+int(i))
		}
		id, _, err := h.Store(h.vol, last, d)
		if err != nil {
			t.Fatal(err)
		}
		h.delete(t, last)
		h.ids[len(h.ids)-1], h.disks[id] = id, d
	}
	h.reclaim(t)
	h.want(t, simtest.NoGarbage)
}

// TestFreed: what a reader without a hold asks for and was deleted is not taken
// for damage.
func TestFreed(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	ctx := t.Context()
	half, err := h.Vault.MapOf(ctx, h.ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Vault.Export(ctx, half, simtest.NewDisk(half.Size), nil); err != nil { // the nodes are cached
		t.Fatal(err)
	}
	h.delete(t, h.ids[0])
	if _, err := h.compact(h.Vault); err != nil {
		t.Fatal(err)
	}
	h.reclaim(t)
	if err := h.Vault.Export(ctx, half, simtest.NewDisk(half.Size), nil); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("part of it is gone: got %v, want NotFound", err)
	}
	all, err := h.Vault.MapOf(ctx, h.ids[1])
	if err != nil {
		t.Fatal(err)
	}
	h.delete(t, h.ids[1])
	h.Forget()
	all.Nodes = h.Vault
	if err := h.Vault.Export(ctx, all, simtest.NewDisk(all.Size), nil); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("all of it is gone: got %v, want NotFound", err)
	}
}

// TestDamagedIsLeftAlone: an object with a wrong byte, or too short, or missing,
// stays where it is and is reported; the others are compacted.
func TestDamagedIsLeftAlone(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(h *holed, s meta.Segment){
		"frame":     func(h *holed, s meta.Segment) { flipLive(h, s) },
		"footer":    func(h *holed, s meta.Segment) { h.Faulty.FlipByte(s.Object, s.Offset+s.Length-3) },
		"truncated": func(h *holed, s meta.Segment) { h.Faulty.Truncate(s.Object, s.Offset+s.Length-100) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHoled(t, simtest.Options{})
			var victim meta.Segment
			for _, s := range segments(h.Region) {
				if s.Kind == snapferry.BlockFrame && s.Dead > 0 {
					victim = s
				}
			}
			spoil(h, victim)
			st, err := h.compact(h.Vault)
			if err != nil {
				t.Fatal(err)
			}
			if st.ObjectsOut != 1 || len(st.Damaged) != 1 || st.Damaged[0] != victim.Object {
				t.Errorf("got %+v, want only %s to be left", st, victim.Object)
			}
			if h.needs() {
				t.Error("another compaction is needed for what it cannot do")
			}
			h.reclaim(t)
			h.Faulty.Heal(victim.Object)
			h.want(t, simtest.NoGarbage)
			if st, err = h.compact(h.Vault); err != nil || st.ObjectsIn != 1 {
				t.Errorf("healed: %+v, %v", st, err)
			}
			h.want(t, simtest.NoGarbage)
		})
	}
}

// flipLive inverts a byte of the last frame that lives.
func flipLive(h *holed, s meta.Segment) {
	live := s.Slots - 1
	for live/8 < len(s.DeadSlots) && s.DeadSlots[live/8]&(1<<(live%8)) != 0 {
		live--
	}
	// The frames of these disks have at most 64 KiB; those of seeds that are odd
	// have just that. Find the frame by where reading fails.
	var sealed int64
	h.View(func(tx *meta.Tx) error {
		c, err := tx.Chain(s.Chain)
		if c.Key != "" {
			sealed = segment.SealOverhead
		}
		return err
	})
	f := s.Offset + s.Length - int64(s.Slots*29+64) - sealed*int64(s.Slots-live) - int64(s.Slots-live-1)*snapferry.BlockSize - 10
	h.Faulty.FlipByte(s.Object, f)
}

// TestFullBucket: without space nothing changes.
func TestFullBucket(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	h.driver.always(blobtest.Put, vault.ObjectPrefix, func() error { return snapferry.Errorf(snapferry.Full, "no space") })
	for range 2 {
		if _, err := h.compact(h.Vault); !snapferry.IsKind(err, snapferry.Full) {
			t.Errorf("got %v, want Full", err)
		}
		h.want(t, simtest.NoGarbage)
	}
	h.driver.forget()
	if st, err := h.compact(h.Vault); err != nil || st.ObjectsOut != 1 {
		t.Errorf("with space: %+v, %v", st, err)
	}
	h.want(t, simtest.NoGarbage)
}

// TestCompactTight: where there is no room for a whole merged object, compaction
// goes on in small steps, and removals make room for the next.
func TestCompactTight(t *testing.T) {
	t.Parallel()
	quota := blobtest.NewQuota(memblob.New(), 1<<40)
	h := newHoled(t, simtest.Options{Driver: quota})
	least := int64(1 << 40)
	hollows := 0
	for _, o := range h.objects(meta.ObjectLive) {
		if o.Dead*4 >= o.Size {
			hollows++
			least = min(least, o.Size-o.Dead)
		}
	}
	if hollows < 3 {
		t.Fatalf("%d objects are hollow", hollows)
	}
	before := quota.Used()
	quota.Spare(least / 2)
	if st, err := h.compact(h.Vault); !snapferry.IsKind(err, snapferry.Full) || st.ObjectsOut != 0 {
		t.Errorf("without room for the smallest: got %+v, %v, want Full", st, err)
	}
	h.want(t, simtest.NoGarbage)
	quota.Spare(least + 8<<10)
	rounds, refused := 0, quota.Refused()
	for ; ; rounds++ {
		st, err := h.compact(h.Vault)
		if err == nil {
			break
		}
		if !snapferry.IsKind(err, snapferry.Full) || st.ObjectsOut == 0 || rounds > hollows {
			t.Fatalf("round %d: got %+v, %v, want some moved, then Full", rounds, st, err)
		}
		h.want(t, simtest.NoGarbage)
		if st := h.reclaim(t); st.Objects == 0 {
			t.Fatalf("round %d: nothing to remove", rounds)
		}
		h.want(t, simtest.NoGarbage)
	}
	h.reclaim(t)
	t.Logf("%d hollow objects in %d rounds, %d puts refused; %d bytes became %d", hollows, rounds, quota.Refused()-refused, before, quota.Used())
	if rounds == 0 || h.needs() || quota.Used() >= before {
		t.Errorf("after %d rounds: more to do: %v, %d bytes of %d", rounds, h.needs(), quota.Used(), before)
	}
	h.want(t, simtest.NoGarbage)
}

// TestReclaimRefused: a bucket that does not delete loses nothing.
func TestReclaimRefused(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	if _, err := h.compact(h.Vault); err != nil {
		t.Fatal(err)
	}
	condemned := len(h.objects(meta.ObjectCondemned))
	h.driver.always(blobtest.Delete, vault.ObjectPrefix, func() error { return snapferry.Errorf(snapferry.Denied, "not allowed") })
	until := time.Now().Add(time.Hour)
	if _, err := h.Vault.Reclaim(t.Context(), until, nil); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("got %v, want Unavailable", err)
	}
	if got := len(h.objects(meta.ObjectCondemned)); got != condemned {
		t.Errorf("%d condemned objects are left, want %d", got, condemned)
	}
	h.driver.forget()
	if st, err := h.Vault.Reclaim(t.Context(), time.Now().Add(-time.Hour), nil); err != nil || st.Objects != 0 {
		t.Errorf("before their time: %+v, %v", st, err)
	}
	h.Update(func(tx *meta.Tx) error { return tx.StopReclaim("a test") })
	if st, err := h.Vault.Reclaim(t.Context(), until, nil); !snapferry.IsKind(err, snapferry.Conflict) || st.Objects != 0 {
		t.Errorf("stopped: %+v, %v", st, err)
	}
	if _, err := h.compact(h.Vault); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("stopped: compact: got %v, want Conflict", err)
	}
	h.Update(func(tx *meta.Tx) error { return tx.StopReclaim("") })
	if st := h.reclaim(t); st.Objects != condemned {
		t.Errorf("got %+v, want %d objects", st, condemned)
	}
	h.want(t, simtest.NoGarbage)
}

// TestCompactRate: the limit is waited for, and can be lifted meanwhile.
func TestCompactRate(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	limit := rate.NewLimiter(1, 1<<20)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Vault.Compact(ctx, h.vol.Chain, vault.CompactConfig{Limit: limit}); err == nil {
		t.Error("a run that was cancelled succeeded")
	}
	limit.SetLimit(rate.Inf)
	calls := 0
	st, err := h.Vault.Compact(t.Context(), h.vol.Chain, vault.CompactConfig{Limit: limit, Progress: func(vault.CompactStats) { calls++ }})
	if err != nil || st.ObjectsOut != 1 || calls != 1 {
		t.Errorf("got %+v after %d calls, %v", st, calls, err)
	}
	if st.Read == 0 || st.Written == 0 {
		t.Errorf("got %+v", st)
	}
	h.want(t, simtest.NoGarbage)
}

var tiny = flag.Int("tiny", 150, "snapshots of TestTinySnapshots")

// TestTinySnapshots takes many snapshots of one changed block each and deletes
// all but the last: what is left lies in few objects, though each block came in
// one of its own.
func TestTinySnapshots(t *testing.T) {
	ctx := t.Context()
	slow := blobtest.NewSlow(memblob.New(), 0)
	r := benchRegion(t, slow, snapferry.Zstd)
	d := &changing{size: 1 << 30}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200 { // so that there is a first one of some size
		d.blocks = append(d.blocks, rnd.Int64N(d.size/snapferry.BlockSize))
	}
	var ids []snapferry.VersionID
	var id snapferry.VersionID
	for range *tiny {
		d.blocks = append(d.blocks, rnd.Int64N(d.size/snapferry.BlockSize))
		_, id = r.put(t, d, id)
		ids = append(ids, id)
	}
	want := r.digest(t, id)
	for _, old := range ids[:len(ids)-1] {
		r.deleteAll(t, old)
	}
	if _, err := r.vault.Compact(ctx, r.chain, vault.CompactConfig{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.vault.Reclaim(ctx, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	objects, live := 0, int64(0)
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		return tx.AllObjects(func(o meta.Object) error { objects, live = objects+1, live+o.Size-o.Dead; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	ideal := int((live + segment.TargetSize - 1) / segment.TargetSize)
	slow.Reset()
	if got := r.digest(t, id); got != want {
		t.Errorf("the last one reads as %v, want %v", got, want)
	}
	t.Logf("%d snapshots: %d objects with %d MiB live, ideal are %d; an export asks %d times", *tiny, objects, live>>20, ideal, slow.Count(blobtest.ReadAt).Requests)
	limit := 2 * ideal
	if *tiny < 500 {
		limit += 2 // what is left over from the last merges counts more with few
	}
	if objects > limit {
		t.Errorf("got %d objects, want at most %d", objects, limit)
	}
}

// digest exports a version with nothing cached and returns the digest of what
// came.
func (r *region) digest(t *testing.T, id snapferry.VersionID) digest.Digest {
	t.Helper()
	m, err := r.vault.MapOf(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	out := simtest.NewDisk(m.Size)
	r.get(t, id, out)
	return out.Digest()
}
