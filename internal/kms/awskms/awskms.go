// Package awskms is the driver of master keys in the AWS Key Management Service:
// symmetric keys (SYMMETRIC_DEFAULT) that never leave it. A data key is made with
// GenerateDataKey, opened with Decrypt and wrapped again with ReEncrypt, so wrapping
// it again shows it to nobody. The place of a data key is its encryption context,
// without which the service does not open it:
//
//	snapferry:account  the account's id
//	snapferry:chain    the chain's id, 32 hexadecimal digits
//	snapferry:region   the region's name
//
// Policies can demand it and AWS CloudTrail shows it with each call: it is not
// secret. What is stored is the service's CiphertextBlob as it came; it names the
// key material that made it.
//
// A key is named by its id or its ARN. An alias is resolved by Describe only: it
// can be pointed at another key, and what the first one wrapped would then not
// open any more.
//
// The plain data key comes in the body of an answer. The driver clears the slice
// that the SDK decodes it into; the buffers of the connection and of the SDK's
// decoder are out of its reach.
package awskms

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/snapferry/snapferry"
	keys "github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/seal"
)

const (
	defaultAttempts = 8
	defaultBackoff  = 2 * time.Second
	defaultAttempt  = 4 * time.Second
	defaultPoll     = time.Second
	defaultLimit    = 32

	requestTime = 30 * time.Second // of one call with its further attempts, when the caller sets no deadline

	maxName    = 2048 // bytes of a key's name, of the service
	maxWrapped = 6144 // bytes of a CiphertextBlob, of the service
)

// Config says which key management service is used, and as whom. Zero values are
// the defaults.
type Config struct {
	Region string // of AWS, such as eu-central-1
	// Endpoint is https:// and a host, "" for the region's own. It may be http for an
	// address of this machine only: data keys come back in the clear inside TLS.
	Endpoint string
	// Credentials is whose requests they are: Static, Chain, or another provider. It
	// must be safe for concurrent use; what it gives is kept until it expires.
	Credentials aws.CredentialsProvider
	// HTTPClient sends the requests; nil for one of the driver's own, which trusts the
	// authorities of the system and uses no proxy. The driver copies it, follows no
	// redirects and sets its Timeout to AttemptTime.
	HTTPClient  *http.Client
	AttemptTime time.Duration // of one attempt; 0 means 4 s
	Attempts    int           // of one request at most; 0 means 8
	// MaxBackoff is the longest wait between two attempts; 0 means 2 s. A wait is
	// random, its bound doubles with each attempt.
	MaxBackoff time.Duration
	// Poll is how often a rotation that has begun is looked at; 0 means 1 s.
	Poll  time.Duration
	Limit int          // of calls at once, others wait; 0 means 32
	Log   *slog.Logger // nil for none
}

// Driver is a kms.Driver over the AWS Key Management Service. It is safe for
// concurrent use.
type Driver struct {
	cfg    Config
	client *kms.Client
	http   *http.Client
	retry  *retry.Standard
	slots  chan struct{} // one for each call at once
	where  string        // for messages
}

var (
	_ keys.Driver  = (*Driver)(nil)
	_ keys.Rotator = (*Driver)(nil)
)

// New returns a driver. It sends nothing. The error is Invalid when the
// configuration is wrong.
func New(cfg Config) (*Driver, error) {
	cfg.fill()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Credentials == nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "there are no credentials for the key service of AWS")
	}
	d := &Driver{cfg: cfg, http: client(cfg), slots: make(chan struct{}, cfg.Limit), where: "the key service of AWS in " + cfg.Region}
	if cfg.Endpoint != "" {
		d.where = "the key service at " + cfg.Endpoint
	}
	d.retry = retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff = cfg.Attempts, cfg.MaxBackoff
		o.RateLimiter = ratelimit.None // the number of calls at once bounds further attempts
		o.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(isHopeless)}, o.Retryables...)
		o.Retryables = append(o.Retryables, retry.IsErrorRetryableFunc(mayPass))
	})
	o := kms.Options{
		Region: cfg.Region, HTTPClient: limited{d.http}, Retryer: d.retry, Logger: sdkLog{cfg.Log},
		Credentials: aws.NewCredentialsCache(tagged{cfg.Credentials}),
	}
	if cfg.Endpoint != "" {
		o.BaseEndpoint = aws.String(cfg.Endpoint)
	}
	d.client = kms.New(o)
	return d, nil
}

