package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
)

// Identity is a region's own certificate and key, read from two files again
// when one of them changed. It is safe for concurrent use.
type Identity struct {
	certFile, keyFile string
	log               *slog.Logger

	mu    sync.Mutex
	cert  *tls.Certificate
	stamp [2]os.FileInfo // of the files, when they were last looked into
}

// LoadIdentity reads a region's certificate and key. When later files cannot
// be read or do not belong together, as halfway through a renewal, the last
// good pair stays in use, and log is told; a nil log is told nothing. Errors
// are of Kind NotFound, Denied and Invalid.
func LoadIdentity(certFile, keyFile string, log *slog.Logger) (*Identity, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	id := &Identity{certFile: certFile, keyFile: keyFile, log: log}
	stamp, err := id.stat()
	if err != nil {
		return nil, err
	}
	if id.cert, err = id.read(); err != nil {
		return nil, err
	}
	id.stamp = stamp
	return id, nil
}

// Region is the region that the certificate names.
func (id *Identity) Region() snapferry.RegionName {
	region, _ := regionOf(id.certificate().Leaf) // was checked when it was read
	return region
}

// Expires is when the certificate ends.
func (id *Identity) Expires() time.Time { return id.certificate().Leaf.NotAfter }

func (id *Identity) stat() (stamp [2]os.FileInfo, err error) {
	for i, name := range []string{id.certFile, id.keyFile} {
		if stamp[i], err = os.Stat(name); err != nil {
			return stamp, fileError("read", name, err)
		}
	}
	return stamp, nil
}

func (id *Identity) read() (*tls.Certificate, error) {
	certPEM, err := readFile(id.certFile)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readFile(id.keyFile)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "read %s and %s: %w", id.certFile, id.keyFile, err)
	}
	if _, err := regionOf(cert.Leaf); err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "%s: %w", id.certFile, err)
	}
	return &cert, nil
}

// certificate returns the pair to show, after a look at the files' stamps.
func (id *Identity) certificate() *tls.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	stamp, err := id.stat()
	if err != nil {
		id.log.Warn("the region's certificate cannot be looked at; the last one stays in use", "err", err)
		return id.cert
	}
	if unchanged(stamp[0], id.stamp[0]) && unchanged(stamp[1], id.stamp[1]) {
		return id.cert
	}
	id.stamp = stamp
	cert, err := id.read()
	if err != nil {
		id.log.Warn("the region's new certificate is of no use; the last one stays in use", "err", err)
		return id.cert
	}
	id.cert = cert
	return cert
}

func unchanged(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// PeerServerConfig is how a region listens to other regions: every caller must
// show a certificate of an authority in ca. Who it is, PeerRegion tells. A
// refused handshake fails here with Kind Denied; the caller sees an alert, which
// Explain puts into words.
func PeerServerConfig(id *Identity, ca *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate(), nil },
		ClientCAs:      ca,
		// The certificate is verified in VerifyConnection, which gives errors
		// of our own.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := verify(s, ca, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// VolumeServerConfig is how a region serves volumes: every caller must show a
// certificate of an authority in ca that is a client's, or a region's. A refused
// handshake fails with Kind Denied.
func VolumeServerConfig(id *Identity, ca *x509.CertPool) *tls.Config {
	c := PeerServerConfig(id, ca)
	c.VerifyConnection = func(s tls.ConnectionState) error {
		leaf, err := verifyChain(s, ca, x509.ExtKeyUsageClientAuth)
		if err != nil {
			return err
		}
		if _, err := subjectOf(leaf, uriClient); err == nil {
			return nil
		}
		_, err = regionOf(leaf)
		return err
	}
	return c
}

// PeerClientConfig is how a region calls the region expect: whoever answers
// must show a certificate of an authority in ca that names it. The handshake
// fails with Kind Denied otherwise.
func PeerClientConfig(id *Identity, ca *x509.CertPool, expect snapferry.RegionName) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.certificate(), nil },
		// Skipped is the check of the host name against the system's
		// authorities; VerifyConnection checks region and authority instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			got, err := verify(s, ca, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if got != expect {
				return snapferry.Errorf(snapferry.Denied, "region %s answers where %s is expected", got, expect).
					WithHint("correct the address of region %s", expect)
			}
			return nil
		},
	}
}

// PeerRegion tells which region is at the other end of a connection that was
// made with one of the configurations of this package. It verifies nothing
// that the handshake has not.
func PeerRegion(s tls.ConnectionState) (snapferry.RegionName, error) {
	if !s.HandshakeComplete || len(s.PeerCertificates) == 0 {
		return "", snapferry.Errorf(snapferry.Denied, "the peer showed no certificate")
	}
	return regionOf(s.PeerCertificates[0])
}

// Explain puts the refusal of our certificate by region peer, which TLS tells
// as a bare alert, into an error of Kind Denied. Other errors are returned as
// they are.
func Explain(peer snapferry.RegionName, err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return snapferry.Errorf(snapferry.Denied, "region %s refused our certificate: %w", peer, err).
			WithHint("see the log of region %s; both certificates must come from one authority and be valid now", peer)
	}
	return err
}

// verify checks the certificate of the other side and returns its region.
func verify(s tls.ConnectionState, ca *x509.CertPool, usage x509.ExtKeyUsage) (snapferry.RegionName, error) {
	leaf, err := verifyChain(s, ca, usage)
	if err != nil {
		return "", err
	}
	return regionOf(leaf)
}

// verifyChain checks that the certificate of the other side is of an authority in
// ca, and returns it.
func verifyChain(s tls.ConnectionState, ca *x509.CertPool, usage x509.ExtKeyUsage) (*x509.Certificate, error) {
	if len(s.PeerCertificates) == 0 {
		return nil, snapferry.Errorf(snapferry.Denied, "the peer showed no certificate")
	}
	leaf := s.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: ca, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return nil, refusal(leaf, err)
	}
	return leaf, nil
}

func refusal(leaf *x509.Certificate, err error) error {
	e := snapferry.Errorf(snapferry.Denied, "the certificate of %q is refused: %w", leaf.Subject.CommonName, err)
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return e.WithHint("issue the certificates of both regions from one authority, or give each region the other's %s too", CertFile)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return e.WithHint("it is valid from %s to %s: issue a new one, or set the clock",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return e
}

const (
	uriScheme = "snapferry"
	// The hosts of the URIs that say whose a certificate is.
	uriRegion = "region"
	uriClient = "client"
)

func subjectURI(kind, name string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: kind, Path: "/" + name}
}

// subjectOf reads the one name of a kind that a certificate has.
func subjectOf(c *x509.Certificate, kind string) (name string, err error) {
	for _, u := range c.URIs {
		if u.Scheme != uriScheme || u.Host != kind {
			continue
		}
		n := strings.TrimPrefix(u.Path, "/")
		if name != "" || n == "" || *u != *subjectURI(kind, n) {
			return "", noName(c, kind)
		}
		name = n
	}
	if name == "" {
		return "", noName(c, kind)
	}
	return name, nil
}

// regionOf reads the one region that a certificate names.
func regionOf(c *x509.Certificate) (snapferry.RegionName, error) {
	name, err := subjectOf(c, uriRegion)
	if err != nil {
		return "", err
	}
	region, err := snapferry.ParseRegionName(name)
	if err != nil {
		return "", noName(c, uriRegion)
	}
	return region, nil
}

func noName(c *x509.Certificate, kind string) error {
	return snapferry.Errorf(snapferry.Denied, "the certificate of %q does not name one %s", c.Subject.CommonName, kind).
		WithHint("issue it with the authority of the installation")
}
