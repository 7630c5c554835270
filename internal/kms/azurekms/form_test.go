package azurekms

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
)

// golden reads what is stored in testdata: a place and its sum, and the stored form
// of 256 bytes 0x00, 0x01, … that a version wrapped.
func golden(tb testing.TB) (place, stored []byte) {
	tb.Helper()
	text, err := os.ReadFile("testdata/form1.txt")
	if err != nil {
		tb.Fatal(err)
	}
	fields := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		p, err := hex.DecodeString(value)
		if err != nil {
			tb.Fatal(err)
		}
		fields[name] = p
	}
	return fields["place"], fields["stored"]
}

func TestGolden(t *testing.T) {
	wantPlace, want := golden(t)
	got, err := sum(place)
	if err != nil || !bytes.Equal(got[:], wantPlace) {
		t.Errorf("place: got %x, %v", got, err)
	}
	sealed := make([]byte, 256)
	for i := range sealed {
		sealed[i] = byte(i)
	}
	const version = "0123456789abcdef0123456789abcdef"
	if p := join(version, sealed); !bytes.Equal(p, want) {
		t.Errorf("stored: got %x", p)
	}
	v, p, err := split(want)
	if err != nil || v != version || !bytes.Equal(p, sealed) {
		t.Errorf("split: %q, %d bytes, %v", v, len(p), err)
	}
}

func TestSplit(t *testing.T) {
	good := join("v1", make([]byte, 256))
	for what, p := range map[string][]byte{
		"nothing": {}, "form 0": append([]byte{0}, good[1:]...), "no length": {1}, "an empty version": append([]byte{1, 0}, good[4:]...),
		"a long version":  join(strings.Repeat("v", 65), make([]byte, 256)),
		"an odd version":  join("../x", make([]byte, 256)),
		"a version only":  {1, 2, 'v', '1'},
		"half a version":  {1, 20, 'v', '1'},
		"too little":      good[:len(good)-1],
		"too much":        join("v1", make([]byte, 1025)),
		"a length of 255": append([]byte{1, 255}, good[2:]...),
	} {
		if _, _, err := split(p); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", what, err)
		}
	}
	if _, _, err := split(append([]byte{2}, good[1:]...)); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("form 2: got %v, want Unsupported", err)
	}
}

func FuzzSplit(f *testing.F) {
	_, stored := golden(f)
	f.Add(stored)
	f.Add(join("v", make([]byte, 1024)))
	f.Add([]byte{1, 64})
	f.Fuzz(func(t *testing.T, p []byte) {
		version, sealed, err := split(p)
		if err != nil {
			if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Errorf("got %v", err)
			}
			return
		}
		if !bytes.Equal(join(version, sealed), p) {
			t.Errorf("%x is not the one form of what it says", p)
		}
	})
}
