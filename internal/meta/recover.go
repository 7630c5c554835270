package meta

import (
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"time"

	"github.com/snapferry/snapferry"
)

// Catalogue says how far the sealed dump in the bucket is behind.
type Catalogue struct {
	Changes int64 // of accounts, chains and volumes so far
	Audit   int64 // the last audit line

	// Of the last dump; Dumped is -1 before the first.

	Dump        uint64 // its number
	Dumped      int64  // Changes then
	DumpedAudit int64  // Audit then
}

// Catalogue returns how far the dump in the bucket is behind.
func (tx *Tx) Catalogue() (Catalogue, error) {
	return get(tx, catalogueGet, func(r scanner, c *Catalogue) error {
		return r.Scan(&c.Changes, &c.Audit, &c.Dump, &c.Dumped, &c.DumpedAudit)
	}, "region", "in this metadata")
}

// SetDumped says that c.Dump is in the bucket and what is in it.
func (tx *Tx) SetDumped(c Catalogue) error {
	return tx.run(catalogueDumped, []any{c.Dump, c.Dumped, c.DumpedAudit}, "note dump %d", c.Dump)
}

// bumpCatalogue notes a change that the next dump must have.
func (tx *Tx) bumpCatalogue(err error) error {
	if err != nil {
		return err
	}
	return tx.run(catalogueBump, nil, "note a change of the catalogue")
}

// TrustKey adds the public key of an earlier sign key of the region; a second
// time it changes nothing.
func (tx *Tx) TrustKey(key ed25519.PublicKey, now time.Time) error {
	return tx.bumpCatalogue(tx.run(trustedPut, []any{[]byte(key), millis(now)}, "trust a key"))
}

// TrustedKeys returns the public keys of earlier sign keys, ascending.
func (tx *Tx) TrustedKeys() ([]ed25519.PublicKey, error) {
	return list(tx, trustedList, func(r scanner, k *ed25519.PublicKey) error { return r.Scan((*[]byte)(k)) }, "trusted keys")
}

// Chains returns all chains, by id.
func (tx *Tx) Chains() ([]Chain, error) { return list(tx, chainList, scanChain, "chains") }

// Volumes returns all lineages, by id.
func (tx *Tx) Volumes() ([]Volume, error) { return list(tx, volumeList, scanVolume, "volumes") }

// LastAudit returns the last n lines of who did what, in the order they were
// added.
func (tx *Tx) LastAudit(n int) ([]Audit, error) {
	return list(tx, auditTail, scanAudit, "audit lines", n)
}

// AllSnapshots returns every snapshot, also those that were deleted, by id.
func (tx *Tx) AllSnapshots() ([]Snapshot, error) {
	return list(tx, snapshotsAll, tx.scanSnapshot, "snapshots")
}

// AllPins returns every pin, by id.
func (tx *Tx) AllPins() ([]Pin, error) { return list(tx, pinsAll, scanPin, "pins") }

// UnsettledJobs returns the jobs that are queued or running, oldest first.
func (tx *Tx) UnsettledJobs() ([]Job, error) { return list(tx, jobsUnsettled, scanJob, "jobs") }

// PutSnapshot writes a snapshot over what is known of it, whatever its state
// was. It is for rebuilding metadata alone.
func (tx *Tx) PutSnapshot(s Snapshot) error {
	if err := tx.run(snapshotDelete, []any{string(s.ID)}, "replace snapshot %s", s.ID); err != nil {
		return err
	}
	return tx.InsertSnapshot(s)
}

// PutChain writes a chain, or what can change of one that is there: whether it
// is proven, and its key.
func (tx *Tx) PutChain(c Chain) error {
	key, generation, err := keyOf(c.WrappedKey)
	if err != nil {
		return err
	}
	n, err := tx.exec(chainUpdate, hexText(c.ID), blobOrNull(c.WrappedKey), truth(c.Proven), string(key), generation)
	if err != nil {
		return fail(err, "write chain %s", c.ID)
	}
	if n > 0 {
		return nil
	}
	return tx.InsertChain(c)
}

// EndJobs ends every job that has not ended: a running one, or one that ran
// before, has failed with a reason, others are cancelled.
func (tx *Tx) EndJobs(reason string, now time.Time) error {
	if err := tx.run(jobsFail, []any{reason, millis(now)}, "end jobs"); err != nil {
		return err
	}
	return tx.run(jobsCancel, []any{millis(now)}, "end jobs")
}

// ForgetBucket forgets all that the bucket tells of itself: versions with holds,
// pins and checkpoints, graves, segments and objects. It is for rebuilding
// metadata alone.
func (tx *Tx) ForgetBucket() error {
	for _, s := range []statement{pinsForget, holdsForget, checkpointsForget, versionsForget, gravesForget, segmentsForget, objectsForget} {
		if err := tx.run(s, nil, "forget what is in the bucket"); err != nil {
			return err
		}
	}
	return nil
}

// CopyTo writes a consistent copy of the metadata to a new file; it is not
// synced. Exists when the file is there.
func (db *DB) CopyTo(ctx context.Context, path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return snapferry.Errorf(snapferry.Invalid, "copy metadata to %s: %w", path, err)
	}
	// It holds keys: only its owner may read it, as the original. SQLite fills an
	// empty file that is there.
	f, err := os.OpenFile(abs, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return failFile(err, path)
	}
	if err := f.Close(); err != nil {
		return failFile(err, path)
	}
	if _, err := db.writer.ExecContext(ctx, "VACUUM INTO $1", abs); err != nil {
		return fail(err, "copy metadata to %s", path)
	}
	return nil
}
