package head_test

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/head"
)

// BenchmarkIdle reports the heap of a volume of 1 TiB of which 1 % was written, at
// random in single pages, in three layers, and how long it takes to open it. It
// takes 11 GiB in TMPDIR, and minutes if that is not in memory.
func BenchmarkIdle(b *testing.B) {
	fs := tempFS(b)
	if err := head.Create(fs, "v", 1<<40, snapferry.VersionID{}, nil); err != nil {
		b.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	v, err := head.Open(b.Context(), head.Config{FS: fs, Dir: "v"})
	if err != nil {
		b.Fatal(err)
	}
	rng, p := rand.New(rand.NewPCG(1, 1)), make([]byte, page)
	for layer := range 3 {
		for range (1 << 40) / page / 300 {
			p[0]++
			if _, err := v.WriteAt(p, rng.Int64N(1<<40/page)*page); err != nil {
				b.Fatal(err)
			}
		}
		if layer == 2 {
			break
		}
		frozen, err := head.Freeze(b.Context(), v)
		if err == nil {
			err = v.Settle(b.Context(), frozen[0])
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := v.Sync(); err != nil {
		b.Fatal(err)
	}
	written := heap() - before
	for b.Loop() {
		if err := v.Close(); err != nil {
			b.Fatal(err)
		}
		if v, err = head.Open(b.Context(), head.Config{FS: fs, Dir: "v"}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(written)/(1<<20), "MiB")
	b.ReportMetric(float64(heap()-before)/(1<<20), "MiB-reopened")
	if err := v.Close(); err != nil {
		b.Fatal(err)
	}
}
