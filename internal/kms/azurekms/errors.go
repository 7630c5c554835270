package azurekms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/neterr"
)

// answerError is what a vault said when it refused: the cause of an error. It has no
// more of the answer than that.
type answerError struct {
	status               int
	code, inner, message string
}

func (e *answerError) Error() string {
	s := fmt.Sprint(e.status)
	for _, part := range []string{e.code, e.inner} {
		if part != "" {
			s += " " + part
		}
	}
	if e.code == "" {
		s += " " + http.StatusText(e.status)
	}
	if m := strings.TrimSuffix(strings.TrimSpace(e.message), "."); m != "" {
		s += ": " + m
	}
	return s
}

// read takes an answer apart. Errors of Key Vault look like
//
//	{"error": {"code": "Forbidden", "message": "…", "innererror": {"code": "KeyDisabled"}}}
func read(err *azcore.ResponseError) *answerError {
	e := &answerError{status: err.StatusCode, code: short(err.ErrorCode)}
	if err.RawResponse == nil || e.status < 400 {
		return e
	}
	p, _ := runtime.Payload(err.RawResponse)
	var doc struct {
		Error struct {
			Code, Message string
			InnerError    struct{ Code string }
		}
	}
	if json.Unmarshal(p, &doc) == nil {
		e.inner, e.message = short(doc.Error.InnerError.Code), fmt.Sprintf("%.500s", doc.Error.Message)
		if doc.Error.Code != "" {
			e.code = short(doc.Error.Code)
		}
	}
	return e
}

func short(code string) string { return fmt.Sprintf("%.80s", code) }

// aboutKey finds the state of a key in the message of an answer that has no inner
// code.
var aboutKey = regexp.MustCompile(`not allowed on an? (disabled|expired|not yet valid) key`)

// kind is the Kind of an answer to a request.
func (e *answerError) kind(what string) snapferry.Kind {
	switch {
	case e.status == http.StatusForbidden && (strings.HasPrefix(e.inner, "Key") || aboutKey.MatchString(e.message)):
		return snapferry.KeyUnusable // KeyDisabled, KeyExpired, …
	case e.noKey():
		return snapferry.KeyUnusable
	case e.status == http.StatusConflict && (e.inner == "ObjectIsDeletedButRecoverable" || e.inner == "ObjectIsBeingDeleted"):
		return snapferry.KeyUnusable
	case e.status == http.StatusUnauthorized || e.status == http.StatusForbidden:
		return snapferry.Denied
	case e.status == http.StatusBadRequest && e.code == "BadParameter" && what == "unwrap":
		return snapferry.Corrupt
	case e.status == http.StatusBadRequest:
		return snapferry.Invalid
	case e.status == http.StatusConflict:
		return snapferry.Conflict
	case passes(e.status):
		return snapferry.Unavailable
	}
	return snapferry.Internal
}

// noKey reports whether the vault has no such key. A 404 without the vault's code
// is of something else that answers at its address.
func (e *answerError) noKey() bool {
	return e.status == http.StatusNotFound && (e.code == "KeyNotFound" || e.inner == "KeyNotFound")
}

// passes reports whether an answer of a status may be another one soon. Redirects
// and pages that are not found are of a proxy, or of a vault that is being made.
func passes(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500 ||
		status == http.StatusNotFound || status > http.StatusOK && status < 400
}

