// Package control is the use cases of a region, one method each: what the
// dialects, the console and the command line call. A mutation is checked, then
// made in one metadata transaction, and answered; what takes long is a job.
//
// Every method acts for an account and sees only what that account owns; what
// belongs to another is not found.
package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/keystore"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// Config is what a region is made of.
type Config struct {
	Name   snapferry.RegionName
	DB     *meta.DB
	Bucket *blob.Bucket
	Vault  *vault.Vault
	Jobs   *job.Queue
	// Peers are the other regions, each on behalf of an account by name.
	Peers   map[snapferry.RegionName]func(account string) transfer.Remote
	Version string       // of the program
	Log     *slog.Logger // nil for none

	Keys    *keystore.Store
	Volumes VolumeConfig // no live volumes without
	Copies  CopyConfig
	// Operators are the accounts, by name, that may change what belongs to the
	// region: the limits of its links, and the pins of others.
	Operators map[string]bool

	ReclaimGrace   time.Duration // between an object's condemnation and its removal; 0: a minute, less than 0: none
	CompactionRate int64         // bytes per second that compaction may read; 0: as many as it can
}

// Region is one region's control plane. It is safe for concurrent use.
type Region struct {
	name      snapferry.RegionName
	db        *meta.DB
	bucket    *blob.Bucket
	vault     *vault.Vault
	jobs      *job.Queue
	peers     map[snapferry.RegionName]func(string) transfer.Remote
	version   string
	log       *slog.Logger
	started   time.Time
	grace     time.Duration
	pace      *rate.Limiter // of compaction; nil: none
	freeing   freeing
	files     VolumeConfig
	keys      *keystore.Store
	copies    CopyConfig
	operators map[string]bool
	limits    *limits
	memory    *transfer.Memory // of copies, here and from here
	begun     chan struct{}    // see Started
	closed    atomic.Bool      // no volume is opened any more
	behind    sync.WaitGroup   // see afterwards
	answers   answers

	mu       sync.Mutex
	imports  map[snapferry.SnapshotID]*running // disks handed over, until their job takes them; guarded by mu
	reasons  map[snapferry.SnapshotID]error    // why imports failed, until that is on record; guarded by mu
	progress map[snapferry.SnapshotID]*running // what runs here now; guarded by mu
	pulling  map[snapferry.CopyID]*running     // the copies that run here now; guarded by mu
	compacts map[snapferry.ChainID]bool        // whose compaction runs; guarded by mu
	volumes  map[snapferry.VolumeID]*live      // that were used; guarded by mu
	earlies  map[snapferry.VersionID]*early    // of copies that volumes read; guarded by mu
	tallies  map[tallyKey]*tally               // of what was sent; guarded by mu
}

// New returns a region's control plane; Run sets its jobs to work.
func New(c Config) *Region {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.ReclaimGrace == 0:
		c.ReclaimGrace = defaultGrace
	case c.ReclaimGrace < 0:
		c.ReclaimGrace = 0
	}
	return &Region{
		begun: make(chan struct{}),
		name:  c.Name, db: c.DB, bucket: c.Bucket, vault: c.Vault, jobs: c.Jobs, peers: c.Peers, version: c.Version, log: c.Log, started: time.Now(),
		keys: c.Keys, grace: c.ReclaimGrace, pace: limiter(c.CompactionRate),
		imports: map[snapferry.SnapshotID]*running{}, reasons: map[snapferry.SnapshotID]error{}, progress: map[snapferry.SnapshotID]*running{}, pulling: map[snapferry.CopyID]*running{},
		compacts: map[snapferry.ChainID]bool{}, earlies: map[snapferry.VersionID]*early{}, tallies: map[tallyKey]*tally{}, volumes: map[snapferry.VolumeID]*live{}, files: c.Volumes,
		copies: c.Copies.withDefaults(), limits: newLimits(), memory: transfer.NewMemory(c.Copies.Memory), operators: c.Operators,
	}
}

// limiter allows bytes per second, at most those of a second at once; nil, and
// so no limit, for 0.
func limiter(bytes int64) *rate.Limiter {
	if bytes <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), int(min(bytes, math.MaxInt32)))
}

// The kinds of jobs.
const (
	jobImport  = "import"
	jobFork    = "fork"
	jobCopy    = "copy"
	jobDiscard = "discard"
	// Of live volumes; the subject is the volume.
	jobUpload   = "upload" // of its snapshots, the oldest first
	jobRollback = "rollback"
	jobUnmake   = "unmake"
	jobMake     = "make" // one that a start could not make, because its key may not be used
	jobHydrate  = "hydrate"
)

// Started returns a channel that is closed when Run has taken up what the last
// process left: live volumes that are exported are served.
func (r *Region) Started() <-chan struct{} { return r.begun }

