package main

import (
	"context"
	"crypto/ed25519"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// checker is package fsck as the API sees it.
type checker struct {
	db     *meta.DB
	bucket *blob.Bucket
	vault  *vault.Vault
	region snapferry.RegionName
	public ed25519.PublicKey
}

// Check checks the region.
func (c *checker) Check(ctx context.Context, deep bool, progress func(done, total int64)) (*client.FsckReport, error) {
	r, err := fsck.Run(ctx, fsck.Config{
		DB: c.db, Bucket: c.bucket, Vault: c.vault, Region: c.region, SignPublic: c.public, Deep: deep, Progress: progress,
	})
	if err != nil {
		return nil, err
	}
	out := &client.FsckReport{
		Region: r.Region, Deep: r.Deep, Clean: r.Clean, Snapshots: r.Snapshots, Versions: r.Versions, Objects: r.Objects,
		Bytes: r.Bytes, Frames: r.Frames, Findings: make([]client.Finding, len(r.Findings)),
	}
	for i, f := range r.Findings {
		out.Findings[i] = client.Finding(f)
	}
	return out, nil
}
