package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// newWorldWith is newWorld with other options of west.
func newWorldWith(t *testing.T, change func(*simtest.Options)) *world {
	t.Helper()
	f := simtest.NewFactory(t)
	w := &world{t: t, toEast: simtest.NewLink("west"), toWest: simtest.NewLink("east")}
	w.east = f.NewRegion(t, simtest.Options{
		Name: "east", Jobs: true, Operators: map[string]bool{"root": true},
		Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": w.toWest.As},
	})
	o := simtest.Options{Name: "west", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": w.toEast.As}}
	change(&o)
	w.west = f.NewRegion(t, o)
	w.toEast.Join(w.east)
	w.toWest.Join(w.west)
	w.atEast, w.atWest = w.east.Account("a"), w.west.Account("a")
	return w
}

// many makes n snapshots in east, each of a volume of its own.
func (w *world) many(account snapferry.AccountID, n int) (ids []snapferry.SnapshotID) {
	w.t.Helper()
	for i := range n {
		d := simtest.NewDisk(snapferry.BlockSize).Fill(0, 2*i+1)
		s, err := w.east.Control.Import(w.t.Context(), account, control.ImportRequest{Volume: fmt.Sprint("disk", i), Disk: d, Close: func() {}})
		if err != nil {
			w.t.Fatal(err)
		}
		ids = append(ids, s.ID)
	}
	for _, id := range ids {
		w.settled(w.east, account, id)
	}
	return ids
}

// active returns the copies of an account that have not ended, oldest first.
func (w *world) active(account snapferry.AccountID) []snapferry.Copy {
	w.t.Helper()
	all, err := w.west.Control.Copies(w.t.Context(), account, control.CopyFilter{Active: true})
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Reverse(all)
	return all
}

// TestCopyQueue queues 200 copies of two accounts, each of which may have five under
// way, in a region that makes eight at a time: both get their part, each in its
// order, and everybody is told where they are.
func TestCopyQueue(t *testing.T) {
	const each, quota, atOnce = 100, 5, 8
	w := newWorldWith(t, func(o *simtest.Options) {
		o.Copies = control.CopyConfig{AtOnce: atOnce, Quotas: map[string]control.Quota{"a": {Copies: quota}, "b": {Copies: quota}}}
	})
	eastB, westB := w.east.Account("b"), w.west.Account("b")
	sources := map[snapferry.AccountID][]snapferry.SnapshotID{w.atWest: w.many(w.atEast, each), westB: w.many(eastB, each)}
	asked, open := w.shut()
	for i := range each {
		for _, account := range []snapferry.AccountID{w.atWest, westB} {
			if _, err := w.west.Control.Copy(t.Context(), account, control.CopyRequest{From: "east", Source: sources[account][i]}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range atOnce {
		<-asked
	}
	ids := map[snapferry.AccountID][]snapferry.CopyID{}
	for account, want := range map[snapferry.AccountID]int{w.atWest: 4, westB: 4} {
		waiting := 0
		for i, c := range w.active(account) {
			ids[account] = append(ids[account], c.ID)
			if c.Queue == nil {
				if i >= want || c.State != snapferry.CopyMoving || c.Progress == nil {
					t.Errorf("copy %d of %s: got %s, under way, with progress %v; want %d under way", i, account, c.State, c.Progress, want)
				}
				continue
			}
			waiting++
			if c.Queue.Position != waiting || c.State != snapferry.CopyQueued || !strings.Contains(c.Queue.Reason, "the region has 8 copies under way") {
				t.Errorf("copy %d of %s: got position %d (%s), want %d, because the region has enough", i, account, c.Queue.Position, c.Queue.Reason, waiting)
			}
		}
		if waiting != each-want {
			t.Errorf("%d copies of %s wait, want %d", waiting, account, each-want)
		}
	}
	// What is said of a snapshot says it too.
	last := w.active(westB)[each-1]
	if s, err := w.west.Control.Snapshot(t.Context(), westB, last.Snapshot); err != nil || s.Queue == nil || s.Queue.Position != each-4 {
		t.Errorf("the last snapshot: got %+v, %v, want position %d", s.Queue, err, each-4)
	}
	close(open)

	// While it goes on nobody has more than they may.
	for over := false; !over; {
		changed := w.west.DB.Changed()
		w.west.View(func(tx *meta.Tx) error {
			all, err := tx.ActiveCopies()
			under, waiting := map[snapferry.AccountID]int{}, map[snapferry.AccountID]int{}
			for _, c := range all {
				if c.Started.IsZero() {
					waiting[c.Account]++
				} else {
					under[c.Account]++
				}
			}
			if a, b := under[w.atWest], under[westB]; a > quota || b > quota || a+b > atOnce {
				t.Errorf("%d and %d copies are under way, want at most %d each and %d together", a, b, quota, atOnce)
			} else if a != b && waiting[w.atWest] > 0 && waiting[westB] > 0 {
				t.Errorf("%d and %d copies are under way while both accounts have more, want as many", a, b)
			}
			over = len(all) == 0
			return err
		})
		if !over {
			<-changed
		}
	}
	began := map[snapferry.AccountID][]time.Time{}
	for account, all := range ids {
		for i, id := range all {
			c, err := w.west.Control.CopyOf(t.Context(), account, id)
			if err != nil || c.State != snapferry.CopyDone || c.Ending != snapferry.EndedDone {
				t.Fatalf("copy %d of %s: got %s (%s), %v", i, account, c.State, c.Reason, err)
			}
			began[account] = append(began[account], c.Started)
		}
		if !slices.IsSortedFunc(began[account], time.Time.Compare) {
			t.Errorf("the copies of %s did not begin in their order", account)
		}
	}
	w.check()
}

// TestQuotas reaches the limits of accounts.
func TestQuotas(t *testing.T) {
	w := newWorldWith(t, func(o *simtest.Options) {
		o.Copies.Quotas = map[string]control.Quota{"a": {Copies: 2, Strict: true}, "b": {Copies: 1, Queued: 2}}
	})
	eastB, westB := w.east.Account("b"), w.west.Account("b")
	_, open := w.shut()
	for _, tt := range []struct {
		name       string
		east, west snapferry.AccountID
		fit        int
	}{{"strict", w.atEast, w.atWest, 2}, {"queue", eastB, westB, 3}} {
		sources := w.many(tt.east, tt.fit+1)
		for _, id := range sources[:tt.fit] {
			if _, err := w.west.Control.Copy(t.Context(), tt.west, control.CopyRequest{From: "east", Source: id}); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
		over := sources[tt.fit]
		_, err := w.west.Control.Copy(t.Context(), tt.west, control.CopyRequest{From: "east", Source: over})
		wantKind(t, tt.name+": one too many", err, snapferry.Full)
		if got := len(w.active(tt.west)); got != tt.fit {
			t.Errorf("%s: %d copies are there, want %d", tt.name, got, tt.fit)
		}
		noPins(t, w.east, over)
	}
	if q := w.active(westB)[1].Queue; q == nil || !strings.Contains(q.Reason, "the account has 1 copies under way") {
		t.Errorf("got %+v, want that the account has enough", q)
	}
	close(open)
	for _, account := range []snapferry.AccountID{w.atWest, westB} {
		for _, c := range w.active(account) {
			w.settled(w.west, account, c.Snapshot)
		}
	}
	w.check()
}

// TestDeadlineComesFirst gives copies with a deadline their turn before others.
func TestDeadlineComesFirst(t *testing.T) {
	w := newWorldWith(t, func(o *simtest.Options) { o.Copies.Quotas = map[string]control.Quota{"a": {Copies: 1}} })
	sources := w.many(w.atEast, 4)
	asked, open := w.shut()
	for i, within := range []time.Duration{0, 0, 2 * time.Hour, time.Hour} {
		if _, err := w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: sources[i], Within: within}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			<-asked
		}
	}
	var places []int
	var all []snapferry.CopyID
	for _, c := range w.active(w.atWest) {
		all = append(all, c.ID)
		if c.Queue != nil {
			places = append(places, c.Queue.Position)
		}
	}
	if !slices.Equal(places, []int{3, 2, 1}) {
		t.Errorf("got places %v, want the earliest deadline first", places)
	}
	close(open)
	for _, id := range all {
		w.ended(id, snapferry.EndedDone, 1)
	}
	w.check()
	var began []time.Time
	for _, i := range []int{0, 3, 2, 1} {
		c, err := w.west.Control.CopyOf(t.Context(), w.atWest, all[i])
		if err != nil || c.State != snapferry.CopyDone || c.Late {
			t.Fatalf("copy %d: got %s, late %v, %v", i, c.State, c.Late, err)
		}
		began = append(began, c.Started)
	}
	if !slices.IsSortedFunc(began, time.Time.Compare) {
		t.Errorf("the copies began at %v, want the earliest deadline first", began)
	}
}

// TestQuotaRaised restarts the region with a higher quota: what waited has its turn.
func TestQuotaRaised(t *testing.T) {
	quotas := map[string]control.Quota{"a": {Copies: 1}}
	w := newWorldWith(t, func(o *simtest.Options) { o.Copies.Quotas = quotas })
	sources := w.many(w.atEast, 3)
	asked, open := w.shut()
	for _, id := range sources {
		w.copy(control.CopyRequest{Source: id})
	}
	<-asked
	quotas["a"] = control.Quota{Copies: 3}
	w.west.Restart()
	w.toWest.Join(w.west)
	for range sources {
		<-asked
	}
	for i, c := range w.active(w.atWest) {
		if c.Queue != nil {
			t.Errorf("copy %d waits: %s", i, c.Queue.Reason)
		}
	}
	close(open)
	for _, c := range w.active(w.atWest) {
		w.settled(w.west, w.atWest, c.Snapshot)
	}
	w.check()
}
