package control

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/keystore"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/record"
)

// Sealing is what a caller wants of the key of a new lineage. A lineage keeps the key
// that it began with: whoever asks for another one of what is there is refused.
type Sealing struct {
	Encrypt bool   // with the account's default key, or its service key
	Key     string // id or alias of a key of this region; empty: Encrypt says
}

func (s Sealing) asked() bool { return s.Encrypt || s.Key != "" }

func (r *Region) haveKeys() error {
	if r.keys == nil {
		return snapferry.Errorf(snapferry.Unsupported, "region %s has no keyring: nothing is encrypted there", r.name)
	}
	return nil
}

// keyFor returns the key that a new lineage of an account is sealed with; ok is false
// for a plain one.
func (r *Region) keyFor(ctx context.Context, account snapferry.AccountID, s Sealing) (k snapferry.Key, ok bool, err error) {
	if r.keys == nil && !s.asked() {
		return k, false, nil
	}
	if err := r.haveKeys(); err != nil {
		return k, false, err
	}
	d := r.keys.Default(account)
	if !s.asked() && !d.Encrypt {
		return k, false, nil
	}
	name := s.Key
	if name == "" {
		name = string(d.Key)
	}
	if name == "" {
		k, err = r.keys.Service(ctx, account)
	} else {
		k, err = r.keys.Resolve(account, name)
	}
	return k, err == nil, err
}

// newChain makes a chain that is in no metadata yet, under a key or plain. Its data
// key was made, and opened again.
func (r *Region) newChain(ctx context.Context, account snapferry.AccountID, k snapferry.Key, sealed bool) (meta.Chain, error) {
	c := meta.Chain{ID: snapferry.NewChainID(), Account: account, Algorithm: digest.SHA256, Proven: true, Created: time.Now()}
	if !sealed {
		return c, nil
	}
	var err error
	if c.WrappedKey, err = r.keys.DataKey(ctx, k, c.ID); err != nil {
		return c, err
	}
	c.Key, c.Generation = k.ID, k.Generation
	return c, nil
}

// insertChain inserts a chain that newChain has made.
func (r *Region) insertChain(tx *meta.Tx, c meta.Chain) error {
	if r.keys != nil {
		if err := r.keys.Admit(tx, c); err != nil {
			return err
		}
	}
	return tx.InsertChain(c)
}

// chainFor makes a chain for a new lineage as a caller wants it.
func (r *Region) chainFor(ctx context.Context, account snapferry.AccountID, s Sealing) (meta.Chain, error) {
	k, sealed, err := r.keyFor(ctx, account, s)
	if err != nil {
		return meta.Chain{}, err
	}
	return r.newChain(ctx, account, k, sealed)
}

// wanted returns the key that is asked for by name; empty when none is.
func (r *Region) wanted(ctx context.Context, account snapferry.AccountID, s Sealing) (snapferry.KeyID, error) {
	if s.Key == "" {
		return "", nil
	}
	k, _, err := r.keyFor(ctx, account, s)
	return k.ID, err
}

// chainOfLineage returns the chain of a lineage by its name: one that is made as a caller
// wants it when there is none yet, else only with the key that is asked for.
func (r *Region) chainOfLineage(ctx context.Context, account snapferry.AccountID, name string, s Sealing) (c meta.Chain, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		_, err := tx.VolumeByName(account, name)
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		return r.chainFor(ctx, account, s)
	}
	if err == nil {
		c.Key, err = r.wanted(ctx, account, s)
	}
	return c, err
}

// fits refuses a request for a key of something that has another one; want is the
// key that a new lineage would get.
func (s Sealing) fits(what string, have, want snapferry.KeyID) error {
	switch {
	case !s.asked() || s.Key == "" && have != "" || s.Key != "" && have == want:
		return nil
	case have == "":
		return snapferry.Errorf(snapferry.Conflict, "%s is not encrypted, and stays so", what).
			WithHint("copy a snapshot of it with: snapferry snapshot copy ID --from REGION --to REGION --encrypt")
	}
	return snapferry.Errorf(snapferry.Conflict, "%s is encrypted with key %s, and stays so", what, have).
		WithHint("copy a snapshot of it with: snapferry snapshot copy ID --from REGION --to REGION --encrypt --key KEY")
}

