//go:build unix

// Package s3test runs a real S3 store for tests: versitygw over a temporary
// directory, a process of its own that checks signatures and honours
// conditional writes. Its version is pinned in tools/versitygw/go.mod; it is
// built once and kept in the user's cache directory.
package s3test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What every store of this package has: its region, and the only key it knows.
const (
	Region    = "us-east-1"
	AccessKey = "snapferrytest"
	SecretKey = "of-no-use-elsewhere"
)

const (
	program   = "github.com/versity/versitygw/cmd/versitygw"
	health    = "/health"
	buildTime = 10 * time.Minute
	startTime = 30 * time.Second
	askEvery  = 20 * time.Millisecond
)

// Server is a store. Its address stays the same when it is stopped and started
// again, and so do its objects.
type Server struct {
	Endpoint string // http://127.0.0.1:PORT

	tb   testing.TB
	exe  string
	dir  string
	addr string
	run  *run
}

// run is one life of the process.
type run struct {
	cmd     *exec.Cmd
	started chan error
	ended   chan struct{}
	log     string // file
}

// Start starts a store with empty buckets of the given names; it is killed at
// the end of the test. Where the program cannot be built the test is skipped,
// or fails if it must not be (as on the build machine).
func Start(tb testing.TB, must bool, buckets ...string) *Server {
	tb.Helper()
	exe, err := Build(tb.Context())
	if err != nil {
		if must {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	s := &Server{tb: tb, exe: exe, dir: tb.TempDir()}
	for _, b := range append(buckets, "") { // the last makes the directory of buckets
		s.Bucket(b)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s.addr = l.Addr().String()
	s.Endpoint = "http://" + s.addr
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if s.run != nil {
			s.Stop()
		}
	})
	s.Start()
	return s
}

// Bucket makes an empty bucket.
func (s *Server) Bucket(name string) {
	s.tb.Helper()
	if err := os.MkdirAll(filepath.Join(s.dir, "buckets", name), 0o700); err != nil {
		s.tb.Fatal(err)
	}
}

// Start starts the process again after Stop and returns when it answers.
func (s *Server) Start() {
	s.tb.Helper()
	r := &run{started: make(chan error), ended: make(chan struct{}), log: filepath.Join(s.dir, "log")}
	r.cmd = exec.Command(s.exe, "--port", s.addr, "--access", AccessKey, "--secret", SecretKey, "--region", Region,
		"--health", health, "--quiet", "--keep-alive", "posix", filepath.Join(s.dir, "buckets"))
	r.cmd.Env = []string{"HOME=" + s.dir, "PATH=/usr/bin:/bin"}
	r.cmd.SysProcAttr = endWithUs()
	out, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.tb.Fatal(err)
	}
	r.cmd.Stdout, r.cmd.Stderr = out, out
	go r.live(out)
	if err := <-r.started; err != nil {
		s.tb.Fatal(err)
	}
	s.run = r
	if err := r.answers(s.tb.Context(), s.Endpoint+health); err != nil {
		text, _ := os.ReadFile(r.log)
		s.tb.Fatalf("the store does not answer: %v\n%s", err, text)
	}
}

// live keeps the thread that starts the process until it ends: the system ends
// the process with that thread, and so with the test.
func (r *run) live(out *os.File) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer out.Close()
	defer close(r.ended)
	err := r.cmd.Start()
	r.started <- err
	if err == nil {
		_ = r.cmd.Wait() // it is killed
	}
}

// answers waits until the store does.
func (r *run) answers(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			if err = resp.Body.Close(); err == nil && resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-r.ended:
			return errors.Join(errors.New("it ended"), err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// Stop kills the process, as a loss of power would.
func (s *Server) Stop() {
	s.tb.Helper()
	if err := s.run.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.tb.Error(err)
	}
	<-s.run.ended
	s.run = nil
}

// Build returns the path of the program. The first time it takes a minute or
// two, and the network.
func Build(ctx context.Context) (string, error) {
	module, err := moduleDir()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "snapferry-test")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		p, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		sum.Write(p)
	}
	exe := filepath.Join(cache, "versitygw-"+hex.EncodeToString(sum.Sum(nil))[:16])
	unlock, err := lock(exe + ".lock") // packages are tested at the same time
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(exe); err == nil {
		return exe, nil
	}
	return exe, build(ctx, module, exe)
}

func build(ctx context.Context, module, exe string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-C", module, "-mod=readonly", "-ldflags=-s -w", "-o", exe+".new", program)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build versitygw (it needs the module proxy): %w\n%s", err, out)
	}
	return os.Rename(exe+".new", exe)
}

// moduleDir finds tools/versitygw from the package under test.
func moduleDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		module := filepath.Join(dir, "tools", "versitygw")
		if _, err := os.Stat(filepath.Join(module, "go.mod")); err == nil {
			return module, nil
		}
		above := filepath.Dir(dir)
		if above == dir {
			return "", errors.New("there is no tools/versitygw above the working directory")
		}
		dir = above
	}
}

func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}
