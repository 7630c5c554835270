package control

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// A live volume is a lineage with a head: a row that says what it is, and a
// folder with what was written and is in no version yet. What the row says of its
// base is true at the latest when the folder is opened: a version is sealed
// before the folder is told.

// VolumeConfig is what a region needs to have live volumes.
type VolumeConfig struct {
	FS       layer.FS     // where their folders are
	Caches   *head.Caches // of what they fetched; in FS too
	Exporter Exporter
}

// An Exporter serves volumes to NBD clients.
type Exporter interface {
	// Serve begins to serve a volume and says where. It opens the volume with
	// Region.Live when a client comes.
	Serve(id snapferry.VolumeID, name string, e snapferry.Export) (snapferry.Export, error)
	// Stop ends that, with every connection; one that is not served is no error.
	Stop(id snapferry.VolumeID) error
}

const (
	maxVolumeCount = 100
	// maxPending is how many snapshots of a volume may be under way.
	maxPending = 5
)

// VolumeRequest asks for new volumes.
type VolumeRequest struct {
	Size     int64                // bytes; 0: that of the snapshot
	Snapshot snapferry.SnapshotID // what they have at first; empty: zeros
	Name     string               // empty: the id; with a count, -1, -2 ... are added
	Tags     snapferry.Tags
	Count    int // 0: one
	Sealing      // of empty ones; one that is made of a snapshot has its key
}

func (q *VolumeRequest) check() error {
	if q.Count == 0 {
		q.Count = 1
	}
	if q.Count < 0 || q.Count > maxVolumeCount {
		return snapferry.Errorf(snapferry.Invalid, "%d volumes at once; 1 to %d are possible", q.Count, maxVolumeCount)
	}
	if q.Name != "" {
		if err := snapferry.CheckVolumeName(q.Name); err != nil {
			return err
		}
	}
	if q.Snapshot == "" || q.Size != 0 {
		if err := snapferry.CheckSize(q.Size); err != nil {
			return err
		}
	}
	return q.Tags.Check()
}

// CreateVolumes makes volumes, empty or with the content of a ready snapshot,
// whose bytes come when they are read. The answer does not wait for any of them.
// With an error those that were made before it stay, and are returned.
func (r *Region) CreateVolumes(ctx context.Context, account snapferry.AccountID, q VolumeRequest) (made []snapferry.Volume, err error) {
	if err := r.haveVolumes(); err != nil {
		return nil, err
	}
	if err := q.check(); err != nil {
		return nil, err
	}
	for i := range q.Count {
		one := q
		if q.Name != "" && q.Count > 1 {
			one.Name = q.Name + "-" + strconv.Itoa(i+1)
		}
		id, err := r.createVolume(ctx, account, one)
		if err != nil {
			return made, err
		}
		v, err := r.Volume(ctx, account, id)
		if err != nil {
			return made, err
		}
		made = append(made, v)
	}
	return made, nil
}

func (r *Region) haveVolumes() error {
	if r.files.FS == nil {
		return snapferry.Errorf(snapferry.Unsupported, "region %s has no place for live volumes", r.name)
	}
	return nil
}

