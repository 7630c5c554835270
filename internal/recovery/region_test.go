package recovery_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// snap is a snapshot of a test region.
type snap struct {
	id      snapferry.SnapshotID
	version snapferry.VersionID
	disk    *simtest.Disk
}

// region is a region of one account whose metadata can be lost.
type region struct {
	t       testing.TB
	ctx     context.Context
	path    string
	driver  blob.Driver
	bucket  *blob.Bucket
	db      *meta.DB
	vault   *vault.Vault
	key     ed25519.PrivateKey
	dumpKey *seal.DumpKey
	account snapferry.AccountID
	vol     meta.Volume
	count   int64
	snaps   map[string]*snap
}

const (
	diskSize = 40<<20 + 512
	regionID = "0123456789abcdef"
	start    = "incarnation/00000000000000000001"
)

var regionKey = bytes.Repeat([]byte{9}, seal.KeySize)

var migrated []byte // metadata that is migrated already

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "recovery")
	if err != nil {
		panic(err)
	}
	path := filepath.Join(dir, "meta.db")
	db, err := meta.Open(context.Background(), meta.Config{Path: path})
	if err == nil {
		err = db.Close()
	}
	if err == nil {
		migrated, err = os.ReadFile(path)
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func newRegion(t testing.TB) *region { return newRegionOn(t, memblob.New()) }

func newRegionOn(t testing.TB, driver blob.Driver) *region {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &region{
		t: t, ctx: context.Background(), path: filepath.Join(t.TempDir(), "meta.db"), driver: driver, bucket: blob.New(driver), key: key,
		account: snapferry.NewAccountID(), snaps: map[string]*snap{},
	}
	if r.dumpKey, err = seal.NewDumpKey(regionKey); err != nil {
		t.Fatal(err)
	}
	r.must(os.WriteFile(r.path, migrated, 0o600))
	r.open()
	r.update(func(tx *meta.Tx) error {
		if err := tx.PutRegion(meta.Region{Name: "east", ID: regionID, Incarnation: 1, SignKey: key, LookupKey: key[:32], Created: time.Now()}); err != nil {
			return err
		}
		return tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: r.account, Name: "main"}, TokenHash: "hash", Created: time.Now()})
	})
	r.vol = r.volume("disk", "", "")
	r.must(r.bucket.Put(r.ctx, start, []byte(regionID)))
	t.Cleanup(func() { r.close() })
	return r
}

func (r *region) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v\n%s", err, snapferry.HintOf(err))
	}
}

func (r *region) open() {
	r.t.Helper()
	var err error
	r.db, err = meta.Open(r.ctx, meta.Config{Path: r.path})
	r.must(err)
	r.forget()
}

// forget gives the region a vault with empty caches.
func (r *region) forget() {
	r.t.Helper()
	var err error
	r.vault, err = vault.New(vault.Config{Bucket: r.bucket, DB: r.db, Region: "east", Sign: r.key, Codec: snapferry.Zstd})
	r.must(err)
}

func (r *region) close() {
	r.t.Helper()
	if r.db != nil {
		r.must(r.db.Close())
		r.db = nil
	}
}

// lose loses the metadata.
func (r *region) lose() {
	r.t.Helper()
	r.close()
	r.must(os.Remove(r.path))
}

func (r *region) update(fn func(*meta.Tx) error) {
	r.t.Helper()
	r.must(r.db.Update(r.ctx, fn))
}

func (r *region) view(fn func(*meta.Tx) error) {
	r.t.Helper()
	r.must(r.db.View(r.ctx, fn))
}

// volume makes a lineage with a chain of its own.
func (r *region) volume(name string, origin snapferry.RegionName, of snapferry.VolumeID) meta.Volume {
	r.t.Helper()
	c := meta.Chain{ID: snapferry.NewChainID(), Account: r.account, Algorithm: digest.SHA256, Proven: true, Created: time.Now()}
	if origin != "" {
		c.OriginRegion, c.OriginChain = origin, snapferry.NewChainID()
	}
	v := meta.Volume{ID: snapferry.NewVolumeID(), Account: r.account, Name: name, Chain: c.ID, OriginRegion: origin, OriginVolume: of, Created: time.Now()}
	r.update(func(tx *meta.Tx) error {
		if err := tx.InsertChain(c); err != nil {
			return err
		}
		return tx.InsertVolume(v)
	})
	return v
}

