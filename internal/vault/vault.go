package vault

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
	"github.com/snapferry/snapferry/segment"
)

// Config is what a vault needs.
type Config struct {
	Bucket  *blob.Bucket
	DB      *meta.DB
	Region  snapferry.RegionName
	Sign    ed25519.PrivateKey // signs version records
	Codec   snapferry.Codec    // of new blocks
	Memory  int64              // byte budget of segment buffers; 0 for DefaultMemory
	Workers int                // leaves an import works on at a time; 0 for one a processor
	Log     *slog.Logger       // nil for none
	Keys    Keys               // of encrypted chains; nil: all are plain
}

// Keys opens what encrypted chains have sealed. A nil key stands for a plain chain.
// Errors: KeyUnusable when the master key may not be used, Unavailable when it cannot
// be asked now, Corrupt when what is stored is not the key of the chain.
type Keys interface {
	Segment(ctx context.Context, chain snapferry.ChainID, id snapferry.SegmentID) (*seal.SegmentKey, error)
	Record(ctx context.Context, chain snapferry.ChainID, id snapferry.VersionID) (*seal.RecordKey, error)
}

// DefaultMemory is the byte budget of segment buffers (112 MiB): with the
// caches and the runtime a region stays below 256 MiB.
const DefaultMemory = 112 << 20

const (
	nodeCacheBytes   = 16 << 20
	windowCacheBytes = 8 << 20
	// maxStages is how many leaves (at most 16 MiB each, a third of that for
	// ordinary content) copies fill at a time in the whole region.
	maxStages = 8
)

// A Vault is one region's store of chains. It is safe for concurrent use.
type Vault struct {
	bucket  *blob.Bucket
	db      *meta.DB
	region  snapferry.RegionName
	sign    ed25519.PrivateKey
	codec   snapferry.Codec
	log     *slog.Logger
	keys    Keys
	workers int
	pool    *pool
	stages  *stages
	// importStages are apart: a copy holds its own while it waits for a link.
	importStages *stages
	writing      atomic.Int64   // writers open
	readers      sync.Pool      // of *FrameReader
	spoiled      spoiled        // objects that compaction leaves alone
	reholds      [64]sync.Mutex // by version: changes of its holds
	process      string         // random: owner of this process's readers
	reader       atomic.Uint64  // number of the last one
	endedMu      sync.Mutex
	ended        []reader // whose holds are to be released again; guarded by endedMu
	chains       sync.Map // of snapferry.ChainID: whose object is in the bucket
	loc          *locators
	nodes        *otter.Cache[snapferry.Ref, *blockmap.Node]
	windows      *otter.Cache[windowKey, []byte]
}

// New returns a vault over a bucket and its metadata.
func New(c Config) (*Vault, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.Workers == 0 {
		c.Workers = max(2, runtime.GOMAXPROCS(0))
	}
	v := &Vault{
		bucket: c.Bucket, db: c.DB, region: c.Region, sign: c.Sign, codec: c.Codec, log: c.Log, keys: c.Keys,
		workers: c.Workers, pool: newPool(c.Memory), process: snapferry.NewVersionID().String(),
	}
	v.stages, v.importStages = newStages(maxStages), newStages(2*c.Workers)
	v.loc = newLocators(v)
	var err error
	v.nodes, err = otter.New(&otter.Options[snapferry.Ref, *blockmap.Node]{
		MaximumWeight: nodeCacheBytes,
		Weigher:       func(_ snapferry.Ref, n *blockmap.Node) uint32 { return uint32(256 + 64*n.Len()) },
	})
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "node cache: %w", err)
	}
	v.windows, err = otter.New(&otter.Options[windowKey, []byte]{
		MaximumWeight: windowCacheBytes,
		Weigher:       func(_ windowKey, p []byte) uint32 { return uint32(64 + len(p)) },
	})
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "window cache: %w", err)
	}
	return v, nil
}

// sealerOf returns what seals a segment of a chain; nil for a plain chain.
func (v *Vault) sealerOf(ctx context.Context, chain snapferry.ChainID, id snapferry.SegmentID) (segment.Sealer, error) {
	if v.keys == nil {
		return nil, nil
	}
	k, err := v.keys.Segment(ctx, chain, id)
	if err != nil || k == nil {
		return nil, err
	}
	return k, nil
}

// recordSealer returns what seals the records of a version; nil for a plain chain.
func (v *Vault) recordSealer(ctx context.Context, chain snapferry.ChainID, id snapferry.VersionID) (record.Sealer, error) {
	if v.keys == nil {
		return nil, nil
	}
	k, err := v.keys.Record(ctx, chain, id)
	if err != nil || k == nil {
		return nil, err
	}
	return k, nil
}

// MapOf returns the map of a sealed version.
func (v *Vault) MapOf(ctx context.Context, id snapferry.VersionID) (blockmap.Map, error) {
	var row meta.Version
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		row, err = tx.Version(id)
		return err
	})
	if err != nil {
		return blockmap.Map{}, err
	}
	return v.mapOf(row)
}

func (v *Vault) mapOf(row meta.Version) (blockmap.Map, error) {
	m := blockmap.Map{Size: row.Size, Nodes: v}
	if row.State == snapferry.VersionOpen {
		return m, snapferry.Errorf(snapferry.Conflict, "version %s is not complete", row.ID)
	}
	root, err := decodeRoot(row.Root, row.Size)
	if err != nil {
		return m, snapferry.Errorf(snapferry.Corrupt, "root of version %s: %w", row.ID, err)
	}
	m.Root = root
	if m.Digest() != row.Digest {
		return m, snapferry.Errorf(snapferry.Corrupt, "root of version %s does not match its digest", row.ID)
	}
	return m, nil
}

// decodeRoot reads an embedded root; empty bytes are the empty map.
func decodeRoot(p []byte, size int64) (*blockmap.Node, error) {
	if len(p) == 0 {
		return nil, nil
	}
	n, err := blockmap.Decode(p)
	if err != nil {
		return nil, err
	}
	if n.Level != blockmap.RootLevel {
		return nil, snapferry.Errorf(snapferry.Corrupt, "node of level %d", n.Level)
	}
	return n, n.Check(0, size)
}

func encodeRoot(n *blockmap.Node) ([]byte, error) {
	if n == nil {
		return nil, nil
	}
	return n.AppendBinary(nil)
}
