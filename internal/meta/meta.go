// Package meta is the catalogue of a region: who owns what, which versions
// there are and why they live, where segments are, which copies and jobs run.
// It is a set of typed queries inside transactions over an embedded SQLite
// file; the same texts are meant for PostgreSQL. Nothing else in the program
// knows SQL.
//
// Contract. Update runs one write transaction at a time and is durable when it
// returns nil; when it returns an error after the transaction's function ended
// well, the changes may or may not have been made, as with any commit: who
// needs to know looks again. View sees one consistent state and never waits
// for a writer. A transaction that another process holds up is tried again
// here; every other error is the caller's. A DB is safe for concurrent use, a
// Tx is not, and ends with the function it was given to.
package meta

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/snapferry/snapferry"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	applicationID  = 0x53464d44 // "SFMD", in the head of our files
	busyTimeout    = 5 * time.Second
	busyAttempts   = 6
	checkedAtStart = 64 << 20 // bytes of a file that Open still reads whole
)

// Config says what to open.
type Config struct {
	Path  string // of the SQLite file; made if it is not there
	Hooks Hooks
}

// Hooks let a test cut the power around a commit. An error of a hook is what
// Update returns. Transactions that wrote nothing pass by the hooks.
type Hooks struct {
	BeforeCommit func() error // when it fails, nothing was done
	AfterCommit  func() error // when it fails, it was done all the same
}

// DB is the metadata of one region.
type DB struct {
	sealer  Sealer // nil: none
	hooks   Hooks
	writer  *sql.DB // one connection
	readers *sql.DB
	write   statements
	read    statements // only those that read

	mu      sync.Mutex
	changed chan struct{}
}

// Open opens the metadata, making or migrating it if need be. Errors: Corrupt
// when the file is damaged (files up to 64 MiB are read whole to see that;
// Check reads larger ones), Unsupported when a newer program wrote it, Invalid
// when it is a database of something else, NotFound when the folder is
// missing, Denied without the rights.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "open metadata %s: %w", cfg.Path, err)
	}
	if err := touch(path); err != nil {
		return nil, failFile(err, path)
	}
	db := &DB{hooks: cfg.Hooks, changed: make(chan struct{})}
	if err := db.open(ctx, path); err != nil {
		db.Close() // the first error is the one that says what is wrong
		return nil, fail(err, "open metadata %s", path)
	}
	return db, nil
}

// touch makes the file, readable for its owner only (it holds keys), with a
// durable name.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// source is the address of the file for the driver. Pragmas are those of a
// connection; journal_mode is the file's.
func source(path, lock string, pragmas ...string) string {
	q := url.Values{"_txlock": {lock}, "_dqs": {"0"}}
	for _, p := range append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()), "foreign_keys(1)", "synchronous(FULL)",
	}, pragmas...) {
		q.Add("_pragma", p)
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}
	return u.String()
}

func (db *DB) open(ctx context.Context, path string) (err error) {
	if db.writer, err = sql.Open("sqlite", source(path, "immediate", "journal_mode(WAL)")); err != nil {
		return err
	}
	db.writer.SetMaxOpenConns(1)
	if err := checkEngine(ctx, db.writer); err != nil {
		return err
	}
	if err := checkFile(ctx, db.writer); err != nil {
		return err
	}
	if err := migrate(ctx, db.writer); err != nil {
		return err
	}
	if db.readers, err = sql.Open("sqlite", source(path, "deferred", "query_only(1)")); err != nil {
		return err
	}
	n := max(4, runtime.GOMAXPROCS(0))
	db.readers.SetMaxOpenConns(n)
	db.readers.SetMaxIdleConns(n)
	if db.write, err = prepare(ctx, db.writer, func(statement) bool { return true }); err != nil {
		return err
	}
	db.read, err = prepare(ctx, db.readers, statement.reads)
	return err
}

// checkEngine refuses an SQLite with the defect of resetting its log that
// 3.51.3 mended.
func checkEngine(ctx context.Context, d *sql.DB) error {
	var s string
	if err := d.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&s); err != nil {
		return err
	}
	var major, minor, patch int
	if _, err := fmt.Sscanf(s, "%d.%d.%d", &major, &minor, &patch); err != nil {
		return fmt.Errorf("version %q of SQLite: %w", s, err)
	}
	if major*1_000_000+minor*1000+patch < 3_051_003 {
		return snapferry.Errorf(snapferry.Unsupported, "SQLite %s is older than 3.51.3 and can damage its log", s)
	}
	return nil
}

