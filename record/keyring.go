package record

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// MaxKeyringSize is the largest length of a keyring in bytes (16 MiB, some
	// 40,000 keys).
	MaxKeyringSize = 16 << 20
	// MaxGenerations is the largest number of generations of a key that a keyring
	// has.
	MaxGenerations = 1000
	// SecretSize is the length of the secret of a generation in bytes.
	SecretSize = 32

	keyringMagic  = "SFKEY"
	keyringPrefix = "keyring/"
	keyringHeader = len(keyringMagic) + 1 + 8 // magic, version, number
	sealOverhead  = 28                        // what a Sealer adds
)

// Keyring is all master keys of a region, with the secrets of those that are
// embedded: one object, of which every change writes the next number. Fields of
// a later version of the format that may be ignored are kept through
// DecodeKeyring and Encode.
type Keyring struct {
	Number   uint64 // from 1 on; the highest is true
	Region   snapferry.RegionName
	ID       string       // of the region
	Keys     []MasterKey  // ascending by id
	Defaults []KeyDefault // ascending by account

	extra []field
}

// MasterKey is a key in a Keyring. Its Region is the keyring's, and its
// Generation that of the last of its Generations.
type MasterKey struct {
	snapferry.Key
	Generations []Generation // ascending; those that something is wrapped with, and the last

	extra []field
}

// Generation is one generation of a master key.
type Generation struct {
	Number  uint32
	Secret  []byte // SecretSize random bytes; nil: the secret is elsewhere
	Created time.Time
}

// KeyDefault is what an account wants of new volumes in a region.
type KeyDefault struct {
	Account snapferry.AccountID
	Encrypt bool            // all new volumes and copies
	Key     snapferry.KeyID // empty: the account's service key

	extra []field
}

// Fields of a keyring.
const (
	tagRingRegion = critical | (iota + 1)
	tagRingID
	tagRingKeys
	tagRingDefaults
)

// Fields of a key.
const (
	tagKeyID = critical | (iota + 1)
	tagKeyAccount
	tagKeyKind
	tagKeyAliases
	tagKeyDescription
	tagKeyDriver
	tagKeyExternal
	tagKeyState
	tagKeyCreated
	tagKeyRotated
	tagKeyDeletesAt
	tagKeyGenerations
)

// Fields of a generation.
const (
	tagGenerationNumber = critical | (iota + 1)
	tagGenerationSecret
	tagGenerationCreated
)

// Fields of a default.
const (
	tagDefaultAccount = critical | (iota + 1)
	tagDefaultEncrypt
	tagDefaultKey
)

var (
	keyKinds  = [...]snapferry.KeyKind{1: snapferry.KeyService, 2: snapferry.KeyCustomer}
	keyStates = [...]snapferry.KeyState{
		1: snapferry.KeyEnabled, 2: snapferry.KeyDisabled, 3: snapferry.KeyPendingDeletion, 4: snapferry.KeyDeleted,
	}
)

// KeyringName returns the name in the bucket of the keyring with a number. Names
// sort by number.
func KeyringName(number uint64) string { return fmt.Sprintf("%s%020d", keyringPrefix, number) }

// KeyringPrefix returns what the names of all keyrings begin with.
func KeyringPrefix() string { return keyringPrefix }

// ParseKeyringName reads what KeyringName returned. The error is of Kind Invalid.
func ParseKeyringName(s string) (uint64, error) {
	number, ok := strings.CutPrefix(s, keyringPrefix)
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || len(number) != 20 || err != nil || n == 0 {
		return 0, snapferry.Errorf(snapferry.Invalid, "%.100q is not the name of a keyring", s)
	}
	return n, nil
}

