package awskms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/neterr"
)

// codes gives the error codes of the service their Kinds; what is not here goes by
// the status.
var codes = map[string]snapferry.Kind{
	"DisabledException":          snapferry.KeyUnusable,
	"InvalidArnException":        snapferry.KeyUnusable,
	"InvalidKeyUsageException":   snapferry.KeyUnusable,
	"KMSInvalidStateException":   snapferry.KeyUnusable,
	"NotFoundException":          snapferry.KeyUnusable,
	"IncorrectKeyException":      snapferry.Corrupt,
	"InvalidCiphertextException": snapferry.Corrupt,

	"AccessDenied":                        snapferry.Denied,
	"AccessDeniedException":               snapferry.Denied,
	"ExpiredToken":                        snapferry.Denied,
	"ExpiredTokenException":               snapferry.Denied,
	"IncompleteSignature":                 snapferry.Denied,
	"IncompleteSignatureException":        snapferry.Denied,
	"InvalidClientTokenId":                snapferry.Denied,
	"InvalidSignatureException":           snapferry.Denied,
	"MissingAuthenticationToken":          snapferry.Denied,
	"MissingAuthenticationTokenException": snapferry.Denied,
	"NotAuthorized":                       snapferry.Denied,
	"OptInRequired":                       snapferry.Denied,
	"RequestExpired":                      snapferry.Denied,
	"SignatureDoesNotMatch":               snapferry.Denied,
	"UnrecognizedClientException":         snapferry.Denied,

	"CloudHsmClusterInvalidConfigurationException": snapferry.Unavailable,
	"CustomKeyStoreInvalidStateException":          snapferry.Unavailable,
	"DependencyTimeoutException":                   snapferry.Unavailable,
	"InternalFailure":                              snapferry.Unavailable,
	"KMSInternalException":                         snapferry.Unavailable,
	"KeyUnavailableException":                      snapferry.Unavailable,
	"LimitExceededException":                       snapferry.Unavailable, // of a rotation: Full
	"RequestLimitExceeded":                         snapferry.Unavailable,
	"ServiceUnavailable":                           snapferry.Unavailable,
	"ThrottledException":                           snapferry.Unavailable,
	"Throttling":                                   snapferry.Unavailable,
	"ThrottlingException":                          snapferry.Unavailable,
	"TooManyRequestsException":                     snapferry.Unavailable,

	"ConflictException":             snapferry.Conflict,
	"DryRunOperationException":      snapferry.Internal,
	"InvalidAction":                 snapferry.Unsupported,
	"UnknownOperationException":     snapferry.Unsupported,
	"UnsupportedOperationException": snapferry.Unsupported,
	"ValidationException":           snapferry.Invalid,
	"ValidationError":               snapferry.Invalid,
}

// statusKind is the Kind of an answer without a code that is known: of a proxy, or
// of a service that is not the one that was meant. It says nothing of a key.
func statusKind(status int) snapferry.Kind {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return snapferry.Denied
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500:
		return snapferry.Unavailable
	case status == http.StatusNotFound || status >= 300 && status < 400:
		return snapferry.Unavailable
	}
	return snapferry.Internal
}

// isHopeless finds errors that the SDK would try again for nothing.
func isHopeless(err error) aws.Ternary {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var refused credentialsError
	if errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid) || errors.As(err, &record) ||
		errors.As(err, &refused) && credentialsKind(refused) == snapferry.Denied {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

// mayPass finds errors that the SDK would not try again: of answers that broke off
// or make no sense, and of overload.
func mayPass(err error) aws.Ternary {
	var odd *smithy.DeserializationError
	if errors.As(err, &odd) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errTooLong) {
		return aws.TrueTernary
	}
	kind, known := codes[codeOf(err)]
	if !known {
		kind = statusKind(statusOf(err))
	}
	return aws.BoolTernary(kind == snapferry.Unavailable)
}

func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func statusOf(err error) int {
	var e interface{ HTTPStatusCode() int }
	if errors.As(err, &e) {
		return e.HTTPStatusCode()
	}
	return 0
}

// neverWas reports whether the service knows no such key.
func neverWas(err error) bool {
	code := codeOf(err)
	return code == "NotFoundException" || code == "InvalidArnException"
}

