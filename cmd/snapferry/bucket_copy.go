package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

func (a *app) bucketCopyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "copy FROM TO", Short: "Copy a bucket to another place, and verify it there", Args: cobra.ExactArgs(2),
		Long: `Copy every object of a bucket to another place, from a directory to S3 or back,
and read each back from there and compare it. Objects that are there already are
compared alone: after an interruption the same command goes on. The region must
not run. It uses the new place when the key "bucket" of its configuration says so.

` + locationHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := parseLocation(args[0])
			if err != nil {
				return err
			}
			to, err := parseLocation(args[1])
			if err != nil {
				return err
			}
			return a.bucketCopy(cmd.Context(), from, to)
		},
	}
}

// copiedBucket is the result of a copy.
type copiedBucket struct {
	From    string      `json:"from"`
	To      string      `json:"to"`
	Objects int64       `json:"objects"`
	Copied  int64       `json:"copied"` // objects that were not there before
	Bytes   copiedBytes `json:"bytes"`
	Seconds float64     `json:"seconds"`
}

type copiedBytes struct {
	Verified int64 `json:"verified"`
	Moved    int64 `json:"moved"`
}

func (a *app) bucketCopy(ctx context.Context, from, to location) (err error) {
	if from.bucket.overlaps(to.bucket) {
		return snapferry.Errorf(snapferry.Invalid, "%s and %s are one in the other", from.bucket, to.bucket)
	}
	if err := from.exists(); err != nil {
		return err
	}
	unlock, err := lockRegions(from, to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	var both [2]*blob.Bucket
	for i, l := range []location{from, to} {
		if both[i], err = openBucket(ctx, l.bucket, slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, both[i].Close()) }()
	}
	if err := checkCopy(ctx, both[0], both[1], from, to); err != nil {
		return err
	}
	began := time.Now()
	bar := a.newBar("bucket copy")
	r, err := blob.Copy(ctx, both[0], both[1], blob.CopyOptions{Last: incarnationPrefix, Progress: bar.set})
	bar.end(err == nil)
	if err != nil {
		return err
	}
	out := copiedBucket{
		From: from.bucket.String(), To: to.bucket.String(), Objects: r.Objects, Copied: r.Copied,
		Bytes: copiedBytes{Verified: r.Bytes, Moved: r.Moved}, Seconds: time.Since(began).Seconds(),
	}
	err = a.print(out, func(p *printer) {
		p.fields("from", out.From, "to", out.To, "objects", fmt.Sprint(out.Objects), "copied", fmt.Sprint(out.Copied),
			"verified", bytesText(out.Bytes.Verified), "moved", bytesText(out.Bytes.Moved))
	})
	fmt.Fprintf(a.stderr, "The region uses %s when the key \"bucket\" of its configuration says so; keep its directory, with meta.db.\n"+
		"Check it with fsck --deep before you remove %s.\n", out.To, out.From)
	return err
}

// checkCopy refuses to mix two regions, or to copy an old bucket over a newer
// one.
func checkCopy(ctx context.Context, from, to *blob.Bucket, f, t location) error {
	old, err := highestIncarnation(ctx, from)
	if err != nil {
		return err
	}
	there, err := highestIncarnation(ctx, to)
	if err != nil {
		return err
	}
	switch {
	case old == nil:
		return snapferry.Errorf(snapferry.NotFound, "%s is not the bucket of a region that ever started", f.bucket).
			WithHint("correct FROM; a prefix belongs to the address of an S3 bucket")
	case there == nil:
		return nil
	case there.ID != old.ID:
		return snapferry.Errorf(snapferry.Conflict, "%s belongs to region %s (%s), and %s to %s (%s)", t.bucket, there.Name, there.ID, f.bucket, old.Name, old.ID).
			WithHint("copy to an empty place")
	case there.Number > old.Number:
		return snapferry.Errorf(snapferry.Conflict, "the region ran on %s after it ran on %s: start %d is there, and %d here", t.bucket, f.bucket, there.Number, old.Number).
			WithHint("copy the other way round, to an empty place")
	}
	return nil
}
