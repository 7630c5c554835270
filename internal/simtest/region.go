// Package simtest builds regions in one process for tests: metadata, bucket,
// vault, jobs and control plane over a store that survives a restart, cut off
// power and broken links on demand, and a check of all accounts at the end. A
// World is such regions with random lives and a model of what they must hold.
package simtest

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/keystore"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/seal"
)

// Options say how a region is made. The zero value is a region "east" in
// memory that knows no other.
type Options struct {
	Name   snapferry.RegionName
	Driver blob.Driver // of the bucket; nil for one in memory
	DB     string      // path of the metadata; "" for a temporary one
	Codec  snapferry.Codec
	Peers  map[snapferry.RegionName]func(account string) transfer.Remote
	Jobs   bool          // set the control plane to work
	Lease  time.Duration // of jobs; 0 for the default
	// Grace is the time before a condemned object is removed; 0 for none.
	Grace time.Duration
	// Files is where live volumes have their files; nil for none.
	Files layer.FS
	// CacheBytes is the budget of what is near; 0 keeps only what is in use.
	CacheBytes int64
	// KeyServices are the drivers of key services, by name; Keys is how long what they
	// opened is kept.
	KeyServices map[string]kms.Driver
	Keys        kms.Config
	// Exporter serves volumes; nil for none.
	Exporter control.Exporter
	// Copies, and Operators, are those of control.Config.
	Copies    control.CopyConfig
	Operators map[string]bool
	Poll      time.Duration // of jobs; 0 for 50 ms
	// Workers is how many jobs of a lane run at a time; 0 for the default.
	Workers int
	// Encrypt has what Volume makes, and what accounts make without saying, be
	// encrypted.
	Encrypt bool
	// Committed, if not nil, is called after each commit of the metadata, before
	// who made it goes on.
	Committed func()
}

// A Region is a region under test. Its parts are new after a Restart.
type Region struct {
	Name    snapferry.RegionName
	Faulty  *blobtest.Faulty // between Power and the driver
	Power   *Power
	DB      *meta.DB
	Bucket  *blob.Bucket
	Vault   *vault.Vault
	Keys    *keystore.Store
	Control *control.Region

	tb     testing.TB
	opts   Options
	key    ed25519.PrivateKey
	secret []byte // the region's key
	starts int
	stop   func()
	behind sync.WaitGroup                 // processes that were taken for dead
	live   atomic.Pointer[control.Region] // Control, for links
	lost   bool                           // the files of volumes are as if the machine were off
}

