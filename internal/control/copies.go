package control

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// CopyRequest asks this region to pull a snapshot.
type CopyRequest struct {
	From   snapferry.RegionName
	Source snapferry.SnapshotID
	Labels
	Full  bool   // move all bytes, whatever is here
	Token string // the caller's, for repeating the request; may be empty
}

// remote returns a region on behalf of an account.
func (r *Region) remote(ctx context.Context, name snapferry.RegionName, account snapferry.AccountID) (transfer.Remote, error) {
	var a meta.Account
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		a, err = tx.Account(account)
		return err
	})
	if err != nil {
		return nil, err
	}
	if name == r.name {
		return &local{region: r, caller: transfer.Caller{Region: name, Account: a.Name}}, nil
	}
	if as := r.peers[name]; as != nil {
		return as(a.Name), nil
	}
	return nil, snapferry.Errorf(snapferry.NotFound, "region %s does not know a region %s", r.name, name).WithHint("it knows: %v", r.Peers())
}

// Copy begins to copy a snapshot of another region, or of this one, into this
// region and returns the new snapshot, copying. What can be known to fail
// fails now. The source stays pinned until the copy ends.
func (r *Region) Copy(ctx context.Context, account snapferry.AccountID, req CopyRequest) (snapferry.Snapshot, error) {
	if err := req.check(); err != nil {
		return snapferry.Snapshot{}, err
	}
	if _, err := snapferry.ParseSnapshotID(string(req.Source)); err != nil {
		return snapferry.Snapshot{}, err
	}
	if s, ok, err := r.repeated(ctx, account, req); err != nil || ok {
		return s, err
	}
	from, err := r.remote(ctx, req.From, account)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	d, err := from.Describe(ctx, req.Source)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	c := meta.Copy{Created: time.Now(), Reserved: true}
	c.ID, c.Account, c.State, c.Full = snapferry.NewCopyID(), account, snapferry.CopyQueued, req.Full
	c.Source = snapferry.CopySource{Region: req.From, Snapshot: req.Source}
	var incarnation uint64
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		region, err := tx.Region()
		if err != nil {
			return err
		}
		incarnation = region.Incarnation
		return tx.InsertCopy(c)
	})
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	h, err := from.Pin(ctx, transfer.Pin{Snapshot: req.Source, Copy: c.ID, Incarnation: incarnation})
	var s meta.Snapshot
	if err == nil {
		s, err = r.admit(ctx, account, req, d, c, h.Pin)
	}
	if err == nil {
		return r.Snapshot(ctx, account, s.ID)
	}
	// A pin may be there, whatever the answer was: a job looks and releases it.
	if err2 := r.abandon(ctx, c.ID, err); err2 != nil {
		r.log.ErrorContext(ctx, "a reserved copy stays until the next start", "copy", c.ID, "err", err2)
	}
	if snapferry.IsKind(err, snapferry.Exists) && req.Token != "" {
		// The same request, at the same time, was faster.
		if s, ok, rerr := r.repeated(ctx, account, req); rerr != nil || ok {
			return s, rerr
		}
	}
	return snapferry.Snapshot{}, err
}

// abandon ends a copy that was only reserved, and has its pin released.
func (r *Region) abandon(ctx context.Context, id snapferry.CopyID, reason error) error {
	return r.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error {
		c, err := tx.Copy(id)
		if err != nil || !c.Reserved || c.State.Terminal() {
			return err
		}
		if err := endCopy(tx, id, snapferry.CopyFailed, reason); err != nil {
			return err
		}
		return enqueueDiscard(tx, c.Account, discardPayload{Copy: id})
	})
}

// abandonReserved ends the copies that an earlier process reserved and did not
// come to admit.
func (r *Region) abandonReserved(ctx context.Context) error {
	var all []meta.Copy
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		all, err = tx.ActiveCopies()
		return err
	})
	for _, c := range all {
		if c.Reserved && c.Created.Before(r.started) && err == nil {
			err = r.abandon(ctx, c.ID, snapferry.Errorf(snapferry.Cancelled, "region %s was restarted", r.name))
		}
	}
	return err
}

const opCopy = "CopySnapshot"

