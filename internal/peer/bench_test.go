package peer_test

import (
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/linktest"
	"github.com/snapferry/snapferry/internal/peer"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// random is a disk of so many random bytes, made as they are read.
type random int64

func (r random) Size() int64 { return int64(r) }

func (r random) ReadAt(p []byte, off int64) (int, error) {
	const unit = 4 << 10
	for n := 0; n < len(p); n += unit {
		var seed [32]byte
		binary.BigEndian.PutUint64(seed[:], uint64(off)+uint64(n)+1)
		if _, err := rand.NewChaCha8(seed).Read(p[n:min(n+unit, len(p))]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (r random) Next(off int64) (extent.Extent, bool, error) {
	return extent.Extent{Off: off, Len: int64(r) - off}, off < int64(r), nil
}

// pair makes two regions of which west reaches east over TLS and, if the shape is
// not nil, a long link.
func pair(tb testing.TB, shape *linktest.Shape) (east, west *simtest.Region, l *linktest.Link) {
	tb.Helper()
	ca, f, toWest := authority(tb), simtest.NewFactory(tb), simtest.NewLink("east")
	east = f.NewRegion(tb, simtest.Options{
		Name: "east", Jobs: true, Codec: snapferry.Zstd, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": toWest.As},
	})
	addr, config := serve(tb, ca, peer.Handler(control.Host{Region: east.Control}, slog.New(slog.DiscardHandler)))
	if shape != nil {
		l = linktest.Start(tb, addr, *shape)
		addr = l.Address
	}
	client := peer.NewClient("east", addr, config(ca, "west", "east"))
	tb.Cleanup(client.Close)
	west = f.NewRegion(tb, simtest.Options{Name: "west", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": client.As}})
	toWest.Join(west)
	return east, west, l
}

// imported puts a disk into a region.
func imported(tb testing.TB, r *simtest.Region, volume string, d random) snapferry.Snapshot {
	tb.Helper()
	ctx, account := tb.Context(), r.Account("a")
	s, err := r.Control.Import(ctx, account, control.ImportRequest{Volume: volume, Disk: d, Close: func() {}})
	if err == nil {
		s, err = r.Control.Wait(ctx, account, s.ID, -1, time.Minute)
	}
	if err != nil || s.State != snapferry.SnapshotReady {
		tb.Fatalf("import: %v, %s (%s)", err, s.State, s.Reason)
	}
	return s
}

// copied copies a snapshot of east, whole, from the call until it is ready.
func copied(tb testing.TB, r *simtest.Region, s snapferry.Snapshot) snapferry.Snapshot {
	tb.Helper()
	ctx, account := tb.Context(), r.Account("a")
	c, err := r.Control.Copy(ctx, account, control.CopyRequest{From: "east", Source: s.ID, Full: true})
	for err == nil && !c.State.Settled() {
		c, err = r.Control.Wait(ctx, account, c.ID, -1, time.Minute)
	}
	if err != nil || c.State != snapferry.SnapshotReady || c.Digest != s.Digest {
		tb.Errorf("copy: %v, %s (%s)", err, c.State, c.Reason)
	}
	return c
}

// BenchmarkLongLink copies 400 MiB of random bytes over a link of 50 MB/s with a
// round trip of 100 ms. It reports how much of the link's rate that is, from the
// call until the snapshot is ready, and from when a tenth of it has come until
// nine tenths have; and the time until the first MiB has come, and from the last
// byte to the end.
func BenchmarkLongLink(b *testing.B) {
	const size, trip = 400 << 20, 100 * time.Millisecond
	for _, test := range []struct {
		name  string
		size  int64
		shape linktest.Shape
	}{
		{"50MBps", size, linktest.Shape{Rate: 50e6, RoundTrip: trip}},
		{"50MBps-10MBps-a-connection", size, linktest.Shape{Rate: 50e6, RoundTrip: trip, Window: 1 << 20}},
		{"50MBps-2MBps-a-connection", size, linktest.Shape{Rate: 50e6, RoundTrip: trip, Window: 200 << 10}},
		{"12MBps", size / 4, linktest.Shape{Rate: 12e6, RoundTrip: trip}},
	} {
		b.Run(test.name, func(b *testing.B) {
			east, west, l := pair(b, &test.shape)
			s := imported(b, east, "disk", random(test.size))
			var t times
			for b.Loop() {
				t = timesOf(l, test.size, func() { copied(b, west, s) })
			}
			b.SetBytes(test.size)
			b.ReportMetric(percent(test.size, test.shape.Rate, b.Elapsed()/time.Duration(b.N)), "%-of-cap")
			b.ReportMetric(percent(test.size*8/10, test.shape.Rate, t.steady), "%-of-cap-steady")
			b.ReportMetric(t.begin.Seconds(), "s-to-begin")
			b.ReportMetric(t.end.Seconds(), "s-to-end")
		})
	}
}

// percent is what part of a rate it is when so many bytes come in a time.
func percent(bytes, rate int64, took time.Duration) float64 {
	return 100 * float64(bytes) / took.Seconds() / float64(rate)
}

// times are those of a copy over a link.
type times struct {
	begin  time.Duration // until the first MiB has come
	steady time.Duration // from the first tenth to the last
	end    time.Duration // after the last byte
}

// timesOf calls fn, over which so many bytes come over a link.
func timesOf(l *linktest.Link, size int64, fn func()) times {
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	_, before := l.Passed()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	marks := []int64{1 << 20, size / 10, size * 9 / 10, size}
	at := []time.Time{time.Now()}
	for {
		select {
		case <-done:
			if len(at) <= len(marks) {
				return times{}
			}
			return times{begin: at[1].Sub(at[0]), steady: at[3].Sub(at[2]), end: time.Since(at[4])}
		case now := <-tick.C:
			_, back := l.Passed()
			for len(at) <= len(marks) && back-before >= marks[len(at)-1] {
				at = append(at, now)
			}
		}
	}
}
