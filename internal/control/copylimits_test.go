package control_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// TestLimitRights sets limits with and without the right to.
func TestLimitRights(t *testing.T) {
	w := newWorldWith(t, func(o *simtest.Options) { o.Operators = map[string]bool{"root": true} })
	root := w.west.Account("root")
	fast := limit.Plan{Rate: 1 << 20, Windows: []limit.Window{{From: 0, To: 60, Rate: 2 << 20}}}
	for _, tt := range []struct {
		scope string
		who   snapferry.AccountID
		plan  limit.Plan
		kind  snapferry.Kind
	}{
		{"link/east", w.atWest, fast, snapferry.Denied},
		{"account/a", w.atWest, fast, snapferry.Denied},
		{"link/north", root, fast, snapferry.NotFound},
		{"link/", root, fast, snapferry.NotFound},
		{"account/nobody", root, fast, snapferry.NotFound},
		{"region", root, fast, snapferry.Invalid},
		{"", root, fast, snapferry.Invalid},
		{"link/east", root, limit.Plan{Rate: -1}, snapferry.Invalid},
		{"link/east", root, limit.Plan{Windows: []limit.Window{{From: 5, To: 5}}}, snapferry.Invalid},
	} {
		wantKind(t, tt.scope, w.west.Control.SetLimit(t.Context(), tt.who, control.LimitRequest{Scope: tt.scope, Plan: tt.plan}), tt.kind)
	}
	scopes := func(who snapferry.AccountID) string {
		t.Helper()
		all, err := w.west.Control.Limits(t.Context(), who)
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for _, l := range all {
			parts = append(parts, l.Scope)
		}
		return strings.Join(parts, " ")
	}
	set := func(who snapferry.AccountID, scope string, p limit.Plan) {
		t.Helper()
		if err := w.west.Control.SetLimit(t.Context(), who, control.LimitRequest{Scope: scope, Plan: p}); err != nil {
			t.Fatal(err)
		}
	}
	if got := scopes(root); got != "" {
		t.Errorf("what was refused is there: %s", got)
	}
	set(root, "link/east", fast)
	set(root, "account", fast)
	set(w.atWest, "account", fast)
	for who, want := range map[snapferry.AccountID]string{w.atWest: "account/a link/east", w.west.Account("c"): "link/east"} {
		if got := scopes(who); got != want {
			t.Errorf("got limits %q, want %q", got, want)
		}
	}
	if got := scopes(root); !strings.Contains(got, "account/a") || !strings.Contains(got, "account/root") {
		t.Errorf("an operator sees %q, want those of all accounts", got)
	}
	set(root, "account/a", limit.Plan{})
	if got := scopes(w.atWest); got != "link/east" {
		t.Errorf("got limits %q, want that of the account taken away", got)
	}
}