func (cfg *Config) fill() {
	if cfg.AttemptTime <= 0 {
		cfg.AttemptTime = defaultAttempt
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = defaultAttempts
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = defaultBackoff
	}
	if cfg.Poll <= 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Limit <= 0 {
		cfg.Limit = defaultLimit
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

var regionName = regexp.MustCompile(`^[a-z]{2,}(-[a-z0-9]+)+$`)

// Check says what is wrong with the region and the endpoint, by the names of the
// fields in lower case. It sends nothing. The error is Invalid.
func (cfg Config) Check() error {
	if len(cfg.Region) > 63 || !regionName.MatchString(cfg.Region) {
		return snapferry.Errorf(snapferry.Invalid, "region %.80q is not a region of AWS", cfg.Region).WithHint("it looks like eu-central-1")
	}
	if cfg.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return snapferry.Errorf(snapferry.Invalid, "endpoint %.300q is not the address of a key service", cfg.Endpoint).
			WithHint("it looks like https://kms.eu-central-1.amazonaws.com")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && (err != nil || !ip.IsLoopback()) {
		return snapferry.Errorf(snapferry.Invalid, "endpoint %s is not https, and data keys come from there", cfg.Endpoint)
	}
	return nil
}

// Close ends connections that are idle. The driver can still be used.
func (d *Driver) Close() error {
	d.http.CloseIdleConnections()
	return nil
}

// encryptionContext is the place of a data key as the service binds it.
func encryptionContext(c seal.Context) (map[string]string, error) {
	if _, err := c.Bytes(); err != nil {
		return nil, err
	}
	return map[string]string{
		"snapferry:account": string(c.Account),
		"snapferry:chain":   c.Chain.String(),
		"snapferry:region":  string(c.Region),
	}, nil
}

// named refuses what cannot be a key that wraps.
func named(key string) error {
	switch {
	case key == "" || len(key) > maxName:
		return snapferry.Errorf(snapferry.KeyUnusable, "a key's name of %d bytes is none of AWS", len(key))
	case isAlias(key):
		return snapferry.Errorf(snapferry.Invalid, "%s is an alias, which can be pointed at another key", key).
			WithHint("name the key itself, by its id or ARN")
	}
	return nil
}

// isAlias reports whether a key is named by an alias or the ARN of one.
func isAlias(key string) bool {
	if arn, ok := strings.CutPrefix(key, "arn:"); ok {
		part := strings.SplitN(arn, ":", 5)
		key = part[len(part)-1]
	}
	return strings.HasPrefix(key, "alias/")
}

// isKey reports whether the service's name of a key is that of the key that was
// asked for. What an alias is resolved to cannot be known.
func isKey(answered *string, key string) bool {
	a := aws.ToString(answered)
	switch {
	case a == "" || isAlias(a):
		return false
	case isAlias(key):
		return true
	case strings.HasPrefix(a, "arn:") == strings.HasPrefix(key, "arn:"):
		return a == key
	case strings.HasPrefix(a, "arn:"):
		return strings.HasSuffix(a, ":key/"+key)
	}
	return strings.HasSuffix(key, ":key/"+a) // the service answers with an id to some questions
}

// another is the error of an answer that names another key.
func (d *Driver) another(key string, answered *string) error {
	return snapferry.Errorf(snapferry.Corrupt, "%s answers for key %.300q, not for %s", d.where, aws.ToString(answered), key)
}

// whole refuses a wrapped data key that cannot be one.
func whole(wrapped []byte) error {
	if len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return snapferry.Errorf(snapferry.Corrupt, "a wrapped data key of %d bytes", len(wrapped))
	}
	return nil
}

// take appends the plain data key of an answer to dst and clears the answer.
func (d *Driver) take(dst, plain []byte) ([]byte, error) {
	defer clear(plain)
	if len(plain) != seal.KeySize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s gave a data key of %d bytes, not %d", d.where, len(plain), seal.KeySize)
	}
	return append(dst, plain...), nil
}

