package simtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/control"
)

// readPatience is how long a client waits for a volume, which goes on trying while
// it cannot reach what it reads.
const readPatience = 300 * time.Millisecond

var errImpatient = errors.New("nobody has waited for the answer")

// A client does one thing after the other.
type client struct {
	*history
	number int
	rnd    *rand.Rand
}

// acts are what a client may do, and how often it does.
var acts = []struct {
	weight int
	do     func(*client)
}{
	{7, (*client).importDisk},
	{26, (*client).copySome},
	{12, (*client).deleteSome},
	{12, (*client).showSome},
	{10, (*client).list},
	{8, (*client).showCopy},
	{4, (*client).listCopies},
	{4, (*client).exportSome},
	{8, (*client).restore},
	{6, (*client).readVolume},
	{4, (*client).deleteVolume},
	{3, (*client).listVolumes},
}

// act does a random thing.
func (c *client) act() {
	total := 0
	for _, a := range acts {
		total += a.weight
	}
	n := c.rnd.IntN(total)
	for _, a := range acts {
		if n -= a.weight; n < 0 {
			a.do(c)
			return
		}
	}
}

// do does an operation in a region. In a faulty history the client may give up
// waiting for it when the next one begins. kinds are the errors it may have beside
// those that say that it may have happened.
func (c *client) do(at int, q *call, fn func(ctx context.Context, r *control.Region, account snapferry.AccountID) error, kinds ...snapferry.Kind) (a answer) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hasty := c.faulty && c.rnd.IntN(12) == 0
	c.mu.Lock()
	for _, end := range c.hasty {
		end()
	}
	c.hasty = nil
	if hasty {
		c.hasty = append(c.hasty, cancel)
	}
	c.mu.Unlock()
	s := c.shores[at]
	s.gate.RLock()
	defer s.gate.RUnlock()
	q.began = c.now()
	err := fn(ctx, s.live.Load(), s.account)
	a.ended = c.now()
	if err == nil {
		return a
	}
	a.text = err.Error()
	switch k := snapferry.KindOf(err); {
	case ctx.Err() != nil, errors.Is(err, errImpatient):
		a.kind = lost
	case k == snapferry.NotFound && slices.Contains(kinds, k):
		a.kind = notFound
	case k == snapferry.Conflict && slices.Contains(kinds, k):
		a.kind = conflict
	case c.faulty && k == snapferry.Unavailable:
		a.kind = lost
	case q.verb == opRead: // the specification says whether it may fail
		a.kind = conflict
	default:
		a.kind = lost
		c.tb.Errorf("seed %d: %s in %s: %v (%v)", c.seed, q.verb, linearNames[at], err, k)
	}
	return a
}

