package azurekms

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// The hosts of the fake service; its certificate has them.
const (
	vaultHost = "region.example.com"
	loginHost = "login.example.com"
	resource  = "https://example.com" // vaults are below it

	tenant   = "33333333-3333-4333-8333-333333333333"
	clientID = "44444444-4444-4444-8444-444444444444"
	secret   = "a secret of the test"

	keyOne     = "master-one"
	keyTwo     = "master-two"
	keyMissing = "master-none"
)

// fakeVersion is a version of a key.
type fakeVersion struct {
	id       string
	private  *rsa.PrivateKey
	enabled  bool
	nbf, exp int64 // Unix time in seconds, or 0
}

// fakeKey is a key of the vault: the last version wraps.
type fakeKey struct {
	kty      string
	ops      []string
	versions []*fakeVersion
	deleted  bool // and can be recovered
}

// fakeVault is a key vault on this machine, behind TLS, and the authority that gives
// out tokens for it. It wraps with real keys and keeps their states.
type fakeVault struct {
	tb     testing.TB
	addr   string
	server *httptest.Server

	mu      sync.Mutex
	keys    map[string]*fakeKey
	tokens  map[string]time.Time // until when they are good
	strict  bool                 // refuse everything with a key that is disabled, not just what needs the private part
	fail    int                  // requests to refuse
	failAs  fault
	deny    bool
	hang    chan struct{}
	hung    chan struct{} // gets one for each request that hangs, as far as it has room
	login   fault         // the authority refuses with that, when it has a status
	spoil   func(op string, out map[string]any) []byte
	after   func(op string) bool // true: do the request, then drop the connection
	ask     string               // another challenge
	asked   int                  // challenges given
	seen    []string             // operations, in order
	granted int                  // tokens
}

// fault is an error in the service's shape.
type fault struct {
	status               int
	code, inner, message string
	wait                 string // Retry-After
}

func (f fault) Error() string { return f.code }

var throttled = fault{status: 429, code: "Throttled", message: "Too many requests."}

// pool has RSA keys, which take long to make.
var pool = sync.OnceValue(func() (keys []*rsa.PrivateKey) {
	for range 4 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys = append(keys, k)
	}
	return keys
})

func newVersion(k *rsa.PrivateKey) *fakeVersion {
	id := make([]byte, 16)
	rand.Read(id)
	return &fakeVersion{id: hex.EncodeToString(id), private: k, enabled: true}
}

func newFake(tb testing.TB) *fakeVault {
	s := &fakeVault{tb: tb, keys: map[string]*fakeKey{}, tokens: map[string]time.Time{}, failAs: throttled, hung: make(chan struct{}, 1)}
	for i, name := range []string{keyOne, keyTwo} {
		s.keys[name] = &fakeKey{kty: "RSA", ops: []string{"wrapKey", "unwrapKey"}, versions: []*fakeVersion{newVersion(pool()[i])}}
	}
	s.start("127.0.0.1:0")
	tb.Cleanup(func() { s.up(); s.stop() })
	return s
}

func (s *fakeVault) start(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.server = httptest.NewUnstartedServer(s)
	s.server.Listener.Close()
	s.server.Listener, s.addr = l, l.Addr().String()
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.server.StartTLS()
}

// stop refuses connections and ends those that are open.
func (s *fakeVault) stop() {
	s.server.Listener.Close()
	s.server.Config.Close()
	s.server.CloseClientConnections()
	s.server = nil
}

func (s *fakeVault) port() string { return s.addr[strings.LastIndexByte(s.addr, ':'):] }

func (s *fakeVault) url() string { return "https://" + vaultHost + s.port() }

// client trusts the service and finds it under any name.
func (s *fakeVault) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(s.server.Certificate())
	t := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.addr)
		},
	}
	s.tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// set changes the service under its lock.
func (s *fakeVault) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// up ends all faults.
func (s *fakeVault) up() {
	s.set(func() {
		s.fail, s.deny, s.spoil, s.after, s.ask, s.login = 0, false, nil, nil, "", fault{}
		if s.hang != nil {
			close(s.hang)
			s.hang = nil
		}
	})
	if s.server == nil {
		s.start(s.addr)
	}
}

// grant makes a token. The caller holds mu.
func (s *fakeVault) grant() string {
	s.granted++
	token := fmt.Sprintf("token-%d-of-the-test", s.granted)
	s.tokens[token] = time.Now().Add(time.Hour)
	return token
}

