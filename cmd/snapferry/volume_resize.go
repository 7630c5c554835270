package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeResizeCommand() *cobra.Command {
	var size string
	cmd := &cobra.Command{
		Use: "resize VOLUME --size SIZE", Short: "Make a live volume larger", Args: cobra.ExactArgs(1),
		Long: `Make a live volume larger. Clients see it when they connect again. A volume cannot
become smaller: make one of another size, and copy what is in this one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == "" {
				return snapferry.Errorf(snapferry.Invalid, "the new size is missing").WithHint("give it with --size, as 40G")
			}
			n, err := parseSize(size)
			if err != nil {
				return err
			}
			if err := snapferry.CheckSize(n); err != nil {
				return err
			}
			return a.onVolume(cmd.Context(), args[0], func(c *client.Client, id snapferry.VolumeID) error {
				v, err := c.ResizeVolume(cmd.Context(), id, n)
				if err != nil {
					return err
				}
				return a.showVolume(v)
			})
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "bytes, as 40G")
	return cmd
}
