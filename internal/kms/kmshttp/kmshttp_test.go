package kmshttp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapferry/snapferry"
)

// wire is a service that is a function.
type wire func(*http.Request) (*http.Response, error)

func (w wire) RoundTrip(r *http.Request) (*http.Response, error) { return w(r) }

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func over(w wire) *Client {
	return New(Config{Service: "a service", HTTPClient: &http.Client{Transport: w}})
}

func get() (Request, error) { return Request{Method: http.MethodGet, URL: "http://127.0.0.1/"}, nil }

// content is a judge that wants a status of 200.
func content(a Answer) error {
	if a.Status == http.StatusOK {
		return nil
	}
	return Again(snapferry.Errorf(snapferry.Unavailable, "it answers %d", a.Status))
}

// What was in memory of a request and of its answer is cleared.
func TestClears(t *testing.T) {
	var sent, got [][]byte
	var seen []string
	n := 0
	c := over(func(r *http.Request) (*http.Response, error) {
		p, err := io.ReadAll(r.Body)
		seen = append(seen, string(p))
		if n++; n == 1 {
			return answer(503, strings.Repeat("a", 3*firstBuffer)), err
		}
		return answer(200, "an answer"), err
	})
	err := c.Send(t.Context(), Call{
		Build: func() (Request, error) {
			r, err := get()
			r.Body = []byte("a secret")
			sent = append(sent, r.Body)
			return r, err
		},
		Judge: func(a Answer) error {
			got = append(got, a.Body)
			return content(a)
		},
	})
	if err != nil || len(seen) != 2 || seen[0] != "a secret" || seen[1] != "a secret" {
		t.Fatalf("it sent %q: %v", seen, err)
	}
	for _, p := range append(sent, got...) {
		if len(p) == 0 || !bytes.Equal(p, make([]byte, len(p))) {
			t.Errorf("%.20q is still in memory", p)
		}
	}
}

// keeper is an answer that keeps the memory it was read into.
type keeper struct {
	left int
	kept [][]byte
}

func (k *keeper) Read(p []byte) (int, error) {
	if k.left == 0 {
		return 0, io.EOF
	}
	n := copy(p, bytes.Repeat([]byte("a"), k.left))
	k.left -= n
	k.kept = append(k.kept, p[:n])
	return n, nil
}

// Memory that an answer outgrew is cleared.
func TestGrows(t *testing.T) {
	k := &keeper{left: 5 * firstBuffer}
	got, err := readAnswer(k)
	if err != nil || len(got) != 5*firstBuffer || bytes.Count(got, []byte("a")) != len(got) || len(k.kept) < 3 {
		t.Fatalf("%d bytes in %d parts, %v", len(got), len(k.kept), err)
	}
	for i, p := range k.kept[:len(k.kept)-1] {
		if !bytes.Equal(p, make([]byte, len(p))) {
			t.Errorf("part %d is still in memory", i)
		}
	}
}

