// Package azurekms is the driver of master keys in Azure Key Vault: RSA keys that
// never leave it, with versions. A data key is 32 random bytes of this machine,
// wrapped with RSA-OAEP-256 under the newest version.
//
// The service binds nothing to what it wraps. So the driver wraps the place of the
// data key with it, and refuses what comes back with another one:
//
//	32  the data key
//	32  SHA-256 of seal.Context.Bytes
//
// What is stored says which version wrapped, because only that one unwraps:
//
//	1  0x01, of this form
//	1  length n of the version's id, 1 to 64
//	n  the version's id: letters and digits
//	…  what the service gave, 256 to 1024 bytes
//
// A key is named by its name in the vault, or by its identifier without a version,
// https://VAULT/keys/NAME, which is what Describe calls it. Whoever may wrap with a
// key can wrap a key of their own in a place of their choice; that it is the one
// that the chain was made with is what the Keyring proves.
//
// Plain data keys go to the service and come back from it in JSON. The driver clears
// what it has itself and the body of the answer; the buffers of the connection, the
// SDK's request and its decoder are out of its reach.
package azurekms

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/seal"
)

const (
	defaultAttempts   = 8
	defaultBackoff    = 200 * time.Millisecond
	defaultMaxBackoff = 5 * time.Second
	defaultAttempt    = 4 * time.Second
	defaultLimit      = 32

	requestTime = 30 * time.Second // of one call with its further attempts, when the caller sets no deadline

	form       = 1                              // of what is stored
	inside     = seal.KeySize + sha256.Size     // bytes that are wrapped
	minWrapped = 256                            // bytes of RSA with 2,048 bits
	maxWrapped = 1024                           // and with 8,192 bits
	maxVersion = 64                             // bytes of a version's id; those of the service have 32
	healthName = "snapferry-health-no-such-key" // of a key that need not be there
)

// Config says which vault is used, and as whom. Zero values are the defaults.
type Config struct {
	Vault string // https:// and the vault's host, such as https://example.vault.azure.net
	// Credential is whose requests they are: ClientSecret, or another one. It must be
	// safe for concurrent use.
	Credential azcore.TokenCredential
	// HTTPClient sends the requests; nil for one of the driver's own, which trusts the
	// authorities of the system and uses no proxy. The driver copies it and follows no
	// redirects.
	HTTPClient  *http.Client
	AttemptTime time.Duration // of one attempt; 0 means 4 s
	Attempts    int           // of one request at most; 0 means 8
	// Backoff is about the first wait between two attempts, 0 means 200 ms; it grows
	// up to MaxBackoff, 0 means 5 s. The service may ask for another wait; one that is
	// longer than MaxBackoff ends the attempts.
	Backoff, MaxBackoff time.Duration
	Limit               int          // of calls at once, others wait; 0 means 32
	Log                 *slog.Logger // nil for none
}

// Driver is a kms.Driver over a vault of Azure Key Vault. It is safe for concurrent
// use.
type Driver struct {
	cfg    Config
	client *azkeys.Client
	http   *http.Client
	slots  chan struct{} // one for each call at once
	where  string        // for messages
}

var (
	_ kms.Driver  = (*Driver)(nil)
	_ kms.Rotator = (*Driver)(nil)
)

// New returns a driver. It sends nothing. The error is Invalid when the
// configuration is wrong.
func New(cfg Config) (*Driver, error) {
	cfg.fill()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Credential == nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "there are no credentials for the vault %s", cfg.Vault)
	}
	d := &Driver{cfg: cfg, http: httpClient(cfg.HTTPClient, cfg.AttemptTime), slots: make(chan struct{}, cfg.Limit), where: "the vault " + cfg.Vault}
	var err error
	d.client, err = azkeys.NewClient(cfg.Vault, tagged{cfg.Credential}, &azkeys.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: limited{d.http, true},
		Telemetry: policy.TelemetryOptions{Disabled: true},
		Retry: policy.RetryOptions{
			MaxRetries: int32(cfg.Attempts - 1), TryTimeout: cfg.AttemptTime, RetryDelay: cfg.Backoff, MaxRetryDelay: cfg.MaxBackoff,
			ShouldRetry: mayPass,
		},
	}})
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "%s: %w", d.where, err)
	}
	return d, nil
}

