package record_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

var update = flag.Bool("update", false, "write the golden files")

var _ record.Sealer = (*seal.RecordKey)(nil)

var (
	private = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, ed25519.SeedSize))
	public  = private.Public().(ed25519.PublicKey)

	sameRecord = cmp.Options{cmpopts.IgnoreUnexported(record.Record{}, record.Hold{}), cmpopts.EquateEmpty()}
)

// sample has every field.
func sample() *record.Record {
	created := time.UnixMilli(1_700_000_000_123).UTC()
	v := snapferry.VersionID{0xee, 15: 1}
	return &record.Record{
		Version: v, Revision: 3, Chain: snapferry.ChainID{0xc0, 15: 2}, Parent: snapferry.VersionID{0xee, 15: 3},
		State: snapferry.VersionSealed, Region: "east", Account: "acct-00000000000000001", Volume: "vol-00000000000000002",
		Incarnation: 4, Token: 5, Algorithm: digest.SHA256, Size: 10 << 30, Blocks: 77, Created: created,
		Set:    &record.Set{ID: "set-1", Members: []snapferry.VersionID{{0xee, 15: 9}, v}},
		Root:   []byte("the root node as stored"),
		Digest: digest.Digest{1, 2, 3, 31: 4},
		Holds: []record.Hold{
			{
				Kind: record.HoldSnapshot, Owner: "snap-00000000000000003", Name: "nightly", Description: "before the Umbau, größer",
				VolumeName: "db", Tags: snapferry.Tags{"env": "prod", "empty": "", "a": "b"}, Created: created.Add(time.Second),
				RetainUntil: created.AddDate(1, 0, 0), LockUntil: created.AddDate(0, 1, 0),
				SourceRegion: "west", SourceSnapshot: "snap-00000000000000004", SourceVolume: "vol-00000000000000005",
			},
			{Kind: record.HoldVolume, Owner: "vol-00000000000000006"},
			{Kind: record.HoldBin, Owner: "snap-00000000000000007", RetainUntil: created},
		},
	}
}

// bare has no field that may be absent.
func bare() *record.Record {
	r := sample()
	return &record.Record{
		Version: r.Version, Revision: 1, Chain: r.Chain, State: record.Forwarded, Region: "e", Account: "a", Volume: "v",
		Algorithm: digest.SHA256, Size: 512, Created: r.Created,
	}
}

// held has the optional fields of holds.
func held() *record.Record {
	r := sample()
	r.Holds[0].SourceLineage = "vol-00000000000000008"
	r.Holds = []record.Hold{r.Holds[0], {
		Kind: record.HoldPin, Owner: "pin-1", Created: r.Created,
		PinRegion: "west", PinIncarnation: 9, PinCopy: "copy-00000000000000009", PinSnapshot: "snap-00000000000000003",
	}}
	return r
}

// member is of a version in a set of which a snapshot was deleted.
func member() *record.Record {
	r := sample()
	r.Holds[0].SetSize = 3
	return r
}

