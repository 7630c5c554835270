package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
)

func (a *app) devCommand() *cobra.Command {
	var dir, compression string
	var names []string
	cmd := &cobra.Command{
		Use: "dev --dir DIR", Short: "Run several regions on this machine", Args: cobra.NoArgs,
		Long: `Run several regions on this machine, each in its own process with its own
directory, until Ctrl-C. DIR gets everything they need, and client.yaml, which
is all the command line needs. A second start finds the data again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return snapferry.Errorf(snapferry.Invalid, "where to keep the regions is missing").WithHint("give a directory with --dir")
			}
			regions := make([]snapferry.RegionName, len(names))
			for i, n := range names {
				var err error
				if regions[i], err = snapferry.ParseRegionName(n); err != nil {
					return err
				}
			}
			return a.dev(cmd.Context(), dir, regions, compression)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "directory of the regions")
	f.StringSliceVar(&names, "regions", nil, "names of the regions (default: those of DIR, or east,west)")
	f.StringVar(&compression, "compression", "", "compression of new blocks: zstd, s2 or none")
	return cmd
}

// dev runs regions until ctx ends or one of them does.
func (a *app) dev(ctx context.Context, dir string, regions []snapferry.RegionName, compression string) error {
	var more []string
	if compression != "" {
		if _, err := snapferry.ParseCodec(compression); err != nil {
			return err
		}
		more = []string{"--compression", compression}
	}
	d, err := prepareDev(dir, regions, "")
	if err != nil {
		return err
	}
	if len(regions) == 0 {
		regions = slices.Sorted(maps.Keys(d.configs))
	}
	all, err := a.startAll(ctx, d, regions, more...)
	if ctx.Err() != nil {
		return nil // ended while it started
	}
	if err != nil {
		return err
	}
	defer endAll(all)
	a.devHelp(d, regions)
	if p := firstToEnd(ctx, all); p != nil {
		return p.err
	}
	fmt.Fprintln(a.stderr, "snapferry: stopping")
	return nil
}

// firstToEnd waits until a process ended, or returns nil when ctx did.
func firstToEnd(ctx context.Context, all []*process) *process {
	watch, stop := context.WithCancel(ctx)
	defer stop()
	first := make(chan *process)
	for _, p := range all {
		go func() {
			select {
			case <-p.done:
				select {
				case first <- p:
				case <-watch.Done():
				}
			case <-watch.Done():
			}
		}()
	}
	select {
	case p := <-first:
		return p
	case <-ctx.Done():
		return nil
	}
}

// devHelp says what to do next.
func (a *app) devHelp(d *devDir, regions []snapferry.RegionName) {
	p := &printer{w: a.stderr}
	for _, r := range regions {
		p.line("region %-8s is ready, its log is %s", r, d.path(string(r), "log"))
	}
	p.line("\nIn another terminal:\n")
	p.line("  export SNAPFERRY_CONFIG=%s", d.path(devClient))
	p.line("  snapferry snapshot import disk.raw --volume disk")
	if len(regions) > 1 {
		p.line("  snapferry snapshot copy ID --from %s --to %s --wait", regions[0], regions[1])
		p.line("  snapferry snapshot export ID back.raw --region %s", regions[1])
	}
	p.line("  snapferry snapshot list\n\nCtrl-C stops the regions; their data stays in %s.", d.dir)
}
