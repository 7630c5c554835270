package main

import (
	"context"
	"encoding/hex"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// oracle computes a digest with package digest.
func oracle(t rapid.TB, path string) digest.Digest {
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(p))
	level := map[uint64]digest.Digest{}
	block := make([]byte, snapferry.BlockSize)
	for i := uint64(0); len(p) > 0; i++ {
		clear(block)
		p = p[copy(block, p):]
		if strings.Trim(string(block), "\x00") != "" {
			level[i] = digest.Block(block)
		}
	}
	for l := range uint8(4) {
		above := map[uint64]digest.Digest{}
		for i := range level {
			if _, done := above[i/256]; done {
				continue
			}
			var presence [32]byte
			var children []digest.Digest
			for c := range uint64(256) {
				if d, ok := level[i/256*256+c]; ok {
					presence[c/8] |= 1 << (c % 8)
					children = append(children, d)
				}
			}
			above[i/256] = digest.Node(l, &presence, children)
		}
		level = above
	}
	return digest.Snapshot(size, level[0])
}

func TestDigestFile(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(dir, "disk")
		size := 512 * rapid.Int64Range(1, 80<<20/512).Draw(t, "sectors")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 6).Draw(t, "pieces") {
			p := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "piece")
			off := rapid.Int64Range(0, size-1).Draw(t, "offset")
			if _, err := f.WriteAt(p[:min(int64(len(p)), size-off)], off); err != nil {
				t.Fatal(err)
			}
		}
		n, got, err := digestFile(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		if want := oracle(t, path); n != size || got != want {
			t.Errorf("digest of %d bytes is %x, want %x of %d", n, got, want, size)
		}
	})
}

// TestDigestVectors checks the file against vectors that nothing of ours made.
func TestDigestVectors(t *testing.T) {
	p, err := os.ReadFile("../../digest/testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(p)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 4 || f[0] != "snapshot" {
			continue
		}
		size, root, _ := strings.Cut(f[2], " ")
		if root != "empty" {
			continue
		}
		var n int64
		for _, c := range size {
			n = n*10 + int64(c-'0')
		}
		if snapferry.CheckSize(n) != nil || os.Truncate(path, n) != nil {
			continue
		}
		_, got, err := digestFile(t.Context(), path)
		if err != nil || hex.EncodeToString(got[:]) != f[3] {
			t.Errorf("%s: %x %v, want %s", f[1], got, err, f[3])
		}
	}
}

// TestDigestIsIndependent keeps the digest's file away from the code that it
// is to prove.
func TestDigestIsIndependent(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "digest.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		if path := strings.Trim(i.Path.Value, `"`); strings.HasPrefix(path, "github.com/snapferry/snapferry/") {
			t.Errorf("digest.go imports %s", path)
		}
	}
}
