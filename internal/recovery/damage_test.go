package recovery_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

// small is a region with a few snapshots, whose metadata is lost.
func small(t testing.TB) *region {
	r := newRegion(t)
	base := disk(map[uint64]int{0: 1, 1: 2, 300: 5})
	r.take("base", "", base)
	next := changed(base, map[uint64]int{1: 12})
	r.take("next", "base", next)
	r.take("last", "next", changed(next, map[uint64]int{1: 22, 301: 23}))
	r.pin("next", 1)
	r.dump()
	r.lose()
	return r
}

// dry tells what would come back.
func (r *region) dry(change func(*recovery.Config)) *recovery.Report {
	r.t.Helper()
	cfg := r.config()
	cfg.DryRun = true
	if change != nil {
		change(&cfg)
	}
	rep, err := recovery.Run(r.ctx, cfg)
	r.must(err)
	return rep
}

// Whatever byte of a record, of a chain's object or of a dump is flipped, and
// wherever it is cut: it is told, and no snapshot comes back wrong.
func TestEveryByte(t *testing.T) {
	r := small(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	step := func(p []byte) int {
		if testing.Short() {
			return 1 + len(p)/3
		}
		return 1 + len(p)/10
	}
	names := slices.Concat(r.names(record.Prefix()), r.names(record.ChainPrefix()))
	for _, name := range names {
		p := r.body(name)
		for i := 0; i < len(p); i += 1 + rnd.IntN(step(p)) {
			bad := bytes.Clone(p)
			if bad[i] ^= byte(1 << rnd.IntN(8)); rnd.IntN(3) == 0 {
				bad = p[:i]
			}
			r.replace(name, bad)
			rep := r.dry(nil)
			if !slices.ContainsFunc(damages(rep), func(f recovery.Finding) bool { return f.Object == name }) {
				t.Errorf("byte %d of %s: not told: %+v", i, name, rep.Findings)
			}
			if rep.Snapshots+rep.Failed > 3 {
				t.Errorf("byte %d of %s: %d snapshots", i, name, rep.Snapshots)
			}
		}
		r.replace(name, p)
	}
	for _, name := range r.names(dump.Prefix()) {
		p := r.body(name)
		for i := 0; i < len(p); i += 1 + rnd.IntN(step(p)) {
			bad := bytes.Clone(p)
			bad[i] ^= 1
			r.replace(name, bad)
			cfg := r.config()
			cfg.DryRun = true
			if _, err := recovery.Run(r.ctx, cfg); !snapferry.IsKind(err, snapferry.NotFound) || !strings.Contains(snapferry.HintOf(err), "--trust") {
				t.Errorf("byte %d of the only dump: got %v, want NotFound with a hint", i, err)
			}
		}
		r.replace(name, p)
	}
	wantComplete(t, r.recover(nil))
	r.wantSnapshots("base", "next", "last")
	r.wantClean()
}

// A version whose only record is damaged may need anything: nothing is reclaimed
// before it is back.
func TestRecordLost(t *testing.T) {
	r := small(t)
	name := record.Name(r.snaps["base"].version, 1)
	p := r.body(name)
	r.replace(name, p[:len(p)-1])
	rep := r.recover(nil)
	if rep.Complete || rep.Snapshots != 2 {
		t.Errorf("report: %+v", rep)
	}
	base := r.snaps["base"]
	delete(r.snaps, "base")
	r.wantSnapshots("next", "last")
	r.view(func(tx *meta.Tx) error {
		if vault.Stopped(tx) == nil {
			t.Error("reclaiming goes on")
		}
		c, err := tx.Chain(r.vol.Chain)
		if c.Proven {
			t.Error("the chain is proven, without its first version")
		}
		return err
	})
	r.replace(name, p)
	r.snaps["base"] = base
	rep = r.recover(func(c *recovery.Config) { c.Merge = true })
	wantComplete(t, rep)
	r.settle()
	r.wantSnapshots("base", "next", "last")
	r.wantClean()
}

// An object that is missing fails what needs it, and only that. Once it is back,
// so is all.
func TestObjectLost(t *testing.T) {
	for _, name := range []string{"base", "next", "last"} {
		r := small(t)
		r.recover(nil)
		var object string
		r.view(func(tx *meta.Tx) error {
			all, err := tx.SegmentsOf(r.snaps[name].version)
			object = all[0].Object
			return err
		})
		r.lose()
		p := r.body(object)
		r.replace(object, nil)
		rep := r.recover(nil)
		want := map[string][]string{"base": nil, "next": {"base"}, "last": {"base", "next"}}[name]
		if name == "next" { // last has changed the same block, and inherits only nodes it rewrote
			want = []string{"base", "last"}
		}
		if rep.Complete || int(rep.Snapshots) != len(want) || int(rep.Snapshots+rep.Failed) != 3 {
			t.Errorf("object of %s: %d ready, %d failed, want %d and %d: %+v", name, rep.Snapshots, rep.Failed, len(want), 3-len(want), rep.Findings)
		}
		r.wantSnapshots(want...)
		if r.fsck().Clean {
			t.Errorf("object of %s: fsck finds no damage", name)
		}
		// Its chain is not proven, and a failed snapshot is no base.
		r.view(func(tx *meta.Tx) error {
			if c, err := tx.Chain(r.vol.Chain); err != nil || c.Proven {
				t.Errorf("object of %s: the chain is proven, %v", name, err)
			}
			row, ok, err := vault.Parent(tx, r.vol.ID)
			if ok && !slices.ContainsFunc(want, func(n string) bool { return r.snaps[n].version == row.ID }) {
				t.Errorf("object of %s: the next import would build on a broken version", name)
			}
			return err
		})
		r.replace(object, p)
		rep = r.recover(func(c *recovery.Config) { c.Merge = true })
		wantComplete(t, rep)
		r.wantSnapshots("base", "next", "last")
		r.wantClean()
	}
}

// Failed snapshots can be given up.
func TestGiveUp(t *testing.T) {
	r := small(t)
	var object string
	for _, o := range r.names(vault.ObjectPrefix) {
		object = o
	}
	r.replace(object, nil)
	rep := r.recover(nil)
	if rep.Failed == 0 {
		t.Fatal("nothing failed")
	}
	for _, name := range r.all() {
		row := meta.Snapshot{}
		r.view(func(tx *meta.Tx) (err error) {
			row, err = tx.Snapshot(r.snaps[name].id)
			return err
		})
		if row.State != snapferry.SnapshotFailed {
			continue
		}
		if row.Reason == "" || row.Hint == "" {
			t.Errorf("a failed snapshot without reason or hint: %+v", row)
		}
		r.view(func(tx *meta.Tx) error {
			pins, err := tx.PinsOf(row.ID)
			for _, p := range pins {
				r.must(r.vault.Release(r.ctx, meta.Hold{Version: p.Version, Kind: vault.HoldPin, Owner: p.ID}, func(tx *meta.Tx) error { return tx.DeletePin(p.ID) }))
			}
			return err
		})
		r.delete(name)
	}
	// Until then nothing is reclaimed.
	r.view(func(tx *meta.Tx) error {
		if vault.Stopped(tx) == nil {
			t.Error("reclaiming goes on")
		}
		return nil
	})
	r.recover(merge)
	r.settle()
	r.wantSnapshots(r.all()...)
	r.wantClean()
}

func TestWrongSignatures(t *testing.T) {
	r := small(t)
	_, other, err := ed25519.GenerateKey(nil)
	r.must(err)
	names := r.names(record.Prefix())
	rec, err := record.Decode(r.body(names[0]), r.key.Public().(ed25519.PublicKey), nil)
	r.must(err)
	rec.Revision += 7
	p, err := rec.Encode(other, nil)
	r.must(err)
	r.must(r.bucket.Put(r.ctx, record.Name(rec.Version, rec.Revision), p))
	// And one that is of another version than its name says.
	rec.Revision = 1
	stray := snapferry.NewVersionID()
	p, err = rec.Encode(r.key, nil)
	r.must(err)
	r.must(r.bucket.Put(r.ctx, record.Name(stray, 1), p))
	rep := r.recover(nil)
	all := damages(rep)
	if len(all) != 2 || rep.Snapshots != 3 || rep.Versions != 3 || !slices.ContainsFunc(all, func(f recovery.Finding) bool { return f.Object == record.Name(stray, 1) }) {
		t.Errorf("report: %+v", rep)
	}
	r.wantSnapshots("base", "next", "last")
}

// A newer program wrote the newest record: what it says is not known.
func TestNewerRecord(t *testing.T) {
	r := small(t)
	p := r.body(record.Name(r.snaps["last"].version, 1))
	p[5] = 2
	r.must(r.bucket.Put(r.ctx, record.Name(r.snaps["last"].version, 2), p))
	rep := r.recover(nil)
	if rep.Complete || rep.Snapshots != 2 {
		t.Errorf("report: %+v", rep)
	}
	r.wantSnapshots("base", "next")
	r.view(func(tx *meta.Tx) error {
		if vault.Stopped(tx) == nil {
			t.Error("reclaiming goes on")
		}
		return nil
	})
}

// A writer that had lost its lease wrote a record above the true one.
func TestZombieRecord(t *testing.T) {
	r := newRegion(t)
	r.take("a", "", disk(map[uint64]int{0: 1}))
	r.dump()
	r.lose()
	last := record.Name(r.snaps["a"].version, 1)
	r.write(last, func(rec *record.Record) { rec.Token = 5 })
	r.write(last, func(rec *record.Record) {
		rec.Revision, rec.Token, rec.State, rec.Holds = 3, 4, snapferry.VersionGhost, nil
	})
	rep := r.recover(nil)
	wantComplete(t, rep)
	r.wantSnapshots("a")
	if row := r.row("a"); row.Revision != 2 || row.Reserved != 3 || !row.Stale {
		t.Errorf("row: revision %d, reserved %d, stale %t, want 2, 3, true", row.Revision, row.Reserved, row.Stale)
	}
	r.settle()
	r.wantClean()
}

// A splice was cut at each of its points.
func TestForwards(t *testing.T) {
	for cut := range 5 {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			r := newRegion(t)
			base := disk(map[uint64]int{0: 1, 1: 2, 300: 3})
			r.take("base", "", base)
			mid := changed(base, map[uint64]int{1: 12, 2: 13})
			r.take("mid", "base", mid)
			mid2 := changed(mid, map[uint64]int{1: 22, 3: 33})
			r.take("mid2", "mid", mid2)
			r.take("tip", "mid2", changed(mid2, map[uint64]int{1: 32, 301: 33}))
			r.dump()
			v := map[string]snapferry.VersionID{}
			for n, s := range r.snaps {
				v[n] = s.version
			}
			r.lose()
			delete(r.snaps, "mid")
			delete(r.snaps, "mid2")
			ghost := func(x *record.Record) { x.State, x.Holds = snapferry.VersionGhost, nil }
			forward := func(to snapferry.VersionID) func(*record.Record) {
				return func(x *record.Record) { x.State, x.Holds, x.Forward = record.Forwarded, nil, to }
			}
			m := r.write(record.Name(v["mid"], 1), ghost)
			m2 := r.write(record.Name(v["mid2"], 1), ghost)
			if cut >= 1 { // mid2 is forwarded to mid
				m2 = r.write(m2, forward(v["mid"]))
			}
			if cut >= 2 { // then mid to base: tip names mid2 still
				r.write(m, forward(v["base"]))
			}
			if cut >= 3 {
				r.write(record.Name(v["tip"], 1), func(x *record.Record) { x.Parent = v["base"] })
			}
			if cut >= 4 { // the older records of mid2 are gone
				for _, n := range r.names(record.Prefix()) {
					if id, _, _ := record.ParseName(n); id == v["mid2"] && n != m2 {
						r.replace(n, nil)
					}
				}
			}
			rep := r.recover(nil)
			wantComplete(t, rep)
			r.wantSnapshots("base", "tip")
			r.wantClean()
			r.settle()
			if row := r.row("tip"); row.Parent != v["base"] {
				t.Errorf("the parent of tip is %s, want %s", row.Parent, v["base"])
			}
			r.wantSnapshots("base", "tip")
			r.wantClean()
			for _, n := range r.names(record.Prefix()) {
				if id, _, _ := record.ParseName(n); id == v["mid"] || id == v["mid2"] {
					t.Errorf("record %s is left", n)
				}
			}
			// And all again, from what is in the bucket now.
			want := r.state()
			r.lose()
			wantComplete(t, r.recover(nil))
			r.same(r.state(), want)
		})
	}
}

