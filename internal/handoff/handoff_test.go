package handoff

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

// start serves at a new path until the test ends.
func start(t *testing.T) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	s, err := New(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: got %v", err)
		}
	})
	return s, path
}

func tempFile(t testing.TB, content string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func wantKind(t testing.TB, what string, err error, want snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, want) {
		t.Errorf("%s: got %v, want Kind %v", what, err, want)
	}
}

func TestSendTake(t *testing.T) {
	s, path := start(t)
	f := tempFile(t, "content")
	handle, err := Send(t.Context(), path, f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	got, err := s.Take(handle)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	p := make([]byte, 7)
	if _, err := got.ReadAt(p, 0); err != nil || string(p) != "content" {
		t.Errorf("read: got %q, %v", p, err)
	}
	fl, err := unix.FcntlInt(got.Fd(), unix.F_GETFD, 0)
	if err != nil || fl&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags of the descriptor: got %#x, %v, want close on exec", fl, err)
	}
	for _, h := range []string{handle, "", "no such handle"} {
		_, err := s.Take(h)
		wantKind(t, "take "+h, err, snapferry.NotFound)
	}
}

func TestMode(t *testing.T) {
	_, path := start(t)
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != fs0600 {
		t.Errorf("mode: got %v, %v, want %v", fi.Mode(), err, fs0600)
	}
}

const fs0600 = os.ModeSocket | 0o600

func TestSendErrors(t *testing.T) {
	dir := t.TempDir()
	f := tempFile(t, "x")
	_, err := Send(t.Context(), filepath.Join(dir, "none"), f)
	wantKind(t, "no socket", err, snapferry.Unavailable)
	if hint := snapferry.HintOf(err); !strings.Contains(hint, "the region must run on this machine") {
		t.Errorf("hint: got %q", hint)
	}
	_, err = Send(t.Context(), stale(t, dir), f)
	wantKind(t, "dead socket", err, snapferry.Unavailable)

	_, path := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Send(ctx, path, f)
	wantKind(t, "cancelled", err, snapferry.Cancelled)
	f.Close()
	_, err = Send(t.Context(), path, f)
	wantKind(t, "closed file", err, snapferry.Invalid)
}

// stale makes the socket of a dead process.
func stale(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	return path
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	path := stale(t, dir)
	s, err := New(path, nil)
	if err != nil {
		t.Fatalf("a stale socket: got %v", err)
	}
	_, err = New(path, nil)
	wantKind(t, "a live one of ours", err, snapferry.Conflict)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("close: got %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after Close: got %v", err)
	}
	if s, err = New(path, nil); err != nil {
		t.Fatalf("again: got %v", err)
	}
	s.Close()

	foreign, err := net.Listen("unix", filepath.Join(dir, "foreign"))
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	_, err = New(filepath.Join(dir, "foreign"), nil)
	wantKind(t, "a live one of others", err, snapferry.Conflict)

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = New(file, nil)
	wantKind(t, "a file", err, snapferry.Exists)
	_, err = New(filepath.Join(dir, "no", "folder"), nil)
	wantKind(t, "no folder", err, snapferry.NotFound)
	_, err = New(filepath.Join(dir, strings.Repeat("n", 150)), nil)
	wantKind(t, "a long path", err, snapferry.Invalid)
}

// descriptorCount counts the open descriptors of this process.
func descriptorCount(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc here")
	}
	return len(d)
}

// exchange sends messages, with so many descriptors each, and returns what the
// server answers until it closes the connection.
func exchange(t *testing.T, path string, f *os.File, hangUp bool, messages ...message) string {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, m := range messages {
		var oob []byte
		if m.fds > 0 {
			fds := make([]int, m.fds)
			for i := range fds {
				fds[i] = int(f.Fd())
			}
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := c.WriteMsgUnix([]byte(m.text), oob, nil); err != nil {
			break // refused already
		}
	}
	if hangUp {
		c.CloseWrite()
	}
	c.SetReadDeadline(time.Now().Add(4 * patience))
	p, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Fatal(err)
	}
	return string(p)
}

type message struct {
	text string
	fds  int
}

func TestHostile(t *testing.T) {
	_, path := start(t)
	f := tempFile(t, "x")
	request := string(appendRequest(nil))
	tests := []struct {
		name     string
		messages []message
		want     snapferry.Kind
	}{
		{"no descriptor", []message{{request, 0}}, snapferry.Invalid},
		{"two", []message{{request, 2}}, snapferry.Invalid},
		{"many", []message{{request, 200}}, snapferry.Invalid},
		{"two in two messages", []message{{request[:4], 1}, {request[4:], 1}}, snapferry.Invalid},
		{"one each byte", []message{{"S", 1}, {"F", 1}, {"H", 1}, {"O", 1}}, snapferry.Invalid},
		{"nothing", nil, snapferry.Invalid},
		{"short", []message{{request[:7], 1}}, snapferry.Invalid},
		{"garbage", []message{{"GET / HTTP/1.1\r\n\r\n", 1}}, snapferry.Invalid},
		{"reserved bytes", []message{{"SFHO\x01\x00\x00\x01", 1}}, snapferry.Invalid},
		{"version 0", []message{{"SFHO\x00\x00\x00\x00", 1}}, snapferry.Invalid},
		{"newer version", []message{{"SFHO\x02\x00\x00\x00", 1}}, snapferry.Unsupported},
	}
	before := descriptorCount(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := exchange(t, path, f, true, test.messages...)
			if got == "" {
				return // the connection broke with something unread
			}
			_, err := parseReply([]byte(got))
			wantKind(t, "reply", err, test.want)
		})
	}
	settled(t, before)

	// In pieces, but right.
	got := exchange(t, path, f, true, message{request[:3], 0}, message{request[3:], 1})
	if _, err := parseReply([]byte(got)); err != nil {
		t.Errorf("a request in pieces: got %v", err)
	}
}

