package control

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
)

// A copy that is admitted waits for its turn. It has come when the account has
// fewer copies under way here than its quota, the region fewer than it makes at a
// time, and no other copy of the same lineage is under way. Those with a deadline
// come first, the earliest before the others; then the account with the fewest
// under way, and of one account the oldest. A copy whose turn has come has a job.
// Turns are given in the transaction that admits or ends a copy: whoever looks at
// the metadata sees whose turn it is.

// CopyConfig says how many copies a region makes.
type CopyConfig struct {
	AtOnce int              // of all accounts at a time; 0: 32
	Quotas map[string]Quota // of accounts, by their names; others have the zero Quota
	// Patience is how long a copy waits for its source, for room, or for a key that may
	// not be used, before it is given up; 0: three days.
	Patience time.Duration
	// Memory is the bytes that all copies, into the region and out of it, may have in
	// memory together; 0: transfer.DefaultMemory.
	Memory int64
}

// Quota is how many copies into this region an account may have.
type Quota struct {
	Copies int  // under way at a time; 0: 20
	Queued int  // that wait for their turn; 0: 1000
	Strict bool // those over Copies are refused instead of queued
}

const (
	defaultAtOnce   = 32
	defaultCopies   = 20
	defaultQueued   = 1000
	defaultPatience = 72 * time.Hour
)

func (c CopyConfig) withDefaults() CopyConfig {
	c.AtOnce, c.Patience = cmp.Or(c.AtOnce, defaultAtOnce), cmp.Or(c.Patience, defaultPatience)
	return c
}

// turns is the copies of a region that have not ended.
type turns struct {
	region   *Region
	waiting  []meta.Copy // in the order in which those of one account come
	running  map[snapferry.AccountID]int
	lineages map[snapferry.VolumeID]snapferry.CopyID // that have a copy under way
	total    int                                     // under way
	quotas   map[snapferry.AccountID]Quota
}

func (r *Region) turns(tx *meta.Tx) (*turns, error) {
	t := &turns{region: r, running: map[snapferry.AccountID]int{}, lineages: map[snapferry.VolumeID]snapferry.CopyID{}, quotas: map[snapferry.AccountID]Quota{}}
	active, err := tx.ActiveCopies()
	if err != nil {
		return nil, err
	}
	for _, c := range active {
		switch {
		case c.Reserved:
		case c.Started.IsZero():
			t.waiting = append(t.waiting, c)
		default:
			t.begun(c)
		}
	}
	slices.SortStableFunc(t.waiting, func(a, b meta.Copy) int {
		switch {
		case a.Deadline.Equal(b.Deadline):
			return 0
		case a.Deadline.IsZero():
			return 1
		case b.Deadline.IsZero():
			return -1
		}
		return a.Deadline.Compare(b.Deadline)
	})
	accounts, err := tx.Accounts()
	for _, a := range accounts {
		q := r.copies.Quotas[a.Name]
		q.Copies, q.Queued = cmp.Or(q.Copies, defaultCopies), cmp.Or(q.Queued, defaultQueued)
		t.quotas[a.ID] = q
	}
	return t, err
}

func (t *turns) begun(c meta.Copy) {
	t.running[c.Account]++
	for _, m := range c.Members {
		t.lineages[m.VolumeID] = c.ID
	}
	t.total++
}

// holdup says why the turn of a copy has not come; empty when it has.
func (t *turns) holdup(c *meta.Copy) string {
	for _, m := range c.Members {
		if first, busy := t.lineages[m.VolumeID]; busy {
			return fmt.Sprintf("copy %s of the same volume is under way", first)
		}
	}
	if n := t.running[c.Account]; n >= t.quotas[c.Account].Copies {
		return fmt.Sprintf("the account has %d copies under way, as many as it may", n)
	}
	if t.total >= t.region.copies.AtOnce {
		return fmt.Sprintf("the region has %d copies under way, as many as it makes at a time", t.total)
	}
	return ""
}

// next returns which of those that wait has its turn, -1 when none has.
func (t *turns) next() int {
	best := -1
	for i := range t.waiting {
		c := &t.waiting[i]
		switch {
		case t.holdup(c) != "":
		case !c.Deadline.IsZero():
			return i // they come first in the list
		case best < 0 || t.running[c.Account] < t.running[t.waiting[best].Account]:
			best = i
		}
	}
	return best
}

// dispatch gives the copies whose turn has come their jobs.
func (r *Region) dispatch(tx *meta.Tx) error {
	t, err := r.turns(tx)
	if err != nil {
		return err
	}
	for i := t.next(); i >= 0; i = t.next() {
		c := t.waiting[i]
		t.waiting = slices.Delete(t.waiting, i, i+1)
		c.Started = time.Now()
		if err := tx.UpdateCopy(c); err != nil {
			return err
		}
		j := job.Job{Kind: jobCopy, Account: c.Account, Subject: string(c.Snapshot), Payload: string(c.ID), Lane: job.Copies}
		if err := job.Enqueue(tx, j); err != nil {
			return err
		}
		t.begun(c)
	}
	return nil
}

// place returns where a copy waits; nil when it does not.
func (t *turns) place(id snapferry.CopyID) *snapferry.Queue {
	i := slices.IndexFunc(t.waiting, func(c meta.Copy) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	c := &t.waiting[i]
	q := &snapferry.Queue{Position: 1, Reason: t.holdup(c)}
	for j := range t.waiting[:i] {
		if t.waiting[j].Account == c.Account {
			q.Position++
		}
	}
	if q.Reason == "" {
		q.Reason = "copies of other accounts come first"
		if q.Position > 1 {
			q.Reason = "older copies of the account come first"
		}
	}
	return q
}

// room reports, as Full, that an account may have no further copy.
func (t *turns) room(account snapferry.AccountID) error {
	q, mine := t.quotas[account], 0
	for i := range t.waiting {
		if t.waiting[i].Account == account {
			mine++
		}
	}
	n := t.running[account]
	switch {
	case q.Strict && n+mine >= q.Copies:
		return snapferry.Errorf(snapferry.Full, "the account has %d copies into region %s, the limit is %d", n+mine, t.region.name, q.Copies).
			WithHint("wait for one of them; the account is set to be refused instead of queued")
	case mine >= q.Queued:
		return snapferry.Errorf(snapferry.Full, "%d copies of the account wait for their turn in region %s, the limit is %d", mine, t.region.name, q.Queued).
			WithHint("wait for some of them, or delete the snapshots that are not needed any more")
	}
	return nil
}

// hasRoom is room as it is now.
func (r *Region) hasRoom(tx *meta.Tx, account snapferry.AccountID) error {
	t, err := r.turns(tx)
	if err != nil {
		return err
	}
	return t.room(account)
}
