package transfer_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// counted counts requests for nodes, and refuses those that it has not, as a
// region does.
type counted struct {
	*memory
	requests atomic.Int64
}

func (c *counted) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	c.requests.Add(1)
	return c.memory.Nodes(ctx, at, func(p snapferry.Position, n *blockmap.Node) error {
		if n == nil {
			return snapferry.Errorf(snapferry.NotFound, "no node of level %d, index %d", p.Level, p.Index)
		}
		return fn(p, n)
	})
}

// TestRoundTrips plans small disks in few requests that wait for each other.
func TestRoundTrips(t *testing.T) {
	full := simtest.NewDisk(40 << 20)
	for i := range uint64(640) {
		full.Fill(i, int(i)+1)
	}
	for name, test := range map[string]struct {
		disk *simtest.Disk
		want int64
	}{
		"full":                       {full, 1},
		"one hole":                   {full.Clone(40<<20).Fill(600, 0), 2},
		"nothing at its beginning":   {simtest.NewDisk(40<<20).Fill(300, 1), 2},
		"nothing in its first 4 GiB": {simtest.NewDisk(10<<30).Fill(100_000, 1), 3},
	} {
		src := &counted{memory: &memory{m: mapOf(t, test.disk), disk: test.disk}}
		p := transfer.Planner{Info: src.info(), Source: src, Base: blockmap.Map{Size: test.disk.Size(), Nodes: nodes{}}}
		if err := p.Run(t.Context(), func(transfer.Step) error { return nil }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := src.requests.Load(); got != test.want || p.Totals.MoveBlocks != int64(test.disk.Present()) {
			t.Errorf("%s: %d requests, want %d; %d blocks of %d", name, got, test.want, p.Totals.MoveBlocks, test.disk.Present())
		}
	}
}
