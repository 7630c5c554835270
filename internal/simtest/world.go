package simtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/layer/layertest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
)

// A World is a few regions with live volumes, links between them, a model of
// what they must hold, and what goes wrong. It lives in a bubble of package
// testing/synctest, so that its hours take no time.
//
// What is done, and what goes wrong when, is a function of the seed alone: each
// step draws its numbers from a source of its own. Which snapshot or point of a
// program a number stands for depends on what there is then, and that, a little,
// on the scheduler.
type World struct {
	tb    testing.TB
	ctx   context.Context // ends with the world
	seed  uint64
	rnd   *rand.Rand // of this step
	keys  *rand.Rand // likewise, of what is drawn about keys; nil: nothing is encrypted
	began time.Time

	sites []*site
	snaps []*snapshot
	vols  []*volume
	disks map[string]*Disk // last content of lineages that are imported, by account and name
	names int              // given so far

	trouble  bool // a fault was made that may not have ended
	troubles int  // faults made so far
	full     int  // faults that take away space, so far
	flips    int  // faults that change bits, so far
	reading  sync.WaitGroup
	locked   bool // a key may be disabled
	locks    int  // keys disabled so far

	mu      sync.Mutex
	what    []string   // was done; guarded by mu
	exports []exported // that nobody has looked at; guarded by mu
}

// A site is a region of a world.
type site struct {
	*Region
	medium   *medium
	files    *layertest.Power // nil: the region has no live volumes
	accounts []snapferry.AccountID
	roads    map[snapferry.RegionName]*road // to the others
	dark     bool                           // its power is, or will be, cut
	reboots  int
	dying    time.Time       // until when a process goes on that was taken for dead
	changed  <-chan struct{} // closed when the metadata has changed since it was observed
}

const (
	worldAccounts = 2
	worldSteps    = 50
	// worldLease is short, so that takeovers come often.
	worldLease = 15 * time.Second
	// worldPatience is how long a world without faults may take to come to rest.
	worldPatience = 2 * time.Hour
)

// accountNames are those of the accounts in every region.
var accountNames = [worldAccounts]string{"a", "b"}

// NewWorld makes a world of two regions, or three, in a bubble; with keys some of what
// is in it is encrypted.
func NewWorld(tb testing.TB, f *Factory, seed uint64, keys bool) *World {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &World{tb: tb, ctx: ctx, seed: seed, began: time.Now(), disks: map[string]*Disk{}}
	w.rnd = rand.New(rand.NewPCG(seed, worldSteps+1))
	tb.Cleanup(func() { cancel(); w.reading.Wait() })
	names := []snapferry.RegionName{"east", "west", "north"}
	if seed%4 != 0 {
		names = names[:2]
	}
	dir, delays := tb.TempDir(), []time.Duration{0, 30 * time.Millisecond, time.Second, 3 * time.Second}
	for _, name := range names {
		s := &site{medium: newMedium(memblob.New(), delays[w.rnd.IntN(len(delays))]), roads: map[snapferry.RegionName]*road{}}
		peers := map[snapferry.RegionName]func(string) transfer.Remote{}
		for _, other := range names {
			if other != name {
				s.roads[other] = newRoad(NewLink(name), delays[w.rnd.IntN(len(delays))])
				peers[other] = s.roads[other].As
			}
		}
		s.anew()
		o := Options{
			Name: name, DB: filepath.Join(dir, string(name)+".db"), Driver: s.medium, Peers: peers, Jobs: true,
			Lease: worldLease, Poll: 2 * worldLease, Grace: time.Minute, CacheBytes: 1 << 20,
		}
		if seed%8 != 6 {
			s.files = layertest.New(tb)
			o.Files = s.files
		}
		s.Region = f.NewRegion(tb, o)
		for _, a := range accountNames {
			s.accounts = append(s.accounts, s.Account(a))
		}
		w.sites = append(w.sites, s)
	}
	for _, s := range w.sites {
		for _, to := range w.sites {
			if r := s.roads[to.Name]; r != nil {
				r.link.Join(to.Region)
			}
		}
	}
	if keys {
		w.giveKeys()
	}
	return w
}

