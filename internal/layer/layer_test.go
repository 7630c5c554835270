package layer_test

import (
	"bytes"
	"testing"

	"github.com/snapferry/snapferry/internal/layer"
)

func TestSmoke(t *testing.T) {
	d, err := layer.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := layer.Create(d, "a", 64<<40)
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte{7}, 8192)
	for _, off := range []int64{4096, 64<<20 - 4096, layer.StripeSize - 4096, 63 << 40} {
		if _, err := l.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Zero(3, 20000); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l, err = layer.Open(d, "a", 64<<40)
	if err != nil {
		t.Fatal(err)
	}
	for page := int64(0); ; {
		first, n, s, ok := l.NextSet(page)
		if !ok {
			break
		}
		t.Log(first, n, s)
		page = first + n
	}
	t.Log(l.Memory())
	q := make([]byte, 8192)
	if _, err := l.ReadAt(q, layer.StripeSize-4096); err != nil || !bytes.Equal(p, q) {
		t.Fatal(err)
	}
	t.Log(l.ReadNow(q, layer.StripeSize-4096))
}
