package digest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/snapferry/snapferry/digest"
)

// TestVectors holds the code against digests that another program computed.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]digest.Digest{"empty": {}}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 4 {
			t.Fatalf("line %q has %d fields, want 4", line, len(f))
		}
		kind, name, recipe := f[0], f[1], f[2]
		var got digest.Digest
		switch kind {
		case "block":
			got = digest.Block(content(t, recipe))
		case "node":
			got = node(t, known, recipe)
		case "snapshot":
			size, root, _ := strings.Cut(recipe, " ")
			got = digest.Snapshot(int64(number(t, size)), known[root])
		default:
			t.Fatalf("unknown kind %q", kind)
		}
		if hex.EncodeToString(got[:]) != f[3] {
			t.Errorf("%s %s: got %x, want %s", kind, name, got[:], f[3])
		}
		known[name] = got
	}
	if len(known) < 20 {
		t.Errorf("read %d vectors, want at least 20", len(known))
	}
}

func content(t *testing.T, recipe string) (p []byte) {
	t.Helper()
	for part := range strings.SplitSeq(recipe, "+") {
		what, times, _ := strings.Cut(part, "*")
		n := number(t, times)
		if what == "count" {
			for i := range n {
				p = append(p, byte(i))
			}
			continue
		}
		b, err := hex.DecodeString(what)
		if err != nil {
			t.Fatal(err)
		}
		p = append(p, bytes.Repeat(b, n)...)
	}
	return p
}

func node(t *testing.T, known map[string]digest.Digest, recipe string) digest.Digest {
	t.Helper()
	f := strings.Fields(recipe)
	var presence [32]byte
	var children []digest.Digest
	for _, child := range f[1:] {
		indexes, name, _ := strings.Cut(child, "=")
		first, last, isRange := strings.Cut(indexes, "-")
		if !isRange {
			last = first
		}
		for i := number(t, first); i <= number(t, last); i++ {
			presence[i/8] |= 1 << (i % 8)
			children = append(children, known[name])
		}
	}
	return digest.Node(uint8(number(t, f[0])), &presence, children)
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBlockPadding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(rapid.Byte(), 0, 4096).Draw(t, "p")
		padded := make([]byte, digest.BlockSize)
		copy(padded, p)
		if got, want := digest.Block(p), digest.Block(padded); got != want {
			t.Errorf("a block of %d bytes: got %v, want %v as of the padded one", len(p), got, want)
		}
	})
}

func TestBlockTooLong(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a block of 65537 bytes: got no panic")
		}
	}()
	digest.Block(make([]byte, digest.BlockSize+1))
}

// TestDomains: nodes and snapshots of like content have different names.
func TestDomains(t *testing.T) {
	var presence [32]byte
	presence[0] = 1
	child := []digest.Digest{digest.Block([]byte("x"))}
	seen := map[digest.Digest]string{}
	for name, d := range map[string]digest.Digest{
		"leaf":            digest.Node(0, &presence, child),
		"inner":           digest.Node(1, &presence, child),
		"other place":     digest.Node(0, &[32]byte{2}, child),
		"no children":     digest.Node(0, &[32]byte{}, nil),
		"snapshot":        digest.Snapshot(512, child[0]),
		"larger snapshot": digest.Snapshot(1024, child[0]),
		"empty snapshot":  digest.Snapshot(512, digest.Digest{}),
	} {
		if other, ok := seen[d]; ok {
			t.Errorf("%s and %s have one digest, %v", name, other, d)
		}
		seen[d] = name
	}
}

func TestText(t *testing.T) {
	d := digest.Block([]byte("hello"))
	if got, err := digest.Parse(d.String()); err != nil || got != d {
		t.Errorf("Parse(%q): got %v, %v", d.String(), got, err)
	}
	hexes := strings.Repeat("0123456789abcdef", 4)
	for _, s := range []string{
		"", "sha256:", hexes, "sha512:" + hexes, "SHA256:" + hexes, "sha256:" + hexes[1:], "sha256:" + hexes + "0",
		"sha256:" + strings.ToUpper(hexes), "sha256:" + hexes[:63] + "g", " sha256:" + hexes, "sha256:" + hexes + "\n",
	} {
		if got, err := digest.Parse(s); err == nil || !got.IsZero() {
			t.Errorf("Parse(%q): got %v, %v, want zero and an error", s, got, err)
		}
	}
	if _, err := digest.Parse(strings.Repeat("x", 1<<20)); err == nil || len(err.Error()) > 300 {
		t.Errorf("Parse of 1 MiB: the error has %d bytes", len(fmt.Sprint(err)))
	}
}

