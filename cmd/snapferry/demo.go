package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/source"
)

const (
	demoEast = snapferry.RegionName("east")
	demoWest = snapferry.RegionName("west")
)

func (a *app) demoCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "demo", Short: "Show the main job on two fresh regions", Args: cobra.NoArgs,
		Long: `Show the main job on two fresh regions, each in its own process: make a disk
image with a file system, import it, change it, import it again, copy both
snapshots to the other region, bring them back there, and prove that they are
equal. Everything is made in a temporary directory and removed.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make the temporary directory in")
	return cmd
}

// demo runs the main job and returns nil only when all came back equal.
func (a *app) demo(ctx context.Context, parent string) (err error) {
	dir, err := os.MkdirTemp(parent, "snapferry-demo-")
	if err != nil {
		return fileError("make a directory in", parent, err)
	}
	d := &demoRun{app: a, dir: dir, began: time.Now(), out: &printer{w: a.stdout}}
	defer func() {
		endAll(d.processes)
		if rerr := os.RemoveAll(dir); err == nil && rerr != nil {
			err = fileError("remove", dir, rerr)
		}
	}()
	for _, part := range []func(context.Context) error{d.makeDisks, d.start, d.imports, d.copies, d.exports, d.prove} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	took := time.Since(d.began)
	out := struct {
		Equal   bool       `json:"equal"`
		Seconds float64    `json:"seconds"`
		Steps   []demoStep `json:"steps"`
	}{true, took.Seconds(), d.steps}
	return a.print(out, func(p *printer) {
		p.line("\nEverything came back equal. %.1f s in all; nothing is left behind.", took.Seconds())
	})
}

// demoRun is one demonstration.
type demoRun struct {
	app       *app
	dir       string
	began     time.Time
	out       *printer
	steps     []demoStep
	processes []*process
	clients   map[snapferry.RegionName]*client.Client

	disks  [2]string             // the first disk, and the changed one
	east   [2]snapferry.Snapshot // of the disks
	west   [2]snapferry.Snapshot // copies of those
	backed [2]string             // files they were exported to
}

type demoStep struct {
	Step    string  `json:"step"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Note    string  `json:"note,omitempty"`
}

// step runs one step and shows it: what it did, over how many bytes, how long,
// and what is to say about it.
func (d *demoRun) step(what string, fn func() (bytes int64, note string, err error)) error {
	start := time.Now()
	n, note, err := fn()
	if err != nil {
		return err
	}
	s := demoStep{Step: what, Bytes: n, Seconds: time.Since(start).Seconds(), Note: note}
	d.steps = append(d.steps, s)
	if d.app.output == "json" {
		return nil
	}
	size := ""
	if n > 0 {
		size = short(n)
	}
	d.out.line("%-40s %9s %7.2f s  %s", what, size, s.Seconds, note)
	return outputError(d.out.err)
}

func (d *demoRun) path(name string) string { return filepath.Join(d.dir, name) }

func (d *demoRun) makeDisks(ctx context.Context) error {
	d.disks = [2]string{d.path("v1.raw"), d.path("v2.raw")}
	err := d.step("make a disk image", func() (int64, string, error) { return makeDemoDisk(ctx, d.path("tree"), d.disks[0]) })
	if err != nil {
		return err
	}
	return d.step("change about 1 % of its files' content", func() (int64, string, error) {
		n, err := changeDemoDisk(ctx, d.disks[0], d.disks[1])
		return n, "in a second image, v2.raw", err
	})
}

func (d *demoRun) start(ctx context.Context) error {
	return d.step("start regions east and west", func() (int64, string, error) {
		regions := []snapferry.RegionName{demoEast, demoWest}
		dev, err := prepareDev(d.path("regions"), regions, "")
		if err != nil {
			return 0, "", err
		}
		if d.processes, err = d.app.startAll(ctx, dev, regions); err != nil {
			return 0, "", err
		}
		d.clients = map[snapferry.RegionName]*client.Client{}
		for _, r := range regions {
			if d.clients[r], err = dev.profile.Regions[r].client(dev.path(devClient), r, devAccount); err != nil {
				return 0, "", err
			}
		}
		return 0, "two processes, two directories, mutual TLS between them", nil
	})
}