// Sort puts keys and defaults in order.
func (k *Keyring) Sort() {
	slices.SortFunc(k.Keys, func(a, b MasterKey) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(k.Defaults, func(a, b KeyDefault) int { return cmp.Compare(a.Account, b.Account) })
}

// Encode returns the keyring as stored, sealed under the region's key. The error is of Kind Invalid for values that no
// keyring can have, Full when it is longer than MaxKeyringSize.
func (k *Keyring) Encode(s Sealer) ([]byte, error) {
	if why := k.check(); why != "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "encode keyring %d: %s", k.Number, why)
	}
	var l fieldList
	l.text(tagRingRegion, string(k.Region))
	l.text(tagRingID, k.ID)
	l.bytes(tagRingKeys, appendEach(k.Keys, (*MasterKey).encode))
	l.bytes(tagRingDefaults, appendEach(k.Defaults, (*KeyDefault).encode))
	plain := l.append(nil, k.extra)
	if n := len(plain) + keyringHeader + sealOverhead; n > MaxKeyringSize {
		return nil, snapferry.Errorf(snapferry.Full, "keyring %d has %d bytes, more than %d", k.Number, n, MaxKeyringSize)
	}
	p := append([]byte(keyringMagic), version)
	p = binary.BigEndian.AppendUint64(p, k.Number)
	return s.Seal(p, plain, k.Number), nil
}

// appendEach encodes values one after the other, each behind its length.
func appendEach[T any](all []T, encode func(*T) []byte) (p []byte) {
	for i := range all {
		one := encode(&all[i])
		p = binary.BigEndian.AppendUint32(p, uint32(len(one)))
		p = append(p, one...)
	}
	return p
}

// cutEach is the inverse of appendEach: it calls fn for each value.
func cutEach(p []byte, fn func([]byte) error) error {
	for i := 0; len(p) > 0; i++ {
		if len(p) < 4 || int64(binary.BigEndian.Uint32(p)) > int64(len(p)-4) {
			return snapferry.Errorf(snapferry.Corrupt, "number %d is cut off", i)
		}
		end := 4 + int(binary.BigEndian.Uint32(p))
		if err := fn(p[4:end]); err != nil {
			return snapferry.Errorf(snapferry.KindOf(err), "number %d: %w", i, err)
		}
		p = p[end:]
	}
	return nil
}

func (m *MasterKey) encode() []byte {
	var l fieldList
	l.text(tagKeyID, string(m.ID))
	l.text(tagKeyAccount, string(m.Account))
	l.u8(tagKeyKind, numberOf(keyKinds[:], m.Kind))
	l.bytes(tagKeyAliases, appendEach(m.Aliases, func(s *string) []byte { return []byte(*s) }))
	l.text(tagKeyDescription, m.Description)
	l.text(tagKeyDriver, m.Driver)
	l.text(tagKeyExternal, m.External)
	l.u8(tagKeyState, numberOf(keyStates[:], m.State))
	l.time(tagKeyCreated, m.Created)
	l.time(tagKeyRotated, m.Rotated)
	l.time(tagKeyDeletesAt, m.DeletesAt)
	l.bytes(tagKeyGenerations, appendEach(m.Generations, (*Generation).encode))
	return l.append(nil, m.extra)
}

func (g *Generation) encode() []byte {
	var l fieldList
	l.u64(tagGenerationNumber, uint64(g.Number))
	l.bytes(tagGenerationSecret, g.Secret)
	l.time(tagGenerationCreated, g.Created)
	return l.append(nil, nil)
}

func (d *KeyDefault) encode() []byte {
	var l fieldList
	l.text(tagDefaultAccount, string(d.Account))
	if d.Encrypt {
		l.u8(tagDefaultEncrypt, 1)
	}
	l.text(tagDefaultKey, string(d.Key))
	return l.append(nil, d.extra)
}

// numberOf is the number of a value in its list; 0 for one that is not there.
func numberOf[T comparable](list []T, v T) uint8 {
	var none T
	if v == none {
		return 0
	}
	return uint8(max(0, slices.Index(list, v)))
}

// valueOf is the value of a number in its list; the zero value for one that is not
// there.
func valueOf[T any](list []T, n uint8) (v T) {
	if int(n) < len(list) {
		v = list[n]
	}
	return v
}

