package nativeapi_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

// TestSpace asks what snapshots hold, forks one, and deletes what it has.
func TestSpace(t *testing.T) {
	w := newWorld(t, true)
	in := firstDisk(t)
	one := w.imported(t, "disk", in)
	if _, err := in.WriteAt([]byte("changed"), block); err != nil {
		t.Fatal(err)
	}
	two := w.imported(t, "disk", in)
	both := get[snapferry.SnapshotUsage](t, w, 200, "POST", "/v1/snapshots/usage", fmt.Sprintf(`{"snapshots": [%q, %q, %q]}`, one.ID, two.ID, one.ID))
	if len(both.Snapshots) != 2 || both.Snapshots[0].Blocks != 1 || both.Snapshots[1].Blocks != 1 || both.Together.Blocks != 6 {
		t.Errorf("usage: got %+v, want one block each and 6 together", both)
	}
	alone := get[snapferry.SnapshotUsage](t, w, 200, "GET", "/v1/snapshots/"+string(one.ID)+"/usage", "")
	want := snapferry.SnapshotUsage{Snapshots: both.Snapshots[:1], Together: both.Snapshots[0].Freed}
	if diff := cmp.Diff(alone, want); diff != "" {
		t.Errorf("usage of one (-got +want):\n%s", diff)
	}
	f := get[snapferry.Snapshot](t, w, 201, "POST", "/v1/snapshots/"+string(one.ID)+"/fork", `{"volume": "branch", "name": "b", "tags": {"k": "v"}}`)
	f = w.settled(t, f.ID)
	if f.Volume != "branch" || f.Name != "b" || f.Digest != one.Digest || f.Parent != one.ID || f.Counts.Changed != 0 {
		t.Errorf("fork: got %+v", f)
	}
	w.refused(t, alice, "POST", "/v1/snapshots/"+string(one.ID)+"/fork", `{"volume": "branch"}`, 409, snapferry.Exists)
	for _, id := range []snapferry.SnapshotID{one.ID, two.ID, f.ID} {
		if code, text := w.do(t, alice, "DELETE", "/v1/snapshots/"+string(id), ""); code != 204 {
			t.Fatalf("delete: got %d %s", code, text)
		}
	}
	u := get[snapferry.RegionUsage](t, w, 200, "GET", "/v1/region/usage", "")
	if u.Region != "east" || u.Total.Snapshots != 0 || u.Stopped != "" {
		t.Errorf("region: got %+v", u)
	}
	l := get[client.JobList](t, w, 200, "GET", "/v1/region/jobs", "")
	if len(l.Jobs) == 0 {
		t.Error("jobs: got none, want a sweep at least")
	}
}
