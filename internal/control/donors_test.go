package control_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// lent is a copy that is expected to store again some blocks that the region has, and to
// move others.
type lent struct {
	req    control.CopyRequest
	disk   *simtest.Disk
	stored int64 // blocks
	moved  int64 // blocks
	donors []snapferry.SnapshotID
}

// lends copies and checks what the plan says, what happened, and the content.
func (w *world) lends(what string, x lent) snapferry.Snapshot {
	t := w.t
	t.Helper()
	x.req.From = "east"
	plan, err := w.west.Control.PlanCopy(t.Context(), w.atWest, x.req)
	if err != nil {
		t.Fatalf("%s: plan: %v", what, err)
	}
	if plan.MoveBlocks != x.moved || plan.StoreBlocks != x.stored || !slices.Equal(plan.Donors, x.donors) {
		t.Errorf("%s: the plan moves %d blocks and stores %d again, of %v, want %d, %d, %v", what, plan.MoveBlocks, plan.StoreBlocks, plan.Donors, x.moved, x.stored, x.donors)
	}
	if (x.stored > 0) != strings.Contains(plan.Reason, "stored again") {
		t.Errorf("%s: the reason is %q", what, plan.Reason)
	}
	for _, id := range x.donors {
		if !strings.Contains(plan.Reason, string(id)) {
			t.Errorf("%s: the reason is %q, without %s", what, plan.Reason, id)
		}
	}
	s := w.ready(w.copy(x.req).ID, x.disk)
	const nodes = 6 << 10
	switch {
	case s.Counts.Lent != x.stored*snapferry.BlockSize:
		t.Errorf("%s: %d bytes were lent, want %d blocks", what, s.Counts.Lent, x.stored)
	case s.Counts.Changed != (x.stored+x.moved)*snapferry.BlockSize || s.Counts.Changed+s.Counts.Reused != s.Counts.Present:
		t.Errorf("%s: %+v", what, s.Counts)
	case s.Counts.Moved > x.moved*(snapferry.BlockSize+100)+nodes || x.moved > 0 && s.Counts.Moved == 0:
		t.Errorf("%s: %d bytes moved, for %d blocks", what, s.Counts.Moved, x.moved)
	case s.Counts.Repeated != 0:
		t.Errorf("%s: %d bytes came again", what, s.Counts.Repeated)
	}
	return s
}

// donorsWorld has a disk of 40 blocks in east, and keys in west.
func donorsWorld(t *testing.T) (w *world, d *simtest.Disk, s snapferry.Snapshot) {
	w = newWorld(t)
	for _, alias := range []string{"one", "two", "three"} {
		key(t, w.west, w.atWest, alias)
	}
	d = simtest.NewDisk(size)
	for b := range uint64(40) {
		d.Fill(b*40, int(b)+1)
	}
	return w, d, w.importedAs("disk", d.Clone(size), control.Sealing{})
}

func under(k string, s snapferry.Snapshot) control.CopyRequest {
	return control.CopyRequest{Source: s.ID, Sealing: control.Sealing{Key: k}}
}