// Forwards and parents that go in circles are told, and followed no further.
func TestLoops(t *testing.T) {
	r := newRegion(t)
	d := disk(map[uint64]int{0: 1})
	for _, n := range []string{"a", "b", "c", "d"} {
		r.take(n, "", d)
	}
	r.dump()
	v := map[string]snapferry.VersionID{}
	for n, s := range r.snaps {
		v[n] = s.version
	}
	r.lose()
	forward := func(to string) func(*record.Record) {
		return func(x *record.Record) { x.State, x.Holds, x.Forward = record.Forwarded, nil, v[to] }
	}
	r.write(record.Name(v["a"], 1), forward("b"))
	r.write(record.Name(v["b"], 1), forward("a"))
	r.write(record.Name(v["c"], 1), func(x *record.Record) { x.Parent = v["a"] })
	r.write(record.Name(v["d"], 1), func(x *record.Record) { x.Parent = v["c"] })
	rep := r.recover(nil)
	if rep.Complete || rep.Snapshots != 2 {
		t.Errorf("forwards in a circle: %+v", rep)
	}
	delete(r.snaps, "a")
	delete(r.snaps, "b")
	r.wantSnapshots("c", "d")
	r.settle()
	r.lose()
	r.write(record.Name(v["c"], 2), func(x *record.Record) { x.Revision, x.Parent = 8, v["d"] })
	rep = r.recover(nil)
	if rep.Complete || rep.Snapshots != 2 {
		t.Errorf("parents in a circle: %+v", rep)
	}
	r.wantSnapshots("c", "d")
	r.settle()
	r.wantSnapshots("c", "d")
	r.wantClean()
}

