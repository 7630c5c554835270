// Package s3blob keeps a bucket's objects in a bucket of an S3 store: AWS, or
// anything that speaks its protocol with conditional writes.
//
// An object is one PUT with "If-None-Match: *", so it is there whole or not at
// all, and its name is taken once. Reads are ranged GETs. Requests that failed
// for a reason that may pass are tried again, within a budget that all
// requests of a driver share.
//
// A PUT whose answer was lost finds its own object when it is tried again.
// Every Put therefore writes a random token in the object's user metadata
// ("x-amz-meta-snapferry-put"), and one that is told that the name is taken
// looks for its token before it reports Exists. So of several that make one
// object at once still exactly one is told that it did, even when all of them
// make the same bytes. A store that does not keep user metadata costs that
// certainty: there an object with the same bytes counts as the Put's own, but
// only after an attempt whose outcome is unknown.
//
// The store must give read-after-write, list-after-write and create-if-absent;
// blob.Bucket.Check proves that it does. Its versioning should be off: deleted
// objects of a versioned bucket keep their space.
package s3blob

import (
	"context"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

const (
	defaultRegion   = "us-east-1" // of stores that do not care
	defaultAttempts = 6
	defaultBackoff  = 5 * time.Second
	defaultTokens   = 500
	defaultStall    = 60 * time.Second
	defaultPart     = 16 << 20
	minPart         = 5 << 20 // of S3; a smaller one is for tests
	maxPrefix       = 256     // bytes; S3 allows 1024 for a whole key
	credentialsTime = 30 * time.Second
)

// Config says which bucket is used, and how. Credentials come from where the
// AWS SDK looks for them (environment, shared files, container and instance
// roles) unless Credentials is set.
type Config struct {
	Bucket   string
	Prefix   string // of all keys, with or without the slash at its end; "" for none
	Region   string // "" for what the SDK finds, else us-east-1 when there is an Endpoint
	Endpoint string // http:// or https:// and a host; "" for AWS
	// PathStyle names the bucket in the path, not in the host's name.
	PathStyle bool
	// CAFile has the certificates (PEM) of authorities to trust instead of the
	// system's.
	CAFile      string
	Credentials *Credentials // for tests; nil for the SDK's chain
	Retry       Retry
	// Stall is how long a connection may be without a byte moving either way
	// before its request fails; 0 means 60 s.
	Stall time.Duration
	// MaxPut is how many bytes the store takes in one PUT; larger objects are
	// uploaded in parts. 0 means that it takes every object.
	MaxPut int64
	// PartSize is the size of such parts in bytes, at least 5 MiB on AWS; 0
	// means 16 MiB.
	PartSize int64
	Log      *slog.Logger // nil for none
}

// Credentials are an access key.
type Credentials struct{ AccessKey, SecretKey string }

// Retry is the budget of further attempts.
type Retry struct {
	// Attempts is how often one request is sent at most; 0 means 6.
	Attempts int
	// MaxBackoff is the longest wait between two attempts; 0 means 5 s. A wait
	// is random, its bound doubles with each attempt.
	MaxBackoff time.Duration
	// Tokens is the size of the bucket from which all further attempts of the
	// driver take 5 tokens (10 after a timeout). They come back when the attempt
	// succeeds; a request that succeeds at once puts one in, and each second ten.
	// While there are too few, requests are sent once. 0 means 500.
	Tokens uint
}

// Driver is a blob.Driver over an S3 bucket. It must not be used after Close.
type Driver struct {
	cfg    Config
	client *s3.Client
	http   *awshttp.BuildableClient
	conns  connections
	retry  *retry.Standard
	where  string // for messages: bucket and endpoint
	who    string // for messages: where the credentials come from
	counts [numKinds]atomic.Int64
	again  atomic.Int64
	read   atomic.Int64
	sent   atomic.Int64
}

var (
	_ blob.Driver     = (*Driver)(nil)
	_ blob.LargeMaker = (*Driver)(nil)
)

// LargeFrom implements blob.LargeMaker: larger objects are uploaded in parts.
func (d *Driver) LargeFrom() int64 { return d.cfg.MaxPut + 1 }

// Open returns a driver for an S3 bucket. It sends nothing to the store. The
// error is Invalid when the configuration is wrong, and Denied when there are
// no credentials.
func Open(ctx context.Context, cfg Config) (*Driver, error) {
	cfg.fill()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, where: cfg.where()}
	d.retry = retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff = cfg.Retry.Attempts, cfg.Retry.MaxBackoff
		o.RateLimiter = newBudget(cfg.Retry.Tokens)
		o.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(isHopeless)}, o.Retryables...)
		o.Retryables = append(o.Retryables, retry.IsErrorRetryableFunc(mayPass))
	})
	opts := []func(*config.LoadOptions) error{config.WithLogger(sdkLog{cfg.Log})}
	if cfg.Region != "" {
		opts = append(opts, config.WithRegion(cfg.Region))
	}
	if c := cfg.Credentials; c != nil {
		opts = append(opts, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey, "")))
	}
	sdk, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "read the AWS configuration: %w", err).
			WithHint("correct the AWS_... variables and the files in ~/.aws of the user that runs this")
	}
	if err := d.authenticate(ctx, sdk); err != nil {
		return nil, err
	}
	if d.http, err = transport(sdk, cfg, &d.conns); err != nil {
		return nil, err
	}
	d.client = s3.NewFromConfig(sdk, d.options)
	if sdk.Region == "" && d.isAWS() {
		return nil, snapferry.Errorf(snapferry.Invalid, "the region of bucket %s is missing", cfg.Bucket).WithHint("give its AWS region as region")
	}
	return d, nil
}

