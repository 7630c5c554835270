package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/source"
)

func (a *app) exportCommand() *cobra.Command {
	var sparse, force bool
	cmd := &cobra.Command{
		Use: "export ID FILE|DEVICE", Short: "Write a snapshot to a raw image file or a block device", Args: cobra.ExactArgs(2),
		Long: `Write a snapshot to a new raw image file, or with --force over an existing file
or block device, and make it durable. The region must run on this machine. Every
block's digest is checked before it is written. Where the snapshot has only
zeros a file has holes.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !sparse {
				return snapferry.Errorf(snapferry.Unsupported, "exports without holes are not offered").
					WithHint("leave --sparse=false out, and allocate the file afterwards with: fallocate -l SIZE FILE")
			}
			ids, err := parseSnapshots(args[0])
			if err != nil {
				return err
			}
			return a.export(cmd.Context(), ids[0], args[1], force)
		},
	}
	cmd.Flags().BoolVar(&sparse, "sparse", true, "leave holes where the snapshot has only zeros")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite an existing file or a block device")
	return cmd
}

// exported is the result of an export.
type exported struct {
	ID     snapferry.SnapshotID    `json:"id"`
	State  snapferry.SnapshotState `json:"state"`
	Path   string                  `json:"path"`
	Size   int64                   `json:"size"`
	Digest digest.Digest           `json:"digest"`
	Bytes  exportedBytes           `json:"bytes"`
}

type exportedBytes struct {
	Written int64 `json:"written"` // plain bytes that are not zero
}

func (a *app) export(ctx context.Context, id snapferry.SnapshotID, path string, force bool) (err error) {
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Snapshot(ctx, id)
	if err != nil {
		return err
	}
	if s.State != snapferry.SnapshotReady {
		return snapferry.Errorf(snapferry.Conflict, "snapshot %s is %s, not ready", id, s.State).WithHint("wait for it with: snapferry snapshot wait %s", id)
	}
	f, created, err := source.OpenWrite(path, force)
	if err != nil {
		return err
	}
	bar := a.newBar("export " + string(id))
	err = c.Export(ctx, id, f, func(p snapferry.Progress) { bar.set(p.Done, p.Total) })
	bar.end(err == nil)
	if err != nil {
		err = snapferry.Errorf(snapferry.KindOf(err), "%s: %w", path, err)
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fileError("close", path, cerr)
	}
	if err == nil && created {
		err = syncParent(path)
	}
	if err != nil {
		return errors.Join(err, removeIf(created, path))
	}
	out := exported{ID: id, State: s.State, Path: path, Size: s.Size, Digest: s.Digest, Bytes: exportedBytes{Written: s.Counts.Present}}
	return a.print(out, func(p *printer) {
		p.fields("id", string(id), "written to", path, "size", bytesText(s.Size), "written", bytesText(s.Counts.Present), "digest", s.Digest.String())
	})
}

// removeIf removes a file that this command made.
func removeIf(created bool, path string) error {
	if !created {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fileError("remove", path, err)
	}
	return nil
}
