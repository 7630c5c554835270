package recovery_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

func merge(c *recovery.Config)  { c.Merge = true }
func accept(c *recovery.Config) { c.Merge, c.AcceptDeleted = true, true }

// wantStopped fails the test unless reclaiming is stopped, or is not.
func (r *region) wantStopped(want bool) {
	r.t.Helper()
	r.view(func(tx *meta.Tx) error {
		if why := vault.Stopped(tx); (why != nil) != want {
			r.t.Errorf("reclaiming is stopped: %t, want %t: %v", why != nil, want, why)
		}
		return nil
	})
}

// keep copies the metadata aside; back brings it back.
func (r *region) keep() (back func()) {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "old.db")
	r.must(r.db.CopyTo(r.ctx, path))
	return func() {
		r.t.Helper()
		r.close()
		p, err := os.ReadFile(path)
		r.must(err)
		r.must(os.WriteFile(r.path, p, 0o600))
		r.open()
	}
}

// Metadata of last week: what came since is back, what was deleted since stays
// deleted, and what the bucket does not know is kept.
func TestMerge(t *testing.T) {
	r := newRegion(t)
	r.build()
	r.take("old", "lone", changed(r.snaps["lone"].disk, map[uint64]int{11: 81}))
	var tip snapferry.SnapshotID
	copies := []meta.Copy{
		{Copy: snapferry.Copy{ID: snapferry.NewCopyID(), Account: r.account, State: snapferry.CopyMoving, Created: time.Now()}, Members: []meta.CopyMember{{Source: "snap-s"}}},
		{Copy: snapferry.Copy{ID: snapferry.NewCopyID(), Account: r.account, State: snapferry.CopyFailed, Created: time.Now()}, Members: []meta.CopyMember{{Source: "snap-s"}}},
	}
	making := snapferry.NewSnapshotID()
	r.update(func(tx *meta.Tx) error {
		err := tx.InsertSnapshot(meta.Snapshot{VolumeID: r.vol.ID, Snapshot: snapferry.Snapshot{
			ID: making, Account: r.account, State: snapferry.SnapshotCreating, Size: diskSize, Created: time.Now(),
		}})
		return errors.Join(err, tx.InsertCopy(copies[0]), tx.InsertCopy(copies[1]),
			tx.InsertJob(meta.Job{ID: "job-1", Kind: "copy", State: snapferry.JobRunning, Token: 3, Payload: string(copies[0].ID), Created: time.Now()}),
			tx.InsertJob(meta.Job{ID: "job-2", Kind: "discard", State: snapferry.JobQueued, Payload: `{"copy":"` + string(copies[1].ID) + `"}`, Created: time.Now()}),
			tx.InsertRequest(meta.Request{Account: r.account, Token: "once", Operation: "x"}),
			tx.AddUsage(meta.Usage{Account: r.account, Kind: "stored", Subject: "snap-x", Bytes: 7, At: time.Now()}))
	})
	back := r.keep()
	tip = r.snaps["tip"].id
	r.delete("tip")
	r.delete("old")
	r.settle()
	r.take("new", "left", changed(r.snaps["left"].disk, map[uint64]int{12: 91}))
	r.takeOf(r.volume("second", "", ""), "second", "", disk(map[uint64]int{3: 95}))
	r.dump()
	want := r.state()
	back()
	var released []snapferry.CopyID
	rep := r.recover(func(c *recovery.Config) {
		c.Merge = true
		c.Release = func(_ *meta.Tx, _ snapferry.AccountID, id snapferry.CopyID) error {
			released = append(released, id)
			return nil
		}
	})
	wantComplete(t, rep)
	r.same(r.state(), want)
	r.wantSnapshots(r.all()...)
	r.wantClean()
	if !slices.Contains(rep.Deleted, tip) || len(rep.Deleted) != 2 {
		t.Errorf("deleted since: %v", rep.Deleted)
	}
	if len(released) != 2 {
		t.Errorf("pins to be released: of %v, want those of both copies", released)
	}
	if _, err := os.Stat(rep.Backup); err != nil {
		t.Errorf("the old metadata is not kept: %v", err)
	}
	r.view(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(tip)
		if s.State != snapferry.SnapshotDeleting || !s.Version.IsZero() {
			t.Errorf("what was deleted since is %s", s.State)
		}
		s, err2 := tx.Snapshot(making)
		if s.State != snapferry.SnapshotFailed || s.Reason == "" {
			t.Errorf("what was being made is %s", s.State)
		}
		c, err3 := tx.Copy(copies[0].ID)
		if c.State != snapferry.CopyFailed {
			t.Errorf("the copy is %s", c.State)
		}
		left, err4 := tx.UnsettledJobs()
		if len(left) > 0 {
			t.Errorf("jobs left: %v", left)
		}
		_, err5 := tx.Request(r.account, "once")
		usage, err6 := tx.Usage("snap-x")
		if len(usage) != 1 {
			t.Errorf("usage: %v", usage)
		}
		return errors.Join(err, err2, err3, err4, err5, err6)
	})
	// Once more changes nothing.
	wantComplete(t, r.recover(merge))
	r.same(r.state(), want)
	r.settle()
	r.wantSnapshots(r.all()...)
	r.wantClean()
}

