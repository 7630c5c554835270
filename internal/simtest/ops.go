package simtest

import (
	"context"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// An operation of a world, and how often it is drawn.
type operation struct {
	weight int
	do     func(*World)
}

// operations are what may happen in a step.
var operations = []operation{
	{13, (*World).importDisk},
	{22, (*World).copySnapshot},
	{8, (*World).copySet},
	{7, (*World).deleteSome},
	{5, (*World).cancel},
	{2, (*World).deleteMany},
	{4, (*World).fork},
	{6, (*World).createVolume},
	{14, (*World).write},
	{9, (*World).snapshotVolumes},
	{7, (*World).read},
	{2, (*World).deleteVolume},
	{1, (*World).hydrate},
	{5, (*World).export},
	{2, (*World).compact},
	{1, (*World).sweepOne},
	{1, (*World).trespass},
	{6, (*World).race},
	{20, (*World).fault},
	{8, (*World).mend},
	{4, (*World).pauseLong},
}

// step lets some time pass and does one random thing.
func (w *World) step() {
	w.tb.Helper()
	w.pause()
	w.turnKey()
	for _, s := range w.sites {
		if again := w.rnd.IntN(3) == 0; again && s.Power.Off() {
			w.reboot(s)
			w.started(s)
		}
	}
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	n := w.rnd.IntN(total)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			o.do(w)
			return
		}
	}
}

func (w *World) pauseLong() { time.Sleep(time.Duration(1+w.rnd.IntN(5)) * time.Minute) }

// drawSnapshot draws a snapshot that fits, or returns nil.
func (w *World) drawSnapshot(fits func(*snapshot) bool) *snapshot {
	var all []*snapshot
	for _, s := range w.snaps {
		if fits(s) {
			all = append(all, s)
		}
	}
	n := w.rnd.IntN(1 << 30)
	if len(all) == 0 {
		return nil
	}
	return all[n%len(all)]
}

// drawVolume draws a volume that can be used, or returns nil.
func (w *World) drawVolume() *volume {
	var all []*volume
	for _, v := range w.vols {
		if v.usable() {
			all = append(all, v)
		}
	}
	n := w.rnd.IntN(1 << 30)
	if len(all) == 0 {
		return nil
	}
	return all[n%len(all)]
}

// worldSizes are those of new disks; they end within a block, and within a leaf.
var worldSizes = []int64{1 << 20, 17<<20 + 512, 34<<20 + 4096, 3 << 20}

// worldBlocks are the blocks that are written: few, so that they are written again.
var worldBlocks = []uint64{0, 1, 2, 5, 15, 47, 255, 256, 257, 300, 272, 511, 512, 543}

// change draws the next content of a disk: few contents, so that blocks go from A
// to B and back to A.
func (w *World) change(d *Disk) *Disk {
	d = d.Clone(d.Size())
	for range 1 + w.rnd.IntN(6) {
		b, seed := worldBlocks[w.rnd.IntN(len(worldBlocks))], w.rnd.IntN(7)
		if int64(b)*snapferry.BlockSize < d.Size() {
			d.Fill(b, seed)
		}
	}
	return d
}

// slowDisk takes time to be read.
type slowDisk struct {
	*Disk
	delay time.Duration
}

func (d slowDisk) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(d.delay)
	return d.Disk.ReadAt(p, off)
}

func (w *World) importDisk() {
	w.tb.Helper()
	at, account := w.site(), w.rnd.IntN(worldAccounts)
	lineage := []string{"disk0", "disk1", "disk2"}[w.rnd.IntN(3)]
	k := string(at.Name) + key(accountNames[account], lineage)
	disk := w.disks[k]
	var sealing control.Sealing
	if disk == nil {
		sealing = w.sealing(false)
	}
	if size := worldSizes[w.rnd.IntN(len(worldSizes))]; disk == nil {
		disk = NewDisk(size)
	}
	disk = w.change(disk)
	w.disks[k] = disk
	delay := []time.Duration{0, 0, 100 * time.Millisecond, 3 * time.Second}[w.rnd.IntN(4)]
	s := w.expect(&snapshot{site: at, account: account, name: w.name("import"), volume: lineage, disk: disk})
	w.log("import %v, %v a read", s, delay)
	_, err := at.Control.Import(w.ctx, s.at(), control.ImportRequest{
		Volume: lineage, Labels: control.Labels{Name: s.name}, Sealing: sealing, Disk: slowDisk{disk, delay}, Close: func() {},
	})
	s.acked = err == nil
	w.judge("import", err)
}

