package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
)

const (
	relayRate = 8 << 20   // bytes per second
	killSize  = 112 << 20 // bytes of the disk
)

// A relay is a slow TCP connection to a region.
type relay struct {
	listener net.Listener
	to       string
	upload   bool         // what goes there is slow and counted, instead of what comes back
	passed   atomic.Int64 // bytes that came back from the region
	mu       sync.Mutex
	rate     int64             // bytes per second; 0: no limit; guarded by mu
	due      time.Time         // when the next byte may pass
	down     bool              // nobody gets through; guarded by mu
	conns    map[net.Conn]bool // that are open; guarded by mu
	marks    []mark
	holds    []*hold
	wg       sync.WaitGroup
}

// A hold keeps a request back.
type hold struct {
	line    string        // what it begins with
	left    int           // how many such requests still pass
	reached chan struct{} // closed when it has come
	open    chan struct{} // closed by the test to let it go on
}

// A mark is closed when so many bytes have passed.
type mark struct {
	at      int64
	reached chan struct{}
}

// newRelay starts a relay in front of a region, of relayRate or, if it is fast, of
// no rate; upload is that of the relay.
func newRelay(t *testing.T, to string, upload, fast bool) *relay {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, to: to, upload: upload, rate: relayRate, conns: map[net.Conn]bool{}}
	if fast {
		r.rate = 0
	}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.join(c) })
		}
	})
	t.Cleanup(func() { l.Close(); r.cut(); r.wg.Wait() })
	return r
}

func (r *relay) join(near net.Conn) {
	defer near.Close()
	if !r.enter(near) {
		return
	}
	defer r.leave(near)
	far, err := net.Dial("tcp", r.to)
	if err != nil {
		return // the region is away
	}
	defer far.Close()
	var both sync.WaitGroup
	there, back := func() { io.Copy(far, near) }, func() { r.pass(near, far) }
	if r.upload {
		there, back = func() { r.pass(far, near) }, func() { io.Copy(near, far) }
	}
	both.Go(func() { there(); far.Close() })
	both.Go(func() { back(); near.Close() })
	both.Wait()
}

// enter notes a connection, and reports whether it may go on.
func (r *relay) enter(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.down {
		r.conns[c] = true
	}
	return !r.down
}

func (r *relay) leave(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// cut ends all connections and lets nobody through until mend.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = true
	for c := range r.conns {
		c.Close()
	}
}

// mend lets connections through again, at a rate.
func (r *relay) mend(rate int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down, r.rate, r.due = false, rate, time.Time{}
}

// pass copies at the rate that all connections share.
func (r *relay) pass(to io.Writer, from io.Reader) {
	p := make([]byte, 32<<10)
	for {
		n, err := from.Read(p)
		if h := r.held(p[:n]); h != nil {
			<-h.open
		}
		r.mu.Lock()
		if now := time.Now(); r.due.Before(now) {
			r.due = now
		}
		if r.rate > 0 {
			r.due = r.due.Add(time.Duration(n) * time.Second / time.Duration(r.rate))
		}
		wait := time.NewTimer(time.Until(r.due))
		r.mu.Unlock()
		<-wait.C
		r.count(int64(n))
		if _, werr := to.Write(p[:n]); err != nil || werr != nil {
			return
		}
	}
}

// count notes that n bytes passed.
func (r *relay) count(n int64) {
	now := r.passed.Add(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marks = slices.DeleteFunc(r.marks, func(m mark) bool {
		if m.at > now {
			return false
		}
		close(m.reached)
		return true
	})
}

// hold keeps the nth request back, from now on and counted from 1, that begins
// with a line and goes to a store through a relay of uploads.
func (r *relay) hold(line string, nth int) *hold {
	h := &hold{line: line, left: nth - 1, reached: make(chan struct{}), open: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds = append(r.holds, h)
	return h
}

// held returns the hold that what was sent now has to wait for, or nil. HTTP
// sends the beginning of a request as the beginning of a piece.
func (r *relay) held(sent []byte) (found *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds = slices.DeleteFunc(r.holds, func(h *hold) bool {
		if found != nil || !bytes.HasPrefix(sent, []byte(h.line)) {
			return false
		}
		if h.left--; h.left >= 0 {
			return false
		}
		found = h
		close(h.reached)
		return true
	})
	return found
}

// after returns a channel that is closed when n more bytes have passed.
func (r *relay) after(n int64) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := mark{r.passed.Load() + n, make(chan struct{})}
	r.marks = append(r.marks, m)
	return m.reached
}

// killed is two regions with a slow connection from west to east.
type killed struct {
	t     *testing.T
	app   *app
	dev   *devDir
	relay *relay
	run   map[snapferry.RegionName]*process
}

func newKilled(t *testing.T) *killed {
	return newKilledBehind(t, func(relay string) string { return relay })
}

// newKilledBehind lets west connect to what leads to the relay, which has an address.
func newKilledBehind(t *testing.T, leads func(relay string) string) *killed {
	k := prepareKilled(t, "none", demoEast, demoWest)
	k.relay = newRelay(t, k.dev.configs[demoEast].Peer.Listen, false, false)
	west := k.dev.configs[demoWest]
	west.Peers = []knownPeer{{Name: demoEast, Address: leads(k.relay.listener.Addr().String())}}
	if err := writeYAML(k.dev.configFile(demoWest), west); err != nil {
		t.Fatal(err)
	}
	k.start(demoEast)
	k.start(demoWest)
	return k
}

// prepareKilled makes regions that do not run yet.
func prepareKilled(t *testing.T, compression string, names ...snapferry.RegionName) *killed {
	k := &killed{t: t, app: testApp(t), run: map[snapferry.RegionName]*process{}}
	var err error
	if k.dev, err = prepareDev(t.TempDir(), names, compression); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range k.run {
			p.end()
		}
	})
	return k
}

