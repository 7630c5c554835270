package s3blob

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/neterr"
)

var errNotFound = snapferry.Errorf(snapferry.NotFound, "no such object")

// codes gives the error codes of S3 stores their Kinds; what is not here goes
// by the status.
var codes = map[string]snapferry.Kind{
	"NoSuchKey":                    snapferry.NotFound,
	"NotFound":                     snapferry.NotFound, // the SDK's, of a HEAD
	"PreconditionFailed":           snapferry.Exists,
	"AccessDenied":                 snapferry.Denied,
	"AllAccessDisabled":            snapferry.Denied,
	"AccountProblem":               snapferry.Denied,
	"ExpiredToken":                 snapferry.Denied,
	"InvalidAccessKeyId":           snapferry.Denied,
	"InvalidToken":                 snapferry.Denied,
	"XAdminUserNotFound":           snapferry.Denied, // of versitygw
	"SignatureDoesNotMatch":        snapferry.Denied,
	"RequestTimeTooSkewed":         snapferry.Denied,
	"AuthorizationHeaderMalformed": snapferry.Invalid,
	"PermanentRedirect":            snapferry.Invalid,
	"TemporaryRedirect":            snapferry.Unavailable,
	"NoSuchBucket":                 snapferry.Unavailable,
	"ConditionalRequestConflict":   snapferry.Unavailable,
	"OperationAborted":             snapferry.Unavailable,
	"BadDigest":                    snapferry.Unavailable,
	"IncompleteBody":               snapferry.Unavailable,
	"XAmzContentSHA256Mismatch":    snapferry.Unavailable,
	"NoSuchUpload":                 snapferry.Unavailable,
	"RequestTimeout":               snapferry.Unavailable,
	"SlowDown":                     snapferry.Unavailable,
	"EntityTooLarge":               snapferry.Full,
	"QuotaExceeded":                snapferry.Full,
	"InsufficientStorage":          snapferry.Full,
	"XMinioStorageFull":            snapferry.Full,
	"XAdminBucketQuotaExceeded":    snapferry.Full,
	"NotImplemented":               snapferry.Unsupported,
	"MethodNotAllowed":             snapferry.Unsupported,
}

// statusKind is the Kind of an answer without a code that is known. A status of
// 404 is none of S3's then, and so says nothing of an object.
func statusKind(status int) snapferry.Kind {
	switch {
	case status == http.StatusNotFound:
		return snapferry.Unavailable
	case status == http.StatusPreconditionFailed:
		return snapferry.Exists
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return snapferry.Denied
	case status == http.StatusMovedPermanently:
		return snapferry.Invalid
	case status == http.StatusInsufficientStorage || status == http.StatusRequestEntityTooLarge:
		return snapferry.Full
	case status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented:
		return snapferry.Unsupported
	case status == http.StatusTooManyRequests || status == http.StatusConflict || status == http.StatusRequestTimeout || status >= 500:
		return snapferry.Unavailable
	}
	return snapferry.Internal
}

func statusOf(err error) int {
	var e interface{ HTTPStatusCode() int }
	if errors.As(err, &e) {
		return e.HTTPStatusCode()
	}
	return 0
}

// fail gives an error of the SDK its Kind, a message and a hint. outer is the
// caller's context: when that ended, its error is the answer.
func (d *Driver) fail(outer context.Context, err error, attempts int) error {
	if outer.Err() != nil {
		return outer.Err()
	}
	var own *snapferry.Error
	if errors.As(err, &own) {
		return own
	}
	e := &snapferry.Error{Cause: err}
	var api smithy.APIError
	var code string
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	status := statusOf(err)
	if code == "" && (status == 0 || status == http.StatusOK) { // no answer, or a part of one
		e.Kind, e.Message = snapferry.Unavailable, "reach "+d.where+": "+neterr.Innermost(err).Error()
		e.Hint = d.networkHint(err)
	} else {
		var known bool
		if e.Kind, known = codes[code]; !known {
			e.Kind = statusKind(status)
		}
		e.Message = d.where + " answers " + answer(status, code, api)
		e.Hint = d.hint(code, e.Kind)
	}
	if e.Kind == snapferry.NotFound {
		return errNotFound
	}
	if attempts > 1 {
		e.Message += fmt.Sprintf(", after %d attempts", attempts)
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) && response.ServiceRequestID() != "" {
		e.Message += " (request " + response.ServiceRequestID() + ")"
	}
	return e
}

func answer(status int, code string, api smithy.APIError) string {
	s := fmt.Sprintf("%d", status)
	if code != "" && code != "UnknownError" {
		s += " " + code
	} else if text := http.StatusText(status); text != "" {
		s += " " + text
	}
	if api != nil {
		if m := strings.TrimSuffix(strings.TrimSpace(api.ErrorMessage()), "."); m != "" && m != code && m != "UnknownError" {
			s += ": " + m
		}
	}
	return s
}

// hint says what helps against an answer of the store.
func (d *Driver) hint(code string, kind snapferry.Kind) string {
	switch {
	case code == "NoSuchBucket":
		return "make the bucket, or correct bucket and endpoint in the configuration"
	case code == "PermanentRedirect" || code == "AuthorizationHeaderMalformed" || kind == snapferry.Invalid:
		return "correct region in the configuration: it is that of the bucket"
	case code == "RequestTimeTooSkewed":
		return "set the clock of this machine"
	case code == "SignatureDoesNotMatch":
		return "the secret key does not belong to the access key, or a proxy changes requests; credentials came from: " + d.who
	case code == "EntityTooLarge":
		return "let the store, or the proxy before it, take bodies of 64 MiB"
	case kind == snapferry.Denied:
		return "allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket; credentials came from: " + d.who
	case kind == snapferry.Full:
		return "make space in the store, or raise the quota of the bucket"
	}
	return ""
}

// networkHint says what helps when there was no answer.
func (d *Driver) networkHint(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var dns *net.DNSError
	switch {
	case errors.As(err, &unknown):
		return "give the certificate of the store's authority as ca_file"
	case errors.As(err, &host):
		return "use a name that the store's certificate has as endpoint"
	case errors.As(err, &dns) && dns.IsNotFound && !d.cfg.PathStyle && d.cfg.Endpoint != "":
		return "correct endpoint, or set path_style: true when the store has no name for each bucket"
	}
	return ""
}