func (r *Region) createVolume(ctx context.Context, account snapferry.AccountID, q VolumeRequest) (snapferry.VolumeID, error) {
	h := meta.Head{ID: snapferry.NewVolumeID(), Account: account, State: snapferry.VolumeCreating, Size: q.Size, Tags: q.Tags, Snapshot: q.Snapshot, Rate: -1, Created: time.Now()}
	if q.Name == "" {
		q.Name = string(h.ID)
	}
	var fresh meta.Chain // of an empty one
	if q.Snapshot == "" {
		var err error
		if fresh, err = r.chainFor(ctx, account, q.Sealing); err != nil {
			return "", err
		}
	}
	insert := func(tx *meta.Tx, chain snapferry.ChainID) error {
		if chain.IsZero() {
			if err := r.insertChain(tx, fresh); err != nil {
				return err
			}
			chain = fresh.ID
		}
		vol, err := newLineage(tx, account, q.Name, h.ID, chain)
		if err != nil {
			return err
		}
		if q.Snapshot != "" && vol.ID != h.ID {
			return snapferry.Errorf(snapferry.Conflict, "volume %q was made, or deleted, by somebody else just now", q.Name)
		}
		h.ID = vol.ID
		if err := tx.InsertHead(h); err != nil {
			return err
		}
		return audit(tx, account, "CreateVolume", string(h.ID), q.Name)
	}
	var err error
	if q.Snapshot == "" {
		err = r.db.Update(ctx, func(tx *meta.Tx) error { return insert(tx, snapferry.ChainID{}) })
	} else {
		err = r.createOver(ctx, account, q, &h, insert)
	}
	if err != nil {
		return "", err
	}
	return h.ID, r.makeVolume(ctx, h, false)
}

// createOver inserts a volume over the version of a snapshot, which it holds from
// then on.
func (r *Region) createOver(ctx context.Context, account snapferry.AccountID, q VolumeRequest, h *meta.Head, insert func(*meta.Tx, snapferry.ChainID) error) error {
	s, err := r.readable(ctx, account, q.Snapshot)
	if err != nil {
		return err
	}
	want, err := r.wanted(ctx, account, q.Sealing)
	if err != nil {
		return err
	}
	if err := q.fits("snapshot "+string(s.ID), s.Key, want); err != nil {
		return err
	}
	if s.Key != "" {
		if err := r.tryKey(ctx, s.Version); err != nil {
			return err
		}
	}
	if h.Size == 0 {
		h.Size = s.Size
	}
	if h.Size < s.Size {
		return snapferry.Errorf(snapferry.Invalid, "a volume of %d bytes is too small for snapshot %s of %d bytes", h.Size, s.ID, s.Size)
	}
	h.Base = s.Version
	// The id of the lineage is known before: one in which nothing is left keeps
	// its own.
	if err := r.db.View(ctx, func(tx *meta.Tx) error {
		vol, err := tx.VolumeByName(account, q.Name)
		if err == nil {
			h.ID = vol.ID
		}
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil
		}
		return err
	}); err != nil {
		return err
	}
	if s.State == snapferry.SnapshotCopying {
		var done bool
		err := r.db.Update(ctx, func(tx *meta.Tx) error {
			done = false
			now, err := own(tx, account, q.Snapshot)
			if err != nil {
				return err
			}
			if done = now.State == snapferry.SnapshotReady; done {
				return nil
			}
			if err := checkReadable(now); err != nil {
				return err
			}
			row, err := tx.Version(now.Version)
			if err != nil {
				return err
			}
			h.Base = row.ID
			return insert(tx, row.Chain)
		})
		if err != nil || !done {
			return err
		}
	}
	err = r.vault.Hold(ctx, volumeHold(h.Base, h.ID), func(tx *meta.Tx) error {
		// It may have been deleted just now, while something else holds the version.
		now, err := own(tx, account, q.Snapshot)
		if err != nil {
			return err
		}
		if err := checkReady(now); err != nil {
			return err
		}
		row, err := tx.Version(h.Base)
		if err != nil {
			return err
		}
		return insert(tx, row.Chain)
	})
	return r.orRepair(ctx, h.Base, r.deleted(ctx, q.Snapshot, err))
}

// readable returns a snapshot that a volume can be made from: one that is ready, or
// being copied here.
func (r *Region) readable(ctx context.Context, account snapferry.AccountID, id snapferry.SnapshotID) (s meta.Snapshot, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		s, err = own(tx, account, id)
		return err
	})
	if err == nil {
		err = checkReadable(s)
	}
	return s, err
}

func checkReadable(s meta.Snapshot) error {
	switch {
	case s.State != snapferry.SnapshotCopying || s.Version.IsZero():
		return checkReady(s)
	case s.Reason != "":
		return snapferry.Errorf(snapferry.Conflict, "the copy of snapshot %s has failed: %s", s.ID, s.Reason).WithHint("%s", s.Hint)
	}
	return nil
}