// rewrite makes an object with bodies of others, changed.
func (r *region) rewrite(name string, bodies [][]byte, dir func(i int, e *segment.DirEntry)) {
	r.t.Helper()
	p := segment.AppendObjectHeader(nil)
	var entries []segment.DirEntry
	for i, b := range bodies {
		f, err := segment.DecodeFooter(b, int64(len(b)), nil)
		r.must(err)
		e := segment.DirEntry{Segment: f.Segment, Generation: 1, Offset: int64(len(p)), Length: int64(len(b)), CRC: segment.Checksum(b)}
		if dir != nil {
			dir(i, &e)
		}
		entries = append(entries, e)
		p = append(p, b...)
	}
	r.must(r.bucket.Put(r.ctx, name, segment.AppendDirectory(p, entries)))
}

// compacted is a body with only some of its slots.
func (r *region) compacted(b []byte, keep func(slot uint16) bool) []byte {
	r.t.Helper()
	f, err := segment.DecodeFooter(b, int64(len(b)), nil)
	r.must(err)
	w := segment.NewWriter(nil, f.Header, nil)
	for i := range f.Len() {
		if e := f.At(i); keep(e.Slot) {
			r.must(w.AppendSlot(e.Slot, e.Info, b[e.Offset:][:e.Length]))
		}
	}
	p, err := w.Close()
	r.must(err)
	return p
}

