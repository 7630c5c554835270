package main

import (
	"bytes"
	"context"
	"crypto/ed25519"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/keystore"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
)

// checker is package fsck as the API sees it.
type checker struct {
	db     *meta.DB
	bucket *blob.Bucket
	vault  *vault.Vault
	region snapferry.RegionName
	public ed25519.PublicKey
	dumps  dump.Sealer
	ring   record.Sealer
	keys   *keystore.Store
}

// Check checks the region.
func (c *checker) Check(ctx context.Context, deep bool, progress func(done, total int64)) (*client.FsckReport, error) {
	r, err := fsck.Run(ctx, fsck.Config{
		DB: c.db, Bucket: c.bucket, Vault: c.vault, Region: c.region, SignPublic: c.public, Deep: deep, Progress: progress,
		Mark: c.mark, Dumps: c.dumps, Keyring: c.ring, Keys: c.keys,
	})
	if err != nil {
		return nil, err
	}
	out := &client.FsckReport{
		Region: r.Region, Deep: r.Deep, Clean: r.Clean, Snapshots: r.Snapshots, Versions: r.Versions, Objects: r.Objects,
		Bytes: r.Bytes, Frames: r.Frames, HeldByDeleted: r.HeldByDeleted, Findings: make([]client.Finding, len(r.Findings)),
	}
	for i, f := range r.Findings {
		out.Findings[i] = client.Finding(f)
	}
	return out, nil
}

// mark checks the object of a start of the region, byte by byte.
func (c *checker) mark(ctx context.Context, n uint64, p []byte) error {
	var row meta.Region
	var starts []meta.Audit
	err := c.db.View(ctx, func(tx *meta.Tx) (err error) {
		if row, err = tx.Region(); err != nil {
			return err
		}
		starts, err = tx.AuditOf(incarnationName(n))
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range starts {
		x := incarnation{Version: 1, ID: row.ID, Name: row.Name, Number: n, Start: s.Detail}
		if want, err := x.encode(); err != nil || bytes.Equal(p, want) {
			return err
		}
	}
	return snapferry.Errorf(snapferry.Corrupt, "the mark of start %d of this region is damaged", n)
}
