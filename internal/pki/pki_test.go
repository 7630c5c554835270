package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
)

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *Authority) pool(t *testing.T) *x509.CertPool {
	t.Helper()
	pool, err := ParseCA(a.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// put keeps a pair as files the way a careful renewal does: by renaming.
func put(t *testing.T, dir string, certPEM, keyPEM []byte) {
	t.Helper()
	for name, p := range map[string][]byte{"region.pem": certPEM, "region.key": keyPEM} {
		if p == nil {
			continue
		}
		tmp := filepath.Join(dir, "new")
		if err := os.WriteFile(tmp, p, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func load(t *testing.T, dir string, log *slog.Logger) *Identity {
	t.Helper()
	id, err := LoadIdentity(filepath.Join(dir, "region.pem"), filepath.Join(dir, "region.key"), log)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (a *Authority) identity(t *testing.T, region snapferry.RegionName) *Identity {
	t.Helper()
	certPEM, keyPEM, err := a.Issue(region, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put(t, dir, certPEM, keyPEM)
	return load(t, dir, nil)
}

// meeting is what the two ends of a handshake found.
type meeting struct {
	caller, answerer       snapferry.RegionName
	serverErr, clientErr   error
	serverState, clientTLS uint16
}

// meet lets a client and a server shake hands and say a byte.
func meet(t *testing.T, server, client *tls.Config) (m meeting) {
	t.Helper()
	a, b := net.Pipe()
	srv, cli := tls.Server(a, server), tls.Client(b, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer a.Close()
		if m.serverErr = srv.HandshakeContext(t.Context()); m.serverErr != nil {
			return
		}
		m.serverState = srv.ConnectionState().Version
		if m.caller, m.serverErr = PeerRegion(srv.ConnectionState()); m.serverErr == nil {
			_, m.serverErr = srv.Write([]byte{1})
		}
	}()
	m.clientErr = func() error {
		if err := cli.HandshakeContext(t.Context()); err != nil {
			return err
		}
		m.clientTLS = cli.ConnectionState().Version
		var err error
		if m.answerer, err = PeerRegion(cli.ConnectionState()); err != nil {
			return err
		}
		_, err = io.ReadFull(cli, make([]byte, 1))
		return err
	}()
	b.Close()
	<-done
	return m
}

func wantDenied(t *testing.T, who string, err error, words ...string) {
	t.Helper()
	if !snapferry.IsKind(err, snapferry.Denied) {
		t.Errorf("%s: got %v, want Denied", who, err)
		return
	}
	text := err.Error() + " | " + snapferry.HintOf(err)
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s: %q does not say %q", who, text, w)
		}
	}
	if snapferry.HintOf(err) == "" {
		t.Errorf("%s: %q has no hint", who, err)
	}
}

func TestPeers(t *testing.T) {
	ca := newAuthority(t)
	east, west := ca.identity(t, "east"), ca.identity(t, "west")
	m := meet(t, PeerServerConfig(east, ca.pool(t)), PeerClientConfig(west, ca.pool(t), "east"))
	if m.serverErr != nil || m.clientErr != nil {
		t.Fatalf("got %v at the server, %v at the client", m.serverErr, m.clientErr)
	}
	if m.caller != "west" || m.answerer != "east" {
		t.Errorf("got caller %q and answerer %q, want west and east", m.caller, m.answerer)
	}
	if m.serverState != tls.VersionTLS13 || m.clientTLS != tls.VersionTLS13 {
		t.Errorf("got TLS %#x and %#x, want 1.3", m.serverState, m.clientTLS)
	}
}

func TestWrongRegion(t *testing.T) {
	ca := newAuthority(t)
	m := meet(t, PeerServerConfig(ca.identity(t, "north"), ca.pool(t)), PeerClientConfig(ca.identity(t, "west"), ca.pool(t), "east"))
	wantDenied(t, "client", m.clientErr, "north", "east", "address")
	if m.serverErr == nil {
		t.Error("the server did not notice")
	}
}

func TestWrongAuthority(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	east, west := ours.identity(t, "east"), ours.identity(t, "west")
	stranger := theirs.identity(t, "west")

	m := meet(t, PeerServerConfig(east, ours.pool(t)), PeerClientConfig(stranger, ours.pool(t), "east"))
	wantDenied(t, "server", m.serverErr, "west", "authority")
	wantDenied(t, "client", Explain("east", m.clientErr), "east", "log")

	m = meet(t, PeerServerConfig(theirs.identity(t, "east"), ours.pool(t)), PeerClientConfig(west, ours.pool(t), "east"))
	wantDenied(t, "client", m.clientErr, "east", "authority")

	// Both authorities pinned, as while one replaces the other.
	both, err := ParseCA(append(ours.CertPEM(), theirs.CertPEM()...))
	if err != nil {
		t.Fatal(err)
	}
	m = meet(t, PeerServerConfig(east, both), PeerClientConfig(stranger, both, "east"))
	if m.serverErr != nil || m.clientErr != nil || m.caller != "west" {
		t.Errorf("with both: got caller %q, %v, %v", m.caller, m.serverErr, m.clientErr)
	}
}

func TestExpired(t *testing.T) {
	ca := newAuthority(t)
	good := ca.identity(t, "west")
	for name, at := range map[string]time.Time{"expired": time.Now().Add(-48 * time.Hour), "not yet valid": time.Now().Add(48 * time.Hour)} {
		t.Run(name, func(t *testing.T) {
			ca.now = func() time.Time { return at }
			bad := ca.identity(t, "east")
			m := meet(t, PeerServerConfig(bad, ca.pool(t)), PeerClientConfig(good, ca.pool(t), "east"))
			wantDenied(t, "client", m.clientErr, "east", "valid from", "clock")
			m = meet(t, PeerServerConfig(good, ca.pool(t)), PeerClientConfig(bad, ca.pool(t), "west"))
			wantDenied(t, "server", m.serverErr, "east", "valid from")
		})
	}
}

func TestStrangers(t *testing.T) {
	ca := newAuthority(t)
	east := PeerServerConfig(ca.identity(t, "east"), ca.pool(t))
	tests := map[string]*tls.Config{
		"no certificate": {InsecureSkipVerify: true},
		"old TLS": func() *tls.Config {
			c := PeerClientConfig(ca.identity(t, "west"), ca.pool(t), "east")
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}(),
		"no region": func() *tls.Config {
			der := ca.sign(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: ca.key}}}
		}(),
		"a client of volumes": ca.volumeClient(t, "backup"),
		"a server's certificate": func() *tls.Config {
			der := ca.sign(t, &x509.Certificate{URIs: []*url.URL{subjectURI(uriRegion, "west")}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: ca.key}}}
		}(),
	}
	for name, client := range tests {
		t.Run(name, func(t *testing.T) {
			if m := meet(t, east, client); m.serverErr == nil {
				t.Errorf("the server let it in as %q", m.caller)
			}
		})
	}
}

// volumeClient is how a client of volumes connects.
func (a *Authority) volumeClient(t *testing.T, name string) *tls.Config {
	t.Helper()
	certPEM, keyPEM, err := a.IssueClient(name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
}

// TestVolumeClients has clients of volumes, and others, come to a region.
func TestVolumeClients(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := VolumeServerConfig(ca.identity(t, "east"), ca.pool(t))
	nameless := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{subjectURI(uriClient, "a"), subjectURI(uriClient, "b")}}
	tests := map[string]struct {
		client *tls.Config
		in     bool
	}{
		"a client":            {ca.volumeClient(t, "backup"), true},
		"a region":            {PeerClientConfig(ca.identity(t, "west"), ca.pool(t), "east"), true},
		"of another":          {other.volumeClient(t, "backup"), false},
		"without certificate": {&tls.Config{InsecureSkipVerify: true}, false},
		"with two names": {&tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{ca.sign(t, nameless)}, PrivateKey: ca.key}},
		}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			ended := make(chan error, 1)
			go func() { ended <- tls.Server(a, server).HandshakeContext(t.Context()) }()
			go func() { // what the server finds is what counts
				c := tls.Client(b, tt.client)
				_, _ = io.Copy(io.Discard, c)
			}()
			if err := <-ended; (err == nil) != tt.in {
				t.Errorf("got %v, want in: %v", err, tt.in)
			}
		})
	}
	for _, bad := range []string{"", "a/b", "ä"} {
		if _, _, err := ca.IssueClient(bad, time.Hour); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("client %q: got %v, want Invalid", bad, err)
		}
	}
}

