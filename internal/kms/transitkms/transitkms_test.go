package transitkms

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms/kmstest"
	"github.com/snapferry/snapferry/seal"
)

var place = seal.Context{Account: "acct-00000000000000001", Chain: snapferry.ChainID{1}, Region: "east"}

// busy answers as a server that is overloaded, or sealed, does.
func busy(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusServiceUnavailable, "error performing token check: Vault is sealed")
}

func denied(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
}

// open returns a driver for an engine, with a front between them.
func open(tb testing.TB, e http.Handler, change ...func(*Config)) (*Driver, *kmstest.Front) {
	tb.Helper()
	f := kmstest.NewFront(tb, e, busy, denied)
	cfg := Config{Address: f.URL, Token: rootToken}
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
	kmstest.Conform(t, func(t *testing.T) *kmstest.Harness {
		e := newEngine("one", "two")
		d, f := open(t, e)
		return f.Harness(kmstest.Harness{
			Driver: d, Key: "one", Other: "two", Missing: "three", Binds: true,
			Disable: func(key string) { e.set(key, func(k *engineKey) { k.softDeleted = true }) },
			Enable:  func(key string) { e.set(key, func(k *engineKey) { k.softDeleted = false }) },
		})
	})
}

// A key that is not there stays so, though the engine makes those it does not know.
func TestMakesNoMasterKey(t *testing.T) {
	e := newEngine()
	d, _ := open(t, e)
	_, _, err := d.NewDataKey(t.Context(), "absent", nil, place)
	want(t, "new data key", err, snapferry.KeyUnusable)
	if len(e.keys) != 0 {
		t.Errorf("it made %d master keys", len(e.keys))
	}
}