// tryKey opens the data key of a version's chain now.
func (r *Region) tryKey(ctx context.Context, id snapferry.VersionID) error {
	if err := r.haveKeys(); err != nil {
		return err
	}
	row, err := r.versionRow(ctx, id)
	if err != nil {
		return err
	}
	return r.keys.Try(ctx, row.Chain)
}

// copyKey returns the key under which a copy of what was described is kept; ok is
// false for a plain one.
func (r *Region) copyKey(ctx context.Context, account snapferry.AccountID, s Sealing, ds []transfer.Description) (k snapferry.Key, ok bool, err error) {
	k, ok, err = r.keyFor(ctx, account, s)
	if err != nil || ok {
		return k, ok, err
	}
	for _, d := range ds {
		if d.Encrypted {
			return k, false, snapferry.Errorf(snapferry.Invalid, "snapshot %s is encrypted, and so are all copies of it", d.Snapshot).
				WithHint("ask for a copy with --encrypt, and with --key for another key than the service key of region %s", r.name)
		}
	}
	return k, false, nil
}

// copyChains are chains that copies need, by the source's chain: made, and their keys
// tried, before the metadata is written. Of those that are there already only the key is
// named, which is tried.
func (r *Region) copyChains(ctx context.Context, account snapferry.AccountID, from snapferry.RegionName, k snapferry.Key, sealed bool, ds []transfer.Description) (map[snapferry.ChainID]meta.Chain, error) {
	chains := map[snapferry.ChainID]meta.Chain{}
	for _, d := range ds {
		if _, ok := chains[d.Chain]; ok {
			continue
		}
		there, found, err := r.copyChain(ctx, account, from, k, d)
		if err != nil {
			return nil, err
		}
		if found {
			if sealed {
				if err := r.keys.Try(ctx, there); err != nil {
					return nil, err
				}
			}
			chains[d.Chain] = meta.Chain{Key: k.ID}
			continue
		}
		c, err := r.newChain(ctx, account, k, sealed)
		if err != nil {
			return nil, err
		}
		c.OriginRegion, c.OriginChain = from, d.Chain
		chains[d.Chain] = c
	}
	return chains, nil
}

// copyChain looks for the chain that a copy would go to.
func (r *Region) copyChain(ctx context.Context, account snapferry.AccountID, from snapferry.RegionName, k snapferry.Key, d transfer.Description) (id snapferry.ChainID, found bool, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		vol, err := r.findCopyVolume(tx, account, from, d, k.ID)
		if err == nil {
			id, found = vol.Chain, true
			return nil
		}
		if !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
		c, err := tx.ChainByOrigin(account, from, d.Chain, k.ID)
		if err == nil {
			id, found = c.ID, true
		}
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil
		}
		return err
	})
	return id, found, err
}

// findCopyVolume returns the lineage here that copies of a source's lineage under a key
// belong to; NotFound when there is none yet. A copy inside one region under the same
// key belongs to its source's.
func (r *Region) findCopyVolume(tx *meta.Tx, account snapferry.AccountID, from snapferry.RegionName, d transfer.Description, key snapferry.KeyID) (meta.Volume, error) {
	if from == r.name {
		vol, err := tx.Volume(d.VolumeID)
		if err != nil || vol.Key == key {
			return vol, err
		}
	}
	return tx.VolumeByOrigin(account, from, d.VolumeID, key)
}

// KeyRequest asks for a master key.
type KeyRequest = keystore.NewKey

