package s3blob

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/s3blob/s3test"
)

// proxy is a store whose requests and answers a test can spoil.
type proxy struct {
	store http.Handler
	url   string

	mu    sync.Mutex
	spoil func(w http.ResponseWriter, r *http.Request, store http.Handler) bool // true: handled
	seen  map[string]int                                                        // requests by method
}

func newProxy(tb testing.TB) *proxy {
	p := &proxy{store: fakeStore(tb).Config.Handler, seen: map[string]int{}}
	s := httptest.NewServer(p)
	tb.Cleanup(s.Close)
	p.url = s.URL
	return p
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.seen[r.Method]++
	spoil := p.spoil
	p.mu.Unlock()
	if spoil == nil || !spoil(w, r, p.store) {
		p.store.ServeHTTP(w, r)
	}
}

// set says how requests of a method are spoiled from now on, the first n.
func (p *proxy) set(method string, n int, spoil func(w http.ResponseWriter, r *http.Request, store http.Handler)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var done atomic.Int64
	p.seen = map[string]int{}
	p.spoil = func(w http.ResponseWriter, r *http.Request, store http.Handler) bool {
		if r.Method != method || done.Add(1) > int64(n) {
			return false
		}
		spoil(w, r, store)
		return true
	}
}

func (p *proxy) count(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[method]
}

// open returns a driver that does not wait long between attempts.
func (p *proxy) open(tb testing.TB, change ...func(*Config)) *Driver {
	tb.Helper()
	cfg := fakeConfig(p.url)
	cfg.Retry = Retry{Attempts: 4, MaxBackoff: time.Millisecond}
	for _, c := range change {
		c(&cfg)
	}
	d := mustOpen(tb, cfg)
	tb.Cleanup(func() { d.Close() })
	return d
}

// slowDown is the answer of a store that has too much to do.
func slowDown(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, `<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`)
}

// doneThen has the store do the request and then gives another answer.
func doneThen(answer func(http.ResponseWriter, *http.Request, http.Handler)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, store http.Handler) {
		store.ServeHTTP(httptest.NewRecorder(), r)
		answer(w, r, store)
	}
}

// cut closes the connection without an answer.
func cut(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// cutBody reads half of a body and closes the connection.
func cutBody(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	io.CopyN(io.Discard, r.Body, r.ContentLength/2)
	panic(http.ErrAbortHandler)
}

// cutAnswer gives half of the answer's body and closes the connection.
func cutAnswer(w http.ResponseWriter, r *http.Request, store http.Handler) {
	rec := httptest.NewRecorder()
	store.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func wantErr(t *testing.T, doing string, err error, kind snapferry.Kind, text string) {
	t.Helper()
	if !snapferry.IsKind(err, kind) || !strings.Contains(err.Error()+snapferry.HintOf(err), text) {
		t.Errorf("%s: got %v (hint %q), want an error of kind %s with %q", doing, err, snapferry.HintOf(err), kind, text)
	}
}

func wantBody(t *testing.T, d *Driver, name string, want []byte) {
	t.Helper()
	got, err := blob.New(d).Get(t.Context(), name, blob.MaxBody)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("get %s: got %d bytes, %v, want %d", name, len(got), err, len(want))
	}
}

// TestPutFails lets the first attempts of a put fail in every way: it succeeds,
// whether they did nothing or did it.
func TestPutFails(t *testing.T) {
	for name, spoil := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"slow down, nothing done": slowDown,
		"slow down, done":         doneThen(slowDown),
		"cut, nothing done":       cut,
		"cut, done":               doneThen(cut),
		"cut in the body":         cutBody,
		"conflict": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `<Error><Code>ConditionalRequestConflict</Code></Error>`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{0, 10, 3 << 20} {
				p := newProxy(t)
				d := p.open(t)
				p.set(http.MethodPut, 3, spoil)
				body := blobtest.Bytes(1, size)
				if size == 0 && name == "cut in the body" {
					continue
				}
				if err := d.Put(t.Context(), "objects/ab12", body); err != nil {
					t.Fatalf("put %d bytes: %v", size, err)
				}
				wantBody(t, d, "objects/ab12", body)
				wantErr(t, "put again", d.Put(t.Context(), "objects/ab12", body), snapferry.Exists, "")
				if s := d.Stats(); s.Put < 2 || s.Retries < 1 {
					t.Errorf("stats: got %+v, want further attempts", s)
				}
			}
		})
	}
}

