package control

import (
	"context"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// What is read here for other regions is counted in memory, by pin, and added to the
// usage records once a minute, when the pin ends, and when the region stops: a crash
// loses what came since. Who plans without a pin is counted by the snapshot.

// A tallyKey tells what a tally is of.
type tallyKey struct {
	pin      string // empty: somebody only planned
	snapshot snapferry.SnapshotID
}

// A tally is what was sent of a snapshot and is not in the usage records yet.
type tally struct {
	account  snapferry.AccountID
	copy     snapferry.CopyID // of the other region
	bytes    int64            // of payloads, as they are stored here
	requests int64            // that were answered
}

// sentEvery is how often tallies are added to the usage records.
const sentEvery = time.Minute

// sent counts what was sent of a source.
func (s *versionSource) sent(bytes, requests int64) {
	r := s.region
	r.mu.Lock()
	defer r.mu.Unlock()
	key := tallyKey{s.pin, s.snapshot}
	t := r.tallies[key]
	if t == nil {
		t = &tally{account: s.account, copy: s.copy}
		r.tallies[key] = t
	}
	t.bytes += bytes
	t.requests += requests
}

// meterSent adds the tallies to the usage records: all, or that of a pin, whose copy
// ended as outcome says.
func (r *Region) meterSent(ctx context.Context, pin string, outcome snapferry.Ending) error {
	r.mu.Lock()
	taken := map[tallyKey]*tally{}
	for key, t := range r.tallies {
		if pin == "" || key.pin == pin {
			taken[key] = t
			delete(r.tallies, key)
		}
	}
	r.mu.Unlock()
	if len(taken) == 0 {
		return nil
	}
	now := time.Now()
	err := r.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
		for key, t := range taken {
			u := meta.Usage{Account: t.account, Kind: meterSent, Subject: string(key.snapshot), Bytes: t.bytes, Count: t.requests, At: now, Copy: t.copy, Outcome: outcome}
			if err := tx.AddUsage(u); err != nil {
				return err
			}
			if key.pin == "" {
				continue
			}
			if err := tx.SeePin(key.pin, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.putBack(taken)
	}
	return err
}

// putBack keeps tallies that could not be added for the next time.
func (r *Region) putBack(taken map[tallyKey]*tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, t := range taken {
		if now := r.tallies[key]; now != nil {
			t.bytes += now.bytes
			t.requests += now.requests
		}
		r.tallies[key] = t
	}
}

// meterAll adds tallies every minute until ctx ends, and then once more; and what
// was stored on the day before, after midnight.
func (r *Region) meterAll(ctx context.Context) {
	tick := time.NewTicker(sentEvery)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = true
		}
		if err := r.meterSent(ctx, "", ""); err != nil {
			r.log.WarnContext(ctx, "add what was sent to the usage records", "err", err)
		}
		if ended {
			return
		}
		if err := r.MeterDays(ctx, time.Now()); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "add what was stored to the usage records", "err", err)
		}
	}
}
