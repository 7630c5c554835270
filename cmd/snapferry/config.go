package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
)

// serverConfig is the configuration of a region. Relative paths are relative
// to the file's directory. docs/operations.md describes it.
type serverConfig struct {
	Name      snapferry.RegionName `yaml:"name"`
	Directory string               `yaml:"directory"` // meta.db is in it, and bucket/ unless Bucket says otherwise
	Bucket    bucketConfig         `yaml:"bucket,omitempty"`
	KeyFile   string               `yaml:"key_file,omitempty"` // else region.key in the directory
	// KeyPassphraseEnv is the variable of the environment that has a passphrase
	// instead, KeyCredential a credential of systemd that has what the file would.
	KeyPassphraseEnv string          `yaml:"key_passphrase_env,omitempty"`
	KeyCredential    string          `yaml:"key_credential,omitempty"`
	Keys             keysConfig      `yaml:"keys,omitempty"`
	API              apiConfig       `yaml:"api"`
	Handoff          string          `yaml:"handoff"`
	Peer             peerConfig      `yaml:"peer"`
	Peers            []knownPeer     `yaml:"peers,omitempty"`
	Accounts         []accountConfig `yaml:"accounts"`
	Compression      string          `yaml:"compression,omitempty"` // zstd, s2 or none
	Memory           int64           `yaml:"memory,omitempty"`      // bytes the process aims at
	Log              string          `yaml:"log,omitempty"`         // debug, info, warn or error

	ReclaimGrace   *time.Duration `yaml:"reclaim_grace,omitempty"`   // before an object that nobody needs is removed
	CompactionRate int64          `yaml:"compaction_rate,omitempty"` // bytes per second; 0: no limit

	// Of copies into the region.
	CopiesAtOnce int            `yaml:"copies_at_once,omitempty"` // of all accounts
	CopyPatience *time.Duration `yaml:"copy_patience,omitempty"`  // without a byte, until a copy is given up

	// Of live volumes.
	Volumes    string `yaml:"volumes,omitempty"`     // directory of volumes/ and caches/; else Directory
	Sockets    string `yaml:"sockets,omitempty"`     // directory of their sockets; else sockets/ in Directory
	CacheBytes *int64 `yaml:"cache_bytes,omitempty"` // what is kept near of what the bucket has too
	NBDListen  string `yaml:"nbd_listen,omitempty"`  // host:port of exports with TLS; empty: none
}

type apiConfig struct {
	Listen      string `yaml:"listen"` // path of a unix socket, or host:port
	Certificate string `yaml:"certificate,omitempty"`
	Key         string `yaml:"key,omitempty"`
}

// unix reports whether the API listens on a unix socket.
func (c apiConfig) unix() bool { return strings.Contains(c.Listen, "/") }

type peerConfig struct {
	Listen      string `yaml:"listen"` // host:port
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
}

type knownPeer struct {
	Name    snapferry.RegionName `yaml:"name"`
	Address string               `yaml:"address"` // host:port
}

type accountConfig struct {
	Name      string `yaml:"name"`
	TokenHash string `yaml:"token_hash,omitempty"` // SHA-256 in hexadecimal
	TokenFile string `yaml:"token_file,omitempty"` // has the token itself

	Operator     bool `yaml:"operator,omitempty"`      // may change what belongs to the region
	Copies       int  `yaml:"copies,omitempty"`        // under way at a time
	QueuedCopies int  `yaml:"queued_copies,omitempty"` // that wait for their turn
	StrictCopies bool `yaml:"strict_copies,omitempty"` // those over copies are refused instead of queued
}

const (
	defaultMemory = 220 << 20
	minMemory     = 64 << 20
)

// loadServerConfig reads and checks a region's configuration.
func loadServerConfig(path string) (serverConfig, error) {
	var c serverConfig
	if err := readYAML(path, &c); err != nil {
		return c, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return c, snapferry.Errorf(snapferry.Invalid, "configuration %s: %w", path, err)
	}
	c.resolve(dir)
	if err := c.check(); err != nil {
		return c, snapferry.Errorf(snapferry.KindOf(err), "configuration %s: %w", path, err)
	}
	return c, nil
}