func recordKey(t testing.TB, r *record.Record) *seal.RecordKey {
	t.Helper()
	k, err := seal.NewRecordKey(bytes.Repeat([]byte{0xda}, seal.KeySize), r.Chain, r.Version)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func encode(t testing.TB, r *record.Record, s record.Sealer) []byte {
	t.Helper()
	p, err := r.Encode(private, s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type golden struct {
	name   string
	record *record.Record
	sealed bool
}

func goldens() []golden {
	return []golden{{"plain.sfrec", sample(), false}, {"bare.sfrec", bare(), false}, {"held.sfrec", held(), false}, {"member.sfrec", member(), false}, {"sealed.sfrec", sample(), true}}
}

func (g golden) sealer(t testing.TB) record.Sealer {
	if g.sealed {
		return recordKey(t, g.record)
	}
	return nil
}

func (g golden) read(t testing.TB) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", g.name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGolden(t *testing.T) {
	for _, g := range goldens() {
		now := encode(t, g.record, g.sealer(t))
		if *update {
			if err := os.WriteFile(filepath.Join("testdata", g.name), now, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		p := g.read(t)
		if len(now) != len(p) || !g.sealed && !bytes.Equal(now, p) {
			t.Errorf("%s: what is written now differs", g.name)
		}
		got, err := record.Decode(p, public, g.sealer(t))
		if err != nil || !got.Private() {
			t.Errorf("%s: %v, private part known: %v", g.name, err, got.Private())
		}
		if d := cmp.Diff(got, g.record, sameRecord); d != "" {
			t.Errorf("%s: -got +want\n%s", g.name, d)
		}
	}
}

func TestSealedWithoutKey(t *testing.T) {
	want := sample()
	p := encode(t, want, recordKey(t, want))
	for _, secret := range [][]byte{want.Digest[:], want.Root, []byte("nightly"), []byte("prod")} {
		if bytes.Contains(p, secret) {
			t.Errorf("%q is in a sealed record", secret)
		}
	}
	got, err := record.Decode(p, public, nil)
	if err != nil || got.Private() {
		t.Fatalf("%v, private part known: %v", err, got.Private())
	}
	want.Root, want.Digest, want.Holds = nil, digest.Digest{}, nil
	if d := cmp.Diff(got, want, sameRecord); d != "" {
		t.Errorf("-got +want\n%s", d)
	}
	if _, err := got.Encode(private, nil); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("encode without the private part: got %v, want Invalid", err)
	}
	other := sample()
	other.Version = snapferry.VersionID{1}
	if _, err := record.Decode(p, public, recordKey(t, other)); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("with another version's key: got %v, want Corrupt", err)
	}
	if _, err := record.Decode(encode(t, sample(), nil), public, recordKey(t, sample())); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("a plain record in an encrypted chain: got %v, want Corrupt", err)
	}
}

// Each flip of any byte and each cut is found.
func TestEveryByteCounts(t *testing.T) {
	for _, g := range goldens() {
		p := g.read(t)
		for i := range p {
			for _, flip := range []byte{0x01, 0x80, 0xff} {
				p[i] ^= flip
				if _, err := record.Decode(p, public, nil); !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
					t.Errorf("%s, byte %d flipped by %#x: got %v", g.name, i, flip, err)
				}
				p[i] ^= flip
			}
			if _, err := record.Decode(p[:i], public, nil); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s cut to %d bytes: got %v, want Corrupt", g.name, i, err)
			}
		}
		if _, err := record.Decode(append(p, 0), public, nil); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s with a byte more: got %v, want Corrupt", g.name, err)
		}
	}
}