// A connection that reads a body when its request is over gets nothing of it.
func TestLateReader(t *testing.T) {
	var late io.Reader
	c := over(func(r *http.Request) (*http.Response, error) {
		late = r.Body
		return answer(200, ""), nil
	})
	err := c.Send(t.Context(), Call{Judge: content, Build: func() (Request, error) {
		return Request{Method: http.MethodPost, URL: "http://127.0.0.1/", Body: []byte("a secret")}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := io.ReadAll(late); err == nil || len(p) != 0 {
		t.Errorf("got %q, %v", p, err)
	}
}

func TestAttempts(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	broken := &net.OpError{Op: "read", Err: errors.New("connection reset")}
	for _, test := range []struct {
		name    string
		answers func(n int) (*http.Response, error)
		once    bool
		within  time.Duration
		want    int // attempts
		kind    snapferry.Kind
		ok      bool
		took    time.Duration // at most; 0 for any
		least   time.Duration
	}{
		{name: "at once", answers: func(int) (*http.Response, error) { return answer(200, ""), nil }, want: 1, ok: true},
		{name: "the third time", answers: func(n int) (*http.Response, error) {
			if n < 3 {
				return answer(500, ""), nil
			}
			return answer(200, ""), nil
		}, want: 3, ok: true, took: 300 * time.Millisecond, least: 150 * time.Millisecond},
		{name: "never", answers: func(int) (*http.Response, error) { return answer(500, ""), nil }, want: maxAttempts, kind: snapferry.Unavailable},
		{name: "never, in time", answers: func(int) (*http.Response, error) { return nil, refused }, within: 340 * time.Millisecond, want: 3, kind: snapferry.Unavailable, took: 340 * time.Millisecond},
		{name: "it wants peace", answers: func(n int) (*http.Response, error) {
			a := answer(429, "")
			a.Header.Set("Retry-After", "7")
			if n == 2 {
				a = answer(200, "")
			}
			return a, nil
		}, want: 2, ok: true, least: 7 * time.Second},
		{name: "it wants more peace than there is", answers: func(int) (*http.Response, error) {
			a := answer(429, "")
			a.Header.Set("Retry-After", "7")
			return a, nil
		}, within: 5 * time.Second, want: 1, kind: snapferry.Unavailable, took: time.Second},
		{name: "once, not reached", once: true, answers: func(n int) (*http.Response, error) {
			if n == 1 {
				return nil, refused
			}
			return answer(200, ""), nil
		}, want: 2, ok: true},
		{name: "once, broken", once: true, answers: func(int) (*http.Response, error) { return nil, broken }, want: 1, kind: snapferry.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if test.within > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.within)
					defer cancel()
				}
				n, start := 0, time.Now()
				c := over(func(*http.Request) (*http.Response, error) { n++; return test.answers(n) })
				err := c.Send(ctx, Call{Build: get, Judge: content, Once: test.once})
				took := time.Since(start)
				if n != test.want || (err == nil) != test.ok || err != nil && !snapferry.IsKind(err, test.kind) {
					t.Errorf("%d attempts, %v, want %d", n, err, test.want)
				}
				if test.took > 0 && took > test.took || took < test.least {
					t.Errorf("it took %v", took)
				}
				if err != nil && test.want > 1 && !strings.Contains(err.Error(), "attempts") {
					t.Errorf("%v does not say how often", err)
				}
			})
		})
	}
}

// A service that hangs is left when ctx ends, or for another attempt.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := over(hang).Send(ctx, Call{Build: get, Judge: content}); !snapferry.IsKind(err, snapferry.Unavailable) || time.Since(start) != time.Second {
			t.Errorf("a deadline: %v after %v", err, time.Since(start))
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := over(hang).Send(ctx, Call{Build: get, Judge: content}); !snapferry.IsKind(err, snapferry.Cancelled) {
			t.Errorf("canceled: %v", err)
		}
		n := 0
		second := over(func(r *http.Request) (*http.Response, error) {
			if n++; n == 1 {
				return hang(r)
			}
			return answer(200, ""), nil
		})
		if err := second.Send(t.Context(), Call{Build: get, Judge: content}); err != nil {
			t.Errorf("the second time: %v", err)
		}
	})
}

// A redirect is an answer like others, unless it may be followed.
func TestRedirects(t *testing.T) {
	c := over(func(*http.Request) (*http.Response, error) {
		a := answer(307, "")
		a.Header.Set("Location", "http://192.0.2.1/")
		return a, nil
	})
	var status int
	err := c.Send(t.Context(), Call{Build: get, Judge: func(a Answer) error { status = a.Status; return nil }})
	if status != 307 || err != nil {
		t.Errorf("got %d, %v", status, err)
	}
}

func TestTooLong(t *testing.T) {
	c := over(func(*http.Request) (*http.Response, error) { return answer(200, strings.Repeat("a", MaxAnswer+1)), nil })
	if err := c.Send(t.Context(), Call{Build: get, Judge: content}); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("too long: %v", err)
	}
	c = over(func(*http.Request) (*http.Response, error) { return answer(200, strings.Repeat("a", MaxAnswer)), nil })
	if err := c.Send(t.Context(), Call{Build: get, Judge: content}); err != nil {
		t.Errorf("as long as it may be: %v", err)
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                        "plain",
		"two\r\nlines":                 "two  lines",
		"with a KEY":                   "(its words are left out: they have a secret in them)",
		strings.Repeat("é", MaxText+1): strings.Repeat("é", MaxText) + "…",
	} {
		if got := Text(in, nil, []byte("KEY")); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