// DecodeKeyring reads a stored keyring. The error is of Kind Unsupported for a
// newer version or a field that must be understood and is not known, Corrupt for
// all else, be it damaged or sealed under another key. It shares no memory with
// p.
func DecodeKeyring(p []byte, s Sealer) (*Keyring, error) {
	n, err := KeyringNumber(p)
	if err != nil {
		return nil, err
	}
	plain, err := s.Open(nil, p[keyringHeader:], n)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	f := &fieldReader{rest: plain}
	k := &Keyring{Number: n, Region: snapferry.RegionName(f.text(tagRingRegion)), ID: f.text(tagRingID)}
	keys, defaults := f.bytes(tagRingKeys), f.bytes(tagRingDefaults)
	f.end()
	if k.extra, err = f.extra, f.err; err == nil {
		err = cutEach(keys, func(p []byte) error {
			m, err := decodeMasterKey(p, k.Region)
			k.Keys = append(k.Keys, m)
			return err
		})
	}
	if err == nil {
		err = cutEach(defaults, func(p []byte) error {
			d, err := decodeDefault(p)
			k.Defaults = append(k.Defaults, d)
			return err
		})
	}
	if err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "decode keyring %d: %w", n, err)
	}
	if why := k.check(); why != "" {
		return nil, snapferry.Errorf(snapferry.Corrupt, "decode keyring %d: %s", n, why)
	}
	return k, nil
}

// KeyringNumber checks what can be seen of a stored keyring without the region's
// key, the header, and returns its number. Errors are those of DecodeKeyring.
func KeyringNumber(p []byte) (uint64, error) {
	switch {
	case len(p) < keyringHeader+sealOverhead || len(p) > MaxKeyringSize:
		return 0, snapferry.Errorf(snapferry.Corrupt, "decode keyring: %d bytes are too few or too many", len(p))
	case string(p[:len(keyringMagic)]) != keyringMagic || p[len(keyringMagic)] == 0:
		return 0, snapferry.Errorf(snapferry.Corrupt, "decode keyring: no magic")
	case p[len(keyringMagic)] > version:
		return 0, snapferry.Errorf(snapferry.Unsupported, "decode keyring: version %d is newer than this program", p[len(keyringMagic)])
	}
	n := binary.BigEndian.Uint64(p[len(keyringMagic)+1:])
	if n == 0 {
		return 0, snapferry.Errorf(snapferry.Corrupt, "decode keyring: the number is zero")
	}
	return n, nil
}

func decodeMasterKey(p []byte, region snapferry.RegionName) (MasterKey, error) {
	f := &fieldReader{rest: p}
	var m MasterKey
	m.Region = region
	m.ID, m.Account = snapferry.KeyID(f.text(tagKeyID)), snapferry.AccountID(f.text(tagKeyAccount))
	m.Kind = valueOf(keyKinds[:], f.u8(tagKeyKind))
	aliases := f.bytes(tagKeyAliases)
	m.Description, m.Driver, m.External = f.text(tagKeyDescription), f.text(tagKeyDriver), f.text(tagKeyExternal)
	m.State = valueOf(keyStates[:], f.u8(tagKeyState))
	m.Created, m.Rotated, m.DeletesAt = f.time(tagKeyCreated), f.time(tagKeyRotated), f.time(tagKeyDeletesAt)
	generations := f.bytes(tagKeyGenerations)
	f.end()
	if m.extra = f.extra; f.err != nil {
		return m, f.err
	}
	err := cutEach(aliases, func(p []byte) error {
		m.Aliases = append(m.Aliases, string(p))
		return nil
	})
	if err != nil {
		return m, err
	}
	err = cutEach(generations, func(p []byte) error {
		f := &fieldReader{rest: p}
		n := f.u64(tagGenerationNumber)
		g := Generation{Number: uint32(n), Secret: bytes.Clone(f.bytes(tagGenerationSecret)), Created: f.time(tagGenerationCreated)}
		if n>>32 != 0 {
			f.fail("generation %d", n)
		}
		f.end()
		if len(f.extra) > 0 {
			f.fail("unknown fields of a generation")
		}
		m.Generations = append(m.Generations, g)
		return f.err
	})
	if n := len(m.Generations); n > 0 {
		m.Generation = m.Generations[n-1].Number
	}
	return m, err
}

