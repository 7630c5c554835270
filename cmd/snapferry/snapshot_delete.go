package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
)

func (a *app) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID...", Short: "Delete snapshots; one that is being made is cancelled", Args: cobra.MinimumNArgs(1),
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
			// What was deleted before one that cannot be is told too.
			var deleted []snapferry.SnapshotID
			for _, id := range ids {
				if err = c.Delete(cmd.Context(), id); err != nil {
					break
				}
				deleted = append(deleted, id)
			}
			perr := a.printDeleted(deleted)
			if err == nil {
				err = perr
			}
			return err
		},
	}
}

// printDeleted prints an object for one snapshot, a list for several.
func (a *app) printDeleted(ids []snapferry.SnapshotID) error {
	type row struct {
		ID      snapferry.SnapshotID `json:"id"`
		Deleted bool                 `json:"deleted"`
	}
	if len(ids) == 0 {
		return nil
	}
	rows := make([]row, len(ids))
	for i, id := range ids {
		rows[i] = row{id, true}
	}
	var out any = rows
	if len(rows) == 1 {
		out = rows[0]
	}
	return a.print(out, func(p *printer) {
		for _, id := range ids {
			p.line("deleted %s", id)
		}
	})
}
