package vault_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// A scene is what a crash test starts from: a version and an open child of it,
// and what they hold.
type scene struct {
	*simtest.Region
	vol           meta.Volume
	parent, child snapferry.VersionID
	base, next    *simtest.Disk
}

func newScene(t *testing.T, f *simtest.Factory) *scene {
	t.Helper()
	s := &scene{Region: f.NewRegion(t, simtest.Options{})}
	s.vol = s.Volume(s.Account("a"), "disk")
	s.base = simtest.NewDisk(41<<20+512).Fill(0, 1).Fill(2, 2).Fill(300, 3).Fill(640, 5)
	s.next = s.base.Clone(41<<20+512).Fill(2, 0).Fill(300, 7).Fill(640, 9)
	var err error
	if s.parent, _, err = s.Store(s.vol, snapferry.VersionID{}, s.base); err != nil {
		t.Fatal(err)
	}
	if s.child, err = s.Attach(s.vol, s.parent, s.next.Size()); err != nil {
		t.Fatal(err)
	}
	return s
}

// state returns the child's state, "" when it is gone.
func (s *scene) state() (state snapferry.VersionState) {
	s.View(func(tx *meta.Tx) error {
		v, err := tx.Version(s.child)
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil
		}
		state = v.State
		return err
	})
	return state
}

// everywhere runs op once with the power cut, and once with a single failure,
// before and after each put, delete and commit it makes, each time on a new
// scene, and then verify, which is told what op said.
func everywhere(t *testing.T, prepare func(*testing.T, *scene), op func(*scene) error, verify func(*testing.T, *scene, error)) {
	f := simtest.NewFactory(t)
	for _, once := range []bool{false, true} {
		for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
			for n, hit := 0, true; hit; n++ {
				what := "cut"
				if once {
					what = "fail"
				}
				t.Run(fmt.Sprintf("%s %s %d", what, mode, n), func(t *testing.T) {
					s := newScene(t, f)
					prepare(t, s)
					if once {
						s.Power.FailAt(n, mode)
					} else {
						s.Power.CutAt(n, mode)
					}
					err := op(s)
					hit = s.Power.Restore()
					if !hit && err != nil {
						t.Fatalf("without a fault: %v", err)
					}
					if !once {
						s.Restart()
					}
					verify(t, s, err)
					s.WantContent(t, s.parent, s.base)
				})
				if n > 100 {
					t.Fatal("it never ends")
				}
			}
		}
	}
}

func nothing(*testing.T, *scene) {}

func TestCrashInImport(t *testing.T) {
	everywhere(t, nothing, func(s *scene) error {
		_, err := s.FillVersion(s.child, s.next)
		return err
	}, func(t *testing.T, s *scene, err error) {
		switch state := s.state(); {
		case state == snapferry.VersionSealed:
			s.WantContent(t, s.child, s.next)
		case err == nil:
			t.Errorf("it succeeded and the version is %q", state)
		default:
			if err := s.Vault.Abort(t.Context(), s.child, nil); err != nil {
				t.Errorf("abort: %v", err)
			}
			if got := s.state(); got != "" {
				t.Errorf("aborted version is %s", got)
			}
		}
		s.Check(t, simtest.NoGarbage)
	})
}

func TestCrashInAbort(t *testing.T) {
	everywhere(t, func(t *testing.T, s *scene) {
		w := reopen(t, s.Region, s.child)
		defer w.Close()
		putLeaf(t, w, 0, map[int]int{0: 11})
		if err := w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		putLeaf(t, w, 1, map[int]int{0: 13})
		if err := w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}, func(s *scene) error {
		return s.Vault.Abort(context.Background(), s.child, nil)
	}, func(t *testing.T, s *scene, err error) {
		if s.state() != "" {
			// Who goes on instead of aborting again must not build on what is gone.
			w := reopen(t, s.Region, s.child)
			putLeaf(t, w, 0, map[int]int{0: 1})
			if err := s.Vault.Export(t.Context(), w.Base(), simtest.NewDisk(s.next.Size()), nil); err != nil {
				t.Errorf("what a resumed run starts from: %v", err)
			}
			w.Close()
		}
		if err := s.Vault.Abort(t.Context(), s.child, nil); err != nil {
			t.Errorf("abort again: %v", err)
		}
		if got := s.state(); got != "" {
			t.Errorf("aborted version is %s", got)
		}
		s.Check(t, simtest.NoGarbage)
	})
}

// fill is the work of a copy: it fills what an earlier run did not finish, with
// a checkpoint after each leaf, and seals.
func fill(s *scene) error {
	ctx := context.Background()
	w, err := s.Vault.Write(ctx, s.child, vault.WriteConfig{Checkpoints: true})
	if err != nil {
		return err
	}
	defer w.Close()
	for leaf, seeds := range []map[int]int{{0: 1}, {300 - 256: 7}, {640 - 512: 9}} {
		if w.Finished(uint64(leaf)) {
			continue
		}
		k, err := w.Ticket(uint64(leaf))
		if err != nil {
			return err
		}
		if err := fillTicket(w, k, seeds); err != nil {
			return err
		}
		if err := w.Checkpoint(ctx); err != nil {
			return err
		}
	}
	_, err = w.Seal(ctx, vault.SealConfig{Hold: simtest.Hold(s.child), Want: s.next.Digest()})
	return err
}

func TestCrashInCopy(t *testing.T) {
	everywhere(t, nothing, fill, func(t *testing.T, s *scene, err error) {
		if state := s.state(); err == nil && state != snapferry.VersionSealed {
			t.Errorf("it succeeded and the version is %q", state)
		} else if state == snapferry.VersionOpen {
			if err := fill(s); err != nil {
				t.Errorf("another run: %v", err)
			}
		}
		s.WantContent(t, s.child, s.next)
		s.Check(t, simtest.MayGarbage)
	})
}

func TestCrashInCopyThenAbort(t *testing.T) {
	everywhere(t, nothing, fill, func(t *testing.T, s *scene, err error) {
		if s.state() == snapferry.VersionOpen {
			if err := s.Vault.Abort(t.Context(), s.child, nil); err != nil {
				t.Errorf("abort: %v", err)
			}
		}
		s.Check(t, simtest.NoGarbage)
	})
}

// TestCrashInHolds changes holds: whatever happens, the version lives as long
// as it has one, and its newest record that was committed says so.
func TestCrashInHolds(t *testing.T) {
	hold := func(s *scene, owner string) meta.Hold {
		h := simtest.Hold(s.parent)
		h.Owner = owner
		return h
	}
	for name, op := range map[string]func(*scene) error{
		"hold":    func(s *scene) error { return s.Vault.Hold(context.Background(), hold(s, "pin-more"), nil) },
		"release": func(s *scene) error { return s.Vault.Release(context.Background(), hold(s, "pin-test"), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, s *scene) {
				if err := s.Vault.Abort(t.Context(), s.child, nil); err != nil {
					t.Fatal(err)
				}
			}, op, func(t *testing.T, s *scene, err error) {
				var v meta.Version
				var holds []meta.Hold
				s.View(func(tx *meta.Tx) (err error) {
					if v, err = tx.Version(s.parent); err != nil {
						return err
					}
					holds, err = tx.Holds(s.parent)
					return err
				})
				if (v.State == snapferry.VersionGhost) != (len(holds) == 0) {
					t.Errorf("version is %s with %d holds", v.State, len(holds))
				}
				s.Check(t, simtest.NoGarbage)
				if err := op(s); err != nil && v.State != snapferry.VersionGhost {
					t.Errorf("again: %v", err)
				}
				s.Check(t, simtest.NoGarbage)
			})
		})
	}
}
