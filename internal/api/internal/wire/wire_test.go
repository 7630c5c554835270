package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
)

type body struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

// failureJSON is how the dialect of these tests writes an error.
type failureJSON struct {
	Kind, Message, Hint, RequestID string
}

type tokens map[string]snapferry.Account

func (t tokens) Authenticate(_ context.Context, token string) (snapferry.Account, error) {
	if a, ok := t[token]; ok {
		return a, nil
	}
	return snapferry.Account{}, snapferry.Errorf(snapferry.Denied, "who is that?").WithHint("use a token")
}

// serve runs a request with the token of an account and returns its reply and
// the log.
func serve(t *testing.T, r *http.Request, ops ...Operation) (*httptest.ResponseRecorder, string) {
	t.Helper()
	var log bytes.Buffer
	show := func(f Failure) any { return failureJSON{f.Kind.String(), f.Message, f.Hint, f.RequestID} }
	d := Dialect{
		Auth: tokens{"good": {ID: "acct-1", Name: "one"}}, Error: show, Event: show,
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	if r.Header.Get("Authorization") == "" {
		r.Header.Set("Authorization", "Bearer good")
	}
	w := httptest.NewRecorder()
	Handler(d, ops...).ServeHTTP(w, r)
	return w, log.String()
}

// failureOf reads the error of a reply, without its request id after checking
// that.
func failureOf(t *testing.T, w *httptest.ResponseRecorder) failureJSON {
	t.Helper()
	var f failureJSON
	if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil {
		t.Fatalf("%q: %v", w.Body, err)
	}
	if id := w.Header().Get(RequestIDHeader); f.RequestID != id || !strings.HasPrefix(id, "req-") {
		t.Errorf("request id: got %q in the reply, %q in the header", f.RequestID, id)
	}
	f.Hint = strings.ReplaceAll(f.Hint, f.RequestID, "ID")
	f.RequestID = ""
	return f
}

func failing(err error) Operation {
	return Op[struct{}, string]{
		Name: "Fail", Method: "GET", Path: "/x",
		Decode: func(*Request) (struct{}, error) { return struct{}{}, nil },
		Call:   func(context.Context, snapferry.Account, struct{}) (string, error) { return "", err },
	}
}

func TestStatuses(t *testing.T) {
	for _, k := range snapferry.Kinds() {
		if statuses[k] == 0 {
			t.Errorf("Kind %v has no status", k)
		}
		w, _ := serve(t, httptest.NewRequest("GET", "/x", nil), failing(snapferry.Errorf(k, "the message").WithHint("the hint")))
		if w.Code != statuses[k] {
			t.Errorf("%v: got status %d, want %d", k, w.Code, statuses[k])
		}
		want := failureJSON{Kind: k.String(), Message: "the message", Hint: "the hint"}
		if k == snapferry.Internal {
			want.Message, want.Hint = "internal error", "the region's log has the cause under ID"
		}
		if diff := cmp.Diff(failureOf(t, w), want); diff != "" {
			t.Errorf("%v (-got +want):\n%s", k, diff)
		}
	}
	if got, want := len(statuses), len(snapferry.Kinds()); got != want {
		t.Errorf("table: got %d Kinds, want %d", got, want)
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name   string
		err    error
		status int
		kind   snapferry.Kind
		logged string
	}{
		{"unknown", errors.New("secret"), 500, snapferry.Internal, "secret"},
		{"deadline", fmt.Errorf("read: %w", context.DeadlineExceeded), 503, snapferry.Unavailable, "took too long"},
		{"joined", errors.Join(snapferry.Errorf(snapferry.Full, "full"), errors.New("secret")), 507, snapferry.Full, "secret"},
		{"corrupt", snapferry.Errorf(snapferry.Corrupt, "bad bytes"), 500, snapferry.Corrupt, "level=ERROR"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w, log := serve(t, httptest.NewRequest("GET", "/x", nil), failing(test.err))
			if f := failureOf(t, w); w.Code != test.status || f.Kind != test.kind.String() {
				t.Errorf("got %d %s, want %d %v", w.Code, f.Kind, test.status, test.kind)
			}
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("the reply shows too much: %s", w.Body)
			}
			if !strings.Contains(log, test.logged) {
				t.Errorf("log: got %s, want %q in it", log, test.logged)
			}
		})
	}
}

