package vault_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
)

// names lists the bucket.
func names(t testing.TB, r *simtest.Region) (all []string) {
	t.Helper()
	err := r.Bucket.List(context.Background(), "", "", func(i blob.Info) error {
		all = append(all, i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (h *holed) sweep(t testing.TB) vault.SweepStats {
	t.Helper()
	st, err := h.Vault.Sweep(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (h *holed) stopped() (why string) {
	h.View(func(tx *meta.Tx) (err error) {
		why, err = tx.ReclaimStopped()
		return err
	})
	return why
}

func TestSweep(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	h.sweep(t)
	litter(t, h.Region, h.ids[0])
	st := h.sweep(t)
	if st.Objects != 4 || st.Segments != 2 || st.Checks != 1 || st.Records != 11 {
		t.Errorf("got %+v, want 4 objects, 2 segments, 11 records, 1 check", st)
	}
	for _, name := range names(t, h.Region) {
		if strings.HasPrefix(name, simtest.LitterPrefix) || strings.HasPrefix(name, "check/") {
			t.Errorf("%s is left", name)
		}
	}
	if again := h.sweep(t); again.Objects+again.Segments+again.Records+again.Checks > 0 {
		t.Errorf("again: %+v", again)
	}
	h.want(t, simtest.NoGarbage)
}

// TestSweepKeepsRecords: of each version the committed record stays, those
// above it, and two below.
func TestSweepKeepsRecords(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	litter(t, h.Region, h.ids[0])
	h.sweep(t)
	var v meta.Version
	h.View(func(tx *meta.Tx) (err error) {
		v, err = tx.Version(h.ids[0])
		return err
	})
	var got []uint64
	for _, name := range names(t, h.Region) {
		if id, n, err := record.ParseName(name); err == nil && id == v.ID {
			got = append(got, n)
		}
	}
	if len(got) != 3 || got[2] != v.Revision || got[0] != v.Revision-2 {
		t.Errorf("got revisions %v, want the last three to %d", got, v.Revision)
	}
}

// TestSweepRaces does something while a sweep lists, before and after, and while
// it has listed and not yet asked. Nothing that is needed may go.
func TestSweepRaces(t *testing.T) {
	t.Parallel()
	store := func(h *holed, t *testing.T) {
		last := h.ids[len(h.ids)-1]
		d := h.disks[last].Clone(h.disks[last].Size()).Fill(3, 777).Fill(600, 779)
		id, _, err := h.Store(h.vol, last, d)
		if err != nil {
			t.Fatal(err)
		}
		h.ids, h.disks[id] = append(h.ids, id), d
	}
	for name, do := range map[string]func(h *holed, t *testing.T){
		"import": store,
		"checkpoint": func(h *holed, t *testing.T) {
			last := h.ids[len(h.ids)-1]
			id, w := open(t, h.Region, h.vol, last, h.disks[last].Size())
			putLeaf(t, w, 0, map[int]int{0: 5})
			if err := w.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				// What the sweep left must do for the rest of the work.
				defer w.Close()
				if _, err := w.Seal(context.Background(), vault.SealConfig{Hold: simtest.Hold(id)}); err != nil {
					t.Errorf("seal: %v", err)
				}
				if _, err := h.Read(id); err != nil {
					t.Errorf("read: %v", err)
				}
			})
		},
		"abort": func(h *holed, t *testing.T) {
			last := h.ids[len(h.ids)-1]
			id, w := open(t, h.Region, h.vol, last, h.disks[last].Size())
			putLeaf(t, w, 0, map[int]int{0: 5})
			if err := w.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if err := h.Vault.Abort(context.Background(), id, nil); err != nil {
				t.Fatal(err)
			}
		},
		"delete": func(h *holed, t *testing.T) {
			h.delete(t, h.ids[0])
			h.ids = h.ids[1:]
		},
		"compact": func(h *holed, t *testing.T) {
			if _, err := h.compact(h.Vault); err != nil {
				t.Fatal(err)
			}
		},
		"compact and reclaim": func(h *holed, t *testing.T) {
			if _, err := h.compact(h.Vault); err != nil {
				t.Fatal(err)
			}
			h.reclaim(t)
		},
		"compact half": func(h *holed, t *testing.T) {
			// The job runs: what it has put and not committed is not garbage.
			job := meta.Job{ID: "job-compact", Kind: "compact", State: snapferry.JobRunning, Owner: "east/1", Token: 7, Created: time.Now()}
			h.Update(func(tx *meta.Tx) error { return tx.InsertJob(job) })
			h.driver.once(blobtest.Put, vault.ObjectPrefix, true, func() error {
				_, err := h.Vault.Sweep(context.Background(), nil)
				return err
			})
			st, err := h.Vault.Compact(context.Background(), h.vol.Chain, vault.CompactConfig{Job: job.ID, Token: job.Token})
			if err != nil || st.ObjectsOut != 1 || st.GivenUp != 0 {
				t.Errorf("%+v, %v", st, err)
			}
		},
		"zombie": func(h *holed, t *testing.T) {
			// The job does not run: its object goes, and it cannot commit it.
			h.driver.once(blobtest.Put, vault.ObjectPrefix, true, func() error {
				_, err := h.Vault.Sweep(context.Background(), nil)
				return err
			})
			st, err := h.Vault.Compact(context.Background(), h.vol.Chain, vault.CompactConfig{Job: "job-none", Token: 1})
			if err != nil || st.GivenUp != 1 {
				t.Errorf("%+v, %v", st, err)
			}
		},
		"sweep": func(h *holed, t *testing.T) { h.sweep(t) },
	} {
		for _, prefix := range []string{vault.ObjectPrefix, record.Prefix()} {
			for _, after := range []bool{false, true} {
				when := map[bool]string{false: " before ", true: " after "}[after]
				t.Run(name+when+prefix, func(t *testing.T) {
					t.Parallel()
					h := newHoled(t, simtest.Options{})
					litter(t, h.Region, h.ids[0])
					h.driver.once(blobtest.List, prefix, after, func() error { do(h, t); return nil })
					h.sweep(t)
					if why := h.stopped(); why != "" {
						t.Errorf("it stopped: %s", why)
					}
					h.sweep(t) // what was given up meanwhile
					h.want(t, simtest.NoGarbage)
				})
			}
		}
	}
}

// TestUnknownRecord: a record that the metadata does not know stops all that
// deletes, and nothing goes.
func TestUnknownRecord(t *testing.T) {
	t.Parallel()
	for name, forge := range map[string]func(h *holed) string{
		"version":  func(*holed) string { return record.Name(snapferry.NewVersionID(), 1) },
		"revision": func(h *holed) string { return record.Name(h.ids[0], 99) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHoled(t, simtest.Options{})
			if err := h.Vault.CheckRecords(t.Context()); err != nil {
				t.Fatal(err)
			}
			litter(t, h.Region, h.ids[0])
			unknown := forge(h)
			if err := h.Bucket.Put(t.Context(), unknown, []byte("from a later time")); err != nil {
				t.Fatal(err)
			}
			before := names(t, h.Region)
			if st, err := h.Vault.Sweep(t.Context(), nil); !snapferry.IsKind(err, snapferry.Conflict) || st.Objects+st.Records+st.Checks > 0 {
				t.Errorf("got %+v, %v, want Conflict and nothing removed", st, err)
			}
			if why := h.stopped(); !strings.Contains(why, unknown) || !strings.Contains(why, "snapferry recover --merge") {
				t.Errorf("stopped for %q, want the record and the remedy", why)
			}
			if _, err := h.Vault.Sweep(t.Context(), nil); !snapferry.IsKind(err, snapferry.Conflict) {
				t.Errorf("again: got %v, want Conflict", err)
			}
			if err := h.Vault.CheckRecords(t.Context()); !snapferry.IsKind(err, snapferry.Conflict) {
				t.Errorf("check: got %v, want Conflict", err)
			}
			if _, err := h.Vault.Reclaim(t.Context(), time.Now().Add(time.Hour), nil); !snapferry.IsKind(err, snapferry.Conflict) {
				t.Errorf("reclaim: got %v, want Conflict", err)
			}
			if after := names(t, h.Region); len(after) != len(before) {
				t.Errorf("%d of %d names are left", len(after), len(before))
			}
		})
	}
}

// TestSweepUnderOldMetadata brings back the metadata from before a compaction:
// no version record tells, but the merged object is all there is.
func TestSweepUnderOldMetadata(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "meta.db")
	h := newHoled(t, simtest.Options{DB: path})
	h.Stop()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h.Restart()
	if _, err := h.compact(h.Vault); err != nil {
		t.Fatal(err)
	}
	h.reclaim(t)
	h.Stop()
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Restart()
	before := names(t, h.Region)
	if st, err := h.Vault.Sweep(t.Context(), nil); !snapferry.IsKind(err, snapferry.Conflict) || st.Objects > 0 {
		t.Errorf("got %+v, %v, want Conflict and nothing removed", st, err)
	}
	if h.stopped() == "" {
		t.Error("it did not stop")
	}
	if after := names(t, h.Region); len(after) != len(before) {
		t.Errorf("%d of %d names are left", len(after), len(before))
	}
	h.Stop()
	if err := os.WriteFile(path, now, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Restart()
	h.want(t, simtest.NoGarbage)
}

// TestSweepLeavesUnreadable: what nobody registered and nobody can read may be
// anything.
func TestSweepLeavesUnreadable(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	if err := h.Bucket.Put(t.Context(), "objects/00junk", []byte("no object")); err != nil {
		t.Fatal(err)
	}
	if st := h.sweep(t); len(st.Left) != 1 || st.Left[0] != "objects/00junk" || st.Objects != 0 {
		t.Errorf("got %+v", st)
	}
	if err := h.Bucket.Delete(t.Context(), "objects/00junk"); err != nil {
		t.Fatal(err)
	}
	h.want(t, simtest.NoGarbage)
}

// TestSweepRefused: a bucket that does not delete fails the sweep, which can be
// done again.
func TestSweepRefused(t *testing.T) {
	t.Parallel()
	h := newHoled(t, simtest.Options{})
	litter(t, h.Region, h.ids[0])
	h.driver.always(blobtest.Delete, "", func() error { return snapferry.Errorf(snapferry.Unavailable, "not now") })
	if _, err := h.Vault.Sweep(t.Context(), nil); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("got %v, want Unavailable", err)
	}
	h.driver.forget()
	h.sweep(t)
	h.want(t, simtest.NoGarbage)
}

// TestSweepReleasesReaders: a reader's hold that could not be released when it
// ended does not stay until the next start.
func TestSweepReleasesReaders(t *testing.T) {
	t.Parallel()
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		h := newHoled(t, simtest.Options{})
		holds := func() (all []meta.Hold) {
			h.View(func(tx *meta.Tx) (err error) {
				all, err = tx.HoldsOfKind(vault.HoldReader)
				return err
			})
			return all
		}
		release, err := h.Vault.Reading(t.Context(), h.ids[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		h.Power.FailAt(0, mode)
		release()
		if !h.Power.Restore() {
			t.Fatal("the release did not fail")
		}
		if n := len(holds()); mode == blobtest.Before && n != 1 {
			t.Fatalf("got %d readers, want the one whose release failed", n)
		}
		h.sweep(t)
		if n := len(holds()); n != 0 {
			t.Errorf("%v: got %d readers after a sweep, want none", mode, n)
		}
		h.want(t, simtest.NoGarbage)
	}
}
