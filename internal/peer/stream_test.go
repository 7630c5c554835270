package peer

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/transfer"
)

var update = flag.Bool("update", false, "write the golden files anew")

// samples are streams of each kind, written by the writer.
func samples(tb testing.TB) map[string][]byte {
	tb.Helper()
	leaf, inner := &blockmap.Node{}, &blockmap.Node{Level: 1}
	leaf.Append(0, digest.Block([]byte("a")), snapferry.Ref{Length: 100}, 0)
	leaf.Append(255, digest.Block([]byte("b")), snapferry.Ref{Length: 65536}, 0)
	inner.Append(3, leaf.Digest(), snapferry.Ref{}, 2)
	out := map[string][]byte{}
	write := func(name string, fn func(*streamWriter) error, end error) {
		var b bytes.Buffer
		w, err := newStreamWriter(&b, blockBuffer)
		if err = errors.Join(err, fn(w), w.end(end)); err != nil {
			tb.Fatal(err)
		}
		out[name] = b.Bytes()
	}
	write("nodes", func(w *streamWriter) error {
		return errors.Join(w.node(snapferry.Position{Level: 1, Index: 0}, inner), w.node(snapferry.Position{Index: 3}, leaf))
	}, nil)
	write("blocks", func(w *streamWriter) error {
		return errors.Join(
			w.block(transfer.Frame{Block: 7, Codec: snapferry.Stored, RawLength: 5, Payload: []byte("hello")}),
			w.block(transfer.Frame{Block: 1 << 30, Codec: snapferry.Zstd, RawLength: 65536, Payload: []byte("packed")}))
	}, nil)
	write("failed", func(w *streamWriter) error {
		return w.block(transfer.Frame{Block: 7, Codec: snapferry.Stored, RawLength: 5, Payload: []byte("hello")})
	}, snapferry.Errorf(snapferry.Corrupt, "block 8 is damaged"))
	write("empty", func(*streamWriter) error { return nil }, nil)
	return out
}

func TestGolden(t *testing.T) {
	for name, got := range samples(t) {
		file := filepath.Join("testdata", name+".sfps")
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%x\nwant\n%x", name, got, want)
		}
	}
}

// readAll reads a stream of one type to its end.
func readAll(p []byte, typ uint8) (items int, err error) {
	r := newStreamReader(bytes.NewReader(p), blockBuffer)
	if err := r.begin(); err != nil {
		return 0, err
	}
	for {
		it, err := r.next(typ)
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err == nil && typ == itemNode {
			_, _, err = it.node()
		}
		if err != nil {
			return items, err
		}
		items++
	}
}

func TestStream(t *testing.T) {
	for name, test := range map[string]struct {
		typ   uint8
		items int
		kind  snapferry.Kind
	}{
		"nodes": {itemNode, 2, snapferry.Internal}, "blocks": {itemBlock, 2, snapferry.Internal},
		"empty": {itemBlock, 0, snapferry.Internal}, "failed": {itemBlock, 1, snapferry.Corrupt},
	} {
		p := samples(t)[name]
		n, err := readAll(p, test.typ)
		if n != test.items || (err == nil) != (test.kind == snapferry.Internal) || err != nil && !snapferry.IsKind(err, test.kind) {
			t.Errorf("%s: got %d items, %v, want %d, %v", name, n, err, test.items, test.kind)
		}
		// Cut anywhere it is Unavailable, and says so at once.
		for i := range p {
			if _, err := readAll(p[:i], test.typ); !snapferry.IsKind(err, snapferry.Unavailable) && !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s cut at %d: got %v, want Unavailable or Corrupt", name, i, err)
			}
		}
		if _, err := readAll(append(bytes.Clone(p), 0), test.typ); err == nil {
			t.Errorf("%s: bytes after the end are accepted", name)
		}
		if other := itemNode + itemBlock - test.typ; test.items > 0 {
			if _, err := readAll(p, other); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s read as type %d: got %v, want Corrupt", name, other, err)
			}
		}
	}
}

func TestStreamRefuses(t *testing.T) {
	block := func(change func(p []byte)) []byte {
		p := samples(t)["blocks"]
		change(p)
		return p
	}
	for name, test := range map[string]struct {
		p    []byte
		kind snapferry.Kind
	}{
		"magic":    {block(func(p []byte) { p[0] = 'x' }), snapferry.Corrupt},
		"version":  {block(func(p []byte) { p[4] = 2 }), snapferry.Unsupported},
		"reserved": {block(func(p []byte) { p[6] = 1 }), snapferry.Corrupt},
		"type":     {block(func(p []byte) { p[8] = 9 }), snapferry.Corrupt},
		"item":     {block(func(p []byte) { p[10] = 1 }), snapferry.Corrupt},
		"length":   {block(func(p []byte) { p[24] = 0xff }), snapferry.Corrupt},
		"end":      {block(func(p []byte) { p[len(p)-20+8] = 1 }), snapferry.Corrupt},
	} {
		if _, err := readAll(test.p, itemBlock); !snapferry.IsKind(err, test.kind) {
			t.Errorf("%s: got %v, want %v", name, err, test.kind)
		}
	}
	// What another region calls internal may pass.
	var b bytes.Buffer
	w, err := newStreamWriter(&b, blockBuffer)
	if err = errors.Join(err, w.end(errors.New("secret"))); err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(b.Bytes(), itemBlock); !snapferry.IsKind(err, snapferry.Unavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("internal error: got %v, want Unavailable without its text", err)
	}
}

func FuzzStream(f *testing.F) {
	for _, p := range samples(f) {
		f.Add(p, true)
		f.Add(p, false)
	}
	f.Fuzz(func(t *testing.T, p []byte, block bool) {
		typ := uint8(itemNode)
		if block {
			typ = itemBlock
		}
		if _, err := readAll(p, typ); err != nil && snapferry.KindOf(err) == snapferry.Internal {
			t.Errorf("got %v, an error without a kind", err)
		}
	})
}
