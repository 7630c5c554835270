package layering_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// rooms is the house: floor, folder of the room, and below it the further
// packages of the same room, which may import each other. The root is ".".
// Rooms may stand here before they are built.
const rooms = `
0 digest
0 extent
0 internal/layering
0 internal/neterr
0 internal/testtool
1 internal/toxitest
1 internal/linktest
1 .
2 seal
2 internal/xts
2 blockmap
2 segment
2 record
2 dump
2 nbd
3 internal/blob dirblob s3blob s3blob/s3test memblob blobtest
3 internal/meta metatest
3 internal/kms filekms awskms azurekms transitkms alikms kmshttp kmstest
3 internal/layer layertest
3 internal/pki
3 internal/handoff
3 internal/limit
4 internal/keystore
4 internal/vault
4 internal/head
4 internal/source
4 internal/transfer
4 internal/policy
4 internal/meter
4 internal/job
5 internal/control
5 internal/fsck
5 internal/recovery
6 internal/peer
6 internal/export
6 internal/api/internal/wire
6 client
7 internal/api/nativeapi
7 internal/api/awsapi
7 internal/api/aliapi
7 internal/api/azureapi
7 internal/console
8 cmd/snapferry
9 internal/simtest
9 internal/mutation
9 bench/linktest
`

// kept is what only some rooms may import: a prefix of import paths, then the
// rooms and packages that may, or ">=N" for the floors from N on.
const kept = `
net/http                     >=6 internal/blob/s3blob internal/kms internal/testtool internal/toxitest
database/sql                 internal/meta
github.com/pressly/goose     internal/meta
modernc.org/sqlite           internal/meta
github.com/anishathalye      internal/simtest
github.com/aws               internal/blob/s3blob internal/kms
github.com/minio             internal/blob/s3blob
github.com/Azure             internal/kms
github.com/aliyun            internal/kms
github.com/hashicorp/vault   internal/kms
github.com/openbao           internal/kms
cloud.google.com             internal/kms
`

// environment lists the functions of package os that read or change the
// environment; only environmentRoom may call them.
var environment = []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv"}

const environmentRoom = "cmd/snapferry"

// pkg is what the check has to know of a package.
type pkg struct {
	imports []string // import paths; of this module as folders, with "./" before
	env     []string // functions of environment that it uses
	comment bool     // it has a package comment
}

// house is the two tables, read.
type house struct {
	floor map[string]int    // of each folder
	room  map[string]string // of each folder
	kept  []keptRule
}

type keptRule struct {
	prefix string
	from   int // floor from which on it is allowed; -1: none
	in     []string
}

func readHouse(rooms, kept string) (house, error) {
	h := house{floor: map[string]int{}, room: map[string]string{}}
	for line := range strings.Lines(rooms) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		floor, err := strconv.Atoi(f[0])
		if err != nil || len(f) < 2 {
			return h, fmt.Errorf("line %q is not a floor and a room", line)
		}
		for i, sub := range f[1:] {
			dir := f[1]
			if i > 0 {
				dir = path.Join(dir, sub)
			}
			if _, twice := h.floor[dir]; twice {
				return h, fmt.Errorf("%s stands in the table twice", dir)
			}
			h.floor[dir], h.room[dir] = floor, f[1]
		}
	}
	for line := range strings.Lines(kept) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		rule := keptRule{prefix: f[0], from: -1}
		for _, w := range f[1:] {
			n, isFloor := strings.CutPrefix(w, ">=")
			if !isFloor {
				rule.in = append(rule.in, w)
				continue
			}
			var err error
			if rule.from, err = strconv.Atoi(n); err != nil {
				return h, fmt.Errorf("line %q has a bad floor", line)
			}
		}
		h.kept = append(h.kept, rule)
	}
	return h, nil
}

// check returns what is against the rules in a graph of packages by folder,
// in order.
func (h house) check(graph map[string]pkg) []string {
	var bad []string
	for _, dir := range slices.Sorted(maps.Keys(graph)) {
		p := graph[dir]
		if !p.comment {
			bad = append(bad, dir+": has no package comment")
		}
		if _, ok := h.floor[dir]; !ok {
			bad = append(bad, dir+": is not in the table of rooms")
			continue
		}
		for _, imp := range slices.Sorted(slices.Values(p.imports)) {
			if to, ours := strings.CutPrefix(imp, "./"); ours {
				bad = append(bad, h.checkRoom(dir, to)...)
			} else {
				bad = append(bad, h.checkKept(dir, imp)...)
			}
		}
		if dir != environmentRoom {
			for _, fn := range p.env {
				bad = append(bad, fmt.Sprintf("%s: uses os.%s, which is kept to %s", dir, fn, environmentRoom))
			}
		}
	}
	return bad
}

