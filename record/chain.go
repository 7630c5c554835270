package record

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

const (
	// MaxChainSize is the largest length of the object of a chain in bytes.
	MaxChainSize = 64 << 10

	chainMagic  = "SFCHN"
	chainPrefix = "chain/"
	chainKey    = "/key."
)

// Chain says whose a chain is and which key its frames are sealed with. It is
// written before the first record of a version of the chain; a change of the
// wrapped key writes the next number. Fields of a later version of the format
// that may be ignored are kept through DecodeChain and Encode.
type Chain struct {
	ID           snapferry.ChainID
	Number       uint64 // from 1 on; the highest complete one is true
	Region       snapferry.RegionName
	Account      snapferry.AccountID
	AccountName  string
	Algorithm    digest.Algorithm
	Created      time.Time            // resolution 1 ms
	OriginRegion snapferry.RegionName // empty: born here
	OriginChain  snapferry.ChainID    // at OriginRegion
	WrappedKey   []byte               // the data key under the master key; nil: not encrypted

	extra []field
}

// Fields of the object of a chain.
const (
	tagChainID = critical | (iota + 1)
	tagChainNumber
	tagChainRegion
	tagChainAccount
	tagChainAccountName
	tagChainAlgorithm
	tagChainCreated
	tagChainOriginRegion
	tagChainOrigin
	tagChainWrappedKey
)

// ChainName returns the name in the bucket of a chain's object. Names of one
// chain sort by number.
func ChainName(id snapferry.ChainID, number uint64) string {
	return fmt.Sprintf("%s%s%s%020d", chainPrefix, id, chainKey, number)
}

// ChainPrefix returns what the names of the objects of all chains begin with.
func ChainPrefix() string { return chainPrefix }

// ParseChainName reads what ChainName returned. The error is of Kind Invalid.
func ParseChainName(s string) (snapferry.ChainID, uint64, error) {
	bad := snapferry.Errorf(snapferry.Invalid, "%.100q is not the name of a chain's object", s)
	rest, ok := strings.CutPrefix(s, chainPrefix)
	text, number, cut := strings.Cut(rest, chainKey)
	if !ok || !cut || len(number) != 20 {
		return snapferry.ChainID{}, 0, bad
	}
	id, err := snapferry.ParseChainID(text)
	if err != nil {
		return snapferry.ChainID{}, 0, bad
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return snapferry.ChainID{}, 0, bad
	}
	return id, n, nil
}

func (c *Chain) check() string {
	_, region := snapferry.ParseRegionName(string(c.Region))
	_, origin := snapferry.ParseRegionName(string(c.OriginRegion))
	switch {
	case c.ID.IsZero():
		return "the chain is zero"
	case c.Number == 0:
		return "the number is zero"
	case region != nil:
		return fmt.Sprintf("%q is not a region", c.Region)
	case !isText(string(c.Account)) || !isText(c.AccountName):
		return "no account"
	case !isTime(c.Created):
		return "no time of creation"
	case c.OriginRegion != "" && origin != nil, (c.OriginRegion == "") != c.OriginChain.IsZero():
		return "half an origin"
	}
	return ""
}

// Encode returns the object as stored, signed with the region's key. The error
// is of Kind Invalid for values that no chain can have, Full when it is longer
// than MaxChainSize.
func (c *Chain) Encode(key ed25519.PrivateKey) ([]byte, error) {
	why := c.check()
	switch {
	case len(key) != ed25519.PrivateKeySize:
		return nil, snapferry.Errorf(snapferry.Invalid, "a region's private key has %d bytes, this one %d", ed25519.PrivateKeySize, len(key))
	case why != "":
		return nil, snapferry.Errorf(snapferry.Invalid, "encode chain %s: %s", c.ID, why)
	case c.Algorithm != digest.SHA256:
		return nil, snapferry.Errorf(snapferry.Invalid, "encode chain %s: unknown digest algorithm", c.ID)
	}
	var l fieldList
	l.id(tagChainID, c.ID)
	l.u64(tagChainNumber, c.Number)
	l.text(tagChainRegion, string(c.Region))
	l.text(tagChainAccount, string(c.Account))
	l.text(tagChainAccountName, c.AccountName)
	l.u8(tagChainAlgorithm, uint8(c.Algorithm))
	l.time(tagChainCreated, c.Created)
	l.text(tagChainOriginRegion, string(c.OriginRegion))
	l.id(tagChainOrigin, c.OriginChain)
	l.bytes(tagChainWrappedKey, c.WrappedKey)
	p := l.append(append([]byte(chainMagic), version), c.extra)
	p = append(p, ed25519.Sign(key, p)...)
	if len(p) > MaxChainSize {
		return nil, snapferry.Errorf(snapferry.Full, "the object of chain %s has %d bytes, more than %d", c.ID, len(p), MaxChainSize)
	}
	return p, nil
}

// DecodeChain reads the stored object of a chain, which one of the keys must
// have signed. The error is of Kind Unsupported for a newer version or a field
// that must be understood and is not known, Invalid for a key of the wrong
// length, else Corrupt.
func DecodeChain(p []byte, keys []ed25519.PublicKey) (*Chain, error) {
	fields, err := open(p, chainMagic, MaxChainSize, keys)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "decode chain: %w", err)
	}
	f := &fieldReader{rest: fields}
	c := &Chain{
		ID: snapferry.ChainID(f.need(tagChainID, 16)), Number: f.u64(tagChainNumber), Region: snapferry.RegionName(f.text(tagChainRegion)),
		Account: snapferry.AccountID(f.text(tagChainAccount)), AccountName: f.text(tagChainAccountName),
		Algorithm: digest.Algorithm(f.u8(tagChainAlgorithm)), Created: f.time(tagChainCreated),
		OriginRegion: snapferry.RegionName(f.text(tagChainOriginRegion)), OriginChain: snapferry.ChainID(f.may(tagChainOrigin, 16)),
		WrappedKey: bytes.Clone(f.bytes(tagChainWrappedKey)),
	}
	f.end()
	c.extra = f.extra
	if f.err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(f.err), "decode chain: %w", f.err)
	}
	if c.Algorithm != digest.SHA256 {
		return nil, snapferry.Errorf(snapferry.Unsupported, "decode chain: unknown digest algorithm %d", uint8(c.Algorithm))
	}
	if why := c.check(); why != "" {
		return nil, snapferry.Errorf(snapferry.Corrupt, "decode chain: %s", why)
	}
	return c, nil
}