// fingerprint is the content of a request that must be the same when it is
// repeated under its token.
func (req CopyRequest) fingerprint() string {
	req.Token = ""
	p, err := json.Marshal(req)
	if err != nil {
		return ""
	}
	return digest.Block(p).String()
}

// repeated returns what a request with the same token began earlier.
func (r *Region) repeated(ctx context.Context, account snapferry.AccountID, req CopyRequest) (s snapferry.Snapshot, ok bool, err error) {
	if req.Token == "" {
		return s, false, nil
	}
	var old meta.Request
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		old, err = tx.Request(account, req.Token)
		return err
	})
	switch {
	case snapferry.IsKind(err, snapferry.NotFound):
		return s, false, nil
	case err != nil:
		return s, false, err
	case old.Operation != opCopy || old.Fingerprint != req.fingerprint():
		return s, false, snapferry.Errorf(snapferry.Conflict, "the client token was used for another request").WithHint("use a new token for each request")
	}
	s, err = r.Snapshot(ctx, account, snapferry.SnapshotID(old.Result))
	return s, true, err
}

// admit makes the snapshot, the copy and its job visible in one transaction
// and attaches the new version to the base that the plan chose.
func (r *Region) admit(ctx context.Context, account snapferry.AccountID, req CopyRequest, d transfer.Description, c meta.Copy, pin string) (meta.Snapshot, error) {
	s := req.snapshot(account, d.Size)
	s.State, s.Copy, s.SourceVolume = snapferry.SnapshotCopying, c.ID, d.Volume
	s.Source = &c.Source
	err := r.db.Update(ctx, func(tx *meta.Tx) error {
		vol, err := r.copyVolume(tx, account, req.From, d)
		if err != nil {
			return err
		}
		row := meta.Version{ID: snapferry.NewVersionID(), Chain: vol.Chain, Volume: vol.ID, Size: d.Size}
		if !req.Full {
			base, ok, err := chooseBase(tx, vol, d)
			if err != nil {
				return err
			}
			if ok {
				row.Parent, s.Parent = base.ID, visibleParent(tx, base.ID)
			}
		}
		if row.Sequence, err = nextSequence(tx, vol.ID); err != nil {
			return err
		}
		if err := vault.Attach(tx, row); err != nil {
			return err
		}
		s.VolumeID, s.Version = vol.ID, row.ID
		if err := tx.InsertSnapshot(s); err != nil {
			return err
		}
		c := c
		c.Reserved, c.Snapshot, c.Base, c.Pin = false, s.ID, row.Parent, pin
		if err := tx.UpdateCopy(c); err != nil {
			return err
		}
		if req.Token != "" {
			q := meta.Request{Account: account, Token: req.Token, Operation: opCopy, Fingerprint: req.fingerprint(), Result: string(s.ID), Created: time.Now()}
			if err := tx.InsertRequest(q); err != nil {
				return err
			}
		}
		if err := audit(tx, account, opCopy, string(s.ID), string(req.From)+"/"+string(req.Source)); err != nil {
			return err
		}
		return job.Enqueue(tx, job.Job{Kind: jobCopy, Account: account, Subject: string(s.ID), Payload: string(c.ID)})
	})
	return s, err
}

// copyVolume returns the lineage here that copies of a source's lineage belong
// to, made when it is new. A copy inside one region belongs to its source's.
func (r *Region) copyVolume(tx *meta.Tx, account snapferry.AccountID, from snapferry.RegionName, d transfer.Description) (meta.Volume, error) {
	if from == r.name {
		return tx.Volume(d.VolumeID)
	}
	vol, err := tx.VolumeByOrigin(account, from, d.VolumeID)
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return vol, err
	}
	chain, err := tx.ChainByOrigin(account, from, d.Chain)
	if snapferry.IsKind(err, snapferry.NotFound) {
		chain = meta.Chain{
			ID: snapferry.NewChainID(), Account: account, Algorithm: digest.SHA256, Proven: true,
			OriginRegion: from, OriginChain: d.Chain, Created: time.Now(),
		}
		err = tx.InsertChain(chain)
	}
	if err != nil {
		return vol, err
	}
	vol = meta.Volume{
		ID: snapferry.NewVolumeID(), Account: account, Name: d.Volume, Chain: chain.ID,
		OriginRegion: from, OriginVolume: d.VolumeID, Created: time.Now(),
	}
	return vol, tx.InsertVolume(vol)
}

