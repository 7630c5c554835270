// Package nativeapi is the region's own dialect of HTTP: the operations of
// docs/api.md over the use cases of package control. Requests and replies are
// the types of package client.
package nativeapi

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/api/internal/wire"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/vault"
)

// Snapshots is what the region does with snapshots that are there.
type Snapshots interface {
	Snapshot(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) (snapferry.Snapshot, error)
	Snapshots(ctx context.Context, account snapferry.AccountID, f control.Filter) ([]snapferry.Snapshot, error)
	Wait(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID, done int64, limit time.Duration) (snapferry.Snapshot, error)
	Delete(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) error
	Abandon(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) error
	Diff(ctx context.Context, account snapferry.AccountID, a, b snapferry.SnapshotID, fn func(extent.Extent) error) error
	Fork(ctx context.Context, account snapferry.AccountID, req control.ForkRequest) (snapferry.Snapshot, error)
}

// Space is what the region keeps and gives back.
type Space interface {
	Usage(ctx context.Context, account snapferry.AccountID, ids []snapferry.SnapshotID) (snapferry.SnapshotUsage, error)
	RegionUsage(ctx context.Context, account snapferry.AccountID) (snapferry.RegionUsage, error)
	Jobs(ctx context.Context) ([]snapferry.RegionJob, error)
}

// Disks is how disks become snapshots and snapshots disks.
type Disks interface {
	Import(ctx context.Context, account snapferry.AccountID, req control.ImportRequest) (snapferry.Snapshot, error)
	Export(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID, t vault.Target, done *atomic.Int64) error
}

// Copies is how snapshots come from other regions.
type Copies interface {
	Copy(ctx context.Context, account snapferry.AccountID, req control.CopyRequest) (snapferry.Snapshot, error)
	CopySet(ctx context.Context, account snapferry.AccountID, req control.CopyRequest) (snapferry.Copy, error)
	CancelCopy(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID, force bool) error
	CopyOf(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID) (snapferry.Copy, error)
	PlanCopy(ctx context.Context, account snapferry.AccountID, req control.CopyRequest) (snapferry.Plan, error)
	Copies(ctx context.Context, account snapferry.AccountID, f control.CopyFilter) ([]snapferry.Copy, error)
	SetCopyRate(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID, rate int64) (snapferry.Copy, error)
	WatchCopy(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID, emit func(snapferry.Copy) error) error
	Limits(ctx context.Context, account snapferry.AccountID) ([]snapferry.Limit, error)
	SetLimit(ctx context.Context, account snapferry.AccountID, req control.LimitRequest) error
	Pins(ctx context.Context, account snapferry.AccountID) ([]snapferry.Pin, error)
	BreakPin(ctx context.Context, account snapferry.AccountID, id string) error
	UsageRecords(ctx context.Context, account snapferry.AccountID, after int64, limit int) ([]snapferry.UsageRecord, error)
}

// Region is what the API stands on: a *control.Region.
type Region interface {
	wire.Authenticator
	Name() snapferry.RegionName
	Peers() []snapferry.RegionName
	Snapshots
	Disks
	Copies
	Space
	Volumes
	Keys
}

// Files has the files that were handed over: a *handoff.Server.
type Files interface {
	// Take returns the file of a handle, once; it belongs to the caller.
	Take(handle string) (*os.File, error)
}

// Checker checks the region. progress is told of bytes; the total may
// grow.
type Checker interface {
	Check(ctx context.Context, deep bool, progress func(done, total int64)) (*client.FsckReport, error)
}

// Config is what the API is made of.
type Config struct {
	Region  Region
	Files   Files        // nil: nothing can be handed over
	Checker Checker      // nil: the region cannot be checked
	Version string       // of the program
	Log     *slog.Logger // nil for none
}

// Handler serves the native API.
func Handler(c Config) http.Handler {
	a := &api{region: c.Region, files: c.Files, checker: c.Checker, version: c.Version}
	d := wire.Dialect{
		Auth:  c.Region,
		Log:   c.Log,
		Error: func(f wire.Failure) any { return failed{failure(f)} },
		Event: func(f wire.Failure) any { return client.Event{Error: failure(f)} },
	}
	return wire.Handler(d, a.operations()...)
}

// failed is the body of a reply that failed.
type failed struct {
	Error *client.Error `json:"error"`
}

func failure(f wire.Failure) *client.Error {
	return &client.Error{Kind: f.Kind.String(), Message: f.Message, Hint: f.Hint, RequestID: f.RequestID}
}

type api struct {
	region  Region
	files   Files
	checker Checker
	version string
}

type (
	account = snapferry.Account
	nothing = struct{}
)

// maxLong is how long an operation may take that asks another region, reads a
// map, or waits.
const maxLong = 90 * time.Second