func (k *killed) start(r snapferry.RegionName) {
	k.t.Helper()
	all, err := k.app.startAll(k.t.Context(), k.dev, []snapferry.RegionName{r})
	if err != nil {
		k.t.Fatalf("%v\n%s", err, snapferry.HintOf(err))
	}
	k.run[r] = all[0]
}

// kill kills a region as a loss of power would, and starts it again.
func (k *killed) kill(r snapferry.RegionName) {
	k.t.Helper()
	k.end(r)
	k.start(r)
}

// end kills a region and leaves it.
func (k *killed) end(r snapferry.RegionName) {
	k.t.Helper()
	if err := k.run[r].cmd.Process.Kill(); err != nil {
		k.t.Fatal(err)
	}
	<-k.run[r].done
}

func (k *killed) client(r snapferry.RegionName) *client.Client {
	c, err := k.dev.profile.Regions[r].client(devClient, r, devAccount)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(c.Close)
	return c
}

// imported returns a ready snapshot of a disk that does not compress.
func (k *killed) imported(ctx context.Context) snapferry.Snapshot {
	k.t.Helper()
	path := filepath.Join(k.t.TempDir(), "disk.raw")
	p := make([]byte, killSize)
	rand.Read(p)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		k.t.Fatal(err)
	}
	f, err := source.OpenRead(path)
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	c := k.client(demoEast)
	s, err := c.Import(ctx, client.ImportRequest{Volume: "disk"}, f)
	if err == nil {
		s, err = c.Wait(ctx, s.ID, nil)
	}
	if err != nil || s.State != snapferry.SnapshotReady {
		k.t.Fatalf("import: %v %v %s", err, s.State, s.Reason)
	}
	return s
}

// TestCopySurvivesKills kills the destination, then the source, in the middle
// of a copy: it finishes by itself and repeats little.
func TestCopySurvivesKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	k := newKilled(t)
	ctx := t.Context()
	s := k.imported(ctx)
	west := k.client(demoWest)
	c, err := west.Copy(ctx, client.CopyRequest{From: demoEast, Source: s.ID})
	if err != nil {
		t.Fatal(err)
	}
	// The first kill comes when a quarter is known to be durable. The next one
	// goes by bytes: what is left may become durable all at once.
	due := make(chan struct{})
	shown, quarter := int64(-1), false
	watching := make(chan snapferry.Snapshot, 1)
	go func() {
		done, err := west.Wait(ctx, c.ID, func(now snapferry.Snapshot) {
			if now.Progress == nil {
				return
			}
			if now.Progress.Done < shown {
				t.Errorf("progress went back from %d to %d", shown, now.Progress.Done)
			}
			shown = now.Progress.Done
			if !quarter && shown > killSize/4 {
				quarter = true
				close(due)
			}
		})
		if err != nil {
			t.Errorf("wait: %v", err)
		}
		watching <- done
	}()
	var next <-chan struct{} = due
	for _, r := range []snapferry.RegionName{demoWest, demoEast} {
		select {
		case <-next:
		case done := <-watching:
			t.Fatalf("the copy was %s (%s) before %s was killed", done.State, done.Reason, r)
		}
		k.kill(r)
		next = k.relay.after(killSize / 8)
	}
	done := <-watching
	if done.State != snapferry.SnapshotReady || done.Digest != s.Digest {
		t.Fatalf("the copy is %s (%s) with digest %s, want %s", done.State, done.Reason, done.Digest, s.Digest)
	}
	repeated := k.relay.passed.Load() - killSize
	t.Logf("%d MiB passed twice; the region says %d", repeated>>20, done.Counts.Repeated>>20)
	if limit := int64(2 * 10 * relayRate); repeated > limit {
		t.Errorf("%d bytes passed twice, want at most %d: 10 s of work for each kill", repeated, limit)
	}
	for _, r := range []snapferry.RegionName{demoEast, demoWest} {
		report, err := k.client(r).Fsck(ctx, true, nil)
		if err != nil || damaged(report) {
			t.Errorf("fsck of %s: %v %+v", r, err, report.Findings)
		}
	}
}
