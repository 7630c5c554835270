package control

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// Host is what this region offers to other regions. The caller's region is
// proven by its certificate; the rights of the account it names are checked
// here.
type Host struct{ *Region }

var _ transfer.Host = Host{}

// account returns the account that a caller acts for.
func (h Host) account(tx *meta.Tx, c transfer.Caller) (snapferry.AccountID, error) {
	if c.Region != h.name && h.peers[c.Region] == nil {
		return "", snapferry.Errorf(snapferry.Denied, "region %s does not know region %s", h.name, c.Region).
			WithHint("add %s to the peers in the configuration of %s", c.Region, h.name)
	}
	all, err := tx.Accounts()
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if a.Name == c.Account {
			return a.ID, nil
		}
	}
	return "", snapferry.Errorf(snapferry.Denied, "region %s has no account %q", h.name, c.Account)
}

// Hello says who this is.
func (h Host) Hello(ctx context.Context, c transfer.Caller) (x transfer.Hello, err error) {
	err = h.db.View(ctx, func(tx *meta.Tx) error {
		region, err := tx.Region()
		x = transfer.Hello{Region: h.name, Version: h.version, Incarnation: region.Incarnation}
		return err
	})
	return x, err
}

// Describe says what a copy must know of a ready snapshot of the account.
func (h Host) Describe(ctx context.Context, c transfer.Caller, id snapferry.SnapshotID) (d transfer.Description, err error) {
	var s meta.Snapshot
	err = h.db.View(ctx, func(tx *meta.Tx) error {
		account, err := h.account(tx, c)
		if err != nil {
			return err
		}
		if s, err = own(tx, account, id); err != nil {
			return err
		}
		if s.State == snapferry.SnapshotDeleting {
			// A pinned source that is being deleted still serves its copies.
			s.State = snapferry.SnapshotReady
		}
		if err := checkReady(s); err != nil {
			return err
		}
		v, err := tx.Version(s.Version)
		if err != nil {
			return err
		}
		d = transfer.Description{Snapshot: s.ID, Name: s.Name, Created: s.Created, Volume: s.Volume, VolumeID: s.VolumeID, Chain: v.Chain, Encrypted: v.Key != ""}
		d.Lineage, err = lineage(tx, v)
		return err
	})
	if err != nil {
		return d, err
	}
	m, err := h.vault.MapOf(ctx, s.Version)
	if err != nil {
		return d, h.deleted(ctx, s.ID, err)
	}
	d.Info = transfer.Info{Size: m.Size, Digest: s.Digest, Root: m.Root, Present: int64(m.Blocks()) * snapferry.BlockSize}
	return d, nil
}

// Members lists the snapshots of a set of the account. It is a Conflict when they are
// not all there, or not all ready.
func (h Host) Members(ctx context.Context, c transfer.Caller, set snapferry.SetID) (ids []snapferry.SnapshotID, err error) {
	if _, err := snapferry.ParseSetID(string(set)); err != nil {
		return nil, err
	}
	err = h.db.View(ctx, func(tx *meta.Tx) error {
		account, err := h.account(tx, c)
		if err != nil {
			return err
		}
		all, err := tx.SnapshotsOfSet(set)
		if err != nil {
			return err
		}
		size := 0
		for _, s := range all {
			if s.Account != account {
				continue
			}
			if size = max(size, s.SetSize); !s.Deleted.IsZero() {
				continue
			}
			if err := checkReady(s); err != nil {
				return err
			}
			ids = append(ids, s.ID)
		}
		switch {
		case size == 0:
			return snapferry.Errorf(snapferry.NotFound, "there is no set %s", set)
		case len(ids) < size:
			return snapferry.Errorf(snapferry.Conflict, "of the %d snapshots of set %s only %d are left", size, set, len(ids)).WithHint("copy them one by one")
		}
		return nil
	})
	return ids, err
}

