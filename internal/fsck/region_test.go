package fsck_test

import (
	"context"
	"crypto/ed25519"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

const leafSize = blockmap.LeafSpan

// disk is a disk in memory.
type disk []byte

func (d disk) Size() int64 { return int64(len(d)) }

func (d disk) ReadAt(p []byte, off int64) (int, error) { return copy(p, d[off:]), nil }

func (d disk) Next(off int64) (extent.Extent, bool, error) {
	return extent.Extent{Off: off, Len: d.Size() - off}, off < d.Size(), nil
}

// fill writes a block that depends on seed alone: half of it compresses.
func (d disk) fill(block int, seed uint64) {
	p := d[block*snapferry.BlockSize : min((block+1)*snapferry.BlockSize, len(d))]
	clear(p)
	copy(p, blobtest.Bytes(seed<<20|uint64(block), len(p)/2))
}

func (d disk) clone() disk { return slices.Clone(d) }

// snap is a snapshot of a test region.
type snap struct {
	id      snapferry.SnapshotID
	version snapferry.VersionID
}

// region is a region of one account with one chain.
type region struct {
	tb      testing.TB
	ctx     context.Context
	driver  blob.Driver      // below the faults
	faulty  *blobtest.Faulty // what everybody sees
	bucket  *blob.Bucket
	db      *meta.DB
	vault   *vault.Vault
	key     ed25519.PrivateKey
	account snapferry.AccountID
	chain   snapferry.ChainID
	volume  snapferry.VolumeID
	count   int64
	snaps   map[string]snap
}

const start = "incarnation/00000000000000000001"

func newRegion(tb testing.TB, driver blob.Driver) *region {
	tb.Helper()
	ctx := context.Background()
	db, err := meta.Open(ctx, meta.Config{Path: filepath.Join(tb.TempDir(), "meta.db")})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	faulty := blobtest.NewFaulty(tb, driver)
	r := &region{
		tb: tb, ctx: ctx, driver: driver, faulty: faulty, bucket: blob.New(faulty), db: db, key: key, snaps: map[string]snap{},
		account: snapferry.NewAccountID(), chain: snapferry.NewChainID(), volume: snapferry.NewVolumeID(),
	}
	r.vault = r.newVault()
	now := time.Now()
	r.update(func(tx *meta.Tx) error {
		if err := tx.PutRegion(meta.Region{Name: "east", ID: "region-1", Incarnation: 1, SignKey: key, LookupKey: key[:32], Created: now}); err != nil {
			return err
		}
		if err := tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: r.account, Name: "a"}, Created: now}); err != nil {
			return err
		}
		if err := tx.InsertChain(meta.Chain{ID: r.chain, Account: r.account, Algorithm: 1, Proven: true, Created: now}); err != nil {
			return err
		}
		return tx.InsertVolume(meta.Volume{ID: r.volume, Account: r.account, Name: "disk", Chain: r.chain, Created: now})
	})
	r.must(r.bucket.Put(ctx, start, []byte("region-1 start-1")))
	return r
}

func (r *region) must(err error) {
	r.tb.Helper()
	if err != nil {
		r.tb.Fatal(err)
	}
}

func (r *region) update(fn func(*meta.Tx) error) {
	r.tb.Helper()
	r.must(r.db.Update(r.ctx, fn))
}

func (r *region) newVault() *vault.Vault {
	r.tb.Helper()
	v, err := vault.New(vault.Config{Bucket: r.bucket, DB: r.db, Region: "east", Sign: r.key, Codec: snapferry.Zstd})
	r.must(err)
	return v
}

// attach makes an open version below a snapshot, "" for none.
func (r *region) attach(parent string, size int64) snapferry.VersionID {
	r.tb.Helper()
	id := snapferry.NewVersionID()
	r.count++
	r.update(func(tx *meta.Tx) error {
		return vault.Attach(tx, meta.Version{
			ID: id, Chain: r.chain, Volume: r.volume, Parent: r.snaps[parent].version, Size: size, Sequence: r.count,
		})
	})
	return id
}

