package nativeapi

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/api/internal/wire"
	"github.com/snapferry/snapferry/internal/control"
)

// Volumes is what the region does with live volumes.
type Volumes interface {
	CreateVolumes(ctx context.Context, account snapferry.AccountID, q control.VolumeRequest) ([]snapferry.Volume, error)
	Volume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID) (snapferry.Volume, error)
	Volumes(ctx context.Context, account snapferry.AccountID, name string) ([]snapferry.Volume, error)
	ResizeVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, size int64) (snapferry.Volume, error)
	RollbackVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, q control.RollbackRequest) (snapferry.Volume, error)
	HydrateVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, rate int64) (snapferry.Volume, error)
	ExportVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, q control.ExportRequest) (snapferry.Volume, error)
	UnexportVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID) (snapferry.Volume, error)
	DeleteVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID) error
	SnapshotVolumes(ctx context.Context, account snapferry.AccountID, q control.VolumeSnapshotRequest) ([]snapferry.Snapshot, error)
}

func (a *api) createVolumes(ctx context.Context, who account, q client.VolumeRequest) (client.VolumeList, error) {
	if q.Snapshot != "" {
		if _, err := snapferry.ParseSnapshotID(string(q.Snapshot)); err != nil {
			return client.VolumeList{}, err
		}
	}
	made, err := a.region.CreateVolumes(ctx, who.ID, control.VolumeRequest{Size: q.Size, Snapshot: q.Snapshot, Name: q.Name, Tags: q.Tags, Count: q.Count, Sealing: sealing(q.Sealing)})
	if err != nil && len(made) > 0 {
		err = snapferry.Errorf(snapferry.KindOf(err), "%d of %d volumes were made, the last one is %s: %w", len(made), q.Count, made[len(made)-1].ID, err)
	}
	return client.VolumeList{Volumes: made}, err
}

func decodeVolumeID(r *wire.Request) (snapferry.VolumeID, error) {
	if _, err := r.Query(); err != nil {
		return "", err
	}
	return snapferry.ParseVolumeID(r.Path("id"))
}

func (a *api) getVolume(ctx context.Context, who account, id snapferry.VolumeID) (snapferry.Volume, error) {
	return a.region.Volume(ctx, who.ID, id)
}

func (a *api) deleteVolume(ctx context.Context, who account, id snapferry.VolumeID) (nothing, error) {
	return nothing{}, a.region.DeleteVolume(ctx, who.ID, id)
}

func (a *api) unexportVolume(ctx context.Context, who account, id snapferry.VolumeID) (snapferry.Volume, error) {
	return a.region.UnexportVolume(ctx, who.ID, id)
}

// decodeName reads the name of the one volume that is wanted, if one is.
func decodeName(r *wire.Request) (string, error) {
	q, err := r.Query("name")
	if err != nil || !q.Has("name") {
		return "", err
	}
	return q.Get("name"), snapferry.CheckVolumeName(q.Get("name"))
}

func (a *api) listVolumes(ctx context.Context, who account, name string) (client.VolumeList, error) {
	all, err := a.region.Volumes(ctx, who.ID, name)
	return client.VolumeList{Volumes: all}, err
}

// ofVolume is a request about a volume.
type ofVolume[Q any] struct {
	id   snapferry.VolumeID
	body Q
}

func decodeOfVolume[Q any](r *wire.Request) (q ofVolume[Q], err error) {
	if q.id, err = snapferry.ParseVolumeID(r.Path("id")); err != nil {
		return q, err
	}
	q.body, err = decodeBody[Q](r)
	return q, err
}

func (a *api) resizeVolume(ctx context.Context, who account, q ofVolume[client.ResizeRequest]) (snapferry.Volume, error) {
	return a.region.ResizeVolume(ctx, who.ID, q.id, q.body.Size)
}

func (a *api) rollbackVolume(ctx context.Context, who account, q ofVolume[client.RollbackRequest]) (snapferry.Volume, error) {
	if _, err := snapferry.ParseSnapshotID(string(q.body.Snapshot)); err != nil {
		return snapferry.Volume{}, err
	}
	return a.region.RollbackVolume(ctx, who.ID, q.id, control.RollbackRequest{Snapshot: q.body.Snapshot, NoSafety: q.body.NoSafetySnapshot})
}

func (a *api) hydrateVolume(ctx context.Context, who account, q ofVolume[client.HydrateRequest]) (snapferry.Volume, error) {
	return a.region.HydrateVolume(ctx, who.ID, q.id, q.body.Rate)
}

func (a *api) exportVolume(ctx context.Context, who account, q ofVolume[client.VolumeExportRequest]) (snapferry.Volume, error) {
	return a.region.ExportVolume(ctx, who.ID, q.id, control.ExportRequest{Socket: q.body.Socket, TLS: q.body.TLS, ReadOnly: q.body.ReadOnly})
}

func (a *api) snapshotVolumes(ctx context.Context, who account, q client.SnapshotRequest) (client.SnapshotList, error) {
	for _, id := range q.Volumes {
		if _, err := snapferry.ParseVolumeID(string(id)); err != nil {
			return client.SnapshotList{}, err
		}
	}
	made, err := a.region.SnapshotVolumes(ctx, who.ID, control.VolumeSnapshotRequest{Volumes: q.Volumes, Labels: labels(q.Labels)})
	return client.SnapshotList{Snapshots: made}, err
}
