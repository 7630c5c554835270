package nativeapi

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/api/internal/wire"
	"github.com/snapferry/snapferry/internal/control"
)

func decodeFork(r *wire.Request) (f control.ForkRequest, err error) {
	if f.Source, err = snapferry.ParseSnapshotID(r.Path("id")); err != nil {
		return f, err
	}
	q, err := decodeBody[client.ForkRequest](r)
	f.Volume, f.Labels = q.Volume, labels(q.Labels)
	return f, err
}

func (a *api) forkSnapshot(ctx context.Context, who account, req control.ForkRequest) (snapferry.Snapshot, error) {
	return a.region.Fork(ctx, who.ID, req)
}

func decodeOneUsage(r *wire.Request) ([]snapferry.SnapshotID, error) {
	id, err := decodeSnapshotID(r)
	return []snapferry.SnapshotID{id}, err
}

func decodeUsage(r *wire.Request) ([]snapferry.SnapshotID, error) {
	q, err := decodeBody[client.UsageRequest](r)
	if err != nil {
		return nil, err
	}
	for _, id := range q.Snapshots {
		if _, err := snapferry.ParseSnapshotID(string(id)); err != nil {
			return nil, err
		}
	}
	return q.Snapshots, nil
}

func (a *api) snapshotUsage(ctx context.Context, who account, ids []snapferry.SnapshotID) (snapferry.SnapshotUsage, error) {
	return a.region.Usage(ctx, who.ID, ids)
}

func (a *api) getRegionUsage(ctx context.Context, who account, _ nothing) (snapferry.RegionUsage, error) {
	return a.region.RegionUsage(ctx, who.ID)
}

func (a *api) listJobs(ctx context.Context, _ account, _ nothing) (client.JobList, error) {
	jobs, err := a.region.Jobs(ctx)
	return client.JobList{Jobs: jobs}, err
}