func decodeDefault(p []byte) (KeyDefault, error) {
	f := &fieldReader{rest: p}
	d := KeyDefault{Account: snapferry.AccountID(f.text(tagDefaultAccount))}
	if e := f.bytes(tagDefaultEncrypt); e != nil {
		if d.Encrypt = len(e) == 1 && e[0] == 1; !d.Encrypt {
			f.fail("field %d is not 1", number(tagDefaultEncrypt))
		}
	}
	d.Key = snapferry.KeyID(f.text(tagDefaultKey))
	f.end()
	d.extra = f.extra
	return d, f.err
}

// check says what is wrong with a keyring's values, or "". Encode and
// DecodeKeyring accept the same ones.
func (k *Keyring) check() string {
	_, region := snapferry.ParseRegionName(string(k.Region))
	switch {
	case k.Number == 0:
		return "the number is zero"
	case region != nil:
		return fmt.Sprintf("%q is not a region", k.Region)
	case !isText(k.ID):
		return "no id of the region"
	}
	names := map[string]bool{}
	for i := range k.Keys {
		m := &k.Keys[i]
		if i > 0 && k.Keys[i-1].ID >= m.ID {
			return "keys out of order or repeated"
		}
		if why := m.check(k.Region); why != "" {
			return fmt.Sprintf("key %.30q: %s", m.ID, why)
		}
		for _, a := range m.Aliases {
			name := string(m.Account) + "\x00" + a
			if names[name] {
				return fmt.Sprintf("two keys of an account are called %s", a)
			}
			names[name] = true
		}
	}
	for i, d := range k.Defaults {
		if i > 0 && k.Defaults[i-1].Account >= d.Account || !isText(string(d.Account)) {
			return "defaults out of order or repeated, or without an account"
		}
		if d.Key != "" && !slices.ContainsFunc(k.Keys, func(m MasterKey) bool { return m.ID == d.Key && m.Account == d.Account }) {
			return fmt.Sprintf("account %s has no key %s", d.Account, d.Key)
		}
	}
	return ""
}

func (m *MasterKey) check(region snapferry.RegionName) string {
	_, id := snapferry.ParseKeyID(string(m.ID))
	embedded := m.Driver == snapferry.EmbeddedKeys
	switch {
	case id != nil:
		return "not an id"
	case m.Region != region:
		return "of another region"
	case !isText(string(m.Account)) || !isText(m.Driver):
		return "no account or driver"
	case numberOf(keyKinds[:], m.Kind) == 0 || numberOf(keyStates[:], m.State) == 0:
		return "unknown kind or state"
	case m.Description != "" && !isText(m.Description) || m.External != "" && !isText(m.External):
		return "a text is not UTF-8"
	case embedded != (m.External == ""):
		return "a key that is embedded and elsewhere, or neither"
	case !isTime(m.Created) || !m.Rotated.IsZero() && !isTime(m.Rotated):
		return "no time of creation, or a time out of range"
	case (m.State == snapferry.KeyPendingDeletion) != !m.DeletesAt.IsZero() || !m.DeletesAt.IsZero() && !isTime(m.DeletesAt):
		return "a time of deletion in another state, or none"
	case len(m.Generations) == 0 || len(m.Generations) > MaxGenerations || m.Generations[len(m.Generations)-1].Number != m.Generation:
		return "no generations, or too many"
	}
	for i, a := range m.Aliases {
		if i > 0 && m.Aliases[i-1] >= a || snapferry.CheckKeyAlias(a) != nil {
			return "an alias that is none, repeated or out of order"
		}
	}
	for i, g := range m.Generations {
		secret := embedded && m.State != snapferry.KeyDeleted
		switch {
		case g.Number == 0 || i > 0 && m.Generations[i-1].Number >= g.Number:
			return "generations out of order"
		case secret && len(g.Secret) != SecretSize, !secret && len(g.Secret) > 0:
			return "a secret that must not be there, or none"
		case !isTime(g.Created):
			return "a generation without a time"
		}
	}
	return ""
}
