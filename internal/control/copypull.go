package control

import (
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// copyProgress is what the heartbeat of a copy's job remembers.
type copyProgress struct {
	Parts []partProgress `json:"parts"`         // of each snapshot that it makes
	Last  time.Time      `json:"last,omitzero"` // when something came
	Idle  time.Duration  `json:"idle"`          // how long runs and waits were without an advance
}

// partProgress is that of one snapshot: all that ever arrived, also what a crash then
// lost.
type partProgress struct {
	Done     int64 `json:"done"`     // plain bytes settled durably, the most ever shown
	Moved    int64 `json:"moved"`    // bytes received
	Received int64 `json:"received"` // plain bytes received
	Reused   int64 `json:"reused"`   // plain bytes that were here
	ToMove   int64 `json:"to_move"`  // bytes that are still to come
}

// readProgress is what a job remembers of a copy.
func readProgress(j job.Job) (p copyProgress) {
	if j.Progress != "" {
		// What cannot be read counts as nothing: only figures are lost.
		_ = json.Unmarshal([]byte(j.Progress), &p)
	}
	return p
}

// part is that of one of the snapshots.
func (p *copyProgress) part(i int) (x partProgress) {
	if i < len(p.Parts) {
		x = p.Parts[i]
	}
	return x
}

// moved is the bytes that crossed for each snapshot.
func (p *copyProgress) moved() (all []int64) {
	for _, m := range p.Parts {
		all = append(all, m.Moved)
	}
	return all
}

// A puller counts what a copy does, over all its runs.
type puller struct {
	run   *job.Run
	copy  meta.Copy
	parts []*part
	pulse *pulse
	rate  estimator // of the bytes that cross

	telling sync.Mutex // held by report
	pinning sync.Mutex // held by who looks at the pins, until the context has ended for what was found

	mu   sync.Mutex
	seen copyProgress // of earlier runs, as the last heartbeat saw them; its Idle is guarded by mu
}

// A part is one of the snapshots that a copy makes.
type part struct {
	puller *puller
	member meta.CopyMember
	row    meta.Snapshot
	d      transfer.Description
	cfg    transfer.Config
	stats  transfer.Stats
	seen   partProgress
	early  *early  // what volumes read ahead of the copy
	lend   *donors // what the region has elsewhere; nil: not looked for

	mu       sync.Mutex
	total    int64 // plain bytes to settle; guarded by mu, like all that follows
	w        *vault.Writer
	prior    snapferry.Counts // of earlier runs, as far as it was durable
	before   int64            // plain bytes that arrived in earlier runs
	shown    int64            // plain bytes, the most ever shown
	planned  bool             // expected is known
	expected int64            // bytes that are to cross, with those of earlier runs
}

func newPuller(run *job.Run, c meta.Copy) *puller {
	p := &puller{run: run, copy: c, seen: readProgress(run.Job), pulse: newPulse()}
	for i, member := range c.Members {
		m := &part{puller: p, member: member, seen: p.seen.part(i)}
		m.prior.Moved, m.before = m.seen.Moved, m.seen.Received
		p.parts = append(p.parts, m)
	}
	return p
}

// resume shows what earlier runs have shown.
func (p *puller) resume(tx *meta.Tx) (err error) {
	for _, m := range p.parts {
		if m.row, err = tx.Snapshot(m.member.Snapshot); err != nil {
			return err
		}
		m.total = m.row.Counts.Present // as the source said when the copy was admitted
		if m.seen.Done, err = settledOf(tx, m.row, m.seen); err != nil {
			return err
		}
		m.shown = m.seen.Done
	}
	return nil
}

// settledOf is the plain bytes of a snapshot that are settled durably, as far as the
// metadata knows.
func settledOf(tx *meta.Tx, s meta.Snapshot, seen partProgress) (int64, error) {
	c, err := tx.Checkpoint(s.Version)
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return 0, err
	}
	return max(seen.Done, clip(c.Counts.Changed+c.Counts.Reused, s.Counts.Present)), nil
}

// running is what the copy shows of itself.
func (p *puller) running() *running {
	total := int64(0)
	for _, m := range p.parts {
		total += m.total
	}
	return &running{started: p.pulse.base, total: total, done: p.done, pull: p}
}

