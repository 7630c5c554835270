package control

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/limit"
	"github.com/snapferry/snapferry/internal/meta"
)

// LimitRequest sets what may cross into this region.
type LimitRequest struct {
	// Scope is "link/REGION", for all that comes from a region; "account", for all
	// that comes for the account that asks; or "account/NAME". All but "account"
	// are for operators.
	Scope string
	Plan  limit.Plan
}

// SetLimit sets a limit, also for what is under way. The zero Plan takes it away.
func (r *Region) SetLimit(ctx context.Context, account snapferry.AccountID, req LimitRequest) error {
	if err := req.Plan.Check(); err != nil {
		return err
	}
	text, err := json.Marshal(req.Plan)
	if err != nil {
		return snapferry.Errorf(snapferry.Internal, "encode limit: %w", err)
	}
	var rows []meta.Limit
	now := time.Now()
	err = r.db.Update(ctx, func(tx *meta.Tx) error {
		scope, err := r.limitScope(tx, account, req.Scope)
		if err != nil {
			return err
		}
		if req.Plan.Rate == 0 && len(req.Plan.Windows) == 0 {
			err = tx.DeleteLimit(scope)
		} else {
			err = tx.PutLimit(meta.Limit{Scope: scope, Value: string(text), Set: now})
		}
		if err != nil {
			return err
		}
		if rows, err = tx.Limits(); err != nil {
			return err
		}
		return audit(tx, account, "SetLimit", scope, string(text))
	})
	if err != nil {
		return err
	}
	return r.limits.load(rows, now)
}

// limitScope returns the scope that a request means, if the account may set it.
func (r *Region) limitScope(tx *meta.Tx, account snapferry.AccountID, scope string) (string, error) {
	if scope == "account" {
		return scopeAccount + string(account), nil
	}
	kind, name, _ := strings.Cut(scope, "/")
	switch kind + "/" {
	case scopeLink:
		if r.peers[snapferry.RegionName(name)] == nil {
			return "", snapferry.Errorf(snapferry.NotFound, "region %s does not know a region %q", r.name, name).WithHint("it knows: %v", r.Peers())
		}
		return scope, r.mayOperate(tx, account)
	case scopeAccount:
		if err := r.mayOperate(tx, account); err != nil {
			return "", err
		}
		all, err := tx.Accounts()
		for _, a := range all {
			if a.Name == name {
				return scopeAccount + string(a.ID), nil
			}
		}
		if err == nil {
			err = snapferry.Errorf(snapferry.NotFound, "region %s has no account %q", r.name, name)
		}
		return "", err
	}
	return "", snapferry.Errorf(snapferry.Invalid, "there is no scope %q", scope).WithHint("give link/REGION, account, or account/NAME")
}

// Limits lists the limits of the region's links and of the account, or, for an
// operator, of all accounts.
func (r *Region) Limits(ctx context.Context, account snapferry.AccountID) ([]snapferry.Limit, error) {
	out := []snapferry.Limit{}
	now := time.Now()
	err := r.db.View(ctx, func(tx *meta.Tx) error {
		rows, err := tx.Limits()
		if err != nil {
			return err
		}
		accounts, err := tx.Accounts()
		if err != nil {
			return err
		}
		names := map[string]string{}
		for _, a := range accounts {
			if a.ID == account || r.mayOperate(tx, account) == nil {
				names[scopeAccount+string(a.ID)] = scopeAccount + a.Name
			}
		}
		for _, row := range rows {
			scope := row.Scope
			if strings.HasPrefix(scope, scopeAccount) {
				if scope = names[scope]; scope == "" {
					continue
				}
			}
			var p limit.Plan
			if err := json.Unmarshal([]byte(row.Value), &p); err != nil {
				return snapferry.Errorf(snapferry.Corrupt, "the limit of %s cannot be read: %w", scope, err)
			}
			x := snapferry.Limit{Scope: scope, Rate: p.Rate, Set: row.Set}
			for _, w := range p.Windows {
				x.Windows = append(x.Windows, snapferry.LimitWindow{From: w.From.String(), To: w.To.String(), Rate: w.Rate})
			}
			x.Now, _ = p.At(now)
			out = append(out, x)
		}
		return nil
	})
	return out, err
}

// ParsePlan makes a plan of what users write.
func ParsePlan(l snapferry.Limit) (p limit.Plan, err error) {
	p.Rate = l.Rate
	for _, w := range l.Windows {
		x := limit.Window{Rate: w.Rate}
		if x.From, err = limit.ParseClock(w.From); err == nil {
			x.To, err = limit.ParseClock(w.To)
		}
		if err != nil {
			return p, fmt.Errorf("a window of the limit: %w", err)
		}
		p.Windows = append(p.Windows, x)
	}
	return p, p.Check()
}
