// Package recovery rebuilds the metadata of a region from its bucket: from
// nothing, or over metadata that is behind. It reads every version record,
// decides which revision of each is true, follows what was being removed, reads
// the directories and footers of all objects, and walks the maps, parents before
// children; a version becomes visible only after that. What is not reached is
// dead. What cannot be brought back whole is told, and kept.
//
// The choice (choose.go) and the tree are computed from values; what is read
// goes by a cache file beside the new metadata (cache.go), so that a run that
// was killed goes on without reading anything twice. The new metadata is built
// beside the old (build.go) and takes its place in one step at the end.
//
// Catalogue writes, while a region runs, what the bucket must have beside
// version records for all this.
package recovery

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// Config says what to rebuild. Nobody else may use the region meanwhile.
type Config struct {
	Bucket *blob.Bucket
	Path   string // of the metadata
	Region snapferry.RegionName
	// ID and Incarnation are what the newest mark of a start in the bucket says,
	// Starts the audit lines that the metadata must have of all marks.
	ID          string
	Incarnation uint64
	Starts      []meta.Audit
	RegionKey   []byte // opens the dumps of the metadata, and the keyring; nil: there is none
	Drivers     map[string]kms.Driver
	Trust       ed25519.PublicKey // of records, where neither dump nor metadata tell; nil: none
	Merge       bool              // over the metadata at Path, which must be there
	// AcceptDeleted takes for deleted what the merge cannot prove to be.
	AcceptDeleted bool
	DryRun        bool // only tell
	Workers       int  // reads at a time; 0: 16
	// Release has the pin of a copy that failed released at its source.
	Release func(tx *meta.Tx, account snapferry.AccountID, id snapferry.CopyID) error
	// Progress, if not nil, is told how much of a phase is done. It is called
	// from one goroutine at a time.
	Progress func(phase string, done, total int64)
}

// The phases of a recovery, as Progress names them.
const (
	PhaseRecords  = "records"
	PhaseObjects  = "objects"
	PhaseMaps     = "maps"
	PhaseMetadata = "metadata"
)

const (
	// Suffix is what the file with the unfinished metadata is called after the
	// name of the metadata.
	Suffix      = ".recovering"
	cacheSuffix = Suffix + ".cache"
	readers     = 16
)

// run is one recovery.
type run struct {
	Config
	now      time.Time
	findings findings
	report   *Report
	cache    *cache
	old      *oldState // of a merge
	who      *identity
	names    names
	inv      *inventory
	forest   *forest
	chains   map[snapferry.ChainID]*chain
	dumpKey  dump.Sealer // nil: there is no key of the region
	keys     *keys
	proven   map[snapferry.ChainID]bool
	broken   map[snapferry.ChainID]bool
	missing  map[snapferry.SnapshotID]bool // taken for deleted, without a proof

	mu   sync.Mutex
	done int64
}

// names is what is in the bucket.
type names struct {
	records []found
	sizes   map[string]int64
	objects []*object
	chains  []string
	dumps   []string // ascending
	keyring []string // ascending
}

// Run rebuilds the metadata. The error says why that could not be done, and
// then the metadata at Path is as it was; what is missing in the bucket is in
// the report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Workers <= 0 {
		cfg.Workers = readers
	}
	if cfg.AcceptDeleted && !cfg.Merge {
		return nil, snapferry.Errorf(snapferry.Invalid, "recover region %s: only a merge knows of snapshots that were deleted", cfg.Region)
	}
	r := &run{
		Config: cfg, now: time.Now(), chains: map[snapferry.ChainID]*chain{}, proven: map[snapferry.ChainID]bool{}, broken: map[snapferry.ChainID]bool{},
		report: &Report{Region: cfg.Region, Merge: cfg.Merge, DryRun: cfg.DryRun, Deleted: []snapferry.SnapshotID{}, Missing: []snapferry.SnapshotID{}},
	}
	err := r.run(ctx)
	if r.keys != nil && r.keys.store != nil {
		r.keys.store.Close()
	}
	if r.cache != nil {
		err = errors.Join(err, r.cache.close())
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, snapferry.Errorf(snapferry.Cancelled, "recover region %s: %w", cfg.Region, err)
		}
		return nil, snapferry.Errorf(snapferry.KindOf(err), "recover region %s: %w", cfg.Region, err)
	}
	return r.report, nil
}