// operations is the API.
func (a *api) operations() []wire.Operation {
	all := []wire.Operation{
		wire.Op[nothing, client.Region]{Name: "GetRegion", Method: "GET", Path: "/v1/region", Decode: decodeNothing, Call: a.getRegion},
		wire.Op[nothing, snapferry.RegionUsage]{Name: "GetRegionUsage", Method: "GET", Path: "/v1/region/usage", Decode: decodeNothing, Call: a.getRegionUsage},
		wire.Op[nothing, client.JobList]{Name: "ListRegionJobs", Method: "GET", Path: "/v1/region/jobs", Decode: decodeNothing, Call: a.listJobs},

		wire.Op[client.ImportRequest, snapferry.Snapshot]{
			Name: "ImportSnapshot", Method: "POST", Path: "/v1/snapshots/import", Status: http.StatusCreated, Decode: decodeBody[client.ImportRequest], Call: a.importSnapshot,
		},
		wire.Op[control.Filter, client.SnapshotList]{Name: "ListSnapshots", Method: "GET", Path: "/v1/snapshots", Decode: decodeFilter, Call: a.listSnapshots},
		wire.Op[snapferry.SnapshotID, snapferry.Snapshot]{Name: "GetSnapshot", Method: "GET", Path: "/v1/snapshots/{id}", Decode: decodeSnapshotID, Call: a.getSnapshot},
		wire.Op[waitQuery, snapferry.Snapshot]{Name: "WaitSnapshot", Method: "GET", Path: "/v1/snapshots/{id}/wait", Limit: maxLong, Decode: decodeWait, Call: a.waitSnapshot},
		wire.Op[deleteQuery, nothing]{
			Name: "DeleteSnapshot", Method: "DELETE", Path: "/v1/snapshots/{id}", Status: http.StatusNoContent, Limit: maxLong, Decode: decodeDelete, Call: a.deleteSnapshot,
		},
		wire.Op[control.ForkRequest, snapferry.Snapshot]{
			Name: "ForkSnapshot", Method: "POST", Path: "/v1/snapshots/{id}/fork", Status: http.StatusCreated, Decode: decodeFork, Call: a.forkSnapshot,
		},
		wire.Op[[]snapferry.SnapshotID, snapferry.SnapshotUsage]{
			Name: "GetSnapshotUsage", Method: "GET", Path: "/v1/snapshots/{id}/usage", Limit: maxLong, Decode: decodeOneUsage, Call: a.snapshotUsage,
		},
		wire.Op[[]snapferry.SnapshotID, snapferry.SnapshotUsage]{
			Name: "GetSnapshotsUsage", Method: "POST", Path: "/v1/snapshots/usage", Limit: maxLong, Decode: decodeUsage, Call: a.snapshotUsage,
		},
		wire.Stream[exportQuery, client.Event]{Name: "ExportSnapshot", Method: "POST", Path: "/v1/snapshots/{id}/export", Decode: decodeExport, Open: a.exportSnapshot},
		wire.Stream[diffQuery, client.Event]{Name: "DiffSnapshots", Method: "GET", Path: "/v1/snapshots/{a}/diff/{b}", Decode: decodeDiff, Open: a.diffSnapshots},

		wire.Op[client.SnapshotRequest, client.SnapshotList]{
			Name: "SnapshotVolumes", Method: "POST", Path: "/v1/snapshots", Status: http.StatusCreated, Limit: maxLong, Decode: decodeBody[client.SnapshotRequest], Call: a.snapshotVolumes,
		},

		wire.Op[control.CopyRequest, snapferry.Snapshot]{
			Name: "CopySnapshot", Method: "POST", Path: "/v1/copies", Status: http.StatusCreated, Limit: maxLong, Decode: decodeCopy, Call: a.copySnapshot,
		},
		wire.Op[control.CopyRequest, snapferry.Copy]{
			Name: "CopySet", Method: "POST", Path: "/v1/copies/set", Status: http.StatusCreated, Limit: maxLong, Decode: decodeCopy, Call: a.copySet,
		},
		wire.Op[cancelQuery, nothing]{Name: "CancelCopy", Method: "DELETE", Path: "/v1/copies/{id}", Status: http.StatusNoContent, Decode: decodeCancel, Call: a.cancelCopy},
		wire.Op[snapferry.CopyID, snapferry.Copy]{Name: "GetCopy", Method: "GET", Path: "/v1/copies/{id}", Decode: decodeCopyID, Call: a.getCopy},
		wire.Op[control.CopyFilter, client.CopyList]{Name: "ListCopies", Method: "GET", Path: "/v1/copies", Decode: decodeCopyFilter, Call: a.listCopies},
		wire.Op[rateQuery, snapferry.Copy]{Name: "SetCopyRate", Method: "POST", Path: "/v1/copies/{id}/rate", Decode: decodeRate, Call: a.setCopyRate},
		wire.Stream[snapferry.CopyID, client.Event]{Name: "WatchCopy", Method: "GET", Path: "/v1/copies/{id}/watch", Decode: decodeCopyID, Open: a.watchCopy},
		wire.Op[nothing, client.LimitList]{Name: "ListLimits", Method: "GET", Path: "/v1/limits", Decode: decodeNothing, Call: a.listLimits},
		wire.Op[control.LimitRequest, nothing]{Name: "SetLimit", Method: "POST", Path: "/v1/limits", Status: http.StatusNoContent, Decode: decodeLimit, Call: a.setLimit},
		wire.Op[nothing, client.PinList]{Name: "ListPins", Method: "GET", Path: "/v1/pins", Decode: decodeNothing, Call: a.listPins},
		wire.Op[string, nothing]{Name: "BreakPin", Method: "DELETE", Path: "/v1/pins/{id}", Status: http.StatusNoContent, Decode: decodePin, Call: a.breakPin},
		wire.Op[int64, client.UsageList]{Name: "ListUsage", Method: "GET", Path: "/v1/usage", Decode: decodeAfter, Call: a.listUsage},
		wire.Op[control.CopyRequest, snapferry.Plan]{Name: "PlanCopy", Method: "POST", Path: "/v1/copies/plan", Limit: maxLong, Decode: decodeCopy, Call: a.planCopy},

		wire.Stream[client.FsckRequest, client.Event]{Name: "Fsck", Method: "POST", Path: "/v1/fsck", Decode: decodeBody[client.FsckRequest], Open: a.fsck},
	}
	return slices.Concat(all, a.volumeOperations(), a.keyOperations())
}

