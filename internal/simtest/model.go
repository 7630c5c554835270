package simtest

import (
	"bytes"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
)

// A snapshot is what the model knows of one.
type snapshot struct {
	site    *site
	account int
	name    string // unique, but for those taken together
	volume  string // name of the lineage
	disk    *Disk  // what is in it
	sum     digest.Digest
	source  *snapshot   // of a copy
	over    *volume     // whose snapshot it is; nil: of none
	set     []*snapshot // taken together

	id      snapferry.SnapshotID // once it was seen
	state   snapferry.SnapshotState
	copy    snapferry.CopyID
	ended   snapferry.CopyState // of the copy, once it is final
	done    int64               // of its progress, the most ever seen
	total   int64               // of its progress; 0: not seen yet
	acked   bool                // the request was answered well
	dropped bool                // its deletion was asked for, and may happen
	gone    bool                // it is deleted, or never came about
	secret  bool                // it is encrypted

	// What had gone wrong when it was asked for.
	calm, overtaken, locked               bool
	troubles, full, flips, reboots, locks int
}

func (s *snapshot) String() string {
	return s.name + "/" + s.volume + " of " + accountNames[s.account] + " in " + string(s.site.Name)
}

func (s *snapshot) at() snapferry.AccountID { return s.site.accounts[s.account] }

// ready reports whether the snapshot was seen to be ready and nobody asked to
// delete it.
func (s *snapshot) ready() bool {
	return s.state == snapferry.SnapshotReady && !s.dropped && !s.gone
}

// making reports whether the snapshot was seen to be under way.
func (s *snapshot) making() bool {
	return s.id != "" && !s.state.Settled() && !s.dropped && !s.gone
}

// expect adds a snapshot to the model whose making is about to be asked for.
func (w *World) expect(s *snapshot) *snapshot {
	s.sum = s.disk.Digest()
	s.calm, s.troubles, s.full, s.flips, s.reboots = !w.trouble, w.troubles, w.full, w.flips, s.site.reboots
	s.locked, s.locks = w.locked, w.locks
	s.overtaken = time.Now().Before(s.site.dying)
	w.snaps = append(w.snaps, s)
	return s
}

// road is that of a copy; nil within a region.
func (s *snapshot) road() *road { return s.site.roads[s.source.site.Name] }

// key is what a snapshot is known by before its id is.
func key(name, volume string) string { return name + "/" + volume }

// observe compares what the regions show with the model.
func (w *World) observe() {
	w.tb.Helper()
	w.judgeExports()
	for _, s := range w.sites {
		if !w.changed(s) {
			continue
		}
		for account := range accountNames {
			w.observeSnapshots(s, account)
			w.observeVolumes(s, account)
		}
	}
}

// changed reports whether a region may show something new.
func (w *World) changed(at *site) bool {
	for _, s := range w.snaps {
		if s.site == at && s.making() {
			return true
		}
	}
	select {
	case <-at.changed:
	default:
		return false
	}
	at.changed = at.DB.Changed()
	return true
}

func (w *World) observeSnapshots(at *site, account int) {
	w.tb.Helper()
	all, err := at.Control.Snapshots(w.ctx, at.accounts[account], control.Filter{})
	if err != nil {
		w.fail("%s: list snapshots: %v", at.Name, err)
		return
	}
	shown := map[string]snapferry.Snapshot{}
	for _, x := range all {
		k := key(x.Name, x.Volume)
		if _, twice := shown[k]; twice {
			w.fail("%s: there are two snapshots %s", at.Name, k)
		}
		shown[k] = x
	}
	for _, s := range w.snaps {
		if s.site != at || s.account != account {
			continue
		}
		k := key(s.name, s.volume)
		if x, ok := shown[k]; ok {
			w.seen(s, x)
		} else {
			w.missing(s)
		}
		delete(shown, k)
	}
	for _, s := range w.snaps {
		if s.site == at && s.account == account && s.source != nil && s.state == snapferry.SnapshotReady {
			w.whole(s)
		}
	}
	for k := range shown {
		w.fail("%s: account %s has a snapshot %s that nobody asked for", at.Name, accountNames[account], k)
	}
}

// whole checks that with one snapshot of a copy of a set all others are ready.
func (w *World) whole(s *snapshot) {
	w.tb.Helper()
	for _, m := range s.set {
		if !m.dropped && !m.gone && m.state != snapferry.SnapshotReady {
			w.fail("%v is ready, and %v is %s", s, m, m.state)
		}
	}
}

// missing is about a snapshot that is not shown.
func (w *World) missing(s *snapshot) {
	w.tb.Helper()
	switch {
	case s.gone:
	case s.dropped:
		s.gone = true
	case s.id != "" || s.acked:
		w.fail("%v, %s, has vanished", s, s.state)
	default:
		for _, other := range s.set {
			if other.id != "" {
				w.fail("%v was taken, and %v was not", other, s)
			}
		}
		s.gone = true
	}
}