// sign makes a certificate for the authority's own key, for odd templates.
func (a *Authority) sign(t *testing.T, template *x509.Certificate) []byte {
	t.Helper()
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRegionOf(t *testing.T) {
	tests := []struct {
		uris []string
		want snapferry.RegionName // empty: refused
	}{
		{[]string{"snapferry://region/east"}, "east"},
		{[]string{"https://example.org/", "snapferry://region/east-1"}, "east-1"},
		{nil, ""},
		{[]string{"https://region/east"}, ""},
		{[]string{"snapferry://regions/east"}, ""},
		{[]string{"snapferry://region/"}, ""},
		{[]string{"snapferry://region/East"}, ""},
		{[]string{"snapferry://region//east"}, ""},
		{[]string{"snapferry://region/east/west"}, ""},
		{[]string{"snapferry://region/east?x"}, ""},
		{[]string{"snapferry://region/east#x"}, ""},
		{[]string{"snapferry://user@region/east"}, ""},
		{[]string{"snapferry://region/%65ast"}, ""},
		{[]string{"snapferry://region/east", "snapferry://region/west"}, ""},
		{[]string{"snapferry://region/east", "snapferry://region/east"}, ""},
		{[]string{"snapferry://region/east", "snapferry://region/!"}, ""},
	}
	for _, test := range tests {
		c := &x509.Certificate{}
		for _, s := range test.uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		}
		got, err := regionOf(c)
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%q: got %q, %v, want %q", test.uris, got, err, test.want)
		}
		if err != nil {
			wantDenied(t, strings.Join(test.uris, " "), err)
		}
	}
}