// Deletions of a snapshot that others pin are remembered by the metadata alone.
func TestMergeKeepsDeletions(t *testing.T) {
	r := newRegion(t)
	r.take("a", "", disk(map[uint64]int{0: 1}))
	p := r.pin("a", 2)
	r.dump()
	id := r.snaps["a"].id
	r.update(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(id)
		s.State, s.Deleted = snapferry.SnapshotDeleting, time.Now()
		return errors.Join(err, tx.UpdateSnapshot(s))
	})
	wantComplete(t, r.recover(merge))
	r.view(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(id)
		if s.State != snapferry.SnapshotDeleting || s.Version.IsZero() {
			t.Errorf("the snapshot is %s", s.State)
		}
		pins, err2 := tx.PinsOf(id)
		if len(pins) != 1 || pins[0] != p {
			t.Errorf("pins: %v, want %v", pins, p)
		}
		return errors.Join(err, err2)
	})
	r.wantClean()
}

// loseRecords removes all records of a snapshot's version, and returns what
// brings them back.
func (r *region) loseRecords(name string) (bring func()) {
	r.t.Helper()
	lost := map[string][]byte{}
	for _, n := range r.names(record.Prefix() + r.snaps[name].version.String() + "/") {
		lost[n] = r.body(n)
		r.replace(n, nil)
	}
	if len(lost) == 0 {
		r.t.Fatalf("%s has no records", name)
	}
	return func() {
		for n, p := range lost {
			r.replace(n, p)
		}
	}
}

// A snapshot whose record the store has lost looks like one that was deleted:
// nothing is reclaimed until the record is back or somebody confirms.
func TestMergeMissing(t *testing.T) {
	r := newRegion(t)
	d := disk(map[uint64]int{0: 1, 1: 2})
	r.take("base", "", d)
	r.take("leaf", "base", changed(d, map[uint64]int{1: 12, 2: 13}))
	r.take("lone", "", disk(map[uint64]int{5: 51}))
	r.dump()
	leaf, lone := r.snaps["leaf"], r.snaps["lone"]
	bringLeaf, bringLone := r.loseRecords("leaf"), r.loseRecords("lone")
	delete(r.snaps, "leaf")
	delete(r.snaps, "lone")
	want := []snapferry.SnapshotID{leaf.id, lone.id}
	slices.Sort(want)
	for range 2 { // the second merge knows no more than the first
		rep := r.recover(merge)
		if rep.Complete || !slices.Equal(rep.Missing, want) || len(rep.Deleted) > 0 || len(damages(rep)) != 2 {
			t.Errorf("report: missing %v, deleted %v, %+v, want missing %v", rep.Missing, rep.Deleted, rep.Findings, want)
		}
		r.wantStopped(true)
		r.wantSnapshots("base")
		before := r.names("")
		_, err := r.vault.Sweep(r.ctx, nil)
		_, err2 := r.vault.Reclaim(r.ctx, time.Now().Add(time.Hour), nil)
		if !snapferry.IsKind(err, snapferry.Conflict) || !snapferry.IsKind(err2, snapferry.Conflict) || !slices.Equal(r.names(""), before) {
			t.Errorf("sweep: %v, reclaim: %v, want Conflict and all objects kept", err, err2)
		}
	}
	// One record turns up.
	bringLeaf()
	r.snaps["leaf"] = leaf
	rep := r.recover(merge)
	if rep.Complete || !slices.Equal(rep.Missing, []snapferry.SnapshotID{lone.id}) || rep.Snapshots != 2 {
		t.Errorf("report: %+v", rep)
	}
	r.wantStopped(true)
	r.wantSnapshots("base", "leaf")
	// The other was deleted, says the operator. So it stays, whatever turns up.
	for range 2 {
		wantComplete(t, r.recover(accept))
		r.wantStopped(false)
	}
	bringLone()
	rep = r.recover(merge)
	wantComplete(t, rep)
	if rep.Snapshots != 2 || len(rep.Missing)+len(rep.Deleted) > 0 {
		t.Errorf("report: %+v", rep)
	}
	r.wantStopped(false)
	r.settle()
	_, err := r.vault.Sweep(r.ctx, nil)
	r.must(err)
	r.wantSnapshots("base", "leaf")
	r.wantClean()
	if _, err := recovery.Run(r.ctx, func() recovery.Config { c := r.config(); c.AcceptDeleted = true; return c }()); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("accepted without a merge: got %v, want Invalid", err)
	}
}