// bodies returns the bodies of all segments of a region.
func (r *region) bodies() (all [][]byte, segments []meta.Segment) {
	r.t.Helper()
	r.view(func(tx *meta.Tx) error {
		return tx.AllSegments(func(s meta.Segment) error {
			all, segments = append(all, r.body(s.Object)[s.Offset:][:s.Length]), append(segments, s)
			return nil
		})
	})
	return all, segments
}

func wantObject(t testing.TB, r *region, id snapferry.SegmentID, want string, generation uint32) {
	t.Helper()
	r.view(func(tx *meta.Tx) error {
		s, err := tx.Segment(id)
		if s.Object != want || s.Generation != generation {
			t.Errorf("segment %s: got generation %d in %s, want %d in %s", id, s.Generation, s.Object, generation, want)
		}
		return err
	})
}

func TestGenerations(t *testing.T) {
	r := small(t)
	r.recover(nil)
	all, segments := r.bodies()
	r.lose()
	// One object has all, rewritten; another, of a zombie, lacks slots.
	r.rewrite("objects/aa00", all, nil)
	var cut [][]byte
	for i, b := range all {
		if segments[i].Slots > 1 {
			cut = append(cut, r.compacted(b, func(slot uint16) bool { return slot > 0 }))
		}
	}
	if len(cut) == 0 {
		t.Fatal("no segment has two slots")
	}
	r.rewrite("objects/bb00", cut, func(_ int, e *segment.DirEntry) { e.Generation = 2 })
	rep := r.recover(nil)
	wantComplete(t, rep)
	r.wantSnapshots("base", "next", "last")
	r.wantClean()
	for _, s := range segments {
		wantObject(t, r, s.ID, "objects/aa00", 1)
	}
}

