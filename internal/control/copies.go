package control

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// CopyRequest asks this region to pull a snapshot, or a set.
type CopyRequest struct {
	From    snapferry.RegionName
	Source  snapferry.SnapshotID // empty: Set
	Set     snapferry.SetID      `json:",omitempty"` // empty: Source
	Labels                       // of each snapshot that is made
	Sealing                      // of the copies: with a key of this region
	Full    bool                 // move all bytes, whatever is here
	Token   string               // the caller's, for repeating the request; may be empty
	Rate    int64                // bytes per second that may cross for it; 0: no limit of its own
	// Within is how soon the copy must be done; 0: whenever. A copy that cannot
	// be, by what is known, is refused.
	Within time.Duration
}

const (
	minWithin = time.Minute
	maxWithin = 30 * 24 * time.Hour
)

func (req CopyRequest) checkCopy() error {
	if err := req.check(); err != nil {
		return err
	}
	if err := req.checkSource(); err != nil {
		return err
	}
	if req.Within != 0 && (req.Within < minWithin || req.Within > maxWithin) {
		return snapferry.Errorf(snapferry.Invalid, "to be done within %v is not within %v and %v", req.Within, minWithin, maxWithin)
	}
	return limit.CheckRate(req.Rate)
}

func (req CopyRequest) checkSource() (err error) {
	switch {
	case req.Set == "":
		_, err = snapferry.ParseSnapshotID(string(req.Source))
	case req.Source != "":
		err = snapferry.Errorf(snapferry.Invalid, "a copy of snapshot %s and of set %s", req.Source, req.Set).WithHint("name one of them")
	default:
		_, err = snapferry.ParseSetID(string(req.Set))
	}
	return err
}

// describe returns what the source says of what is to be copied: one snapshot, or
// those of a set.
func (req CopyRequest) describe(ctx context.Context, from transfer.Remote) (all []transfer.Description, err error) {
	ids := []snapferry.SnapshotID{req.Source}
	if req.Set != "" {
		if ids, err = from.Members(ctx, req.Set); err != nil {
			return nil, err
		}
		if len(ids) < 1 || len(ids) > maxSet {
			return nil, snapferry.Errorf(snapferry.Corrupt, "region %s says that set %s has %d snapshots", req.From, req.Set, len(ids))
		}
	}
	for _, id := range ids {
		d, err := from.Describe(ctx, id)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(all, func(x transfer.Description) bool { return x.VolumeID == d.VolumeID }) {
			return nil, snapferry.Errorf(snapferry.Corrupt, "region %s says that set %s has two snapshots of volume %s", req.From, req.Set, d.VolumeID)
		}
		all = append(all, d)
	}
	return all, nil
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
	if req.Set != "" {
		return snapferry.Snapshot{}, snapferry.Errorf(snapferry.Invalid, "a set is not a snapshot")
	}
	return r.copyOnce(ctx, account, req)
}

// CopySet is Copy for all snapshots of a set, which are copied as one: they become
// ready at the same moment, or none does, and deleting one of them before ends the
// copy. It is a Conflict when the source has not all of them any more.
func (r *Region) CopySet(ctx context.Context, account snapferry.AccountID, req CopyRequest) (snapferry.Copy, error) {
	if req.Source != "" || req.Set == "" {
		return snapferry.Copy{}, snapferry.Errorf(snapferry.Invalid, "there is no set to copy")
	}
	s, err := r.copyOnce(ctx, account, req)
	if err != nil {
		return snapferry.Copy{}, err
	}
	return r.CopyOf(ctx, account, s.Copy)
}

// copyOnce begins a copy, unless the same request has begun it already, and returns its
// first snapshot.
func (r *Region) copyOnce(ctx context.Context, account snapferry.AccountID, req CopyRequest) (snapferry.Snapshot, error) {
	if err := req.checkCopy(); err != nil {
		return snapferry.Snapshot{}, err
	}
	if s, ok, err := r.repeated(ctx, account, req); err != nil || ok {
		return s, err
	}
	s, err := r.beginCopy(ctx, account, req)
	if err != nil && req.Token != "" {
		// The same request, at the same time, may have been faster: this one has
		// failed for that, or for what became of the source since.
		if s, ok, rerr := r.repeated(ctx, account, req); rerr != nil || ok {
			return s, rerr
		}
	}
	return s, err
}

