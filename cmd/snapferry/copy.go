package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) copiesCommand() *cobra.Command {
	return group("copy", "Copies into a region: where they wait, how far they are, how they ended",
		a.copyListCommand(), a.copyShowCommand(), a.copyWatchCommand(), a.copySetCommand(), a.copyCancelCommand())
}

// onCopy runs fn with a client and the id of a copy.
func (a *app) onCopy(arg string, fn func(c *client.Client, id snapferry.CopyID) error) error {
	id, err := snapferry.ParseCopyID(arg)
	if err != nil {
		return err
	}
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c, id)
}

func (a *app) copyListCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List copies that have not ended, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			copies := []snapferry.Copy{}
			err = c.Copies(cmd.Context(), !all, func(x snapferry.Copy) error {
				copies = append(copies, x)
				return nil
			})
			if err != nil {
				return err
			}
			return a.print(client.CopyList{Copies: copies}, func(p *printer) { copiesText(p, copies) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that have ended")
	return cmd
}

func copiesText(p *printer, all []snapferry.Copy) {
	rows := make([][]string, 0, len(all))
	for i := range all {
		c := &all[i]
		how := string(c.Ending)
		switch {
		case c.Queue != nil:
			how = queueText(c.Queue)
		case c.Progress != nil:
			how = progressText(c.Progress)
		}
		rows = append(rows, []string{string(c.ID), makesText(c), sourceText(c), string(c.State), timeText(c.Created), how})
	}
	p.table([]string{"ID", "SNAPSHOT", "OF", "STATE", "CREATED", "PROGRESS"}, rows)
}

func (a *app) copyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a copy", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onCopy(args[0], func(c *client.Client, id snapferry.CopyID) error {
				x, err := c.CopyOf(cmd.Context(), id)
				if err != nil {
					return err
				}
				return a.showCopy(x)
			})
		},
	}
}

func (a *app) copyWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "watch ID", Short: "Show a copy once a second until it has ended", Args: cobra.ExactArgs(1),
		Long: `Show a copy once a second until it has ended: a line of text, or with -o json one
object, each time.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onCopy(args[0], func(c *client.Client, id snapferry.CopyID) error {
				var last snapferry.Copy
				err := c.WatchCopy(cmd.Context(), id, func(x snapferry.Copy) error {
					last = x
					return a.print(x, func(p *printer) { p.line("%s", watchLine(&x)) })
				})
				if err == nil {
					err = endedWell(&last)
				}
				return err
			})
		},
	}
}

// endedWell reports, as Cancelled, why a copy that has ended is not done.
func endedWell(c *snapferry.Copy) error {
	if c.State == snapferry.CopyDone {
		return nil
	}
	return snapferry.Errorf(snapferry.Cancelled, "copy %s ended as %s: %s", c.ID, c.Ending, c.Reason)
}

func (a *app) copyCancelCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "End a copy, and delete the snapshots that it makes", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onCopy(args[0], func(c *client.Client, id snapferry.CopyID) error {
				if err := c.CancelCopy(cmd.Context(), id, force); err != nil {
					return err
				}
				x, err := c.CopyOf(cmd.Context(), id)
				if err != nil {
					return err
				}
				return a.showCopy(x)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when volumes were made from it: they end in error")
	return cmd
}

func watchLine(c *snapferry.Copy) string {
	parts := []string{string(c.State)}
	if c.Queue != nil {
		parts = append(parts, queueText(c.Queue))
	}
	if c.Progress != nil {
		parts = append(parts, progressText(c.Progress))
	}
	if c.Late {
		parts = append(parts, "LATE")
	}
	return strings.Join(parts, ": ")
}

func (a *app) copySetCommand() *cobra.Command {
	var rate string
	cmd := &cobra.Command{
		Use: "set ID --rate RATE", Short: "Change how fast a copy may be, also while it is under way", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := parseSize(rate)
			if err != nil {
				return err
			}
			return a.onCopy(args[0], func(c *client.Client, id snapferry.CopyID) error {
				x, err := c.SetCopyRate(cmd.Context(), id, n)
				if err != nil {
					return err
				}
				return a.showCopy(x)
			})
		},
	}
	cmd.Flags().StringVar(&rate, "rate", "", "bytes per second that may cross for it, as 50M; 0: no limit of its own")
	return cmd
}

// showCopy prints one copy.
func (a *app) showCopy(c snapferry.Copy) error {
	return a.print(c, func(p *printer) {
		progress, plan, rate, late := "", "", "", ""
		if c.Progress != nil {
			progress = progressText(c.Progress)
		}
		if c.Plan != nil {
			plan = fmt.Sprintf("%s to move: %s", short(c.Plan.MoveBytes), c.Plan.Reason)
		}
		if c.Rate > 0 {
			rate = short(c.Rate) + "/s"
		}
		if c.Late {
			late = "yes"
		}
		p.fields("id", string(c.ID), "snapshot", makesText(&c), "source", sourceText(&c), "parts", partsText(c.Parts),
			"state", string(c.State), "ending", string(c.Ending), "reason", c.Reason, "queue", queueText(c.Queue), "progress", progress, "plan", plan,
			"rate", rate, "deadline", timeText(c.Deadline), "late", late,
			"created", timeText(c.Created), "started", timeText(c.Started), "finished", timeText(c.Finished))
	})
}

// makesText is what a copy makes, and sourceText of what.
func makesText(c *snapferry.Copy) string {
	if c.Set != "" {
		return string(c.Set)
	}
	return string(c.Snapshot)
}

func sourceText(c *snapferry.Copy) string {
	if c.Source.Set != "" {
		return fmt.Sprintf("%s in %s", c.Source.Set, c.Source.Region)
	}
	return fmt.Sprintf("%s in %s", c.Source.Snapshot, c.Source.Region)
}

func partsText(all []snapferry.CopyPart) string {
	parts := make([]string, 0, len(all))
	for _, p := range all {
		parts = append(parts, fmt.Sprintf("%s of %s", p.Snapshot, p.Source))
	}
	return strings.Join(parts, ", ")
}

func queueText(q *snapferry.Queue) string {
	if q == nil {
		return ""
	}
	return fmt.Sprintf("position %d: %s", q.Position, q.Reason)
}

func holdersText(all []snapferry.PinHolder) string {
	parts := make([]string, 0, len(all))
	for _, h := range all {
		parts = append(parts, fmt.Sprintf("copy %s of region %s", h.Copy, h.Region))
	}
	return strings.Join(parts, ", ")
}

// progressText is how far something is, in one line.
func progressText(p *snapferry.Progress) string {
	parts := []string{fmt.Sprintf("%s of %s", short(p.Done), short(p.Total))}
	if p.Stalled == nil {
		parts = append(parts, short(int64(p.Rate))+"/s")
	}
	if p.Moved > 0 || p.ToMove > 0 {
		parts = append(parts, fmt.Sprintf("%s moved, %s to move at %s/s", short(p.Moved), short(p.ToMove), short(int64(p.MoveRate))))
	}
	if e := p.Ends; e != nil {
		left := func(t time.Time) time.Duration { return max(time.Until(t), 0).Round(time.Second) }
		parts = append(parts, fmt.Sprintf("ends in %v to %v", left(e.Earliest), left(e.Latest)))
	}
	if s := p.Stalled; s != nil {
		text := fmt.Sprintf("stalled since %s: %s", timeText(s.Since), s.Cause)
		if !s.Again.IsZero() {
			text += ", tried again at " + timeText(s.Again)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}
