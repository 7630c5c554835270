package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/recovery"
)

const metadataFile = "meta.db"

func (a *app) recoverCommand() *cobra.Command {
	var merge, dryRun, accept bool
	var trust string
	cmd := &cobra.Command{
		Use: "recover --config FILE", Short: "Rebuild the metadata of a region from its bucket", Args: cobra.NoArgs,
		Long: `Rebuild the metadata of a region, which must not run, from its bucket: from
nothing when the metadata was lost, or with --merge over metadata that is older
than its bucket. FILE is the region's configuration. An interrupted run goes on
where it was; until it has come to its end the metadata is as it was.

The region's key file opens the dump of the metadata, with accounts and keys.
Without it, --trust takes the public key of the region, which it logs when it
starts; then accounts are known by name only, and the region gets a new key.

A merge that finds no record of a snapshot and no proof of its deletion takes it
for deleted, and stops reclaiming: bring the record back and merge again, or
confirm with --accept-deleted.

Nothing in the bucket is changed. What could not be brought back whole is listed,
ends with exit code 7, and is a failed snapshot with the reason.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.config == "" {
				return snapferry.Errorf(snapferry.Invalid, "recover needs the region's configuration").WithHint("give it with --config FILE")
			}
			cfg, err := loadServerConfig(a.config)
			if err != nil {
				return err
			}
			if accept && !merge {
				return snapferry.Errorf(snapferry.Invalid, "--accept-deleted is for a merge").WithHint("recover --merge --accept-deleted")
			}
			public, err := hex.DecodeString(trust)
			if err != nil || trust != "" && len(public) != ed25519.PublicKeySize {
				return snapferry.Errorf(snapferry.Invalid, "--trust is not %d bytes in hexadecimal", ed25519.PublicKeySize)
			}
			return a.recover(cmd.Context(), cfg, recovery.Config{Merge: merge, AcceptDeleted: accept, DryRun: dryRun, Trust: public})
		},
	}
	cmd.Flags().BoolVar(&merge, "merge", false, "over the metadata that is there, which is behind the bucket")
	cmd.Flags().BoolVar(&accept, "accept-deleted", false, "with --merge: snapshots whose records are missing were deleted")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would come back")
	cmd.Flags().StringVar(&trust, "trust", "", "public key of the region, in hexadecimal, when its key file or the dump is lost")
	return cmd
}

func (a *app) recover(ctx context.Context, cfg serverConfig, rc recovery.Config) (err error) {
	if err := os.MkdirAll(cfg.Directory, 0o700); err != nil {
		return fileError("make", cfg.Directory, err)
	}
	// The lock comes first: it keeps a server out.
	lock, err := lockRegion(cfg.Directory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	bucket, err := openBucket(ctx, cfg.Bucket.withDefault(cfg.Directory), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	if rc.ID, rc.Incarnation, rc.Starts, err = readMarks(ctx, bucket, cfg.Name); err != nil {
		return err
	}
	rc.RegionKey, err = cfg.regionKey(rc.ID)
	if err == nil {
		rc.Drivers, err = cfg.Keys.drivers(ctx, log)
	}
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return err
	}
	rc.Bucket, rc.Path, rc.Region, rc.Release = bucket, filepath.Join(cfg.Directory, metadataFile), cfg.Name, control.ReleaseLater
	told := &phases{app: a, what: "recover " + string(cfg.Name)}
	rc.Progress = told.set
	r, err := recovery.Run(ctx, rc)
	if err != nil {
		return err
	}
	if err := a.print(r, func(p *printer) { recoverText(p, r) }); err != nil {
		return err
	}
	if r.Complete {
		return nil
	}
	hint := "bring back what is missing in the bucket and recover again with --merge; or start the region and go on with what there is"
	if len(r.Missing) > 0 {
		hint += "; were the missing snapshots deleted, say so with --merge --accept-deleted"
	}
	return snapferry.Errorf(snapferry.Corrupt, "not all of region %s came back", r.Region).WithHint("%s", hint)
}

// readMarks reads the marks of a region's starts: whose the bucket is, the
// highest number, and the audit lines that belong to them.
func readMarks(ctx context.Context, bucket *blob.Bucket, name snapferry.RegionName) (id string, highest uint64, starts []meta.Audit, err error) {
	var names []string
	err = bucket.List(ctx, incarnationPrefix, "", func(i blob.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		return "", 0, nil, err
	}
	var mu sync.Mutex
	marks := map[string]*incarnation{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, n := range names {
		g.Go(func() error {
			x, err := readIncarnation(gctx, bucket, n)
			if snapferry.IsKind(err, snapferry.Corrupt) {
				return nil // the others tell
			}
			mu.Lock()
			defer mu.Unlock()
			marks[n] = x
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return "", 0, nil, err
	}
	if id, err = mostCommon(marks, name); err != nil {
		return "", 0, nil, err
	}
	for _, n := range slices.Sorted(slices.Values(names)) {
		number, err := strconv.ParseUint(strings.TrimPrefix(n, incarnationPrefix), 10, 64)
		if err != nil {
			continue
		}
		highest = max(highest, number) // whatever it says: a start made it
		if x := marks[n]; x != nil && x.ID == id && x.Name == name {
			starts = append(starts, meta.Audit{At: time.Now(), Action: actionStart, Subject: n, Detail: x.Start})
		}
	}
	if id == "" {
		return "", 0, nil, snapferry.Errorf(snapferry.NotFound, "the bucket has no mark of a start: it is of no region, or not the right one").
			WithHint("correct directory or bucket in the configuration")
	}
	return id, highest, starts, nil
}

// phases tells how far a recovery is: a line for each phase, and one every few
// seconds.
type phases struct {
	app   *app
	what  string
	phase string
	last  time.Time
}

func (x *phases) set(phase string, done, total int64) {
	now := time.Now()
	if phase == x.phase && now.Sub(x.last) < quietEvery {
		return
	}
	x.phase, x.last = phase, now
	fmt.Fprintf(x.app.stderr, "%s: %s, %d of %d\n", x.what, phase, done, total)
}

func recoverText(p *printer, r *recovery.Report) {
	for _, f := range r.Findings {
		where := ""
		for _, x := range []struct{ what, value string }{{"object", f.Object}, {"version", f.Version}} {
			if x.value != "" {
				where += ", " + x.what + " " + x.value
			}
		}
		if where != "" {
			where = " (" + strings.TrimPrefix(where, ", ") + ")"
		}
		p.line("%s: %s%s", f.Severity, f.Problem, where)
	}
	for _, id := range r.Deleted {
		p.line("deleted since: %s", id)
	}
	for _, id := range r.Missing {
		p.line("missing, taken for deleted: %s", id)
	}
	p.line("not rebuilt:")
	for _, s := range r.NotRebuilt {
		p.line("  %s", s)
	}
	if r.NewKey {
		p.line("the region has a new key; make sure that its key file is kept apart from the bucket")
	}
	if r.Backup != "" {
		p.line("the metadata as it was is kept as %s", r.Backup)
	}
	verdict := "all is back"
	if !r.Complete {
		verdict = "NOT ALL IS BACK"
	}
	if r.DryRun {
		verdict += ", were it done"
	}
	p.line("region %s: %s; %d snapshots ready, %d failed, %d versions (%d deleted ones that others need, %d broken), %d pins, %d chains, %d volumes, %d accounts; %d segments in %d objects, %s in %d objects is garbage; %d reads of %s",
		r.Region, verdict, r.Snapshots, r.Failed, r.Versions, r.Ghosts, r.Broken, r.Pins, r.Chains, r.Volumes, r.Accounts, r.Segments, r.Objects,
		short(r.Garbage.Bytes), r.Garbage.Objects, r.Reads.Requests, short(r.Reads.Bytes))
}

// mostCommon returns the region that most marks name: the others are damaged. ""
// when there is none.
func mostCommon(marks map[string]*incarnation, name snapferry.RegionName) (id string, err error) {
	count := map[string]int{}
	for _, x := range marks {
		if x != nil && x.Name == name {
			count[x.ID]++
		}
	}
	tie := ""
	for i, n := range count {
		switch {
		case id == "" || n > count[id]:
			id, tie = i, ""
		case n == count[id]:
			tie = i
		}
	}
	if tie != "" {
		return "", snapferry.Errorf(snapferry.Conflict, "the marks of starts in the bucket name region %s as %q and as %q", name, id, tie).
			WithHint("one of them is damaged: move it away, and run this again")
	}
	for _, x := range marks {
		if id == "" && x != nil {
			return "", snapferry.Errorf(snapferry.Conflict, "the bucket belongs to region %s (%s), not to %s", x.Name, x.ID, name).
				WithHint("correct name, directory or bucket in the configuration")
		}
	}
	return id, nil
}
