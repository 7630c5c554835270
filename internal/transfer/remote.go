package transfer

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Hello is what regions tell each other first.
type Hello struct {
	Region      snapferry.RegionName `json:"region"`
	Version     string               `json:"version"`  // of the program
	Protocol    int                  `json:"protocol"` // of the peer service
	Incarnation uint64               `json:"incarnation"`
}

// Description is what a region says of one of its snapshots to another.
type Description struct {
	Info
	Snapshot snapferry.SnapshotID
	Name     string
	Created  time.Time
	Volume   string             // name of the lineage
	VolumeID snapferry.VolumeID // the lineage
	Chain    snapferry.ChainID
	// Encrypted says that the source seals it: so must whoever copies it.
	Encrypted bool
	// Lineage has the digests of the snapshot's ancestors that still live,
	// newest first: whoever has one of them has a base.
	Lineage []digest.Digest
}

// MaxLineage is how many ancestors a description names.
const MaxLineage = 64

// Pin asks a source to keep a snapshot until it is released.
type Pin struct {
	Snapshot    snapferry.SnapshotID `json:"snapshot"`
	Copy        snapferry.CopyID     `json:"copy"`        // of the region that asks
	Incarnation uint64               `json:"incarnation"` // of the region that asks
}

// Handle says by what right nodes and blocks of a snapshot are read: a pin, or,
// to plan only, the snapshot itself.
type Handle struct {
	Pin      string               `json:"pin,omitempty"`
	Snapshot snapferry.SnapshotID `json:"snapshot"`
}

// Held is a pin that a region holds in another.
type Held struct {
	Handle
	Copy snapferry.CopyID `json:"copy"` // that it is for
}

// Caller is who asks over the connection between regions: a region, proven by
// its certificate, on behalf of an account it names.
type Caller struct {
	Region  snapferry.RegionName
	Account string // name
}

// Remote is another region, seen on behalf of an account.
type Remote interface {
	Hello(ctx context.Context) (Hello, error)
	Describe(ctx context.Context, id snapferry.SnapshotID) (Description, error)
	// Members lists the snapshots of a set, which are all there and ready.
	Members(ctx context.Context, set snapferry.SetID) ([]snapferry.SnapshotID, error)
	Pin(ctx context.Context, p Pin) (handle Handle, err error)
	// Renew notes that a pin is still needed; NotFound when it is there no more.
	Renew(ctx context.Context, h Handle) error
	// Release ends a pin, and says how the copy ended that held it; empty: nobody
	// knows.
	Release(ctx context.Context, h Handle, ending snapferry.Ending) error
	// Pins lists, by id and not all at once, the pins of the region that asks which
	// follow one; none is the end.
	Pins(ctx context.Context, after string) ([]Held, error)
	Source(h Handle) Source
}

// Host is what a region offers to others.
type Host interface {
	Hello(ctx context.Context, c Caller) (Hello, error)
	Describe(ctx context.Context, c Caller, id snapferry.SnapshotID) (Description, error)
	Members(ctx context.Context, c Caller, set snapferry.SetID) ([]snapferry.SnapshotID, error)
	Pin(ctx context.Context, c Caller, p Pin) (handle Handle, err error)
	Renew(ctx context.Context, c Caller, h Handle) error
	Release(ctx context.Context, c Caller, h Handle, ending snapferry.Ending) error
	Pins(ctx context.Context, c Caller, after string) ([]Held, error)
	Source(ctx context.Context, c Caller, h Handle) (Source, error)
}
