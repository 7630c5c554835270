package main

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/export"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/pki"
)

const (
	defaultCache = 10 << 30
	cachesDir    = "caches"
	volumesDir   = "volumes"
)

// volumes is the directory in which volumes/ and caches/ are.
func (c *serverConfig) volumes() string {
	if c.Volumes != "" {
		return c.Volumes
	}
	return c.Directory
}

// sockets is the directory of the sockets of volumes.
func (c *serverConfig) sockets() string {
	if c.Sockets != "" {
		return c.Sockets
	}
	return filepath.Join(c.Directory, "sockets")
}

func (c *serverConfig) cacheBytes() int64 {
	if c.CacheBytes == nil {
		return defaultCache
	}
	return *c.CacheBytes
}

func (c *serverConfig) checkVolumes() error {
	if n := c.cacheBytes(); n < 0 {
		return snapferry.Errorf(snapferry.Invalid, "cache_bytes of %d is less than 0", n).WithHint("0 keeps nothing that is not in use")
	}
	if c.NBDListen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.NBDListen); err != nil {
		return snapferry.Errorf(snapferry.Invalid, "nbd_listen %q is not host:port", c.NBDListen)
	}
	return nil
}

// openVolumes opens what live volumes need: their files, their caches, and where
// they are served.
func (s *regionServer) openVolumes(id *pki.Identity, ca *x509.CertPool) (v control.VolumeConfig, err error) {
	dir := s.cfg.volumes()
	for _, d := range []string{filepath.Join(dir, volumesDir), s.cfg.sockets()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return v, fileError("make", d, err)
		}
	}
	fs, err := layer.OpenDir(dir)
	if err != nil {
		return v, err
	}
	s.onClose(fs.Close)
	caches, err := head.OpenCaches(fs, cachesDir, s.cfg.cacheBytes(), s.log)
	if err != nil {
		return v, err
	}
	s.onClose(caches.Close)
	c := export.Config{Region: func() export.Region { return s.region }, Sockets: s.cfg.sockets(), Log: s.log}
	if s.cfg.NBDListen != "" {
		if c.Listener, err = net.Listen("tcp", s.cfg.NBDListen); err != nil {
			return v, listenError("nbd_listen", s.cfg.NBDListen, err)
		}
		c.TLS = pki.VolumeServerConfig(id, ca)
		c.Address = reachable(c.Listener.Addr().String())
	}
	exports := export.New(c)
	s.onClose(exports.Close)
	return control.VolumeConfig{FS: fs, Caches: caches, Exporter: exports}, nil
}

// reachable is an address to listen on as one to connect to.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			return net.JoinHostPort(name, port)
		}
	}
	return address
}