// CreateKey makes a master key of the account.
func (r *Region) CreateKey(ctx context.Context, account snapferry.AccountID, req KeyRequest) (snapferry.Key, error) {
	if err := r.haveKeys(); err != nil {
		return snapferry.Key{}, err
	}
	return r.keys.Create(ctx, account, req)
}

// Keys returns the master keys of the account, by id.
func (r *Region) Keys(_ context.Context, account snapferry.AccountID) ([]snapferry.Key, error) {
	if err := r.haveKeys(); err != nil {
		return nil, err
	}
	return r.keys.Keys(account), nil
}

// Key returns a master key of the account by its id or an alias, and what is sealed with
// it.
func (r *Region) Key(ctx context.Context, account snapferry.AccountID, name string) (k snapferry.Key, use snapferry.KeyUse, err error) {
	if err := r.haveKeys(); err != nil {
		return k, use, err
	}
	if k, err = r.keys.Resolve(account, name); err != nil {
		return k, use, err
	}
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		use = snapferry.KeyUse{}
		chains, err := tx.ChainsOfKey(k.ID)
		if err != nil {
			return err
		}
		use.Chains = len(chains)
		for _, c := range chains {
			if c.Generation != k.Generation {
				use.Behind++
			}
		}
		volumes, err := tx.VolumesOfKey(k.ID)
		if err != nil {
			return err
		}
		for _, v := range volumes {
			if _, err := tx.Head(v.ID); err == nil {
				use.Volumes = append(use.Volumes, v.ID)
			} else if !snapferry.IsKind(err, snapferry.NotFound) {
				return err
			}
			all, err := tx.Snapshots(account, meta.SnapshotFilter{VolumeID: v.ID})
			if err != nil {
				return err
			}
			for i := range all {
				use.Snapshots = append(use.Snapshots, all[len(all)-1-i].ID)
			}
		}
		return nil
	})
	return k, use, err
}

// KeyAction is what can be done to a master key.
type KeyAction string

// The actions.
const (
	KeyEnable         KeyAction = "enable"
	KeyDisable        KeyAction = "disable"
	KeyCancelDeletion KeyAction = "cancel-deletion"
	KeyRotate         KeyAction = "rotate"
)

// ChangeKey does something to a master key of the account. A key that is disabled, or
// waits for its deletion, opens nothing from then on: what is being read or copied with
// it stops, and goes on when it is enabled.
func (r *Region) ChangeKey(ctx context.Context, account snapferry.AccountID, name string, a KeyAction) (k snapferry.Key, err error) {
	if err := r.haveKeys(); err != nil {
		return k, err
	}
	switch a {
	case KeyEnable:
		k, err = r.keys.Enable(ctx, account, name)
	case KeyDisable:
		k, err = r.keys.Disable(ctx, account, name)
	case KeyCancelDeletion:
		k, err = r.keys.CancelDeletion(ctx, account, name)
	case KeyRotate:
		k, err = r.keys.Rotate(ctx, account, name)
	default:
		return k, snapferry.Errorf(snapferry.Invalid, "unknown action %.40q on a key", a)
	}
	if err != nil || k.State != snapferry.KeyEnabled {
		return k, err
	}
	// What a disabled key kept from being done is done now.
	return k, r.db.Update(ctx, func(tx *meta.Tx) error {
		chains, err := tx.ChainsOfKey(k.ID)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if err := enqueueFree(tx, c.ID); err != nil {
				return err
			}
		}
		return enqueueRewrap(tx, k)
	})
}

// ScheduleKeyDeletion has a master key of the account deleted in some days.
func (r *Region) ScheduleKeyDeletion(ctx context.Context, account snapferry.AccountID, name string, days int) (snapferry.Key, error) {
	if err := r.haveKeys(); err != nil {
		return snapferry.Key{}, err
	}
	return r.keys.ScheduleDeletion(ctx, account, name, days)
}