// lineage returns the digests of the ancestors of a version, nearest first.
func lineage(tx *meta.Tx, v meta.Version) (ds []digest.Digest, err error) {
	for !v.Parent.IsZero() && len(ds) < transfer.MaxLineage {
		if v, err = tx.Version(v.Parent); err != nil {
			return nil, err
		}
		ds = append(ds, v.Digest)
	}
	return ds, nil
}

// Pin keeps a ready snapshot until the copy that asks releases it. It is
// idempotent by region, copy and snapshot.
func (h Host) Pin(ctx context.Context, c transfer.Caller, p transfer.Pin) (transfer.Handle, error) {
	if _, err := snapferry.ParseCopyID(string(p.Copy)); err != nil {
		return transfer.Handle{}, err
	}
	// The pin's id is a function of what makes it one, so that the hold in the
	// version record is the same when the request is repeated.
	id := "pin-" + HashToken(string(c.Region) + "\x00" + string(p.Copy) + "\x00" + string(p.Snapshot))[:32]
	var s meta.Snapshot
	pinned := false
	err := h.db.View(ctx, func(tx *meta.Tx) error {
		account, err := h.account(tx, c)
		if err != nil {
			return err
		}
		if s, err = own(tx, account, p.Snapshot); err != nil {
			return err
		}
		// One that is there is the answer, whatever became of the snapshot and
		// however often the caller was restarted.
		have, err := tx.Pin(id)
		if pinned = err == nil && have.Snapshot == s.ID; pinned {
			return nil
		}
		if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
		return checkReady(s)
	})
	if err != nil || pinned {
		return transfer.Handle{Pin: id, Snapshot: p.Snapshot}, err
	}
	row := meta.Pin{ID: id, Snapshot: s.ID, Version: s.Version, Region: c.Region, Incarnation: p.Incarnation, Copy: p.Copy, Created: time.Now(), Seen: time.Now()}
	hold := meta.Hold{Version: s.Version, Kind: vault.HoldPin, Owner: id, Created: row.Created, Pin: &row}
	err = h.vault.Hold(ctx, hold, func(tx *meta.Tx) error {
		// It may have been deleted just now, while something else holds the version.
		now, err := own(tx, s.Account, s.ID)
		if err != nil {
			return err
		}
		if err := checkReady(now); err != nil {
			return err
		}
		_, err = tx.InsertPin(row)
		return err
	})
	return transfer.Handle{Pin: id, Snapshot: s.ID}, h.orRepair(ctx, s.Version, h.deleted(ctx, s.ID, err))
}

// pinned returns the pin of a handle, which must be the caller's.
func (h Host) pinned(tx *meta.Tx, c transfer.Caller, x transfer.Handle) (meta.Pin, error) {
	p, err := tx.Pin(x.Pin)
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && p.Region != c.Region {
		return p, snapferry.Errorf(snapferry.NotFound, "region %s has no pin %q of region %s", h.name, x.Pin, c.Region)
	}
	return p, err
}

// Renew notes that a pin is still needed, and does not take it again if it was broken.
func (h Host) Renew(ctx context.Context, c transfer.Caller, x transfer.Handle) error {
	var p meta.Pin
	err := h.db.View(ctx, func(tx *meta.Tx) (err error) {
		p, err = h.pinned(tx, c, x)
		return err
	})
	now := time.Now()
	if err != nil || now.Sub(p.Seen) < sentEvery {
		return err
	}
	return h.db.Update(ctx, func(tx *meta.Tx) error { return tx.SeePin(p.ID, now) })
}

