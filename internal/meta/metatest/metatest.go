// Package metatest says by tests what metadata must do, whatever engine it
// lies in.
package metatest

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/seal"
)

// Place is where metadata lies: empty at first, and there again when it is
// opened a second time.
type Place struct {
	Open  func(t testing.TB, hooks meta.Hooks) (*meta.DB, error)
	Newer func(t testing.TB) // makes the schema look like that of a newer program
}

// Run runs the suite; place gives a new place for each test.
func Run(t *testing.T, place func(t testing.TB) Place) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Place)
	}{
		{"Region", testRegion},
		{"Accounts", testAccounts},
		{"Chains", testChains},
		{"Volumes", testVolumes},
		{"Heads", testHeads},
		{"HeadMoves", testHeadMoves},
		{"HeadList", testHeadList},
		{"Uploads", testUploads},
		{"Versions", testVersions},
		{"Edges", testEdges},
		{"Holds", testHolds},
		{"Segments", testSegments},
		{"ReservedRevisions", testReservedRevisions},
		{"Chores", testChores},
		{"LastDeadSlot", testLastDeadSlot},
		{"StopReclaim", testStopReclaim},
		{"SegmentPages", testSegmentPages},
		{"Checkpoints", testCheckpoints},
		{"Storage", testStorage},
		{"StorageDays", testStorageDays},
		{"StorageAtScale", testStorageAtScale},
		{"Snapshots", testSnapshots},
		{"SnapshotList", testSnapshotList},
		{"Copies", testCopies},
		{"Limits", testLimits},
		{"Pins", testPins},
		{"Jobs", testJobs},
		{"CancelJob", testCancelJob},
		{"Ledger", testLedger},
		{"Rebuild", testRebuild},
		{"Rollback", testRollback},
		{"ConcurrentUpdates", testConcurrentUpdates},
		{"ViewIsOneState", testViewIsOneState},
		{"ViewCannotWrite", testViewCannotWrite},
		{"Changed", testChanged},
		{"CutBeforeCommit", testCutBeforeCommit},
		{"CutAfterCommit", testCutAfterCommit},
		{"Newer", testNewer},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, place(t)) })
	}
}

// Open opens the metadata of a place for the time of the test.
func (p Place) open(t testing.TB) *meta.DB { return p.hooked(t, meta.Hooks{}) }

func (p Place) hooked(t testing.TB, h meta.Hooks) *meta.DB {
	t.Helper()
	db, err := p.Open(t, h)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func update(t testing.TB, db *meta.DB, fn func(tx *meta.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), fn); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func view(t testing.TB, db *meta.DB, fn func(tx *meta.Tx) error) {
	t.Helper()
	if err := db.View(t.Context(), fn); err != nil {
		t.Fatalf("view: %v", err)
	}
}

func wantKind(t testing.TB, err error, want snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, want) {
		t.Errorf("got error %v of kind %v, want %v", err, snapferry.KindOf(err), want)
	}
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s: got (+), want (-):\n%s", what, d)
	}
}

// read returns the value of a query in a view of its own.
func read[T any](t testing.TB, db *meta.DB, fn func(tx *meta.Tx) (T, error)) (v T) {
	t.Helper()
	view(t, db, func(tx *meta.Tx) (err error) { v, err = fn(tx); return err })
	return v
}

func at(second int) time.Time { return time.UnixMilli(1_800_000_000_123 + int64(second)*1000).UTC() }

// World is an account with a chain and a volume, which most rows refer to.
type World struct {
	Account meta.Account
	Chain   meta.Chain
	Volume  meta.Volume
}

// NewWorld adds a World to the metadata.
func NewWorld(t testing.TB, db *meta.DB) World {
	t.Helper()
	w := World{Account: meta.Account{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: "world"}, TokenHash: "hash", Created: at(0)}}
	w.Chain = meta.Chain{ID: snapferry.NewChainID(), Account: w.Account.ID, Algorithm: digest.SHA256, Proven: true, Created: at(0)}
	w.Volume = meta.Volume{ID: snapferry.NewVolumeID(), Account: w.Account.ID, Name: "disk", Chain: w.Chain.ID, Created: at(0)}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.InsertAccount(w.Account), tx.InsertChain(w.Chain), tx.InsertVolume(w.Volume))
	})
	return w
}

func (w World) version(sequence int) meta.Version {
	return meta.Version{
		ID: snapferry.NewVersionID(), Chain: w.Chain.ID, Volume: w.Volume.ID, State: snapferry.VersionOpen, Size: 1 << 20,
		Algorithm: digest.SHA256, Sequence: int64(sequence), Created: at(sequence),
	}
}

func (w World) addVersion(t testing.TB, db *meta.DB, sequence int, parent snapferry.VersionID) meta.Version {
	t.Helper()
	v := w.version(sequence)
	v.Parent = parent
	update(t, db, func(tx *meta.Tx) error { return tx.InsertVersion(v) })
	return v
}

func (w World) snapshot(second int) meta.Snapshot {
	return meta.Snapshot{VolumeID: w.Volume.ID, Snapshot: snapferry.Snapshot{
		ID: snapferry.NewSnapshotID(), Account: w.Account.ID, Volume: w.Volume.Name, State: snapferry.SnapshotCreating, Size: 1 << 20, Created: at(second),
	}}
}

func testRegion(t *testing.T, p Place) {
	db := p.open(t)
	err := db.View(t.Context(), func(tx *meta.Tx) error { _, err := tx.Region(); return err })
	wantKind(t, err, snapferry.NotFound)
	r := meta.Region{Name: "east", ID: "r1", Incarnation: 1, SignKey: []byte{1}, LookupKey: []byte{2}, Created: at(0)}
	for r.Incarnation = 1; r.Incarnation < 4; r.Incarnation++ {
		update(t, db, func(tx *meta.Tx) error { return tx.PutRegion(r) })
		same(t, "region", read(t, db, (*meta.Tx).Region), r)
	}
}

func testAccounts(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	quiet := meta.Account{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: "quiet"}, Created: at(1)}
	mute := meta.Account{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: "mute"}, Created: at(2)}
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertAccount(quiet), tx.InsertAccount(mute)) })
	view(t, db, func(tx *meta.Tx) error {
		all, err := tx.Accounts()
		same(t, "accounts", all, []meta.Account{mute, quiet, w.Account})
		a, err2 := tx.AccountByToken("hash")
		same(t, "account by token", a, w.Account)
		b, err3 := tx.Account(quiet.ID)
		same(t, "account", b, quiet)
		_, err4 := tx.AccountByToken("")
		wantKind(t, err4, snapferry.NotFound)
		return errors.Join(err, err2, err3)
	})
	for _, a := range []meta.Account{
		{Account: snapferry.Account{ID: quiet.ID, Name: "new"}},
		{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: "quiet"}},
		{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: "new"}, TokenHash: "hash"},
	} {
		wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertAccount(a) }), snapferry.Exists)
	}
	update(t, db, func(tx *meta.Tx) error { return tx.SetAccountToken(quiet.ID, "loud") })
	quiet.TokenHash = "loud"
	same(t, "account with a token", read(t, db, func(tx *meta.Tx) (meta.Account, error) { return tx.AccountByToken("loud") }), quiet)
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.SetAccountToken(mute.ID, "loud") }), snapferry.Exists)
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.SetAccountToken("acct-none", "x") }), snapferry.NotFound)
}