// NewDataKey implements kms.Driver.
func (d *Driver) NewDataKey(ctx context.Context, key string, dst []byte, c seal.Context) (plain, wrapped []byte, err error) {
	if err := named(key); err != nil {
		return nil, nil, err
	}
	bound, err := encryptionContext(c)
	if err != nil {
		return nil, nil, err
	}
	var out *kms.GenerateDataKeyOutput
	err = d.do(ctx, func(ctx context.Context, use func(*kms.Options)) (err error) {
		out, err = d.client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256, EncryptionContext: bound}, use)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer clear(out.Plaintext)
	if !isKey(out.KeyId, key) {
		return nil, nil, d.another(key, out.KeyId)
	}
	if err := whole(out.CiphertextBlob); err != nil {
		return nil, nil, err
	}
	if plain, err = d.take(dst, out.Plaintext); err != nil {
		return nil, nil, err
	}
	return plain, out.CiphertextBlob, nil
}

// Unwrap implements kms.Driver.
func (d *Driver) Unwrap(ctx context.Context, key string, dst, wrapped []byte, c seal.Context) ([]byte, error) {
	if err := named(key); err != nil {
		return nil, err
	}
	if err := whole(wrapped); err != nil {
		return nil, err
	}
	bound, err := encryptionContext(c)
	if err != nil {
		return nil, err
	}
	var out *kms.DecryptOutput
	err = d.do(ctx, func(ctx context.Context, use func(*kms.Options)) (err error) {
		out, err = d.client.Decrypt(ctx, &kms.DecryptInput{KeyId: &key, CiphertextBlob: wrapped, EncryptionContext: bound}, use)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer clear(out.Plaintext)
	if !isKey(out.KeyId, key) {
		return nil, d.another(key, out.KeyId)
	}
	return d.take(dst, out.Plaintext)
}

// Rewrap implements kms.Driver.
func (d *Driver) Rewrap(ctx context.Context, key string, wrapped []byte, c seal.Context) ([]byte, error) {
	if err := named(key); err != nil {
		return nil, err
	}
	if err := whole(wrapped); err != nil {
		return nil, err
	}
	bound, err := encryptionContext(c)
	if err != nil {
		return nil, err
	}
	var out *kms.ReEncryptOutput
	err = d.do(ctx, func(ctx context.Context, use func(*kms.Options)) (err error) {
		out, err = d.client.ReEncrypt(ctx, &kms.ReEncryptInput{
			SourceKeyId: &key, SourceEncryptionContext: bound, CiphertextBlob: wrapped,
			DestinationKeyId: &key, DestinationEncryptionContext: bound,
		}, use)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, answered := range []*string{out.SourceKeyId, out.KeyId} {
		if !isKey(answered, key) {
			return nil, d.another(key, answered)
		}
	}
	return out.CiphertextBlob, whole(out.CiphertextBlob)
}

// Describe implements kms.Driver. key may be an alias. A key that cannot encrypt,
// or not symmetrically, is not usable.
func (d *Driver) Describe(ctx context.Context, key string) (keys.Description, error) {
	if key == "" || len(key) > maxName {
		return keys.Description{}, snapferry.Errorf(snapferry.NotFound, "a key's name of %d bytes is none of AWS", len(key))
	}
	var out *kms.DescribeKeyOutput
	err := d.do(ctx, func(ctx context.Context, use func(*kms.Options)) (err error) {
		out, err = d.client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}, use)
		return err
	})
	if neverWas(err) {
		return keys.Description{}, &snapferry.Error{Kind: snapferry.NotFound, Message: err.Error(), Hint: snapferry.HintOf(err), Cause: err}
	}
	if err != nil {
		return keys.Description{}, err
	}
	m := out.KeyMetadata
	if m == nil || !isKey(m.Arn, key) && !isKey(m.KeyId, key) || !strings.HasPrefix(aws.ToString(m.Arn), "arn:") {
		var answered *string
		if m != nil {
			answered = m.Arn
		}
		return keys.Description{}, d.another(key, answered)
	}
	return describe(m), nil
}

func describe(m *types.KeyMetadata) keys.Description {
	about := keys.Description{Name: aws.ToString(m.Arn)}
	switch {
	case m.KeyState != types.KeyStateEnabled:
		about.State = string(m.KeyState)
		if about.State == "" {
			about.State = "of no state"
		}
	case m.KeyUsage != types.KeyUsageTypeEncryptDecrypt:
		about.State = "KeyUsage " + string(m.KeyUsage)
	case m.KeySpec != types.KeySpecSymmetricDefault:
		about.State = "KeySpec " + string(m.KeySpec)
	default:
		about.Usable = true
	}
	return about
}

// Health implements kms.Driver: it has the service make a random byte, which
// proves the credentials and that the service works, and opens nothing. The caller
// needs kms:GenerateRandom.
func (d *Driver) Health(ctx context.Context) error {
	return d.do(ctx, func(ctx context.Context, use func(*kms.Options)) error {
		_, err := d.client.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1)}, use)
		return err
	})
}

