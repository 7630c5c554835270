package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeCommand() *cobra.Command {
	return group("volume", "Live volumes: disks that are served over NBD",
		a.volumeCreateCommand(), a.volumeListCommand(), a.volumeShowCommand(), a.volumeExportCommand(), a.volumeUnexportCommand(), a.volumeResizeCommand(),
		a.volumeRollbackCommand(), a.volumeHydrateCommand(), a.volumeDeleteCommand())
}

// volumePoll is how often a command that waits for a volume asks for it.
const volumePoll = 50 * time.Millisecond

// onVolume runs fn with a client and the id of a volume that is named by it, or
// by its name.
func (a *app) onVolume(ctx context.Context, arg string, fn func(c *client.Client, id snapferry.VolumeID) error) error {
	if err := checkVolumeArg(arg); err != nil {
		return err
	}
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	id, err := findVolume(ctx, c, arg)
	if err != nil {
		return err
	}
	return fn(c, id)
}

// checkVolumeArg checks the spelling of a volume's id or name.
func checkVolumeArg(arg string) error {
	if snapferry.CheckVolumeName(arg) == nil {
		return nil // as every id is
	}
	return snapferry.Errorf(snapferry.Invalid, "%q is neither the id nor the name of a volume", arg).
		WithHint("list what there is with: snapferry volume list")
}

// findVolume returns the id of a volume that is named by it, or by its name.
func findVolume(ctx context.Context, c *client.Client, arg string) (snapferry.VolumeID, error) {
	if id, err := snapferry.ParseVolumeID(arg); err == nil {
		return id, nil
	}
	all, err := c.Volumes(ctx, arg)
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", snapferry.Errorf(snapferry.NotFound, "there is no live volume %q", arg).WithHint("list what there is with: snapferry volume list")
	}
	return all[0].ID, nil
}

// showVolume prints one volume.
func (a *app) showVolume(v snapferry.Volume) error {
	return a.print(v, func(p *printer) {
		fields := []string{
			"id", string(v.ID), "region", string(v.Region), "name", v.Name, "tags", tagText(v.Tags), "state", string(v.State), "reason", v.Reason, "hint", v.Hint,
			"size", bytesText(v.Size), "key", string(v.Key), "from snapshot", string(v.Snapshot), "created", timeText(v.Created),
		}
		if e := v.Export; e != nil {
			access := "read and write"
			if e.ReadOnly {
				access = "read only"
			}
			fields = append(fields, "exported at", e.URI, "access", access)
		}
		if v.Pending > 0 {
			fields = append(fields, "snapshots under way", fmt.Sprint(v.Pending))
		}
		if l := v.Local; l != nil {
			hydration := ""
			if l.Progress != nil {
				hydration = fmt.Sprintf("%s of %s, %s/s", short(l.Progress.Done), short(l.Progress.Total), short(int64(l.Progress.Rate)))
			}
			pauses := ""
			if l.Pauses.Count > 0 {
				pauses = fmt.Sprintf("%d by snapshots, the last %v, the longest %v", l.Pauses.Count, l.Pauses.Last, l.Pauses.Longest)
			}
			fields = append(fields, "layers", fmt.Sprint(l.Layers), "only here", bytesText(l.Dirty), "near", fmt.Sprintf("%s of %s", short(l.Near), short(l.Present)),
				"fetched", countText(l.Fetched), "pauses", pauses, "hydration", hydration)
		}
		p.fields(fields...)
	})
}

// inError is the error of a command that waited for a volume which is in error.
func inError(v snapferry.Volume) error {
	if v.State != snapferry.VolumeError {
		return nil
	}
	err := snapferry.Errorf(snapferry.Cancelled, "volume %s is in error: %s", v.ID, v.Reason)
	err.Hint = v.Hint
	return err
}

// awaitVolume waits until a volume is as it is waited for, and prints it.
func (a *app) awaitVolume(ctx context.Context, c *client.Client, v snapferry.Volume, done func(snapferry.Volume) bool) error {
	bar := a.newBar("volume " + string(v.ID))
	var err error
	for err == nil && !done(v) {
		if v.Local != nil && v.Local.Progress != nil {
			bar.set(v.Local.Progress.Done, v.Local.Progress.Total)
		}
		if err = pause(ctx, volumePoll); err == nil {
			v, err = c.Volume(ctx, v.ID)
		}
	}
	bar.end(err == nil)
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintf(a.stderr, "volume %s goes on without this command; see it with: snapferry volume show %s\n", v.ID, v.ID)
		}
		return err
	}
	if err := a.showVolume(v); err != nil {
		return err
	}
	return inError(v)
}