// running is what one of its snapshots shows of itself.
func (m *part) running(started time.Time) *running {
	return &running{started: started, total: m.total, done: m.done, counts: m.counts, pull: m.puller, part: m}
}

// begin takes over what the writer's checkpoint remembers. What arrived after
// that checkpoint was lost and has to come again.
func (m *part) begin(w *vault.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.w, m.prior, m.total = w, w.Prior(), m.d.Present
	came := m.prior.Changed - m.prior.Lent
	m.before = max(m.seen.Received, came+m.prior.Repeated)
	m.prior.Repeated = m.before - came
	m.prior.Moved = max(m.prior.Moved, m.seen.Moved)
	m.shown = max(m.shown, m.clip(m.prior.Changed+m.prior.Reused)) // as durable does
}

// expect notes how many bytes are to cross in this run.
func (m *part) expect(bytes int64) {
	moved := m.counts().Moved
	m.mu.Lock()
	defer m.mu.Unlock()
	m.planned, m.expected = true, moved+bytes
}

// toMove is how many bytes are still to cross, as far as that is known.
func (m *part) toMove() int64 {
	moved := m.counts().Moved
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.planned {
		return max(m.expected-moved, 0)
	}
	return m.seen.ToMove
}

// toMove is how many bytes are still to cross.
func (p *puller) toMove() int64 {
	known, left := false, int64(0)
	for _, m := range p.parts {
		n := m.toMove()
		m.mu.Lock()
		known = known || m.planned || n > 0
		m.mu.Unlock()
		left += n
	}
	if !known && p.copy.Plan != nil {
		return p.copy.Plan.MoveBytes // as it was when the copy was promised
	}
	return left
}

// came reports whether something has come in this run.
func (p *puller) came() bool { return p.pulse.last.Load() > 0 }

// advanced reports whether the run has made more durable than all before it.
func (p *puller) advanced() bool {
	return slices.ContainsFunc(p.parts, func(m *part) bool { return m.done() > m.seen.Done })
}

// ends returns when the copy will end, if it goes on as it does.
func (p *puller) ends(now time.Time) *snapferry.Span {
	p.rate.add(now, p.counts().Moved)
	return p.rate.ends(now, p.toMove())
}

// show adds what is known of a copy, or of one of its snapshots, to its progress.
func (p *puller) show(x *snapferry.Progress, m *part) {
	now := time.Now()
	counts, left := p.counts(), p.toMove()
	x.Ends, x.MoveRate = p.ends(now), p.rate.recent(now)
	if m != nil && len(p.parts) > 1 {
		counts, left = m.counts(), m.toMove()
	}
	x.Reused, x.Moved, x.ToMove = counts.Reused+counts.Lent, counts.Moved, left
	if x.Stalled = p.pulse.stalled(p.copy.Source.Region, now); x.Stalled != nil {
		x.Ends, x.Rate, x.MoveRate = nil, 0, 0
	}
}

// patience makes an error final that passes, when there was no advance for too
// long, and one of a full bucket, or of a key that may not be used, one that passes.
func (p *puller) patience(err error, limit time.Duration) error {
	shut := snapferry.IsKind(err, snapferry.KeyUnusable) // it may be enabled again
	if !passes(err) && !shut {
		return err
	}
	idle := p.seen.Idle + time.Since(p.pulse.base) + p.run.Wait()
	if p.advanced() {
		idle = 0
		p.run.Advanced()
	}
	p.mu.Lock()
	p.seen.Idle = idle
	p.mu.Unlock()
	p.report()
	full := snapferry.IsKind(err, snapferry.Full)
	switch {
	case idle > limit && full:
		return &endedError{snapferry.Errorf(snapferry.Full, "there was no room for %v: %w", limit, err), snapferry.EndedFull}
	case idle > limit && shut:
		return &endedError{snapferry.Errorf(snapferry.KeyUnusable, "a key that is needed could not be used for %v: %w", limit, err), snapferry.EndedFailed}
	case shut:
		return snapferry.Errorf(snapferry.Unavailable, "%w", err)
	case idle > limit:
		return &endedError{snapferry.Errorf(snapferry.NotFound, "nothing has come from region %s for %v: %w", p.copy.Source.Region, limit, err), snapferry.EndedSourceLost}
	case full:
		return snapferry.Errorf(snapferry.Unavailable, "there is no room: %w", err)
	}
	return err
}