func TestPanic(t *testing.T) {
	op := Op[struct{}, string]{
		Name: "Panic", Method: "GET", Path: "/x",
		Decode: func(*Request) (struct{}, error) { panic("secret") },
	}
	w, log := serve(t, httptest.NewRequest("GET", "/x", nil), op)
	want := failureJSON{Kind: "internal", Message: "internal error", Hint: "the region's log has the cause under ID"}
	if diff := cmp.Diff(failureOf(t, w), want); w.Code != 500 || diff != "" {
		t.Errorf("status %d (-got +want):\n%s", w.Code, diff)
	}
	for _, s := range []string{"secret", "wire_test.go", w.Header().Get(RequestIDHeader), "op=Panic", "status=500"} {
		if !strings.Contains(log, s) {
			t.Errorf("log: no %q in %s", s, log)
		}
	}
}

func TestAuthentication(t *testing.T) {
	for header, want := range map[string]int{
		"Bearer good": 200, "bearer  good": 200, "Bearer bad": 403, "Bearer": 403, "Basic good": 403, "good": 403, " ": 403,
	} {
		r := httptest.NewRequest("GET", "/x", nil)
		r.Header.Set("Authorization", header)
		w, log := serve(t, r, failing(nil))
		if w.Code != want {
			t.Errorf("%q: got %d, want %d", header, w.Code, want)
		}
		if want == 200 && !strings.Contains(log, "account=acct-1") {
			t.Errorf("log: got %s", log)
		}
	}
}

func TestUnknownOperation(t *testing.T) {
	for _, r := range []*http.Request{
		httptest.NewRequest("GET", "/"+strings.Repeat("y", 1000), nil), httptest.NewRequest("POST", "/x", nil), httptest.NewRequest("GET", "/x/", nil),
	} {
		w, _ := serve(t, r, failing(nil))
		if f := failureOf(t, w); w.Code != 404 || f.Kind != "not-found" || len(f.Message) > 200 {
			t.Errorf("%s: got %d %v", r.Method, w.Code, f)
		}
	}
}

func echo() Operation {
	return Op[body, body]{
		Name: "Echo", Method: "POST", Path: "/echo/{id}", Status: 201,
		Decode: func(r *Request) (b body, err error) {
			if _, err := r.Query("a"); err != nil {
				return b, err
			}
			err = r.JSON(&b)
			b.Name += r.Path("id")
			return b, err
		},
		Call: func(_ context.Context, _ snapferry.Account, b body) (body, error) { return b, nil },
	}
}

