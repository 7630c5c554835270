package main

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/goccy/go-yaml"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/pki"
)

const (
	devConfig  = "config.yaml"
	devClient  = "client.yaml"
	devAccount = "main"
	loopback   = "127.0.0.1:0"
)

// A region's port is drawn from these, which are below those that outgoing
// connections get (Linux: net.ipv4.ip_local_port_range, 32768 on by default): what
// is free when the region is made is then free whenever it starts.
const (
	minDevPort = 20000
	maxDevPort = 32767
	portTries  = 100
)

// devDir is a directory with the regions of one machine: client.yaml, the
// authority in pki/, and for each region its configuration, certificate, data
// and log.
type devDir struct {
	dir     string // absolute
	profile profile
	configs map[snapferry.RegionName]serverConfig
}

func (d *devDir) path(elem ...string) string {
	return filepath.Join(append([]string{d.dir}, elem...)...)
}

func (d *devDir) configFile(r snapferry.RegionName) string { return d.path(string(r), devConfig) }

// prepareDev makes what is missing in dir for regions to run; none means those
// that are there. compression is for new regions.
func prepareDev(dir string, regions []snapferry.RegionName, compression string) (*devDir, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "directory %s: %w", dir, err)
	}
	d := &devDir{dir: abs, configs: map[snapferry.RegionName]serverConfig{}}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fileError("make", abs, err)
	}
	err = readYAML(d.path(devClient), &d.profile)
	if snapferry.IsKind(err, snapferry.NotFound) {
		d.profile = profile{DefaultAccount: devAccount, Regions: map[snapferry.RegionName]regionProfile{}}
	} else if err != nil {
		return nil, err
	}
	if len(regions) == 0 {
		regions = slices.Sorted(maps.Keys(d.profile.Regions))
	}
	if len(regions) == 0 {
		regions = []snapferry.RegionName{"east", "west"}
	}
	authority, err := devAuthority(d.path("pki"))
	if err != nil {
		return nil, err
	}
	for _, r := range regions {
		if err := d.prepare(authority, r, compression); err != nil {
			return nil, err
		}
	}
	if d.profile.DefaultRegion == "" {
		d.profile.DefaultRegion = regions[0]
	}
	return d, d.write()
}

// devAuthority returns the authority in dir, made when there is none.
func devAuthority(dir string) (*pki.Authority, error) {
	a, err := pki.Load(dir)
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return a, err
	}
	if a, err = pki.NewAuthority("Snapferry development"); err != nil {
		return nil, err
	}
	return a, a.Save(dir)
}

// prepare reads a region's configuration or makes a new region.
func (d *devDir) prepare(authority *pki.Authority, name snapferry.RegionName, compression string) error {
	if _, err := snapferry.ParseRegionName(string(name)); err != nil {
		return err
	}
	if name == "pki" {
		return snapferry.Errorf(snapferry.Invalid, "a region in a directory of dev cannot be called pki")
	}
	c, err := loadServerConfig(d.configFile(name))
	switch {
	case err == nil:
		if _, ok := d.profile.Regions[name]; !ok {
			return snapferry.Errorf(snapferry.Conflict, "%s has no region %s, but %s exists", d.path(devClient), name, d.configFile(name)).
				WithHint("bring client.yaml back, or use another directory")
		}
		d.configs[name] = c
		return prepareSockets(filepath.Dir(c.Handoff))
	case !snapferry.IsKind(err, snapferry.NotFound):
		return err
	}
	return d.makeRegion(authority, name, compression)
}

func (d *devDir) makeRegion(authority *pki.Authority, name snapferry.RegionName, compression string) error {
	dir := d.path(string(name))
	cert, key, err := issue(authority, name, nil, certificateTTL, dir, "peer")
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	sockets := dir
	if len(filepath.Join(dir, "data", "sockets", string(snapferry.NewVolumeID())+".sock")) > maxSocketPath {
		if sockets, err = os.MkdirTemp("", "snapferry-"); err != nil {
			return fileError("make", "directory of sockets", err)
		}
	}
	c := serverConfig{
		Name: name, Directory: filepath.Join(dir, "data"), Handoff: filepath.Join(sockets, "handoff.sock"), Compression: compression,
		API:  apiConfig{Listen: filepath.Join(sockets, "api.sock")},
		Peer: peerConfig{Listen: port, Certificate: cert, Key: key, CA: d.path("pki", pki.CertFile)},
	}
	if sockets != dir {
		c.Sockets = filepath.Join(sockets, "volumes")
	}
	r := regionProfile{API: "unix://" + c.API.Listen, Handoff: c.Handoff, Tokens: map[string]string{}}
	for _, account := range []string{devAccount, "other"} {
		token := randomHex(24)
		r.Tokens[account] = token
		c.Accounts = append(c.Accounts, accountConfig{Name: account, TokenHash: control.HashToken(token), Operator: account == devAccount})
	}
	d.configs[name], d.profile.Regions[name] = c, r
	return nil
}

// prepareSockets makes the directory of a region's sockets again when it lay
// in a temporary place, and checks that it is ours alone.
func prepareSockets(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fileError("make", dir, err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return fileError("look at", dir, err)
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || st.Mode().Perm()&0o022 != 0 || ok && int(owner.Uid) != os.Geteuid() {
		return snapferry.Errorf(snapferry.Denied, "%s is not a directory that you alone can write to", dir)
	}
	return nil
}

// freePort returns an address on this machine that nobody listens on now.
func freePort() (string, error) {
	var l net.Listener
	var err error
	for range portTries {
		port := minDevPort + rand.IntN(maxDevPort-minDevPort+1)
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", snapferry.Errorf(snapferry.Unavailable, "find a free port from %d to %d: %w", minDevPort, maxDevPort, err)
}

// write introduces the regions to each other and writes what changed. The
// client's configuration comes first: who has it can find the tokens of every
// region that was made.
func (d *devDir) write() error {
	for name := range d.profile.Regions {
		if _, ok := d.configs[name]; ok {
			continue
		}
		c, err := loadServerConfig(d.configFile(name)) // it does not run, but is a peer
		if err != nil {
			return err
		}
		d.configs[name] = c
	}
	if err := writeYAML(d.path(devClient), d.profile); err != nil {
		return err
	}
	for name, c := range d.configs {
		c.Peers = nil
		for _, other := range slices.Sorted(maps.Keys(d.configs)) {
			if other != name {
				c.Peers = append(c.Peers, knownPeer{Name: other, Address: d.configs[other].Peer.Listen})
			}
		}
		if err := writeYAML(d.configFile(name), c); err != nil {
			return err
		}
		d.configs[name] = c
	}
	return nil
}

func writeYAML(path string, v any) error {
	p, err := yaml.Marshal(v)
	if err != nil {
		return snapferry.Errorf(snapferry.Internal, "encode %s: %w", path, err)
	}
	old, err := os.ReadFile(path)
	if err == nil && string(old) == string(p) {
		return nil
	}
	return writeFile(path, p, 0o600)
}
