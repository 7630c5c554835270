package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
)

func (a *app) regionCommand() *cobra.Command {
	return group("region", "See what a region keeps and does", a.regionUsageCommand(), a.regionJobsCommand(), a.regionPinsCommand(), a.regionBreakPinCommand(), a.regionRecordsCommand(), a.regionSetCommand())
}

func (a *app) regionUsageCommand() *cobra.Command {
	return &cobra.Command{
		Use: "usage", Short: "Say what the region keeps, for you and for all, and what it gives back", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			u, err := c.RegionUsage(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(u, func(p *printer) { regionUsageText(p, u) })
		},
	}
}

func regionUsageText(p *printer, u snapferry.RegionUsage) {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	var rows [][]string
	add := func(name string, text func(int64) string, account, total int64) {
		rows = append(rows, []string{name, text(account), text(total)})
	}
	x, t := u.Account, u.Total
	add("snapshots", number, x.Snapshots, t.Snapshots)
	add("being made", number, x.Making, t.Making)
	add("versions", number, x.Versions, t.Versions)
	add("ghosts", number, x.Ghosts, t.Ghosts)
	add("content", bytesText, x.Present, t.Present)
	add("stored", bytesText, x.Stored, t.Stored)
	add("live", bytesText, x.Live, t.Live)
	add("dead", bytesText, x.Dead, t.Dead)
	add("condemned", bytesText, x.Condemned, t.Condemned)
	add("objects", number, x.Objects, t.Objects)
	add("small objects", number, x.Small, t.Small)
	p.table([]string{"", "ACCOUNT", "REGION"}, rows)
	p.line("upkeep: %d jobs run, %d wait", u.Running, u.Queued)
	if u.Stopped != "" {
		p.line("nothing is reclaimed: %s", u.Stopped)
	}
}
