package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/transfer"
)

// PlanCopy says what a copy would do now, without doing it: what moves, what
// is reused, and why. That of a set is the sum of those of its snapshots.
func (r *Region) PlanCopy(ctx context.Context, account snapferry.AccountID, req CopyRequest) (snapferry.Plan, error) {
	if err := req.checkCopy(); err != nil {
		return snapferry.Plan{}, err
	}
	from, err := r.remote(ctx, req.From, account)
	if err != nil {
		return snapferry.Plan{}, err
	}
	ds, err := req.describe(ctx, from)
	if err != nil {
		return snapferry.Plan{}, err
	}
	return r.planOf(ctx, account, req, ds)
}

// planOf is the plan of a copy of what was described.
func (r *Region) planOf(ctx context.Context, account snapferry.AccountID, req CopyRequest, ds []transfer.Description) (snapferry.Plan, error) {
	from, err := r.remote(ctx, req.From, account)
	if err != nil {
		return snapferry.Plan{}, err
	}
	var parts []snapferry.Plan
	for _, d := range ds {
		p, err := r.planMember(ctx, account, req, from, d)
		if err != nil {
			return snapferry.Plan{}, err
		}
		parts = append(parts, p)
	}
	plan := planSum(parts)
	plan.Time = r.timeOf(account, req, plan.MoveBytes, time.Now())
	return plan, nil
}

func (r *Region) planMember(ctx context.Context, account snapferry.AccountID, req CopyRequest, from transfer.Remote, d transfer.Description) (snapferry.Plan, error) {
	k, _, err := r.copyKey(ctx, account, req.Sealing, []transfer.Description{d})
	if err != nil {
		return snapferry.Plan{}, err
	}
	base, snap, release, err := r.planBase(ctx, account, req, d, k.ID)
	if err != nil {
		return snapferry.Plan{}, err
	}
	defer release()
	var lend *donors
	if !req.Full {
		chain, _, err := r.copyChain(ctx, account, req.From, k, d)
		if err != nil {
			return snapferry.Plan{}, err
		}
		lend = r.donorsOf(ctx, account, req.From, d, chain)
		defer lend.close()
	}
	p := transfer.Planner{Info: d.Info, Source: from.Source(transfer.Handle{Snapshot: d.Snapshot}), Base: base, Donor: lend.donor()}
	if err := p.Run(ctx, func(transfer.Step) error { return nil }); err != nil {
		return snapferry.Plan{}, err
	}
	return planned(d.Info, p.Totals, snap, lend.used(), req.Full), nil
}

// planSum is the plan of a copy that makes several snapshots, by those for each.
func planSum(parts []snapferry.Plan) snapferry.Plan {
	if len(parts) == 1 {
		return parts[0]
	}
	var sum snapferry.Plan
	var reasons []string
	for _, p := range parts {
		sum.Size += p.Size
		sum.Present += p.Present
		sum.MoveBlocks += p.MoveBlocks
		sum.MoveBytes += p.MoveBytes
		sum.ReuseBlocks += p.ReuseBlocks
		sum.StoreBlocks += p.StoreBlocks
		for _, id := range p.Donors {
			if !slices.Contains(sum.Donors, id) {
				sum.Donors = append(sum.Donors, id)
			}
		}
		sum.ChangedLeafs += p.ChangedLeafs
		if !slices.Contains(reasons, p.Reason) {
			reasons = append(reasons, p.Reason)
		}
	}
	sum.Reason = strings.Join(reasons, "; ")
	return sum
}

// planned is a plan with its reason.
func planned(d transfer.Info, t transfer.Totals, base snapferry.SnapshotID, lent []snapferry.SnapshotID, full bool) snapferry.Plan {
	plan := snapferry.Plan{
		Size: d.Size, Digest: d.Digest, Present: d.Present, MoveBlocks: t.MoveBlocks, MoveBytes: t.MoveBytes,
		ReuseBlocks: d.Present/snapferry.BlockSize - t.MoveBlocks, ChangedLeafs: t.Leafs, Base: base,
		StoreBlocks: t.LentBlocks, Donors: lent,
	}
	plan.Reason = planReason(full, base, plan)
	return plan
}

func planReason(full bool, base snapferry.SnapshotID, p snapferry.Plan) string {
	switch {
	case full:
		return "full, because that was asked for"
	case base == "" && p.ReuseBlocks == 0:
		return "full, because the region has nothing of this volume yet"
	case p.StoreBlocks > 0:
		return lentReason(base, p)
	case p.MoveBlocks == 0:
		return "nothing moves, because the region has all of the content in " + string(base)
	}
	if base == "" {
		base = "a version whose snapshot was deleted"
	}
	return "incremental on " + string(base) + ", which has the rest of the content"
}

// lentReason is the reason of a plan that stores again what the region has.
func lentReason(base snapferry.SnapshotID, p snapferry.Plan) string {
	reason := "full"
	switch {
	case p.MoveBlocks == 0:
		reason = "nothing moves"
	case base != "":
		reason = "incremental on " + string(base)
	case p.ReuseBlocks > p.StoreBlocks:
		reason = "incremental on a version whose snapshot was deleted"
	}
	reason += fmt.Sprintf(", and %d blocks are stored again that the region has under another key or of another volume", p.StoreBlocks)
	for i, id := range p.Donors {
		if i == 0 {
			reason += ", in "
		} else {
			reason += " and "
		}
		reason += string(id)
	}
	return reason
}

// planTries bounds how often a plan looks for a base again because the one it
// found was deleted in that moment.
const planTries = 5

// planBase returns the map a copy would start from, which stays until release
// is called, and the snapshot that has it.
func (r *Region) planBase(ctx context.Context, account snapferry.AccountID, req CopyRequest, d transfer.Description, key snapferry.KeyID) (m blockmap.Map, snap snapferry.SnapshotID, release func(), err error) {
	m.Size, m.Nodes = d.Size, r.vault
	if req.Full {
		return m, "", func() {}, nil
	}
	for range planTries {
		base, snap, ok, err := r.baseFor(ctx, account, req, d, key)
		if err != nil || !ok {
			return m, "", func() {}, err
		}
		held, release, err := r.reading(ctx, base.ID)
		if err == nil {
			return held, snap, release, nil
		}
		if !snapferry.IsKind(err, snapferry.Conflict) && !snapferry.IsKind(err, snapferry.NotFound) {
			return m, "", nil, err
		}
	}
	return m, "", nil, snapferry.Errorf(snapferry.Unavailable, "the snapshots that the copy could be incremental on are being deleted").WithHint("ask again")
}

// baseFor returns the version a copy would be incremental on, and the snapshot
// that has it; ok is false when there is none.
func (r *Region) baseFor(ctx context.Context, account snapferry.AccountID, req CopyRequest, d transfer.Description, key snapferry.KeyID) (base meta.Version, snap snapferry.SnapshotID, ok bool, err error) {
	err = r.db.View(ctx, func(tx *meta.Tx) error {
		vol, err := r.findCopyVolume(tx, account, req.From, d, key)
		if snapferry.IsKind(err, snapferry.NotFound) {
			var chain meta.Chain
			chain, err = tx.ChainByOrigin(account, req.From, d.Chain, key)
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
	return base, snap, ok, err
}
