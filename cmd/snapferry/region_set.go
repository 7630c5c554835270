package main

import (
	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) regionSetCommand() *cobra.Command {
	var d client.KeyDefault
	var off bool
	cmd := &cobra.Command{
		Use: "set [--encrypt-by-default [--key KEY] | --no-encrypt-by-default]", Short: "Say what the account wants of new volumes in the region", Args: cobra.NoArgs,
		Long: `Say what the account wants of new volumes in the region, and of copies into it;
without a flag, show it. Volumes that there are stay as they are.`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if off && (d.Encrypt || d.Key != "") {
				return snapferry.Errorf(snapferry.Invalid, "--no-encrypt-by-default goes with no other flag")
			}
			if d.Key != "" && !d.Encrypt {
				return snapferry.Errorf(snapferry.Invalid, "--key says with which key").WithHint("give --encrypt-by-default too")
			}
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			if d.Encrypt || off {
				d, err = c.SetKeyDefault(cmd.Context(), d)
			} else {
				d, err = c.KeyDefault(cmd.Context())
			}
			if err != nil {
				return err
			}
			return a.print(d, func(p *printer) {
				text := "no"
				if d.Encrypt {
					text = "yes, with the service key"
				}
				if d.Encrypt && d.Key != "" {
					text = "yes, with " + d.Key
				}
				p.fields("encrypt by default", text)
			})
		},
	}
	cmd.Flags().BoolVar(&d.Encrypt, "encrypt-by-default", false, "encrypt all new volumes and copies")
	cmd.Flags().StringVar(&d.Key, "key", "", "with this key (default: the account's service key)")
	cmd.Flags().BoolVar(&off, "no-encrypt-by-default", false, "encrypt what is asked for")
	return cmd
}