func testChains(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	const key = snapferry.KeyID("key-00000000000000001")
	c := meta.Chain{
		ID: snapferry.NewChainID(), Account: w.Account.ID, Algorithm: digest.SHA256, WrappedKey: wrappedKey(t, key, 3), Key: key, Generation: 3,
		OriginRegion: "west", OriginChain: snapferry.NewChainID(), Created: at(1),
	}
	plain := c
	plain.ID, plain.Key, plain.Generation, plain.WrappedKey, plain.Created = snapferry.NewChainID(), "", 0, nil, at(2)
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertChain(c), tx.InsertChain(plain)) })
	view(t, db, func(tx *meta.Tx) error {
		got, err := tx.Chain(w.Chain.ID)
		same(t, "chain", got, w.Chain)
		got, err2 := tx.ChainByOrigin(w.Account.ID, "west", c.OriginChain, key)
		same(t, "chain by origin", got, c)
		for _, other := range []struct {
			region snapferry.RegionName
			key    snapferry.KeyID
		}{{"north", key}, {"west", "key-00000000000000002"}} {
			_, err := tx.ChainByOrigin(w.Account.ID, other.region, c.OriginChain, other.key)
			wantKind(t, err, snapferry.NotFound)
		}
		all, err3 := tx.ChainsByOrigin(w.Account.ID, "west", c.OriginChain)
		same(t, "chains by origin", all, []meta.Chain{c, plain})
		if err3 == nil {
			all, err3 = tx.ChainsByOrigin(w.Account.ID, "north", c.OriginChain)
			same(t, "chains by another origin", len(all), 0)
		}
		if err3 != nil {
			return err3
		}
		all, err3 = tx.ChainsOfKey(key)
		same(t, "chains of a key", all, []meta.Chain{c})
		if err3 == nil {
			all, err3 = tx.ChainsOfKey("")
			same(t, "chains of no key", len(all), 0)
		}
		if err3 != nil {
			return err3
		}
		return errors.Join(err, err2)
	})
	c.WrappedKey, c.Generation = wrappedKey(t, key, 4), 4
	update(t, db, func(tx *meta.Tx) error { return tx.PutChain(c) })
	same(t, "chain wrapped again", read(t, db, func(tx *meta.Tx) (meta.Chain, error) { return tx.Chain(c.ID) }), c)
	bad := c
	bad.ID, bad.WrappedKey = snapferry.NewChainID(), []byte("wrapped")
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertChain(bad) }), snapferry.Corrupt)
	c.ID, c.Account = snapferry.NewChainID(), "acct-nobody"
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertChain(c) }), snapferry.Conflict)
}

func wrappedKey(t testing.TB, key snapferry.KeyID, generation uint32) []byte {
	t.Helper()
	w := seal.WrappedKey{Key: key, Generation: generation, Blob: []byte("wrapped")}
	p, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testVolumes(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := w.Volume
	v.ID, v.OriginRegion, v.OriginVolume = snapferry.NewVolumeID(), "west", snapferry.NewVolumeID()
	update(t, db, func(tx *meta.Tx) error { return tx.InsertVolume(v) })
	view(t, db, func(tx *meta.Tx) error {
		got, err := tx.Volume(v.ID)
		same(t, "volume", got, v)
		got, err2 := tx.VolumeByName(w.Account.ID, "disk")
		same(t, "volume by name", got, w.Volume)
		got, err3 := tx.VolumeByOrigin(w.Account.ID, "west", v.OriginVolume, "")
		same(t, "volume by origin", got, v)
		_, err4 := tx.VolumeByName(w.Account.ID, "none")
		wantKind(t, err4, snapferry.NotFound)
		return errors.Join(err, err2, err3)
	})
	again := w.Volume
	again.ID = snapferry.NewVolumeID()
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertVolume(again) }), snapferry.Exists)
}

func testVersions(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	a := w.addVersion(t, db, 1, snapferry.VersionID{})
	b := w.addVersion(t, db, 2, a.ID)
	c := w.addVersion(t, db, 3, a.ID)
	a.State, a.Digest, a.Root, a.Blocks, a.Revision, a.Token, a.Sealed = snapferry.VersionSealed, digest.Digest{1}, []byte("root"), 7, 1, 9, at(9)
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateVersion(a, 0) })
	a.Edge = 1
	view(t, db, func(tx *meta.Tx) error {
		got, err := tx.Version(a.ID)
		same(t, "version", got, a)
		list, err2 := tx.Children(a.ID)
		same(t, "children", list, []meta.Version{b, c})
		children, open, err3 := tx.Offspring(a.ID)
		same(t, "number of children, open", []int{children, open}, []int{2, 2})
		newest, err9 := tx.NewestSealed(w.Volume.ID)
		same(t, "newest sealed version of the volume", newest, a)
		last, err10 := tx.LastSequence(w.Volume.ID)
		none, err11 := tx.LastSequence("vol-none")
		same(t, "last sequences", []int64{last, none}, []int64{c.Sequence, 0})
		_, missing := tx.NewestSealed("vol-none")
		wantKind(t, missing, snapferry.NotFound)
		list, err4 := tx.VersionsIn(w.Chain.ID)
		same(t, "versions in the chain", list, []meta.Version{a, b, c})
		list, err5 := tx.OpenVersions()
		same(t, "open versions", list, []meta.Version{b, c})
		list, err6 := tx.VersionsByDigest(w.Account.ID, a.Digest)
		same(t, "versions by digest", list, []meta.Version{a})
		list, err7 := tx.VersionsByDigest("acct-other", a.Digest)
		same(t, "versions of another account", list, []meta.Version{})
		list, err8 := tx.AllVersions()
		same(t, "all versions", list, []meta.Version{a, b, c})
		_, missing = tx.Version(snapferry.VersionID{1})
		wantKind(t, missing, snapferry.NotFound)
		return errors.Join(err, err2, err3, err4, err5, err6, err7, err8, err9, err10, err11)
	})
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.DeleteVersion(a.ID) }), snapferry.Conflict)
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.DeleteVersion(c.ID), tx.DeleteVersion(b.ID), tx.DeleteVersion(a.ID))
	})
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.DeleteVersion(a.ID) }), snapferry.NotFound)
}

