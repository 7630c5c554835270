package control_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// sleeper is the bucket of a worker that falls asleep right before its nth
// change of the bucket, and does it when it is woken.
type sleeper struct {
	blob.Driver
	asleep chan struct{} // closed when it has fallen asleep
	wake   chan struct{}

	mu   sync.Mutex
	left int
}

func newSleeper(n int) *sleeper {
	return &sleeper{asleep: make(chan struct{}), wake: make(chan struct{}), left: n}
}

func (s *sleeper) over(d blob.Driver) blob.Driver {
	s.Driver = d
	return s
}

func (s *sleeper) step() {
	s.mu.Lock()
	now := s.left == 0
	s.left--
	s.mu.Unlock()
	if now {
		close(s.asleep)
		<-s.wake
	}
}

func (s *sleeper) Put(ctx context.Context, name string, body []byte) error {
	s.step()
	return s.Driver.Put(ctx, name, body)
}

func (s *sleeper) Delete(ctx context.Context, name string) error {
	s.step()
	return s.Driver.Delete(ctx, name)
}

// A scene is a small chain in which a worker falls asleep.
type scene struct {
	*simtest.Region
	t     *testing.T
	vol   meta.Volume
	disks map[snapferry.VersionID]*simtest.Disk
}

func (s *scene) store(parent snapferry.VersionID, d *simtest.Disk) snapferry.VersionID {
	s.t.Helper()
	id, _, err := s.Store(s.vol, parent, d)
	if err != nil {
		s.t.Fatal(err)
	}
	s.disks[id] = d
	return id
}

func (s *scene) drop(id snapferry.VersionID) {
	s.t.Helper()
	delete(s.disks, id)
	if err := s.Vault.Release(s.t.Context(), simtest.Hold(id), nil); err != nil && !snapferry.IsKind(err, snapferry.Conflict) && !snapferry.IsKind(err, snapferry.NotFound) {
		s.t.Fatal(err)
	}
}

// claim makes a job that a worker runs, and returns its token and its fence.
func (s *scene) claim() (id snapferry.JobID, token uint64, fence vault.Fence) {
	s.t.Helper()
	j := job.Job{ID: snapferry.NewJobID(), Kind: "free", Subject: "x", Lane: job.Upkeep}
	s.Update(func(tx *meta.Tx) error {
		if err := job.Enqueue(tx, j); err != nil {
			return err
		}
		now, err := tx.ClaimJob(j.ID, "sleeper/1")
		token = now.Token
		return err
	})
	return j.ID, token, func(tx *meta.Tx) error { return tx.CheckLease(j.ID, token) }
}

// takeOver takes the sleeper's job from it.
func (s *scene) takeOver(id snapferry.JobID) {
	s.t.Helper()
	s.Update(func(tx *meta.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		return tx.RequeueJob(id, j.Token, j.Beat)
	})
}

