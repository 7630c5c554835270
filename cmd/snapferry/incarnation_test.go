package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/meta"
)

func openMeta(t *testing.T, path string, hooks meta.Hooks) *meta.DB {
	t.Helper()
	db, err := meta.Open(t.Context(), meta.Config{Path: path, Hooks: hooks})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestIncarnations(t *testing.T) {
	ctx := t.Context()
	bucket := blob.New(memblob.New())
	db := openMeta(t, filepath.Join(t.TempDir(), "meta.db"), meta.Hooks{})
	var first meta.Region
	for n := uint64(1); n <= 3; n++ {
		row, err := startRegion(ctx, db, bucket, "east")
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			first = row
		}
		if row.Incarnation != n || row.ID != first.ID {
			t.Fatalf("start %d gives incarnation %d of region %s, want %d of %s", n, row.Incarnation, row.ID, n, first.ID)
		}
	}
	if _, err := startRegion(ctx, db, bucket, "west"); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("start under another name: %v, want a conflict", err)
	}
	if _, err := startRegion(ctx, db, blob.New(memblob.New()), "east"); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("start with an empty bucket: %v, want a conflict", err)
	}
	fresh := openMeta(t, filepath.Join(t.TempDir(), "meta.db"), meta.Hooks{})
	if _, err := startRegion(ctx, fresh, bucket, "east"); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("start with fresh metadata: %v, want a conflict", err)
	}
	setIncarnation(t, db, 1)
	if _, err := startRegion(ctx, db, bucket, "east"); !snapferry.IsKind(err, snapferry.Conflict) || snapferry.HintOf(err) == "" {
		t.Errorf("start with old metadata: %v, want a conflict with a hint", err)
	}
}

// A check sees every byte that changed in the mark of a start.
func TestIncarnationMark(t *testing.T) {
	bucket := blob.New(memblob.New())
	db := openMeta(t, filepath.Join(t.TempDir(), "meta.db"), meta.Hooks{})
	row, err := startRegion(t.Context(), db, bucket, "east")
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{db: db}
	p, err := bucket.Get(t.Context(), incarnationName(row.Incarnation), incarnationLimit)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.mark(t.Context(), row.Incarnation, p); err != nil {
		t.Errorf("a sound mark: %v", err)
	}
	for i := range p {
		p[i] ^= 1
		if err := c.mark(t.Context(), row.Incarnation, p); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("byte %d: %v, want corrupt", i, err)
		}
		p[i] ^= 1
	}
}