func (w *World) copySnapshot() {
	w.tb.Helper()
	to, same := w.site(), w.rnd.IntN(8) == 0
	source := w.drawSnapshot(func(s *snapshot) bool { return s.ready() && (s.site == to) == same })
	full, token := w.rnd.IntN(8) == 0, w.rnd.IntN(3) == 0
	if source == nil {
		w.importDisk()
		return
	}
	s := w.expect(&snapshot{site: to, account: source.account, name: w.name("copy"), volume: source.volume, disk: source.disk, source: source})
	q := control.CopyRequest{From: source.site.Name, Source: source.id, Labels: control.Labels{Name: s.name}, Full: full, Sealing: w.sealing(source.secret)}
	if token {
		q.Token = s.name
	}
	w.log("copy %v as %v, full %v", source, s, full)
	x, err := to.Control.Copy(w.ctx, s.at(), q)
	if token {
		y, err2 := to.Control.Copy(w.ctx, s.at(), q)
		if err == nil && err2 == nil && x.ID != y.ID {
			w.fail("copy of %v: asked for again it is %s, it was %s", source, y.ID, x.ID)
		}
		if err2 == nil {
			err = nil
		}
	}
	s.acked = err == nil
	w.judge("copy", err)
}

// copySet copies the snapshots of several volumes that were taken at one moment.
func (w *World) copySet() {
	w.tb.Helper()
	to, same := w.site(), w.rnd.IntN(8) == 0
	first := w.drawSnapshot(func(s *snapshot) bool {
		return (s.site == to) == same && s.source == nil && len(s.set) > 1 && !slices.ContainsFunc(s.set, func(m *snapshot) bool { return !m.ready() })
	})
	full, token := w.rnd.IntN(8) == 0, w.rnd.IntN(3) == 0
	if first == nil {
		w.snapshotVolumes()
		return
	}
	shown, err := first.site.Control.Snapshot(w.ctx, first.at(), first.id)
	if err != nil || shown.SetSize != len(first.set) {
		w.judge("look at "+first.String(), err)
		if err == nil {
			w.fail("%v: set %q of %d, want %d", first, shown.Set, shown.SetSize, len(first.set))
		}
		return
	}
	var whole []*snapshot
	name := w.name("set")
	for _, m := range first.set {
		whole = append(whole, w.expect(&snapshot{site: to, account: m.account, name: name, volume: m.volume, disk: m.disk, source: m}))
	}
	q := control.CopyRequest{From: first.site.Name, Set: shown.Set, Labels: control.Labels{Name: name}, Full: full}
	q.Sealing = w.sealing(slices.ContainsFunc(first.set, func(m *snapshot) bool { return m.secret }))
	if token {
		q.Token = name
	}
	w.log("copy set %s, that of %v, as %s, full %v", shown.Set, first, name, full)
	x, err := to.Control.CopySet(w.ctx, whole[0].at(), q)
	if token {
		y, err2 := to.Control.CopySet(w.ctx, whole[0].at(), q)
		if err == nil && err2 == nil && x.ID != y.ID {
			w.fail("copy of set %s: asked for again it is %s, it was %s", shown.Set, y.ID, x.ID)
		}
		if err2 == nil {
			err = nil
		}
	}
	for _, s := range whole {
		s.set, s.acked = whole, err == nil
	}
	w.judge("copy set", err)
}

// remove asks for the deletion of a snapshot.
func (w *World) remove(s *snapshot) {
	w.tb.Helper()
	w.log("delete %v, %s", s, s.state)
	if s.source != nil && s.making() {
		for _, m := range s.set {
			m.dropped = true // with it, unless all are ready by now
		}
	}
	err := s.site.Control.Delete(w.ctx, s.at(), s.id)
	switch {
	case err == nil:
		s.dropped, s.gone = true, true
	case snapferry.IsKind(err, snapferry.Conflict) && !s.state.Settled():
		w.log("%v", err) // a volume reads it, or it has become ready just now
	case snapferry.IsKind(err, snapferry.NotFound) && s.dropped:
		s.gone = true
	default:
		s.dropped = true
		w.judge("delete", err)
	}
}

