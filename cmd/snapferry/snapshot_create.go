package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) createCommand() *cobra.Command {
	var labels labelFlags
	var wait bool
	cmd := &cobra.Command{
		Use: "create VOLUME...", Short: "Take snapshots of live volumes, all at one moment", Args: cobra.MinimumNArgs(1),
		Long: `Take a snapshot of each live volume, all at one moment: none has a write that came
after one that another lacks. The volumes are named by id or name, and stay in
use. What has changed goes to the bucket in the background.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := labels.get()
			if err != nil {
				return err
			}
			for _, arg := range args {
				if err := checkVolumeArg(arg); err != nil {
					return err
				}
			}
			return a.createSnapshots(cmd.Context(), args, l, wait)
		},
	}
	labels.register(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the snapshots are ready")
	return cmd
}

func (a *app) createSnapshots(ctx context.Context, volumes []string, l client.Labels, wait bool) error {
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	req := client.SnapshotRequest{Labels: l}
	for _, arg := range volumes {
		id, err := findVolume(ctx, c, arg)
		if err != nil {
			return err
		}
		req.Volumes = append(req.Volumes, id)
	}
	made, err := c.SnapshotVolumes(ctx, req)
	if err != nil {
		return err
	}
	switch {
	case len(made) == 1 && wait:
		return a.await(ctx, c, made[0].ID)
	case len(made) == 1:
		return a.showSnapshot(made[0])
	case wait:
		return a.awaitAll(ctx, c, made)
	}
	return a.print(client.SnapshotList{Snapshots: made}, func(p *printer) { listText(p, made) })
}

// awaitAll waits for snapshots, then prints them. The error is that of the first
// one that failed.
func (a *app) awaitAll(ctx context.Context, c *client.Client, all []snapferry.Snapshot) error {
	var failed error
	for i, s := range all {
		now, err := c.Wait(ctx, s.ID, nil)
		if err != nil {
			return err
		}
		if all[i] = now; failed == nil {
			failed = notReady(now)
		}
	}
	if err := a.print(client.SnapshotList{Snapshots: all}, func(p *printer) { listText(p, all) }); err != nil {
		return err
	}
	return failed
}
