package main

import (
	"strconv"

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
			j.Kind, j.Subject, string(j.State), strconv.Itoa(j.Attempts), timeText(j.After), string(j.Progress), j.Error,
		})
	}
	p.table([]string{"KIND", "SUBJECT", "STATE", "TRIES", "NOT BEFORE", "PROGRESS", "ERROR"}, rows)
}
