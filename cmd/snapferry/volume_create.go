package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeCreateCommand() *cobra.Command {
	var req client.VolumeRequest
	var size, snapshot string
	var tags []string
	var seal sealFlags
	cmd := &cobra.Command{
		Use: "create --size SIZE | --snapshot ID", Short: "Make live volumes, empty or from a snapshot", Args: cobra.NoArgs,
		Long: `Make live volumes: empty ones of a size, or with what a snapshot has. The latter
can be used at once, whatever their size: what is read comes from the bucket
then, and what was written stays here. "volume export" serves them.`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			switch {
			case size == "" && snapshot == "":
				return snapferry.Errorf(snapferry.Invalid, "the volume needs a size or a snapshot").WithHint("give --size, as 20G, or --snapshot ID")
			case size != "":
				if req.Size, err = parseSize(size); err == nil {
					err = snapferry.CheckSize(req.Size)
				}
				if err != nil {
					return err
				}
			}
			if snapshot != "" {
				if req.Snapshot, err = snapferry.ParseSnapshotID(snapshot); err != nil {
					return err
				}
			}
			if req.Count < 1 {
				return snapferry.Errorf(snapferry.Invalid, "%d volumes cannot be made", req.Count).WithHint("give --count 1 or more")
			}
			if req.Name != "" {
				if err := snapferry.CheckVolumeName(req.Name); err != nil {
					return err
				}
			}
			if req.Tags, err = parseTags(tags); err != nil {
				return err
			}
			req.Sealing = seal.Sealing
			return a.createVolumes(cmd.Context(), req)
		},
	}
	seal.register(cmd)
	f := cmd.Flags()
	f.StringVar(&size, "size", "", "bytes, as 20G (default with a snapshot: its size)")
	f.StringVar(&snapshot, "snapshot", "", "snapshot whose content the volume has at first")
	f.StringVar(&req.Name, "name", "", "name (default: the id); with --count, -1, -2 and so on are added")
	f.StringArrayVar(&tags, "tag", nil, "tag as key=value; may be repeated")
	f.IntVar(&req.Count, "count", 1, "how many volumes")
	return cmd
}

func (a *app) createVolumes(ctx context.Context, req client.VolumeRequest) error {
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	made, err := c.CreateVolumes(ctx, req)
	if err != nil {
		return err
	}
	if len(made) == 1 {
		return a.showVolume(made[0])
	}
	return a.print(client.VolumeList{Volumes: made}, func(p *printer) { volumesText(p, made) })
}
