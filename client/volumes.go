package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/snapferry/snapferry"
)

func volumePath(id snapferry.VolumeID) string { return "/v1/volumes/" + url.PathEscape(string(id)) }

// CreateVolumes makes live volumes, empty or with what a snapshot has. No data is
// copied for that.
func (c *Client) CreateVolumes(ctx context.Context, req VolumeRequest) ([]snapferry.Volume, error) {
	var l VolumeList
	err := c.do(ctx, http.MethodPost, "/v1/volumes", req, &l)
	return l.Volumes, err
}

// Volumes returns the live volumes of the account, newest first; name, if not
// empty, is that of the one that is wanted.
func (c *Client) Volumes(ctx context.Context, name string) ([]snapferry.Volume, error) {
	path := "/v1/volumes"
	if name != "" {
		path += "?" + url.Values{"name": {name}}.Encode()
	}
	var l VolumeList
	err := c.do(ctx, http.MethodGet, path, nil, &l)
	return l.Volumes, err
}

// Volume returns a live volume.
func (c *Client) Volume(ctx context.Context, id snapferry.VolumeID) (v snapferry.Volume, err error) {
	return v, c.do(ctx, http.MethodGet, volumePath(id), nil, &v)
}

// ResizeVolume makes a volume larger, to size bytes. Its clients see it when they
// connect again.
func (c *Client) ResizeVolume(ctx context.Context, id snapferry.VolumeID, size int64) (v snapferry.Volume, err error) {
	return v, c.do(ctx, http.MethodPost, volumePath(id)+"/resize", ResizeRequest{Size: size}, &v)
}

// RollbackVolume begins to put a volume that is not exported back to a snapshot;
// it is done when the volume is available again.
func (c *Client) RollbackVolume(ctx context.Context, id snapferry.VolumeID, req RollbackRequest) (v snapferry.Volume, err error) {
	return v, c.do(ctx, http.MethodPost, volumePath(id)+"/rollback", req, &v)
}

// HydrateVolume begins to bring all near that a volume reads from the bucket, at
// most rate bytes per second, 0 for no limit. It has ended when the volume shows
// no progress of it any more.
func (c *Client) HydrateVolume(ctx context.Context, id snapferry.VolumeID, rate int64) (v snapferry.Volume, err error) {
	return v, c.do(ctx, http.MethodPost, volumePath(id)+"/hydrate", HydrateRequest{Rate: rate}, &v)
}

// ExportVolume has a volume served to NBD clients; what is returned says where.
func (c *Client) ExportVolume(ctx context.Context, id snapferry.VolumeID, req VolumeExportRequest) (v snapferry.Volume, err error) {
	return v, c.do(ctx, http.MethodPost, volumePath(id)+"/export", req, &v)
}

// UnexportVolume ends that, with all connections. Everything written is durable
// then.
func (c *Client) UnexportVolume(ctx context.Context, id snapferry.VolumeID) (v snapferry.Volume, err error) {
	return v, c.do(ctx, http.MethodDelete, volumePath(id)+"/export", nil, &v)
}

// DeleteVolume deletes a volume that is not exported; its snapshots stay. It is
// gone when nothing is found under its id any more.
func (c *Client) DeleteVolume(ctx context.Context, id snapferry.VolumeID) error {
	return c.do(ctx, http.MethodDelete, volumePath(id), nil, nil)
}

// SnapshotVolumes takes a snapshot of each volume, all at the same moment, and
// returns them, creating, in the order of the volumes.
func (c *Client) SnapshotVolumes(ctx context.Context, req SnapshotRequest) ([]snapferry.Snapshot, error) {
	var l SnapshotList
	err := c.do(ctx, http.MethodPost, "/v1/snapshots", req, &l)
	return l.Snapshots, err
}
