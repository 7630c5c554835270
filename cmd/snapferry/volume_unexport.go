package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeUnexportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unexport VOLUME", Short: "Serve a live volume no longer; its connections end", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onVolume(cmd.Context(), args[0], func(c *client.Client, id snapferry.VolumeID) error {
				v, err := c.UnexportVolume(cmd.Context(), id)
				if err != nil {
					return err
				}
				return a.showVolume(v)
			})
		},
	}
}
