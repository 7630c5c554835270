package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/api/nativeapi"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/handoff"
	"github.com/snapferry/snapferry/internal/job"
	"github.com/snapferry/snapferry/internal/keystore"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/peer"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/internal/recovery"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/seal"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	stopTimeout   = 3 * time.Second // for requests that run when the server stops
)

// regionServer is a region in this process: its parts, and where it listens.
type regionServer struct {
	cfg     serverConfig
	log     *slog.Logger
	region  *control.Region
	handoff *handoff.Server
	api     service
	peers   service
	clients []*peer.Client
	// catalogue keeps in the bucket what a recovery needs.
	catalogue *recovery.Catalogue
	keys      *keystore.Store
	ring      *seal.KeyringKey
	closers   []func() error // in the order of opening
}

// service is an HTTP server and where it listens.
type service struct {
	listener net.Listener
	server   *http.Server
	requests *sync.RWMutex // shared by those that run
	ended    func()        // nil, or called when all requests have ended
}

// stop ends the service: requests get until ctx ends, and are waited for then.
func (x service) stop(ctx context.Context) error {
	err := x.server.Shutdown(ctx)
	if err != nil {
		err = x.server.Close() // long streams: their clients ask again
	}
	x.requests.Lock()
	if x.ended != nil {
		x.ended()
	}
	return err
}

// known is a handler for whose requests stop waits.
func (x service) known(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !x.requests.TryRLock() {
			w.WriteHeader(http.StatusServiceUnavailable) // it has stopped
			return
		}
		defer x.requests.RUnlock()
		h.ServeHTTP(w, r)
	})
}

// openRegion opens a region's directory and its sockets. Nothing is served
// before serve; close gives everything back, also after serve.
func openRegion(ctx context.Context, cfg serverConfig, log *slog.Logger) (*regionServer, error) {
	s := &regionServer{cfg: cfg, log: log.With("region", string(cfg.Name))}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *regionServer) onClose(fn func() error) { s.closers = append(s.closers, fn) }

func (s *regionServer) open(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Directory, 0o700); err != nil {
		return fileError("make", s.cfg.Directory, err)
	}
	id, ca, err := s.identity()
	if err != nil {
		return err
	}
	// The lock comes first: it keeps a second server out.
	lock, err := lockRegion(s.cfg.Directory)
	if err != nil {
		return err
	}
	s.onClose(lock.Close)
	bucket, err := openBucket(ctx, s.cfg.Bucket.withDefault(s.cfg.Directory), s.log)
	if err != nil {
		return err
	}
	s.onClose(bucket.Close)
	db, err := meta.Open(ctx, meta.Config{Path: filepath.Join(s.cfg.Directory, metadataFile)})
	if err != nil {
		return err
	}
	s.onClose(db.Close)
	row, err := startRegion(ctx, db, bucket, s.cfg.Name)
	if err != nil {
		return err
	}
	if err := ensureAccounts(ctx, db, s.cfg.Accounts); err != nil {
		return err
	}
	if err := s.openKeys(ctx, db, bucket, row); err != nil {
		return err
	}
	check, err := s.assemble(ctx, db, bucket, row, id, ca)
	if err != nil {
		return err
	}
	return s.listen(id, ca, check)
}

// openKeys opens the region's key, and with it the master keys.
func (s *regionServer) openKeys(ctx context.Context, db *meta.DB, bucket *blob.Bucket, row meta.Region) error {
	secret, err := s.cfg.ensureRegionKey(ctx, row.ID, bucket, s.log)
	if err != nil {
		return err
	}
	defer clear(secret)
	dumps, err := seal.NewDumpKey(secret)
	if err != nil {
		return err
	}
	if s.ring, err = seal.NewKeyringKey(secret); err != nil {
		return err
	}
	k, err := seal.NewMetadataKey(secret, row.LookupKey)
	if err != nil {
		return err
	}
	db.SealWith(k)
	s.catalogue = &recovery.Catalogue{DB: db, Bucket: bucket, Key: dumps, Log: s.log}
	drivers, err := s.cfg.Keys.drivers(ctx, s.log)
	if err != nil {
		return err
	}
	s.keys, err = keystore.Open(ctx, keystore.Config{
		Bucket: bucket, DB: db, Region: s.cfg.Name, ID: row.ID, Seal: s.ring, Drivers: drivers, Default: s.cfg.Keys.Default, Keys: s.cfg.Keys.times(), Log: s.log,
	})
	if err != nil {
		return err
	}
	s.onClose(func() error { s.keys.Close(); return nil })
	return nil
}

