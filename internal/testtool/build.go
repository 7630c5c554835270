//go:build unix

// Package testtool builds and runs programs of others that tests need beside
// them: a store, a proxy. Each is pinned by a module of its own, tools/NAME, so
// that what it requires is no requirement of Snapferry; it is built once and kept
// in the user's cache directory.
package testtool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const buildTime = 10 * time.Minute

// Build returns the path of a program: a package that the module tools/NAME
// requires. The first time it takes a minute or two, and the network.
func Build(ctx context.Context, name, program string) (string, error) {
	module, err := moduleDir(name)
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
	for _, file := range []string{"go.mod", "go.sum"} {
		p, err := os.ReadFile(filepath.Join(module, file))
		if err != nil {
			return "", err
		}
		sum.Write(p)
	}
	exe := filepath.Join(cache, name+"-"+hex.EncodeToString(sum.Sum(nil))[:16])
	unlock, err := lock(exe + ".lock") // packages are tested at the same time
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(exe); err == nil {
		return exe, nil
	}
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-C", module, "-mod=readonly", "-ldflags=-s -w", "-o", exe+".new", program)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s (it needs the module proxy): %w\n%s", name, err, out)
	}
	return exe, os.Rename(exe+".new", exe)
}

// moduleDir finds the module of a program from the package under test.
func moduleDir(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		module := filepath.Join(dir, "tools", name)
		if _, err := os.Stat(filepath.Join(module, "go.mod")); err == nil {
			return module, nil
		}
		above := filepath.Dir(dir)
		if above == dir {
			return "", fmt.Errorf("there is no tools/%s above the working directory", name)
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
