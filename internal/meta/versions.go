package meta

import (
	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

func (tx *Tx) scanVersion(r scanner, v *Version) error {
	var d []byte
	err := r.Scan(hexColumn{v.ID[:]}, hexColumn{v.Chain[:]}, &v.Volume, hexColumn{v.Parent[:]}, &v.State, &v.Edge, &v.Size, &v.Algorithm,
		&d, &v.Root, &v.Blocks, &v.Revision, &v.Token, &v.Sequence, timeColumn{&v.Created}, timeColumn{&v.Sealed},
		&v.Reserved, &v.Loose, &v.Due, &v.Looked, &v.Stale, &v.Key)
	if err != nil {
		return err
	}
	s := tx.sealer(v.Key)
	if err := s.openDigest(&v.Digest, placeOf("digest", v.ID), d); err != nil {
		return err
	}
	v.Root, err = s.open(placeOf("root", v.ID), v.Root)
	return err
}

// InsertVersion adds a version. Its parent must be in the same chain (Invalid),
// and an open version cannot be attached to a ghost (Conflict). The edge
// revision of the parent is the caller's to compare and bump.
func (tx *Tx) InsertVersion(v Version) error {
	if !v.Parent.IsZero() {
		p, err := tx.Version(v.Parent)
		if err != nil {
			return err
		}
		if p.Chain != v.Chain {
			return snapferry.Errorf(snapferry.Invalid, "add version %s: its parent %s is in another chain", v.ID, p.ID)
		}
		if v.State == snapferry.VersionOpen && p.State == snapferry.VersionGhost {
			return snapferry.Errorf(snapferry.Conflict, "add version %s: its parent %s is being deleted", v.ID, p.ID)
		}
	}
	c, err := tx.Chain(v.Chain)
	if err != nil {
		return err
	}
	d, root, lookup, err := tx.content(c, v)
	if err != nil {
		return err
	}
	return tx.run(versionInsert, []any{
		hexOrNull(v.ID), hexOrNull(v.Chain), string(v.Volume), hexOrNull(v.Parent), string(v.State), v.Edge, v.Size, int64(v.Algorithm),
		d, root, v.Blocks, v.Revision, v.Token, v.Sequence, millis(v.Created), millis(v.Sealed), max(v.Reserved, v.Revision), lookup,
	}, "add version %s", v.ID)
}

// content is what is stored of the content of a version of a chain.
func (tx *Tx) content(c Chain, v Version) (d, root, lookup any, err error) {
	s := tx.sealer(c.Key)
	if d, err = s.seal(placeOf("digest", v.ID), digestBytes(v.Digest)); err != nil {
		return nil, nil, nil, err
	}
	if root, err = s.seal(placeOf("root", v.ID), v.Root); err != nil {
		return nil, nil, nil, err
	}
	if c.Key != "" && !v.Digest.IsZero() {
		lookup = s.key.Lookup(c.Account, v.Digest)
	}
	return d, root, lookup, nil
}

// Version returns a version by its id.
func (tx *Tx) Version(id snapferry.VersionID) (Version, error) {
	return get(tx, versionGet, tx.scanVersion, "version", id, hexText(id))
}

// UpdateVersion writes what can change of a version (parent, state, size,
// digest, root, blocks, revision, token, sealed) and bumps its edge revision.
// It is a Conflict when the stored edge revision is not expectEdge, or when
// the move of its state is not legal.
func (tx *Tx) UpdateVersion(v Version, expectEdge int64) error {
	old, err := tx.Version(v.ID)
	if err != nil {
		return err
	}
	if old.State != v.State && !old.State.CanBecome(v.State) {
		return snapferry.Errorf(snapferry.Conflict, "version %s is %s and cannot become %s", v.ID, old.State, v.State)
	}
	c, err := tx.Chain(old.Chain)
	if err != nil {
		return err
	}
	d, root, lookup, err := tx.content(c, v)
	if err != nil {
		return err
	}
	n, err := tx.exec(versionUpdate, hexText(v.ID), expectEdge, hexOrNull(v.Parent), string(v.State), v.Size,
		d, root, v.Blocks, v.Revision, v.Token, millis(v.Sealed), lookup)
	if err != nil {
		return fail(err, "write version %s", v.ID)
	}
	if n == 0 {
		return snapferry.Errorf(snapferry.Conflict, "version %s has edge revision %d, not %d", v.ID, old.Edge, expectEdge)
	}
	return nil
}

// DeleteVersion forgets a version and its checkpoint; snapshots that name it
// name none then. It is a Conflict while it has holds, pins or children.
func (tx *Tx) DeleteVersion(id snapferry.VersionID) error {
	return tx.one(versionDelete, []any{hexText(id)}, "version", id)
}

// Children returns the versions whose parent is id, oldest first.
func (tx *Tx) Children(id snapferry.VersionID) ([]Version, error) {
	return list(tx, versionChildren, tx.scanVersion, "versions", hexText(id))
}

// Offspring returns how many children a version has, and how many of them are
// open.
func (tx *Tx) Offspring(id snapferry.VersionID) (children, open int, err error) {
	err = tx.each(versionOffspring, []any{hexText(id)}, func(r scanner) error { return r.Scan(&children, &open) })
	return children, open, fail(err, "count the children of version %s", id)
}

// NewestSealed returns the newest sealed version of a lineage; NotFound when it
// has none.
func (tx *Tx) NewestSealed(volume snapferry.VolumeID) (Version, error) {
	return get(tx, versionNewest, tx.scanVersion, "sealed version of volume", volume, string(volume))
}

// LastSequence returns the sequence of the newest version of a lineage, of
// whatever state; 0 when it has none.
func (tx *Tx) LastSequence(volume snapferry.VolumeID) (n int64, err error) {
	return get(tx, versionLast, func(r scanner, n *int64) error { return r.Scan(n) }, "last version of volume", volume, string(volume))
}

// VersionsIn returns the versions of a chain, oldest first.
func (tx *Tx) VersionsIn(chain snapferry.ChainID) ([]Version, error) {
	return list(tx, versionsInChain, tx.scanVersion, "versions", hexText(chain))
}

// OpenVersions returns the open versions, oldest first.
func (tx *Tx) OpenVersions() ([]Version, error) {
	return list(tx, versionsOpen, tx.scanVersion, "versions")
}

// VersionsByDigest returns the account's versions with a digest, ghosts
// included, newest first.
func (tx *Tx) VersionsByDigest(account snapferry.AccountID, d digest.Digest) ([]Version, error) {
	var lookup any
	if tx.db.sealer != nil {
		lookup = tx.db.sealer.Lookup(account, d)
	}
	return list(tx, versionsByDigest, tx.scanVersion, "versions", string(account), digestOrNull(d), lookup)
}

// AllVersions returns every version, oldest first.
func (tx *Tx) AllVersions() ([]Version, error) {
	return list(tx, versionsAll, tx.scanVersion, "versions")
}

// PutHold gives a version a reason to live; a second time it changes nothing.
// A ghost takes no hold (Conflict).
func (tx *Tx) PutHold(h Hold) error {
	v, err := tx.Version(h.Version)
	if err != nil {
		return err
	}
	if v.State == snapferry.VersionGhost {
		return snapferry.Errorf(snapferry.Conflict, "hold version %s: it is being deleted", h.Version)
	}
	return tx.run(holdPut, []any{hexText(h.Version), h.Kind, h.Owner, millis(h.Created)}, "hold version %s", h.Version)
}

// DropHold takes a hold away; what is not there is no error.
func (tx *Tx) DropHold(version snapferry.VersionID, kind, owner string) error {
	return tx.run(holdDrop, []any{hexText(version), kind, owner}, "drop a hold of version %s", version)
}

func scanHold(r scanner, h *Hold) error {
	return r.Scan(hexColumn{h.Version[:]}, &h.Kind, &h.Owner, timeColumn{&h.Created})
}

// Holds returns the holds of a version, oldest first.
func (tx *Tx) Holds(version snapferry.VersionID) ([]Hold, error) {
	return list(tx, holdList, scanHold, "holds", hexText(version))
}

// PutCheckpoint writes how far an open version has come.
func (tx *Tx) PutCheckpoint(c Checkpoint) error {
	v, err := tx.Version(c.Version)
	if err != nil {
		return err
	}
	root, err := tx.sealer(v.Key).seal(placeOf("checkpoint", c.Version), c.Root)
	if err != nil {
		return err
	}
	return tx.run(checkpointPut, []any{
		hexOrNull(c.Version), root, blobOrNull(c.Finished), jsonText(c.Counts), millis(c.Updated),
	}, "write the checkpoint of version %s", c.Version)
}

// Checkpoint returns how far an open version has come.
func (tx *Tx) Checkpoint(version snapferry.VersionID) (Checkpoint, error) {
	return get(tx, checkpointGet, func(r scanner, c *Checkpoint) error {
		var key snapferry.KeyID
		err := r.Scan(hexColumn{c.Version[:]}, &c.Root, &c.Finished, jsonColumn{&c.Counts}, timeColumn{&c.Updated}, &key)
		if err == nil {
			c.Root, err = tx.sealer(key).open(placeOf("checkpoint", c.Version), c.Root)
		}
		return err
	}, "checkpoint of version", version, hexText(version))
}

// DeleteCheckpoint forgets a checkpoint; what is not there is no error.
func (tx *Tx) DeleteCheckpoint(version snapferry.VersionID) error {
	return tx.run(checkpointDelete, []any{hexText(version)}, "forget the checkpoint of version %s", version)
}

// HoldsOfKind returns the holds of a kind, oldest first.
func (tx *Tx) HoldsOfKind(kind string) ([]Hold, error) {
	return list(tx, holdsOfKind, scanHold, "holds", kind)
}
