package meta

import "github.com/snapferry/snapferry"

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
	return r.Scan(hexColumn{v.ID[:]}, &v.Account, &v.Algorithm, &v.WrappedKey, &v.Proven, &v.OriginRegion, hexColumn{v.OriginChain[:]}, timeColumn{&v.Created})
}

// InsertChain adds a chain.
func (tx *Tx) InsertChain(c Chain) error {
	return tx.bumpCatalogue(tx.run(chainInsert, []any{
		hexOrNull(c.ID), string(c.Account), int64(c.Algorithm), blobOrNull(c.WrappedKey), truth(c.Proven),
		string(c.OriginRegion), hexText(c.OriginChain), millis(c.Created),
	}, "add chain %s", c.ID))
}

// Chain returns a chain by its id.
func (tx *Tx) Chain(id snapferry.ChainID) (Chain, error) {
	return get(tx, chainGet, scanChain, "chain", id, hexText(id))
}

// ChainByOrigin returns the account's chain that is the copy of another
// region's chain, the oldest if there are several.
func (tx *Tx) ChainByOrigin(account snapferry.AccountID, region snapferry.RegionName, origin snapferry.ChainID) (Chain, error) {
	return get(tx, chainByOrigin, scanChain, "chain copied from", string(region)+"/"+origin.String(), string(account), string(region), hexText(origin))
}

// SetProven says that the tree of a chain keeps the rule that deletion by
// difference rests on.
func (tx *Tx) SetProven(id snapferry.ChainID) error {
	return tx.one(chainSetProven, []any{hexText(id)}, "chain", id)
}

func scanVolume(r scanner, v *Volume) error {
	return r.Scan(&v.ID, &v.Account, &v.Name, hexColumn{v.Chain[:]}, &v.OriginRegion, &v.OriginVolume, timeColumn{&v.Created})
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
// lineage, the oldest if there are several.
func (tx *Tx) VolumeByOrigin(account snapferry.AccountID, region snapferry.RegionName, origin snapferry.VolumeID) (Volume, error) {
	return get(tx, volumeByOrigin, scanVolume, "volume copied from", string(region)+"/"+string(origin), string(account), string(region), string(origin))
}