// Two objects with one segment and generation: identical, or one of them bad.
func TestSameGeneration(t *testing.T) {
	for _, flip := range []bool{false, true} {
		r := small(t)
		r.recover(nil)
		all, segments := r.bodies()
		r.lose()
		r.rewrite("objects/aa00", all, nil)
		second := slices.Clone(all)
		if flip {
			for i, b := range second {
				second[i] = bytes.Clone(b)
				second[i][segment.HeaderSize] ^= 1 // of the first frame; the directory's checksum is right
			}
		}
		r.rewrite("objects/0000", second, nil)
		rep := r.recover(nil)
		if flip == rep.Complete {
			t.Errorf("flipped %t: complete %t: %+v", flip, rep.Complete, rep.Findings)
		}
		r.wantSnapshots("base", "next", "last")
		r.wantClean()
		if flip {
			wantObject(t, r, segments[0].ID, "objects/aa00", 1)
		}
	}
}

// A directory says that a segment is where another is, or one that is not there.
func TestDirectoriesThatLie(t *testing.T) {
	r := small(t)
	r.recover(nil)
	all, segments := r.bodies()
	r.lose()
	r.rewrite("objects/aa00", all, func(i int, e *segment.DirEntry) {
		e.Segment, e.Generation = segments[(i+1)%len(segments)].ID, 9
	})
	r.rewrite("objects/ab00", all[:1], func(_ int, e *segment.DirEntry) { e.Segment = snapferry.NewSegmentID() })
	r.must(r.bucket.Put(r.ctx, "objects/ac00", []byte("no object at all, but with some bytes in it")))
	rep := r.recover(nil)
	if rep.Complete {
		t.Error("nothing was told")
	}
	for _, o := range []string{"objects/aa00", "objects/ab00", "objects/ac00"} {
		if !slices.ContainsFunc(damages(rep), func(f recovery.Finding) bool { return f.Object == o }) {
			t.Errorf("nothing was told of %s", o)
		}
	}
	r.wantSnapshots("base", "next", "last")
	for _, f := range r.fsck().Findings {
		if f.Severity == fsck.Damage {
			t.Errorf("fsck: %+v", f)
		}
	}
}

// Every byte of every object is flipped, one after the other in big steps: what
// is ready reads right in its maps, and a node that is wrong is told.
func TestObjectBytes(t *testing.T) {
	r := small(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	runs := 20
	if testing.Short() {
		runs = 5
	}
	names := r.names(vault.ObjectPrefix)
	for range runs {
		name := names[rnd.IntN(len(names))]
		p := r.body(name)
		bad := bytes.Clone(p)
		// The end has nodes, footers and the directory.
		bad[len(bad)-1-rnd.IntN(min(len(bad), 4<<10))] ^= byte(1 << rnd.IntN(8))
		r.replace(name, bad)
		rep := r.dry(nil)
		if rep.Complete && rep.Snapshots != 3 {
			t.Errorf("%d snapshots, and nothing told", rep.Snapshots)
		}
		r.replace(name, p)
	}
}
