package record_test

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/record"
)

func chainGoldens() map[string]*record.Chain {
	plain := record.Chain{
		ID: snapferry.ChainID{0xc0, 15: 2}, Number: 1, Region: "east", Account: "acct-00000000000000001", AccountName: "main",
		Algorithm: digest.SHA256, Created: time.UnixMilli(1_700_000_000_123).UTC(),
	}
	full := plain
	full.Number, full.OriginRegion, full.OriginChain, full.WrappedKey = 7, "west", snapferry.ChainID{0xc1}, []byte("a wrapped key")
	return map[string]*record.Chain{"plain.sfchn": &plain, "full.sfchn": &full}
}

func encodeChain(t testing.TB, c *record.Chain) []byte {
	t.Helper()
	p, err := c.Encode(private)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var trusted = []ed25519.PublicKey{ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey), public}

func TestChainGolden(t *testing.T) {
	for name, want := range chainGoldens() {
		now := encodeChain(t, want)
		if *update {
			if err := os.WriteFile(filepath.Join("testdata", name), now, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		p := readGolden(t, name)
		if !bytes.Equal(now, p) {
			t.Errorf("%s: what is written now differs", name)
		}
		got, err := record.DecodeChain(p, trusted)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(got, want, cmpopts.IgnoreUnexported(record.Chain{}), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: -got +want\n%s", name, d)
		}
		for i := range p {
			for _, flip := range []byte{0x01, 0x80, 0xff} {
				p[i] ^= flip
				if _, err := record.DecodeChain(p, trusted); !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
					t.Errorf("%s, byte %d flipped by %#x: got %v", name, i, flip, err)
				}
				p[i] ^= flip
			}
			if _, err := record.DecodeChain(p[:i], trusted); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s cut to %d bytes: got %v, want Corrupt", name, i, err)
			}
		}
	}
	if _, err := record.DecodeChain(readGolden(t, "plain.sfchn"), trusted[:1]); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("another region's key: got %v, want Corrupt", err)
	}
	if _, err := record.DecodeChain(readGolden(t, "plain.sfrec"), trusted); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("a version record: got %v, want Corrupt", err)
	}
}

func TestChainRefuses(t *testing.T) {
	for name, change := range map[string]func(*record.Chain){
		"chain":         func(c *record.Chain) { c.ID = snapferry.ChainID{} },
		"number":        func(c *record.Chain) { c.Number = 0 },
		"region":        func(c *record.Chain) { c.Region = "East" },
		"account":       func(c *record.Chain) { c.Account = "" },
		"account name":  func(c *record.Chain) { c.AccountName = "\xff" },
		"algorithm":     func(c *record.Chain) { c.Algorithm = 0 },
		"created":       func(c *record.Chain) { c.Created = time.Time{} },
		"origin region": func(c *record.Chain) { c.OriginRegion = "West"; c.OriginChain = snapferry.ChainID{1} },
		"half origin":   func(c *record.Chain) { c.OriginRegion = "west" },
		"other half":    func(c *record.Chain) { c.OriginChain = snapferry.ChainID{1} },
	} {
		c := chainGoldens()["plain.sfchn"]
		change(c)
		if _, err := c.Encode(private); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	c := chainGoldens()["plain.sfchn"]
	c.WrappedKey = make([]byte, record.MaxChainSize)
	if _, err := c.Encode(private); !snapferry.IsKind(err, snapferry.Full) {
		t.Errorf("too long: got %v, want Full", err)
	}
	if _, err := c.Encode(private[:9]); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("a short key: got %v, want Invalid", err)
	}
}

func TestChainName(t *testing.T) {
	id := snapferry.ChainID{0xab, 15: 1}
	const want = "chain/ab000000000000000000000000000001/key.00000000000000000012"
	got, n, err := record.ParseChainName(record.ChainName(id, 12))
	if record.ChainName(id, 12) != want || got != id || n != 12 || err != nil {
		t.Errorf("got %q, want %q; parsed as %s %d, %v", record.ChainName(id, 12), want, got, n, err)
	}
	for _, bad := range []string{"", "chain/", want[1:], want + "0", want[:len(want)-1], strings.Replace(want, "key.", "key-", 1), strings.Replace(want, "ab", "AB", 1), want[:len(want)-1] + "x"} {
		if _, _, err := record.ParseChainName(bad); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%q: got %v, want Invalid", bad, err)
		}
	}
}

func FuzzDecodeChain(f *testing.F) {
	for name := range chainGoldens() {
		p := readGolden(f, name)
		f.Add(unsigned(p), true)
		f.Add(p, false)
	}
	f.Fuzz(func(t *testing.T, p []byte, signed bool) {
		if signed {
			p = append([]byte("SFCHN\x01"), p...)
			p = append(p, ed25519.Sign(private, p)...)
		}
		c, err := record.DecodeChain(p, trusted)
		if err != nil {
			if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if got := encodeChain(t, c); !bytes.Equal(got, p) {
			t.Fatalf("written again: got %q, want %q", got, p)
		}
	})
}
