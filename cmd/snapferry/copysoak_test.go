package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/toxitest"
)

var copySoak = flag.Duration("copysoak", 20*time.Second, "how long TestCopySoak breaks links and kills regions")

const (
	soakRate = 6 << 20  // bytes per second of the link, of all connections
	soakSize = 40 << 20 // bytes of a disk
	soakers  = 3        // that copy beside each other, each a volume of its own
	// soakRepeat is what may be done again for each kill: ten seconds of work.
	soakRepeat = 10 * soakRate
)

// soaker copies the snapshots of a volume again and again, and wants each copy to be
// done and equal.
type soaker struct {
	t       *testing.T
	c       *client.Client // of west
	sources []snapferry.Snapshot
	rng     *rand.Rand
	number  int
	copied  *atomic.Int64
	moved   *atomic.Int64 // bytes
	again   *atomic.Int64 // plain bytes that were moved again
}

// soakAway is how long a region may be away before a request is given up.
const soakAway = 2 * time.Minute

// persist repeats a request while the region is away.
func (s *soaker) persist(ctx context.Context, fn func() error) error {
	end := time.Now().Add(soakAway)
	for {
		err := fn()
		if err == nil || !snapferry.IsKind(err, snapferry.Unavailable) || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// one makes one copy, in the middle of all that happens.
func (s *soaker) one(ctx context.Context, round int) error {
	from := s.sources[s.rng.IntN(len(s.sources))]
	req := client.CopyRequest{
		From: demoEast, Source: from.ID, Full: s.rng.IntN(2) == 0,
		ClientToken: fmt.Sprintf("soaker-%d-%d", s.number, round), // a request whose answer was lost is the same one
	}
	var got snapferry.Snapshot
	if err := s.persist(ctx, func() (err error) { got, err = s.c.Copy(ctx, req); return err }); err != nil {
		return fmt.Errorf("begin copy %d of %s: %w", round, from.ID, err)
	}
	shown := int64(-1)
	got, err := s.c.Wait(ctx, got.ID, func(now snapferry.Snapshot) {
		if now.Progress == nil {
			return
		}
		if now.Progress.Done < shown {
			s.t.Errorf("copy %d of soaker %d: progress went back from %d to %d", round, s.number, shown, now.Progress.Done)
		}
		shown = now.Progress.Done
	})
	if err != nil {
		return fmt.Errorf("wait for copy %d of %s: %w", round, from.ID, err)
	}
	if got.State != snapferry.SnapshotReady || got.Digest != from.Digest {
		return fmt.Errorf("copy %d of %s: got %s (%s) with digest %s, want %s", round, from.ID, got.State, got.Reason, got.Digest, from.Digest)
	}
	s.copied.Add(1)
	s.moved.Add(got.Counts.Moved)
	s.again.Add(got.Counts.Repeated)
	if s.rng.IntN(3) > 0 {
		return s.persist(ctx, func() error {
			err := s.c.Delete(ctx, got.ID)
			if snapferry.IsKind(err, snapferry.NotFound) {
				return nil // the answer of the first try was lost
			}
			return err
		})
	}
	return nil
}

// TestCopySoak copies between two regions over a link that is cut, slowed, half open
// and reset at random, while the regions are killed, one or both: every copy ends
// done and equal, and little is done again.
func TestCopySoak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	server := toxitest.Start(t, os.Getenv("CI") != "")
	var link *toxitest.Proxy
	k := newKilledBehind(t, func(relay string) string {
		link = server.Proxy(relay)
		return link.Address
	})
	k.relay.mend(0)
	r := &s3Regions{killed: *k}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var copied, moved, again atomic.Int64
	var all []*soaker
	for i := range soakers {
		s := &soaker{t: t, c: k.client(demoWest), rng: rand.New(rand.NewPCG(seed, uint64(i))), number: i, copied: &copied, moved: &moved, again: &again}
		for range 2 {
			s.sources = append(s.sources, r.ready(demoEast, r.beginImport(demoEast, random(t, soakSize)).ID))
		}
		all = append(all, s)
	}
	k.relay.mend(soakRate)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var over atomic.Bool
	var work errgroup.Group
	for _, s := range all {
		work.Go(func() error {
			for round := 0; !over.Load() || round == 0; round++ {
				if err := s.one(ctx, round); err != nil {
					t.Error(err)
					return err
				}
			}
			return nil
		})
	}
	faults, kills := k.nemesis(link, rand.New(rand.NewPCG(seed, 99)), time.Now().Add(*copySoak))
	over.Store(true)
	link.Mend()
	k.relay.mend(0)
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d copies, %d MiB moved, %d MiB of them again; %d faults of the link, %d kills", copied.Load(), moved.Load()>>20, again.Load()>>20, faults, kills)
	if limit := int64(kills+1) * soakRepeat; again.Load() > limit {
		t.Errorf("%d bytes were moved again, want at most %d: 10 s of work for each of %d kills", again.Load(), limit, kills)
	}
	for _, region := range []snapferry.RegionName{demoEast, demoWest} {
		if report, err := k.client(region).Fsck(t.Context(), true, nil); err != nil || damaged(report) {
			t.Errorf("fsck of %s: got %v %+v", region, err, report.Findings)
		}
	}
}

// nemesis breaks the link and kills regions until a time.
func (k *killed) nemesis(link *toxitest.Proxy, rng *rand.Rand, until time.Time) (faults, kills int) {
	k.t.Helper()
	some := func(least, most time.Duration) time.Duration {
		return least + time.Duration(rng.Int64N(int64(most-least)))
	}
	for time.Now().Before(until) {
		switch rng.IntN(8) {
		case 0:
			link.Cut()
		case 1:
			link.Only(toxitest.Rate(64<<10), toxitest.Delay(some(0, 300*time.Millisecond)))
		case 2:
			link.Only(toxitest.Swallow())
		case 3:
			link.Only(toxitest.Reset(some(0, time.Second)))
		case 4:
			link.Only(toxitest.Break(rng.Int64N(8 << 20)))
		case 5:
			k.kill(demoWest)
			kills++
		case 6:
			k.kill(demoEast)
			kills++
		case 7:
			k.end(demoEast)
			k.end(demoWest)
			k.start(demoWest)
			k.start(demoEast)
			kills++
		}
		faults++
		time.Sleep(some(100*time.Millisecond, 3*time.Second))
		link.Mend()
		time.Sleep(some(500*time.Millisecond, 6*time.Second))
	}
	return faults - kills, kills
}
