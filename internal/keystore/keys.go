package keystore

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// maxKeys is how many keys an account may have in a region, deleted ones aside.
const maxKeys = 1000

// NewKey says what a master key is to be.
type NewKey struct {
	Alias       string // may be empty
	Description string
	Driver      string // empty: the region's default
	External    string // its name at the driver; empty: embedded
}

const maxKeyDescription = 1024

func (n NewKey) check() error {
	if n.Alias != "" {
		if err := snapferry.CheckKeyAlias(n.Alias); err != nil {
			return err
		}
		if n.Alias == snapferry.ServiceKeyAlias {
			return snapferry.Errorf(snapferry.Invalid, "the alias %q is that of the account's service key", n.Alias).WithHint("choose another alias")
		}
	}
	return checkDescription(n.Description)
}

func checkDescription(s string) error {
	if len(s) > maxKeyDescription || strings.ToValidUTF8(s, "") != s {
		return snapferry.Errorf(snapferry.Invalid, "the description has %d bytes, more than %d, or is not UTF-8", len(s), maxKeyDescription)
	}
	return nil
}

// Audit is the action and the line that a change leaves in the audit.
func audited(account snapferry.AccountID, action string, id snapferry.KeyID, detail string) func(*meta.Tx) error {
	return func(tx *meta.Tx) error {
		return tx.AddAudit(meta.Audit{At: time.Now(), Account: account, Action: action, Subject: string(id), Detail: detail})
	}
}

// Create makes a master key of an account. One that is at a key service is tried:
// a data key is made with it, and opened. Errors: Exists when the alias is taken,
// Full when the account has too many keys, Unsupported when the region has no such
// driver, and those of kms.Driver.
func (s *Store) Create(ctx context.Context, account snapferry.AccountID, n NewKey) (snapferry.Key, error) {
	if err := n.check(); err != nil {
		return snapferry.Key{}, err
	}
	k, err := s.newKey(ctx, account, snapferry.KeyCustomer, n)
	if err != nil {
		return k.Key, err
	}
	if n.Alias != "" {
		k.Aliases = []string{n.Alias}
	}
	err = s.change(ctx, func(ring *record.Keyring) error {
		if err := hasRoom(ring, account); err != nil {
			return err
		}
		if n.Alias != "" {
			if err := free(ring, account, n.Alias); err != nil {
				return err
			}
		}
		ring.Keys = append(ring.Keys, k)
		return nil
	}, audited(account, "CreateKey", k.ID, k.Driver+" "+n.Alias))
	return k.Key, err
}

func hasRoom(ring *record.Keyring, account snapferry.AccountID) error {
	n := 0
	for _, k := range ring.Keys {
		if k.Account == account && k.State != snapferry.KeyDeleted {
			n++
		}
	}
	if n >= maxKeys {
		return snapferry.Errorf(snapferry.Full, "the account has %d keys in this region, the limit", n)
	}
	return nil
}

// free refuses an alias that another key of the account has.
func free(ring *record.Keyring, account snapferry.AccountID, alias string) error {
	for _, k := range ring.Keys {
		if k.Account == account && slices.Contains(k.Aliases, alias) {
			return snapferry.Errorf(snapferry.Exists, "key %s is called %s already", k.ID, alias).WithHint("take the alias away from it first, or choose another")
		}
	}
	return nil
}

// newKey makes a key that is in no keyring yet, and tries it if it is elsewhere.
func (s *Store) newKey(ctx context.Context, account snapferry.AccountID, kind snapferry.KeyKind, n NewKey) (record.MasterKey, error) {
	now := time.Now().Truncate(time.Millisecond).UTC()
	k := record.MasterKey{Key: snapferry.Key{
		ID: snapferry.NewKeyID(), Account: account, Region: s.cfg.Region, Kind: kind, Description: n.Description, Driver: n.Driver,
		External: n.External, State: snapferry.KeyEnabled, Generation: 1, Created: now,
	}}
	if k.Driver == "" {
		if k.Driver = s.cfg.Default; n.External == "" {
			k.Driver = snapferry.EmbeddedKeys
		}
	}
	k.Generations = []record.Generation{{Number: 1, Created: now}}
	if k.Driver == snapferry.EmbeddedKeys {
		if n.External != "" {
			return k, snapferry.Errorf(snapferry.Invalid, "an embedded key has no name elsewhere").WithHint("give the driver that has %s, or no name", n.External)
		}
		k.Generations[0].Secret = newSecret()
		return k, nil
	}
	d, err := s.keyring.Driver(k.Driver)
	if err != nil {
		return k, err
	}
	if n.External == "" {
		return k, snapferry.Errorf(snapferry.Invalid, "which key of driver %s?", k.Driver).WithHint("give its name there")
	}
	desc, err := d.Describe(ctx, n.External)
	if err != nil {
		return k, snapferry.Errorf(snapferry.KindOf(err), "look for key %q of driver %s: %w", n.External, k.Driver, err)
	}
	if !desc.Usable {
		return k, snapferry.Errorf(snapferry.KeyUnusable, "key %q of driver %s is %s", n.External, k.Driver, desc.State)
	}
	k.External = desc.Name                                                                    // an alias may be pointed at another key
	_, err = s.keyring.Make(ctx, k.Key, seal.Context{Account: account, Region: s.cfg.Region}) // of no chain: never used
	return k, err
}

