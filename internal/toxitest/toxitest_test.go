//go:build unix

package toxitest_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/snapferry/snapferry/internal/toxitest"
)

// TestBuild builds the proxy, so that other tests find it built.
func TestBuild(t *testing.T) {
	if _, err := toxitest.Build(t.Context()); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// TestFaults sends bytes through a link in each of its states.
func TestFaults(t *testing.T) {
	server := toxitest.Start(t, os.Getenv("CI") != "")
	const size = 256 << 10
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.Write(make([]byte, size))
				io.Copy(io.Discard, c) // until the other has enough
			}()
		}
	}()
	p := server.Proxy(l.Addr().String())
	// get returns how many bytes came within two seconds, and after how long.
	get := func() (int64, time.Duration, error) {
		began := time.Now()
		c, err := net.Dial("tcp", p.Address)
		if err != nil {
			return 0, 0, err
		}
		defer c.Close()
		if err := c.SetDeadline(began.Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := io.CopyN(io.Discard, c, size)
		return n, time.Since(began), err
	}
	whole := func(when string, least time.Duration) {
		t.Helper()
		if n, took, err := get(); n != size || took < least || err != nil {
			t.Errorf("%s: got %d bytes in %v, %v, want %d in at least %v", when, n, took, err, size, least)
		}
	}
	whole("no fault", 0)
	p.Only(toxitest.Rate(size), toxitest.Delay(100*time.Millisecond))
	whole("slow", 500*time.Millisecond)
	p.Only(toxitest.Swallow())
	if n, _, err := get(); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("swallowed: got %d bytes, %v, want none, and no end", n, err)
	}
	p.Only(toxitest.Reset(0))
	if n, _, err := get(); n == size {
		t.Errorf("reset: got %d bytes, %v, want an error", n, err)
	}
	p.Only(toxitest.Break(size / 2))
	if n, _, _ := get(); n != size/2 {
		t.Errorf("broken: got %d bytes, want %d", n, size/2)
	}
	p.Cut()
	if n, _, err := get(); n != 0 {
		t.Errorf("cut: got %d bytes, %v, want none", n, err)
	}
	p.Mend()
	whole("mended", 0)
}