// Versions that the engine does not use any more, and kinds of keys that cannot
// bind a context.
func TestKeyStates(t *testing.T) {
	e := newEngine("a")
	d, f := open(t, e)
	_, old := made(t, d, "a")
	if err := d.Rotate(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	e.set("a", func(k *engineKey) { k.minDecrypt = 2 })
	_, err := d.Unwrap(t.Context(), "a", nil, old, place)
	want(t, "a version below min_decryption_version", err, snapferry.KeyUnusable)
	e.set("a", func(k *engineKey) { k.minDecrypt = 1 })
	again, err := d.Rewrap(t.Context(), "a", old, place)
	if err != nil || !bytes.HasPrefix(again, []byte("vault:v2:")) {
		t.Errorf("wrapped again: got %.9s, %v, want version 2", again, err)
	}
	e.set("a", func(k *engineKey) { k.versions = k.versions[:1] })
	_, err = d.Unwrap(t.Context(), "a", nil, again, place)
	want(t, "a version that is gone", err, snapferry.Corrupt)
	for what, change := range map[string]func(*engineKey){
		"derived":            func(k *engineKey) { k.derived = true },
		"no associated data": func(k *engineKey) { k.typ = "rsa-4096" },
		"no encryption":      func(k *engineKey) { k.typ = "ed25519" },
	} {
		e.make("b")
		e.set("b", change)
		if got, err := d.Describe(t.Context(), "b"); err != nil || got.Usable || got.State == "" {
			t.Errorf("%s: describe: %+v, %v", what, got, err)
		}
		f.Asked()
		_, _, err := d.NewDataKey(t.Context(), "b", nil, place)
		want(t, what+": new data key", err, snapferry.KeyUnusable)
		if n := f.Asked(); n != 1 {
			t.Errorf("%s: a data key was sent to a key that cannot wrap it, in %d requests", what, n)
		}
		_, err = d.Unwrap(t.Context(), "b", nil, old, place)
		want(t, what+": unwrap", err, snapferry.KeyUnusable)
	}
	e.set("a", func(k *engineKey) { k.softDeleted = true })
	want(t, "rotate a soft-deleted key", d.Rotate(t.Context(), "a"), snapferry.KeyUnusable)
	want(t, "rotate a key that is not there", d.Rotate(t.Context(), "absent"), snapferry.KeyUnusable)
}

// A server that leaves associated data aside is found out.
func TestServerThatDoesNotBind(t *testing.T) {
	e := newEngine("a")
	e.ignorant = true
	d, _ := open(t, e)
	_, _, err := d.NewDataKey(t.Context(), "a", nil, place)
	want(t, "new data key", err, snapferry.Unsupported)
}

// Binding is asked for once, not with every key.
func TestRequests(t *testing.T) {
	d, f := open(t, newEngine("a"))
	_, wrapped := made(t, d, "a")
	f.Asked()
	made(t, d, "a")
	if n := f.Asked(); n != 2 {
		t.Errorf("a further data key takes %d requests, want 2", n)
	}
	if _, err := d.Unwrap(t.Context(), "a", nil, wrapped, place); err != nil {
		t.Error(err)
	}
	if n := f.Asked(); n != 1 {
		t.Errorf("unwrap takes %d requests, want 1", n)
	}
}

// A new token in the file is used when the old one is refused.
func TestTokenFile(t *testing.T) {
	e := newEngine("a")
	file := filepath.Join(t.TempDir(), "token")
	d, f := open(t, e, func(c *Config) { c.Token, c.TokenFile = "", file })
	want(t, "no file", d.Health(t.Context()), snapferry.Denied)
	put := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("two words\n")
	want(t, "no token in the file", d.Health(t.Context()), snapferry.Denied)
	put(rootToken + "\n")
	_, wrapped := made(t, d, "a")
	e.mu.Lock()
	e.tokens = map[string]bool{"the-next": true}
	e.mu.Unlock()
	f.Asked()
	want(t, "the old token", d.Health(t.Context()), snapferry.Denied)
	if n := f.Asked(); n != 1 {
		t.Errorf("with the same token in the file it asked %d times, want once", n)
	}
	put("the-next")
	if _, err := d.Unwrap(t.Context(), "a", nil, wrapped, place); err != nil {
		t.Errorf("with the next token: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := d.Health(t.Context()); err != nil {
		t.Errorf("the file is gone, the token is good: %v", err)
	}
}

// What is no answer of an engine is no key, and opens nothing.
func TestOddAnswers(t *testing.T) {
	d, f := open(t, newEngine("a"))
	_, wrapped := made(t, d, "a")
	text := func(status int, s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, s)
		}
	}
	key := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for what, c := range map[string]struct {
		answer http.HandlerFunc
		want   snapferry.Kind
	}{
		"too short":              {text(200, `{"data":{"plaintext":"`+key(31)+`"}}`), snapferry.Corrupt},
		"too long":               {text(200, `{"data":{"plaintext":"`+key(33)+`"}}`), snapferry.Corrupt},
		"nothing":                {text(200, `{"data":{}}`), snapferry.Corrupt},
		"not base64":             {text(200, `{"data":{"plaintext":"****"}}`), snapferry.Unavailable},
		"not JSON":               {text(200, `<html>sign in</html>`), snapferry.Unavailable},
		"empty":                  {text(200, ``), snapferry.Unavailable},
		"no content":             {text(204, ``), snapferry.Unavailable},
		"huge":                   {text(200, `{"data":{"plaintext":"`+strings.Repeat("A", 2<<20)+`"}}`), snapferry.Unavailable},
		"not found by a proxy":   {text(404, `<html>not found</html>`), snapferry.Unavailable},
		"not found by a server":  {text(404, `{"errors":["no handler for route \"transit/decrypt/a\". route entry not found."]}`), snapferry.KeyUnusable},
		"bad request by a proxy": {text(400, `<html>bad request</html>`), snapferry.Unavailable},
		"redirect to nowhere":    {text(302, ``), snapferry.Unavailable},
		"denied by a proxy":      {text(403, `<html>no</html>`), snapferry.Denied},
	} {
		f.Spoil(1, c.answer)
		got, err := d.Unwrap(t.Context(), "a", nil, wrapped, place)
		want(t, what, err, c.want)
		if got != nil {
			t.Errorf("%s: it gave %d bytes", what, len(got))
		}
		f.Up()
	}
	f.Spoil(1, text(200, `{"data":{"name":"b","type":"aes256-gcm96","supports_encryption":true,"supports_decryption":true}}`))
	_, err := d.Describe(t.Context(), "a")
	want(t, "of another key", err, snapferry.Unavailable)
	for _, bad := range []string{`{"data":{"ciphertext":""}}`, `{"data":{"ciphertext":"a b"}}`, `{"data":{"ciphertext":"` + strings.Repeat("A", maxWrapped+1) + `"}}`, `[]`} {
		f.Spoil(1, text(200, bad))
		_, err := d.wrap(t.Context(), "a", make([]byte, seal.KeySize), place)
		want(t, fmt.Sprintf("%.40s", bad), err, snapferry.Unavailable)
	}
}