// What proves that a snapshot was deleted, and what does not.
func TestMergeProofs(t *testing.T) {
	for _, x := range []struct {
		name   string
		change func(r *region) // after the metadata that is merged
		proven bool
	}{
		{"a line of the audit in the last dump", func(r *region) { r.delete("tip"); r.settle(); r.dump() }, true},
		{"a line of the audit in an earlier dump", func(r *region) {
			r.delete("tip")
			r.settle()
			r.dump()
			r.dump()
			names := r.names(dump.Prefix())
			p := r.body(names[len(names)-1])
			r.replace(names[len(names)-1], p[:len(p)-1])
		}, true},
		{"a dump of another key", func(r *region) {
			r.delete("tip")
			r.settle()
			own := r.dumpKey
			r.dumpKey, _ = seal.NewDumpKey(make([]byte, seal.KeySize))
			r.dump()
			r.dumpKey = own
		}, false},
		{"another line of the audit", func(r *region) {
			r.loseRecords("tip")
			r.update(func(tx *meta.Tx) error {
				return tx.AddAudit(meta.Audit{At: time.Now(), Account: r.account, Action: "ImportSnapshot", Subject: string(r.snaps["tip"].id)})
			})
			r.dump()
			delete(r.snaps, "tip")
		}, false},
		{"no dump since", func(r *region) { r.delete("tip"); r.settle() }, false},
		{"spliced out, and the version below says so", func(r *region) { r.delete("mid"); r.settle() }, true},
		{"two spliced out", func(r *region) { r.delete("mid"); r.delete("mid2"); r.settle() }, true},
		{"a ghost that is there", func(r *region) {
			r.take("fork", "mid", changed(r.snaps["mid"].disk, map[uint64]int{9: 91}))
			r.delete("mid")
			r.settle()
		}, true},
		{"a forward that is there", func(r *region) {
			r.write(record.Name(r.snaps["mid"].version, 1), func(x *record.Record) {
				x.State, x.Holds, x.Forward = record.Forwarded, nil, r.snaps["base"].version
			})
			delete(r.snaps, "mid")
		}, true},
		{"the version below names no parent", func(r *region) { r.delete("base"); r.settle() }, false},
		{"the version below was not written since", func(r *region) { r.loseRecords("mid"); delete(r.snaps, "mid") }, false},
		{"an audit that does not tell of a pin", func(r *region) {
			r.loseRecords("pinned")
			r.update(func(tx *meta.Tx) error {
				return tx.AddAudit(meta.Audit{At: time.Now(), Account: r.account, Action: "DeleteSnapshot", Subject: string(r.snaps["pinned"].id)})
			})
			r.dump()
			delete(r.snaps, "pinned")
		}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := newRegion(t)
			d := disk(map[uint64]int{0: 1, 1: 2, 300: 3})
			for i, name := range []string{"base", "mid", "mid2", "tip"} {
				r.take(name, map[string]string{"mid": "base", "mid2": "mid", "tip": "mid2"}[name], changed(d, map[uint64]int{1: 10 + i}))
			}
			r.take("pinned", "", disk(map[uint64]int{7: 71}))
			r.pin("pinned", 1)
			r.dump()
			had := maps.Clone(r.snaps)
			back := r.keep()
			x.change(r)
			back()
			rep := r.recover(merge)
			var gone []snapferry.SnapshotID
			for name, s := range had {
				if r.snaps[name] == nil {
					gone = append(gone, s.id)
				}
			}
			slices.Sort(gone)
			proven, missing := gone, []snapferry.SnapshotID{}
			if !x.proven {
				proven, missing = missing, proven
			}
			if !slices.Equal(rep.Deleted, proven) || !slices.Equal(rep.Missing, missing) {
				t.Errorf("deleted %v, missing %v, want %v and %v", rep.Deleted, rep.Missing, proven, missing)
			}
			r.wantStopped(!x.proven)
			r.wantSnapshots(r.all()...)
			if !x.proven {
				rep = r.recover(accept)
				if len(rep.Missing) > 0 {
					t.Errorf("missing after that was accepted: %v", rep.Missing)
				}
				r.wantStopped(false)
			}
			for range 3 { // dumps of before are gone
				r.dump()
			}
			// The old metadata once more: what was accepted is proven now, where
			// nothing but the snapshot kept the version.
			back()
			if rep = r.recover(merge); len(rep.Missing) > 0 && x.name != "an audit that does not tell of a pin" {
				t.Errorf("missing in the next merge over the same metadata: %v", rep.Missing)
			}
		})
	}
}