// Rotate implements kms.Rotator: it has the service make new key material and
// waits until that is in use, because before that the older one still wraps. A
// rotation that is under way is waited for. When ctx ends first, the rotation goes
// on; Rotate again waits for it. The error is Full when the key was rotated on
// demand as often as the service allows, Conflict when it is about to be rotated
// by its schedule.
func (d *Driver) Rotate(ctx context.Context, key string) error {
	if err := named(key); err != nil {
		return err
	}
	const full = "LimitExceededException"
	var out *kms.RotateKeyOnDemandOutput
	err := d.try(ctx, &call{Standard: d.retry, final: full}, func(ctx context.Context, use func(*kms.Options)) (err error) {
		out, err = d.client.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &key}, use)
		return err
	})
	conflict := snapferry.IsKind(err, snapferry.Conflict)
	switch {
	case codeOf(err) == full:
		return &snapferry.Error{Kind: snapferry.Full, Message: err.Error(), Cause: err, Hint: "make a new key in AWS, or let the key rotate by its schedule"}
	case err != nil && !conflict:
		return err
	case err == nil && !isKey(out.KeyId, key):
		return d.another(key, out.KeyId)
	}
	for first := true; ; first = false {
		rotating, werr := d.rotating(ctx, key)
		switch {
		case werr != nil:
			return werr
		case !rotating && first && conflict:
			return err
		case !rotating:
			return nil
		}
		select {
		case <-time.After(d.cfg.Poll):
		case <-ctx.Done():
			return ended(ctx, "wait for the rotation of key "+key+", which has begun", nil)
		}
	}
}

// rotating reports whether a rotation on demand is under way.
func (d *Driver) rotating(ctx context.Context, key string) (bool, error) {
	var out *kms.GetKeyRotationStatusOutput
	err := d.do(ctx, func(ctx context.Context, use func(*kms.Options)) (err error) {
		out, err = d.client.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &key}, use)
		return err
	})
	switch {
	case err != nil:
		return false, snapferry.Errorf(snapferry.KindOf(err), "look at the rotation of key %s, which was asked for: %w", key, err)
	case out.KeyId != nil && !isKey(out.KeyId, key): // it was not always in the answer
		return false, d.another(key, out.KeyId)
	}
	return out.OnDemandRotationStartDate != nil, nil
}

// client returns the HTTP client of a driver.
func client(cfg Config) *http.Client {
	var c http.Client
	if cfg.HTTPClient != nil {
		c = *cfg.HTTPClient
	} else {
		c.Transport = &http.Transport{
			DialContext:         (&net.Dialer{Timeout: cfg.AttemptTime, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: cfg.AttemptTime,
			MaxIdleConnsPerHost: cfg.Limit,
			MaxConnsPerHost:     cfg.Limit,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
		}
	}
	c.Timeout = cfg.AttemptTime
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}