// TestSlow has clients that say nothing.
func TestSlow(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the time the server gives a client")
	}
	t.Parallel()
	_, path := start(t)
	f := tempFile(t, "x")
	got := exchange(t, path, f, false, message{"SFHO", 1})
	_, err := parseReply([]byte(got))
	wantKind(t, "reply", err, snapferry.Invalid)
}

// settled waits until as many descriptors are open as were before: the server
// closes its end a moment after the client.
func settled(t *testing.T, want int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for {
		got := descriptorCount(t)
		if got <= want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("descriptors: got %d, want %d", got, want)
		}
		<-tick.C
	}
}

func TestFullAndClose(t *testing.T) {
	before := descriptorCount(t)
	path := filepath.Join(t.TempDir(), "s")
	s, err := New(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	f := tempFile(t, "x")
	var first string
	for i := range maxFiles {
		h, err := Send(t.Context(), path, f)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = h
		}
	}
	_, err = Send(t.Context(), path, f)
	wantKind(t, "one too many", err, snapferry.Full)
	x, err := s.Take(first)
	if err != nil {
		t.Fatal(err)
	}
	x.Close()
	if _, err := Send(t.Context(), path, f); err != nil {
		t.Errorf("after one was taken: got %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: got %v", err)
	}
	f.Close()
	settled(t, before)
	_, err = s.shelf.put(tempFile(t, "x"))
	wantKind(t, "after the end", err, snapferry.Unavailable)
}

// TestShutdown ends a server while a client says nothing.
func TestShutdown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := New(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: got %v", err)
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("the end took %v", took)
	}
}

func TestExpiry(t *testing.T) {
	f, taken := tempFile(t, "x"), tempFile(t, "y")
	synctest.Test(t, func(t *testing.T) {
		dropped := 0
		s := newShelf(func() { dropped++ })
		handle, err := s.put(f)
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.put(taken)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(keep - time.Nanosecond)
		if _, ok := s.take(other); !ok {
			t.Error("it was gone before its time was over")
		}
		<-time.After(time.Second)
		synctest.Wait()
		if _, ok := s.take(handle); ok || dropped != 1 {
			t.Errorf("after its time: got %v, and %d dropped, want false and 1", ok, dropped)
		}
	})
	if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file after its time: got %v, want closed", err)
	}
	if _, err := taken.Stat(); err != nil {
		t.Errorf("the file taken: got %v", err)
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

func TestGolden(t *testing.T) {
	const handle = "00112233445566778899aabbccddeeff"
	for name, want := range map[string][]byte{
		"request.bin": appendRequest(nil),
		"handle.txt":  []byte(handle + "\n"),
		"refusal.txt": appendRefusal(nil, snapferry.Errorf(snapferry.Full, "64 files\nwait")),
	} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	if err := checkRequest(golden(t, "request.bin")); err != nil {
		t.Errorf("request: got %v", err)
	}
	if got, err := parseReply(golden(t, "handle.txt")); err != nil || got != handle {
		t.Errorf("handle: got %q, %v", got, err)
	}
	_, err := parseReply(golden(t, "refusal.txt"))
	wantKind(t, "refusal", err, snapferry.Full)
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLongRefusal(t *testing.T) {
	p := appendRefusal(nil, snapferry.Errorf(snapferry.Conflict, "%s", strings.Repeat("é", maxReply)))
	if len(p) != maxReply {
		t.Errorf("length: got %d, want %d", len(p), maxReply)
	}
	_, err := parseReply(p)
	wantKind(t, "reply", err, snapferry.Conflict)
}

func FuzzRequest(f *testing.F) {
	f.Add(golden(f, "request.bin"))
	f.Add([]byte("SFHO\x02\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		err := checkRequest(p)
		if err == nil && !bytes.Equal(p, appendRequest(nil)) {
			t.Errorf("%q was accepted", p)
		}
		if err != nil && !snapferry.IsKind(err, snapferry.Invalid) && !snapferry.IsKind(err, snapferry.Unsupported) {
			t.Errorf("%q: got %v", p, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(golden(f, "handle.txt"))
	f.Add(golden(f, "refusal.txt"))
	f.Fuzz(func(t *testing.T, p []byte) {
		handle, err := parseReply(p)
		if err == nil && string(p) != handle+"\n" {
			t.Errorf("%q: got %q", p, handle)
		}
	})
}