// mayPass finds what is worth another attempt.
func mayPass(resp *http.Response, err error) bool {
	if err == nil {
		return resp.StatusCode != http.StatusNotFound && passes(resp.StatusCode)
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	return !errors.As(err, &unknown) && !errors.As(err, &host) && !errors.As(err, &invalid) && !errors.As(err, &record)
}

func isNoKey(err error) bool {
	var e *answerError
	return errors.As(err, &e) && e.noKey()
}

func innerOf(err error) string {
	var e *answerError
	if errors.As(err, &e) {
		return e.inner
	}
	return ""
}

// fail gives an error of the SDK its Kind, a message and a hint. The error itself
// is left behind, because it shows the answer.
func (d *Driver) fail(ctx context.Context, what string, err error, c *call) error {
	if err == nil {
		return nil
	}
	attempts, asked, last := c.state()
	if ctx.Err() != nil {
		if errors.Is(last, ctx.Err()) {
			last = nil
		}
		return ended(ctx, "wait for "+d.where, last)
	}
	e := &snapferry.Error{Kind: snapferry.Unavailable}
	var refused credentialError
	var response *azcore.ResponseError
	switch {
	case errors.As(err, &refused):
		e.Kind, e.Message = credentialsKind(refused.error)
		e.Message = "get a token for " + d.where + ": " + e.Message
		e.Hint = "correct tenant, client_id and the client's secret in the configuration; secrets of clients expire"
	case errors.As(err, &response):
		a := read(response)
		e.Kind, e.Message, e.Cause, e.Hint = a.kind(what), d.where+" answers "+a.Error(), a, a.hint()
	case asked:
		// It asked for a token that is not given to it.
		e.Kind, e.Message = snapferry.Denied, fmt.Sprintf("%s asks for a token: %.500s", d.where, neterr.Innermost(err))
		e.Hint = "see that vault is the address of a key vault"
	case errors.Is(err, errOdd) || errors.Is(err, errTooLong) || last == nil:
		// The last attempt had an answer, which is not what was asked for.
		e.Message = d.where + " gave an answer that cannot be read"
		e.Hint = "see that vault is the address of a key vault, and that no proxy answers for it"
	default:
		e.Message, e.Hint = "reach "+d.where+": "+neterr.Innermost(last).Error(), networkHint(last)
		e.Cause = last
	}
	if attempts > 1 {
		e.Message += fmt.Sprintf(", after %d attempts", attempts)
	}
	return e
}

// credentialsKind tells a credential that was refused from one whose authority did
// not answer.
func credentialsKind(err error) (snapferry.Kind, string) {
	var own *snapferry.Error
	var failed *azidentity.AuthenticationFailedError
	var network net.Error
	switch {
	case errors.As(err, &own):
		return own.Kind, own.Error()
	case errors.As(err, &failed) && failed.RawResponse == nil:
		return snapferry.Unavailable, neterr.Innermost(err).Error() // it was not answered
	case errors.As(err, &failed):
		message := fmt.Sprint(failed.RawResponse.StatusCode)
		var doc struct {
			Error       string
			Description string `json:"error_description"`
		}
		if p, _ := runtime.Payload(failed.RawResponse); json.Unmarshal(p, &doc) == nil {
			line, _, _ := strings.Cut(doc.Description, "\n")
			message = fmt.Sprintf("%s %.80s: %.300s", message, doc.Error, strings.TrimSpace(line))
		}
		if passes(failed.RawResponse.StatusCode) {
			return snapferry.Unavailable, message
		}
		return snapferry.Denied, message
	case errors.As(err, &network) || errors.Is(err, context.Canceled):
		return snapferry.Unavailable, neterr.Innermost(err).Error()
	}
	return snapferry.Denied, err.Error()
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
		e.Message, e.Cause = e.Message+"; "+neterr.Innermost(last).Error(), errors.Join(ctx.Err(), last)
	}
	return e
}

// hint says what helps against an answer of the vault.
func (e *answerError) hint() string {
	switch {
	case e.noKey():
		return "see that the key is in this vault; recover it in Azure if it was deleted"
	case e.inner == "KeyDisabled":
		return "enable the key, and the version that wrapped, in Azure"
	case e.inner == "ForbiddenByFirewall" || e.inner == "ForbiddenByConnection":
		return "let this machine through the firewall of the vault"
	case e.status == http.StatusForbidden:
		return "give the client the role Key Vault Crypto Service Encryption User in the whole vault, and to rotate Key Vault Crypto Officer"
	case e.status == http.StatusUnauthorized:
		return "see that the client is of the tenant of the vault"
	}
	return ""
}

// networkHint says what helps when there was no answer.
func networkHint(err error) string {
	var unknown x509.UnknownAuthorityError
	var dns *net.DNSError
	switch {
	case errors.As(err, &unknown):
		return "the certificate of the vault is of no authority that this machine trusts"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "correct vault in the configuration; a vault that was deleted can be recovered in Azure"
	}
	return ""
}