func (h house) checkRoom(dir, to string) []string {
	floor, ok := h.floor[to]
	switch {
	case !ok:
		return []string{fmt.Sprintf("%s: imports %s, which is not in the table of rooms", dir, to)}
	case isTest(to) && !isTest(dir):
		return []string{fmt.Sprintf("%s: imports %s, which is for tests", dir, to)}
	case h.room[dir] == h.room[to], floor < h.floor[dir]:
		return nil
	case floor == h.floor[dir]:
		return []string{fmt.Sprintf("%s: imports %s of its own floor %d", dir, to, floor)}
	}
	return []string{fmt.Sprintf("%s: floor %d imports %s of floor %d", dir, h.floor[dir], to, floor)}
}

// isTest reports whether a package is for tests only, by its name.
func isTest(dir string) bool { return strings.HasSuffix(dir, "test") }

func (h house) checkKept(dir, imp string) []string {
	for _, rule := range h.kept {
		if !within(imp, rule.prefix) {
			continue
		}
		allowed := rule.from >= 0 && h.floor[dir] >= rule.from ||
			slices.ContainsFunc(rule.in, func(room string) bool { return within(dir, room) })
		if !allowed {
			return []string{fmt.Sprintf("%s: imports %s, which is kept to other rooms", dir, imp)}
		}
	}
	return nil
}

// within reports whether p is the path dir or below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// readGraph parses the Go files of the module at root, those of tests apart.
// Modules within the module are left out, as are testdata and hidden folders.
func readGraph(root string) (map[string]pkg, error) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(string(mod), "\n")
	module := strings.TrimSpace(strings.TrimPrefix(first, "module"))
	graph := map[string]pkg{}
	err = filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return skipDir(root, name)
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(rel)
		p := graph[dir]
		if !strings.HasSuffix(name, "_test.go") { // of tests only the folder counts
			p, err = addFile(p, module, name)
		}
		graph[dir] = p
		return err
	})
	return graph, err
}

func skipDir(root, name string) error {
	base := filepath.Base(name)
	if name == root {
		return nil
	}
	if base == "testdata" || base == "vendor" || base[0] == '.' || base[0] == '_' {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}

func addFile(p pkg, module, name string) (pkg, error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return p, err
	}
	p.comment = p.comment || strings.TrimSpace(file.Doc.Text()) != ""
	osName := ""
	for _, spec := range file.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return p, err
		}
		if imp == "os" {
			osName = "os"
			if spec.Name != nil {
				osName = spec.Name.Name
			}
		}
		if within(imp, module) {
			imp = "./" + path.Join(".", strings.TrimPrefix(imp, module))
		}
		if !slices.Contains(p.imports, imp) {
			p.imports = append(p.imports, imp)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if fn, ok := environmentUse(n, osName); ok && !slices.Contains(p.env, fn) {
			p.env = append(p.env, fn)
		}
		return true
	})
	return p, nil
}

// environmentUse finds os.Getenv and its sisters, as a call or as a value, also
// under another name of the import and after a dot import.
func environmentUse(n ast.Node, osName string) (string, bool) {
	switch n := n.(type) {
	case *ast.SelectorExpr:
		x, ok := n.X.(*ast.Ident)
		return n.Sel.Name, ok && osName != "" && x.Name == osName && slices.Contains(environment, n.Sel.Name)
	case *ast.Ident:
		return n.Name, osName == "." && slices.Contains(environment, n.Name)
	}
	return "", false
}

