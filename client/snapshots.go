package client

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/handoff"
)

// Region returns what the region says of itself and of the account.
func (c *Client) Region(ctx context.Context) (r Region, err error) {
	return r, c.do(ctx, http.MethodGet, "/v1/region", nil, &r)
}

// hand passes an open file to the region and returns its handle.
func (c *Client) hand(ctx context.Context, f *os.File) (string, error) {
	if c.handoff == "" {
		return "", snapferry.Errorf(snapferry.Unavailable, "the region at %s takes no disks from here", c.address).
			WithHint("the region must run on this machine, and the client's configuration must name its handoff socket")
	}
	return handoff.Send(ctx, c.handoff, f)
}

// Import begins a snapshot of a disk that is open for reading and returns it,
// creating. The caller may close disk at once. req.Handle is ignored.
func (c *Client) Import(ctx context.Context, req ImportRequest, disk *os.File) (s snapferry.Snapshot, err error) {
	if req.Handle, err = c.hand(ctx, disk); err != nil {
		return s, err
	}
	return s, c.do(ctx, http.MethodPost, "/v1/snapshots/import", req, &s)
}

// Filter says which snapshots to list; zero fields do not filter.
type Filter struct {
	Volume string
	State  snapferry.SnapshotState
	Set    snapferry.SetID
}

const pageSize = 1000

// Snapshots calls fn for each snapshot of the account, newest first. An error
// of fn ends it and is returned.
func (c *Client) Snapshots(ctx context.Context, f Filter, fn func(snapferry.Snapshot) error) error {
	var after snapferry.SnapshotID
	for {
		q := url.Values{"limit": {strconv.Itoa(pageSize)}}
		for key, value := range map[string]string{"volume": f.Volume, "state": string(f.State), "set": string(f.Set), "after": string(after)} {
			if value != "" {
				q.Set(key, value)
			}
		}
		var page SnapshotList
		if err := c.do(ctx, http.MethodGet, "/v1/snapshots?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for _, s := range page.Snapshots {
			if err := fn(s); err != nil {
				return err
			}
		}
		if page.Next == "" || page.Next == after {
			return nil
		}
		after = page.Next
	}
}

func snapshotPath(id snapferry.SnapshotID) string {
	return "/v1/snapshots/" + url.PathEscape(string(id))
}

// Snapshot returns a snapshot, with its progress while it is being made.
func (c *Client) Snapshot(ctx context.Context, id snapferry.SnapshotID) (s snapferry.Snapshot, err error) {
	return s, c.do(ctx, http.MethodGet, snapshotPath(id), nil, &s)
}

const (
	waitTime  = 25 * time.Second // the region answers at the latest then
	waitAgain = time.Second      // between attempts to reach a region that went away
	waitAway  = 2 * time.Minute  // a region may be away that long, as for a restart
)

// Wait waits on the region's side until nothing fills the snapshot any more,
// and returns it, ready or failed. progress, unless nil, is called whenever
// there was some. A region that goes away meanwhile is given two minutes to
// come back.
func (c *Client) Wait(ctx context.Context, id snapferry.SnapshotID, progress func(snapferry.Snapshot)) (snapferry.Snapshot, error) {
	s, err := c.Snapshot(ctx, id)
	var away time.Time
	for {
		switch {
		case err == nil:
			away = time.Time{}
			if progress != nil {
				progress(s)
			}
			if s.State.Settled() {
				return s, nil
			}
		case s.ID == "" || !snapferry.IsKind(err, snapferry.Unavailable):
			return s, err
		default:
			if away.IsZero() {
				away = time.Now()
			} else if time.Since(away) > waitAway {
				return s, err
			}
			if err := pause(ctx, waitAgain); err != nil {
				return s, err
			}
		}
		done := int64(-1) // only when settled
		if progress != nil {
			done = 0
			if s.Progress != nil {
				done = s.Progress.Done
			}
		}
		q := url.Values{"done": {strconv.FormatInt(done, 10)}, "timeout": {waitTime.String()}}
		var now snapferry.Snapshot
		if err = c.do(ctx, http.MethodGet, snapshotPath(id)+"/wait?"+q.Encode(), nil, &now); err == nil {
			s = now
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// Delete deletes a snapshot; one that is being made is cancelled.
func (c *Client) Delete(ctx context.Context, id snapferry.SnapshotID) error {
	return c.do(ctx, http.MethodDelete, snapshotPath(id), nil, nil)
}

// Abandon is Delete also while volumes were made from a snapshot that is still
// being copied: they end in error.
func (c *Client) Abandon(ctx context.Context, id snapferry.SnapshotID) error {
	return c.do(ctx, http.MethodDelete, snapshotPath(id)+"?force=true", nil, nil)
}

// Fork makes a new volume whose first snapshot has the content of a snapshot,
// and returns that one, creating. No data moves.
func (c *Client) Fork(ctx context.Context, id snapferry.SnapshotID, req ForkRequest) (s snapferry.Snapshot, err error) {
	return s, c.do(ctx, http.MethodPost, snapshotPath(id)+"/fork", req, &s)
}

// Usage says what deleting snapshots, at most 500, would give back: each by
// itself, and all together. Nothing is changed.
func (c *Client) Usage(ctx context.Context, ids ...snapferry.SnapshotID) (u snapferry.SnapshotUsage, err error) {
	return u, c.do(ctx, http.MethodPost, "/v1/snapshots/usage", UsageRequest{Snapshots: ids}, &u)
}

// RegionUsage says what the region keeps, and whether it gives space back.
func (c *Client) RegionUsage(ctx context.Context) (u snapferry.RegionUsage, err error) {
	return u, c.do(ctx, http.MethodGet, "/v1/region/usage", nil, &u)
}

// Jobs lists what the region does for itself and has not ended, oldest first.
func (c *Client) Jobs(ctx context.Context) ([]snapferry.RegionJob, error) {
	var l JobList
	return l.Jobs, c.do(ctx, http.MethodGet, "/v1/region/jobs", nil, &l)
}

// Export writes a ready snapshot to a file or device that is open for writing.
// When it returns nil the content is durable. progress may be nil. The content
// of the target is unknown after an error; when the snapshot was refused it is
// untouched.
func (c *Client) Export(ctx context.Context, id snapferry.SnapshotID, target *os.File, progress func(snapferry.Progress)) error {
	handle, err := c.hand(ctx, target)
	if err != nil {
		return err
	}
	return c.stream(ctx, http.MethodPost, snapshotPath(id)+"/export", ExportRequest{Handle: handle}, progressOf(progress))
}

// Diff calls fn for each extent, in bytes and ascending, in which snapshot b
// differs from snapshot a.
func (c *Client) Diff(ctx context.Context, a, b snapferry.SnapshotID, fn func(extent.Extent) error) error {
	path := snapshotPath(a) + "/diff/" + url.PathEscape(string(b))
	return c.stream(ctx, http.MethodGet, path, nil, func(e Event) error {
		if e.Extent == nil {
			return nil
		}
		return fn(*e.Extent)
	})
}