// attach makes an open version below a snapshot, "" for none.
func (r *region) attach(vol meta.Volume, parent string, size int64) snapferry.VersionID {
	r.t.Helper()
	id := snapferry.NewVersionID()
	row := meta.Version{ID: id, Chain: vol.Chain, Volume: vol.ID, Size: size}
	if p := r.snaps[parent]; p != nil {
		row.Parent = p.version
	}
	r.count++
	row.Sequence = r.count
	r.update(func(tx *meta.Tx) error { return vault.Attach(tx, row) })
	return id
}

// take makes a snapshot of d below another, "" for none.
func (r *region) take(name, parent string, d *simtest.Disk) {
	r.t.Helper()
	r.takeOf(r.vol, name, parent, d)
}

func (r *region) takeOf(vol meta.Volume, name, parent string, d *simtest.Disk) {
	r.t.Helper()
	s := &snap{id: snapferry.NewSnapshotID(), version: r.attach(vol, parent, d.Size()), disk: d}
	row := meta.Snapshot{VolumeID: vol.ID, Snapshot: snapferry.Snapshot{
		ID: s.id, Account: r.account, Name: name, Description: "of " + name, Tags: snapferry.Tags{"name": name}, State: snapferry.SnapshotCreating,
		Size: d.Size(), Version: s.version, Created: time.Now(), RetainUntil: time.Now().AddDate(0, 1, 0),
	}}
	if p := r.snaps[parent]; p != nil {
		row.Parent = p.id
	}
	if vol.OriginRegion != "" {
		row.Source = &snapferry.CopySource{Region: vol.OriginRegion, Snapshot: snapferry.NewSnapshotID()}
		row.SourceVolume, row.Snapshot.Copy = "there", ""
	}
	r.update(func(tx *meta.Tx) error { return tx.InsertSnapshot(row) })
	w, err := r.vault.Write(r.ctx, s.version, vault.WriteConfig{})
	r.must(err)
	defer w.Close()
	r.must(w.Import(r.ctx, d, &vault.ImportStats{}))
	_, err = w.Seal(r.ctx, vault.SealConfig{
		Hold: meta.Hold{Version: s.version, Kind: vault.HoldSnapshot, Owner: string(s.id), Created: time.Now()},
		Commit: func(tx *meta.Tx, done vault.Sealed) error {
			row, err := tx.Snapshot(s.id)
			if err != nil {
				return err
			}
			row.State, row.Digest, row.Settled, row.Counts.Present = snapferry.SnapshotReady, done.Digest, time.Now(), done.Present
			return tx.UpdateSnapshot(row)
		},
	})
	r.must(err)
	r.snaps[name] = s
}

// delete gives a snapshot up; what that frees is freed by settle.
func (r *region) delete(name string) {
	r.t.Helper()
	s := r.snaps[name]
	hold := meta.Hold{Version: s.version, Kind: vault.HoldSnapshot, Owner: string(s.id)}
	r.must(r.vault.Release(r.ctx, hold, func(tx *meta.Tx) error {
		row, err := tx.Snapshot(s.id)
		if err != nil {
			return err
		}
		row.State, row.Deleted, row.Version = snapferry.SnapshotDeleting, time.Now(), snapferry.VersionID{}
		return errors.Join(tx.UpdateSnapshot(row), tx.AddAudit(meta.Audit{At: time.Now(), Account: r.account, Action: "DeleteSnapshot", Subject: string(s.id)}))
	}))
	delete(r.snaps, name)
}

// settle does what deletion has left to do.
func (r *region) settle() {
	r.t.Helper()
	for range 100 {
		var todo []snapferry.VersionID
		r.view(func(tx *meta.Tx) (err error) {
			todo, err = simtest.Chores(tx)
			return err
		})
		if len(todo) == 0 {
			return
		}
		failed := 0
		for _, c := range todo {
			err := r.vault.Visit(r.ctx, c, nil, nil)
			if snapferry.IsKind(err, snapferry.Unavailable) && failed < len(todo)-1 {
				failed++ // it waits for what another one is to remove
				continue
			}
			r.must(err)
		}
	}
	r.t.Fatal("deletion does not come to its end")
}

