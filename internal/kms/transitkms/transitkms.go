// Package transitkms is the driver of master keys in the Transit engine of OpenBao
// or HashiCorp Vault. The requests are those of its HTTP API
// (https://openbao.org/api-docs/secret/transit/).
//
// A data key is made here and wrapped with transit/encrypt, with the context it
// belongs to as associated data: that is what binds it. transit/datakey cannot do
// that on Vault, and transit/rewrap on neither, so Rewrap unwraps the key and
// wraps it again. The first data key that a driver makes it also asks back without
// its context; a server that gives it, as those do that are too old to know
// associated data, is refused.
//
// transit/encrypt makes a key of a name that it does not know, when the token may
// do that. So NewDataKey looks first whether the key is there.
//
// A wrapped data key is the engine's ciphertext as it is, "vault:v1:...".
package transitkms

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/kms/kmshttp"
	"github.com/snapferry/snapferry/seal"
)

const (
	defaultMount = "transit"
	maxWrapped   = 1024 // bytes; a wrapped data key has about 90
	maxRedirects = 3
)

// Config says where the engine is, and who asks.
type Config struct {
	// Address is https:// and a host, with a port or without; http:// only for an
	// address of this machine, as of an agent.
	Address   string
	Mount     string // path of the engine; "" for transit
	Namespace string // "" for none
	// Token is what the driver shows the server. TokenFile has it instead: the file
	// is read at the first request, and again when the server refuses the caller,
	// so that an agent can put a new one there.
	Token, TokenFile string
	// RootCAs are the authorities that the server's certificate must be of; nil for
	// the system's. Of no use with an HTTPClient.
	RootCAs    *x509.CertPool
	HTTPClient *http.Client // nil for one of the driver's own, without a proxy
	Log        *slog.Logger // nil for none
}

// Driver is a kms.Driver over a Transit engine.
type Driver struct {
	cfg    Config
	base   string // URL of the API, without a slash at its end
	where  string // for messages
	client *kmshttp.Client
	binds  atomic.Bool // it was seen that the server binds associated data

	mu    sync.Mutex
	token string // guarded by mu; "" when the file was not read yet
}

var (
	_ kms.Driver  = (*Driver)(nil)
	_ kms.Rotator = (*Driver)(nil)
)

// Open returns a driver. It sends nothing and reads no file. The error is Invalid
// when the configuration is wrong.
func Open(cfg Config) (*Driver, error) {
	if cfg.Mount = strings.Trim(cfg.Mount, "/"); cfg.Mount == "" {
		cfg.Mount = defaultMount
	}
	cfg.Namespace = strings.Trim(cfg.Namespace, "/")
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	u, err := cfg.check()
	if err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, base: u.String() + "/v1", where: "the Transit engine " + cfg.Mount + " at " + u.String(), token: cfg.Token}
	d.client = kmshttp.New(kmshttp.Config{Service: d.where, HTTPClient: cfg.HTTPClient, RootCAs: cfg.RootCAs, Redirect: d.redirect, Log: cfg.Log})
	return d, nil
}

var (
	mountPath = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$`)
	keyName   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?$`) // as of the engine
	visible   = regexp.MustCompile(`^[!-~]+$`)
)

// Check says what is wrong with a configuration, by the names of its fields in
// lower case. It looks at no file and sends nothing. The error is Invalid.
func (cfg Config) Check() error {
	if cfg.Mount = strings.Trim(cfg.Mount, "/"); cfg.Mount == "" {
		cfg.Mount = defaultMount
	}
	cfg.Namespace = strings.Trim(cfg.Namespace, "/")
	_, err := cfg.check()
	return err
}

func (cfg Config) check() (*url.URL, error) {
	u, err := kmshttp.ParseAddress("address", cfg.Address)
	if err != nil {
		return nil, err
	}
	switch {
	case !mountPath.MatchString(cfg.Mount):
		return nil, snapferry.Errorf(snapferry.Invalid, "mount %q is not the path of an engine", cfg.Mount)
	case cfg.Namespace != "" && !mountPath.MatchString(cfg.Namespace):
		return nil, snapferry.Errorf(snapferry.Invalid, "namespace %q is not the path of a namespace", cfg.Namespace)
	case (cfg.Token == "") == (cfg.TokenFile == ""):
		return nil, snapferry.Errorf(snapferry.Invalid, "either token or token_file is needed")
	case cfg.Token != "" && !visible.MatchString(cfg.Token):
		return nil, snapferry.Errorf(snapferry.Invalid, "token has a space or another character that no token has")
	}
	return u, nil
}

