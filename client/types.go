// Package client is the Go client of a region's native API, and the types that
// cross it. docs/api.md has the requests.
package client

import (
	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
)

// Region is what a region says of itself.
type Region struct {
	Name    snapferry.RegionName   `json:"name"`
	Version string                 `json:"version"`
	Account snapferry.Account      `json:"account"` // of the token that asked
	Peers   []snapferry.RegionName `json:"peers"`
}

// Labels are what a caller writes on a new snapshot.
type Labels struct {
	Name          string         `json:"name,omitempty"`
	Description   string         `json:"description,omitempty"`
	Tags          snapferry.Tags `json:"tags,omitempty"`
	RetentionDays int            `json:"retention_days,omitempty"` // 0: for ever
}

// Sealing is what a caller wants of the key of a new volume, or of a copy.
type Sealing struct {
	Encrypt bool   `json:"encrypt,omitempty"` // with the account's default key, or its service key
	Key     string `json:"key,omitempty"`     // id or alias of a key of the region; it is encrypted then
}

// ImportRequest asks for a snapshot of a disk that was handed over.
type ImportRequest struct {
	Volume string `json:"volume"`
	Sealing
	Labels
	Handle string `json:"handle"` // of the open disk, see package handoff
	// NBD, if not nil, says that what was handed over is a connection to an NBD
	// server.
	NBD *NBDSource `json:"nbd,omitempty"`
}

// NBDSource says what is read through a connection to an NBD server.
type NBDSource struct {
	Export   string `json:"export,omitempty"`   // name; empty: the default one
	Bitmap   string `json:"bitmap,omitempty"`   // dirty bitmap of what changed since the last import of the volume
	TLS      bool   `json:"tls,omitempty"`      // TLS is wanted, with the certificates of the region's system
	Hostname string `json:"hostname,omitempty"` // that the server's certificate must have
}

// CopyRequest asks a region to pull a snapshot from another, or a set.
type CopyRequest struct {
	From   snapferry.RegionName `json:"from"`
	Source snapferry.SnapshotID `json:"source,omitempty"` // to pull a snapshot
	Set    snapferry.SetID      `json:"set,omitempty"`    // to pull a set
	Sealing
	Labels
	Full        bool   `json:"full,omitempty"`
	ClientToken string `json:"client_token,omitempty"` // makes a repeated request the same one
	Rate        int64  `json:"rate,omitempty"`         // bytes per second that may cross for it; 0: no limit of its own
	// CompleteWithin is how soon it must be done, like 2h30m; empty: whenever. A
	// copy that cannot be done in time is refused.
	CompleteWithin string `json:"complete_within,omitempty"`
}

// KeyRequest asks for a master key.
type KeyRequest struct {
	Alias       string `json:"alias,omitempty"`
	Description string `json:"description,omitempty"`
	Driver      string `json:"driver,omitempty"`   // empty: the region's default
	External    string `json:"external,omitempty"` // its name at the driver; empty: embedded
}

// Key is a master key, and what is sealed with it.
type Key struct {
	snapferry.Key
	Use *snapferry.KeyUse `json:"use,omitempty"` // when one key was asked for
}

// KeyList is the master keys of an account, by id.
type KeyList struct {
	Keys []snapferry.Key `json:"keys"`
}

// KeyDeletion asks for the deletion of a key in some days.
type KeyDeletion struct {
	Days int `json:"days"`
}

// AliasRequest gives a key an alias.
type AliasRequest struct {
	Alias string `json:"alias"`
	Move  bool   `json:"move,omitempty"` // from another key that has it
}

// KeyDefault is what an account wants of new volumes and copies in a region.
type KeyDefault struct {
	Encrypt bool   `json:"encrypt"`
	Key     string `json:"key,omitempty"` // id, or alias in a request; empty: the service key
}

// CopyList is a page of copies, newest first.
type CopyList struct {
	Copies []snapferry.Copy `json:"copies"`
	Next   snapferry.CopyID `json:"next,omitempty"` // pass as after for the next page
}

// RateRequest changes a limit in bytes per second; 0 is none.
type RateRequest struct {
	Rate int64 `json:"rate"`
}

// LimitList is what may cross into the region.
type LimitList struct {
	Limits []snapferry.Limit `json:"limits"`
}

// PinList is what other regions hold in the region.
type PinList struct {
	Pins []snapferry.Pin `json:"pins"`
}

// UsageList is metered facts, in the order they were added.
type UsageList struct {
	Records []snapferry.UsageRecord `json:"records"`
}