func (r *region) pin(name string, n byte) meta.Pin {
	r.t.Helper()
	s := r.snaps[name]
	p := meta.Pin{
		ID: "pin-" + string('a'+rune(n)), Snapshot: s.id, Version: s.version, Region: "west", Incarnation: 3, Copy: snapferry.NewCopyID(),
		Created: time.UnixMilli(time.Now().UnixMilli()).UTC(),
	}
	r.must(r.vault.Hold(r.ctx, meta.Hold{Version: s.version, Kind: vault.HoldPin, Owner: p.ID, Created: p.Created, Pin: &p}, func(tx *meta.Tx) error {
		_, err := tx.InsertPin(p)
		return err
	}))
	return p
}

// partial leaves an open version with objects behind.
func (r *region) partial(parent string, d *simtest.Disk) {
	r.t.Helper()
	id := r.attach(r.vol, parent, d.Size())
	w, err := r.vault.Write(r.ctx, id, vault.WriteConfig{})
	r.must(err)
	defer w.Close()
	r.must(w.Import(r.ctx, d, &vault.ImportStats{}))
	r.must(w.Checkpoint(r.ctx))
}

func (r *region) catalogue() *recovery.Catalogue {
	return &recovery.Catalogue{DB: r.db, Bucket: r.bucket, Chains: r.vault, Key: r.dumpKey}
}

func (r *region) dump() { r.t.Helper(); r.must(r.catalogue().Write(r.ctx)) }

func (r *region) config() recovery.Config {
	return recovery.Config{Bucket: r.bucket, Path: r.path, Region: "east", ID: regionID, Incarnation: 1, RegionKey: regionKey}
}

// recover rebuilds the metadata and opens it.
func (r *region) recover(change func(*recovery.Config)) *recovery.Report {
	r.t.Helper()
	r.close()
	cfg := r.config()
	if change != nil {
		change(&cfg)
	}
	rep, err := recovery.Run(r.ctx, cfg)
	r.must(err)
	r.open()
	return rep
}

// fresh disks.
func disk(seeds map[uint64]int) *simtest.Disk {
	d := simtest.NewDisk(diskSize)
	for b, seed := range seeds {
		d.Fill(b, seed)
	}
	return d
}

func changed(d *simtest.Disk, seeds map[uint64]int) *simtest.Disk {
	d = d.Clone(d.Size())
	for b, seed := range seeds {
		d.Fill(b, seed)
	}
	return d
}

// build makes a history with forks, a ghost with several children, one that is
// gone, pins, copies, and something under way:
//
//	base ─┬─ gone (deleted, spliced out) ─── tip
//	      ├─ crowd (deleted: a ghost) ─┬─ left
//	      │                            └─ right
//	      └─ (under way)
//	lone;  copy (of another region)
func (r *region) build() {
	r.t.Helper()
	base := disk(map[uint64]int{0: 1, 1: 2, 5: 3, 300: 4, 301: 5, 640: 7})
	r.take("base", "", base)
	gone := changed(base, map[uint64]int{1: 12, 7: 13})
	r.take("gone", "base", gone)
	r.take("tip", "gone", changed(gone, map[uint64]int{1: 2, 302: 14}))
	crowd := changed(base, map[uint64]int{5: 23, 6: 25, 303: 24, 304: 27})
	r.take("crowd", "base", crowd)
	r.take("left", "crowd", changed(crowd, map[uint64]int{5: 33, 6: 35, 304: 37}))
	r.take("right", "crowd", changed(crowd, map[uint64]int{303: 44, 6: 45, 304: 47}))
	r.take("lone", "", disk(map[uint64]int{9: 51}))
	r.take("empty", "", disk(nil))
	r.takeOf(r.volume("disk", "west", "vol-00000000000000042"), "copy", "", disk(map[uint64]int{9: 61, 10: 63}))
	r.pin("right", 0)
	r.delete("gone")
	r.delete("crowd")
	r.settle()
	r.partial("base", changed(base, map[uint64]int{2: 71}))
	r.dump()
}