// take makes a snapshot of d.
func (r *region) take(name, parent string, d disk) {
	r.tb.Helper()
	s := snap{id: snapferry.NewSnapshotID(), version: r.attach(parent, d.Size())}
	r.update(func(tx *meta.Tx) error {
		return tx.InsertSnapshot(meta.Snapshot{
			Snapshot: snapferry.Snapshot{
				ID: s.id, Account: r.account, Name: name, State: snapferry.SnapshotCreating, Size: d.Size(), Version: s.version, Created: time.Now(),
			},
			VolumeID: r.volume,
		})
	})
	w, err := r.vault.Write(r.ctx, s.version, vault.WriteConfig{})
	r.must(err)
	r.must(w.Import(r.ctx, d, &vault.ImportStats{}))
	_, err = w.Seal(r.ctx, vault.SealConfig{
		Hold: meta.Hold{Version: s.version, Kind: vault.HoldSnapshot, Owner: string(s.id), Created: time.Now()},
		Commit: func(tx *meta.Tx, done vault.Sealed) error {
			row, err := tx.Snapshot(s.id)
			if err != nil {
				return err
			}
			row.State, row.Digest, row.Settled = snapferry.SnapshotReady, done.Digest, time.Now()
			return tx.UpdateSnapshot(row)
		},
	})
	r.must(err)
	r.snaps[name] = s
}

// delete gives a snapshot up.
func (r *region) delete(name string) {
	r.tb.Helper()
	s := r.snaps[name]
	r.must(r.vault.Release(r.ctx, meta.Hold{Version: s.version, Kind: vault.HoldSnapshot, Owner: string(s.id)}, func(tx *meta.Tx) error {
		row, err := tx.Snapshot(s.id)
		if err != nil {
			return err
		}
		row.State, row.Deleted, row.Version = snapferry.SnapshotDeleting, time.Now(), snapferry.VersionID{}
		return tx.UpdateSnapshot(row)
	}))
}

// partial leaves an open version with a checkpoint behind.
func (r *region) partial(parent string, d disk) snapferry.VersionID {
	r.tb.Helper()
	id := r.attach(parent, d.Size())
	w, err := r.vault.Write(r.ctx, id, vault.WriteConfig{})
	r.must(err)
	defer w.Close()
	l, err := w.NewLeafWriter()
	r.must(err)
	defer l.Close()
	for leaf := range uint64(2) {
		t, err := w.Ticket(leaf)
		r.must(err)
		r.must(l.Begin(r.ctx, t))
		for i := range blockmap.Fanout {
			off := (int(leaf)*blockmap.Fanout + i) * snapferry.BlockSize
			r.must(l.Put(i, d[off:off+snapferry.BlockSize]))
		}
		r.must(l.End(r.ctx))
		r.must(w.Checkpoint(r.ctx))
	}
	return id
}

// build makes the history that most tests damage:
//
//	base ─┬─ gone (deleted: a ghost) ─── tip
//	      ├─ side ─── (open, with a checkpoint)
//	      └─ (aborted)
//	lone
func (r *region) build() {
	r.tb.Helper()
	d := make(disk, 2*leafSize+3*snapferry.BlockSize+512)
	for i := range 24 {
		d.fill(i, 1)
		d.fill(300+i, 1)
	}
	d.fill(514, 1)
	d.fill(515, 1) // the last one, 512 bytes
	r.take("base", "", d)
	gone := d.clone()
	gone.fill(3, 2)
	gone.fill(100, 2)
	r.take("gone", "base", gone)
	tip := gone.clone()
	tip.fill(3, 1) // back to what base has
	tip.fill(305, 3)
	r.take("tip", "gone", tip)
	side := d.clone()
	side.fill(5, 4)
	side.fill(400, 4)
	r.take("side", "base", side)
	lone := make(disk, leafSize)
	lone.fill(7, 5)
	r.take("lone", "", lone)
	r.delete("gone")
	next := side.clone()
	next.fill(6, 6)
	next.fill(301, 6)
	r.must(r.vault.Abort(r.ctx, r.partial("base", next), nil))
	r.partial("side", next)
}

// check runs a check with empty caches.
func (r *region) check(deep bool) *fsck.Report {
	r.tb.Helper()
	last := int64(-1)
	rep, err := fsck.Run(r.ctx, fsck.Config{
		DB: r.db, Bucket: r.bucket, Vault: r.newVault(), Region: "east", SignPublic: r.key.Public().(ed25519.PublicKey), Deep: deep,
		Progress: func(done, total int64) {
			if done < last || done > total {
				r.tb.Errorf("progress: %d of %d after %d", done, total, last)
			}
			last = done
		},
	})
	r.must(err)
	return rep
}

