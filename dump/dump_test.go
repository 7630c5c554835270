package dump_test

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/seal"
)

var update = flag.Bool("update", false, "write the golden files")

var _ dump.Sealer = (*seal.DumpKey)(nil)

func key(t testing.TB, b byte) *seal.DumpKey {
	t.Helper()
	k, err := seal.NewDumpKey(bytes.Repeat([]byte{b}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sample has every field.
func sample() *dump.Dump {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	return &dump.Dump{
		Number: 12,
		Region: dump.Region{
			Name: "east", ID: "b1946ac9", Incarnation: 4, SignKey: bytes.Repeat([]byte{5}, 64), LookupKey: []byte("lookup"),
			Trusted: [][]byte{[]byte("a"), []byte("b")}, Created: at,
		},
		Accounts: []dump.Account{
			{Account: snapferry.Account{ID: "acct-1", Name: "main"}, TokenHash: "abcd", Created: at},
			{Account: snapferry.Account{ID: "acct-2", Name: "größer"}},
		},
		Chains: []dump.Chain{
			{ID: snapferry.ChainID{1}, Account: "acct-1", Algorithm: digest.SHA256, Created: at},
			{ID: snapferry.ChainID{2}, Account: "acct-2", Algorithm: digest.SHA256, WrappedKey: []byte("key"), OriginRegion: "west", OriginChain: snapferry.ChainID{9}, Created: at},
		},
		Volumes: []dump.Volume{
			{ID: "vol-1", Account: "acct-1", Name: "db", Chain: snapferry.ChainID{1}, Created: at},
			{ID: "vol-2", Account: "acct-2", Name: "db", Chain: snapferry.ChainID{2}, OriginRegion: "west", OriginVolume: "vol-7", Created: at},
		},
		Audit: []dump.Audit{{At: at, Account: "acct-1", Action: "ImportSnapshot", Subject: "snap-1", Detail: "db"}, {At: at}},
	}
}

const golden = "testdata/sample.sfdmp"

func encode(t testing.TB, d *dump.Dump) []byte {
	t.Helper()
	p, err := d.Encode(key(t, 6))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func read(t testing.TB) []byte {
	t.Helper()
	p, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGolden(t *testing.T) {
	now := encode(t, sample())
	if *update {
		if err := os.WriteFile(golden, now, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	p := read(t)
	if len(now) != len(p) {
		t.Errorf("what is written now has %d bytes, not %d", len(now), len(p))
	}
	got, err := dump.Decode(p, key(t, 6))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(got, sample(), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("-got +want\n%s", d)
	}
	for _, secret := range []string{"main", "abcd", "acct-1", "db", "ImportSnapshot", "lookup", "b1946ac9"} {
		if bytes.Contains(p, []byte(secret)) {
			t.Errorf("%q can be read in a dump", secret)
		}
	}
	if n, err := dump.Number(p); n != 12 || err != nil {
		t.Errorf("number: got %d, %v, want 12", n, err)
	}
}

// Each flip of any byte and each cut is found.
func TestEveryByteCounts(t *testing.T) {
	p, k := read(t), key(t, 6)
	for i := range p {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			p[i] ^= flip
			if _, err := dump.Decode(p, k); !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Errorf("byte %d flipped by %#x: got %v", i, flip, err)
			}
			p[i] ^= flip
		}
		if _, err := dump.Decode(p[:i], k); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("cut to %d bytes: got %v, want Corrupt", i, err)
		}
	}
	if _, err := dump.Decode(append(p, 0), k); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("with a byte more: got %v, want Corrupt", err)
	}
	if _, err := dump.Decode(p, key(t, 7)); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("with another key: got %v, want Corrupt", err)
	}
	p[5] = 2
	if _, err := dump.Decode(p, k); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("a newer version: got %v, want Unsupported", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(d *dump.Dump){
		"number":          func(d *dump.Dump) { d.Number = 0 },
		"region":          func(d *dump.Dump) { d.Region.Name = "East" },
		"region id":       func(d *dump.Dump) { d.Region.ID = "" },
		"key":             func(d *dump.Dump) { d.Region.SignKey = nil },
		"keys":            func(d *dump.Dump) { d.Region.Trusted[0] = []byte("c") },
		"account":         func(d *dump.Dump) { d.Accounts[0].ID = "" },
		"account name":    func(d *dump.Dump) { d.Accounts[0].Name = "" },
		"text":            func(d *dump.Dump) { d.Accounts[0].Name = "\xff" },
		"long text":       func(d *dump.Dump) { d.Accounts[0].Name = strings.Repeat("x", dump.MaxText+1) },
		"account twice":   func(d *dump.Dump) { d.Accounts[1] = d.Accounts[0] },
		"chain":           func(d *dump.Dump) { d.Chains[0].ID = snapferry.ChainID{} },
		"chain's account": func(d *dump.Dump) { d.Chains[0].Account = "x" },
		"long key":        func(d *dump.Dump) { d.Chains[0].WrappedKey = make([]byte, dump.MaxText+1) },
		"volume's chain":  func(d *dump.Dump) { d.Volumes[0].Chain = snapferry.ChainID{7} },
		"volumes swapped": func(d *dump.Dump) { d.Volumes[0], d.Volumes[1] = d.Volumes[1], d.Volumes[0] },
		"time":            func(d *dump.Dump) { d.Audit[0].At = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		d := sample()
		change(d)
		if _, err := d.Encode(key(t, 6)); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	d := sample()
	d.Audit = make([]dump.Audit, 1100)
	for i := range d.Audit {
		d.Audit[i].Detail = strings.Repeat("x", dump.MaxText)
	}
	if _, err := d.Encode(key(t, 6)); !snapferry.IsKind(err, snapferry.Full) {
		t.Errorf("too long: got %v, want Full", err)
	}
}

func TestName(t *testing.T) {
	const want = "dump/00000000000000000012"
	if n, err := dump.ParseName(want); dump.Name(12) != want || n != 12 || err != nil || !strings.HasPrefix(want, dump.Prefix()) {
		t.Errorf("got %q, want %q; parsed as %d, %v", dump.Name(12), want, n, err)
	}
	for _, bad := range []string{"", "dump/", want[1:], want + "0", want[:len(want)-1], want[:len(want)-1] + "x", "dump/00000000000000000000"} {
		if _, err := dump.ParseName(bad); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%q: got %v, want Invalid", bad, err)
		}
	}
}

// open is a Sealer that seals nothing, so that a fuzzer reaches what is inside.
type open struct{}

func (open) Seal(dst, plain []byte, _ uint64) []byte {
	return append(append(append(dst, make([]byte, 12)...), plain...), make([]byte, 16)...)
}

func (open) Open(dst, sealed []byte, _ uint64) ([]byte, error) {
	if len(sealed) < 28 || !bytes.Equal(sealed[:12], make([]byte, 12)) || !bytes.Equal(sealed[len(sealed)-16:], make([]byte, 16)) {
		return nil, snapferry.Errorf(snapferry.Corrupt, "not sealed")
	}
	return append(dst, sealed[12:len(sealed)-16]...), nil
}

// Decode accepts one form only: what it accepts, Encode writes again.
func FuzzDecode(f *testing.F) {
	p, err := sample().Encode(open{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p, false)
	f.Add(p[14+12:len(p)-16], true)
	f.Add(read(f), false)
	f.Fuzz(func(t *testing.T, p []byte, inner bool) {
		if inner {
			p = open{}.Seal([]byte("SFDMP\x01\x00\x00\x00\x00\x00\x00\x00\x07"), p, 7)
		}
		d, err := dump.Decode(p, open{})
		if err != nil {
			if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if got, err := d.Encode(open{}); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("written again: got %q, %v, want %q", got, err, p)
		}
	})
}
