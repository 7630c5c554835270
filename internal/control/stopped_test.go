//go:build linux

package control_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/dirblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// pause is how long the processes of TestStoppedWorkers sleep.
var pause = flag.Duration("pause", 200*time.Millisecond, "how long TestStoppedWorkers stops a process")

// workerVariable makes this program a worker of TestStoppedWorkers.
const workerVariable = "SNAPFERRY_TEST_WORKER"

func TestMain(m *testing.M) {
	order := os.Getenv(workerVariable)
	if order == "" {
		os.Exit(m.Run())
	}
	if err := stoppedWorker(order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// bucketServer gives other processes a bucket that one alone may open, as an S3
// store does. What was asked is done, whatever becomes of who asked.
type bucketServer struct{ d blob.Driver }

// BucketCall is a request, and BucketReply what comes back.
type (
	BucketCall struct {
		Name, After string
		Body        []byte
		Offset      int64
		Length      int
	}
	BucketReply struct {
		Kind  snapferry.Kind
		Error string // empty: none
		Body  []byte
		Size  int64
		Infos []blob.Info
	}
)

func (r *BucketReply) fail(err error) error {
	if err != nil && !errors.Is(err, io.EOF) {
		r.Kind, r.Error = snapferry.KindOf(err), err.Error()
	}
	return nil
}

func (s bucketServer) Put(c BucketCall, r *BucketReply) error {
	return r.fail(s.d.Put(context.Background(), c.Name, c.Body))
}

func (s bucketServer) Delete(c BucketCall, r *BucketReply) error {
	return r.fail(s.d.Delete(context.Background(), c.Name))
}

func (s bucketServer) Size(c BucketCall, r *BucketReply) (err error) {
	r.Size, err = s.d.Size(context.Background(), c.Name)
	return r.fail(err)
}

func (s bucketServer) ReadAt(c BucketCall, r *BucketReply) error {
	p := make([]byte, c.Length)
	n, err := s.d.ReadAt(context.Background(), c.Name, p, c.Offset)
	r.Body = p[:n]
	return r.fail(err)
}

func (s bucketServer) List(c BucketCall, r *BucketReply) error {
	return r.fail(s.d.List(context.Background(), c.Name, c.After, func(i blob.Info) error {
		r.Infos = append(r.Infos, i)
		return nil
	}))
}

// serveBucket serves a bucket at a socket until the test ends.
func serveBucket(t *testing.T, d blob.Driver, socket string) {
	t.Helper()
	s := rpc.NewServer()
	if err := s.RegisterName("Bucket", bucketServer{d}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.ServeConn(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
}

// stopper is the bucket of a worker that stops itself at its nth change of the
// bucket: before it is asked for, or when it was answered.
type stopper struct {
	c     *rpc.Client
	at    int64
	after bool
	n     atomic.Int64
	slept atomic.Bool
}

func (s *stopper) call(method string, c BucketCall) (r BucketReply, err error) {
	if err := s.c.Call("Bucket."+method, c, &r); err != nil {
		return r, snapferry.Errorf(snapferry.Unavailable, "the bucket's process: %w", err)
	}
	if r.Error != "" {
		return r, snapferry.Errorf(r.Kind, "%s", r.Error)
	}
	return r, nil
}

func (s *stopper) change(method string, c BucketCall) error {
	now := s.n.Add(1)-1 == s.at
	if now && !s.after {
		s.stop()
	}
	_, err := s.call(method, c)
	if now && s.after {
		s.stop()
	}
	return err
}

// stop stops this process until another one wakes it. It goes on when it is
// told to, so that it does not matter how soon the signal acts.
func (s *stopper) stop() {
	s.slept.Store(true)
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGSTOP); err != nil {
		panic(err)
	}
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		os.Exit(3) // nobody waits for us any more
	}
}

// Put implements blob.Driver.
func (s *stopper) Put(_ context.Context, name string, body []byte) error {
	return s.change("Put", BucketCall{Name: name, Body: body})
}

// Delete implements blob.Driver.
func (s *stopper) Delete(_ context.Context, name string) error {
	return s.change("Delete", BucketCall{Name: name})
}

// ReadAt implements blob.Driver.
func (s *stopper) ReadAt(_ context.Context, name string, p []byte, off int64) (int, error) {
	r, err := s.call("ReadAt", BucketCall{Name: name, Offset: off, Length: len(p)})
	return copy(p, r.Body), err
}

// Size implements blob.Driver.
func (s *stopper) Size(_ context.Context, name string) (int64, error) {
	r, err := s.call("Size", BucketCall{Name: name})
	return r.Size, err
}

// List implements blob.Driver.
func (s *stopper) List(_ context.Context, prefix, after string, fn func(blob.Info) error) error {
	r, err := s.call("List", BucketCall{Name: prefix, After: after})
	for _, i := range r.Infos {
		if err == nil {
			err = fn(i)
		}
	}
	return err
}

// A stopOrder is what a worker is told.
type stopOrder struct {
	DB, Socket string
	Scene      string
	Account    snapferry.AccountID
	IDs        []snapferry.SnapshotID
	At         int64 // the change of the bucket at which it stops; less than 0: none
	After      bool
	Lease      time.Duration
}

// stoppedWorker is a process that has part in a region's work.
func stoppedWorker(text string) error {
	var o stopOrder
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c, err := rpc.Dial("unix", o.Socket)
	if err != nil {
		return err
	}
	db, err := meta.Open(ctx, meta.Config{Path: o.DB})
	if err != nil {
		return err
	}
	defer db.Close()
	var region meta.Region
	err = db.View(ctx, func(tx *meta.Tx) (err error) { region, err = tx.Region(); return err })
	if err != nil {
		return err
	}
	driver := &stopper{c: c, at: o.At, after: o.After}
	bucket := blob.New(driver)
	v, err := vault.New(vault.Config{Bucket: bucket, DB: db, Region: region.Name, Sign: region.SignKey})
	if err != nil {
		return err
	}
	jobs := job.New(db, job.Config{Owner: "worker/1", Lease: o.Lease, Poll: 20 * time.Millisecond})
	r := control.New(control.Config{Name: region.Name, DB: db, Bucket: bucket, Vault: v, Jobs: jobs, Version: "test", ReclaimGrace: -1})
	var busy atomic.Int64 // handlers that run
	worked := make(chan error, 1)
	go func() {
		worked <- r.Work(ctx, func(h job.Handler) job.Handler {
			return func(ctx context.Context, run *job.Run) error {
				busy.Add(1)
				defer busy.Add(-1)
				return h(ctx, run)
			}
		})
	}()
	err = stopSceneOf(o.Scene).do(ctx, r, db, o.Account, o.IDs, func() error { return restHere(ctx, db, &busy) })
	if e := restHere(ctx, db, &busy); err == nil {
		err = e
	}
	cancel()
	if e := <-worked; err == nil {
		err = e
	}
	fmt.Println(driver.n.Load())
	if driver.slept.Load() {
		return nil // whatever it was told then
	}
	return err
}

// allEnded reports whether no job but a sweep to come is left.
func allEnded(tx *meta.Tx) (bool, error) {
	for _, lane := range []int{job.Work, job.Copies} {
		work, err := tx.JobsOfLane(lane, 0)
		if err != nil || len(work) > 0 {
			return false, err
		}
	}
	return upkeepEnded(tx)
}

// stopPatience is long: many processes may share the machine.
const stopPatience = 5 * time.Minute

// restHere waits until this process and its region have nothing to do.
func restHere(ctx context.Context, db *meta.DB, busy *atomic.Int64) error {
	end := time.NewTimer(stopPatience)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ended := false
		err := db.View(ctx, func(tx *meta.Tx) (err error) { ended, err = allEnded(tx); return err })
		if err != nil || ended && busy.Load() == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-end.C:
			return fmt.Errorf("the region did not come to rest in %v", stopPatience)
		}
	}
}

