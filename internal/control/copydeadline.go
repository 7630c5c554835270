package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/meta"
)

// A copy with a deadline is admitted when it, and all others that have one and share
// a limit with it, can be done in time: for each deadline, what must have crossed
// until then is not more than what the limit lets pass. It is looked at in the
// transaction that reserves the copy, so that two at once do not get the same room.
// Limits that are not set are not known, and promise nothing: then the copy is
// admitted, and told to be late as soon as it will be.

// safety is the part of a limit that promises are made of.
const safety = 0.95

// canPromise reports, as Full, that the deadline of a copy which is to be reserved,
// so long from now, cannot be kept, or that it would break another promise.
func (r *Region) canPromise(tx *meta.Tx, c *meta.Copy, within time.Duration) error {
	if c.Deadline.IsZero() {
		return nil
	}
	active, err := tx.ActiveCopies()
	if err != nil {
		return err
	}
	if why := r.tooMuch(active, c, time.Now()); why != "" {
		return snapferry.Errorf(snapferry.Full, "the copy cannot be done within %v: %s", within, why).
			WithHint("ask for more time, raise the limit, or leave the deadline out")
	}
	return nil
}

// tooMuch says why the deadlines cannot be kept with one copy more; empty: they can.
func (r *Region) tooMuch(active []meta.Copy, c *meta.Copy, now time.Time) string {
	own := []need{{"", c.Deadline, c.Plan.MoveBytes}}
	if why := overbooked(limit.Plan{Rate: c.Rate}, "the limit of the copy", own, now); why != "" || c.Source.Region == r.name {
		return why
	}
	account, link := slices.Clone(own), slices.Clone(own)
	for i := range active {
		x := &active[i]
		if x.Deadline.Before(now) || x.Source.Region == r.name { // before: without a deadline, or late already
			continue
		}
		n := need{x.ID, x.Deadline, r.toMove(x)}
		if x.Account == c.Account {
			account = append(account, n)
		}
		if x.Source.Region == c.Source.Region {
			link = append(link, n)
		}
	}
	if why := overbooked(r.limits.plan(scopeAccount+string(c.Account)), "the limit of the account", account, now); why != "" {
		return why
	}
	return overbooked(r.limits.plan(scopeLink+string(c.Source.Region)), "the link to "+string(c.Source.Region), link, now)
}

// overbooked says why a limit does not let pass what is needed, by the deadline of
// the new one, which comes first and has no id, or later; empty: it does.
func overbooked(p limit.Plan, what string, needs []need, now time.Time) string {
	added := needs[0]
	slices.SortStableFunc(needs, func(a, b need) int { return a.deadline.Compare(b.deadline) })
	var sum int64
	for _, n := range needs {
		sum += n.bytes
		pass := p.Bytes(now, n.deadline)
		if n.deadline.Before(added.deadline) || float64(sum) <= safety*float64(pass) {
			continue
		}
		if n.id != "" {
			return fmt.Sprintf("copy %s, which was promised until %s, would be late", n.id, n.deadline.UTC().Format(time.RFC3339))
		}
		others := ""
		if sum > added.bytes {
			others = fmt.Sprintf(", %s for other copies with a deadline before", mega(sum-added.bytes))
		}
		return fmt.Sprintf("%s are to cross%s, and %s lets %s pass until then", mega(added.bytes), others, what, mega(pass))
	}
	return ""
}

// mega is bytes as people read them.
func mega(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// timeOf is how long so many bytes take at the limits of a request from now on; 0
// when there are none.
func (r *Region) timeOf(account snapferry.AccountID, req CopyRequest, bytes int64, now time.Time) time.Duration {
	plans := []limit.Plan{{Rate: req.Rate}}
	if req.From != r.name {
		plans = append(plans, r.limits.plan(scopeAccount+string(account)), r.limits.plan(scopeLink+string(req.From)))
	}
	var longest time.Duration
	for _, p := range plans {
		longest = max(longest, p.End(now, bytes).Sub(now))
	}
	return longest
}

// noteLate marks the copies that will miss their deadline, by what is known now,
// and takes the mark back from those that will not.
func (r *Region) noteLate(ctx context.Context, active []meta.Copy, now time.Time) error {
	for i := range active {
		c := &active[i]
		late := r.willBeLate(c, now)
		if c.Deadline.IsZero() || late == c.Late {
			continue
		}
		err := r.db.Update(ctx, func(tx *meta.Tx) error {
			row, err := tx.Copy(c.ID)
			if err != nil || row.State.Terminal() {
				return err
			}
			row.Late = late
			return tx.UpdateCopy(row)
		})
		if err != nil {
			return err
		}
		if late {
			r.log.WarnContext(ctx, "a copy will miss its deadline", "copy", c.ID, "deadline", c.Deadline, "to_move", r.toMove(c))
		}
	}
	return nil
}

func (r *Region) willBeLate(c *meta.Copy, now time.Time) bool {
	if c.Deadline.IsZero() || now.After(c.Deadline) {
		return !c.Deadline.IsZero()
	}
	left := r.toMove(c)
	req := CopyRequest{From: c.Source.Region, Rate: c.Rate}
	if now.Add(r.timeOf(c.Account, req, left, now)).After(c.Deadline) {
		return true
	}
	x := r.pullingOf(c.ID)
	if x == nil {
		return false
	}
	span := x.pull.ends(now)
	if span == nil {
		return c.Late
	}
	if c.Late {
		return span.Latest.After(c.Deadline) // until it is sure not to be
	}
	return span.Earliest.After(c.Deadline)
}