// chooseBase picks the version here that a copy is incremental on: the content
// itself or the source's nearest ancestor, by digest; else the last copy of
// the lineage; else the newest of the chain with the same size. All are of the
// chain the copy goes to.
func chooseBase(tx *meta.Tx, vol meta.Volume, d transfer.Description) (meta.Version, bool, error) {
	all, err := tx.VersionsIn(vol.Chain)
	if err != nil {
		return meta.Version{}, false, err
	}
	var last, sized *meta.Version
	byDigest := map[digest.Digest]*meta.Version{}
	for i := range all {
		v := &all[i]
		if v.State != snapferry.VersionSealed {
			continue
		}
		byDigest[v.Digest] = v // the newest: versions come oldest first
		if v.Volume == vol.ID && (last == nil || v.Sequence > last.Sequence) {
			last = v
		}
		if v.Size == d.Size {
			sized = v
		}
	}
	for _, want := range append([]digest.Digest{d.Digest}, d.Lineage...) {
		if v := byDigest[want]; v != nil {
			return *v, true, nil
		}
	}
	for _, v := range []*meta.Version{last, sized} {
		if v != nil {
			return *v, true, nil
		}
	}
	return meta.Version{}, false, nil
}

// endCopy gives a copy its final state; one that has one keeps it.
func (r *Region) endCopy(ctx context.Context, id snapferry.CopyID, state snapferry.CopyState, reason error) error {
	return r.db.Update(context.WithoutCancel(ctx), func(tx *meta.Tx) error { return endCopy(tx, id, state, reason) })
}

func endCopy(tx *meta.Tx, id snapferry.CopyID, state snapferry.CopyState, reason error) error {
	c, err := tx.Copy(id)
	if err != nil || c.State.Terminal() {
		return err
	}
	c.State, c.Finished = state, time.Now()
	if reason != nil {
		c.Reason, _ = publicReason(reason)
	}
	return tx.UpdateCopy(c)
}

// moveCopy moves a copy that has not ended to its next state.
func (r *Region) moveCopy(ctx context.Context, run *job.Run, id snapferry.CopyID, state snapferry.CopyState) error {
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		c, err := tx.Copy(id)
		if err != nil || c.State == state {
			return err
		}
		c.State = state
		return tx.UpdateCopy(c)
	})
}

// CopyOf returns a copy of the account.
func (r *Region) CopyOf(ctx context.Context, account snapferry.AccountID, id snapferry.CopyID) (snapferry.Copy, error) {
	var c meta.Copy
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		c, err = tx.Copy(id)
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (c.Account != account || c.Reserved) {
		return snapferry.Copy{}, snapferry.Errorf(snapferry.NotFound, "there is no copy %s", id)
	}
	return c.Copy, err
}

// copyProgress is what a copy's job remembers across runs.
type copyProgress struct {
	Done   int64 `json:"done"`   // plain bytes, the most ever reported
	Moved  int64 `json:"moved"`  // bytes received
	Stored int64 `json:"stored"` // bytes put into the bucket
	Plain  int64 `json:"plain"`  // plain bytes received
	Runs   int   `json:"runs"`
}

// runCopy is the job of a copy. It can be interrupted at any point and goes on
// from its last checkpoint.
func (r *Region) runCopy(ctx context.Context, run *job.Run) error {
	id := snapferry.CopyID(run.Job.Payload)
	c, err := r.copyRow(ctx, id)
	if err != nil {
		return err
	}
	if !c.State.Terminal() {
		err = r.awaitTurn(ctx, c)
		if err == nil {
			err = r.pull(ctx, run, c)
		}
		if retry(ctx, err) {
			return err
		}
		if err != nil {
			// From here on no run pulls again, also if this one ends halfway.
			if err2 := r.endCopy(ctx, id, snapferry.CopyFailed, err); err2 != nil {
				return again(err2)
			}
		}
		var err2 error
		if c, err2 = r.copyRow(ctx, id); err2 != nil {
			return again(err2)
		}
	}
	if c.State == snapferry.CopyFailed {
		if err == nil {
			err = failureOf(c)
		}
		if err2 := r.failSnapshot(ctx, c.Snapshot, err); snapferry.IsKind(err2, snapferry.Unavailable) {
			return err2
		}
	}
	if rerr := r.releaseOf(ctx, id); rerr != nil {
		r.log.WarnContext(ctx, "a pin could not be released yet", "copy", id, "err", rerr)
		return again(rerr)
	}
	return err
}