// Names and wrapped keys that are none of the engine never reach it.
func TestNotSent(t *testing.T) {
	d, f := open(t, newEngine("a"))
	for _, name := range []string{"", "a/b", "../a", "a..b", "a b", "a?", "-a", strings.Repeat("a", 300)} {
		_, err := d.Describe(t.Context(), name)
		want(t, "describe "+name, err, snapferry.NotFound)
		_, _, err = d.NewDataKey(t.Context(), name, nil, place)
		want(t, "new data key of "+name, err, snapferry.KeyUnusable)
		_, err = d.Unwrap(t.Context(), name, nil, []byte("vault:v1:AAAA"), place)
		want(t, "unwrap with "+name, err, snapferry.KeyUnusable)
	}
	for _, w := range []string{"", `vault:v1:"`, `vault:v1:\u0041`, "vault:v1:\n", "vault:v1:\xff", strings.Repeat("A", maxWrapped+1)} {
		_, err := d.Unwrap(t.Context(), "a", nil, []byte(w), place)
		want(t, fmt.Sprintf("unwrap %.20q", w), err, snapferry.Corrupt)
	}
	_, err := d.Unwrap(t.Context(), "a", nil, []byte("vault:v1:AAAA"), seal.Context{Account: snapferry.AccountID(strings.Repeat("a", 256))})
	want(t, "a context that is too long", err, snapferry.Invalid)
	if n := f.Asked(); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
}