// TestPutFailsForGood exhausts the attempts: nothing is said to be done.
func TestPutFailsForGood(t *testing.T) {
	p := newProxy(t)
	d := p.open(t)
	p.set(http.MethodPut, 100, slowDown)
	wantErr(t, "put", d.Put(t.Context(), "a", []byte("x")), snapferry.Unavailable, "503 SlowDown: Please reduce your request rate, after 4 attempts")
	p.set(http.MethodPut, 100, cut)
	wantErr(t, "put", d.Put(t.Context(), "a", []byte("x")), snapferry.Unavailable, "reach bucket east at "+p.url)
	p.set(http.MethodPut, 100, doneThen(cut))
	// All attempts but the first are told that the object exists, and the first
	// made it.
	wantErr(t, "put", d.Put(t.Context(), "a", []byte("x")), snapferry.Unavailable, "")
	p.set("", 0, nil)
	wantBody(t, d, "a", []byte("x"))
}

// TestPutOfAnother proves that another's object is never taken for one's own,
// also when it has the same bytes and one's own attempt failed.
func TestPutOfAnother(t *testing.T) {
	p := newProxy(t)
	d := p.open(t)
	first := true
	p.set(http.MethodPut, 1, func(w http.ResponseWriter, r *http.Request, store http.Handler) {
		other := mustOpen(t, fakeConfig(fakeServer(t, store)))
		if err := other.Put(t.Context(), "a", []byte("same")); err != nil || !first {
			t.Errorf("the other's put: %v", err)
		}
		first = false
		slowDown(w, r, store)
	})
	wantErr(t, "put", d.Put(t.Context(), "a", []byte("same")), snapferry.Exists, "")
}

// TestPutWithoutMetadata has a store that drops user metadata.
func TestPutWithoutMetadata(t *testing.T) {
	p := newProxy(t)
	d := p.open(t)
	fail := 0
	drop := func(w http.ResponseWriter, r *http.Request, store http.Handler) {
		r.Header.Del("X-Amz-Meta-" + tokenKey)
		if fail++; fail == 1 {
			doneThen(slowDown)(w, r, store)
			return
		}
		store.ServeHTTP(w, r)
	}
	p.set(http.MethodPut, 100, drop)
	if err := d.Put(t.Context(), "a", []byte("mine")); err != nil {
		t.Errorf("put whose first attempt did it: %v", err)
	}
	wantErr(t, "put the same at once", d.Put(t.Context(), "a", []byte("mine")), snapferry.Exists, "")
	fail = 0
	wantErr(t, "put other bytes", d.Put(t.Context(), "a", []byte("other")), snapferry.Exists, "")
}

// fakeServer serves a store at another address.
func fakeServer(tb testing.TB, store http.Handler) string {
	s := httptest.NewServer(store)
	tb.Cleanup(s.Close)
	return s.URL
}

