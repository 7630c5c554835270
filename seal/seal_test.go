package seal_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/seal"
)

var (
	dataKey = bytes.Repeat([]byte{7}, seal.KeySize)
	chain   = snapferry.ChainID{1}
	segment = snapferry.SegmentID{2}
	info    = snapferry.FrameInfo{
		Kind: snapferry.NodeFrame, Codec: snapferry.Zstd, RawLength: 4096,
		Position: snapferry.Position{Level: 1, Index: 17},
	}
)

const slot = 300

func segmentKey(t testing.TB) *seal.SegmentKey {
	t.Helper()
	k, err := seal.NewSegmentKey(dataKey, chain, segment)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealOpen(t *testing.T) {
	k := segmentKey(t)
	for _, n := range []int{0, 1, 15, 16, 17, 4096, 65536} {
		plain := bytes.Repeat([]byte{byte(n), 3}, n)[:n]
		sealed := k.Seal([]byte("before"), plain, slot, info)
		if got, want := len(sealed), len("before")+n+seal.Overhead; got != want {
			t.Fatalf("sealed %d bytes into %d, want %d", n, got, want)
		}
		got, err := k.Open([]byte("front"), sealed[len("before"):], slot, info)
		if err != nil || string(got) != "front"+string(plain) {
			t.Fatalf("open of %d bytes: %v", n, err)
		}
	}
}

func TestFooterAndRecord(t *testing.T) {
	k := segmentKey(t)
	sealed := k.SealFooter([]byte("x"), []byte("footer"))[1:]
	if got, err := k.OpenFooter(nil, sealed); err != nil || string(got) != "footer" {
		t.Errorf("footer: got %q, %v", got, err)
	}
	if _, err := k.Open(nil, sealed, 0, info); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("a footer opened as a frame: got %v, want Corrupt", err)
	}
	r, err := seal.NewRecordKey(dataKey, chain, snapferry.VersionID(segment))
	if err != nil {
		t.Fatal(err)
	}
	sealed = r.Seal([]byte("x"), []byte("record"), 9)[1:]
	if got, err := r.Open([]byte("a "), sealed, 9); err != nil || string(got) != "a record" {
		t.Errorf("record: got %q, %v", got, err)
	}
	if _, err := r.Open(nil, sealed, 8); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("a record opened as another revision: got %v, want Corrupt", err)
	}
	if _, err := k.OpenFooter(nil, sealed); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("a record opened as a footer: got %v, want Corrupt", err)
	}
}

// Whatever is bound to a frame, when it differs the frame does not open.
func TestFrameIsBound(t *testing.T) {
	sealed := segmentKey(t).Seal(nil, []byte("content"), slot, info)
	type place struct {
		dataKey []byte
		chain   snapferry.ChainID
		segment snapferry.SegmentID
		slot    uint16
		info    snapferry.FrameInfo
	}
	for name, move := range map[string]func(*place){
		"data key":         func(p *place) { p.dataKey = bytes.Repeat([]byte{8}, seal.KeySize) },
		"chain":            func(p *place) { p.chain[15]++ },
		"segment":          func(p *place) { p.segment[15]++ },
		"slot":             func(p *place) { p.slot++ },
		"slot, high byte":  func(p *place) { p.slot += 256 },
		"kind":             func(p *place) { p.info.Kind = snapferry.BlockFrame },
		"codec":            func(p *place) { p.info.Codec = snapferry.S2 },
		"raw length":       func(p *place) { p.info.RawLength++ },
		"raw length, high": func(p *place) { p.info.RawLength += 1 << 24 },
		"level":            func(p *place) { p.info.Level++ },
		"index":            func(p *place) { p.info.Index++ },
		"index, high":      func(p *place) { p.info.Index += 1 << 56 },
	} {
		p := place{dataKey, chain, segment, slot, info}
		move(&p)
		k, err := seal.NewSegmentKey(p.dataKey, p.chain, p.segment)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Open(nil, sealed, p.slot, p.info); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("with another %s: got %v, want Corrupt", name, err)
		}
	}
}

func TestDamageDoesNotOpen(t *testing.T) {
	k := segmentKey(t)
	sealed := k.Seal(nil, []byte("content"), slot, info)
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := k.Open(nil, bad, slot, info); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("byte %d flipped: got %v, want Corrupt", i, err)
		}
		if _, err := k.Open(nil, sealed[:i], slot, info); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("cut to %d bytes: got %v, want Corrupt", i, err)
		}
	}
}

