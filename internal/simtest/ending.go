package simtest

import (
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/meta"
)

// verify reads everything, and proves the accounts of each region.
func (w *World) verify() {
	w.tb.Helper()
	w.log("verify")
	for _, v := range w.vols {
		if v.usable() {
			w.verifyVolume(v)
		}
	}
	for _, s := range w.snaps {
		switch {
		case s.gone:
		case !s.state.Settled():
			w.fail("%v is still %s", s, s.state)
		case s.state == snapferry.SnapshotReady:
			w.sameBytes(s)
		}
	}
	w.sweep()
	for _, s := range w.sites {
		s.Check(w.tb, NoGarbage)
		w.checkOwners(s)
		s.View(func(tx *meta.Tx) error {
			copies, err := tx.ActiveCopies()
			if err != nil {
				return err
			}
			for _, c := range copies {
				w.fail("%s: copy %s is left, reserved", s.Name, c.ID)
			}
			pins, err := tx.AllPins()
			for _, p := range pins {
				w.fail("%s: pin %s of %s is left", s.Name, p.ID, p.Region)
			}
			return err
		})
	}
}

// sameBytes exports a snapshot and compares it with the model.
func (w *World) sameBytes(s *snapshot) {
	w.tb.Helper()
	got := NewDisk(s.disk.Size())
	if err := s.site.Control.Export(w.ctx, s.at(), s.id, got, nil); err != nil {
		w.fail("export %v: %v", s, err)
	} else if n := got.Differs(s.disk) + s.disk.Differs(got); n > 0 {
		w.fail("%v differs from its disk in %d blocks", s, n)
	}
}

// verifyVolume reads all that a volume has.
func (w *World) verifyVolume(v *volume) {
	w.tb.Helper()
	h, err := v.site.Control.Live(w.ctx, v.id)
	if err != nil {
		w.fail("open %v: %v", v, err)
		return
	}
	p := make([]byte, 4<<20)
	for off := int64(0); off < v.disk.Size(); off += int64(len(p)) {
		p = p[:min(int64(len(p)), v.disk.Size()-off)]
		if _, err := h.ReadAt(p, off); err != nil {
			w.fail("read %v: %v", v, err)
			return
		}
		if at := v.check(p, off); at >= 0 {
			w.fail("volume %v has wrong bytes in sector %d", v, at)
			return
		}
	}
}

// checkOwners fails the test when a chain has versions of an account that is not
// its own.
func (w *World) checkOwners(s *site) {
	w.tb.Helper()
	s.View(func(tx *meta.Tx) error {
		versions, err := tx.AllVersions()
		if err != nil {
			return err
		}
		for _, v := range versions {
			vol, err := tx.Volume(v.Volume)
			if err != nil {
				return err
			}
			chain, err := tx.Chain(v.Chain)
			if err != nil {
				return err
			}
			s.CheckChain(w.tb, chain)
			snaps, err := tx.SnapshotsOfVersion(v.ID)
			if err != nil {
				return err
			}
			for _, x := range snaps {
				if x.Account != chain.Account {
					w.fail("%s: snapshot %s of account %s is in a chain of %s", s.Name, x.ID, x.Account, chain.Account)
				}
			}
			if vol.Account != chain.Account {
				w.fail("%s: volume %s of account %s is in a chain of %s", s.Name, vol.ID, vol.Account, chain.Account)
			}
		}
		return nil
	})
}

// rot damages a byte of what a region stores: its check must say so, and nobody
// may be given wrong bytes.
func (w *World) rot() {
	w.tb.Helper()
	s, n, at := w.site(), w.rnd.IntN(1<<30), w.rnd.Int64()
	var all []meta.Object
	s.View(func(tx *meta.Tx) error {
		return tx.AllObjects(func(o meta.Object) error {
			if o.State == meta.ObjectLive {
				all = append(all, o)
			}
			return nil
		})
	})
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b meta.Object) int { return int(a.Size - b.Size) })
	o := all[n%len(all)]
	w.log("byte %d of object %s of %s is damaged", at%o.Size, o.Name, s.Name)
	s.Faulty.FlipByte(o.Name, at%o.Size)
	report, err := fsck.Run(w.ctx, fsck.Config{
		DB: s.DB, Bucket: s.Bucket, Vault: s.Another(), Region: s.Name, SignPublic: s.PublicKey(), Deep: true, Keys: s.Keys,
	})
	if err != nil || report.Clean {
		w.fail("%s: byte %d of object %s is damaged, and the check finds nothing: %v", s.Name, at%o.Size, o.Name, err)
	}
	for _, x := range w.snaps {
		if x.site != s || !x.ready() {
			continue
		}
		got := NewDisk(x.disk.Size())
		if err := s.Control.Export(w.ctx, x.at(), x.id, got, nil); err == nil && got.Digest() != x.sum {
			w.fail("%v was exported with wrong bytes", x)
		}
	}
	s.Faulty.Heal(o.Name)
}

// clear deletes everything and wants nothing left.
func (w *World) clear() {
	w.tb.Helper()
	w.log("delete everything")
	if w.keys != nil && w.seed%2 == 0 {
		w.lock()
	}
	for _, v := range w.vols {
		if v.id != "" && !v.gone {
			w.removeVolume(v)
		}
	}
	w.rnd.Shuffle(len(w.snaps), func(i, j int) { w.snaps[i], w.snaps[j] = w.snaps[j], w.snaps[i] })
	for _, s := range w.snaps {
		if s.id != "" && !s.gone {
			w.remove(s)
		}
	}
	w.settle()
	w.observe()
	w.sweep()
	for _, s := range w.sites {
		s.WantNothing(w.tb)
		s.WantEmpty(w.tb)
	}
}
