package meta

import (
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Region says who we are.
type Region struct {
	Name        snapferry.RegionName
	ID          string
	Incarnation uint64 // goes up with every start
	SignKey     []byte // Ed25519 private key that signs version records
	LookupKey   []byte // HMAC key of the search for encrypted content
	Created     time.Time
}

// Account is an account and how its holder proves to be it.
type Account struct {
	snapferry.Account
	TokenHash string // of the bearer token; empty: none
	Created   time.Time
}

// Chain is a set of versions that may share frames.
type Chain struct {
	ID           snapferry.ChainID
	Account      snapferry.AccountID
	Algorithm    digest.Algorithm
	WrappedKey   []byte // a seal.WrappedKey; nil: not encrypted
	Proven       bool   // deletion by difference is allowed
	OriginRegion snapferry.RegionName
	OriginChain  snapferry.ChainID // at OriginRegion; zero: born here
	Created      time.Time
	Key          snapferry.KeyID // of WrappedKey; filled when it is read
	Generation   uint32          // of Key; filled when it is read
}

// Volume is a lineage of snapshots.
type Volume struct {
	ID           snapferry.VolumeID
	Account      snapferry.AccountID
	Name         string
	Chain        snapferry.ChainID
	OriginRegion snapferry.RegionName // empty: imported here
	OriginVolume snapferry.VolumeID   // at OriginRegion
	Created      time.Time
	Key          snapferry.KeyID // of the chain; filled when it is read
}

// Head makes a lineage a live volume.
type Head struct {
	ID       snapferry.VolumeID
	Name     string            // that of the lineage
	Chain    snapferry.ChainID // that of the lineage
	Account  snapferry.AccountID
	State    snapferry.VolumeState
	Reason   string
	Hint     string
	Size     int64 // bytes
	Tags     snapferry.Tags
	Snapshot snapferry.SnapshotID // that it was made from; may be gone
	Base     snapferry.VersionID  // below the layers; zero: none
	Layer    uint64               // the layer whose content Base has; 0: none
	Export   *snapferry.Export    // nil: not exported
	Rate     int64                // of its hydration, bytes per second; 0: without limit, -1: none is asked for
	Rollback snapferry.SnapshotID // that it is being put back to
	Safety   snapferry.SnapshotID // what it had before, which must be ready first; empty: given up
	Created  time.Time
}

// Upload is what a snapshot of a live volume waits for.
type Upload struct {
	Snapshot snapferry.SnapshotID
	Volume   snapferry.VolumeID
	Layer    uint64 // the highest of the layers that it consists of
	Done     int64  // plain bytes that it was shown to have before it was begun again over another base
}

// Version is one map of a chain.
type Version struct {
	ID        snapferry.VersionID
	Chain     snapferry.ChainID
	Volume    snapferry.VolumeID
	Parent    snapferry.VersionID // zero: none
	State     snapferry.VersionState
	Edge      int64 // edge revision
	Size      int64 // bytes of the disk
	Algorithm digest.Algorithm
	Digest    digest.Digest // of the snapshot; zero until sealed
	Root      []byte        // stored form of the root node; nil: empty map
	Blocks    uint64        // present blocks
	Revision  uint64        // of the version record
	Token     uint64        // fencing token of the job that writes it
	Sequence  int64         // position in the volume, ascending
	Created   time.Time
	Sealed    time.Time
	Reserved  uint64          // highest revision anybody was allowed to write
	Loose     bool            // a record that nobody committed may come at any time
	Due       bool            // a ghost to be looked at again
	Looked    int             // its children when its difference was last computed
	Stale     bool            // its record in the bucket is to be written again
	Key       snapferry.KeyID // of the chain; filled when it is read
}

// Keyring is the keyring of the region as it is in the bucket.
type Keyring struct {
	Number uint64
	Sealed []byte
}

// Hold is one reason why a version lives.
type Hold struct {
	Version snapferry.VersionID
	Kind    string
	Owner   string
	Created time.Time
	Pin     *Pin // of a pin that is being made: for its record; not stored
}

// SegmentState is where a segment is in its life.
type SegmentState string

// The states of a segment.
const (
	SegmentWriting SegmentState = "writing" // registered; its object may not be there
	SegmentLive    SegmentState = "live"    // its object is durable and the locator valid
)

// Segment is a segment and where it is.
type Segment struct {
	ID         snapferry.SegmentID
	Chain      snapferry.ChainID
	Version    snapferry.VersionID // that wrote it; may be gone
	Kind       snapferry.FrameKind
	State      SegmentState
	Object     string // its name is settled before it is written
	Offset     int64  // of the body in the object, bytes
	Length     int64  // of the body, bytes
	Generation uint32
	Slots      int
	Dead       int    // number of dead slots
	DeadSlots  []byte // bitmap of them; nil: none
	DeadBytes  int64  // stored bytes of the dead slots that are still in the object
	Job        snapferry.JobID
	Token      uint64 // fencing token of that job
}

// ObjectState is where an object is in its life.
type ObjectState string

// The states of an object.
const (
	ObjectWriting   ObjectState = "writing"   // registered by a compaction; may not be there
	ObjectLive      ObjectState = "live"      // segments lie there
	ObjectCondemned ObjectState = "condemned" // no segment lies there any more
)

// Object is an object of the bucket that holds segments.
type Object struct {
	Name    string
	Size    int64  // bytes
	CRC     uint32 // CRC-32C of all of it
	Created time.Time
	Chain   snapferry.ChainID
	State   ObjectState // empty stands for ObjectLive
	Dead    int64       // stored bytes in it that nobody needs
	Since   time.Time   // when it was condemned
	Job     snapferry.JobID
	Token   uint64 // of the job that writes it
}

// Grave is a version that is gone while its records may still be in the
// bucket.
type Grave struct {
	Version  snapferry.VersionID
	Chain    snapferry.ChainID
	Revision uint64              // up to this one its records are garbage
	Child    snapferry.VersionID // whose record may still name it; zero: none
	Loose    bool                // a record that nobody committed may come at any time
	Kept     bool                // its records were removed; it is loose
}

// Checkpoint is how far an open version has come.
type Checkpoint struct {
	Version  snapferry.VersionID
	Root     []byte // stored form of a valid partial root; nil: empty
	Finished []byte // set of finished leaves
	Counts   snapferry.Counts
	Updated  time.Time
}

// Snapshot is a snapshot and what users do not see of it. Region and Volume
// (the lineage's name) are filled when it is read and ignored when it is
// written; Progress is neither read nor written.
type Snapshot struct {
	snapferry.Snapshot
	VolumeID     snapferry.VolumeID
	SourceVolume string    // name of the lineage at the source of a copy
	Settled      time.Time // when it became ready or failed
	Deleted      time.Time // when its deletion was accepted
}

// Copy is a copy and what users do not see of it. Its Snapshot, Source.Snapshot and
// Parts say what Members do, as it was read.
type Copy struct {
	snapferry.Copy
	Reserved bool         // not visible yet
	Members  []CopyMember // at least one; several: a set
	Metered  bool         // what it moved stands in the usage records
}

// CopyMember is a snapshot that a copy makes. What is not known while the copy is
// reserved is empty then.
type CopyMember struct {
	Source   snapferry.SnapshotID `json:"source"`
	Snapshot snapferry.SnapshotID `json:"snapshot"`
	VolumeID snapferry.VolumeID   `json:"volume"` // the lineage here
	Pin      string               `json:"pin"`    // id of the pin at the source
}

// Pin is a hold that another region keeps on a snapshot here.
type Pin struct {
	ID          string
	Snapshot    snapferry.SnapshotID
	Version     snapferry.VersionID
	Region      snapferry.RegionName // who holds it
	Incarnation uint64               // of that region
	Copy        snapferry.CopyID     // of that region
	Created     time.Time
	Seen        time.Time // when that copy was last heard of
}

// Limit is what may cross between regions.
type Limit struct {
	Scope string // of what, see package control
	Value string // JSON
	Set   time.Time
}

// Job is a piece of durable background work. Package job gives it meaning.
type Job struct {
	ID       snapferry.JobID
	Kind     string
	Account  snapferry.AccountID
	Subject  string // id of what it works on
	State    snapferry.JobState
	Payload  string // JSON
	Progress string // JSON
	Owner    string // while running
	Beat     int64  // goes up while the owner lives
	Token    uint64 // fence: goes up with every change of hands
	Attempts int    // runs that ended in Unavailable
	RunAfter time.Time
	Cancel   bool   // somebody asked for its end
	Error    string // why it failed, or why the last attempt did
	Created  time.Time
	Finished time.Time
	Lane     int // whose workers run it; see package job
}

// Request is the remembered answer to a request with a client token.
type Request struct {
	Account     snapferry.AccountID
	Token       string
	Operation   string
	Fingerprint string // of the request's content
	Result      string
	Created     time.Time
}

// Usage is one metered fact.
type Usage struct {
	ID      int64 // given by AddUsage
	Account snapferry.AccountID
	Kind    string
	Subject string
	Bytes   int64
	Count   int64            // of requests, where they are counted
	From    time.Time        // of what lasts: when it began; it is of one UTC day
	At      time.Time        // when it was, or ended
	Copy    snapferry.CopyID // that it is about, if it is about one
	Outcome snapferry.Ending // of that copy; empty: nothing of the kind
}

// Audit is one line of who did what.
type Audit struct {
	ID      int64 // given by AddAudit
	At      time.Time
	Account snapferry.AccountID
	Action  string
	Subject string
	Detail  string
}
