package kmstest

import (
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// Front stands before a service and can spoil the way to it. Its address stays
// the same.
type Front struct {
	URL string // http://127.0.0.1:PORT

	tb      testing.TB
	address string
	service http.Handler
	busy    http.HandlerFunc
	denied  http.HandlerFunc

	mu     sync.Mutex
	server *http.Server     // nil while it is down; guarded by mu
	spoil  http.HandlerFunc // what answers instead of the service; guarded by mu
	left   int              // how often; guarded by mu
	hang   chan struct{}    // closed by Up; nil while it does not hang; guarded by mu
	asked  int              // requests that came; guarded by mu
}

// NewFront starts a front before a service, which ends with the test. busy
// answers as the service does that is overloaded, denied as one that refuses the
// caller.
func NewFront(tb testing.TB, service http.Handler, busy, denied http.HandlerFunc) *Front {
	tb.Helper()
	f := &Front{tb: tb, service: service, busy: busy, denied: denied}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	f.address = l.Addr().String()
	f.URL = "http://" + f.address
	f.serve(l)
	tb.Cleanup(f.Down)
	return f
}

func (f *Front) serve(l net.Listener) {
	f.server = &http.Server{Handler: f}
	go f.server.Serve(l)
}

func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked++
	answer, hang := f.service.ServeHTTP, f.hang
	if f.left > 0 {
		f.left--
		answer = f.spoil
	}
	f.mu.Unlock()
	if hang != nil {
		io.Copy(io.Discard, r.Body) // else it is not seen that the caller has gone
		select {
		case <-hang:
		case <-r.Context().Done():
		}
		return
	}
	answer(w, r)
}

// Spoil has the next n requests answered by fn.
func (f *Front) Spoil(n int, fn http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoil, f.left = fn, n
}

// Fail has the next n requests answered as by a service that is overloaded.
func (f *Front) Fail(n int) { f.Spoil(n, f.busy) }

// Deny has all requests refused until Up.
func (f *Front) Deny() { f.Spoil(1<<30, f.denied) }

// Hang has all requests wait without an answer until Up.
func (f *Front) Hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = make(chan struct{})
}

// Down ends all connections, and refuses those that come until Up.
func (f *Front) Down() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server != nil {
		f.server.Close()
		f.server = nil
	}
}

// Up ends whatever was wrong.
func (f *Front) Up() {
	f.tb.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoil, f.left = nil, 0
	if f.hang != nil {
		close(f.hang)
		f.hang = nil
	}
	if f.server == nil {
		l, err := net.Listen("tcp", f.address)
		if err != nil {
			f.tb.Fatal(err)
		}
		f.serve(l)
	}
}

// Asked returns how many requests came since it was called last.
func (f *Front) Asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.asked
	f.asked = 0
	return n
}

// Harness adds what the front can do to a harness.
func (f *Front) Harness(h Harness) *Harness {
	h.Down, h.Up, h.Fail, h.Hang, h.Deny = f.Down, f.Up, f.Fail, f.Hang, f.Deny
	return &h
}
