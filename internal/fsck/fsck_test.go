package fsck_test

import (
	"crypto/ed25519"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/dirblob"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

// TestClean: a sound region is clean, fast and deep, on both drivers.
func TestClean(t *testing.T) {
	drivers := map[string]func(t *testing.T) blob.Driver{
		"mem": func(*testing.T) blob.Driver { return memblob.New() },
		"dir": func(t *testing.T) blob.Driver {
			d, err := dirblob.Open(t.Context(), t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
	}
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, open(t))
			if got := r.check(true); !got.Clean || got.Objects != 0 || len(got.Findings) > 0 {
				t.Errorf("an empty region: got %+v", got)
			}
			r.build()
			for _, deep := range []bool{false, true} {
				got := r.check(deep)
				if !got.Clean || len(got.Findings) > 0 {
					t.Errorf("deep %v: got findings %+v", deep, got.Findings)
				}
				if got.Snapshots != 4 || got.Versions != 6 || got.Objects < 6 || got.Frames < 60 || got.Bytes == 0 {
					t.Errorf("deep %v: got %+v", deep, got)
				}
			}
		})
	}
}

// want is the finding that a case must make, and no other damage.
type want struct {
	severity  string
	object    string
	segment   string
	slot      int // -1: none
	version   string
	problem   string // part of it
	snapshots []snapferry.SnapshotID
}

const (
	fast = 1 << iota // a fast check finds it
	deep             // a deep check finds it
	both = fast | deep
)

// a damageCase breaks something and says what must be found. When only a deep
// check finds it, a fast one must be clean of damage.
type damageCase struct {
	name string
	by   int
	do   func(r *region) want
}

func flip(r *region, s meta.Segment, slot int) want {
	w := want{
		severity: fsck.Damage, object: s.Object, segment: s.ID.String(), slot: slot, version: s.Version.String(), problem: "wrong checksum",
		snapshots: r.users(ofSlot(s, slot)),
	}
	r.faulty.FlipByte(s.Object, r.frame(s, slot)+10)
	return w
}

func onObject(r *region, name, problem string) want {
	return want{severity: fsck.Damage, object: name, slot: -1, problem: problem, snapshots: r.users(ofSegments(r.segmentsIn(name)...))}
}

func onSegment(r *region, s meta.Segment, problem string) want {
	return want{
		severity: fsck.Damage, object: s.Object, segment: s.ID.String(), slot: -1, version: s.Version.String(), problem: problem,
		snapshots: r.users(ofSegments(s)),
	}
}

func onRecord(r *region, name, problem string) (want, string) {
	row := r.version(name)
	w := want{severity: fsck.Damage, object: record.Name(row.ID, row.Revision), slot: -1, version: row.ID.String(), problem: problem}
	if row.State == snapferry.VersionSealed {
		w.snapshots = []snapferry.SnapshotID{r.snaps[name].id}
	}
	return w, w.object
}

// slotOf returns the slot in which a snapshot's own block segment has a block.
func slotOf(r *region, name string, block uint64) (meta.Segment, int) {
	r.tb.Helper()
	m, err := r.vault.MapOf(r.ctx, r.snaps[name].version)
	r.must(err)
	_, ref, ok, err := m.Block(r.ctx, block)
	r.must(err)
	s := r.segment(name, snapferry.BlockFrame)
	if !ok || ref.Segment != s.ID {
		r.tb.Fatalf("%s did not write block %d", name, block)
	}
	return s, int(ref.Slot)
}

