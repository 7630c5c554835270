package nativeapi_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/blob"
)

const (
	size  = 40<<20 + 512
	block = snapferry.BlockSize
)

func firstDisk(t *testing.T) *os.File {
	return disk(t, size, map[int64]string{0: strings.Repeat("a", 3*block), 20 << 20: "in the second leaf", size - 512: "at the end"})
}

func TestRegion(t *testing.T) {
	w := newWorld(t, false)
	got := get[client.Region](t, w, 200, "GET", "/v1/region", "")
	want := client.Region{Name: "east", Version: "1.2.3", Account: snapferry.Account{ID: got.Account.ID, Name: "alice"}, Peers: []snapferry.RegionName{}}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("region (-got +want):\n%s", diff)
	}
	for _, token := range []string{"", "no such token"} {
		e := w.refused(t, token, "GET", "/v1/region", "", 403, snapferry.Denied)
		if e.Hint == "" {
			t.Errorf("token %q: got no hint", token)
		}
	}
}

// TestLife takes snapshots through everything that is done with them.
func TestLife(t *testing.T) {
	w := newWorld(t, true)
	in := firstDisk(t)
	body := fmt.Sprintf(`{"volume": "disk", "name": "one", "tags": {"k": "v"}, "retention_days": 7, "handle": %q}`, w.hand(t, in))
	one := get[snapferry.Snapshot](t, w, 201, "POST", "/v1/snapshots/import", body)
	one = w.settled(t, one.ID)
	want := snapferry.Snapshot{
		ID: one.ID, Account: one.Account, Region: "east", Volume: "disk", Name: "one", Tags: snapferry.Tags{"k": "v"}, State: snapferry.SnapshotReady, Size: size,
		Digest: one.Digest, Created: one.Created, RetainUntil: one.RetainUntil, Counts: one.Counts,
	}
	if diff := cmp.Diff(one, want); diff != "" {
		t.Errorf("first snapshot (-got +want):\n%s", diff)
	}
	if one.Counts.Present != 5*block {
		t.Errorf("present: got %d, want %d", one.Counts.Present, 5*block)
	}
	if _, err := in.WriteAt([]byte("changed"), block); err != nil {
		t.Fatal(err)
	}
	two := w.imported(t, "disk", in)
	if two.Parent != one.ID || two.Counts.Changed != block {
		t.Errorf("second snapshot: got parent %s and %d changed, want %s and %d", two.Parent, two.Counts.Changed, one.ID, block)
	}
	t.Run("get", func(t *testing.T) {
		got := get[snapferry.Snapshot](t, w, 200, "GET", "/v1/snapshots/"+string(two.ID), "")
		if diff := cmp.Diff(got, two); diff != "" {
			t.Errorf("(-got +want):\n%s", diff)
		}
	})
	t.Run("export", func(t *testing.T) { testExport(t, w, two, in) })
	t.Run("diff", func(t *testing.T) {
		got := w.events(t, "GET", fmt.Sprintf("/v1/snapshots/%s/diff/%s", one.ID, two.ID), "")
		want := []client.Event{{Extent: &extent.Extent{Off: block, Len: block}}, {Done: true}}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("(-got +want):\n%s", diff)
		}
	})
	t.Run("copy", func(t *testing.T) { testCopy(t, w, two) })
	closed(t, in, 1)
	t.Run("delete", func(t *testing.T) {
		path := "/v1/snapshots/" + string(one.ID)
		if code, text := w.do(t, alice, "DELETE", path, ""); code != 204 || text != "" {
			t.Fatalf("got %d %q, want 204", code, text)
		}
		w.refused(t, alice, "GET", path, "", 404, snapferry.NotFound)
		w.refused(t, alice, "DELETE", path, "", 404, snapferry.NotFound)
		testExport(t, w, two, in)
	})
}

