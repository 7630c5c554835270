package layertest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// cuts is how many seeds a test looks at to see all that can come of a cut.
const cuts = 200

func open(t testing.TB, fsys layer.FS, name string) layer.File {
	t.Helper()
	f, err := fsys.OpenFile(name, true)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, f layer.File, p string, off int64) {
	t.Helper()
	if _, err := f.WriteAt([]byte(p), off); err != nil {
		t.Fatal(err)
	}
}

// content returns what a file has, or "-".
func content(t testing.TB, fsys layer.FS, name string) string {
	t.Helper()
	f, err := fsys.OpenFile(name, false)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return "-"
	}
	must(t, err)
	defer f.Close()
	size, _, err := f.Stat()
	must(t, err)
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// outcomes returns all that a file system shows after a cut, as see says it.
func outcomes(t *testing.T, prepare func(p *layertest.Power), see func(p *layertest.Power) string) []string {
	t.Helper()
	seen := map[string]bool{}
	for seed := range uint64(cuts) {
		p := layertest.New(t)
		prepare(p)
		seen[see(p.Cut(seed))] = true
	}
	all := make([]string, 0, len(seen))
	for s := range seen {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

// replace puts a new file in the place of "record", as one does it; wrong leaves
// a step out.
func replace(t *testing.T, p *layertest.Power, body, wrong string) {
	f := open(t, p, "record.tmp")
	write(t, f, body, 0)
	if wrong != "sync" {
		must(t, f.Datasync())
	}
	must(t, f.Close())
	must(t, p.Rename("record.tmp", "record"))
	if wrong != "syncdir" {
		must(t, p.SyncDir("."))
	}
}

func TestReplace(t *testing.T) {
	for wrong, want := range map[string][]string{
		"":        {"new"},
		"syncdir": {"new", "old"},
		"sync":    {"", "\x00\x00\x00", "new"},
	} {
		got := outcomes(t, func(p *layertest.Power) {
			replace(t, p, "old", "")
			replace(t, p, "new", wrong)
		}, func(p *layertest.Power) string { return content(t, p, "record") })
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("without %q (-got +want):\n%s", wrong, diff)
		}
	}
}

func TestNames(t *testing.T) {
	see := func(p *layertest.Power) string { return content(t, p, "d/a") + content(t, p, "d/b") }
	for _, test := range []struct {
		name string
		do   func(p *layertest.Power)
		want []string
	}{
		{"new files", func(p *layertest.Power) {
			must(t, open(t, p, "d/a").Datasync())
			must(t, open(t, p, "d/b").Datasync())
		}, []string{"", "-", "--"}},
		{"a directory synced above only", func(p *layertest.Power) {
			must(t, open(t, p, "d/a").Datasync())
			must(t, p.SyncDir("."))
		}, []string{"-", "--"}},
		{"synced", func(p *layertest.Power) {
			must(t, open(t, p, "d/a").Datasync())
			must(t, p.SyncDir("d"))
		}, []string{"-"}},
		{"removed", func(p *layertest.Power) {
			open(t, p, "d/a")
			must(t, p.SyncDir("d"))
			must(t, p.Remove("d/a"))
		}, []string{"-", "--"}},
	} {
		got := outcomes(t, func(p *layertest.Power) {
			must(t, p.Mkdir("d"))
			must(t, p.SyncDir("."))
			test.do(p)
		}, see)
		if diff := cmp.Diff(got, test.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", test.name, diff)
		}
	}
}

// sectors shows the first byte of each sector of a file.
func sectors(t testing.TB, p *layertest.Power, name string) string {
	s := content(t, p, name)
	var out strings.Builder
	for i := 0; i < len(s); i += 512 {
		out.WriteByte(max(s[i], '.'))
	}
	return out.String()
}

func TestTorn(t *testing.T) {
	see := func(p *layertest.Power) string { return sectors(t, p, "f") }
	two := func(b string) string { return strings.Repeat(b, 1024) }
	prepare := func(p *layertest.Power) layer.File {
		f := open(t, p, "f")
		write(t, f, two("a"), 0)
		must(t, f.Datasync())
		must(t, p.SyncDir("."))
		return f
	}
	for _, test := range []struct {
		name string
		do   func(p *layertest.Power, f layer.File)
		want []string
	}{
		{"written", func(_ *layertest.Power, f layer.File) { write(t, f, two("b"), 0) }, []string{"aa", "ab", "ba", "bb"}},
		{"written and synced", func(_ *layertest.Power, f layer.File) {
			write(t, f, two("b"), 0)
			must(t, f.Datasync())
		}, []string{"bb"}},
		{"punched", func(_ *layertest.Power, f layer.File) { must(t, f.Punch(0, 512)) }, []string{".a", "aa"}},
		{"extended", func(_ *layertest.Power, f layer.File) { write(t, f, two("b")[:512], 1024) }, []string{"aa", "aa.", "aab"}},
		{"dropped by a sync that failed", func(p *layertest.Power, f layer.File) {
			write(t, f, two("b")[:512], 0)
			p.Inject(layertest.Nth(p.Ops(), syscall.EIO, layertest.Nothing))
			if err := f.Datasync(); !errors.Is(err, syscall.EIO) {
				t.Errorf("sync: got %v", err)
			}
			if got := sectors(t, p, "f"); got != "ba" {
				t.Errorf("before the cut: got %s, want ba", got)
			}
			write(t, f, two("c")[:512], 512)
			must(t, f.Datasync())
		}, []string{"ac", "bc"}},
	} {
		got := outcomes(t, func(p *layertest.Power) { test.do(p, prepare(p)) }, see)
		if diff := cmp.Diff(got, test.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", test.name, diff)
		}
	}
}

func TestFaults(t *testing.T) {
	for how, want := range map[layertest.How]string{layertest.Nothing: "", layertest.Half: "b", layertest.All: "bb"} {
		p := layertest.New(t)
		f := open(t, p, "f")
		p.Inject(layertest.Nth(p.Ops(), syscall.EIO, how))
		if _, err := f.WriteAt(bytes.Repeat([]byte("b"), 1024), 0); !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("write: got %v", err)
		}
		if got := sectors(t, p, "f"); got != want {
			t.Errorf("%v: got %q, want %q", how, got, want)
		}
	}
	p := layertest.New(t)
	f := open(t, p, "f")
	p.Limit(4096)
	n, err := f.WriteAt(make([]byte, 8192), 1<<40)
	if n != 4096 || !snapferry.IsKind(err, snapferry.Full) {
		t.Errorf("write on a full disk: got %d, %v", n, err)
	}
	must(t, f.Punch(0, 1<<41))
	if p.Used() != 0 {
		t.Errorf("used: got %d, want 0", p.Used())
	}
	if _, err := f.ReadAt(make([]byte, 8192), 1<<40); !errors.Is(err, io.EOF) {
		t.Errorf("read across the end: got %v", err)
	}
	p.Cut(1)
	write := func() error { _, err := f.WriteAt([]byte("b"), 0); return err }
	for what, err := range map[string]error{"write": write(), "sync": f.Datasync(), "mkdir": p.Mkdir("d")} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s after the cut: got %v", what, err)
		}
	}
}

