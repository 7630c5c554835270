package alikms

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms/kmstest"
	"github.com/snapferry/snapferry/seal"
)

const (
	one = "key-hzz0000000000000000a1"
	two = "1234abcd-12ab-34cd-56ef-1234567890ab"
)

var (
	place  = seal.Context{Account: "acct-00000000000000001", Chain: snapferry.ChainID{1}, Region: "east"}
	busy   = fault{400, "Throttling.User", "Request was denied due to user flow control."}
	denied = fault{403, "Forbidden.NoPermission", "This operation is forbidden by permission system."}
)

// open returns a driver for a service, with a front between them.
func open(tb testing.TB, s http.Handler, change ...func(*Config)) (*Driver, *kmstest.Front) {
	tb.Helper()
	f := kmstest.NewFront(tb, s, busy.ServeHTTP, denied.ServeHTTP)
	cfg := Config{Endpoint: f.URL, AccessKeyID: accessKey, AccessKeySecret: accessSecret}
	for _, c := range change {
		c(&cfg)
	}
	d, err := Open(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(d.Close)
	return d, f
}

func made(tb testing.TB, d *Driver, key string) (plain, wrapped []byte) {
	tb.Helper()
	plain, wrapped, err := d.NewDataKey(tb.Context(), key, make([]byte, 0, seal.KeySize), place)
	if err != nil {
		tb.Fatal(err)
	}
	return plain, wrapped
}

func want(tb testing.TB, what string, err error, kind snapferry.Kind) {
	tb.Helper()
	if !snapferry.IsKind(err, kind) {
		tb.Errorf("%s: got %v (%v), want %v", what, err, snapferry.KindOf(err), kind)
	}
}

func TestConformance(t *testing.T) {
	for name, arn := range map[string]string{"by id": "", "by ARN": "acs:kms:cn-test:1:key/"} {
		t.Run(name, func(t *testing.T) {
			kmstest.Conform(t, func(t *testing.T) *kmstest.Harness {
				s := newService(one, two)
				d, f := open(t, s)
				to := func(state string) func(string) {
					return func(key string) {
						s.set(strings.TrimPrefix(key, arn), func(k *serviceKey) { k.state = state })
					}
				}
				return f.Harness(kmstest.Harness{
					Driver: d, Key: arn + one, Other: arn + two, Missing: arn + "key-hzz0000000000000000a9", Binds: true,
					Disable: to("Disabled"), Enable: to("Enabled"),
				})
			})
		})
	}
}

// All states of a key but one make it unusable.
func TestKeyStates(t *testing.T) {
	s := newService(one)
	d, _ := open(t, s)
	_, wrapped := made(t, d, one)
	for _, state := range []string{"Disabled", "PendingDeletion", "PendingImport", "Unavailable"} {
		s.set(one, func(k *serviceKey) { k.state = state })
		if got, err := d.Describe(t.Context(), one); err != nil || got.Usable || got.State != state {
			t.Errorf("%s: describe: %+v, %v", state, got, err)
		}
		_, err := d.Unwrap(t.Context(), one, nil, wrapped, place)
		want(t, state+": unwrap", err, snapferry.KeyUnusable)
		_, err = d.Rewrap(t.Context(), one, wrapped, place)
		want(t, state+": rewrap", err, snapferry.KeyUnusable)
		want(t, state+": rotate", d.Rotate(t.Context(), one), snapferry.KeyUnusable)
	}
	s.set(one, func(k *serviceKey) { k.state, k.usage = "Enabled", "SIGN/VERIFY" })
	if got, err := d.Describe(t.Context(), one); err != nil || got.Usable || got.State == "" {
		t.Errorf("for signatures: describe: %+v, %v", got, err)
	}
	_, _, err := d.NewDataKey(t.Context(), one, nil, place)
	want(t, "for signatures: new data key", err, snapferry.Unsupported)
	s.change(func() { delete(s.keys, one) })
	_, err = d.Unwrap(t.Context(), one, nil, wrapped, place)
	want(t, "gone: unwrap", err, snapferry.KeyUnusable)
	want(t, "gone: rotate", d.Rotate(t.Context(), one), snapferry.KeyUnusable)
}

// Keys are named by what always means the same key.
func TestNotSent(t *testing.T) {
	d, f := open(t, newService(one))
	for _, name := range []string{"", "alias/a", "acs:kms:cn-test:1:alias/a", "acs:kms:cn-test:1:key/", "a b", strings.Repeat("a", 65)} {
		_, err := d.Describe(t.Context(), name)
		want(t, "describe "+name, err, snapferry.NotFound)
		_, _, err = d.NewDataKey(t.Context(), name, nil, place)
		want(t, "new data key of "+name, err, snapferry.KeyUnusable)
	}
	for _, w := range []string{"", "a b", "ab=c", "\xff", strings.Repeat("A", maxWrapped+1)} {
		_, err := d.Unwrap(t.Context(), one, nil, []byte(w), place)
		want(t, "unwrap", err, snapferry.Corrupt)
		_, err = d.Rewrap(t.Context(), one, []byte(w), place)
		want(t, "rewrap", err, snapferry.Corrupt)
	}
	_, err := d.Unwrap(t.Context(), one, nil, []byte("AAAA"), seal.Context{Account: snapferry.AccountID(strings.Repeat("a", 256))})
	want(t, "a context that is too long", err, snapferry.Invalid)
	if n := f.Asked(); n != 0 {
		t.Errorf("the service was asked %d times", n)
	}
}

// What is no answer of the service is no key, and opens nothing.
func TestOddAnswers(t *testing.T) {
	s := newService(one, two)
	d, f := open(t, s)
	_, wrapped := made(t, d, one)
	text := func(status int, s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, s)
		}
	}
	key := func(id string, n int) string {
		return `{"KeyId":"` + id + `","CiphertextBlob":"AAAA","Plaintext":"` + base64.StdEncoding.EncodeToString(make([]byte, n)) + `"}`
	}
	for what, c := range map[string]struct {
		answer http.HandlerFunc
		want   snapferry.Kind
	}{
		"too short":             {text(200, key(one, 31)), snapferry.Corrupt},
		"too long":              {text(200, key(one, 33)), snapferry.Corrupt},
		"of another key":        {text(200, key(two, 32)), snapferry.Corrupt},
		"of no key":             {text(200, key("", 32)), snapferry.Corrupt},
		"nothing":               {text(200, `{}`), snapferry.Corrupt},
		"not base64":            {text(200, `{"KeyId":"`+one+`","Plaintext":"****"}`), snapferry.Unavailable},
		"not JSON":              {text(200, `<html>sign in</html>`), snapferry.Unavailable},
		"empty":                 {text(200, ``), snapferry.Unavailable},
		"huge":                  {text(200, strings.Repeat(" ", 2<<20)), snapferry.Unavailable},
		"not found by a proxy":  {text(404, `<html>not found</html>`), snapferry.Unavailable},
		"a redirect":            {text(307, ``), snapferry.Unavailable},
		"denied by a proxy":     {text(403, `<html>no</html>`), snapferry.Denied},
		"a code that is new":    {text(400, `{"Code":"New.Code","Message":"m"}`), snapferry.Internal},
		"a ciphertext it knows": {text(400, `{"Code":"Rejected.InvalidCiphertext","Message":"m"}`), snapferry.Corrupt},
	} {
		f.Spoil(1, c.answer)
		got, err := d.Unwrap(t.Context(), one, nil, wrapped, place)
		want(t, what, err, c.want)
		if got != nil {
			t.Errorf("%s: it gave %d bytes", what, len(got))
		}
		f.Up()
	}
	for what, bad := range map[string]string{
		"of another key": strings.Replace(key(one, 32), one, two, 1), "not wrapped": `{"KeyId":"` + one + `"}`, "no base64": strings.Replace(key(one, 32), "AAAA", "a b", 1),
	} {
		f.Spoil(1, text(200, bad))
		plain, _, err := d.NewDataKey(t.Context(), one, nil, place)
		if err == nil || plain != nil {
			t.Errorf("new data key, %s: %v", what, err)
		}
		f.Spoil(1, text(200, bad))
		if w, err := d.Rewrap(t.Context(), one, wrapped, place); err == nil || w != nil {
			t.Errorf("rewrap, %s: %v", what, err)
		}
	}
	f.Spoil(1, text(200, `{"KeyMetadata":{"KeyId":"`+two+`","KeyState":"Enabled"}}`))
	_, err := d.Describe(t.Context(), one)
	want(t, "describe another key", err, snapferry.Unavailable)
}