func TestDecode(t *testing.T) {
	tests := []struct {
		name, query, body string
		want              string // of the reply, or in the message
	}{
		{"right", "a=1", `{"name": "<n>", "count": 2}`, `{"name":"<n>7","count":2}`},
		{"empty", "", ``, "the request body is empty"},
		{"no JSON", "", `name=n`, "request body: "},
		{"cut off", "", `{"name": "n"`, "request body: "},
		{"unknown field", "", `{"nmae": "n"}`, `unknown field "nmae"`},
		{"wrong type", "", `{"count": "2"}`, `field "count" cannot be a string`},
		{"no object", "", `[]`, "request body: "},
		{"two values", "", `{} {}`, "something after the value"},
		{"garbage behind", "", `{} x`, "request body: "},
		{"large", "", `{"name": "` + strings.Repeat("n", MaxBody) + `"}`, "more than 1048576 bytes"},
		{"large behind", "", `{}` + strings.Repeat(" ", MaxBody), "more than 1048576 bytes"},
		{"unknown parameter", "b=1", `{}`, `unknown parameter "b"`},
		{"parameter twice", "a=1&a=2", `{}`, `parameter "a" is there 2 times`},
		{"malformed query", "a=%zz", `{}`, "the query is malformed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w, _ := serve(t, httptest.NewRequest("POST", "/echo/7?"+test.query, strings.NewReader(test.body)), echo())
			if test.name == "right" {
				if got := strings.TrimSpace(w.Body.String()); w.Code != 201 || got != test.want || w.Header().Get("Content-Type") != "application/json" {
					t.Errorf("got %d %s, want %s", w.Code, got, test.want)
				}
				return
			}
			if f := failureOf(t, w); w.Code != 400 || f.Kind != "invalid" || !strings.Contains(f.Message, test.want) {
				t.Errorf("got %d %s %q, want %q in it", w.Code, f.Kind, f.Message, test.want)
			}
		})
	}
}

func TestLimit(t *testing.T) {
	op := Op[struct{}, string]{
		Name: "Slow", Method: "GET", Path: "/x", Limit: time.Millisecond,
		Decode: func(*Request) (struct{}, error) { return struct{}{}, nil },
		Call: func(ctx context.Context, _ snapferry.Account, _ struct{}) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		},
	}
	w, _ := serve(t, httptest.NewRequest("GET", "/x", nil), op)
	if f := failureOf(t, w); w.Code != 503 || f.Kind != "unavailable" {
		t.Errorf("got %d %v", w.Code, f)
	}
}

