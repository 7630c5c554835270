package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/snapferry/snapferry"
)

// Copy asks the region to pull a snapshot and returns the new snapshot,
// copying; wait for it with Wait.
func (c *Client) Copy(ctx context.Context, req CopyRequest) (s snapferry.Snapshot, err error) {
	return s, c.do(ctx, http.MethodPost, "/v1/copies", req, &s)
}

// CopyOf returns a copy by its id.
func (c *Client) CopyOf(ctx context.Context, id snapferry.CopyID) (x snapferry.Copy, err error) {
	return x, c.do(ctx, http.MethodGet, "/v1/copies/"+url.PathEscape(string(id)), nil, &x)
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
