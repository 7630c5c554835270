package snapferry

import (
	"time"

	"github.com/snapferry/snapferry/digest"
)

// Progress is how far a long operation has come. Done never goes back. Of what is
// not a copy only the first four are known.
type Progress struct {
	Total   int64     `json:"total"`   // plain bytes to settle
	Done    int64     `json:"done"`    // plain bytes settled: durably for a copy, and for a snapshot of a live volume
	Started time.Time `json:"started"` // when the present run began
	Rate    float64   `json:"rate"`    // plain bytes per second, recent

	Reused   int64   `json:"reused,omitempty"`    // plain bytes of Total that the region had
	Moved    int64   `json:"moved,omitempty"`     // bytes that crossed, compressed
	ToMove   int64   `json:"to_move,omitempty"`   // bytes that are still to cross, compressed
	MoveRate float64 `json:"move_rate,omitempty"` // bytes per second that cross, recent
	Ends     *Span   `json:"ends,omitempty"`      // when it will end, if what was goes on; nil: nobody knows
	Stalled  *Stall  `json:"stalled,omitempty"`   // nothing comes
}

// Span is a time that is known to lie between two.
type Span struct {
	Earliest time.Time `json:"earliest"`
	Latest   time.Time `json:"latest"`
}

// Stall is since when, and why, an operation does not advance.
type Stall struct {
	Since time.Time `json:"since"`
	Cause string    `json:"cause"`
	Again time.Time `json:"again,omitzero"` // when it is tried again, if it waits for that
}

// Copy is the transfer of a snapshot, or of all those of a set, into a region: a
// resource of the destination region. Those of a set become ready all at once, or
// none of them does.
type Copy struct {
	ID       CopyID     `json:"id"`
	Account  AccountID  `json:"account"`
	Snapshot SnapshotID `json:"snapshot"` // the snapshot being made here; of a set: the first
	Source   CopySource `json:"source"`
	Set      SetID      `json:"set,omitempty"`   // the set being made here, if one is copied
	Parts    []CopyPart `json:"parts,omitempty"` // of a set: its snapshots, in order
	State    CopyState  `json:"state"`
	Ending   Ending     `json:"ending,omitempty"` // in a final state: why it ended
	Reason   string     `json:"reason,omitempty"` // the same for people, when it is not done
	Full     bool       `json:"full"`
	Plan     *Plan      `json:"plan,omitempty"` // of the run that began last
	Rate     int64      `json:"rate,omitempty"` // bytes per second that may cross for it; 0: no limit of its own
	Deadline time.Time  `json:"deadline,omitzero"`
	Late     bool       `json:"late,omitempty"` // it is expected to miss, or has missed, the deadline
	Created  time.Time  `json:"created"`
	Started  time.Time  `json:"started,omitzero"` // when its turn came
	Finished time.Time  `json:"finished,omitzero"`
	Queue    *Queue     `json:"queue,omitempty"`    // while it waits for its turn
	Progress *Progress  `json:"progress,omitempty"` // when its turn has come
}

// CopyPart is a snapshot of a set that is copied.
type CopyPart struct {
	Source   SnapshotID `json:"source"`
	Snapshot SnapshotID `json:"snapshot"` // made of it here
}

// Queue is where a copy waits for its turn.
type Queue struct {
	Position int    `json:"position"` // 1: the next of its account
	Reason   string `json:"reason"`   // what it waits for
}

// Ending is why a copy ended: a price rule can tell them apart.
type Ending string

// The endings of a copy.
const (
	EndedDone          Ending = "done"
	EndedCancelled     Ending = "cancelled"      // its snapshot was deleted
	EndedSourceDeleted Ending = "source-deleted" // by force, or because the source was put back to an earlier time
	EndedSourceLost    Ending = "source-lost"    // the source could not be reached for as long as a copy waits
	EndedFull          Ending = "full"           // there was no room here for as long as a copy waits
	EndedFailed        Ending = "failed"         // for another reason
)

// Plan says what a copy will do, before or while it does it.
type Plan struct {
	Size         int64         `json:"size"`                   // bytes of the disk
	Digest       digest.Digest `json:"digest,omitzero"`        // of the source; zero of a set
	Present      int64         `json:"present"`                // plain bytes that are not zero
	MoveBlocks   int64         `json:"move_blocks"`            // blocks that will cross
	MoveBytes    int64         `json:"move_bytes"`             // their bytes as stored at the source
	ReuseBlocks  int64         `json:"reuse_blocks"`           // blocks the destination already has
	StoreBlocks  int64         `json:"store_blocks,omitempty"` // of those, what it has under another key, or of another volume, and stores again
	Donors       []SnapshotID  `json:"donors,omitempty"`       // that have these
	ChangedLeafs int64         `json:"changed_leafs"`          // map leaves (16 MiB) that differ
	Base         SnapshotID    `json:"base,omitempty"`
	Reason       string        `json:"reason"`         // why full or incremental, one sentence
	Time         time.Duration `json:"time,omitempty"` // nanoseconds that moving takes at the present limits; 0: there are none
}

// PinHolder is a copy of another region that needs a snapshot.
type PinHolder struct {
	Region RegionName `json:"region"`
	Copy   CopyID     `json:"copy"`
}

// Pin is what keeps a snapshot for a copy of another region.
type Pin struct {
	ID       string     `json:"id"`
	Snapshot SnapshotID `json:"snapshot"`
	Account  AccountID  `json:"account"` // of the snapshot
	Region   RegionName `json:"region"`  // that holds it
	Copy     CopyID     `json:"copy"`    // of that region
	Created  time.Time  `json:"created"`
	Seen     time.Time  `json:"seen"`               // when that copy was last heard of, to a minute
	Deleting bool       `json:"deleting,omitempty"` // the snapshot goes with its last pin
}

// Limit is how many bytes a second may cross into a region.
type Limit struct {
	Scope   string        `json:"scope"` // "link/REGION", "account" or "account/NAME"
	Rate    int64         `json:"rate"`  // bytes per second outside of the windows; 0: no limit
	Windows []LimitWindow `json:"windows,omitempty"`
	Now     int64         `json:"now"` // the rate at this time; not for setting
	Set     time.Time     `json:"set,omitzero"`
}

// LimitWindow is a part of each day with another rate, by the clock of the region's
// machine.
type LimitWindow struct {
	From string `json:"from"` // like 22:00
	To   string `json:"to"`   // not in it any more; on the next day when it is not after From
	Rate int64  `json:"rate"` // bytes per second; 0: no limit
}
