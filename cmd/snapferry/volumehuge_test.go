package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/nbd"
)

const tib = 1 << 40

// TestVolumeHuge writes, trims and zeroes all over the largest volume there is,
// and reads it again from its snapshot and after a rollback.
func TestVolumeHuge(t *testing.T) {
	t.Parallel()
	began := time.Now()
	s := newServed(t, 64*tib)
	t.Logf("served after %v", time.Since(began))
	dial := func(uri string) *nbd.Client {
		t.Helper()
		disk, err := nbd.Dial(t.Context(), uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { disk.Close() })
		return disk
	}
	letters := map[int64]byte{0: 'a', 256<<30 - 4096: 'b', 16*tib - 4096: 'c', 16 * tib: 'd', 32 * tib: 'e', 64*tib - 4096: 'f'}
	inside := map[int64]byte{3*tib + 8192: 'g', 4*tib - 4096: 'h', 5 * tib: 'i', 6*tib - 4096: 'j'} // what is trimmed and zeroed
	disk := dial(s.uri)
	write := func(all map[int64]byte) {
		t.Helper()
		for off, letter := range all {
			if _, err := disk.WriteAt(bytes.Repeat([]byte{letter}, 4096), off); err != nil {
				t.Fatal(err)
			}
		}
	}
	// has wants a disk to have the letters, and zeros instead of those inside if
	// those are gone.
	has := func(what string, disk *nbd.Client, gone bool) {
		t.Helper()
		for _, all := range []map[int64]byte{letters, inside} {
			for off, letter := range all {
				if _, in := inside[off]; in && gone {
					letter = 0
				}
				p := make([]byte, 4096)
				if _, err := disk.ReadAt(p, off); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{letter}, 4096)) {
					t.Errorf("%s at %d: got %q, %v, want %q", what, off, p[:4], err, letter)
				}
			}
		}
	}
	write(letters)
	write(inside)
	if err := disk.Sync(); err != nil {
		t.Fatal(err)
	}
	has("the volume", disk, false)
	one := s.snapshot()

	began = time.Now()
	if err := disk.Trim(3*tib, tib); err != nil {
		t.Fatal(err)
	}
	if err := disk.Zero(5*tib, tib, true); err != nil {
		t.Fatal(err)
	}
	t.Logf("trim and zero of 1 TiB each: %v", time.Since(began))
	has("the volume after trimming", disk, true)
	two := s.snapshot()
	writing := s.memory(demoEast)
	s.kill(demoEast)
	has("the volume after a kill", dial(s.uri), true)
	has("a volume of the first snapshot", dial(s.restored(one.ID)), false)
	has("a volume of the second snapshot", dial(s.restored(two.ID)), true)
	if _, err := s.c.UnexportVolume(t.Context(), s.volume.ID); err != nil {
		t.Fatal(err)
	}
	s.rollback(one.ID)
	has("the volume after a rollback", dial(s.export(s.volume.ID, client.VolumeExportRequest{})), false)
	s.sound()
	reading := s.memory(demoEast)
	t.Logf("memory: %d MiB when it was trimmed, %d MiB after the rollback", writing>>20, reading>>20)
	if most := int64(256 << 20); max(writing, reading) > most {
		t.Errorf("the region has %d and %d MiB, want at most %d", writing>>20, reading>>20, most>>20)
	}
}
