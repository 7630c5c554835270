package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) volumeExportCommand() *cobra.Command {
	var req client.VolumeExportRequest
	cmd := &cobra.Command{
		Use: "export VOLUME [--socket PATH | --tls]", Short: "Serve a live volume to NBD clients", Args: cobra.ExactArgs(1),
		Long: `Serve a live volume to NBD clients until "volume unexport", also after a restart of
the region: on a unix socket that only the region's user can reach, or over TCP
with TLS, to those who show a certificate of the installation's authority. Any
number of clients may be connected at a time.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.TLS && req.Socket != "" {
				return snapferry.Errorf(snapferry.Invalid, "a volume is exported at a socket or with TLS, not both").WithHint("give one of --socket and --tls")
			}
			if req.Socket != "" {
				path, err := filepath.Abs(req.Socket)
				if err != nil {
					return snapferry.Errorf(snapferry.Invalid, "socket %s: %w", req.Socket, err)
				}
				req.Socket = path
			}
			return a.onVolume(cmd.Context(), args[0], func(c *client.Client, id snapferry.VolumeID) error {
				v, err := c.ExportVolume(cmd.Context(), id, req)
				if err != nil {
					return err
				}
				return a.showVolume(v)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Socket, "socket", "", "path of the socket, on the region's machine (default: one in the region's directory)")
	f.BoolVar(&req.TLS, "tls", false, "TCP with TLS, at nbd_listen of the region's configuration")
	f.BoolVar(&req.ReadOnly, "readonly", false, "refuse writes")
	return cmd
}