// Release ends a pin. If its snapshot was deleted meanwhile and this was the
// last pin, the deletion takes effect.
func (h Host) Release(ctx context.Context, c transfer.Caller, x transfer.Handle, ending snapferry.Ending) error {
	var p meta.Pin
	err := h.db.View(ctx, func(tx *meta.Tx) (err error) {
		p, err = h.pinned(tx, c, x)
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		// Of an earlier try only the deletion may be missing.
		if err := h.finishDelete(ctx, x.Snapshot); err != nil && !snapferry.IsKind(err, snapferry.NotFound) && !snapferry.IsKind(err, snapferry.Conflict) {
			return err
		}
	}
	if err != nil {
		return err
	}
	if err := h.meterSent(ctx, p.ID, ending); err != nil {
		return err
	}
	hold := meta.Hold{Version: p.Version, Kind: vault.HoldPin, Owner: p.ID}
	if err := h.vault.Release(ctx, hold, func(tx *meta.Tx) error {
		if err := tx.DeletePin(p.ID); err != nil {
			return err
		}
		return freeAround(tx, p.Version)
	}); err != nil {
		return err
	}
	return h.finishDelete(ctx, p.Snapshot)
}

// finishDelete makes a deletion that waited for pins take effect.
func (h Host) finishDelete(ctx context.Context, id snapferry.SnapshotID) error {
	var s meta.Snapshot
	var pins []meta.Pin
	err := h.db.View(ctx, func(tx *meta.Tx) (err error) {
		if s, err = tx.Snapshot(id); err != nil {
			return err
		}
		pins, err = tx.PinsOf(id)
		return err
	})
	if err != nil || s.State != snapferry.SnapshotDeleting || s.Version.IsZero() || len(pins) > 0 {
		return err
	}
	_, err = h.release(ctx, s) // one with a new pin takes effect with the end of that
	return err
}

// finishDeletes makes the deletions take effect whose last pin ended when an
// earlier process did.
func (r *Region) finishDeletes(ctx context.Context) error {
	var ids []snapferry.SnapshotID
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		accounts, err := tx.Accounts()
		if err != nil {
			return err
		}
		for _, a := range accounts {
			all, err := tx.Snapshots(a.ID, meta.SnapshotFilter{State: snapferry.SnapshotDeleting})
			if err != nil {
				return err
			}
			for _, s := range all {
				ids = append(ids, s.ID)
			}
		}
		return nil
	})
	for _, id := range ids {
		if err == nil {
			err = Host{r}.finishDelete(ctx, id)
		}
	}
	return err
}

// Source gives the nodes and blocks of a pinned snapshot, or, for planning, of
// a ready one of the account.
func (h Host) Source(ctx context.Context, c transfer.Caller, x transfer.Handle) (transfer.Source, error) {
	var version snapferry.VersionID
	src := &versionSource{region: h.Region, pin: x.Pin, snapshot: x.Snapshot}
	err := h.db.View(ctx, func(tx *meta.Tx) error {
		account, err := h.account(tx, c)
		if err != nil {
			return err
		}
		src.account = account
		if x.Pin != "" {
			p, err := h.pinned(tx, c, x)
			if err != nil {
				return err
			}
			s, err := tx.Snapshot(p.Snapshot)
			if err == nil && s.Account != account {
				err = snapferry.Errorf(snapferry.NotFound, "region %s has no pin %q of account %q", h.name, x.Pin, c.Account)
			}
			version, src.snapshot, src.copy = p.Version, p.Snapshot, p.Copy
			return err
		}
		s, err := own(tx, account, x.Snapshot)
		if err == nil {
			err = checkReady(s)
		}
		version, src.unpinned = s.Version, s.ID
		return err
	})
	if err != nil {
		return nil, err
	}
	src.version = version
	if src.m, err = h.vault.MapOf(ctx, version); err != nil {
		return nil, src.because(ctx, err)
	}
	return src, nil
}

// versionSource is a sealed version as the copy engine reads it.
type versionSource struct {
	region   *Region
	version  snapferry.VersionID
	m        blockmap.Map
	unpinned snapferry.SnapshotID // it may be deleted while it is read; empty: it is pinned
	pin      string               // which may be broken
	account  snapferry.AccountID  // for the usage records, like what follows
	snapshot snapferry.SnapshotID
	copy     snapferry.CopyID
}

// because is why reading failed.
func (s *versionSource) because(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if s.unpinned == "" {
		return s.region.broken(ctx, s.pin, err)
	}
	return s.region.deleted(ctx, s.unpinned, err)
}