// anyThing draws a thing whose id is known, mostly one that nobody has asked to
// delete; -1 for none.
func (c *client) anyThing() (i int, id snapferry.SnapshotID) {
	alive, n := c.rnd.IntN(8) > 0, c.rnd.IntN(1<<30)
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []int
	for _, i := range c.known {
		if !alive || !c.dropped[i] {
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		return -1, ""
	}
	i = all[n%len(all)]
	return i, c.idOf[i]
}

// linger lets a thing that is being made go on, mostly to its end.
func (c *client) linger(i int) {
	c.mu.Lock()
	id, ok := c.idOf[i]
	at := c.spec.plans[i].at
	c.mu.Unlock()
	if !ok || c.rnd.IntN(4) == 0 {
		return
	}
	s := c.shores[at]
	s.gate.RLock()
	defer s.gate.RUnlock()
	// Whatever comes of it is not part of the history.
	_, _ = s.live.Load().Wait(context.Background(), s.account, id, -1, time.Duration(c.rnd.IntN(50))*time.Millisecond)
}

// plan adds a thing, unless there are enough.
func (c *client) plan(p plan, sum digest.Digest) (i int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i = len(c.spec.plans)
	if i == linearThings {
		return 0, false
	}
	p.name = fmt.Sprintf("%c%d", "ew"[p.at], i)
	c.spec.plans, c.sums = append(c.spec.plans, p), append(c.sums, sum)
	return i, true
}

// planOf is the plan of a thing.
func (c *client) planOf(i int) (plan, digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spec.plans[i], c.sums[i]
}

// sight is what is shown of a thing; -1 is one that nobody asked for.
func (c *client) sight(i int, x snapferry.Snapshot) sight {
	s := sight{id: x.ID, state: x.State}
	if i >= 0 {
		_, sum := c.planOf(i)
		s.wrong = x.State == snapferry.SnapshotReady && x.Digest != sum
		c.learn(i, x)
	}
	return s
}

// answer completes an answer with what is shown of a thing.
func (c *client) answer(a *answer, i int, x snapferry.Snapshot) {
	if a.kind == answered {
		s := c.sight(i, x)
		a.id, a.state, a.wrong = s.id, s.state, s.wrong
	}
}

func (c *client) importDisk() {
	d := NewDisk(linearSize)
	for range 1 + c.rnd.IntN(5) {
		d.Fill(uint64(c.rnd.IntN(16)), 1+c.rnd.IntN(1000))
	}
	at := c.rnd.IntN(2)
	i, ok := c.plan(plan{at: at, source: -1, token: -1}, d.Digest())
	if !ok {
		return
	}
	p, _ := c.planOf(i)
	delay := time.Duration(c.rnd.IntN(2)) * time.Millisecond
	q := call{verb: opImport, thing: i}
	var x snapferry.Snapshot
	lineage := fmt.Sprint("disk", c.rnd.IntN(2))
	a := c.do(at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) (err error) {
		x, err = r.Import(ctx, account, control.ImportRequest{Volume: lineage, Labels: control.Labels{Name: p.name}, Disk: slowDisk{d, delay}, Close: func() {}})
		return err
	})
	c.answer(&a, i, x)
	c.recordMade(a, q, q)
	c.linger(i)
}

// recordMade records an operation that makes a thing and then shows it.
func (c *client) recordMade(a answer, q call, before ...call) {
	var parts []part
	for _, b := range before[:len(before)-1] {
		b.began = q.began
		parts = append(parts, b.none())
	}
	parts = append(parts, part{q, onlyID})
	if a.kind == answered {
		show := q
		show.verb = opShow
		parts = append(parts, show.all())
	}
	c.record(c.number, a, nil, parts...)
}

// copySome copies a thing, or asks again for a copy under its token, or for
// another one under that token.
func (c *client) copySome() {
	i, again := c.copyAgain()
	if !again {
		source, _ := c.anyThing()
		if source < 0 {
			c.importDisk()
			return
		}
		at := 1 - c.spec0(source).at
		if c.rnd.IntN(8) == 0 {
			at = 1 - at
		}
		var ok bool
		if i, ok = c.planCopy(source, at, c.token(at)); !ok {
			return
		}
	}
	p, _ := c.planOf(i)
	c.mu.Lock()
	source, sourceID := c.spec.plans[p.source], c.idOf[p.source]
	c.mu.Unlock()
	q := call{verb: opCopy, thing: i}
	var x snapferry.Snapshot
	req := control.CopyRequest{From: linearNames[source.at], Source: sourceID, Labels: control.Labels{Name: p.name}}
	if p.token >= 0 {
		req.Token = fmt.Sprint("token", p.token)
	}
	a := c.do(p.at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) (err error) {
		x, err = r.Copy(ctx, account, req)
		return err
	}, snapferry.NotFound, snapferry.Conflict)
	c.answer(&a, i, x)
	if p.token < 0 && (a.kind == notFound || a.kind == conflict) {
		c.record(c.number, a, nil, q.all())
		return
	}
	c.recordMade(a, q, call{verb: opPin, thing: i}, q)
	c.linger(i)
}

func (c *client) spec0(i int) plan {
	p, _ := c.planOf(i)
	return p
}

func (c *client) planCopy(source, at, token int) (int, bool) {
	_, sum := c.planOf(source)
	return c.plan(plan{at: at, source: source, token: token}, sum)
}