// fail gives an error of the SDK its Kind, a message and a hint.
func (d *Driver) fail(err error, attempts int) error {
	e := &snapferry.Error{Cause: err}
	var refused credentialsError
	var odd *smithy.DeserializationError
	var api smithy.APIError
	errors.As(err, &api)
	status, code := statusOf(err), codeOf(err)
	switch {
	case errors.As(err, &refused):
		e.Kind, e.Message = credentialsKind(refused), "get credentials for "+d.where+": "+refused.Error()
		e.Hint = "correct the credentials in the configuration, or the role of the machine"
	case errors.As(err, &odd) || errors.Is(err, errTooLong):
		// Its error may hold what the service sent.
		e.Kind, e.Message, e.Cause = snapferry.Unavailable, d.where+" gave an answer that cannot be read", nil
		if status != 0 && status != http.StatusOK {
			e.Message += fmt.Sprintf(": %d %s", status, http.StatusText(status))
		}
		e.Hint = "see that endpoint is a key service, and that no proxy answers for it"
	case code == "" && (status == 0 || status == http.StatusOK): // no answer, or a part of one
		e.Kind, e.Message = snapferry.Unavailable, "reach "+d.where+": "+neterr.Innermost(err).Error()
		e.Hint = networkHint(err)
	default:
		var known bool
		if e.Kind, known = codes[code]; !known {
			e.Kind = statusKind(status)
		}
		e.Message = d.where + " answers " + answer(status, code, api)
		e.Hint = hint(code, e.Kind)
		if code == "AccessDeniedException" && strings.Contains(api.ErrorMessage(), "ciphertext refers to") {
			e.Hint += "; or the wrapped data key was changed and names another key"
		}
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

// credentialsKind tells a provider that was refused from one that was not reached.
func credentialsKind(err credentialsError) snapferry.Kind {
	var own *snapferry.Error
	var network net.Error
	switch {
	case errors.As(err.error, &own):
		return own.Kind
	case statusOf(err.error) >= 500 || statusOf(err.error) == http.StatusTooManyRequests:
		return snapferry.Unavailable
	case statusOf(err.error) == 0 && (errors.As(err.error, &network) || errors.Is(err.error, context.Canceled)):
		return snapferry.Unavailable
	}
	return snapferry.Denied
}

// ended is the error of a call whose context ended; last is that of its last
// attempt.
func ended(ctx context.Context, doing string, last error) error {
	kind := snapferry.Unavailable
	if errors.Is(ctx.Err(), context.Canceled) {
		kind = snapferry.Cancelled
	}
	e := &snapferry.Error{Kind: kind, Message: doing + ": " + ctx.Err().Error(), Cause: ctx.Err()}
	if last != nil {
		e.Message, e.Hint, e.Cause = e.Message+"; "+last.Error(), snapferry.HintOf(last), errors.Join(ctx.Err(), last)
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
		m := strings.TrimSuffix(strings.TrimSpace(api.ErrorMessage()), ".")
		if m != "" && m != code && m != "UnknownError" {
			s += fmt.Sprintf(": %.500s", m)
		}
	}
	return s
}

// hint says what helps against an answer of the service.
func hint(code string, kind snapferry.Kind) string {
	switch {
	case code == "DisabledException":
		return "enable the key in AWS"
	case code == "KMSInvalidStateException":
		return "if the key waits for its deletion, cancel that in AWS and enable the key"
	case code == "NotFoundException" || code == "InvalidArnException":
		return "see that the key is in the region and the account of AWS that the configuration gives"
	case code == "InvalidKeyUsageException":
		return "use a symmetric key: SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT"
	case code == "InvalidSignatureException" || code == "SignatureDoesNotMatch" || code == "RequestExpired":
		return "the secret key does not belong to the access key, or the clock of this machine is wrong"
	case code == "AccessDeniedException" || code == "AccessDenied":
		return "allow kms:GenerateDataKey, kms:Decrypt, kms:ReEncryptFrom, kms:ReEncryptTo, kms:DescribeKey and kms:GenerateRandom, " +
			"and to rotate kms:RotateKeyOnDemand and kms:GetKeyRotationStatus, in the policy of the key or of the user"
	case kind == snapferry.Denied:
		return "correct the credentials in the configuration, or the role of the machine"
	}
	return ""
}

// networkHint says what helps when there was no answer.
func networkHint(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return "the certificate of the key service is of no authority that this machine trusts"
	case errors.As(err, &host):
		return "use a name that the service's certificate has as endpoint"
	}
	return ""
}
