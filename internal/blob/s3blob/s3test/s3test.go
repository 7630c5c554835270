//go:build unix

// Package s3test runs a real S3 store for tests: versitygw over a temporary
// directory, a process of its own that checks signatures and honours
// conditional writes. Its version is pinned in tools/versitygw/go.mod.
package s3test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/snapferry/snapferry/internal/testtool"
)

// What every store of this package has: its region, and the only key it knows.
const (
	Region    = "us-east-1"
	AccessKey = "snapferrytest"
	SecretKey = "of-no-use-elsewhere"
)

const (
	program = "github.com/versity/versitygw/cmd/versitygw"
	health  = "/health"
)

// Server is a store. Its address stays the same when it is stopped and started
// again, and so do its objects.
type Server struct {
	Endpoint string // http://127.0.0.1:PORT

	tb   testing.TB
	exe  string
	dir  string
	addr string
	run  *testtool.Process
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
	if s.addr, err = testtool.FreeAddress(); err != nil {
		tb.Fatal(err)
	}
	s.Endpoint = "http://" + s.addr
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
	cmd := exec.Command(s.exe, "--port", s.addr, "--access", AccessKey, "--secret", SecretKey, "--region", Region,
		"--health", health, "--quiet", "--keep-alive", "posix", filepath.Join(s.dir, "buckets"))
	cmd.Env = []string{"HOME=" + s.dir, "PATH=/usr/bin:/bin"}
	var err error
	if s.run, err = testtool.Start(cmd, filepath.Join(s.dir, "log")); err != nil {
		s.tb.Fatal(err)
	}
	if err := s.run.Answers(s.tb.Context(), s.Endpoint+health); err != nil {
		s.tb.Fatal(err)
	}
}

// Stop kills the process, as a loss of power would.
func (s *Server) Stop() {
	s.tb.Helper()
	if err := s.run.Kill(); err != nil {
		s.tb.Error(err)
	}
	s.run = nil
}

// Build returns the path of the program; see testtool.Build.
func Build(ctx context.Context) (string, error) {
	return testtool.Build(ctx, "versitygw", program)
}