func (r *run) run(ctx context.Context) (err error) {
	if r.RegionKey != nil {
		if r.dumpKey, err = seal.NewDumpKey(r.RegionKey); err != nil {
			return err
		}
	}
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if r.cache, err = openCache(r.Bucket, r.Path+cacheSuffix); err != nil {
		return err
	}
	r.inv = &inventory{sealer: r.segmentSealer, cache: r.cache, findings: &r.findings, segments: map[segKey]*seg{}, footers: nil}
	for _, step := range []func(context.Context) error{
		r.list, r.identify, r.readChains, r.openKeys, r.readRecords, r.readObjects, r.plan, r.findMissing, r.walk, r.build, r.install,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	r.report.Reads = Reads{Requests: r.cache.reads, Bytes: r.cache.bytes}
	r.report.Complete = !r.findings.damaged()
	r.report.Findings = r.findings.sorted()
	return nil
}

// list reads the names in the bucket, once.
func (r *run) list(ctx context.Context) error {
	r.names.sizes = map[string]int64{}
	err := r.Bucket.List(ctx, "", "", func(i blob.Info) error {
		switch {
		case strings.HasPrefix(i.Name, vault.ObjectPrefix):
			r.names.objects = append(r.names.objects, &object{name: i.Name, size: i.Size})
		case strings.HasPrefix(i.Name, record.ChainPrefix()):
			r.names.chains = append(r.names.chains, i.Name)
			r.names.sizes[i.Name] = i.Size
		case strings.HasPrefix(i.Name, record.KeyringPrefix()):
			if _, err := record.ParseKeyringName(i.Name); err == nil {
				r.names.keyring = append(r.names.keyring, i.Name)
			}
		case strings.HasPrefix(i.Name, dump.Prefix()):
			if _, err := dump.ParseName(i.Name); err == nil {
				r.names.dumps = append(r.names.dumps, i.Name)
			}
		case strings.HasPrefix(i.Name, record.Prefix()):
			id, revision, err := record.ParseName(i.Name)
			if err != nil {
				r.findings.note(i.Name, snapferry.VersionID{}, "the name is not that of a version record")
				return nil
			}
			r.names.records = append(r.names.records, found{name: i.Name, version: id, revision: revision})
			r.names.sizes[i.Name] = i.Size
		}
		return nil
	})
	r.inv.objects, r.inv.footers = r.names.objects, emptyFooters()
	r.report.Records = int64(len(r.names.records))
	return err
}

// get reads a whole small object.
func (r *run) get(ctx context.Context, name string, limit int64) ([]byte, error) {
	size := r.names.sizes[name]
	if size == 0 || size > limit {
		return nil, snapferry.Errorf(snapferry.Corrupt, "it has %d bytes", size)
	}
	return r.cache.read(ctx, name, size, 0, size)
}

func (r *run) readRecords(ctx context.Context) error {
	r.begin(PhaseRecords, int64(len(r.names.records)))
	return each(ctx, r.Workers, len(r.names.records), func(ctx context.Context, i int) error {
		x := &r.names.records[i]
		p, err := r.get(ctx, x.name, record.MaxSize)
		if err == nil {
			if x.record, err = r.decodeRecord(ctx, p); err != nil {
				err = errors.Join(err, r.cache.drop(x.name))
			}
		}
		if x.err = err; err != nil && !isFinding(err) {
			return err
		}
		r.step(PhaseRecords, int64(len(r.names.records)))
		return nil
	})
}

func (r *run) readChains(ctx context.Context) error {
	for _, name := range r.names.chains {
		id, n, err := record.ParseChainName(name)
		if err != nil {
			r.findings.note(name, snapferry.VersionID{}, "the name is not that of an object of a chain")
			continue
		}
		p, err := r.get(ctx, name, record.MaxChainSize)
		var x *record.Chain
		if err == nil {
			if x, err = record.DecodeChain(p, r.who.keys); err != nil {
				err = errors.Join(err, r.cache.drop(name))
			}
		}
		if err == nil && (x.ID != id || x.Number != n || x.Region != r.Region) {
			err = snapferry.Errorf(snapferry.Corrupt, "it is number %d of chain %s of region %s", x.Number, x.ID, x.Region)
		}
		switch {
		case err == nil:
			r.chain(id).object = x // the names ascend
		case !isFinding(err):
			return err
		default:
			r.findings.damage(name, snapferry.VersionID{}, "object of a chain: %v", err)
		}
	}
	return nil
}

func (r *run) readObjects(ctx context.Context) error {
	all := r.inv.objects
	r.begin(PhaseObjects, int64(len(all)))
	err := each(ctx, r.Workers, len(all), func(ctx context.Context, i int) error {
		o := all[i]
		err := r.inv.readObject(ctx, o)
		if err != nil {
			if !isFinding(err) {
				return err
			}
			o.bodies = nil
			r.findings.damage(o.name, snapferry.VersionID{}, "object: %v", err)
			if err := r.cache.drop(o.name); err != nil {
				return err
			}
		}
		r.step(PhaseObjects, int64(len(all)))
		return nil
	})
	if err != nil {
		return err
	}
	return r.inv.index(ctx)
}

// plan decides which versions there are and how they hang together.
func (r *run) plan(context.Context) error {
	r.forest = choose(r.names.records, r.Region, &r.findings)
	if n := len(r.names.records); n > 0 && len(r.forest.versions) == 0 && r.old == nil {
		return snapferry.Errorf(snapferry.Corrupt, "none of the %d version records can be read with the keys there are: the first says %q", n, r.names.records[0].err).
			WithHint("give the public key that the region logged at its last start with --trust")
	}
	r.names.records = nil
	if r.old != nil {
		r.old.heal(r.forest, &r.findings)
		r.old.bury(r.forest)
	}
	r.forest.link(&r.findings)
	for id := range r.forest.order {
		r.chain(id)
	}
	for _, v := range r.forest.versions {
		if v.state == snapferry.VersionSealed {
			r.keepHolds(v)
		}
	}
	return nil
}

// keepHolds takes the holds of a version that count. Without any it is a ghost:
// only a reader kept it, which ended with its process.
func (r *run) keepHolds(v *version) {
	v.holds = slices.DeleteFunc(slices.Clone(v.holds), func(h record.Hold) bool {
		if r.old == nil || h.Kind != record.HoldSnapshot {
			return false
		}
		s, ok := r.old.snapshots[snapferry.SnapshotID(h.Owner)]
		gone := ok && s.State == snapferry.SnapshotDeleting && s.Version.IsZero() && !marked(s)
		if gone {
			r.findings.note("", v.id, "snapshot %s was deleted, its record does not say so yet", s.ID)
			v.stale = true
		}
		return gone
	})
	if len(v.holds) == 0 {
		v.state, v.stale = snapferry.VersionGhost, true
	}
}

// walk walks the maps, chain by chain.
func (r *run) walk(ctx context.Context) error {
	nodes, err := newNodeCache()
	if err != nil {
		return err
	}
	total := int64(0)
	ids := make([]snapferry.ChainID, 0, len(r.forest.order))
	for id, order := range r.forest.order {
		ids = append(ids, id)
		total += int64(len(order))
	}
	r.begin(PhaseMaps, total)
	return each(ctx, max(2, runtime.GOMAXPROCS(0)), len(ids), func(ctx context.Context, i int) error {
		w := &walker{inv: r.inv, nodes: nodes, findings: &r.findings, chain: ids[i]}
		err := w.walk(ctx, r.forest.order[ids[i]], r.forest.versions, func() { r.step(PhaseMaps, total) })
		r.mu.Lock()
		defer r.mu.Unlock()
		r.broken[ids[i]] = w.broken
		r.proven[ids[i]] = !w.broken && !w.twice && !r.forest.unproven[ids[i]]
		return err
	})
}

func (r *run) begin(phase string, total int64) {
	r.done = 0
	if r.Progress != nil {
		r.Progress(phase, 0, total)
	}
}

func (r *run) step(phase string, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	if r.Progress != nil {
		r.Progress(phase, r.done, total)
	}
}

// each runs fn for the numbers below n, some at a time.
func each(ctx context.Context, workers, n int, fn func(context.Context, int) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i := range n {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return fn(gctx, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// prepare looks at the metadata that is there, and copies it for a merge.
func (r *run) prepare(ctx context.Context) error {
	_, err := os.Stat(r.Path)
	there := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError(err, "look at %s", r.Path)
	}
	if err := removeDB(r.Path + Suffix); err != nil {
		return err
	}
	switch {
	case !there && r.Merge:
		return snapferry.Errorf(snapferry.NotFound, "there is no metadata %s to merge with", r.Path).WithHint("rebuild it from nothing: leave --merge out")
	case !there:
		return nil
	}
	db, err := meta.Open(ctx, meta.Config{Path: r.Path})
	if err != nil {
		return err
	}
	if err := r.openSealed(ctx, db); err != nil {
		return errors.Join(err, db.Close())
	}
	if err := r.prepareOver(ctx, db); err != nil {
		return errors.Join(err, db.Close())
	}
	return db.Close()
}

// prepareOver looks at metadata that is there. Without a region it is what a
// start left that was refused.
func (r *run) prepareOver(ctx context.Context, db *meta.DB) error {
	old, err := readOld(ctx, db)
	if snapferry.IsKind(err, snapferry.NotFound) {
		if r.Merge {
			return snapferry.Errorf(snapferry.Conflict, "the metadata %s is of no region", r.Path).WithHint("rebuild it from nothing: leave --merge out")
		}
		return nil
	}
	switch {
	case err != nil:
		return err
	case !r.Merge:
		return snapferry.Errorf(snapferry.Exists, "there is metadata of region %s already: %s", old.region.Name, r.Path).
			WithHint("when it is behind its bucket, use --merge; when it is damaged, move it away first")
	case old.region.ID != r.ID || old.region.Name != r.Region:
		return snapferry.Errorf(snapferry.Conflict, "the metadata is of region %s (%s), the bucket of %s (%s)", old.region.Name, old.region.ID, r.Region, r.ID)
	case old.region.Incarnation > r.Incarnation:
		return snapferry.Errorf(snapferry.Conflict, "the bucket lacks marks of starts that the metadata knows: %d of %d", r.Incarnation, old.region.Incarnation).
			WithHint("bring the bucket back, or correct it in the configuration")
	}
	r.old = old
	return db.CopyTo(ctx, r.Path+Suffix)
}

// removeDB removes a database that was not finished.
func removeDB(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileError(err, "remove %s", path+suffix)
		}
	}
	return nil
}

// install puts the new metadata in its place, durably and in one step.
func (r *run) install(context.Context) error {
	fresh := r.Path + Suffix
	if r.DryRun {
		return errors.Join(removeDB(fresh), r.forgetCache())
	}
	if st, err := os.Stat(fresh + "-wal"); err == nil && st.Size() > 0 {
		return snapferry.Errorf(snapferry.Internal, "the new metadata has a log that was not written back")
	}
	if err := syncFile(fresh); err != nil {
		return err
	}
	if r.Merge {
		if err := r.backup(); err != nil {
			return err
		}
	}
	// A log of the old metadata must not be taken for one of the new.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(r.Path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileError(err, "remove %s", r.Path+suffix)
		}
	}
	if err := os.Rename(fresh, r.Path); err != nil {
		return fileError(err, "rename %s", fresh)
	}
	if err := syncFile(filepath.Dir(r.Path)); err != nil {
		return err
	}
	return errors.Join(removeDB(fresh), r.forgetCache())
}

// backup keeps the metadata that was merged under another name as well.
func (r *run) backup() error {
	if st, err := os.Stat(r.Path + "-wal"); err == nil && st.Size() > 0 {
		return snapferry.Errorf(snapferry.Conflict, "%s is in use, or its log was not written back", r.Path)
	}
	for n := 1; ; n++ {
		name := r.Path + ".before-merge-" + itoa(n)
		err := os.Link(r.Path, name)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fileError(err, "keep the old metadata as %s", name)
		}
		r.report.Backup = name
		return syncFile(filepath.Dir(r.Path))
	}
}

func (r *run) forgetCache() error {
	if err := os.Remove(r.Path + cacheSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError(err, "remove %s", r.Path+cacheSuffix)
	}
	return nil
}

// syncFile makes a file, or the names in a directory, durable.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fileError(err, "open %s", path)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fileError(err, "sync %s", path)
	}
	return nil
}
