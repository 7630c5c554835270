package main

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

// profile is client.yaml: how the command line reaches regions.
type profile struct {
	DefaultRegion  snapferry.RegionName                   `yaml:"default_region,omitempty"`
	DefaultAccount string                                 `yaml:"default_account,omitempty"`
	Regions        map[snapferry.RegionName]regionProfile `yaml:"regions"`
}

type regionProfile struct {
	API     string            `yaml:"api"`               // address, as for client.Config
	Handoff string            `yaml:"handoff,omitempty"` // socket; only on the region's machine
	CA      string            `yaml:"ca,omitempty"`      // file with the authority of an https address
	Tokens  map[string]string `yaml:"tokens"`            // by account
}

// readYAML reads a configuration; unknown keys are refused.
func readYAML(path string, dst any) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return fileError("read configuration", path, err)
	}
	if err := yaml.UnmarshalWithOptions(p, dst, yaml.Strict()); err != nil {
		return snapferry.Errorf(snapferry.Invalid, "configuration %s: %s", path, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	return nil
}

// clientConfig is the path of client.yaml.
func (a *app) clientConfig() (string, error) {
	if a.config != "" {
		return a.config, nil
	}
	if path := a.getenv(configVariable); path != "" {
		return path, nil
	}
	home, err := a.home()
	if err != nil {
		return "", snapferry.Errorf(snapferry.Invalid, "find the client's configuration: %w", err).WithHint("give it with --config or %s", configVariable)
	}
	return filepath.Join(home, ".config", "snapferry", "client.yaml"), nil
}

// connect returns a client of a region; "" is the one of --region, or else the
// default.
func (a *app) connect(region snapferry.RegionName) (*client.Client, snapferry.RegionName, error) {
	path, err := a.clientConfig()
	if err != nil {
		return nil, "", err
	}
	var p profile
	if err := readYAML(path, &p); err != nil {
		if snapferry.IsKind(err, snapferry.NotFound) {
			err = snapferry.Errorf(snapferry.NotFound, "there is no client's configuration %s", path).
				WithHint("give one with --config or %s; \"snapferry dev\" makes one", configVariable)
		}
		return nil, "", err
	}
	if region == "" {
		region = snapferry.RegionName(a.region)
	}
	if region == "" {
		region = p.DefaultRegion
	}
	if region == "" {
		return nil, "", snapferry.Errorf(snapferry.Invalid, "no region is given").WithHint("use --region; %s has: %s", path, strings.Join(p.names(), ", "))
	}
	r, ok := p.Regions[region]
	if !ok {
		return nil, "", snapferry.Errorf(snapferry.NotFound, "unknown region %q", region).WithHint("%s has: %s", path, strings.Join(p.names(), ", "))
	}
	c, err := r.client(path, region, p.account(a.account))
	return c, region, err
}

func (p profile) account(flag string) string {
	if flag != "" {
		return flag
	}
	return p.DefaultAccount
}

func (p profile) names() (names []string) {
	for n := range p.Regions {
		names = append(names, string(n))
	}
	slices.Sort(names)
	return names
}

func (r regionProfile) client(path string, region snapferry.RegionName, account string) (*client.Client, error) {
	token, ok := r.Tokens[account]
	if !ok {
		known := make([]string, 0, len(r.Tokens))
		for n := range r.Tokens {
			known = append(known, n)
		}
		slices.Sort(known)
		return nil, snapferry.Errorf(snapferry.NotFound, "%s has no token of account %q for region %s", path, account, region).
			WithHint("use --account; it has tokens of: %s", strings.Join(known, ", "))
	}
	c := client.Config{Address: r.API, Handoff: r.Handoff, Token: token}
	if r.CA != "" {
		p, err := os.ReadFile(r.CA)
		if err != nil {
			return nil, fileError("read authority", r.CA, err)
		}
		c.CA = x509.NewCertPool()
		if !c.CA.AppendCertsFromPEM(p) {
			return nil, snapferry.Errorf(snapferry.Invalid, "there is no certificate in %s", r.CA)
		}
	}
	return client.New(c)
}
