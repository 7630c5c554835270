package nativeapi

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/api/internal/wire"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/source"
	"github.com/snapferry/snapferry/nbd"
)

// take returns a file that was handed over.
func (a *api) take(handle string) (*os.File, error) {
	if a.files == nil {
		return nil, snapferry.Errorf(snapferry.Unsupported, "region %s does not take over files", a.region.Name())
	}
	if handle == "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "the request has no handle").WithHint("hand the open file over first")
	}
	return a.files.Take(handle)
}

func (a *api) importSnapshot(ctx context.Context, who account, req client.ImportRequest) (snapferry.Snapshot, error) {
	if err := snapferry.CheckVolumeName(req.Volume); err != nil {
		return snapferry.Snapshot{}, err
	}
	f, err := a.take(req.Handle)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	if req.NBD != nil {
		return a.importNBD(ctx, who, req, f)
	}
	d, err := source.FromFile(f, f.Name())
	if err != nil {
		f.Close()
		return snapferry.Snapshot{}, err
	}
	return a.region.Import(ctx, who.ID, control.ImportRequest{
		Volume: req.Volume, Labels: labels(req.Labels), Sealing: sealing(req.Sealing), Disk: d,
		Close: func() {
			d.Close()
			f.Close()
		},
	})
}

// importNBD imports what an NBD server has at the other end of a connection that
// was handed over.
func (a *api) importNBD(ctx context.Context, who account, req client.ImportRequest, f *os.File) (snapferry.Snapshot, error) {
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return snapferry.Snapshot{}, snapferry.Errorf(snapferry.Invalid, "what was handed over is no connection: %w", err)
	}
	cfg := source.RemoteConfig{Bitmap: req.NBD.Bitmap, Name: "the NBD server", ClientConfig: nbd.ClientConfig{Export: req.NBD.Export}}
	if req.NBD.TLS {
		cfg.TLS = &tls.Config{ServerName: req.NBD.Hostname, MinVersion: tls.VersionTLS12}
	}
	// The import goes on when the request has ended.
	d, err := source.FromNBD(context.WithoutCancel(ctx), conn, cfg)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	in := control.ImportRequest{Volume: req.Volume, Labels: labels(req.Labels), Sealing: sealing(req.Sealing), Disk: d, Close: func() { d.Close() }}
	if delta, ok := d.Since(); ok {
		in.Since = delta
	}
	return a.region.Import(ctx, who.ID, in)
}

type exportQuery struct {
	id snapferry.SnapshotID
	client.ExportRequest
}

func decodeExport(r *wire.Request) (q exportQuery, err error) {
	if q.id, err = snapferry.ParseSnapshotID(r.Path("id")); err != nil {
		return q, err
	}
	q.ExportRequest, err = decodeBody[client.ExportRequest](r)
	return q, err
}

// exportSnapshot touches the target only when the snapshot can be read.
func (a *api) exportSnapshot(ctx context.Context, who account, q exportQuery) (wire.Feed[client.Event], error) {
	s, err := a.ready(ctx, who, q.id)
	if err != nil {
		return nil, err
	}
	f, err := a.take(q.Handle)
	if err != nil {
		return nil, err
	}
	t, err := source.ToFile(f, s.Size)
	if err != nil {
		f.Close()
		return nil, err
	}
	return func(ctx context.Context, emit func(client.Event) error) error {
		defer f.Close()
		defer t.Close()
		if err := a.export(ctx, who, s, t, emit); err != nil {
			return incomplete(s.ID, err)
		}
		return emit(client.Event{Done: true})
	}, nil
}

// export writes a snapshot to a target and makes it durable.
func (a *api) export(ctx context.Context, who account, s snapferry.Snapshot, t *source.Target, emit func(client.Event) error) error {
	var done atomic.Int64
	return withProgress(ctx, s.Counts.Present, &done, emit, func(ctx context.Context) error {
		if t.Device() { // it still has what it had
			if err := t.ZeroRange(ctx, extent.Extent{Len: t.Size()}); err != nil {
				return err
			}
		}
		if err := a.region.Export(ctx, who.ID, s.ID, t, &done); err != nil {
			return err
		}
		return t.Finish(ctx)
	})
}

// incomplete says that a target was touched.
func incomplete(id snapferry.SnapshotID, err error) error {
	e := snapferry.Errorf(snapferry.KindOf(err), "export of %s ended early: %w", id, err)
	if snapferry.HintOf(err) != "" {
		return e
	}
	if e.Kind == snapferry.Corrupt {
		return e.WithHint("the target is incomplete; see what is damaged with: snapferry fsck --deep, and copy the snapshot back from a region that has it")
	}
	return e.WithHint("the target is incomplete: export again, or discard it")
}

// fsck checks the region.
func (a *api) fsck(_ context.Context, _ account, q client.FsckRequest) (wire.Feed[client.Event], error) {
	if a.checker == nil {
		return nil, snapferry.Errorf(snapferry.Unsupported, "region %s cannot be checked while it runs", a.region.Name())
	}
	return func(ctx context.Context, emit func(client.Event) error) error {
		m := newMeter()
		report, err := a.checker.Check(ctx, q.Deep, func(done, total int64) {
			if p, due := m.sample(done, total); due {
				_ = emit(client.Event{Progress: p}) // a reader that went away ends ctx
			}
		})
		if err != nil {
			return err
		}
		if err := emit(client.Event{Report: report}); err != nil {
			return err
		}
		return emit(client.Event{Done: true})
	}, nil
}