// TestLimitsHold holds copies to the limits of a link, an account and a copy, in turn
// the lowest, and then lets them go while they are under way.
func TestLimitsHold(t *testing.T) {
	const low, high, part = 512 << 10, 1 << 30, 2 << 20
	for _, scope := range []string{"link/east", "account", "copy"} {
		t.Run(strings.ReplaceAll(scope, "/", " "), func(t *testing.T) {
			t.Parallel()
			w := newWorldWith(t, func(o *simtest.Options) { o.Operators = map[string]bool{"a": true} })
			d := random(160, 1) // 10 MiB that do not compress
			s := w.imported(d)
			set := func(rate int64) {
				t.Helper()
				for _, x := range []string{"link/east", "account"} {
					r := int64(high)
					if x == scope {
						r = rate
					}
					if err := w.west.Control.SetLimit(t.Context(), w.atWest, control.LimitRequest{Scope: x, Plan: limit.Plan{Rate: r}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			set(low)
			req := control.CopyRequest{Source: s.ID, Rate: high}
			if scope == "copy" {
				req.Rate = low
			}
			began := time.Now()
			c := w.copy(req)
			for {
				x, err := w.west.Control.CopyOf(t.Context(), w.atWest, c.Copy)
				if err != nil {
					t.Fatal(err)
				}
				if x.Progress != nil && x.Progress.Moved >= part {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			// A few streams have a frame each that came and waits.
			if took, least := time.Since(began), (part-8*snapferry.BlockSize)*time.Second/low; took < least {
				t.Errorf("2 MiB came in %v, want at least %v", took, least)
			}
			// What is left would take 16 seconds.
			set(high)
			if scope == "copy" {
				if _, err := w.west.Control.SetCopyRate(t.Context(), w.atWest, c.Copy, high); err != nil {
					t.Fatal(err)
				}
			}
			w.ready(c.ID, d)
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("the copy took %v after its limit was raised", took)
			}
			w.check()
		})
	}
}

// TestCopyRateRefused sets rates that are not possible, and of copies that are not
// there or have ended.
func TestCopyRateRefused(t *testing.T) {
	w := newWorld(t)
	s := w.imported(firstDisk())
	c := w.copy(control.CopyRequest{Source: s.ID})
	w.ready(c.ID, firstDisk())
	for name, tt := range map[string]struct {
		who  snapferry.AccountID
		id   snapferry.CopyID
		rate int64
		kind snapferry.Kind
	}{
		"ended":   {w.atWest, c.Copy, 1 << 20, snapferry.Conflict},
		"low":     {w.atWest, c.Copy, 1, snapferry.Invalid},
		"foreign": {w.west.Account("other"), c.Copy, 1 << 20, snapferry.NotFound},
		"unknown": {w.atWest, snapferry.NewCopyID(), 1 << 20, snapferry.NotFound},
	} {
		_, err := w.west.Control.SetCopyRate(t.Context(), tt.who, tt.id, tt.rate)
		wantKind(t, name, err, tt.kind)
	}
	for name, req := range map[string]control.CopyRequest{
		"a low rate": {Rate: 5}, "a negative rate": {Rate: -1}, "a high rate": {Rate: limit.MaxRate + 1},
		"no time": {Within: time.Second}, "negative time": {Within: -time.Hour}, "too much time": {Within: 1000 * time.Hour},
	} {
		req.From, req.Source = "east", s.ID
		_, err := w.west.Control.Copy(t.Context(), w.atWest, req)
		wantKind(t, name, err, snapferry.Invalid)
		_, err = w.west.Control.PlanCopy(t.Context(), w.atWest, req)
		wantKind(t, "plan with "+name, err, snapferry.Invalid)
	}
}

// TestPromises asks for the same room at the same moment, under the limit of the link
// and under that of the account: one gets it.
func TestPromises(t *testing.T) {
	for _, scope := range []string{"link/east", "account"} {
		t.Run(strings.ReplaceAll(scope, "/", " "), func(t *testing.T) {
			w := newWorldWith(t, func(o *simtest.Options) { o.Operators = map[string]bool{"a": true} })
			var sources []snapferry.SnapshotID
			for i := range 4 {
				s, err := w.east.Control.Import(t.Context(), w.atEast, control.ImportRequest{Volume: fmt.Sprint("disk", i), Disk: random(320, i), Close: func() {}})
				if err != nil {
					t.Fatal(err)
				}
				w.settled(w.east, w.atEast, s.ID)
				sources = append(sources, s.ID)
			}
			_, open := w.shut()
			// 20 MiB each: 40 s.
			if err := w.west.Control.SetLimit(t.Context(), w.atWest, control.LimitRequest{Scope: scope, Plan: limit.Plan{Rate: 512 << 10}}); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			var admitted atomic.Int64
			for _, id := range sources {
				all.Go(func() {
					_, err := w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: id, Within: time.Minute})
					switch {
					case err == nil:
						admitted.Add(1)
					case !snapferry.IsKind(err, snapferry.Full):
						t.Error(err)
					}
				})
			}
			all.Wait()
			if got := admitted.Load(); got != 1 {
				t.Errorf("%d of four copies were promised, want one", got)
			}
			if err := w.west.Control.SetLimit(t.Context(), w.atWest, control.LimitRequest{Scope: scope}); err != nil {
				t.Fatal(err)
			}
			close(open)
			for _, c := range w.active(w.atWest) {
				w.settled(w.west, w.atWest, c.Snapshot)
			}
			w.check()
		})
	}
}

// TestDeadlines asks for what a link of 1 MiB/s can do, and for what it cannot.
func TestDeadlines(t *testing.T) {
	w := newWorldWith(t, func(o *simtest.Options) { o.Operators = map[string]bool{"a": true} })
	d := random(640, 1) // 40 MiB
	s := w.imported(d)
	other := random(640, 2)
	s2, err := w.east.Control.Import(t.Context(), w.atEast, control.ImportRequest{Volume: "other", Disk: other, Close: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	w.settled(w.east, w.atEast, s2.ID)
	if err := w.west.Control.SetLimit(t.Context(), w.atWest, control.LimitRequest{Scope: "link/east", Plan: limit.Plan{Rate: 512 << 10}}); err != nil {
		t.Fatal(err)
	}
	plan, err := w.west.Control.PlanCopy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: s.ID})
	if want := 80 * time.Second; err != nil || plan.Time < want || plan.Time > want+2*time.Second {
		t.Errorf("the plan takes %v, %v, want %v", plan.Time, err, want)
	}
	ask := func(id snapferry.SnapshotID, within time.Duration) (snapferry.Snapshot, error) {
		return w.west.Control.Copy(t.Context(), w.atWest, control.CopyRequest{From: "east", Source: id, Within: within})
	}
	_, err = ask(s.ID, 70*time.Second)
	wantKind(t, "80 s of work in 70", err, snapferry.Full)
	if !strings.Contains(err.Error(), "40.0 MiB are to cross, and the link to east lets 35.0 MiB pass until then") {
		t.Errorf("got %v", err)
	}
	noPins(t, w.east, s.ID)
	first, err := ask(s.ID, 100*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	// The second fits behind the first, not beside it.
	_, err = ask(s2.ID, 100*time.Second)
	wantKind(t, "160 s of work in 100", err, snapferry.Full)
	_, err = ask(s2.ID, 88*time.Second)
	wantKind(t, "one that would make the first late", err, snapferry.Full)
	if !strings.Contains(err.Error(), "which was promised until") {
		t.Errorf("got %v, want that the first would be late", err)
	}
	second, err := ask(s2.ID, 4*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	// A limit that is lowered makes them late, which is seen at once; when it is
	// taken away they are not late any more.
	late := func(want bool) {
		t.Helper()
		idle(t, w.west, "the mark", func(tx *meta.Tx) (bool, error) {
			c, err := tx.Copy(first.Copy)
			return c.Late == want, err
		})
	}
	if err := w.west.Control.SetLimit(t.Context(), w.atWest, control.LimitRequest{Scope: "link/east", Plan: limit.Plan{Rate: 64 << 10}}); err != nil {
		t.Fatal(err)
	}
	late(true)
	if err := w.west.Control.SetLimit(t.Context(), w.atWest, control.LimitRequest{Scope: "link/east"}); err != nil {
		t.Fatal(err)
	}
	w.ready(first.ID, d)
	w.ready(second.ID, other)
	for _, id := range []snapferry.CopyID{first.Copy, second.Copy} {
		if c := w.ended(id, snapferry.EndedDone, 40<<20); c.Deadline.IsZero() || c.Finished.After(c.Deadline) {
			t.Errorf("got %+v, want it done in time", c)
		}
	}
	w.check()
}