func (w *World) deleteSome() {
	w.tb.Helper()
	if s := w.drawSnapshot(func(s *snapshot) bool { return s.id != "" && !s.gone }); s != nil {
		w.remove(s)
	}
}

// cancel deletes what is under way.
func (w *World) cancel() {
	w.tb.Helper()
	if s := w.drawSnapshot((*snapshot).making); s != nil {
		w.remove(s)
	}
}

// deleteMany deletes all snapshots of a lineage but the last.
func (w *World) deleteMany() {
	w.tb.Helper()
	last := w.drawSnapshot((*snapshot).ready)
	if last == nil {
		return
	}
	var all []*snapshot
	for _, s := range w.snaps {
		if s.site == last.site && s.account == last.account && s.volume == last.volume && s.id != "" && !s.gone {
			all = append(all, s)
		}
	}
	for _, s := range all[:len(all)-1] {
		w.remove(s)
	}
}

func (w *World) fork() {
	w.tb.Helper()
	source := w.drawSnapshot((*snapshot).ready)
	if source == nil {
		return
	}
	s := w.expect(&snapshot{site: source.site, account: source.account, name: w.name("fork"), volume: w.name("lineage"), disk: source.disk})
	w.disks[string(s.site.Name)+key(accountNames[s.account], s.volume)] = s.disk
	w.log("fork %v as %v", source, s)
	_, err := s.site.Control.Fork(w.ctx, s.at(), control.ForkRequest{Source: source.id, Volume: s.volume, Labels: control.Labels{Name: s.name}})
	s.acked = err == nil
	w.judge("fork", err)
}

// createVolume makes a volume of nothing, of a snapshot, or of one being copied.
func (w *World) createVolume() {
	w.tb.Helper()
	at, account, size := w.site(), w.rnd.IntN(worldAccounts), worldSizes[w.rnd.IntN(len(worldSizes))]
	v := &volume{site: at, account: account, name: w.name("volume"), disk: NewDisk(size), maybe: map[int64][][]byte{}, unsure: map[int64]bool{}}
	q := control.VolumeRequest{Name: v.name, Size: size}
	early := w.rnd.IntN(2) == 0
	if w.rnd.IntN(4) > 0 {
		v.base = w.drawSnapshot(func(s *snapshot) bool { return early && s.making() && s.source != nil || !early && s.ready() })
	}
	if b := v.base; b != nil {
		v.site, v.account, v.disk = b.site, b.account, b.disk.Clone(b.disk.Size())
		q.Snapshot, q.Size = b.id, 0
	} else {
		q.Sealing = w.sealing(false)
	}
	if v.site.files == nil {
		return
	}
	w.log("create volume %v of %v", v, v.base)
	_, err := v.site.Control.CreateVolumes(w.ctx, v.at(), q)
	v.acked = err == nil
	w.vols = append(w.vols, v)
	if v.base != nil && !v.base.state.Settled() {
		w.judge("create volume", err, snapferry.Conflict, snapferry.NotFound) // the copy fails just now
	} else {
		w.judge("create volume", err)
	}
}

// mayNotRead are the kinds of errors with which a volume may not be read or
// written now.
func (w *World) mayNotRead(v *volume) (ks []snapferry.Kind) {
	if v.base != nil && v.base.state != snapferry.SnapshotReady {
		// Its copy fails, or ends and is deleted, and the next look tells.
		ks = append(ks, snapferry.Conflict, snapferry.NotFound, snapferry.Cancelled)
	}
	if !v.site.dark && !w.trouble {
		return ks
	}
	return append(ks, snapferry.Unavailable)
}

