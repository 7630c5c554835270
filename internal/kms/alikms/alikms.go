// Package alikms is the driver of master keys in Alibaba Cloud's Key Management
// Service: API version 2016-01-20, whose requests are signed with
// ACS3-HMAC-SHA256 (https://www.alibabacloud.com/help/en/sdk/product-overview/v3-request-structure-and-signature).
//
// GenerateDataKey makes a data key, and the context it belongs to is its
// EncryptionContext: the service opens it in no other one. ReEncrypt wraps it
// again inside the service; only the shared gateways have that, those of
// kms.REGION.aliyuncs.com and kms-vpc.REGION.aliyuncs.com.
//
// The service finds the master key in the wrapped data key. So Unwrap checks that
// the one it names is the one that was meant. An alias may name another key
// tomorrow; therefore keys are named by their id, or by their ARN.
//
// A wrapped data key is the service's CiphertextBlob as it is, in base64.
package alikms

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/kms/kmshttp"
	"github.com/snapferry/snapferry/seal"
)

const (
	version    = "2016-01-20"
	maxWrapped = 4096 // bytes; a wrapped data key has about 150
	enabled    = "Enabled"
	keySpec    = "AES_256" // of a data key
)

// Config says where the service is, and who asks.
type Config struct {
	// Region is the service's, like cn-hangzhou; it gives the Endpoint when that is
	// "". An Endpoint is https:// and a host, with a port or without; http:// only
	// for an address of this machine.
	Region, Endpoint             string
	AccessKeyID, AccessKeySecret string
	SecurityToken                string // of temporary access keys; "" for none
	// RootCAs are the authorities that the service's certificate must be of; nil for
	// the system's. Of no use with an HTTPClient.
	RootCAs    *x509.CertPool
	HTTPClient *http.Client // nil for one of the driver's own, without a proxy
	Log        *slog.Logger // nil for none
}

// Driver is a kms.Driver over Alibaba Cloud's service.
type Driver struct {
	cfg    Config
	url    *url.URL
	where  string // for messages
	client *kmshttp.Client
}

var (
	_ kms.Driver  = (*Driver)(nil)
	_ kms.Rotator = (*Driver)(nil)
)

// Open returns a driver. It sends nothing. The error is Invalid when the
// configuration is wrong.
func Open(cfg Config) (*Driver, error) {
	u, err := cfg.check()
	if err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, url: u, where: "Alibaba Cloud KMS at " + u.String()}
	d.client = kmshttp.New(kmshttp.Config{Service: d.where, HTTPClient: cfg.HTTPClient, RootCAs: cfg.RootCAs, Log: cfg.Log})
	return d, nil
}

var (
	regionName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	visible    = regexp.MustCompile(`^[!-~]+$`)
	arn        = regexp.MustCompile(`^acs:kms:[a-z0-9-]+:[0-9]+:key/`)
	keyID      = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	base64Text = regexp.MustCompile(`^[A-Za-z0-9+/]+={0,2}$`)
)

// Check says what is wrong with a configuration, by the names of its fields in
// lower case. It sends nothing. The error is Invalid.
func (cfg Config) Check() error {
	_, err := cfg.check()
	return err
}

