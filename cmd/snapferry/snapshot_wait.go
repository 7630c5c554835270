package main

import "github.com/spf13/cobra"

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait ID", Short: "Wait until a snapshot is ready or has failed", Args: cobra.ExactArgs(1),
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
			return a.await(cmd.Context(), c, ids[0])
		},
	}
}