// token draws a token for a new copy into a region: none, a new one, or one that
// another request has.
func (c *client) token(at int) int {
	kind, n := c.rnd.IntN(10), c.rnd.IntN(1<<30)
	c.mu.Lock()
	defer c.mu.Unlock()
	var used []int
	for _, p := range c.spec.plans {
		if p.token >= 0 && p.at == at {
			used = append(used, p.token)
		}
	}
	switch {
	case kind < 4:
		return -1
	case kind < 6 && len(used) > 0:
		return used[n%len(used)]
	}
	c.spec.tokens++
	return c.spec.tokens - 1
}

// copyAgain draws a copy that was asked for under a token, mostly the last.
func (c *client) copyAgain() (int, bool) {
	again, n := c.rnd.IntN(3) == 0, c.rnd.IntN(4)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.spec.plans) - 1; again && i >= 0; i-- {
		if c.spec.plans[i].token >= 0 {
			if n--; n < 0 || n < 2 {
				return i, true
			}
		}
	}
	return 0, false
}

func (c *client) deleteSome() {
	i, id := c.anyThing()
	if i < 0 {
		return
	}
	c.mu.Lock()
	c.dropped[i] = true
	c.mu.Unlock()
	q := call{verb: opDelete, thing: i, force: c.rnd.IntN(4) == 0}
	a := c.do(c.spec0(i).at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) error {
		if q.force {
			return r.Abandon(ctx, account, id)
		}
		return r.Delete(ctx, account, id)
	}, snapferry.NotFound, snapferry.Conflict)
	if q.force {
		first := q
		first.verb = opBreak
		c.record(c.number, a, nil, first.none(), q.all())
		return
	}
	c.record(c.number, a, nil, q.all())
}

func (c *client) showSome() {
	if i, id := c.anyThing(); i >= 0 {
		c.show(i, id)
	}
}

func (c *client) show(i int, id snapferry.SnapshotID) {
	q := call{verb: opShow, thing: i}
	var x snapferry.Snapshot
	a := c.do(c.spec0(i).at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) (err error) {
		x, err = r.Snapshot(ctx, account, id)
		return err
	}, snapferry.NotFound)
	c.answer(&a, i, x)
	c.record(c.number, a, nil, q.all())
}

func (c *client) list() { c.listIn(c.rnd.IntN(2)) }

func (c *client) listIn(at int) {
	q := call{verb: opList, at: at}
	var all []snapferry.Snapshot
	a := c.do(at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) (err error) {
		all, err = r.Snapshots(ctx, account, control.Filter{})
		return err
	})
	lines := []listed{}
	for _, x := range all {
		lines = append(lines, listed{name: x.Name, s: c.sight(c.thingOf(x.Name), x)})
	}
	c.record(c.number, a, lines, q.all())
}

func (c *client) showCopy() {
	i, _ := c.anyThing()
	if i < 0 || c.spec0(i).source < 0 {
		return
	}
	c.mu.Lock()
	id := c.copyOf[i]
	c.mu.Unlock()
	q := call{verb: opShowCopy, thing: i}
	var x snapferry.Copy
	a := c.do(c.spec0(i).at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) (err error) {
		x, err = r.CopyOf(ctx, account, id)
		return err
	})
	if a.kind == answered {
		a.copy = x.State
	}
	c.record(c.number, a, nil, q.all())
}

func (c *client) listCopies() { c.listCopiesIn(c.rnd.IntN(2)) }

func (c *client) listCopiesIn(at int) {
	q := call{verb: opListCopies, at: at}
	var all []snapferry.Copy
	a := c.do(at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) (err error) {
		all, err = r.Copies(ctx, account, control.CopyFilter{})
		return err
	})
	lines := []listed{}
	for _, x := range all {
		lines = append(lines, listed{id: x.Snapshot, s: sight{id: x.Snapshot, copy: x.State}})
	}
	c.record(c.number, a, lines, q.all())
}

func (c *client) exportSome() {
	if i, id := c.anyThing(); i >= 0 {
		c.export(i, id)
	}
}

func (c *client) export(i int, id snapferry.SnapshotID) {
	p, sum := c.planOf(i)
	q, d := call{verb: opExport, thing: i}, NewDisk(linearSize)
	a := c.do(p.at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) error {
		return r.Export(ctx, account, id, d, nil)
	}, snapferry.NotFound, snapferry.Conflict)
	a.wrong = a.kind == answered && d.Digest() != sum
	c.record(c.number, a, nil, q.all())
}