func TestNoncesDiffer(t *testing.T) {
	k := segmentKey(t)
	a, b := k.Seal(nil, []byte("same"), slot, info), k.Seal(nil, []byte("same"), slot, info)
	if bytes.Equal(a[:12], b[:12]) || bytes.Equal(a, b) {
		t.Error("two seals of one frame are equal")
	}
}

func TestKeyLength(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := seal.NewSegmentKey(make([]byte, n), chain, segment); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("segment key from %d bytes: got %v, want Invalid", n, err)
		}
		if _, err := seal.NewRecordKey(make([]byte, n), chain, snapferry.VersionID{}); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("record key from %d bytes: got %v, want Invalid", n, err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	k := segmentKey(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				plain := fmt.Appendf(nil, "frame %d of %d", i, g)
				f := info
				f.Index = uint64(g)<<32 | uint64(i)
				got, err := k.Open(nil, k.Seal(nil, plain, uint16(i), f), uint16(i), f)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("frame %d of goroutine %d: got %q, %v", i, g, got, err)
				}
			}
		})
	}
	wg.Wait()
}

// The slices may share memory in the ways that a writer in place needs.
func TestInPlace(t *testing.T) {
	k := segmentKey(t)
	buf := make([]byte, 0, 4096)
	plain := append(buf, "in place"...)
	sealed := k.Seal(buf, plain, slot, info)
	got, err := k.Open(sealed[:0], sealed, slot, info)
	if err != nil || string(got) != "in place" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops values at random under the race detector")
	}
	k := segmentKey(t)
	plain := make([]byte, 65536)
	sealed := make([]byte, 0, len(plain)+seal.Overhead)
	opened := make([]byte, 0, len(plain))
	if n := testing.AllocsPerRun(100, func() { sealed = k.Seal(sealed[:0], plain, slot, info) }); n != 0 {
		t.Errorf("Seal: got %v allocations, want 0", n)
	}
	if n := testing.AllocsPerRun(100, func() { opened, _ = k.Open(opened[:0], sealed, slot, info) }); n != 0 {
		t.Errorf("Open: got %v allocations, want 0", n)
	}
}

type vector struct {
	DataKey    string `json:"data_key"`
	Chain      string `json:"chain"`
	ID         string `json:"id"`
	Slot       uint16 `json:"slot"`
	Kind       uint8  `json:"kind"`
	Codec      uint8  `json:"codec"`
	RawLength  uint32 `json:"raw_length"`
	Level      uint8  `json:"level"`
	Index      uint64 `json:"index"`
	Revision   uint64 `json:"revision"`
	Plain      string `json:"plain"`
	SegmentKey string `json:"segment_key"`
	FooterKey  string `json:"footer_key"`
	RecordKey  string `json:"record_key"`
	Frame      string `json:"frame"`
	Footer     string `json:"footer"`
	Record     string `json:"record"`
}