// complaints is a test that notes what it is failed for.
type complaints struct {
	testing.TB
	all []string
}

func (c *complaints) Errorf(format string, args ...any) {
	c.all = append(c.all, fmt.Sprintf(format, args...))
}

func TestMisuse(t *testing.T) {
	for name, do := range map[string]func(p *layertest.Power, f layer.File){
		"write after close": func(_ *layertest.Power, f layer.File) { f.Close(); f.WriteAt([]byte("a"), 0) },
		"sync after close":  func(_ *layertest.Power, f layer.File) { f.Close(); f.Datasync() },
		"close twice":       func(_ *layertest.Power, f layer.File) { f.Close(); f.Close() },
		"before the start":  func(_ *layertest.Power, f layer.File) { f.ReadAt([]byte("a"), -1) },
		"punch of nothing":  func(_ *layertest.Power, f layer.File) { f.Punch(512, 0) },
		"two writes at once": func(p *layertest.Power, f layer.File) {
			again := false
			p.Inject(func(layertest.Op) layertest.Fault {
				if !again {
					again = true
					f.WriteAt([]byte("ab"), 5)
				}
				return layertest.Fault{}
			})
			f.WriteAt([]byte("ab"), 6)
		},
	} {
		c := &complaints{TB: t}
		p := layertest.New(c)
		do(p, open(t, p, "f"))
		if len(c.all) != 1 {
			t.Errorf("%s: got complaints %q, want one", name, c.all)
		}
	}
	p := layertest.New(t)
	f, g := open(t, p, "f"), open(t, p, "f")
	p.Inject(func(op layertest.Op) layertest.Fault {
		if op.Off == 6 {
			write(t, g, "ab", 8)
		}
		return layertest.Fault{}
	})
	write(t, f, "ab", 6) // beside it
	if p.Handles() != 2 {
		t.Errorf("handles: got %d, want 2", p.Handles())
	}
}