// The newest record of a version is gone, older ones are there: what the
// metadata knows of it is newer.
func TestMergeNewestRecordLost(t *testing.T) {
	r := newRegion(t)
	r.take("a", "", disk(map[uint64]int{0: 1}))
	r.dump()
	p := r.pin("a", 2)
	row := r.row("a")
	if row.Revision != 2 {
		t.Fatalf("revision %d, want 2", row.Revision)
	}
	r.replace(record.Name(row.ID, 2), nil)
	wantComplete(t, r.recover(merge))
	r.view(func(tx *meta.Tx) error {
		pins, err := tx.PinsOf(r.snaps["a"].id)
		if len(pins) != 1 || pins[0] != p {
			t.Errorf("pins: %v, want %v", pins, p)
		}
		return err
	})
	r.settle()
	r.wantSnapshots("a")
	r.wantClean()
}

// A record that is damaged is not healed from metadata of before it: what was
// deleted by it would be back.
func TestMergeDoesNotHealFromThePast(t *testing.T) {
	r := newRegion(t)
	r.take("a", "", disk(map[uint64]int{0: 1}))
	r.take("b", "a", disk(map[uint64]int{0: 1, 1: 2}))
	r.take("c", "a", disk(map[uint64]int{0: 1, 1: 3})) // keeps a as a ghost
	r.dump()
	back := r.keep()
	a := r.snaps["a"]
	r.delete("a")
	r.settle()
	for _, name := range r.names(record.Prefix() + a.version.String() + "/") {
		p := r.body(name)
		r.replace(name, p[:len(p)-1])
	}
	back()
	rep := r.recover(merge)
	if rep.Complete || rep.Failed != 1 || rep.Snapshots != 2 {
		t.Errorf("report: %+v", rep)
	}
	r.wantStopped(true)
	r.wantSnapshots("b", "c")
}

// What the metadata knows heals a record that is damaged.
func TestMergeHeals(t *testing.T) {
	r := newRegion(t)
	r.build()
	want := r.state()
	for _, name := range r.all() {
		row := r.row(name)
		p := r.body(record.Name(row.ID, row.Revision))
		p[len(p)/2] ^= 1
		r.replace(record.Name(row.ID, row.Revision), p)
	}
	rep := r.recover(merge)
	if rep.Complete || rep.Snapshots != 7 || rep.Failed != 0 {
		t.Errorf("report: %+v", rep)
	}
	for i := range want.Versions {
		want.Versions[i].Stale = want.Versions[i].State == snapferry.VersionSealed
	}
	r.same(r.state(), want)
	r.settle()
	r.wantSnapshots(r.all()...)
	r.lose()
	// The damaged ones are still there, below those that were written again.
	rep = r.recover(nil)
	if rep.Snapshots != 7 {
		t.Errorf("from nothing, after the records were written again: %+v", rep)
	}
	r.wantSnapshots(r.all()...)
}