var objectCases = []damageCase{
	{"object header", both, func(r *region) want {
		name := r.segment("base", snapferry.BlockFrame).Object
		r.faulty.FlipByte(name, 7)
		return onObject(r, name, "object header")
	}},
	{"directory", both, func(r *region) want {
		name := r.segment("base", snapferry.BlockFrame).Object
		w := onObject(r, name, "directory")
		r.faulty.FlipByte(name, int64(len(r.body(name)))-segment.DirTrailerSize-3)
		return w
	}},
	{"directory trailer", both, func(r *region) want {
		name := r.segment("tip", snapferry.BlockFrame).Object
		w := onObject(r, name, "directory trailer")
		r.faulty.FlipByte(name, int64(len(r.body(name)))-1)
		return w
	}},
	{"segment header", both, func(r *region) want {
		s := r.segment("base", snapferry.BlockFrame)
		r.faulty.FlipByte(s.Object, s.Offset+20)
		return onSegment(r, s, "")
	}},
	{"footer of blocks", both, func(r *region) want {
		s := r.segment("side", snapferry.BlockFrame)
		w := onSegment(r, s, "footer")
		r.faulty.FlipByte(s.Object, s.Offset+s.Length-segment.TrailerSize-2)
		return w
	}},
	{"trailer of nodes", both, func(r *region) want {
		s := r.segment("lone", snapferry.NodeFrame)
		w := onSegment(r, s, "trailer")
		r.faulty.FlipByte(s.Object, s.Offset+s.Length-5)
		return w
	}},
	{"block that all but one have", deep, func(r *region) want {
		s, slot := slotOf(r, "base", 305)
		return flip(r, s, slot)
	}},
	{"block of all children", deep, func(r *region) want {
		s, slot := slotOf(r, "base", 310)
		return flip(r, s, slot)
	}},
	{"block under its own children only", deep, func(r *region) want {
		s, slot := slotOf(r, "base", 3)
		return flip(r, s, slot)
	}},
	{"block of the ghost that its child has", deep, func(r *region) want {
		s, slot := slotOf(r, "gone", 100)
		return flip(r, s, slot)
	}},
	{"block that only the ghost has", deep, func(r *region) want {
		s, slot := slotOf(r, "gone", 3)
		return flip(r, s, slot)
	}},
	{"truncated", both, func(r *region) want {
		name := r.segment("base", snapferry.BlockFrame).Object
		w := onObject(r, name, "bytes")
		r.faulty.Truncate(name, int64(len(r.body(name)))-100)
		return w
	}},
	{"removed", both, func(r *region) want {
		name := r.segment("gone", snapferry.BlockFrame).Object
		w := onObject(r, name, "no such object")
		r.replace(name, nil)
		return w
	}},
	{"removed, nodes of all", both, func(r *region) want {
		name := r.segment("base", snapferry.NodeFrame).Object
		w := onObject(r, name, "no such object")
		r.replace(name, nil)
		return w
	}},
	{"unregistered", both, func(r *region) want {
		r.replace("objects/00", []byte("what is this"))
		return want{severity: fsck.Garbage, object: "objects/00", slot: -1, problem: "nobody registered"}
	}},
	{"strange name", both, func(r *region) want {
		r.replace("lost/found", []byte("what is this"))
		return want{severity: fsck.Garbage, object: "lost/found", slot: -1, problem: "means nothing"}
	}},
	{"left from a bucket check", both, func(r *region) want {
		r.replace("check/abc", []byte("x"))
		return want{}
	}},
}