// beginCopy is copyOnce of a request that was not made before.
func (r *Region) beginCopy(ctx context.Context, account snapferry.AccountID, req CopyRequest) (snapferry.Snapshot, error) {
	from, err := r.remote(ctx, req.From, account)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	ds, err := req.describe(ctx, from)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	k, sealed, err := r.copyKey(ctx, account, req.Sealing, ds)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	chains, err := r.copyChains(ctx, account, req.From, k, sealed, ds)
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	c := meta.Copy{Reserved: true}
	for _, d := range ds {
		c.Members = append(c.Members, meta.CopyMember{Source: d.Snapshot})
	}
	c.ID, c.Account, c.State, c.Full, c.Rate, c.Created = snapferry.NewCopyID(), account, snapferry.CopyQueued, req.Full, req.Rate, time.Now()
	c.Source = snapferry.CopySource{Region: req.From, Snapshot: ds[0].Snapshot, Set: req.Set}
	if req.Within != 0 {
		plan, err := r.planOf(ctx, account, req, ds)
		if err != nil {
			return snapferry.Snapshot{}, err
		}
		c.Deadline, c.Plan = c.Created.Add(req.Within), &plan
	}
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := r.hasRoom(tx, account); err != nil {
			return err
		}
		if err := r.canPromise(tx, &c, req.Within); err != nil {
			return err
		}
		return tx.InsertCopy(c)
	})
	if err != nil {
		return snapferry.Snapshot{}, err
	}
	for i := range c.Members {
		var h transfer.Handle
		if h, err = r.pin(ctx, from, &c, c.Members[i].Source); err != nil {
			break
		}
		c.Members[i].Pin = h.Pin
	}
	var first meta.Snapshot
	if err == nil {
		first, err = r.admit(ctx, account, req, ds, c, chains)
	}
	if err == nil {
		return r.justMade(ctx, account, first)
	}
	// A pin may be there, whatever the answer was: a job looks and releases it.
	if err2 := r.abandon(ctx, c.ID, err); err2 != nil {
		r.log.ErrorContext(ctx, "a reserved copy stays until the next start", "copy", c.ID, "err", err2)
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
		if err := r.endCopy(tx, id, snapferry.EndedFailed, reason); err != nil {
			return err
		}
		return enqueueDiscard(tx, c.Account, discardPayload{Copy: id})
	})
}

// reserveTime is how long a copy may be only reserved. One that takes longer, or
// seems to because somebody set the clock, is refused.
const reserveTime = 10 * time.Minute