func mustHouse(t *testing.T) house {
	t.Helper()
	h, err := readHouse(rooms, kept)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHouse holds the module against the tables.
func TestHouse(t *testing.T) {
	graph, err := readGraph(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := graph["internal/layering"]; !ok {
		t.Fatalf("the walk did not find this package among %d", len(graph))
	}
	for _, v := range mustHouse(t).check(graph) {
		t.Error(v)
	}
}

// TestPlanted breaks each rule in a graph and sees it caught.
func TestPlanted(t *testing.T) {
	h := mustHouse(t)
	ok := func(imports ...string) pkg { return pkg{imports: imports, comment: true} }
	tests := []struct {
		name  string
		graph map[string]pkg
		want  []string
	}{
		{"clean", map[string]pkg{
			"digest": ok("crypto/sha256"), ".": ok("./digest"), "blockmap": ok("./.", "./digest", "./extent"),
			"internal/blob/dirblob": ok("./internal/blob", "./."), "internal/blob/s3blob": ok("net/http", "github.com/aws/aws-sdk-go-v2/aws"),
			"internal/kms/filekms": ok("net/http"), "internal/meta": ok("database/sql", "github.com/pressly/goose/v3"),
			"internal/peer": ok("net/http", "./internal/pki"), "internal/blob/blobtest": ok("./internal/blob/memblob", "testing"),
			"cmd/snapferry": {env: []string{"Getenv"}, comment: true},
		}, nil},
		{"upwards", map[string]pkg{"digest": ok("./.")}, []string{"digest: floor 0 imports . of floor 1"}},
		{"upwards by far", map[string]pkg{"record": ok("./internal/control")}, []string{"record: floor 2 imports internal/control of floor 5"}},
		{"own floor", map[string]pkg{"segment": ok("./seal")}, []string{"segment: imports seal of its own floor 2"}},
		{"a neighbour's part", map[string]pkg{"internal/meta": ok("./internal/blob/memblob")}, []string{"internal/meta: imports internal/blob/memblob of its own floor 3"}},
		{"unknown room", map[string]pkg{"internal/util": ok()}, []string{"internal/util: is not in the table of rooms"}},
		{"import of an unknown room", map[string]pkg{"internal/job": ok("./internal/util")}, []string{"internal/job: imports internal/util, which is not in the table of rooms"}},
		{"http below", map[string]pkg{"internal/control": ok("net/http")}, []string{"internal/control: imports net/http, which is kept to other rooms"}},
		{"http in parts", map[string]pkg{"internal/pki": ok("net/http/httputil")}, []string{"internal/pki: imports net/http/httputil, which is kept to other rooms"}},
		{"http in another driver", map[string]pkg{"internal/blob/dirblob": ok("net/http")}, []string{"internal/blob/dirblob: imports net/http, which is kept to other rooms"}},
		{"sql", map[string]pkg{"internal/job": ok("database/sql/driver")}, []string{"internal/job: imports database/sql/driver, which is kept to other rooms"}},
		{"sdk", map[string]pkg{"internal/vault": ok("github.com/aws/aws-sdk-go-v2/service/s3")}, []string{"internal/vault: imports github.com/aws/aws-sdk-go-v2/service/s3, which is kept to other rooms"}},
		{"environment", map[string]pkg{"internal/job": {env: []string{"Getenv", "Environ"}, comment: true}}, []string{
			"internal/job: uses os.Getenv, which is kept to cmd/snapferry", "internal/job: uses os.Environ, which is kept to cmd/snapferry",
		}},
		{"test code", map[string]pkg{"internal/vault": ok("./internal/blob/blobtest")}, []string{"internal/vault: imports internal/blob/blobtest, which is for tests"}},
		{"no comment", map[string]pkg{"seal": {}}, []string{"seal: has no package comment"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(h.check(test.graph), test.want); diff != "" {
				t.Errorf("violations (-got +want):\n%s", diff)
			}
		})
	}
}

// TestPlantedFiles does it with real files, so that the parsing is tested too.
func TestPlantedFiles(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":                      "module example.org/house\n\ngo 1.26\n",
		"house.go":                    "// Package house is the root.\npackage house\n",
		"digest/digest.go":            "// Package digest.\npackage digest\n\nimport _ \"example.org/house\"\n",
		"digest/testdata/x/x.go":      "package x\n\nimport _ \"net/http\"\n",
		"digest/digest_test.go":       "package digest\n\nimport _ \"net/http\"\n",
		"seal/a.go":                   "package seal\n",
		"seal/b.go":                   "// Package seal is commented in one of its files.\npackage seal\n\nimport \"example.org/house/digest\"\n",
		"segment/a_linux.go":          "//go:build linux\n\npackage segment\n\nimport h \"net/http\"\n",
		"internal/job/job.go":         "// Package job.\npackage job\n\nimport sys \"os\"\n\nvar home = sys.Getenv\n",
		"internal/vault/vault.go":     "// Package vault.\npackage vault\n\nimport . \"os\"\n\nfunc f() string { return Getenv(\"HOME\") }\n",
		"internal/stray/only_test.go": "package stray\n",
		"tools/go.mod":                "module example.org/house/tools\n",
		"tools/tools.go":              "package tools\n",
	} {
		file := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	graph, err := readGraph(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"digest: floor 0 imports . of floor 1",
		"internal/job: uses os.Getenv, which is kept to cmd/snapferry",
		"internal/stray: has no package comment",
		"internal/stray: is not in the table of rooms",
		"internal/vault: uses os.Getenv, which is kept to cmd/snapferry",
		"segment: has no package comment",
		"segment: imports net/http, which is kept to other rooms",
	}
	if diff := cmp.Diff(mustHouse(t).check(graph), want); diff != "" {
		t.Errorf("violations (-got +want):\n%s", diff)
	}
}

// TestBadTable refuses tables that say nothing certain.
func TestBadTable(t *testing.T) {
	for _, bad := range []string{"digest", "x digest", "1", "0 a\n1 a", "0 a b\n3 a/b"} {
		if _, err := readHouse(bad, ""); err == nil {
			t.Errorf("table %q was accepted", bad)
		}
	}
	if _, err := readHouse("", "net/http >=six"); err == nil {
		t.Error("a bad floor was accepted")
	}
}
