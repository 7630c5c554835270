package awskms

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	keys "github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/seal"
)

var place = seal.Context{Account: "acct-00000000000000001", Chain: snapferry.ChainID{1, 2, 3}, Region: "east"}

func room() []byte { return make([]byte, 0, seal.KeySize) }

func made(t *testing.T, d *Driver) (plain, wrapped []byte) {
	t.Helper()
	plain, wrapped, err := d.NewDataKey(t.Context(), keyOne, room(), place)
	if err != nil {
		t.Fatal(err)
	}
	return plain, wrapped
}

func want(t *testing.T, what string, err error, kind snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, kind) {
		t.Errorf("%s: got %v (%v), want %v", what, err, snapferry.KindOf(err), kind)
	}
}

// The place of a data key is sent as the package says, and nothing else is.
func TestEncryptionContext(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	_, wrapped := made(t, d)
	if _, err := d.Rewrap(t.Context(), keyOne, wrapped, place); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place); err != nil {
		t.Fatal(err)
	}
	bound := map[string]any{
		"snapferry:account": "acct-00000000000000001", "snapferry:chain": "01020300000000000000000000000000", "snapferry:region": "east",
	}
	blob := base64.StdEncoding.EncodeToString(wrapped)
	var got []map[string]any
	for _, b := range s.bodies {
		var m map[string]any
		if err := json.Unmarshal([]byte(b), &m); err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
	}
	if diff := cmp.Diff(got, []map[string]any{
		{"KeyId": keyOne, "KeySpec": "AES_256", "EncryptionContext": bound},
		{
			"CiphertextBlob": blob, "SourceKeyId": keyOne, "SourceEncryptionContext": bound,
			"DestinationKeyId": keyOne, "DestinationEncryptionContext": bound,
		},
		{"CiphertextBlob": blob, "KeyId": keyOne, "EncryptionContext": bound},
	}); diff != "" {
		t.Errorf("requests (-got +want):\n%s", diff)
	}
	long := place
	long.Account = snapferry.AccountID(strings.Repeat("a", 300))
	_, _, err := d.NewDataKey(t.Context(), keyOne, room(), long)
	want(t, "an account of 300 bytes", err, snapferry.Invalid)
}

// Every error code of the service has the Kind that the contract gives it, and is
// tried again when it may pass.
func TestCodes(t *testing.T) {
	s := newFake(t)
	d := open(t, s, func(c *Config) { c.Attempts = 2 })
	_, wrapped := made(t, d)
	for _, test := range []struct {
		status   int
		code     string
		kind     snapferry.Kind
		attempts int
	}{
		{400, "AccessDeniedException", snapferry.Denied, 1},
		{400, "ConflictException", snapferry.Conflict, 1},
		{400, "DisabledException", snapferry.KeyUnusable, 1},
		{400, "ExpiredTokenException", snapferry.Denied, 1},
		{400, "IncorrectKeyException", snapferry.Corrupt, 1},
		{400, "InvalidArnException", snapferry.KeyUnusable, 1},
		{400, "InvalidCiphertextException", snapferry.Corrupt, 1},
		{400, "InvalidKeyUsageException", snapferry.KeyUnusable, 1},
		{400, "KMSInvalidStateException", snapferry.KeyUnusable, 1},
		{400, "LimitExceededException", snapferry.Unavailable, 2},
		{400, "NotFoundException", snapferry.KeyUnusable, 1},
		{400, "SomethingNewException", snapferry.Internal, 1},
		{400, "ThrottlingException", snapferry.Unavailable, 2},
		{400, "UnrecognizedClientException", snapferry.Denied, 1},
		{400, "UnsupportedOperationException", snapferry.Unsupported, 1},
		{400, "ValidationException", snapferry.Invalid, 1},
		{403, "InvalidClientTokenId", snapferry.Denied, 1},
		{403, "UnknownForbidden", snapferry.Denied, 1},
		{404, "UnknownMissing", snapferry.Unavailable, 2},
		{429, "UnknownOften", snapferry.Unavailable, 2},
		{500, "DependencyTimeoutException", snapferry.Unavailable, 2},
		{500, "KMSInternalException", snapferry.Unavailable, 2},
		{500, "KeyUnavailableException", snapferry.Unavailable, 2},
		{503, "UnknownBusy", snapferry.Unavailable, 2},
	} {
		s.set(func() { s.fail, s.seen, s.failAs = 99, nil, fault{test.status, test.code, "of the test."} })
		_, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
		want(t, test.code, err, test.kind)
		if n := s.count("Decrypt"); n != test.attempts {
			t.Errorf("%s: got %d attempts, want %d", test.code, n, test.attempts)
		}
		if err == nil || !strings.Contains(err.Error(), test.code+": of the test") || !strings.Contains(err.Error(), "5dfcc165") {
			t.Errorf("%s: the message %q lacks the code or the request", test.code, err)
		}
		_, err = d.Describe(t.Context(), keyOne)
		if kind := test.kind; test.code == "NotFoundException" || test.code == "InvalidArnException" {
			want(t, "describe: "+test.code, err, snapferry.NotFound)
		} else {
			want(t, "describe: "+test.code, err, kind)
		}
	}
}

