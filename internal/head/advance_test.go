package head

import (
	"context"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// none is an image without data.
type none struct{}

func (none) Size() int64                                { return 1 << 20 }
func (none) Read(context.Context, uint64, []byte) error { return nil }

func (none) Run(_ context.Context, _, n int64) (int64, bool, error) { return n, false, nil }

// Who makes room may have chosen a volume just before it was closed.
func TestNothingIsDroppedAfterClose(t *testing.T) {
	fs := layertest.New(t)
	if err := Create(fs, "v", 1<<20, snapferry.VersionID{}, nil); err != nil {
		t.Fatal(err)
	}
	caches, err := OpenCaches(fs, "caches", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(t.Context(), Config{
		FS: fs, Dir: "v", Caches: caches,
		Image: func(context.Context, snapferry.VersionID) (Image, error) { return none{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(make([]byte, pageSize), 0); err != nil {
		t.Fatal(err)
	}
	layers, err := Freeze(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Sealed(t.Context(), layers[0], filled(7)); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	ops := fs.Ops()
	if _, err := v.dropClean(); err != nil {
		t.Error(err)
	}
	if n := fs.Ops() - ops; n > 0 || fs.Handles() > 0 {
		t.Errorf("%d changes of a closed volume, %d files are open; want none", n, fs.Handles())
	}
	if err := caches.Close(); err != nil {
		t.Error(err)
	}
}