// credential is one that the vault knows, without an authority.
type credential struct {
	s   *fakeVault
	err error
}

func (c credential) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if c.err != nil {
		return azcore.AccessToken{}, c.err
	}
	if !slices.Equal(o.Scopes, []string{resource + c.s.port() + "/.default"}) || o.TenantID != tenant {
		return azcore.AccessToken{}, fmt.Errorf("a token for %q in tenant %q was asked for", o.Scopes, o.TenantID)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	token := c.s.grant()
	return azcore.AccessToken{Token: token, ExpiresOn: c.s.tokens[token]}, nil
}

// ServeHTTP is the vault or the authority, by the host.
func (s *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return
	}
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		select {
		case s.hung <- struct{}{}:
		default:
		}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if r.Host == loginHost+s.port() {
		s.serveLogin(w, r, body)
		return
	}
	op, out, err := s.request(w, r, body)
	if f, ok := err.(fault); ok {
		if f.wait != "" {
			w.Header().Set("Retry-After", f.wait)
		}
		w.WriteHeader(f.status)
		e := map[string]any{"code": f.code, "message": f.message}
		if f.inner != "" {
			e["innererror"] = map[string]any{"code": f.inner}
		}
		json.NewEncoder(w).Encode(map[string]any{"error": e})
		return
	}
	s.mu.Lock()
	spoil, after := s.spoil, s.after
	s.mu.Unlock()
	if after != nil && after(op) {
		panic(http.ErrAbortHandler)
	}
	if spoil != nil {
		if p := spoil(op, out); p != nil {
			w.Write(p)
			return
		}
	}
	json.NewEncoder(w).Encode(out)
}

func (s *fakeVault) request(w http.ResponseWriter, r *http.Request, body []byte) (op string, out map[string]any, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if until, ok := s.tokens[token]; !ok || time.Now().After(until) {
		s.asked++
		ask := s.ask
		if ask == "" {
			ask = fmt.Sprintf(`Bearer authorization="https://%s/%s", resource="%s"`, loginHost+s.port(), tenant, resource+s.port())
		}
		w.Header().Set("WWW-Authenticate", ask)
		return "", nil, fault{status: 401, code: "Unauthorized", message: "AKV10000: Request is missing a Bearer or PoP token."}
	}
	if r.Host != vaultHost+s.port() {
		return "", nil, fault{status: 404, code: "VaultNotFound"}
	}
	version := r.URL.Query().Get("api-version")
	if !slices.Contains([]string{"7.4", "7.5", "7.6", "2025-07-01"}, version) || len(r.URL.Query()) != 1 {
		return "", nil, fault{status: 400, code: "BadParameter", message: "The specified version (" + version + ") is not recognized."}
	}
	// /keys/NAME[/VERSION[/OPERATION]], /keys/NAME/rotate, /deletedkeys/NAME
	parts := append(strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/"), "", "")
	collection, name, id, op := parts[0], parts[1], parts[2], parts[3]
	if id == "rotate" {
		id, op = "", "rotate"
	}
	if op == "" {
		op = "get"
	}
	if collection == "deletedkeys" {
		op = "getdeleted"
	}
	s.seen = append(s.seen, op)
	if method := map[string]string{"get": "GET", "getdeleted": "GET"}[op]; r.Method != method && (method != "" || r.Method != "POST") {
		return op, nil, fault{status: 405, code: "MethodNotAllowed"}
	}
	if s.fail > 0 {
		s.fail--
		return op, nil, s.failAs
	}
	if s.deny {
		return op, nil, fault{status: 403, code: "Forbidden", inner: "ForbiddenByRbac", message: "Caller is not authorized to perform action on resource."}
	}
	k := s.keys[strings.ToLower(name)]
	if k != nil && op == "getdeleted" && k.deleted {
		return op, map[string]any{"recoveryId": s.url() + "/deletedkeys/" + name, "key": map[string]any{"kid": s.kid(name, k.versions[0])}}, nil
	}
	none := fault{status: 404, code: "KeyNotFound", message: "A key with (name/id) " + name + "/" + id + " was not found in this key vault."}
	if k == nil || k.deleted || op == "getdeleted" {
		return op, nil, none
	}
	v := k.versions[len(k.versions)-1]
	if id != "" {
		i := slices.IndexFunc(k.versions, func(v *fakeVersion) bool { return v.id == id })
		if i < 0 {
			return op, nil, none
		}
		v = k.versions[i]
	}
	out, err = s.operate(op, name, k, v, body)
	return op, out, err
}

func (s *fakeVault) kid(name string, v *fakeVersion) string {
	return s.url() + "/keys/" + strings.ToLower(name) + "/" + v.id
}

func (s *fakeVault) operate(op, name string, k *fakeKey, v *fakeVersion, body []byte) (map[string]any, error) {
	if !v.enabled && (op == "unwrapkey" || s.strict && op != "rotate") {
		return nil, fault{status: 403, code: "Forbidden", inner: "KeyDisabled", message: "Operation " + op + " is not allowed on a disabled key."}
	}
	now := time.Now().Unix()
	if op == "wrapkey" && (v.nbf != 0 && now < v.nbf || v.exp != 0 && now >= v.exp) {
		return nil, fault{status: 403, code: "Forbidden", inner: "KeyExpired", message: "Operation wrapKey is not allowed on an expired key."}
	}
	switch op {
	case "rotate":
		v = newVersion(pool()[(len(k.versions)+1)%4])
		k.versions = append(k.versions, v)
		return s.bundle(name, k, v), nil
	case "get":
		return s.bundle(name, k, v), nil
	case "wrapkey", "unwrapkey":
		var in struct{ Alg, Value string }
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, fault{status: 400, code: "BadParameter", message: "Property has invalid value"}
		}
		p, err := base64.RawURLEncoding.DecodeString(in.Value)
		if err != nil || in.Alg != "RSA-OAEP-256" {
			return nil, fault{status: 400, code: "BadParameter", message: "Property has invalid value"}
		}
		if op == "wrapkey" {
			p, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &v.private.PublicKey, p, nil)
		} else {
			p, err = rsa.DecryptOAEP(sha256.New(), nil, v.private, p, nil)
		}
		if err != nil {
			return nil, fault{status: 400, code: "BadParameter", message: "The parameter is incorrect."}
		}
		return map[string]any{"kid": s.kid(name, v), "value": base64.RawURLEncoding.EncodeToString(p)}, nil
	}
	return nil, fault{status: 404, code: "NotFound"}
}

