package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) regionJobsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "jobs", Short: "List what the region does for itself: deletion, compaction, sweeps", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			jobs, err := c.Jobs(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(client.JobList{Jobs: jobs}, func(p *printer) { jobsText(p, jobs) })
		},
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
