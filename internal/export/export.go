// Package export serves live volumes to NBD clients: it listens on a unix socket
// for each volume, and on one TCP address with TLS for all that are exported
// that way. What the protocol is, package nbd knows; what a volume is, package
// head.
//
// A connection holds nothing of a volume but what it does right now, so that
// ending an export is to end its connections and to wait for them.
package export

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/head"
	"github.com/snapferry/snapferry/nbd"
)

// Region is what the volumes come from: a *control.Region.
type Region interface {
	Live(ctx context.Context, id snapferry.VolumeID) (*head.Volume, error)
	SnapshotsOfVolume(ctx context.Context, volume snapferry.VolumeID) ([]snapferry.SnapshotID, error)
	ChangedSince(ctx context.Context, volume snapferry.VolumeID, id snapferry.SnapshotID) (*control.Changes, error)
}

// Config says where volumes are served.
type Config struct {
	// Region is asked when a client comes, and so needs not be there before.
	Region func() Region
	// Sockets is the directory of the unix sockets whose path nobody chose.
	Sockets string
	// Listener, if not nil, accepts plain TCP connections, on which clients begin
	// TLS as the protocol has it. New takes it over.
	Listener net.Listener
	TLS      *tls.Config // of those connections; who may come is what it verifies
	Address  string      // host:port under which clients reach Listener
	// Connections is how many there may be at a time; those beyond are closed at
	// once. 0 is 1,000.
	Connections int
	Log         *slog.Logger // nil for none
}

const defaultConnections = 1000

// Server serves the exported volumes of a region. It is safe for concurrent use.
type Server struct {
	cfg    Config
	log    *slog.Logger
	accept sync.WaitGroup // what accepts on Listener, and its connections

	mu      sync.Mutex
	volumes map[snapferry.VolumeID]*volume // that are served; guarded by mu
	count   int                            // connections; guarded by mu
	full    bool                           // the last one was one too many; guarded by mu
	closed  bool                           // guarded by mu
	all     map[*connection]struct{}       // on Listener; guarded by mu
}

// volume is one that is served.
type volume struct {
	id       snapferry.VolumeID
	name     string
	export   snapferry.Export
	listener net.Listener // of its socket; nil: it is served with TLS

	users   map[*connection]struct{} // guarded by Server.mu
	stopped bool                     // guarded by Server.mu
	work    sync.WaitGroup           // what uses it; added to with Server.mu held while it is not stopped
}

// connection is one of a client.
type connection struct{ end context.CancelFunc }

// New returns a server that serves nothing yet.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Connections == 0 {
		c.Connections = defaultConnections
	}
	s := &Server{cfg: c, log: c.Log, volumes: map[snapferry.VolumeID]*volume{}, all: map[*connection]struct{}{}}
	if c.Listener != nil {
		s.accept.Go(func() { s.listen(c.Listener, s.serveTLS) })
	}
	return s
}

// Serve begins to serve a volume and says where. It is Conflict when the volume
// is served already or its socket is in use, Invalid when there can be no such
// socket, and Unsupported when TLS is wanted and not configured.
func (s *Server) Serve(id snapferry.VolumeID, name string, e snapferry.Export) (snapferry.Export, error) {
	v := &volume{id: id, name: name, users: map[*connection]struct{}{}}
	if err := s.place(&e, id); err != nil {
		return e, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return e, snapferry.Errorf(snapferry.Unavailable, "the region is stopping")
	}
	if s.volumes[id] != nil {
		return e, snapferry.Errorf(snapferry.Conflict, "volume %s is served already", id)
	}
	if e.Socket != "" {
		l, err := listenSocket(e.Socket)
		if err != nil {
			return e, err
		}
		v.listener = l
		v.work.Go(func() { s.listen(l, func(conn net.Conn) bool { return s.serveSocket(v, conn) }) })
	}
	v.export, s.volumes[id] = e, v
	s.log.Info("volume exported", "volume", id, "uri", e.URI, "readonly", e.ReadOnly)
	return e, nil
}

// place fills in where an export is.
func (s *Server) place(e *snapferry.Export, id snapferry.VolumeID) error {
	if e.TLS {
		if s.cfg.Listener == nil {
			return snapferry.Errorf(snapferry.Unsupported, "the region serves no volumes over TCP").
				WithHint("set nbd_listen in the region's configuration, or export at a socket")
		}
		u := url.URL{Scheme: "nbds", Host: s.cfg.Address, Path: "/" + string(id)}
		e.Socket, e.URI = "", u.String()
		return nil
	}
	if e.Socket == "" {
		e.Socket = filepath.Join(s.cfg.Sockets, string(id)+".sock")
	}
	u := url.URL{Scheme: "nbd+unix", Path: "/", RawQuery: "socket=" + escapePath(e.Socket)}
	e.URI = u.Scheme + "://" + u.Path + "?" + u.RawQuery
	return checkSocket(e.Socket)
}

// Stop ends the serving of a volume with all its connections, and waits for
// them: requests in work are done or given up within nbd's time of grace. One
// that is not served is no error.
func (s *Server) Stop(id snapferry.VolumeID) error {
	s.mu.Lock()
	v := s.volumes[id]
	delete(s.volumes, id)
	s.mu.Unlock()
	if v == nil {
		return nil
	}
	return s.end(v)
}

// end ends what was served.
func (s *Server) end(v *volume) error {
	s.mu.Lock()
	v.stopped = true
	for c := range v.users {
		c.end()
	}
	s.mu.Unlock()
	var err error
	if v.listener != nil {
		if cerr := v.listener.Close(); cerr != nil {
			err = snapferry.Errorf(snapferry.Unavailable, "close socket %s: %w", v.export.Socket, cerr)
		}
	}
	v.work.Wait()
	s.log.Info("volume no longer exported", "volume", v.id)
	return err
}

// Close ends everything and waits for it.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var volumes []*volume
	for _, v := range s.volumes {
		volumes = append(volumes, v)
	}
	clear(s.volumes)
	for c := range s.all {
		c.end()
	}
	s.mu.Unlock()
	var err error
	if s.cfg.Listener != nil {
		if cerr := s.cfg.Listener.Close(); cerr != nil {
			err = snapferry.Errorf(snapferry.Unavailable, "close %s: %w", s.cfg.Address, cerr)
		}
	}
	for _, v := range volumes {
		if verr := s.end(v); err == nil {
			err = verr
		}
	}
	s.accept.Wait()
	return err
}

var _ control.Exporter = (*Server)(nil)

// list returns what of a kind is served.
func (s *Server) list(tls bool) (all []nbd.ExportInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.volumes {
		if v.export.TLS == tls {
			all = append(all, v.info(string(v.id)))
		}
	}
	return all
}

func (v *volume) info(name string) nbd.ExportInfo {
	return nbd.ExportInfo{Name: name, Description: "Snapferry volume " + v.name + " (" + string(v.id) + ")"}
}