// A stopScene is what a worker is stopped in.
type stopScene struct {
	name      string
	snapshots int   // that are there, each on the one before
	imports   bool  // one more snapshot
	forks     bool  // the first
	deletes   []int // one after the other
	sweeps    bool  // what was strewn about
	others    []int // what is deleted while it sleeps
}

var stopScenes = []stopScene{
	{name: "import", snapshots: 2, imports: true},
	{name: "import while its parent goes", snapshots: 2, imports: true, others: []int{1}},
	{name: "fork and delete", snapshots: 2, forks: true, deletes: []int{0}},
	{name: "delete", snapshots: 3, deletes: []int{1, 0}},
	{name: "delete while others do", snapshots: 4, deletes: []int{1}, others: []int{2, 0}},
	{name: "delete all", snapshots: 3, deletes: []int{2, 0, 1}},
	{name: "sweep", snapshots: 2, sweeps: true},
	{name: "sweep while others delete", snapshots: 3, sweeps: true, others: []int{1, 0}},
}

func stopSceneOf(name string) stopScene {
	for _, s := range stopScenes {
		if s.name == name {
			return s
		}
	}
	return stopScene{}
}

// stopDisk is the disk of a scene's nth snapshot: each has blocks that no other
// one has, so that objects become hollow and are written again.
func stopDisk(n int) *simtest.Disk {
	const small = 40 << 20
	d := simtest.NewDisk(small).Fill(0, 1).Fill(1, 2).Fill(300, 3).Fill(600, 4)
	for i := range n {
		d.Fill(1, 12+10*i).Fill(uint64(301+i), 13+10*i).Fill(602, 15+10*i)
	}
	return d
}