// seen is about a snapshot as it is shown.
func (w *World) seen(s *snapshot, x snapferry.Snapshot) {
	w.tb.Helper()
	switch {
	case s.gone && x.State != snapferry.SnapshotDeleting:
		w.fail("%v was deleted, or never made, and is %s", s, x.State)
	case s.gone:
		return
	case s.id != "" && s.id != x.ID:
		w.fail("%v has become %s, it was %s", s, x.ID, s.id)
	case x.Account != s.at() || x.Size != s.disk.Size():
		w.fail("%v: got account %s and %d bytes, want %s and %d", s, x.Account, x.Size, s.at(), s.disk.Size())
	case s.state != "" && s.state.Settled() && x.State != s.state && !(s.dropped && x.State == snapferry.SnapshotDeleting):
		w.fail("%v was %s, and is %s", s, s.state, x.State)
	}
	s.id, s.copy, s.secret = x.ID, x.Copy, x.Encrypted
	if x.Progress != nil {
		w.progress(s, *x.Progress)
	}
	was := s.state
	s.state = x.State
	switch {
	case was == x.State:
	case x.State == snapferry.SnapshotReady:
		w.log("%v is ready", s)
		w.becameReady(s, x)
	case x.State == snapferry.SnapshotFailed:
		w.log("%v has failed: %s", s, x.Reason)
		w.excuse(s, x)
	}
	if s.copy != "" {
		w.observeCopy(s)
	}
}

// progress checks that a snapshot's progress goes on.
func (w *World) progress(s *snapshot, p snapferry.Progress) {
	w.tb.Helper()
	if p.Done < s.done || p.Done > p.Total || s.total != 0 && p.Total != s.total {
		w.fail("%v: progress was %d of %d, and is %d of %d", s, s.done, s.total, p.Done, p.Total)
	}
	if s.source != nil && p.Total > 0 && p.Done == p.Total {
		w.fail("%v: progress is %d of %d before the commit", s, p.Done, p.Total)
	}
	s.done, s.total = p.Done, p.Total
}

// observeCopy checks that what is final stays.
func (w *World) observeCopy(s *snapshot) {
	w.tb.Helper()
	c, err := s.site.Control.CopyOf(w.ctx, s.at(), s.copy)
	switch {
	case err != nil:
		w.fail("%v: %v", s, err)
	case s.ended != "" && c.State != s.ended:
		w.fail("%v: the copy was %s, and is %s", s, s.ended, c.State)
	case c.State.Terminal():
		s.ended = c.State
	}
}

// becameReady checks a snapshot that has just become ready.
func (w *World) becameReady(s *snapshot, x snapferry.Snapshot) {
	w.tb.Helper()
	if x.Digest != s.sum {
		w.fail("%v: got digest %v, want %v", s, x.Digest, s.sum)
	}
	if x.Encrypted != (x.Key != "") || s.source != nil && s.source.secret && !x.Encrypted {
		w.fail("%v: encrypted is %v, with key %q, and of its source %v", s, x.Encrypted, x.Key, s.source != nil && s.source.secret)
	}
	if s.source == nil {
		return
	}
	var usage []meta.Usage
	var pin string
	s.site.View(func(tx *meta.Tx) (err error) {
		if usage, err = tx.Usage(string(s.id)); err != nil {
			return err
		}
		c, err := tx.Copy(x.Copy)
		for _, m := range c.Members {
			if m.Snapshot == s.id {
				pin = m.Pin
			}
		}
		return err
	})
	var bytes int64
	records := 0
	for _, u := range usage {
		if u.Kind == "received" {
			bytes += u.Bytes
			records++
		}
	}
	r := s.road()
	if r == nil {
		return
	}
	moved := r.arrived(pin)
	quiet := s.calm && s.troubles == w.troubles
	if records > 1 || bytes != x.Counts.Moved || bytes > moved || quiet && bytes != moved {
		w.fail("%v: metered %d bytes in %d records, its counts say %d, and %d arrived", s, bytes, records, x.Counts.Moved, moved)
	}
	if x.Counts.Present != x.Counts.Changed+x.Counts.Reused {
		w.fail("%v: of %d bytes present %d changed and %d were reused", s, x.Counts.Present, x.Counts.Changed, x.Counts.Reused)
	}
}

// excuse checks that a snapshot may have failed.
func (w *World) excuse(s *snapshot, x snapferry.Snapshot) {
	w.tb.Helper()
	kind := snapferry.ParseKind(prefix(x.Reason))
	rebooted := s.site.reboots > s.reboots || s.site.dark || s.overtaken
	switch {
	case kind == snapferry.Full && (w.full > s.full || !s.calm && w.full > 0):
	case kind == snapferry.Corrupt && (w.flips > s.flips || !s.calm && w.flips > 0):
	case kind == snapferry.KeyUnusable && s.source == nil && (s.locked || w.locks > s.locks):
	case s.source == nil && s.over == nil && (rebooted || !s.acked): // its disk is lost
	case s.source == nil && s.over == nil && kind == snapferry.Unavailable && (!s.calm || w.troubles > s.troubles):
	case s.over != nil && (s.over.broken || s.over.adrift()):
	default:
		w.fail("%v failed without a cause: %s", s, x.Reason)
	}
}

