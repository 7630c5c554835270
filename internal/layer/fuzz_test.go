package layer_test

import (
	"bytes"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// FuzzOpen opens a layer of 1 GiB with any bytes in its map file: they are
// refused as corrupt, or are states of pages that the volume and the data file
// have, and stay as they are when they are written back.
func FuzzOpen(f *testing.F) {
	const pages = 1 << 18
	f.Add([]byte{0x55}, int64(0), int64(4))
	f.Add([]byte{0x55}, int64(0), int64(3))
	f.Add([]byte{0x30}, int64(70_000), int64(1000))
	f.Add([]byte{0xaa}, int64(pages/4-1), int64(0))
	f.Add([]byte{0xaa}, int64(pages/4), int64(0))
	f.Add(bytes.Repeat([]byte{0x55}, 4096), int64(4096), int64(pages))
	f.Fuzz(func(t *testing.T, p []byte, off, data int64) {
		if off < 0 || off > 20<<20 || data < 0 || data > pages || len(p) == 0 {
			return
		}
		fsys := layertest.New(t)
		if err := fsys.Mkdir("l"); err != nil {
			t.Fatal(err)
		}
		writeFile(t, fsys, "l/map.000", p, off)
		if data > 0 {
			writeFile(t, fsys, "l/data.000", []byte{1}, data*layer.PageSize-1)
		}
		l, err := layer.Open(fsys, "l", pages*layer.PageSize, nil)
		if err != nil {
			wantKind(t, "open", err, snapferry.Corrupt)
			return
		}
		defer l.Close()
		for i, b := range p {
			for k := range int64(4) {
				page := (off+int64(i))*4 + k
				want := layer.State(b >> (2 * k) & 3)
				if got := l.Lookup(page); got != want || want == layer.Data && page >= data || want != layer.Below && page >= pages {
					t.Fatalf("page %d: got %v, want %v", page, got, want)
				}
			}
		}
	})
}
