package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
)

func (a *app) importCommand() *cobra.Command {
	var labels labelFlags
	var volume string
	var noWait bool
	cmd := &cobra.Command{
		Use: "import FILE|DEVICE --volume NAME", Short: "Make a snapshot of a raw image file or a block device", Args: cobra.ExactArgs(1),
		Long: `Make a snapshot of a raw image file or a block device, incremental on the last
snapshot of the same volume. The region must run on this machine. The disk is
opened here, with your rights, and handed over. What changes the disk meanwhile
makes the import of a file fail; it is not seen on a device: stop its users, or
import a frozen copy.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := labels.get()
			if err != nil {
				return err
			}
			if volume == "" {
				return snapferry.Errorf(snapferry.Invalid, "the snapshot needs a volume").WithHint("give it with --volume NAME")
			}
			if err := snapferry.CheckVolumeName(volume); err != nil {
				return err
			}
			return a.importDisk(cmd.Context(), args[0], client.ImportRequest{Volume: volume, Labels: l}, noWait)
		},
	}
	labels.register(cmd)
	cmd.Flags().StringVar(&volume, "volume", "", "volume that the snapshot is of")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return at once; the import goes on in the region")
	return cmd
}

func (a *app) importDisk(ctx context.Context, path string, req client.ImportRequest, noWait bool) error {
	// Open finds what is wrong with the disk before the region is asked.
	disk, err := source.Open(path)
	if err != nil {
		return err
	}
	if err := disk.Close(); err != nil {
		return fileError("close", path, err)
	}
	f, err := source.OpenRead(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Import(ctx, req, f)
	if err != nil {
		return err
	}
	if noWait {
		return a.showSnapshot(s)
	}
	return a.await(ctx, c, s.ID)
}

// await waits for a snapshot with a sign of its progress, then prints it.
func (a *app) await(ctx context.Context, c *client.Client, id snapferry.SnapshotID) error {
	bar := a.newBar("snapshot " + string(id))
	s, err := c.Wait(ctx, id, func(s snapferry.Snapshot) {
		if s.Progress != nil {
			bar.set(s.Progress.Done, s.Progress.Total)
		}
	})
	bar.end(err == nil && s.State == snapferry.SnapshotReady)
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintf(a.stderr, "snapshot %s goes on without this command; see it with: snapferry snapshot show %s\n", id, id)
		}
		return err
	}
	return a.settled(s)
}