// Who is refused is told what may be wrong.
func TestHints(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	_, wrapped := made(t, d)
	for message, hint := range map[string]string{
		"User: x is not authorized to perform: kms:Decrypt":                  "allow kms:",
		"The ciphertext refers to a customer master key that does not exist": "names another key",
	} {
		s.set(func() { s.fail, s.failAs = 1, fault{400, "AccessDeniedException", message} })
		_, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
		want(t, message, err, snapferry.Denied)
		if !strings.Contains(snapferry.HintOf(err), hint) {
			t.Errorf("%s: got hint %q", message, snapferry.HintOf(err))
		}
	}
}

// Answers that are not what they must be open nothing, and what they hold is in
// no error and no log.
func TestOddAnswers(t *testing.T) {
	secret := bytes.Repeat([]byte("secret!!"), 4)
	inBase64 := base64.StdEncoding.EncodeToString(secret)
	with := func(field string, value any) func(op string, out map[string]any) []byte {
		return func(_ string, out map[string]any) []byte {
			if _, ok := out["Plaintext"]; ok {
				out["Plaintext"] = secret
			}
			out[field] = value
			p, err := json.Marshal(out)
			if err != nil {
				panic(err)
			}
			return p
		}
	}
	raw := func(p string) func(string, map[string]any) []byte {
		return func(string, map[string]any) []byte { return []byte(p) }
	}
	unwrap, create, rewrap := "unwrap", "new data key", "rewrap"
	for _, test := range []struct {
		name  string
		spoil func(op string, out map[string]any) []byte
		kind  snapferry.Kind
		of    []string
	}{
		{"a key of 31 bytes", with("Plaintext", secret[:31]), snapferry.Corrupt, []string{unwrap, create}},
		{"a key of 64 bytes", with("Plaintext", append(bytes.Clone(secret), secret...)), snapferry.Corrupt, []string{unwrap, create}},
		{"no key", with("Plaintext", nil), snapferry.Corrupt, []string{unwrap, create}},
		{"another key's name", with("KeyId", fakeArn+keyTwo), snapferry.Corrupt, []string{unwrap, create, rewrap}},
		{"another source's name", with("SourceKeyId", fakeArn+keyTwo), snapferry.Corrupt, []string{rewrap}},
		{"an alias", with("KeyId", "arn:aws:kms:eu-test-1:111122223333:alias/"+keyOne), snapferry.Corrupt, []string{unwrap, create, rewrap}},
		{"no name", with("KeyId", nil), snapferry.Corrupt, []string{unwrap, create, rewrap}},
		{"no blob", with("CiphertextBlob", nil), snapferry.Corrupt, []string{create, rewrap}},
		{"a long blob", with("CiphertextBlob", make([]byte, 7000)), snapferry.Corrupt, []string{create, rewrap}},
		{"not base64", with("Plaintext", inBase64[:20]+"%"+inBase64[20:]), snapferry.Unavailable, []string{unwrap, create}},
		{"a number for a key", with("Plaintext", 7), snapferry.Unavailable, []string{unwrap, create}},
		{"malformed", raw(`{"Plaintext":"` + inBase64 + `","KeyId":"` + keyOne + `",,`), snapferry.Unavailable, []string{unwrap, create, rewrap}},
		{"cut off", raw(`{"Plaintext":"` + inBase64[:30]), snapferry.Unavailable, []string{unwrap, create, rewrap}},
		{"a page", raw("<html>" + inBase64 + "</html>"), snapferry.Unavailable, []string{unwrap, create, rewrap}},
		{"nothing", raw("{}"), snapferry.Corrupt, []string{unwrap, create, rewrap}},
		{"too long", raw(`{"Plaintext":"` + inBase64 + `"` + strings.Repeat(" ", 2*maxAnswer) + "}"), snapferry.Unavailable, []string{unwrap, create, rewrap}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newFake(t)
			var log bytes.Buffer
			d := open(t, s, func(c *Config) {
				c.Attempts, c.MaxBackoff = 2, time.Millisecond
				c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			_, wrapped := made(t, d)
			s.set(func() { s.spoil = test.spoil })
			dst := append(make([]byte, 0, 99), "front"...)
			for _, of := range test.of {
				var err error
				var got, other []byte
				switch of {
				case unwrap:
					got, err = d.Unwrap(t.Context(), keyOne, dst, wrapped, place)
				case create:
					got, other, err = d.NewDataKey(t.Context(), keyOne, dst, place)
				case rewrap:
					other, err = d.Rewrap(t.Context(), keyOne, wrapped, place)
				}
				want(t, of, err, test.kind)
				if got != nil || of == create && other != nil {
					t.Errorf("%s: it gave %d and %d bytes with an error", of, len(got), len(other))
				}
				if of != rewrap && !bytes.Equal(dst[:cap(dst)][5:], make([]byte, 94)) {
					t.Errorf("%s: it left something behind dst", of)
				}
				var raw *smithy.DeserializationError // may hold the answer
				if errors.As(err, &raw) {
					t.Errorf("%s: the SDK's error is in the chain", of)
				}
				for e := err; e != nil; e = errors.Unwrap(e) {
					for _, text := range []string{fmt.Sprintf("%v %+v %#v", e, e, e), log.String()} {
						if strings.Contains(text, inBase64[:12]) || strings.Contains(text, "secret!!") {
							t.Errorf("%s: the key is in %.900s", of, text)
						}
					}
				}
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	k := s.keys[keyOne]
	for _, test := range []struct {
		state, usage, spec string
		want               keys.Description
	}{
		{"Enabled", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", keys.Description{Name: fakeArn + keyOne, Usable: true}},
		{"Disabled", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", keys.Description{Name: fakeArn + keyOne, State: "Disabled"}},
		{"PendingDeletion", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", keys.Description{Name: fakeArn + keyOne, State: "PendingDeletion"}},
		{"", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", keys.Description{Name: fakeArn + keyOne, State: "of no state"}},
		{"Enabled", "SIGN_VERIFY", "RSA_2048", keys.Description{Name: fakeArn + keyOne, State: "KeyUsage SIGN_VERIFY"}},
		{"Enabled", "ENCRYPT_DECRYPT", "RSA_2048", keys.Description{Name: fakeArn + keyOne, State: "KeySpec RSA_2048"}},
	} {
		s.set(func() { k.state, k.usage, k.spec = test.state, test.usage, test.spec })
		for _, name := range []string{keyOne, fakeArn + keyOne, "alias/one"} {
			got, err := d.Describe(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, test.want); diff != "" {
				t.Errorf("%s (-got +want):\n%s", name, diff)
			}
		}
	}
	_, _, err := d.NewDataKey(t.Context(), keyOne, room(), place) // ENCRYPT_DECRYPT with RSA: as the service has it
	if err != nil {
		t.Error(err)
	}
	s.set(func() { k.usage = "SIGN_VERIFY" })
	_, _, err = d.NewDataKey(t.Context(), keyOne, room(), place)
	want(t, "a key that signs", err, snapferry.KeyUnusable)
	s.set(func() { k.state = "PendingDeletion" })
	_, _, err = d.NewDataKey(t.Context(), keyOne, room(), place)
	want(t, "a key that waits for its deletion", err, snapferry.KeyUnusable)
	for _, body := range []string{
		`{}`, `{"KeyMetadata":{}}`, `{"KeyMetadata":{"KeyId":"` + keyOne + `","KeyState":"Enabled"}}`,
		`{"KeyMetadata":{"KeyId":"` + keyTwo + `","Arn":"` + fakeArn + keyTwo + `","KeyState":"Enabled"}}`,
	} {
		s.set(func() { s.spoil = func(string, map[string]any) []byte { return []byte(body) } })
		_, err := d.Describe(t.Context(), keyOne)
		want(t, body, err, snapferry.Corrupt)
	}
}

// Names and blobs that the service would refuse are not sent to it, nor are
// aliases.
func TestNotSent(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	for name, kind := range map[string]snapferry.Kind{
		"": snapferry.KeyUnusable, strings.Repeat("k", 2049): snapferry.KeyUnusable,
		"alias/one": snapferry.Invalid, "arn:aws:kms:eu-test-1:111122223333:alias/one": snapferry.Invalid,
	} {
		_, _, err := d.NewDataKey(t.Context(), name, room(), place)
		want(t, "new data key", err, kind)
		_, err = d.Unwrap(t.Context(), name, room(), []byte("blob"), place)
		want(t, "unwrap", err, kind)
		_, err = d.Rewrap(t.Context(), name, []byte("blob"), place)
		want(t, "rewrap", err, kind)
		want(t, "rotate", d.Rotate(t.Context(), name), kind)
	}
	for _, n := range []int{0, 6145} {
		_, err := d.Unwrap(t.Context(), keyOne, room(), make([]byte, n), place)
		want(t, "unwrap", err, snapferry.Corrupt)
		_, err = d.Rewrap(t.Context(), keyOne, make([]byte, n), place)
		want(t, "rewrap", err, snapferry.Corrupt)
	}
	_, err := d.Describe(t.Context(), "")
	want(t, "describe no name", err, snapferry.NotFound)
	if len(s.seen) > 0 {
		t.Errorf("it sent %v", s.seen)
	}
}

func TestRotate(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	k := s.keys[keyOne]
	generations := func() (n int) { s.set(func() { n = len(k.material) }); return n }
	if err := d.Rotate(t.Context(), keyOne); err != nil {
		t.Fatal(err)
	}
	if n := generations(); n != 2 {
		t.Errorf("after Rotate: got %d generations, want 2", n)
	}
	// One that somebody else began is waited for.
	s.set(func() { k.rotating = 3 })
	if err := d.Rotate(t.Context(), keyOne); err != nil || generations() != 3 {
		t.Errorf("during another rotation: %v, %d generations", err, generations())
	}
	// One whose answer was lost is not begun twice.
	dropped := false
	s.set(func() {
		s.after = func(op string) bool {
			drop := op == "RotateKeyOnDemand" && !dropped
			dropped = dropped || drop
			return drop
		}
	})
	if err := d.Rotate(t.Context(), keyOne); err != nil || generations() != 4 || k.rotations != 2 {
		t.Errorf("after a lost answer: %v, %d generations, %d rotations", err, generations(), k.rotations)
	}
	// The status of a rotation need not name the key, and must not name another.
	s.set(func() {
		s.spoil = func(op string, out map[string]any) []byte {
			if op != "GetKeyRotationStatus" {
				return nil
			}
			delete(out, "KeyId")
			p, _ := json.Marshal(out)
			return p
		}
	})
	if err := d.Rotate(t.Context(), keyOne); err != nil || generations() != 5 {
		t.Errorf("with a status that names no key: %v, %d generations", err, generations())
	}
	s.set(func() {
		s.spoil = func(op string, _ map[string]any) []byte {
			if op != "GetKeyRotationStatus" {
				return nil
			}
			return []byte(`{"KeyId":"` + keyTwo + `"}`)
		}
	})
	want(t, "the status of another key", d.Rotate(t.Context(), keyOne), snapferry.Corrupt)
	s.set(func() { s.spoil, k.rotating, k.scheduled = nil, 0, true })
	want(t, "near a rotation by the schedule", d.Rotate(t.Context(), keyOne), snapferry.Conflict)
	s.set(func() { k.scheduled, k.rotations, s.seen = false, 25, nil })
	want(t, "after 25 rotations", d.Rotate(t.Context(), keyOne), snapferry.Full)
	if n := s.count("RotateKeyOnDemand"); n != 1 {
		t.Errorf("what is used up was asked for %d times", n)
	}
	s.set(func() { k.rotations, k.rotating = 0, 1<<30 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	want(t, "a rotation that does not end", d.Rotate(ctx, keyOne), snapferry.Unavailable)
	want(t, "a key that never was", d.Rotate(t.Context(), keyMissing), snapferry.KeyUnusable)
	s.set(func() {
		k.rotating = 0
		s.spoil = func(string, map[string]any) []byte { return []byte(`{"KeyId":"` + keyTwo + `"}`) }
	})
	want(t, "another key's name", d.Rotate(t.Context(), keyOne), snapferry.Corrupt)
}

// Each fault comes twice: the service did nothing, and it did what was asked.
func TestLostAnswers(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	lost := map[string]int{}
	s.set(func() {
		s.after = func(op string) bool { lost[op]++; return lost[op] == 1 }
	})
	plain, wrapped := made(t, d)
	again, err := d.Rewrap(t.Context(), keyOne, wrapped, place)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Unwrap(t.Context(), keyOne, room(), again, place)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: %v", err)
	}
	if diff := cmp.Diff(s.seen, []string{"GenerateDataKey", "GenerateDataKey", "ReEncrypt", "ReEncrypt", "Decrypt", "Decrypt"}); diff != "" {
		t.Errorf("requests (-got +want):\n%s", diff)
	}
}

// An answer that cannot be read is asked for again.
func TestOddOnce(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	plain, wrapped := made(t, d)
	for _, odd := range []string{"{\"x", "<html></html>", strings.Repeat(" ", 2*maxAnswer) + "{}"} {
		n := 0
		s.set(func() {
			s.spoil = func(string, map[string]any) []byte {
				if n++; n > 1 {
					return nil
				}
				return []byte(odd)
			}
		})
		got, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
		if err != nil || !bytes.Equal(got, plain) || n != 2 {
			t.Errorf("%.20q: %v, %d answers", odd, err, n)
		}
	}
}

// An attempt that hangs is given up and made again, within the caller's time.
func TestHangsOnce(t *testing.T) {
	s := newFake(t)
	d := open(t, s, func(c *Config) { c.AttemptTime = 200 * time.Millisecond })
	plain, wrapped := made(t, d)
	s.set(func() { s.hang = make(chan struct{}) })
	go func() {
		<-s.hung
		s.set(func() { s.hang = nil }) // for the next ones
	}()
	got, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	s := newFake(t)
	d := open(t, s, func(c *Config) { c.Limit = 1 })
	_, wrapped := made(t, d)
	s.set(func() { s.hang = make(chan struct{}) })
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := d.Unwrap(ctx, keyOne, room(), wrapped, place)
		result <- err
	}()
	<-s.hung
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	_, err := d.Unwrap(short, keyOne, room(), wrapped, place)
	want(t, "in the queue", err, snapferry.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "behind 1 calls") {
		t.Errorf("the message %q does not say why", err)
	}
	cancel()
	want(t, "while it hangs", <-result, snapferry.Cancelled)
}

// What the last attempt met is told when the time is over.
func TestTimeOver(t *testing.T) {
	s := newFake(t)
	d := open(t, s, func(c *Config) { c.Attempts = 1000 })
	_, wrapped := made(t, d)
	s.set(func() { s.fail = 1 << 20 })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := d.Unwrap(ctx, keyOne, room(), wrapped, place)
	want(t, "throttled to the end", err, snapferry.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "ThrottlingException") {
		t.Errorf("the message %q does not say why", err)
	}
}

// provider gives what it has.
type provider struct {
	mu    sync.Mutex
	creds aws.Credentials
	err   error
	calls int
}

func (p *provider) Retrieve(context.Context) (aws.Credentials, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	return p.creds, p.err
}

func TestCredentials(t *testing.T) {
	s := newFake(t)
	s.session = fakeSession
	of := func(p *provider) *Driver {
		return open(t, s, func(c *Config) { c.Credentials, c.Attempts = p, 3 })
	}
	ok := &provider{creds: aws.Credentials{AccessKeyID: fakeAccess, SecretAccessKey: fakeSecret, SessionToken: fakeSession}}
	d := of(ok)
	for range 3 {
		if err := d.Health(t.Context()); err != nil {
			t.Errorf("with a session: %v", err)
		}
	}
	if ok.calls != 1 {
		t.Errorf("the provider was asked %d times", ok.calls)
	}
	expired := &provider{creds: ok.creds}
	expired.creds.CanExpire, expired.creds.Expires = true, time.Now().Add(-time.Hour)
	d = of(expired)
	_ = d.Health(t.Context())
	_ = d.Health(t.Context())
	if expired.calls < 2 {
		t.Error("credentials that have expired are not fetched again")
	}
	for what, test := range map[string]struct {
		p    *provider
		kind snapferry.Kind
	}{
		"no session":       {&provider{creds: aws.Credentials{AccessKeyID: fakeAccess, SecretAccessKey: fakeSecret}}, snapferry.Denied},
		"another key":      {&provider{creds: aws.Credentials{AccessKeyID: "AKIDOTHER", SecretAccessKey: fakeSecret}}, snapferry.Denied},
		"another secret":   {&provider{creds: aws.Credentials{AccessKeyID: fakeAccess, SecretAccessKey: "wrong"}}, snapferry.Denied},
		"nothing":          {&provider{}, snapferry.Denied},
		"refused":          {&provider{err: errors.New("the role is not yours")}, snapferry.Denied},
		"out of reach":     {&provider{err: fmt.Errorf("ask for the role: %w", context.DeadlineExceeded)}, snapferry.Unavailable},
		"provider's fault": {&provider{err: snapferry.Errorf(snapferry.Unavailable, "try later")}, snapferry.Unavailable},
	} {
		err := of(test.p).Health(t.Context())
		want(t, what, err, test.kind)
		if err != nil && (strings.Contains(err.Error(), fakeSecret) || strings.Contains(err.Error(), fakeSession)) {
			t.Errorf("%s: the secret is in %q", what, err)
		}
	}
	for _, keys := range [][2]string{{"", "s"}, {"k", ""}} {
		_, err := Static(keys[0], keys[1], "")
		want(t, "half an access key", err, snapferry.Denied)
	}
}

// Chain finds what the SDK finds, and says at once when there is nothing.
func TestChain(t *testing.T) {
	s := newFake(t)
	file := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[region]\naws_access_key_id = %s\naws_secret_access_key = %s\n", fakeAccess, fakeSecret)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "config"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	found, err := Chain(t.Context(), fakeRegion, "region")
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, s, func(c *Config) { c.Credentials = found }).Health(t.Context()); err != nil {
		t.Error(err)
	}
	for _, profile := range []string{"", "other"} {
		_, err := Chain(t.Context(), fakeRegion, profile)
		want(t, "profile "+profile, err, snapferry.Denied)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	if found, err = Chain(t.Context(), fakeRegion, ""); err != nil {
		t.Fatal(err)
	}
	want(t, "a key that the service does not know", open(t, s, func(c *Config) { c.Credentials = found }).Health(t.Context()), snapferry.Denied)
}

func TestConfig(t *testing.T) {
	good, err := Static("k", "s", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{
		{Region: "eu-central-1"},
		{Region: "eu-central-1", Endpoint: "https://kms.example.org"},
		{Region: "us-gov-west-1", Endpoint: "http://127.0.0.1:8080"},
		{Region: "eusc-de-east-1", Endpoint: "http://[::1]:8080"},
	} {
		if err := c.Check(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []Config{
		{},
		{Region: "EU"},
		{Region: "eu-central-1.evil.example/"},
		{Region: "eu-central-1", Endpoint: "kms.example.org"},
		{Region: "eu-central-1", Endpoint: "http://kms.example.org"},
		{Region: "eu-central-1", Endpoint: "http://10.0.0.1"},
		{Region: "eu-central-1", Endpoint: "https://a:b@kms.example.org"},
		{Region: "eu-central-1", Endpoint: "ftp://127.0.0.1"},
	} {
		c.Credentials = good
		_, err := New(c)
		want(t, fmt.Sprintf("region %q, endpoint %q", c.Region, c.Endpoint), err, snapferry.Invalid)
	}
	_, err = New(Config{Region: "eu-central-1"})
	want(t, "no credentials", err, snapferry.Invalid)
	d, err := New(Config{Region: "eu-central-1", Credentials: good})
	if err != nil {
		t.Fatal(err)
	}
	if d.client.Options().Region != "eu-central-1" || d.client.Options().BaseEndpoint != nil {
		t.Error("without an endpoint it does not use the region's own")
	}
}

// A redirect is not followed: it would carry the request, and bring the key, from
// somewhere else.
func TestRedirect(t *testing.T) {
	s := newFake(t)
	for _, status := range []int{301, 302, 303, 307, 308} {
		away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, s.url(), status) }))
		d := open(t, s, func(c *Config) { c.Endpoint, c.Attempts, c.HTTPClient = away.URL, 2, away.Client() })
		_, _, err := d.NewDataKey(t.Context(), keyOne, room(), place)
		want(t, fmt.Sprint(status), err, snapferry.Unavailable)
		if len(s.seen) > 0 {
			t.Errorf("%d: it followed: %v", status, s.seen)
		}
		away.Close()
	}
}

// A page of a proxy says nothing of keys and callers, whatever its status.
func TestProxyPage(t *testing.T) {
	for _, status := range []int{403, 404, 501, 502} {
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, "<html>something else</html>")
		}))
		d := open(t, newFake(t), func(c *Config) { c.Endpoint, c.Attempts = proxy.URL, 2 })
		err := d.Health(t.Context())
		want(t, fmt.Sprint(status), err, snapferry.Unavailable)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) {
			t.Errorf("the message %q does not tell %d", err, status)
		}
		proxy.Close()
	}
}

// A service whose certificate nobody vouches for is not asked twice.
func TestUnknownAuthority(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	defer s.Close()
	cfg := testConfig(t, newFake(t))
	cfg.Endpoint = s.URL
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = d.Health(t.Context())
	want(t, "unknown authority", err, snapferry.Unavailable)
	if snapferry.HintOf(err) == "" || strings.Contains(err.Error(), "attempts") {
		t.Errorf("got %q, hint %q", err, snapferry.HintOf(err))
	}
}

// Health works for a caller that may do nothing else, and opens nothing.
func TestHealth(t *testing.T) {
	s := newFake(t)
	if err := open(t, s).Health(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.seen, []string{"GenerateRandom"}) {
		t.Errorf("it asked for %v", s.seen)
	}
	s.set(func() { s.deny = true })
	want(t, "denied", open(t, s).Health(t.Context()), snapferry.Denied)
}