func TestKeys(t *testing.T) {
	p := encode(t, sample(), nil)
	other := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	if _, err := record.Decode(p, other, nil); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("another region's key: got %v, want Corrupt", err)
	}
	if _, err := record.Decode(p, other[:31], nil); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("a short public key: got %v, want Invalid", err)
	}
	if _, err := sample().Encode(private[:32], nil); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("a short private key: got %v, want Invalid", err)
	}
	p[5] = 2
	if _, err := record.Decode(p, public, nil); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("a newer version: got %v, want Unsupported", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(r *record.Record){
		"version":         func(r *record.Record) { r.Version = snapferry.VersionID{} },
		"revision":        func(r *record.Record) { r.Revision = 0 },
		"chain":           func(r *record.Record) { r.Chain = snapferry.ChainID{} },
		"open":            func(r *record.Record) { r.State = snapferry.VersionOpen },
		"no state":        func(r *record.Record) { r.State = "" },
		"forward":         func(r *record.Record) { r.Forward = snapferry.VersionID{1} },
		"own parent":      func(r *record.Record) { r.Parent = r.Version },
		"region":          func(r *record.Record) { r.Region = "East" },
		"account":         func(r *record.Record) { r.Account = "" },
		"volume":          func(r *record.Record) { r.Volume = "\xff" },
		"algorithm":       func(r *record.Record) { r.Algorithm = 0 },
		"size":            func(r *record.Record) { r.Size = 511 },
		"blocks":          func(r *record.Record) { r.Blocks = 10<<30/65536 + 1 },
		"created":         func(r *record.Record) { r.Created = time.Time{} },
		"root missing":    func(r *record.Record) { r.Root = nil },
		"root of nothing": func(r *record.Record) { r.Blocks = 0 },
		"root too long":   func(r *record.Record) { r.Root = make([]byte, record.MaxRoot+1) },
		"ghost with hold": func(r *record.Record) { r.State = snapferry.VersionGhost },
		"hold kind":       func(r *record.Record) { r.Holds[0].Kind = "reader" },
		"no hold kind":    func(r *record.Record) { r.Holds[0].Kind = "" },
		"hold owner":      func(r *record.Record) { r.Holds[0].Owner = "" },
		"hold twice":      func(r *record.Record) { r.Holds = append(r.Holds, r.Holds[0]) },
		"hold name":       func(r *record.Record) { r.Holds[0].Name = "\xff" },
		"hold lineage":    func(r *record.Record) { r.Holds[0].SourceLineage = "\xff" },
		"hold pin":        func(r *record.Record) { r.Holds[0].PinCopy = "\xff" },
		"hold tags":       func(r *record.Record) { r.Holds[0].Tags = snapferry.Tags{"": "x"} },
		"hold time":       func(r *record.Record) { r.Holds[0].LockUntil = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"set id":          func(r *record.Record) { r.Set.ID = "" },
		"long set id":     func(r *record.Record) { r.Set.ID = strings.Repeat("s", 256) },
		"set of others":   func(r *record.Record) { r.Set.Members = r.Set.Members[:1] },
		"set repeats":     func(r *record.Record) { r.Set.Members = append(r.Set.Members, r.Version) },
		"set with zero":   func(r *record.Record) { r.Set.Members[0] = snapferry.VersionID{} },
	} {
		r := sample()
		change(r)
		if _, err := r.Encode(private, nil); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	r := sample()
	r.Holds[0].Description = strings.Repeat("d", record.MaxSize)
	if _, err := r.Encode(private, nil); !snapferry.IsKind(err, snapferry.Full) {
		t.Errorf("too long: got %v, want Full", err)
	}
}

// Holds may come in any order; the record has one form, and Encode leaves the
// caller's value alone.
func TestHoldOrder(t *testing.T) {
	want := encode(t, sample(), nil)
	r := sample()
	slices.Reverse(r.Holds)
	first := r.Holds[0].Kind
	if got := encode(t, r, nil); !bytes.Equal(got, want) || r.Holds[0].Kind != first {
		t.Error("the order of the holds shows in the record")
	}
}

func TestName(t *testing.T) {
	v := snapferry.VersionID{0xab, 15: 1}
	for revision, want := range map[uint64]string{
		1:         "versions/ab000000000000000000000000000001/00000000000000000001",
		1<<64 - 1: "versions/ab000000000000000000000000000001/18446744073709551615",
	} {
		got := record.Name(v, revision)
		id, n, err := record.ParseName(got)
		if got != want || id != v || n != revision || err != nil || !strings.HasPrefix(got, record.Prefix()) {
			t.Errorf("got %q, want %q; parsed as %s %d, %v", got, want, id, n, err)
		}
	}
	ok := record.Name(v, 1)
	for _, bad := range []string{
		"", "versions/", ok[1:], ok + "0", ok[:len(ok)-1], ok + "/", strings.ToUpper(ok), strings.Replace(ok, "ab", "AB", 1), strings.Replace(ok, "ab", "xy", 1),
		ok[:len(ok)-1] + "x", ok[:len(ok)-20] + "+0000000000000000001", ok[:len(ok)-20] + "99999999999999999999",
	} {
		if _, _, err := record.ParseName(bad); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%q: got %v, want Invalid", bad, err)
		}
	}
}

// field is one field as the document has it.
type field struct {
	tag   uint16
	value []byte
}

func parse(t testing.TB, p []byte) (fs []field) {
	t.Helper()
	for len(p) > 0 {
		n := binary.BigEndian.Uint32(p[2:])
		fs = append(fs, field{binary.BigEndian.Uint16(p), bytes.Clone(p[6 : 6+n])})
		p = p[6+n:]
	}
	return fs
}

func join(fs []field) (p []byte) {
	for _, f := range fs {
		p = binary.BigEndian.AppendUint16(p, f.tag)
		p = binary.BigEndian.AppendUint32(p, uint32(len(f.value)))
		p = append(p, f.value...)
	}
	return p
}

func sign(fields []byte) []byte {
	p := append([]byte("SFREC\x01"), fields...)
	return append(p, ed25519.Sign(private, p)...)
}

func unsigned(p []byte) []byte { return p[6 : len(p)-ed25519.SignatureSize] }

// What a region signed is still checked: one form for each record.
func TestDecodeRules(t *testing.T) {
	set := func(tag uint16, value string) func([]field) []field {
		return func(fs []field) []field {
			i := slices.IndexFunc(fs, func(f field) bool { return f.tag == tag })
			fs[i].value = []byte(value)
			return fs
		}
	}
	drop := func(tag uint16) func([]field) []field {
		return func(fs []field) []field { return slices.DeleteFunc(fs, func(f field) bool { return f.tag == tag }) }
	}
	const c = 1 << 15
	tests := map[string]func([]field) []field{
		"swapped":         func(fs []field) []field { fs[0], fs[1] = fs[1], fs[0]; return fs },
		"twice":           func(fs []field) []field { return slices.Insert(fs, 1, fs[0]) },
		"not critical":    func(fs []field) []field { fs[0].tag &^= c; return fs },
		"empty field":     set(c|9, ""),
		"short version":   set(c|1, "x"),
		"zero parent":     set(c|4, string(make([]byte, 16))),
		"state 0":         set(c|5, "\x00"),
		"state 4":         set(c|5, "\x04"),
		"region":          set(c|7, "EAST"),
		"negative size":   set(c|13, "\xff\xff\xff\xff\xff\xff\xff\x00"),
		"created 0":       set(c|15, string(make([]byte, 8))),
		"created late":    set(c|15, "\x00\x01\x00\x00\x00\x00\x00\x00"),
		"set cut":         set(c|16, "\x05set-1x"),
		"set id cut":      set(c|16, "\xffset"),
		"sealed too":      func(fs []field) []field { return append(fs, field{c | 18, make([]byte, 40)}) },
		"private garbage": set(c|17, "garbage"),
		"private huge":    set(c|17, "\x80\x01\xff\xff\xff\xffx"),
		"holds cut":       set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, []byte{0, 0, 1}}}))),
		"holds long":      set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, []byte{0, 0, 0, 9, 1}}}))),
		"hold of nothing": set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, []byte{0, 0, 0, 0}}}))),
		"hold kind 0":     set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, hold(field{c | 1, []byte{0}}, field{c | 2, []byte("o")})}}))),
		"tags":            set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, hold(field{c | 1, []byte{1}}, field{c | 2, []byte("o")}, field{c | 6, []byte("\x01b\x00\x00\x01a\x00\x00")})}}))),
		"tag cut":         set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, hold(field{c | 1, []byte{1}}, field{c | 2, []byte("o")}, field{c | 6, []byte("\x01b\x00")})}}))),
		"zero digest":     set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 2, make([]byte, 32)}}))),
		"no root":         drop(c | 17),
	}
	for _, tag := range []uint16{1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15} {
		tests["without "+string(rune('a'+tag))] = drop(c | tag)
	}
	for name, change := range tests {
		fs := change(parse(t, unsigned(encode(t, sample(), nil))))
		if _, err := record.Decode(sign(join(fs)), public, nil); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", name, err)
		}
	}
	for name, change := range map[string]func([]field) []field{
		"critical field": func(fs []field) []field { return append(fs, field{c | 40, []byte("x")}) },
		"algorithm":      set(c|12, "\x02"),
		"hold kind 6":    set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, hold(field{c | 1, []byte{6}}, field{c | 2, []byte("o")})}}))),
		"hold field":     set(c|17, string(join([]field{{c | 1, []byte("r")}, {c | 3, hold(field{c | 1, []byte{1}}, field{c | 2, []byte("o")}, field{c | 99, []byte("x")})}}))),
	} {
		fs := change(parse(t, unsigned(encode(t, sample(), nil))))
		if _, err := record.Decode(sign(join(fs)), public, nil); !snapferry.IsKind(err, snapferry.Unsupported) {
			t.Errorf("%s: got %v, want Unsupported", name, err)
		}
	}
}