func TestRotation(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	certPEM, keyPEM, err := ca.Issue("east", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, certPEM, keyPEM)
	var log bytes.Buffer
	id := load(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
	if id.Region() != "east" {
		t.Errorf("region: got %q, want east", id.Region())
	}
	first := id.certificate()
	if id.certificate() != first {
		t.Error("the pair is read again without need")
	}

	newCert, newKey, err := ca.Issue("east", nil, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, newCert, nil) // halfway
	if id.certificate() != first {
		t.Error("halfway: the last good pair is not in use")
	}
	if !strings.Contains(log.String(), "of no use") {
		t.Errorf("halfway: the log says %q", log.String())
	}
	log.Reset()
	if id.certificate(); log.Len() > 0 {
		t.Errorf("halfway: told twice: %s", log.String())
	}
	put(t, dir, nil, newKey)
	second := id.certificate()
	if second == first || !id.Expires().After(first.Leaf.NotAfter) {
		t.Error("the new pair is not in use")
	}
	// A peer meets the new one without a restart of the listener.
	m := meet(t, PeerServerConfig(id, ca.pool(t)), PeerClientConfig(ca.identity(t, "west"), ca.pool(t), "east"))
	if m.serverErr != nil || m.clientErr != nil {
		t.Errorf("got %v, %v", m.serverErr, m.clientErr)
	}
	if err := os.Remove(filepath.Join(dir, "region.key")); err != nil {
		t.Fatal(err)
	}
	if id.certificate() != second || !strings.Contains(log.String(), "cannot be looked at") {
		t.Errorf("without key file: log %q", log.String())
	}
}

func TestLoadIdentityRefuses(t *testing.T) {
	ca := newAuthority(t)
	certPEM, keyPEM, err := ca.Issue("east", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := ca.Issue("east", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := encodeKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		cert, key []byte
		kind      snapferry.Kind
	}{
		"no certificate":  {nil, keyPEM, snapferry.NotFound},
		"no key":          {certPEM, nil, snapferry.NotFound},
		"other key":       {certPEM, otherKey, snapferry.Invalid},
		"exchanged":       {keyPEM, certPEM, snapferry.Invalid},
		"the authority's": {ca.CertPEM(), caKey, snapferry.Invalid},
		"empty":           {[]byte{}, []byte{}, snapferry.Invalid},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, test.cert, test.key)
			_, err := LoadIdentity(filepath.Join(dir, "region.pem"), filepath.Join(dir, "region.key"), nil)
			if !snapferry.IsKind(err, test.kind) {
				t.Errorf("got %v, want %v", err, test.kind)
			}
		})
	}
}

