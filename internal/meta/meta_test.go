package meta_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/meta/metatest"
)

func TestConformance(t *testing.T) {
	metatest.Run(t, func(t testing.TB) metatest.Place {
		path := filepath.Join(t.TempDir(), "meta 100%?#.db") // a name that needs care in an address
		return metatest.Place{
			Open: func(t testing.TB, h meta.Hooks) (*meta.DB, error) {
				return meta.Open(t.Context(), meta.Config{Path: path, Hooks: h})
			},
			Newer: func(t testing.TB) {
				rewrite(t, path, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)")
			},
		}
	})
}

// rewrite changes a file behind the back of the program.
func rewrite(t testing.TB, path, text string) {
	t.Helper()
	d, err := sql.Open("sqlite", "file:"+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Exec(text); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, path string) (*meta.DB, error) {
	db, err := meta.Open(t.Context(), meta.Config{Path: path})
	if err == nil {
		t.Cleanup(func() { db.Close() })
	}
	return db, err
}

// filled makes a file with some hundred rows and returns its path.
func filled(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "meta.db")
	db, err := open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), func(tx *meta.Tx) error {
		for range 500 {
			if err := tx.AddAudit(meta.Audit{Subject: "s", Detail: strings.Repeat("x", 300)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenTwice(t *testing.T) {
	path := filled(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("got mode %o, want 600: the file holds keys", got)
	}
	db, err := open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Check(t.Context()); err != nil {
		t.Errorf("check: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string) string // returns the path to open
		want  snapferry.Kind
	}{
		"no folder": {func(t *testing.T, path string) string { return filepath.Join(path+"-none", "meta.db") }, snapferry.NotFound},
		"another database": {func(t *testing.T, path string) string {
			p := path + ".other"
			rewrite(t, p, "CREATE TABLE tunes (name TEXT)")
			return p
		}, snapferry.Invalid},
		"not a database": {func(t *testing.T, path string) string {
			return change(t, path, func(p []byte) []byte { copy(p, "This is not it."); return p })
		}, snapferry.Corrupt},
		"damaged page": {func(t *testing.T, path string) string {
			return change(t, path, func(p []byte) []byte {
				for i := len(p) / 2; i < len(p)/2+8192; i++ {
					p[i] ^= 0xff
				}
				return p
			})
		}, snapferry.Corrupt},
		"cut short": {func(t *testing.T, path string) string {
			return change(t, path, func(p []byte) []byte { return p[:len(p)/2] })
		}, snapferry.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, c.spoil(t, filled(t)))
			if !snapferry.IsKind(err, c.want) {
				t.Errorf("got error %v of kind %v, want %v", err, snapferry.KindOf(err), c.want)
			}
			if snapferry.HintOf(err) == "" && c.want == snapferry.Corrupt {
				t.Errorf("got no hint with %v", err)
			}
		})
	}
}

func change(t *testing.T, path string, fn func([]byte) []byte) string {
	t.Helper()
	p, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, fn(p), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKilled opens the files as they are while the program still runs, which
// is what a killed process leaves.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "meta.db")
	db, err := open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		if err := db.Update(t.Context(), func(tx *meta.Tx) error { return tx.AddUsage(meta.Usage{Subject: "s"}) }); err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(t.TempDir(), "meta.db")
		for _, suffix := range []string{"", "-wal"} {
			p, err := os.ReadFile(path + suffix)
			if err == nil {
				err = os.WriteFile(left+suffix, p, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		after, err := open(t, left)
		if err != nil {
			t.Fatal(err)
		}
		err = after.View(t.Context(), func(tx *meta.Tx) error {
			u, err := tx.Usage("s")
			if len(u) != i+1 {
				t.Errorf("got %d rows after %d commits", len(u), i+1)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestContextEnds(t *testing.T) {
	db, err := open(t, filled(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = db.Update(ctx, func(tx *meta.Tx) error {
		cancel()
		return tx.AddUsage(meta.Usage{Subject: "s"})
	})
	if got := snapferry.KindOf(err); err == nil || got != snapferry.Cancelled {
		t.Errorf("got error %v of kind %v, want Cancelled", err, got)
	}
	if err := db.Update(t.Context(), func(tx *meta.Tx) error { return tx.AddUsage(meta.Usage{Subject: "s"}) }); err != nil {
		t.Errorf("the next update: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), func(tx *meta.Tx) error { return nil })
	if !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("after Close: got error %v, want Unavailable", err)
	}
}
