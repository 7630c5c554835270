package nbd

import (
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long a turn may be stuck before it is passed, at least; at
// most it is twice that.
const patience = time.Millisecond

// watchdog looks after the turn of a session. Who has the turn counts up before
// it does a request of its own, to an odd number, and after it, to an even one.
// The watchdog looks at the number every millisecond while there are requests,
// and sleeps while there are none. Where it finds the same odd number twice it
// tries to count up in the place of the turn: whoever of the two succeeds has
// the turn from then on.
type watchdog struct {
	count    atomic.Uint64
	turn     atomic.Pointer[turn] // who counted to the odd number
	watching atomic.Bool
	passing  sync.Mutex // held while the turn is passed
	wake     chan struct{}
	quit     chan struct{}
	done     sync.WaitGroup
}

func (w *watchdog) start(s *session) {
	w.wake, w.quit = make(chan struct{}, 1), make(chan struct{})
	w.done.Go(func() { w.run(s) })
}

func (w *watchdog) stop() {
	close(w.quit)
	w.done.Wait()
}

// begin says that t, which has the turn, begins with something. The number it
// returns is for end.
func (w *watchdog) begin(t *turn) uint64 {
	if w.turn.Load() != t {
		w.turn.Store(t)
	}
	n := w.count.Add(1)
	if !w.watching.Load() && w.watching.CompareAndSwap(false, true) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return n
}

// end says that it is done, and reports whether it still has the turn.
func (w *watchdog) end(began uint64) bool {
	if w.count.CompareAndSwap(began, began+1) {
		return true
	}
	w.passing.Lock() // until then the watchdog looks at what the turn has
	defer w.passing.Unlock()
	return false
}

// pass takes the turn from who stuck at count n.
func (w *watchdog) pass(s *session, n uint64) {
	w.passing.Lock()
	defer w.passing.Unlock()
	t := w.turn.Load()
	if w.count.CompareAndSwap(n, n+1) {
		s.passTurn(t)
	}
}

func (w *watchdog) run(s *session) {
	tick := time.NewTimer(patience)
	defer tick.Stop()
	for {
		select {
		case <-w.wake:
		case <-w.quit:
			return
		}
		last := w.count.Load()
		for w.watching.Load() {
			tick.Reset(patience)
			select {
			case <-tick.C:
			case <-w.quit:
				return
			}
			n := w.count.Load()
			switch {
			case n != last:
				last = n
			case n%2 == 0:
				w.watching.Store(false)
				if w.count.Load() != n && w.watching.CompareAndSwap(false, true) {
					last = w.count.Load()
				}
			default:
				w.pass(s, n)
				last = w.count.Load()
			}
		}
	}
}
