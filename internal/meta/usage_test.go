package meta_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
)

// TestSpace sums up two accounts, with everything in all of its states.
func TestSpace(t *testing.T) {
	db, err := open(t, filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	var accounts []snapferry.AccountID
	now := time.Now()
	err = db.Update(t.Context(), func(tx *meta.Tx) error {
		for i, name := range []string{"a", "b"} {
			id := snapferry.NewAccountID()
			accounts = append(accounts, id)
			chain := meta.Chain{ID: snapferry.NewChainID(), Account: id, Algorithm: digest.SHA256, Proven: true, Created: now}
			vol := meta.Volume{ID: snapferry.NewVolumeID(), Account: id, Name: "disk", Chain: chain.ID, Created: now}
			if err := tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: id, Name: name}, Created: now}); err != nil {
				return err
			}
			if err := tx.InsertChain(chain); err != nil {
				return err
			}
			if err := tx.InsertVolume(vol); err != nil {
				return err
			}
			if err := fillSpace(tx, chain, vol, int64(i+1)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	one := meta.Space{Snapshots: 1, Making: 1, Present: 10, Versions: 3, Open: 1, Ghosts: 1, Objects: 2, Small: 1, Stored: 9<<20 + 1000, Dead: 100, Condemned: 1, Doomed: 50}
	total := one
	total.Snapshots, total.Making, total.Versions, total.Open, total.Ghosts, total.Objects, total.Small, total.Condemned = 2, 2, 6, 2, 2, 4, 2, 2
	total.Present, total.Stored, total.Dead, total.Doomed = 30, 2*(9<<20)+3000, 300, 150
	err = db.View(t.Context(), func(tx *meta.Tx) error {
		got, err := tx.Space(accounts[0])
		if diff := cmp.Diff(got, one); diff != "" {
			t.Errorf("of an account (-got +want):\n%s", diff)
		}
		if err != nil {
			return err
		}
		got, err = tx.Space("")
		if diff := cmp.Diff(got, total); diff != "" {
			t.Errorf("of all (-got +want):\n%s", diff)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fillSpace adds versions, snapshots and objects of a chain, k times as large as
// the first's.
func fillSpace(tx *meta.Tx, chain meta.Chain, vol meta.Volume, k int64) error {
	now := time.Now()
	snapshots := map[snapferry.VersionState]snapferry.SnapshotState{snapferry.VersionSealed: snapferry.SnapshotReady, snapferry.VersionOpen: snapferry.SnapshotCreating}
	for i, state := range []snapferry.VersionState{snapferry.VersionSealed, snapferry.VersionGhost, snapferry.VersionOpen} {
		v := meta.Version{
			ID: snapferry.NewVersionID(), Chain: chain.ID, Volume: vol.ID, State: state, Algorithm: digest.SHA256, Blocks: uint64(10 * k), Sequence: int64(i), Created: now,
		}
		if err := tx.InsertVersion(v); err != nil {
			return err
		}
		if s := snapshots[state]; s != "" {
			row := meta.Snapshot{Snapshot: snapferry.Snapshot{ID: snapferry.NewSnapshotID(), Account: chain.Account, State: s, Created: now}, VolumeID: vol.ID}
			row.Version = v.ID
			if err := tx.InsertSnapshot(row); err != nil {
				return err
			}
		}
	}
	for i, o := range []meta.Object{
		{Size: 9 << 20}, {Size: 1000 * k, Dead: 100 * k}, {Size: 50 * k, State: meta.ObjectCondemned}, {Size: 1, State: meta.ObjectWriting},
	} {
		o.Name, o.Chain, o.Created = chain.ID.String()+string(rune('a'+i)), chain.ID, now
		if err := tx.InsertObject(o); err != nil {
			return err
		}
	}
	return nil
}

// TestChores names what deletion has left to do, by chain.
func TestChores(t *testing.T) {
	db, err := open(t, filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	chains := []snapferry.ChainID{{1}, {2}, {3}}
	graves := []snapferry.VersionID{{9}, {8}, {7}}
	err = db.Update(t.Context(), func(tx *meta.Tx) error {
		for i, g := range graves {
			if err := tx.PutGrave(meta.Grave{Version: g, Chain: chains[i/2], Kept: false}); err != nil {
				return err
			}
		}
		return tx.PutGrave(meta.Grave{Version: snapferry.VersionID{6}, Chain: chains[2], Kept: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	view := func(fn func(tx *meta.Tx) error) {
		t.Helper()
		if err := db.View(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range [][]snapferry.VersionID{{{8}, {9}}, {{7}}, nil} {
		view(func(tx *meta.Tx) error {
			got, err := tx.Chores(chains[i])
			some, err2 := tx.HasChores(chains[i])
			if diff := cmp.Diff(want, got); diff != "" || some != (len(want) > 0) {
				t.Errorf("chores of chain %d (-want +got), %v: %s", i, some, diff)
			}
			return errors.Join(err, err2)
		})
	}
	for _, test := range []struct {
		after snapferry.ChainID
		limit int
		want  []snapferry.ChainID
	}{
		{snapferry.ChainID{}, 0, chains[:2]},
		{snapferry.ChainID{}, 1, chains[:1]},
		{chains[0], 1, chains[1:2]},
		{chains[1], 1, nil},
	} {
		view(func(tx *meta.Tx) error {
			got, err := tx.ChoreChains(test.after, test.limit)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("chains with chores after %s (-want +got): %s", test.after, diff)
			}
			return err
		})
	}
}

// TestPruneJobs forgets what was done long ago.
func TestPruneJobs(t *testing.T) {
	db, err := open(t, filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	job := meta.Job{ID: snapferry.NewJobID(), Kind: "free", State: snapferry.JobQueued, Lane: 1, Created: now}
	do := func(fn func(tx *meta.Tx) error) {
		t.Helper()
		if err := db.Update(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	do(func(tx *meta.Tx) error { return tx.InsertJob(job) })
	do(func(tx *meta.Tx) error { _, err := tx.ClaimJob(job.ID, "x/1"); return err })
	do(func(tx *meta.Tx) error {
		done := job
		done.Token, done.State, done.Finished = 1, snapferry.JobDone, now.Add(-time.Hour)
		if err := tx.SettleJob(done); err != nil {
			return err
		}
		return tx.PruneJobs(1, now)
	})
	do(func(tx *meta.Tx) error {
		_, err := tx.Job(job.ID)
		if !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("a job that was done long ago: got %v, want it gone", err)
		}
		return nil
	})
}
