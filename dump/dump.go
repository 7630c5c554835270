// Package dump is the sealed dump of a region's metadata: what the bucket needs
// beside version records to rebuild the metadata, and must not show to who can
// read the bucket: the region's keys, accounts and the hashes of their tokens,
// chains, the names of volumes, and the last lines of the audit.
// docs/format/dump.md has the layout.
//
// The package does no I/O and holds no keys: it is given a Sealer.
package dump

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

const (
	// MaxSize is the largest length of a dump in bytes (64 MiB).
	MaxSize = 64 << 20
	// MaxText is the longest text in a dump in bytes.
	MaxText = 1<<16 - 1

	version = 1
	magic   = "SFDMP"
	prefix  = "dump/"

	headerSize = len(magic) + 1 + 8 // magic, version, number
	overhead   = 28                 // what a Sealer adds
)

// Sealer seals and opens the content of the dump with a number.
// *seal.DumpKey is one.
type Sealer interface {
	Seal(dst, plain []byte, number uint64) []byte
	Open(dst, sealed []byte, number uint64) ([]byte, error)
}

// Region is who the region is.
type Region struct {
	Name        snapferry.RegionName
	ID          string
	Incarnation uint64 // when the dump was written
	SignKey     []byte // Ed25519 private key
	LookupKey   []byte
	Trusted     [][]byte // Ed25519 public keys of earlier sign keys, ascending
	Created     time.Time
}

// Account is an account.
type Account struct {
	snapferry.Account
	TokenHash string // empty: none
	Created   time.Time
}

// Chain is a chain.
type Chain struct {
	ID           snapferry.ChainID
	Account      snapferry.AccountID
	Algorithm    digest.Algorithm
	WrappedKey   []byte // nil: not encrypted
	OriginRegion snapferry.RegionName
	OriginChain  snapferry.ChainID
	Created      time.Time
}

// Volume is a lineage.
type Volume struct {
	ID           snapferry.VolumeID
	Account      snapferry.AccountID
	Name         string
	Chain        snapferry.ChainID
	OriginRegion snapferry.RegionName
	OriginVolume snapferry.VolumeID
	Created      time.Time
}

// Audit is one line of who did what.
type Audit struct {
	At      time.Time
	Account snapferry.AccountID
	Action  string
	Subject string
	Detail  string
}

// Dump is the content of a dump. Times have a resolution of 1 ms; the zero time
// is kept.
type Dump struct {
	Number   uint64 // from 1 on; the highest that opens is true
	Region   Region
	Accounts []Account // ascending by id, as are chains and volumes
	Chains   []Chain
	Volumes  []Volume
	Audit    []Audit // the last lines, in their order
}

// Name returns the name in the bucket of the dump with a number. Names sort by
// number.
func Name(number uint64) string { return fmt.Sprintf("%s%020d", prefix, number) }

// Prefix returns what the names of all dumps begin with.
func Prefix() string { return prefix }

// ParseName reads what Name returned. The error is of Kind Invalid.
func ParseName(s string) (uint64, error) {
	number, ok := strings.CutPrefix(s, prefix)
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || len(number) != 20 || err != nil || n == 0 {
		return 0, snapferry.Errorf(snapferry.Invalid, "%.100q is not the name of a dump", s)
	}
	return n, nil
}

// check says what is wrong with a dump's values, or "". Encode and Decode accept
// the same ones.
func (d *Dump) check() string {
	if d.Number == 0 {
		return "the number is zero"
	}
	if _, err := snapferry.ParseRegionName(string(d.Region.Name)); err != nil || d.Region.ID == "" {
		return "no region"
	}
	if len(d.Region.SignKey) == 0 {
		return "no key"
	}
	if !ascending(d.Region.Trusted, func(a, b []byte) int { return slices.Compare(a, b) }) {
		return "keys out of order"
	}
	accounts := map[snapferry.AccountID]bool{}
	for _, a := range d.Accounts {
		if accounts[a.ID] = true; a.ID == "" || a.Name == "" {
			return "an account without id or name"
		}
	}
	chains := map[snapferry.ChainID]bool{}
	for _, c := range d.Chains {
		if chains[c.ID] = true; c.ID.IsZero() || !accounts[c.Account] {
			return "a chain without id or account"
		}
	}
	for _, v := range d.Volumes {
		if v.ID == "" || !accounts[v.Account] || !chains[v.Chain] {
			return "a volume without id, account or chain"
		}
	}
	if !ascending(d.Accounts, func(a, b Account) int { return cmp.Compare(a.ID, b.ID) }) ||
		!ascending(d.Chains, func(a, b Chain) int { return slices.Compare(a.ID[:], b.ID[:]) }) ||
		!ascending(d.Volumes, func(a, b Volume) int { return cmp.Compare(a.ID, b.ID) }) {
		return "rows out of order or twice"
	}
	return ""
}

func ascending[T any](all []T, compare func(a, b T) int) bool {
	for i := 1; i < len(all); i++ {
		if compare(all[i-1], all[i]) >= 0 {
			return false
		}
	}
	return true
}

// maxTime is the last millisecond of the year 9999.
const maxTime = 253402300799999

func isTime(t time.Time) bool {
	return t.IsZero() || t.UnixMilli() > 0 && t.UnixMilli() <= maxTime
}

func isText(s string) bool { return len(s) <= MaxText && utf8.ValidString(s) }