func (cfg Config) check() (*url.URL, error) {
	if cfg.Endpoint == "" {
		if !regionName.MatchString(cfg.Region) {
			return nil, snapferry.Errorf(snapferry.Invalid, "region %q is none of Alibaba Cloud", cfg.Region).
				WithHint("it looks like cn-hangzhou; or give an endpoint")
		}
		cfg.Endpoint = "https://kms." + cfg.Region + ".aliyuncs.com"
	}
	u, err := kmshttp.ParseAddress("endpoint", cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	switch {
	case !visible.MatchString(cfg.AccessKeyID) || strings.Contains(cfg.AccessKeyID, ","):
		return nil, snapferry.Errorf(snapferry.Invalid, "access_key_id is missing, or has a character that no access key has")
	case !visible.MatchString(cfg.AccessKeySecret):
		return nil, snapferry.Errorf(snapferry.Invalid, "access_key_secret is missing, or has a character that no secret has")
	case cfg.SecurityToken != "" && !visible.MatchString(cfg.SecurityToken):
		return nil, snapferry.Errorf(snapferry.Invalid, "security_token has a character that no token has")
	}
	return u, nil
}

// Close ends the connections that are idle.
func (d *Driver) Close() { d.client.Close() }

// bare returns the id of a key that is named by its id or its ARN.
func bare(key string) (id string, ok bool) {
	id = key[len(arn.FindString(key)):]
	return id, keyID.MatchString(id)
}

// encryptionContext is the context of a data key in the service's form. Its keys
// and values are in the service's logs, and conditions of policies can name them.
func encryptionContext(c seal.Context) (string, error) {
	if _, err := c.Bytes(); err != nil { // it is too long
		return "", err
	}
	p, err := json.Marshal(map[string]string{
		"snapferry-account": string(c.Account), "snapferry-chain": c.Chain.String(), "snapferry-region": string(c.Region),
	})
	return string(p), err
}

// dataKey is an answer that has a data key in it. Whoever has it clears Plaintext.
type dataKey struct {
	KeyID          string `json:"KeyId"`
	CiphertextBlob string
	Plaintext      []byte
}

// take appends the plain data key to dst, and checks that it is one of that
// master key.
func (d *Driver) take(dst []byte, got dataKey, key string) ([]byte, error) {
	if id, _ := bare(key); got.KeyID != id {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s answers for key %q, not for %s", d.where, kmshttp.Text(got.KeyID), id).
			WithHint("the data key was wrapped with another master key")
	}
	if len(got.Plaintext) != seal.KeySize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s gives a data key of %d bytes, not %d", d.where, len(got.Plaintext), seal.KeySize)
	}
	return append(dst, got.Plaintext...), nil
}

// NewDataKey implements kms.Driver.
func (d *Driver) NewDataKey(ctx context.Context, key string, dst []byte, c seal.Context) (plain, wrapped []byte, err error) {
	place, err := encryptionContext(c)
	if err != nil {
		return nil, nil, err
	}
	var got dataKey
	defer func() { clear(got.Plaintext) }()
	err = d.call(ctx, operation{action: "GenerateDataKey", key: key, answer: &got, query: url.Values{
		"KeyId": {key}, "KeySpec": {keySpec}, "EncryptionContext": {place},
	}})
	if err != nil {
		return nil, nil, err
	}
	if err := checkWrapped([]byte(got.CiphertextBlob)); err != nil {
		return nil, nil, snapferry.Errorf(snapferry.Unavailable, "%s answers something that is no wrapped key", d.where)
	}
	if plain, err = d.take(dst, got, key); err != nil {
		return nil, nil, err
	}
	return plain, []byte(got.CiphertextBlob), nil
}

// Unwrap implements kms.Driver.
func (d *Driver) Unwrap(ctx context.Context, key string, dst, wrapped []byte, c seal.Context) ([]byte, error) {
	place, err := encryptionContext(c)
	if err != nil {
		return nil, err
	}
	if err := checkWrapped(wrapped); err != nil {
		return nil, err
	}
	var got dataKey
	defer func() { clear(got.Plaintext) }()
	err = d.call(ctx, operation{action: "Decrypt", key: key, answer: &got, query: url.Values{
		"CiphertextBlob": {string(wrapped)}, "EncryptionContext": {place},
	}})
	if err != nil {
		return nil, d.whose(ctx, key, err)
	}
	return d.take(dst, got, key)
}

