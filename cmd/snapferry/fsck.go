package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) fsckCommand() *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use: "fsck", Short: "Check that a region has everything its snapshots need", Args: cobra.NoArgs,
		Long: `Check that a region has everything its snapshots need. Nothing is repaired and
nothing deleted. Damage ends with exit code 7 and names the snapshots that
suffer; garbage is harmless.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, region, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			return a.fsck(cmd.Context(), c, region, deep)
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "read and verify every byte, and prove the accounting")
	return cmd
}

func (a *app) fsck(ctx context.Context, c *client.Client, region snapferry.RegionName, deep bool) error {
	bar := a.newBar("fsck " + string(region))
	r, err := c.Fsck(ctx, deep, func(p snapferry.Progress) { bar.set(p.Done, p.Total) })
	bar.end(err == nil)
	if err != nil {
		return err
	}
	if err := a.print(r, func(p *printer) { fsckText(p, r) }); err != nil {
		return err
	}
	if damaged(r) {
		err := snapferry.Errorf(snapferry.Corrupt, "region %s is damaged", r.Region)
		if !suffers(r) {
			return err
		}
		return err.WithHint("copy the snapshots that suffer again from another region that has them")
	}
	return nil
}

func damaged(r client.FsckReport) bool {
	for _, f := range r.Findings {
		if f.Severity != severityGarbage {
			return true
		}
	}
	return false
}

// suffers reports whether the damage is to snapshots.
func suffers(r client.FsckReport) bool {
	return slices.ContainsFunc(r.Findings, func(f client.Finding) bool { return len(f.Snapshots) > 0 })
}

const severityGarbage = "garbage"

func fsckText(p *printer, r client.FsckReport) {
	for _, f := range r.Findings {
		p.line("%s: %s%s", f.Severity, f.Problem, place(f))
		for _, s := range f.Snapshots {
			p.line("  suffers: %s", s)
		}
	}
	verdict := "clean"
	switch {
	case damaged(r):
		verdict = "DAMAGED"
	case len(r.Findings) > 0:
		verdict = "sound, with garbage"
	}
	if r.HeldByDeleted > 0 {
		p.line("held by deleted parents: %s, until the forks that need them in part are deleted", short(r.HeldByDeleted))
	}
	p.line("region %s: %s; %d snapshots, %d versions, %d objects, %d frames, %s read", r.Region, verdict, r.Snapshots, r.Versions, r.Objects, r.Frames, short(r.Bytes))
}

// place says where a finding is.
func place(f client.Finding) string {
	var parts []string
	for _, x := range []struct{ what, value string }{{"object", f.Object}, {"segment", f.Segment}, {"version", f.Version}} {
		if x.value != "" {
			parts = append(parts, x.what+" "+x.value)
		}
	}
	if f.Slot != nil {
		parts = append(parts, fmt.Sprintf("slot %d", *f.Slot))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
