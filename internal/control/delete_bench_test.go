package control_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/dirblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// BenchmarkDeleteAnswer deletes snapshots of a chain of 400 one by one, over a
// real directory, while upkeep frees what it can: how long the answers take, and
// how long it takes until all is free.
func BenchmarkDeleteAnswer(b *testing.B) { benchmarkDelete(b, 400, 1) }

// BenchmarkDeleteThousand deletes 1,000 of 1,001 snapshots, as the command does.
func BenchmarkDeleteThousand(b *testing.B) { benchmarkDelete(b, 1001, 1) }

// BenchmarkDeleteSecond deletes every second of 400 snapshots.
func BenchmarkDeleteSecond(b *testing.B) { benchmarkDelete(b, 400, 2) }

func benchmarkDelete(b *testing.B, n, step int) {
	ctx := context.Background()
	var answers []time.Duration
	var answered, free time.Duration
	for range b.N {
		b.StopTimer()
		dir, err := dirblob.Open(ctx, b.TempDir(), nil)
		if err != nil {
			b.Fatal(err)
		}
		r := simtest.NewRegion(b, simtest.Options{Driver: dir, Jobs: true})
		at, ids := chainOf(b, r, n)
		b.StartTimer()
		began := time.Now()
		for i := 0; i < n-1; i += step {
			start := time.Now()
			if err := r.Control.Delete(ctx, at, ids[i]); err != nil {
				b.Fatal(err)
			}
			answers = append(answers, time.Since(start))
		}
		answered += time.Since(began)
		for changed := r.DB.Changed(); !ended(b, r); changed = r.DB.Changed() {
			select {
			case <-changed:
			case <-time.After(50 * time.Millisecond):
			}
		}
		free += time.Since(began)
		b.StopTimer()
		r.Stop()
		dir.Close()
	}
	slices.Sort(answers)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	at := func(share float64) float64 { return ms(answers[int(share*float64(len(answers)-1))]) }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(1), "max-ms")
	b.ReportMetric(ms(answered)/float64(b.N), "answers-ms")
	b.ReportMetric(ms(free)/float64(b.N), "free-ms")
	b.ReportMetric(0, "ns/op")
}

func ended(b *testing.B, r *simtest.Region) (yes bool) {
	err := r.DB.View(context.Background(), func(tx *meta.Tx) (err error) {
		yes, err = upkeepEnded(tx)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return yes
}

// chainOf imports n snapshots of a disk, each with three other blocks.
func chainOf(b *testing.B, r *simtest.Region, n int) (at snapferry.AccountID, ids []snapferry.SnapshotID) {
	b.Helper()
	at = r.Account("a")
	d := firstDisk()
	for i := range n {
		d = d.Clone(size).Fill(uint64(i%50), 5001+2*i).Fill(uint64(60+i%50), 7001+2*i).Fill(3, 9000+i)
		s, err := r.Control.Import(context.Background(), at, control.ImportRequest{Volume: "disk", Disk: d, Close: func() {}})
		if err == nil {
			s, err = r.Control.Wait(context.Background(), at, s.ID, -1, patience)
		}
		if err != nil || s.State != snapferry.SnapshotReady {
			b.Fatalf("snapshot %d is %s (%s), %v", i, s.State, s.Reason, err)
		}
		ids = append(ids, s.ID)
	}
	return at, ids
}
