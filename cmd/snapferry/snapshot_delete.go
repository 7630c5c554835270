package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
)

func (a *app) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Delete a snapshot; one that is being made is cancelled", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseSnapshots(args...)
			if err != nil {
				return err
			}
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Delete(cmd.Context(), ids[0]); err != nil {
				return err
			}
			out := struct {
				ID      snapferry.SnapshotID `json:"id"`
				Deleted bool                 `json:"deleted"`
			}{ids[0], true}
			return a.print(out, func(p *printer) { p.line("deleted %s", ids[0]) })
		},
	}
}