func newSecret() []byte {
	p := make([]byte, record.SecretSize)
	rand.Read(p)
	return p
}

// Service returns the service key of an account, made on first use.
func (s *Store) Service(ctx context.Context, account snapferry.AccountID) (snapferry.Key, error) {
	if k, ok := serviceOf(s.current.Load(), account); ok {
		return k, nil
	}
	k, err := s.newKey(ctx, account, snapferry.KeyService, NewKey{Description: "made on first use", Driver: snapferry.EmbeddedKeys})
	if err != nil {
		return k.Key, err
	}
	k.Aliases = []string{snapferry.ServiceKeyAlias}
	have := k.Key
	err = s.change(ctx, func(ring *record.Keyring) error {
		if old, ok := serviceOf(ring, account); ok {
			have = old
			return errThere
		}
		ring.Keys = append(ring.Keys, k)
		return nil
	}, audited(account, "CreateKey", k.ID, "service key"))
	if err == errThere {
		err = nil
	}
	return have, err
}

var errThere = snapferry.Errorf(snapferry.Exists, "the account has a service key")

func serviceOf(ring *record.Keyring, account snapferry.AccountID) (snapferry.Key, bool) {
	for _, k := range ring.Keys {
		if k.Account == account && k.Kind == snapferry.KeyService && k.State != snapferry.KeyDeleted {
			return k.Key, true
		}
	}
	return snapferry.Key{}, false
}

// Resolve returns a key of an account by its id or an alias; NotFound for one of
// another account too.
func (s *Store) Resolve(account snapferry.AccountID, name string) (snapferry.Key, error) {
	return resolve(s.current.Load(), account, name)
}

func resolve(ring *record.Keyring, account snapferry.AccountID, name string) (snapferry.Key, error) {
	for _, k := range ring.Keys {
		if k.Account == account && (string(k.ID) == name || slices.Contains(k.Aliases, name)) {
			return k.Key, nil
		}
	}
	return snapferry.Key{}, snapferry.Errorf(snapferry.NotFound, "region %s has no key %.128q", ring.Region, name).WithHint("list the keys with: snapferry key list")
}

// Keys returns the keys of an account, by id.
func (s *Store) Keys(account snapferry.AccountID) (all []snapferry.Key) {
	for _, k := range s.current.Load().Keys {
		if k.Account == account {
			all = append(all, k.Key)
		}
	}
	return all
}

// edit changes one key of an account and returns it. fn may return errSame: there
// is nothing to do.
func (s *Store) edit(ctx context.Context, account snapferry.AccountID, name, action, detail string, fn func(*record.Keyring, *record.MasterKey) error) (snapferry.Key, error) {
	k, err := s.Resolve(account, name)
	if err != nil {
		return k, err
	}
	err = s.change(ctx, func(ring *record.Keyring) error {
		i := find(ring, k.ID)
		if i < 0 {
			return snapferry.Errorf(snapferry.NotFound, "region %s has no key %s", s.cfg.Region, k.ID)
		}
		err := fn(ring, &ring.Keys[i])
		k = ring.Keys[i].Key
		return err
	}, audited(account, action, k.ID, detail))
	if err == errSame {
		err = nil
	}
	if err == nil && k.State != snapferry.KeyEnabled {
		s.keyring.Shut(k.ID)
	}
	return k, err
}

var errSame = snapferry.Errorf(snapferry.Conflict, "nothing to do")

func (s *Store) move(ctx context.Context, account snapferry.AccountID, name, action string, to snapferry.KeyState, also func(*record.MasterKey)) (snapferry.Key, error) {
	return s.edit(ctx, account, name, action, "", func(_ *record.Keyring, k *record.MasterKey) error {
		if k.State == to {
			return errSame
		}
		if !k.State.CanBecome(to) {
			return snapferry.Errorf(snapferry.Conflict, "key %s is %s and cannot become %s", k.ID, k.State, to).WithHint("%s", moveHint(k.Key))
		}
		k.State, k.DeletesAt = to, time.Time{}
		if also != nil {
			also(k)
		}
		return nil
	})
}

