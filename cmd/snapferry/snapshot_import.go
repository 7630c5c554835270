package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
	"github.com/snapferry/snapferry/nbd"
)

func (a *app) importCommand() *cobra.Command {
	var labels labelFlags
	var volume string
	var noWait bool
	var from importFrom
	var seal sealFlags
	cmd := &cobra.Command{
		Use: "import FILE|DEVICE|URI --volume NAME", Short: "Make a snapshot of an image file, a block device or what an NBD server has", Args: cobra.ExactArgs(1),
		Long: `Make a snapshot of an image file, a block device or what an NBD server has,
incremental on the last snapshot of the same volume. The region must run on this
machine. The disk is opened here, with your rights, and handed over. What changes
the disk meanwhile makes the import of a raw file fail; it is not seen otherwise:
stop its users, or import a frozen copy.

URI is nbd://HOST/EXPORT, nbds://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH.
Images of other formats (qcow2, vmdk, vhd, vhdx, vdi: by the end of the name, or
--format) are read by qemu-nbd, which must be installed.

With --bitmap NAME only what the dirty bitmap of that name says is read, if the
volume has a snapshot already: the bitmap must have begun when that was taken.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := labels.get()
			if err != nil {
				return err
			}
			if volume == "" {
				return snapferry.Errorf(snapferry.Invalid, "the snapshot needs a volume").WithHint("give it with --volume NAME")
			}
			if err := snapferry.CheckVolumeName(volume); err != nil {
				return err
			}
			return a.importDisk(cmd.Context(), args[0], from, client.ImportRequest{Volume: volume, Labels: l, Sealing: seal.Sealing}, noWait)
		},
	}
	labels.register(cmd)
	seal.register(cmd)
	cmd.Flags().StringVar(&volume, "volume", "", "volume that the snapshot is of")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return at once; the import goes on in the region")
	cmd.Flags().StringVar(&from.format, "format", "", "format of the image: raw, qcow2, vmdk, vhd, vhdx or vdi (default: by the end of its name)")
	cmd.Flags().StringVar(&from.bitmap, "bitmap", "", "dirty bitmap of what changed since the last snapshot of the volume")
	return cmd
}

// importFrom says how a disk is to be read.
type importFrom struct {
	format string // empty: by the name
	bitmap string // empty: none
}

// open opens what is to be imported, with the rights of who runs this, and sets in
// req what it is.
func (from importFrom) open(ctx context.Context, path string, req *client.ImportRequest) (*os.File, error) {
	if strings.HasPrefix(path, "nbd") && strings.Contains(path, "://") {
		if from.format != "" {
			return nil, snapferry.Errorf(snapferry.Invalid, "an NBD server has no format")
		}
		return dialNBD(ctx, path, from.bitmap, req)
	}
	format := source.FormatOf(path)
	if from.format != "" {
		var err error
		if format, err = source.CheckFormat(from.format); err != nil {
			return nil, err
		}
	}
	if format != source.RawFormat {
		conn, err := source.Serve(ctx, path, format, from.bitmap)
		if err != nil {
			return nil, err
		}
		req.NBD = &client.NBDSource{Bitmap: from.bitmap}
		return connFile(conn)
	}
	if from.bitmap != "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "a raw disk has no dirty bitmap").WithHint("give the image of another format, or the URI of an NBD server that shows one")
	}
	// Open finds what is wrong with the disk before the region is asked.
	disk, err := source.Open(path)
	if err != nil {
		return nil, err
	}
	if err := disk.Close(); err != nil {
		return nil, fileError("close", path, err)
	}
	return source.OpenRead(path)
}

// dialNBD connects to an NBD server.
func dialNBD(ctx context.Context, uri, bitmap string, req *client.ImportRequest) (*os.File, error) {
	u, err := nbd.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if u.NoVerify {
		return nil, snapferry.Errorf(snapferry.Unsupported, "a server whose certificate is not checked")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, u.Network, u.Address)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Unavailable, "connect to %s: %w", uri, err)
	}
	req.NBD = &client.NBDSource{Export: u.Export, Bitmap: bitmap, TLS: u.TLS, Hostname: u.Hostname}
	return connFile(conn)
}

// connFile returns the descriptor of a connection, to be handed over.
func connFile(conn net.Conn) (*os.File, error) {
	defer conn.Close()
	f, err := conn.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "descriptor of a connection: %w", err)
	}
	return f, nil
}

func (a *app) importDisk(ctx context.Context, path string, from importFrom, req client.ImportRequest, noWait bool) error {
	f, err := from.open(ctx, path, &req)
	if err != nil {
		return err
	}
	defer f.Close()
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Import(ctx, req, f)
	if err != nil {
		return err
	}
	if noWait {
		return a.showSnapshot(s)
	}
	return a.await(ctx, c, s.ID)
}

// await waits for a snapshot with a sign of its progress, then prints it.
func (a *app) await(ctx context.Context, c *client.Client, id snapferry.SnapshotID) error {
	bar := a.newBar("snapshot " + string(id))
	s, err := c.Wait(ctx, id, func(s snapferry.Snapshot) {
		if s.Progress != nil {
			bar.set(s.Progress.Done, s.Progress.Total)
		}
	})
	bar.end(err == nil && s.State == snapferry.SnapshotReady)
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintf(a.stderr, "snapshot %s goes on without this command; see it with: snapferry snapshot show %s\n", id, id)
		}
		return err
	}
	return a.settled(s)
}