// ForkRequest asks for a new volume that begins with what a snapshot has.
type ForkRequest struct {
	Volume string `json:"volume"` // the new one
	Labels
}

// UsageRequest asks what snapshots hold.
type UsageRequest struct {
	Snapshots []snapferry.SnapshotID `json:"snapshots"`
}

// JobList is what a region does for itself, oldest first.
type JobList struct {
	Jobs []snapferry.RegionJob `json:"jobs"`
}

// ExportRequest asks for a snapshot's content to be written to a file or
// device that was handed over.
type ExportRequest struct {
	Handle string `json:"handle"`
}

// FsckRequest asks for a check of the region.
type FsckRequest struct {
	Deep bool `json:"deep"`
}

// SnapshotList is a page of snapshots, newest first.
type SnapshotList struct {
	Snapshots []snapferry.Snapshot `json:"snapshots"`
	Next      snapferry.SnapshotID `json:"next,omitempty"` // pass as after for the next page
}

// SnapshotRequest asks for snapshots of live volumes, all at one moment.
type SnapshotRequest struct {
	Volumes []snapferry.VolumeID `json:"volumes"`
	Labels
}

// VolumeRequest asks for new live volumes.
type VolumeRequest struct {
	Size     int64                `json:"size,omitempty"`     // bytes; 0: that of the snapshot
	Snapshot snapferry.SnapshotID `json:"snapshot,omitempty"` // what they have at first; empty: zeros
	Name     string               `json:"name,omitempty"`     // empty: the id; with a count, -1, -2 ... are added
	Tags     snapferry.Tags       `json:"tags,omitempty"`
	Count    int                  `json:"count,omitempty"` // 0: one
	Sealing
}

// VolumeList is live volumes, newest first; those that were made are in the
// order of their making.
type VolumeList struct {
	Volumes []snapferry.Volume `json:"volumes"`
}

// ResizeRequest asks for a volume to be made larger.
type ResizeRequest struct {
	Size int64 `json:"size"` // bytes
}

// RollbackRequest asks for a volume to be put back to a snapshot.
type RollbackRequest struct {
	Snapshot         snapferry.SnapshotID `json:"snapshot"`
	NoSafetySnapshot bool                 `json:"no_safety_snapshot,omitempty"` // lose what it has now
}

// HydrateRequest asks for all that a volume reads from the bucket to be brought
// near.
type HydrateRequest struct {
	Rate int64 `json:"rate,omitempty"` // bytes per second; 0: no limit
}

// VolumeExportRequest asks for a volume to be served to NBD clients.
type VolumeExportRequest struct {
	Socket   string `json:"socket,omitempty"` // path on the region's machine; empty: the region chooses
	TLS      bool   `json:"tls,omitempty"`    // TCP with TLS instead of a socket
	ReadOnly bool   `json:"readonly,omitempty"`
}

// Event is one line of the answer to a long request: progress, then an item
// for each result, and at last Done or Error.
type Event struct {
	Progress *snapferry.Progress `json:"progress,omitempty"`
	Extent   *extent.Extent      `json:"extent,omitempty"` // of a diff
	Report   *FsckReport         `json:"report,omitempty"` // of a check
	Copy     *snapferry.Copy     `json:"copy,omitempty"`   // of a watch
	Done     bool                `json:"done,omitempty"`
	Error    *Error              `json:"error,omitempty"`
}

// Error is the JSON form of an error.
type Error struct {
	Kind      string `json:"kind"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

// FsckReport is what a check found.
type FsckReport struct {
	Region    snapferry.RegionName `json:"region"`
	Deep      bool                 `json:"deep"`
	Clean     bool                 `json:"clean"`
	Snapshots int64                `json:"snapshots"`
	Versions  int64                `json:"versions"`
	Objects   int64                `json:"objects"`
	Bytes     int64                `json:"bytes"` // read from the bucket
	Frames    int64                `json:"frames"`
	// HeldByDeleted is the stored bytes of frames that only deleted snapshots
	// have, which forks still need in part; a deep check counts them.
	HeldByDeleted int64     `json:"held_by_deleted_parents"`
	Findings      []Finding `json:"findings"`
}

// Finding is one thing that is not as it must be.
type Finding struct {
	Severity  string                 `json:"severity"` // damage, or garbage: harmless
	Object    string                 `json:"object,omitempty"`
	Segment   string                 `json:"segment,omitempty"`
	Slot      *int                   `json:"slot,omitempty"`
	Version   string                 `json:"version,omitempty"`
	Problem   string                 `json:"problem"`
	Snapshots []snapferry.SnapshotID `json:"snapshots,omitempty"` // that suffer
}
