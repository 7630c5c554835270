package control_test

import (
	"sync"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/layer/layertest"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// Faults that worlds of the simulation came upon.

// TestFirstVolumeSurvives cuts the power soon after a region's first start: its
// first volume is there then.
func TestFirstVolumeSurvives(t *testing.T) {
	f := simtest.NewFactory(t)
	for seed := range uint64(8) {
		fs := layertest.New(t)
		a := &alone{Region: f.NewRegion(t, simtest.Options{Jobs: true, Files: fs, Exporter: &shelf{}}), t: t}
		a.at = a.Account("a")
		<-a.Control.Started()
		v := a.volume(control.VolumeRequest{Size: size})
		a.Reboot(fs.Cut(seed), true)
		<-a.Control.Started()
		if _, err := a.Control.Live(t.Context(), v.ID); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		a.Stop()
	}
}

// TestPinOfDeleted pins a snapshot while it is deleted and a volume keeps its
// version: a pin that is given lets its copy read.
func TestPinOfDeleted(t *testing.T) {
	a := newLively(t)
	caller := transfer.Caller{Region: a.Name, Account: "a"}
	host := control.Host{Region: a.Control}
	d := firstDisk()
	for range 30 {
		s := a.imported("disk", d)
		a.volume(control.VolumeRequest{Snapshot: s.ID})
		var both sync.WaitGroup
		var perr, derr error
		both.Go(func() {
			_, perr = host.Pin(t.Context(), caller, transfer.Pin{Snapshot: s.ID, Copy: snapferry.NewCopyID()})
		})
		both.Go(func() { derr = a.Control.Delete(t.Context(), a.at, s.ID) })
		both.Wait()
		if derr != nil {
			t.Fatal(derr)
		}
		_, err := host.Describe(t.Context(), caller, s.ID)
		if (err == nil) != (perr == nil) {
			t.Fatalf("pin: %v, and then describe: %v", perr, err)
		}
	}
}