// No key gets into an error or a log, even when the server repeats what it was
// sent.
func TestNoKeyInWords(t *testing.T) {
	var log bytes.Buffer
	d, f := open(t, newEngine("a"), func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	plain := bytes.Repeat([]byte("k"), seal.KeySize)
	word := base64.StdEncoding.EncodeToString(plain)
	echo := func(w http.ResponseWriter, r *http.Request) {
		p, _ := io.ReadAll(r.Body)
		refuse(w, http.StatusServiceUnavailable, "I cannot do: "+string(p))
	}
	f.Spoil(2, echo)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := d.wrap(ctx, "a", plain, place); err != nil {
		t.Error(err)
	}
	f.Spoil(1<<30, echo)
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := d.wrap(ctx, "a", plain, place)
	want(t, "wrap", err, snapferry.Unavailable)
	if !strings.Contains(log.String(), "asked again") {
		t.Errorf("the log is %q", log.String())
	}
	for what, s := range map[string]string{"error": err.Error(), "log": log.String()} {
		if strings.Contains(s, word) || strings.Contains(s, string(plain)) || strings.Contains(s, rootToken) {
			t.Errorf("%s: %s", what, s)
		}
	}
	f.Up()
	f.Spoil(1, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"data":{"plaintext":"`+word) })
	if _, err = d.Unwrap(t.Context(), "a", nil, []byte("vault:v1:AAAA"), place); err == nil || strings.Contains(err.Error(), word) {
		t.Errorf("unwrap: %v", err)
	}
}

// A rotation is not sent again when it may have been carried out.
func TestRotateOnce(t *testing.T) {
	e := newEngine("a")
	d, f := open(t, e)
	for what, c := range map[string]struct {
		status int
		want   int // versions after it
		kind   snapferry.Kind
	}{
		"refused": {503, 2, snapferry.Internal}, "failed": {500, 1, snapferry.Unavailable}, "gone in between": {502, 1, snapferry.Unavailable},
	} {
		e.make("a")
		f.Spoil(1, func(w http.ResponseWriter, _ *http.Request) { refuse(w, c.status, "an error") })
		err := d.Rotate(t.Context(), "a")
		if n := len(e.keys["a"].versions); n != c.want || err != nil && !snapferry.IsKind(err, c.kind) || (err == nil) != (c.want == 2) {
			t.Errorf("%s: %d versions, %v, want %d", what, n, err, c.want)
		}
	}
	e.make("a")
	f.Spoil(1, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	err := d.Rotate(t.Context(), "a")
	want(t, "a connection that broke", err, snapferry.Unavailable)
	if n := len(e.keys["a"].versions); n != 1 || snapferry.HintOf(err) == "" {
		t.Errorf("a connection that broke: %d versions, hint %q", n, snapferry.HintOf(err))
	}
}

// A server that is not the active one sends requests on, with their body.
func TestRedirect(t *testing.T) {
	e := newEngine("a")
	d, f := open(t, e)
	_, active := open(t, e)
	on := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, to+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}
	f.Spoil(1<<30, on(active.URL))
	plain, wrapped := made(t, d, "a")
	if got, err := d.Unwrap(t.Context(), "a", nil, wrapped, place); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: another key, or %v", err)
	}
	f.Spoil(1<<30, on(f.URL))
	_, err := d.Unwrap(t.Context(), "a", nil, wrapped, place)
	want(t, "in circles", err, snapferry.Unavailable)
	if n := f.Asked(); n > 20 {
		t.Errorf("it went around %d times", n)
	}
}

// With TLS the server must be of the authority that was given, and never sends
// requests on to where they can be read.
func TestTLS(t *testing.T) {
	e := newEngine("a")
	plainText := kmstest.NewFront(t, e, busy, denied)
	moved := false
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if moved {
			http.Redirect(w, r, plainText.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		e.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	d, err := Open(Config{Address: s.URL, Token: rootToken})
	if err != nil {
		t.Fatal(err)
	}
	err = d.Health(t.Context())
	want(t, "an unknown authority", err, snapferry.Unavailable)
	if !strings.Contains(snapferry.HintOf(err), "ca") {
		t.Errorf("an unknown authority: the hint is %q", snapferry.HintOf(err))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})) {
		t.Fatal("no certificate")
	}
	if d, err = Open(Config{Address: s.URL, Token: rootToken, RootCAs: pool}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	made(t, d, "a")
	moved = true
	want(t, "sent on to plain HTTP", d.Health(t.Context()), snapferry.Unavailable)
	if n := plainText.Asked(); n != 0 {
		t.Errorf("%d requests went over plain HTTP", n)
	}
}

// Mount and namespace go where the server looks for them.
func TestPaths(t *testing.T) {
	var path, namespace string
	d, _ := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, namespace = r.URL.Path, r.Header.Get("X-Vault-Namespace")
		json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"name": "a.b"}})
	}), func(c *Config) { c.Mount, c.Namespace = "/kms/transit/", "team/one/" })
	k, err := d.Describe(t.Context(), "a.b")
	if err != nil || path != "/v1/kms/transit/keys/a.b" || namespace != "team/one" || k.Name != "team/one/kms/transit/keys/a.b" {
		t.Errorf("path %q, namespace %q, %+v, %v", path, namespace, k, err)
	}
}

func TestConfig(t *testing.T) {
	good := Config{Address: "https://keys.example.org:8200", Token: "t"}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Config){
		"no address":      func(c *Config) { c.Address = "" },
		"no scheme":       func(c *Config) { c.Address = "keys.example.org:8200" },
		"not encrypted":   func(c *Config) { c.Address = "http://keys.example.org:8200" },
		"a path":          func(c *Config) { c.Address += "/v1" },
		"a user":          func(c *Config) { c.Address = "https://me:secret@keys.example.org" },
		"a bad mount":     func(c *Config) { c.Mount = "a/../b" },
		"a bad namespace": func(c *Config) { c.Namespace = "a b" },
		"no token":        func(c *Config) { c.Token = "" },
		"two tokens":      func(c *Config) { c.TokenFile = "token" },
		"a bad token":     func(c *Config) { c.Token = "a\nb" },
	} {
		c := good
		change(&c)
		want(t, what, c.Check(), snapferry.Invalid)
		if _, err := Open(c); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: open: %v", what, err)
		}
	}
	for _, local := range []string{"http://127.0.0.1:8200", "http://localhost:8100", "http://[::1]:8200"} {
		c := good
		c.Address = local
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", local, err)
		}
	}
}