func (w *World) write() {
	w.tb.Helper()
	v := w.drawVolume()
	if v == nil {
		w.createVolume()
		return
	}
	w.log("write to %v", v)
	h, err := v.site.Control.Live(w.ctx, v.id)
	if err != nil {
		w.judge("open "+v.String(), err, w.mayNotRead(v)...)
		return
	}
	for range 1 + w.rnd.IntN(6) {
		p, off, how := w.drawWrite(v.disk.Size())
		switch how {
		case 0:
			err = h.Zero(off, int64(len(p)), w.rnd.IntN(2) == 0)
		case 1:
			err = h.Trim(off, int64(len(p)))
		default:
			_, err = h.WriteAt(p, off)
		}
		v.wrote(p, off, err)
		w.judge("write to "+v.String(), err, w.mayNotRead(v)...)
	}
	if w.rnd.IntN(2) == 0 {
		if err = h.Sync(); err == nil {
			v.synced()
		}
		w.judge("sync "+v.String(), err)
	}
}

// drawWrite draws bytes, their place on a disk, and how they get there: 0 and 1 are
// zeros, in whole pages for 1.
func (w *World) drawWrite(size int64) (p []byte, off int64, how int) {
	how = w.rnd.IntN(6)
	block, content := worldBlocks[w.rnd.IntN(len(worldBlocks))], w.rnd.IntN(7)
	p = Content(content)
	from, n := w.rnd.IntN(128), 1+w.rnd.IntN(20)
	if how >= 3 {
		from, n = min(from, 127), min(n, 128-from)
		p = p[from*snapferry.SectorSize:][:n*snapferry.SectorSize]
	} else {
		from = 0
	}
	if off = int64(block)*snapferry.BlockSize + int64(from)*snapferry.SectorSize; off+int64(len(p)) > size {
		off, p = 0, p[:min(int64(len(p)), size)]
	}
	if how < 2 {
		clear(p)
	}
	if how == 1 && len(p)%4096 != 0 {
		how = 0
	}
	return p, off, how
}

// settleVolume reads what is unsure of a volume; ok is false when that cannot be.
func (w *World) settleVolume(v *volume) (ok bool) {
	w.tb.Helper()
	if len(v.unsure) == 0 {
		return true
	}
	h, err := v.site.Control.Live(w.ctx, v.id)
	if err != nil {
		w.judge("open "+v.String(), err, w.mayNotRead(v)...)
		return false
	}
	var sectors []int64
	for i := range v.unsure {
		sectors = append(sectors, i)
	}
	slices.Sort(sectors)
	p := make([]byte, snapferry.SectorSize)
	for _, i := range sectors {
		off := i * snapferry.SectorSize
		if _, err := h.ReadAt(p, off); err != nil {
			w.judge("read "+v.String(), err, w.mayNotRead(v)...)
			return false
		}
		if v.check(p, off) >= 0 {
			w.fail("volume %v has what it never had in sector %d", v, i)
		}
	}
	return true
}

// read reads a part of a volume.
func (w *World) read() {
	w.tb.Helper()
	v := w.drawVolume()
	if v == nil {
		return
	}
	w.log("read %v", v)
	h, err := v.site.Control.Live(w.ctx, v.id)
	if err != nil {
		w.judge("open "+v.String(), err, w.mayNotRead(v)...)
		return
	}
	for range 1 + w.rnd.IntN(4) {
		off := int64(worldBlocks[w.rnd.IntN(len(worldBlocks))]) * snapferry.BlockSize
		p := make([]byte, 1+w.rnd.IntN(3*snapferry.BlockSize/snapferry.SectorSize)*snapferry.SectorSize)
		if off >= v.disk.Size() {
			off = 0
		}
		p = p[:min(int64(len(p)), v.disk.Size()-off)/snapferry.SectorSize*snapferry.SectorSize]
		if _, err := h.ReadAt(p, off); err != nil {
			w.judge("read "+v.String(), err, w.mayNotRead(v)...)
		} else if at := v.check(p, off); at >= 0 {
			w.fail("volume %v has wrong bytes in sector %d", v, at)
		}
	}
}