// state is what must be the same after a recovery.
type state struct {
	Region    meta.Region
	Accounts  []meta.Account
	Chains    []meta.Chain
	Volumes   []meta.Volume
	Versions  []meta.Version
	Holds     []meta.Hold
	Snapshots []meta.Snapshot
	Pins      []meta.Pin
	Segments  []meta.Segment
	Objects   map[string]int64 // dead bytes
}

// state reads what a recovery from nothing brings back.
func (r *region) state() state {
	r.t.Helper()
	s := state{Objects: map[string]int64{}}
	open := map[snapferry.VersionID]bool{}
	objects := map[string]bool{}
	r.view(func(tx *meta.Tx) (err error) {
		if s.Region, err = tx.Region(); err != nil {
			return err
		}
		if s.Accounts, err = tx.Accounts(); err != nil {
			return err
		}
		if s.Chains, err = tx.Chains(); err != nil {
			return err
		}
		if s.Volumes, err = tx.Volumes(); err != nil {
			return err
		}
		rows, err := tx.AllVersions()
		if err != nil {
			return err
		}
		for _, v := range rows {
			if open[v.ID] = v.State == snapferry.VersionOpen; open[v.ID] {
				continue
			}
			holds, err := tx.Holds(v.ID)
			if err != nil {
				return err
			}
			s.Versions, s.Holds = append(s.Versions, v), append(s.Holds, holds...)
		}
		all, err := tx.AllSnapshots()
		for _, n := range all {
			if n.State == snapferry.SnapshotReady {
				s.Snapshots = append(s.Snapshots, n)
			}
		}
		if err != nil {
			return err
		}
		if s.Pins, err = tx.AllPins(); err != nil {
			return err
		}
		err = tx.AllSegments(func(g meta.Segment) error {
			if !open[g.Version] {
				s.Segments = append(s.Segments, g)
				objects[g.Object] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		return tx.AllObjects(func(o meta.Object) error {
			if objects[o.Name] {
				s.Objects[o.Name] = o.Dead
			}
			return nil
		})
	})
	for i := range s.Segments {
		g := &s.Segments[i]
		// Slots at the end that a compaction has removed are not known any more:
		// what lives is what counts.
		live := make([]byte, (g.Slots+7)/8)
		for i := range g.Slots {
			if i/8 >= len(g.DeadSlots) || g.DeadSlots[i/8]&(1<<(i%8)) == 0 {
				live[i/8] |= 1 << (i % 8)
			}
		}
		g.DeadSlots, g.Dead, g.Slots = bytes.TrimRight(live, "\x00"), 0, 0
		if !slices.ContainsFunc(s.Versions, func(v meta.Version) bool { return v.ID == g.Version }) {
			g.Version = snapferry.VersionID{} // spliced out: its heir has it now
		}
	}
	return s
}

// same compares two states. What a recovery cannot know, or sees to later, is
// left out.
func (r *region) same(got, want state) {
	r.t.Helper()
	heirs := map[snapferry.SegmentID]bool{}
	for _, g := range want.Segments {
		heirs[g.ID] = g.Version.IsZero()
	}
	for i := range got.Segments {
		if heirs[got.Segments[i].ID] {
			got.Segments[i].Version = snapferry.VersionID{}
		}
	}
	opts := cmp.Options{
		cmpopts.EquateEmpty(),
		cmpopts.IgnoreFields(meta.Version{}, "Edge", "Sequence", "Sealed", "Due", "Looked"),
		cmpopts.IgnoreFields(meta.Hold{}, "Created"),
		cmpopts.IgnoreFields(meta.Snapshot{}, "Settled", "Snapshot.Parent"), // deleted ones are not known
		cmpopts.SortSlices(func(a, b meta.Version) bool { return bytes.Compare(a.ID[:], b.ID[:]) < 0 }),
		cmpopts.SortSlices(func(a, b meta.Hold) bool { return a.Owner < b.Owner }),
	}
	if d := cmp.Diff(got, want, opts); d != "" {
		r.t.Errorf("the metadata is not what it was: -got +want\n%s", d)
	}
}

// wantSnapshots fails the test unless the snapshots are ready and read as their
// disks; nothing else is ready.
func (r *region) wantSnapshots(names ...string) {
	r.t.Helper()
	ready := map[snapferry.SnapshotID]meta.Snapshot{}
	r.view(func(tx *meta.Tx) error {
		all, err := tx.AllSnapshots()
		for _, s := range all {
			if s.State == snapferry.SnapshotReady {
				ready[s.ID] = s
			}
		}
		return err
	})
	for _, name := range names {
		s := r.snaps[name]
		row, ok := ready[s.id]
		delete(ready, s.id)
		if !ok {
			r.t.Errorf("snapshot %s is not ready", name)
			continue
		}
		m, err := r.vault.MapOf(r.ctx, row.Version)
		if err != nil {
			r.t.Errorf("snapshot %s: %v", name, err)
			continue
		}
		got := simtest.NewDisk(m.Size)
		if err := r.vault.Export(r.ctx, m, got, nil); err != nil {
			r.t.Errorf("snapshot %s: %v", name, err)
			continue
		}
		if want := s.disk.Digest(); row.Digest != want || m.Digest() != want || got.Digest() != want {
			r.t.Errorf("snapshot %s: digest %v, reads as %v, want %v", name, row.Digest, got.Digest(), want)
		}
	}
	for id, s := range ready {
		r.t.Errorf("snapshot %s (%s) is ready, and should not be", id, s.Name)
	}
}

func (r *region) all() []string { return slices.Sorted(maps.Keys(r.snaps)) }

// wantClean fails the test unless a deep check finds no damage.
func (r *region) wantClean() {
	r.t.Helper()
	for _, f := range r.fsck().Findings {
		if f.Severity == fsck.Damage {
			r.t.Errorf("fsck: %+v", f)
		}
	}
}

func (r *region) fsck() *fsck.Report {
	r.t.Helper()
	r.forget()
	rep, err := fsck.Run(r.ctx, fsck.Config{
		DB: r.db, Bucket: r.bucket, Vault: r.vault, Region: "east", SignPublic: r.signPublic(), Deep: true, Dumps: r.dumpKey,
	})
	r.must(err)
	return rep
}

func (r *region) signPublic() ed25519.PublicKey {
	var row meta.Region
	r.view(func(tx *meta.Tx) (err error) {
		row, err = tx.Region()
		return err
	})
	return ed25519.PrivateKey(row.SignKey).Public().(ed25519.PublicKey)
}

func (r *region) row(name string) (row meta.Version) {
	r.t.Helper()
	r.view(func(tx *meta.Tx) (err error) {
		row, err = tx.Version(r.snaps[name].version)
		return err
	})
	return row
}

func (r *region) body(name string) []byte {
	r.t.Helper()
	p, err := r.bucket.Get(r.ctx, name, blob.MaxBody)
	r.must(err)
	return p
}

// replace changes an object behind everybody's back; a nil body removes it.
func (r *region) replace(name string, body []byte) {
	r.t.Helper()
	r.must(r.driver.Delete(r.ctx, name))
	if body != nil {
		r.must(r.driver.Put(r.ctx, name, body))
	}
}

func (r *region) names(prefix string) (names []string) {
	r.t.Helper()
	r.must(r.bucket.List(r.ctx, prefix, "", func(i blob.Info) error {
		names = append(names, i.Name)
		return nil
	}))
	return names
}

// write puts a record into the bucket, made from the last one of a version.
func (r *region) write(last string, change func(*record.Record)) string {
	r.t.Helper()
	rec, err := record.Decode(r.body(last), r.key.Public().(ed25519.PublicKey), nil)
	r.must(err)
	rec.Revision++
	change(rec)
	p, err := rec.Encode(r.key, nil)
	r.must(err)
	name := record.Name(rec.Version, rec.Revision)
	r.must(r.bucket.Put(r.ctx, name, p))
	return name
}

func damages(rep *recovery.Report) (all []recovery.Finding) {
	for _, f := range rep.Findings {
		if f.Severity == recovery.Damage {
			all = append(all, f)
		}
	}
	return all
}