func TestNoContent(t *testing.T) {
	op := Op[struct{}, struct{}]{
		Name: "Nothing", Method: "DELETE", Path: "/x", Status: 204,
		Decode: func(*Request) (q struct{}, err error) { return q, nil },
		Call:   func(context.Context, snapferry.Account, struct{}) (r struct{}, err error) { return r, nil },
	}
	if w, _ := serve(t, httptest.NewRequest("DELETE", "/x", nil), op); w.Code != 204 || w.Body.Len() != 0 {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}

func TestUnencodable(t *testing.T) {
	op := Op[struct{}, func()]{
		Name: "Bad", Method: "GET", Path: "/x",
		Decode: func(*Request) (q struct{}, err error) { return q, nil },
		Call:   func(context.Context, snapferry.Account, struct{}) (func(), error) { return func() {}, nil },
	}
	w, _ := serve(t, httptest.NewRequest("GET", "/x", nil), op)
	if f := failureOf(t, w); w.Code != 500 || f.Kind != "internal" {
		t.Errorf("got %d %v", w.Code, f)
	}
}

func streaming(open func(ctx context.Context) (Feed[body], error)) Operation {
	return Stream[struct{}, body]{
		Name: "Stream", Method: "GET", Path: "/x",
		Decode: func(*Request) (q struct{}, err error) { return q, nil },
		Open:   func(ctx context.Context, _ snapferry.Account, _ struct{}) (Feed[body], error) { return open(ctx) },
	}
}

func TestStream(t *testing.T) {
	tests := []struct {
		name  string
		open  error
		feed  func(emit func(body) error) error
		code  int
		lines []string // prefixes
	}{
		{"lines", nil, func(emit func(body) error) error { return errors.Join(emit(body{"a", 1}), emit(body{"b", 2})) }, 200, []string{`{"name":"a","count":1}`, `{"name":"b","count":2}`}},
		{"none", nil, func(func(body) error) error { return nil }, 200, nil},
		{"refused", snapferry.Errorf(snapferry.Conflict, "not now"), nil, 409, []string{`{"Kind":"conflict","Message":"not now"`}},
		{
			"broken off", nil, func(emit func(body) error) error {
				return errors.Join(emit(body{"a", 1}), snapferry.Errorf(snapferry.Corrupt, "bad"))
			}, 200, []string{`{"name":"a"`, `{"Kind":"corrupt","Message":"bad"`},
		},
		{"panic", nil, func(emit func(body) error) error { panic("secret") }, 200, []string{`{"Kind":"internal","Message":"internal error"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w, _ := serve(t, httptest.NewRequest("GET", "/x", nil), streaming(func(context.Context) (Feed[body], error) {
				if test.open != nil {
					return nil, test.open
				}
				return func(_ context.Context, emit func(body) error) error { return test.feed(emit) }, nil
			}))
			got := strings.FieldsFunc(w.Body.String(), func(r rune) bool { return r == '\n' })
			if w.Code != test.code || len(got) != len(test.lines) {
				t.Fatalf("got %d %q, want %d %q", w.Code, got, test.code, test.lines)
			}
			for i, line := range test.lines {
				if !strings.HasPrefix(got[i], line) {
					t.Errorf("line %d: got %s, want %s", i, got[i], line)
				}
			}
			if test.open == nil && w.Header().Get("Content-Type") != "application/x-ndjson" {
				t.Errorf("type: got %q", w.Header().Get("Content-Type"))
			}
		})
	}
}

// TestFlush reads a line of a stream that goes on.
func TestFlush(t *testing.T) {
	read := make(chan struct{})
	op := streaming(func(context.Context) (Feed[body], error) {
		return func(ctx context.Context, emit func(body) error) error {
			if err := emit(body{"first", 1}); err != nil {
				return err
			}
			select {
			case <-read:
			case <-ctx.Done():
				return ctx.Err()
			}
			return emit(body{"last", 2})
		}, nil
	})
	d := Dialect{Auth: tokens{"": {}}, Error: func(f Failure) any { return f }, Event: func(f Failure) any { return f }}
	srv := httptest.NewServer(Handler(d, op))
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	var got []body
	for {
		var b body
		if err := dec.Decode(&b); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			break
		}
		got = append(got, b)
		if len(got) == 1 {
			close(read)
		}
	}
	if diff := cmp.Diff(got, []body{{"first", 1}, {"last", 2}}); diff != "" {
		t.Errorf("lines (-got +want):\n%s", diff)
	}
}

// TestGoneAway has a caller that leaves: the feed's context ends.
func TestGoneAway(t *testing.T) {
	ended := make(chan error, 1)
	op := streaming(func(context.Context) (Feed[body], error) {
		return func(ctx context.Context, emit func(body) error) error {
			defer func() { ended <- ctx.Err() }()
			if err := emit(body{"first", 1}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}, nil
	})
	d := Dialect{Auth: tokens{"": {}}, Error: func(f Failure) any { return f }, Event: func(f Failure) any { return f }}
	srv := httptest.NewServer(Handler(d, op))
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/x")
	if err != nil {
		t.Fatal(err)
	}
	var b body
	if err := json.NewDecoder(resp.Body).Decode(&b); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the feed's context: got %v, want canceled", err)
	}
}

// brokenWriter cannot be written to.
type brokenWriter struct{ *httptest.ResponseRecorder }

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestUnreadable(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	l := newLines(brokenWriter{httptest.NewRecorder()}, cancel)
	if err := l.emit(body{Name: strings.Repeat("n", lineBuffer)}); !snapferry.IsKind(err, snapferry.Cancelled) {
		t.Errorf("emit: got %v, want Cancelled", err)
	}
	if err := context.Cause(ctx); !snapferry.IsKind(err, snapferry.Cancelled) {
		t.Errorf("cause: got %v, want Cancelled", err)
	}
	for range 2 {
		if err := l.close(); !snapferry.IsKind(err, snapferry.Cancelled) {
			t.Errorf("close: got %v, want Cancelled", err)
		}
	}
	if err := l.emit(body{}); !snapferry.IsKind(err, snapferry.Internal) {
		t.Errorf("a line after the end: got %v, want Internal", err)
	}
}