func moveHint(k snapferry.Key) string {
	if k.State == snapferry.KeyPendingDeletion {
		return "keep it first with: snapferry key cancel-deletion " + string(k.ID)
	}
	return "see: snapferry key show " + string(k.ID)
}

// Enable lets a disabled key be used again.
func (s *Store) Enable(ctx context.Context, account snapferry.AccountID, name string) (snapferry.Key, error) {
	return s.move(ctx, account, name, "EnableKey", snapferry.KeyEnabled, nil)
}

// Disable has nothing opened any more with a key; what it sealed stays.
func (s *Store) Disable(ctx context.Context, account snapferry.AccountID, name string) (snapferry.Key, error) {
	return s.move(ctx, account, name, "DisableKey", snapferry.KeyDisabled, nil)
}

// ScheduleDeletion has a key deleted in some days; until then it opens nothing, and
// CancelDeletion keeps it.
func (s *Store) ScheduleDeletion(ctx context.Context, account snapferry.AccountID, name string, days int) (snapferry.Key, error) {
	if days < snapferry.MinKeyDeletionDays || days > snapferry.MaxKeyDeletionDays {
		return snapferry.Key{}, snapferry.Errorf(snapferry.Invalid, "a deletion in %d days is not within %d to %d", days, snapferry.MinKeyDeletionDays, snapferry.MaxKeyDeletionDays)
	}
	return s.move(ctx, account, name, "ScheduleKeyDeletion", snapferry.KeyPendingDeletion, func(k *record.MasterKey) {
		k.DeletesAt = time.Now().AddDate(0, 0, days).Truncate(time.Millisecond).UTC()
	})
}

// CancelDeletion keeps a key that waits for its deletion; it is disabled then.
func (s *Store) CancelDeletion(ctx context.Context, account snapferry.AccountID, name string) (snapferry.Key, error) {
	k, err := s.Resolve(account, name)
	if err == nil && k.State != snapferry.KeyPendingDeletion {
		return k, snapferry.Errorf(snapferry.Conflict, "key %s is %s; it does not wait for a deletion", k.ID, k.State)
	}
	return s.move(ctx, account, name, "CancelKeyDeletion", snapferry.KeyDisabled, nil)
}

// delete gives up the secrets of a key for ever.
func (s *Store) delete(ctx context.Context, k snapferry.Key) error {
	err := s.change(ctx, func(ring *record.Keyring) error {
		i := find(ring, k.ID)
		if i < 0 || ring.Keys[i].State != snapferry.KeyPendingDeletion || ring.Keys[i].DeletesAt.After(time.Now()) {
			return errSame // somebody kept it
		}
		x := &ring.Keys[i]
		x.State, x.DeletesAt, x.Aliases = snapferry.KeyDeleted, time.Time{}, nil
		for g := range x.Generations {
			x.Generations[g].Secret = nil
		}
		ring.Defaults = slices.DeleteFunc(ring.Defaults, func(d record.KeyDefault) bool { return d.Key == k.ID && !d.Encrypt })
		for d := range ring.Defaults {
			if ring.Defaults[d].Key == k.ID {
				ring.Defaults[d].Key = "" // the service key
			}
		}
		return nil
	}, audited(k.Account, "DeleteKey", k.ID, ""))
	if err == errSame {
		return nil
	}
	if err == nil {
		s.keyring.Shut(k.ID)
		s.cfg.Log.WarnContext(ctx, "a key was deleted; what it sealed cannot be opened any more", "key", k.ID, "account", k.Account)
	}
	return err
}

// SetAlias gives a key one more alias, or takes it from another key of the account
// if move says so.
func (s *Store) SetAlias(ctx context.Context, account snapferry.AccountID, name, alias string, moved bool) (snapferry.Key, error) {
	if err := (NewKey{Alias: alias}).check(); err != nil {
		return snapferry.Key{}, err
	}
	return s.edit(ctx, account, name, "SetKeyAlias", alias, func(ring *record.Keyring, k *record.MasterKey) error {
		if slices.Contains(k.Aliases, alias) {
			return errSame
		}
		if k.State == snapferry.KeyDeleted {
			return snapferry.Errorf(snapferry.Conflict, "key %s was deleted", k.ID)
		}
		if moved {
			for i := range ring.Keys {
				if ring.Keys[i].Account == account {
					ring.Keys[i].Aliases = without(ring.Keys[i].Aliases, alias)
				}
			}
		}
		if err := free(ring, account, alias); err != nil {
			return err
		}
		k.Aliases = append(k.Aliases, alias)
		slices.Sort(k.Aliases)
		return nil
	})
}