func volumeHold(version snapferry.VersionID, id snapferry.VolumeID) meta.Hold {
	return meta.Hold{Version: version, Kind: vault.HoldVolume, Owner: string(id), Created: time.Now()}
}

// makeVolume makes the folder of a volume that is being created. One whose key may not
// be used now can be made later, if nobody waits for it; else it is in error.
func (r *Region) makeVolume(ctx context.Context, h meta.Head, later bool) error {
	l := r.live(h.ID)
	l.mu.Lock()
	defer l.mu.Unlock()
	row, _, err := r.idleHead(ctx, h.ID)
	if err != nil || row.State != snapferry.VolumeCreating {
		return err // somebody else has made it
	}
	chain, err := r.chainOf(ctx, h.ID)
	if err != nil {
		return err
	}
	keys, err := r.layerKeys(ctx, chain)
	if err == nil {
		err = head.Create(r.files.FS, volumeDir(h.ID), h.Size, h.Base, keys)
	}
	if later && snapferry.IsKind(err, snapferry.KeyUnusable) {
		return err
	}
	return cmp.Or(err, r.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
		now, terr := tx.Head(h.ID)
		if terr != nil || now.State != snapferry.VolumeCreating {
			return terr
		}
		if now.State = snapferry.VolumeAvailable; err != nil {
			now.State = snapferry.VolumeError
			now.Reason, now.Hint = publicReason(err)
		}
		return tx.UpdateHead(now)
	}))
}

// runMake is the job that makes a volume that a start could not make.
func (r *Region) runMake(ctx context.Context, run *job.Run) error {
	row, _, err := r.idleHead(ctx, snapferry.VolumeID(run.Job.Subject))
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && row.State != snapferry.VolumeCreating {
		return nil // deleted, or made at a start
	}
	if err == nil {
		err = r.makeVolume(ctx, row, true)
	}
	if snapferry.IsKind(err, snapferry.KeyUnusable) {
		return snapferry.Errorf(snapferry.Unavailable, "%w", err)
	}
	return err
}

func ownVolume(tx *meta.Tx, account snapferry.AccountID, id snapferry.VolumeID) (meta.Head, error) {
	if _, err := snapferry.ParseVolumeID(string(id)); err != nil {
		return meta.Head{}, err
	}
	h, err := tx.Head(id)
	if err == nil && h.Account == account {
		return h, nil
	}
	if err == nil || snapferry.IsKind(err, snapferry.NotFound) {
		err = snapferry.Errorf(snapferry.NotFound, "there is no volume %s", id).WithHint("list what there is with: snapferry volume list --region REGION")
	}
	return meta.Head{}, err
}

// Volume returns a live volume of the account.
func (r *Region) Volume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID) (v snapferry.Volume, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		h, err := ownVolume(tx, account, id)
		if err != nil {
			return err
		}
		v, err = r.shownVolume(tx, h)
		return err
	})
	return v, err
}

// Volumes returns the live volumes of the account, newest first; name, if not
// empty, is that of the one that is wanted.
func (r *Region) Volumes(ctx context.Context, account snapferry.AccountID, name string) (all []snapferry.Volume, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		rows, err := tx.Heads(account)
		if err != nil {
			return err
		}
		all = make([]snapferry.Volume, 0, len(rows))
		for _, h := range rows {
			if name != "" && h.Name != name {
				continue
			}
			v, err := r.shownVolume(tx, h)
			if err != nil {
				return err
			}
			all = append(all, v)
		}
		return nil
	})
	return all, err
}