// TestReadsFail spoils answers and requests of every other method.
func TestReadsFail(t *testing.T) {
	ctx := t.Context()
	p := newProxy(t)
	d := p.open(t)
	body := blobtest.Bytes(2, 1<<20)
	if err := d.Put(ctx, "objects/ab12", body); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"slow down": slowDown, "cut": cut, "cut answer": cutAnswer,
	} {
		p.set(http.MethodGet, 3, spoil)
		got := make([]byte, len(body)-1)
		if n, err := d.ReadAt(ctx, "objects/ab12", got, 1); n != len(got) || err != nil || !bytes.Equal(got, body[1:]) {
			t.Errorf("%s: read: got %d bytes, %v", name, n, err)
		}
		if want := 4; p.count(http.MethodGet) != want {
			t.Errorf("%s: got %d requests, want %d", name, p.count(http.MethodGet), want)
		}
		p.set(http.MethodGet, 1000, spoil)
		_, err := d.ReadAt(ctx, "objects/ab12", got, 1)
		wantErr(t, name+": read for good", err, snapferry.Unavailable, "")
		if name != "cut answer" { // that of a HEAD has no body
			p.set(http.MethodHead, 3, spoil)
		}
		if n, err := d.Size(ctx, "objects/ab12"); n != int64(len(body)) || err != nil {
			t.Errorf("%s: size: got %d, %v", name, n, err)
		}
		p.set(http.MethodGet, 2, spoil)
		var names []string
		if err := d.List(ctx, "", "", func(i blob.Info) error { names = append(names, i.Name); return nil }); err != nil || len(names) != 1 {
			t.Errorf("%s: list: got %q, %v", name, names, err)
		}
		for _, spoil := range []func(http.ResponseWriter, *http.Request, http.Handler){spoil, doneThen(spoil)} {
			if err := d.Put(ctx, "gone", nil); err != nil {
				t.Fatal(err)
			}
			p.set(http.MethodDelete, 2, spoil)
			if err := d.Delete(ctx, "gone"); err != nil {
				t.Errorf("%s: delete: %v", name, err)
			}
			if _, err := d.Size(ctx, "gone"); !snapferry.IsKind(err, snapferry.NotFound) {
				t.Errorf("%s: size of what was deleted: %v", name, err)
			}
		}
		p.set("", 0, nil)
	}
}

// TestStorm proves that a store in trouble is asked little more than there are
// requests: the attempts share a budget, and the budget comes back.
func TestStorm(t *testing.T) {
	p := newProxy(t)
	d := p.open(t, func(c *Config) { c.Retry.Tokens = 50 })
	p.set(http.MethodHead, 1<<30, slowDown)
	const requests = 100
	began := time.Now()
	for range requests {
		if _, err := d.Size(t.Context(), "a"); !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Fatalf("size: got %v, want unavailable", err)
		}
	}
	if got, most := p.count(http.MethodHead), requests+(50+int(time.Since(began).Seconds()*refill))/5+1; got > most {
		t.Errorf("%d requests were sent for %d, want at most %d", got, requests, most)
	}
	p.set("", 0, nil)
	for range 50 {
		if err := d.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	p.set(http.MethodDelete, 3, slowDown)
	if err := d.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete after the storm: %v", err)
	}
}

// TestUnfitStores has stores without one property each: the check names it.
func TestUnfitStores(t *testing.T) {
	for name, c := range map[string]struct {
		method, want string
		spoil        func(http.ResponseWriter, *http.Request, http.Handler)
	}{
		"ignores If-None-Match": {http.MethodPut, "create-if-absent", func(w http.ResponseWriter, r *http.Request, store http.Handler) {
			r.Header.Del("If-None-Match")
			store.ServeHTTP(w, r)
		}},
		"refuses deletes": {http.MethodDelete, "", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `<Error><Code>AccessDenied</Code></Error>`)
		}},
		"forgets deletes": {http.MethodDelete, "delete", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusNoContent)
		}},
		"lists late": {http.MethodGet, "list-after-write", func(w http.ResponseWriter, r *http.Request, store http.Handler) {
			if r.URL.Query().Get("list-type") == "2" {
				r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "prefix=", "prefix=none", 1)
			}
			store.ServeHTTP(w, r)
		}},
		"other bytes": {http.MethodGet, "read-after-write", func(w http.ResponseWriter, r *http.Request, store http.Handler) {
			rec := httptest.NewRecorder()
			store.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			p := rec.Body.Bytes()
			p[len(p)/2] ^= 1
			w.Write(p)
		}},
		"ignores ranges": {http.MethodGet, "does not give ranges", func(w http.ResponseWriter, r *http.Request, store http.Handler) {
			r.Header.Del("Range")
			store.ServeHTTP(w, r)
		}},
		"has no conditional writes": {http.MethodPut, "501 NotImplemented", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusNotImplemented)
			io.WriteString(w, `<Error><Code>NotImplemented</Code></Error>`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.set(c.method, 1<<30, c.spoil)
			_, err := blob.New(p.open(t)).Check(t.Context())
			kind := snapferry.Unsupported
			if c.want == "" {
				kind = snapferry.Denied
			}
			wantErr(t, "check", err, kind, c.want)
		})
	}
}