// passes reports whether an error of a copy may pass.
func passes(err error) bool {
	return snapferry.IsKind(err, snapferry.Unavailable) || snapferry.IsKind(err, snapferry.Full)
}

// clip keeps what is shown below the total: that is reached by the commit.
func (m *part) clip(done int64) int64 { return clip(done, m.total) }

func clip(done, total int64) int64 { return min(done, max(total-snapferry.BlockSize, 0)) }

// durable notes what a checkpoint remembers: nothing else is shown, so that whoever
// goes on from there shows no less.
func (m *part) durable(c snapferry.Counts) {
	m.mu.Lock()
	m.shown = max(m.shown, m.clip(c.Changed+c.Reused))
	m.mu.Unlock()
	m.puller.report()
}

// report gives the heartbeat what it is to remember.
func (p *puller) report() {
	p.telling.Lock() // else an older one could come last
	defer p.telling.Unlock()
	x := copyProgress{Parts: make([]partProgress, len(p.parts))}
	for i, m := range p.parts {
		counts := m.counts()
		x.Parts[i] = partProgress{Done: m.done(), Received: m.received(), ToMove: m.toMove(), Moved: counts.Moved, Reused: counts.Reused + counts.Lent}
	}
	p.mu.Lock()
	x.Idle, x.Last = p.seen.Idle, p.seen.Last
	p.mu.Unlock()
	if p.came() {
		x.Last = p.pulse.base.Add(time.Duration(p.pulse.last.Load()))
	}
	p.run.Progress(x)
}

// received is all plain bytes that ever arrived, as far as that is known.
func (m *part) received() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.takeEarly()
	return m.before + m.stats.Blocks.Load()*snapferry.BlockSize
}

// takeEarly counts what volumes read ahead of the copy as the copy's.
func (m *part) takeEarly() {
	if m.early != nil {
		m.stats.Moved.Add(m.early.moved.Swap(0))
		m.stats.Blocks.Add(m.early.blocks.Swap(0))
	}
}

// shut ends what volumes read of the copy, until its versions are gone: what came then
// would be in no usage record.
func (p *puller) shut() {
	for _, m := range p.parts {
		if m.early != nil {
			m.early.shut()
		}
	}
}

// done is what has been settled durably; it never goes back.
func (m *part) done() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shown
}

func (p *puller) done() (sum int64) {
	for _, m := range p.parts {
		sum += m.done()
	}
	return sum
}

// counts sums up all runs so far.
func (m *part) counts() snapferry.Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.prior
	c.Present = m.total
	m.takeEarly()
	c.Moved += m.stats.Moved.Load()
	c.Reused += m.stats.Reused.Load() * snapferry.BlockSize
	if m.w != nil {
		c.Changed += m.w.Changed()
		c.Stored += m.w.Stored()
	}
	c.Lent += m.stats.Lent.Load() * snapferry.BlockSize
	// A leaf that ended while a checkpoint was cut may have come twice.
	if twice := c.Changed - c.Present; twice > 0 {
		c.Changed, c.Repeated = c.Present, c.Repeated+twice
	}
	c.Lent = min(c.Lent, c.Changed)
	// What earlier runs brought is in the base of this one; that is not reuse.
	c.Reused = max(min(c.Reused, m.total-c.Changed), 0)
	return c
}

// counts sums up all snapshots: what crossed, and what was here, in the base or
// elsewhere.
func (p *puller) counts() (c snapferry.Counts) {
	for _, m := range p.parts {
		x := m.counts()
		c.Moved += x.Moved
		c.Reused += x.Reused
		c.Lent += x.Lent
	}
	return c
}

// moved is the bytes that crossed for each snapshot.
func (p *puller) moved() (all []int64) {
	for _, m := range p.parts {
		all = append(all, m.counts().Moved)
	}
	return all
}
