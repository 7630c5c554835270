package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

// copyFlags say from where to where.
type copyFlags struct {
	from, to string
	full     bool
	rate     string
	within   time.Duration
	seal     sealFlags
}

func (c *copyFlags) register(cmd *cobra.Command) {
	c.seal.register(cmd)
	cmd.Flags().StringVar(&c.from, "from", "", "region that has the snapshot (default: --region, or default_region of the configuration)")
	cmd.Flags().StringVar(&c.to, "to", "", "region that gets the copy")
	cmd.Flags().BoolVar(&c.full, "full", false, "move everything, whatever the region has already")
	cmd.Flags().StringVar(&c.rate, "rate", "", "bytes per second that may cross for it, as 50M (default: no limit of its own)")
	cmd.Flags().DurationVar(&c.within, "complete-within", 0, "refuse the copy if it cannot be done so soon, as 2h (default: whenever)")
}

// request returns the copy that the flags and the id ask for, and the region
// that makes it.
func (a *app) copyRequest(f copyFlags, id string) (req client.CopyRequest, to snapferry.RegionName, err error) {
	if strings.HasPrefix(id, "set-") {
		req.Set, err = snapferry.ParseSetID(id)
	} else {
		req.Source, err = snapferry.ParseSnapshotID(id)
	}
	if err != nil {
		return req, "", err
	}
	if f.to == "" {
		return req, "", snapferry.Errorf(snapferry.Invalid, "where to copy is missing").WithHint("give the region with --to")
	}
	if f.from == "" {
		if _, req.From, err = a.connect(""); err != nil {
			return req, "", err
		}
	} else if req.From, err = snapferry.ParseRegionName(f.from); err != nil {
		return req, "", err
	}
	if f.rate != "" {
		if req.Rate, err = parseSize(f.rate); err != nil {
			return req, "", err
		}
	}
	if f.within != 0 {
		req.CompleteWithin = f.within.String()
	}
	to, err = snapferry.ParseRegionName(f.to)
	req.Full, req.Sealing = f.full, f.seal.Sealing
	return req, to, err
}

func (a *app) copyCommand() *cobra.Command {
	var labels labelFlags
	var flags copyFlags
	var wait bool
	cmd := &cobra.Command{
		Use: "copy ID|SET --from REGION --to REGION", Short: "Copy a snapshot, or a set, to another region", Args: cobra.ExactArgs(1),
		Long: `Copy a snapshot to another region, which pulls it and moves only what it does not
have yet. The copy goes on without this command and through restarts of both
regions. When the account has as many copies under way as it may, the copy waits
for its turn. See it with "snapferry copy show", end it with "snapferry copy cancel".
The snapshots of a set are copied as one: all become ready at one moment, or none.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := labels.get()
			if err != nil {
				return err
			}
			req, to, err := a.copyRequest(flags, args[0])
			if err != nil {
				return err
			}
			req.Labels = l
			return a.copySnapshot(cmd.Context(), req, to, wait)
		},
	}
	labels.register(cmd)
	flags.register(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the copy is ready")
	return cmd
}

func (a *app) copySnapshot(ctx context.Context, req client.CopyRequest, to snapferry.RegionName, wait bool) error {
	c, _, err := a.connect(to)
	if err != nil {
		return err
	}
	defer c.Close()
	if req.Set != "" {
		return a.copySet(ctx, c, req, wait)
	}
	s, err := c.Copy(ctx, req)
	if err != nil {
		return err
	}
	if !wait {
		return a.showSnapshot(s)
	}
	return a.await(ctx, c, s.ID)
}

func (a *app) copySet(ctx context.Context, c *client.Client, req client.CopyRequest, wait bool) error {
	x, err := c.CopySet(ctx, req)
	if err == nil && wait {
		id := x.ID
		err = c.WatchCopy(ctx, id, func(now snapferry.Copy) error {
			x = now
			return nil
		})
		if err == nil {
			err = endedWell(&x)
		}
	}
	if err != nil {
		return err
	}
	return a.showCopy(x)
}