func (s *fakeVault) bundle(name string, k *fakeKey, v *fakeVersion) map[string]any {
	attributes := map[string]any{"enabled": v.enabled, "created": 1795255200, "updated": 1795255200, "recoveryLevel": "Recoverable+Purgeable"}
	for name, at := range map[string]int64{"nbf": v.nbf, "exp": v.exp} {
		if at != 0 {
			attributes[name] = at
		}
	}
	exponent := big.NewInt(int64(v.private.E)).Bytes()
	return map[string]any{"attributes": attributes, "key": map[string]any{
		"kid": s.kid(name, v), "kty": k.kty, "key_ops": k.ops,
		"n": base64.RawURLEncoding.EncodeToString(v.private.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(exponent),
	}}
}

// serveLogin gives out tokens to an application with a secret.
func (s *fakeVault) serveLogin(w http.ResponseWriter, r *http.Request, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	front := "https://" + r.Host + "/" + tenant
	switch {
	case r.URL.Path == "/"+tenant+"/v2.0/.well-known/openid-configuration":
		json.NewEncoder(w).Encode(map[string]string{
			"token_endpoint": front + "/oauth2/v2.0/token", "authorization_endpoint": front + "/oauth2/v2.0/authorize", "issuer": front + "/v2.0",
		})
	case r.URL.Path == "/"+tenant+"/oauth2/v2.0/token" && r.Method == "POST":
		s.seen = append(s.seen, "token")
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		refuse := s.login
		if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != "client_credentials" || r.PostForm.Get("client_id") != clientID ||
			!slices.Contains(strings.Fields(r.PostForm.Get("scope")), resource+s.port()+"/.default") {
			refuse = fault{status: 400, code: "invalid_request", message: "AADSTS900144: odd form " + fmt.Sprint(slices.Sorted(maps.Keys(r.PostForm)))}
		} else if r.PostForm.Get("client_secret") != secret && refuse.status == 0 {
			refuse = fault{status: 401, code: "invalid_client", message: "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 1"}
		}
		if refuse.status != 0 {
			w.WriteHeader(refuse.status)
			json.NewEncoder(w).Encode(map[string]any{"error": refuse.code, "error_description": refuse.message})
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": 3599, "access_token": s.grant()})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}