// Rewrap implements kms.Driver: the data key does not leave the service.
func (d *Driver) Rewrap(ctx context.Context, key string, wrapped []byte, c seal.Context) ([]byte, error) {
	place, err := encryptionContext(c)
	if err != nil {
		return nil, err
	}
	if err := checkWrapped(wrapped); err != nil {
		return nil, err
	}
	var got dataKey
	err = d.call(ctx, operation{action: "ReEncrypt", key: key, answer: &got, query: url.Values{
		"CiphertextBlob": {string(wrapped)}, "SourceEncryptionContext": {place},
		"DestinationKeyId": {key}, "DestinationEncryptionContext": {place},
	}})
	if err != nil {
		return nil, d.whose(ctx, key, err)
	}
	clear(got.Plaintext) // there is none
	if id, _ := bare(key); got.KeyID != id || checkWrapped([]byte(got.CiphertextBlob)) != nil {
		return nil, snapferry.Errorf(snapferry.Unavailable, "%s answers something that is no key wrapped with %s", d.where, id)
	}
	return []byte(got.CiphertextBlob), nil
}

// whose looks at an error that says that there is no such master key: the service
// reads in the wrapped data key which one it means, so a damaged one may mean any.
func (d *Driver) whose(ctx context.Context, key string, err error) error {
	if codeOf(err) != "Forbidden.KeyNotFound" {
		return err
	}
	if _, derr := d.Describe(ctx, key); derr != nil {
		return err
	}
	return snapferry.Errorf(snapferry.Corrupt, "the wrapped data key is none of key %s: %w", key, err)
}

// checkWrapped refuses what cannot be a CiphertextBlob.
func checkWrapped(wrapped []byte) error {
	if len(wrapped) > maxWrapped || !base64Text.Match(wrapped) {
		return snapferry.Errorf(snapferry.Corrupt, "a wrapped data key of %d bytes that is none of Alibaba Cloud KMS", len(wrapped))
	}
	return nil
}

// Describe implements kms.Driver.
func (d *Driver) Describe(ctx context.Context, key string) (kms.Description, error) {
	var got struct {
		KeyMetadata struct {
			KeyID    string `json:"KeyId"`
			Arn      string
			KeyState string
			KeyUsage string
			KeySpec  string
		}
	}
	k := kms.Description{Name: key}
	if err := d.call(ctx, operation{action: "DescribeKey", key: key, answer: &got, query: url.Values{"KeyId": {key}}}); err != nil {
		return k, err
	}
	m := got.KeyMetadata
	if id, _ := bare(key); m.KeyID != id {
		return k, snapferry.Errorf(snapferry.Unavailable, "%s tells of another key than %s", d.where, id)
	}
	if m.Arn != "" {
		k.Name = kmshttp.Text(m.Arn)
	}
	switch {
	case m.KeyState != enabled:
		k.State = kmshttp.Text(m.KeyState)
		if k.State == "" {
			k.State = "unknown"
		}
	case m.KeyUsage != "ENCRYPT/DECRYPT" || strings.HasPrefix(m.KeySpec, "RSA_") || strings.HasPrefix(m.KeySpec, "EC_"):
		k.State = kmshttp.Text(m.KeyUsage + " of " + m.KeySpec)
	default:
		k.Usable = true
	}
	return k, nil
}

// Rotate implements kms.Rotator. The service makes versions of symmetric keys
// only for keys of a software key management instance, and not often.
func (d *Driver) Rotate(ctx context.Context, key string) error {
	return d.call(ctx, operation{action: "CreateKeyVersion", key: key, query: url.Values{"KeyId": {key}}, once: true})
}

// Health implements kms.Driver: the service tells whether it serves this account.
func (d *Driver) Health(ctx context.Context) error {
	var got struct{ AccountStatus string }
	if err := d.call(ctx, operation{action: "DescribeAccountKmsStatus", answer: &got}); err != nil {
		return err
	}
	if got.AccountStatus != enabled {
		return snapferry.Errorf(snapferry.Denied, "%s does not serve this account: it is %q", d.where, kmshttp.Text(got.AccountStatus)).
			WithHint("enable the service for the account, or pay its bill")
	}
	return nil
}