func setIncarnation(t *testing.T, db *meta.DB, n uint64) {
	t.Helper()
	err := db.Update(t.Context(), func(tx *meta.Tx) error {
		row, err := tx.Region()
		row.Incarnation = n
		return errors.Join(err, tx.PutRegion(row))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The next incarnation is in the bucket: ours, when the start that made it is
// in the metadata; else somebody else used a copy of the metadata.
func TestIncarnationTaken(t *testing.T) {
	ctx := t.Context()
	for _, known := range []bool{true, false} {
		bucket := blob.New(memblob.New())
		db := openMeta(t, filepath.Join(t.TempDir(), "meta.db"), meta.Hooks{})
		row, err := startRegion(ctx, db, bucket, "east")
		if err != nil {
			t.Fatal(err)
		}
		x := incarnation{Version: 1, ID: row.ID, Name: "east", Number: 2, Start: "0123"}
		p, err := json.Marshal(x)
		if err == nil {
			err = bucket.Put(ctx, incarnationName(2), p)
		}
		if err == nil && known {
			err = db.Update(ctx, func(tx *meta.Tx) error {
				return tx.AddAudit(meta.Audit{Action: actionStart, Subject: incarnationName(2), Detail: "0123"})
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		row, err = startRegion(ctx, db, bucket, "east")
		if known && (err != nil || row.Incarnation != 2) {
			t.Errorf("start after a lost commit: incarnation %d, %v, want 2", row.Incarnation, err)
		}
		if !known && !snapferry.IsKind(err, snapferry.Conflict) {
			t.Errorf("start with a copy of the metadata: %v, want a conflict", err)
		}
	}
}

// Every commit of a start fails once, without and with effect; the next start
// always succeeds.
func TestIncarnationCutShort(t *testing.T) {
	lost := errors.New("the power went")
	for cut := range 4 {
		for _, after := range []bool{false, true} {
			ctx := context.Background()
			bucket := blob.New(memblob.New())
			commits, armed := 0, true
			hook := func() error {
				if commits++; armed && commits == cut {
					return lost
				}
				return nil
			}
			hooks := meta.Hooks{BeforeCommit: hook}
			if after {
				hooks = meta.Hooks{AfterCommit: hook}
			}
			path := filepath.Join(t.TempDir(), "meta.db")
			_, err := startRegion(ctx, openMeta(t, path, hooks), bucket, "east")
			if want := cut >= 1 && cut <= 3; errors.Is(err, lost) != want {
				t.Fatalf("cut %d: %v", cut, err)
			}
			row, err := startRegion(ctx, openMeta(t, path, meta.Hooks{}), bucket, "east")
			if err != nil || row.Incarnation == 0 {
				t.Errorf("start after cut %d (after commit: %t): incarnation %d, %v", cut, after, row.Incarnation, err)
			}
		}
	}
}

// replace puts other bytes under a name.
func replace(t *testing.T, bucket *blob.Bucket, name string, fn func(p []byte) []byte) {
	t.Helper()
	p, err := bucket.Get(t.Context(), name, incarnationLimit)
	if err == nil {
		err = bucket.Delete(t.Context(), name)
	}
	if err == nil {
		err = bucket.Put(t.Context(), name, fn(p))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// One damaged mark does not lock a region out: the others, and the metadata,
// tell whose the bucket is.
func TestOneMarkDamaged(t *testing.T) {
	ctx := t.Context()
	damages := map[string]func(p []byte) []byte{
		"truncated":     func(p []byte) []byte { return p[:10] },
		"another id":    func(p []byte) []byte { return bytes.Replace(p, []byte(`"id":"`), []byte(`"id":"f`), 1) },
		"not an id":     func(p []byte) []byte { return bytes.Replace(p, []byte(`"id":"`), []byte(`"id":"\u00ff`), 1) },
		"other number":  func(p []byte) []byte { return bytes.Replace(p, []byte(`"number":`), []byte(`"number":7`), 1) },
		"nothing":       func([]byte) []byte { return nil },
		"another start": func(p []byte) []byte { return bytes.Replace(p, []byte(`"start":"`), []byte(`"start":"0`), 1) },
	}
	for name, damage := range damages {
		for n := uint64(1); n <= 3; n++ {
			bucket := blob.New(memblob.New())
			db := openMeta(t, filepath.Join(t.TempDir(), "meta.db"), meta.Hooks{})
			var row meta.Region
			var err error
			for range 3 {
				if row, err = startRegion(ctx, db, bucket, "east"); err != nil {
					t.Fatal(err)
				}
			}
			replace(t, bucket, incarnationName(n), damage)
			id, highest, _, err := readMarks(ctx, bucket, "east")
			if err != nil || id != row.ID || highest != 3 {
				t.Errorf("%s of mark %d: recovery reads %q, %d, %v, want %q, 3", name, n, id, highest, err, row.ID)
			}
			if next, err := startRegion(ctx, db, bucket, "east"); err != nil || next.Incarnation != 4 {
				t.Errorf("%s of mark %d: the start gives %d, %v, want 4", name, n, next.Incarnation, err)
			}
			setIncarnation(t, db, 1)
			if _, err := startRegion(ctx, db, bucket, "east"); err == nil {
				t.Errorf("%s of mark %d: a start with old metadata", name, n)
			}
		}
	}
}

func TestIncarnationDamaged(t *testing.T) {
	for name, p := range map[string]string{
		"nothing":      "",
		"garbage":      "\x00\x01",
		"no region":    `{"version":1,"number":1}`,
		"other number": `{"version":1,"id":"x","number":2}`,
		"no version":   `{"id":"x","number":1}`,
	} {
		bucket := blob.New(memblob.New())
		if err := bucket.Put(t.Context(), incarnationName(1), []byte(p)); err != nil {
			t.Fatal(err)
		}
		if _, err := highestIncarnation(t.Context(), bucket); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: %v, want corrupt", name, err)
		}
	}
	bucket := blob.New(memblob.New())
	if err := bucket.Put(t.Context(), incarnationName(1), []byte(`{"version":2,"id":"x"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := highestIncarnation(t.Context(), bucket); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("newer version: %v, want unsupported", err)
	}
}