// TestDonors copies what the region has under other keys.
func TestDonors(t *testing.T) {
	w, d, first := donorsWorld(t)
	one := w.lends("the first copy", lent{under("one", first), d.Clone(size), 0, 40, nil})
	two := w.lends("another key", lent{under("two", first), d.Clone(size), 40, 0, []snapferry.SnapshotID{one.ID}})
	plain := w.lends("a copy within the region has no donors", lent{under("two", first), d.Clone(size), 0, 0, nil})
	full := under("three", first)
	full.Full = true
	w.lends("all is asked for", lent{full, d.Clone(size), 0, 40, nil})

	d.Fill(300, 77).Fill(301, 78)
	second := w.importedAs("disk", d.Clone(size), control.Sealing{})
	sone := w.lends("an increment under the first key", lent{under("one", second), d.Clone(size), 0, 2, nil})
	w.lends("and under the second", lent{under("two", second), d.Clone(size), 2, 0, []snapferry.SnapshotID{sone.ID}})

	d.Fill(900, 79)
	third := w.importedAs("disk", d.Clone(size), control.Sealing{})
	for _, alias := range []string{"one", "two"} {
		if _, err := w.west.Control.ChangeKey(t.Context(), w.atWest, alias, control.KeyDisable); err != nil {
			t.Fatal(err)
		}
	}
	w.lends("keys that may not be used lend nothing", lent{under("three", third), d.Clone(size), 0, 3, nil})
	for _, alias := range []string{"one", "two"} {
		if _, err := w.west.Control.ChangeKey(t.Context(), w.atWest, alias, control.KeyEnable); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []snapferry.Snapshot{one, two, plain} {
		if err := w.west.Control.Delete(t.Context(), w.atWest, s.ID); err != nil {
			t.Fatal(err)
		}
		gone(t, w.west, s.ID)
	}
	w.check()
}

// TestDonorsOfTheAccount copies what only another account has.
func TestDonorsOfTheAccount(t *testing.T) {
	w, d, first := donorsWorld(t)
	w.lends("the first copy", lent{under("one", first), d.Clone(size), 0, 40, nil})
	east, west := w.east.Account("b"), w.west.Account("b")
	key(t, w.west, west, "other")
	w.atEast, w.atWest = east, west
	s := w.importedAs("disk", d.Clone(size), control.Sealing{})
	w.lends("another account", lent{under("other", s), d.Clone(size), 0, 40, nil})
	w.check()
}

// TestDonorOfAnyLineage copies to where the content comes from: it is found by digest.
func TestDonorOfAnyLineage(t *testing.T) {
	w, d, first := donorsWorld(t)
	k := key(t, w.east, w.atEast, "back")
	there := w.lends("the first copy", lent{under("one", first), d.Clone(size), 0, 40, nil})
	req := control.CopyRequest{From: "west", Source: there.ID, Sealing: control.Sealing{Key: "back"}}
	plan, err := w.east.Control.PlanCopy(t.Context(), w.atEast, req)
	if err != nil {
		t.Fatal(err)
	}
	if plan.MoveBlocks != 0 || plan.StoreBlocks != 40 || !slices.Equal(plan.Donors, []snapferry.SnapshotID{first.ID}) {
		t.Errorf("back: the plan moves %d blocks, and stores %d again of %v", plan.MoveBlocks, plan.StoreBlocks, plan.Donors)
	}
	s, err := w.east.Control.Copy(t.Context(), w.atEast, req)
	if err != nil {
		t.Fatal(err)
	}
	s = w.settled(w.east, w.atEast, s.ID)
	if s.State != snapferry.SnapshotReady || s.Digest != d.Digest() || s.Key != k.ID || s.Counts.Lent != 40*snapferry.BlockSize {
		t.Errorf("back: got %s (%s) %v under %s, %+v", s.State, s.Reason, s.Digest, s.Key, s.Counts)
	}
	w.check()
}

// TestDonorGone deletes what a copy borrows from, or makes its key unusable, after the
// copy has begun: the rest comes from the source.
func TestDonorGone(t *testing.T) {
	for what, lose := range map[string]func(w *world, donor snapferry.Snapshot) error{
		"deleted": func(w *world, donor snapferry.Snapshot) error {
			return w.west.Control.Delete(w.t.Context(), w.atWest, donor.ID)
		},
		"disabled": func(w *world, _ snapferry.Snapshot) error {
			_, err := w.west.Control.ChangeKey(w.t.Context(), w.atWest, "one", control.KeyDisable)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			w, d, first := donorsWorld(t)
			one := w.lends("the first copy", lent{under("one", first), d.Clone(size), 0, 40, nil})
			d.Fill(0, 500) // waits at the source, and with it that leaf
			second := w.importedAs("disk", d.Clone(size), control.Sealing{})
			asked, open := w.shut()
			c := w.copy(under("two", second))
			<-asked
			if err := lose(w, one); err != nil {
				t.Fatal(err)
			}
			w.west.Forget()
			close(open)
			if s := w.ready(c.ID, d.Clone(size)); s.Counts.Lent > 39*snapferry.BlockSize {
				t.Errorf("%d bytes were lent", s.Counts.Lent)
			}
			if what == "disabled" {
				if _, err := w.west.Control.ChangeKey(t.Context(), w.atWest, "one", control.KeyEnable); err != nil {
					t.Fatal(err)
				}
			}
			w.check()
		})
	}
}

// TestDamagedDonor copies while what the region has already is damaged: what cannot be
// read there comes from the source.
func TestDamagedDonor(t *testing.T) {
	w, d, first := donorsWorld(t)
	one := w.lends("the first copy", lent{under("one", first), d.Clone(size), 0, 40, nil})
	n := 0
	err := w.west.Bucket.List(t.Context(), "", "", func(i blob.Info) error {
		if i.Size > 1<<20 { // the segments' content, past the header and the first blocks
			w.west.Faulty.FlipByte(i.Name, i.Size/2)
			n++
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	w.west.Restart()
	<-w.west.Control.Started() // which gives up what was only reserved before it
	c := w.ready(w.copy(under("two", first)).ID, d.Clone(size))
	if c.Counts.Lent == 0 || c.Counts.Lent >= 40*snapferry.BlockSize || c.Counts.Moved < snapferry.BlockSize {
		t.Errorf("%d bytes were lent, %d moved", c.Counts.Lent, c.Counts.Moved)
	}
	var version snapferry.VersionID
	w.west.View(func(tx *meta.Tx) error {
		s, err := tx.Snapshot(one.ID)
		version = s.Version
		return err
	})
	if _, err := w.west.Control.Snapshot(t.Context(), w.atWest, one.ID); err != nil || version.IsZero() {
		t.Errorf("the donor: %v", err)
	}
	got := simtest.NewDisk(size)
	if err := w.west.Control.Export(t.Context(), w.atWest, c.ID, got, nil); err != nil || got.Digest() != d.Digest() {
		t.Errorf("the copy reads as %v, %v", got.Digest(), err)
	}
	noPins(t, w.east, first.ID)
}
