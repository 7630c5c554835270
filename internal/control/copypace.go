package control

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/meta"
)

// What crosses for a copy passes buckets one after the other: that of the copy, its
// share of the link, that of the account, that of the link. Whatever reads for the
// copy, a stream of it or a volume that is made from it, passes the same ones. The
// region sets their rates once a second, from its limits and the time of day. What
// is inside one region crosses nothing and passes only the bucket of the copy.
//
// Copies with a deadline have what they need of a link that has a limit before the
// others, the earliest first: see shares.

// limits are the buckets of a region.
type limits struct {
	mu     sync.Mutex
	plans  map[string]limit.Plan // by scope; guarded by mu, like all
	scopes map[string]*limit.Bucket
	rest   map[snapferry.RegionName]*limit.Bucket // of links, for copies without a deadline
	copies map[snapferry.CopyID]copyBuckets
}

// copyBuckets are those of one copy: its own limit, and its share of the link.
type copyBuckets struct{ own, share *limit.Bucket }

func newLimits() *limits {
	return &limits{
		plans: map[string]limit.Plan{}, scopes: map[string]*limit.Bucket{},
		rest: map[snapferry.RegionName]*limit.Bucket{}, copies: map[snapferry.CopyID]copyBuckets{},
	}
}

// The scopes of limits.
const (
	scopeLink    = "link/"    // a region's name follows
	scopeAccount = "account/" // an account's id follows
)

// scope returns the bucket of a scope.
func (l *limits) scope(name string, now time.Time) *limit.Bucket {
	b := l.scopes[name]
	if b == nil {
		rate, _ := l.plans[name].At(now)
		b = limit.NewBucket(rate)
		l.scopes[name] = b
	}
	return b
}

// restOf returns the bucket that the copies without a deadline share on a link.
func (l *limits) restOf(link snapferry.RegionName) *limit.Bucket {
	if l.rest[link] == nil {
		l.rest[link] = limit.NewBucket(0)
	}
	return l.rest[link]
}

// chain returns what crosses for a copy passes, in region here.
func (l *limits) chain(here snapferry.RegionName, c *meta.Copy) limit.Chain {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.copies[c.ID]
	if !ok {
		b = copyBuckets{limit.NewBucket(c.Rate), limit.NewBucket(0)}
		if c.Deadline.IsZero() {
			b.share = l.restOf(c.Source.Region)
		}
		l.copies[c.ID] = b
	}
	if c.Source.Region == here {
		return limit.Chain{b.own}
	}
	now := time.Now()
	return limit.Chain{b.own, b.share, l.scope(scopeAccount+string(c.Account), now), l.scope(scopeLink+string(c.Source.Region), now)}
}

// setOwn changes the limit of a copy itself.
func (l *limits) setOwn(id snapferry.CopyID, rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.copies[id]; ok {
		b.own.Set(rate)
	}
}

// load takes over the limits of the metadata, and sets the rates of the time.
func (l *limits) load(rows []meta.Limit, now time.Time) error {
	plans := map[string]limit.Plan{}
	for _, row := range rows {
		var p limit.Plan
		if err := json.Unmarshal([]byte(row.Value), &p); err != nil {
			return snapferry.Errorf(snapferry.Corrupt, "the limit of %s cannot be read: %w", row.Scope, err)
		}
		plans[row.Scope] = p
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.plans = plans
	for scope, b := range l.scopes {
		rate, _ := plans[scope].At(now)
		b.Set(rate)
	}
	return nil
}

// known returns the copies that have buckets.
func (l *limits) known() []snapferry.CopyID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.copies))
}

// keep forgets the buckets of those of some copies that have ended, and sets those
// of the others.
func (l *limits) keep(some []snapferry.CopyID, active []meta.Copy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range some {
		i := slices.IndexFunc(active, func(c meta.Copy) bool { return c.ID == id })
		if i < 0 {
			delete(l.copies, id)
		} else {
			l.copies[id].own.Set(active[i].Rate)
		}
	}
}

func (l *limits) plan(scope string) limit.Plan {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.plans[scope]
}

// A need is what a copy with a deadline wants of a link.
type need struct {
	id       snapferry.CopyID
	deadline time.Time
	bytes    int64 // that are still to cross
}

