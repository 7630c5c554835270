package alikms

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms/kmshttp"
)

// operation is one request to the service.
type operation struct {
	action string
	key    string // that it is about; "" for none
	query  url.Values
	answer any // where the answer goes; nil when it does not matter
	once   bool
}

// missing is the Kind of the error when there is no such key.
func (o operation) missing() snapferry.Kind {
	if o.action == "DescribeKey" {
		return snapferry.NotFound
	}
	return snapferry.KeyUnusable
}

func (d *Driver) call(ctx context.Context, o operation) error {
	if _, ok := bare(o.key); o.key != "" && !ok || o.key == "" && o.query.Has("KeyId") {
		return snapferry.Errorf(o.missing(), "%q is not the name of a key", kmshttp.Text(o.key)).
			WithHint("use the id of the key, or its ARN; not an alias")
	}
	return d.client.Send(ctx, kmshttp.Call{
		Once:  o.once,
		Build: func() (kmshttp.Request, error) { return d.build(o, time.Now()), nil },
		Judge: func(a kmshttp.Answer) error { return d.judge(o, a) },
	})
}

// build makes and signs an attempt. All is in the query, as the service's own
// clients have it.
func (d *Driver) build(o operation, now time.Time) kmshttp.Request {
	var nonce [16]byte
	rand.Read(nonce[:])
	empty := sha256.Sum256(nil)
	m := message{method: http.MethodPost, path: "/", query: o.query, bodySum: hex.EncodeToString(empty[:])}
	m.header = map[string]string{
		"host": d.url.Host, "x-acs-action": o.action, "x-acs-version": version, "x-acs-content-sha256": m.bodySum,
		"x-acs-date": now.UTC().Format("2006-01-02T15:04:05Z"), "x-acs-signature-nonce": hex.EncodeToString(nonce[:]),
	}
	if d.cfg.SecurityToken != "" {
		m.header["x-acs-security-token"] = d.cfg.SecurityToken
	}
	h := http.Header{}
	h.Set("Accept", "application/json")
	h.Set("Authorization", sign(m, d.cfg.AccessKeyID, d.cfg.AccessKeySecret))
	for name, value := range m.header {
		if name != "host" { // net/http has it of the URL
			h.Set(name, value)
		}
	}
	return kmshttp.Request{Method: m.method, URL: d.url.String() + "/?" + encode(m.query), Header: h}
}

// failure is an answer of the service that is an error.
type failure struct {
	code string
	err  *snapferry.Error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// codeOf returns the code of an answer of the service that is an error, or "".
func codeOf(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.code
	}
	return ""
}

// judge reads an answer, or makes it an error.
func (d *Driver) judge(o operation, a kmshttp.Answer) error {
	if a.Status == http.StatusOK {
		if o.answer == nil || json.Unmarshal(a.Body, o.answer) == nil { // its error may have a part of a key in it
			return nil
		}
		return snapferry.Errorf(snapferry.Unavailable, "%s answers something that is not JSON of a key service", d.where)
	}
	var got struct{ Code, Message, RequestID string }
	if json.Unmarshal(a.Body, &got) != nil {
		got.Code = "" // of something between us and the service
	}
	kind, again, hint := classify(o, a.Status, got.Code, got.Message)
	said := d.said(o, a.Status, got.Code, got.Message, got.RequestID)
	f := &failure{code: got.Code, err: &snapferry.Error{Kind: kind, Message: said, Hint: hint}}
	if again {
		return kmshttp.Again(f)
	}
	return f
}

func (d *Driver) said(o operation, status int, code, message, request string) string {
	s := fmt.Sprintf("%s answers %d", d.where, status)
	if code == "" {
		return s + " " + http.StatusText(status)
	}
	s += " " + kmshttp.Text(code) + ": " + kmshttp.Text(strings.TrimSuffix(message, "."))
	if o.key != "" {
		s = "key " + o.key + ": " + s
	}
	if request != "" {
		s += " (request " + kmshttp.Text(request) + ")"
	}
	return s
}