func (d *demoRun) imports(ctx context.Context) error {
	for i, disk := range d.disks {
		err := d.step(fmt.Sprintf("import v%d.raw in east", i+1), func() (int64, string, error) {
			f, err := source.OpenRead(disk)
			if err != nil {
				return 0, "", err
			}
			defer f.Close()
			s, err := d.clients[demoEast].Import(ctx, client.ImportRequest{Volume: "demo"}, f)
			if err == nil {
				s, err = d.ready(ctx, demoEast, s.ID)
			}
			d.east[i] = s
			note := "read " + short(s.Counts.Read) + ", stored " + short(s.Counts.Stored)
			if s.Parent != "" {
				note += ", incremental"
			}
			return s.Size, note, err
		})
		if err != nil {
			return err
		}
	}
	return d.step("diff of the two snapshots", func() (n int64, note string, err error) {
		extents := 0
		err = d.clients[demoEast].Diff(ctx, d.east[0].ID, d.east[1].ID, func(e extent.Extent) error {
			extents++
			n += e.Len
			return nil
		})
		return n, fmt.Sprintf("%d extents changed", extents), err
	})
}

// ready waits for a snapshot and returns an error unless it is ready.
func (d *demoRun) ready(ctx context.Context, r snapferry.RegionName, id snapferry.SnapshotID) (snapferry.Snapshot, error) {
	s, err := d.clients[r].Wait(ctx, id, nil)
	if err == nil && s.State != snapferry.SnapshotReady {
		err = snapferry.Errorf(snapferry.Cancelled, "snapshot %s in %s is %s: %s", id, r, s.State, s.Reason)
	}
	return s, err
}

func (d *demoRun) copies(ctx context.Context) error {
	for i := range d.east {
		req := client.CopyRequest{From: demoEast, Source: d.east[i].ID}
		err := d.step(fmt.Sprintf("plan to copy v%d to west", i+1), func() (int64, string, error) {
			plan, err := d.clients[demoWest].PlanCopy(ctx, req)
			return plan.MoveBytes, plan.Reason, err
		})
		if err != nil {
			return err
		}
		err = d.step(fmt.Sprintf("copy v%d to west", i+1), func() (int64, string, error) {
			s, err := d.clients[demoWest].Copy(ctx, req)
			if err == nil {
				s, err = d.ready(ctx, demoWest, s.ID)
			}
			d.west[i] = s
			return s.Counts.Moved, fmt.Sprintf("of %s present", short(s.Counts.Present)), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demoRun) exports(ctx context.Context) error {
	for i, s := range d.west {
		d.backed[i] = d.path(fmt.Sprintf("back%d.raw", i+1))
		err := d.step(fmt.Sprintf("export v%d in west, durably", i+1), func() (int64, string, error) {
			f, _, err := source.OpenWrite(d.backed[i], false)
			if err != nil {
				return 0, "", err
			}
			err = d.clients[demoWest].Export(ctx, s.ID, f, nil)
			if err = errors.Join(err, f.Close()); err != nil {
				return 0, "", err
			}
			return s.Size, short(s.Counts.Present) + " written, the rest is holes", nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demoRun) prove(ctx context.Context) error {
	for i := range d.disks {
		err := d.step(fmt.Sprintf("compare the bytes of v%d", i+1), func() (int64, string, error) {
			n, err := compareFiles(ctx, d.disks[i], d.backed[i])
			return n, "equal", err
		})
		if err != nil {
			return err
		}
		err = d.step(fmt.Sprintf("compare the digests of v%d", i+1), func() (int64, string, error) {
			n, sum, err := digestFile(ctx, d.disks[i])
			if err != nil {
				return 0, "", err
			}
			own, east, west := "sha256:"+hex.EncodeToString(sum[:]), d.east[i].Digest.String(), d.west[i].Digest.String()
			if own != east || own != west {
				return 0, "", snapferry.Errorf(snapferry.Corrupt, "digests of v%d differ: of the image %s, in east %s, in west %s", i+1, own, east, west)
			}
			return n, "equal in east, in west, of the image: " + own[:23] + "...", nil
		})
		if err != nil {
			return err
		}
	}
	for _, r := range []snapferry.RegionName{demoEast, demoWest} {
		err := d.step(fmt.Sprintf("fsck --deep of %s", r), func() (int64, string, error) {
			report, err := d.clients[r].Fsck(ctx, true, nil)
			if err == nil && len(report.Findings) > 0 {
				err = snapferry.Errorf(snapferry.Corrupt, "fsck of region %s: %s", r, report.Findings[0].Problem)
			}
			return report.Bytes, fmt.Sprintf("clean, %d frames", report.Frames), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// compareFiles returns how many bytes two equal files have.
func compareFiles(ctx context.Context, a, b string) (n int64, err error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, fileError("open", a, err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, fileError("open", b, err)
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		na, erra := io.ReadFull(fa, pa)
		nb, errb := io.ReadFull(fb, pb)
		if !bytes.Equal(pa[:na], pb[:nb]) {
			return n, snapferry.Errorf(snapferry.Corrupt, "%s and %s differ at or after byte %d", a, b, n)
		}
		n += int64(na)
		for _, err := range []error{erra, errb} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return n, fileError("compare", a, err)
			}
		}
		if erra != nil {
			return n, nil
		}
	}
}
