package export

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/nbd"
)

const (
	// changedPrefix and bitmapPrefix begin the names of the contexts about what
	// has changed since a snapshot, whose id follows. The second is as QEMU's
	// tools know them.
	changedPrefix = "snapferry:changed:"
	bitmapPrefix  = "qemu:dirty-bitmap:"
	// flagChanged is the flag of what has, in both.
	flagChanged = 1
)

// device is a volume as one connection has it open. What reads and writes is the
// volume's own.
type device struct {
	*head.Volume
	size   int64 // when it was opened
	id     snapferry.VolumeID
	region Region
	since  []snapferry.SnapshotID // that contexts are about

	mu      sync.Mutex
	changes map[snapferry.SnapshotID]*control.Changes // that were asked for; guarded by mu
}

// What package nbd looks for in a device.
var (
	_ nbd.Device    = (*device)(nil)
	_ nbd.Immediate = (*device)(nil)
	_ nbd.Trimmer   = (*device)(nil)
	_ nbd.Zeroer    = (*device)(nil)
	_ nbd.Cacher    = (*device)(nil)
	_ nbd.Statuser  = (*device)(nil)
)

// Size implements nbd.Device: a volume that grows does so for later connections.
func (d *device) Size() int64 { return d.size }

// Contexts implements nbd.Statuser.
func (d *device) Contexts() []string {
	names := make([]string, 0, 1+2*len(d.since))
	names = append(names, nbd.BaseAllocation)
	for _, prefix := range []string{changedPrefix, bitmapPrefix} {
		for _, id := range d.since {
			names = append(names, prefix+string(id))
		}
	}
	return names
}

// Status implements nbd.Statuser.
func (d *device) Status(ctx context.Context, name string, off, n int64, extent func(length int64, flags uint32) error) error {
	run, err := d.run(ctx, name)
	if err != nil {
		return err
	}
	for end := off + n; off < end; {
		length, flags, err := run(ctx, off, end-off)
		if err != nil {
			return err
		}
		if err := extent(length, flags); err != nil {
			return err
		}
		off += length
	}
	return nil
}

// run returns what answers for a context, a run at a time.
func (d *device) run(ctx context.Context, name string) (func(ctx context.Context, off, n int64) (int64, uint32, error), error) {
	if name == nbd.BaseAllocation {
		return d.allocation, nil
	}
	id, ok := strings.CutPrefix(name, changedPrefix)
	if !ok {
		id, ok = strings.CutPrefix(name, bitmapPrefix)
	}
	if !ok || !slices.Contains(d.since, snapferry.SnapshotID(id)) {
		return nil, snapferry.Errorf(snapferry.NotFound, "there is no context %q", name)
	}
	c, err := d.changed(ctx, snapferry.SnapshotID(id))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, off, n int64) (int64, uint32, error) {
		length, changed, err := c.Run(ctx, off, n)
		if changed {
			return length, flagChanged, err
		}
		return length, 0, err
	}, nil
}

func (d *device) allocation(ctx context.Context, off, n int64) (int64, uint32, error) {
	length, data, err := d.Run(ctx, off, n)
	if data {
		return length, 0, err
	}
	return length, nbd.StateHole | nbd.StateZero, err
}

// changed returns what has changed since a snapshot, to be closed with d.
func (d *device) changed(ctx context.Context, id snapferry.SnapshotID) (*control.Changes, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.changes[id]; c != nil {
		return c, nil
	}
	c, err := d.region.ChangedSince(ctx, d.id, id)
	if err != nil {
		return nil, err
	}
	if d.changes == nil {
		d.changes = map[snapferry.SnapshotID]*control.Changes{}
	}
	d.changes[id] = c
	return c, nil
}

// close ends the use of the volume by the connection.
func (d *device) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.changes {
		c.Close()
	}
	return nil
}
