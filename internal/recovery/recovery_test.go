package recovery_test

import (
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
)

// wantComplete fails the test unless all came back.
func wantComplete(t testing.TB, rep *recovery.Report) {
	t.Helper()
	if !rep.Complete {
		t.Errorf("the recovery is not complete: %+v", damages(rep))
	}
}

func TestFromNothing(t *testing.T) {
	r := newRegion(t)
	r.build()
	want := r.state()
	r.lose()
	rep := r.recover(nil)
	wantComplete(t, rep)
	r.same(r.state(), want)
	r.wantSnapshots(r.all()...)
	r.wantClean()
	if rep.Snapshots != 7 || rep.Ghosts != 1 || rep.Pins != 1 || rep.Garbage.Objects == 0 || rep.Dump != 1 || len(rep.NotRebuilt) == 0 {
		t.Errorf("report: %+v", rep)
	}
	// Life goes on: what is under way is gone, all can be deleted, nothing is left.
	r.settle()
	r.wantClean()
	r.take("after", "tip", changed(r.snaps["tip"].disk, map[uint64]int{3: 99}))
	r.delete("base")
	r.delete("left")
	r.settle()
	r.wantSnapshots(r.all()...)
	r.wantClean()
	var pins []meta.Pin
	r.view(func(tx *meta.Tx) (err error) {
		pins, err = tx.AllPins()
		return err
	})
	for _, p := range pins {
		r.must(r.vault.Release(r.ctx, meta.Hold{Version: p.Version, Kind: "pin", Owner: p.ID}, func(tx *meta.Tx) error { return tx.DeletePin(p.ID) }))
	}
	for _, name := range r.all() {
		r.delete(name)
	}
	r.settle()
	if s := r.state(); len(s.Versions)+len(s.Segments) > 0 {
		t.Errorf("left with the last snapshot gone: %d versions, %d segments", len(s.Versions), len(s.Segments))
	}
}

func TestTwice(t *testing.T) {
	r := newRegion(t)
	r.build()
	r.lose()
	if _, err := recovery.Run(r.ctx, r.config()); err != nil {
		t.Fatal(err)
	}
	if _, err := recovery.Run(r.ctx, r.config()); !snapferry.IsKind(err, snapferry.Exists) {
		t.Errorf("over metadata that is there: got %v, want Exists", err)
	}
	r.open()
}
