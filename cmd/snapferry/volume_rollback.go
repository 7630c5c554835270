package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeRollbackCommand() *cobra.Command {
	var req client.RollbackRequest
	var snapshot string
	var wait bool
	cmd := &cobra.Command{
		Use: "rollback VOLUME --snapshot ID", Short: "Put a live volume back to a snapshot of its family", Args: cobra.ExactArgs(1),
		Long: `Put a live volume, which must not be exported, back to a snapshot of its family:
one of its own, or one that it descends from. What it has now becomes a snapshot
first, unless --no-safety-snapshot is given. The volume can be used again when
that is ready.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if snapshot == "" {
				return snapferry.Errorf(snapferry.Invalid, "the snapshot is missing").WithHint("give it with --snapshot ID")
			}
			if req.Snapshot, err = snapferry.ParseSnapshotID(snapshot); err != nil {
				return err
			}
			return a.onVolume(cmd.Context(), args[0], func(c *client.Client, id snapferry.VolumeID) error {
				v, err := c.RollbackVolume(cmd.Context(), id, req)
				if err != nil {
					return err
				}
				return a.awaitVolume(cmd.Context(), c, v, func(v snapferry.Volume) bool { return !wait || v.State != snapferry.VolumeRollingBack })
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&snapshot, "snapshot", "", "snapshot to put the volume back to")
	f.BoolVar(&req.NoSafetySnapshot, "no-safety-snapshot", false, "lose what the volume has now")
	f.BoolVar(&wait, "wait", false, "wait until the volume can be used again")
	return cmd
}
