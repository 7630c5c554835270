package blobtest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func (r *recorder) want(t *testing.T, texts ...string) {
	t.Helper()
	if len(r.errors) != len(texts) {
		t.Fatalf("the test failed with %q, want %q", r.errors, texts)
	}
	for i, text := range texts {
		if !strings.Contains(r.errors[i], text) {
			t.Errorf("the test failed with %q, want %q", r.errors[i], text)
		}
	}
}

func there(t *testing.T, d blob.Driver, name string) bool {
	t.Helper()
	_, err := d.Size(t.Context(), name)
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func wantUnavailable(t *testing.T, doing string, err error) {
	t.Helper()
	if !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("%s: got %v, want an error of kind %s", doing, err, snapferry.Unavailable)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFail(t *testing.T) {
	ctx := t.Context()
	d := memblob.New()
	f := blobtest.NewFaulty(t, d)
	f.Fail(blobtest.Put, "objects/*", 2, blobtest.Before)
	f.Fail(blobtest.Put, "objects/*", 3, blobtest.After)
	must(t, f.Put(ctx, "other", nil))
	must(t, f.Put(ctx, "objects/1", nil))
	wantUnavailable(t, "put 2", f.Put(ctx, "objects/2", nil))
	wantUnavailable(t, "put 3", f.Put(ctx, "objects/3", nil))
	must(t, f.Put(ctx, "objects/4", nil))
	if there(t, d, "objects/2") || !there(t, d, "objects/3") {
		t.Error("before and after are not what they say")
	}
	f.Fail(blobtest.Delete, "", 1, blobtest.After)
	wantUnavailable(t, "delete", f.Delete(ctx, "objects/1"))
	if there(t, d, "objects/1") {
		t.Error("after a delete that failed after it was done, the object is there")
	}
	f.Fail(blobtest.ReadAt, "", 1, blobtest.Before)
	_, err := f.ReadAt(ctx, "objects/4", nil, 0)
	wantUnavailable(t, "read", err)
	f.Fail(blobtest.List, "", 1, blobtest.After)
	wantUnavailable(t, "list", f.List(ctx, "", "", func(blob.Info) error { return nil }))
	f.Fail(blobtest.Size, "objects/4", 1, blobtest.Before)
	f.Restore()
	if !there(t, f, "objects/4") {
		t.Error("a fault came after restore")
	}
}

func TestCut(t *testing.T) {
	ctx := t.Context()
	for _, mode := range []blobtest.Mode{blobtest.Before, blobtest.After} {
		d := memblob.New()
		f := blobtest.NewFaulty(t, d)
		must(t, f.Put(ctx, "a", nil))
		f.CutAfter(2, mode)
		must(t, f.Put(ctx, "b", nil))
		must(t, f.Delete(ctx, "a"))
		if f.IsCut() || !there(t, f, "b") {
			t.Error("the power went too early")
		}
		wantUnavailable(t, "put at the cut", f.Put(ctx, "c", nil))
		wantUnavailable(t, "put after the cut", f.Put(ctx, "d", nil))
		wantUnavailable(t, "delete after the cut", f.Delete(ctx, "b"))
		_, err := f.Size(ctx, "b")
		wantUnavailable(t, "size after the cut", err)
		if !f.IsCut() || f.Mutations() != 4 {
			t.Errorf("got cut %v and %d mutations, want true and 4: %v", f.IsCut(), f.Mutations(), f)
		}
		f.Restore()
		if got, want := there(t, f, "c"), mode == blobtest.After; got != want {
			t.Errorf("cut %s: the object is there: %v, want %v", mode, got, want)
		}
		if there(t, f, "d") || !there(t, f, "b") {
			t.Error("something was done while the power was off")
		}
	}
}

func TestDamage(t *testing.T) {
	ctx := t.Context()
	f := blobtest.NewFaulty(t, memblob.New())
	body := []byte("0123456789")
	must(t, f.Put(ctx, "a", body))
	f.FlipByte("a", 4)
	f.Truncate("a", 8)
	p := make([]byte, 6)
	n, err := f.ReadAt(ctx, "a", p, 3)
	if want := []byte{'3', '4' ^ 0xff, '5', '6', '7'}; n != 5 || err != io.EOF || !bytes.Equal(p[:n], want) {
		t.Errorf("read: got %q, %v, want %q, EOF", p[:n], err, want)
	}
	if n, err := f.ReadAt(ctx, "a", p, 9); n != 0 || err != io.EOF {
		t.Errorf("read behind the end: got %d, %v, want 0, EOF", n, err)
	}
	if size, err := f.Size(ctx, "a"); size != 8 || err != nil {
		t.Errorf("size: got %d, %v, want 8", size, err)
	}
	must(t, f.List(ctx, "", "", func(i blob.Info) error {
		if diff := cmp.Diff(blob.Info{Name: "a", Size: 8}, i); diff != "" {
			t.Errorf("info differs (-want +got):\n%s", diff)
		}
		return nil
	}))
	f.Heal("a")
	if got, err := blob.New(f).Get(ctx, "a", 100); !bytes.Equal(got, body) || err != nil {
		t.Errorf("get after heal: got %q, %v, want %q", got, err, body)
	}
}

// careless overwrites.
type careless struct{ *memblob.Driver }

func (c careless) Put(ctx context.Context, name string, body []byte) error {
	if err := c.Delete(ctx, name); err != nil {
		return err
	}
	return c.Driver.Put(ctx, name, body)
}

func TestFaultyFailsTheTest(t *testing.T) {
	ctx := t.Context()
	r := &recorder{TB: t}
	f := blobtest.NewFaulty(r, careless{memblob.New()})
	must(t, f.Put(ctx, "a", []byte("1")))
	must(t, f.Put(ctx, "b", []byte("1")))
	r.want(t)
	must(t, f.Put(ctx, "a", []byte("1")))
	r.want(t, "object a was overwritten")
	must(t, f.Delete(ctx, "b"))
	must(t, f.Put(ctx, "b", []byte("1")))
	r.want(t, "object a was overwritten")
	must(t, f.Delete(ctx, "b"))
	must(t, f.Put(ctx, "b", []byte("2")))
	r.want(t, "object a was overwritten", "object b was deleted and came back with other bytes")
}

func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s := blobtest.NewSlow(memblob.New(), 5*time.Second)
		start := time.Now()
		must(t, s.Put(ctx, "a", make([]byte, 100)))
		_, err := s.ReadAt(ctx, "a", make([]byte, 30), 0)
		must(t, err)
		if got, want := time.Since(start), 10*time.Second; got != want {
			t.Errorf("two requests took %v, want %v", got, want)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := s.Size(short, "a"); err != context.DeadlineExceeded {
			t.Errorf("size with too little time: got %v, want %v", err, context.DeadlineExceeded)
		}
		got := map[blobtest.Op]blobtest.Count{}
		for _, op := range []blobtest.Op{blobtest.Put, blobtest.ReadAt, blobtest.Size, blobtest.List} {
			got[op] = s.Count(op)
		}
		want := map[blobtest.Op]blobtest.Count{
			blobtest.Put: {Requests: 1, Bytes: 100}, blobtest.ReadAt: {Requests: 1, Bytes: 30}, blobtest.Size: {Requests: 1}, blobtest.List: {},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("counts differ (-want +got):\n%s", diff)
		}
		s.Reset()
		if got := s.Count(blobtest.Put); got != (blobtest.Count{}) {
			t.Errorf("after reset: got %v, want nothing", got)
		}
	})
}
