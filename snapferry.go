// Package snapferry holds the nouns of the domain: regions, accounts, volume
// lineages, snapshots and copies as users see them; versions, segments, frames
// and references as the store keeps them; their identifiers, their states and
// the legal moves between states, and the one error type of the program.
//
// It has no behaviour beyond those values and imports nothing that runs.
// Folders beside this file are the formats (digest, extent, blockmap, segment,
// seal, record); what runs is below internal/.
package snapferry

import (
	"time"

	"github.com/snapferry/snapferry/digest"
)

const (
	// BlockSize is the unit of content addressing in bytes (64 KiB).
	BlockSize = 64 << 10
	// SectorSize is the unit of a volume's size in bytes: every size is a
	// multiple of it.
	SectorSize = 512
	// MaxVolumeSize is the largest volume in bytes (64 TiB).
	MaxVolumeSize = 64 << 40
)

// CheckSize reports whether size, in bytes, can be the size of a volume: a
// positive multiple of SectorSize, at most MaxVolumeSize. The error is of Kind
// Invalid and says which rule is broken.
func CheckSize(size int64) error {
	switch {
	case size <= 0:
		return Errorf(Invalid, "size %d bytes: a disk cannot be empty", size).WithHint("give a disk of at least %d bytes", SectorSize)
	case size%SectorSize != 0:
		return Errorf(Invalid, "size %d bytes is not a multiple of %d", size, SectorSize).
			WithHint("pad the file to %d bytes, for example with: truncate -s %%%d FILE", (size/SectorSize+1)*SectorSize, SectorSize)
	case size > MaxVolumeSize:
		return Errorf(Invalid, "size %d bytes is more than the limit of %d (64 TiB)", size, int64(MaxVolumeSize))
	}
	return nil
}

// Tags are the caller's own key-value pairs on a resource.
type Tags map[string]string

const (
	maxTags     = 50
	maxTagKey   = 128
	maxTagValue = 256
)

// Check reports whether the tags are within the limits the clouds share: at
// most 50, keys of 1 to 128 and values of at most 256 bytes.
func (t Tags) Check() error {
	if len(t) > maxTags {
		return Errorf(Invalid, "%d tags are more than the limit of %d", len(t), maxTags)
	}
	for k, v := range t {
		if k == "" || len(k) > maxTagKey {
			return Errorf(Invalid, "tag key %q must have 1 to %d bytes", k, maxTagKey)
		}
		if len(v) > maxTagValue {
			return Errorf(Invalid, "the value of tag %q has %d bytes, more than the limit of %d", k, len(v), maxTagValue)
		}
	}
	return nil
}

// Account owns everything else. Two accounts never share a chain.
type Account struct {
	ID   AccountID `json:"id"`
	Name string    `json:"name"`
}

// Snapshot is an immutable point in time of a disk, as users see it.
type Snapshot struct {
	ID          SnapshotID    `json:"id"`
	Account     AccountID     `json:"account"`
	Region      RegionName    `json:"region"`
	Volume      string        `json:"volume"` // name of the volume lineage
	Name        string        `json:"name,omitempty"`
	Description string        `json:"description,omitempty"`
	Tags        Tags          `json:"tags,omitempty"`
	State       SnapshotState `json:"state"`
	Reason      string        `json:"reason,omitempty"` // why it failed, when it did
	Hint        string        `json:"hint,omitempty"`   // what to do about it
	Size        int64         `json:"size"`             // bytes of the disk
	Digest      digest.Digest `json:"digest,omitzero"`  // content digest; zero until ready
	Created     time.Time     `json:"created"`
	RetainUntil time.Time     `json:"retain_until,omitzero"` // zero: for ever
	Set         SetID         `json:"set,omitempty"`         // that it is a member of: snapshots of several volumes at one moment
	SetSize     int           `json:"set_size,omitempty"`    // of how many snapshots the set was made
	Parent      SnapshotID    `json:"parent,omitempty"`      // the snapshot it is incremental on, if any
	Source      *CopySource   `json:"source,omitempty"`      // set when it is a copy
	Copy        CopyID        `json:"copy,omitempty"`        // the copy that makes or made it
	Version     VersionID     `json:"-"`
	Encrypted   bool          `json:"encrypted"`
	Key         KeyID         `json:"key,omitempty"` // master key, of an encrypted one
	Counts      Counts        `json:"bytes"`
	Progress    *Progress     `json:"progress,omitempty"`  // while it is being made
	Queue       *Queue        `json:"queue,omitempty"`     // of a copy that waits for its turn
	PinnedBy    []PinHolder   `json:"pinned_by,omitempty"` // while it is deleting: who still reads it
}

// CopySource names what a copy was made from.
type CopySource struct {
	Region   RegionName `json:"region"`
	Snapshot SnapshotID `json:"snapshot"`      // of a copy of a set: the first
	Set      SetID      `json:"set,omitempty"` // of a copy of a set
}

// Counts says where the bytes of a snapshot came from. All are bytes.
type Counts struct {
	Present  int64 `json:"present"`        // plain bytes of blocks that are not all zero
	Changed  int64 `json:"changed"`        // plain bytes of blocks that differ from the parent
	Read     int64 `json:"read"`           // plain bytes read from the source disk
	Moved    int64 `json:"moved"`          // bytes that crossed between regions, compressed, nodes included
	Stored   int64 `json:"stored"`         // bytes added to the bucket
	Reused   int64 `json:"reused"`         // plain bytes the parent had
	Lent     int64 `json:"lent,omitempty"` // plain bytes of the changed ones that the region had under another key, or of another volume
	Repeated int64 `json:"repeated"`       // plain bytes moved again after an interruption
}
