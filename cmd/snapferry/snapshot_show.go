package main

import "github.com/spf13/cobra"

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a snapshot", Args: cobra.ExactArgs(1),
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
			s, err := c.Snapshot(cmd.Context(), ids[0])
			if err != nil {
				return err
			}
			return a.showSnapshot(s)
		},
	}
}