func TestRefusals(t *testing.T) {
	r := small(t)
	for name, change := range map[string]func(*recovery.Config){
		"merge with nothing": merge,
		"no key":             func(c *recovery.Config) { c.RegionKey = nil },
	} {
		cfg := r.config()
		change(&cfg)
		if _, err := recovery.Run(r.ctx, cfg); !snapferry.IsKind(err, snapferry.NotFound) || snapferry.HintOf(err) == "" {
			t.Errorf("%s: got %v, want NotFound with a hint", name, err)
		}
	}
	cfg := r.config()
	cfg.RegionKey, cfg.Trust = nil, make(ed25519.PublicKey, ed25519.PublicKeySize)
	if _, err := recovery.Run(r.ctx, cfg); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("another key: got %v, want Corrupt", err)
	}
	r.recover(nil)
	r.close()
	for name, change := range map[string]func(*recovery.Config){
		"another region":  func(c *recovery.Config) { c.ID = "other" },
		"bucket is older": func(c *recovery.Config) { c.Incarnation = 0 },
	} {
		cfg := r.config()
		cfg.Merge = true
		change(&cfg)
		if _, err := recovery.Run(r.ctx, cfg); !snapferry.IsKind(err, snapferry.Conflict) && !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("%s: got %v, want Conflict", name, err)
		}
	}
	r.open()
	r.wantSnapshots("base", "next", "last")
}

// Without key and dump, the public key is enough for the snapshots.
func TestTrust(t *testing.T) {
	r := small(t)
	public := r.key.Public().(ed25519.PublicKey)
	rep := r.recover(func(c *recovery.Config) { c.RegionKey, c.Trust = nil, public })
	wantComplete(t, rep)
	if !rep.NewKey || rep.Dump != 0 {
		t.Errorf("report: %+v", rep)
	}
	r.view(func(tx *meta.Tx) error {
		a, err := tx.Account(r.account)
		if a.Name != "main" || a.TokenHash != "" {
			t.Errorf("account: %+v", a)
		}
		row, err2 := tx.Region()
		r.key = row.SignKey
		return errors.Join(err, err2)
	})
	r.forget()
	r.wantSnapshots("base", "next", "last")
	r.wantClean()
	r.dump()
	r.take("more", "last", changed(r.snaps["last"].disk, map[uint64]int{2: 31}))
	r.wantClean()
	// Lost again, with records of both keys: the dump has them.
	r.lose()
	wantComplete(t, r.recover(nil))
	r.wantSnapshots("base", "next", "last", "more")
	r.wantClean()
}