func testEdges(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := w.addVersion(t, db, 1, snapferry.VersionID{})
	try := func(state snapferry.VersionState, edge int64) error {
		v.State = state
		return db.Update(t.Context(), func(tx *meta.Tx) error { return tx.UpdateVersion(v, edge) })
	}
	wantKind(t, try(snapferry.VersionOpen, 1), snapferry.Conflict)
	wantKind(t, try(snapferry.VersionGhost, 0), snapferry.Conflict)
	for edge, state := range []snapferry.VersionState{snapferry.VersionOpen, snapferry.VersionSealed, snapferry.VersionSealed, snapferry.VersionGhost} {
		if err := try(state, int64(edge)); err != nil {
			t.Fatalf("edge %d to %s: %v", edge, state, err)
		}
		wantKind(t, try(state, int64(edge)), snapferry.Conflict)
	}
	wantKind(t, try(snapferry.VersionSealed, 4), snapferry.Conflict)

	child := w.version(2)
	child.Parent = v.ID
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertVersion(child) }), snapferry.Conflict)
	other := meta.Chain{ID: snapferry.NewChainID(), Account: w.Account.ID, Algorithm: digest.SHA256}
	child.Chain = other.ID
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error {
		return errors.Join(tx.InsertChain(other), tx.InsertVersion(child))
	}), snapferry.Invalid)
}

func testHolds(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := w.addVersion(t, db, 1, snapferry.VersionID{})
	h := meta.Hold{Version: v.ID, Kind: "snapshot", Owner: "snap-1", Created: at(1)}
	later := h
	later.Created = at(2)
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.PutHold(h), tx.PutHold(later)) })
	same(t, "holds", read(t, db, func(tx *meta.Tx) ([]meta.Hold, error) { return tx.Holds(v.ID) }), []meta.Hold{h})
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.DeleteVersion(v.ID) }), snapferry.Conflict)
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.DropHold(v.ID, "snapshot", "snap-1"), tx.DropHold(v.ID, "snapshot", "snap-1"))
	})
	same(t, "holds", read(t, db, func(tx *meta.Tx) ([]meta.Hold, error) { return tx.Holds(v.ID) }), []meta.Hold{})
	for edge, state := range []snapferry.VersionState{snapferry.VersionSealed, snapferry.VersionGhost} {
		v.State = state
		update(t, db, func(tx *meta.Tx) error { return tx.UpdateVersion(v, int64(edge)) })
	}
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.PutHold(h) }), snapferry.Conflict)
	h.Version = snapferry.VersionID{1}
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.PutHold(h) }), snapferry.NotFound)
}

func testSegments(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	a, b := snapferry.NewVersionID(), snapferry.NewVersionID()
	seg := func(v snapferry.VersionID, kind snapferry.FrameKind) meta.Segment {
		return meta.Segment{ID: snapferry.NewSegmentID(), Chain: w.Chain.ID, Version: v, Kind: kind, State: meta.SegmentWriting, Object: "objects/1", Job: "job-1", Token: 3}
	}
	s := []meta.Segment{seg(a, snapferry.BlockFrame), seg(a, snapferry.NodeFrame), seg(b, snapferry.BlockFrame)}
	update(t, db, func(tx *meta.Tx) error { return tx.InsertSegments(s) })
	o := meta.Object{Name: "objects/1", Size: 100, CRC: 0xfedcba98, Created: at(1)}
	for i, at := range []int{1, 2} {
		s[at].Offset, s[at].Length, s[at].Generation, s[at].Slots = int64(16+40*i), 40, 1, 5
	}
	place := func(tx *meta.Tx) error { return tx.PlaceSegments(o, s[1:]) }
	update(t, db, place)
	wantKind(t, db.Update(t.Context(), place), snapferry.Exists)
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error {
		return tx.PlaceSegments(meta.Object{Name: "objects/2"}, s[1:])
	}), snapferry.Conflict)
	o.State = meta.ObjectLive
	dead := []meta.DeadSlot{{Slot: 0, Length: 7}, {Slot: 1, Length: 8}}
	for i, want := range []int{2, 0} { // the second time does nothing
		update(t, db, func(tx *meta.Tx) error {
			n, size, err := tx.MarkDead(s[1].ID, dead, at(2))
			same(t, "newly dead", n, want)
			same(t, "their bytes", size, int64(15*(1-i)))
			return err
		})
	}
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error {
		_, _, err := tx.MarkDead(s[1].ID, []meta.DeadSlot{{Slot: 5}}, at(2))
		return err
	}), snapferry.Corrupt)
	o.Dead = 15
	s[1].State, s[1].Dead, s[1].DeadSlots, s[1].DeadBytes, s[2].State = meta.SegmentLive, 2, []byte{3}, 15, meta.SegmentLive
	view(t, db, func(tx *meta.Tx) error {
		for _, want := range s {
			got, err := tx.Segment(want.ID)
			same(t, "segment", got, want)
			if err != nil {
				return err
			}
		}
		of, err := tx.SegmentsOf(a)
		if len(of) != 2 {
			t.Errorf("got %d segments of the version, want 2", len(of))
		}
		in, err2 := tx.SegmentsIn(o.Name)
		same(t, "segments in the object", in, s)
		got, err3 := tx.Object(o.Name)
		same(t, "object", got, o)
		return errors.Join(err, err2, err3)
	})

	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.DeleteObject(o.Name) }), snapferry.Conflict)
	update(t, db, func(tx *meta.Tx) error {
		free, err := tx.DeleteSegments(a)
		same(t, "objects free after the first", free, []string{})
		name, err2 := tx.DeleteSegment(s[2].ID)
		same(t, "object free after the second", name, o.Name)
		_, err3 := tx.DeleteSegment(s[2].ID)
		wantKind(t, err3, snapferry.NotFound)
		return errors.Join(err, err2, tx.DeleteObject(o.Name))
	})
}

func testReservedRevisions(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := w.addVersion(t, db, 1, snapferry.VersionID{})
	reserve := func(edge int64) (n uint64, err error) {
		err = db.Update(t.Context(), func(tx *meta.Tx) (err error) { n, err = tx.ReserveRevision(v.ID, edge); return err })
		return n, err
	}
	get := func() meta.Version {
		return read(t, db, func(tx *meta.Tx) (meta.Version, error) { return tx.Version(v.ID) })
	}
	for want := uint64(1); want <= 2; want++ {
		n, err := reserve(0)
		same(t, "reserved", n, want)
		same(t, "error", err, nil)
		same(t, "loose", get().Loose, want > 1) // the first was not committed
	}
	v.State, v.Revision = snapferry.VersionSealed, 2
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateVersion(v, 0) })
	_, err := reserve(0)
	wantKind(t, err, snapferry.Conflict) // a state that is past
	same(t, "reserved after the conflict", get().Reserved, uint64(2))
	same(t, "unsettled", len(read(t, db, (*meta.Tx).Unsettled)), 0)
	n, err := reserve(1)
	same(t, "reserved", n, uint64(3))
	same(t, "error", err, nil)
	same(t, "unsettled", len(read(t, db, (*meta.Tx).Unsettled)), 1)
	err = db.Update(t.Context(), func(tx *meta.Tx) error { _, err := tx.ReserveRevision(snapferry.VersionID{1}, 0); return err })
	wantKind(t, err, snapferry.NotFound)
}