// restore makes a volume from a thing.
func (c *client) restore() {
	i, id := c.anyThing()
	if i < 0 {
		return
	}
	c.mu.Lock()
	v := len(c.spec.vols)
	c.spec.vols = append(c.spec.vols, i)
	c.mu.Unlock()
	q := call{verb: opRestore, thing: i, vol: v}
	a := c.do(c.spec0(i).at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) error {
		made, err := r.CreateVolumes(ctx, account, control.VolumeRequest{Name: fmt.Sprint("v", v), Snapshot: id})
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.volOf[v] = made[0].ID
		}
		return err
	}, snapferry.NotFound, snapferry.Conflict)
	c.record(c.number, a, nil, q.all())
}

// anyVolume draws a volume; -1 for none.
func (c *client) anyVolume() (v, thing int, id snapferry.VolumeID) {
	n := c.rnd.IntN(1 << 30)
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []int
	for v := range c.spec.vols {
		if c.volOf[v] != "" {
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return -1, 0, ""
	}
	v = all[n%len(all)]
	return v, c.spec.vols[v], c.volOf[v]
}

func (c *client) readVolume() {
	if v, i, id := c.anyVolume(); v >= 0 {
		c.read(v, i, id)
	} else {
		c.restore()
	}
}

func (c *client) read(v, i int, id snapferry.VolumeID) {
	p, sum := c.planOf(i)
	q, d, b := call{verb: opRead, thing: i, vol: v}, NewDisk(linearSize), make([]byte, linearSize)
	a := c.do(p.at, &q, func(ctx context.Context, r *control.Region, _ snapferry.AccountID) error {
		x, err := r.Live(ctx, id)
		if err != nil {
			return err
		}
		read := make(chan error, 1)
		c.reading.Go(func() {
			_, err := x.ReadAt(b, 0)
			read <- err
		})
		select {
		case err := <-read:
			return err
		case <-time.After(readPatience):
			return errImpatient
		}
	}, snapferry.NotFound, snapferry.Conflict)
	if a.kind == answered {
		d.put(b, 0)
		a.wrong = d.Digest() != sum
	}
	c.record(c.number, a, nil, q.all())
}

func (c *client) deleteVolume() {
	v, i, id := c.anyVolume()
	if v < 0 {
		return
	}
	q := call{verb: opUnmake, thing: i, vol: v}
	a := c.do(c.spec0(i).at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) error {
		return r.DeleteVolume(ctx, account, id)
	}, snapferry.NotFound)
	c.record(c.number, a, nil, q.all())
}

func (c *client) listVolumes() { c.listVolumesIn(c.rnd.IntN(2)) }

func (c *client) listVolumesIn(at int) {
	q := call{verb: opListVolumes, at: at}
	var all []snapferry.Volume
	a := c.do(at, &q, func(ctx context.Context, r *control.Region, account snapferry.AccountID) (err error) {
		all, err = r.Volumes(ctx, account, "")
		return err
	})
	lines := []listed{}
	for _, x := range all {
		lines = append(lines, listed{name: x.Name})
	}
	c.record(c.number, a, lines, q.all())
}

// lookAtAll waits a while for what is being made, and then looks at everything.
func (c *client) lookAtAll() {
	ctx, cancel := context.WithTimeout(context.Background(), linearPatience)
	defer cancel()
	for at := range linearNames {
		c.listIn(at)
	}
	for _, i := range c.known {
		s := c.shores[c.spec.plans[i].at]
		if _, err := s.Control.Wait(ctx, s.account, c.idOf[i], -1, linearPatience); err != nil && ctx.Err() == nil && !snapferry.IsKind(err, snapferry.NotFound) {
			c.tb.Errorf("seed %d: wait for %s: %v", c.seed, c.spec.plans[i].name, err)
		}
	}
	for at := range linearNames {
		c.listIn(at)
		c.listCopiesIn(at)
		c.listVolumesIn(at)
	}
	for _, i := range c.known {
		c.export(i, c.idOf[i])
	}
	for v, i := range c.spec.vols {
		if id := c.volOf[v]; id != "" {
			c.read(v, i, id)
		}
	}
}
