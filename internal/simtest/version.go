package simtest

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// Hold is the hold of versions that stand for themselves, without a snapshot.
func Hold(id snapferry.VersionID) meta.Hold {
	return meta.Hold{Version: id, Kind: vault.HoldPin, Owner: "pin-test", Created: time.Now()}
}

// Attach makes an open version of a disk's size below a parent, zero for none.
func (r *Region) Attach(vol meta.Volume, parent snapferry.VersionID, size int64) (snapferry.VersionID, error) {
	id := snapferry.NewVersionID()
	return id, r.DB.Update(context.Background(), func(tx *meta.Tx) error {
		last, err := tx.LastSequence(vol.ID)
		if err != nil {
			return err
		}
		return vault.Attach(tx, meta.Version{ID: id, Chain: vol.Chain, Volume: vol.ID, Parent: parent, Size: size, Sequence: last + 1})
	})
}

// Store imports a disk as a version and seals it.
func (r *Region) Store(vol meta.Volume, parent snapferry.VersionID, d *Disk) (snapferry.VersionID, vault.Sealed, error) {
	id, err := r.Attach(vol, parent, d.Size())
	if err != nil {
		return id, vault.Sealed{}, err
	}
	s, err := r.FillVersion(id, d)
	return id, s, err
}

// FillVersion imports a disk into an open version and seals it.
func (r *Region) FillVersion(id snapferry.VersionID, d *Disk) (vault.Sealed, error) {
	ctx := context.Background()
	w, err := r.Vault.Write(ctx, id, vault.WriteConfig{})
	if err != nil {
		return vault.Sealed{}, err
	}
	defer w.Close()
	var st vault.ImportStats
	if err := w.Import(ctx, d, &st); err != nil {
		return vault.Sealed{}, err
	}
	return w.Seal(ctx, vault.SealConfig{Hold: Hold(id)})
}

// Read exports a version to a new disk.
func (r *Region) Read(id snapferry.VersionID) (*Disk, error) {
	m, err := r.Vault.MapOf(context.Background(), id)
	if err != nil {
		return nil, err
	}
	d := NewDisk(m.Size)
	return d, r.Vault.Export(context.Background(), m, d, nil)
}

// WantContent fails the test unless a version has a disk's content and digest.
func (r *Region) WantContent(tb TB, id snapferry.VersionID, want *Disk) {
	tb.Helper()
	m, err := r.Vault.MapOf(context.Background(), id)
	if err != nil {
		tb.Errorf("version %s: %v", id, err)
		return
	}
	if m.Digest() != want.Digest() {
		tb.Errorf("version %s: got digest %v, want %v", id, m.Digest(), want.Digest())
	}
	got, err := r.Read(id)
	if err != nil {
		tb.Errorf("read version %s: %v", id, err)
		return
	}
	if got.Digest() != want.Digest() || got.Differs(want)+want.Differs(got) > 0 {
		tb.Errorf("version %s: got %d present blocks, %d of them wrong, want %d", id, got.Present(), got.Differs(want), want.Present())
	}
}
