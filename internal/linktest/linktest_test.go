package linktest_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry/internal/linktest"
)

// server listens and gives each connection to fn.
func server(t *testing.T, fn func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); fn(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func dial(t *testing.T, l *linktest.Link) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ping sends a byte there and waits until it is back.
func ping(c net.Conn) (time.Duration, error) {
	start := time.Now()
	p := []byte{7}
	if _, err := c.Write(p); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, p)
	return time.Since(start), err
}

// TestRoundTrip also changes it while a connection is open.
func TestRoundTrip(t *testing.T) {
	l := linktest.Start(t, server(t, echo), linktest.Shape{RoundTrip: 80 * time.Millisecond})
	c := dial(t, l)
	took, err := ping(c)
	if err != nil || took < 80*time.Millisecond {
		t.Errorf("a byte there and back took %v, want 80 ms: %v", took, err)
	}
	l.Set(linktest.Shape{RoundTrip: 200 * time.Millisecond})
	if took, err = ping(c); err != nil || took < 200*time.Millisecond {
		t.Errorf("later it took %v, want 200 ms: %v", took, err)
	}
	if there, back := l.Passed(); there != 2 || back != 2 {
		t.Errorf("%d and %d bytes passed, want 2", there, back)
	}
}

// TestRate lets several connections share a rate: together they are no faster
// than it, and none is left behind.
func TestRate(t *testing.T) {
	const rate, each, conns = 8 << 20, 512 << 10, 4
	l := linktest.Start(t, server(t, func(c net.Conn) { _, _ = c.Write(make([]byte, each)) }), linktest.Shape{Rate: rate, RoundTrip: 20 * time.Millisecond})
	start := time.Now()
	var wg sync.WaitGroup
	for range conns {
		c := dial(t, l)
		wg.Go(func() {
			if n, err := io.Copy(io.Discard, c); n != each || err != nil {
				t.Errorf("got %d bytes of %d: %v", n, each, err)
			}
		})
	}
	wg.Wait()
	least := time.Duration(conns*each)*time.Second/rate - 25*time.Millisecond
	if took := time.Since(start); took < least {
		t.Errorf("took %v, at that rate it is %v", took, least)
	}
}

// TestWindow has a receiver that does not read: the sender comes to a stop, and
// other connections do not.
func TestWindow(t *testing.T) {
	sent := make(chan int64, 1)
	l := linktest.Start(t, server(t, func(c net.Conn) {
		var one [1]byte
		if _, err := io.ReadFull(c, one[:]); err != nil {
			return
		}
		if one[0] != 1 {
			echo(io2(c, one[:]))
			return
		}
		var n int64
		for {
			if c.SetWriteDeadline(time.Now().Add(time.Second)) != nil {
				break
			}
			k, err := c.Write(make([]byte, 64<<10))
			if n += int64(k); err != nil {
				break
			}
		}
		sent <- n
	}), linktest.Shape{RoundTrip: 10 * time.Millisecond, Window: 128 << 10})
	lazy := dial(t, l)
	if _, err := lazy.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if n := <-sent; n > 64<<20 {
		t.Errorf("%d bytes went to somebody who reads none", n)
	}
	if _, err := ping(dial(t, l)); err != nil {
		t.Error(err)
	}
}

// io2 is a connection of which bytes were read already.
func io2(c net.Conn, read []byte) net.Conn {
	return &again{c, io.MultiReader(bytes.NewReader(read), c)}
}

type again struct {
	net.Conn
	r io.Reader
}

func (a *again) Read(p []byte) (int, error) { return a.r.Read(p) }

// TestCut ends connections, refuses others, and mends.
func TestCut(t *testing.T) {
	l := linktest.Start(t, server(t, echo), linktest.Shape{RoundTrip: time.Millisecond})
	c := dial(t, l)
	if _, err := ping(c); err != nil {
		t.Fatal(err)
	}
	l.Cut()
	if _, err := ping(c); err == nil {
		t.Error("a connection lived on over a link that was cut")
	}
	if c, err := net.Dial("tcp", l.Address); err == nil {
		if _, err := ping(c); err == nil {
			t.Error("a connection came through a link that is cut")
		}
		c.Close()
	}
	l.Mend()
	c = dial(t, l)
	if _, err := ping(c); err != nil {
		t.Error(err)
	}
	l.Break()
	if _, err := ping(c); err == nil {
		t.Error("a connection lived on over a link that broke")
	}
	if _, err := ping(dial(t, l)); err != nil {
		t.Error(err)
	}
}

// TestEnd passes all that was sent before an end, and then the end.
func TestEnd(t *testing.T) {
	l := linktest.Start(t, server(t, func(c net.Conn) {
		p, _ := io.ReadAll(c)
		_, _ = c.Write(p)
	}), linktest.Shape{Rate: 50 << 20, RoundTrip: 5 * time.Millisecond})
	c := dial(t, l)
	want := bytes.Repeat([]byte("snapferry"), 100_000)
	go func() {
		_, _ = c.Write(want)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes of %d: %v", len(got), len(want), err)
	}
}
