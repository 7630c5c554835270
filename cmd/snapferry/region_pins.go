package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) regionPinsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pins", Short: "List the snapshots that copies of other regions hold", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := c.Pins(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(client.PinList{Pins: all}, func(p *printer) {
				rows := make([][]string, 0, len(all))
				for _, x := range all {
					state := ""
					if x.Deleting {
						state = "deleting"
					}
					rows = append(rows, []string{x.ID, string(x.Snapshot), state, string(x.Region), string(x.Copy), timeText(x.Created), timeText(x.Seen)})
				}
				p.table([]string{"PIN", "SNAPSHOT", "", "REGION", "COPY", "CREATED", "LAST SEEN"}, rows)
			})
		},
	}
}

func (a *app) regionBreakPinCommand() *cobra.Command {
	return &cobra.Command{
		Use: "break-pin PIN...", Short: "Take pins away from a region that is gone for ever", Args: cobra.MinimumNArgs(1),
		Long: `Take pins away from a region that is gone for ever; for operators. A copy of a
region that is not gone takes its pin again while the snapshot is there, and fails
when it is not.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			type row struct {
				ID     string `json:"id"`
				Broken bool   `json:"broken"`
			}
			var rows []row
			for _, id := range args {
				if err = c.BreakPin(cmd.Context(), id); err != nil {
					break
				}
				rows = append(rows, row{id, true})
			}
			if len(rows) == 0 {
				return err
			}
			perr := a.print(rows, func(p *printer) {
				for _, r := range rows {
					p.line("broke %s", r.ID)
				}
			})
			if err == nil {
				err = perr
			}
			return err
		},
	}
}

func (a *app) regionRecordsCommand() *cobra.Command {
	var after int64
	cmd := &cobra.Command{
		Use: "usage-records", Short: "List what was metered for the account, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			all := []snapferry.UsageRecord{}
			err = c.UsageRecords(cmd.Context(), after, func(u snapferry.UsageRecord) error {
				all = append(all, u)
				return nil
			})
			if err != nil {
				return err
			}
			return a.print(client.UsageList{Records: all}, func(p *printer) {
				rows := make([][]string, 0, len(all))
				for _, u := range all {
					rows = append(rows, []string{timeText(u.From), timeText(u.At), u.Kind, u.Subject, bytesText(u.Bytes), string(u.Copy), string(u.Outcome)})
				}
				p.table([]string{"FROM", "TIME", "KIND", "OF", "BYTES", "COPY", "OUTCOME"}, rows)
			})
		},
	}
	cmd.Flags().Int64Var(&after, "after", 0, "only those added after the record with this id")
	return cmd
}