func prefix(reason string) string {
	for i := range reason {
		if reason[i] == ':' {
			return reason[:i]
		}
	}
	return reason
}

// A volume is what the model knows of a live volume.
type volume struct {
	site    *site
	account int
	name    string
	disk    *Disk     // what it reads as, but for unsure
	base    *snapshot // what it was made from; may be nil

	id      snapferry.VolumeID
	state   snapferry.VolumeState
	acked   bool
	dropped bool
	gone    bool
	broken  bool // it is in error, because of its base

	// Contents that a sector may have: after a cut of the power, and, of one that
	// is unsure, at once. The disk's is one more.
	maybe  map[int64][][]byte
	unsure map[int64]bool
}

func (v *volume) String() string {
	return v.name + " of " + accountNames[v.account] + " in " + string(v.site.Name)
}

func (v *volume) at() snapferry.AccountID { return v.site.accounts[v.account] }

// usable reports whether the volume was seen to be there to be used.
func (v *volume) usable() bool { return v.state == snapferry.VolumeAvailable && !v.dropped && !v.gone }

// adrift reports whether what the volume was made from, a copy, has ended badly.
func (v *volume) adrift() bool {
	return v.base != nil && v.base.source != nil && (v.base.state == snapferry.SnapshotFailed || v.base.ended == snapferry.CopyFailed)
}

// crashed makes unsure what was written since the last sync.
func (v *volume) crashed() {
	for i := range v.maybe {
		v.unsure[i] = true
	}
}

// wrote notes a write of whole sectors; one that failed may have come as far as it
// liked.
func (v *volume) wrote(p []byte, off int64, err error) {
	for i := int64(0); i < int64(len(p)); i += snapferry.SectorSize {
		sector := (off + i) / snapferry.SectorSize
		old := make([]byte, snapferry.SectorSize)
		v.disk.get(old, off+i)
		if err != nil {
			v.unsure[sector] = true
			v.maybe[sector] = append(v.maybe[sector], old, p[i:i+snapferry.SectorSize])
			continue
		}
		delete(v.unsure, sector)
		v.maybe[sector] = append(v.maybe[sector], old)
		v.disk.put(p[i:i+snapferry.SectorSize], off+i)
	}
}

// synced notes that all is durable.
func (v *volume) synced() {
	for i := range v.maybe {
		if !v.unsure[i] {
			delete(v.maybe, i)
		}
	}
}

// check compares what was read with the model, which learns what was unsure. It
// returns the first sector that is wrong, or -1.
func (v *volume) check(p []byte, off int64) int64 {
	all := make([]byte, len(p))
	v.disk.get(all, off)
	if len(v.unsure) == 0 && bytes.Equal(p, all) {
		return -1
	}
	for i := int64(0); i < int64(len(p)); i += snapferry.SectorSize {
		sector := (off + i) / snapferry.SectorSize
		got, want := p[i:i+snapferry.SectorSize], all[i:i+snapferry.SectorSize]
		if bytes.Equal(got, want) {
			delete(v.unsure, sector)
			continue
		}
		known := false
		for _, m := range v.maybe[sector] {
			known = known || bytes.Equal(got, m)
		}
		if !known || !v.unsure[sector] {
			return sector
		}
		delete(v.unsure, sector)
		v.maybe[sector] = append(v.maybe[sector], want)
		v.disk.put(got, off+i)
	}
	return -1
}

func (w *World) observeVolumes(at *site, account int) {
	w.tb.Helper()
	all, err := at.Control.Volumes(w.ctx, at.accounts[account], "")
	if err != nil {
		w.fail("%s: list volumes: %v", at.Name, err)
		return
	}
	shown := map[string]snapferry.Volume{}
	for _, x := range all {
		shown[x.Name] = x
	}
	for _, v := range w.vols {
		if v.site != at || v.account != account {
			continue
		}
		x, ok := shown[v.name]
		switch {
		case !ok && !v.dropped && !v.gone && (v.id != "" || v.acked):
			w.fail("volume %v has vanished", v)
		case !ok:
			v.gone = true
		case v.gone && x.State != snapferry.VolumeDeleting:
			w.fail("volume %v was deleted, or never made, and is %s", v, x.State)
		default:
			v.id, v.state = x.ID, x.State
			w.observeState(v, x)
		}
	}
}

func (w *World) observeState(v *volume, x snapferry.Volume) {
	w.tb.Helper()
	switch {
	case x.State != snapferry.VolumeError || v.broken:
	case v.adrift():
		w.log("volume %v is in error: %s", v, x.Reason)
		v.broken = true
	case w.full > 0 && snapferry.ParseKind(prefix(x.Reason)) == snapferry.Full || w.trouble || w.locked:
		w.log("volume %v could not be made: %s", v, x.Reason)
		v.broken = true
	default:
		w.fail("volume %v is in error: %s", v, x.Reason)
	}
}
