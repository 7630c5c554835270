package main

import (
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/pki"
)

const certificateTTL = 2 * 365 * 24 * time.Hour

func (a *app) pkiCommand() *cobra.Command {
	return group("pki", "Make the certificates with which regions, and clients of volumes, are known", a.pkiInitCommand(), a.pkiIssueCommand(), a.pkiIssueClientCommand())
}

func (a *app) pkiInitCommand() *cobra.Command {
	var dir, name string
	cmd := &cobra.Command{
		Use: "init --dir DIR", Short: "Make the authority of an installation", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			authority, err := pki.NewAuthority(name)
			if err != nil {
				return err
			}
			if err := authority.Save(dir); err != nil {
				return err
			}
			out := struct {
				CA  string `json:"ca"`
				Key string `json:"key"`
			}{filepath.Join(dir, pki.CertFile), filepath.Join(dir, pki.KeyFile)}
			return a.print(out, func(p *printer) {
				p.line("made %s, which every region gets, and %s, which stays secret", out.CA, out.Key)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "pki", "directory of the authority")
	cmd.Flags().StringVar(&name, "name", "Snapferry", "name of the authority, for people")
	return cmd
}

func (a *app) pkiIssueCommand() *cobra.Command {
	var dir, out string
	var hosts []string
	var days int
	cmd := &cobra.Command{
		Use: "issue REGION [--host NAME|ADDRESS]...", Short: "Make the certificate of a region", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			region, err := snapferry.ParseRegionName(args[0])
			if err != nil {
				return err
			}
			authority, err := pki.Load(dir)
			if err != nil {
				return err
			}
			if out == "" {
				out = dir
			}
			if string(region)+filepath.Ext(pki.KeyFile) == pki.KeyFile {
				if _, err := pki.Load(out); err == nil {
					return snapferry.Errorf(snapferry.Exists, "the key of region %s would replace that of the authority in %s", region, out).
						WithHint("give another directory with --out")
				}
			}
			cert, key, err := issue(authority, region, hosts, time.Duration(days)*24*time.Hour, out, string(region))
			if err != nil {
				return err
			}
			made := struct {
				Region      snapferry.RegionName `json:"region"`
				Certificate string               `json:"certificate"`
				Key         string               `json:"key"`
			}{region, cert, key}
			return a.print(made, func(p *printer) { p.line("made %s and %s", cert, key) })
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "pki", "directory of the authority")
	cmd.Flags().StringVar(&out, "out", "", "directory to write to (default: that of the authority)")
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "DNS name or IP address of the region; may be repeated")
	cmd.Flags().IntVar(&days, "days", int(certificateTTL/(24*time.Hour)), "how long the certificate is valid")
	return cmd
}

func (a *app) pkiIssueClientCommand() *cobra.Command {
	var dir, out string
	var days int
	cmd := &cobra.Command{
		Use: "issue-client NAME --out DIR", Short: "Make the certificate of a client of volumes that are exported with TLS", Args: cobra.ExactArgs(1),
		Long: `Make the certificate of a client of volumes that are exported with TLS. DIR gets
ca-cert.pem, client-cert.pem and client-key.pem, the names by which QEMU and
libnbd look for them. Who has them can use every volume of any region of the
installation that is exported with TLS.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if out == "" {
				return snapferry.Errorf(snapferry.Invalid, "where to keep the certificate is missing").WithHint("give a directory with --out")
			}
			authority, err := pki.Load(dir)
			if err != nil {
				return err
			}
			cert, key, err := authority.IssueClient(args[0], time.Duration(days)*24*time.Hour)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o700); err != nil {
				return fileError("make", out, err)
			}
			for _, f := range []struct {
				name string
				data []byte
				mode os.FileMode
			}{{"ca-cert.pem", authority.CertPEM(), 0o644}, {"client-key.pem", key, 0o600}, {"client-cert.pem", cert, 0o644}} {
				if err := writeFile(filepath.Join(out, f.name), f.data, f.mode); err != nil {
					return err
				}
			}
			made := struct {
				Client    string `json:"client"`
				Directory string `json:"directory"`
			}{args[0], out}
			return a.print(made, func(p *printer) { p.line("made the certificate of %s in %s", args[0], out) })
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "pki", "directory of the authority")
	cmd.Flags().StringVar(&out, "out", "", "directory to write to")
	cmd.Flags().IntVar(&days, "days", int(certificateTTL/(24*time.Hour)), "how long the certificate is valid")
	return cmd
}

// issue makes a region's certificate and key as files dir/base.pem and .key,
// and replaces older ones.
func issue(authority *pki.Authority, region snapferry.RegionName, hosts []string, ttl time.Duration, dir, base string) (certFile, keyFile string, err error) {
	if len(hosts) == 0 {
		hosts = []string{"localhost", net.IPv4(127, 0, 0, 1).String()}
	}
	cert, key, err := authority.Issue(region, hosts, ttl)
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fileError("make", dir, err)
	}
	certFile, keyFile = filepath.Join(dir, base+".pem"), filepath.Join(dir, base+".key")
	if err := writeFile(keyFile, key, 0o600); err != nil {
		return "", "", err
	}
	return certFile, keyFile, writeFile(certFile, cert, 0o644)
}