// The codes of the service's reference.
func TestCodes(t *testing.T) {
	d, f := open(t, newService(one))
	for code, c := range map[string]struct {
		status int
		kind   snapferry.Kind
	}{
		"Throttling": {400, snapferry.Unavailable}, "Throttling.Api": {429, snapferry.Unavailable}, "InternalFailure": {500, snapferry.Unavailable},
		"ServiceUnavailableTemporary": {503, snapferry.Unavailable}, "SignatureNonceUsed": {400, snapferry.Unavailable},
		"InvalidAccessKeyId.NotFound": {404, snapferry.Denied}, "InvalidAccessKeyId.Inactive": {403, snapferry.Denied}, "SignatureDoesNotMatch": {400, snapferry.Denied},
		"IncompleteSignature": {400, snapferry.Denied}, "InvalidSecurityToken.Expired": {400, snapferry.Denied}, "InvalidTimeStamp.Expired": {400, snapferry.Denied},
		"Forbidden.NoPermission": {403, snapferry.Denied}, "Forbidden.AccessKey": {403, snapferry.Denied}, "Forbidden.KmsServiceNotEnabled": {403, snapferry.Denied},
		"Forbidden.InDebt": {403, snapferry.Denied}, "NoPermission": {403, snapferry.Denied},
		"Rejected.Disabled": {409, snapferry.KeyUnusable}, "Rejected.PendingDeletion": {409, snapferry.KeyUnusable}, "Rejected.Unavailable": {409, snapferry.KeyUnusable},
		"Forbidden.KeyNotFound": {404, snapferry.KeyUnusable}, "Rejected.LimitExceeded": {400, snapferry.Full}, "UnsupportedOperation": {400, snapferry.Unsupported},
	} {
		f.Spoil(1<<30, fault{c.status, code, "some words"}.ServeHTTP)
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		_, _, err := d.NewDataKey(ctx, one, nil, place)
		cancel()
		want(t, code, err, c.kind)
		if err != nil && c.kind != snapferry.Unavailable && (!strings.Contains(err.Error(), code) || !strings.Contains(err.Error(), "R1")) {
			t.Errorf("%s: the error is %q", code, err)
		}
	}
}

