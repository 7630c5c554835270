package vault

import (
	"context"
	"errors"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
)

// A key that may not be used keeps nobody from deleting what is sealed with it. That a
// hold was dropped is then only in the metadata: the version is stale, and its record
// is written when the key may be used again. Until then a recovery from the bucket
// alone would find it held. Nothing is freed meanwhile, because no difference can be
// computed; only when nothing of a chain is kept any more, all of it goes without one.

// purgeBatch is how many versions of a chain one transaction forgets.
const purgeBatch = 256

// errKept says that something of a chain is kept.
var errKept = errors.New("something of the chain is kept")

// drop commits a change that only drops holds of a version whose record cannot be
// written, because the key of its chain may not be used.
func (v *Vault) drop(ctx context.Context, row meta.Version, commit func(*meta.Tx, meta.Version) error) error {
	return v.db.Update(ctx, func(tx *meta.Tx) error {
		if err := notBehind(tx); err != nil {
			return err
		}
		if err := commit(tx, row); err != nil {
			return err
		}
		return tx.SetStale(row.ID, true)
	})
}

// usable returns the error of Kind KeyUnusable with which the records of a version
// cannot be written; nil when they can, or it is not known.
func (v *Vault) usable(ctx context.Context, row meta.Version) error {
	if _, err := v.recordSealer(ctx, row.Chain, row.ID); snapferry.IsKind(err, snapferry.KeyUnusable) {
		return err
	}
	return nil
}

// purge forgets a chain of which nothing is kept: all of its versions are ghosts.
// Their maps, which cannot be read, need not be, nor are records written that only
// say the way around them. errKept when something is kept.
func (v *Vault) purge(ctx context.Context, chain snapferry.ChainID, fence Fence, st *VisitStats) error {
	for more := true; more; {
		err := v.db.Update(ctx, func(tx *meta.Tx) (err error) {
			if err := fence(tx); err != nil {
				return err
			}
			more, err = purgeSome(tx, chain)
			return err
		})
		if err != nil {
			return err
		}
	}
	var gone []snapferry.VersionID
	err := v.db.View(ctx, func(tx *meta.Tx) error {
		graves, err := tx.Graves()
		for _, g := range graves {
			if g.Chain == chain && !g.Kept {
				gone = append(gone, g.Version)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return v.bury(ctx, gone, fence, st)
}

// purgeSome forgets some of the versions of a chain, children before their parents,
// and reports whether others are left. With the first the chain is not proven any
// more: before their records go, what no version refers to is looked for and marked.
func purgeSome(tx *meta.Tx, chain snapferry.ChainID) (more bool, err error) {
	all, err := tx.VersionsIn(chain)
	if err != nil || len(all) == 0 {
		return false, err
	}
	children := map[snapferry.VersionID]int{}
	byID := map[snapferry.VersionID]*meta.Version{}
	for i := range all {
		if all[i].State != snapferry.VersionGhost {
			return false, errKept
		}
		children[all[i].Parent]++
		byID[all[i].ID] = &all[i]
	}
	if err := tx.SetProven(chain, false); err != nil {
		return false, err
	}
	var leaves []*meta.Version
	for i := range all {
		if children[all[i].ID] == 0 {
			leaves = append(leaves, &all[i])
		}
	}
	n := 0
	for ; len(leaves) > 0 && n < purgeBatch; n++ {
		row := leaves[0]
		leaves = leaves[1:]
		if err := forgetGhost(tx, row); err != nil {
			return false, err
		}
		if children[row.Parent]--; children[row.Parent] == 0 && byID[row.Parent] != nil {
			leaves = append(leaves, byID[row.Parent])
		}
	}
	return n < len(all), nil
}

func forgetGhost(tx *meta.Tx, row *meta.Version) error {
	if err := tx.HandStored(row.ID, snapferry.VersionID{}, time.Now()); err != nil {
		return err
	}
	if err := tx.DeleteVersion(row.ID); err != nil {
		return err
	}
	return tx.PutGrave(meta.Grave{Version: row.ID, Chain: row.Chain, Revision: row.Reserved, Loose: row.Loose || row.Reserved > row.Revision})
}
