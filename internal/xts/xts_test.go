package xts

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/snapferry/snapferry"
)

func mustNew(t testing.TB, key []byte) *Cipher {
	t.Helper()
	c, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// both calls fn with the cipher that this machine has, and with the twin.
func both(t *testing.T, key []byte, fn func(t *testing.T, c *Cipher)) {
	c := mustNew(t, key)
	if c.fast {
		t.Run("instructions", func(t *testing.T) { fn(t, c) })
	}
	twin := *c
	twin.fast = false
	t.Run("twin", func(t *testing.T) { fn(t, &twin) })
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	p, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestVectors compares with what testdata/vectors.py computed.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Key, Plain, SHA256, First, Last string
		Unit                            uint64
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) != 5 {
		t.Fatalf("got %d vectors", len(vectors))
	}
	for _, v := range vectors {
		plain := sha3.SumSHAKE128([]byte(v.Plain), UnitSize)
		both(t, unhex(t, v.Key), func(t *testing.T, c *Cipher) {
			got := make([]byte, UnitSize)
			c.Encrypt(got, plain, v.Unit)
			sum := sha256.Sum256(got)
			if hex.EncodeToString(sum[:]) != v.SHA256 || hex.EncodeToString(got[:32]) != v.First || hex.EncodeToString(got[UnitSize-32:]) != v.Last {
				t.Errorf("unit %d: got %x ... %x", v.Unit, got[:32], got[UnitSize-32:])
			}
			c.Decrypt(got, got, v.Unit)
			if !bytes.Equal(got, plain) {
				t.Errorf("unit %d does not decrypt", v.Unit)
			}
		})
	}
}

// TestStandard is the beginning of vector 10 of IEEE Std 1619, which has 512
// bytes: what follows in a unit has no part in it.
func TestStandard(t *testing.T) {
	key := unhex(t, "2718281828459045235360287471352662497757247093699959574966967627"+
		"3141592653589793238462643383279502884197169399375105820974944592")
	plain := make([]byte, UnitSize)
	for i := range plain {
		plain[i] = byte(i)
	}
	want := unhex(t, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44")
	both(t, key, func(t *testing.T, c *Cipher) {
		got := make([]byte, UnitSize)
		c.Encrypt(got, plain, 0xff)
		if !bytes.HasPrefix(got, want) {
			t.Errorf("got %x, want %x", got[:len(want)], want)
		}
	})
}

// TestTwins compares the two implementations with each other, over many units.
func TestTwins(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	fill := func(p []byte) {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
	}
	for range 50 {
		key := make([]byte, KeySize)
		fill(key)
		plain := make([]byte, (1+r.IntN(4))*UnitSize)
		fill(plain)
		first := r.Uint64()
		var all [][]byte
		both(t, key, func(t *testing.T, c *Cipher) {
			got := make([]byte, len(plain))
			c.Encrypt(got, plain, first)
			all = append(all, got)
			back := make([]byte, len(plain))
			c.Decrypt(back, got, first)
			if !bytes.Equal(back, plain) {
				t.Error("does not decrypt")
			}
			again := bytes.Clone(plain)
			c.Encrypt(again, again, first)
			if !bytes.Equal(again, got) {
				t.Error("in place it is another")
			}
			c.Encrypt(again[:UnitSize], plain[:UnitSize], first+1)
			if bytes.Equal(again[:UnitSize], got[:UnitSize]) {
				t.Error("the number of a unit is of no account")
			}
		})
		if len(all) == 2 && !bytes.Equal(all[0], all[1]) {
			t.Fatal("the twins differ")
		}
	}
}

func FuzzTwins(f *testing.F) {
	f.Add(bytes.Repeat([]byte{1, 2}, 40), uint64(7), []byte("content"))
	f.Fuzz(func(t *testing.T, key []byte, unit uint64, content []byte) {
		c, err := New(key)
		if err != nil || !c.fast {
			return
		}
		plain := make([]byte, UnitSize)
		copy(plain, content)
		twin := *c
		twin.fast = false
		a, b := make([]byte, UnitSize), make([]byte, UnitSize)
		c.Encrypt(a, plain, unit)
		twin.Encrypt(b, plain, unit)
		if !bytes.Equal(a, b) {
			t.Fatal("the twins differ")
		}
		if c.Decrypt(a, a, unit); !bytes.Equal(a, plain) {
			t.Fatal("does not decrypt")
		}
	})
}

func TestKeys(t *testing.T) {
	for what, key := range map[string][]byte{
		"none": nil, "short": make([]byte, 63), "long": make([]byte, 65), "equal halves": bytes.Repeat([]byte{1}, 64),
	} {
		if _, err := New(key); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", what, err)
		}
	}
}

func BenchmarkXTS(b *testing.B) {
	key := sha3.SumSHAKE128([]byte("key"), KeySize)
	for name, fast := range map[string]bool{"instructions": true, "twin": false} {
		c := *mustNew(b, key)
		if fast && !c.fast {
			continue
		}
		c.fast = fast
		for op, fn := range map[string]func(dst, src []byte, unit uint64){"encrypt": c.Encrypt, "decrypt": c.Decrypt} {
			b.Run(name+"/"+op, func(b *testing.B) {
				p := make([]byte, 64<<10)
				b.SetBytes(int64(len(p)))
				b.ReportAllocs()
				for b.Loop() {
					fn(p, p, 1)
				}
			})
		}
	}
}
