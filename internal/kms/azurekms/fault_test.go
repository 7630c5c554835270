package azurekms

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
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
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

// Every answer of the service has the Kind that the contract gives it, and is
// asked for again when another may come.
func TestCodes(t *testing.T) {
	s := newFake(t)
	d := open(t, s, func(c *Config) { c.Attempts = 2 })
	_, wrapped := made(t, d)
	for _, test := range []struct {
		status      int
		code, inner string
		kind        snapferry.Kind
		attempts    int
	}{
		{400, "BadParameter", "", snapferry.Corrupt, 1},
		{400, "SomethingElse", "", snapferry.Invalid, 1},
		{403, "Forbidden", "", snapferry.Denied, 1},
		{403, "Forbidden", "AccessDenied", snapferry.Denied, 1},
		{403, "Forbidden", "ForbiddenByFirewall", snapferry.Denied, 1},
		{403, "Forbidden", "ForbiddenByRbac", snapferry.Denied, 1},
		{403, "Forbidden", "KeyDisabled", snapferry.KeyUnusable, 1},
		{403, "Forbidden", "KeyExpired", snapferry.KeyUnusable, 1},
		{403, "Forbidden", "KeyNotYetValid", snapferry.KeyUnusable, 1},
		{404, "NotOurs", "", snapferry.Unavailable, 1},
		{405, "MethodNotAllowed", "", snapferry.Internal, 1},
		{408, "RequestTimeout", "", snapferry.Unavailable, 2},
		{409, "Conflict", "ObjectIsDeletedButRecoverable", snapferry.KeyUnusable, 1},
		{409, "Conflict", "ObjectIsBeingRecovered", snapferry.Conflict, 1},
		{429, "Throttled", "", snapferry.Unavailable, 2},
		{500, "InternalServerError", "", snapferry.Unavailable, 2},
		{503, "ServiceUnavailable", "", snapferry.Unavailable, 2},
		{507, "Odd", "", snapferry.Unavailable, 2},
	} {
		s.set(func() {
			s.fail, s.seen, s.failAs = 99, nil, fault{status: test.status, code: test.code, inner: test.inner, message: "of the test."}
		})
		_, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
		what := test.code + " " + test.inner
		want(t, what, err, test.kind)
		if len(s.seen) != test.attempts {
			t.Errorf("%s: got %d attempts, want %d", what, len(s.seen), test.attempts)
		}
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(what)+": of the test") || strings.Contains(err.Error(), "\n") {
			t.Errorf("the message %q lacks %s", err, what)
		}
	}
	// Answers that have no inner code.
	s.set(func() {
		s.failAs = fault{status: 403, code: "Forbidden", message: "Operation unwrapKey is not allowed on a disabled key."}
	})
	_, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	want(t, "a disabled key, by the message", err, snapferry.KeyUnusable)
	s.set(func() { s.failAs = fault{status: 404, code: "KeyNotFound"} })
	_, err = d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	want(t, "a key that is gone", err, snapferry.KeyUnusable)
	s.set(func() { s.failAs = fault{status: 400, code: "BadParameter"} })
	_, _, err = d.NewDataKey(t.Context(), keyOne, room(), place)
	want(t, "a bad parameter when it wraps", err, snapferry.Invalid)
}

// The service asks for a wait.
func TestRetryAfter(t *testing.T) {
	s := newFake(t)
	d := open(t, s, func(c *Config) { c.MaxBackoff = 3 * time.Second })
	_, wrapped := made(t, d)
	s.set(func() { s.fail, s.failAs.wait = 1, "1" })
	start := time.Now()
	if _, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("it waited %v, not the second that was asked for", took)
	}
	s.set(func() { s.fail, s.failAs.wait = 1, "30" })
	start = time.Now()
	_, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	want(t, "a wait of 30 s", err, snapferry.Unavailable)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it waited %v", took)
	}
}

