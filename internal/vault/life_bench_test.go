package vault_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// BenchmarkFree deletes versions from the middle of chains of ten and of a
// thousand, each of which changed the same sixteen blocks in four leaves: the
// cost is that of the change, however long the chain is. Answering is the part
// until the snapshot is gone for its owner, freeing the rest.
func BenchmarkFree(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("of %d", n), func(b *testing.B) {
			r, ids := longChain(b, n+b.N)
			ctx := context.Background()
			reads := r.Faulty.Count(blobtest.ReadAt).Requests
			points := r.Power.Points()
			var st vault.VisitStats
			b.ResetTimer()
			for i := range b.N {
				id := ids[n/2+i]
				b.StopTimer()
				r.Forget() // else only short chains lie in the caches
				b.StartTimer()
				if err := r.Vault.Release(ctx, simtest.Hold(id), nil); err != nil {
					b.Fatal(err)
				}
				if err := r.Vault.Visit(ctx, id, nil, &st); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			per := func(x int64) float64 { return float64(x) / float64(b.N) }
			b.ReportMetric(per(st.Slots.Load()), "slots/op")
			b.ReportMetric(per(r.Faulty.Count(blobtest.ReadAt).Requests-reads), "reads/op")
			b.ReportMetric(per(int64(r.Power.Points()-points)), "writes/op")
		})
	}
}

// BenchmarkRelease drops the last hold of a version in a chain of a thousand:
// what a deletion does before it answers.
func BenchmarkRelease(b *testing.B) {
	r, ids := longChain(b, 1000+b.N)
	b.ResetTimer()
	for i := range b.N {
		if err := r.Vault.Release(context.Background(), simtest.Hold(ids[500+i]), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// longChain makes a chain of n versions of a disk of 64 MiB, each of which
// changes the same sixteen blocks in four leaves.
func longChain(b *testing.B, n int) (*simtest.Region, []snapferry.VersionID) {
	b.Helper()
	r := simtest.NewRegion(b, simtest.Options{Codec: snapferry.Zstd})
	vol := r.Volume(r.Account("a"), "disk")
	var ids []snapferry.VersionID
	var parent snapferry.VersionID
	for v := range n {
		id, w := open(b, r, vol, parent, 64<<20)
		for leaf := range uint64(4) {
			changeLeaf(b, w, leaf, v)
		}
		if _, err := w.Seal(context.Background(), vault.SealConfig{Hold: simtest.Hold(id)}); err != nil {
			b.Fatal(err)
		}
		w.Close()
		ids, parent = append(ids, id), id
	}
	return r, ids
}

// changeLeaf fills a leaf: all of it in the first version, four blocks in each
// other.
func changeLeaf(b *testing.B, w *vault.Writer, leaf uint64, v int) {
	b.Helper()
	ctx := context.Background()
	base, err := w.Base().Leaf(ctx, leaf)
	if err != nil {
		b.Fatal(err)
	}
	ticket, err := w.Ticket(leaf)
	if err != nil {
		b.Fatal(err)
	}
	l, err := w.NewLeafWriter()
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if err := l.Begin(ctx, ticket); err != nil {
		b.Fatal(err)
	}
	for i := range blockmap.Fanout {
		if v > 0 && i >= 4 {
			d, _, _ := base.Child(i)
			err = l.Keep(i, d)
		} else {
			err = l.Put(i, simtest.Content(2*(1+v*1024+int(leaf)*blockmap.Fanout+i)))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := l.End(ctx); err != nil {
		b.Fatal(err)
	}
}
