package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
)

func wantErr(t *testing.T, doing string, err error, kind snapferry.Kind, text string) {
	t.Helper()
	if !snapferry.IsKind(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got %v, want an error of kind %s with %q", doing, err, kind, text)
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "0", "-", "_", "a.b", "a/b", "objects/ab12", strings.Repeat("a", blob.MaxName)} {
		if err := blob.CheckName(name); err != nil {
			t.Errorf("%q: got %v, want nil", name, err)
		}
	}
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", ".a", "a/.b", "a/../b", "A", "a b", "a\x00", "a\n", "ä", "a+", "a\\b", strings.Repeat("a", blob.MaxName+1),
	} {
		wantErr(t, name, blob.CheckName(name), snapferry.Invalid, "")
	}
}

func FuzzCheckName(f *testing.F) {
	f.Add("objects/ab12")
	f.Add("a/.b")
	f.Fuzz(func(t *testing.T, name string) {
		if blob.CheckName(name) != nil {
			return
		}
		for part := range strings.SplitSeq(name, "/") {
			if part == "" || part[0] == '.' || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
				t.Errorf("%q is accepted for its part %q", name, part)
			}
		}
	})
}

func TestBucketRefuses(t *testing.T) {
	ctx := t.Context()
	count := blobtest.NewSlow(memblob.New(), 0)
	b := blob.New(count)
	none := func(blob.Info) error { return nil }
	_, getErr := b.Get(ctx, "a/", 1)
	_, sizeErr := b.Size(ctx, "a//b")
	for doing, err := range map[string]error{
		"put a bad name":    b.Put(ctx, "../a", nil),
		"read a bad name":   b.ReadAt(ctx, "A", nil, 0),
		"get a bad name":    getErr,
		"size of bad name":  sizeErr,
		"delete a bad name": b.Delete(ctx, ""),
		"list a bad prefix": b.List(ctx, "a*", "", none),
		"put too much":      b.Put(ctx, "a", make([]byte, blob.MaxBody+1)),
		"read before 0":     b.ReadAt(ctx, "a", make([]byte, 1), -1),
		"read at the end":   b.ReadAt(ctx, "a", make([]byte, 2), math.MaxInt64-1),
	} {
		wantErr(t, doing, err, snapferry.Invalid, "")
	}
	for _, op := range []blobtest.Op{blobtest.Put, blobtest.ReadAt, blobtest.Size, blobtest.List, blobtest.Delete} {
		if got := count.Count(op).Requests; got != 0 {
			t.Errorf("%s reached the driver %d times, want 0", op, got)
		}
	}
}