func TestSaveAndLoad(t *testing.T) {
	ca := newAuthority(t)
	dir := filepath.Join(t.TempDir(), "authority")
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := newAuthority(t).Save(dir); !snapferry.IsKind(err, snapferry.Exists) {
		t.Errorf("saved over another: got %v, want Exists", err)
	}
	st, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o600 {
		t.Errorf("mode of the key: got %v, want 0600", got)
	}
	again, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(again.CertPEM()), string(ca.CertPEM())); diff != "" {
		t.Errorf("certificate (-got +want):\n%s", diff)
	}
	pool, err := LoadCA(filepath.Join(dir, CertFile))
	if err != nil {
		t.Fatal(err)
	}
	m := meet(t, PeerServerConfig(again.identity(t, "east"), pool), PeerClientConfig(ca.identity(t, "west"), pool, "east"))
	if m.serverErr != nil || m.clientErr != nil {
		t.Errorf("got %v, %v", m.serverErr, m.clientErr)
	}
}

func TestLoadRefuses(t *testing.T) {
	ca := newAuthority(t)
	leafCert, leafKey, err := ca.Issue("east", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := encodeKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		cert, key []byte
		kind      snapferry.Kind
	}{
		"nothing":             {nil, nil, snapferry.NotFound},
		"no key":              {ca.CertPEM(), nil, snapferry.NotFound},
		"garbage":             {[]byte("garbage"), caKey, snapferry.Corrupt},
		"garbage in PEM":      {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), caKey, snapferry.Corrupt},
		"garbage key":         {ca.CertPEM(), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), snapferry.Corrupt},
		"exchanged":           {caKey, ca.CertPEM(), snapferry.Corrupt},
		"other key":           {ca.CertPEM(), leafKey, snapferry.Corrupt},
		"a region's":          {leafCert, leafKey, snapferry.Corrupt},
		"a region's with key": {leafCert, caKey, snapferry.Corrupt},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, p := range map[string][]byte{CertFile: test.cert, KeyFile: test.key} {
				if p == nil {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), p, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Load(dir); !snapferry.IsKind(err, test.kind) {
				t.Errorf("got %v, want %v", err, test.kind)
			}
		})
	}
	if _, err := ParseCA(leafCert); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("a region's certificate as authority: got %v, want Invalid", err)
	}
	if _, err := LoadCA(filepath.Join(t.TempDir(), "none")); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("no file: got %v, want NotFound", err)
	}
}

func TestIssue(t *testing.T) {
	ca := newAuthority(t)
	certPEM, keyPEM, err := ca.Issue("east", []string{"east.example.org", "192.0.2.1", "2001:db8::1"}, 100*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	c := certs[0]
	if !c.NotAfter.Equal(ca.cert.NotAfter) {
		t.Errorf("it ends at %v, the authority at %v", c.NotAfter, ca.cert.NotAfter)
	}
	for _, h := range []string{"east.example.org", "192.0.2.1", "2001:db8::1"} {
		if err := c.VerifyHostname(h); err != nil {
			t.Error(err)
		}
	}
	if c.IsCA {
		t.Error("a region can issue certificates")
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(c.PublicKey.(*ecdsa.PublicKey)) {
		t.Error("key and certificate do not belong together")
	}

	bad := map[string]func() error{
		"region":  func() error { _, _, err := ca.Issue("East!", nil, time.Hour); return err },
		"no time": func() error { _, _, err := ca.Issue("east", nil, 0); return err },
		"host":    func() error { _, _, err := ca.Issue("east", []string{"ä.example.org"}, time.Hour); return err },
		"name":    func() error { _, err := NewAuthority(""); return err },
		"authority ended": func() error {
			ca.now = func() time.Time { return time.Now().Add(2 * authorityTTL) }
			_, _, err := ca.Issue("east", nil, time.Hour)
			return err
		},
	}
	for name, fn := range bad {
		if err := fn(); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
}