func (cfg *Config) fill() {
	if cfg.Prefix != "" && !strings.HasSuffix(cfg.Prefix, "/") {
		cfg.Prefix += "/"
	}
	if cfg.Retry.Attempts <= 0 {
		cfg.Retry.Attempts = defaultAttempts
	}
	if cfg.Retry.MaxBackoff <= 0 {
		cfg.Retry.MaxBackoff = defaultBackoff
	}
	if cfg.Retry.Tokens == 0 {
		cfg.Retry.Tokens = defaultTokens
	}
	if cfg.Stall <= 0 {
		cfg.Stall = defaultStall
	}
	if cfg.MaxPut == 0 {
		cfg.MaxPut = blob.MaxBody
	}
	if cfg.PartSize == 0 {
		cfg.PartSize = max(minPart, min(defaultPart, cfg.MaxPut))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	keyPrefix  = regexp.MustCompile(`^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*$`)
)

// Check says what is wrong with a configuration, by the names of its fields in
// lower case. It looks at no file and sends nothing. The error is Invalid.
func (cfg Config) Check() error {
	cfg.fill()
	if !bucketName.MatchString(cfg.Bucket) {
		return snapferry.Errorf(snapferry.Invalid, "bucket %q is not the name of an S3 bucket", cfg.Bucket).
			WithHint("a name has 3 to 63 of a-z 0-9 . - and begins and ends with a letter or digit")
	}
	if cfg.MaxPut < 0 || cfg.PartSize < 0 {
		return snapferry.Errorf(snapferry.Invalid, "max_put of %d bytes is not possible", cfg.MaxPut)
	}
	if len(cfg.Prefix) > maxPrefix || !keyPrefix.MatchString(cfg.Prefix) {
		return snapferry.Errorf(snapferry.Invalid, "prefix %.300q is not a prefix of keys", cfg.Prefix).
			WithHint("use letters, digits and . _ - in parts joined by /, at most %d bytes; no part is empty or begins with a dot", maxPrefix)
	}
	if cfg.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return snapferry.Errorf(snapferry.Invalid, "endpoint %q is not the address of an S3 store", cfg.Endpoint).
			WithHint("it looks like https://s3.example.org:9000")
	}
	if cfg.CAFile != "" && u.Scheme != "https" {
		return snapferry.Errorf(snapferry.Invalid, "ca_file is for an https endpoint, not for %s", cfg.Endpoint)
	}
	return nil
}

func (cfg Config) where() string {
	at := cfg.Endpoint
	if at == "" {
		at = "AWS"
	}
	name := cfg.Bucket
	if cfg.Prefix != "" {
		name += "/" + strings.TrimSuffix(cfg.Prefix, "/")
	}
	return "bucket " + name + " at " + at
}

// authenticate gets credentials once, so that what is wrong with them is known
// before the first request.
func (d *Driver) authenticate(ctx context.Context, sdk aws.Config) error {
	ctx, cancel := context.WithTimeout(ctx, credentialsTime)
	defer cancel()
	got, err := sdk.Credentials.Retrieve(ctx)
	if err != nil {
		return snapferry.Errorf(snapferry.Denied, "there are no credentials for %s: %w", d.where, err).
			WithHint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with ~/.aws/credentials, or give the machine a role")
	}
	d.who = got.Source
	if got.AccessKeyID != "" {
		d.who += ", access key " + got.AccessKeyID
	}
	return nil
}

// options completes what the SDK knows of the store.
func (d *Driver) options(o *s3.Options) {
	o.HTTPClient, o.UsePathStyle, o.Retryer = d.http, d.cfg.PathStyle, d.retry
	if d.cfg.Endpoint != "" {
		o.BaseEndpoint = aws.String(d.cfg.Endpoint)
	}
	if o.Region == "" && o.BaseEndpoint != nil {
		o.Region = defaultRegion
	}
	if o.BaseEndpoint != nil {
		// Other stores refuse the checksums that the SDK sends behind a body.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	}
	o.DisableLogOutputChecksumValidationSkipped = true
}

func (d *Driver) isAWS() bool { return d.client.Options().BaseEndpoint == nil }

// Close ends the connections.
func (d *Driver) Close() error {
	d.conns.close()
	return nil
}

// key is the key of an object in the store.
func (d *Driver) key(name string) *string { return aws.String(d.cfg.Prefix + name) }
