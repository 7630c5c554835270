package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
)

func (a *app) serveCommand() *cobra.Command {
	var compression string
	var endWithStdin bool
	cmd := &cobra.Command{
		Use: "serve --config FILE", Short: "Run a region", Args: cobra.NoArgs,
		Long: `Run a region in this process until SIGTERM or SIGINT. FILE says what the region
is; docs/operations.md describes it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.config == "" {
				return snapferry.Errorf(snapferry.Invalid, "serve needs the region's configuration").WithHint("give it with --config FILE")
			}
			cfg, err := loadServerConfig(a.config)
			if err != nil {
				return err
			}
			if compression != "" {
				cfg.Compression = compression
				if _, err := snapferry.ParseCodec(compression); err != nil {
					return err
				}
			}
			ctx := cmd.Context()
			if endWithStdin {
				ctx = untilEOF(ctx, a.stdin)
			}
			return a.serve(ctx, cfg)
		},
	}
	cmd.Flags().StringVar(&compression, "compression", "", "compression of new blocks: zstd, s2 or none (default: that of the configuration)")
	cmd.Flags().BoolVar(&endWithStdin, "end-with-stdin", false, "end when stdin does, so that no region outlives who started it")
	return cmd
}

// readyLine is what a region prints when it serves.
const (
	readyMark = "snapferry: ready: "
	readyLine = readyMark + "region %s, api %s, handoff %s, peers %s\n"
)

// untilEOF returns a context that ends with ctx or when r does.
func untilEOF(ctx context.Context, r io.Reader) context.Context {
	ctx, stop := context.WithCancel(ctx)
	go func() {
		defer stop()
		_, _ = io.Copy(io.Discard, r) // an error ends it as well
	}()
	return ctx
}

// serve runs a region until ctx ends.
func (a *app) serve(ctx context.Context, cfg serverConfig) (err error) {
	level, err := cfg.level()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	debug.SetMemoryLimit(cfg.memory())
	// A goroutine that waits for the disk keeps its processor for a while before
	// the scheduler gives it to another: with spare ones no core stays idle.
	cores := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(2 * cores)
	defer runtime.GOMAXPROCS(cores)
	s, err := openRegion(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := s.close(); err == nil {
			err = cerr
		}
	}()
	if err := s.region.Start(ctx); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, readyLine, cfg.Name, s.api.listener.Addr(), cfg.Handoff, s.peers.listener.Addr())
	return s.serve(ctx)
}
