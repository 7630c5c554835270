package nbd

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair returns a wire and the other end of its socket. An idle read waits
// at the gate after a millisecond.
func socketPair(t *testing.T) (*socketWire, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	t.Cleanup(func() { conns[1].Close() })
	w, err := newWire(conns[0])
	if err != nil {
		t.Fatal(err)
	}
	s := w.(*socketWire)
	soon := unix.NsecToTimeval(time.Millisecond.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &soon); err != nil {
		t.Fatal(err)
	}
	return s, conns[1]
}

// TestSocketWire sends much more than a socket holds both ways, with reads and
// writes of every kind.
func TestSocketWire(t *testing.T) {
	w, other := socketPair(t)
	const total = 8 << 20
	want := make([]byte, total)
	pattern(want, 1)
	var all sync.WaitGroup
	all.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for p := want; len(p) > 0; {
			n := min(len(p), 1+r.IntN(600<<10))
			var err error
			if r.IntN(2) == 0 {
				err = w.Write(p[:n])
			} else {
				k := r.IntN(n)
				err = w.WriteParts(net.Buffers{p[:k], p[k:n]})
			}
			if err != nil {
				t.Errorf("write: %v", err)
				return
			}
			p = p[n:]
		}
	})
	all.Go(func() {
		r := rand.New(rand.NewPCG(3, 4))
		got := make([]byte, total)
		for p := got; len(p) > 0; {
			n, err := w.Read(p[:min(len(p), 1+r.IntN(100<<10))], r.IntN(2) == 0)
			if err != nil {
				t.Errorf("read: %v", err)
				return
			}
			p = p[n:]
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes arrived than were sent")
		}
	})
	// The other side gives back what it gets.
	if n, err := io.CopyN(other, other, total); n != total || err != nil {
		t.Errorf("copy: %d bytes, %v", n, err)
	}
	all.Wait()
	w.Abort()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestSocketWireEnds has reads and writes that wait end.
func TestSocketWireEnds(t *testing.T) {
	for _, busy := range []bool{false, true} {
		w, other := socketPair(t)
		ended := make(chan error)
		go func() {
			_, err := w.Read(make([]byte, 1), busy)
			ended <- err
		}()
		go func() { ended <- w.Write(make([]byte, 64<<20)) }()
		if _, err := io.ReadFull(other, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		w.CloseRead()
		if err := <-ended; err != io.EOF {
			t.Errorf("read: got %v", err)
		}
		w.Abort()
		if err := <-ended; err != unix.EPIPE {
			t.Errorf("write: got %v", err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}
