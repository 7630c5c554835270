package layer_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/layer/layertest"
	"github.com/snapferry/snapferry/internal/xts"
)

// fixedKeys seals nothing: it says what the sealed key is to be, and which key that
// is.
type fixedKeys struct{ sealed, key []byte }

func (k *fixedKeys) SealLayerKey(_ string, key []byte) ([]byte, error) {
	k.key = bytes.Clone(key)
	return k.sealed, nil
}

func (k *fixedKeys) OpenLayerKey(_ string, sealed []byte) ([]byte, error) {
	if !bytes.Equal(sealed, k.sealed) {
		return nil, snapferry.Errorf(snapferry.Corrupt, "another key")
	}
	return bytes.Clone(k.key), nil
}

func rawFile(t testing.TB, fsys layer.FS, name string) []byte {
	t.Helper()
	f, err := fsys.OpenFile(name, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, _, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return p
}

// TestEncryptedFiles looks into the files of an encrypted layer: each page is a unit
// of its own, with the number that it has in the volume, also in the second stripe; and
// the key file is the golden.
func TestEncryptedFiles(t *testing.T) {
	fsys := layertest.New(t)
	keys := &fixedKeys{sealed: []byte("sealed by somebody")}
	l, err := layer.Create(fsys, "l", volume, keys)
	if err != nil {
		t.Fatal(err)
	}
	plain := map[int64][]byte{}
	for n, page := range []int64{0, 1, 7, stripePages, stripePages + 5} {
		plain[page] = filled(byte(n+1), 1)
		mustWrite(t, l, page, plain[page])
	}
	if err := l.Patch([]byte("a part of it"), 7*layer.PageSize+100); err != nil {
		t.Fatal(err)
	}
	copy(plain[7][100:], "a part of it")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := xts.New(keys.key)
	if err != nil {
		t.Fatal(err)
	}
	for page, want := range plain {
		name := []string{"l/data.000", "l/data.001"}[page/stripePages]
		got := rawFile(t, fsys, name)[page%stripePages*layer.PageSize:][:layer.PageSize]
		c.Encrypt(want, want, uint64(page))
		if !bytes.Equal(got, want) {
			t.Errorf("page %d: got %x..., want %x...", page, got[:16], want[:16])
		}
	}
	got := rawFile(t, fsys, "l/key")
	want, err := os.ReadFile("testdata/key")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the key file is %x, want %x", got, want)
	}
}

// TestKeyFile damages key files, and opens layers with the keys of others.
func TestKeyFile(t *testing.T) {
	write := func(name string, p []byte, off int64) func(testing.TB, layer.FS) {
		return func(t testing.TB, fsys layer.FS) { writeFile(t, fsys, name, p, off) }
	}
	down := func() error { return snapferry.Errorf(snapferry.Unavailable, "the service is down") }
	for name, c := range map[string]struct {
		damage func(testing.TB, layer.FS)
		plain  bool // when it was made
		keys   layer.Keys
		want   snapferry.Kind
	}{
		"flipped byte":       {damage: write("l/key", []byte{0xff}, 12), keys: &layertest.Keys{}, want: snapferry.Corrupt},
		"wrong magic":        {damage: write("l/key", []byte("x"), 0), keys: &layertest.Keys{}, want: snapferry.Corrupt},
		"longer":             {damage: write("l/key", []byte("x"), 200), keys: &layertest.Keys{}, want: snapferry.Corrupt},
		"no key file":        {damage: func(t testing.TB, fsys layer.FS) { fsys.Remove("l/key") }, keys: &layertest.Keys{}, want: snapferry.Corrupt},
		"empty key file":     {damage: func(t testing.TB, fsys layer.FS) { fsys.Remove("l/key"); writeFile(t, fsys, "l/key", nil, 0) }, keys: &layertest.Keys{}, want: snapferry.Corrupt},
		"opened in clear":    {keys: nil, want: snapferry.Corrupt},
		"plain, with keys":   {plain: true, keys: &layertest.Keys{}, want: snapferry.Corrupt},
		"keys of others":     {keys: &fixedKeys{sealed: []byte("other")}, want: snapferry.Corrupt},
		"service is down":    {keys: &layertest.Keys{Fail: down}, want: snapferry.Unavailable},
		"a left replacement": {damage: write("l/key.new", []byte("half"), 0), keys: &layertest.Keys{}},
		"moved here from elsewhere": {damage: func(t testing.TB, fsys layer.FS) {
			l, err := layer.Create(fsys, "m", 1<<30, &layertest.Keys{})
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			fsys.Remove("l/key")
			writeFile(t, fsys, "l/key", rawFile(t, fsys, "m/key"), 0)
		}, keys: &layertest.Keys{}, want: snapferry.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			fsys := layertest.New(t)
			var made layer.Keys = &layertest.Keys{}
			if c.plain {
				made = nil
			}
			l, err := layer.Create(fsys, "l", 1<<30, made)
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, l, 3, filled(1, 2))
			if err := l.Sync(); err != nil {
				t.Fatal(err)
			}
			l.Close()
			if c.damage != nil {
				c.damage(t, fsys)
			}
			l, err = layer.Open(fsys, "l", 1<<30, c.keys)
			if c.want == 0 {
				if err != nil {
					t.Fatal(err)
				}
				mustRead(t, l, 3, filled(1, 2))
				l.Close()
			} else {
				wantKind(t, "open", err, c.want)
			}
			if n := fsys.Handles(); n > 0 {
				t.Errorf("%d files are still open", n)
			}
		})
	}
}

// TestNewKeyFails has no key made: there is an empty layer at most, which can be
// opened later.
func TestNewKeyFails(t *testing.T) {
	fsys := layertest.New(t)
	keys := &layertest.Keys{Fail: func() error { return snapferry.Errorf(snapferry.KeyUnusable, "the key is disabled") }}
	_, err := layer.Create(fsys, "l", 1<<30, keys)
	wantKind(t, "create", err, snapferry.KeyUnusable)
	keys.Fail = nil
	l, err := layer.Open(fsys, "l", 1<<30, keys)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, l, 3, filled(1, 2))
	l = func() *layer.Layer {
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		l.Close()
		again, err := layer.Open(fsys, "l", 1<<30, keys)
		if err != nil {
			t.Fatal(err)
		}
		return again
	}()
	defer l.Close()
	mustRead(t, l, 3, filled(1, 2))
}

// FuzzKeyFile opens layers with any key file: it is the one that was written, or
// refused.
func FuzzKeyFile(f *testing.F) {
	golden, err := os.ReadFile("testdata/key")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(golden[:len(golden)-1])
	f.Fuzz(func(t *testing.T, p []byte) {
		fsys := layertest.New(t)
		if err := fsys.Mkdir("l"); err != nil {
			t.Fatal(err)
		}
		writeFile(t, fsys, "l/key", p, 0)
		keys := &layertest.Keys{}
		l, err := layer.Open(fsys, "l", 1<<30, keys)
		if err == nil {
			l.Close()
			t.Fatalf("%x was taken", p)
		}
		if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
			t.Fatalf("got %v", err)
		}
	})
}
