package nativeapi_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/api/nativeapi"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/handoff"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

const (
	alice = "token-of-alice"
	bob   = "token-of-bob"
)

// world is a region with its API, and two accounts in it.
type world struct {
	url     string
	socket  string // of the handover
	bucket  *memblob.Driver
	checker *checker
	region  nativeapi.Region
}

// without serves the region's API without what is optional.
func (w *world) without(t *testing.T) string {
	srv := httptest.NewServer(nativeapi.Handler(nativeapi.Config{Region: w.region}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// checker is a check whose outcome a test sets.
type checker struct {
	report *client.FsckReport
	err    error
}

func (c *checker) Check(_ context.Context, deep bool, progress func(done, total int64)) (*client.FsckReport, error) {
	progress(0, 10)
	progress(10, 10)
	if c.report != nil {
		c.report.Deep = deep
	}
	return c.report, c.err
}

// newWorld starts a region. Its jobs run when jobs is set.
func newWorld(t *testing.T, jobs bool) *world {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	db, err := meta.Open(ctx, meta.Config{Path: filepath.Join(dir, "meta.db")})
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(ctx, func(tx *meta.Tx) error {
		if err := tx.PutRegion(meta.Region{Name: "east", ID: "east-1", SignKey: key, LookupKey: key[:32], Created: time.Now()}); err != nil {
			return err
		}
		for name, token := range map[string]string{"alice": alice, "bob": bob} {
			a := meta.Account{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: name}, TokenHash: control.HashToken(token), Created: time.Now()}
			if err := tx.InsertAccount(a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{bucket: memblob.New(), checker: &checker{}, socket: filepath.Join(dir, "handoff")}
	bucket := blob.New(w.bucket)
	v, err := vault.New(vault.Config{Bucket: bucket, DB: db, Region: "east", Sign: key, Codec: snapferry.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	region := control.New(control.Config{Name: "east", DB: db, Bucket: bucket, Vault: v, Jobs: job.New(db, job.Config{Owner: "test"}), Version: "1.2.3"})
	files, err := handoff.New(w.socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(nativeapi.Handler(nativeapi.Config{Region: region, Files: files, Checker: w.checker, Version: "1.2.3"}))
	w.url, w.region = srv.URL, region
	ended := make(chan error, 2)
	go func() { ended <- files.Serve(ctx) }()
	if jobs {
		go func() { ended <- region.Run(ctx) }()
	} else {
		ended <- nil
	}
	t.Cleanup(func() {
		srv.Close()
		cancel()
		if err := errors.Join(<-ended, <-ended, db.Close()); err != nil {
			t.Errorf("shut down: got %v", err)
		}
	})
	return w
}

// do makes a request of an account and returns the reply's status and body.
func (w *world) do(t *testing.T, token, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(p)
}

// get makes a request that must succeed and decodes its reply.
func get[R any](t *testing.T, w *world, status int, method, path, body string) (r R) {
	t.Helper()
	code, text := w.do(t, alice, method, path, body)
	if code != status {
		t.Fatalf("%s %s: got %d %s, want %d", method, path, code, text, status)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
	return r
}

// refused makes a request that must fail and returns the error.
func (w *world) refused(t *testing.T, token, method, path, body string, status int, kind snapferry.Kind) client.Error {
	t.Helper()
	code, text := w.do(t, token, method, path, body)
	var r struct {
		Error client.Error `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%s %s: got %d %q: %v", method, path, code, text, err)
	}
	if code != status || r.Error.Kind != kind.String() || r.Error.Message == "" || r.Error.RequestID == "" {
		t.Errorf("%s %s: got %d %+v, want %d %v", method, path, code, r.Error, status, kind)
	}
	return r.Error
}

// events makes a request that answers with a stream.
func (w *world) events(t *testing.T, method, path, body string) (all []client.Event) {
	t.Helper()
	code, text := w.do(t, alice, method, path, body)
	if code != http.StatusOK {
		t.Fatalf("%s %s: got %d %s", method, path, code, text)
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		var e client.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		all = append(all, e)
	}
	return all
}

// hand hands a file over.
func (w *world) hand(t *testing.T, f *os.File) string {
	t.Helper()
	handle, err := handoff.Send(t.Context(), w.socket, f)
	if err != nil {
		t.Fatal(err)
	}
	return handle
}

// disk makes a file with content at offsets.
func disk(t *testing.T, size int64, content map[int64]string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, s := range content {
		if _, err := f.WriteAt([]byte(s), off); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// imported makes a snapshot of a disk and waits until it is ready.
func (w *world) imported(t *testing.T, volume string, f *os.File) snapferry.Snapshot {
	t.Helper()
	body, err := json.Marshal(client.ImportRequest{Volume: volume, Handle: w.hand(t, f)})
	if err != nil {
		t.Fatal(err)
	}
	s := get[snapferry.Snapshot](t, w, 201, "POST", "/v1/snapshots/import", string(body))
	return w.settled(t, s.ID)
}

func (w *world) settled(t *testing.T, id snapferry.SnapshotID) snapferry.Snapshot {
	t.Helper()
	s := get[snapferry.Snapshot](t, w, 200, "GET", "/v1/snapshots/"+string(id)+"/wait?timeout=60s", "")
	if s.State != snapferry.SnapshotReady {
		t.Fatalf("snapshot: got %+v, want ready", s)
	}
	return s
}

func sameFiles(t *testing.T, got, want *os.File) {
	t.Helper()
	a, err := os.ReadFile(got.Name())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("contents differ: %d and %d bytes", len(a), len(b))
	}
}