// SetKeyAlias gives a master key of the account an alias, which moved takes from another
// one that has it. RemoveKeyAlias takes it away.
func (r *Region) SetKeyAlias(ctx context.Context, account snapferry.AccountID, name, alias string, moved bool) (snapferry.Key, error) {
	if err := r.haveKeys(); err != nil {
		return snapferry.Key{}, err
	}
	return r.keys.SetAlias(ctx, account, name, alias, moved)
}

// RemoveKeyAlias takes an alias from the key that has it.
func (r *Region) RemoveKeyAlias(ctx context.Context, account snapferry.AccountID, alias string) (snapferry.Key, error) {
	if err := r.haveKeys(); err != nil {
		return snapferry.Key{}, err
	}
	return r.keys.RemoveAlias(ctx, account, alias)
}

// EncryptByDefault says what the account wants of new volumes in the region.
func (r *Region) EncryptByDefault(_ context.Context, account snapferry.AccountID) (record.KeyDefault, error) {
	if err := r.haveKeys(); err != nil {
		return record.KeyDefault{}, err
	}
	return r.keys.Default(account), nil
}

// SetEncryptByDefault changes that: key is an id or an alias, empty for the service key.
func (r *Region) SetEncryptByDefault(ctx context.Context, account snapferry.AccountID, encrypt bool, key string) (record.KeyDefault, error) {
	if err := r.haveKeys(); err != nil {
		return record.KeyDefault{}, err
	}
	return r.keys.SetDefault(ctx, account, encrypt, key)
}

// jobRewrap wraps data keys again whose master key was rotated; the subject is the
// master key.
const jobRewrap = "rewrap"

func enqueueRewrap(tx *meta.Tx, k snapferry.Key) error {
	chains, err := tx.ChainsOfKey(k.ID)
	if err != nil {
		return err
	}
	for _, c := range chains {
		if c.Generation != k.Generation {
			return job.Enqueue(tx, job.Job{Kind: jobRewrap, Account: k.Account, Subject: string(k.ID), Lane: job.Upkeep})
		}
	}
	return nil
}

// runRewrap is the job of a rotation: each data key is wrapped with the newest generation
// of its master key, written into the bucket, and only then the truth. No data moves. It
// can be interrupted at any point.
func (r *Region) runRewrap(ctx context.Context, run *job.Run) error {
	id := snapferry.KeyID(run.Job.Subject)
	k, err := r.keys.Resolve(run.Job.Account, string(id))
	if err != nil {
		return err
	}
	var chains []meta.Chain
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		chains, err = tx.ChainsOfKey(id)
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range chains {
		if err := r.rewrap(ctx, run, c); err != nil {
			return err
		}
	}
	return r.keys.Prune(ctx, k, k.Generation)
}

func (r *Region) rewrap(ctx context.Context, run *job.Run, c meta.Chain) error {
	wrapped, err := r.keys.Rewrap(ctx, c)
	if err != nil || wrapped == nil {
		return err
	}
	old := c.WrappedKey
	c.WrappedKey = wrapped
	if err := r.vault.PutChain(ctx, c); err != nil {
		return err
	}
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		now, err := tx.Chain(c.ID)
		if err != nil {
			return err
		}
		if string(now.WrappedKey) != string(old) {
			return snapferry.Errorf(snapferry.Unavailable, "the key of chain %s was changed by somebody else", c.ID)
		}
		now.WrappedKey = wrapped
		return tx.PutChain(now)
	})
	if err != nil {
		return err
	}
	r.keys.Forget(c.ID)
	return r.vault.DropOldChains(ctx, c.ID)
}

// keepKeys deletes keys whose time has come, until ctx ends.
func (r *Region) keepKeys(ctx context.Context) {
	const look = time.Minute
	for {
		next, err := r.keys.Expire(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "delete a key", "err", err)
		}
		pause := look
		if !next.IsZero() {
			pause = min(pause, time.Until(next))
		}
		if wait(ctx, nil, pause); ctx.Err() != nil {
			return
		}
	}
}
