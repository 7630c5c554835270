package export

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/nbd"
)

// acceptAgain is how long accepting waits after it failed, as for want of
// descriptors.
const acceptAgain = 100 * time.Millisecond

// listen accepts connections and has them served until the listener is closed.
// serve takes a connection and serves it in the background, or refuses it.
func (s *Server) listen(l net.Listener, serve func(net.Conn) bool) {
	failing := false
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !failing {
				s.log.Error("accept connections of volumes", "address", l.Addr().String(), "err", err)
			}
			failing = true
			<-time.After(acceptAgain)
			continue
		}
		failing = false
		if !s.admit() {
			conn.Close()
			continue
		}
		if !serve(conn) {
			s.leave()
			conn.Close()
		}
	}
}

// admit counts a connection if there may be one more.
func (s *Server) admit() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count >= s.cfg.Connections {
		if !s.full {
			s.log.Warn("connections of volumes are refused: there are too many", "limit", s.cfg.Connections)
		}
		s.full = true
		return false
	}
	s.full = false
	s.count++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count--
}

// serveSocket serves a connection to the socket of a volume.
func (s *Server) serveSocket(v *volume, conn net.Conn) bool {
	ctx, c := newConnection()
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.stopped {
		c.end()
		return false
	}
	v.users[c] = struct{}{}
	v.work.Go(func() {
		defer s.leave()
		defer c.end()
		s.serve(ctx, conn, &nbd.ServerConfig{Exports: oneVolume{s, v}}, v.export.Socket)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(v.users, c)
	})
	return true
}

// serveTLS serves a connection that may choose among all volumes with TLS.
func (s *Server) serveTLS(conn net.Conn) bool {
	ctx, c := newConnection()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.end()
		return false
	}
	s.all[c] = struct{}{}
	s.accept.Go(func() {
		defer s.leave()
		defer c.end()
		cfg := &nbd.ServerConfig{Exports: allVolumes{s, c}, TLS: s.cfg.TLS, RequireTLS: true}
		s.serve(ctx, conn, cfg, conn.RemoteAddr().String())
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, c)
	})
	return true
}

func newConnection() (context.Context, *connection) {
	ctx, end := context.WithCancel(context.Background())
	return ctx, &connection{end}
}

// serve serves a connection to its end.
func (s *Server) serve(ctx context.Context, conn net.Conn, cfg *nbd.ServerConfig, from string) {
	err := nbd.Serve(ctx, conn, cfg)
	if err == nil {
		return
	}
	if k := snapferry.KindOf(err); k == snapferry.Internal || k == snapferry.Corrupt {
		s.log.Error("a connection to a volume failed", "at", from, "err", err)
		return
	}
	s.log.Warn("a connection to a volume ended early", "at", from, "err", err)
}

// oneVolume is what a unix socket offers: its volume, under its id, its name, and
// as the default export.
type oneVolume struct {
	s *Server
	v *volume
}

// List implements nbd.Exports.
func (x oneVolume) List(context.Context) ([]nbd.ExportInfo, error) {
	return []nbd.ExportInfo{x.v.info(x.v.name)}, nil
}

// Open implements nbd.Exports.
func (x oneVolume) Open(ctx context.Context, name string) (*nbd.Export, error) {
	if name != "" && name != x.v.name && name != string(x.v.id) {
		return nil, noExport(name)
	}
	return x.s.open(ctx, x.v, name)
}

// allVolumes is what the TLS listener offers, to one connection: volumes by id,
// and by name where only one has it.
type allVolumes struct {
	s *Server
	c *connection
}

// List implements nbd.Exports.
func (x allVolumes) List(context.Context) ([]nbd.ExportInfo, error) {
	all := x.s.list(true)
	slices.SortFunc(all, func(a, b nbd.ExportInfo) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Open implements nbd.Exports.
func (x allVolumes) Open(ctx context.Context, name string) (*nbd.Export, error) {
	v, leave, err := x.enter(name)
	if err != nil {
		return nil, err
	}
	e, err := x.s.open(ctx, v, name)
	if err != nil {
		leave()
		return nil, err
	}
	end := e.Close
	e.Close = func() error {
		defer leave()
		return end()
	}
	return e, nil
}

// enter finds a volume and makes the connection one of its users, until leave.
func (x allVolumes) enter(name string) (v *volume, leave func(), err error) {
	s := x.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.volumes {
		switch {
		case !w.export.TLS:
		case string(w.id) == name:
			v, err = w, nil
		case w.name == name && v == nil:
			v = w
		case w.name == name && string(v.id) != name:
			err = snapferry.Errorf(snapferry.Conflict, "several volumes are called %q; use the id", name)
		}
	}
	if v == nil {
		return nil, nil, noExport(name)
	}
	if err != nil {
		return nil, nil, err
	}
	v.users[x.c] = struct{}{}
	v.work.Add(1)
	return v, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(v.users, x.c)
		v.work.Done()
	}, nil
}

func noExport(name string) error {
	return snapferry.Errorf(snapferry.NotFound, "no volume %.40q is exported here", name)
}

// open opens a volume for a connection.
func (s *Server) open(ctx context.Context, v *volume, name string) (*nbd.Export, error) {
	region := s.cfg.Region()
	h, err := region.Live(ctx, v.id)
	if err != nil {
		s.log.Error("a volume cannot be opened for a client", "volume", v.id, "err", err)
		return nil, err
	}
	since, err := region.SnapshotsOfVolume(ctx, v.id)
	if err != nil {
		s.log.Error("the snapshots of a volume cannot be listed for a client", "volume", v.id, "err", err)
		return nil, err
	}
	d := &device{Volume: h, size: h.Size(), id: v.id, region: region, since: since}
	return &nbd.Export{ExportInfo: v.info(name), Device: d, ReadOnly: v.export.ReadOnly, MultiConn: true, Close: d.close}, nil
}
