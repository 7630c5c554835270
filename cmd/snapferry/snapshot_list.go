package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) listCommand() *cobra.Command {
	var filter client.Filter
	var state, set string
	cmd := &cobra.Command{
		Use: "list", Short: "List snapshots, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			filter.State, filter.Set = snapferry.SnapshotState(state), snapferry.SetID(set)
			all := client.SnapshotList{Snapshots: []snapferry.Snapshot{}}
			err = c.Snapshots(cmd.Context(), filter, func(s snapferry.Snapshot) error {
				all.Snapshots = append(all.Snapshots, s)
				return nil
			})
			if err != nil {
				return err
			}
			return a.print(all, func(p *printer) { listText(p, all.Snapshots) })
		},
	}
	cmd.Flags().StringVar(&filter.Volume, "volume", "", "only snapshots of this volume")
	cmd.Flags().StringVar(&state, "state", "", "only snapshots in this state")
	cmd.Flags().StringVar(&set, "set", "", "only snapshots of this set")
	return cmd
}

func listText(p *printer, all []snapferry.Snapshot) {
	rows := make([][]string, 0, len(all))
	for _, s := range all {
		rows = append(rows, []string{string(s.ID), s.Volume, string(s.State), short(s.Size), storedText(s.Counts), timeText(s.Created), string(s.Set), s.Name})
	}
	p.table([]string{"ID", "VOLUME", "STATE", "SIZE", "STORED", "CREATED", "SET", "NAME"}, rows)
}

// storedText is what a snapshot stored; a recovery knows only what it holds.
func storedText(c snapferry.Counts) string {
	if c.Present > 0 && c == (snapferry.Counts{Present: c.Present}) {
		return "-"
	}
	return short(c.Stored)
}
