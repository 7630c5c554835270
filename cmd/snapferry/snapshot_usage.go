package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
)

func (a *app) usageCommand() *cobra.Command {
	return &cobra.Command{
		Use: "usage ID...", Short: "Say what only these snapshots hold, and what deleting them would free", Args: cobra.MinimumNArgs(1),
		Long: `Say how many bytes, as stored, each of the snapshots holds alone, and how many
deleting all of them would free. Nothing is changed. LATER is what only they
have and what stays until copies, imports and readers have ended, or until all
but one of their forks are deleted too.`,
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
			u, err := c.Usage(cmd.Context(), ids...)
			if err != nil {
				return err
			}
			return a.print(u, func(p *printer) { snapshotUsageText(p, u) })
		},
	}
}

func snapshotUsageText(p *printer, u snapferry.SnapshotUsage) {
	row := func(name string, f snapferry.Freed) []string {
		return []string{name, strconv.FormatInt(f.Blocks, 10), bytesText(f.Bytes), bytesText(f.Later)}
	}
	var rows [][]string
	for _, s := range u.Snapshots {
		rows = append(rows, row(string(s.ID), s.Freed))
	}
	if len(u.Snapshots) > 1 {
		rows = append(rows, row("together", u.Together))
	}
	p.table([]string{"SNAPSHOT", "BLOCKS", "FREES", "LATER"}, rows)
}