// shownVolume is a volume as users see it.
func (r *Region) shownVolume(tx *meta.Tx, h meta.Head) (snapferry.Volume, error) {
	v := snapferry.Volume{
		ID: h.ID, Account: h.Account, Region: r.name, Name: h.Name, Tags: h.Tags, State: h.State, Reason: h.Reason, Hint: h.Hint,
		Size: h.Size, Snapshot: h.Snapshot, Created: h.Created, Export: h.Export,
	}
	vol, err := tx.Volume(h.ID)
	if err != nil {
		return v, err
	}
	chain, err := tx.Chain(vol.Chain)
	if err != nil {
		return v, err
	}
	v.Key, v.Encrypted = chain.Key, chain.Key != ""
	uploads, err := tx.Uploads(h.ID)
	if err != nil {
		return v, err
	}
	v.Pending = len(uploads)
	waiting, err := hydrationWaits(tx, h)
	if err != nil {
		return v, err
	}
	if waiting != nil {
		v.Local = &snapferry.Local{Progress: waiting}
	}
	r.mu.Lock()
	l := r.volumes[h.ID]
	var hydration *running
	if l != nil {
		hydration = l.hydration
	}
	r.mu.Unlock()
	if l == nil || !l.mu.TryLock() {
		return v, nil
	}
	defer l.mu.Unlock()
	if l.head == nil {
		return v, nil
	}
	st := l.head.Stats()
	v.Local = &snapferry.Local{Layers: st.Layers, Dirty: st.Dirty, Near: st.Near, Fetched: st.Fetched, Pauses: st.Pauses, Progress: waiting}
	if !h.Base.IsZero() {
		row, err := tx.Version(h.Base)
		if err != nil {
			return v, err
		}
		v.Local.Present = int64(row.Blocks) * snapferry.BlockSize
	}
	if hydration != nil {
		v.Local.Progress = hydration.show()
	}
	return v, nil
}

// hydrationWaits returns the progress of a hydration that is asked for and has not
// ended, as it is while no job works on it; nil for none.
func hydrationWaits(tx *meta.Tx, h meta.Head) (*snapferry.Progress, error) {
	if h.Rate < 0 {
		return nil, nil
	}
	jobs, err := tx.JobsOf(string(h.ID))
	for _, j := range jobs {
		if j.Kind == jobHydrate && !j.State.Terminal() {
			return &snapferry.Progress{Total: h.Size, Started: j.Created}, err
		}
	}
	return nil, err
}

// ResizeVolume makes a volume larger. Clients see it when they connect again.
func (r *Region) ResizeVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, size int64) (snapferry.Volume, error) {
	if err := snapferry.CheckSize(size); err != nil {
		return snapferry.Volume{}, err
	}
	h, err := r.usable(ctx, account, id)
	if err != nil {
		return snapferry.Volume{}, err
	}
	if err := h.Grow(size); err != nil {
		return snapferry.Volume{}, err
	}
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		now, err := ownVolume(tx, account, id)
		if err != nil {
			return err
		}
		now.Size = max(now.Size, size)
		if err := tx.UpdateHead(now); err != nil {
			return err
		}
		return audit(tx, account, "ResizeVolume", string(id), "")
	})
	if err != nil {
		return snapferry.Volume{}, err
	}
	return r.Volume(ctx, account, id)
}