var recordCases = []damageCase{
	{"record flipped", both, func(r *region) want {
		w, name := onRecord(r, "tip", "signature")
		r.faulty.FlipByte(name, 60)
		return w
	}},
	{"record missing", both, func(r *region) want {
		w, name := onRecord(r, "side", "no such object")
		r.replace(name, nil)
		return w
	}},
	{"record of a ghost missing, an older one is there", both, func(r *region) want {
		w, name := onRecord(r, "gone", "no such object")
		r.replace(name, nil)
		return w
	}},
	{"stale record under the newest name", both, func(r *region) want {
		w, name := onRecord(r, "gone", "revision is 1")
		r.replace(name, r.body(record.Name(r.snaps["gone"].version, 1)))
		return w
	}},
	{"record by another key", both, func(r *region) want {
		w, name := onRecord(r, "base", "signature")
		_, other, err := ed25519.GenerateKey(nil)
		r.must(err)
		r.replace(name, r.sign("base", other, func(*record.Record) {}))
		return w
	}},
	{"record with another parent", both, func(r *region) want {
		w, name := onRecord(r, "tip", "parent is")
		r.replace(name, r.sign("tip", r.key, func(rec *record.Record) { rec.Parent = r.snaps["base"].version }))
		return w
	}},
	{"record without the hold", both, func(r *region) want {
		w, name := onRecord(r, "lone", "holds are")
		r.replace(name, r.sign("lone", r.key, func(rec *record.Record) { rec.Holds[0].Owner = string(snapferry.NewSnapshotID()) }))
		return w
	}},
	{"record of an unknown version", both, func(r *region) want {
		id := snapferry.NewVersionID()
		name := record.Name(id, 1)
		r.replace(name, r.sign("lone", r.key, func(rec *record.Record) { rec.Version, rec.Revision = id, 1 }))
		return want{severity: fsck.Damage, object: name, slot: -1, version: id.String(), problem: "nothing may be reclaimed"}
	}},
	{"revision that did not commit", both, func(r *region) want {
		row := r.version("lone")
		name := record.Name(row.ID, row.Revision+1)
		r.update(func(tx *meta.Tx) error { _, err := tx.ReserveRevision(row.ID, row.Edge); return err })
		r.replace(name, r.sign("lone", r.key, func(rec *record.Record) { rec.Revision++ }))
		return want{severity: fsck.Garbage, object: name, slot: -1, version: row.ID.String(), problem: "was not committed"}
	}},
	{"revision that nobody reserved", both, func(r *region) want {
		row := r.version("lone")
		name := record.Name(row.ID, row.Revision+1)
		r.replace(name, r.sign("lone", r.key, func(rec *record.Record) { rec.Revision++ }))
		return want{severity: fsck.Damage, object: name, slot: -1, version: row.ID.String(), problem: "older than its bucket", snapshots: []snapferry.SnapshotID{r.snaps["lone"].id}}
	}},
	{"record of a buried version", both, func(r *region) want {
		row := r.version("lone")
		id := snapferry.NewVersionID()
		name := record.Name(id, 3)
		r.update(func(tx *meta.Tx) error {
			return tx.PutGrave(meta.Grave{Version: id, Chain: row.Chain, Revision: 3, Loose: true, Kept: true})
		})
		r.replace(name, r.sign("lone", r.key, func(rec *record.Record) { rec.Version, rec.Revision = id, 3 }))
		return want{severity: fsck.Garbage, object: name, slot: -1, version: id.String(), problem: "came too late"}
	}},
	{"incarnation flipped", both, func(r *region) want {
		r.faulty.FlipByte(start, 2)
		return want{severity: fsck.Damage, object: start, slot: -1, problem: "another region"}
	}},
	{"incarnation missing", both, func(r *region) want {
		r.replace(start, nil)
		return want{severity: fsck.Damage, object: start, slot: -1, problem: "missing"}
	}},
	{"incarnation of later", both, func(r *region) want {
		name := "incarnation/00000000000000000002"
		r.replace(name, []byte("region-1 start-2"))
		return want{severity: fsck.Damage, object: name, slot: -1, problem: "older than its bucket"}
	}},
}

// rewrite changes the row of a segment.
func rewrite(r *region, s meta.Segment, fn func(*meta.Segment)) {
	r.tb.Helper()
	r.update(func(tx *meta.Tx) error {
		if _, err := tx.DeleteSegment(s.ID); err != nil {
			return err
		}
		fn(&s)
		return tx.InsertSegments([]meta.Segment{s})
	})
}