func testChores(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	a, b := w.addVersion(t, db, 1, snapferry.VersionID{}), w.addVersion(t, db, 2, snapferry.VersionID{})
	chores := func() []snapferry.VersionID {
		return read(t, db, func(tx *meta.Tx) ([]snapferry.VersionID, error) { return tx.Chores(w.Chain.ID) })
	}
	same(t, "nothing to do", chores(), []snapferry.VersionID{})
	g := meta.Grave{Version: snapferry.NewVersionID(), Chain: w.Chain.ID, Revision: 4, Child: b.ID}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.SetDue(a.ID, true), tx.SetDue(a.ID, true), tx.SetStale(a.ID, true), tx.SetStale(b.ID, true), tx.PutGrave(g))
	})
	want := []snapferry.VersionID{a.ID, b.ID, g.Version}
	slices.SortFunc(want, func(x, y snapferry.VersionID) int { return bytes.Compare(x[:], y[:]) })
	same(t, "to do, each once", chores(), want)
	same(t, "graves of the child", read(t, db, func(tx *meta.Tx) ([]meta.Grave, error) { return tx.GravesOf(b.ID) }), []meta.Grave{g})
	g.Loose, g.Kept, g.Child = true, true, snapferry.VersionID{}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.SetDue(a.ID, false), tx.SetStale(a.ID, false), tx.SetStale(b.ID, false), tx.PutGrave(g))
	})
	same(t, "nothing to do any more", chores(), []snapferry.VersionID{})
	same(t, "graves", read(t, db, (*meta.Tx).Graves), []meta.Grave{g})
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.DeleteGrave(g.Version), tx.DeleteGrave(g.Version)) })
	same(t, "no graves", read(t, db, (*meta.Tx).Graves), []meta.Grave{})
}

func testLastDeadSlot(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := snapferry.NewVersionID()
	s := []meta.Segment{
		{ID: snapferry.NewSegmentID(), Chain: w.Chain.ID, Version: v, Kind: snapferry.BlockFrame, Object: "objects/1", Offset: 16, Length: 100, Slots: 2},
		{ID: snapferry.NewSegmentID(), Chain: w.Chain.ID, Version: v, Kind: snapferry.NodeFrame, Object: "objects/1", Offset: 116, Length: 50, Slots: 1},
	}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.InsertSegments(s), tx.PlaceSegments(meta.Object{Name: "objects/1", Size: 200, Chain: w.Chain.ID}, s))
	})
	mark := func(i int, slots ...uint16) {
		t.Helper()
		update(t, db, func(tx *meta.Tx) error {
			for _, slot := range slots {
				if _, _, err := tx.MarkDead(s[i].ID, []meta.DeadSlot{{Slot: slot, Length: 10}}, at(3)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	object := func() meta.Object {
		return read(t, db, func(tx *meta.Tx) (meta.Object, error) { return tx.Object("objects/1") })
	}
	condemned := func(until time.Time) []meta.Object {
		return read(t, db, func(tx *meta.Tx) ([]meta.Object, error) { return tx.Condemned(until, 0) })
	}
	mark(0, 0)
	same(t, "dead bytes after a frame", object().Dead, int64(10))
	mark(0, 1)
	same(t, "dead bytes after a segment", object().Dead, int64(100))
	wantKind(t, db.View(t.Context(), func(tx *meta.Tx) error { _, err := tx.Segment(s[0].ID); return err }), snapferry.NotFound)
	mark(0, 1) // of a segment that is gone
	same(t, "state", object().State, meta.ObjectLive)
	mark(1, 0)
	o := object()
	same(t, "state", o.State, meta.ObjectCondemned)
	same(t, "since", o.Since, at(3))
	same(t, "condemned before", condemned(at(2)), []meta.Object{})
	same(t, "condemned", condemned(at(3)), []meta.Object{o})
	update(t, db, func(tx *meta.Tx) error { return tx.CondemnObject("objects/1", at(9)) })
	same(t, "since stays", object().Since, at(3))
}

func testStopReclaim(t *testing.T, p Place) {
	db := p.open(t)
	r := meta.Region{Name: "east", ID: "r1", SignKey: []byte{1}, LookupKey: []byte{2}, Created: at(0)}
	update(t, db, func(tx *meta.Tx) error { return tx.PutRegion(r) })
	why := func() string { return read(t, db, (*meta.Tx).ReclaimStopped) }
	same(t, "not stopped", why(), "")
	update(t, db, func(tx *meta.Tx) error { return tx.StopReclaim("because") })
	r.Incarnation = 2
	update(t, db, func(tx *meta.Tx) error { return tx.PutRegion(r) })
	same(t, "stopped, also after the next start", why(), "because")
}

func testSegmentPages(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	const n = 1024 + 7
	v := snapferry.NewVersionID()
	update(t, db, func(tx *meta.Tx) error {
		for i := range n {
			s := []meta.Segment{{ID: snapferry.NewSegmentID(), Chain: w.Chain.ID, Version: v, Kind: snapferry.BlockFrame}}
			o := meta.Object{Name: fmt.Sprintf("o%d", i/2)}
			err := tx.InsertSegments(s)
			if i%2 == 0 {
				err = errors.Join(err, tx.PlaceSegments(o, s))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	update(t, db, func(tx *meta.Tx) error {
		var last snapferry.SegmentID
		seen := 0
		err := tx.AllSegments(func(s meta.Segment) error {
			if bytes.Compare(last[:], s.ID[:]) >= 0 {
				t.Errorf("segment %s comes after %s", s.ID, last)
			}
			last = s.ID
			seen++
			return nil
		})
		same(t, "segments seen", seen, n)
		return err
	})
	stop := errors.New("enough")
	err := db.View(t.Context(), func(tx *meta.Tx) error { return tx.AllSegments(func(meta.Segment) error { return stop }) })
	same(t, "error of the function", err == stop, true)
	view(t, db, func(tx *meta.Tx) error {
		seen := 0
		err := tx.AllObjects(func(meta.Object) error { seen++; return nil })
		same(t, "objects seen", seen, (n+1)/2)
		return err
	})
	update(t, db, func(tx *meta.Tx) error {
		free, err := tx.DeleteSegments(v)
		same(t, "free objects", len(free), (n+1)/2)
		return err
	})
}

func testCheckpoints(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := w.addVersion(t, db, 1, snapferry.VersionID{})
	c := meta.Checkpoint{Version: v.ID, Root: []byte("r"), Finished: []byte{1, 2}, Counts: snapferry.Counts{Read: 1, Stored: 2}, Updated: at(1)}
	for range 2 {
		c.Counts.Read++
		update(t, db, func(tx *meta.Tx) error { return tx.PutCheckpoint(c) })
		same(t, "checkpoint", read(t, db, func(tx *meta.Tx) (meta.Checkpoint, error) { return tx.Checkpoint(v.ID) }), c)
	}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.DeleteCheckpoint(v.ID), tx.DeleteCheckpoint(v.ID), tx.PutCheckpoint(c))
	})
	update(t, db, func(tx *meta.Tx) error { return tx.DeleteVersion(v.ID) })
	err := db.View(t.Context(), func(tx *meta.Tx) error { _, err := tx.Checkpoint(v.ID); return err })
	wantKind(t, err, snapferry.NotFound)
}

func testSnapshots(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := w.addVersion(t, db, 1, snapferry.VersionID{})
	s := w.snapshot(1)
	s.Region, s.Version = "east", v.ID
	s.Name, s.Description, s.Tags = "n", "d", snapferry.Tags{"k": "v"}
	s.Parent, s.Copy, s.SourceVolume, s.Source = "snap-p", "copy-c", "sv", &snapferry.CopySource{Region: "west", Snapshot: "snap-s"}
	s.RetainUntil, s.Set, s.SetSize = at(100), "set-1", 2
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.PutRegion(meta.Region{Name: "east", SignKey: []byte{1}, LookupKey: []byte{1}}), tx.InsertSnapshot(s))
	})
	get := func() meta.Snapshot {
		t.Helper()
		return read(t, db, func(tx *meta.Tx) (meta.Snapshot, error) { return tx.Snapshot(s.ID) })
	}
	same(t, "snapshot", get(), s)

	s.State, s.Digest, s.Counts, s.Settled, s.Tags = snapferry.SnapshotReady, digest.Digest{7}, snapferry.Counts{Moved: 5}, at(2), nil
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateSnapshot(s) })
	same(t, "ready snapshot", get(), s)
	same(t, "snapshots of the version", read(t, db, func(tx *meta.Tx) ([]meta.Snapshot, error) { return tx.SnapshotsOfVersion(v.ID) }), []meta.Snapshot{s})
	for set, want := range map[snapferry.SetID][]meta.Snapshot{"set-1": {s}, "set-2": {}, "": {}} {
		same(t, "snapshots of a set", read(t, db, func(tx *meta.Tx) ([]meta.Snapshot, error) { return tx.SnapshotsOfSet(set) }), want)
	}
	same(t, "page of a set", read(t, db, func(tx *meta.Tx) ([]meta.Snapshot, error) {
		return tx.Snapshots(w.Account.ID, meta.SnapshotFilter{Set: "set-1"})
	}), []meta.Snapshot{s})
	same(t, "page of another set", read(t, db, func(tx *meta.Tx) ([]meta.Snapshot, error) {
		return tx.Snapshots(w.Account.ID, meta.SnapshotFilter{Set: "set-2"})
	}), []meta.Snapshot{})

	bad := s
	bad.State = snapferry.SnapshotFailed
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.UpdateSnapshot(bad) }), snapferry.Conflict)
	s.State, s.Deleted = snapferry.SnapshotDeleting, at(3)
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateSnapshot(s) })
	update(t, db, func(tx *meta.Tx) error { return tx.DeleteVersion(v.ID) })
	s.Version = snapferry.VersionID{}
	same(t, "snapshot without its version", get(), s)
	update(t, db, func(tx *meta.Tx) error { return tx.DeleteSnapshotRow(s.ID) })
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.UpdateSnapshot(s) }), snapferry.NotFound)
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.DeleteSnapshotRow(s.ID) }), snapferry.NotFound)
}

