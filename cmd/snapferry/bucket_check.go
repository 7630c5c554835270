package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

func (a *app) bucketCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check [BUCKET] --config FILE", Short: "Prove that a bucket gives what regions are built on", Args: cobra.MaximumNArgs(1),
		Long: `Prove that a bucket gives what regions are built on: read-after-write,
list-after-write, create-if-absent and deletes at once. It makes a few dozen
small objects and removes them. A region does the same at its first start. A
bucket that fails ends with exit code 9 and the reason.

` + locationHelp + `
Without BUCKET it is that of the region whose configuration is --config.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := a.config
			if len(args) > 0 {
				name = args[0]
			}
			if name == "" {
				return snapferry.Errorf(snapferry.Invalid, "which bucket to check is missing").WithHint("give the region's configuration with --config FILE")
			}
			l, err := parseLocation(name)
			if err != nil {
				return err
			}
			return a.bucketCheck(cmd.Context(), l.bucket)
		},
	}
}

// checkedBucket is the result of a check.
type checkedBucket struct {
	Bucket  string           `json:"bucket"`
	Fit     bool             `json:"fit"`
	Proven  []provenProperty `json:"proven"`
	Seconds float64          `json:"seconds"`
}

type provenProperty struct {
	Property string `json:"property"`
	Seen     string `json:"seen"`
}

func (a *app) bucketCheck(ctx context.Context, c bucketConfig) (err error) {
	b, err := openBucket(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() {
		if cerr := b.Close(); err == nil {
			err = cerr
		}
	}()
	began := time.Now()
	proofs, err := b.Check(ctx)
	if err != nil && !snapferry.IsKind(err, snapferry.Unsupported) {
		return err
	}
	out := checkedBucket{Bucket: c.String(), Fit: err == nil, Proven: make([]provenProperty, len(proofs)), Seconds: time.Since(began).Seconds()}
	for i, p := range proofs {
		out.Proven[i] = provenProperty(p)
	}
	if perr := a.print(out, func(p *printer) { checkedText(p, c, proofs, err == nil) }); perr != nil {
		return perr
	}
	return err
}

func checkedText(p *printer, c bucketConfig, proofs []blob.Proof, fit bool) {
	pairs := make([]string, 0, 2*len(proofs))
	for _, x := range proofs {
		pairs = append(pairs, x.Property, x.Seen)
	}
	p.fields(pairs...)
	if fit {
		p.line("bucket %s is fit for a region", c)
	}
}