func TestJSON(t *testing.T) {
	type doc struct {
		A digest.Digest `json:"a"`
		B digest.Digest `json:"b"`
		C digest.Digest `json:"c,omitzero"`
	}
	in := doc{A: digest.Block([]byte("hello"))}
	p, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"a":"` + in.A.String() + `","b":""}`
	if diff := cmp.Diff(string(p), want); diff != "" {
		t.Errorf("JSON (-got +want):\n%s", diff)
	}
	out := doc{B: in.A} // must become zero
	if err := json.Unmarshal(p, &out); err != nil || out != in {
		t.Errorf("read back: got %v, %v, want %v", out, err, in)
	}
	if err := json.Unmarshal([]byte(`{"a":"sha256:00"}`), &out); err == nil {
		t.Error("a short digest in JSON: got no error")
	}
}

func TestReader(t *testing.T) {
	data := bytes.Repeat([]byte("snapferry "), 1000)
	size := int64(len(data))
	want := sha(data)
	changed := bytes.Clone(data)
	changed[5000] ^= 1
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		r    io.Reader
		size int64
		want error // nil: the bytes, all of them
	}{
		{"right", bytes.NewReader(data), size, nil},
		{"one byte at a time", iotest.OneByteReader(bytes.NewReader(data)), size, nil},
		{"data with EOF", iotest.DataErrReader(bytes.NewReader(data)), size, nil},
		{"changed", bytes.NewReader(changed), size, digest.ErrMismatch},
		{"short", bytes.NewReader(data[:size-1]), size, io.ErrUnexpectedEOF},
		{"short, data with EOF", iotest.DataErrReader(bytes.NewReader(data[:size-1])), size, io.ErrUnexpectedEOF},
		{"empty", bytes.NewReader(nil), size, io.ErrUnexpectedEOF},
		{"long", io.MultiReader(bytes.NewReader(data), strings.NewReader("!")), size, digest.ErrMismatch},
		{"a prefix was asked for", bytes.NewReader(data), size - 1, digest.ErrMismatch},
		{"broken off", io.MultiReader(bytes.NewReader(data[:100]), iotest.ErrReader(broken)), size, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := io.ReadAll(digest.NewReader(c.r, c.size, want))
			if !errors.Is(err, c.want) {
				t.Fatalf("got error %v, want %v", err, c.want)
			}
			if c.want == nil && !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, not the %d that were put in", len(got), len(data))
			}
		})
	}
}

func TestReaderOfNothing(t *testing.T) {
	if _, err := io.ReadAll(digest.NewReader(strings.NewReader(""), 0, sha(nil))); err != nil {
		t.Errorf("nothing: got error %v", err)
	}
	if _, err := io.ReadAll(digest.NewReader(strings.NewReader("x"), 0, sha(nil))); !errors.Is(err, digest.ErrMismatch) {
		t.Errorf("one byte too many: got error %v, want ErrMismatch", err)
	}
	if _, err := io.ReadAll(digest.NewReader(strings.NewReader(""), 0, digest.Digest{})); !errors.Is(err, digest.ErrMismatch) {
		t.Errorf("wrong digest: got error %v, want ErrMismatch", err)
	}
}

// TestReaderStaysAtEnd: what Read said at the end it says again.
func TestReaderStaysAtEnd(t *testing.T) {
	data := []byte("abc")
	for _, c := range []struct {
		want error
		d    digest.Digest
	}{{io.EOF, sha(data)}, {digest.ErrMismatch, digest.Digest{}}} {
		r := digest.NewReader(bytes.NewReader(data), 3, c.d)
		if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != c.want {
				t.Errorf("at the end: got %d, %v, want 0, %v", n, err, c.want)
			}
		}
	}
}

// sha is the plain SHA-256 that a Reader checks.
func sha(p []byte) digest.Digest { return sha256.Sum256(p) }