// identity reads the certificates with which regions know each other.
func (s *regionServer) identity() (*pki.Identity, *x509.CertPool, error) {
	id, err := pki.LoadIdentity(s.cfg.Peer.Certificate, s.cfg.Peer.Key, s.log)
	if err != nil {
		return nil, nil, err
	}
	if id.Region() != s.cfg.Name {
		return nil, nil, snapferry.Errorf(snapferry.Invalid, "%s is the certificate of region %s, not of %s", s.cfg.Peer.Certificate, id.Region(), s.cfg.Name).
			WithHint("make one with: snapferry pki issue %s", s.cfg.Name)
	}
	ca, err := pki.LoadCA(s.cfg.Peer.CA)
	return id, ca, err
}

// ensureAccounts adds the accounts of the configuration that are not there and
// gives those that are the tokens it says.
func ensureAccounts(ctx context.Context, db *meta.DB, accounts []accountConfig) error {
	hashes := make([]string, len(accounts))
	for i, x := range accounts {
		var err error
		if hashes[i], err = x.hash(); err != nil {
			return err
		}
	}
	return db.Update(ctx, func(tx *meta.Tx) error {
		all, err := tx.Accounts()
		if err != nil {
			return err
		}
		have := make(map[string]meta.Account, len(all))
		for _, x := range all {
			have[x.Name] = x
		}
		for i, x := range accounts {
			old, ok := have[x.Name]
			if ok {
				if old.TokenHash != hashes[i] {
					err = tx.SetAccountToken(old.ID, hashes[i])
				}
				if err != nil {
					return err
				}
				continue
			}
			row := meta.Account{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: x.Name}, TokenHash: hashes[i], Created: time.Now()}
			if err := tx.InsertAccount(row); err != nil {
				return err
			}
		}
		return nil
	})
}

// assemble makes the parts of the region and introduces them to each other.
func (s *regionServer) assemble(ctx context.Context, db *meta.DB, bucket *blob.Bucket, row meta.Region, id *pki.Identity, ca *x509.CertPool) (*checker, error) {
	codec, err := s.cfg.codec()
	if err != nil {
		return nil, err
	}
	if len(row.SignKey) != ed25519.PrivateKeySize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "the region's signing key in the metadata has %d bytes", len(row.SignKey))
	}
	sign := ed25519.PrivateKey(row.SignKey)
	v, err := vault.New(vault.Config{
		Bucket: bucket, DB: db, Region: s.cfg.Name, Sign: sign, Codec: codec, Log: s.log, Workers: max(2, runtime.NumCPU()),
		Memory: s.cfg.share(vault.DefaultMemory), Keys: s.keys,
	})
	if err != nil {
		return nil, err
	}
	peers := make(map[snapferry.RegionName]func(string) transfer.Remote, len(s.cfg.Peers))
	for _, p := range s.cfg.Peers {
		c := peer.NewClient(p.Name, p.Address, pki.PeerClientConfig(id, ca, p.Name))
		s.clients = append(s.clients, c)
		peers[p.Name] = c.As
	}
	volumes, err := s.openVolumes(id, ca)
	if err != nil {
		return nil, err
	}
	s.region = control.New(control.Config{
		Name: s.cfg.Name, DB: db, Bucket: bucket, Vault: v, Peers: peers, Version: version, Log: s.log, Volumes: volumes, Keys: s.keys,
		ReclaimGrace: s.cfg.grace(), CompactionRate: s.cfg.CompactionRate, Copies: s.cfg.copies(), Operators: s.cfg.operators(),
		Jobs: job.New(db, job.Config{
			Owner: string(s.cfg.Name) + "/" + incarnationName(row.Incarnation)[len(incarnationPrefix):], Copies: s.cfg.CopiesAtOnce, Log: s.log,
		}),
	})
	public := sign.Public().(ed25519.PublicKey)
	s.log.Info("region opened", "id", row.ID, "incarnation", row.Incarnation, "public_key", hex.EncodeToString(public), "version", version)
	s.catalogue.Chains = v
	// What the metadata does not know stops all reclaiming; it is served all the
	// same.
	if err := v.CheckRecords(ctx); err != nil && !snapferry.IsKind(err, snapferry.Conflict) {
		return nil, err
	} else if err != nil {
		s.log.Error("nothing is reclaimed in this region", "err", err)
	}
	return &checker{db: db, bucket: bucket, vault: v, region: s.cfg.Name, public: public, dumps: s.catalogue.Key, ring: s.ring, keys: s.keys}, nil
}