// Run works on the region's jobs until ctx ends, and then closes its volumes.
// Nobody may use them any more by then. It is called once.
func (r *Region) Run(ctx context.Context) error {
	defer r.closeVolumes()
	// What was stored while no process ran was stored all the same.
	if err := r.MeterDays(ctx, time.Now()); err != nil {
		return err
	}
	if err := r.abandonReserved(ctx, r.started); err != nil {
		return err
	}
	if err := r.finishDeletes(ctx); err != nil {
		return err
	}
	// The quotas may be others than before.
	if err := r.db.Update(ctx, r.dispatch); err != nil {
		return err
	}
	if err := r.startUpkeep(ctx); err != nil {
		return err
	}
	if err := r.startVolumes(ctx); err != nil {
		return err
	}
	close(r.begun)
	var pacing sync.WaitGroup
	defer pacing.Wait()
	pacing.Go(func() { r.paceCopies(ctx) })
	pacing.Go(func() { r.disownAll(ctx) })
	pacing.Go(func() { r.meterAll(ctx) })
	if r.keys != nil {
		pacing.Go(func() { r.keepKeys(ctx) })
	}
	return r.jobs.Start(ctx, r.handlers())
}

// handlers are those of all kinds of jobs.
func (r *Region) handlers() map[string]job.Handler {
	all := r.upkeep()
	all[jobImport], all[jobFork], all[jobCopy], all[jobDiscard] = r.runImport, r.runFork, r.runCopy, r.runDiscard
	all[jobRewrap] = r.runRewrap
	all[jobMake] = r.runMake
	all[jobUpload], all[jobRollback], all[jobUnmake], all[jobHydrate] = r.runUpload, r.runRollback, r.runUnmake, r.runHydrate
	return all
}

// Name returns the region's name.
func (r *Region) Name() snapferry.RegionName { return r.name }

// Peers returns the names of the regions this one knows, sorted.
func (r *Region) Peers() (names []snapferry.RegionName) {
	for n := range r.peers {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// HashToken is how a bearer token is kept: its SHA-256 in hexadecimal. Tokens
// are random and long, so a plain hash is enough.
func HashToken(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}

// Authenticate returns the account of a bearer token; Denied when there is
// none.
func (r *Region) Authenticate(ctx context.Context, token string) (snapferry.Account, error) {
	var a meta.Account
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		a, err = tx.AccountByToken(HashToken(token))
		return err
	})
	if token == "" || snapferry.IsKind(err, snapferry.NotFound) {
		return snapferry.Account{}, snapferry.Errorf(snapferry.Denied, "the token is not that of an account of region %s", r.name).
			WithHint("check the account's token for this region in the client's configuration")
	}
	return a.Account, err
}

// running is what an operation that runs in this process shows of itself.
type running struct {
	disk    vault.Disk // of an import
	since   vault.Disk // the same, as what changed; may be nil
	close   func()     // gives the disk back
	started time.Time
	total   int64
	done    func() int64 // never goes back
	counts  func() snapferry.Counts
	pull    *puller // of a copy, or a snapshot that one makes
	part    *part   // of a snapshot that a copy makes

	mu   sync.Mutex
	rate pace
}

// rate is a moving average of bytes per second.
type pace struct {
	at    time.Time
	bytes int64
	value float64
}

const rateWindow = 2 * time.Second

func (x *running) show() *snapferry.Progress {
	p := &snapferry.Progress{Total: x.total, Done: x.done(), Started: x.started}
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	if x.rate.at.IsZero() {
		x.rate.at, x.rate.value = x.started, 0
	}
	if d := now.Sub(x.rate.at); d >= rateWindow/4 {
		v := float64(p.Done-x.rate.bytes) / d.Seconds()
		if w := min(d.Seconds()/rateWindow.Seconds(), 1); x.rate.value > 0 {
			v = x.rate.value*(1-w) + v*w
		}
		x.rate = pace{at: now, bytes: p.Done, value: v}
	}
	p.Rate = x.rate.value
	if x.pull != nil {
		x.pull.show(p, x.part)
	}
	return p
}

func (r *Region) setRunning(id snapferry.SnapshotID, x *running) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x == nil {
		delete(r.progress, id)
	} else {
		r.progress[id] = x
	}
}

func (r *Region) setPulling(id snapferry.CopyID, x *running) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x == nil {
		delete(r.pulling, id)
	} else {
		r.pulling[id] = x
	}
}

// pullingOf is a copy that runs here; nil when it does not.
func (r *Region) pullingOf(id snapferry.CopyID) *running {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pulling[id]
}

// audit adds a line of who did what to the transaction.
func audit(tx *meta.Tx, account snapferry.AccountID, action string, subject, detail string) error {
	return tx.AddAudit(meta.Audit{At: time.Now(), Account: account, Action: action, Subject: subject, Detail: detail})
}

// meter adds a metered fact to the transaction.
func meter(tx *meta.Tx, account snapferry.AccountID, kind string, subject snapferry.SnapshotID, bytes int64) error {
	if bytes == 0 {
		return nil
	}
	return tx.AddUsage(meta.Usage{Account: account, Kind: kind, Subject: string(subject), Bytes: bytes, At: time.Now()})
}
