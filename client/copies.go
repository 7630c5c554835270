package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/snapferry/snapferry"
)

// Copy asks the region to pull a snapshot and returns the new snapshot,
// copying; wait for it with Wait.
func (c *Client) Copy(ctx context.Context, req CopyRequest) (s snapferry.Snapshot, err error) {
	return s, c.do(ctx, http.MethodPost, "/v1/copies", req, &s)
}

// CopySet asks the region to pull all snapshots of a set as one: they become ready at
// the same moment, or none does.
func (c *Client) CopySet(ctx context.Context, req CopyRequest) (x snapferry.Copy, err error) {
	return x, c.do(ctx, http.MethodPost, "/v1/copies/set", req, &x)
}

// CancelCopy ends a copy: it is gone with the snapshots that it makes. While volumes
// were made of them it is a Conflict, unless with force: they end in error.
func (c *Client) CancelCopy(ctx context.Context, id snapferry.CopyID, force bool) error {
	return c.do(ctx, http.MethodDelete, copyPath(id)+"?force="+strconv.FormatBool(force), nil, nil)
}

func copyPath(id snapferry.CopyID) string { return "/v1/copies/" + url.PathEscape(string(id)) }

// CopyOf returns a copy by its id, with its place in the queue or its progress.
func (c *Client) CopyOf(ctx context.Context, id snapferry.CopyID) (x snapferry.Copy, err error) {
	return x, c.do(ctx, http.MethodGet, copyPath(id), nil, &x)
}

// PlanCopy says what Copy would do now.
func (c *Client) PlanCopy(ctx context.Context, req CopyRequest) (p snapferry.Plan, err error) {
	return p, c.do(ctx, http.MethodPost, "/v1/copies/plan", req, &p)
}

// Fsck checks the region; deep reads and verifies every byte of its bucket. A
// report with findings is no error. progress may be nil.
func (c *Client) Fsck(ctx context.Context, deep bool, progress func(snapferry.Progress)) (FsckReport, error) {
	var report *FsckReport
	show := progressOf(progress)
	err := c.stream(ctx, http.MethodPost, "/v1/fsck", FsckRequest{Deep: deep}, func(e Event) error {
		if e.Report != nil {
			report = e.Report
		}
		return show(e)
	})
	if err == nil && report == nil {
		err = snapferry.Errorf(snapferry.Unavailable, "the region at %s ended its check without a report", c.address)
	}
	if report == nil {
		return FsckReport{}, err
	}
	return *report, err
}

// Copies calls fn for each copy of the account, newest first; with active only for
// those that have not ended. An error of fn ends it and is returned.
func (c *Client) Copies(ctx context.Context, active bool, fn func(snapferry.Copy) error) error {
	var after snapferry.CopyID
	for {
		q := url.Values{"limit": {strconv.Itoa(pageSize)}, "active": {strconv.FormatBool(active)}}
		if after != "" {
			q.Set("after", string(after))
		}
		var page CopyList
		if err := c.do(ctx, http.MethodGet, "/v1/copies?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for _, x := range page.Copies {
			if err := fn(x); err != nil {
				return err
			}
		}
		if page.Next == "" || page.Next == after {
			return nil
		}
		after = page.Next
	}
}

// SetCopyRate changes how many bytes per second may cross for a copy, 0 for no limit
// of its own, also while it is under way.
func (c *Client) SetCopyRate(ctx context.Context, id snapferry.CopyID, rate int64) (x snapferry.Copy, err error) {
	return x, c.do(ctx, http.MethodPost, copyPath(id)+"/rate", RateRequest{Rate: rate}, &x)
}

// WatchCopy calls fn with a copy as it is, and then once a second until it has
// ended. An error of fn ends it and is returned.
func (c *Client) WatchCopy(ctx context.Context, id snapferry.CopyID, fn func(snapferry.Copy) error) error {
	return c.stream(ctx, http.MethodGet, copyPath(id)+"/watch", nil, func(e Event) error {
		if e.Copy == nil {
			return nil
		}
		return fn(*e.Copy)
	})
}

// Limits returns what may cross into the region, as far as the account may know.
func (c *Client) Limits(ctx context.Context) ([]snapferry.Limit, error) {
	var l LimitList
	err := c.do(ctx, http.MethodGet, "/v1/limits", nil, &l)
	return l.Limits, err
}

// SetLimit sets what may cross for a scope, also for what is under way. One without
// rate and windows takes the limit away.
func (c *Client) SetLimit(ctx context.Context, l snapferry.Limit) error {
	return c.do(ctx, http.MethodPost, "/v1/limits", l, nil)
}

// Pins returns what other regions hold of the account's snapshots; of all, for an
// operator.
func (c *Client) Pins(ctx context.Context) ([]snapferry.Pin, error) {
	var l PinList
	err := c.do(ctx, http.MethodGet, "/v1/pins", nil, &l)
	return l.Pins, err
}

// BreakPin takes a pin away from a region that is gone for ever. It is for
// operators.
func (c *Client) BreakPin(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/pins/"+url.PathEscape(id), nil, nil)
}

// UsageRecords calls fn with each metered fact of the account that was added after
// the one with an id, in order.
func (c *Client) UsageRecords(ctx context.Context, after int64, fn func(snapferry.UsageRecord) error) error {
	for {
		var l UsageList
		q := url.Values{"after": {strconv.FormatInt(after, 10)}}
		if err := c.do(ctx, http.MethodGet, "/v1/usage?"+q.Encode(), nil, &l); err != nil || len(l.Records) == 0 {
			return err
		}
		for _, u := range l.Records {
			if err := fn(u); err != nil {
				return err
			}
			after = u.ID
		}
	}
}
