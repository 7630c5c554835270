package head

import (
	"bytes"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
)

var updateGolden = flag.Bool("update", false, "write the golden files")

func filled(b byte) (id snapferry.VersionID) {
	copy(id[:], bytes.Repeat([]byte{b}, len(id)))
	return id
}

// goldenStacks are the stacks of testdata/*.sfstk.
func goldenStacks() map[string]stack {
	return map[string]stack{
		"new.sfstk":   {Size: 1 << 30, Next: 2, Layers: []uint64{1}},
		"over.sfstk":  {Size: 512, Under: filled(7), Base: filled(7), Next: 2, Layers: []uint64{1}},
		"grown.sfstk": {Size: snapferry.MaxVolumeSize, Under: filled(7), Base: filled(9), Clean: 3, Next: 1<<40 + 1, Layers: []uint64{2, 3, 5, 1 << 40}},
	}
}

func TestStackGolden(t *testing.T) {
	for name, want := range goldenStacks() {
		path := filepath.Join("testdata", name)
		if *updateGolden {
			if err := os.WriteFile(path, want.encode(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeStack(p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", name, diff)
		}
		if !bytes.Equal(want.encode(), p) {
			t.Errorf("%s: got % x, want % x", name, want.encode(), p)
		}
	}
}

// summed gives a record that was changed the checksum that it must have.
func summed(p []byte) []byte {
	body := p[:len(p)-4]
	return binary.BigEndian.AppendUint32(bytes.Clone(body), crc32.Checksum(body, castagnoli))
}

func TestStackRefuses(t *testing.T) {
	good := stack{Size: 1 << 30, Under: filled(1), Base: filled(2), Clean: 2, Next: 9, Layers: []uint64{1, 2, 4}}
	changed := func(fn func(s *stack)) []byte {
		s := good.clone()
		fn(&s)
		return s.encode()
	}
	poked := func(off int, b byte) []byte {
		p := good.encode()
		p[off] = b
		return summed(p)
	}
	if _, err := decodeStack(good.encode()); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][]byte{
		"nothing":               nil,
		"another magic":         poked(0, 'X'),
		"reserved":              poked(6, 1),
		"more layers than said": poked(67, 2),
		"fewer":                 poked(67, 4),
		"too many":              poked(64, 1),
		"cut":                   good.encode()[:stackHead+8],
		"longer":                append(good.encode(), 0),
		"no size":               changed(func(s *stack) { s.Size = 0 }),
		"negative size":         changed(func(s *stack) { s.Size = -512 }),
		"odd size":              changed(func(s *stack) { s.Size = 513 }),
		"too large":             changed(func(s *stack) { s.Size = snapferry.MaxVolumeSize + 512 }),
		"no layer":              changed(func(s *stack) { s.Layers = nil }),
		"layer 0":               changed(func(s *stack) { s.Layers[0] = 0 }),
		"descending":            changed(func(s *stack) { s.Layers[1] = 1 }),
		"layer of later":        changed(func(s *stack) { s.Next = 4 }),
		"clean top":             changed(func(s *stack) { s.Clean = 4 }),
		"clean without base":    changed(func(s *stack) { s.Base, s.Under = snapferry.VersionID{}, snapferry.VersionID{} }),
		"under without base":    changed(func(s *stack) { s.Base, s.Clean = snapferry.VersionID{}, 0 }),
	} {
		if _, err := decodeStack(p); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", name, err)
		}
	}
	if _, err := decodeStack(poked(4, 2)); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("a newer version: got %v, want Unsupported", err)
	}
	// No single bit may change unseen.
	for i := range 8 * len(good.encode()) {
		p := good.encode()
		p[i/8] ^= 1 << (i % 8)
		if _, err := decodeStack(p); err == nil {
			t.Errorf("bit %d of byte %d: got no error", i%8, i/8)
		}
	}
}

// FuzzStack decodes anything: what is taken has one form and can be.
func FuzzStack(f *testing.F) {
	for _, s := range goldenStacks() {
		f.Add(s.encode())
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, q := range [][]byte{p, summed(append(bytes.Clone(p), 0, 0, 0, 0))} {
			s, err := decodeStack(q)
			if err != nil {
				if k := snapferry.KindOf(err); k != snapferry.Corrupt && k != snapferry.Unsupported {
					t.Fatalf("error of kind %v", k)
				}
				continue
			}
			if !bytes.Equal(s.encode(), q) {
				t.Fatalf("% x is encoded as % x", q, s.encode())
			}
		}
	})
}
