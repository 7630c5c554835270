package snapferry

import (
	"slices"
	"time"
)

// VolumeState is where a live volume is in its life.
type VolumeState string

// The states of a live volume.
const (
	VolumeCreating    VolumeState = "creating"     // its folder is being made
	VolumeAvailable   VolumeState = "available"    // nobody uses it
	VolumeExported    VolumeState = "exported"     // clients may use it
	VolumeRollingBack VolumeState = "rolling-back" // waits for its safety snapshot, or is being put back
	VolumeError       VolumeState = "error"        // it cannot be used as it is
	VolumeDeleting    VolumeState = "deleting"     // accepted; waits for its last snapshots to be ready
)

var volumeMoves = map[VolumeState][]VolumeState{
	VolumeCreating:    {VolumeAvailable, VolumeError, VolumeDeleting},
	VolumeAvailable:   {VolumeExported, VolumeRollingBack, VolumeError, VolumeDeleting},
	VolumeExported:    {VolumeAvailable, VolumeError, VolumeDeleting},
	VolumeRollingBack: {VolumeAvailable, VolumeError},
	VolumeError:       {VolumeAvailable, VolumeDeleting},
	VolumeDeleting:    {},
}

// CanBecome reports whether the move from s to t is legal.
func (s VolumeState) CanBecome(t VolumeState) bool { return slices.Contains(volumeMoves[s], t) }

// Volume is a live volume: a writable disk that is served over NBD.
type Volume struct {
	ID      VolumeID    `json:"id"`
	Account AccountID   `json:"account"`
	Region  RegionName  `json:"region"`
	Name    string      `json:"name"` // that of its lineage of snapshots
	Tags    Tags        `json:"tags,omitempty"`
	State   VolumeState `json:"state"`
	Reason  string      `json:"reason,omitempty"` // why it is in error, when it is
	Hint    string      `json:"hint,omitempty"`   // what to do about it
	Size    int64       `json:"size"`             // bytes
	// Encrypted says that what the volume has is sealed under a master key, Key: its
	// snapshots, and its files in the region.
	Encrypted bool       `json:"encrypted"`
	Key       KeyID      `json:"key,omitempty"`
	Snapshot  SnapshotID `json:"snapshot,omitempty"`
	Created   time.Time  `json:"created"`
	Export    *Export    `json:"export,omitempty"`
	Local     *Local     `json:"local,omitempty"`   // what of it is here; absent while it is not open
	Pending   int        `json:"pending,omitempty"` // snapshots that are being made of it
}

// Export is where clients find an exported volume.
type Export struct {
	URI      string `json:"uri"`                // as NBD clients take it
	Socket   string `json:"socket,omitempty"`   // path of the unix socket; empty: TCP
	TLS      bool   `json:"tls,omitempty"`      // TCP, with TLS
	ReadOnly bool   `json:"readonly,omitempty"` // writes are refused
}

// Local says what of a volume is in files of this region rather than in the
// bucket. All but Layers are bytes.
type Local struct {
	Layers   int       `json:"layers"`
	Dirty    int64     `json:"dirty"`              // written, and in no ready snapshot yet
	Near     int64     `json:"near"`               // copies of what the bucket has too
	Fetched  int64     `json:"fetched"`            // read from the bucket since it was opened
	Present  int64     `json:"present"`            // plain bytes that the version below has
	Pauses   Pauses    `json:"pauses"`             // of its writes, by snapshots
	Progress *Progress `json:"progress,omitempty"` // of the hydration, while it runs
}

// Pauses are how long snapshots stopped the writes of a live volume since it was
// opened.
type Pauses struct {
	Count   int64         `json:"count"`
	Longest time.Duration `json:"longest"` // nanoseconds
	Last    time.Duration `json:"last"`    // nanoseconds
}

// ParseVolumeID checks the spelling of a volume's id.
func ParseVolumeID(s string) (VolumeID, error) {
	err := checkID("volume", "vol-", s)
	return VolumeID(s), err
}