// usable opens a volume of the account that can be used.
func (r *Region) usable(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID) (*head.Volume, error) {
	var row meta.Head
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		row, err = ownVolume(tx, account, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := checkUsable(row); err != nil {
		return nil, err
	}
	return r.Live(ctx, id)
}

func checkUsable(h meta.Head) error {
	switch h.State {
	case snapferry.VolumeAvailable, snapferry.VolumeExported:
		return nil
	case snapferry.VolumeError:
		return snapferry.Errorf(snapferry.Conflict, "volume %s is in error: %s", h.ID, h.Reason).WithHint("%s", h.Hint)
	}
	return snapferry.Errorf(snapferry.Conflict, "volume %s is %s", h.ID, h.State).WithHint("see how far it is with: snapferry volume show %s", h.ID)
}

// ExportRequest says how clients are to reach a volume: at a unix socket, whose
// path is chosen when it is empty, or by TCP with TLS.
type ExportRequest struct {
	Socket   string
	TLS      bool
	ReadOnly bool
}

// ExportVolume serves a volume to NBD clients, until UnexportVolume. It is
// served again after a restart. Exporting it again in the same way is no error.
func (r *Region) ExportVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, q ExportRequest) (snapferry.Volume, error) {
	if q.TLS && q.Socket != "" {
		return snapferry.Volume{}, snapferry.Errorf(snapferry.Invalid, "a volume is exported at a socket or with TLS, not both")
	}
	if r.files.Exporter == nil {
		return snapferry.Volume{}, snapferry.Errorf(snapferry.Unsupported, "region %s serves no volumes", r.name)
	}
	if _, err := r.usable(ctx, account, id); err != nil {
		return snapferry.Volume{}, err
	}
	l := r.live(id)
	l.use.RLock()
	defer l.use.RUnlock()
	v, err := r.Volume(ctx, account, id)
	if err != nil {
		return v, err
	}
	if e := v.Export; e != nil {
		if e.TLS == q.TLS && e.ReadOnly == q.ReadOnly && (q.Socket == "" || q.Socket == e.Socket) {
			return v, nil
		}
		return v, snapferry.Errorf(snapferry.Conflict, "volume %s is exported already, in another way", id).WithHint("end that with: snapferry volume unexport %s", id)
	}
	e, err := r.files.Exporter.Serve(id, v.Name, snapferry.Export{Socket: q.Socket, TLS: q.TLS, ReadOnly: q.ReadOnly})
	if err != nil {
		return v, err
	}
	err = r.setExport(ctx, account, id, &e)
	if err != nil {
		return v, cmp.Or(err, r.files.Exporter.Stop(id))
	}
	return r.Volume(ctx, account, id)
}

func (r *Region) setExport(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID, e *snapferry.Export) error {
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		h, err := ownVolume(tx, account, id)
		if err != nil {
			return err
		}
		action := "ExportVolume"
		if h.Export, h.State = e, snapferry.VolumeExported; e == nil {
			h.State, action = snapferry.VolumeAvailable, "UnexportVolume"
		}
		if err := tx.UpdateHead(h); err != nil {
			return err
		}
		return audit(tx, account, action, string(id), exportDetail(e))
	})
}

func exportDetail(e *snapferry.Export) string {
	if e == nil {
		return ""
	}
	return e.URI
}

// UnexportVolume ends the export of a volume and every connection to it.
// Everything written is durable then. One that is not exported is no error.
func (r *Region) UnexportVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID) (snapferry.Volume, error) {
	l := r.live(id)
	l.use.RLock()
	defer l.use.RUnlock()
	v, err := r.Volume(ctx, account, id)
	if err != nil || v.State != snapferry.VolumeExported {
		return v, err
	}
	if err := r.files.Exporter.Stop(id); err != nil {
		return v, err
	}
	h, err := r.Live(ctx, id)
	if err != nil {
		return v, err
	}
	if err := h.Sync(); err != nil {
		return v, err
	}
	if err := r.setExport(ctx, account, id, nil); err != nil {
		return v, err
	}
	return r.Volume(ctx, account, id)
}

// DeleteVolume deletes a volume that is not exported, with all that is in no
// snapshot. Its snapshots stay; those under way become ready first.
func (r *Region) DeleteVolume(ctx context.Context, account snapferry.AccountID, id snapferry.VolumeID) error {
	l := r.live(id)
	l.use.Lock()
	defer l.use.Unlock()
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		h, err := ownVolume(tx, account, id)
		switch {
		case err != nil:
			return err
		case h.State == snapferry.VolumeDeleting:
			return nil
		case h.State == snapferry.VolumeExported:
			return snapferry.Errorf(snapferry.Conflict, "volume %s is exported", id).WithHint("end that with: snapferry volume unexport %s", id)
		}
		h.State = snapferry.VolumeDeleting
		if err := tx.UpdateHead(h); err != nil {
			return err
		}
		if err := audit(tx, account, "DeleteVolume", string(id), h.Name); err != nil {
			return err
		}
		return enqueueVolumeWork(tx, h)
	})
}