const (
	hintClock  = "set the clock of this machine"
	hintSecret = "correct access_key_id and access_key_secret_file under keys: in the configuration of the region"
	hintPolicy = "the policy of the access key must allow this: see the guide to running a region"
)

// codes are the service's error codes, or what they begin with when a dot is at
// the end; the first that fits counts. They are those of its API reference.
var codes = []struct {
	code string
	kind snapferry.Kind
	hint string
}{
	{"Rejected.Disabled", snapferry.KeyUnusable, "enable the key in the key service"},
	{"Rejected.PendingDeletion", snapferry.KeyUnusable, "cancel the deletion of the key in the key service"},
	{"Rejetced.PendingDeletion", snapferry.KeyUnusable, "cancel the deletion of the key in the key service"}, // so its reference has it
	{"Rejected.PendingImport", snapferry.KeyUnusable, "import the material of the key in the key service"},
	{"Rejected.Unavailable", snapferry.KeyUnusable, ""},
	{"Rejected.InvalidCiphertext", snapferry.Corrupt, ""},
	{"InvalidCiphertext", snapferry.Corrupt, ""},
	{"Rejected.LimitExceeded", snapferry.Full, ""},
	{"UnsupportedOperation", snapferry.Unsupported, "the key service does not do this for such a key, or at this endpoint"},
	{"Rejected.UnsupportedOperation", snapferry.Unsupported, "the key service does not do this for such a key, or at this endpoint"},
	{"InvalidAccessKeyId", snapferry.Denied, hintSecret},
	{"InvalidAccessKeyId.", snapferry.Denied, hintSecret},
	{"SignatureDoesNotMatch", snapferry.Denied, hintSecret},
	{"IncompleteSignature", snapferry.Denied, hintSecret},
	{"InvalidSecurityToken.", snapferry.Denied, "get new temporary access keys"},
	{"InvalidTimeStamp.", snapferry.Denied, hintClock},
	{"IllegalTimestamp", snapferry.Denied, hintClock},
	{"RequestTimeTooSkewed", snapferry.Denied, hintClock},
	{"NoPermission", snapferry.Denied, hintPolicy},
	{"Forbidden.", snapferry.Denied, hintPolicy},
	{"Forbidden", snapferry.Denied, hintPolicy},
}

// passing are the codes of what passes.
var passing = []string{"Throttling", "Throttling.", "Rejected.Throttling", "SignatureNonceUsed", "ServiceUnavailable", "ServiceUnavailable.", "ServiceUnavailableTemporary", "SerivceUnavailableTemporary"}

func fits(code, pattern string) bool {
	return code == pattern || strings.HasSuffix(pattern, ".") && strings.HasPrefix(code, pattern)
}

// classify says what an error of the service is, and whether it may pass.
func classify(o operation, status int, code, message string) (kind snapferry.Kind, again bool, hint string) {
	for _, p := range passing {
		if fits(code, p) {
			return snapferry.Unavailable, true, ""
		}
	}
	switch {
	case code == "Forbidden.KeyNotFound" || code == "Forbidden.AliasNotFound" || code == "InvalidParameter" && strings.Contains(message, "KeyId"):
		return o.missing(), false, "correct the id of the key, and the region it is in"
	case code == "InvalidParameter" && (o.action == "Decrypt" || o.action == "ReEncrypt"):
		return snapferry.Corrupt, false, ""
	}
	for _, c := range codes {
		if fits(code, c.code) {
			return c.kind, false, c.hint
		}
	}
	switch {
	case status == http.StatusTooManyRequests:
		return snapferry.Unavailable, true, ""
	case status >= http.StatusInternalServerError || status == http.StatusRequestTimeout:
		return snapferry.Unavailable, !o.once, ""
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return snapferry.Denied, false, hintPolicy
	case code == "":
		return snapferry.Unavailable, false, "what answers there is no key service: correct endpoint"
	}
	return snapferry.Internal, false, ""
}
