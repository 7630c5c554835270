package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show VOLUME", Short: "Show a live volume, and how much of it is only here", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onVolume(cmd.Context(), args[0], func(c *client.Client, id snapferry.VolumeID) error {
				v, err := c.Volume(cmd.Context(), id)
				if err != nil {
					return err
				}
				return a.showVolume(v)
			})
		},
	}
}