// runUnmake is the job that removes a volume of which no snapshot is under way.
func (r *Region) runUnmake(ctx context.Context, run *job.Run) error {
	id := snapferry.VolumeID(run.Job.Subject)
	l := r.live(id)
	l.use.Lock()
	defer l.use.Unlock()
	h, busy, err := r.idleHead(ctx, id)
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (busy || h.State != snapferry.VolumeDeleting) {
		return nil // gone already; or the end of the upload enqueues this again
	}
	if err != nil {
		return err
	}
	r.stopServing(id, l) // one in error may still have been exported
	l.mu.Lock()
	defer l.mu.Unlock()
	r.closeVolume(id, l)
	if err := head.Remove(r.files.FS, volumeDir(id)); err != nil {
		return again(err)
	}
	holds, err := r.volumeHolds(ctx, id)
	if err != nil {
		return err
	}
	for _, x := range holds {
		if err := r.vault.Release(ctx, x, func(tx *meta.Tx) error {
			if x.Version == h.Base {
				if err := tx.DeleteHead(id); err != nil {
					return err
				}
			}
			return freeAround(tx, x.Version)
		}); err != nil {
			return again(r.orRepair(ctx, x.Version, err))
		}
	}
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := tx.DeleteHead(id); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
		return nil
	})
}

// idleHead returns a volume's row, and whether snapshots of it are under way.
func (r *Region) idleHead(ctx context.Context, id snapferry.VolumeID) (h meta.Head, busy bool, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		if h, err = tx.Head(id); err != nil {
			return err
		}
		uploads, err := tx.Uploads(id)
		busy = len(uploads) > 0
		return err
	})
	return h, busy, err
}

// volumeHolds returns the holds of a volume on versions, that on its base last.
func (r *Region) volumeHolds(ctx context.Context, id snapferry.VolumeID) (holds []meta.Hold, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		h, err := tx.Head(id)
		if err != nil {
			return err
		}
		all, err := tx.HoldsOfKind(vault.HoldVolume)
		for _, x := range all {
			if x.Owner == string(id) {
				holds = append(holds, x)
			}
		}
		slices.SortFunc(holds, func(a, b meta.Hold) int {
			if (a.Version == h.Base) != (b.Version == h.Base) {
				if b.Version == h.Base {
					return -1
				}
				return 1
			}
			return strings.Compare(a.Version.String(), b.Version.String())
		})
		return err
	})
	return holds, err
}

// dropBases releases the versions that were the base of a volume and that nothing
// of it reads any more.
func (r *Region) dropBases(ctx context.Context, id snapferry.VolumeID) {
	holds, err := r.volumeHolds(ctx, id)
	if err != nil {
		if !snapferry.IsKind(err, snapferry.NotFound) {
			r.log.WarnContext(ctx, "look at the bases of a volume", "volume", id, "err", err)
		}
		return
	}
	for _, x := range holds {
		err := r.dropBase(ctx, id, x)
		if err != nil {
			r.log.WarnContext(ctx, "an old base of a volume stays until the next start", "volume", id, "version", x.Version, "err", err)
		}
	}
}

func (r *Region) dropBase(ctx context.Context, id snapferry.VolumeID, x meta.Hold) error {
	h, _, err := r.idleHead(ctx, id)
	if err != nil || h.Base == x.Version || h.State == snapferry.VolumeRollingBack || h.State == snapferry.VolumeCreating {
		return err
	}
	l := r.live(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == nil {
		// Its folder may still say that this is the base.
		return nil
	}
	if l.head.Uses(x.Version) {
		return nil
	}
	err = r.vault.Release(ctx, x, func(tx *meta.Tx) error { return freeAround(tx, x.Version) })
	return r.orRepair(ctx, x.Version, err)
}
