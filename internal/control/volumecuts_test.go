package control_test

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/layer/layertest"
	"github.com/snapferry/snapferry/internal/simtest"
)

// A machine is a region that loses its power as a whole: that of its metadata and
// its bucket, and that of the files of its volumes. It works on its jobs only when
// it was rebooted.
type machine struct {
	*alone
	disk *layertest.Power
	dark atomic.Bool
}

func newMachine(t *testing.T, f *simtest.Factory) *machine {
	t.Helper()
	m := &machine{disk: layertest.New(t)}
	m.alone = &alone{Region: f.NewRegion(t, simtest.Options{Files: m.disk, CacheBytes: 64 << 20}), t: t}
	if err := m.disk.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	m.at = m.Account("a")
	return m
}

// A cut says where the power goes: at the nth operation on the files, or at the
// nth point of simtest.Power, which is done or not.
type cut struct {
	files bool
	n     int
	mode  blobtest.Mode
}

func (m *machine) arm(c cut) {
	at := m.disk.Ops() + c.n
	if !c.files {
		m.Power.CutAt(c.n, c.mode)
	}
	m.disk.Inject(func(op layertest.Op) layertest.Fault {
		if c.files && op.N == at {
			m.turnOff()
		}
		if m.off() {
			return layertest.Fault{Err: syscall.EIO}
		}
		return layertest.Fault{}
	})
}

// off reports whether the power is gone.
func (m *machine) off() bool { return m.dark.Load() || m.Power.Off() }

func (m *machine) turnOff() {
	m.dark.Store(true)
	m.Power.CutAt(0, blobtest.Before)
}

// reboot turns the power off, if it is on, and on again. Of what was not durable
// nothing is left, everything, or some, by turns.
func (m *machine) reboot(c cut) {
	m.t.Helper()
	m.turnOff()
	m.disk = m.disk.Cut([]uint64{0, 6, 4, 1}[c.n%4]) // as in the tests of package head
	m.Reboot(m.disk, true)
	m.dark.Store(false)
}

// everyCut runs something with the power cut at every operation on the files, and
// at every commit and change of the bucket, until run says that it was not.
func everyCut(t *testing.T, run func(t *testing.T, c cut) (was bool)) {
	t.Helper()
	for _, c := range []cut{{files: true}, {mode: blobtest.Before}, {mode: blobtest.After}} {
		for run(t, c) {
			c.n++
			if t.Failed() {
				t.Fatalf("at %+v", c)
			}
		}
		t.Logf("%d cuts like %+v", c.n, c)
		if c.n == 0 {
			t.Errorf("no cut like %+v", c)
		}
	}
}

// put writes the same to a volume and to its disk.
func (l *lively) put(letter byte, off, n int64) {
	l.t.Helper()
	p := bytes.Repeat([]byte{letter}, int(n))
	if _, err := l.open().WriteAt(p, off); err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.disk.WriteAt(p, off); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lively) flush() {
	l.t.Helper()
	if err := l.open().Sync(); err != nil {
		l.t.Fatal(err)
	}
}

// survived wants each sector of a volume to be that of its disk or that of an
// older one, and takes it for what the disk has.
func (l *lively) survived(older *simtest.Disk) {
	l.t.Helper()
	const sector = 512
	got, now, old := make([]byte, l.disk.Size()), make([]byte, l.disk.Size()), make([]byte, l.disk.Size())
	for _, r := range []struct {
		p    []byte
		from interface {
			ReadAt(p []byte, off int64) (int, error)
		}
	}{{got, l.open()}, {now, l.disk}, {old, older}} {
		if _, err := r.from.ReadAt(r.p, 0); err != nil {
			l.t.Fatal(err)
		}
	}
	for at := 0; at < len(got); at += sector {
		if p := got[at : at+sector]; !bytes.Equal(p, now[at:at+sector]) && !bytes.Equal(p, old[at:at+sector]) {
			l.t.Fatalf("volume %s at %d: got %q, want %q or %q", l.id, at, p[:4], now[at:at+4], old[at:at+4])
		}
	}
	if _, err := l.disk.WriteAt(got, 0); err != nil {
		l.t.Fatal(err)
	}
}

// The power goes at every operation of a snapshot of one volume, and of three:
// from the preparation of the first freeze to the transaction that records the
// snapshots. Afterwards all of them are there or none, and none as long as the
// layers were not all durable; every volume has what was flushed; and the next
// snapshot works and has everything.
func TestVolumeSnapshotCuts(t *testing.T) {
	f := simtest.NewFactory(t)
	for _, volumes := range []int{1, 3} {
		t.Run(fmt.Sprint(volumes), func(t *testing.T) {
			t.Parallel()
			everyCut(t, func(t *testing.T, c cut) bool { return snapshotCut(t, f, volumes, c) })
		})
	}
}