func vectors(t *testing.T) []vector {
	t.Helper()
	p, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(p, &vs); err != nil || len(vs) == 0 {
		t.Fatalf("%d vectors, %v", len(vs), err)
	}
	return vs
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	p, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The vectors come from an implementation in another language.
func TestVectors(t *testing.T) {
	for i, v := range vectors(t) {
		chain, id := snapferry.ChainID(unhex(t, v.Chain)), unhex(t, v.ID)
		f := snapferry.FrameInfo{
			Kind: snapferry.FrameKind(v.Kind), Codec: snapferry.Codec(v.Codec), RawLength: v.RawLength,
			Position: snapferry.Position{Level: v.Level, Index: v.Index},
		}
		s, err := seal.NewSegmentKey(unhex(t, v.DataKey), chain, snapferry.SegmentID(id))
		if err != nil {
			t.Fatal(err)
		}
		r, err := seal.NewRecordKey(unhex(t, v.DataKey), chain, snapferry.VersionID(id))
		if err != nil {
			t.Fatal(err)
		}
		check := func(name string, got []byte, err error) {
			t.Helper()
			if err != nil || hex.EncodeToString(got) != v.Plain {
				t.Errorf("vector %d, %s: got %x, %v, want %s", i, name, got, err, v.Plain)
			}
		}
		got, err := s.Open(nil, unhex(t, v.Frame), v.Slot, f)
		check("frame", got, err)
		got, err = s.OpenFooter(nil, unhex(t, v.Footer))
		check("footer", got, err)
		got, err = r.Open(nil, unhex(t, v.Record), v.Revision)
		check("record", got, err)
	}
}

type dumpVector struct {
	RegionKey string `json:"region_key"`
	Number    uint64 `json:"number"`
	Plain     string `json:"plain"`
	DumpKey   string `json:"dump_key"`
	Dump      string `json:"dump"`
}

// The vectors come from an implementation in another language; the key is
// derived a third time by hand.
func TestDumpVectors(t *testing.T) {
	p, err := os.ReadFile("testdata/dumps.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []dumpVector
	if err := json.Unmarshal(p, &vs); err != nil || len(vs) == 0 {
		t.Fatalf("%d vectors, %v", len(vs), err)
	}
	mac := func(key, p []byte) []byte { h := hmac.New(sha256.New, key); h.Write(p); return h.Sum(nil) }
	for i, v := range vs {
		if got := mac(mac(make([]byte, 32), unhex(t, v.RegionKey)), []byte("snapferry dump 1\x00\x01")); hex.EncodeToString(got) != v.DumpKey {
			t.Errorf("vector %d: got key %x, want %s", i, got, v.DumpKey)
		}
		k, err := seal.NewDumpKey(unhex(t, v.RegionKey))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Open(nil, unhex(t, v.Dump), v.Number); err != nil || hex.EncodeToString(got) != v.Plain {
			t.Errorf("vector %d: got %x, %v, want %s", i, got, err, v.Plain)
		}
		sealed := k.Seal([]byte("x"), unhex(t, v.Plain), v.Number)[1:]
		if got, err := k.Open(nil, sealed, v.Number); err != nil || hex.EncodeToString(got) != v.Plain {
			t.Errorf("vector %d, sealed here: got %x, %v", i, got, err)
		}
		if _, err := k.Open(nil, sealed, v.Number-1); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("vector %d, as another number: got %v, want Corrupt", i, err)
		}
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := seal.NewDumpKey(make([]byte, n)); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("dump key from %d bytes: got %v, want Invalid", n, err)
		}
	}
}

// The definition a third time: HKDF from HMAC by hand, GCM with its nonce
// given. It opens what the package sealed and derives the keys of the vectors.
func TestDefinition(t *testing.T) {
	derive := func(dataKey, salt []byte, info string, chain []byte) []byte {
		mac := func(key, p []byte) []byte { h := hmac.New(sha256.New, key); h.Write(p); return h.Sum(nil) }
		prk := mac(salt, dataKey)
		return mac(prk, append(append([]byte(info), chain...), 1))
	}
	for i, v := range vectors(t) {
		dataKey, chain, id := unhex(t, v.DataKey), unhex(t, v.Chain), unhex(t, v.ID)
		for info, want := range map[string]string{
			"snapferry segment 1\x00": v.SegmentKey, "snapferry footer 1\x00": v.FooterKey, "snapferry record 1\x00": v.RecordKey,
		} {
			if got := hex.EncodeToString(derive(dataKey, id, info, chain)); got != want {
				t.Errorf("vector %d, %q: got key %s, want %s", i, info, got, want)
			}
		}
		k, err := seal.NewSegmentKey(dataKey, snapferry.ChainID(chain), snapferry.SegmentID(id))
		if err != nil {
			t.Fatal(err)
		}
		sealed := k.Seal(nil, unhex(t, v.Plain), slot, info)
		block, err := aes.NewCipher(unhex(t, v.SegmentKey))
		if err != nil {
			t.Fatal(err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		aad := append(append([]byte{1}, chain...), id...)
		aad = binary.BigEndian.AppendUint16(aad, slot)
		aad = append(aad, 2, 1)
		aad = binary.BigEndian.AppendUint32(aad, 4096)
		aad = append(aad, 1)
		aad = binary.BigEndian.AppendUint64(aad, 17)
		got, err := gcm.Open(nil, sealed[:12], sealed[12:], aad)
		if err != nil || hex.EncodeToString(got) != v.Plain {
			t.Errorf("vector %d: got %x, %v, want %s", i, got, err, v.Plain)
		}
	}
}

func TestFIPSMode(t *testing.T) {
	if !strings.Contains(os.Getenv("GODEBUG"), "fips140=only") {
		t.Skip("TestFIPSOnly runs it")
	}
	if !fips140.Enabled() || !fips140.Enforced() {
		t.Error("FIPS-only mode is not on")
	}
}

// In FIPS-only mode the standard library refuses what the standard does not
// approve. The mode is chosen at start, so the test runs itself again.
func TestFIPSOnly(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^(TestSealOpen|TestFIPSMode|TestFooterAndRecord|TestFrameIsBound|TestVectors|TestDumpVectors)$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Count(out, []byte("--- PASS")) != 6 {
		t.Errorf("%v\n%s", err, out)
	}
}