var metaCases = []damageCase{
	{"wrong offset", both, func(r *region) want {
		s := r.segment("base", snapferry.BlockFrame)
		w := onSegment(r, s, "lies at")
		rewrite(r, s, func(s *meta.Segment) { s.Offset += 8 })
		return w
	}},
	{"wrong generation", both, func(r *region) want {
		s := r.segment("side", snapferry.BlockFrame)
		w := onSegment(r, s, "generation")
		rewrite(r, s, func(s *meta.Segment) { s.Generation++ })
		return w
	}},
	{"wrong kind", both, func(r *region) want {
		s := r.segment("lone", snapferry.BlockFrame)
		w := onSegment(r, s, "holds")
		rewrite(r, s, func(s *meta.Segment) { s.Kind = snapferry.NodeFrame })
		w.problem = "" // a deep check says it of the map first
		return w
	}},
	{"wrong count of slots", both, func(r *region) want {
		s := r.segment("tip", snapferry.BlockFrame)
		w := onSegment(r, s, "slots")
		rewrite(r, s, func(s *meta.Segment) { s.Slots++ })
		return w
	}},
	{"wrong count of dead slots", both, func(r *region) want {
		s := r.segment("tip", snapferry.BlockFrame)
		w := onSegment(r, s, "counts 7 dead slots and marks 0")
		rewrite(r, s, func(s *meta.Segment) { s.Dead = 7 })
		return w
	}},
	{"dead, but in maps", deep, func(r *region) want {
		s, slot := slotOf(r, "base", 310)
		w := want{
			severity: fsck.Damage, object: s.Object, segment: s.ID.String(), slot: slot, version: s.Version.String(), problem: "marked dead",
			snapshots: r.users(ofSlot(s, slot)),
		}
		kill(r, s, slot)
		return w
	}},
	{"dead, in a ghost and its child", deep, func(r *region) want {
		s, slot := slotOf(r, "gone", 100)
		w := want{
			severity: fsck.Damage, object: s.Object, segment: s.ID.String(), slot: slot, version: s.Version.String(), problem: "marked dead",
			snapshots: r.users(ofSlot(s, slot)),
		}
		kill(r, s, slot)
		return w
	}},
	{"dead, in a ghost alone", deep, func(r *region) want {
		s, slot := slotOf(r, "gone", 3)
		kill(r, s, slot)
		return want{}
	}},
	{"dead node of a ghost", deep, func(r *region) want {
		m, err := r.vault.MapOf(r.ctx, r.snaps["gone"].version)
		r.must(err)
		ref := m.Root.Refs[0]
		var s meta.Segment
		r.must(r.db.View(r.ctx, func(tx *meta.Tx) (err error) {
			s, err = tx.Segment(ref.Segment)
			return err
		}))
		kill(r, s, int(ref.Slot))
		return want{severity: fsck.Damage, segment: s.ID.String(), slot: -1, problem: "does not have it"} // it was its last slot
	}},
	{"segment forgotten", deep, func(r *region) want {
		s := r.segment("side", snapferry.BlockFrame)
		w := want{severity: fsck.Damage, segment: s.ID.String(), slot: -1, problem: "does not have it", snapshots: r.users(ofSegments(s))}
		r.update(func(tx *meta.Tx) error {
			_, err := tx.DeleteSegment(s.ID)
			return err
		})
		return w
	}},
	{"a deletion that nothing waits for", both, func(r *region) want {
		r.update(func(tx *meta.Tx) error {
			s, err := tx.Snapshot(r.snaps["base"].id)
			if err != nil {
				return err
			}
			s.State, s.Deleted = snapferry.SnapshotDeleting, time.Now()
			return tx.UpdateSnapshot(s)
		})
		return want{severity: fsck.Garbage, slot: -1, version: r.snaps["base"].version.String(), problem: "nothing pins it"}
	}},
	{"a pin that holds nothing", both, func(r *region) want {
		s := r.snaps["base"]
		r.update(func(tx *meta.Tx) error {
			_, err := tx.InsertPin(meta.Pin{ID: "pin-1", Snapshot: s.id, Version: s.version, Region: "west", Copy: snapferry.NewCopyID(), Created: time.Now()})
			return err
		})
		return want{severity: fsck.Damage, slot: -1, version: s.version.String(), problem: "does not hold", snapshots: []snapferry.SnapshotID{s.id}}
	}},
	{"hold in the metadata only", both, func(r *region) want {
		w, _ := onRecord(r, "base", "holds are")
		r.update(func(tx *meta.Tx) error {
			return tx.PutHold(meta.Hold{Version: r.snaps["base"].version, Kind: "lock", Owner: "x", Created: time.Now()})
		})
		return w
	}},
}