// Close ends the connections that are idle.
func (d *Driver) Close() { d.client.Close() }

// redirect follows a server that is not the active one, as the engine's own
// clients do, but never to where the data keys could be read on their way.
func (d *Driver) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return snapferry.Errorf(snapferry.Unavailable, "%s sends requests on without an end", d.where)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return snapferry.Errorf(snapferry.Unavailable, "%s sends requests on to an address that is not encrypted", d.where)
	}
	return nil
}

// NewDataKey implements kms.Driver.
func (d *Driver) NewDataKey(ctx context.Context, key string, dst []byte, c seal.Context) (plain, wrapped []byte, err error) {
	info, err := d.Describe(ctx, key)
	switch {
	case snapferry.IsKind(err, snapferry.NotFound):
		return nil, nil, snapferry.Errorf(snapferry.KeyUnusable, "%w", err).WithHint("%s", snapferry.HintOf(err))
	case err != nil:
		return nil, nil, err
	case !info.Usable:
		return nil, nil, snapferry.Errorf(snapferry.KeyUnusable, "key %s cannot wrap data keys: %s", info.Name, info.State)
	}
	n := len(dst)
	plain = append(dst, make([]byte, seal.KeySize)...)
	rand.Read(plain[n:])
	wrapped, err = d.wrap(ctx, key, plain[n:], c)
	if err == nil {
		err = d.proveBinding(ctx, key, wrapped)
	}
	if err != nil {
		clear(plain[n:])
		return nil, nil, err
	}
	return plain, wrapped, nil
}

// Unwrap implements kms.Driver.
func (d *Driver) Unwrap(ctx context.Context, key string, dst, wrapped []byte, c seal.Context) ([]byte, error) {
	aad, err := c.Bytes()
	if err != nil {
		return nil, err
	}
	return d.unwrap(ctx, key, dst, wrapped, aad)
}

// Rewrap implements kms.Driver. The engine cannot do it for a key that is bound
// to a context, so the key is in memory for a moment.
func (d *Driver) Rewrap(ctx context.Context, key string, wrapped []byte, c seal.Context) ([]byte, error) {
	var room [seal.KeySize]byte
	defer clear(room[:])
	plain, err := d.Unwrap(ctx, key, room[:0], wrapped, c)
	if err != nil {
		return nil, err
	}
	return d.wrap(ctx, key, plain, c)
}

// proveBinding asks once whether the server gives a data key without its context.
func (d *Driver) proveBinding(ctx context.Context, key string, wrapped []byte) error {
	if d.binds.Load() {
		return nil
	}
	var room [seal.KeySize]byte
	defer clear(room[:])
	_, err := d.unwrap(ctx, key, room[:0], wrapped, nil)
	switch {
	case snapferry.IsKind(err, snapferry.Corrupt):
		d.binds.Store(true)
		return nil
	case err != nil:
		return err
	}
	return snapferry.Errorf(snapferry.Unsupported, "%s does not bind a data key to its associated data", d.where).
		WithHint("use OpenBao, or a version of Vault that knows associated_data")
}

// base64Of appends the base64 form of p to dst.
func base64Of(dst, p []byte) []byte { return base64.StdEncoding.AppendEncode(dst, p) }

