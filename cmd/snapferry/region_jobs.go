package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) regionJobsCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "jobs", Short: "List what the region does for itself: deletion, compaction, sweeps", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			jobs, err := c.Jobs(cmd.Context())
			for err == nil && wait && !resting(jobs, time.Now()) {
				if err = pause(cmd.Context(), jobsPoll); err == nil {
					jobs, err = c.Jobs(cmd.Context())
				}
			}
			if err != nil {
				return err
			}
			return a.print(client.JobList{Jobs: jobs}, func(p *printer) { jobsText(p, jobs) })
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nothing is left to do but what waits for its time")
	return cmd
}

// jobsPoll is how often a command that waits for jobs asks for them.
const jobsPoll = 20 * time.Millisecond

// resting reports whether all jobs wait for their time, and none because it
// failed.
func resting(jobs []snapferry.RegionJob, now time.Time) bool {
	return !slices.ContainsFunc(jobs, func(j snapferry.RegionJob) bool {
		return j.State != snapferry.JobQueued || j.Error != "" || !j.After.After(now)
	})
}

// pause waits for a time; the context's end cuts it short.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func jobsText(p *printer, jobs []snapferry.RegionJob) {
	var rows [][]string
	for _, j := range jobs {
		rows = append(rows, []string{
			j.Kind, j.Subject, string(j.State), strconv.Itoa(j.Attempts), timeText(j.After), countsText(j.Progress), j.Error,
		})
	}
	p.table([]string{"KIND", "SUBJECT", "STATE", "TRIES", "NOT BEFORE", "PROGRESS", "ERROR"}, rows)
}

// countsText is a job's progress as a person reads it: the numbers by name, in
// the order of the names.
func countsText(progress json.RawMessage) string {
	var counts map[string]json.Number
	if json.Unmarshal(progress, &counts) != nil {
		return string(progress) // none, or not numbers by name
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		text := counts[name].String()
		if n, err := counts[name].Int64(); err == nil && slices.Contains(byteCounts, name) {
			text = short(n)
		}
		parts = append(parts, name+" "+text)
	}
	return strings.Join(parts, ", ")
}

// byteCounts are the names of progress that count bytes.
var byteCounts = []string{"bytes", "read", "written", "freed"}