// Run lets the world go on for its time, and ends it: when it returns nothing is
// left in it, or the test has failed and the log says what was done.
func (w *World) Run() {
	w.tb.Helper()
	defer func() {
		if w.tb.Failed() {
			w.tb.Logf("seed %d:\n%s", w.seed, w.Log())
		}
	}()
	for _, s := range w.sites {
		w.started(s) // a fault could end the start
	}
	for i := range worldSteps {
		w.rnd = rand.New(rand.NewPCG(w.seed, uint64(i)))
		if w.keys != nil {
			w.keys = rand.New(rand.NewPCG(w.seed, keyStream+uint64(i)))
		}
		w.step()
		w.observe()
		if w.tb.Failed() {
			return
		}
	}
	w.rnd = rand.New(rand.NewPCG(w.seed, worldSteps))
	for _, end := range []func(){w.mend, w.settle, w.observe, w.restart, w.verify, w.rot, w.clear} {
		end()
		if w.tb.Failed() {
			return
		}
	}
}

// Summary says what came of what was done.
func (w *World) Summary() string {
	n := map[string]int{}
	for _, s := range w.snaps {
		kind := "snapshots"
		if s.source != nil {
			kind = "copies"
		}
		n[kind]++
		n[kind+" "+string(s.state)]++
	}
	for _, s := range w.sites {
		n["reboots"] += s.reboots
	}
	for _, v := range w.vols {
		n["volumes"]++
		if v.broken {
			n["volumes broken"]++
		}
	}
	return fmt.Sprint(n)
}

// Log is what was done, a line each, with the time since the world began.
func (w *World) Log() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []byte
	for _, line := range w.what {
		all = append(append(all, line...), '\n')
	}
	return string(all)
}