func hold(fs ...field) []byte {
	p := join(fs)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...)
}

// Optional fields of a later program pass through, at every level.
func TestUnknownFieldsPass(t *testing.T) {
	later := field{50, []byte("from a later program")}
	h := hold(field{1<<15 | 1, []byte{1}}, field{1<<15 | 2, []byte("o")}, later)
	inner := join([]field{{1<<15 | 1, []byte("root")}, {1<<15 | 3, h}, later})
	fs := parse(t, unsigned(encode(t, sample(), nil)))
	fs[len(fs)-1].value = inner
	p := sign(join(append(fs, later)))
	r, err := record.Decode(p, public, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := encode(t, r, nil); !bytes.Equal(got, p) {
		t.Errorf("got %q, want %q", got, p)
	}
	for i := range p {
		p[i] = 0
	}
	if got := encode(t, r, nil); bytes.Count(got, later.value) != 3 || !bytes.Contains(got, []byte("root")) {
		t.Error("the record shares memory with what it was decoded from")
	}
}

// Decode accepts one form only: what it accepts, Encode writes again.
func FuzzDecode(f *testing.F) {
	for _, g := range goldens() {
		f.Add(unsigned(g.read(f)), true)
		f.Add(g.read(f), false)
	}
	f.Fuzz(func(t *testing.T, p []byte, signed bool) {
		if signed {
			p = sign(p)
		}
		r, err := record.Decode(p, public, nil)
		if err != nil {
			if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if !r.Private() {
			return
		}
		if got := encode(t, r, nil); !bytes.Equal(got, p) {
			t.Fatalf("written again: got %q, want %q", got, p)
		}
	})
}
