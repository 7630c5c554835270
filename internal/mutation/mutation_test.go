package mutation

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	catch = flag.Bool("catch", false, "make each mutation and run the test that must fail with it")
	only  = flag.String("mutation", "", "only those whose package and name match this")
)

// A mutation is a fault: edits of the program and the test that must fail.
type mutation struct {
	name  string
	edits []edit
	pkg   string // with the test, below the module
	test  string // pattern for -run
	args  []string
}

// An edit replaces a text that stands in a file exactly once.
type edit struct{ file, old, new string }

// all returns the faults of all lists.
func all() (ms []*mutation) {
	for _, l := range [][]mutation{list, recoveryList, controlList, layerList, simulationList, transferList, keysList} {
		for i := range l {
			ms = append(ms, &l[i])
		}
	}
	return ms
}

// root is the folder of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// apply returns the files as they are with the edits made.
func (m *mutation) apply(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, e := range m.edits {
		path := filepath.Join(root(t), filepath.FromSlash(e.file))
		p, ok := files[path]
		if !ok {
			var err error
			if p, err = os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(string(p), e.old); n != 1 {
			t.Errorf("%s: the text stands %d times in %s, want once: %q", m.name, n, e.file, e.old)
		}
		files[path] = []byte(strings.Replace(string(p), e.old, e.new, 1))
	}
	return files
}

// TestMutationsFit checks that each edit still fits the program, so that the
// list does not rot.
func TestMutationsFit(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range all() {
		if seen[m.name] || m.name == "" || m.pkg == "" || m.test == "" || len(m.edits) == 0 {
			t.Errorf("mutation %q: a name stands twice, or something is missing", m.name)
		}
		seen[m.name] = true
		m.apply(t)
	}
}

// TestMutationsAreCaught makes each mutation and wants its test to fail.
func TestMutationsAreCaught(t *testing.T) {
	if !*catch {
		t.Skip("run by hand: make mutations")
	}
	pattern := regexp.MustCompile(*only)
	for _, m := range all() {
		if !pattern.MatchString(m.pkg + ": " + m.name) {
			continue
		}
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			out, err := m.run(t)
			switch {
			case err == nil && bytes.Contains(out, []byte("[no tests to run]")):
				t.Errorf("there is no test %s in %s", m.test, m.pkg)
			case err == nil:
				t.Errorf("survived: %s -run %s passes with it", m.pkg, m.test)
			case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
				t.Errorf("does not build:\n%s", out)
			case !bytes.Contains(out, []byte("--- FAIL")) && !bytes.Contains(out, []byte("panic: ")):
				t.Errorf("ended otherwise than by a failed test: %v\n%s", err, out)
			default:
				t.Logf("caught by %s -run %s", m.pkg, m.test)
			}
		})
	}
}

// run runs the mutation's test over the mutated program.
func (m *mutation) run(t *testing.T) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{Replace: map[string]string{}}
	for path, p := range m.apply(t) {
		mutated := filepath.Join(dir, strings.ReplaceAll(filepath.Base(path), ".go", "_mutated.go"))
		if err := os.WriteFile(mutated, p, 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[path] = mutated
	}
	p, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, p, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"test", "-overlay", file, "-count=1", "-vet=off", "-failfast", "-run", m.test, "./" + m.pkg}, m.args...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root(t)
	return cmd.CombinedOutput()
}