// checkFile refuses what is not ours, and a file whose damage shows.
func checkFile(ctx context.Context, d *sql.DB) error {
	var id, tables, pages, pageSize int64
	for _, q := range []struct {
		text string
		dst  *int64
	}{
		{"PRAGMA application_id", &id},
		{"SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'goose_%' AND name NOT LIKE 'sqlite_%'", &tables},
		{"PRAGMA page_count", &pages},
		{"PRAGMA page_size", &pageSize},
	} {
		if err := d.QueryRowContext(ctx, q.text).Scan(q.dst); err != nil {
			return err
		}
	}
	if id != applicationID && (id != 0 || tables > 0) {
		return snapferry.Errorf(snapferry.Invalid, "the file is a database, but not metadata of snapferry")
	}
	if pages*pageSize > checkedAtStart {
		return nil
	}
	return integrity(ctx, d, "PRAGMA quick_check(1)")
}

func integrity(ctx context.Context, d *sql.DB, pragma string) error {
	var verdict string
	if err := d.QueryRowContext(ctx, pragma).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return snapferry.Errorf(snapferry.Corrupt, "the file is damaged: %s", verdict).
			WithHint(rebuildHint)
	}
	return nil
}

// migrate brings the schema to ours, and refuses a newer one.
func migrate(ctx context.Context, d *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, d, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if have > want {
		return snapferry.Errorf(snapferry.Unsupported, "the metadata has schema %d, this program knows %d", have, want).
			WithHint("start it with the newer snapferry")
	}
	_, err = p.Up(ctx)
	return err
}

// Close ends the use of the metadata.
func (db *DB) Close() error {
	var errs []error
	for _, d := range []*sql.DB{db.readers, db.writer} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return fail(errors.Join(errs...), "close metadata")
}

// Check reads the whole file and reports damage as Corrupt.
func (db *DB) Check(ctx context.Context) error {
	return fail(integrity(ctx, db.readers, "PRAGMA integrity_check(1)"), "check metadata")
}

// Update runs fn in a write transaction and commits when fn returns nil. fn
// may be run again when another process was in the way, so it must have no
// effect but through tx. The errors of fn are returned as they are.
func (db *DB) Update(ctx context.Context, fn func(tx *Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := db.update(ctx, fn)
		if err == nil || !isBusy(err) || attempt == busyAttempts {
			return err
		}
		select {
		case <-ctx.Done():
			return fail(ctx.Err(), "write metadata")
		case <-time.After(rand.N(time.Duration(attempt) * 50 * time.Millisecond)):
		}
	}
}

func (db *DB) update(ctx context.Context, fn func(*Tx) error) error {
	t, err := db.writer.BeginTx(ctx, nil)
	if err != nil {
		return fail(err, "begin a transaction")
	}
	defer t.Rollback() // no effect after the commit
	tx := &Tx{ctx: ctx, db: db, tx: t, statements: &db.write}
	if err := fn(tx); err != nil {
		return err
	}
	if tx.wrote && db.hooks.BeforeCommit != nil {
		if err := db.hooks.BeforeCommit(); err != nil {
			return err
		}
	}
	if err := t.Commit(); err != nil {
		return fail(err, "commit")
	}
	if !tx.wrote {
		return nil
	}
	db.broadcast()
	if db.hooks.AfterCommit != nil {
		return db.hooks.AfterCommit()
	}
	return nil
}

// View runs fn over one state of the metadata. The errors of fn are returned
// as they are.
func (db *DB) View(ctx context.Context, fn func(tx *Tx) error) error {
	t, err := db.readers.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fail(err, "begin to read")
	}
	defer t.Rollback()
	return fn(&Tx{ctx: ctx, db: db, tx: t, statements: &db.read})
}

// Changed returns a channel that is closed after the next Update of this DB
// that changed something. To wait for a condition, take the channel, look, and
// wait on the channel: no change between the two is missed.
func (db *DB) Changed() <-chan struct{} {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.changed
}

func (db *DB) broadcast() {
	db.mu.Lock()
	defer db.mu.Unlock()
	close(db.changed)
	db.changed = make(chan struct{})
}
