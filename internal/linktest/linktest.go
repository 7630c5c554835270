// Package linktest puts a long link between two ends of TCP: a proxy of which
// all connections share one rate and one delay, as those between two regions
// do. Both can be changed while it runs; it can be cut and mended.
//
// It behaves like a link and the two machines at its ends, but for this: what a
// sender has handed over stands in the buffers of this machine first, nothing is
// lost on the way, and a connection's window does not have to grow.
package linktest

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Shape is what a link is like.
type Shape struct {
	Rate      int64         // bytes a second of all connections together, there and back; 0: no limit
	RoundTrip time.Duration // there and back
	// Window is how many bytes of one connection are under way each way before
	// the other end has said that it took them; 0: as many as the link holds, at
	// least 256 KiB, and 16 MiB if it has no rate.
	Window int64
}

const (
	minWindow = 256 << 10
	anyWindow = 16 << 20
)

// window is the bytes a connection may have under way.
func (s Shape) window() int64 {
	switch {
	case s.Window > 0:
		return s.Window
	case s.Rate == 0:
		return anyWindow
	}
	return max(s.Rate*int64(s.RoundTrip/time.Microsecond)/1e6, minWindow)
}

// A Link leads from an address of its own to another.
type Link struct {
	Address string // where it listens, 127.0.0.1:PORT

	to       string
	listener net.Listener
	there    atomic.Int64
	back     atomic.Int64
	wg       sync.WaitGroup

	mu    sync.Mutex
	shape Shape             // guarded by mu, like all that follows
	due   time.Time         // when all that was let onto the link has left
	down  bool              // cut
	conns map[net.Conn]bool // that are open
}

// Start starts a link to an address, which ends with the test.
func Start(tb testing.TB, to string, s Shape) *Link {
	tb.Helper()
	l, err := New("127.0.0.1:0", to, s)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(l.Close)
	return l
}

// New starts a link that listens at one address and leads to another. Close
// ends it.
func New(at, to string, s Shape) (*Link, error) {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return nil, err
	}
	l := &Link{Address: ln.Addr().String(), to: to, listener: ln, shape: s, conns: map[net.Conn]bool{}}
	l.wg.Go(l.accept)
	return l, nil
}

// Close ends the link and its connections.
func (l *Link) Close() {
	l.listener.Close()
	l.Cut()
	l.wg.Wait()
}

// Set changes what the link is like. What is on its way comes as it would have.
func (l *Link) Set(s Shape) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shape, l.due = s, time.Time{}
}

// Cut resets all connections and those that come until Mend.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for c := range l.conns {
		reset(c)
	}
}

// Break resets all connections; others may come at once.
func (l *Link) Break() {
	l.Cut()
	l.Mend()
}

// Mend lets connections through again.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}

// Passed returns the bytes that have come out of the link at its far end and,
// back, at its near one.
func (l *Link) Passed() (there, back int64) { return l.there.Load(), l.back.Load() }

func (l *Link) accept() {
	for {
		c, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.join(c) })
	}
}

// join leads a connection to the other end until one of them ends it.
func (l *Link) join(near net.Conn) {
	defer near.Close()
	if !l.enter(near) {
		return
	}
	defer l.leave(near)
	far, err := net.Dial("tcp", l.to)
	if err != nil {
		reset(near)
		return
	}
	defer far.Close()
	if !l.enter(far) {
		reset(near)
		return
	}
	defer l.leave(far)
	var both sync.WaitGroup
	both.Go(func() { l.carry(far, near, &l.there) })
	both.Go(func() { l.carry(near, far, &l.back) })
	both.Wait()
}

// enter notes a connection, and reports whether it may go on; it is reset if not.
func (l *Link) enter(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		reset(c)
		return false
	}
	l.conns[c] = true
	return true
}

func (l *Link) leave(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// reset ends a connection so that its other end sees that at once.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // it is only less sudden without
	}
	c.Close()
}

// burst is how far the link makes up for time in which it was not asked: timers
// are late.
const burst = 20 * time.Millisecond

// admit gives n bytes their turn on the link. It returns when the last of them
// has left, when it arrives, and when the sender hears of that.
func (l *Link) admit(n int) (leaves, arrives, known time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if early := now.Add(-burst); l.due.Before(early) {
		l.due = early
	}
	if l.shape.Rate > 0 {
		l.due = l.due.Add(time.Duration(n) * time.Second / time.Duration(l.shape.Rate))
	}
	if leaves = now; l.due.After(now) {
		leaves = l.due
	}
	return leaves, leaves.Add(l.shape.RoundTrip / 2), leaves.Add(l.shape.RoundTrip)
}

func (l *Link) window() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shape.window()
}