func kill(r *region, s meta.Segment, slot int) {
	r.tb.Helper()
	r.update(func(tx *meta.Tx) error {
		_, _, err := tx.MarkDead(s.ID, []meta.DeadSlot{{Slot: uint16(slot), Length: 1}}, time.Now())
		return err
	})
}

func TestDamagedObjects(t *testing.T)  { runCases(t, objectCases) }
func TestDamagedRecords(t *testing.T)  { runCases(t, recordCases) }
func TestDamagedMetadata(t *testing.T) { runCases(t, metaCases) }

func runCases(t *testing.T, cases []damageCase) {
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			r := memRegion(t)
			r.build()
			w := c.do(r)
			for _, isDeep := range []bool{false, true} {
				by := fast
				if isDeep {
					by = deep
				}
				if got := r.check(isDeep); c.by&by == 0 {
					if !got.Clean {
						t.Errorf("fast: got %+v, want no damage", got.Findings)
					}
				} else {
					w.compare(t, got)
				}
			}
		})
	}
}

// compare wants w among the findings, and no other damage but of the same
// object: there, the metadata and what follows from it can differ.
func (w want) compare(t *testing.T, got *fsck.Report) {
	t.Helper()
	if w.severity == "" {
		if len(got.Findings) > 0 {
			t.Errorf("deep %v: got %+v, want nothing", got.Deep, got.Findings)
		}
		return
	}
	if got.Clean != (w.severity == fsck.Garbage) {
		t.Errorf("deep %v: got clean %v", got.Deep, got.Clean)
	}
	found := 0
	for _, f := range got.Findings {
		slot := -1
		if f.Slot != nil {
			slot = *f.Slot
		}
		if f.Severity == w.severity && f.Object == w.object && f.Segment == w.segment && slot == w.slot && f.Version == w.version &&
			strings.Contains(f.Problem, w.problem) {
			found++
			if diff := cmp.Diff(f.Snapshots, w.snapshots); diff != "" {
				t.Errorf("deep %v: %s: snapshots (-got +want):\n%s", got.Deep, f.Problem, diff)
			}
			continue
		}
		if f.Severity == fsck.Damage {
			t.Errorf("deep %v: got also %+v", got.Deep, f)
		}
	}
	if found != 1 {
		t.Errorf("deep %v: found %d times, want once: %+v\nin %+v", got.Deep, found, w, got.Findings)
	}
}

// TestNodes flips a byte in every node frame, one after the other.
func TestNodes(t *testing.T) {
	r := memRegion(t)
	r.build()
	for _, name := range []string{"base", "gone", "tip", "side", "lone"} {
		var segments []meta.Segment
		r.must(r.db.View(r.ctx, func(tx *meta.Tx) (err error) {
			segments, err = tx.SegmentsOf(r.snaps[name].version)
			return err
		}))
		for _, s := range segments {
			if s.Kind != snapferry.NodeFrame {
				continue
			}
			for slot := range s.Slots {
				w := flip(r, s, slot)
				w.compare(t, r.check(true))
				if got := r.check(false); len(got.Findings) > 0 {
					t.Errorf("fast: got %+v, want nothing: it reads no frames", got.Findings)
				}
				r.faulty.Heal(s.Object)
			}
		}
	}
}

