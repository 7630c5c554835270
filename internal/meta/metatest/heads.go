package metatest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

func (w World) head(second int) meta.Head {
	return meta.Head{
		ID: w.Volume.ID, Name: w.Volume.Name, Chain: w.Chain.ID, Account: w.Account.ID, State: snapferry.VolumeCreating, Size: 1 << 20, Rate: -1, Created: at(second),
	}
}

// addVolume adds another lineage and returns its head, not inserted.
func (w World) addVolume(t testing.TB, db *meta.DB, name string, second int) meta.Head {
	t.Helper()
	v := meta.Volume{ID: snapferry.NewVolumeID(), Account: w.Account.ID, Name: name, Chain: w.Chain.ID, Created: at(second)}
	update(t, db, func(tx *meta.Tx) error { return tx.InsertVolume(v) })
	h := w.head(second)
	h.ID, h.Name = v.ID, name
	return h
}

func testHeads(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	h := w.head(1)
	h.Tags, h.Snapshot = snapferry.Tags{"k": "v"}, "snap-s"
	wantKind(t, db.View(t.Context(), func(tx *meta.Tx) error { _, err := tx.Head(h.ID); return err }), snapferry.NotFound)
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.UpdateHead(h) }), snapferry.NotFound)
	update(t, db, func(tx *meta.Tx) error { return tx.InsertHead(h) })
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertHead(h) }), snapferry.Exists)
	get := func() meta.Head {
		t.Helper()
		return read(t, db, func(tx *meta.Tx) (meta.Head, error) { return tx.Head(h.ID) })
	}
	same(t, "volume", get(), h)

	h.State = snapferry.VolumeAvailable
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateHead(h) })
	base := w.addVersion(t, db, 1, snapferry.VersionID{})
	h.State, h.Size, h.Tags, h.Base, h.Layer, h.Rate = snapferry.VolumeExported, 2<<20, nil, base.ID, 1<<62+7, 5
	h.Reason, h.Hint, h.Rollback = "r", "h", "snap-r"
	h.Export = &snapferry.Export{URI: "nbd+unix:///?socket=/x", Socket: "/x", ReadOnly: true}
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateHead(h) })
	same(t, "exported volume", get(), h)
	h.State, h.Export = snapferry.VolumeAvailable, nil
	update(t, db, func(tx *meta.Tx) error { return tx.UpdateHead(h) })
	same(t, "volume again", get(), h)

	// A lineage that is a live volume stays in its chain.
	other := meta.Chain{ID: snapferry.NewChainID(), Account: w.Account.ID, Created: at(0)}
	update(t, db, func(tx *meta.Tx) error { return tx.InsertChain(other) })
	empty := w.addVolume(t, db, "empty", 2)
	update(t, db, func(tx *meta.Tx) error { return tx.InsertHead(empty) })
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.MoveVolume(empty.ID, other.ID) }), snapferry.NotFound)
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.DeleteHead(empty.ID), tx.MoveVolume(empty.ID, other.ID))
	})
	wantKind(t, db.Update(t.Context(), func(tx *meta.Tx) error { return tx.DeleteHead(empty.ID) }), snapferry.NotFound)
	wantKind(t, db.View(t.Context(), func(tx *meta.Tx) error { _, err := tx.Head(empty.ID); return err }), snapferry.NotFound)
	same(t, "volume beside", get(), h)
}

// volumeMoves are the legal moves between the states of a live volume, as the
// design has them.
var volumeMoves = map[snapferry.VolumeState]string{
	snapferry.VolumeCreating:    "available error deleting",
	snapferry.VolumeAvailable:   "exported rolling-back error deleting",
	snapferry.VolumeExported:    "available error deleting",
	snapferry.VolumeRollingBack: "available error",
	snapferry.VolumeError:       "available deleting",
	snapferry.VolumeDeleting:    "",
}

func testHeadMoves(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	for from := range volumeMoves {
		for to := range volumeMoves {
			h := w.head(1)
			h.State = from
			update(t, db, func(tx *meta.Tx) error { return tx.InsertHead(h) })
			h.State = to
			err := db.Update(t.Context(), func(tx *meta.Tx) error { return tx.UpdateHead(h) })
			if legal := from == to || slices.Contains(strings.Fields(volumeMoves[from]), string(to)); legal != (err == nil) || err != nil && !snapferry.IsKind(err, snapferry.Conflict) {
				t.Errorf("%s to %s: got %v, want legal: %v", from, to, err, legal)
			}
			update(t, db, func(tx *meta.Tx) error { return tx.DeleteHead(h.ID) })
		}
	}
}

func testHeadList(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	stranger := meta.Account{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: "stranger"}, TokenHash: "other", Created: at(0)}
	update(t, db, func(tx *meta.Tx) error { return tx.InsertAccount(stranger) })
	first, second, third := w.head(1), w.addVolume(t, db, "second", 2), w.addVolume(t, db, "third", 2)
	if second.ID > third.ID { // of the same time: by id
		second, third = third, second
	}
	theirs := w.addVolume(t, db, "theirs", 3)
	theirs.Account = stranger.ID
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(tx.InsertHead(second), tx.InsertHead(first), tx.InsertHead(theirs), tx.InsertHead(third))
	})
	for account, want := range map[snapferry.AccountID][]meta.Head{
		w.Account.ID: {third, second, first}, stranger.ID: {theirs}, "": {theirs, third, second, first}, "acct-x": nil,
	} {
		same(t, "volumes of "+string(account), read(t, db, func(tx *meta.Tx) ([]meta.Head, error) { return tx.Heads(account) }), want)
	}
}

func testUploads(t *testing.T, p Place) {
	db := p.open(t)
	w := NewWorld(t, db)
	h, other := w.head(1), w.addVolume(t, db, "other", 2)
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertHead(h), tx.InsertHead(other)) })
	var all []meta.Upload
	for i, layer := range []uint64{9, 2, 1 << 40} {
		s := w.snapshot(i)
		all = append(all, meta.Upload{Snapshot: s.ID, Volume: h.ID, Layer: layer})
		update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertSnapshot(s), tx.InsertUpload(all[i])) })
	}
	s := w.snapshot(5)
	beside := meta.Upload{Snapshot: s.ID, Volume: other.ID, Layer: 1}
	update(t, db, func(tx *meta.Tx) error { return errors.Join(tx.InsertSnapshot(s), tx.InsertUpload(beside)) })
	if err := db.Update(t.Context(), func(tx *meta.Tx) error { return tx.InsertUpload(beside) }); err == nil {
		t.Error("a second upload of a snapshot: got no error")
	}
	of := func(id snapferry.VolumeID) []meta.Upload {
		t.Helper()
		return read(t, db, func(tx *meta.Tx) ([]meta.Upload, error) { return tx.Uploads(id) })
	}
	same(t, "uploads", of(h.ID), []meta.Upload{all[1], all[0], all[2]})
	for range 2 { // that it is not there is no error
		update(t, db, func(tx *meta.Tx) error { return tx.DeleteUpload(all[1].Snapshot) })
	}
	same(t, "uploads that are left", of(h.ID), []meta.Upload{all[0], all[2]})
	same(t, "uploads of another", of(other.ID), []meta.Upload{beside})
}
