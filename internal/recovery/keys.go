package recovery

import (
	"context"
	"log/slog"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/keystore"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
	"github.com/snapferry/snapferry/segment"
)

// keys opens what is sealed in the bucket.
type keys struct {
	store  *keystore.Store
	number uint64 // of the keyring
	sealed []byte
	shut   map[snapferry.ChainID]bool // cannot be opened; not written after openKeys, like what follows
	dumped map[snapferry.ChainID]meta.Chain
}

// openSealed gives metadata that is there the key of what is sealed in it.
func (r *run) openSealed(ctx context.Context, db *meta.DB) error {
	var lookup []byte
	err := db.View(ctx, func(tx *meta.Tx) error {
		row, err := tx.Region()
		lookup = row.LookupKey
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.sealWith(db, lookup)
}

func (r *run) sealWith(db *meta.DB, lookup []byte) error {
	if r.RegionKey == nil {
		return nil
	}
	k, err := seal.NewMetadataKey(r.RegionKey, lookup)
	if err != nil {
		return err
	}
	db.SealWith(k)
	return nil
}

// openKeys reads the newest keyring that can be read, of the bucket and of metadata
// that is merged, and tries the data key of each chain.
func (r *run) openKeys(ctx context.Context) error {
	r.keys = &keys{shut: map[snapferry.ChainID]bool{}, dumped: map[snapferry.ChainID]meta.Chain{}}
	if r.who.dump != nil {
		for _, c := range r.who.dump.Chains {
			r.keys.dumped[c.ID] = meta.Chain{
				ID: c.ID, Account: c.Account, Algorithm: c.Algorithm, WrappedKey: c.WrappedKey,
				OriginRegion: c.OriginRegion, OriginChain: c.OriginChain, Created: c.Created,
			}
		}
	}
	ring := &record.Keyring{Region: r.Region, ID: r.ID}
	if r.RegionKey != nil {
		k, err := seal.NewKeyringKey(r.RegionKey)
		if err != nil {
			return err
		}
		if ring, err = r.readKeyring(ctx, k, ring); err != nil {
			return err
		}
	} else if len(r.names.keyring) > 0 {
		r.findings.note("", snapferry.VersionID{}, "the keyring was not used: there is no key of the region")
	}
	r.keys.store = keystore.Offline(keystore.Config{Region: r.Region, ID: r.ID, Drivers: r.Drivers, Log: slog.New(slog.DiscardHandler)}, ring, func(_ context.Context, id snapferry.ChainID) (meta.Chain, error) { return r.keyOf(id), nil })
	for _, id := range sortedChains(r.chains) {
		err := r.keys.store.Try(ctx, id)
		switch snapferry.KindOf(err) {
		case snapferry.Unavailable, snapferry.Cancelled:
			return err // it can be asked for later
		}
		if err != nil {
			r.keys.shut[id] = true
			r.findings.damage("", snapferry.VersionID{}, "chain %s cannot be opened, and stays as it is in the bucket: %v", id, err)
		}
	}
	return nil
}

func (r *run) readKeyring(ctx context.Context, s record.Sealer, none *record.Keyring) (*record.Keyring, error) {
	best := none
	take := func(p []byte, at string) error {
		k, err := record.DecodeKeyring(p, s)
		if err == nil && (k.Region != r.Region || k.ID != r.ID) {
			err = snapferry.Errorf(snapferry.Corrupt, "it is of region %s (%s)", k.Region, k.ID)
		}
		if err == nil && k.Number > best.Number {
			best, r.keys.number, r.keys.sealed = k, k.Number, p
		}
		return err
	}
	if r.old != nil && len(r.old.keyring.Sealed) > 0 {
		if err := take(r.old.keyring.Sealed, ""); err != nil {
			r.findings.note("", snapferry.VersionID{}, "the keyring in the metadata cannot be read: %v", err)
		}
	}
	for _, name := range r.names.keyring {
		p, err := r.Bucket.Get(ctx, name, record.MaxKeyringSize)
		if err == nil {
			err = take(p, name)
		}
		switch {
		case err == nil, snapferry.IsKind(err, snapferry.NotFound):
		case !isFinding(err):
			return nil, err
		default:
			r.findings.damage(name, snapferry.VersionID{}, "keyring: %v", err)
		}
	}
	if n := len(r.names.keyring); best == none && n > 0 {
		return nil, snapferry.Errorf(snapferry.Corrupt, "none of the %d keyrings can be read with the region's key", n).
			WithHint("bring back the key file of the region that sealed them (key_file of the configuration)")
	}
	return best, nil
}

// keyOf is what is known of a chain's account and data key.
func (r *run) keyOf(id snapferry.ChainID) meta.Chain {
	c := meta.Chain{ID: id}
	newest := func(account snapferry.AccountID, wrapped []byte) {
		if c.Account == "" || generation(wrapped) > generation(c.WrappedKey) {
			c.Account, c.WrappedKey = account, wrapped
		}
	}
	if x := r.chains[id]; x != nil && x.object != nil {
		newest(x.object.Account, x.object.WrappedKey)
	}
	if x, ok := r.keys.dumped[id]; ok {
		newest(x.Account, x.WrappedKey)
	}
	if r.old != nil {
		if x, ok := r.old.chains[id]; ok {
			newest(x.Account, x.WrappedKey)
		}
	}
	return c
}

// generation is that of the master key that a data key is wrapped with; 0 for none, and
// for what cannot be read. The newest of what tells of a data key is true, whoever tells:
// a rotation forgets the generations before it.
func generation(wrapped []byte) uint32 {
	if wrapped == nil {
		return 0
	}
	w, err := seal.DecodeWrapped(wrapped)
	if err != nil {
		return 0
	}
	return w.Generation
}

// decodeRecord reads a version record. Its private part stays closed if its chain
// cannot be opened.
func (r *run) decodeRecord(ctx context.Context, p []byte) (*record.Record, error) {
	x, err := record.DecodeTrusted(p, r.who.keys, nil)
	if err != nil || r.keys.shut[x.Chain] {
		return x, err
	}
	k, err := r.keys.store.Record(ctx, x.Chain, x.Version)
	if err != nil || k == nil {
		return x, err
	}
	return record.DecodeTrusted(p, r.who.keys, k)
}

// segmentSealer returns what opens a segment; nil for one of a plain chain, or of one
// that cannot be opened.
func (r *run) segmentSealer(ctx context.Context, chain snapferry.ChainID, id snapferry.SegmentID) (segment.Sealer, error) {
	if r.keys.shut[chain] {
		return nil, nil
	}
	k, err := r.keys.store.Segment(ctx, chain, id)
	if err != nil || k == nil {
		return nil, err
	}
	return k, nil
}

func (r *run) putKeyring(tx *meta.Tx) error {
	if r.keys.sealed == nil {
		return nil
	}
	return tx.PutKeyring(meta.Keyring{Number: r.keys.number, Sealed: r.keys.sealed})
}
