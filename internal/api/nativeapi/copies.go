package nativeapi

import (
	"context"
	"strconv"
	"time"

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
	c = control.CopyRequest{Labels: labels(q.Labels), Sealing: sealing(q.Sealing), Full: q.Full, Token: q.ClientToken}
	if c.From, err = snapferry.ParseRegionName(string(q.From)); err != nil {
		return c, err
	}
	if q.Source != "" || q.Set == "" {
		if c.Source, err = snapferry.ParseSnapshotID(string(q.Source)); err != nil {
			return c, err
		}
	}
	if q.Set != "" {
		if c.Set, err = snapferry.ParseSetID(string(q.Set)); err != nil {
			return c, err
		}
	}
	if c.Rate = q.Rate; q.CompleteWithin != "" {
		if c.Within, err = time.ParseDuration(q.CompleteWithin); err != nil || c.Within <= 0 {
			return c, snapferry.Errorf(snapferry.Invalid, "complete_within %.40q is not a time", q.CompleteWithin).WithHint("write it like 2h30m")
		}
	}
	if len(c.Token) > maxToken {
		return c, snapferry.Errorf(snapferry.Invalid, "the client token has %d bytes, more than %d", len(c.Token), maxToken)
	}
	return c, nil
}

func (a *api) copySnapshot(ctx context.Context, who account, req control.CopyRequest) (snapferry.Snapshot, error) {
	return a.region.Copy(ctx, who.ID, req)
}

func (a *api) copySet(ctx context.Context, who account, req control.CopyRequest) (snapferry.Copy, error) {
	return a.region.CopySet(ctx, who.ID, req)
}

type cancelQuery struct {
	id    snapferry.CopyID
	force bool
}

func decodeCancel(r *wire.Request) (q cancelQuery, err error) {
	if q.id, err = snapferry.ParseCopyID(r.Path("id")); err != nil {
		return q, err
	}
	q.force, err = decodeForce(r)
	return q, err
}

func (a *api) cancelCopy(ctx context.Context, who account, q cancelQuery) (nothing, error) {
	return nothing{}, a.region.CancelCopy(ctx, who.ID, q.id, q.force)
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

func decodeCopyFilter(r *wire.Request) (f control.CopyFilter, err error) {
	q, err := r.Query("active", "limit", "after")
	if err != nil {
		return f, err
	}
	switch q.Get("active") {
	case "true":
		f.Active = true
	case "", "false":
	default:
		return f, snapferry.Errorf(snapferry.Invalid, "active is true or false, not %.40q", q.Get("active"))
	}
	f.Limit = maxPage
	if q.Has("limit") {
		f.Limit, err = strconv.Atoi(q.Get("limit"))
		if err != nil || f.Limit < 1 || f.Limit > maxPage {
			return f, snapferry.Errorf(snapferry.Invalid, "limit %.40q is not a number from 1 to %d", q.Get("limit"), maxPage)
		}
	}
	if q.Has("after") {
		f.After, err = snapferry.ParseCopyID(q.Get("after"))
	}
	return f, err
}

func (a *api) listCopies(ctx context.Context, who account, f control.CopyFilter) (client.CopyList, error) {
	limit := f.Limit
	f.Limit++ // one more tells that there is a next page
	all, err := a.region.Copies(ctx, who.ID, f)
	if err != nil {
		return client.CopyList{}, err
	}
	list := client.CopyList{Copies: all[:min(limit, len(all))]}
	if len(all) > limit {
		list.Next = all[limit-1].ID
	}
	return list, nil
}

type rateQuery struct {
	id   snapferry.CopyID
	rate int64
}

func decodeRate(r *wire.Request) (q rateQuery, err error) {
	if q.id, err = snapferry.ParseCopyID(r.Path("id")); err != nil {
		return q, err
	}
	body, err := decodeBody[client.RateRequest](r)
	q.rate = body.Rate
	return q, err
}

func (a *api) setCopyRate(ctx context.Context, who account, q rateQuery) (snapferry.Copy, error) {
	return a.region.SetCopyRate(ctx, who.ID, q.id, q.rate)
}

func (a *api) watchCopy(ctx context.Context, who account, id snapferry.CopyID) (wire.Feed[client.Event], error) {
	if _, err := a.region.CopyOf(ctx, who.ID, id); err != nil {
		return nil, err
	}
	return func(ctx context.Context, emit func(client.Event) error) error {
		err := a.region.WatchCopy(ctx, who.ID, id, func(c snapferry.Copy) error { return emit(client.Event{Copy: &c}) })
		if err != nil {
			return err
		}
		return emit(client.Event{Done: true})
	}, nil
}

func (a *api) listLimits(ctx context.Context, who account, _ nothing) (client.LimitList, error) {
	all, err := a.region.Limits(ctx, who.ID)
	return client.LimitList{Limits: all}, err
}

func decodeLimit(r *wire.Request) (q control.LimitRequest, err error) {
	l, err := decodeBody[snapferry.Limit](r)
	if err != nil {
		return q, err
	}
	q.Scope = l.Scope
	q.Plan, err = control.ParsePlan(l)
	return q, err
}

func (a *api) setLimit(ctx context.Context, who account, q control.LimitRequest) (nothing, error) {
	return nothing{}, a.region.SetLimit(ctx, who.ID, q)
}

func (a *api) listPins(ctx context.Context, who account, _ nothing) (client.PinList, error) {
	all, err := a.region.Pins(ctx, who.ID)
	return client.PinList{Pins: all}, err
}

func decodePin(r *wire.Request) (string, error) {
	_, err := r.Query()
	return r.Path("id"), err
}

func (a *api) breakPin(ctx context.Context, who account, id string) (nothing, error) {
	return nothing{}, a.region.BreakPin(ctx, who.ID, id)
}

func decodeAfter(r *wire.Request) (after int64, err error) {
	q, err := r.Query("after")
	if err == nil && q.Has("after") {
		if after, err = strconv.ParseInt(q.Get("after"), 10, 64); err != nil || after < 0 {
			err = snapferry.Errorf(snapferry.Invalid, "after %.40q is not the id of a usage record", q.Get("after"))
		}
	}
	return after, err
}

func (a *api) listUsage(ctx context.Context, who account, after int64) (client.UsageList, error) {
	all, err := a.region.UsageRecords(ctx, who.ID, after, maxPage)
	return client.UsageList{Records: all}, err
}