func testExport(t *testing.T, w *world, s snapferry.Snapshot, want *os.File) {
	out := disk(t, 1<<20, map[int64]string{0: "old content", 1<<20 - 5: "older"})
	got := w.events(t, "POST", "/v1/snapshots/"+string(s.ID)+"/export", fmt.Sprintf(`{"handle": %q}`, w.hand(t, out)))
	if len(got) < 2 || !got[len(got)-1].Done {
		t.Fatalf("events: got %+v", got)
	}
	last := int64(0)
	for _, e := range got[:len(got)-1] {
		if e.Progress == nil || e.Progress.Total != s.Counts.Present || e.Progress.Done < last {
			t.Fatalf("event: got %+v, want progress from %d on", e, last)
		}
		last = e.Progress.Done
	}
	if last != s.Counts.Present {
		t.Errorf("last progress: got %d, want %d", last, s.Counts.Present)
	}
	sameFiles(t, out, want)
	closed(t, out, 1)
}

func testCopy(t *testing.T, w *world, source snapferry.Snapshot) {
	plan := get[snapferry.Plan](t, w, 200, "POST", "/v1/copies/plan", fmt.Sprintf(`{"from": "east", "source": %q}`, source.ID))
	if plan.MoveBlocks != 0 || plan.Size != size || plan.Digest != source.Digest {
		t.Errorf("plan: got %+v", plan)
	}
	body := fmt.Sprintf(`{"from": "east", "source": %q, "name": "copy", "client_token": "t1"}`, source.ID)
	s := get[snapferry.Snapshot](t, w, 201, "POST", "/v1/copies", body)
	again := get[snapferry.Snapshot](t, w, 201, "POST", "/v1/copies", body)
	if again.ID != s.ID {
		t.Errorf("the same token: got %s, want %s", again.ID, s.ID)
	}
	w.refused(t, alice, "POST", "/v1/copies", strings.Replace(body, `"copy"`, `"other"`, 1), 409, snapferry.Conflict)
	s = w.settled(t, s.ID)
	if s.Digest != source.Digest || s.Source == nil || s.Source.Snapshot != source.ID {
		t.Errorf("copy: got %+v", s)
	}
	c := get[snapferry.Copy](t, w, 200, "GET", "/v1/copies/"+string(s.Copy), "")
	if c.State != snapferry.CopyDone || c.Snapshot != s.ID {
		t.Errorf("copy: got %+v", c)
	}
	w.refused(t, bob, "GET", "/v1/copies/"+string(s.Copy), "", 404, snapferry.NotFound)
}

func TestList(t *testing.T) {
	w := newWorld(t, true)
	f := firstDisk(t)
	var ids []snapferry.SnapshotID // newest first
	for i := range 5 {
		s := w.imported(t, []string{"even", "odd"}[i%2], f)
		ids = append([]snapferry.SnapshotID{s.ID}, ids...)
		<-time.After(2 * time.Millisecond) // the list is ordered by milliseconds
	}
	list := func(query string) (got []snapferry.SnapshotID, next snapferry.SnapshotID) {
		l := get[client.SnapshotList](t, w, 200, "GET", "/v1/snapshots"+query, "")
		for _, s := range l.Snapshots {
			got = append(got, s.ID)
		}
		return got, l.Next
	}
	tests := []struct {
		query string
		want  []snapferry.SnapshotID
		next  snapferry.SnapshotID
	}{
		{"", ids, ""},
		{"?limit=5", ids, ""},
		{"?limit=2", ids[:2], ids[1]},
		{"?limit=2&after=" + string(ids[1]), ids[2:4], ids[3]},
		{"?limit=2&after=" + string(ids[3]), ids[4:], ""},
		{"?after=" + string(ids[4]), nil, ""},
		{"?volume=odd", []snapferry.SnapshotID{ids[1], ids[3]}, ""},
		{"?volume=none", nil, ""},
		{"?state=ready&limit=1", ids[:1], ids[0]},
		{"?state=failed", nil, ""},
	}
	for _, test := range tests {
		got, next := list(test.query)
		if diff := cmp.Diff(got, test.want); diff != "" || next != test.next {
			t.Errorf("%q: next %q, want %q (-got +want):\n%s", test.query, next, test.next, diff)
		}
	}
	for _, id := range ids[:3] {
		if code, text := w.do(t, alice, "DELETE", "/v1/snapshots/"+string(id), ""); code != 204 {
			t.Fatalf("delete: got %d %s", code, text)
		}
	}
	if got, next := list("?limit=1"); len(got) != 1 || got[0] != ids[3] || next != ids[3] {
		t.Errorf("behind deleted ones: got %v, next %q, want %s", got, next, ids[3])
	}
	if code, text := w.do(t, bob, "GET", "/v1/snapshots", ""); code != 200 || strings.TrimSpace(text) != `{"snapshots":[]}` {
		t.Errorf("list of another account: got %d %s", code, text)
	}
}

