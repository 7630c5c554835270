package main

import (
	"testing"
	"time"

	"github.com/snapferry/snapferry"
)

func TestResting(t *testing.T) {
	now := time.Now()
	later := now.Add(time.Hour)
	sweep := snapferry.RegionJob{Kind: "sweep", State: snapferry.JobQueued, After: later}
	for name, x := range map[string]struct {
		job  snapferry.RegionJob
		want bool
	}{
		"waits for its time":  {snapferry.RegionJob{Kind: "reclaim", State: snapferry.JobQueued, After: later}, true},
		"due":                 {snapferry.RegionJob{Kind: "reclaim", State: snapferry.JobQueued, After: now}, false},
		"at any time":         {snapferry.RegionJob{Kind: "free", State: snapferry.JobQueued}, false},
		"runs":                {snapferry.RegionJob{Kind: "compact", State: snapferry.JobRunning, After: later}, false},
		"failed, comes again": {snapferry.RegionJob{Kind: "free", State: snapferry.JobQueued, After: later, Error: "full"}, false},
	} {
		if got := resting([]snapferry.RegionJob{sweep, x.job}, now); got != x.want {
			t.Errorf("a job that %s: resting is %v", name, got)
		}
	}
}

func TestCountsText(t *testing.T) {
	for in, want := range map[string]string{
		``:                                "",
		`{}`:                              "",
		`{"slots":70000,"bytes":5242880}`: "bytes 5.0 MiB, slots 70000",
		`{"state":"odd"}`:                 `{"state":"odd"}`,
		`[1]`:                             `[1]`,
	} {
		if got := countsText([]byte(in)); got != want {
			t.Errorf("%s reads %q, want %q", in, got, want)
		}
	}
}