// TestStall proves that a store that says nothing any more is not waited for
// for ever, in whichever half of an exchange it falls silent.
func TestStall(t *testing.T) {
	p := newProxy(t)
	d := p.open(t, func(c *Config) { c.Stall, c.Retry.Attempts = 100*time.Millisecond, 2 })
	if err := d.Put(t.Context(), "a", blobtest.Bytes(1, 1000)); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	defer close(over)
	silent := func(http.ResponseWriter, *http.Request, http.Handler) { <-over }
	half := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		if !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			<-over
		}
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("Content-Range", "bytes 0-999/1000")
		w.WriteHeader(http.StatusPartialContent)
		w.Write(make([]byte, 500))
		w.(http.Flusher).Flush()
		<-over
	}
	p.set(http.MethodGet, 100, silent)
	_, err := d.ReadAt(t.Context(), "a", make([]byte, 1000), 0)
	wantErr(t, "read of a silent store", err, snapferry.Unavailable, "timeout")
	p.set(http.MethodGet, 100, half)
	_, err = d.ReadAt(t.Context(), "a", make([]byte, 1000), 0)
	wantErr(t, "read that ends half-way", err, snapferry.Unavailable, "")
	p.set(http.MethodPut, 100, silent)
	wantErr(t, "put to a silent store", d.Put(t.Context(), "b", make([]byte, 16<<20)), snapferry.Unavailable, "")
}

// TestCancel ends the context in the middle of requests: the method returns at
// once, and the body is the caller's again.
func TestCancel(t *testing.T) {
	p := newProxy(t)
	d := p.open(t)
	over := make(chan struct{})
	defer close(over)
	for _, method := range []string{http.MethodPut, http.MethodGet, http.MethodHead, http.MethodDelete} {
		ctx, cancel := context.WithCancel(t.Context())
		p.set(method, 1, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			cancel()
			<-over
		})
		body := make([]byte, 8<<20)
		var err error
		switch method {
		case http.MethodPut:
			err = d.Put(ctx, "a", body)
			clear(body) // the race detector sees who reads it still
		case http.MethodGet:
			_, err = d.ReadAt(ctx, "a", body, 0)
		case http.MethodHead:
			_, err = d.Size(ctx, "a")
		case http.MethodDelete:
			err = d.Delete(ctx, "a")
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want %v", method, err, context.Canceled)
		}
	}
}

// TestRefused has answers that need a person.
func TestRefused(t *testing.T) {
	for code, c := range map[string]struct {
		status int
		kind   snapferry.Kind
		hint   string
	}{
		"AccessDenied":          {403, snapferry.Denied, "s3:ListBucket"},
		"SignatureDoesNotMatch": {403, snapferry.Denied, "credentials came from: StaticCredentials, access key key"},
		"RequestTimeTooSkewed":  {403, snapferry.Denied, "clock"},
		"NoSuchBucket":          {404, snapferry.Unavailable, "make the bucket"},
		"PermanentRedirect":     {301, snapferry.Invalid, "correct region"},
		"EntityTooLarge":        {400, snapferry.Full, "bodies of 64 MiB"},
		"QuotaExceeded":         {403, snapferry.Full, "quota"},
		"InsufficientStorage":   {507, snapferry.Full, "space"},
		"SomethingNew":          {400, snapferry.Internal, ""},
	} {
		p := newProxy(t)
		d := p.open(t)
		p.set(http.MethodPut, 100, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(c.status)
			fmt.Fprintf(w, `<Error><Code>%s</Code><Message>because</Message></Error>`, code)
		})
		err := d.Put(t.Context(), "a", nil)
		wantErr(t, code, err, c.kind, c.hint)
		wantErr(t, code, err, c.kind, code+": because")
	}
}

