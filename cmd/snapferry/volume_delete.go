package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeDeleteCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "delete VOLUME", Short: "Delete a live volume; its snapshots stay", Args: cobra.ExactArgs(1),
		Long: `Delete a live volume, which must not be exported, with all that is in no snapshot
of it. Its snapshots stay; those under way become ready first.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onVolume(cmd.Context(), args[0], func(c *client.Client, id snapferry.VolumeID) error {
				if err := c.DeleteVolume(cmd.Context(), id); err != nil {
					return err
				}
				if wait {
					if err := awaitGone(cmd.Context(), c, id); err != nil {
						return err
					}
				}
				out := struct {
					ID      snapferry.VolumeID `json:"id"`
					Deleted bool               `json:"deleted"`
				}{id, true}
				return a.print(out, func(p *printer) { p.line("deleted %s", id) })
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is gone")
	return cmd
}

// awaitGone waits until there is no such volume any more.
func awaitGone(ctx context.Context, c *client.Client, id snapferry.VolumeID) error {
	for {
		v, err := c.Volume(ctx, id)
		if snapferry.IsKind(err, snapferry.NotFound) {
			return nil
		}
		if err == nil {
			err = inError(v)
		}
		if err == nil {
			err = pause(ctx, volumePoll)
		}
		if err != nil {
			return err
		}
	}
}
