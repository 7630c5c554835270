package client_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
)

const id = snapferry.SnapshotID("snap-0123456789abcdef0")

// serve returns a client of a region that answers with handler.
func serve(t *testing.T, handler http.HandlerFunc) *client.Client {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	c, err := client.New(client.Config{Address: s.URL, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(t *testing.T, w http.ResponseWriter, v any) {
	t.Helper()
	if err := json.NewEncoder(w).Encode(v); err != nil {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "east", "unix://relative", "ftp://east", "http://", "http://east/path", "://"} {
		if _, err := client.New(client.Config{Address: bad}); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("address %q: %v, want invalid", bad, err)
		}
	}
	for _, good := range []string{"unix:///run/api.sock", "http://127.0.0.1:1", "https://east.example.org/"} {
		if _, err := client.New(client.Config{Address: good}); err != nil {
			t.Errorf("address %q: %v", good, err)
		}
	}
}

// Every Kind comes back from a region as it was sent.
func TestErrors(t *testing.T) {
	for _, k := range snapferry.Kinds() {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Authorization"); got != "Bearer secret" {
				t.Errorf("authorization is %q", got)
			}
			w.WriteHeader(http.StatusTeapot)
			answer(t, w, map[string]client.Error{"error": {Kind: k.String(), Message: "it is so", Hint: "do it", RequestID: "req-1"}})
		})
		_, err := c.Snapshot(t.Context(), id)
		if snapferry.KindOf(err) != k || err.Error() != "it is so" || snapferry.HintOf(err) != "do it" {
			t.Errorf("kind %s came as %s: %v (%s)", k, snapferry.KindOf(err), err, snapferry.HintOf(err))
		}
	}
}

// What is not a region, breaks off, or is not there, is unavailable.
func TestUnavailable(t *testing.T) {
	for what, handler := range map[string]http.HandlerFunc{
		"another server": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusNotFound) },
		"not JSON":       func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"half an answer": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"id": "sn`) },
		"broken off":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		if _, err := serve(t, handler).Snapshot(t.Context(), id); !snapferry.IsKind(err, snapferry.Unavailable) {
			t.Errorf("%s: %v, want unavailable", what, err)
		}
	}
	c, err := client.New(client.Config{Address: "unix://" + filepath.Join(t.TempDir(), "api.sock")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Region(t.Context()); !snapferry.IsKind(err, snapferry.Unavailable) || snapferry.HintOf(err) == "" {
		t.Errorf("no socket: %v, want unavailable with a hint", err)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(t, w, client.Region{Name: "east"})
	})}}
	s.Start()
	defer s.Close()
	c, err := client.New(client.Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := c.Region(t.Context()); err != nil || r.Name != "east" {
		t.Errorf("region %q, %v, want east", r.Name, err)
	}
}

func TestPages(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		list := client.SnapshotList{Snapshots: []snapferry.Snapshot{{ID: "snap-a"}}, Next: "snap-a"}
		if r.URL.Query().Get("after") == "snap-a" {
			list = client.SnapshotList{Snapshots: []snapferry.Snapshot{{ID: "snap-b"}}}
		}
		if got := r.URL.Query().Get("volume"); got != "disk" {
			t.Errorf("volume is %q", got)
		}
		answer(t, w, list)
	})
	var got []snapferry.SnapshotID
	err := c.Snapshots(t.Context(), client.Filter{Volume: "disk"}, func(s snapferry.Snapshot) error {
		got = append(got, s.ID)
		return nil
	})
	if diff := cmp.Diff(got, []snapferry.SnapshotID{"snap-a", "snap-b"}); err != nil || diff != "" {
		t.Errorf("snapshots: %v (-got +want):\n%s", err, diff)
	}
}

// A wait goes on while the region answers "not yet", and when it was away.
func TestWait(t *testing.T) {
	calls := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		s := snapferry.Snapshot{ID: id, State: snapferry.SnapshotCopying, Progress: &snapferry.Progress{Total: 10, Done: int64(calls)}}
		switch calls {
		case 2:
			if got := r.URL.Query().Get("done"); got != "1" {
				t.Errorf("done is %q, want 1", got)
			}
		case 3:
			panic(http.ErrAbortHandler)
		case 4:
			s.State, s.Progress = snapferry.SnapshotReady, nil
		}
		answer(t, w, s)
	})
	var seen []snapferry.SnapshotState
	s, err := c.Wait(t.Context(), id, func(s snapferry.Snapshot) { seen = append(seen, s.State) })
	want := []snapferry.SnapshotState{snapferry.SnapshotCopying, snapferry.SnapshotCopying, snapferry.SnapshotReady}
	if diff := cmp.Diff(seen, want); err != nil || s.State != snapferry.SnapshotReady || diff != "" {
		t.Errorf("wait: %s, %v (-got +want):\n%s", s.State, err, diff)
	}
}

func TestStreams(t *testing.T) {
	const lines = `{"extent":{"offset":0,"length":65536}}` + "\n" + `{"extent":{"offset":131072,"length":65536}}` + "\n"
	for what, tail := range map[string]struct {
		text string
		want snapferry.Kind
		ok   bool
	}{
		"done":       {`{"done":true}` + "\n", 0, true},
		"error":      {`{"error":{"kind":"corrupt","message":"a node is damaged"}}` + "\n", snapferry.Corrupt, false},
		"broken off": {"", snapferry.Unavailable, false},
		"garbage":    {"<html>\n", snapferry.Unavailable, false},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, lines+tail.text) })
		var got []extent.Extent
		err := c.Diff(t.Context(), id, id, func(e extent.Extent) error { got = append(got, e); return nil })
		if (err == nil) != tail.ok || err != nil && !snapferry.IsKind(err, tail.want) {
			t.Errorf("%s: %v", what, err)
		}
		if diff := cmp.Diff(got, []extent.Extent{{Off: 0, Len: 65536}, {Off: 131072, Len: 65536}}); diff != "" {
			t.Errorf("%s (-got +want):\n%s", what, diff)
		}
	}
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"done":true}`) })
	if _, err := c.Fsck(t.Context(), true, nil); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("a check without a report: %v, want unavailable", err)
	}
}

// Disks need a handoff socket.
func TestNoHandoff(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the region was asked") })
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = c.Import(t.Context(), client.ImportRequest{Volume: "disk"}, f)
	if !snapferry.IsKind(err, snapferry.Unavailable) || snapferry.HintOf(err) == "" {
		t.Errorf("import: %v, want unavailable with a hint", err)
	}
	if err := c.Export(t.Context(), id, f, nil); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("export: %v, want unavailable", err)
	}
}
