// Package fsck proves that a region is what it must be: that the bucket has
// every object the metadata names, that records, directories and footers agree
// with the metadata, and, in a deep check, that every byte is under its
// checksum, that every block and node is what the maps say, that the maps of a
// chain keep the reference rule, and that each stored frame is either reached
// by a map or marked dead.
//
// It only reads. It never repairs and never deletes: it names what is wrong
// and which snapshots suffer. A region may be in use meanwhile; what changed
// while it was looked at is left to the next check.
package fsck

import (
	"context"
	"crypto/ed25519"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
)

// Config says what to check.
type Config struct {
	DB         *meta.DB
	Bucket     *blob.Bucket
	Vault      *vault.Vault // reads the nodes of maps
	Region     snapferry.RegionName
	SignPublic ed25519.PublicKey // that version records are signed with
	Deep       bool              // read everything
	Workers    int               // objects read at a time; 0: one a processor of the scheduler, at least 4
	// Mark, if not nil, checks every byte of what the n-th start of the region
	// left in the bucket: Corrupt when it is not that. Without, it must name
	// the region.
	Mark func(ctx context.Context, n uint64, p []byte) error
	// Dumps, if not nil, opens the dumps of the metadata, in a deep check.
	Dumps dump.Sealer
	// Keyring, if not nil, opens the keyrings of the region.
	Keyring record.Sealer
	// Keys opens what is sealed in encrypted chains; nil: all are plain. What it
	// refuses to open is told as garbage: it cannot be proved.
	Keys vault.Keys
	// Progress, if not nil, is told how many bytes of objects are settled, of
	// how many. It is called from one goroutine at a time; done never goes back.
	Progress func(done, total int64)
}

// Report is what a check found.
type Report struct {
	Region    snapferry.RegionName `json:"region"`
	Deep      bool                 `json:"deep"`
	Clean     bool                 `json:"clean"`     // no damage; there may be garbage
	Snapshots int64                `json:"snapshots"` // visible ones
	Versions  int64                `json:"versions"`
	Objects   int64                `json:"objects"` // that hold segments
	Bytes     int64                `json:"bytes"`   // read from the bucket, nodes read to walk the maps not counted
	Frames    int64                `json:"frames"`  // in the segments whose footers could be read
	// HeldByDeleted is the stored bytes of frames that only deleted versions
	// have, which others still need in part. A deep check counts them.
	HeldByDeleted int64     `json:"held_by_deleted_parents"`
	Findings      []Finding `json:"findings"`
}

// The severities of findings.
const (
	Damage  = "damage"  // something that is needed, or that metadata tells of, is missing or wrong
	Garbage = "garbage" // harmless: takes space, or is left from something that did not come to its end
)

// Finding is one thing that is not as it must be.
type Finding struct {
	Severity  string                 `json:"severity"`
	Object    string                 `json:"object,omitempty"`
	Segment   string                 `json:"segment,omitempty"`
	Slot      *int                   `json:"slot,omitempty"`
	Version   string                 `json:"version,omitempty"` // that the finding is about, or that wrote the segment
	Problem   string                 `json:"problem"`
	Snapshots []snapferry.SnapshotID `json:"snapshots,omitempty"` // that suffer
}

// Run checks a region. The error says why the check could not be made (the
// bucket or the metadata cannot be read, the context ended); what is wrong
// with the region is in the report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Workers <= 0 {
		cfg.Workers = max(4, runtime.GOMAXPROCS(0))
	}
	c := &checker{Config: cfg, state: new(state), seen: map[string]bool{}, broken: map[snapferry.ChainID]bool{}, shut: map[snapferry.ChainID]bool{}, ghosts: map[snapferry.ChainID]bool{}}
	for _, step := range []func(context.Context) error{
		c.checkMetadata,
		c.list, // before the metadata: what is in the list was registered then
		c.load,
		c.checkVersions,
		c.checkSnapshots,
		c.checkRecords,
		c.checkIncarnations,
		c.checkCatalogue,
		c.checkKeyrings,
		c.walkMaps,
		c.checkObjects,
		c.checkNames,
		c.attribute,
		c.confirm,
	} {
		if err := step(ctx); err != nil {
			if c.doubtful && isFinding(err) {
				c.damage(target{slot: -1}, "the check cannot go on: %v", err)
				break
			}
			if ctx.Err() != nil {
				return nil, snapferry.Errorf(snapferry.Cancelled, "check region %s: %w", cfg.Region, err)
			}
			return nil, snapferry.Errorf(snapferry.KindOf(err), "check region %s: %w", cfg.Region, err)
		}
	}
	return c.report(), nil
}

// A checker is one run.
type checker struct {
	Config
	bucket listing
	state  *state
	// doubtful says that the metadata is damaged: what does not fit may be it.
	doubtful bool
	bytes    atomic.Int64 // read from the bucket
	frames   atomic.Int64
	looked   atomic.Int64 // objects

	mu       sync.Mutex
	findings []*finding
	seen     map[string]bool            // keys of findings
	more     int64                      // findings beyond maxFindings
	broken   map[snapferry.ChainID]bool // chains of which not all maps could be walked
	shut     map[snapferry.ChainID]bool // chains that are locked
	ghosts   map[snapferry.ChainID]bool // chains with versions that are deleted and still needed
	held     atomic.Int64               // stored bytes that only such versions have
	done     int64
	total    int64
}

// checkMetadata has the database prove itself, in deep mode: what the rest of
// the check reads of it would else be believed.
func (c *checker) checkMetadata(ctx context.Context) error {
	if !c.Deep {
		return nil
	}
	err := c.DB.Check(ctx)
	if c.doubtful = snapferry.IsKind(err, snapferry.Corrupt); c.doubtful {
		c.damage(target{slot: -1}, "the metadata: %v", err)
		return nil
	}
	return err
}

// step counts n bytes of objects as settled.
func (c *checker) step(n int64) {
	if c.Progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += n
	c.Progress(c.done, c.total)
}

// each runs fn for every item, Workers at a time.
func each[T any](ctx context.Context, c *checker, items []T, fn func(context.Context, T) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.Workers)
	for _, item := range items {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return fn(gctx, item) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// isFinding reports whether an error of a read tells of the region's state,
// rather than of our not being able to look.
func isFinding(err error) bool {
	switch snapferry.KindOf(err) {
	case snapferry.Corrupt, snapferry.NotFound, snapferry.Unsupported:
		return true
	}
	return false
}
