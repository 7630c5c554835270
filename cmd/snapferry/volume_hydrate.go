package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeHydrateCommand() *cobra.Command {
	var rate string
	var wait bool
	cmd := &cobra.Command{
		Use: "hydrate VOLUME", Short: "Bring near all that a live volume reads from the bucket", Args: cobra.ExactArgs(1),
		Long: `Bring near all that a live volume reads from the bucket, in the background, and
keep it near. "volume show" says how far it is. It goes on after a restart.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var n int64
			if rate != "" {
				if n, err = parseSize(rate); err != nil {
					return err
				}
			}
			return a.onVolume(cmd.Context(), args[0], func(c *client.Client, id snapferry.VolumeID) error {
				v, err := c.HydrateVolume(cmd.Context(), id, n)
				if err != nil {
					return err
				}
				return a.awaitVolume(cmd.Context(), c, v, func(v snapferry.Volume) bool { return !wait || v.Local == nil || v.Local.Progress == nil })
			})
		},
	}
	cmd.Flags().StringVar(&rate, "rate", "", "bytes per second, as 50M (default: no limit)")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is done")
	return cmd
}