// TestSleepersChangeNothing has a worker fall asleep at every step of what it
// does to a bucket. Its job is taken over, the world goes on, and then it wakes:
// what it does then is garbage at most, nothing is lost, and nothing stops.
func TestSleepersChangeNothing(t *testing.T) {
	f := simtest.NewFactory(t)
	const small = 40 << 20
	d0 := simtest.NewDisk(small).Fill(0, 1).Fill(1, 2).Fill(300, 3).Fill(600, 4)
	d1 := d0.Clone(small).Fill(1, 12).Fill(301, 13)
	d2 := d1.Clone(small).Fill(1, 22).Fill(601, 23)
	type action struct {
		name string
		// before makes the scene; do is what the sleeper does under its fence, and
		// others is what happens meanwhile.
		before func(s *scene) (ids []snapferry.VersionID)
		do     func(v *vault.Vault, ids []snapferry.VersionID, fence vault.Fence) error
		others func(s *scene, ids []snapferry.VersionID)
		done   func(s *scene, ids []snapferry.VersionID) // after a sleeper that did not sleep
	}
	nothing := func(*scene, []snapferry.VersionID) {}
	visit := func(v *vault.Vault, ids []snapferry.VersionID, fence vault.Fence) error {
		return v.Visit(context.Background(), ids[1], fence, nil)
	}
	chain := func(s *scene) []snapferry.VersionID {
		a := s.store(snapferry.VersionID{}, d0)
		b := s.store(a, d1)
		return []snapferry.VersionID{a, b, s.store(b, d2)}
	}
	dropped := func(s *scene) []snapferry.VersionID {
		ids := chain(s)
		s.drop(ids[1])
		return ids
	}
	actions := []action{
		{"free a middle", dropped, visit, nothing, nothing},
		{"free a middle, then its child goes", dropped, visit, func(s *scene, ids []snapferry.VersionID) { s.drop(ids[2]) }, nothing},
		{"free a middle, then its parent goes", dropped, visit, func(s *scene, ids []snapferry.VersionID) { s.drop(ids[0]) }, nothing},
		{"free a middle, then it grows", dropped, visit, func(s *scene, ids []snapferry.VersionID) {
			s.drop(ids[0])
			s.store(ids[2], d2.Clone(small).Fill(2, 99))
		}, nothing},
		{"free the last", func(s *scene) []snapferry.VersionID {
			ids := chain(s)
			s.drop(ids[2])
			return []snapferry.VersionID{ids[1], ids[2]}
		}, visit, func(s *scene, ids []snapferry.VersionID) { s.store(ids[0], d2) }, nothing},
		{"free a parent of two", func(s *scene) []snapferry.VersionID {
			ids := chain(s)
			ids = append(ids, s.store(ids[1], d0))
			s.drop(ids[1])
			return ids
		}, visit, func(s *scene, ids []snapferry.VersionID) { s.drop(ids[3]) }, nothing},
		{"release", chain, func(v *vault.Vault, ids []snapferry.VersionID, _ vault.Fence) error {
			return v.Release(context.Background(), simtest.Hold(ids[1]), nil)
		}, func(s *scene, ids []snapferry.VersionID) { s.drop(ids[1]) }, func(s *scene, ids []snapferry.VersionID) { delete(s.disks, ids[1]) }},
		{"import", func(s *scene) []snapferry.VersionID {
			ids := chain(s)
			id, err := s.Attach(s.vol, ids[2], small)
			if err != nil {
				s.t.Fatal(err)
			}
			return append(ids, id)
		}, func(v *vault.Vault, ids []snapferry.VersionID, fence vault.Fence) error {
			return fill(v, ids[3], d0, fence)
		}, func(s *scene, ids []snapferry.VersionID) {
			if err := s.Vault.Abort(s.t.Context(), ids[3], nil); err != nil {
				s.t.Fatal(err)
			}
			s.drop(ids[2])
		}, func(s *scene, ids []snapferry.VersionID) { s.disks[ids[3]] = d0 }},
	}
	for _, a := range actions {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n++ {
				s := &scene{Region: f.NewRegion(t, simtest.Options{}), t: t, disks: map[snapferry.VersionID]*simtest.Disk{}}
				s.vol = s.Volume(s.Account("a"), "disk")
				ids := a.before(s)
				sleeping := newSleeper(n)
				z := s.Other(sleeping.over)
				id, _, fence := s.claim()
				ended := make(chan error, 1)
				go func() { ended <- a.do(z, ids, fence) }()
				slept := false
				select {
				case <-sleeping.asleep:
					slept = true
				case err := <-ended:
					if err != nil {
						t.Fatalf("step %d: %v", n, err)
					}
					a.done(s, ids)
				}
				if slept {
					s.takeOver(id)
					a.others(s, ids)
					s.settle(n)
					close(sleeping.wake)
					<-ended // whatever it says
				}
				s.settle(n)
				s.verify()
				s.Stop()
				if t.Failed() {
					t.Fatalf("asleep at step %d", n)
				}
				if !slept {
					t.Logf("%d steps", n)
					return
				}
			}
		})
	}
}

// fill imports a disk into an open version and seals it.
func fill(v *vault.Vault, id snapferry.VersionID, d *simtest.Disk, fence vault.Fence) error {
	ctx := context.Background()
	w, err := v.Write(ctx, id, vault.WriteConfig{Fence: fence})
	if err != nil {
		return err
	}
	defer w.Close()
	var st vault.ImportStats
	if err := w.Import(ctx, d, &st); err != nil {
		return err
	}
	_, err = w.Seal(ctx, vault.SealConfig{Hold: simtest.Hold(id)})
	return err
}

func (s *scene) settle(n int) {
	s.t.Helper()
	if err := s.Settle(s.t.Context()); err != nil {
		s.t.Fatalf("step %d: settle: %v", n, err)
	}
}

// verify wants all that lives intact, nothing stopped, and, when all is deleted,
// nothing left.
func (s *scene) verify() {
	s.t.Helper()
	s.Forget()
	for id, d := range s.disks {
		s.WantContent(s.t, id, d)
	}
	s.sweep()
	s.Check(s.t, simtest.NoGarbage)
	for id := range s.disks {
		s.drop(id)
	}
	if err := s.Settle(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.sweep()
	s.WantNothing(s.t)
	s.View(func(tx *meta.Tx) error {
		why, err := tx.ReclaimStopped()
		if why != "" {
			s.t.Errorf("reclaiming has stopped: %s", why)
		}
		return err
	})
}

func (s *scene) sweep() {
	s.t.Helper()
	if _, err := s.Vault.Sweep(s.t.Context(), nil); err != nil {
		s.t.Errorf("sweep: %v", err)
	}
	if err := s.Vault.CheckRecords(s.t.Context()); err != nil {
		s.t.Errorf("check records: %v", err)
	}
	if _, err := s.Vault.Reclaim(s.t.Context(), time.Now(), nil); err != nil {
		s.t.Errorf("reclaim: %v", err)
	}
}
