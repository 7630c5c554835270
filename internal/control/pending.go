package control

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
)

func (r *Region) compact(ctx context.Context, run *job.Run, chain snapferry.ChainID) error {
	return nil
}

func (r *Region) reclaim(ctx context.Context, run *job.Run) error {
	return r.vault.Reclaim(ctx, r.grace, run.Check)
}

func (r *Region) sweep(ctx context.Context, run *job.Run) error { return nil }
