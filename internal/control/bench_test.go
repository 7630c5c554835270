package control_test

import (
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/simtest"
)

// BenchmarkSlowCopy copies between two regions whose buckets take 20 ms for each
// request, as object stores do, and counts the requests on both sides: a whole
// disk of 256 MiB of which a third is holes, and then one with four blocks
// changed in each of its leaves of 16 MiB.
func BenchmarkSlowCopy(b *testing.B) {
	const delay = 20 * time.Millisecond
	atEast, atWest := blobtest.NewSlow(memblob.New(), delay), blobtest.NewSlow(memblob.New(), delay)
	east, west, _, _ := simtest.Pair(b, simtest.NewFactory(b), atEast, atWest)
	inEast, inWest := east.Account("a"), west.Account("a")
	ctx := b.Context()
	imported := func(d *simtest.Disk) snapferry.Snapshot {
		s, err := east.Control.Import(ctx, inEast, control.ImportRequest{Volume: "disk", Disk: d, Close: func() {}})
		if err == nil {
			s, err = east.Control.Wait(ctx, inEast, s.ID, -1, time.Minute)
		}
		if err != nil || s.State != snapferry.SnapshotReady {
			b.Fatalf("import: %v, %s (%s)", err, s.State, s.Reason)
		}
		return s
	}
	run := func(name string, full bool, next func() snapferry.Snapshot) {
		b.Run(name, func(b *testing.B) {
			var moved, reads, puts int64
			for b.Loop() {
				b.StopTimer()
				s := next()
				atEast.Reset()
				atWest.Reset()
				b.StartTimer()
				c, err := west.Control.Copy(ctx, inWest, control.CopyRequest{From: "east", Source: s.ID, Full: full})
				if err == nil {
					c, err = west.Control.Wait(ctx, inWest, c.ID, -1, time.Minute)
				}
				if err != nil || c.State != snapferry.SnapshotReady {
					b.Fatalf("copy: %v, %s (%s)", err, c.State, c.Reason)
				}
				moved, reads, puts = c.Counts.Changed, atEast.Requests(), atWest.Requests()
			}
			gib := float64(moved) / (1 << 30)
			b.SetBytes(moved)
			b.ReportMetric(float64(reads), "source-requests")
			b.ReportMetric(float64(puts), "destination-requests")
			b.ReportMetric(float64(reads)/gib, "source-requests/GiB")
			b.ReportMetric(float64(puts)/gib, "destination-requests/GiB")
		})
	}
	d := simtest.NewDisk(256 << 20)
	for i := range uint64(d.Size() / snapferry.BlockSize) {
		switch i / 16 % 3 {
		case 0:
			d.Fill(i, 2*int(i)+2)
		case 1:
			d.Fill(i, 2*int(i)+1)
		}
	}
	first := imported(d)
	run("full", true, func() snapferry.Snapshot { return first })
	seed := 1_000_001
	run("increment", false, func() snapferry.Snapshot {
		d = d.Clone(d.Size())
		for i := uint64(0); i < uint64(d.Size()/snapferry.BlockSize); i += 64 {
			d.Fill(i, seed)
			seed += 2
		}
		return imported(d)
	})
}
