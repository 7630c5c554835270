package nativeapi

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/api/internal/wire"
	"github.com/snapferry/snapferry/internal/control"
)

const maxToken = 128 // bytes of a client token

func decodeCopy(r *wire.Request) (c control.CopyRequest, err error) {
	q, err := decodeBody[client.CopyRequest](r)
	if err != nil {
		return c, err
	}
	c = control.CopyRequest{Labels: labels(q.Labels), Full: q.Full, Token: q.ClientToken}
	if c.From, err = snapferry.ParseRegionName(string(q.From)); err != nil {
		return c, err
	}
	if c.Source, err = snapferry.ParseSnapshotID(string(q.Source)); err != nil {
		return c, err
	}
	if len(c.Token) > maxToken {
		return c, snapferry.Errorf(snapferry.Invalid, "the client token has %d bytes, more than %d", len(c.Token), maxToken)
	}
	return c, nil
}

func (a *api) copySnapshot(ctx context.Context, who account, req control.CopyRequest) (snapferry.Snapshot, error) {
	return a.region.Copy(ctx, who.ID, req)
}

func (a *api) planCopy(ctx context.Context, who account, req control.CopyRequest) (snapferry.Plan, error) {
	return a.region.PlanCopy(ctx, who.ID, req)
}

func decodeCopyID(r *wire.Request) (snapferry.CopyID, error) {
	if _, err := r.Query(); err != nil {
		return "", err
	}
	return snapferry.ParseCopyID(r.Path("id"))
}

func (a *api) getCopy(ctx context.Context, who account, id snapferry.CopyID) (snapferry.Copy, error) {
	return a.region.CopyOf(ctx, who.ID, id)
}
