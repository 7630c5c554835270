package snapferry

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"
	"strings"
)

// RegionName names a region: 1 to 32 lower-case letters, digits and hyphens,
// beginning with a letter.
type RegionName string

// AccountID, KeyID, VolumeID, SnapshotID, SetID, CopyID and JobID name resources of one
// region in the form users see: a prefix and 17 lower-case hexadecimal digits,
// 68 random bits, never used twice.
type (
	AccountID  string // acct-…
	KeyID      string // key-…, a master key
	VolumeID   string // vol-…, a volume's lineage
	SnapshotID string // snap-…
	SetID      string // set-…, of snapshots that were taken at one moment
	CopyID     string // copy-…
	JobID      string // job-…
)

const idDigits = 17

// NewAccountID and its sisters make a new random id.
func NewAccountID() AccountID   { return AccountID(newID("acct-")) }
func NewKeyID() KeyID           { return KeyID(newID("key-")) }       // NewKeyID makes a new random id.
func NewVolumeID() VolumeID     { return VolumeID(newID("vol-")) }    // NewVolumeID makes a new random id.
func NewSnapshotID() SnapshotID { return SnapshotID(newID("snap-")) } // NewSnapshotID makes a new random id.
func NewSetID() SetID           { return SetID(newID("set-")) }       // NewSetID makes a new random id.
func NewCopyID() CopyID         { return CopyID(newID("copy-")) }     // NewCopyID makes a new random id.
func NewJobID() JobID           { return JobID(newID("job-")) }       // NewJobID makes a new random id.

func newID(prefix string) string {
	var b [(idDigits + 1) / 2]byte
	rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])[:idDigits]
}

// ParseSnapshotID checks the spelling of a snapshot's id.
func ParseSnapshotID(s string) (SnapshotID, error) {
	err := checkID("snapshot", "snap-", s)
	return SnapshotID(s), err
}

// ParseKeyID checks the spelling of a key's id.
func ParseKeyID(s string) (KeyID, error) {
	err := checkID("key", "key-", s)
	return KeyID(s), err
}

// ParseSetID checks the spelling of a set's id.
func ParseSetID(s string) (SetID, error) {
	err := checkID("set", "set-", s)
	return SetID(s), err
}

// ParseCopyID checks the spelling of a copy's id.
func ParseCopyID(s string) (CopyID, error) {
	err := checkID("copy", "copy-", s)
	return CopyID(s), err
}

func checkID(noun, prefix, s string) error {
	digits, ok := strings.CutPrefix(s, prefix)
	if ok && len(digits) == idDigits && strings.Trim(digits, "0123456789abcdef") == "" {
		return nil
	}
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return Errorf(Invalid, "%q is not a %s id", s, noun).WithHint("a %s id looks like %s0123456789abcdef0", noun, prefix)
}

var (
	regionPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	volumePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// ParseRegionName checks the spelling of a region's name.
func ParseRegionName(s string) (RegionName, error) {
	if !regionPattern.MatchString(s) {
		return "", Errorf(Invalid, "%q is not a region name", s).WithHint("use 1 to 32 lower-case letters, digits and hyphens, beginning with a letter")
	}
	return RegionName(s), nil
}

// CheckVolumeName checks the spelling of a volume's name: 1 to 128 letters,
// digits, dots, underscores and hyphens, beginning with a letter or digit.
func CheckVolumeName(s string) error {
	if !volumePattern.MatchString(s) {
		return Errorf(Invalid, "%q is not a volume name", s).WithHint("use 1 to 128 letters, digits, dots, underscores and hyphens, beginning with a letter or digit")
	}
	return nil
}

// ChainID, VersionID and SegmentID name what the store keeps: 128 random bits,
// printed as 32 hexadecimal digits. The zero value names nothing.
type (
	ChainID   [16]byte
	VersionID [16]byte
	SegmentID [16]byte
)

// NewChainID makes a new random id.
func NewChainID() (id ChainID) { rand.Read(id[:]); return id }

// NewVersionID makes a new random id.
func NewVersionID() (id VersionID) { rand.Read(id[:]); return id }

// NewSegmentID makes a new random id.
func NewSegmentID() (id SegmentID) { rand.Read(id[:]); return id }

func (id ChainID) String() string   { return hex.EncodeToString(id[:]) }
func (id VersionID) String() string { return hex.EncodeToString(id[:]) }
func (id SegmentID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the id names nothing.
func (id ChainID) IsZero() bool { return id == ChainID{} }

// IsZero reports whether the id names nothing.
func (id VersionID) IsZero() bool { return id == VersionID{} }

// IsZero reports whether the id names nothing.
func (id SegmentID) IsZero() bool { return id == SegmentID{} }

// ParseVersionID reads what VersionID.String printed.
func ParseVersionID(s string) (id VersionID, err error) { return id, parse128("version", s, id[:]) }

func parse128(noun, s string, dst []byte) error {
	if len(s) != 2*len(dst) || s != strings.ToLower(s) {
		return Errorf(Invalid, "%q is not a %s id", s, noun)
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil {
		return Errorf(Invalid, "%q is not a %s id", s, noun)
	}
	return nil
}

// ParseChainID reads what ChainID.String printed.
func ParseChainID(s string) (id ChainID, err error) { return id, parse128("chain", s, id[:]) }