// Who asks: wrong secrets, temporary access keys, another clock, an account that
// is not served.
func TestCaller(t *testing.T) {
	s := newService(one)
	stranger, _ := open(t, s, func(c *Config) { c.AccessKeyID = "LTAI-another" })
	want(t, "another access key", stranger.Health(t.Context()), snapferry.Denied)
	forger, _ := open(t, s, func(c *Config) { c.AccessKeySecret = "guessed" })
	want(t, "another secret", forger.Health(t.Context()), snapferry.Denied)
	d, _ := open(t, s)
	guest, _ := open(t, s, func(c *Config) { c.SecurityToken = "a/token+of=sts" })
	s.change(func() { s.token = "a/token+of=sts" })
	want(t, "without the token", d.Health(t.Context()), snapferry.Denied)
	if err := guest.Health(t.Context()); err != nil {
		t.Errorf("with the token: %v", err)
	}
	s.change(func() { s.token, s.skew = "", time.Hour })
	err := d.Health(t.Context())
	want(t, "another clock", err, snapferry.Denied)
	if !strings.Contains(snapferry.HintOf(err), "clock") {
		t.Errorf("another clock: the hint is %q", snapferry.HintOf(err))
	}
	s.change(func() { s.skew, s.account = 0, "InDebt" })
	want(t, "an account in debt", d.Health(t.Context()), snapferry.Denied)
}

