package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List live volumes, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := c.Volumes(cmd.Context(), "")
			if err != nil {
				return err
			}
			return a.print(client.VolumeList{Volumes: all}, func(p *printer) { volumesText(p, all) })
		},
	}
}

func volumesText(p *printer, all []snapferry.Volume) {
	rows := make([][]string, 0, len(all))
	for _, v := range all {
		uri := "-"
		if v.Export != nil {
			uri = v.Export.URI
		}
		rows = append(rows, []string{string(v.ID), v.Name, string(v.State), short(v.Size), timeText(v.Created), uri})
	}
	p.table([]string{"ID", "NAME", "STATE", "SIZE", "CREATED", "EXPORTED AT"}, rows)
}