// failureOf is the error with which an earlier run ended a copy.
func failureOf(c meta.Copy) error {
	kind, text, ok := strings.Cut(c.Reason, ": ")
	if !ok {
		text = c.Reason
	}
	return snapferry.Errorf(snapferry.ParseKind(kind), "%s", text)
}

// retry reports whether a copy that ended in err goes on in another run.
func retry(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	return snapferry.IsKind(err, snapferry.Unavailable) || ctx.Err() != nil
}

func (r *Region) copyRow(ctx context.Context, id snapferry.CopyID) (c meta.Copy, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) (err error) {
		c, err = tx.Copy(id)
		return err
	})
	return c, err
}

// releaseOf releases the pin of a copy that has ended. A pin that is gone is
// no error.
func (r *Region) releaseOf(ctx context.Context, id snapferry.CopyID) error {
	c, err := r.copyRow(ctx, id)
	if err != nil || !c.State.Terminal() {
		return err
	}
	from, err := r.remote(ctx, c.Source.Region, c.Account)
	if err != nil {
		return err
	}
	h := transfer.Handle{Pin: c.Pin, Snapshot: c.Source.Snapshot}
	if c.Pin == "" {
		// Reserved, and the answer to the pin was lost: pinning is idempotent.
		var region meta.Region
		err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
			region, err = tx.Region()
			return err
		})
		if err != nil {
			return err
		}
		h, err = from.Pin(ctx, transfer.Pin{Snapshot: c.Source.Snapshot, Copy: c.ID, Incarnation: region.Incarnation})
		if k := snapferry.KindOf(err); err != nil && (k == snapferry.NotFound || k == snapferry.Conflict || k == snapferry.Denied) {
			return nil // nothing to pin, so nothing pinned
		}
		if err != nil {
			return err
		}
	}
	err = from.Release(ctx, h)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	return err
}

// awaitTurn waits while an earlier copy of the same lineage is active: one
// after the other, the later ones find more to reuse.
func (r *Region) awaitTurn(ctx context.Context, c meta.Copy) error {
	for {
		changed := r.db.Changed()
		var before snapferry.CopyID
		var busy bool
		err := r.db.View(ctx, func(tx *meta.Tx) error {
			mine, err := tx.Snapshot(c.Snapshot)
			if err != nil {
				return err
			}
			active, err := tx.ActiveCopies()
			if err != nil {
				return err
			}
			for _, o := range active {
				if o.ID == c.ID {
					return nil
				}
				if o.Reserved {
					continue
				}
				s, err := tx.Snapshot(o.Snapshot)
				if err != nil {
					return err
				}
				if s.VolumeID == mine.VolumeID {
					before = o.ID
					busy, err = runs(tx, string(o.Snapshot))
					return err
				}
			}
			return nil
		})
		if err != nil || before == "" {
			return err
		}
		if !busy {
			// What we wait for needs a worker, perhaps this one.
			return snapferry.Errorf(snapferry.Unavailable, "copy %s waits for %s of the same volume", c.ID, before)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// runs reports whether a worker has a job about a subject.
func runs(tx *meta.Tx, subject string) (bool, error) {
	jobs, err := tx.JobsOf(subject)
	for _, j := range jobs {
		if j.State == snapferry.JobRunning {
			return true, err
		}
	}
	return false, err
}

// pull moves the content and seals the version.
func (r *Region) pull(ctx context.Context, run *job.Run, c meta.Copy) error {
	s, err := r.snapshotRow(ctx, c.Snapshot)
	if err != nil {
		return err
	}
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyPlanning); err != nil {
		return err
	}
	from, err := r.remote(ctx, c.Source.Region, c.Account)
	if err != nil {
		return err
	}
	d, err := from.Describe(ctx, c.Source.Snapshot)
	if err != nil {
		return err
	}
	p := newPuller(run, d.Present)
	fence := func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		now, err := tx.Copy(c.ID)
		if err == nil && now.State.Terminal() {
			err = snapferry.Errorf(snapferry.Cancelled, "copy %s was cancelled", c.ID)
		}
		return err
	}
	w, err := r.vault.Write(ctx, s.Version, vault.WriteConfig{Job: run.Job.ID, Token: run.Token, Fence: fence, Checkpoints: true, Durable: p.durable})
	if err != nil {
		return err
	}
	defer w.Close()
	x := &running{started: time.Now(), total: d.Present, done: p.done, counts: func() snapferry.Counts { return p.counts(w, d) }}
	r.setRunning(s.ID, x)
	defer r.setRunning(s.ID, nil)
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyMoving); err != nil {
		return err
	}
	source := from.Source(transfer.Handle{Pin: c.Pin, Snapshot: c.Source.Snapshot})
	err = transfer.Run(ctx, transfer.Config{Info: d.Info, Source: source, Sink: sink{w}, Stats: &p.stats, Settle: p.settle})
	if err != nil {
		if ctx.Err() != nil || snapferry.IsKind(err, snapferry.Unavailable) {
			// What has arrived is kept for the next run, if it can be.
			_ = w.Checkpoint(context.WithoutCancel(ctx))
			run.Progress(p.save(w))
		}
		return err
	}
	if err := r.moveCopy(ctx, run, c.ID, snapferry.CopyCommitting); err != nil {
		return err
	}
	_, err = w.Seal(ctx, vault.SealConfig{
		Want: d.Digest,
		Hold: meta.Hold{Version: s.Version, Kind: vault.HoldSnapshot, Owner: string(s.ID), Created: time.Now()},
		Commit: func(tx *meta.Tx, done vault.Sealed) error {
			counts := p.counts(w, d)
			if err := r.settleReady(tx, s.ID, done, counts); err != nil {
				return err
			}
			if err := meter(tx, s.Account, "received", s.ID, counts.Moved); err != nil {
				return err
			}
			return endCopy(tx, c.ID, snapferry.CopyDone, nil)
		},
	})
	return err
}

