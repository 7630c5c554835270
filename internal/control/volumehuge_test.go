package control_test

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/snapferry/snapferry/internal/control"
)

const tib = 1 << 40

// zero makes a range of whole pages of a volume and its disk read as zeros.
func (l *lively) zero(off, n int64, trim bool) {
	l.t.Helper()
	h := l.open()
	var err error
	if trim {
		err = h.Trim(off, n)
	} else {
		err = h.Zero(off, n, true)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	for at := off; ; {
		e, ok, err := l.disk.Next(at)
		if err != nil {
			l.t.Fatal(err)
		}
		if !ok || e.Off >= off+n {
			return
		}
		if _, err := l.disk.WriteAt(make([]byte, min(e.End(), off+n)-e.Off), e.Off); err != nil {
			l.t.Fatal(err)
		}
		at = e.End()
	}
}

// around compares a volume with its disk around offsets.
func (l *lively) around(offs []int64) {
	l.t.Helper()
	h := l.open()
	for _, off := range offs {
		lo, hi := max(off-128<<10, 0), min(off+128<<10, l.disk.Size())
		got, want := make([]byte, hi-lo), make([]byte, hi-lo)
		if _, err := h.ReadAt(got, lo); err != nil {
			l.t.Fatal(err)
		}
		if _, err := l.disk.ReadAt(want, lo); err != nil {
			l.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			l.t.Errorf("volume %s of %d TiB: other bytes around %d", l.id, l.disk.Size()/tib, off)
		}
	}
}

// heap returns the bytes that are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what was in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Volumes that have more than 2^32 pages, and the largest there is: what is
// written, trimmed and zeroed anywhere in them is there, in their snapshots, in
// volumes made of those, and after a rollback; none of it takes much time or
// memory.
func TestHugeVolumes(t *testing.T) {
	for _, size := range []int64{17 * tib, 64 * tib} {
		t.Run(fmt.Sprintf("%d TiB", size/tib), func(t *testing.T) {
			a := newLively(t)
			began := time.Now()
			l := newVolume(t, a, control.VolumeRequest{Size: size, Name: "huge"}, 1)
			before := heap()
			step := func(what string) {
				t.Logf("%s: %v, %d KiB of heap", what, time.Since(began).Round(time.Millisecond), (heap()-before)>>10)
				began = time.Now()
			}
			step("create")
			// The start, a border of files, page 2^32, the middle, the last page.
			spots := []int64{0, 256 << 30, 16 * tib, size / 2, size - 4096}
			inside := []int64{3*tib + 123<<12, 4*tib - 4096, 5*tib + 512, 6*tib - 8192}
			all := append(spots, inside...)
			for i, off := range all {
				l.put('a'+byte(i), max(off-4096, 0), 4096)
				l.put('A'+byte(i), off, 4096)
			}
			l.put('x', 16*tib-300, 512) // parts of two pages
			l.around(all)
			first, firstDisk := l.snapshot()
			a.ready(first, firstDisk)
			step("write and upload")

			l.zero(3*tib, tib, true)
			l.zero(5*tib, tib, false)
			l.zero(size-4096, 4096, true)
			l.put('y', size-512, 512)
			l.around(all)
			second, secondDisk := l.snapshot()
			a.ready(second, secondDisk)
			l.calm(l.id)
			step("zero 2 TiB and upload")

			c := newVolume(t, a, control.VolumeRequest{Snapshot: first, Name: "restored"}, 2)
			c.disk = firstDisk.Clone(size)
			c.around(all)
			step("restore")
			c.zero(3*tib, tib, true)
			c.zero(5*tib, tib, false)
			step("zero 2 TiB over a version")
			c.put('z', size/2+100, 1000)
			c.around(all)
			third, thirdDisk := c.snapshot()
			a.ready(third, thirdDisk)
			c.around(all)
			step("upload")

			if _, err := a.Control.RollbackVolume(t.Context(), a.at, l.id, control.RollbackRequest{Snapshot: first}); err != nil {
				t.Fatal(err)
			}
			l.calm(l.id)
			l.disk = firstDisk.Clone(size)
			l.around(all)
			step("roll back")
			a.Restart()
			l.around(all)
			c.around(all)
			step("restart")
			if got := heap() - before; got > 64<<20 {
				t.Errorf("got %d MiB of heap in use, want at most 64", got>>20)
			}
		})
	}
}