// TestSwapped exchanges the bodies of two objects.
func TestSwapped(t *testing.T) {
	r := memRegion(t)
	r.build()
	a, b := r.segment("base", snapferry.BlockFrame).Object, r.segment("lone", snapferry.BlockFrame).Object
	users := map[string][]snapferry.SnapshotID{a: r.users(ofSegments(r.segmentsIn(a)...)), b: r.users(ofSegments(r.segmentsIn(b)...))}
	pa, pb := r.body(a), r.body(b)
	r.replace(a, pb)
	r.replace(b, pa)
	for _, isDeep := range []bool{false, true} {
		got := map[string][]snapferry.SnapshotID{}
		for _, f := range r.check(isDeep).Findings {
			got[f.Object] = f.Snapshots
		}
		if diff := cmp.Diff(got, users); diff != "" {
			t.Errorf("deep %v: (-got +want):\n%s", isDeep, diff)
		}
	}
}

// TestEqualSizesSwapped: also when the sizes do not tell.
func TestEqualSizesSwapped(t *testing.T) {
	r := memRegion(t)
	d := make(disk, leafSize)
	d.fill(1, 1)
	r.take("one", "", d)
	r.take("two", "", d)
	a, b := r.segment("one", snapferry.BlockFrame), r.segment("two", snapferry.BlockFrame)
	pa, pb := r.body(a.Object), r.body(b.Object)
	if len(pa) != len(pb) {
		t.Fatalf("%d and %d bytes", len(pa), len(pb))
	}
	r.replace(a.Object, pb)
	r.replace(b.Object, pa)
	for _, isDeep := range []bool{false, true} {
		got := map[string][]snapferry.SnapshotID{}
		for _, f := range r.check(isDeep).Findings {
			if f.Severity == fsck.Damage {
				got[f.Segment] = f.Snapshots
			}
		}
		for name, s := range r.snaps {
			for _, kind := range []snapferry.FrameKind{snapferry.BlockFrame, snapferry.NodeFrame} {
				id := r.segment(name, kind).ID.String()
				if diff := cmp.Diff(got[id], []snapferry.SnapshotID{s.id}); diff != "" {
					t.Errorf("deep %v: %s, %s: (-got +want):\n%s", isDeep, name, kind, diff)
				}
			}
		}
	}
}

// TestOtherContent: a frame that is sound in itself, in its place, under good
// checksums, but not what the map says, is found by its digest.
func TestOtherContent(t *testing.T) {
	r := memRegion(t)
	r.build()
	s, slot := slotOf(r, "base", 310)
	users := r.users(ofSlot(s, slot))
	body := r.body(s.Object)
	changed := slices.Clone(body[:segment.ObjectHeaderSize])
	var dir []segment.DirEntry
	for _, g := range r.segmentsIn(s.Object) {
		from := body[g.Offset:][:g.Length]
		f, err := segment.DecodeFooter(from, g.Length, nil)
		r.must(err)
		w := segment.NewWriter(changed, f.Header, nil)
		for i := range f.Len() {
			e := f.At(i)
			stored := slices.Clone(from[e.Offset:][:e.Length])
			if g.ID == s.ID && int(e.Slot) == slot {
				// The content of its neighbour, of the same length stored raw or not.
				n := f.At(i + 1)
				stored = slices.Clone(from[n.Offset:][:n.Length])
				e.Info.Codec, e.Info.RawLength = n.Info.Codec, n.Info.RawLength
			}
			r.must(w.AppendSlot(e.Slot, e.Info, stored))
		}
		changed, err = w.Close()
		r.must(err)
		dir = append(dir, w.DirEntry(0))
	}
	changed = segment.AppendDirectory(changed, dir)
	if len(changed) != len(body) {
		t.Skipf("the neighbour has another length: %d and %d bytes", len(changed), len(body))
	}
	r.replace(s.Object, changed)
	if got := r.check(false); len(got.Findings) > 0 {
		t.Errorf("fast: got %+v, want nothing", got.Findings)
	}
	w := want{
		severity: fsck.Damage, object: s.Object, segment: s.ID.String(), slot: slot, version: s.Version.String(),
		problem: "not what the map says", snapshots: users,
	}
	w.compare(t, r.check(true))
}

