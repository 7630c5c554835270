package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
)

func (a *app) planCopyCommand() *cobra.Command {
	var flags copyFlags
	cmd := &cobra.Command{
		Use: "plan-copy ID --from REGION --to REGION", Short: "Say what a copy would move, and why", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, to, err := a.copyRequest(flags, args[0])
			if err != nil {
				return err
			}
			c, _, err := a.connect(to)
			if err != nil {
				return err
			}
			defer c.Close()
			plan, err := c.PlanCopy(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.print(plan, func(p *printer) { planText(p, plan) })
		},
	}
	flags.register(cmd)
	return cmd
}

func planText(p *printer, plan snapferry.Plan) {
	p.fields("moves", bytesText(plan.MoveBytes)+" as stored, "+strconv.FormatInt(plan.MoveBlocks, 10)+" blocks",
		"reuses", bytesText(plan.ReuseBlocks*snapferry.BlockSize)+", "+strconv.FormatInt(plan.ReuseBlocks, 10)+" blocks",
		"stores again", storeText(plan), "present", bytesText(plan.Present), "size", bytesText(plan.Size), "digest", plan.Digest.String(),
		"base", string(plan.Base), "reason", plan.Reason, "takes", planTime(plan))
}

// storeText is what a plan takes from what the region has elsewhere, for people.
func storeText(plan snapferry.Plan) string {
	if plan.StoreBlocks == 0 {
		return ""
	}
	text := bytesText(plan.StoreBlocks*snapferry.BlockSize) + ", " + strconv.FormatInt(plan.StoreBlocks, 10) + " blocks"
	for i, id := range plan.Donors {
		if i == 0 {
			text += ", of "
		} else {
			text += " and "
		}
		text += string(id)
	}
	return text
}

// planTime is how long a plan takes, for people.
func planTime(plan snapferry.Plan) string {
	if plan.Time == 0 {
		return "as long as the link needs: no limit is set"
	}
	return "at least " + plan.Time.Round(time.Second).String() + ", by the limits that are set"
}
