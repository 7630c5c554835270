package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/extent"
)

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff A B", Short: "Print the extents in which snapshot B differs from A", Args: cobra.ExactArgs(2),
		Long: `Print the extents, in bytes, in which snapshot B differs from snapshot A of the
same region. The grain is the block of 64 KiB.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseSnapshots(args...)
			if err != nil {
				return err
			}
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			return a.diff(cmd.Context(), c, ids[0], ids[1])
		},
	}
}

// diff writes extents as they come: there may be very many.
func (a *app) diff(ctx context.Context, c *client.Client, from, to snapferry.SnapshotID) error {
	out := bufio.NewWriter(a.stdout)
	var w extentWriter = &textExtents{w: out}
	if a.output == "json" {
		w = &jsonExtents{w: out, from: from, to: to}
	}
	if err := c.Diff(ctx, from, to, func(e extent.Extent) error { return outputError(w.add(e)) }); err != nil {
		return err
	}
	if err := w.end(); err != nil {
		return outputError(err)
	}
	return outputError(out.Flush())
}

type extentWriter interface {
	add(e extent.Extent) error
	end() error
}

type textExtents struct {
	w            io.Writer
	count, bytes int64
}

func (x *textExtents) add(e extent.Extent) (err error) {
	if x.count == 0 {
		_, err = fmt.Fprintf(x.w, "%20s %15s\n", "OFFSET", "LENGTH")
	}
	if err == nil {
		_, err = fmt.Fprintf(x.w, "%20d %15d\n", e.Off, e.Len)
	}
	x.count++
	x.bytes += e.Len
	return err
}

func (x *textExtents) end() error {
	_, err := fmt.Fprintf(x.w, "%d extents, %s\n", x.count, bytesText(x.bytes))
	return err
}

// jsonExtents writes {"from", "to", "extents": [...], "bytes"}.
type jsonExtents struct {
	w            io.Writer
	from, to     snapferry.SnapshotID
	count, bytes int64
}

func (x *jsonExtents) open() error {
	if x.count > 0 {
		_, err := io.WriteString(x.w, ",\n")
		return err
	}
	_, err := fmt.Fprintf(x.w, "{\"from\": %q, \"to\": %q, \"extents\": [\n", x.from, x.to)
	return err
}

func (x *jsonExtents) add(e extent.Extent) error {
	if err := x.open(); err != nil {
		return err
	}
	x.count++
	x.bytes += e.Len
	p, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = x.w.Write(p)
	return err
}

func (x *jsonExtents) end() error {
	if x.count == 0 {
		if err := x.open(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(x.w, "\n], \"bytes\": %d}\n", x.bytes)
	return err
}