// volumeOperations are those on live volumes.
func (a *api) volumeOperations() []wire.Operation {
	return []wire.Operation{
		wire.Op[client.VolumeRequest, client.VolumeList]{
			Name: "CreateVolumes", Method: "POST", Path: "/v1/volumes", Status: http.StatusCreated, Limit: maxLong, Decode: decodeBody[client.VolumeRequest], Call: a.createVolumes,
		},
		wire.Op[string, client.VolumeList]{Name: "ListVolumes", Method: "GET", Path: "/v1/volumes", Decode: decodeName, Call: a.listVolumes},
		wire.Op[snapferry.VolumeID, snapferry.Volume]{Name: "GetVolume", Method: "GET", Path: "/v1/volumes/{id}", Decode: decodeVolumeID, Call: a.getVolume},
		wire.Op[snapferry.VolumeID, nothing]{
			Name: "DeleteVolume", Method: "DELETE", Path: "/v1/volumes/{id}", Status: http.StatusNoContent, Decode: decodeVolumeID, Call: a.deleteVolume,
		},
		wire.Op[ofVolume[client.ResizeRequest], snapferry.Volume]{
			Name: "ResizeVolume", Method: "POST", Path: "/v1/volumes/{id}/resize", Decode: decodeOfVolume[client.ResizeRequest], Call: a.resizeVolume,
		},
		wire.Op[ofVolume[client.RollbackRequest], snapferry.Volume]{
			Name: "RollbackVolume", Method: "POST", Path: "/v1/volumes/{id}/rollback", Limit: maxLong, Decode: decodeOfVolume[client.RollbackRequest], Call: a.rollbackVolume,
		},
		wire.Op[ofVolume[client.HydrateRequest], snapferry.Volume]{
			Name: "HydrateVolume", Method: "POST", Path: "/v1/volumes/{id}/hydrate", Decode: decodeOfVolume[client.HydrateRequest], Call: a.hydrateVolume,
		},
		wire.Op[ofVolume[client.VolumeExportRequest], snapferry.Volume]{
			Name: "ExportVolume", Method: "POST", Path: "/v1/volumes/{id}/export", Decode: decodeOfVolume[client.VolumeExportRequest], Call: a.exportVolume,
		},
		wire.Op[snapferry.VolumeID, snapferry.Volume]{
			Name: "UnexportVolume", Method: "DELETE", Path: "/v1/volumes/{id}/export", Limit: maxLong, Decode: decodeVolumeID, Call: a.unexportVolume,
		},
	}
}

func decodeNothing(r *wire.Request) (nothing, error) {
	_, err := r.Query()
	return nothing{}, err
}

func decodeBody[Q any](r *wire.Request) (q Q, err error) {
	if _, err = r.Query(); err != nil {
		return q, err
	}
	return q, r.JSON(&q)
}

func (a *api) getRegion(_ context.Context, who account, _ nothing) (client.Region, error) {
	peers := a.region.Peers()
	if peers == nil {
		peers = []snapferry.RegionName{}
	}
	return client.Region{Name: a.region.Name(), Version: a.version, Account: who, Peers: peers}, nil
}

func labels(l client.Labels) control.Labels {
	return control.Labels{Name: l.Name, Description: l.Description, Tags: l.Tags, RetentionDays: l.RetentionDays}
}
