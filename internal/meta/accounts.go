package meta

import (
	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/seal"
)

// Region returns who we are; NotFound before the first PutRegion.
func (tx *Tx) Region() (Region, error) {
	return get(tx, regionGet, func(r scanner, v *Region) error {
		return r.Scan(&v.Name, &v.ID, &v.Incarnation, &v.SignKey, &v.LookupKey, timeColumn{&v.Created})
	}, "region", "in this metadata")
}

// PutRegion says who we are.
func (tx *Tx) PutRegion(r Region) error {
	return tx.run(regionPut, []any{string(r.Name), r.ID, r.Incarnation, r.SignKey, r.LookupKey, millis(r.Created)}, "write region %s", r.Name)
}

func scanAccount(r scanner, v *Account) error {
	return r.Scan(&v.ID, &v.Name, textColumn{&v.TokenHash}, timeColumn{&v.Created})
}

// InsertAccount adds an account; Exists when its id, name or token is taken.
func (tx *Tx) InsertAccount(a Account) error {
	return tx.bumpCatalogue(tx.run(accountInsert, []any{string(a.ID), a.Name, textOrNull(a.TokenHash), millis(a.Created)}, "add account %s", a.Name))
}

// SetAccountToken changes the hash of an account's token; Exists when another
// account has it.
func (tx *Tx) SetAccountToken(id snapferry.AccountID, hash string) error {
	return tx.bumpCatalogue(tx.one(accountSetToken, []any{string(id), textOrNull(hash)}, "account", id))
}

// Account returns an account by its id.
func (tx *Tx) Account(id snapferry.AccountID) (Account, error) {
	return get(tx, accountGet, scanAccount, "account", id, string(id))
}

// AccountByToken returns the account whose token has a hash.
func (tx *Tx) AccountByToken(hash string) (Account, error) {
	return get(tx, accountByToken, scanAccount, "account", "with this token", hash)
}

// Accounts returns all accounts, by name.
func (tx *Tx) Accounts() ([]Account, error) {
	return list(tx, accountList, scanAccount, "accounts")
}

func scanChain(r scanner, v *Chain) error {
	return r.Scan(hexColumn{v.ID[:]}, &v.Account, &v.Algorithm, &v.WrappedKey, &v.Proven, &v.OriginRegion, hexColumn{v.OriginChain[:]}, timeColumn{&v.Created},
		&v.Key, &v.Generation)
}

// keyOf is the master key in a wrapped data key, and its generation.
func keyOf(wrapped []byte) (snapferry.KeyID, uint32, error) {
	if len(wrapped) == 0 {
		return "", 0, nil
	}
	w, err := seal.DecodeWrapped(wrapped)
	return w.Key, w.Generation, err
}

// InsertChain adds a chain. The error is Corrupt when its key is not a
// seal.WrappedKey.
func (tx *Tx) InsertChain(c Chain) error {
	key, generation, err := keyOf(c.WrappedKey)
	if err != nil {
		return err
	}
	return tx.bumpCatalogue(tx.run(chainInsert, []any{
		hexOrNull(c.ID), string(c.Account), int64(c.Algorithm), blobOrNull(c.WrappedKey), truth(c.Proven),
		string(c.OriginRegion), hexText(c.OriginChain), millis(c.Created), string(key), generation,
	}, "add chain %s", c.ID))
}

// Chain returns a chain by its id.
func (tx *Tx) Chain(id snapferry.ChainID) (Chain, error) {
	return get(tx, chainGet, scanChain, "chain", id, hexText(id))
}

// ChainByOrigin returns the account's chain that is the copy of another
// region's chain under a key (empty: plain), the oldest if there are several.
func (tx *Tx) ChainByOrigin(account snapferry.AccountID, region snapferry.RegionName, origin snapferry.ChainID, key snapferry.KeyID) (Chain, error) {
	return get(tx, chainByOrigin, scanChain, "chain copied from", string(region)+"/"+origin.String(), string(account), string(region), hexText(origin), string(key))
}

// ChainsByOrigin returns the account's chains that are copies of another region's
// chain, whatever their keys, the oldest first.
func (tx *Tx) ChainsByOrigin(account snapferry.AccountID, region snapferry.RegionName, origin snapferry.ChainID) ([]Chain, error) {
	return list(tx, chainsByOrigin, scanChain, "chains", string(account), string(region), hexText(origin))
}

// ChainsOfKey returns the chains whose data key is wrapped with a master key, by
// id.
func (tx *Tx) ChainsOfKey(key snapferry.KeyID) ([]Chain, error) {
	return list(tx, chainsOfKey, scanChain, "chains", string(key))
}

// VolumesOfKey returns the lineages whose chain is sealed with a master key, by
// id.
func (tx *Tx) VolumesOfKey(key snapferry.KeyID) ([]Volume, error) {
	return list(tx, volumesOfKey, scanVolume, "volumes", string(key))
}

// Keyring returns the keyring of the region; NotFound before the first.
func (tx *Tx) Keyring() (Keyring, error) {
	return get(tx, keyringGet, func(r scanner, k *Keyring) error { return r.Scan(&k.Number, &k.Sealed) }, "keyring", "in this metadata")
}

// PutKeyring says what the keyring in the bucket is.
func (tx *Tx) PutKeyring(k Keyring) error {
	return tx.run(keyringPut, []any{k.Number, k.Sealed}, "write keyring %d", k.Number)
}

// SetProven says that the tree of a chain keeps the rule that deletion by
// difference rests on.
func (tx *Tx) SetProven(id snapferry.ChainID, proven bool) error {
	return tx.one(chainSetProven, []any{hexText(id), truth(proven)}, "chain", id)
}

func scanVolume(r scanner, v *Volume) error {
	return r.Scan(&v.ID, &v.Account, &v.Name, hexColumn{v.Chain[:]}, &v.OriginRegion, &v.OriginVolume, timeColumn{&v.Created}, &v.Key)
}

// InsertVolume adds a lineage.
func (tx *Tx) InsertVolume(v Volume) error {
	return tx.bumpCatalogue(tx.run(volumeInsert, []any{
		string(v.ID), string(v.Account), v.Name, hexOrNull(v.Chain), string(v.OriginRegion), string(v.OriginVolume), millis(v.Created),
	}, "add volume %s", v.Name))
}

// Volume returns a lineage by its id.
func (tx *Tx) Volume(id snapferry.VolumeID) (Volume, error) {
	return get(tx, volumeGet, scanVolume, "volume", id, string(id))
}

// VolumeByName returns the lineage of a name that was imported here.
func (tx *Tx) VolumeByName(account snapferry.AccountID, name string) (Volume, error) {
	return get(tx, volumeByName, scanVolume, "volume", name, string(account), name)
}

// VolumeByOrigin returns the lineage that holds the copies of another region's
// lineage, or of one of this region, under a key (empty: plain), the oldest if
// there are several.
func (tx *Tx) VolumeByOrigin(account snapferry.AccountID, region snapferry.RegionName, origin snapferry.VolumeID, key snapferry.KeyID) (Volume, error) {
	return get(tx, volumeByOrigin, scanVolume, "volume copied from", string(region)+"/"+string(origin), string(account), string(region), string(origin), string(key))
}