// margin is what a copy gets beyond what its deadline asks for.
const margin = 1.1

// shares divides a link of a rate between copies with a deadline, and the rest,
// which all others share. The earliest deadline has all of it, the next what that
// one does not need, and so on; nobody has less than a twentieth.
func shares(rate int64, needs []need, now time.Time) (of map[snapferry.CopyID]int64, rest int64) {
	slices.SortFunc(needs, func(a, b need) int { return a.deadline.Compare(b.deadline) })
	of = map[snapferry.CopyID]int64{}
	free, least := float64(rate), float64(rate)/20
	for _, n := range needs {
		of[n.id] = int64(math.Round(max(free, least)))
		if left := n.deadline.Sub(now).Seconds(); left > 0 {
			free -= margin * float64(n.bytes) / left
		} else {
			free = 0
		}
	}
	return of, int64(math.Round(max(free, least)))
}

const (
	// paceEvery is how often the region looks at its copies.
	paceEvery = time.Second
	// restEvery is how often it looks whether there are any, when nothing tells.
	restEvery = time.Minute
)

// paceCopies sets the rates of copies until ctx ends.
func (r *Region) paceCopies(ctx context.Context) {
	for {
		changed := r.db.Changed()
		active, err := r.paceOnce(ctx)
		if err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "set the rates of copies", "err", err)
		}
		if active == 0 && err == nil {
			wait(ctx, changed, restEvery)
		}
		wait(ctx, nil, paceEvery) // also when much changes
		if ctx.Err() != nil {
			return
		}
	}
}

// wait returns after a time, or when something is closed, or ctx ends.
func wait(ctx context.Context, closed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-closed:
	case <-ctx.Done():
	}
}

// paceOnce sets the rates as they are to be now, and says for how many copies.
func (r *Region) paceOnce(ctx context.Context) (copies int, err error) {
	var rows []meta.Limit
	var active []meta.Copy
	known := r.limits.known() // before we look: one that begins meanwhile has not ended
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		if rows, err = tx.Limits(); err == nil {
			active, err = tx.ActiveCopies()
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	now := time.Now()
	if err := r.limits.load(rows, now); err != nil {
		return 0, err
	}
	r.limits.keep(known, active)
	r.reportCopies(now)
	links := map[snapferry.RegionName][]*meta.Copy{}
	for i := range active {
		if c := &active[i]; !c.Reserved && c.Source.Region != r.name {
			links[c.Source.Region] = append(links[c.Source.Region], c)
		}
	}
	for link, copies := range links {
		r.shareLink(link, copies, now)
	}
	return len(active), r.noteLate(ctx, active, now)
}

// reportCopies lets the copies that run here note their rates, and tell their
// heartbeats how far they are.
func (r *Region) reportCopies(now time.Time) {
	r.mu.Lock()
	var all []*puller
	for _, x := range r.pulling {
		all = append(all, x.pull)
	}
	r.mu.Unlock()
	for _, p := range all {
		p.rate.add(now, p.counts().Moved)
		p.report()
	}
}

// shareLink divides a link between the copies over it.
func (r *Region) shareLink(link snapferry.RegionName, copies []*meta.Copy, now time.Time) {
	var needs []need
	for _, c := range copies {
		if !c.Deadline.IsZero() && !c.Started.IsZero() {
			needs = append(needs, need{c.ID, c.Deadline, r.toMove(c)})
		}
	}
	rate, _ := r.limits.plan(scopeLink + string(link)).At(now)
	of, rest := map[snapferry.CopyID]int64{}, int64(0)
	if rate > 0 && len(needs) > 0 {
		of, rest = shares(rate, needs, now)
	}
	r.limits.mu.Lock()
	defer r.limits.mu.Unlock()
	r.limits.restOf(link).Set(rest)
	for _, n := range needs {
		if b, ok := r.limits.copies[n.id]; ok {
			b.share.Set(of[n.id])
		}
	}
}

// toMove is what is still to cross for a copy, as far as that is known.
func (r *Region) toMove(c *meta.Copy) int64 {
	if x := r.pullingOf(c.ID); x != nil {
		return x.pull.toMove()
	}
	if c.Plan != nil {
		return c.Plan.MoveBytes
	}
	return 0
}
