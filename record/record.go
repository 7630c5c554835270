// Package record is the version record: the small, self-describing, signed
// object that makes a version real in the bucket. A version has one record for
// each revision; the highest complete one is true. Beside it is the Chain, an
// object of the same make that says whose a chain is, and the Keyring, which has
// the master keys of a region. They are enough to rebuild the metadata of a
// region. docs/format/record.md, chain.md and keyring.md have the layouts.
//
// The package does no I/O and holds no keys: it is given the region's Ed25519
// key, and a Sealer for the private part when the chain is encrypted.
package record

import (
	"cmp"
	"crypto/ed25519"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

const (
	// MaxSize is the largest length of a record in bytes.
	MaxSize = 1 << 20
	// MaxRoot is the largest length of an embedded root node in bytes.
	MaxRoot = 64 << 10

	version = 1
	magic   = "SFREC"
	prefix  = "versions/"
)

// Forwarded is the state, in records only, of a version that is being spliced
// out: its children's parent is Record.Forward.
const Forwarded snapferry.VersionState = "forwarded"

// HoldKind says what keeps a version alive.
type HoldKind string

// The kinds of holds.
const (
	HoldSnapshot HoldKind = "snapshot" // a visible snapshot
	HoldVolume   HoldKind = "volume"   // the base of a volume
	HoldPin      HoldKind = "pin"      // another region
	HoldLock     HoldKind = "lock"     // a retention lock
	HoldBin      HoldKind = "bin"      // the recycle bin
)

// Hold is a reason for a version to live that outlasts the loss of metadata,
// with what is needed to show it again. Times have a resolution of 1 ms; a
// zero value is not written.
type Hold struct {
	Kind           HoldKind
	Owner          string // id of the snapshot, volume, pin, ...
	Name           string
	Description    string
	VolumeName     string
	Tags           snapferry.Tags
	Created        time.Time
	RetainUntil    time.Time
	LockUntil      time.Time
	SourceRegion   snapferry.RegionName
	SourceSnapshot snapferry.SnapshotID
	SourceVolume   string
	SourceLineage  snapferry.VolumeID // id of SourceVolume, in its region

	// Who keeps a pin, and on which snapshot here.

	PinRegion      snapferry.RegionName
	PinIncarnation uint64
	PinCopy        snapferry.CopyID
	PinSnapshot    snapferry.SnapshotID

	SetSize uint64 // of how many snapshots the set was made of which this one is a member; 0: of none

	extra []field
}

// Set is a crash-consistent set of snapshots taken at one moment.
type Set struct {
	ID      string
	Members []snapferry.VersionID // in order, this version among them
}

// Record is one revision of what the bucket knows of a version. Fields of a
// later version of the format that may be ignored are kept through Decode and
// Encode.
type Record struct {
	Version     snapferry.VersionID
	Revision    uint64 // from 1 on
	Chain       snapferry.ChainID
	Parent      snapferry.VersionID    // zero: none
	State       snapferry.VersionState // sealed, ghost or Forwarded
	Forward     snapferry.VersionID    // where a Forwarded version's children belong; zero: they have no parent
	Region      snapferry.RegionName
	Account     snapferry.AccountID
	Volume      snapferry.VolumeID
	Incarnation uint64 // of the region when it wrote the record
	Token       uint64 // fencing token of the job that wrote the record
	Algorithm   digest.Algorithm
	Size        int64     // of the disk, in bytes
	Blocks      uint64    // present blocks
	Created     time.Time // resolution 1 ms
	Set         *Set      // nil: none

	// The private part: sealed in encrypted chains.

	Root   []byte        // stored form of the root node; empty for an empty map
	Digest digest.Digest // of the snapshot
	Holds  []Hold        // durable ones; none unless sealed

	closed       bool // the private part was sealed and left so
	extra        []field
	privateExtra []field
}

// Private reports whether the private part is known. It is false only for a
// record of an encrypted chain that was decoded without a Sealer.
func (r *Record) Private() bool { return !r.closed }

// Sealer seals and opens the private part of a version's records.
// *seal.RecordKey is one.
type Sealer interface {
	Seal(dst, plain []byte, revision uint64) []byte
	Open(dst, sealed []byte, revision uint64) ([]byte, error)
}

// Name returns the name in the bucket of a revision of a version's record.
// Names of one version sort by revision.
func Name(version snapferry.VersionID, revision uint64) string {
	return fmt.Sprintf("%s%s/%020d", prefix, version, revision)
}

// Prefix returns what the names of all records begin with.
func Prefix() string { return prefix }

// ParseName reads what Name returned. The error is of Kind Invalid.
func ParseName(s string) (snapferry.VersionID, uint64, error) {
	rest, ok := strings.CutPrefix(s, prefix)
	id, number, cut := strings.Cut(rest, "/")
	if !ok || !cut || len(number) != 20 {
		return snapferry.VersionID{}, 0, snapferry.Errorf(snapferry.Invalid, "%.100q is not the name of a version record", s)
	}
	v, err := snapferry.ParseVersionID(id)
	if err != nil {
		return snapferry.VersionID{}, 0, err
	}
	revision, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return snapferry.VersionID{}, 0, snapferry.Errorf(snapferry.Invalid, "%.100q is not the name of a version record", s)
	}
	return v, revision, nil
}

