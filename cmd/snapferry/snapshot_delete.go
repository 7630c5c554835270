package main

import (
	"context"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
)

func (a *app) deleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "delete ID...", Short: "Delete snapshots; one that is being made is cancelled", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseSnapshots(args...)
			if err != nil {
				return err
			}
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			del := c.Delete
			if force {
				del = c.Abandon
			}
			deleted, err := deleteAll(cmd.Context(), del, ids)
			perr := a.printDeleted(deleted)
			if err == nil {
				err = perr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also end a copy that volumes were made from: they end in error; and take the snapshot from copies of other regions that still read it: they fail")
	return cmd
}

// deletesAtOnce is how many snapshots a command deletes at a time: each waits for
// the bucket, while the region can write the metadata of another.
const deletesAtOnce = 8

// deleteAll deletes snapshots. After one that cannot be, none is begun any more;
// those that are deleted are returned in any case, in the order of ids.
func deleteAll(ctx context.Context, del func(context.Context, snapferry.SnapshotID) error, ids []snapferry.SnapshotID) (deleted []snapferry.SnapshotID, err error) {
	var (
		g      errgroup.Group
		failed atomic.Bool
		done   = make([]bool, len(ids))
	)
	g.SetLimit(deletesAtOnce)
	for i, id := range ids {
		g.Go(func() error {
			if failed.Load() {
				return nil
			}
			err := del(ctx, id)
			done[i] = err == nil
			if err != nil {
				failed.Store(true)
			}
			return err
		})
	}
	err = g.Wait()
	for i, id := range ids {
		if done[i] {
			deleted = append(deleted, id)
		}
	}
	return deleted, err
}

// printDeleted prints an object for one snapshot, a list for several.
func (a *app) printDeleted(ids []snapferry.SnapshotID) error {
	type row struct {
		ID      snapferry.SnapshotID `json:"id"`
		Deleted bool                 `json:"deleted"`
	}
	if len(ids) == 0 {
		return nil
	}
	rows := make([]row, len(ids))
	for i, id := range ids {
		rows[i] = row{id, true}
	}
	var out any = rows
	if len(rows) == 1 {
		out = rows[0]
	}
	return a.print(out, func(p *printer) {
		for _, id := range ids {
			p.line("deleted %s", id)
		}
	})
}
