package s3blob

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
)

// kind is a kind of request, as Stats counts them.
type kind uint8

const (
	kindPut kind = iota
	kindGet
	kindHead
	kindList
	kindDelete
	kindPart
	numKinds
)

// Stats says what a driver asked of its store so far.
type Stats struct {
	Put, Get, Head, List, Delete int64 // requests sent, further attempts too
	Part                         int64 // requests of uploads in parts
	Retries                      int64 // how many of all were further attempts
	Sent, Received               int64 // bytes of bodies that arrived
}

// Stats returns what the driver asked of the store so far.
func (d *Driver) Stats() Stats {
	c := func(k kind) int64 { return d.counts[k].Load() }
	return Stats{
		Put: c(kindPut), Get: c(kindGet), Head: c(kindHead), List: c(kindList), Delete: c(kindDelete), Part: c(kindPart),
		Retries: d.again.Load(), Sent: d.sent.Load(), Received: d.read.Load(),
	}
}

// call is the attempts of one request: the driver's retryer, counted.
type call struct {
	*retry.Standard
	d        *Driver
	kind     kind
	attempts int
}

// start begins a request; use is for the SDK, and the call tells afterwards how
// often it was sent.
func (d *Driver) start(k kind) (c *call, use func(*s3.Options)) {
	c = &call{Standard: d.retry, d: d, kind: k}
	return c, func(o *s3.Options) { o.Retryer, o.RetryMaxAttempts = c, 0 }
}

// GetAttemptToken implements aws.RetryerV2: it is called before each attempt.
func (c *call) GetAttemptToken(ctx context.Context) (func(error) error, error) {
	c.d.counts[c.kind].Add(1)
	if c.attempts++; c.attempts > 1 {
		c.d.again.Add(1)
	}
	return c.Standard.GetAttemptToken(ctx)
}

var _ aws.RetryerV2 = (*call)(nil)

// isHopeless finds errors that the SDK would try again for nothing.
func isHopeless(err error) aws.Ternary {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	if errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid) || errors.As(err, &record) {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

// mayPass finds errors that the SDK would not try again: of conditional writes
// that met each other, of bodies damaged on their way, of answers that broke
// off, of overload.
func mayPass(err error) aws.Ternary {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return aws.TrueTernary
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
		case "ConditionalRequestConflict", "OperationAborted", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch":
			return aws.TrueTernary
		}
	}
	if statusOf(err) == 429 {
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}