// A run that ends anywhere is gone on with, and reads nothing twice.
func TestResume(t *testing.T) {
	mem := memblob.New()
	r := newRegionOn(t, mem)
	r.build()
	want := r.state()
	r.lose()
	slow := blobtest.NewSlow(mem, 0)
	r.bucket = blob.New(slow)
	if _, err := recovery.Run(r.ctx, func() recovery.Config { c := r.config(); c.DryRun = true; return c }()); err != nil {
		t.Fatal(err)
	}
	whole := slow.Count(blobtest.ReadAt).Requests
	slow.Reset()
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		ctx, cancel := context.WithCancel(r.ctx)
		stop, n := rnd.IntN(40), 0
		cfg := r.config()
		cfg.Workers = 1
		cfg.Progress = func(string, int64, int64) {
			if n++; n > stop {
				cancel()
			}
		}
		rep, err := recovery.Run(ctx, cfg)
		cancel()
		if rep != nil {
			break
		}
		if !snapferry.IsKind(err, snapferry.Cancelled) {
			t.Fatalf("interrupted: %v", err)
		}
		if _, err := os.Stat(r.path); err == nil {
			t.Fatal("an interrupted run left metadata")
		}
	}
	if _, err := os.Stat(r.path); err != nil {
		wantComplete(t, r.recover(nil))
	} else {
		r.open()
	}
	// Each run opens the dump anew, and one read may be lost in each.
	if got := slow.Count(blobtest.ReadAt).Requests; got > whole+2*9 {
		t.Errorf("%d reads over all runs, %d in one", got, whole)
	}
	r.same(r.state(), want)
	r.wantClean()
	left, err := filepath.Glob(r.path + "*recovering*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A cache that ends in the middle, or was damaged, is read as far as it is good.
func TestDamagedCache(t *testing.T) {
	r := small(t)
	ctx, cancel := context.WithCancel(r.ctx)
	cfg := r.config()
	cfg.Progress = func(phase string, done, _ int64) {
		if phase == recovery.PhaseMaps && done == 1 {
			cancel()
		}
	}
	if _, err := recovery.Run(ctx, cfg); err == nil {
		t.Fatal("the run was not interrupted")
	}
	path := r.path + ".recovering.cache"
	p, err := os.ReadFile(path)
	if err != nil || len(p) == 0 {
		t.Fatalf("%d bytes of cache, %v", len(p), err)
	}
	for _, at := range []int{len(p) - 3, len(p) / 2, 1} {
		bad := slices.Clone(p)
		bad[at] ^= 1
		r.must(os.WriteFile(path, bad[:len(bad)-at%2], 0o600))
		wantComplete(t, r.dry(nil))
	}
}

// A thousand snapshots of one changed block each.
func BenchmarkRecover(b *testing.B) {
	mem := memblob.New()
	slow := blobtest.NewSlow(mem, 0)
	r := newRegionOn(b, slow)
	n := 1000
	d := simtest.NewDisk(1 << 30)
	for i := range 64 {
		d.Fill(uint64(i*256), i+1)
	}
	r.take("s0", "", d)
	last := "s0"
	for i := 1; i < n; i++ {
		d = changed(d, map[uint64]int{uint64(i % 64 * 256): 1000 + i})
		name := "s" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
		r.take(name, last, d)
		last = name
	}
	r.dump()
	r.lose()
	b.ResetTimer()
	for b.Loop() {
		slow.Reset()
		cfg := r.config()
		cfg.DryRun = true
		rep, err := recovery.Run(r.ctx, cfg)
		r.must(err)
		if rep.Snapshots != int64(n) || !rep.Complete {
			b.Fatalf("%d snapshots, %+v", rep.Snapshots, rep.Findings)
		}
	}
	requests := slow.Count(blobtest.ReadAt).Requests + slow.Count(blobtest.Size).Requests + slow.Count(blobtest.List).Requests
	b.ReportMetric(float64(requests)/float64(n), "requests/snapshot")
	b.ReportMetric(float64(slow.Count(blobtest.ReadAt).Bytes)/float64(n), "bytes/snapshot")
	r.recover(nil)
	r.close()
}

// A writer that never reported back may write a record of a version that is gone
// also after a merge: its grave is kept.
func TestMergeKeepsLoose(t *testing.T) {
	r := newRegion(t)
	r.take("base", "", disk(map[uint64]int{0: 1}))
	r.take("mid", "base", disk(map[uint64]int{0: 2}))
	r.take("tip", "mid", disk(map[uint64]int{0: 3}))
	mid := r.row("mid")
	r.update(func(tx *meta.Tx) error {
		for range 2 {
			if _, err := tx.ReserveRevision(mid.ID, mid.Edge); err != nil {
				return err
			}
		}
		return nil
	})
	r.write(record.Name(mid.ID, mid.Revision), func(x *record.Record) {
		x.State, x.Holds, x.Forward = record.Forwarded, nil, r.snaps["base"].version
	})
	delete(r.snaps, "mid")
	r.recover(merge)
	for _, buried := range []bool{false, true} {
		r.view(func(tx *meta.Tx) error {
			g, err := tx.Grave(mid.ID)
			if err == nil && (!g.Loose || g.Kept != buried) {
				t.Errorf("buried %v: the grave is %+v", buried, g)
			}
			return err
		})
		r.settle()
	}
	r.wantSnapshots(r.all()...)
}