func testSnapshotList(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	second := w.Volume
	second.ID, second.Name = snapferry.NewVolumeID(), "second"
	update(t, db, func(tx *meta.Tx) error { return tx.InsertVolume(second) })
	var all []meta.Snapshot // newest first
	for i := range 20 {
		s := w.snapshot(i / 3) // several in one millisecond
		if i%2 == 1 {
			s.VolumeID, s.Volume, s.State = second.ID, second.Name, snapferry.SnapshotReady
		}
		update(t, db, func(tx *meta.Tx) error { return tx.InsertSnapshot(s) })
	}
	listed := func(f meta.SnapshotFilter) []meta.Snapshot {
		t.Helper()
		return read(t, db, func(tx *meta.Tx) ([]meta.Snapshot, error) { return tx.Snapshots(w.Account.ID, f) })
	}
	all = listed(meta.SnapshotFilter{})
	if len(all) != 20 {
		t.Fatalf("got %d snapshots, want 20", len(all))
	}
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; a.Created.Before(b.Created) || a.Created.Equal(b.Created) && a.ID <= b.ID {
			t.Errorf("place %d: %v %s comes before %v %s", i, a.Created, a.ID, b.Created, b.ID)
		}
	}
	for name, f := range map[string]meta.SnapshotFilter{
		"name": {Volume: "second"}, "id": {VolumeID: second.ID}, "state": {State: snapferry.SnapshotReady}, "both": {Volume: "second", State: snapferry.SnapshotReady},
	} {
		if got := listed(f); len(got) != 10 {
			t.Errorf("filter by %s: got %d snapshots, want 10", name, len(got))
		}
	}
	same(t, "nothing", listed(meta.SnapshotFilter{Volume: "disk", State: snapferry.SnapshotReady}), []meta.Snapshot{})

	var paged []meta.Snapshot
	for f := (meta.SnapshotFilter{Limit: 3}); ; {
		got := listed(f)
		if len(got) == 0 {
			break
		}
		last := got[len(got)-1]
		f.After = meta.Cursor{Created: last.Created, ID: last.ID}
		update(t, db, func(tx *meta.Tx) error { return tx.DeleteSnapshotRow(last.ID) }) // a page must not depend on it
		paged = append(paged, got...)
	}
	same(t, "pages", paged, all)
}

func testCopies(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	c := meta.Copy{
		Copy: snapferry.Copy{
			ID: snapferry.NewCopyID(), Account: w.Account.ID, State: snapferry.CopyQueued,
			Source: snapferry.CopySource{Region: "west", Snapshot: "snap-s", Set: "set-s"}, Created: at(1), Rate: 7, Deadline: at(9),
			Parts: []snapferry.CopyPart{{Source: "snap-s"}, {Source: "snap-t"}},
		},
		Reserved: true,
		Members:  []meta.CopyMember{{Source: "snap-s"}, {Source: "snap-t"}},
	}
	update(t, db, func(tx *meta.Tx) error { return tx.InsertCopy(c) })
	same(t, "active copies", read(t, db, (*meta.Tx).ActiveCopies), []meta.Copy{c})
	page := func(f meta.CopyFilter) []meta.Copy {
		t.Helper()
		return read(t, db, func(tx *meta.Tx) ([]meta.Copy, error) { return tx.Copies(w.Account.ID, f) })
	}
	same(t, "copies, one reserved", page(meta.CopyFilter{}), []meta.Copy{})
	c.Reserved, c.Full, c.State, c.Started, c.Rate, c.Late = false, true, snapferry.CopyPlanning, at(3), 8, true
	c.Set, c.Members = "set-1", []meta.CopyMember{
		{Source: "snap-s", Snapshot: "snap-1", VolumeID: w.Volume.ID, Pin: "pin-1"}, {Source: "snap-t", Snapshot: "snap-2", VolumeID: "vol-2", Pin: "pin-2"},
	}
	c.Snapshot, c.Parts = "snap-1", []snapferry.CopyPart{{Source: "snap-s", Snapshot: "snap-1"}, {Source: "snap-t", Snapshot: "snap-2"}}
	c.Plan = &snapferry.Plan{Size: 5, Digest: digest.Digest{4}, Reason: "first of its volume"}
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateCopy(c) })
	same(t, "copy", read(t, db, func(tx *meta.Tx) (meta.Copy, error) { return tx.Copy(c.ID) }), c)
	bad := c
	bad.State = snapferry.CopyDone
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.UpdateCopy(bad) }), snapferry.Conflict)
	same(t, "active page", page(meta.CopyFilter{Active: true}), []meta.Copy{c})
	c.State, c.Reason, c.Finished, c.Ending, c.Metered = snapferry.CopyFailed, "source lost", at(2), snapferry.EndedSourceLost, true
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateCopy(c) })
	same(t, "copy that ended", read(t, db, func(tx *meta.Tx) (meta.Copy, error) { return tx.Copy(c.ID) }), c)
	same(t, "active copies", read(t, db, (*meta.Tx).ActiveCopies), []meta.Copy{})
	bad = c
	bad.State = snapferry.CopyQueued
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.UpdateCopy(bad) }), snapferry.Conflict)
	same(t, "active page", page(meta.CopyFilter{Active: true}), []meta.Copy{})
	older := c
	older.ID, older.Created = snapferry.NewCopyID(), at(0)
	older.Members, older.Set, older.Source.Set, older.Parts = older.Members[:1], "", "", nil
	update(t, db, func(tx *meta.Tx) error { return tx.InsertCopy(older) })
	same(t, "first page", page(meta.CopyFilter{Limit: 1}), []meta.Copy{c})
	same(t, "second page", page(meta.CopyFilter{Limit: 1, After: c}), []meta.Copy{older})
	same(t, "last page", page(meta.CopyFilter{Limit: 1, After: older}), []meta.Copy{})
}

