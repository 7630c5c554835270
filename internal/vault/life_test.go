package vault_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

var (
	histories = flag.Int("histories", 40, "random histories of TestLifeAndDeath")
	firstSeed = flag.Uint64("history", 1, "seed of the first history of TestLifeAndDeath")
)

// A history is a random life of a chain: versions that are made below others,
// left open, sealed, aborted, held, deleted at once and after one another. The
// model is what each version's disk holds; the rule of life and death is checked
// by what may never happen: a version that lives and does not read as its disk,
// a slot that is neither dead nor needed, anything left when the last version is
// gone.
type history struct {
	*simtest.Region
	t     testing.TB
	rnd   *rand.Rand
	vol   meta.Volume
	live  []snapferry.VersionID // sealed and held
	open  []snapferry.VersionID
	disks map[snapferry.VersionID]*simtest.Disk
	what  []string // what was done

	// What was begun, and may have happened though its answer was lost.
	sealed  map[snapferry.VersionID]bool
	dropped map[snapferry.VersionID]bool // released or aborted

	dir    string
	backup string // a copy of the metadata of an earlier time
	copies int
}

func newHistory(t testing.TB, f *simtest.Factory, seed uint64) *history {
	dir := t.TempDir()
	h := &history{
		Region: f.NewRegion(t, simtest.Options{DB: filepath.Join(dir, "meta.db")}), t: t, dir: dir, rnd: rand.New(rand.NewPCG(seed, 7)),
		disks:   map[snapferry.VersionID]*simtest.Disk{{}: simtest.NewDisk(historySize)},
		sealed:  map[snapferry.VersionID]bool{},
		dropped: map[snapferry.VersionID]bool{},
	}
	h.vol = h.Volume(h.Account("a"), "disk")
	return h
}

// historySteps is how many things happen in a history.
const historySteps = 40

// historySize spans two nodes of level 1, and ends within a block.
const historySize = 4<<30 + 33<<20 + 512

// historyBlocks are the blocks that histories write: in few leaves, so that
// nodes are shared, and under two nodes of level 1.
var historyBlocks = []uint64{0, 1, 2, 255, 256, 257, 600, 65535, 65536, 65537, 65792, 66064}

func (h *history) log(format string, args ...any) {
	h.what = append(h.what, fmt.Sprintf(format, args...))
}

func (h *history) fail(format string, args ...any) {
	h.t.Helper()
	for i, w := range h.what {
		h.t.Logf("%3d %s", i, w)
	}
	h.t.Fatalf(format, args...)
}

func name(id snapferry.VersionID) string {
	if id.IsZero() {
		return "nothing"
	}
	return id.String()[:6]
}

func pick(rnd *rand.Rand, ids []snapferry.VersionID) snapferry.VersionID {
	if len(ids) == 0 {
		return snapferry.VersionID{}
	}
	return ids[rnd.IntN(len(ids))]
}

// change draws the next content of a disk: few contents, so that blocks go from
// A to B and back to A.
func (h *history) change(d *simtest.Disk) *simtest.Disk {
	d = d.Clone(d.Size())
	for range 1 + h.rnd.IntN(5) {
		d.Fill(historyBlocks[h.rnd.IntN(len(historyBlocks))], h.rnd.IntN(4))
	}
	return d
}

func without(ids []snapferry.VersionID, id snapferry.VersionID) []snapferry.VersionID {
	var out []snapferry.VersionID
	for _, x := range ids {
		if x != id {
			out = append(out, x)
		}
	}
	return out
}

func (h *history) parent() snapferry.VersionID {
	if h.rnd.IntN(10) == 0 {
		return snapferry.VersionID{}
	}
	return pick(h.rnd, h.live)
}

// step does one random thing. Errors are for the caller to judge.
func (h *history) step() error {
	switch n := h.rnd.IntN(100); {
	case n < 30 || len(h.live) == 0 && len(h.open) == 0:
		return h.store(h.parent())
	case n < 45:
		return h.attach(h.parent())
	case n < 60 && len(h.open) > 0:
		return h.seal(pick(h.rnd, h.open))
	case n < 66 && len(h.open) > 0:
		return h.abort(pick(h.rnd, h.open))
	case n < 94 && len(h.live) > 0:
		return h.drop(pick(h.rnd, h.live))
	case n < 96 && len(h.live) > 1:
		return h.rush()
	case n < 98:
		return h.tidy()
	case n < 99:
		return h.recover()
	default:
		return h.visits()
	}
}

