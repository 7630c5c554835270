package nativeapi

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/api/internal/wire"
	"github.com/snapferry/snapferry/internal/control"
)

const (
	maxPage     = 1000
	defaultWait = 25 * time.Second
	maxWait     = 60 * time.Second
)

func decodeSnapshotID(r *wire.Request) (snapferry.SnapshotID, error) {
	if _, err := r.Query(); err != nil {
		return "", err
	}
	return snapferry.ParseSnapshotID(r.Path("id"))
}

func (a *api) getSnapshot(ctx context.Context, who account, id snapferry.SnapshotID) (snapferry.Snapshot, error) {
	return a.region.Snapshot(ctx, who.ID, id)
}

type deleteQuery struct {
	id    snapferry.SnapshotID
	force bool
}

func decodeDelete(r *wire.Request) (d deleteQuery, err error) {
	if d.force, err = decodeForce(r); err != nil {
		return d, err
	}
	d.id, err = snapferry.ParseSnapshotID(r.Path("id"))
	return d, err
}

func decodeForce(r *wire.Request) (bool, error) {
	q, err := r.Query("force")
	if err != nil {
		return false, err
	}
	switch q.Get("force") {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, snapferry.Errorf(snapferry.Invalid, "force is true or false, not %.40q", q.Get("force"))
}

func (a *api) deleteSnapshot(ctx context.Context, who account, d deleteQuery) (nothing, error) {
	if d.force {
		return nothing{}, a.region.Abandon(ctx, who.ID, d.id)
	}
	return nothing{}, a.region.Delete(ctx, who.ID, d.id)
}

func decodeFilter(r *wire.Request) (f control.Filter, err error) {
	q, err := r.Query("volume", "state", "set", "limit", "after")
	if err != nil {
		return f, err
	}
	f.Volume, f.State, f.Limit = q.Get("volume"), snapferry.SnapshotState(q.Get("state")), maxPage
	if f.Volume != "" {
		if err := snapferry.CheckVolumeName(f.Volume); err != nil {
			return f, err
		}
	}
	if f.State != "" && !slices.Contains(states(), f.State) {
		return f, snapferry.Errorf(snapferry.Invalid, "%.40q is not a state of a snapshot", q.Get("state")).WithHint("states are: %v", states())
	}
	if q.Has("set") {
		if f.Set, err = snapferry.ParseSetID(q.Get("set")); err != nil {
			return f, err
		}
	}
	if q.Has("limit") {
		f.Limit, err = strconv.Atoi(q.Get("limit"))
		if err != nil || f.Limit < 1 || f.Limit > maxPage {
			return f, snapferry.Errorf(snapferry.Invalid, "limit %.40q is not a number from 1 to %d", q.Get("limit"), maxPage)
		}
	}
	if q.Has("after") {
		f.After, err = snapferry.ParseSnapshotID(q.Get("after"))
	}
	return f, err
}

func states() []snapferry.SnapshotState {
	return []snapferry.SnapshotState{
		snapferry.SnapshotCreating, snapferry.SnapshotCopying, snapferry.SnapshotReady, snapferry.SnapshotFailed, snapferry.SnapshotDeleting,
	}
}

func (a *api) listSnapshots(ctx context.Context, who account, f control.Filter) (client.SnapshotList, error) {
	limit := f.Limit
	f.Limit++ // one more tells that there is a next page
	all, err := a.region.Snapshots(ctx, who.ID, f)
	if err != nil {
		return client.SnapshotList{}, err
	}
	list := client.SnapshotList{Snapshots: all[:min(limit, len(all))]}
	if len(all) > limit {
		list.Next = all[limit-1].ID
	}
	return list, nil
}

type waitQuery struct {
	id    snapferry.SnapshotID
	done  int64
	limit time.Duration
}

func decodeWait(r *wire.Request) (w waitQuery, err error) {
	if w.id, err = snapferry.ParseSnapshotID(r.Path("id")); err != nil {
		return w, err
	}
	q, err := r.Query("done", "timeout")
	if err != nil {
		return w, err
	}
	w.done, w.limit = -1, defaultWait
	if q.Has("done") {
		w.done, err = strconv.ParseInt(q.Get("done"), 10, 64)
		if err != nil || w.done < -1 {
			return w, snapferry.Errorf(snapferry.Invalid, "done %.40q is not a number of bytes, nor -1", q.Get("done"))
		}
	}
	if q.Has("timeout") {
		w.limit, err = time.ParseDuration(q.Get("timeout"))
		if err != nil || w.limit < 0 || w.limit > maxWait {
			return w, snapferry.Errorf(snapferry.Invalid, "timeout %.40q is not a time up to %v", q.Get("timeout"), maxWait).WithHint("write it like 25s")
		}
	}
	return w, nil
}

func (a *api) waitSnapshot(ctx context.Context, who account, w waitQuery) (snapferry.Snapshot, error) {
	return a.region.Wait(ctx, who.ID, w.id, w.done, w.limit)
}

type diffQuery struct{ a, b snapferry.SnapshotID }

func decodeDiff(r *wire.Request) (d diffQuery, err error) {
	if _, err = r.Query(); err != nil {
		return d, err
	}
	if d.a, err = snapferry.ParseSnapshotID(r.Path("a")); err != nil {
		return d, err
	}
	d.b, err = snapferry.ParseSnapshotID(r.Path("b"))
	return d, err
}

func (a *api) diffSnapshots(ctx context.Context, who account, d diffQuery) (wire.Feed[client.Event], error) {
	for _, id := range []snapferry.SnapshotID{d.a, d.b} {
		if _, err := a.ready(ctx, who, id); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, emit func(client.Event) error) error {
		err := a.region.Diff(ctx, who.ID, d.a, d.b, func(e extent.Extent) error { return emit(client.Event{Extent: &e}) })
		if err != nil {
			return err
		}
		return emit(client.Event{Done: true})
	}, nil
}

// ready returns a snapshot that can be read; Conflict when it cannot yet.
func (a *api) ready(ctx context.Context, who account, id snapferry.SnapshotID) (snapferry.Snapshot, error) {
	s, err := a.region.Snapshot(ctx, who.ID, id)
	if err != nil || s.State == snapferry.SnapshotReady {
		return s, err
	}
	e := snapferry.Errorf(snapferry.Conflict, "snapshot %s is %s, not ready", id, s.State)
	if !s.State.Settled() {
		e = e.WithHint("wait for it with: snapferry snapshot wait %s", id)
	}
	return s, e
}
