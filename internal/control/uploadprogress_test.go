package control_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
)

// A moody file system fails reads from the nth on, or lets them wait.
type moody struct {
	layer.FS
	reads, from atomic.Int64 // from 0: all is well
	hold        atomic.Bool  // they wait
	asked, open chan struct{}
}

type moodyFile struct {
	layer.File
	fs *moody
}

func (f *moody) OpenFile(name string, create bool) (layer.File, error) {
	file, err := f.FS.OpenFile(name, create)
	return moodyFile{file, f}, err
}

func (f moodyFile) ReadAt(p []byte, off int64) (int, error) {
	from := f.fs.from.Load()
	if n := f.fs.reads.Add(1); from == 0 || n < from {
		return f.File.ReadAt(p, off)
	}
	if f.fs.hold.Load() {
		select {
		case f.fs.asked <- struct{}{}:
		default:
		}
		<-f.fs.open
		return f.File.ReadAt(p, off)
	}
	return 0, snapferry.Errorf(snapferry.Unavailable, "cannot be read just now")
}

// TestUploadProgressStays has an upload interrupted in the middle, once more, with
// the power cut, while it reads, and then end: whoever looks, whether it runs or
// not, sees it go on. So it does when it has to begin again over another base.
func TestUploadProgressStays(t *testing.T) {
	for _, rebased := range []bool{false, true} {
		fs := &moody{asked: make(chan struct{}, 1), open: make(chan struct{})}
		a := newLivelyOn(t, simtest.Options{CacheBytes: 64 << 20}, func(dir layer.FS) layer.FS { fs.FS = dir; return fs })
		release := sync.OnceFunc(func() { close(fs.open) })
		t.Cleanup(release)
		l := newVolume(t, a, control.VolumeRequest{Size: 384 << 20, Name: "data"}, 1)
		l.write(900)
		fs.reads.Store(0)
		first, firstDisk := l.snapshot()
		a.ready(first, firstDisk)
		all := fs.reads.Load()
		l.calm(l.id)
		l.disk, l.rng = simtest.NewDisk(l.disk.Size()), rand.New(rand.NewPCG(1, 1))
		if err := l.open().Zero(0, l.disk.Size(), false); err != nil {
			t.Fatal(err)
		}
		l.write(900)
		fs.reads.Store(0)
		fs.from.Store(all * 3 / 4)
		id, d := l.snapshot()

		seen := int64(0)
		look := func(when string) {
			t.Helper()
			s, err := a.Control.Snapshot(t.Context(), a.at, id)
			if err != nil {
				t.Fatal(err)
			}
			if s.State.Settled() {
				return
			}
			if s.Progress == nil || s.Progress.Done < seen || s.Progress.Total != s.Size || s.Progress.Done >= s.Size {
				t.Fatalf("%s: progress was %d of %d, and is %+v", when, seen, s.Size, s.Progress)
			}
			seen = s.Progress.Done
		}
		failed := func(tx *meta.Tx) (bool, error) {
			jobs, err := tx.JobsOf(string(l.id))
			for _, j := range jobs {
				if j.Kind == "upload" && j.Error != "" && j.State == snapferry.JobQueued {
					return true, err
				}
			}
			return false, err
		}
		idle(t, a.Region, "a run that failed", failed)
		look("after a run")
		if seen == 0 {
			t.Fatal("a run that came far shows nothing")
		}
		if rebased {
			a.Update(func(tx *meta.Tx) error {
				row, err := tx.Version(a.rowOf(id).Version)
				if err != nil {
					return err
				}
				row.Parent = snapferry.VersionID{}
				return tx.UpdateVersion(row, row.Edge)
			})
			fs.from.Store(1)
		}
		fs.hold.Store(true)
		<-fs.asked
		look("in the next run")
		a.Power.CutAt(0, blobtest.Before)
		fs.from.Store(0)
		release()
		a.Restart()
		look("after the power was cut")
		idle(t, a.Region, "the end of the upload", func(tx *meta.Tx) (bool, error) {
			look("to the end")
			s, err := tx.Snapshot(id)
			return s.State.Settled(), err
		})
		a.ready(id, d)
		l.calm(l.id)
		l.same()
	}
}