// rush deletes several versions at once, from two processes, while children are
// attached to others, or to the same.
func (h *history) rush() error {
	ctx := context.Background()
	other := h.Another()
	victims := map[snapferry.VersionID]bool{}
	for range 2 + h.rnd.IntN(2) {
		victims[pick(h.rnd, h.live)] = true
	}
	parent := pick(h.rnd, h.live)
	var g errgroup.Group
	n := 0
	for id := range victims {
		h.log("drop %s at once", name(id))
		h.dropped[id] = true
		h.live = without(h.live, id)
		v := []*vault.Vault{h.Vault, other}[n%2]
		n++
		g.Go(func() error {
			if err := v.Release(ctx, simtest.Hold(id), nil); err != nil {
				return err
			}
			return v.Visit(ctx, id, nil, nil)
		})
	}
	var child snapferry.VersionID
	disk := h.change(h.disks[parent])
	g.Go(func() (err error) {
		id, err := h.Attach(h.vol, parent, historySize)
		if snapferry.IsKind(err, snapferry.Conflict) || snapferry.IsKind(err, snapferry.NotFound) {
			return nil // its parent was faster
		}
		child = id
		return err
	})
	err := g.Wait()
	if !child.IsZero() {
		h.log("attach %s below %s at once", name(child), name(parent))
		h.disks[child], h.open = disk, append(h.open, child)
	}
	return err
}

// recover rebuilds the metadata from the bucket: over what it is, or over a copy
// of an earlier time. What is open is lost, and said so, unless its record was
// written before a fault and says that it is sealed; all else is as before.
func (h *history) recover() error {
	if err := h.visits(); err != nil {
		return err
	}
	old := h.backup
	h.log("recover, over an old copy: %v", old != "" && h.rnd.IntN(2) == 0)
	live := h.live
	var report *recovery.Report
	var err error
	h.Offline(func(path string, bucket *blob.Bucket) {
		if strings.HasSuffix(h.what[len(h.what)-1], "true") {
			for _, suffix := range []string{"-wal", "-shm"} {
				os.Remove(path + suffix)
			}
			if err = os.Rename(old, path); err != nil {
				return
			}
			h.backup = ""
		}
		report, err = recovery.Run(context.Background(), recovery.Config{
			Bucket: bucket, Path: path, Region: h.Name, ID: "region", Merge: true, Workers: 2, RegionKey: h.Secret(),
		})
	})
	if err != nil {
		return err
	}
	if !report.Complete {
		return snapferry.Errorf(snapferry.Corrupt, "the recovery is not complete: %+v", report)
	}
	for _, f := range report.Findings {
		if f.Severity == recovery.Damage {
			return snapferry.Errorf(snapferry.Corrupt, "recovery finds damage: %+v", f)
		}
	}
	open := h.open
	h.reconcile(errors.New("what was open is gone"), nil, live)
	for _, id := range h.live {
		if !slices.Contains(live, id) && !(slices.Contains(open, id) && h.sealed[id]) {
			h.fail("version %s lives after the recovery", name(id))
		}
	}
	if len(h.open) > 0 {
		h.fail("%d versions are open after the recovery", len(h.open))
	}
	return nil
}

// keep keeps a copy of the metadata for a later recovery.
func (h *history) keep() {
	if h.backup != "" {
		os.Remove(h.backup)
	}
	h.copies++
	h.backup = filepath.Join(h.dir, fmt.Sprintf("old-%d.db", h.copies))
	h.CopyDB(h.backup)
	h.log("keep a copy of the metadata")
}

// tidy gives space back: compaction while eight readers read, removal of what is
// condemned, a sweep.
func (h *history) tidy() error {
	h.log("tidy")
	ctx := context.Background()
	var g errgroup.Group
	for range 8 {
		id := pick(h.rnd, h.live)
		if id.IsZero() {
			break
		}
		want := h.disks[id].Digest()
		g.Go(func() error {
			got, err := h.Read(id)
			if err == nil && got.Digest() != want {
				err = snapferry.Errorf(snapferry.Corrupt, "version %s reads differently", name(id))
			}
			return err
		})
	}
	g.Go(func() error {
		if _, err := h.Vault.Compact(ctx, h.vol.Chain, vault.CompactConfig{}); err != nil {
			return err
		}
		if _, err := h.Vault.Reclaim(ctx, time.Now(), nil); err != nil {
			return err
		}
		_, err := h.Vault.Sweep(ctx, nil)
		return err
	})
	return g.Wait()
}

// crash does a step under a power that fails at a random point of it, or a
// single request that fails, and goes on after a restart with what is true then.
func (h *history) crash() {
	h.t.Helper()
	mode := blobtest.Mode(h.rnd.IntN(2))
	n := h.rnd.IntN(14)
	if h.rnd.IntN(4) == 0 {
		h.Power.FailAt(n, mode)
	} else {
		h.Power.CutAt(n, mode)
	}
	open, live := h.open, h.live
	err := h.step()
	cut := h.Power.Restore()
	h.log("crash %s point %d: %v, %v", mode, n, cut, err)
	switch {
	case err == nil && !cut:
	case err != nil && !cut:
		h.fail("without a fault: %v", err)
	default:
		h.Restart()
		h.reconcile(err, open, live)
	}
}

