package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// names maps what differs from run to run, ids and digests, to what it is
// called in the order of appearance; so equal things stay equal.
type names map[string]string

var (
	randomName = regexp.MustCompile(`(snap|copy)-[0-9a-f]{17}|sha256:[0-9a-f]{64}`)
	anyTime    = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:]+Z`)
	anySize    = regexp.MustCompile(`[\d.]+ [KMG]?i?B( \(\d+\))?`)
)

func (n names) in(s string) string {
	s = randomName.ReplaceAllStringFunc(s, func(x string) string {
		if n[x] == "" {
			n[x] = fmt.Sprintf("<%d>", len(n))
		}
		return n[x]
	})
	return anySize.ReplaceAllString(anyTime.ReplaceAllString(s, "<time>"), "<size>")
}

// of returns what has a name.
func (n names) of(name string) string {
	for x, y := range n {
		if y == name {
			return x
		}
	}
	return name
}

// TestReadme runs the session of the README and compares what it prints.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```console\n")
	session, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("README.md has no session")
	}
	dir := t.TempDir()
	if err := makeSparse(filepath.Join(dir, "disk.raw"), 100<<20, 7); err != nil {
		t.Fatal(err)
	}
	written, seen := names{}, names{}
	var env []string
	for _, part := range strings.Split("\n"+session, "\n$ ")[1:] {
		command, want, _ := strings.Cut(part, "\n")
		if name, ok := strings.CutPrefix(command, "export "); ok {
			env = append(env, name)
			continue
		}
		masked := randomName.ReplaceAllStringFunc(command, func(x string) string { return seen.of(written[x]) })
		cmd := exec.Command("sh", "-c", "exec "+masked)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		if line, ok := strings.CutSuffix(masked, " &"); ok {
			cmd = exec.Command("sh", "-c", "exec "+line)
			cmd.Dir = dir
			if err := startDev(cmd); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Error(err)
				}
				if err := cmd.Wait(); err != nil {
					t.Errorf("dev: %v", err)
				}
			}()
			continue
		}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		got, want := seen.in(strings.TrimSpace(string(out))), written.in(strings.TrimSpace(want))
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", command, diff)
		}
	}
}