// broken makes an error of reading what a pin keeps NotFound if that was broken
// meanwhile.
func (r *Region) broken(ctx context.Context, pin string, err error) error {
	perr := r.db.View(ctx, func(tx *meta.Tx) error {
		_, err := tx.Pin(pin)
		return err
	})
	if snapferry.IsKind(perr, snapferry.NotFound) {
		return snapferry.Errorf(snapferry.NotFound, "the pin %q was broken", pin)
	}
	return err
}

func (s *versionSource) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	var bytes int64
	defer func() { s.sent(bytes, 1) }()
	c := s.m.Cursor()
	for _, p := range at {
		n, err := c.At(ctx, p)
		if err != nil {
			return s.because(ctx, err)
		}
		if n == nil {
			return snapferry.Errorf(snapferry.NotFound, "the snapshot has no node of level %d, index %d", p.Level, p.Index)
		}
		if err := fn(p, n); err != nil {
			return err
		}
		bytes += int64(transfer.WireSize(n))
	}
	return nil
}

func (s *versionSource) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f := &versionFrames{source: s, release: func() {}}
	if s.unpinned != "" {
		// A stream of blocks may last long.
		_, release, err := s.region.reading(ctx, s.version)
		if err != nil {
			return nil, s.because(ctx, err)
		}
		f.release = release
	}
	parts := make([]mapPart, len(want))
	for i, w := range want {
		parts[i] = mapPart{s.m, w}
	}
	f.blockStream = s.region.newBlockStream(ctx, parts)
	return f, nil
}

// versionFrames streams blocks of a version.
type versionFrames struct {
	blockStream
	source  *versionSource
	release func()
	bytes   int64 // sent
}

// Next implements transfer.Frames.
func (f *versionFrames) Next() (transfer.Frame, error) {
	x, err := f.next()
	if err != nil && !errors.Is(err, io.EOF) {
		err = f.source.because(f.ctx, err)
	}
	f.bytes += int64(len(x.Payload))
	return x, err
}

// Close implements transfer.Frames.
func (f *versionFrames) Close() error {
	if f.close() {
		f.source.sent(f.bytes, 1)
		f.release()
	}
	return nil
}

// local is this region as a copy inside it sees it.
type local struct {
	region *Region
	caller transfer.Caller
}

func (l *local) host() Host { return Host{l.region} }

func (l *local) Hello(ctx context.Context) (transfer.Hello, error) {
	return l.host().Hello(ctx, l.caller)
}

func (l *local) Describe(ctx context.Context, id snapferry.SnapshotID) (transfer.Description, error) {
	return l.host().Describe(ctx, l.caller, id)
}

func (l *local) Members(ctx context.Context, set snapferry.SetID) ([]snapferry.SnapshotID, error) {
	return l.host().Members(ctx, l.caller, set)
}

func (l *local) Pin(ctx context.Context, p transfer.Pin) (transfer.Handle, error) {
	return l.host().Pin(ctx, l.caller, p)
}

func (l *local) Renew(ctx context.Context, h transfer.Handle) error {
	return l.host().Renew(ctx, l.caller, h)
}

func (l *local) Release(ctx context.Context, h transfer.Handle, ending snapferry.Ending) error {
	return l.host().Release(ctx, l.caller, h, ending)
}

func (l *local) Pins(ctx context.Context, after string) ([]transfer.Held, error) {
	return l.host().Pins(ctx, l.caller, after)
}

func (l *local) Source(h transfer.Handle) transfer.Source { return &localSource{l, h} }

type localSource struct {
	local  *local
	handle transfer.Handle
}

func (s *localSource) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	src, err := s.local.host().Source(ctx, s.local.caller, s.handle)
	if err != nil {
		return err
	}
	return src.Nodes(ctx, at, fn)
}

func (s *localSource) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	src, err := s.local.host().Source(ctx, s.local.caller, s.handle)
	if err != nil {
		return nil, err
	}
	return src.Blocks(ctx, want)
}