// abandonReserved ends the copies that were reserved before a time and that nobody
// came to admit.
func (r *Region) abandonReserved(ctx context.Context, before time.Time) error {
	var all []meta.Copy
	err := r.db.View(ctx, func(tx *meta.Tx) (err error) {
		all, err = tx.ActiveCopies()
		return err
	})
	for _, c := range all {
		if c.Reserved && c.Created.Before(before) && err == nil {
			err = r.abandon(ctx, c.ID, snapferry.Errorf(snapferry.Cancelled, "nobody came to admit the copy"))
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
	return HashToken(string(p))
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

// admit makes the snapshots, the copy and its job visible in one transaction, and
// attaches each new version to the base that the plan chose. It returns the first
// snapshot.
func (r *Region) admit(ctx context.Context, account snapferry.AccountID, req CopyRequest, ds []transfer.Description, c meta.Copy, chains map[snapferry.ChainID]meta.Chain) (first meta.Snapshot, err error) {
	c.Reserved = false
	if req.Set != "" {
		c.Set = snapferry.NewSetID()
	}
	c.Members = slices.Clone(c.Members)
	for i := range c.Members {
		c.Members[i].Snapshot = snapferry.NewSnapshotID()
	}
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := r.hasRoom(tx, account); err != nil {
			return err // others came meanwhile
		}
		for i := range ds {
			s, err := r.admitMember(tx, account, req, &ds[i], &c, i, chains[ds[i].Chain])
			if err != nil {
				return err
			}
			if i == 0 {
				first = s
			}
		}
		if err := tx.UpdateCopy(c); err != nil {
			return err
		}
		if req.Token != "" {
			q := meta.Request{Account: account, Token: req.Token, Operation: opCopy, Fingerprint: req.fingerprint(), Result: string(first.ID), Created: time.Now()}
			if err := tx.InsertRequest(q); err != nil {
				return err
			}
		}
		return r.dispatch(tx)
	})
	return first, err
}

// admitMember makes one of the snapshots of a copy.
func (r *Region) admitMember(tx *meta.Tx, account snapferry.AccountID, req CopyRequest, d *transfer.Description, c *meta.Copy, i int, chain meta.Chain) (s meta.Snapshot, err error) {
	s = req.snapshot(account, d.Size)
	s.ID, s.State, s.Copy, s.SourceVolume = c.Members[i].Snapshot, snapferry.SnapshotCopying, c.ID, d.Volume
	s.Source, s.Counts.Present = &snapferry.CopySource{Region: req.From, Snapshot: d.Snapshot}, d.Present
	if s.Set = c.Set; s.Set != "" {
		s.SetSize = len(c.Members)
	}
	vol, err := r.copyVolume(tx, account, req.From, *d, chain)
	if err != nil {
		return s, err
	}
	row := meta.Version{ID: snapferry.NewVersionID(), Chain: vol.Chain, Volume: vol.ID, Size: d.Size}
	if !req.Full {
		base, ok, err := chooseBase(tx, vol, *d)
		if err != nil {
			return s, err
		}
		if ok {
			row.Parent, s.Parent = base.ID, visibleParent(tx, base.ID)
		}
	}
	if row.Sequence, err = nextSequence(tx, vol.ID); err != nil {
		return s, err
	}
	if err := vault.Attach(tx, row); err != nil {
		return s, err
	}
	s.VolumeID, s.Version = vol.ID, row.ID
	if err := tx.InsertSnapshot(s); err != nil {
		return s, err
	}
	c.Members[i].VolumeID = vol.ID
	return s, audit(tx, account, opCopy, string(s.ID), string(req.From)+"/"+string(d.Snapshot))
}

// copyVolume returns the lineage here that copies of a source's lineage belong to under
// the key of a chain, made when it is new, in that chain if none is there.
func (r *Region) copyVolume(tx *meta.Tx, account snapferry.AccountID, from snapferry.RegionName, d transfer.Description, chain meta.Chain) (meta.Volume, error) {
	vol, err := r.findCopyVolume(tx, account, from, d, chain.Key)
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return vol, err
	}
	have, err := tx.ChainByOrigin(account, from, d.Chain, chain.Key)
	switch {
	case err == nil:
		chain = have
	case snapferry.IsKind(err, snapferry.NotFound):
		err = r.insertChain(tx, chain)
	}
	if err != nil {
		return vol, err
	}
	vol = meta.Volume{
		ID: snapferry.NewVolumeID(), Account: account, Name: d.Volume, Chain: chain.ID,
		OriginRegion: from, OriginVolume: d.VolumeID, Created: time.Now(), Key: chain.Key,
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

// endCopy gives a copy its final state; one that has one keeps it. The turn is
// another's then.
func (r *Region) endCopy(tx *meta.Tx, id snapferry.CopyID, ending snapferry.Ending, reason error) error {
	c, err := tx.Copy(id)
	if err != nil || c.State.Terminal() {
		return err
	}
	switch ending {
	case snapferry.EndedDone:
		c.State = snapferry.CopyDone
	case snapferry.EndedCancelled:
		c.State = snapferry.CopyCancelled
	default:
		c.State = snapferry.CopyFailed
	}
	c.Ending, c.Finished = ending, time.Now()
	c.Late = c.Late || !c.Deadline.IsZero() && c.Finished.After(c.Deadline)
	if reason != nil {
		c.Reason, _ = publicReason(reason)
	}
	if err := tx.UpdateCopy(c); err != nil {
		return err
	}
	return r.dispatch(tx)
}

// moveCopy moves a copy that has not ended to its next state, with the plan of this
// run if there is one.
func (r *Region) moveCopy(ctx context.Context, run *job.Run, id snapferry.CopyID, state snapferry.CopyState, plan *snapferry.Plan) error {
	return r.db.Update(ctx, func(tx *meta.Tx) error {
		if err := run.Check(tx); err != nil {
			return err
		}
		c, err := tx.Copy(id)
		if err != nil || c.State == state {
			return err
		}
		if c.State = state; plan != nil {
			c.Plan = plan
		}
		return tx.UpdateCopy(c)
	})
}