// RemoveAlias takes an alias from the key that has it.
func (s *Store) RemoveAlias(ctx context.Context, account snapferry.AccountID, alias string) (snapferry.Key, error) {
	if err := (NewKey{Alias: alias}).check(); err != nil {
		return snapferry.Key{}, err
	}
	return s.edit(ctx, account, alias, "RemoveKeyAlias", alias, func(_ *record.Keyring, k *record.MasterKey) error {
		k.Aliases = without(k.Aliases, alias)
		return nil
	})
}

func without(all []string, s string) []string {
	return slices.DeleteFunc(all, func(a string) bool { return a == s })
}

// Rotate gives a key a new generation, with which new data keys are wrapped. Those
// there are are wrapped again by Rewrap; no data moves.
func (s *Store) Rotate(ctx context.Context, account snapferry.AccountID, name string) (snapferry.Key, error) {
	k, err := s.Resolve(account, name)
	if err != nil {
		return k, err
	}
	if k.State != snapferry.KeyEnabled {
		return k, snapferry.Errorf(snapferry.KeyUnusable, "key %s is %s", k.ID, k.State).WithHint("enable it with: snapferry key enable %s", k.ID)
	}
	if k.Driver != snapferry.EmbeddedKeys {
		d, err := s.keyring.Driver(k.Driver)
		if err != nil {
			return k, err
		}
		r, ok := d.(kms.Rotator)
		if !ok {
			return k, snapferry.Errorf(snapferry.Unsupported, "keys of driver %s are not rotated from here", k.Driver)
		}
		if err := r.Rotate(ctx, kms.External(k)); err != nil {
			return k, snapferry.Errorf(snapferry.KindOf(err), "rotate key %s: %w", k.ID, err)
		}
	}
	return s.edit(ctx, account, name, "RotateKey", "", func(_ *record.Keyring, k *record.MasterKey) error {
		if len(k.Generations) >= record.MaxGenerations {
			return snapferry.Errorf(snapferry.Full, "key %s has %d generations with which data keys are still wrapped", k.ID, len(k.Generations)).
				WithHint("wait until its data keys are wrapped again")
		}
		now := time.Now().Truncate(time.Millisecond).UTC()
		k.Generation++
		k.Rotated = now
		g := record.Generation{Number: k.Generation, Created: now}
		if k.Driver == snapferry.EmbeddedKeys {
			g.Secret = newSecret()
		}
		k.Generations = append(k.Generations, g)
		return nil
	})
}

// Prune forgets the generations of a key below the lowest one that a data key is
// still wrapped with.
func (s *Store) Prune(ctx context.Context, k snapferry.Key, lowest uint32) error {
	err := s.change(ctx, func(ring *record.Keyring) error {
		i := find(ring, k.ID)
		if i < 0 {
			return errSame
		}
		x := &ring.Keys[i]
		n := len(x.Generations)
		x.Generations = slices.DeleteFunc(x.Generations, func(g record.Generation) bool { return g.Number < lowest && g.Number < x.Generation })
		if len(x.Generations) == n {
			return errSame
		}
		return nil
	}, nil)
	if err == errSame {
		return nil
	}
	return err
}

// Default returns what an account wants of new volumes.
func (s *Store) Default(account snapferry.AccountID) record.KeyDefault {
	for _, d := range s.current.Load().Defaults {
		if d.Account == account {
			return d
		}
	}
	return record.KeyDefault{Account: account}
}

// SetDefault says whether all new volumes of an account are encrypted, and with
// which key: an id or an alias, empty for the service key.
func (s *Store) SetDefault(ctx context.Context, account snapferry.AccountID, encrypt bool, name string) (record.KeyDefault, error) {
	d := record.KeyDefault{Account: account, Encrypt: encrypt}
	if name != "" {
		k, err := s.Resolve(account, name)
		if err != nil {
			return d, err
		}
		if k.State != snapferry.KeyEnabled {
			return d, snapferry.Errorf(snapferry.KeyUnusable, "key %s is %s", k.ID, k.State).WithHint("enable it with: snapferry key enable %s", k.ID)
		}
		d.Key = k.ID
	}
	detail := "off"
	if encrypt {
		detail = "on " + string(d.Key)
	}
	err := s.change(ctx, func(ring *record.Keyring) error {
		ring.Defaults = slices.DeleteFunc(ring.Defaults, func(x record.KeyDefault) bool { return x.Account == account })
		if encrypt || d.Key != "" {
			ring.Defaults = append(ring.Defaults, d)
		}
		return nil
	}, audited(account, "SetEncryptByDefault", d.Key, detail))
	return d, err
}