// listen opens the sockets of the region.
func (s *regionServer) listen(id *pki.Identity, ca *x509.CertPool, check *checker) error {
	var err error
	s.api.requests, s.peers.requests = new(sync.RWMutex), new(sync.RWMutex)
	if s.handoff, err = handoff.New(s.cfg.Handoff, s.log); err != nil {
		return err
	}
	s.onClose(closed(s.handoff))
	if s.api.listener, err = s.listenAPI(); err != nil {
		return err
	}
	s.onClose(closed(s.api.listener))
	s.api.server = &http.Server{
		Handler:           s.api.known(nativeapi.Handler(nativeapi.Config{Region: s.region, Files: s.handoff, Checker: check, Version: version, Log: s.log})),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	plain, err := net.Listen("tcp", s.cfg.Peer.Listen)
	if err != nil {
		return listenError("peer.listen", s.cfg.Peer.Listen, err)
	}
	s.peers.listener = peer.Listener(plain, pki.PeerServerConfig(id, ca))
	s.onClose(closed(plain))
	s.peers.server = &http.Server{
		Handler:           s.peers.known(peer.Handler(control.Host{Region: s.region}, s.log)),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ConnContext: peer.ConnContext,
		// HTTP/1.1 only: a stream has a connection of its own.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return nil
}

func (s *regionServer) listenAPI() (net.Listener, error) {
	if s.cfg.API.unix() {
		return listenUnix(s.cfg.API.Listen)
	}
	l, err := net.Listen("tcp", s.cfg.API.Listen)
	if err != nil {
		return nil, listenError("api.listen", s.cfg.API.Listen, err)
	}
	if s.cfg.API.Certificate == "" {
		return l, nil
	}
	cert, err := tls.LoadX509KeyPair(s.cfg.API.Certificate, s.cfg.API.Key)
	if err != nil {
		return nil, errors.Join(snapferry.Errorf(snapferry.Invalid, "read %s and %s: %w", s.cfg.API.Certificate, s.cfg.API.Key, err), l.Close())
	}
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}), nil
}

// listenUnix listens on a unix socket that only this user can reach. The
// socket of a process that ended is replaced; the lock of the region says that
// there is no other server of this region.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, snapferry.Errorf(snapferry.Conflict, "somebody listens on %s already", path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fileError("replace socket", path, err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, listenError("api.listen", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fileError("protect socket", path, err), l.Close())
	}
	return l, nil
}

func listenError(key, address string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return snapferry.Errorf(snapferry.Unavailable, "%s %s: %w", key, address, err).WithHint("correct %s in the configuration, or end what uses it", key)
}

// closed closes something that its server may have closed already.
func closed(c io.Closer) func() error {
	return func() error {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// serve serves until ctx ends or a part of the region fails, and returns when
// jobs have come to rest. It calls ready when everything is served, volumes too.
func (s *regionServer) serve(outer context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(outer)
	// The region closes its volumes when no request uses them any more.
	work, rest := context.WithCancel(context.WithoutCancel(ctx))
	defer rest()
	s.api.ended = rest
	g.Go(func() error { return s.region.Run(work) })
	g.Go(func() error {
		select {
		case <-s.region.Started():
			ready()
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error { return s.catalogue.Run(ctx) })
	g.Go(func() error { return s.handoff.Serve(ctx) })
	for _, x := range []service{s.api, s.peers} {
		g.Go(func() error {
			if err := x.server.Serve(x.listener); !errors.Is(err, http.ErrServerClosed) {
				return snapferry.Errorf(snapferry.Unavailable, "serve on %s: %w", x.listener.Addr(), err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			return x.stop(stop)
		})
	}
	err := g.Wait()
	stop, cancel := context.WithTimeout(context.WithoutCancel(outer), stopTimeout)
	defer cancel()
	if err := s.catalogue.Finish(stop); err != nil {
		s.log.Warn("the last dump of the metadata could not be written", "err", err)
	}
	if outer.Err() != nil {
		return nil // what the parts say then is that they were stopped
	}
	return err
}

// close gives back what openRegion opened.
func (s *regionServer) close() error {
	for _, c := range s.clients {
		c.Close()
	}
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}