// snapshotVolumes takes a snapshot of a volume, or of several of an account.
func (w *World) snapshotVolumes() {
	w.tb.Helper()
	first := w.drawVolume()
	n := 1 + w.rnd.IntN(3)
	if first == nil {
		w.createVolume()
		return
	}
	vols := []*volume{first}
	for _, v := range w.vols {
		if len(vols) < n && v != first && v.usable() && v.site == first.site && v.account == first.account {
			vols = append(vols, v)
		}
	}
	q := control.VolumeSnapshotRequest{Labels: control.Labels{Name: w.name("live")}}
	var may []snapferry.Kind
	for _, v := range vols {
		if !w.settleVolume(v) {
			return
		}
		q.Volumes = append(q.Volumes, v.id)
		may = append(may, w.mayNotRead(v)...)
	}
	var set []*snapshot
	for _, v := range vols {
		set = append(set, w.expect(&snapshot{site: v.site, account: v.account, name: q.Name, volume: v.name, disk: v.disk.Clone(v.disk.Size()), over: v}))
	}
	w.log("snapshot %s of %v", q.Name, vols)
	_, err := first.site.Control.SnapshotVolumes(w.ctx, first.at(), q)
	for _, s := range set {
		s.set, s.acked = set, err == nil
		if err == nil {
			s.over.synced()
		}
	}
	w.judge("snapshot volumes", err, append(may, snapferry.Full)...) // Full: too many are under way
}

func (w *World) deleteVolume() {
	w.tb.Helper()
	v := w.drawVolume()
	if v == nil {
		return
	}
	w.removeVolume(v)
}

func (w *World) removeVolume(v *volume) {
	w.tb.Helper()
	w.log("delete volume %v", v)
	v.dropped = true
	err := v.site.Control.DeleteVolume(w.ctx, v.at(), v.id)
	v.gone = err == nil
	w.judge("delete volume "+v.String(), err)
}

func (w *World) hydrate() {
	w.tb.Helper()
	v := w.drawVolume()
	if v == nil {
		return
	}
	w.log("hydrate %v", v)
	_, err := v.site.Control.HydrateVolume(w.ctx, v.at(), v.id, int64(w.rnd.IntN(2))*(1<<20))
	w.judge("hydrate", err, w.mayNotRead(v)...)
}

// slowTarget takes time to be written.
type slowTarget struct {
	*Disk
	ctx   context.Context
	delay time.Duration
}