// TestNoBucket proves that a bucket that is gone is not taken for one without
// objects.
func TestNoBucket(t *testing.T) {
	d := mustOpen(t, func() Config { c := fakeConfig(fakeStore(t).URL); c.Bucket = "none"; return c }())
	_, sizeErr := d.Size(t.Context(), "a")
	_, readErr := d.ReadAt(t.Context(), "a", make([]byte, 1), 0)
	for doing, err := range map[string]error{
		"put": d.Put(t.Context(), "a", nil), "size": sizeErr, "read": readErr,
		"list": d.List(t.Context(), "", "", func(blob.Info) error { return nil }),
	} {
		wantErr(t, doing, err, snapferry.Unavailable, "NoSuchBucket")
		wantErr(t, doing, err, snapferry.Unavailable, "make the bucket")
	}
}

func TestNoStore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	cfg := fakeConfig("http://" + l.Addr().String())
	cfg.Retry = Retry{Attempts: 2, MaxBackoff: time.Millisecond}
	wantErr(t, "put", mustOpen(t, cfg).Put(t.Context(), "a", nil), snapferry.Unavailable, "connection refused, after 2 attempts")
}

func TestTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(fakeStore(t).Config.Handler)
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	p := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(file, p, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := fakeConfig(s.URL)
	d := mustOpen(t, cfg)
	wantErr(t, "put to a stranger", d.Put(t.Context(), "a", nil), snapferry.Unavailable, "ca_file")
	if got := d.Stats().Retries; got != 0 {
		t.Errorf("a certificate that is not trusted was asked for %d times more", got)
	}
	cfg.CAFile = file
	d = mustOpen(t, cfg)
	body := blobtest.Bytes(1, 5<<20)
	if err := d.Put(t.Context(), "a", body); err != nil {
		t.Fatal(err)
	}
	wantBody(t, d, "a", body)
	cfg.CAFile = os.DevNull
	_, err := Open(t.Context(), cfg)
	wantErr(t, "open without a certificate", err, snapferry.Invalid, "ca_file")
}