// TestLeak: slots that no map reaches and nobody marked dead.
func TestLeak(t *testing.T) {
	r := memRegion(t)
	r.build()
	s := r.segment("lone", snapferry.BlockFrame)
	// The version is taken out of the metadata as if its slots were freed.
	row := r.version("lone")
	r.delete("lone")
	r.update(func(tx *meta.Tx) error { return tx.DeleteVersion(row.ID) })
	for revision := range uint64(3) {
		r.must(r.driver.Delete(r.ctx, record.Name(row.ID, revision)))
	}
	if got := r.check(false); len(got.Findings) > 0 {
		t.Errorf("fast: got %+v, want nothing", got.Findings)
	}
	w := want{severity: fsck.Garbage, object: s.Object, segment: s.ID.String(), slot: -1, version: s.Version.String(), problem: "leak: 1 slots"}
	w.compare(t, r.check(true))
}

// TestUnavailable: a bucket that cannot be read is an error, not a finding.
func TestUnavailable(t *testing.T) {
	r := memRegion(t)
	r.build()
	for _, c := range []struct {
		op      blobtest.Op
		pattern string
	}{{blobtest.List, ""}, {blobtest.ReadAt, "objects/*"}, {blobtest.ReadAt, "versions/*/*"}, {blobtest.ReadAt, "incarnation/*"}} {
		r.faulty.Fail(c.op, c.pattern, 1, blobtest.Before)
		got, err := fsck.Run(r.ctx, fsck.Config{
			DB: r.db, Bucket: r.bucket, Vault: r.newVault(), Region: "east", SignPublic: r.key.Public().(ed25519.PublicKey),
		})
		if !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("%v of %s fails: got %+v, %v, want an Unavailable error", c.op, c.pattern, got, err)
		}
		r.faulty.Restore()
	}
}

// TestReferenceRule: a version that has frames of another one, which is not its
// ancestor.
func TestReferenceRule(t *testing.T) {
	r := memRegion(t)
	r.build()
	row := r.version("lone")
	thief := row
	thief.ID, thief.State, thief.Revision = snapferry.NewVersionID(), snapferry.VersionGhost, 1
	r.update(func(tx *meta.Tx) error { return tx.InsertVersion(thief) })
	r.replace(record.Name(thief.ID, 1), r.sign("lone", r.key, func(rec *record.Record) {
		rec.Version, rec.Revision, rec.State, rec.Holds = thief.ID, 1, snapferry.VersionGhost, nil
	}))
	if got := r.check(false); len(got.Findings) > 0 {
		t.Errorf("fast: got %+v, want nothing", got.Findings)
	}
	got := r.check(true)
	if got.Clean || len(got.Findings) != 4 { // three nodes and a block
		t.Errorf("got %+v, want 4 findings", got.Findings)
	}
	for _, f := range got.Findings {
		if !strings.Contains(f.Problem, "reference rule") || !slices.Equal(f.Snapshots, []snapferry.SnapshotID{r.snaps["lone"].id}) {
			t.Errorf("got %+v", f)
		}
	}
}

// TestChangedMeanwhile: what changed during the check is left to the next one.
func TestChangedMeanwhile(t *testing.T) {
	r := memRegion(t)
	r.build()
	id := r.partial("side", make(disk, 2*leafSize))
	var own []meta.Segment
	r.must(r.db.View(r.ctx, func(tx *meta.Tx) (err error) {
		own, err = tx.SegmentsOf(id)
		return err
	}))
	for _, s := range own {
		r.must(r.driver.Delete(r.ctx, s.Object)) // as an abort does first
	}
	got, err := fsck.Run(r.ctx, fsck.Config{
		DB: r.db, Bucket: r.bucket, Vault: r.newVault(), Region: "east", SignPublic: r.key.Public().(ed25519.PublicKey), Workers: 1,
		Progress: func(done, total int64) {
			if done == total {
				r.must(r.vault.Abort(r.ctx, id, nil))
			}
		},
	})
	r.must(err)
	if len(own) == 0 || len(got.Findings) > 0 {
		t.Errorf("%d segments; got %+v, want nothing", len(own), got.Findings)
	}
}
