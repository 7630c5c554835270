package control

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
)

// TestCoarseSet adds more than a set may have: it stays small, and has at least
// what was added.
func TestCoarseSet(t *testing.T) {
	const grain = int64(snapferry.BlockSize)
	fine := &coarseSet{grain: grain, most: 4}
	for _, block := range []int64{1, 2, 3, 10, 20} {
		fine.add(block * grain)
	}
	var got []extent.Extent
	for e := range fine.set.All() {
		got = append(got, e)
	}
	want := []extent.Extent{{Off: grain, Len: 3 * grain}, {Off: 10 * grain, Len: grain}, {Off: 20 * grain, Len: grain}}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("few (-got +want):\n%s", diff)
	}
	coarse := &coarseSet{grain: grain, most: 4}
	for block := int64(0); block < 4096; block += 2 {
		coarse.add(block * grain)
		if n := coarse.set.Count(); n > 4 {
			t.Fatalf("%d extents", n)
		}
	}
	for block := int64(0); block < 4096; block += 2 {
		if n, in := coarse.set.Run(block*grain, grain); !in || n != grain {
			t.Errorf("block %d: got %v for %d bytes", block, in, n)
		}
	}
	far := &coarseSet{grain: grain, most: 4}
	for i := range int64(5) {
		far.add(i * 1000 * grain)
	}
	if n := far.set.Count(); n < 2 || n > 4 {
		t.Errorf("five that lie apart: got %d extents", n)
	}
}