func (cfg *Config) fill() {
	cfg.Vault = strings.TrimSuffix(cfg.Vault, "/")
	if cfg.AttemptTime <= 0 {
		cfg.AttemptTime = defaultAttempt
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = defaultAttempts
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = defaultBackoff
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = defaultMaxBackoff
	}
	if cfg.Limit <= 0 {
		cfg.Limit = defaultLimit
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

// Check says what is wrong with the address of the vault. It sends nothing. The
// error is Invalid.
func (cfg Config) Check() error {
	cfg.fill()
	u, err := url.Parse(cfg.Vault)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !strings.Contains(u.Host, ".") {
		return snapferry.Errorf(snapferry.Invalid, "vault %.300q is not the address of a key vault", cfg.Vault).
			WithHint("it looks like https://example.vault.azure.net")
	}
	return nil
}

// Close ends connections that are idle. The driver can still be used.
func (d *Driver) Close() error {
	d.http.CloseIdleConnections()
	return nil
}

var (
	keyName   = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)
	versionID = regexp.MustCompile(`^[0-9A-Za-z]{1,64}$`)
)

// name returns a key's name in the vault. The error is KeyUnusable when it can be
// none of a key there.
func (d *Driver) name(key string) (string, error) {
	name := key
	if strings.Contains(key, ":") {
		host, rest, _ := strings.Cut(key, "/keys/")
		if !strings.EqualFold(host, d.cfg.Vault) {
			return "", snapferry.Errorf(snapferry.KeyUnusable, "key %.300q is not in %s", key, d.where)
		}
		name = rest
	}
	if strings.Contains(name, "/") {
		return "", snapferry.Errorf(snapferry.KeyUnusable, "key %.300q names one version of a key", key).WithHint("name the key without a version")
	}
	if !keyName.MatchString(name) {
		return "", snapferry.Errorf(snapferry.KeyUnusable, "key %.300q has no name of a key vault", key).
			WithHint("a name has 1 to 127 of A-Z a-z 0-9 -")
	}
	return name, nil
}

// version returns the version that the service names in an answer, which must be
// of the key that was asked for.
func (d *Driver) version(name string, kid *azkeys.ID) (string, error) {
	var id string
	if kid != nil {
		id = string(*kid)
	}
	front := d.cfg.Vault + "/keys/" + name + "/"
	if len(id) <= len(front) || !strings.EqualFold(id[:len(front)], front) || !versionID.MatchString(id[len(front):]) {
		return "", snapferry.Errorf(snapferry.Corrupt, "%s answers for key %.300q, not for a version of %s", d.where, id, name)
	}
	return id[len(front):], nil
}

// sum is the place of a data key as it is wrapped with it.
func sum(c seal.Context) ([sha256.Size]byte, error) {
	p, err := c.Bytes()
	return sha256.Sum256(p), err
}

// join makes the stored form.
func join(version string, wrapped []byte) []byte {
	p := append([]byte{form, uint8(len(version))}, version...)
	return append(p, wrapped...)
}

// split reads the stored form. The error is Corrupt, or Unsupported when a newer
// program wrote it.
func split(p []byte) (version string, wrapped []byte, err error) {
	if len(p) > 0 && p[0] > form {
		return "", nil, snapferry.Errorf(snapferry.Unsupported, "a wrapped data key of form %d, which a newer version wrote", p[0])
	}
	bad := snapferry.Errorf(snapferry.Corrupt, "a wrapped data key of %d bytes that is none of a key vault", len(p))
	if len(p) < 2 || p[0] != form || p[1] == 0 || p[1] > maxVersion || len(p) < 2+int(p[1]) {
		return "", nil, bad
	}
	version, wrapped = string(p[2:2+p[1]]), p[2+p[1]:]
	if !versionID.MatchString(version) || len(wrapped) < minWrapped || len(wrapped) > maxWrapped {
		return "", nil, bad
	}
	return version, wrapped, nil
}

// NewDataKey implements kms.Driver.
func (d *Driver) NewDataKey(ctx context.Context, key string, dst []byte, c seal.Context) (plain, wrapped []byte, err error) {
	var room [inside]byte
	defer clear(room[:])
	rand.Read(room[:seal.KeySize])
	if wrapped, err = d.wrap(ctx, key, &room, c); err != nil {
		return nil, nil, err
	}
	return append(dst, room[:seal.KeySize]...), wrapped, nil
}

// wrap wraps the data key at the beginning of room in a place. The service may
// encrypt with a key that is disabled, which it would not open then: so it is
// asked first.
func (d *Driver) wrap(ctx context.Context, key string, room *[inside]byte, c seal.Context) ([]byte, error) {
	name, err := d.name(key)
	if err != nil {
		return nil, err
	}
	place, err := sum(c)
	if err != nil {
		return nil, err
	}
	copy(room[seal.KeySize:], place[:])
	about, version, err := d.newest(ctx, name)
	if err != nil {
		return nil, err
	}
	if !about.Usable {
		return nil, snapferry.Errorf(snapferry.KeyUnusable, "key %s is %s", about.Name, about.State).WithHint("enable the key in Azure, or make a new version of it")
	}
	var out azkeys.WrapKeyResponse
	err = d.do(ctx, "wrap", func(ctx context.Context) (err error) {
		out, err = d.client.WrapKey(ctx, name, version, parameters(room[:]), nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	answered, err := d.version(name, out.KID)
	switch {
	case err != nil:
		return nil, err
	case answered != version:
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s wrapped with version %s of key %s, not with %s", d.where, answered, name, version)
	case len(out.Result) < minWrapped || len(out.Result) > maxWrapped:
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s gave a wrapped data key of %d bytes", d.where, len(out.Result))
	}
	return join(version, out.Result), nil
}

func parameters(value []byte) azkeys.KeyOperationParameters {
	algorithm := azkeys.EncryptionAlgorithmRSAOAEP256
	return azkeys.KeyOperationParameters{Algorithm: &algorithm, Value: value}
}

// Unwrap implements kms.Driver.
func (d *Driver) Unwrap(ctx context.Context, key string, dst, wrapped []byte, c seal.Context) ([]byte, error) {
	name, err := d.name(key)
	if err != nil {
		return nil, err
	}
	place, err := sum(c)
	if err != nil {
		return nil, err
	}
	version, sealed, err := split(wrapped)
	if err != nil {
		return nil, err
	}
	var out azkeys.UnwrapKeyResponse
	err = d.do(ctx, "unwrap", func(ctx context.Context) (err error) {
		out, err = d.client.UnwrapKey(ctx, name, version, parameters(sealed), nil)
		return err
	})
	if isNoKey(err) {
		return nil, d.noVersion(ctx, name, version, err)
	}
	if err != nil {
		return nil, err
	}
	defer clear(out.Result)
	answered, err := d.version(name, out.KID)
	switch {
	case err != nil:
		return nil, err
	case answered != version:
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s unwrapped with version %s of key %s, not with %s", d.where, answered, name, version)
	case len(out.Result) != inside:
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s gave %d bytes for a data key, not %d", d.where, len(out.Result), inside)
	case subtle.ConstantTimeCompare(out.Result[seal.KeySize:], place[:]) != 1:
		return nil, snapferry.Errorf(snapferry.Corrupt, "what version %s of key %s unwraps is not of chain %s", version, name, c.Chain)
	}
	return append(dst, out.Result[:seal.KeySize]...), nil
}

// noVersion tells a key that is gone, the error none, from one that has no such
// version: versions are never deleted alone.
func (d *Driver) noVersion(ctx context.Context, name, version string, none error) error {
	if _, _, err := d.newest(ctx, name); err != nil {
		return none
	}
	return snapferry.Errorf(snapferry.Corrupt, "key %s in %s has no version %s", name, d.where, version).
		WithHint("what it wrapped was changed, or the key was purged and made again under its name")
}

// Rewrap implements kms.Driver: the data key comes here and goes back, because the
// service cannot wrap again what it wrapped.
func (d *Driver) Rewrap(ctx context.Context, key string, wrapped []byte, c seal.Context) ([]byte, error) {
	var room [inside]byte
	defer clear(room[:])
	if _, err := d.Unwrap(ctx, key, room[:0], wrapped, c); err != nil {
		return nil, err
	}
	return d.wrap(ctx, key, &room, c)
}

// newest asks for the newest version of a key.
func (d *Driver) newest(ctx context.Context, name string) (about kms.Description, version string, err error) {
	var out azkeys.GetKeyResponse
	err = d.do(ctx, "get", func(ctx context.Context) (err error) {
		out, err = d.client.GetKey(ctx, name, "", nil)
		return err
	})
	about.Name = d.cfg.Vault + "/keys/" + name
	if code := innerOf(err); code == "KeyDisabled" { // some services do not tell more of such a key
		about.State = "disabled"
		return about, "", nil
	}
	if err != nil {
		return kms.Description{}, "", err
	}
	if out.Key == nil {
		return kms.Description{}, "", snapferry.Errorf(snapferry.Corrupt, "%s answers without the key %s", d.where, name)
	}
	if version, err = d.version(name, out.Key.KID); err != nil {
		return kms.Description{}, "", err
	}
	about.State = state(out.KeyBundle, time.Now())
	about.Usable = about.State == ""
	return about, version, nil
}

// state says why a key cannot wrap, or "".
func state(b azkeys.KeyBundle, now time.Time) string {
	a := b.Attributes
	switch {
	case a == nil || a.Enabled == nil || !*a.Enabled:
		return "disabled"
	case a.NotBefore != nil && now.Before(*a.NotBefore):
		return "not yet valid"
	case a.Expires != nil && !now.Before(*a.Expires):
		return "expired"
	case b.Key.Kty == nil || *b.Key.Kty != azkeys.KeyTypeRSA && *b.Key.Kty != azkeys.KeyTypeRSAHSM:
		return "of another type than RSA"
	}
	for _, op := range []azkeys.KeyOperation{azkeys.KeyOperationWrapKey, azkeys.KeyOperationUnwrapKey} {
		if !slices.ContainsFunc(b.Key.KeyOps, func(o *azkeys.KeyOperation) bool { return o != nil && *o == op }) {
			return "not permitted to " + string(op)
		}
	}
	return ""
}

// Describe implements kms.Driver, with the newest version. A key that was deleted
// and can be recovered is not usable; to tell it from one that never was, the
// caller needs to be allowed to see deleted keys.
func (d *Driver) Describe(ctx context.Context, key string) (kms.Description, error) {
	name, err := d.name(key)
	if err != nil {
		return kms.Description{}, notFound(err)
	}
	about, _, err := d.newest(ctx, name)
	if !isNoKey(err) {
		return about, err
	}
	gone := d.do(ctx, "get", func(ctx context.Context) error {
		_, err := d.client.GetDeletedKey(ctx, name, nil)
		return err
	})
	if gone == nil {
		return kms.Description{Name: d.cfg.Vault + "/keys/" + name, State: "deleted"}, nil
	}
	return kms.Description{}, notFound(err)
}

func notFound(err error) error {
	return &snapferry.Error{Kind: snapferry.NotFound, Message: err.Error(), Hint: snapferry.HintOf(err), Cause: err}
}

// Health implements kms.Driver: it asks for a key that need not be there, which
// proves the credentials. The caller needs to be allowed to get keys of the whole
// vault.
func (d *Driver) Health(ctx context.Context) error {
	_, _, err := d.newest(ctx, healthName)
	if isNoKey(err) {
		return nil
	}
	return err
}

// Rotate implements kms.Rotator: the service makes a new version of the key, which
// wraps from then on. An attempt whose answer was lost may have made one too.
func (d *Driver) Rotate(ctx context.Context, key string) error {
	name, err := d.name(key)
	if err != nil {
		return err
	}
	var out azkeys.RotateKeyResponse
	err = d.do(ctx, "rotate", func(ctx context.Context) (err error) {
		out, err = d.client.RotateKey(ctx, name, nil)
		return err
	})
	if err != nil {
		return err
	}
	if out.Key == nil {
		return snapferry.Errorf(snapferry.Corrupt, "%s answers without the key %s", d.where, name)
	}
	_, err = d.version(name, out.Key.KID)
	return err
}