func testLimits(t *testing.T, p Place) {
	db := p.open(t)
	limits := func() []meta.Limit { return read(t, db, (*meta.Tx).Limits) }
	a, b := meta.Limit{Scope: "account/x", Value: "{}", Set: at(1)}, meta.Limit{Scope: "link/west", Value: `{"rate":5}`, Set: at(2)}
	for _, l := range []meta.Limit{b, a} {
		update(t, db, func(tx *meta.Tx) error { return tx.PutLimit(l) })
	}
	same(t, "limits", limits(), []meta.Limit{a, b})
	b.Value, b.Set = `{"rate":6}`, at(3)
	update(t, db, func(tx *meta.Tx) error { return tx.PutLimit(b) })
	same(t, "changed", limits(), []meta.Limit{a, b})
	for range 2 {
		update(t, db, func(tx *meta.Tx) error { return tx.DeleteLimit(a.Scope) })
	}
	same(t, "one less", limits(), []meta.Limit{b})
}

func testPins(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	v := w.addVersion(t, db, 1, snapferry.VersionID{})
	s, other := w.snapshot(1), w.snapshot(2)
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertSnapshot(s), tx.InsertSnapshot(other)) })
	pin := meta.Pin{ID: "pin-1", Snapshot: s.ID, Version: v.ID, Region: "west", Incarnation: 2, Copy: "copy-1", Created: at(1)}
	insert := func(p meta.Pin) (got meta.Pin, err error) {
		err = db.Update(t.Context(), func(tx *meta.Tx) error { got, err = tx.InsertPin(p); return err })
		return got, err
	}
	again := pin
	again.ID, again.Created = "pin-2", at(2)
	for _, p := range []meta.Pin{pin, again} {
		got, err := insert(p)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "pin", got, pin)
	}
	// A copy of a set has one on each of its snapshots.
	more := pin
	more.ID, more.Snapshot = "pin-3", other.ID
	again.Incarnation = 3
	for _, p := range []meta.Pin{more, again} {
		if got, err := insert(p); err != nil || got != p {
			t.Fatal(got, err)
		}
	}
	view(t, db, func(tx *meta.Tx) error {
		got, err := tx.Pin("pin-1")
		same(t, "pin", got, pin)
		of, err2 := tx.PinsOf(s.ID)
		same(t, "pins of the snapshot", of, []meta.Pin{pin, again})
		from, err3 := tx.PinsFrom("west")
		same(t, "pins of the region", from, []meta.Pin{pin, more, again})
		return errors.Join(err, err2, err3)
	})
	for _, fn := range []func(tx *meta.Tx) error{
		func(tx *meta.Tx) error { return tx.DeleteSnapshotRow(s.ID) },
		func(tx *meta.Tx) error { return tx.DeleteVersion(v.ID) },
	} {
		wantKind(t, db.Update(t.Context(), fn), snapferry.Conflict)
	}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.DeletePin("pin-1"), tx.DeletePin("pin-1"), tx.DeletePin("pin-2"), tx.DeletePin("pin-3"), tx.DeleteSnapshotRow(s.ID), tx.DeleteVersion(v.ID))
	})
}

func testJobs(t *testing.T, p Place) {
	db := p.open(t)
	j := meta.Job{ID: snapferry.NewJobID(), Kind: "k", Account: "acct-1", Subject: "snap-1", State: snapferry.JobQueued, Payload: `{"a":1}`, Created: at(2)}
	older := meta.Job{ID: snapferry.NewJobID(), Kind: "k", Subject: "snap-1", State: snapferry.JobQueued, Created: at(1), RunAfter: at(10)}
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertJob(j), tx.InsertJob(older)) })
	runnable := func(now time.Time) snapferry.JobID {
		return read(t, db, func(tx *meta.Tx) (snapferry.JobID, error) { return tx.RunnableJob(now, 0) })
	}
	same(t, "runnable before its time", runnable(at(5)), j.ID)
	same(t, "runnable in its time", runnable(at(10)), older.ID)
	next := func(now time.Time) time.Time {
		return read(t, db, func(tx *meta.Tx) (time.Time, error) { return tx.NextRun(now) })
	}
	same(t, "next run", next(at(5)), at(10))
	same(t, "no next run", next(at(10)), time.Time{})

	var got meta.Job
	claim := func(tx *meta.Tx) (err error) { got, err = tx.ClaimJob(j.ID, "n/1"); return err }
	update(t, db, claim)
	j.State, j.Owner, j.Token, j.Beat = snapferry.JobRunning, "n/1", 1, 1
	same(t, "claimed job", got, j)
	wantKind(t, db.Update(t.Context(), claim), snapferry.NotFound)
	update(t, db, func(tx *meta.Tx) error {
		_, err := tx.BeatJob(j.ID, 1, `{"done":1}`)
		_, err2 := tx.BeatJob(j.ID, 1, "")
		return errors.Join(err, err2, tx.CheckLease(j.ID, 1))
	})
	j.Beat, j.Progress = 3, `{"done":1}`
	same(t, "running jobs", read(t, db, (*meta.Tx).RunningJobs), []meta.Job{j})

	stale := func(fn func(tx *meta.Tx) error) {
		t.Helper()
		wantKind(t, db.Update(t.Context(), fn), snapferry.Conflict)
	}
	stale(func(tx *meta.Tx) error { return tx.RequeueJob(j.ID, 1, 2) })
	stale(func(tx *meta.Tx) error { return tx.RequeueJob(j.ID, 0, 3) })
	update(t, db, func(tx *meta.Tx) error { return tx.RequeueJob(j.ID, 1, 3) })
	stale(func(tx *meta.Tx) error { return tx.CheckLease(j.ID, 1) })
	stale(func(tx *meta.Tx) error { _, err := tx.BeatJob(j.ID, 1, ""); return err })
	settled := j
	settled.State, settled.Finished = snapferry.JobDone, at(20)
	stale(func(tx *meta.Tx) error { return tx.SettleJob(settled) })
	update(t, db, claim)
	same(t, "token of the next claim", got.Token, uint64(3))
	stale(func(tx *meta.Tx) error { return tx.SettleJob(settled) })
	settled.Token = 3
	update(t, db, func(tx *meta.Tx) error { return tx.SettleJob(settled) })
	settled.Owner, settled.Beat = "", got.Beat
	same(t, "settled job", read(t, db, func(tx *meta.Tx) (meta.Job, error) { return tx.Job(j.ID) }), settled)
	same(t, "jobs of the subject", read(t, db, func(tx *meta.Tx) ([]meta.Job, error) { return tx.JobsOf("snap-1") }), []meta.Job{settled, older})
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.SettleJob(j) }), snapferry.Invalid)
}