// TestOwnership asks for another account's snapshot in every way there is.
func TestOwnership(t *testing.T) {
	w := newWorld(t, true)
	s := w.imported(t, "disk", firstDisk(t))
	out := disk(t, 512, map[int64]string{0: "untouched"})
	id, handle := string(s.ID), w.hand(t, out)
	for _, r := range []struct{ method, path, body string }{
		{"GET", "/v1/snapshots/" + id, ""},
		{"GET", "/v1/snapshots/" + id + "/wait", ""},
		{"DELETE", "/v1/snapshots/" + id, ""},
		{"POST", "/v1/snapshots/" + id + "/export", fmt.Sprintf(`{"handle": %q}`, handle)},
		{"GET", "/v1/snapshots/" + id + "/diff/" + id, ""},
		{"POST", "/v1/snapshots/" + id + "/fork", `{"volume": "mine"}`},
		{"GET", "/v1/snapshots/" + id + "/usage", ""},
		{"POST", "/v1/snapshots/usage", fmt.Sprintf(`{"snapshots": [%q]}`, id)},
		{"GET", "/v1/snapshots?after=" + id, ""},
		{"POST", "/v1/copies", fmt.Sprintf(`{"from": "east", "source": %q}`, id)},
		{"POST", "/v1/copies/plan", fmt.Sprintf(`{"from": "east", "source": %q}`, id)},
	} {
		w.refused(t, bob, r.method, r.path, r.body, 404, snapferry.NotFound)
	}
	get[snapferry.Snapshot](t, w, 200, "GET", "/v1/snapshots/"+id, "")
	if fi, err := out.Stat(); err != nil || fi.Size() != 512 {
		t.Errorf("the target of a refused export: got %v, %v", fi.Size(), err)
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t, false)
	const none = "/v1/snapshots/snap-00000000000000000"
	tests := []struct {
		method, path, body string
		status             int
		kind               snapferry.Kind
		message            string
	}{
		{"GET", "/v1/nothing", "", 404, snapferry.NotFound, "no operation"},
		{"PUT", "/v1/region", "", 404, snapferry.NotFound, "no operation"},
		{"GET", "/v1/region?x=1", "", 400, snapferry.Invalid, `"x"`},
		{"GET", "/v1/snapshots/snap-1", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", "/v1/snapshots/copy-00000000000000000", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", "/v1/snapshots/..%2f..%2fetc", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", none, "", 404, snapferry.NotFound, "no snapshot"},
		{"GET", none + "?x=1", "", 400, snapferry.Invalid, `"x"`},
		{"DELETE", "/v1/snapshots/snap-1", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"DELETE", none, "", 404, snapferry.NotFound, "no snapshot"},
		{"GET", "/v1/snapshots/snap-1/wait", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", none + "/wait", "", 404, snapferry.NotFound, "no snapshot"},
		{"GET", none + "/wait?done=x", "", 400, snapferry.Invalid, "done"},
		{"GET", none + "/wait?done=-2", "", 400, snapferry.Invalid, "done"},
		{"GET", none + "/wait?timeout=61s", "", 400, snapferry.Invalid, "timeout"},
		{"GET", none + "/wait?timeout=-1s", "", 400, snapferry.Invalid, "timeout"},
		{"GET", none + "/wait?timeout=25", "", 400, snapferry.Invalid, "timeout"},
		{"GET", none + "/wait?x=25", "", 400, snapferry.Invalid, `"x"`},
		{"GET", "/v1/snapshots?limit=0", "", 400, snapferry.Invalid, "limit"},
		{"GET", "/v1/snapshots?limit=1001", "", 400, snapferry.Invalid, "limit"},
		{"GET", "/v1/snapshots?limit=many", "", 400, snapferry.Invalid, "limit"},
		{"GET", "/v1/snapshots?state=fine", "", 400, snapferry.Invalid, "state"},
		{"GET", "/v1/snapshots?volume=a%2fb", "", 400, snapferry.Invalid, "volume name"},
		{"GET", "/v1/snapshots?after=x", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", "/v1/snapshots?after=snap-00000000000000000", "", 404, snapferry.NotFound, "no snapshot"},
		{"GET", "/v1/snapshots?page=2", "", 400, snapferry.Invalid, `"page"`},
		{"POST", "/v1/snapshots/import", "", 400, snapferry.Invalid, "empty"},
		{"POST", "/v1/snapshots/import", `{"volume": "disk", "path": "/dev/sda"}`, 400, snapferry.Invalid, `"path"`},
		{"POST", "/v1/snapshots/import", `{"volume": "a/b", "handle": "x"}`, 400, snapferry.Invalid, "volume name"},
		{"POST", "/v1/snapshots/import", `{"volume": "disk"}`, 400, snapferry.Invalid, "no handle"},
		{"POST", "/v1/snapshots/import", `{"volume": "disk", "handle": "x"}`, 404, snapferry.NotFound, "no file"},
		{"POST", "/v1/snapshots/snap-1/export", `{}`, 400, snapferry.Invalid, "not a snapshot id"},
		{"POST", none + "/export", ``, 400, snapferry.Invalid, "empty"},
		{"POST", none + "/export", `{"handle": "x"}`, 404, snapferry.NotFound, "no snapshot"},
		{"GET", "/v1/snapshots/snap-1/diff/snap-00000000000000000", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", none + "/diff/snap-1", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", none + "/diff/snap-00000000000000000", "", 404, snapferry.NotFound, "no snapshot"},
		{"GET", none + "/diff/snap-00000000000000000?x=1", "", 400, snapferry.Invalid, `"x"`},
		{"POST", "/v1/snapshots/snap-1/fork", `{"volume": "x"}`, 400, snapferry.Invalid, "not a snapshot id"},
		{"POST", none + "/fork", `{"volume": "a/b"}`, 400, snapferry.Invalid, "volume name"},
		{"POST", none + "/fork", `{"name": "x"}`, 400, snapferry.Invalid, "volume name"},
		{"POST", none + "/fork", `{"volume": "x"}`, 404, snapferry.NotFound, "no snapshot"},
		{"POST", none + "/fork", `{"volume": "x", "handle": "x"}`, 400, snapferry.Invalid, `"handle"`},
		{"GET", "/v1/snapshots/snap-1/usage", "", 400, snapferry.Invalid, "not a snapshot id"},
		{"GET", none + "/usage?x=1", "", 400, snapferry.Invalid, `"x"`},
		{"GET", none + "/usage", "", 404, snapferry.NotFound, "no snapshot"},
		{"POST", "/v1/snapshots/usage", `{}`, 400, snapferry.Invalid, "1 to 500"},
		{"POST", "/v1/snapshots/usage", `{"snapshots": ["snap-1"]}`, 400, snapferry.Invalid, "not a snapshot id"},
		{"POST", "/v1/snapshots/usage", `{"snapshots": ["snap-00000000000000000"` + strings.Repeat(`, "snap-00000000000000000"`, 500) + `]}`, 400, snapferry.Invalid, "501"},
		{"GET", "/v1/region/usage?x=1", "", 400, snapferry.Invalid, `"x"`},
		{"GET", "/v1/region/jobs?x=1", "", 400, snapferry.Invalid, `"x"`},
		{"POST", "/v1/copies", `{"from": "No", "source": "snap-00000000000000000"}`, 400, snapferry.Invalid, "not a region name"},
		{"POST", "/v1/copies", `{"from": "west", "source": "snap-1"}`, 400, snapferry.Invalid, "not a snapshot id"},
		{"POST", "/v1/copies", `{"from": "west", "source": "snap-00000000000000000"}`, 404, snapferry.NotFound, "west"},
		{"POST", "/v1/copies", `{"from": "east", "source": "snap-00000000000000000"}`, 404, snapferry.NotFound, "no snapshot"},
		{"POST", "/v1/copies", `{"from": "east", "source": "snap-00000000000000000", "client_token": "` + strings.Repeat("t", 129) + `"}`, 400, snapferry.Invalid, "client token"},
		{"POST", "/v1/copies", `{"from": "east", "source": "snap-00000000000000000", "retention_days": -1}`, 400, snapferry.Invalid, "retention"},
		{"POST", "/v1/copies", `[1]`, 400, snapferry.Invalid, "body"},
		{"POST", "/v1/copies/plan", `{"from": "west", "source": "snap-00000000000000000"}`, 404, snapferry.NotFound, "west"},
		{"GET", "/v1/copies/snap-00000000000000000", "", 400, snapferry.Invalid, "not a copy id"},
		{"GET", "/v1/copies/copy-00000000000000000", "", 404, snapferry.NotFound, "no copy"},
		{"GET", "/v1/copies/copy-00000000000000000?x=1", "", 400, snapferry.Invalid, `"x"`},
		{"POST", "/v1/fsck", `{"deep": "yes"}`, 400, snapferry.Invalid, `"deep"`},
		{"POST", "/v1/fsck?deep=1", `{}`, 400, snapferry.Invalid, `"deep"`},
	}
	for _, test := range tests {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			e := w.refused(t, alice, test.method, test.path, test.body, test.status, test.kind)
			if !strings.Contains(e.Message, test.message) {
				t.Errorf("message: got %q, want %q in it", e.Message, test.message)
			}
		})
	}
}

// TestNotReady has a snapshot that nobody fills: jobs do not run.
func TestNotReady(t *testing.T) {
	w := newWorld(t, false)
	s := get[snapferry.Snapshot](t, w, 201, "POST", "/v1/snapshots/import", fmt.Sprintf(`{"volume": "disk", "handle": %q}`, w.hand(t, firstDisk(t))))
	if s.State != snapferry.SnapshotCreating {
		t.Fatalf("state: got %s", s.State)
	}
	out := disk(t, 512, map[int64]string{0: "untouched"})
	handle := w.hand(t, out)
	path := "/v1/snapshots/" + string(s.ID)
	e := w.refused(t, alice, "POST", path+"/export", fmt.Sprintf(`{"handle": %q}`, handle), 409, snapferry.Conflict)
	if !strings.Contains(e.Hint, "snapshot wait") {
		t.Errorf("hint: got %q", e.Hint)
	}
	if fi, err := out.Stat(); err != nil || fi.Size() != 512 {
		t.Errorf("the target: got %d bytes, %v, want it untouched", fi.Size(), err)
	}
	w.refused(t, alice, "GET", path+"/diff/"+string(s.ID), "", 409, snapferry.Conflict)
	w.refused(t, alice, "POST", "/v1/copies", fmt.Sprintf(`{"from": "east", "source": %q}`, s.ID), 409, snapferry.Conflict)
	got := get[snapferry.Snapshot](t, w, 200, "GET", path+"/wait?done=0&timeout=10ms", "")
	if got.State != snapferry.SnapshotCreating {
		t.Errorf("after a wait: got %s, want creating", got.State)
	}
}

// TestWrongFiles hands over what cannot be read or written, and leaks nothing.
func TestWrongFiles(t *testing.T) {
	w := newWorld(t, true)
	in := firstDisk(t)
	s := w.imported(t, "disk", in)
	open := func(flags int) *os.File {
		f, err := os.OpenFile(in.Name(), flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	importing := func(f *os.File) string { return fmt.Sprintf(`{"volume": "disk", "handle": %q}`, w.hand(t, f)) }
	exporting := func(f *os.File) string { return fmt.Sprintf(`{"handle": %q}`, w.hand(t, f)) }
	path := "/v1/snapshots/" + string(s.ID) + "/export"
	w.refused(t, alice, "POST", "/v1/snapshots/import", importing(open(os.O_WRONLY)), 403, snapferry.Denied)
	w.refused(t, alice, "POST", path, exporting(open(os.O_RDONLY)), 403, snapferry.Denied)
	w.refused(t, alice, "POST", "/v1/snapshots/import", importing(disk(t, 0, nil)), 400, snapferry.Invalid)
	w.refused(t, alice, "POST", "/v1/snapshots/import", importing(disk(t, 513, nil)), 400, snapferry.Invalid)
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer p.Close()
	w.refused(t, alice, "POST", "/v1/snapshots/import", importing(r), 400, snapferry.Invalid)
	w.refused(t, alice, "POST", path, exporting(p), 400, snapferry.Invalid)

	body := importing(in)
	body = strings.Replace(body, `"handle"`, `"retention_days": -1, "handle"`, 1)
	w.refused(t, alice, "POST", "/v1/snapshots/import", body, 400, snapferry.Invalid)
	w.refused(t, alice, "POST", "/v1/snapshots/import", strings.Replace(body, "-1", "1", 1), 404, snapferry.NotFound) // a handle is good once
	closed(t, in, 3)
}

// closed waits until only so many descriptors of a file are open.
func closed(t *testing.T, f *os.File, want int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for {
		got := 0
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc here")
		}
		for _, fd := range fds {
			if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && name == f.Name() {
				got++
			}
		}
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("descriptors of %s: got %d, want %d", f.Name(), got, want)
		}
		<-tick.C
	}
}

// TestExportBreaksOff damages the bucket under an export.
func TestExportBreaksOff(t *testing.T) {
	w := newWorld(t, true)
	s := w.imported(t, "disk", firstDisk(t))
	ctx := context.Background()
	var names []string
	err := w.bucket.List(ctx, "", "", func(i blob.Info) error { names = append(names, i.Name); return nil })
	if err != nil || len(names) == 0 {
		t.Fatalf("objects: got %d, %v", len(names), err)
	}
	for _, name := range names {
		if err := w.bucket.Delete(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	out := disk(t, 512, nil)
	got := w.events(t, "POST", "/v1/snapshots/"+string(s.ID)+"/export", fmt.Sprintf(`{"handle": %q}`, w.hand(t, out)))
	last := got[len(got)-1]
	if last.Done || last.Error == nil || last.Error.RequestID == "" {
		t.Fatalf("last event: got %+v, want an error", last)
	}
	if last.Error.Kind == snapferry.Internal.String() {
		t.Errorf("error: got %+v", last.Error)
	}
}

func TestFsck(t *testing.T) {
	w := newWorld(t, false)
	w.checker.report = &client.FsckReport{Region: "east", Clean: true, Findings: []client.Finding{}}
	got := w.events(t, "POST", "/v1/fsck", `{"deep": true}`)
	if len(got) < 3 || got[0].Progress == nil || got[0].Progress.Total != 10 {
		t.Fatalf("events: got %+v", got)
	}
	want := []client.Event{{Report: &client.FsckReport{Region: "east", Deep: true, Clean: true, Findings: []client.Finding{}}}, {Done: true}}
	if diff := cmp.Diff(got[len(got)-2:], want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	w.checker.err = errors.New("secret")
	got = w.events(t, "POST", "/v1/fsck", `{}`)
	last := got[len(got)-1]
	if last.Error == nil || last.Error.Kind != "internal" || last.Error.Message != "internal error" || last.Done {
		t.Errorf("last event: got %+v", last)
	}
}

// TestWithout has a region without handover and check.
func TestWithout(t *testing.T) {
	full := newWorld(t, false)
	w := &world{url: full.without(t)}
	w.refused(t, alice, "POST", "/v1/snapshots/import", `{"volume": "disk", "handle": "x"}`, 501, snapferry.Unsupported)
	w.refused(t, alice, "POST", "/v1/fsck", `{}`, 501, snapferry.Unsupported)
}

// TestClient is the Go client against the same API.
func TestClient(t *testing.T) {
	w := newWorld(t, true)
	c, err := client.New(client.Config{Address: w.url, Handoff: w.socket, Token: alice})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	in := firstDisk(t)
	s, err := c.Import(ctx, client.ImportRequest{Volume: "disk"}, in)
	if err == nil {
		s, err = c.Wait(ctx, s.ID, nil)
	}
	if err != nil || s.State != snapferry.SnapshotReady {
		t.Fatalf("import: got %+v, %v", s, err)
	}
	out := disk(t, 0, nil)
	if err := c.Export(ctx, s.ID, out, nil); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, out, in)
	if err := c.Delete(ctx, s.ID); err != nil {
		t.Fatal(err)
	}
	_, err = c.Snapshot(ctx, s.ID)
	if !snapferry.IsKind(err, snapferry.NotFound) || snapferry.HintOf(err) == "" {
		t.Errorf("a deleted snapshot: got %v, hint %q, want NotFound", err, snapferry.HintOf(err))
	}
}
