package vault

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// Hold adds a hold to a sealed version: first in its record, then in the
// metadata, where also, if not nil, joins the transaction. A version without
// any hold left takes no new one: Conflict.
func (v *Vault) Hold(ctx context.Context, h meta.Hold, also func(*meta.Tx) error) error {
	return v.rehold(ctx, h.Version, change{add: []meta.Hold{h}}, also)
}

// Release drops a hold. With the last one the version becomes a ghost, due for
// Visit: nothing can attach to it any more, and what only it has can be freed.
// A hold that is not there is no error.
func (v *Vault) Release(ctx context.Context, h meta.Hold, also func(*meta.Tx) error) error {
	return v.rehold(ctx, h.Version, change{drop: []meta.Hold{h}}, also)
}

// Reading keeps a sealed version while its caller reads it, which may take
// longer than a request: nothing it refers to is freed before release was
// called. Conflict when the version is being deleted, NotFound when it is gone.
// What the release of the last reader of a deleted version leaves to do is due
// for Visit; also, if not nil, joins its transaction.
func (v *Vault) Reading(ctx context.Context, id snapferry.VersionID, also func(*meta.Tx) error) (release func(), err error) {
	h := meta.Hold{
		Version: id, Kind: HoldReader, Owner: fmt.Sprintf("%s/%d", v.process, v.reader.Add(1)), Created: time.Now(),
	}
	if err := v.Hold(ctx, h, nil); err != nil {
		return nil, err
	}
	return func() {
		ctx := context.WithoutCancel(ctx)
		v.endReader(ctx, reader{h, also})
	}, nil
}

// A reader is a reader's hold and what is to be done in the transaction that
// releases it.
type reader struct {
	hold meta.Hold
	also func(*meta.Tx) error
}

// endReader releases a reader's hold, or leaves it to the next sweep.
func (v *Vault) endReader(ctx context.Context, r reader) {
	err := v.Release(ctx, r.hold, r.also)
	if err == nil || snapferry.IsKind(err, snapferry.NotFound) {
		return
	}
	v.log.WarnContext(ctx, "a reader's hold stays until the next sweep or start", "version", r.hold.Version, "err", err)
	v.endedMu.Lock()
	defer v.endedMu.Unlock()
	v.ended = append(v.ended, r)
}

// endReaders releases the holds of readers that could not be released when they
// ended.
func (v *Vault) endReaders(ctx context.Context) {
	v.endedMu.Lock()
	left := v.ended
	v.ended = nil
	v.endedMu.Unlock()
	for _, r := range left {
		v.endReader(ctx, r)
	}
}

// Start takes up what earlier processes left, in a region that no other process
// serves: it drops the holds of their readers, and marks the versions whose
// newest record may be of a step that was not committed. What is to be done then
// is in meta.Tx.Chores.
func (v *Vault) Start(ctx context.Context) error {
	var left []meta.Hold
	err := v.db.Update(ctx, func(tx *meta.Tx) (err error) {
		unsettled, err := tx.Unsettled()
		if err != nil {
			return err
		}
		for i := range unsettled {
			if err := tx.SetStale(unsettled[i].ID, true); err != nil {
				return err
			}
		}
		left, err = tx.HoldsOfKind(HoldReader)
		return err
	})
	if err != nil {
		return err
	}
	for _, h := range left {
		if strings.HasPrefix(h.Owner, v.process+"/") {
			continue
		}
		if err := v.Release(ctx, h, nil); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
	}
	return nil
}

// change is what a new revision of a record says of holds.
type change struct{ add, drop []meta.Hold }

func sameHold(a, b meta.Hold) bool { return a.Kind == b.Kind && a.Owner == b.Owner }

func (c change) apply(holds []meta.Hold) []meta.Hold {
	holds = slices.DeleteFunc(slices.Clone(holds), func(h meta.Hold) bool {
		return slices.ContainsFunc(c.drop, func(d meta.Hold) bool { return sameHold(h, d) })
	})
	for _, a := range c.add {
		if !slices.ContainsFunc(holds, func(h meta.Hold) bool { return sameHold(h, a) }) {
			holds = append(holds, a)
		}
	}
	return holds
}

// recorded reports whether the change is one of holds that are in the record.
func (c change) recorded() bool {
	durable := func(h meta.Hold) bool { return h.Kind != HoldReader }
	return slices.ContainsFunc(c.add, durable) || slices.ContainsFunc(c.drop, durable)
}

// reholdTries bounds how often a change of holds starts again because another
// change of the same version came between its record and its commit.
const reholdTries = 20

func (v *Vault) rehold(ctx context.Context, id snapferry.VersionID, c change, also func(*meta.Tx) error) error {
	// One after the other: they would only make each other start again.
	lock := &v.reholds[int(id[0])%len(v.reholds)]
	lock.Lock()
	defer lock.Unlock()
	var err error
	for range reholdTries {
		if err = v.reholdOnce(ctx, id, c, also); !snapferry.IsKind(err, snapferry.Conflict) {
			return err
		}
	}
	return err
}

func (v *Vault) reholdOnce(ctx context.Context, id snapferry.VersionID, c change, also func(*meta.Tx) error) error {
	var row meta.Version
	var holds []meta.Hold
	err := v.db.View(ctx, func(tx *meta.Tx) (err error) {
		if row, err = tx.Version(id); err != nil {
			return err
		}
		holds, err = tx.Holds(id)
		return err
	})
	if err != nil {
		return err
	}
	if row.State != snapferry.VersionSealed && (row.State != snapferry.VersionBroken || len(c.add) > 0) {
		return snapferry.Errorf(snapferry.Conflict, "version %s is %s", id, row.State)
	}
	edge := row.Edge
	dead := len(c.apply(holds)) == 0
	if dead {
		row.State = snapferry.VersionGhost
	}
	commit := func(tx *meta.Tx, row meta.Version) error {
		if err := tx.UpdateVersion(row, edge); err != nil {
			return err
		}
		for _, h := range c.drop {
			if err := tx.DropHold(h.Version, h.Kind, h.Owner); err != nil {
				return err
			}
		}
		for _, h := range c.add {
			if err := tx.PutHold(h); err != nil {
				return err
			}
		}
		if dead {
			if err := tx.SetDue(id, true); err != nil {
				return err
			}
		}
		if also == nil {
			return nil
		}
		return also(tx)
	}
	if !dead && !c.recorded() {
		return v.db.Update(ctx, func(tx *meta.Tx) error { return commit(tx, row) })
	}
	if len(c.add) == 0 && v.usable(ctx, row) != nil {
		return v.drop(ctx, row, commit)
	}
	return v.revise(ctx, revision{row: row, edge: edge, change: c, fence: noFence, commit: commit})
}