func testCancelJob(t *testing.T, p Place) {
	db := p.open(t)
	add := func() snapferry.JobID {
		id := snapferry.NewJobID()
		update(t, db, func(tx *meta.Tx) error { return tx.InsertJob(meta.Job{ID: id, Kind: "k", State: snapferry.JobQueued}) })
		return id
	}
	cancel := func(id snapferry.JobID) (ended bool, err error) {
		err = db.Update(t.Context(), func(tx *meta.Tx) error { ended, err = tx.CancelJob(id, at(9)); return err })
		return ended, err
	}
	want := func(id snapferry.JobID, wantEnded bool) meta.Job {
		t.Helper()
		ended, err := cancel(id)
		if err != nil || ended != wantEnded {
			t.Errorf("got ended %v, error %v, want %v", ended, err, wantEnded)
		}
		return read(t, db, func(tx *meta.Tx) (meta.Job, error) { return tx.Job(id) })
	}
	fresh := add()
	for range 2 {
		j := want(fresh, true)
		same(t, "state and end", []any{j.State, j.Finished}, []any{snapferry.JobCancelled, at(9)})
	}

	started := add()
	var j meta.Job
	update(t, db, func(tx *meta.Tx) (err error) { j, err = tx.ClaimJob(started, "n/1"); return err })
	got := want(started, false)
	same(t, "running job", []any{got.State, got.Cancel}, []any{snapferry.JobRunning, true})
	update(t, db, func(tx *meta.Tx) error {
		c, err := tx.BeatJob(started, j.Token, "")
		same(t, "cancel seen", c, true)
		j.State, j.RunAfter = snapferry.JobQueued, at(100)
		return errors.Join(err, tx.SettleJob(j))
	})
	got = want(started, false)
	same(t, "job that waits", []any{got.State, got.Cancel, got.RunAfter}, []any{snapferry.JobQueued, true, time.Time{}})

	done := add()
	update(t, db, func(tx *meta.Tx) (err error) {
		j, err = tx.ClaimJob(done, "n/1")
		j.State = snapferry.JobDone
		return errors.Join(err, tx.SettleJob(j))
	})
	_, err := cancel(done)
	wantKind(t, err, snapferry.Conflict)
	_, err = cancel("job-none")
	wantKind(t, err, snapferry.NotFound)
}

func testLedger(t *testing.T, p Place) {
	db := p.open(t)
	r := meta.Request{Account: "acct-1", Token: "t", Operation: "copy", Fingerprint: "f", Result: "copy-1", Created: at(1)}
	u := meta.Usage{ID: 1, Account: "acct-1", Kind: "moved", Subject: "copy-1", Bytes: 1 << 40, At: at(1)}
	a := meta.Audit{ID: 1, At: at(1), Account: "acct-1", Action: "copy", Subject: "copy-1", Detail: "{}"}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.InsertRequest(r), tx.AddUsage(u), tx.AddUsage(u), tx.AddAudit(a))
	})
	same(t, "request", read(t, db, func(tx *meta.Tx) (meta.Request, error) { return tx.Request("acct-1", "t") }), r)
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertRequest(r) }), snapferry.Exists)
	wantKind(t, db.View(t.Context(), func(tx *meta.Tx) error { _, err := tx.Request("acct-2", "t"); return err }), snapferry.NotFound)
	second := u
	second.ID = 2
	same(t, "usage", read(t, db, func(tx *meta.Tx) ([]meta.Usage, error) { return tx.Usage("copy-1") }), []meta.Usage{u, second})
	same(t, "audit", read(t, db, func(tx *meta.Tx) ([]meta.Audit, error) { return tx.AuditOf("copy-1") }), []meta.Audit{a})
}

