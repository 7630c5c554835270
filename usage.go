package snapferry

import (
	"encoding/json"
	"time"
)

// Freed is what deleting something gives back.
type Freed struct {
	Blocks int64 `json:"blocks"` // that nothing else has, each 64 KiB of a disk
	Bytes  int64 `json:"bytes"`  // as stored, with the maps
	// Later is stored bytes, at least, that only what is deleted has and that
	// stay until copies, imports and readers have ended, or until all but one of
	// the forks below are deleted too.
	Later int64 `json:"later"`
}

// SnapshotFreed is what deleting one snapshot, and nothing else, gives back.
type SnapshotFreed struct {
	ID SnapshotID `json:"id"`
	Freed
}

// SnapshotUsage is what snapshots hold.
type SnapshotUsage struct {
	Snapshots []SnapshotFreed `json:"snapshots"` // each by itself
	Together  Freed           `json:"together"`  // what deleting all of them gives back
}

// Space is what an account, or all of a region, keeps.
type Space struct {
	Snapshots int64 `json:"snapshots"` // that are ready
	Making    int64 `json:"making"`    // snapshots that are being made
	Versions  int64 `json:"versions"`  // with those that are being made and the ghosts
	Ghosts    int64 `json:"ghosts"`    // versions that are deleted, but for what others need of them
	Present   int64 `json:"present"`   // plain bytes that are not zero of the ready snapshots, each counted by itself
	Stored    int64 `json:"stored"`    // bytes of the objects that snapshots need
	Live      int64 `json:"live"`      // of them, bytes that something needs
	Dead      int64 `json:"dead"`      // of them, bytes that compaction gives back
	Condemned int64 `json:"condemned"` // bytes of objects that nobody needs, and that are removed after a grace
	Objects   int64 `json:"objects"`   // that snapshots need
	Small     int64 `json:"small"`     // of them, smaller than 8 MiB
}

// UsageRecord is one metered fact.
type UsageRecord struct {
	ID int64 `json:"id"` // ascending
	// Kind is stored: put into the bucket for a snapshot; received: by a copy into
	// this region; sent: to one; freed: by deletion, as stored; storage: what a
	// snapshot stored from From until At; or retained: what others needed in that
	// time of deleted snapshots, or what was not freed yet.
	Kind    string `json:"kind"`
	Subject string `json:"subject"`            // id of a snapshot; of freed: of a chain; of retained: of a volume
	Bytes   int64  `json:"bytes"`              // of storage and retained: all the time
	Count   int64  `json:"requests,omitempty"` // of sent: those that were answered
	// From is set of storage and retained, which last. They do not go beyond the
	// midnight, UTC, after it.
	From    time.Time `json:"from,omitzero"`
	At      time.Time `json:"at"`                // when it was, or when what lasts ended
	Copy    CopyID    `json:"copy,omitempty"`    // that it is about
	Outcome Ending    `json:"outcome,omitempty"` // of that copy
}

// RegionUsage is what a region keeps, and what it does to give space back.
type RegionUsage struct {
	Region  RegionName `json:"region"`
	Total   Space      `json:"total"`             // of all accounts
	Account Space      `json:"account"`           // of the account that asked
	Stopped string     `json:"stopped,omitempty"` // why nothing is reclaimed; empty: it is
	Running int64      `json:"running"`           // jobs of upkeep
	Queued  int64      `json:"queued"`            // jobs of upkeep that are due or wait for a neighbour, a grace, or another try
}

// RegionJob is a job that a region does for itself and that has not ended.
type RegionJob struct {
	ID       JobID           `json:"id"`
	Kind     string          `json:"kind"`    // free, compact, reclaim, sweep, discard
	Subject  string          `json:"subject"` // version, chain or snapshot; "region" for all of it
	State    JobState        `json:"state"`
	Progress json.RawMessage `json:"progress,omitempty"` // numbers by name, as the kind has them
	Attempts int             `json:"attempts,omitempty"` // that ended in Error
	Error    string          `json:"error,omitempty"`    // of the last attempt
	After    time.Time       `json:"after,omitzero"`     // not before
	Created  time.Time       `json:"created"`
}
