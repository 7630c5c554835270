package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) forkCommand() *cobra.Command {
	var labels labelFlags
	var volume string
	cmd := &cobra.Command{
		Use: "fork ID --volume NAME", Short: "Begin a new volume with what a snapshot has; no data moves", Args: cobra.ExactArgs(1),
		Long: `Begin a new volume with what a snapshot has, and print its first snapshot. No data
moves: both share all they have in common. What is then imported into the new
volume is incremental on it. Either can be deleted at any time.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseSnapshots(args...)
			if err != nil {
				return err
			}
			l, err := labels.get()
			if err != nil {
				return err
			}
			if volume == "" {
				return snapferry.Errorf(snapferry.Invalid, "the new volume needs a name").WithHint("give it with --volume NAME")
			}
			if err := snapferry.CheckVolumeName(volume); err != nil {
				return err
			}
			return a.fork(cmd.Context(), ids[0], client.ForkRequest{Volume: volume, Labels: l})
		},
	}
	labels.register(cmd)
	cmd.Flags().StringVar(&volume, "volume", "", "name of the new volume")
	return cmd
}

func (a *app) fork(ctx context.Context, id snapferry.SnapshotID, req client.ForkRequest) error {
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Fork(ctx, id, req)
	if err != nil {
		return err
	}
	return a.await(ctx, c, s.ID) // it takes no time that depends on the size
}
