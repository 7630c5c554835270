package layer_test

import (
	"io"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/layer"
)

// nowhere is a file system that keeps nothing and counts what is written.
type nowhere struct{ written, syncs atomic.Int64 }

func (n *nowhere) OpenFile(string, bool) (layer.File, error) { return nothing{n}, nil }
func (*nowhere) Mkdir(string) error                          { return nil }
func (*nowhere) ReadDir(string) ([]string, error)            { return nil, nil }
func (*nowhere) Rename(string, string) error                 { return nil }
func (*nowhere) Remove(string) error                         { return nil }
func (*nowhere) SyncDir(string) error                        { return nil }

type nothing struct{ n *nowhere }

func (nothing) ReadAt([]byte, int64) (int, error)   { return 0, io.EOF }
func (nothing) ReadNow([]byte, int64) (bool, error) { return false, nil }
func (f nothing) WriteAt(p []byte, _ int64) (int, error) {
	f.n.written.Add(int64(len(p)))
	return len(p), nil
}
func (f nothing) Datasync() error        { f.n.syncs.Add(1); return nil }
func (nothing) Punch(int64, int64) error { return nil }
func (nothing) NextData(int64) (extent.Extent, bool, error) {
	return extent.Extent{}, false, nil
}
func (nothing) Stat() (size, allocated int64, err error) { return 0, 0, nil }
func (nothing) Close() error                             { return nil }

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// scatter writes one of a hundred of the first pages, at random.
func scatter(t testing.TB, l *layer.Layer, pages int64) {
	r := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, layer.PageSize)
	for range pages / 100 {
		if _, err := l.WriteAt(p, r.Int64N(pages)*layer.PageSize); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMemory holds the memory of a layer, as the runtime counts it, against its
// bounds: 16 MiB for each TiB of which one page of a hundred is written (see
// BenchmarkMemory too), little where there are fewer, almost nothing where all
// are.
func TestMemory(t *testing.T) {
	p := make([]byte, 64<<20)
	for _, test := range []struct {
		name  string
		write func(l *layer.Layer)
		limit int64
	}{
		{"nothing", func(*layer.Layer) {}, 8 << 10},
		{"1 % of 64 GiB at random", func(l *layer.Layer) { scatter(t, l, 1<<24) }, 1 << 20},
		{"1 page of each of 16,384 map pages", func(l *layer.Layer) {
			for i := range int64(16_384) {
				mustWrite(t, l, i<<14+i, p[:layer.PageSize])
			}
		}, 4 << 20},
		{"all of 1 TiB", func(l *layer.Layer) {
			for i := range int64(16_384) {
				mustWrite(t, l, i<<14, p)
			}
		}, 256 << 10},
		{"64 TiB of zeros", func(l *layer.Layer) {
			if err := l.Zero(0, 256*stripePages); err != nil {
				t.Fatal(err)
			}
		}, 12 << 20},
	} {
		before := heap()
		l := create(t, &nowhere{}, "l", volume)
		test.write(l)
		got, said := heap()-before, l.Memory()
		t.Logf("%s: %d KiB, Memory says %d KiB", test.name, got>>10, said>>10)
		if got > test.limit {
			t.Errorf("%s: got %d bytes, want at most %d", test.name, got, test.limit)
		}
		const other = 512 << 10 // that the test has, more or less
		if said > got*5/4+other || said < got*3/4-other {
			t.Errorf("%s: Memory says %d bytes, it takes %d", test.name, said, got)
		}
		runtime.KeepAlive(l)
	}
}

// BenchmarkMemory reports the memory of a layer of 1 TiB of which one page of a
// hundred is written.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := heap()
		l := create(b, &nowhere{}, "l", volume)
		scatter(b, l, 1<<28)
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
		runtime.KeepAlive(l)
	}
}
