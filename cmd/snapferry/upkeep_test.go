package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/snapferry/snapferry/client"
)

// scriptUpkeep waits until a region has nothing to do for itself that is due:
// REGION.
func scriptUpkeep(ts *testscript.TestScript, _ bool, args []string) {
	end := time.NewTimer(time.Minute)
	defer end.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		cmd := exec.Command("snapferry", "region", "jobs", "--region", args[0], "-o", "json")
		cmd.Env = append(os.Environ(), configVariable+"="+ts.Getenv(configVariable))
		out, err := cmd.Output()
		ts.Check(err)
		var l client.JobList
		ts.Check(json.Unmarshal(out, &l))
		if atRest(l) {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			ts.Fatalf("upkeep does not come to rest: %s", out)
		}
	}
}

// atRest reports whether all that is left is sweeps, and removals that wait for
// their grace.
func atRest(l client.JobList) bool {
	for _, j := range l.Jobs {
		if j.Kind != "sweep" && j.Kind != "reclaim" || j.State != "queued" {
			return false
		}
	}
	return true
}
