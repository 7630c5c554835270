package record_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

var _ record.Sealer = (*seal.KeyringKey)(nil)

var sameKeyring = cmp.Options{
	cmpopts.IgnoreUnexported(record.Keyring{}, record.MasterKey{}, record.KeyDefault{}), cmpopts.EquateEmpty(),
}

func ringKey(t testing.TB) *seal.KeyringKey {
	t.Helper()
	k, err := seal.NewKeyringKey(bytes.Repeat([]byte{6}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// keyring has every field.
func keyring() *record.Keyring {
	created := time.UnixMilli(1_700_000_000_123).UTC()
	const account = snapferry.AccountID("acct-00000000000000001")
	return &record.Keyring{
		Number: 7, Region: "east", ID: "region-1",
		Keys: []record.MasterKey{
			{
				Key: snapferry.Key{
					ID: "key-00000000000000001", Account: account, Region: "east", Kind: snapferry.KeyService, Aliases: []string{"service"},
					Driver: snapferry.EmbeddedKeys, State: snapferry.KeyEnabled, Generation: 3, Created: created, Rotated: created.Add(time.Hour),
				},
				Generations: []record.Generation{
					{Number: 1, Secret: bytes.Repeat([]byte{1}, record.SecretSize), Created: created},
					{Number: 3, Secret: bytes.Repeat([]byte{3}, record.SecretSize), Created: created.Add(time.Hour)},
				},
			},
			{
				Key: snapferry.Key{
					ID: "key-00000000000000002", Account: account, Region: "east", Kind: snapferry.KeyCustomer, Aliases: []string{"db", "db-2"},
					Description: "für die Datenbank", Driver: "aws", External: "arn:aws:kms:eu-central-1:111122223333:key/1", Generation: 1, Created: created,
					State: snapferry.KeyPendingDeletion, DeletesAt: created.AddDate(0, 0, 7),
				},
				Generations: []record.Generation{{Number: 1, Created: created}},
			},
			{
				Key: snapferry.Key{
					ID: "key-00000000000000003", Account: "acct-00000000000000002", Region: "east", Kind: snapferry.KeyCustomer,
					Driver: snapferry.EmbeddedKeys, State: snapferry.KeyDeleted, Generation: 1, Created: created,
				},
				Generations: []record.Generation{{Number: 1, Created: created}},
			},
		},
		Defaults: []record.KeyDefault{{Account: account, Encrypt: true, Key: "key-00000000000000002"}, {Account: "acct-00000000000000002", Encrypt: true}},
	}
}

func TestKeyring(t *testing.T) {
	want := keyring()
	p, err := want.Encode(ringKey(t))
	if err != nil {
		t.Fatal(err)
	}
	got, err := record.DecodeKeyring(p, ringKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(got, want, sameKeyring); d != "" {
		t.Error(d)
	}
	if bytes.Contains(p, bytes.Repeat([]byte{3}, 8)) || bytes.Contains(p, []byte("Datenbank")) {
		t.Error("the content can be read without the key")
	}
}

func TestKeyringGolden(t *testing.T) {
	path := filepath.Join("testdata", "full.sfkey")
	if *update {
		p, err := keyring().Encode(ringKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := record.DecodeKeyring(p, ringKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(got, keyring(), sameKeyring); d != "" {
		t.Error(d)
	}
}

// A keyring that was changed, cut, moved to another number or sealed under
// another key is refused.
func TestKeyringDamaged(t *testing.T) {
	p, err := keyring().Encode(ringKey(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range p {
		bad := bytes.Clone(p)
		bad[i] ^= 0x40
		if _, err := record.DecodeKeyring(bad, ringKey(t)); err == nil {
			t.Errorf("byte %d flipped: it is read", i)
		}
		if _, err := record.DecodeKeyring(p[:i], ringKey(t)); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("cut to %d bytes: got %v, want Corrupt", i, err)
		}
	}
	moved := bytes.Clone(p)
	binary.BigEndian.PutUint64(moved[6:], 8)
	if _, err := record.DecodeKeyring(moved, ringKey(t)); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("under another number: got %v, want Corrupt", err)
	}
	newer := bytes.Clone(p)
	newer[5]++
	if _, err := record.DecodeKeyring(newer, ringKey(t)); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("of a newer version: got %v, want Unsupported", err)
	}
	other, err := seal.NewKeyringKey(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := record.DecodeKeyring(p, other); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("with another key: got %v, want Corrupt", err)
	}
}

func TestKeyringRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*record.Keyring){
		"no number":                  func(k *record.Keyring) { k.Number = 0 },
		"no region":                  func(k *record.Keyring) { k.Region = "" },
		"no id of the region":        func(k *record.Keyring) { k.ID = "" },
		"a key twice":                func(k *record.Keyring) { k.Keys[1] = k.Keys[0] },
		"a key of another region":    func(k *record.Keyring) { k.Keys[0].Region = "west" },
		"an id that is none":         func(k *record.Keyring) { k.Keys[0].ID = "key-1" },
		"no account":                 func(k *record.Keyring) { k.Keys[0].Account = "" },
		"no driver":                  func(k *record.Keyring) { k.Keys[0].Driver = "" },
		"no kind":                    func(k *record.Keyring) { k.Keys[0].Kind = "" },
		"an unknown state":           func(k *record.Keyring) { k.Keys[0].State = "lost" },
		"no generation":              func(k *record.Keyring) { k.Keys[0].Generations = nil },
		"another generation":         func(k *record.Keyring) { k.Keys[0].Generation = 2 },
		"generations out of order":   func(k *record.Keyring) { k.Keys[0].Generations[0].Number = 3 },
		"a short secret":             func(k *record.Keyring) { k.Keys[0].Generations[0].Secret = []byte{1} },
		"a secret of an external":    func(k *record.Keyring) { k.Keys[1].Generations[0].Secret = make([]byte, record.SecretSize) },
		"a secret of a deleted":      func(k *record.Keyring) { k.Keys[2].Generations[0].Secret = make([]byte, record.SecretSize) },
		"an external without a name": func(k *record.Keyring) { k.Keys[1].External = "" },
		"an embedded with a name":    func(k *record.Keyring) { k.Keys[0].External = "x" },
		"a deletion without a time":  func(k *record.Keyring) { k.Keys[1].DeletesAt = time.Time{} },
		"a time without a deletion":  func(k *record.Keyring) { k.Keys[0].DeletesAt = k.Keys[0].Created },
		"no time of creation":        func(k *record.Keyring) { k.Keys[0].Created = time.Time{} },
		"an alias like an id":        func(k *record.Keyring) { k.Keys[0].Aliases = []string{"key-x"} },
		"aliases out of order":       func(k *record.Keyring) { k.Keys[1].Aliases = []string{"db-2", "db"} },
		"an alias of two":            func(k *record.Keyring) { k.Keys[1].Aliases = []string{"service"} },
		"a default twice":            func(k *record.Keyring) { k.Defaults[1] = k.Defaults[0] },
		"another's key as default":   func(k *record.Keyring) { k.Defaults[1].Key = k.Keys[0].ID },
	} {
		k := keyring()
		spoil(k)
		if _, err := k.Encode(ringKey(t)); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
}

func TestKeyringName(t *testing.T) {
	name := record.KeyringName(12)
	if n, err := record.ParseKeyringName(name); err != nil || n != 12 {
		t.Errorf("%s: got %d, %v", name, n, err)
	}
	for _, bad := range []string{"", "keyring/", "keyring/12", "keyring/0000000000000000000x", "keyring/00000000000000000000", "dump/00000000000000000012"} {
		if _, err := record.ParseKeyringName(bad); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%q: got %v, want Invalid", bad, err)
		}
	}
}

// openSealer seals nothing, so that a fuzzer sees what is inside.
type openSealer struct{}

func (openSealer) Seal(dst, plain []byte, _ uint64) []byte {
	return append(append(dst, make([]byte, seal.Overhead)...), plain...)
}

func (openSealer) Open(dst, sealed []byte, _ uint64) ([]byte, error) {
	return append(dst, sealed[seal.Overhead:]...), nil
}

// What is read is written again as the same bytes.
func FuzzKeyring(f *testing.F) {
	p, err := keyring().Encode(openSealer{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		k, err := record.DecodeKeyring(p, openSealer{})
		if err != nil {
			return
		}
		again, err := k.Encode(openSealer{})
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if !bytes.Equal(again[14+seal.Overhead:], p[14+seal.Overhead:]) {
			t.Fatal("what was read is written as other bytes")
		}
	})
}