func snapshotCut(t *testing.T, f *simtest.Factory, volumes int, c cut) (was bool) {
	t.Helper()
	m := newMachine(t, f)
	defer m.Stop()
	vols, flushed := map[string]*lively{}, map[string]*simtest.Disk{} // by name
	var ids []snapferry.VolumeID
	for i := range volumes {
		name := fmt.Sprint("v", i)
		l := newVolume(t, m.alone, control.VolumeRequest{Size: 64 << 10, Name: name}, uint64(i))
		l.put('a'+byte(i), 0, 20<<10)
		l.flush()
		flushed[name] = l.disk.Clone(l.disk.Size())
		l.put('A'+byte(i), 8<<10, 16<<10)
		l.put('A'+byte(i), 512, 512)
		ids, vols[name] = append(ids, l.id), l
	}
	m.arm(c)
	set, err := m.Control.SnapshotVolumes(t.Context(), m.at, control.VolumeSnapshotRequest{Volumes: ids})
	was = m.off()
	if !was && err != nil {
		t.Fatal(err)
	}
	m.reboot(c)
	all, lerr := m.Control.Snapshots(t.Context(), m.at, control.Filter{})
	if lerr != nil {
		t.Fatal(lerr)
	}
	switch recorded := err == nil || !c.files && c.mode == blobtest.After; {
	case recorded && len(all) != volumes:
		t.Errorf("got %d snapshots, %v, want %d", len(all), err, volumes)
	case !recorded && len(all) != 0:
		t.Errorf("got %d snapshots, want none: %v", len(all), err)
	case err == nil && len(set) != volumes:
		t.Errorf("got %d snapshots in the answer, want %d", len(set), volumes)
	}
	for _, s := range all {
		m.ready(s.ID, vols[s.Volume].disk)
	}
	for name, l := range vols {
		l.survived(flushed[name])
	}
	set, err = m.Control.SnapshotVolumes(t.Context(), m.at, control.VolumeSnapshotRequest{Volumes: ids})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range set {
		m.ready(s.ID, vols[s.Volume].disk)
	}
	return was
}

// The power goes at every operation of a request for a rollback, and of the job
// that carries it out. Afterwards, without help, the volume has what it had or
// what the snapshot has: the latter when the request was answered, and then what
// it had is in the safety snapshot.
func TestRollbackCuts(t *testing.T) {
	f := simtest.NewFactory(t)
	for _, in := range []string{"request", "job"} {
		t.Run(in, func(t *testing.T) {
			t.Parallel()
			everyCut(t, func(t *testing.T, c cut) bool { return rollbackCut(t, f, in == "job", c) })
		})
	}
}

// foreman has the jobs of a machine done; uploads wait for let.
type foreman struct {
	m      *machine
	let    chan struct{}
	rolled chan bool // whether the power went in the rollback
	stop   func()    // waits for its end
}

// hire sets a foreman to work. In a rollback the power goes as c says, or right
// behind it if c is not nil.
func (m *machine) hire(c *cut) *foreman {
	x := &foreman{m: m, let: make(chan struct{}), rolled: make(chan bool, 1)}
	ctx, cancel := context.WithCancel(m.t.Context())
	ended := make(chan struct{})
	region := m.Control
	go func() {
		defer close(ended)
		if err := region.Work(ctx, func(h job.Handler) job.Handler { return x.wrap(h, c) }); err != nil && ctx.Err() == nil {
			m.t.Error(err)
		}
	}()
	x.stop = func() { cancel(); <-ended }
	return x
}

func (x *foreman) wrap(h job.Handler, c *cut) job.Handler {
	return func(ctx context.Context, run *job.Run) error {
		switch {
		case run.Job.Kind == "upload":
			select {
			case <-x.let:
			case <-ctx.Done():
				return ctx.Err()
			}
		case run.Job.Kind == "rollback" && c != nil:
			x.m.arm(*c)
			err := h(ctx, run)
			was := x.m.off()
			x.m.turnOff()
			select {
			case x.rolled <- was:
			default: // it was tried again, without power
			}
			return err
		}
		return h(ctx, run)
	}
}

func rollbackCut(t *testing.T, f *simtest.Factory, inJob bool, c cut) (was bool) {
	t.Helper()
	m := newMachine(t, f)
	defer m.Stop()
	l := newVolume(t, m.alone, control.VolumeRequest{Size: 64 << 10, Name: "data"}, 1)
	l.put('a', 0, 20<<10)
	first, firstDisk := l.snapshot()
	m.reboot(c) // it works from here on
	m.ready(first, firstDisk)
	l.calm(l.id)
	m.Reboot(m.disk, false)
	l.put('b', 8<<10, 24<<10)
	l.put('b', 512, 512)
	l.flush()
	before := l.disk

	in := &c
	if !inJob {
		in = nil
		m.arm(c)
	}
	x := m.hire(in)
	_, err := m.Control.RollbackVolume(t.Context(), m.at, l.id, control.RollbackRequest{Snapshot: first})
	if inJob {
		if err != nil {
			t.Fatal(err)
		}
		close(x.let)
		was = <-x.rolled
	} else if was = m.off(); !was && err != nil {
		t.Fatal(err)
	}
	m.turnOff()
	x.stop()
	m.reboot(c)

	<-m.Control.Started()
	l.open() // else what it held before is released only when somebody does
	l.calm(l.id)
	l.disk = firstDisk.Clone(firstDisk.Size())
	if now := l.now(); err != nil && now.Digest() == before.Digest() {
		l.disk = before.Clone(before.Size())
	}
	l.same()
	safety := m.newest("data")
	switch {
	case safety.ID != first:
		m.ready(safety.ID, before)
	case l.disk.Digest() == firstDisk.Digest():
		t.Error("the volume was put back without a safety snapshot")
	}
	m.ready(first, firstDisk)
	l.put('c', 16<<10, 8<<10)
	l.same()
	last, lastDisk := l.snapshot()
	m.ready(last, lastDisk)
	return was
}

// now is what a volume has.
func (l *lively) now() *simtest.Disk {
	l.t.Helper()
	p, d := make([]byte, l.disk.Size()), simtest.NewDisk(l.disk.Size())
	if _, err := l.open().ReadAt(p, 0); err != nil {
		l.t.Fatal(err)
	}
	if _, err := d.WriteAt(p, 0); err != nil {
		l.t.Fatal(err)
	}
	return d
}