// A further version is not made again when the first may have been made.
func TestRotateOnce(t *testing.T) {
	s := newService(one)
	d, f := open(t, s)
	f.Spoil(1, fault{500, "InternalFailure", "Internal Failure."}.ServeHTTP)
	want(t, "it failed", d.Rotate(t.Context(), one), snapferry.Unavailable)
	f.Spoil(1, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	want(t, "the connection broke", d.Rotate(t.Context(), one), snapferry.Unavailable)
	if n := len(s.keys[one].versions); n != 1 {
		t.Errorf("%d versions, want 1", n)
	}
	f.Fail(1)
	if err := d.Rotate(t.Context(), one); err != nil || len(s.keys[one].versions) != 2 {
		t.Errorf("throttled: %d versions, %v, want 2", len(s.keys[one].versions), err)
	}
}

// Secrets get into no error and no log.
func TestNoSecretInWords(t *testing.T) {
	var log bytes.Buffer
	d, f := open(t, newService(one), func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	plain := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("k"), seal.KeySize))
	f.Spoil(1, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"KeyId":"`+two+`","CiphertextBlob":"AAAA","Plaintext":"`+plain+`"}`)
	})
	_, err := d.Unwrap(t.Context(), one, nil, []byte("AAAA"), place)
	want(t, "of another key", err, snapferry.Corrupt)
	f.Spoil(1, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"Plaintext":"`+plain) })
	_, cut := d.Unwrap(t.Context(), one, nil, []byte("AAAA"), place)
	want(t, "cut off", cut, snapferry.Unavailable)
	f.Down()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, down := d.Unwrap(ctx, one, nil, []byte("AAAA"), place)
	want(t, "down", down, snapferry.Unavailable)
	for what, s := range map[string]string{"of another key": err.Error(), "cut off": cut.Error(), "down": down.Error(), "log": log.String()} {
		if strings.Contains(s, plain) || strings.Contains(s, accessSecret) || strings.Contains(s, "Signature=") {
			t.Errorf("%s: %s", what, s)
		}
	}
}

func TestConfig(t *testing.T) {
	good := Config{Region: "cn-hangzhou", AccessKeyID: "LTAI", AccessKeySecret: "s"}
	d, err := Open(good)
	if err != nil || d.url.String() != "https://kms.cn-hangzhou.aliyuncs.com" {
		t.Fatalf("got %v, %v", d, err)
	}
	for what, change := range map[string]func(*Config){
		"no region":     func(c *Config) { c.Region = "" },
		"a bad region":  func(c *Config) { c.Region = "cn.example.org/" },
		"no scheme":     func(c *Config) { c.Endpoint = "kms.cn-hangzhou.aliyuncs.com" },
		"not encrypted": func(c *Config) { c.Endpoint = "http://kms.cn-hangzhou.aliyuncs.com" },
		"no id":         func(c *Config) { c.AccessKeyID = "" },
		"a bad id":      func(c *Config) { c.AccessKeyID = "a,b" },
		"no secret":     func(c *Config) { c.AccessKeySecret = "" },
		"a bad secret":  func(c *Config) { c.AccessKeySecret = "a\n" },
		"a bad token":   func(c *Config) { c.SecurityToken = "a b" },
	} {
		c := good
		change(&c)
		want(t, what, c.Check(), snapferry.Invalid)
	}
}