// reconcile takes the truth from the metadata. What was acknowledged must be so.
func (h *history) reconcile(err error, open, live []snapferry.VersionID) {
	h.t.Helper()
	wantOpen, wantLive := h.open, h.live
	h.open, h.live = nil, nil
	h.View(func(tx *meta.Tx) error {
		all, err := tx.AllVersions()
		for _, v := range all {
			switch {
			case v.State == snapferry.VersionOpen && h.disks[v.ID] != nil:
				h.open = append(h.open, v.ID)
			case v.State == snapferry.VersionOpen:
				h.disks[v.ID] = h.disks[v.Parent] // attached, and the answer lost
				h.open = append(h.open, v.ID)
			case v.State == snapferry.VersionSealed:
				h.live = append(h.live, v.ID)
			}
		}
		return err
	})
	if err == nil && (!sameIDs(h.open, wantOpen) || !sameIDs(h.live, wantLive)) {
		h.fail("it succeeded, and is not so after a restart")
	}
	for _, id := range live {
		if !slices.Contains(h.live, id) && !h.dropped[id] {
			h.fail("version %s lived and is gone", name(id))
		}
	}
	for _, id := range open {
		if !slices.Contains(h.open, id) && !h.dropped[id] && !(h.sealed[id] && slices.Contains(h.live, id)) {
			h.fail("version %s was open and is gone", name(id))
		}
	}
	for _, id := range slices.Concat(h.open, h.live) {
		delete(h.dropped, id) // it did not happen
	}
}

func sameIDs(a, b []snapferry.VersionID) bool {
	if len(a) != len(b) {
		return false
	}
	for _, id := range a {
		if !slices.Contains(b, id) {
			return false
		}
	}
	return true
}

func (h *history) store(parent snapferry.VersionID) error {
	id, err := h.attachTo(parent)
	if err != nil {
		return err
	}
	h.log("store %s below %s", name(id), name(parent))
	return h.seal(id)
}

func (h *history) attachTo(parent snapferry.VersionID) (snapferry.VersionID, error) {
	id, err := h.Attach(h.vol, parent, historySize)
	if err != nil {
		return id, err
	}
	h.disks[id] = h.change(h.disks[parent])
	h.open = append(h.open, id)
	return id, nil
}

func (h *history) attach(parent snapferry.VersionID) error {
	id, err := h.attachTo(parent)
	h.log("attach %s below %s", name(id), name(parent))
	return err
}

func (h *history) seal(id snapferry.VersionID) error {
	h.log("seal %s", name(id))
	h.sealed[id] = true
	_, err := h.FillVersion(id, h.disks[id])
	if err == nil {
		h.open, h.live = without(h.open, id), append(h.live, id)
	}
	return err
}

func (h *history) abort(id snapferry.VersionID) error {
	h.log("abort %s", name(id))
	h.dropped[id] = true
	err := h.Vault.Abort(context.Background(), id, nil)
	if err == nil {
		h.open = without(h.open, id)
	}
	return err
}

func (h *history) drop(id snapferry.VersionID) error {
	h.log("drop %s", name(id))
	h.dropped[id] = true
	err := h.Vault.Release(context.Background(), simtest.Hold(id), nil)
	if err == nil {
		h.live = without(h.live, id)
		if h.rnd.IntN(3) > 0 {
			return h.Vault.Visit(context.Background(), id, nil, nil)
		}
	}
	return err
}

// visits does what deletion has left to do.
func (h *history) visits() error {
	h.log("visit all")
	return h.Settle(context.Background())
}

// verify checks all that lives, and the accounts.
func (h *history) verify() {
	h.t.Helper()
	for _, id := range h.live {
		h.WantContent(h.t, id, h.disks[id])
	}
	h.Check(h.t, simtest.MayGarbage)
	if h.t.Failed() {
		h.fail("the history above broke something")
	}
}

// end deletes everything, in random order, and wants nothing left.
func (h *history) end() {
	h.t.Helper()
	for len(h.open) > 0 {
		if err := h.abort(pick(h.rnd, h.open)); err != nil {
			h.fail("abort: %v", err)
		}
	}
	for len(h.live) > 0 {
		if err := h.drop(pick(h.rnd, h.live)); err != nil {
			h.fail("drop: %v", err)
		}
	}
	if err := h.visits(); err != nil {
		h.fail("visit: %v", err)
	}
	// What a compaction wrote that was cut off goes with a sweep, as after a start.
	if _, err := h.Vault.Sweep(context.Background(), nil); err != nil {
		h.fail("sweep: %v", err)
	}
	h.WantNothing(h.t)
	if err := h.tidy(); err != nil {
		h.fail("tidy: %v", err)
	}
	h.WantEmpty(h.t)
	if h.t.Failed() {
		h.fail("the history above left something")
	}
}

// TestLifeAndDeath runs random histories over the real vault.
func TestLifeAndDeath(t *testing.T) {
	f := simtest.NewFactory(t)
	for i := range *histories {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, f, seed)
			for i := range historySteps {
				if crashes := seed%2 == 0; crashes && h.rnd.IntN(6) == 0 {
					h.crash()
				} else if err := h.step(); err != nil {
					h.fail("%v", err)
				}
				if i%(historySteps/2) == historySteps/3 {
					h.verify()
				}
				if i == historySteps/4 && seed%3 == 0 {
					h.keep()
				}
				if i == historySteps*2/3 && seed%3 == 0 {
					if err := h.recover(); err != nil {
						h.fail("%v", err)
					}
				}
			}
			h.verify()
			h.end()
		})
	}
}