// do does what the scene is about, in whatever process, and waits for the end
// of each part.
func (s stopScene) do(ctx context.Context, r *control.Region, db *meta.DB, at snapferry.AccountID, ids []snapferry.SnapshotID, rest func() error) error {
	var parts []func() error
	if s.imports {
		parts = append(parts, func() error {
			x, err := r.Import(ctx, at, control.ImportRequest{Volume: "disk", Disk: stopDisk(s.snapshots), Close: func() {}})
			return await(ctx, r, at, x, err)
		})
	}
	if s.forks {
		parts = append(parts, func() error {
			x, err := r.Fork(ctx, at, control.ForkRequest{Source: ids[0], Volume: "fork"})
			if snapferry.IsKind(err, snapferry.Exists) {
				return nil // the other one has come so far
			}
			return await(ctx, r, at, x, err)
		})
	}
	for _, i := range s.deletes {
		parts = append(parts, func() error {
			if err := r.Delete(ctx, at, ids[i]); !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
			return nil
		})
	}
	if s.sweeps {
		parts = append(parts, func() error {
			return db.Update(ctx, func(tx *meta.Tx) error {
				return job.Enqueue(tx, job.Job{Kind: "sweep", Subject: "region", Lane: job.Upkeep})
			})
		})
	}
	for _, part := range parts {
		if err := part(); err != nil {
			return err
		}
		if err := rest(); err != nil {
			return err
		}
	}
	return nil
}

func sweepNow(tx *meta.Tx) error {
	return job.Enqueue(tx, job.Job{Kind: "sweep", Subject: "region", Lane: job.Upkeep})
}

func await(ctx context.Context, r *control.Region, at snapferry.AccountID, s snapferry.Snapshot, err error) error {
	if err == nil {
		s, err = r.Wait(ctx, at, s.ID, -1, stopPatience)
	}
	if err == nil && s.State != snapferry.SnapshotReady {
		err = fmt.Errorf("snapshot %s is %s: %s", s.ID, s.State, s.Reason)
	}
	return err
}

// A stopTry is a scene in which a worker stops at one point.
type stopTry struct {
	*alone
	scene stopScene
	dir   string
	ids   []snapferry.SnapshotID
	lease time.Duration
}