func (h *Hold) compare(o *Hold) int {
	return cmp.Or(cmp.Compare(h.Kind.number(), o.Kind.number()), cmp.Compare(h.Owner, o.Owner))
}

// holdKinds has the kinds at their number.
var holdKinds = [...]HoldKind{1: HoldSnapshot, 2: HoldVolume, 3: HoldPin, 4: HoldLock, 5: HoldBin}

func (k HoldKind) number() uint8 { return numberOf(holdKinds[:], k) }

// states has the states at their number.
var states = [...]snapferry.VersionState{1: snapferry.VersionSealed, 2: snapferry.VersionGhost, 3: Forwarded}

func stateNumber(s snapferry.VersionState) uint8 { return numberOf(states[:], s) }

// check says what is wrong with a record's values, or "". Encode and Decode
// accept the same ones.
func (r *Record) check() string {
	_, region := snapferry.ParseRegionName(string(r.Region))
	switch {
	case r.Version.IsZero():
		return "the version is zero"
	case r.Revision == 0:
		return "the revision is zero"
	case r.Chain.IsZero():
		return "the chain is zero"
	case stateNumber(r.State) == 0:
		return fmt.Sprintf("unknown state %q", r.State)
	case !r.Forward.IsZero() && r.State != Forwarded:
		return "a forward in another state"
	case r.Parent == r.Version || r.Forward == r.Version:
		return "the version is its own parent"
	case region != nil:
		return fmt.Sprintf("%q is not a region", r.Region)
	case !isText(string(r.Account)) || !isText(string(r.Volume)):
		return "no account or volume"
	case snapferry.CheckSize(r.Size) != nil:
		return fmt.Sprintf("the size is %d bytes", r.Size)
	case r.Blocks > uint64(r.Size+snapferry.BlockSize-1)/snapferry.BlockSize:
		return fmt.Sprintf("%d blocks in %d bytes", r.Blocks, r.Size)
	case !isTime(r.Created):
		return "no time of creation"
	}
	if r.Set != nil {
		return r.Set.check(r.Version)
	}
	return ""
}

func (s *Set) check(v snapferry.VersionID) string {
	seen := make(map[snapferry.VersionID]bool, len(s.Members))
	for _, m := range s.Members {
		if m.IsZero() || seen[m] {
			return "a member of the set is zero or twice in it"
		}
		seen[m] = true
	}
	if !seen[v] {
		return "the version is not in its own set"
	}
	if !isText(s.ID) || len(s.ID) > 255 {
		return "the set has no id"
	}
	return ""
}

func (r *Record) checkPrivate() string {
	switch {
	case len(r.Root) > MaxRoot:
		return fmt.Sprintf("the root has %d bytes", len(r.Root))
	case (len(r.Root) == 0) != (r.Blocks == 0):
		return fmt.Sprintf("%d blocks with a root of %d bytes", r.Blocks, len(r.Root))
	case r.State != snapferry.VersionSealed && len(r.Holds) > 0:
		return "a hold on a version that is not sealed"
	}
	for i := range r.Holds {
		h := &r.Holds[i]
		if why := h.check(); why != "" {
			return fmt.Sprintf("hold %d: %s", i, why)
		}
		if i > 0 && r.Holds[i-1].compare(h) >= 0 {
			return fmt.Sprintf("hold %d: out of order or repeated", i)
		}
	}
	return ""
}

func (h *Hold) check() string {
	if h.Kind.number() == 0 || !isText(h.Owner) {
		return fmt.Sprintf("unknown kind %q or no owner", h.Kind)
	}
	for _, s := range []string{
		h.Name, h.Description, h.VolumeName, string(h.SourceRegion), string(h.SourceSnapshot), h.SourceVolume,
		string(h.SourceLineage), string(h.PinRegion), string(h.PinCopy), string(h.PinSnapshot),
	} {
		if s != "" && !isText(s) {
			return "a text is not UTF-8"
		}
	}
	for _, t := range []time.Time{h.Created, h.RetainUntil, h.LockUntil} {
		if !t.IsZero() && !isTime(t) {
			return "a time out of range"
		}
	}
	if err := h.Tags.Check(); err != nil {
		return err.Error()
	}
	return ""
}

func isText(s string) bool { return s != "" && utf8.ValidString(s) }

// maxTime is the last millisecond of the year 9999.
const maxTime = 253402300799999

func isTime(t time.Time) bool { ms := t.UnixMilli(); return ms > 0 && ms <= maxTime }

func checkPublicKey(key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize {
		return snapferry.Errorf(snapferry.Invalid, "a region's public key has %d bytes, this one %d", ed25519.PublicKeySize, len(key))
	}
	return nil
}