// A puller counts what a copy does, over all its runs.
type puller struct {
	run   *job.Run
	total int64
	stats transfer.Stats
	past  copyProgress

	mu      sync.Mutex
	pending map[uint64]int64 // blocks of leaves that ended and are not durable yet
	settled int64            // blocks durable
	shown   int64            // plain bytes, the most ever shown
}

func newPuller(run *job.Run, total int64) *puller {
	p := &puller{run: run, total: total, pending: map[uint64]int64{}}
	if run.Job.Progress != "" {
		// What cannot be read counts as nothing: only figures are lost.
		_ = json.Unmarshal([]byte(run.Job.Progress), &p.past)
	}
	p.shown = p.past.Done
	p.past.Runs++
	return p
}

// settle notes a leaf that has ended.
func (p *puller) settle(leaf uint64, blocks int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if leaf == transfer.Pruned {
		p.settled += blocks // the base has them, durably
		return
	}
	p.pending[leaf] = blocks
}

// durable notes the leaves a checkpoint made durable.
func (p *puller) durable(set extent.Set) {
	p.mu.Lock()
	for leaf, blocks := range p.pending {
		if set.Contains(int64(leaf)) {
			p.settled += blocks
			delete(p.pending, leaf)
		}
	}
	p.mu.Unlock()
	p.run.Progress(copyProgress{Done: p.done(), Moved: p.past.Moved + p.stats.Moved.Load(), Stored: p.past.Stored, Plain: p.past.Plain + p.plain(), Runs: p.past.Runs})
}

func (p *puller) plain() int64 { return p.stats.Blocks.Load() * snapferry.BlockSize }

// done is what has been settled durably; it never goes back and is not the
// total before the copy is committed.
func (p *puller) done() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(p.settled*snapferry.BlockSize, max(p.total-snapferry.BlockSize, 0))
	p.shown = max(p.shown, n)
	return p.shown
}

// save is what the next run must know.
func (p *puller) save(w *vault.Writer) copyProgress {
	return copyProgress{Done: p.done(), Moved: p.past.Moved + p.stats.Moved.Load(), Stored: p.past.Stored + w.Stored(), Plain: p.past.Plain + p.plain(), Runs: p.past.Runs}
}

