package meta

import (
	"github.com/snapferry/snapferry"
)

func scanHead(r scanner, h *Head) error {
	return r.Scan(&h.ID, &h.Name, hexColumn{h.Chain[:]}, &h.Account, &h.State, &h.Reason, &h.Hint, &h.Size, jsonColumn{&h.Tags}, &h.Snapshot,
		hexColumn{h.Base[:]}, &h.Layer, jsonColumn{&h.Export}, &h.Rate, &h.Rollback, &h.Safety, timeColumn{&h.Created})
}

func exportText(e *snapferry.Export) string {
	if e == nil {
		return ""
	}
	return jsonText(e)
}

// InsertHead adds the head of a lineage: it is a live volume from now on. Exists
// when it is one already.
func (tx *Tx) InsertHead(h Head) error {
	return tx.run(headInsert, []any{
		string(h.ID), string(h.Account), string(h.State), h.Reason, h.Hint, h.Size, tagsText(h.Tags), string(h.Snapshot), hexOrNull(h.Base), int64(h.Layer),
		exportText(h.Export), h.Rate, string(h.Rollback), string(h.Safety), millis(h.Created),
	}, "add volume %s", h.ID)
}

// Head returns a live volume by its id.
func (tx *Tx) Head(id snapferry.VolumeID) (Head, error) {
	return get(tx, headGet, scanHead, "volume", id, string(id))
}

// UpdateHead writes what can change of a live volume: all but id, account and
// creation. It is a Conflict when the move of its state is not legal.
func (tx *Tx) UpdateHead(h Head) error {
	old, err := tx.Head(h.ID)
	if err != nil {
		return err
	}
	if old.State != h.State && !old.State.CanBecome(h.State) {
		return snapferry.Errorf(snapferry.Conflict, "volume %s is %s and cannot become %s", h.ID, old.State, h.State)
	}
	return tx.one(headUpdate, []any{
		string(h.ID), string(h.State), h.Reason, h.Hint, h.Size, tagsText(h.Tags), hexOrNull(h.Base), int64(h.Layer), exportText(h.Export), h.Rate,
		string(h.Rollback), string(h.Safety),
	}, "volume", h.ID)
}

// DeleteHead makes a live volume a lineage that only has snapshots.
func (tx *Tx) DeleteHead(id snapferry.VolumeID) error {
	return tx.one(headDelete, []any{string(id)}, "volume", id)
}

// Heads returns the live volumes of an account, newest first; of all accounts
// when it is empty.
func (tx *Tx) Heads(account snapferry.AccountID) ([]Head, error) {
	return list(tx, headList, scanHead, "volumes", string(account))
}

// HeadsOn returns the live volumes whose base is a version.
func (tx *Tx) HeadsOn(version snapferry.VersionID) ([]Head, error) {
	return list(tx, headsOn, scanHead, "volumes", hexText(version))
}

func scanUpload(r scanner, u *Upload) error { return r.Scan(&u.Snapshot, &u.Volume, &u.Layer, &u.Done) }

// InsertUpload adds what is to be uploaded for a snapshot.
func (tx *Tx) InsertUpload(u Upload) error {
	return tx.run(uploadInsert, []any{string(u.Snapshot), string(u.Volume), int64(u.Layer)}, "add upload of snapshot %s", u.Snapshot)
}

// SetUploadDone notes how far an upload was shown to be, in plain bytes; less than
// what is noted changes nothing.
func (tx *Tx) SetUploadDone(id snapferry.SnapshotID, done int64) error {
	return tx.run(uploadDone, []any{string(id), done}, "note how far the upload of snapshot %s was", id)
}

// DeleteUpload ends an upload; one that is not there is no error.
func (tx *Tx) DeleteUpload(id snapferry.SnapshotID) error {
	return tx.run(uploadDelete, []any{string(id)}, "end upload of snapshot %s", id)
}

// Uploads returns what is to be uploaded of a volume, the oldest layer first.
func (tx *Tx) Uploads(volume snapferry.VolumeID) ([]Upload, error) {
	return list(tx, uploadList, scanUpload, "uploads", string(volume))
}