// testRebuild tests what rebuilding metadata from the bucket uses.
func testRebuild(t *testing.T, p Place) {
	db := p.open(t)
	update(t, db, func(tx *meta.Tx) error {
		return tx.PutRegion(meta.Region{Name: "east", ID: "r1", SignKey: []byte{1}, LookupKey: []byte{2}, Created: at(0)})
	})
	same(t, "catalogue of nothing", read(t, db, (*meta.Tx).Catalogue), meta.Catalogue{Dumped: -1})
	w := NewWorld(t, db)
	key := make([]byte, 32)
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.SetAccountToken(w.Account.ID, "other"), tx.TrustKey(key, at(1)), tx.AddAudit(meta.Audit{Action: "a"}), tx.AddAudit(meta.Audit{Action: "b"}))
	})
	c := read(t, db, (*meta.Tx).Catalogue)
	if c.Changes != 5 || c.Audit == 0 {
		t.Errorf("catalogue: got %+v, want 5 changes and an audit line", c)
	}
	c.Dump, c.Dumped, c.DumpedAudit = 7, c.Changes, c.Audit
	update(t, db, func(tx *meta.Tx) error { return tx.SetDumped(c) })
	same(t, "catalogue", read(t, db, (*meta.Tx).Catalogue), c)
	keys := read(t, db, (*meta.Tx).TrustedKeys)
	if len(keys) != 1 || len(keys[0]) != 32 {
		t.Errorf("trusted keys: got %v", keys)
	}
	last := read(t, db, func(tx *meta.Tx) ([]meta.Audit, error) { return tx.LastAudit(1) })
	if len(last) != 1 || last[0].Action != "b" {
		t.Errorf("last audit line: got %v, want b", last)
	}
	w.Chain.Proven = false
	v, s := w.addVersion(t, db, 1, snapferry.VersionID{}), w.snapshot(1)
	s.Version = v.ID
	pin := meta.Pin{ID: "pin-1", Snapshot: s.ID, Version: v.ID, Region: "west", Incarnation: 1, Copy: "copy-1", Created: at(1)}
	jobs := []meta.Job{{ID: "job-1", State: snapferry.JobQueued, Created: at(1)}, {ID: "job-2", State: snapferry.JobRunning, Token: 1, Created: at(2)}}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.PutChain(w.Chain), tx.PutSnapshot(s), tx.InsertJob(jobs[0]), tx.InsertJob(jobs[1]))
	})
	update(t, db, func(tx *meta.Tx) error { _, err := tx.InsertPin(pin); return err })
	same(t, "pins", read(t, db, (*meta.Tx).AllPins), []meta.Pin{pin})
	same(t, "chains", read(t, db, (*meta.Tx).Chains), []meta.Chain{w.Chain})
	same(t, "volumes", read(t, db, (*meta.Tx).Volumes), []meta.Volume{w.Volume})
	if got := read(t, db, (*meta.Tx).UnsettledJobs); len(got) != 2 {
		t.Errorf("unsettled jobs: got %v", got)
	}
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.ForgetBucket(), tx.EndJobs("reason", at(3))) })
	s.State, s.Version, s.Region = snapferry.SnapshotReady, snapferry.VersionID{}, "east"
	update(t, db, func(tx *meta.Tx) error { return tx.PutSnapshot(s) })
	same(t, "snapshots", read(t, db, (*meta.Tx).AllSnapshots), []meta.Snapshot{s})
	for i, want := range []snapferry.JobState{snapferry.JobCancelled, snapferry.JobFailed} {
		if got := read(t, db, func(tx *meta.Tx) (meta.Job, error) { return tx.Job(jobs[i].ID) }); got.State != want {
			t.Errorf("job %s: got %s, want %s", got.ID, got.State, want)
		}
	}
	if got := read(t, db, (*meta.Tx).AllVersions); len(got) != 0 {
		t.Errorf("versions left: %v", got)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := db.CopyTo(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	twin, err := meta.Open(t.Context(), meta.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	same(t, "copied snapshots", read(t, twin, (*meta.Tx).AllSnapshots), []meta.Snapshot{s})
	if err := db.CopyTo(t.Context(), path); err == nil {
		t.Error("a copy was written over a file")
	}
}

func testRollback(t *testing.T, p Place) {
	db := p.open(t)
	stop := errors.New("stop")
	err := db.Update(t.Context(), func(tx *meta.Tx) error {
		if err := tx.AddUsage(meta.Usage{Subject: "s"}); err != nil {
			return err
		}
		return stop
	})
	if err != stop {
		t.Errorf("got error %v, want that of the function", err)
	}
	func() {
		defer func() { recover() }()
		db.Update(t.Context(), func(tx *meta.Tx) error { tx.AddUsage(meta.Usage{Subject: "s"}); panic("x") })
	}()
	same(t, "usage", read(t, db, func(tx *meta.Tx) ([]meta.Usage, error) { return tx.Usage("s") }), []meta.Usage{})
}

// testConcurrentUpdates counts up in a row from two handles on one place.
func testConcurrentUpdates(t *testing.T, p Place) {
	dbs := []*meta.DB{p.open(t), p.open(t)}
	w := NewWorld(t, dbs[0])
	v := w.addVersion(t, dbs[0], 1, snapferry.VersionID{})
	const workers, rounds = 8, 20
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for range rounds {
				err := dbs[i%2].Update(t.Context(), func(tx *meta.Tx) error {
					got, err := tx.Version(v.ID)
					if err != nil {
						return err
					}
					got.Blocks++
					return tx.UpdateVersion(got, got.Edge)
				})
				if err != nil {
					t.Errorf("update: %v", err)
				}
			}
		})
	}
	wg.Wait()
	got := read(t, dbs[1], func(tx *meta.Tx) (meta.Version, error) { return tx.Version(v.ID) })
	same(t, "counts", []any{got.Blocks, got.Edge}, []any{uint64(workers * rounds), int64(workers * rounds)})
}

func testViewIsOneState(t *testing.T, p Place) {
	db := p.open(t)
	count := func(tx *meta.Tx) int {
		u, err := tx.Usage("s")
		if err != nil {
			t.Error(err)
		}
		return len(u)
	}
	add := func() { update(t, db, func(tx *meta.Tx) error { return tx.AddUsage(meta.Usage{Subject: "s"}) }) }
	add()
	view(t, db, func(tx *meta.Tx) error {
		same(t, "before the write", count(tx), 1)
		add() // a reader does not hold up a writer
		same(t, "after the write", count(tx), 1)
		return nil
	})
	view(t, db, func(tx *meta.Tx) error { same(t, "later", count(tx), 2); return nil })
}

func testViewCannotWrite(t *testing.T, p Place) {
	db := p.open(t)
	err := db.View(t.Context(), func(tx *meta.Tx) error { return tx.AddUsage(meta.Usage{Subject: "s"}) })
	wantKind(t, err, snapferry.Internal)
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func testChanged(t *testing.T, p Place) {
	db := p.open(t)
	c := db.Changed()
	update(t, db, func(tx *meta.Tx) error { return tx.DeletePin("none") }) // changes nothing
	view(t, db, func(tx *meta.Tx) error { _, err := tx.Accounts(); return err })
	db.Update(t.Context(), func(tx *meta.Tx) error { tx.AddUsage(meta.Usage{}); return errors.New("no") })
	same(t, "closed without a change", closed(c), false)
	update(t, db, func(tx *meta.Tx) error { return tx.AddUsage(meta.Usage{}) })
	same(t, "closed after a change", closed(c), true)
	same(t, "next one closed", closed(db.Changed()), false)
}

// cut opens a place whose power is cut at a commit, writes, and reports how
// many rows are there after the next start.
func cut(t *testing.T, p Place, hooks func(power error) meta.Hooks) int {
	power := errors.New("power cut")
	db := p.hooked(t, hooks(power))
	err := db.Update(t.Context(), func(tx *meta.Tx) error { return tx.AddUsage(meta.Usage{Subject: "s"}) })
	if err != power {
		t.Errorf("got error %v, want that of the hook", err)
	}
	if err := db.Update(t.Context(), func(tx *meta.Tx) error { return nil }); err != nil {
		t.Errorf("an update that writes nothing: %v", err)
	}
	return len(read(t, p.open(t), func(tx *meta.Tx) ([]meta.Usage, error) { return tx.Usage("s") }))
}

func testCutBeforeCommit(t *testing.T, p Place) {
	n := cut(t, p, func(power error) meta.Hooks { return meta.Hooks{BeforeCommit: func() error { return power }} })
	same(t, "rows", n, 0)
}

func testCutAfterCommit(t *testing.T, p Place) {
	n := cut(t, p, func(power error) meta.Hooks { return meta.Hooks{AfterCommit: func() error { return power }} })
	same(t, "rows", n, 1)
}

func testNewer(t *testing.T, p Place) {
	if err := p.open(t).Close(); err != nil {
		t.Fatal(err)
	}
	p.Newer(t)
	_, err := p.Open(t, meta.Hooks{})
	wantKind(t, err, snapferry.Unsupported)
	same(t, "hint", snapferry.HintOf(err), "start it with the newer snapferry")
}