// wrap has a data key encrypted. The body of the request is put together in
// memory that is cleared, so not by encoding/json.
func (d *Driver) wrap(ctx context.Context, key string, plain []byte, c seal.Context) ([]byte, error) {
	aad, err := c.Bytes()
	if err != nil {
		return nil, err
	}
	word := base64Of(make([]byte, 0, base64.StdEncoding.EncodedLen(len(plain))), plain)
	defer clear(word)
	var got struct {
		Data struct {
			Ciphertext string `json:"ciphertext"`
		} `json:"data"`
	}
	err = d.call(ctx, operation{method: http.MethodPost, op: "encrypt", key: key, secret: word, answer: &got, body: func() []byte {
		p := make([]byte, 0, 64+len(word)+base64.StdEncoding.EncodedLen(len(aad)))
		p = append(append(p, `{"plaintext":"`...), word...)
		p = base64Of(append(p, `","associated_data":"`...), aad)
		return append(p, `"}`...)
	}})
	if err != nil {
		return nil, err
	}
	wrapped := []byte(got.Data.Ciphertext)
	if checkWrapped(wrapped) != nil || bytes.Contains(wrapped, word) {
		return nil, snapferry.Errorf(snapferry.Unavailable, "%s answers something that is no wrapped key: it is no Transit engine", d.where)
	}
	return wrapped, nil
}

func (d *Driver) unwrap(ctx context.Context, key string, dst, wrapped, aad []byte) ([]byte, error) {
	if err := checkWrapped(wrapped); err != nil {
		return nil, err
	}
	var got struct {
		Data struct {
			Plaintext []byte `json:"plaintext"`
		} `json:"data"`
	}
	defer func() { clear(got.Data.Plaintext) }()
	err := d.call(ctx, operation{method: http.MethodPost, op: "decrypt", key: key, answer: &got, body: func() []byte {
		p := append([]byte(`{"ciphertext":"`), wrapped...)
		if aad != nil {
			p = base64Of(append(p, `","associated_data":"`...), aad)
		}
		return append(p, `"}`...)
	}})
	if err != nil {
		return nil, err
	}
	if len(got.Data.Plaintext) != seal.KeySize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s unwraps a data key of %d bytes, not %d", d.where, len(got.Data.Plaintext), seal.KeySize)
	}
	return append(dst, got.Data.Plaintext...), nil
}

// checkWrapped refuses what cannot be a ciphertext of the engine, whatever
// version_template its key has: it goes into a request as it is.
func checkWrapped(wrapped []byte) error {
	if len(wrapped) == 0 || len(wrapped) > maxWrapped || !visible.Match(wrapped) || bytes.ContainsAny(wrapped, `"\`) {
		return snapferry.Errorf(snapferry.Corrupt, "a wrapped data key of %d bytes that is none of a Transit engine", len(wrapped))
	}
	return nil
}

// Describe implements kms.Driver.
func (d *Driver) Describe(ctx context.Context, key string) (kms.Description, error) {
	var got struct {
		Data struct {
			Name        string `json:"name"`
			Type        string `json:"type"`
			Derived     bool   `json:"derived"`
			SoftDeleted bool   `json:"soft_deleted"`
			Encrypts    bool   `json:"supports_encryption"`
			Decrypts    bool   `json:"supports_decryption"`
		} `json:"data"`
	}
	k := kms.Description{Name: path.Join(d.cfg.Namespace, d.cfg.Mount, "keys", key)}
	if err := d.call(ctx, operation{method: http.MethodGet, op: "keys", key: key, answer: &got}); err != nil {
		return k, err
	}
	switch {
	case got.Data.Name != key:
		return k, snapferry.Errorf(snapferry.Unavailable, "%s tells of another key than %s: it is no Transit engine", d.where, key)
	case got.Data.SoftDeleted:
		k.State = "soft-deleted"
	case !got.Data.Encrypts || !got.Data.Decrypts || !bindingType(got.Data.Type):
		k.State = "of type " + kmshttp.Text(got.Data.Type) + ", which does not encrypt with associated data"
	case got.Data.Derived:
		k.State = "derived"
	default:
		k.Usable = true
	}
	return k, nil
}

// bindingType reports whether keys of a type encrypt with associated data.
func bindingType(t string) bool {
	switch t {
	case "aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305":
		return true
	}
	return false
}

// Rotate implements kms.Rotator.
func (d *Driver) Rotate(ctx context.Context, key string) error {
	return d.call(ctx, operation{method: http.MethodPost, op: "keys", key: key, after: "/rotate", once: true})
}

// Health implements kms.Driver: the server tells what it knows of the token.
func (d *Driver) Health(ctx context.Context) error {
	var got struct {
		Data json.RawMessage `json:"data"`
	}
	return d.call(ctx, operation{method: http.MethodGet, op: "auth/token/lookup-self", answer: &got})
}