func TestConfig(t *testing.T) {
	good := fakeConfig("https://s3.example.org:9000")
	if err := good.Check(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	for what, change := range map[string]func(*Config){
		"bucket":   func(c *Config) { c.Bucket = "Upper" },
		"prefix":   func(c *Config) { c.Prefix = "a//b" },
		"endpoint": func(c *Config) { c.Endpoint = "s3.example.org" },
		"ca_file":  func(c *Config) { c.CAFile, c.Endpoint = "x", "http://x" },
	} {
		c := good
		change(&c)
		wantErr(t, what, c.Check(), snapferry.Invalid, what)
		_, err := Open(t.Context(), c)
		wantErr(t, "open, "+what, err, snapferry.Invalid, what)
	}
}

// TestWrongKey has a store that checks signatures.
func TestWrongKey(t *testing.T) {
	s := s3test.Start(t, must(), testBucket)
	cfg := realConfig(s, testBucket)
	cfg.Credentials = &Credentials{s3test.AccessKey, "wrong"}
	d := mustOpen(t, cfg)
	wantErr(t, "put", d.Put(t.Context(), "a", []byte("x")), snapferry.Denied, "SignatureDoesNotMatch")
	wantErr(t, "put", d.Put(t.Context(), "a", []byte("x")), snapferry.Denied, "the secret key does not belong to the access key")
	cfg.Credentials = &Credentials{"nobody", "wrong"}
	wantErr(t, "list", mustOpen(t, cfg).List(t.Context(), "", "", nil), snapferry.Denied, "access key nobody")
}

// TestRequests counts what each method costs.
func TestRequests(t *testing.T) {
	ctx := t.Context()
	d := mustOpen(t, fakeConfig(fakeStore(t).URL))
	body := blobtest.Bytes(1, 10_000)
	err := d.Put(ctx, "a", body)
	if err == nil {
		_, err = d.ReadAt(ctx, "a", make([]byte, 100), 50)
	}
	if err == nil {
		_, err = d.Size(ctx, "a")
	}
	if err == nil {
		err = d.List(ctx, "", "", func(blob.Info) error { return nil })
	}
	if err == nil {
		err = d.Delete(ctx, "a")
	}
	if err != nil {
		t.Fatal(err)
	}
	want := Stats{Put: 1, Get: 1, Head: 1, List: 1, Delete: 1, Sent: 10_000, Received: 100}
	if diff := cmp.Diff(d.Stats(), want); diff != "" {
		t.Errorf("stats (-got +want):\n%s", diff)
	}
}

// TestPartsFail lets requests of uploads in parts fail in every way, and then
// for good: parts do not stay.
func TestPartsFail(t *testing.T) {
	inParts := func(c *Config) { c.MaxPut, c.PartSize = 1<<20, 5<<20 }
	body := blobtest.Bytes(3, 12<<20)
	for name, spoil := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"slow down, nothing done": slowDown, "slow down, done": doneThen(slowDown), "cut, nothing done": cut, "cut, done": doneThen(cut),
	} {
		for _, method := range []string{http.MethodPost, http.MethodPut} { // begin and end; parts
			p := newProxy(t)
			d := p.open(t, inParts)
			p.set(method, 2, spoil)
			if err := d.Put(t.Context(), "a", body); err != nil {
				t.Errorf("%s, %s: %v", method, name, err)
			}
			// The end alone: the request with the upload's id.
			p.set(http.MethodPost, 1<<30, func(w http.ResponseWriter, r *http.Request, store http.Handler) {
				if r.URL.Query().Get("uploadId") == "" || p.count(http.MethodPost) > 2 {
					store.ServeHTTP(w, r)
					return
				}
				spoil(w, r, store)
			})
			if err := d.Put(t.Context(), "b", body); err != nil {
				t.Errorf("end, %s: %v", name, err)
			}
			p.set("", 0, nil)
			wantBody(t, d, "a", body)
			wantBody(t, d, "b", body)
		}
	}
	p := newProxy(t)
	d := p.open(t, inParts)
	p.set(http.MethodPut, 1<<30, slowDown)
	wantErr(t, "put", d.Put(t.Context(), "a", body), snapferry.Unavailable, "SlowDown")
	if got := p.count(http.MethodDelete); got != 1 {
		t.Errorf("the upload was aborted %d times, want 1", got)
	}
	if s := d.Stats(); s.Part == 0 || s.Put != 0 {
		t.Errorf("stats: got %+v, want parts alone", s)
	}
	// A store whose condition holds for one PUT only is found out.
	p = newProxy(t)
	p.set(http.MethodPost, 1<<30, func(w http.ResponseWriter, r *http.Request, store http.Handler) {
		r.Header.Del("If-None-Match")
		store.ServeHTTP(w, r)
	})
	_, err := blob.New(p.open(t, inParts)).Check(t.Context())
	wantErr(t, "check", err, snapferry.Unsupported, "a large object was made a second time")
}

// TestConnectionsStay proves that requests one after the other use one
// connection, whatever part of an object they read, and that Close ends it.
func TestConnectionsStay(t *testing.T) {
	ctx := t.Context()
	var conns atomic.Int64
	closed := make(chan struct{}, 100)
	s := httptest.NewUnstartedServer(fakeStore(t).Config.Handler)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	d := mustOpen(t, fakeConfig(s.URL))
	for i := range 10 {
		name := fmt.Sprintf("objects/%02d", i)
		if err := d.Put(ctx, name, blobtest.Bytes(1, 100_000)); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 50_000, 200_000} {
			if _, err := d.ReadAt(ctx, name, make([]byte, n), 10); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		wantErr(t, "put again", d.Put(ctx, name, nil), snapferry.Exists, "")
		if err := d.List(ctx, "", "", func(blob.Info) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := d.Delete(ctx, name); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Size(ctx, name); !snapferry.IsKind(err, snapferry.NotFound) {
			t.Fatal(err)
		}
	}
	if got := conns.Load(); got != 1 {
		t.Errorf("%d connections were made, want 1", got)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	long := time.NewTimer(10 * time.Second)
	defer long.Stop()
	select {
	case <-closed:
	case <-long.C:
		t.Error("a driver that was closed left its connection open")
	}
}
