package control_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// key makes a master key.
func key(t *testing.T, r *simtest.Region, account snapferry.AccountID, alias string) snapferry.Key {
	t.Helper()
	k, err := r.Control.CreateKey(t.Context(), account, control.KeyRequest{Alias: alias})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// importedAs imports a disk into a lineage of east, sealed as s says.
func (w *world) importedAs(volume string, d *simtest.Disk, s control.Sealing) snapferry.Snapshot {
	w.t.Helper()
	x, err := w.east.Control.Import(w.t.Context(), w.atEast, control.ImportRequest{Volume: volume, Sealing: s, Disk: d, Close: func() {}})
	if err != nil {
		w.t.Fatal(err)
	}
	x = w.settled(w.east, w.atEast, x.ID)
	if x.State != snapferry.SnapshotReady || x.Digest != d.Digest() {
		w.t.Fatalf("import: got %s (%s) %v, want ready %v", x.State, x.Reason, x.Digest, d.Digest())
	}
	return x
}

// shows reports whether content of a seed lies in the clear in the bucket of a region.
func shows(t *testing.T, r *simtest.Region, seed int) (found bool) {
	t.Helper()
	want := simtest.Content(seed)[:64]
	err := r.Bucket.List(t.Context(), "", "", func(i blob.Info) error {
		p, err := r.Bucket.Get(t.Context(), i.Name, blob.MaxBody)
		found = found || bytes.Contains(p, want)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestCopyKeys copies from each kind of source to each kind of key, into the same region
// and another one: at first, incrementally, when the base was deleted, and after
// rotations at both ends.
func TestCopyKeys(t *testing.T) {
	f := simtest.NewFactory(t)
	for _, source := range []string{"", "A", "B"} {
		for _, dest := range []string{"", "service", "one", "two"} {
			for _, at := range []snapferry.RegionName{"west", "east"} {
				t.Run(fmt.Sprintf("from %q to %q in %s", source, dest, at), func(t *testing.T) {
					t.Parallel()
					w := &world{t: t}
					w.east, w.west, w.toEast, w.toWest = simtest.Pair(t, f, nil, nil)
					w.atEast, w.atWest = w.east.Account("a"), w.west.Account("a")
					copyKeys(w, source, dest, at)
				})
			}
		}
	}
}

func copyKeys(w *world, source, dest string, at snapferry.RegionName) {
	t := w.t
	key(t, w.east, w.atEast, "A")
	key(t, w.east, w.atEast, "B")
	to, account := w.west, w.atWest
	if at == "east" {
		to, account = w.east, w.atEast
	}
	one, two := key(t, to, account, "one"), key(t, to, account, "two")
	sealing := control.Sealing{Encrypt: dest != ""}
	if dest == "one" || dest == "two" {
		sealing = control.Sealing{Key: dest}
	}
	d := simtest.NewDisk(size)
	for b := range uint64(40) {
		d.Fill(b*100, int(b)+1)
	}
	first := w.importedAs("disk", d.Clone(size), control.Sealing{Key: source})
	if first.Encrypted != (source != "") {
		t.Fatalf("the source is encrypted: %v", first.Encrypted)
	}
	req := control.CopyRequest{From: "east", Source: first.ID, Sealing: sealing}
	if source != "" && dest == "" {
		_, err := to.Control.Copy(t.Context(), account, req)
		wantKind(t, "a plain copy of what is encrypted", err, snapferry.Invalid)
		if _, err := to.Control.PlanCopy(t.Context(), account, req); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("its plan: got %v, want Invalid", err)
		}
		noPins(t, w.east, first.ID)
		return
	}
	want := map[string]snapferry.KeyID{"one": one.ID, "two": two.ID}[dest]
	type made struct {
		s snapferry.Snapshot
		d *simtest.Disk
	}
	var all []made
	copied := func(what string, from snapferry.Snapshot, d *simtest.Disk, most int64) snapferry.Snapshot {
		t.Helper()
		req.Source = from.ID
		plan, err := to.Control.PlanCopy(t.Context(), account, req)
		if err != nil {
			t.Fatalf("%s: plan: %v", what, err)
		}
		s, err := to.Control.Copy(t.Context(), account, req)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		s = w.settled(to, account, s.ID)
		switch {
		case s.State != snapferry.SnapshotReady || s.Digest != d.Digest():
			t.Fatalf("%s: got %s (%s) %v, want ready %v", what, s.State, s.Reason, s.Digest, d.Digest())
		case s.Encrypted != (dest != "") || s.Encrypted == (s.Key == "") || want != "" && s.Key != want:
			t.Errorf("%s: encrypted is %v with key %s, want %v with %s", what, s.Encrypted, s.Key, dest != "", want)
		case s.Counts.Moved > most:
			t.Errorf("%s: %d bytes moved, at most %d are new", what, s.Counts.Moved, most)
		case plan.MoveBlocks*snapferry.BlockSize > most:
			t.Errorf("%s: the plan says that %d blocks move", what, plan.MoveBlocks)
		}
		t.Logf("%s: the plan moves %d blocks, %d bytes moved; %s, encrypted %v, key %q", what, plan.MoveBlocks, s.Counts.Moved, s.State, s.Encrypted, s.Key)
		all = append(all, made{s, d})
		for _, m := range all {
			got := simtest.NewDisk(m.d.Size())
			if err := to.Control.Export(t.Context(), account, m.s.ID, got, nil); err != nil {
				t.Errorf("%s: export: %v", what, err)
			} else if got.Digest() != m.d.Digest() {
				t.Errorf("%s: a copy reads as %v, want %v", what, got.Digest(), m.d.Digest())
			}
		}
		return s
	}
	next := func(seed int) (snapferry.Snapshot, *simtest.Disk) {
		t.Helper()
		d.Fill(3, seed)
		return w.importedAs("disk", d.Clone(size), control.Sealing{}), d.Clone(size)
	}
	const few = 3 * snapferry.BlockSize // a block, and the nodes above it
	base := copied("first copy", first, d.Clone(size), 41*snapferry.BlockSize+few)
	second, disk := next(1000)
	copied("increment", second, disk, few)
	if err := to.Control.Delete(t.Context(), account, base.ID); err != nil {
		t.Fatal(err)
	}
	gone(t, to, base.ID)
	all = all[1:]
	third, disk := next(1001)
	copied("after the base was deleted", third, disk, few)
	for _, x := range []struct {
		r       *simtest.Region
		account snapferry.AccountID
		key     string
	}{{w.east, w.atEast, source}, {to, account, dest}} {
		if x.key == "" {
			continue
		}
		k, err := x.r.Control.ChangeKey(t.Context(), x.account, x.key, control.KeyRotate)
		if err != nil {
			t.Fatal(err)
		}
		idle(t, x.r, "the end of the rotation", func(tx *meta.Tx) (bool, error) {
			chains, err := tx.ChainsOfKey(k.ID)
			for _, c := range chains {
				if c.Generation != k.Generation {
					return false, err
				}
			}
			return true, err
		})
	}
	fourth, disk := next(1002)
	copied("after rotations", fourth, disk, few)
	if at == "west" && shows(t, w.west, 2) != (dest == "") {
		t.Errorf("content in the clear in west: %v", dest != "")
	}
	if shows(t, w.east, 2) != (source == "") && at != "east" {
		t.Errorf("content in the clear in east: %v", source != "")
	}
	w.check()
}

// TestKeyDisabledMeanwhile disables the keys of a copy while it runs: it waits, and goes
// on when they are enabled.
func TestKeyDisabledMeanwhile(t *testing.T) {
	for _, end := range []string{"source", "destination"} {
		t.Run(end, func(t *testing.T) {
			w := newWorld(t)
			key(t, w.east, w.atEast, "A")
			key(t, w.west, w.atWest, "one")
			d := firstDisk()
			s := w.importedAs("disk", d, control.Sealing{Key: "A"})
			r, account, name := w.east, w.atEast, "A"
			if end == "destination" {
				r, account, name = w.west, w.atWest, "one"
			}
			asked, open := w.shut()
			c := w.copy(control.CopyRequest{Source: s.ID, Sealing: control.Sealing{Key: "one"}})
			<-asked
			if _, err := r.Control.ChangeKey(t.Context(), account, name, control.KeyDisable); err != nil {
				t.Fatal(err)
			}
			close(open)
			idle(t, w.west, "the job that waits", func(tx *meta.Tx) (bool, error) {
				jobs, err := tx.JobsOf(string(c.ID))
				for _, j := range jobs {
					if strings.Contains(j.Error, "disabled") {
						return true, err
					}
				}
				return false, err
			})
			now, err := w.west.Control.Snapshot(t.Context(), w.atWest, c.ID)
			if err != nil || now.State != snapferry.SnapshotCopying {
				t.Fatalf("got %s, %v, want copying", now.State, err)
			}
			if end == "source" {
				err := w.east.Control.Export(t.Context(), w.atEast, s.ID, simtest.NewDisk(d.Size()), nil)
				wantKind(t, "an export", err, snapferry.KeyUnusable)
			}
			if _, err := r.Control.ChangeKey(t.Context(), account, name, control.KeyEnable); err != nil {
				t.Fatal(err)
			}
			w.ready(c.ID, d)
			w.check()
		})
	}
}

// TestKeyDisabledForGood waits for a key that is not enabled again until the patience of the
// copy ends.
func TestKeyDisabledForGood(t *testing.T) {
	w := newWorldWith(t, func(o *simtest.Options) { o.Copies.Patience = time.Nanosecond })
	key(t, w.east, w.atEast, "A")
	d := firstDisk()
	s := w.importedAs("disk", d, control.Sealing{Key: "A"})
	asked, open := w.cutOff()
	c := w.copy(control.CopyRequest{Source: s.ID, Sealing: control.Sealing{Encrypt: true}})
	<-asked
	if _, err := w.east.Control.ChangeKey(t.Context(), w.atEast, "A", control.KeyDisable); err != nil {
		t.Fatal(err)
	}
	close(open)
	if got := w.settled(w.west, w.atWest, c.ID); got.State != snapferry.SnapshotFailed || !strings.Contains(got.Reason, "could not be used for") {
		t.Errorf("got %s (%s), want it failed", got.State, got.Reason)
	}
	w.ended(c.Copy, snapferry.EndedFailed, 0)
	noPins(t, w.east, s.ID)
	if _, err := w.east.Control.ChangeKey(t.Context(), w.atEast, "A", control.KeyEnable); err != nil {
		t.Fatal(err)
	}
	w.check()
}

// TestNoConversion asks for another key of what is there.
func TestNoConversion(t *testing.T) {
	w := newWorld(t)
	key(t, w.east, w.atEast, "A")
	key(t, w.east, w.atEast, "B")
	d := smallDisk()
	w.importedAs("plain", d, control.Sealing{})
	w.importedAs("sealed", d, control.Sealing{Key: "A"})
	for what, req := range map[string]control.ImportRequest{
		"a plain volume is to be encrypted": {Volume: "plain", Sealing: control.Sealing{Encrypt: true}},
		"a plain volume is to have a key":   {Volume: "plain", Sealing: control.Sealing{Key: "A"}},
		"a volume is to have another key":   {Volume: "sealed", Sealing: control.Sealing{Key: "B"}},
	} {
		req.Disk, req.Close = d, func() {}
		_, err := w.east.Control.Import(t.Context(), w.atEast, req)
		wantKind(t, what, err, snapferry.Conflict)
		if snapferry.HintOf(err) == "" {
			t.Errorf("%s: no hint", what)
		}
	}
	_, err := w.east.Control.Import(t.Context(), w.atEast, control.ImportRequest{Volume: "new", Sealing: control.Sealing{Key: "none"}, Disk: d, Close: func() {}})
	wantKind(t, "a key that there is not", err, snapferry.NotFound)
	other := w.east.Account("b")
	_, err = w.east.Control.Import(t.Context(), other, control.ImportRequest{Volume: "new", Sealing: control.Sealing{Key: "A"}, Disk: d, Close: func() {}})
	wantKind(t, "another account's key", err, snapferry.NotFound)
	if s := w.importedAs("sealed", d, control.Sealing{Encrypt: true}); s.Key == "" {
		t.Error("an encrypted volume has a plain snapshot")
	}
}

// TestEncryptByDefault has all that is new encrypted.
func TestEncryptByDefault(t *testing.T) {
	w := newWorld(t)
	one := key(t, w.west, w.atWest, "one")
	d := smallDisk()
	s := w.importedAs("disk", d, control.Sealing{})
	plain := w.copy(control.CopyRequest{Source: s.ID})
	w.ready(plain.ID, d)
	if _, err := w.west.Control.SetEncryptByDefault(t.Context(), w.atWest, true, "one"); err != nil {
		t.Fatal(err)
	}
	c := w.copy(control.CopyRequest{Source: s.ID})
	if got := w.ready(c.ID, d); got.Key != one.ID {
		t.Errorf("the copy has key %q, want %s", got.Key, one.ID)
	}
	k, use, err := w.west.Control.Key(t.Context(), w.atWest, "one")
	if err != nil || k.ID != one.ID || use.Chains != 1 || len(use.Snapshots) != 1 || use.Snapshots[0] != c.ID {
		t.Errorf("the key is used for %+v, %v", use, err)
	}
	if _, err := w.west.Control.ChangeKey(t.Context(), w.atWest, "one", control.KeyDisable); err != nil {
		t.Fatal(err)
	}
	_, err = w.west.Control.Copy(context.Background(), w.atWest, control.CopyRequest{From: "east", Source: s.ID})
	wantKind(t, "a copy with a disabled key", err, snapferry.KeyUnusable)
	noPins(t, w.east, s.ID)
}
