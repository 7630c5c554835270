package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
)

// filled is a bucket with objects of several sizes, marks among them.
func filled(t *testing.T) (*blob.Bucket, map[string][]byte) {
	t.Helper()
	b := blob.New(memblob.New())
	all := map[string][]byte{"incarnation/1": []byte("1"), "incarnation/2": []byte("2"), "zz": nil}
	for i := range 40 {
		all[fmt.Sprintf("objects/%02d", i)] = blobtest.Bytes(uint64(i), i*10_000)
	}
	all["objects/big"] = blobtest.Bytes(99, 9<<20)
	for name, body := range all {
		if err := b.Put(t.Context(), name, body); err != nil {
			t.Fatal(err)
		}
	}
	return b, all
}

func wantSame(t *testing.T, b *blob.Bucket, want map[string][]byte) {
	t.Helper()
	n := 0
	err := b.List(t.Context(), "", "", func(i blob.Info) error {
		n++
		got, err := b.Get(t.Context(), i.Name, blob.MaxBody)
		if err != nil || !bytes.Equal(got, want[i.Name]) {
			t.Errorf("%s: got %d bytes, %v, want %d", i.Name, len(got), err, len(want[i.Name]))
		}
		return nil
	})
	if err != nil || n != len(want) {
		t.Errorf("list: got %d objects, %v, want %d", n, err, len(want))
	}
}

func TestCopy(t *testing.T) {
	from, all := filled(t)
	if err := from.Put(t.Context(), "check/0123/first", nil); err != nil { // a check was cut off
		t.Fatal(err)
	}
	var bytes int64
	for _, body := range all {
		bytes += int64(len(body))
	}
	to := blob.New(memblob.New())
	var shown int64
	report, err := blob.Copy(t.Context(), from, to, blob.CopyOptions{Last: "incarnation/", Progress: func(done, total int64) {
		if done < shown || total != bytes {
			t.Errorf("progress: got %d of %d after %d, want %d in all", done, total, shown, bytes)
		}
		shown = done
	}})
	if err != nil || shown != bytes {
		t.Fatalf("copy: %v, progress ended at %d of %d", err, shown, bytes)
	}
	n := int64(len(all))
	if diff := cmp.Diff(report, blob.CopyReport{Objects: n, Bytes: bytes, Copied: n, Moved: bytes}); diff != "" {
		t.Errorf("report (-got +want):\n%s", diff)
	}
	wantSame(t, to, all)
	report, err = blob.Copy(t.Context(), from, to, blob.CopyOptions{Last: "incarnation/"})
	if diff := cmp.Diff(report, blob.CopyReport{Objects: n, Bytes: bytes}); err != nil || diff != "" {
		t.Errorf("copy again: %v (-got +want):\n%s", err, diff)
	}
}

// TestCopyInterrupted fails each put of a copy, either way: the marks are never
// there before all else is, and the copy that follows completes it.
func TestCopyInterrupted(t *testing.T) {
	from, all := filled(t)
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		for n := 0; n < len(all); n += 3 {
			f := blobtest.NewFaulty(t, memblob.New())
			f.CutAfter(n, mode)
			to := blob.New(f)
			_, err := blob.Copy(t.Context(), from, to, blob.CopyOptions{Last: "incarnation/"})
			wantErr(t, "cut copy", err, snapferry.Unavailable, "on purpose")
			f.Restore()
			marks, others := 0, 0
			err = to.List(t.Context(), "", "", func(i blob.Info) error {
				if strings.HasPrefix(i.Name, "incarnation/") {
					marks++
				} else {
					others++
				}
				return nil
			})
			if err != nil || marks > 0 && others < len(all)-2 {
				t.Errorf("cut after %d: %v, %d marks beside %d objects", n, err, marks, others)
			}
			if _, err := blob.Copy(t.Context(), from, to, blob.CopyOptions{Last: "incarnation/"}); err != nil {
				t.Errorf("copy after a cut at %d: %v", n, err)
			}
			wantSame(t, to, all)
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	from, _ := filled(t)
	for what, c := range map[string]struct {
		spoil func(f *blobtest.Faulty) error
		kind  snapferry.Kind
		text  string
	}{
		"a stranger between": {func(f *blobtest.Faulty) error { return f.Put(t.Context(), "objects/05x", nil) }, snapferry.Conflict, "1 objects that the old one does not have, such as objects/05x"},
		"a stranger behind":  {func(f *blobtest.Faulty) error { return f.Put(t.Context(), "zzz", nil) }, snapferry.Conflict, "such as zzz"},
		"another size":       {func(f *blobtest.Faulty) error { return f.Put(t.Context(), "objects/05", nil) }, snapferry.Conflict, "objects/05 has 50000 bytes, and 0"},
		"other bytes":        {func(f *blobtest.Faulty) error { return f.Put(t.Context(), "objects/05", make([]byte, 50_000)) }, snapferry.Corrupt, "objects/05 has other bytes"},
		"damaged on the way": {func(f *blobtest.Faulty) error { f.FlipByte("objects/big", 8<<20); return nil }, snapferry.Corrupt, "objects/big has other bytes"},
		"shortened":          {func(f *blobtest.Faulty) error { f.Truncate("objects/big", 8<<20); return nil }, snapferry.Corrupt, "objects/big has other bytes"},
		"not readable":       {func(f *blobtest.Faulty) error { f.Fail(blobtest.ReadAt, "objects/*", 1, blobtest.Before); return nil }, snapferry.Unavailable, "on purpose"},
		"not listable":       {func(f *blobtest.Faulty) error { f.Fail(blobtest.List, "", 2, blobtest.Before); return nil }, snapferry.Unavailable, "on purpose"},
	} {
		f := blobtest.NewFaulty(t, memblob.New())
		if err := c.spoil(f); err != nil {
			t.Fatal(err)
		}
		_, err := blob.Copy(t.Context(), from, blob.New(f), blob.CopyOptions{Last: "incarnation/"})
		wantErr(t, what, err, c.kind, c.text)
		_, err = blob.New(f).Size(t.Context(), "incarnation/1")
		if !snapferry.IsKind(err, snapferry.NotFound) {
			t.Errorf("%s: the mark was copied: %v", what, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := blob.Copy(ctx, from, blob.New(memblob.New()), blob.CopyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v, want %v", err, context.Canceled)
	}
}