func TestBucketErrorsSayWhat(t *testing.T) {
	ctx := t.Context()
	b := blob.New(memblob.New())
	if err := b.Put(ctx, "objects/ab12", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "put", b.Put(ctx, "objects/ab12", nil), snapferry.Exists, "put objects/ab12: ")
	wantErr(t, "read", b.ReadAt(ctx, "none", make([]byte, 1), 0), snapferry.NotFound, "read none: ")
	_, err := b.Get(ctx, "none", 10)
	wantErr(t, "get", err, snapferry.NotFound, "get none: ")
	_, err = b.Get(ctx, "objects/ab12", 9)
	wantErr(t, "get too much", err, snapferry.Corrupt, "object objects/ab12 has 10 bytes, more than the limit of 9")
	_, err = b.Size(ctx, "none")
	wantErr(t, "size", err, snapferry.NotFound, "size of none: ")
	wantErr(t, "read over the end", b.ReadAt(ctx, "objects/ab12", make([]byte, 8), 5), snapferry.Corrupt, "object objects/ab12 is 3 bytes shorter than 13")
	wantErr(t, "read behind the end", b.ReadAt(ctx, "objects/ab12", make([]byte, 8), 50), snapferry.Corrupt, "object objects/ab12 is 48 bytes shorter than 58")
	if err := b.ReadAt(ctx, "objects/ab12", make([]byte, 5), 5); err != nil {
		t.Errorf("read to the end: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	err = b.Put(gone, "a", nil)
	wantErr(t, "put when cancelled", err, snapferry.Cancelled, "put a: ")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("put when cancelled: got %v, want %v in its chain", err, context.Canceled)
	}
	late, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
	defer cancel()
	wantErr(t, "put when late", b.Put(late, "a", nil), snapferry.Unavailable, "put a: ")
	stop := errors.New("stop")
	if err := b.List(ctx, "", "", func(blob.Info) error { return stop }); err != stop {
		t.Errorf("list whose fn fails: got %v, want %v as it is", err, stop)
	}
}

func TestGet(t *testing.T) {
	b := blob.New(memblob.New())
	for _, body := range []string{"", "0123456789"} {
		name := "a" + body
		if err := b.Put(t.Context(), name, []byte(body)); err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(t.Context(), name, 10)
		if err != nil || string(got) != body {
			t.Errorf("get: got %q, %v, want %q", got, err, body)
		}
	}
}

// closer counts how often it is closed, and lets a put wait.
type closer struct {
	blob.Driver
	entered, goOn chan struct{}
	closed        atomic.Int32
}

func (c *closer) Put(ctx context.Context, name string, body []byte) error {
	close(c.entered)
	<-c.goOn
	if c.closed.Load() > 0 {
		return errors.New("closed during a put")
	}
	return c.Driver.Put(ctx, name, body)
}

func (c *closer) Close() error { c.closed.Add(1); return nil }

func TestClose(t *testing.T) {
	ctx := t.Context()
	d := &closer{Driver: memblob.New(), entered: make(chan struct{}), goOn: make(chan struct{})}
	b := blob.New(d)
	put, closed := make(chan error), make(chan error)
	go func() { put <- b.Put(ctx, "a", nil) }()
	<-d.entered
	go func() { closed <- b.Close() }()
	for { // until Close has begun
		if _, err := b.Size(ctx, "b"); snapferry.IsKind(err, snapferry.Conflict) {
			break
		}
	}
	close(d.goOn)
	if err := <-put; err != nil {
		t.Errorf("put while closing: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	wantErr(t, "put after close", b.Put(ctx, "c", nil), snapferry.Conflict, "put c: the bucket is closed")
	wantErr(t, "list after close", b.List(ctx, "", "", nil), snapferry.Conflict, "closed")
	if err := b.Close(); err != nil || d.closed.Load() != 1 {
		t.Errorf("close again: got %v, driver closed %d times, want 1", err, d.closed.Load())
	}
}

func TestAlignedBuffer(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 100_001, 1 << 20, 2 << 20, 2<<20 + 1, 5 << 20} {
		b := blob.AlignedBuffer(n)
		if len(b) != n || cap(b) != n || !blob.Aligned(b) {
			t.Errorf("buffer of %d: got length %d, capacity %d, aligned %v", n, len(b), cap(b), blob.Aligned(b))
		}
		if len(bytes.Trim(b, "\x00")) > 0 {
			t.Errorf("buffer of %d: not zero", n)
		}
	}
	if blob.Aligned(blob.AlignedBuffer(10)[1:]) {
		t.Error("an odd address is said to be aligned")
	}
}

// broken is a driver that lacks one property.
type broken struct {
	*memblob.Driver
	lacks   string
	deleted string      // the first object of a list that was deleted
	old     []blob.Info // the first list
}

func (d *broken) Put(ctx context.Context, name string, body []byte) error {
	err := d.Driver.Put(ctx, name, body)
	race := strings.Contains(name, "race")
	switch {
	case d.lacks == "overwrites" && err != nil, d.lacks == "overwrites and says exists" && err != nil && !race:
		d.Driver.Delete(ctx, name)
		if e := d.Driver.Put(ctx, name, body); e != nil || d.lacks == "overwrites" {
			return e
		}
	case d.lacks == "both win" && race, d.lacks == "silently keeps":
		return nil
	case d.lacks == "none wins" && race:
		return snapferry.Errorf(snapferry.Exists, "exists")
	case d.lacks == "loser's bytes" && race && err != nil:
		d.Driver.Delete(ctx, name)
		d.Driver.Put(ctx, name, body)
	}
	return err
}

func (d *broken) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if d.lacks == "reads late" {
		return 0, snapferry.Errorf(snapferry.NotFound, "no such object")
	}
	n, err := d.Driver.ReadAt(ctx, name, p, off)
	if d.lacks == "reads other bytes" && n > 0 || d.lacks == "reads other ranges" && off > 0 {
		p[n/2] ^= 1
	}
	return n, err
}

func (d *broken) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	switch d.lacks {
	case "lists late":
		return nil
	case "lists the dead":
		if d.deleted == "" {
			break
		}
		if err := fn(blob.Info{Name: d.deleted}); err != nil {
			return err
		}
	case "lists an old list":
		if d.old == nil {
			d.old = []blob.Info{}
			err := d.Driver.List(ctx, prefix, after, func(i blob.Info) error { d.old = append(d.old, i); return nil })
			if err != nil {
				return err
			}
		}
		for _, i := range d.old {
			if err := fn(i); err != nil {
				return err
			}
		}
		return nil
	}
	return d.Driver.List(ctx, prefix, after, fn)
}

func (d *broken) Delete(ctx context.Context, name string) error {
	switch d.lacks {
	case "keeps the deleted":
		return nil
	case "lists the dead":
		if d.deleted == "" && strings.Contains(name, "/list.") {
			d.deleted = name
		}
	}
	return d.Driver.Delete(ctx, name)
}

func TestCheck(t *testing.T) {
	for lacks, want := range map[string]string{
		"reads late": "read-after-write", "reads other bytes": "read-after-write", "reads other ranges": "read-after-write",
		"lists late": "list-after-write", "lists an old list": "list-after-write", "overwrites": "create-if-absent",
		"overwrites and says exists": "create-if-absent", "silently keeps": "create-if-absent", "both win": "create-if-absent", "none wins": "create-if-absent",
		"loser's bytes": "create-if-absent", "keeps the deleted": "delete", "lists the dead": "delete",
	} {
		d := &broken{Driver: memblob.New(), lacks: lacks}
		_, err := blob.New(d).Check(t.Context())
		wantErr(t, lacks, err, snapferry.Unsupported, "does not give "+want)
	}
	d := memblob.New()
	if _, err := blob.New(d).Check(t.Context()); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := d.List(t.Context(), "", "", func(i blob.Info) error { return errors.New(i.Name) }); err != nil {
		t.Errorf("the check left %v", err)
	}
}

// TestCheckFails proves that a store that cannot be reached is not called
// unfit, whichever request it is that fails.
func TestCheckFails(t *testing.T) {
	for _, op := range []blobtest.Op{blobtest.Put, blobtest.ReadAt, blobtest.Size, blobtest.List, blobtest.Delete} {
		for nth := 1; ; nth++ {
			f := blobtest.NewFaulty(t, memblob.New())
			f.Fail(op, "", nth, blobtest.Before)
			_, err := blob.New(f).Check(t.Context())
			if err == nil && nth > 1 {
				break
			}
			wantErr(t, op.String(), err, snapferry.Unavailable, "on purpose")
			if nth > 1000 {
				t.Fatal("the requests do not end")
			}
		}
	}
}

var _ io.Closer = (*blob.Bucket)(nil)
