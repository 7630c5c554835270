package main

import (
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/transfer"
)

const (
	maxCopies   = 1000
	maxQueued   = 100_000
	minPatience = time.Minute
	maxPatience = 365 * 24 * time.Hour
)

func (c *serverConfig) checkCopies() error {
	type count struct {
		key   string
		n, of int
	}
	counts := []count{{"copies_at_once", c.CopiesAtOnce, maxCopies}}
	for i := range c.Accounts {
		x := &c.Accounts[i]
		counts = append(counts, count{"copies of account " + x.Name, x.Copies, maxCopies}, count{"queued_copies of account " + x.Name, x.QueuedCopies, maxQueued})
	}
	for _, x := range counts {
		if x.n < 0 || x.n > x.of {
			return snapferry.Errorf(snapferry.Invalid, "%s: %d is not within 0 and %d", x.key, x.n, x.of).WithHint("0 is the default")
		}
	}
	if p := c.CopyPatience; p != nil && (*p < minPatience || *p > maxPatience) {
		return snapferry.Errorf(snapferry.Invalid, "copy_patience of %v is not within %v and %v", *p, minPatience, maxPatience).WithHint("write it like 72h")
	}
	return nil
}

// copies is what package control wants to know of copies.
func (c *serverConfig) copies() control.CopyConfig {
	x := control.CopyConfig{AtOnce: c.CopiesAtOnce, Quotas: map[string]control.Quota{}, Memory: c.share(transfer.DefaultMemory)}
	for i := range c.Accounts {
		a := &c.Accounts[i]
		x.Quotas[a.Name] = control.Quota{Copies: a.Copies, Queued: a.QueuedCopies, Strict: a.StrictCopies}
	}
	if c.CopyPatience != nil {
		x.Patience = *c.CopyPatience
	}
	return x
}

// operators are the accounts that may change what belongs to the region.
func (c *serverConfig) operators() map[string]bool {
	x := map[string]bool{}
	for i := range c.Accounts {
		x[c.Accounts[i].Name] = c.Accounts[i].Operator
	}
	return x
}