// Answers that are not what they must be open nothing, and what they hold is in
// no error and no log.
func TestOddAnswers(t *testing.T) {
	plain := bytes.Repeat([]byte("secret!!"), 8)
	inBase64 := base64.RawURLEncoding.EncodeToString(plain)
	unwrap, create, rewrap := "unwrap", "new data key", "rewrap"
	// with spoils a field of the answers to one operation.
	with := func(of, field string, value func(s *fakeVault) any) func(s *fakeVault, op string, out map[string]any) []byte {
		return func(s *fakeVault, op string, out map[string]any) []byte {
			if op != of {
				return nil
			}
			if k, ok := out["key"].(map[string]any); ok && field == "kid" {
				k["kid"] = value(s)
			}
			out[field] = value(s)
			p, err := json.Marshal(out)
			if err != nil {
				panic(err)
			}
			return p
		}
	}
	is := func(v any) func(*fakeVault) any { return func(*fakeVault) any { return v } }
	raw := func(of, p string) func(*fakeVault, string, map[string]any) []byte {
		return func(_ *fakeVault, op string, _ map[string]any) []byte {
			if op != of {
				return nil
			}
			return []byte(p)
		}
	}
	other := func(s *fakeVault) any { return s.kid(keyTwo, s.keys[keyTwo].versions[0]) }
	otherVersion := func(s *fakeVault) any { return s.kid(keyOne, &fakeVersion{id: strings.Repeat("a", 32)}) }
	otherVault := func(s *fakeVault) any {
		return "https://other.example.com/keys/" + keyOne + "/" + s.keys[keyOne].versions[0].id
	}
	both := []string{unwrap, rewrap}
	for _, test := range []struct {
		name  string
		spoil func(s *fakeVault, op string, out map[string]any) []byte
		kind  snapferry.Kind
		of    []string
	}{
		{"a key in no place", with("unwrapkey", "value", is(inBase64)), snapferry.Corrupt, both},
		{"a key without a place", with("unwrapkey", "value", is(base64.RawURLEncoding.EncodeToString(plain[:32]))), snapferry.Corrupt, both},
		{"no key", with("unwrapkey", "value", is(nil)), snapferry.Corrupt, both},
		{"another key's name", with("unwrapkey", "kid", other), snapferry.Corrupt, both},
		{"another version", with("unwrapkey", "kid", otherVersion), snapferry.Corrupt, both},
		{"another vault", with("unwrapkey", "kid", otherVault), snapferry.Corrupt, both},
		{"no name", with("unwrapkey", "kid", is(nil)), snapferry.Corrupt, both},
		{"a name without a version", with("unwrapkey", "kid", is("https://x/keys")), snapferry.Corrupt, both},
		{"not base64", with("unwrapkey", "value", is(inBase64[:20]+"%"+inBase64[20:])), snapferry.Unavailable, both},
		{"a number for a key", with("unwrapkey", "value", is(7)), snapferry.Unavailable, both},
		{"malformed", raw("unwrapkey", `{"value":"`+inBase64+`",,`), snapferry.Unavailable, both},
		{"cut off", raw("unwrapkey", `{"value":"`+inBase64[:30]), snapferry.Unavailable, both},
		{"a page", raw("unwrapkey", "<html>"+inBase64+"</html>"), snapferry.Unavailable, both},
		{"nothing", raw("unwrapkey", "{}"), snapferry.Corrupt, both},
		{"too long", raw("unwrapkey", `{"value":"`+inBase64+`"`+strings.Repeat(" ", 2*maxAnswer)+"}"), snapferry.Unavailable, both},
		{"wrapped with another key", with("wrapkey", "kid", other), snapferry.Corrupt, []string{create, rewrap}},
		{"wrapped with another version", with("wrapkey", "kid", otherVersion), snapferry.Corrupt, []string{create, rewrap}},
		{"wrapped in nothing", with("wrapkey", "value", is(nil)), snapferry.Corrupt, []string{create, rewrap}},
		{"wrapped in much", with("wrapkey", "value", is(strings.Repeat("AAAA", 1000))), snapferry.Corrupt, []string{create, rewrap}},
		{"the newest of another key", with("get", "kid", other), snapferry.Corrupt, []string{create, rewrap}},
		{"the newest of none", raw("get", "{}"), snapferry.Corrupt, []string{create, rewrap}},
		{"the newest with an odd version", with("get", "kid", func(s *fakeVault) any { return s.url() + "/keys/" + keyOne + "/../x" }), snapferry.Corrupt, []string{create, rewrap}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newFake(t)
			var log bytes.Buffer
			d := open(t, s, func(c *Config) {
				c.Attempts = 2
				c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			_, wrapped := made(t, d)
			s.set(func() { s.spoil = func(op string, out map[string]any) []byte { return test.spoil(s, op, out) } })
			dst := append(make([]byte, 0, 99), "front"...)
			for _, of := range test.of {
				var err error
				var got, blob []byte
				switch of {
				case unwrap:
					got, err = d.Unwrap(t.Context(), keyOne, dst, wrapped, place)
				case create:
					got, blob, err = d.NewDataKey(t.Context(), keyOne, dst, place)
				case rewrap:
					blob, err = d.Rewrap(t.Context(), keyOne, wrapped, place)
				}
				want(t, of, err, test.kind)
				if got != nil || blob != nil {
					t.Errorf("%s: it gave %d and %d bytes with an error", of, len(got), len(blob))
				}
				if !bytes.Equal(dst[:cap(dst)][5:], make([]byte, 94)) {
					t.Errorf("%s: it left something behind dst", of)
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

// A status that is not 200 with a key in it: an error of the SDK would show it.
func TestOddStatus(t *testing.T) {
	s := newFake(t)
	status := 201
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/unwrapkey") && r.Header.Get("Authorization") != "" {
			w.WriteHeader(status)
			fmt.Fprint(w, `{"value":"c2VjcmV0ISE"}`)
			return
		}
		s.ServeHTTP(w, r)
	}))
	s.stop()
	front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	front.StartTLS()
	s.server, s.addr = front, front.Listener.Addr().String()
	d := open(t, s, func(c *Config) { c.Attempts = 2 })
	_, wrapped := made(t, d)
	for _, status = range []int{201, 202, 204, 301, 307} {
		_, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
		want(t, fmt.Sprint(status), err, snapferry.Unavailable)
		for e := err; e != nil; e = errors.Unwrap(e) {
			if text := fmt.Sprintf("%v %+v", e, e); strings.Contains(text, "c2VjcmV0") {
				t.Errorf("%d: the key is in %q", status, text)
			}
		}
	}
}

// Challenges that the SDK cannot parse, or must not follow, end in an error.
func TestChallenges(t *testing.T) {
	for ask, kind := range map[string]snapferry.Kind{
		"Bearer": snapferry.Denied,
		"Basic":  snapferry.Denied,
		`Bearer authorization="x", resource="https://example.com"`:                                    snapferry.Denied,
		`Bearer authorization="https://login.example.com", resource="https://example.com"`:            snapferry.Denied,
		`Bearer resource="https://evil.example", authorization="https://login.example.com/t"`:         snapferry.Denied,
		`Bearer authorization="https://login.example.com/evil", resource="https://example.com{port}"`: snapferry.Denied,
		`Bearer error="insufficient_claims", claims="%%%"`:                                            snapferry.Denied,
	} {
		s := newFake(t)
		d := open(t, s, func(c *Config) { c.Attempts = 2 })
		s.set(func() { s.ask = strings.ReplaceAll(ask, "{port}", s.port()) })
		_, _, err := d.NewDataKey(t.Context(), keyOne, room(), place)
		want(t, ask, err, kind)
		if s.granted > 0 {
			t.Errorf("%s: it was given a token", ask)
		}
	}
	for ask, ok := range map[string]bool{
		"": true, `Bearer authorization="https://login.example.com/t", resource="r"`: true, "Bearer authorization=": true,
		`authorization="a/b/c"`: false, `authorization=a,`: false, `x="1" authorization="https://h"`: false,
	} {
		if got := parsable(ask); got != ok {
			t.Errorf("parsable(%q): got %v, want %v", ask, got, ok)
		}
	}
}

// One handshake is enough, until the token is not good any more.
func TestTokens(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	_, wrapped := made(t, d)
	for range 3 {
		if _, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place); err != nil {
			t.Fatal(err)
		}
	}
	if s.asked != 1 || s.granted != 1 {
		t.Errorf("%d challenges and %d tokens, want one of each", s.asked, s.granted)
	}
	s.set(func() { clear(s.tokens) })
	if _, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place); err != nil || s.granted != 2 {
		t.Errorf("after the token was revoked: %v, %d tokens", err, s.granted)
	}
	for what, test := range map[string]struct {
		err  error
		kind snapferry.Kind
	}{
		"refused":       {errors.New("the client is not known"), snapferry.Denied},
		"own":           {snapferry.Errorf(snapferry.Unavailable, "later"), snapferry.Unavailable},
		"not reachable": {fmt.Errorf("dial: %w", context.DeadlineExceeded), snapferry.Unavailable},
	} {
		d := open(t, s, func(c *Config) { c.Credential = credential{s: s, err: test.err} })
		want(t, what, d.Health(t.Context()), test.kind)
	}
}

func TestClientSecret(t *testing.T) {
	s := newFake(t)
	of := func(change func(*ClientConfig)) *Driver {
		cfg := ClientConfig{Tenant: tenant, ClientID: clientID, Secret: secret, Authority: "https://" + loginHost + s.port(), HTTPClient: s.client(), Backoff: time.Millisecond}
		change(&cfg)
		c, err := ClientSecret(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return open(t, s, func(c2 *Config) { c2.Credential = c })
	}
	d := of(func(*ClientConfig) {})
	plain, wrapped := made(t, d)
	got, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: %v", err)
	}
	if s.granted != 1 {
		t.Errorf("it took %d tokens", s.granted)
	}
	err = of(func(c *ClientConfig) { c.Secret = "wrong-secret" }).Health(t.Context())
	want(t, "another secret", err, snapferry.Denied)
	if err != nil && (!strings.Contains(err.Error(), "AADSTS7000215") || strings.Contains(err.Error(), "wrong-secret") || strings.Contains(err.Error(), "Trace")) {
		t.Errorf("got %q", err)
	}
	want(t, "another tenant", of(func(c *ClientConfig) { c.Tenant = strings.Replace(tenant, "3", "5", 1) }).Health(t.Context()), snapferry.Denied)
	for status, kind := range map[int]snapferry.Kind{503: snapferry.Unavailable, 429: snapferry.Unavailable, 400: snapferry.Denied} {
		s.set(func() { s.login = fault{status: status, code: "temporarily_unavailable", message: "AADSTS90033"} })
		want(t, fmt.Sprint(status), of(func(*ClientConfig) {}).Health(t.Context()), kind)
	}
	s.up()
	want(t, "an authority that is not reached", of(func(c *ClientConfig) {
		c.HTTPClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		c.Authority = "https://127.0.0.1:1"
	}).Health(t.Context()), snapferry.Unavailable)
	for _, c := range []ClientConfig{
		{},
		{Tenant: "t", ClientID: "c"},
		{Tenant: "t", Secret: "s"},
		{ClientID: "c", Secret: "s"},
		{Tenant: "t", ClientID: "c", Secret: "s", Authority: "http://login.example.com"},
		{Tenant: "a/b", ClientID: "c", Secret: "s"},
	} {
		_, err := ClientSecret(c)
		want(t, fmt.Sprintf("%+v", c), err, snapferry.Invalid)
	}
	if _, err := ClientSecret(ClientConfig{Tenant: tenant, ClientID: clientID, Secret: secret}); err != nil {
		t.Errorf("the public cloud: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	k := s.keys[keyOne]
	v := k.versions[0]
	full := s.url() + "/keys/" + keyOne
	hour := int64(3600)
	now := time.Now().Unix()
	for _, test := range []struct {
		state  string
		change func()
	}{
		{"", func() {}},
		{"", func() { v.nbf, v.exp = now-hour, now+hour }},
		{"disabled", func() { v.enabled = false }},
		{"disabled", func() { v.enabled, s.strict = false, true }},
		{"not yet valid", func() { v.nbf = now + hour }},
		{"expired", func() { v.exp = now - hour }},
		{"of another type than RSA", func() { k.kty = "EC" }},
		{"not permitted to wrapKey", func() { k.ops = []string{"unwrapKey", "sign"} }},
		{"not permitted to unwrapKey", func() { k.ops = []string{"wrapKey"} }},
		{"deleted", func() { k.deleted = true }},
	} {
		s.set(func() {
			*k = fakeKey{kty: "RSA", ops: []string{"wrapKey", "unwrapKey"}, versions: k.versions}
			*v = fakeVersion{id: v.id, private: v.private, enabled: true}
			s.strict = false
			test.change()
		})
		for _, name := range []string{keyOne, strings.ToUpper(keyOne), full} {
			got, err := d.Describe(t.Context(), name)
			if err != nil {
				t.Errorf("%q: %v", test.state, err)
				continue
			}
			if !strings.EqualFold(got.Name, full) || got.State != test.state || got.Usable != (test.state == "") {
				t.Errorf("got %+v, want state %q", got, test.state)
			}
		}
		_, _, err := d.NewDataKey(t.Context(), keyOne, room(), place)
		if test.state == "" && err != nil {
			t.Error(err)
		} else if test.state != "" {
			want(t, "new data key: "+test.state, err, snapferry.KeyUnusable)
		}
	}
	// Who may not see deleted keys is told that there is none.
	s.set(func() { k.deleted = false; delete(s.keys, keyOne) })
	_, err := d.Describe(t.Context(), keyOne)
	want(t, "gone", err, snapferry.NotFound)
}

// A key that expired wraps nothing, but opens what it wrapped.
func TestExpired(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	plain, wrapped := made(t, d)
	s.set(func() { s.keys[keyOne].versions[0].exp = time.Now().Unix() - 1 })
	got, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: %v", err)
	}
	_, err = d.Rewrap(t.Context(), keyOne, wrapped, place)
	want(t, "rewrap", err, snapferry.KeyUnusable)
	if err := d.Rotate(t.Context(), keyOne); err != nil {
		t.Fatal(err)
	}
	again, err := d.Rewrap(t.Context(), keyOne, wrapped, place)
	if err != nil {
		t.Fatal(err)
	}
	// An old version that is disabled opens nothing, while the newest one wraps.
	s.set(func() { s.keys[keyOne].versions[0].enabled = false })
	_, err = d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	want(t, "an old version that is disabled", err, snapferry.KeyUnusable)
	if got, err = d.Unwrap(t.Context(), keyOne, room(), again, place); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap what was wrapped again: %v", err)
	}
	if bytes.Equal(again[:34], wrapped[:34]) {
		t.Error("it was wrapped again under the old version")
	}
}

// A key that was deleted opens nothing; one that was made again under its name is
// another one.
func TestDeleted(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	_, wrapped := made(t, d)
	s.set(func() { s.keys[keyOne].deleted = true })
	_, err := d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	want(t, "deleted", err, snapferry.KeyUnusable)
	want(t, "rotate what is deleted", d.Rotate(t.Context(), keyOne), snapferry.KeyUnusable)
	s.set(func() {
		s.keys[keyOne].deleted = false
		s.keys[keyOne].versions = []*fakeVersion{newVersion(pool()[3])}
	})
	_, err = d.Unwrap(t.Context(), keyOne, room(), wrapped, place)
	want(t, "made again", err, snapferry.Corrupt)
}

func TestNames(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	for _, name := range []string{
		"", "a/b", "../secrets/x", "a b", "ü", strings.Repeat("k", 128), s.url() + "/secrets/" + keyOne, s.url() + "/keys/",
		s.url() + "/keys/" + keyOne + "/0123456789abcdef0123456789abcdef", "https://other.vault.azure.net/keys/" + keyOne, "http:" + s.url()[6:] + "/keys/" + keyOne,
	} {
		_, _, err := d.NewDataKey(t.Context(), name, room(), place)
		want(t, "new data key of "+name, err, snapferry.KeyUnusable)
		_, err = d.Unwrap(t.Context(), name, room(), []byte{1}, place)
		want(t, "unwrap with "+name, err, snapferry.KeyUnusable)
		_, err = d.Describe(t.Context(), name)
		want(t, "describe "+name, err, snapferry.NotFound)
		want(t, "rotate "+name, d.Rotate(t.Context(), name), snapferry.KeyUnusable)
	}
	if len(s.seen) > 0 || s.asked > 0 {
		t.Errorf("it sent %v", s.seen)
	}
	long := place
	long.Region = snapferry.RegionName(strings.Repeat("r", 300))
	_, _, err := d.NewDataKey(t.Context(), keyOne, room(), long)
	want(t, "a region of 300 bytes", err, snapferry.Invalid)
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
	if err := d.Rotate(t.Context(), keyOne); err != nil {
		t.Fatal(err)
	}
	again, err := d.Rewrap(t.Context(), keyOne, wrapped, place)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Unwrap(t.Context(), keyOne, room(), again, place)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: %v", err)
	}
	if diff := cmp.Diff(s.seen, []string{
		"get", "get", "wrapkey", "wrapkey", "rotate", "rotate", "unwrapkey", "unwrapkey", "get", "wrapkey", "unwrapkey",
	}); diff != "" {
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
	d := open(t, s, func(c *Config) { c.AttemptTime = 300 * time.Millisecond })
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
	if err == nil || !strings.Contains(err.Error(), "429") {
		t.Errorf("the message %q does not say why", err)
	}
}

func TestRotate(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	if err := d.Rotate(t.Context(), keyOne); err != nil {
		t.Fatal(err)
	}
	if n := len(s.keys[keyOne].versions); n != 2 {
		t.Errorf("got %d versions, want 2", n)
	}
	want(t, "a key that never was", d.Rotate(t.Context(), keyMissing), snapferry.KeyUnusable)
	s.set(func() { s.spoil = func(string, map[string]any) []byte { return []byte("{}") } })
	want(t, "no key in the answer", d.Rotate(t.Context(), keyOne), snapferry.Corrupt)
	s.set(func() {
		s.spoil = func(string, map[string]any) []byte {
			return []byte(`{"key":{"kid":"` + s.kid(keyTwo, s.keys[keyTwo].versions[0]) + `"}}`)
		}
	})
	want(t, "another key in the answer", d.Rotate(t.Context(), keyOne), snapferry.Corrupt)
}

func TestHealth(t *testing.T) {
	s := newFake(t)
	d := open(t, s)
	if err := d.Health(t.Context()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(s.seen, []string{"get"}); diff != "" {
		t.Errorf("requests (-got +want):\n%s", diff)
	}
	s.set(func() { s.deny = true })
	want(t, "denied", d.Health(t.Context()), snapferry.Denied)
	s.up()
	s.set(func() { s.fail, s.failAs = 99, fault{status: 404, code: "PageNotFound"} })
	want(t, "something else at the address", d.Health(t.Context()), snapferry.Unavailable)
}

func TestConfig(t *testing.T) {
	for _, vault := range []string{"https://example.vault.azure.net", "https://example.vault.azure.net/", "https://v.example.org:8443"} {
		if err := (Config{Vault: vault}).Check(); err != nil {
			t.Errorf("%s: %v", vault, err)
		}
	}
	for _, vault := range []string{
		"", "example", "example.vault.azure.net", "http://example.vault.azure.net", "https://example", "https://a:b@example.vault.azure.net",
		"https://example.vault.azure.net/keys", "https://example.vault.azure.net?x=1",
	} {
		_, err := New(Config{Vault: vault, Credential: credential{}})
		want(t, vault, err, snapferry.Invalid)
	}
	_, err := New(Config{Vault: "https://example.vault.azure.net"})
	want(t, "no credential", err, snapferry.Invalid)
}

// A vault whose certificate nobody vouches for is not asked twice, and not told
// anything.
func TestUnknownAuthority(t *testing.T) {
	s := newFake(t)
	d := open(t, s, func(c *Config) {
		trusting := c.HTTPClient.Transport.(*http.Transport)
		c.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: trusting.DialContext, DisableKeepAlives: true}}
	})
	err := d.Health(t.Context())
	want(t, "unknown authority", err, snapferry.Unavailable)
	if snapferry.HintOf(err) == "" || strings.Contains(err.Error(), "attempts") || s.asked > 0 {
		t.Errorf("got %q, hint %q", err, snapferry.HintOf(err))
	}
}
