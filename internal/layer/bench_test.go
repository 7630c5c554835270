package layer_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/snapferry/snapferry/internal/layer"
)

// forms are pages of containers in each form.
func forms(b *testing.B) (*layer.Layer, map[string]int64) {
	l := create(b, &nowhere{}, "l", volume)
	p := make([]byte, 64<<20)
	for i := range int64(512) {
		mustWrite(b, l, 1<<14+31*i, p[:layer.PageSize])
	}
	for i := range int64(2000) {
		mustWrite(b, l, 2<<14+8*i, p[:layer.PageSize])
	}
	mustWrite(b, l, 3<<14, p)
	return l, map[string]int64{"nil": 0, "array": 1 << 14, "bitmap": 2 << 14, "uniform": 3 << 14, "no-stripe": 9 * stripePages}
}

func BenchmarkLookup(b *testing.B) {
	l, forms := forms(b)
	for _, name := range []string{"no-stripe", "nil", "uniform", "array", "bitmap"} {
		b.Run(name, func(b *testing.B) {
			first, n := forms[name], int64(0)
			for b.Loop() {
				l.Lookup(first + n*7919%(1<<14))
				n++
			}
		})
	}
}

// BenchmarkRun asks for the state of 1 MiB.
func BenchmarkRun(b *testing.B) {
	l, forms := forms(b)
	for _, name := range []string{"no-stripe", "nil", "uniform", "array", "bitmap"} {
		b.Run(name, func(b *testing.B) {
			first, n := forms[name], int64(0)
			for b.Loop() {
				l.Run(first+n*7919%(1<<14), 256)
				n++
			}
		})
	}
}

// BenchmarkWriteAt writes 4 KiB at random: pages that are Data already, and new
// ones, on a file system that does nothing and on the real one.
func BenchmarkWriteAt(b *testing.B) {
	p := make([]byte, layer.PageSize)
	for name, fsys := range map[string]layer.FS{"nowhere": &nowhere{}, "disk": openDir(b)} {
		b.Run("present/"+name, func(b *testing.B) {
			l := create(b, fsys, fmt.Sprint("p", rand.Uint64()), volume)
			mustWrite(b, l, 0, make([]byte, 64<<20))
			b.ReportAllocs()
			for b.Loop() {
				l.WriteAt(p, rand.Int64N(1<<14)*layer.PageSize)
			}
		})
		b.Run("first/"+name, func(b *testing.B) {
			l := create(b, fsys, fmt.Sprint("f", rand.Uint64()), volume)
			b.ReportAllocs()
			n := int64(0)
			for b.Loop() {
				l.WriteAt(p, n*40503%(1<<22)*layer.PageSize)
				n++
			}
		})
	}
}

func BenchmarkReadNow(b *testing.B) {
	l := create(b, openDir(b), "l", volume)
	mustWrite(b, l, 0, make([]byte, 64<<20))
	p := make([]byte, layer.PageSize)
	misses := 0
	for b.Loop() {
		if done, err := l.ReadNow(p, rand.Int64N(1<<14)*layer.PageSize); err != nil {
			b.Fatal(err)
		} else if !done {
			misses++
		}
	}
	b.ReportMetric(float64(misses)/float64(b.N), "misses/op")
}

// BenchmarkSync syncs after so many writes of a page of its own map page each;
// "old" after one write of a page that is Data.
func BenchmarkSync(b *testing.B) {
	p := make([]byte, layer.PageSize)
	b.Run("nothing", func(b *testing.B) {
		l := create(b, openDir(b), "l", volume)
		mustWrite(b, l, 0, p)
		for b.Loop() {
			if err := l.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("old", func(b *testing.B) {
		l := create(b, openDir(b), "l", volume)
		mustWrite(b, l, 0, p)
		for b.Loop() {
			mustWrite(b, l, 0, p)
			if err := l.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, maps := range []int64{1, 1000} {
		b.Run(fmt.Sprint("maps-", maps), func(b *testing.B) {
			l := create(b, openDir(b), "l", volume)
			n := int64(0)
			for b.Loop() {
				for i := range maps {
					mustWrite(b, l, i<<14+n, p)
				}
				n++
				if err := l.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSyncMany has 32 goroutines write a page and sync, each.
func BenchmarkSyncMany(b *testing.B) {
	l := create(b, openDir(b), "l", volume)
	mustWrite(b, l, 0, make([]byte, 64<<20))
	if err := l.Sync(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, layer.PageSize)
		for pb.Next() {
			if _, err := l.WriteAt(p, rand.Int64N(1<<14)*layer.PageSize); err != nil {
				b.Error(err)
			}
			if err := l.Sync(); err != nil {
				b.Error(err)
			}
		}
	})
}
