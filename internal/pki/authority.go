// Package pki is the certificates of regions: a small authority that one
// installation keeps, and the TLS configurations with which its regions know
// each other.
//
// A region's certificate carries its name as the URI snapferry://region/NAME.
// Peers trust exactly the authority they were given (never the system's) and
// exactly the region they expect; host names play no part. Both sides show a
// certificate and speak TLS 1.3.
//
// The authority's key is needed only to issue; it need not be where regions
// run. Keys are ECDSA on P-256, which FIPS mode allows.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// CertFile and KeyFile are the files of an authority in its directory. The
	// first is what every region is given; the second stays where it is.
	CertFile = "ca.pem"
	KeyFile  = "ca.key"

	authorityTTL = 10 * 365 * 24 * time.Hour
	backdate     = 10 * time.Minute // for clocks that differ

	certBlock = "CERTIFICATE"
	keyBlock  = "PRIVATE KEY" // PKCS #8
)

// Authority issues the certificates of an installation's regions.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// NewAuthority makes an authority with a fresh key, valid for ten years. name
// stands in its certificate for people to read. Save keeps it.
func NewAuthority(name string) (*Authority, error) {
	if name == "" || len(name) > 64 {
		return nil, snapferry.Errorf(snapferry.Invalid, "the name of an authority has 1 to 64 bytes, not %d", len(name))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "make the key of an authority: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Snapferry"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityTTL),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "make the certificate of an authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "make the certificate of an authority: %w", err)
	}
	return &Authority{cert: cert, key: key, now: time.Now}, nil
}

// Load reads the authority that Save kept in dir. Errors are of Kind NotFound,
// Denied when the key may not be read, and Corrupt.
func Load(dir string) (*Authority, error) {
	certPEM, err := readFile(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, err
	}
	keyPEM, err := readFile(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s: %w", filepath.Join(dir, CertFile), err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s: %w", filepath.Join(dir, KeyFile), err)
	}
	cert := certs[0]
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s and %s in %s do not belong together", CertFile, KeyFile, dir)
	}
	return &Authority{cert: cert, key: key, now: time.Now}, nil
}

// Save keeps the authority in dir, which it makes when needed, durably and
// readable by its owner only. An authority that is there already is left alone
// and the error is of Kind Exists.
func (a *Authority) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fileError("make", dir, err)
	}
	keyPEM, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	keyFile := filepath.Join(dir, KeyFile)
	if err := writeNew(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, CertFile), a.CertPEM(), 0o644); err != nil {
		return errors.Join(err, os.Remove(keyFile)) // half an authority would stand in the way of the next
	}
	return syncDir(dir)
}

// CertPEM is the authority's certificate: what a region pins.
func (a *Authority) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: a.cert.Raw})
}

// Issue makes a key and a certificate for a region, both PEM. hosts are the DNS
// names and IP addresses it is reached by: for other programs, peers look at
// the region's name alone. The certificate is valid from now for ttl, but not
// longer than the authority. Errors are of Kind Invalid.
func (a *Authority) Issue(region snapferry.RegionName, hosts []string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if _, err := snapferry.ParseRegionName(string(region)); err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: string(region), Organization: []string{"Snapferry"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{subjectURI(uriRegion, string(region))},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return a.issue(template, ttl)
}

// IssueClient makes a key and a certificate, both PEM, for a client of exported
// volumes; it is none of a region. name, of the spelling of a volume's, is for
// people and logs. ttl is as for Issue. Errors are of Kind Invalid.
func (a *Authority) IssueClient(name string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if snapferry.CheckVolumeName(name) != nil {
		return nil, nil, snapferry.Errorf(snapferry.Invalid, "%q is not the name of a client", name).
			WithHint("use 1 to 128 letters, digits, dots, underscores and hyphens, beginning with a letter or digit")
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: []string{"Snapferry"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{subjectURI(uriClient, name)},
	}, ttl)
}

// issue completes and signs a certificate and makes its key.
func (a *Authority) issue(template *x509.Certificate, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	now, name := a.now(), template.Subject.CommonName
	if ttl <= 0 {
		return nil, nil, snapferry.Errorf(snapferry.Invalid, "a certificate cannot be valid for %v", ttl)
	}
	if !now.Before(a.cert.NotAfter) {
		return nil, nil, snapferry.Errorf(snapferry.Invalid, "the authority ended at %s", a.cert.NotAfter.Format(time.RFC3339)).
			WithHint("make a new authority and give its certificate to every region, beside the old one")
	}
	template.NotBefore, template.NotAfter = now.Add(-backdate), now.Add(ttl)
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	template.KeyUsage, template.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, snapferry.Errorf(snapferry.Internal, "make the key of %s: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, snapferry.Errorf(snapferry.Invalid, "make the certificate of %s: %w", name, err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der}), keyPEM, nil
}

// ParseCA reads the certificates of authorities, PEM, as a pool to pin. Two of
// them let an old and a new authority overlap. The error is of Kind Invalid.
func ParseCA(p []byte) (*x509.CertPool, error) {
	certs, err := parseCerts(p)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "read the authority's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		if !c.IsCA {
			return nil, snapferry.Errorf(snapferry.Invalid, "the certificate of %q is not an authority's", c.Subject.CommonName).
				WithHint("give the authority's %s", CertFile)
		}
		pool.AddCert(c)
	}
	return pool, nil
}

// LoadCA is ParseCA of a file.
func LoadCA(file string) (*x509.CertPool, error) {
	p, err := readFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := ParseCA(p)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "%s: %w", file, err)
	}
	return pool, nil
}

func parseCerts(p []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, p = pem.Decode(p); block == nil {
			break
		}
		if block.Type != certBlock {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return certs, nil
}

func parseKey(p []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(p)
	if block == nil || block.Type != keyBlock {
		return nil, errors.New("there is no PEM private key in it")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not an ECDSA key")
	}
	return ec, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

func readFile(name string) ([]byte, error) {
	p, err := os.ReadFile(name)
	if err != nil {
		return nil, fileError("read", name, err)
	}
	return p, nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fileError("open", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fileError("sync", dir, err)
	}
	return nil
}

// writeNew writes a file that must not exist, with durable content; what it
// could not write does not stay behind.
func writeNew(name string, p []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fileError("write", name, err)
	}
	_, err = f.Write(p)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fileError("write", name, err), os.Remove(name))
	}
	return nil
}

func fileError(verb, name string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	kind := snapferry.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = snapferry.NotFound
	case errors.Is(err, fs.ErrExist):
		kind = snapferry.Exists
	case errors.Is(err, fs.ErrPermission):
		kind = snapferry.Denied
	}
	return snapferry.Errorf(kind, "%s %s: %w", verb, name, err)
}
