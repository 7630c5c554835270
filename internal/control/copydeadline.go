package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
)

// A copy with a deadline is admitted when it, and all others over its link that
// have one, can be done in time: for each deadline, what must have crossed until
// then is not more than what the limits let pass. Limits that are not set are not
// known, and promise nothing: then the copy is admitted, and told to be late as
// soon as it will be.

// safety is the part of a limit that promises are made of.
const safety = 0.95

// promise returns the deadline of a request, and the plan that it was reckoned
// with; Full when it cannot be kept.
func (r *Region) promise(ctx context.Context, account snapferry.AccountID, req CopyRequest, d transfer.Description) (time.Time, *snapferry.Plan, error) {
	if req.Within == 0 {
		return time.Time{}, nil, nil
	}
	plan, err := r.planOf(ctx, account, req, d)
	if err != nil {
		return time.Time{}, nil, err
	}
	var active []meta.Copy
	if err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		active, err = tx.ActiveCopies()
		return err
	}); err != nil {
		return time.Time{}, nil, err
	}
	now := time.Now()
	c := meta.Copy{}
	c.Account, c.Source.Region, c.Deadline, c.Rate = account, req.From, now.Add(req.Within), req.Rate
	if why := r.tooMuch(active, c, plan.MoveBytes, now); why != "" {
		return c.Deadline, nil, snapferry.Errorf(snapferry.Full, "the copy cannot be done within %v: %s", req.Within, why).
			WithHint("ask for more time, raise the limit, or leave the deadline out")
	}
	return c.Deadline, &plan, nil
}

// tooMuch says why the deadlines of a link cannot be kept with one copy more, of
// which so many bytes are to cross; empty: they can.
func (r *Region) tooMuch(active []meta.Copy, c meta.Copy, bytes int64, now time.Time) string {
	for _, p := range []struct {
		limit.Plan
		what string
	}{{limit.Plan{Rate: c.Rate}, "of the copy"}, {r.limits.plan(scopeAccount + string(c.Account)), "of the account"}} {
		if pass := p.Bytes(now, c.Deadline); float64(bytes) > safety*float64(pass) {
			return fmt.Sprintf("%s are to cross, and the limit %s lets %s pass until then", mega(bytes), p.what, mega(pass))
		}
	}
	if c.Source.Region == r.name {
		return ""
	}
	link := r.limits.plan(scopeLink + string(c.Source.Region))
	needs := []need{{"", c.Deadline, bytes}}
	for i := range active {
		if x := &active[i]; x.Source.Region == c.Source.Region && !x.Deadline.IsZero() && x.Deadline.After(now) {
			needs = append(needs, need{x.ID, x.Deadline, r.toMove(x)})
		}
	}
	slices.SortFunc(needs, func(a, b need) int { return a.deadline.Compare(b.deadline) })
	var sum int64
	for _, n := range needs {
		sum += n.bytes
		pass := link.Bytes(now, n.deadline)
		if n.deadline.Before(c.Deadline) || float64(sum) <= safety*float64(pass) {
			continue
		}
		if n.id != "" {
			return fmt.Sprintf("copy %s, which was promised until %s, would be late", n.id, n.deadline.UTC().Format(time.RFC3339))
		}
		if others := sum - bytes; others > 0 {
			return fmt.Sprintf("%s are to cross, %s for other copies with a deadline before, and the link to %s lets %s pass until then",
				mega(bytes), mega(others), c.Source.Region, mega(pass))
		}
		return fmt.Sprintf("%s are to cross, and the link to %s lets %s pass until then", mega(bytes), c.Source.Region, mega(pass))
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
	r.mu.Lock()
	x := r.progress[c.Snapshot]
	r.mu.Unlock()
	if x == nil || x.pull == nil {
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