func (c *serverConfig) resolve(dir string) {
	paths := []*string{&c.Directory, &c.Volumes, &c.Sockets, &c.KeyFile, &c.Bucket.Path, &c.Bucket.CAFile, &c.Handoff, &c.API.Certificate, &c.API.Key, &c.Peer.Certificate, &c.Peer.Key, &c.Peer.CA}
	if c.API.unix() {
		paths = append(paths, &c.API.Listen)
	}
	paths = append(paths, c.Keys.paths()...)
	for i := range c.Accounts {
		paths = append(paths, &c.Accounts[i].TokenFile)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

func (c *serverConfig) codec() (snapferry.Codec, error) {
	if c.Compression == "" {
		return snapferry.Zstd, nil
	}
	return snapferry.ParseCodec(c.Compression)
}

func (c *serverConfig) memory() int64 {
	if c.Memory == 0 {
		return defaultMemory
	}
	return c.Memory
}

// share is the part of memory that is so many bytes of the default one.
func (c *serverConfig) share(bytes int64) int64 {
	return int64(float64(c.memory()) * float64(bytes) / defaultMemory)
}

// grace is ReclaimGrace as package control wants it.
func (c *serverConfig) grace() time.Duration {
	switch {
	case c.ReclaimGrace == nil:
		return 0
	case *c.ReclaimGrace == 0:
		return -1
	}
	return *c.ReclaimGrace
}

// maxGrace is the longest time that may be waited for to remove an object.
const maxGrace = 30 * 24 * time.Hour

func (c *serverConfig) checkUpkeep() error {
	if g := c.ReclaimGrace; g != nil && (*g < 0 || *g > maxGrace) {
		return snapferry.Errorf(snapferry.Invalid, "reclaim_grace of %v is not within 0 and %v", *g, maxGrace).WithHint("write it like 60s")
	}
	if c.CompactionRate < 0 {
		return snapferry.Errorf(snapferry.Invalid, "compaction_rate of %d bytes a second is less than 0", c.CompactionRate).WithHint("0 is no limit")
	}
	return nil
}

// maxSocketPath is the longest path of a unix socket, in bytes.
const maxSocketPath = 107

func (c *serverConfig) check() error {
	if _, err := snapferry.ParseRegionName(string(c.Name)); err != nil {
		return err
	}
	if _, err := c.codec(); err != nil {
		return err
	}
	if _, err := c.level(); err != nil {
		return err
	}
	for _, need := range []struct{ key, value string }{
		{"directory", c.Directory},
		{"api.listen", c.API.Listen},
		{"handoff", c.Handoff},
		{"peer.listen", c.Peer.Listen},
		{"peer.certificate", c.Peer.Certificate},
		{"peer.key", c.Peer.Key},
		{"peer.ca", c.Peer.CA},
	} {
		if need.value == "" {
			return snapferry.Errorf(snapferry.Invalid, "%s is missing", need.key).WithHint("docs/operations.md has an example")
		}
	}
	if err := c.Bucket.check(); err != nil {
		return err
	}
	if err := c.checkKeySource(); err != nil {
		return err
	}
	if err := c.Keys.check(); err != nil {
		return err
	}
	if c.memory() < minMemory {
		return snapferry.Errorf(snapferry.Invalid, "memory of %d bytes is less than %d", c.Memory, int64(minMemory))
	}
	if err := c.checkUpkeep(); err != nil {
		return err
	}
	if err := c.checkCopies(); err != nil {
		return err
	}
	if err := c.checkVolumes(); err != nil {
		return err
	}
	sockets := []string{c.Handoff}
	if c.API.unix() {
		sockets = append(sockets, c.API.Listen)
	} else if err := c.API.checkTCP(); err != nil {
		return err
	}
	for _, s := range sockets {
		if len(s) > maxSocketPath {
			return snapferry.Errorf(snapferry.Invalid, "the path of the socket %s has %d bytes, more than the %d the system allows", s, len(s), maxSocketPath).
				WithHint("choose a shorter directory")
		}
	}
	return c.checkNames()
}

// checkTCP refuses to take tokens in the clear over a network.
func (c apiConfig) checkTCP() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return snapferry.Errorf(snapferry.Invalid, "api.listen %q is neither the path of a socket nor host:port", c.Listen)
	}
	if (c.Certificate == "") != (c.Key == "") {
		return snapferry.Errorf(snapferry.Invalid, "api.certificate and api.key are given together or not at all")
	}
	ip := net.ParseIP(host)
	if c.Certificate == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return snapferry.Errorf(snapferry.Invalid, "api.listen %s would take tokens over the network without TLS", c.Listen).
			WithHint("give api.certificate and api.key, or listen on 127.0.0.1 or a unix socket")
	}
	return nil
}

func (c *serverConfig) checkNames() error {
	seen := map[string]bool{string(c.Name): true}
	for _, p := range c.Peers {
		if _, err := snapferry.ParseRegionName(string(p.Name)); err != nil {
			return err
		}
		if _, _, err := net.SplitHostPort(p.Address); err != nil {
			return snapferry.Errorf(snapferry.Invalid, "the address %q of peer %s is not host:port", p.Address, p.Name)
		}
		if seen[string(p.Name)] {
			return snapferry.Errorf(snapferry.Invalid, "region %s stands in the peers twice, or is this region", p.Name)
		}
		seen[string(p.Name)] = true
	}
	if len(c.Accounts) == 0 {
		return snapferry.Errorf(snapferry.Invalid, "accounts is missing: nobody could use the region")
	}
	seen = map[string]bool{}
	for _, x := range c.Accounts {
		if x.Name == "" || len(x.Name) > 64 || seen[x.Name] {
			return snapferry.Errorf(snapferry.Invalid, "account %q: a name has 1 to 64 bytes and stands there once", x.Name)
		}
		seen[x.Name] = true
		if (x.TokenHash == "") == (x.TokenFile == "") {
			return snapferry.Errorf(snapferry.Invalid, "account %s: give one of token_hash and token_file", x.Name)
		}
	}
	return nil
}

func (c *serverConfig) level() (slog.Level, error) {
	var l slog.Level
	if c.Log == "" {
		return l, nil
	}
	if err := l.UnmarshalText([]byte(c.Log)); err != nil {
		return l, snapferry.Errorf(snapferry.Invalid, "unknown log level %q", c.Log).WithHint("use debug, info, warn or error")
	}
	return l, nil
}

const minToken = 16 // bytes

// hash is how the account's token is kept.
func (x accountConfig) hash() (string, error) {
	if x.TokenHash != "" {
		if len(x.TokenHash) != 64 || strings.Trim(x.TokenHash, "0123456789abcdef") != "" {
			return "", snapferry.Errorf(snapferry.Invalid, "account %s: token_hash is not a SHA-256 in lower-case hexadecimal", x.Name)
		}
		return x.TokenHash, nil
	}
	p, err := os.ReadFile(x.TokenFile)
	if err != nil {
		return "", fileError("read token", x.TokenFile, err)
	}
	token := string(bytes.TrimSpace(p))
	if len(token) < minToken {
		return "", snapferry.Errorf(snapferry.Invalid, "account %s: the token in %s is shorter than %d bytes", x.Name, x.TokenFile, minToken)
	}
	return control.HashToken(token), nil
}