func (w *World) log(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what = append(w.what, fmt.Sprintf("%10.3f ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// fail fails the test.
func (w *World) fail(format string, args ...any) {
	w.tb.Helper()
	w.log("FAILED: "+format, args...)
	w.tb.Errorf("seed %d: "+format, append([]any{w.seed}, args...)...)
}

// judge fails the test when an operation failed otherwise than it may: with one
// of some kinds, or in trouble for want of something.
func (w *World) judge(doing string, err error, may ...snapferry.Kind) {
	w.tb.Helper()
	k := snapferry.KindOf(err)
	switch {
	case err == nil || slices.Contains(may, k):
	case w.locked && k == snapferry.KeyUnusable:
	case w.trouble && (k == snapferry.Unavailable || k == snapferry.Full || k == snapferry.Corrupt && w.flips > 0):
	default:
		w.fail("%s: %v (%s, trouble %v)", doing, err, k, w.trouble)
	}
}

// name returns a new name.
func (w *World) name(prefix string) string {
	w.names++
	return fmt.Sprintf("%s%d", prefix, w.names)
}

// site draws one.
func (w *World) site() *site { return w.sites[w.rnd.IntN(len(w.sites))] }

// pause lets time pass: mostly little, sometimes much.
func (w *World) pause() {
	times := []time.Duration{0, 0, time.Millisecond, 50 * time.Millisecond, time.Second, 4 * time.Second, 20 * time.Second}
	time.Sleep(times[w.rnd.IntN(len(times))])
}

// reboot brings a region back after its power was cut, or cuts it now.
func (w *World) reboot(s *site) {
	w.tb.Helper()
	w.log("%s comes back", s.Name)
	s.dark = false
	s.reboots++
	for _, v := range w.vols {
		if v.site == s {
			v.crashed()
		}
	}
	time.Sleep(time.Second) // else the last process is not before this one
	if s.files != nil {
		s.Power.Cut()
		s.files = s.files.Cut(w.rnd.Uint64())
		s.Reboot(s.files, true)
	} else {
		s.Restart()
	}
	s.anew()
}

// overtake starts a region while its last process goes on for a while.
func (w *World) overtake(s *site) {
	w.tb.Helper()
	d := []time.Duration{time.Second, 10 * time.Second, time.Minute}[w.rnd.IntN(3)]
	w.log("%s is overtaken, its last process goes on for %v", s.Name, d)
	s.reboots++
	time.Sleep(time.Second)
	s.dying = time.Now().Add(d + time.Second)
	s.Power.Restore() // a fault that is still to come could end the start
	s.Overtake(d)
	s.anew()
	w.started(s)
}

// anew has the region observed after a start.
func (s *site) anew() {
	unseen := make(chan struct{})
	close(unseen)
	s.changed = unseen
}

// started waits until a region has taken up what its last process left.
func (w *World) started(s *site) {
	select {
	case <-s.Control.Started():
	case <-time.After(time.Minute):
		w.fail("%s does not start", s.Name)
	}
}

// mend ends all faults.
func (w *World) mend() {
	w.tb.Helper()
	w.log("all faults end")
	for _, s := range w.sites {
		s.medium.mend()
		if s.files != nil {
			s.files.Limit(-1)
		}
		if s.Power.Restore() || s.dark {
			w.reboot(s)
			w.started(s)
		}
		for _, r := range s.roads {
			r.mend()
		}
	}
	w.trouble = false
	w.unlock()
}

// settle waits until nobody has anything to do.
func (w *World) settle() {
	w.tb.Helper()
	w.log("settle")
	w.reading.Wait()
	w.judgeExports()
	end := time.Now().Add(worldPatience)
	for nap := 50 * time.Millisecond; ; nap = min(2*nap, 30*time.Second) {
		time.Sleep(nap)
		left := w.unsettled()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			w.fail("after %v without faults there is still something to do: %v", worldPatience, left)
			return
		}
	}
}

// restart starts the regions again in which a copy is reserved for ever: one that
// could not even be given up waits for that.
func (w *World) restart() {
	w.tb.Helper()
	for _, s := range w.sites {
		var reserved []meta.Copy
		s.View(func(tx *meta.Tx) (err error) { reserved, err = tx.ActiveCopies(); return err })
		if len(reserved) > 0 {
			w.reboot(s)
			w.started(s)
		}
	}
	w.settle()
}

// unsettled is what is still to be done, in words.
func (w *World) unsettled() (left []string) {
	for _, s := range w.sites {
		s.View(func(tx *meta.Tx) error {
			chores, err := Chores(tx)
			if err != nil {
				return err
			}
			for _, id := range chores {
				left = append(left, fmt.Sprintf("%s: chore %s", s.Name, id))
			}
			for _, lane := range []int{job.Work, job.Upkeep, job.Copies} {
				jobs, err := tx.JobsOfLane(lane, 0)
				if err != nil {
					return err
				}
				for _, j := range jobs {
					if j.Kind != "sweep" || j.RunAfter.IsZero() {
						left = append(left, fmt.Sprintf("%s: job %s of %s %s %s, attempt %d, %s", s.Name, j.Kind, j.Subject, j.State, j.RunAfter, j.Attempts, j.Error))
					}
				}
			}
			copies, err := tx.ActiveCopies()
			for _, c := range copies {
				if !c.Reserved { // else it waits for the next start
					left = append(left, fmt.Sprintf("%s: copy %s %s", s.Name, c.ID, c.State))
				}
			}
			return err
		})
	}
	return left
}

// sweep has every region look for garbage.
func (w *World) sweep() {
	w.tb.Helper()
	for _, s := range w.sites {
		s.Update(func(tx *meta.Tx) error {
			return job.Enqueue(tx, job.Job{Kind: "sweep", Subject: "region", Lane: job.Upkeep})
		})
	}
	w.settle()
}