// template is the path of metadata that is migrated already, so that a test
// that opens many regions does not migrate as often.
func template(tb testing.TB) []byte {
	tb.Helper()
	dir, err := os.MkdirTemp("", "simtest")
	if err != nil {
		tb.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "meta.db")
	db, err := meta.Open(context.Background(), meta.Config{Path: path})
	if err != nil {
		tb.Fatal(err)
	}
	if err := db.Close(); err != nil {
		tb.Fatal(err)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// A Factory makes regions from one migrated database.
type Factory struct{ db []byte }

// NewFactory returns a factory of regions.
func NewFactory(tb testing.TB) *Factory { return &Factory{db: template(tb)} }

// NewRegion makes a region.
func (f *Factory) NewRegion(tb testing.TB, o Options) *Region {
	tb.Helper()
	if o.DB == "" {
		o.DB = filepath.Join(tb.TempDir(), "meta.db")
	}
	if err := os.WriteFile(o.DB, f.db, 0o600); err != nil {
		tb.Fatal(err)
	}
	return NewRegion(tb, o)
}

// NewRegion makes a region that is stopped when the test ends.
func NewRegion(tb testing.TB, o Options) *Region {
	tb.Helper()
	if o.Name == "" {
		o.Name = "east"
	}
	if o.Driver == nil {
		o.Driver = memblob.New()
	}
	if o.DB == "" {
		o.DB = filepath.Join(tb.TempDir(), "meta.db")
	}
	f := blobtest.NewFaulty(tb, o.Driver)
	r := &Region{Name: o.Name, Faulty: f, Power: NewPower(f), tb: tb, opts: o, secret: make([]byte, seal.KeySize)}
	rand.Read(r.secret)
	var err error
	if _, r.key, err = ed25519.GenerateKey(nil); err != nil {
		tb.Fatal(err)
	}
	r.start()
	r.Update(func(tx *meta.Tx) error {
		return tx.PutRegion(meta.Region{Name: o.Name, ID: "region", SignKey: r.key, LookupKey: r.key[:32], Created: time.Now()})
	})
	tb.Cleanup(r.Stop)
	return r
}

// PublicKey verifies the region's version records.
func (r *Region) PublicKey() ed25519.PublicKey { return r.key.Public().(ed25519.PublicKey) }

// Secret is the region's key.
func (r *Region) Secret() []byte { return r.secret }

func (r *Region) start() {
	r.tb.Helper()
	r.starts++
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	r.DB, err = meta.Open(ctx, meta.Config{Path: r.opts.DB, Hooks: r.hooks()})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.Bucket = blob.New(r.Power)
	r.openKeys(ctx)
	r.Forget()
	log := slog.New(slog.DiscardHandler)
	jobs := job.New(r.DB, job.Config{
		Owner: fmt.Sprintf("%s/%d", r.Name, r.starts), Lease: r.opts.Lease, Poll: cmp.Or(r.opts.Poll, 50*time.Millisecond), Workers: r.opts.Workers, Upkeep: r.opts.Workers, Log: log,
	})
	volumes := control.VolumeConfig{FS: r.opts.Files, Exporter: r.opts.Exporter}
	if volumes.FS != nil {
		r.openFiles(&volumes)
	}
	r.Control = control.New(control.Config{
		Volumes: volumes, Keys: r.Keys,

		Name: r.Name, DB: r.DB, Bucket: r.Bucket, Vault: r.Vault, Jobs: jobs, Peers: r.opts.Peers, Version: "test", Log: log, ReclaimGrace: cmp.Or(r.opts.Grace, -1),
		Copies: r.opts.Copies, Operators: r.opts.Operators,
	})
	r.live.Store(r.Control)
	ended := make(chan struct{})
	db, keys := r.DB, r.Keys
	if r.opts.Jobs {
		c := r.Control
		go func() {
			defer close(ended)
			// A start can be cut short by the power.
			if err := c.Run(ctx); err != nil && ctx.Err() == nil && !r.Power.Off() {
				r.tb.Errorf("region %s: %v", r.Name, err)
			}
		}()
	} else {
		close(ended)
	}
	r.stop = func() {
		cancel()
		<-ended
		keys.Close()
		if volumes.Caches != nil {
			if err := volumes.Caches.Close(); err != nil && !r.lost {
				r.tb.Errorf("close caches of %s: %v", r.Name, err)
			}
		}
		if err := db.Close(); err != nil {
			r.tb.Errorf("close metadata of %s: %v", r.Name, err)
		}
	}
}

// openKeys opens the master keys of the region.
func (r *Region) openKeys(ctx context.Context) {
	r.tb.Helper()
	k, err := seal.NewMetadataKey(r.secret, r.key[:32])
	if err != nil {
		r.tb.Fatal(err)
	}
	r.DB.SealWith(k)
	ring, err := seal.NewKeyringKey(r.secret)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.Keys, err = keystore.Open(ctx, keystore.Config{
		Bucket: r.Bucket, DB: r.DB, Region: r.Name, ID: "region", Seal: ring, Drivers: r.opts.KeyServices, Keys: r.opts.Keys,
	})
	if err != nil {
		r.tb.Fatal(err)
	}
}

// hooks are those of the power, and Committed.
func (r *Region) hooks() meta.Hooks {
	h := r.Power.Hooks()
	if after := h.AfterCommit; r.opts.Committed != nil {
		h.AfterCommit = func() error {
			err := after()
			r.opts.Committed()
			return err
		}
	}
	return h
}

// openFiles makes the folders of live volumes and opens the caches.
func (r *Region) openFiles(c *control.VolumeConfig) {
	r.tb.Helper()
	if err := c.FS.Mkdir("volumes"); err != nil && !snapferry.IsKind(err, snapferry.Exists) {
		r.tb.Fatal(err)
	}
	var err error
	if c.Caches, err = head.OpenCaches(c.FS, "caches", r.opts.CacheBytes, nil); err != nil {
		r.tb.Fatal(err)
	}
}

// Forget gives the region a vault that has nothing in its caches. The control
// plane keeps the one it has.
func (r *Region) Forget() {
	r.tb.Helper()
	r.Vault = r.Another()
}

// Offline stops the region, brings the power back, and starts it again after fn
// has worked on its metadata file and its bucket.
func (r *Region) Offline(fn func(path string, bucket *blob.Bucket)) {
	r.tb.Helper()
	r.Stop()
	r.Power.Restore()
	fn(r.opts.DB, blob.New(r.Power))
	r.start()
	if err := r.Vault.Start(context.Background()); err != nil {
		r.tb.Fatalf("region %s: %v", r.Name, err)
	}
}

// CopyDB writes the metadata, as it is now, to another file.
func (r *Region) CopyDB(path string) {
	r.tb.Helper()
	if err := r.DB.CopyTo(context.Background(), path); err != nil {
		r.tb.Fatal(err)
	}
}

// Another returns one more vault over the same bucket and metadata, as another
// process of the region has it.
func (r *Region) Another() *vault.Vault {
	r.tb.Helper()
	v, err := vault.New(vault.Config{Bucket: r.Bucket, DB: r.DB, Region: r.Name, Sign: r.key, Codec: r.opts.Codec, Keys: r.Keys})
	if err != nil {
		r.tb.Fatal(err)
	}
	return v
}

// Other returns the vault of another process of the region, over the same
// metadata and what wrap makes of the same bucket.
func (r *Region) Other(wrap func(blob.Driver) blob.Driver) *vault.Vault {
	r.tb.Helper()
	v, err := vault.New(vault.Config{Bucket: blob.New(wrap(r.Power)), DB: r.DB, Region: r.Name, Sign: r.key, Codec: r.opts.Codec, Keys: r.Keys})
	if err != nil {
		r.tb.Fatal(err)
	}
	return v
}

// Stop ends the region's jobs and closes its metadata.
func (r *Region) Stop() {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
	r.behind.Wait()
}

// Overtake starts the region while its last process goes on for a time, as one does
// that was taken for dead. It must have no live volumes.
func (r *Region) Overtake(d time.Duration) {
	r.tb.Helper()
	old := r.stop
	r.behind.Go(func() {
		time.Sleep(d)
		old()
	})
	r.start()
}

// Restart stops the region, brings the power back and starts it again on what
// bucket and metadata hold.
func (r *Region) Restart() {
	r.tb.Helper()
	r.Stop()
	r.Power.Restore()
	r.start()
	if !r.opts.Jobs { // else the control plane has done it
		if err := r.Vault.Start(context.Background()); err != nil {
			r.tb.Fatalf("region %s: %v", r.Name, err)
		}
	}
}

// Reboot is a Restart after the power was cut for the files of live volumes, too:
// they are those of fs from then on. jobs says whether the region is set to work.
func (r *Region) Reboot(fs layer.FS, jobs bool) {
	r.tb.Helper()
	r.lost = true
	r.Stop()
	r.lost = false
	r.opts.Files, r.opts.Jobs = fs, jobs
	r.Restart()
}

// Update changes the metadata.
func (r *Region) Update(fn func(tx *meta.Tx) error) {
	r.tb.Helper()
	if err := r.DB.Update(context.Background(), fn); err != nil {
		r.tb.Fatalf("region %s: %v", r.Name, err)
	}
}

// View reads the metadata.
func (r *Region) View(fn func(tx *meta.Tx) error) {
	r.tb.Helper()
	if err := r.DB.View(context.Background(), fn); err != nil {
		r.tb.Fatalf("region %s: %v", r.Name, err)
	}
}

// Account makes an account.
func (r *Region) Account(name string) snapferry.AccountID {
	r.tb.Helper()
	id := snapferry.NewAccountID()
	r.Update(func(tx *meta.Tx) error {
		return tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: id, Name: name}, Created: time.Now()})
	})
	return id
}

// Volume makes a lineage with a chain of its own.
func (r *Region) Volume(account snapferry.AccountID, name string) meta.Volume {
	r.tb.Helper()
	chain := meta.Chain{ID: snapferry.NewChainID(), Account: account, Algorithm: digest.SHA256, Proven: true, Created: time.Now()}
	if r.opts.Encrypt {
		k, err := r.Keys.Service(context.Background(), account)
		if err == nil {
			chain.WrappedKey, err = r.Keys.DataKey(context.Background(), k, chain.ID)
		}
		if err != nil {
			r.tb.Fatalf("region %s: %v", r.Name, err)
		}
	}
	vol := meta.Volume{ID: snapferry.NewVolumeID(), Account: account, Name: name, Chain: chain.ID, Created: time.Now()}
	r.Update(func(tx *meta.Tx) (err error) {
		if err := tx.InsertChain(chain); err != nil {
			return err
		}
		if err := tx.InsertVolume(vol); err != nil {
			return err
		}
		vol, err = tx.Volume(vol.ID)
		return err
	})
	return vol
}