func (p *puller) counts(w *vault.Writer, d transfer.Description) snapferry.Counts {
	plain := p.past.Plain + p.plain()
	c := snapferry.Counts{
		Present: d.Present, Moved: p.past.Moved + p.stats.Moved.Load(), Stored: p.past.Stored + w.Stored(),
		Changed: plain, Reused: p.stats.Reused.Load() * snapferry.BlockSize,
	}
	if over := c.Reused + plain - d.Present; over > 0 {
		c.Reused -= min(over, c.Reused) // what earlier runs brought is not reuse
	}
	return c
}

// sink is an open version as the copy engine sees it.
type sink struct{ *vault.Writer }

func (s sink) Ticket(leaf uint64) (transfer.Ticket, error) {
	t, err := s.Writer.Ticket(leaf)
	return transfer.Ticket(t), err
}

func (s sink) Absent(ctx context.Context, t transfer.Ticket) error {
	return s.Writer.Absent(ctx, vault.Ticket(t))
}

func (s sink) NewFiller() (transfer.Filler, error) {
	l, err := s.NewLeafWriter()
	if err != nil {
		return nil, err
	}
	return filler{l}, nil
}

type filler struct{ *vault.LeafWriter }

func (f filler) Begin(ctx context.Context, t transfer.Ticket) error {
	return f.LeafWriter.Begin(ctx, vault.Ticket(t))
}

// PlanCopy says what a copy would do now, without doing it: what moves, what
// is reused, and why.
func (r *Region) PlanCopy(ctx context.Context, account snapferry.AccountID, req CopyRequest) (snapferry.Plan, error) {
	from, err := r.remote(ctx, req.From, account)
	if err != nil {
		return snapferry.Plan{}, err
	}
	d, err := from.Describe(ctx, req.Source)
	if err != nil {
		return snapferry.Plan{}, err
	}
	base, snap, err := r.planBase(ctx, account, req, d)
	if err != nil {
		return snapferry.Plan{}, err
	}
	p := transfer.Planner{Info: d.Info, Source: from.Source(transfer.Handle{Snapshot: req.Source}), Base: base}
	if err := p.Run(ctx, func(transfer.Step) error { return nil }); err != nil {
		return snapferry.Plan{}, err
	}
	t := p.Totals
	plan := snapferry.Plan{
		Size: d.Size, Digest: d.Digest, Present: d.Present, MoveBlocks: t.MoveBlocks, MoveBytes: t.MoveBytes,
		ReuseBlocks: d.Present/snapferry.BlockSize - t.MoveBlocks, ChangedLeafs: t.Leafs, Base: snap,
	}
	plan.Reason = planReason(req.Full, snap, plan)
	return plan, nil
}

func planReason(full bool, base snapferry.SnapshotID, p snapferry.Plan) string {
	switch {
	case full:
		return "full, because that was asked for"
	case base == "" && p.ReuseBlocks == 0:
		return "full, because the region has nothing of this volume yet"
	case p.MoveBlocks == 0:
		return "nothing moves, because the region has all of the content in " + string(base)
	}
	return "incremental on " + string(base) + ", which has the rest of the content"
}

// planBase returns the map a copy would start from, and the snapshot that has
// it.
func (r *Region) planBase(ctx context.Context, account snapferry.AccountID, req CopyRequest, d transfer.Description) (m blockmap.Map, snap snapferry.SnapshotID, err error) {
	m.Size, m.Nodes = d.Size, r.vault
	if req.Full {
		return m, "", nil
	}
	var base meta.Version
	var ok bool
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		var vol meta.Volume
		var err error
		if req.From == r.name {
			vol, err = tx.Volume(d.VolumeID)
		} else if vol, err = tx.VolumeByOrigin(account, req.From, d.VolumeID); snapferry.IsKind(err, snapferry.NotFound) {
			var chain meta.Chain
			chain, err = tx.ChainByOrigin(account, req.From, d.Chain)
			vol.Chain = chain.ID
		}
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if base, ok, err = chooseBase(tx, vol, d); ok {
			snap = visibleParent(tx, base.ID)
		}
		return err
	})
	if err != nil || !ok {
		return m, "", err
	}
	m, err = r.vault.MapOf(ctx, base.ID)
	return m, snap, err
}
