package control

import (
	"context"

	"github.com/snapferry/snapferry/internal/job"
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