// version returns the row of a snapshot's version.
func (r *region) version(name string) (row meta.Version) {
	r.tb.Helper()
	r.must(r.db.View(r.ctx, func(tx *meta.Tx) (err error) {
		row, err = tx.Version(r.snaps[name].version)
		return err
	}))
	return row
}

// segment returns the segment of a kind that a snapshot's version wrote; the
// one with the most slots when there are several.
func (r *region) segment(name string, kind snapferry.FrameKind) (s meta.Segment) {
	r.tb.Helper()
	r.must(r.db.View(r.ctx, func(tx *meta.Tx) error {
		all, err := tx.SegmentsOf(r.snaps[name].version)
		for _, g := range all {
			if g.Kind == kind && g.Slots > s.Slots {
				s = g
			}
		}
		return err
	}))
	return s
}

func (r *region) body(name string) []byte {
	r.tb.Helper()
	size, err := r.driver.Size(r.ctx, name)
	r.must(err)
	p := make([]byte, size)
	if _, err := r.driver.ReadAt(r.ctx, name, p, 0); err != nil {
		r.tb.Fatal(err)
	}
	return p
}

// replace changes an object behind everybody's back; a nil body removes it.
func (r *region) replace(name string, body []byte) {
	r.tb.Helper()
	r.must(r.driver.Delete(r.ctx, name))
	if body != nil {
		r.must(r.driver.Put(r.ctx, name, body))
	}
}

// frame returns where in its object a frame begins.
func (r *region) frame(s meta.Segment, slot int) int64 {
	r.tb.Helper()
	body := r.body(s.Object)[s.Offset:][:s.Length]
	f, err := segment.DecodeFooter(body, s.Length, nil)
	r.must(err)
	e, ok := f.Find(uint16(slot))
	if !ok {
		r.tb.Fatalf("segment %s has no slot %d", s.ID, slot)
	}
	return s.Offset + int64(e.Offset)
}

// users is the oracle: the snapshots in whose maps there is a ref that fn
// wants, found by walking each map whole. Call it before the damage.
func (r *region) users(fn func(snapferry.Ref) bool) (ids []snapferry.SnapshotID) {
	r.tb.Helper()
	for name, s := range r.snaps {
		if r.version(name).State != snapferry.VersionSealed {
			continue
		}
		m, err := r.vault.MapOf(r.ctx, s.version)
		r.must(err)
		if r.uses(m.Root, 0, fn) {
			ids = append(ids, s.id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (r *region) uses(n *blockmap.Node, index uint64, fn func(snapferry.Ref) bool) bool {
	r.tb.Helper()
	for i := range n.Presence.All() {
		d, ref, _ := n.Child(i)
		if fn(ref) {
			return true
		}
		if n.Level == 0 {
			continue
		}
		at := snapferry.Position{Level: n.Level - 1, Index: index*blockmap.Fanout + uint64(i)}
		c, err := r.vault.ReadNode(r.ctx, at, d, ref)
		r.must(err)
		if r.uses(c, at.Index, fn) {
			return true
		}
	}
	return false
}

func ofSlot(s meta.Segment, slot int) func(snapferry.Ref) bool {
	return func(ref snapferry.Ref) bool { return ref.Segment == s.ID && int(ref.Slot) == slot }
}

func ofSegments(all ...meta.Segment) func(snapferry.Ref) bool {
	return func(ref snapferry.Ref) bool {
		return slices.ContainsFunc(all, func(s meta.Segment) bool { return s.ID == ref.Segment })
	}
}

func (r *region) segmentsIn(object string) (all []meta.Segment) {
	r.tb.Helper()
	r.must(r.db.View(r.ctx, func(tx *meta.Tx) (err error) {
		all, err = tx.SegmentsIn(object)
		return err
	}))
	return all
}

// sign makes the bytes of a version's record as the metadata would have it,
// changed by fn and signed with key.
func (r *region) sign(name string, key ed25519.PrivateKey, fn func(*record.Record)) []byte {
	r.tb.Helper()
	row := r.version(name)
	rec, err := record.Decode(r.body(record.Name(row.ID, row.Revision)), r.key.Public().(ed25519.PublicKey), nil)
	r.must(err)
	fn(rec)
	p, err := rec.Encode(key, nil)
	r.must(err)
	return p
}

func memRegion(tb testing.TB) *region { return newRegion(tb, memblob.New()) }
