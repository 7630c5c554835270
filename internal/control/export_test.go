package control

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/transfer"
)

// Work works on the region's jobs as Run does, but takes up nothing that
// earlier processes left, and has each handler wrapped.
func (r *Region) Work(ctx context.Context, wrap func(job.Handler) job.Handler) error {
	all := r.handlers()
	for kind, h := range all {
		all[kind] = wrap(h)
	}
	return r.jobs.Start(ctx, all)
}

// Repin takes the pin of a copy on its first source again, as a run of the copy does
// that finds it broken.
func (r *Region) Repin(ctx context.Context, from transfer.Remote, id snapferry.CopyID) error {
	c, err := r.copyRow(ctx, id)
	if err != nil {
		return err
	}
	return r.repin(ctx, from, &c, c.Members[0].Source)
}