func (d slowTarget) WriteAt(p []byte, off int64) (int, error) {
	select {
	case <-time.After(d.delay):
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
	return d.Disk.WriteAt(p, off)
}

// export reads a whole snapshot beside all else. It may be deleted meanwhile.
func (w *World) export() {
	w.tb.Helper()
	s := w.drawSnapshot((*snapshot).ready)
	delay := []time.Duration{0, time.Second, 20 * time.Second}[w.rnd.IntN(3)]
	if s == nil {
		return
	}
	w.log("export %v", s)
	r, e := s.site.Control, exported{s: s, got: NewDisk(s.disk.Size()), calm: !w.trouble && !w.locked, reboots: s.site.reboots, troubles: w.troubles + w.locks}
	w.reading.Go(func() {
		e.err = r.Export(w.ctx, s.at(), s.id, slowTarget{e.got, w.ctx, delay}, nil)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.exports = append(w.exports, e)
	})
	synctest.Wait() // it reads by now, whatever is deleted next
}

// exported is an export that has ended, and how the world was when it began.
type exported struct {
	s                 *snapshot
	got               *Disk
	err               error
	calm              bool
	reboots, troubles int
}

// judgeExports looks at the exports that have ended.
func (w *World) judgeExports() {
	w.tb.Helper()
	w.mu.Lock()
	all := w.exports
	w.exports = nil
	w.mu.Unlock()
	for _, e := range all {
		s := e.s
		switch {
		case e.err != nil && (s.site.reboots > e.reboots || !e.calm || w.troubles+w.locks > e.troubles):
		case e.err != nil:
			w.fail("export %v: %v", s, e.err)
		case e.got.Digest() != s.sum:
			w.fail("%v was exported as %v, want %v", s, e.got.Digest(), s.sum)
		}
	}
}

// compact compacts a chain beside the region's own jobs.
func (w *World) compact() {
	w.tb.Helper()
	s := w.site()
	n := w.rnd.IntN(1 << 30)
	w.log("compact in %s", s.Name)
	var chains []meta.Chain
	s.View(func(tx *meta.Tx) (err error) { chains, err = tx.Chains(); return err })
	if len(chains) == 0 {
		return
	}
	_, err := s.Vault.Compact(w.ctx, chains[n%len(chains)].ID, vault.CompactConfig{})
	w.judge("compact", err)
}

func (w *World) sweepOne() {
	w.tb.Helper()
	s := w.site()
	w.log("sweep %s", s.Name)
	err := s.DB.Update(w.ctx, func(tx *meta.Tx) error {
		return job.Enqueue(tx, job.Job{Kind: "sweep", Subject: "region", Lane: job.Upkeep})
	})
	w.judge("sweep", err)
}

// trespass asks for what belongs to another account.
func (w *World) trespass() {
	w.tb.Helper()
	s := w.drawSnapshot((*snapshot).ready)
	if s == nil {
		return
	}
	w.log("trespass on %v", s)
	other := s.site.accounts[(s.account+1)%worldAccounts]
	if err := s.site.Control.Delete(w.ctx, other, s.id); !snapferry.IsKind(err, snapferry.NotFound) {
		w.fail("%v deleted by another account: got %v, want not found", s, err)
	}
	_, err := s.site.Control.Fork(w.ctx, other, control.ForkRequest{Source: s.id, Volume: "stolen"})
	if !snapferry.IsKind(err, snapferry.NotFound) {
		w.fail("%v forked by another account: got %v, want not found", s, err)
	}
	for _, to := range w.sites {
		_, err := to.Control.Copy(w.ctx, to.accounts[(s.account+1)%worldAccounts], control.CopyRequest{From: s.site.Name, Source: s.id})
		if !snapferry.IsKind(err, snapferry.NotFound) && !(w.trouble && snapferry.IsKind(err, snapferry.Unavailable)) {
			w.fail("%v copied by another account: got %v, want not found", s, err)
		}
	}
}

// race asks for several things of one snapshot at once, one of which is mostly its
// deletion: that wins over those that come after it.
func (w *World) race() {
	w.tb.Helper()
	s, to, deletes := w.drawSnapshot((*snapshot).ready), w.site(), w.rnd.IntN(4) > 0
	if s == nil {
		return
	}
	w.log("race for %v, deleted %v", s, deletes)
	copied := w.expect(&snapshot{site: to, account: s.account, name: w.name("copy"), volume: s.volume, disk: s.disk, source: s})
	forked := w.expect(&snapshot{site: s.site, account: s.account, name: w.name("fork"), volume: w.name("lineage"), disk: s.disk})
	v := &volume{
		site: s.site, account: s.account, name: w.name("volume"), base: s, disk: s.disk.Clone(s.disk.Size()),
		maybe: map[int64][][]byte{}, unsure: map[int64]bool{},
	}
	if s.site.files != nil {
		w.vols = append(w.vols, v)
	}
	sealing := w.sealing(s.secret)
	var all sync.WaitGroup
	var errs [4]error
	all.Go(func() {
		if deletes {
			errs[0] = s.site.Control.Delete(w.ctx, s.at(), s.id)
		}
	})
	all.Go(func() {
		_, errs[1] = to.Control.Copy(w.ctx, copied.at(), control.CopyRequest{From: s.site.Name, Source: s.id, Labels: control.Labels{Name: copied.name}, Sealing: sealing})
	})
	all.Go(func() {
		_, errs[2] = s.site.Control.Fork(w.ctx, s.at(), control.ForkRequest{Source: s.id, Volume: forked.volume, Labels: control.Labels{Name: forked.name}})
	})
	all.Go(func() {
		if s.site.files != nil {
			_, errs[3] = s.site.Control.CreateVolumes(w.ctx, s.at(), control.VolumeRequest{Name: v.name, Snapshot: s.id})
		}
	})
	all.Wait()
	if deletes {
		s.dropped, s.gone = true, errs[0] == nil
	}
	copied.acked, forked.acked, v.acked = errs[1] == nil, errs[2] == nil, errs[3] == nil
	w.judge("delete in a race", errs[0])
	for _, err := range errs[1:] {
		if deletes {
			w.judge("race with a deletion", err, snapferry.NotFound, snapferry.Conflict)
		} else {
			w.judge("race", err)
		}
	}
}