func newStopTry(t *testing.T, f *simtest.Factory, s stopScene) *stopTry {
	t.Helper()
	x := &stopTry{scene: s, dir: t.TempDir(), lease: min(*pause/2, 15*time.Second)}
	d, err := dirblob.Open(t.Context(), filepath.Join(x.dir, "bucket"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r := f.NewRegion(t, simtest.Options{Jobs: true, Driver: d, DB: filepath.Join(x.dir, "meta.db"), Lease: x.lease})
	x.alone = &alone{Region: r, t: t}
	x.at = x.Account("a")
	for i := range s.snapshots {
		x.ids = append(x.ids, x.imported("disk", stopDisk(i)).ID)
	}
	x.settle()
	if s.sweeps {
		x.litter()
	}
	return x
}

// settle waits until nothing is left to do but a sweep to come.
func (x *stopTry) settle() {
	x.t.Helper()
	if err := restHere(x.t.Context(), x.DB, new(atomic.Int64)); err != nil {
		x.t.Fatal(err)
	}
}

// litter leaves in the bucket what a sweep is for.
func (x *stopTry) litter() {
	x.t.Helper()
	ctx := x.t.Context()
	var s meta.Snapshot
	x.View(func(tx *meta.Tx) (err error) {
		s, err = tx.Snapshot(x.ids[0])
		return err
	})
	if err := simtest.Litter(ctx, x.DB, x.Bucket, s.Version, ""); err != nil {
		x.t.Fatal(err)
	}
	for range 3 { // superseded records
		h := meta.Hold{Version: s.Version, Kind: vault.HoldPin, Owner: "pin-more", Created: time.Now()}
		if err := errors.Join(x.Vault.Hold(ctx, h, nil), x.Vault.Release(ctx, h, nil)); err != nil {
			x.t.Fatal(err)
		}
	}
}

// A stopProcess is a worker in a process of its own.
type stopProcess struct {
	t     *testing.T
	pid   int
	out   string // file
	stdin io.WriteCloser
	ended bool
}

func (x *stopTry) start(at int64, after bool) *stopProcess {
	x.t.Helper()
	socket := filepath.Join(x.dir, "s")
	serveBucket(x.t, x.Power, socket)
	text, err := json.Marshal(stopOrder{
		DB: filepath.Join(x.dir, "meta.db"), Socket: socket, Scene: x.scene.name, Account: x.at, IDs: x.ids, At: at, After: after, Lease: x.lease,
	})
	if err != nil {
		x.t.Fatal(err)
	}
	p := &stopProcess{t: x.t, out: filepath.Join(x.dir, "out")}
	out, err := os.Create(p.out)
	if err != nil {
		x.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), workerVariable+"="+string(text))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.stdin, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		x.t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	x.t.Cleanup(func() {
		if !p.ended {
			p.signal(syscall.SIGKILL)
			p.wait()
		}
		p.stdin.Close()
	})
	return p
}

func (p *stopProcess) signal(s syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(p.pid, s); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits until the process stops or ends.
func (p *stopProcess) wait() (st syscall.WaitStatus) {
	p.t.Helper()
	for {
		_, err := syscall.Wait4(p.pid, &st, syscall.WUNTRACED, nil)
		if err == nil {
			p.ended = !st.Stopped()
			return st
		}
		if !errors.Is(err, syscall.EINTR) {
			p.t.Fatal(err)
		}
	}
}

// stops waits until the process has stopped at its point, and outside of any
// transaction: SQLite waits for those of stopped processes for ever. It is false
// when the process ended before, as it should.
func (p *stopProcess) stops(db string) bool {
	p.t.Helper()
	for {
		if st := p.wait(); !st.Stopped() {
			if st.ExitStatus() != 0 {
				p.t.Fatalf("the worker ended with %d: %s", st.ExitStatus(), p.output())
			}
			return false
		}
		if writable(db) == nil {
			return true
		}
		p.signal(syscall.SIGCONT) // it still waits for a byte
		time.Sleep(time.Millisecond)
		p.signal(syscall.SIGSTOP)
	}
}

// writable tries to write metadata at once.
func writable(path string) error {
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(0)")
	if err != nil {
		return err
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	return tx.Rollback()
}

// wake lets the process go on to its end.
func (p *stopProcess) wake() {
	p.t.Helper()
	p.signal(syscall.SIGCONT)
	if _, err := p.stdin.Write([]byte{1}); err != nil {
		p.t.Fatal(err)
	}
	if st := p.wait(); !st.Exited() || st.ExitStatus() != 0 {
		p.t.Fatalf("the worker that was woken: %v: %s", st, p.output())
	}
}

func (p *stopProcess) output() string {
	text, err := os.ReadFile(p.out)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// run has a worker do the scene, stop at a point, and wake when all was done
// without it. It returns how often the worker changed the bucket, and whether it
// stopped.
func (x *stopTry) run(at int64, after bool) (changes int, slept bool) {
	x.t.Helper()
	x.Stop()
	p := x.start(at, after)
	if slept = p.stops(filepath.Join(x.dir, "meta.db")); slept {
		long := time.NewTimer(*pause)
		defer long.Stop()
		x.Restart()
		x.meanwhile()
		<-long.C
		p.wake()
	}
	_, err := fmt.Sscan(p.output(), &changes)
	if err != nil {
		x.t.Fatalf("the worker says %q: %v", p.output(), err)
	}
	x.Restart() // nothing is in caches
	x.verify(slept)
	return changes, slept
}

// meanwhile does what the worker was about to do, and more. The lease of what
// the worker runs has to lapse for that.
func (x *stopTry) meanwhile() {
	x.t.Helper()
	ctx := x.t.Context()
	x.settle()
	err := x.scene.do(ctx, x.Control, x.DB, x.at, x.ids, func() error { x.settle(); return nil })
	if err != nil {
		x.t.Fatal(err)
	}
	for _, i := range x.scene.others {
		x.delete(x.ids[i])
	}
	x.settle()
	x.exports()
}

// exports reads all snapshots and compares them with the disks they are of.
func (x *stopTry) exports() (ids []snapferry.SnapshotID) {
	x.t.Helper()
	disks := map[digest.Digest]*simtest.Disk{}
	for i := range x.scene.snapshots + 1 {
		disks[stopDisk(i).Digest()] = stopDisk(i)
	}
	all, err := x.Control.Snapshots(x.t.Context(), x.at, control.Filter{})
	if err != nil {
		x.t.Fatal(err)
	}
	for _, s := range all {
		ids = append(ids, s.ID)
		if s.State == snapferry.SnapshotFailed {
			continue // the import that was interrupted
		}
		d := disks[s.Digest]
		if s.State != snapferry.SnapshotReady || d == nil {
			x.t.Errorf("snapshot %s is %s, with digest %v", s.ID, s.State, s.Digest)
			continue
		}
		x.same(s.ID, d)
	}
	return ids
}

// verify wants what was not deleted to be there, all else to be gone, nothing
// stopped, and, when all is deleted, nothing left.
func (x *stopTry) verify(slept bool) {
	x.t.Helper()
	x.Update(sweepNow)
	x.settle()
	x.Check(x.t, simtest.NoGarbage)
	there := map[snapferry.SnapshotID]bool{}
	ids := x.exports()
	for _, id := range ids {
		there[id] = true
	}
	deleted := map[int]bool{}
	for _, i := range x.scene.deletes {
		deleted[i] = true
	}
	for _, i := range x.scene.others {
		deleted[i] = deleted[i] || slept
	}
	for i, id := range x.ids {
		if there[id] == deleted[i] {
			x.t.Errorf("snapshot %d is there: %v, want %v", i, there[id], !deleted[i])
		}
	}
	for _, id := range ids {
		x.delete(id)
	}
	x.settle()
	x.Update(sweepNow) // two that change one version at once leave a record
	x.settle()
	x.settle()
	x.empty()
	x.WantEmpty(x.t)
	x.View(func(tx *meta.Tx) error {
		why, err := tx.ReclaimStopped()
		if why != "" {
			x.t.Errorf("reclaiming has stopped: %s", why)
		}
		return err
	})
	x.Region.Stop()
}

// TestStoppedWorkers stops a worker, a process of its own, at every change it
// makes of the bucket: before it, and after it. Another process takes its work
// over when the leases have lapsed, and does it to its end; then the worker
// goes on. What it does then is garbage at most. "make stopped" is the long form.
func TestStoppedWorkers(t *testing.T) {
	t.Parallel()
	f := simtest.NewFactory(t)
	for _, s := range stopScenes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n, slept := newStopTry(t, f, s).run(-1, false)
			if slept || n == 0 {
				t.Fatalf("the worker slept: %v; it changed the bucket %d times", slept, n)
			}
			t.Logf("%d changes of the bucket", n)
			for i := range n {
				for _, after := range []bool{false, true} {
					k := 2 * i
					if after {
						k++
					}
					if k%*every != 0 {
						continue
					}
					t.Run(fmt.Sprintf("%d, after it: %v", i, after), func(t *testing.T) {
						t.Parallel()
						if _, slept := newStopTry(t, f, s).run(int64(i), after); !slept {
							t.Log("the worker did not come so far")
						}
					})
				}
			}
		})
	}
}
