//go:build unix

package transitkms

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms/kmstest"
	"github.com/snapferry/snapferry/internal/testtool"
)

// server is a real OpenBao or Vault, which keeps all in memory.
type server struct {
	tb  testing.TB
	url string
	bao bool
}

// startServer starts the bao or vault that is in the path; without one the test
// is skipped. No module in tools/ pins one: the releases of OpenBao, up to 2.6 at
// least, are no versions of a Go module.
func startServer(t *testing.T) *server {
	t.Helper()
	s := &server{tb: t, bao: true}
	exe, err := exec.LookPath("bao")
	if err != nil {
		s.bao = false
		if exe, err = exec.LookPath("vault"); err != nil {
			t.Skip("there is no bao and no vault in the path: the engine in memory stands for them")
		}
	}
	addr, err := testtool.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(exe, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id="+rootToken, "-dev-listen-address="+addr)
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/bin:/bin"}
	run, err := testtool.Start(cmd, filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := run.Kill(); err != nil {
			t.Error(err)
		}
	})
	s.url = "http://" + addr
	if err := run.Answers(t.Context(), s.url+"/v1/sys/health"); err != nil {
		t.Fatal(err)
	}
	s.do(http.MethodPost, "sys/mounts/transit", map[string]any{"type": "transit"})
	return s
}

// do asks the server as its operator.
func (s *server) do(method, path string, body any) {
	s.tb.Helper()
	if status, p := s.ask(method, path, body); status >= http.StatusMultipleChoices {
		s.tb.Fatalf("%s %s: %d: %s", method, path, status, p)
	}
}

func (s *server) ask(method, path string, body any) (status int, answer []byte) {
	s.tb.Helper()
	p, err := json.Marshal(body)
	if err != nil {
		s.tb.Fatal(err)
	}
	req, err := http.NewRequest(method, s.url+"/v1/"+path, bytes.NewReader(p))
	if err != nil {
		s.tb.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", rootToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		s.tb.Fatal(err)
	}
	return resp.StatusCode, answer
}

// key makes a key that is not there.
func (s *server) key(name string, more map[string]any) {
	s.tb.Helper()
	s.do(http.MethodPost, "transit/keys/"+name, more)
}

func (s *server) handler() http.Handler {
	to, err := url.Parse(s.url)
	if err != nil {
		s.tb.Fatal(err)
	}
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
}

// The suite, with a server that is real.
func TestServerConformance(t *testing.T) {
	s := startServer(t)
	n := 0
	kmstest.Conform(t, func(t *testing.T) *kmstest.Harness {
		n++
		one, two := fmt.Sprintf("one-%d", n), fmt.Sprintf("two-%d", n)
		s.key(one, nil)
		s.key(two, map[string]any{"type": "chacha20-poly1305"})
		d, f := open(t, s.handler())
		h := kmstest.Harness{Driver: d, Key: one, Other: two, Missing: fmt.Sprintf("three-%d", n), Binds: true}
		if s.bao {
			h.Disable = func(key string) { s.do(http.MethodDelete, "transit/keys/"+key+"/soft-delete", nil) }
			h.Enable = func(key string) { s.do(http.MethodPost, "transit/keys/"+key+"/soft-delete-restore", nil) }
		}
		return f.Harness(h)
	})
}

// The words of a real server for what can be wrong with a key, and its rewrap.
func TestServerKeyStates(t *testing.T) {
	s := startServer(t)
	d, _ := open(t, s.handler())
	s.key("a", nil)
	plain, old := made(t, d, "a")
	if err := d.Rotate(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	again, err := d.Rewrap(t.Context(), "a", old, place)
	if err != nil || !bytes.HasPrefix(again, []byte("vault:v2:")) {
		t.Errorf("wrapped again: got %.9s, %v, want version 2", again, err)
	}
	if got, err := d.Unwrap(t.Context(), "a", nil, again, place); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: another key, or %v", err)
	}
	aad, err := place.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	bound := map[string]any{"ciphertext": string(old), "associated_data": base64.StdEncoding.EncodeToString(aad)}
	if status, p := s.ask(http.MethodPost, "transit/rewrap/a", bound); status != http.StatusBadRequest {
		t.Logf("transit/rewrap has learned of associated data, so Rewrap could use it: %d %s", status, p)
	}
	s.do(http.MethodPost, "transit/keys/a/config", map[string]any{"min_decryption_version": 2})
	_, err = d.Unwrap(t.Context(), "a", nil, old, place)
	want(t, "a version below min_decryption_version", err, snapferry.KeyUnusable)
	_, err = d.Unwrap(t.Context(), "a", nil, append([]byte("vault:v9:"), old[9:]...), place)
	want(t, "a version that there is not", err, snapferry.Corrupt)
	for name, more := range map[string]map[string]any{
		"derived": {"derived": true}, "rsa": {"type": "rsa-2048"}, "signing": {"type": "ed25519"},
	} { // which have one version
		s.key(name, more)
		if got, err := d.Describe(t.Context(), name); err != nil || got.Usable || got.State == "" {
			t.Errorf("%s: describe: %+v, %v", name, got, err)
		}
		_, err = d.Unwrap(t.Context(), name, nil, old, place)
		want(t, name+": unwrap", err, snapferry.KeyUnusable)
		_, err = d.wrap(t.Context(), name, plain, place)
		want(t, name+": wrap", err, snapferry.KeyUnusable)
	}
	want(t, "rotate a key that is not there", d.Rotate(t.Context(), "absent"), snapferry.KeyUnusable)
	_, err = d.Describe(t.Context(), "absent")
	want(t, "describe a key that is not there", err, snapferry.NotFound)
	if s.bao {
		s.do(http.MethodDelete, "transit/keys/a/soft-delete", nil)
		want(t, "rotate a soft-deleted key", d.Rotate(t.Context(), "a"), snapferry.KeyUnusable)
	}
	nowhere, _ := open(t, s.handler(), func(c *Config) { c.Mount = "nowhere" })
	_, err = nowhere.Unwrap(t.Context(), "a", nil, again, place)
	want(t, "no engine at that path", err, snapferry.KeyUnusable)
	stranger, _ := open(t, s.handler(), func(c *Config) { c.Token = "nobody" })
	want(t, "a token that there is not", stranger.Health(t.Context()), snapferry.Denied)
}

// The engine in memory answers as the real one does: the same status, and the same
// words, for what the driver sends and for much that it never would.
func TestServerAndEngine(t *testing.T) {
	s := startServer(t)
	if !s.bao {
		t.Skip("the engine in memory has the words of OpenBao")
	}
	e := newEngine("a", "new")
	memory := httptest.NewServer(e)
	t.Cleanup(memory.Close)
	e.set("a", (*engineKey).rotate)
	for what, change := range map[string]func(*engineKey){
		"derived": func(k *engineKey) { k.derived = true }, "rsa": func(k *engineKey) { k.typ = "rsa-2048" },
		"gone": func(k *engineKey) { k.softDeleted = true }, "old": func(k *engineKey) { k.rotate(); k.minDecrypt = 2 },
	} {
		e.make(what)
		e.set(what, change)
	}
	for _, key := range []string{"a", "new", "gone", "old"} {
		s.key(key, nil)
	}
	s.key("derived", map[string]any{"derived": true})
	s.key("rsa", map[string]any{"type": "rsa-2048"})
	s.do(http.MethodPost, "transit/keys/a/rotate", nil)
	s.do(http.MethodPost, "transit/keys/old/rotate", nil)
	s.do(http.MethodPost, "transit/keys/old/config", map[string]any{"min_decryption_version": 2})
	s.do(http.MethodDelete, "transit/keys/gone/soft-delete", nil)
	type said struct {
		Status int
		Errors []string
	}
	ask := func(url, method, path, body, token string) (said, string) {
		t.Helper()
		req, err := http.NewRequest(method, url+"/v1/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var got struct {
			Errors []string
			Data   struct{ Ciphertext string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatalf("%s %s: %s: %v", method, path, resp.Status, err)
		}
		return said{resp.StatusCode, got.Errors}, got.Data.Ciphertext
	}
	const plain = `{"plaintext":"QUJD","associated_data":"REVG"}`
	_, ofServer := ask(s.url, http.MethodPost, "transit/encrypt/a", plain, rootToken)
	_, ofEngine := ask(memory.URL, http.MethodPost, "transit/encrypt/a", plain, rootToken)
	open := func(c string) string { return `{"ciphertext":"` + c + `","associated_data":"REVG"}` }
	for _, test := range []struct{ method, path, body, token string }{
		{"GET", "auth/token/lookup-self", "", rootToken},
		{"GET", "auth/token/lookup-self", "", "nobody"},
		{"POST", "transit/decrypt/a", open("CIPHERTEXT"), "nobody"},
		{"GET", "transit/keys/a", "", rootToken},
		{"GET", "transit/keys/absent", "", rootToken},
		{"GET", "nowhere/keys/a", "", rootToken},
		{"POST", "transit/keys/absent/rotate", "", rootToken},
		{"POST", "transit/keys/gone/rotate", "", rootToken},
		{"POST", "transit/keys/a/rotate", "", rootToken},
		{"POST", "transit/encrypt/rsa", plain, rootToken},
		{"POST", "transit/encrypt/derived", plain, rootToken},
		{"POST", "transit/encrypt/gone", plain, rootToken},
		{"POST", "transit/encrypt/a", `{"plaintext":"*","associated_data":"REVG"}`, rootToken},
		{"POST", "transit/encrypt/made", plain, rootToken},
		{"POST", "transit/decrypt/a", open("CIPHERTEXT"), rootToken},
		{"POST", "transit/decrypt/a", `{"ciphertext":"CIPHERTEXT"}`, rootToken},
		{"POST", "transit/decrypt/a", `{"ciphertext":"CIPHERTEXT","associated_data":"REVH"}`, rootToken},
		{"POST", "transit/decrypt/new", open("CIPHERTEXT"), rootToken},
		{"POST", "transit/decrypt/absent", open("CIPHERTEXT"), rootToken},
		{"POST", "transit/decrypt/gone", open("CIPHERTEXT"), rootToken},
		{"POST", "transit/decrypt/rsa", open("CIPHERTEXT"), rootToken},
		{"POST", "transit/decrypt/derived", open("vault:v1:QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="), rootToken},
		{"POST", "transit/decrypt/old", open("vault:v1:QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="), rootToken},
		{"POST", "transit/decrypt/a", open("vault:v9:QUJD"), rootToken},
		{"POST", "transit/decrypt/a", open("vault:v1:QUJD"), rootToken},
		{"POST", "transit/decrypt/a", open("vault:v1:*"), rootToken},
		{"POST", "transit/decrypt/a", open("vault:vx:QUJD"), rootToken},
		{"POST", "transit/decrypt/a", open("vault:v1"), rootToken},
		{"POST", "transit/decrypt/a", open("vaul"), rootToken},
	} {
		want, _ := ask(s.url, test.method, test.path, strings.Replace(test.body, "CIPHERTEXT", ofServer, 1), test.token)
		got, _ := ask(memory.URL, test.method, test.path, strings.Replace(test.body, "CIPHERTEXT", ofEngine, 1), test.token)
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%s %s %s (-engine in memory +server):\n%s", test.method, test.path, test.body, diff)
		}
	}
}

// With the policy of the guide a token can do all that is needed, and no more.
func TestServerPolicy(t *testing.T) {
	s := startServer(t)
	s.key("a", nil)
	s.do(http.MethodPut, "sys/policies/acl/snapferry", map[string]any{"policy": policy})
	s.do(http.MethodPost, "auth/token/create-orphan", map[string]any{"id": "of-the-region", "policies": []string{"snapferry"}, "no_default_policy": true})
	d, _ := open(t, s.handler(), func(c *Config) { c.Token = "of-the-region" })
	plain, wrapped := made(t, d, "a")
	if err := d.Rotate(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if err := d.Health(t.Context()); err != nil {
		t.Error(err)
	}
	wrapped, err := d.Rewrap(t.Context(), "a", wrapped, place)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Unwrap(t.Context(), "a", nil, wrapped, place); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unwrap: another key, or %v", err)
	}
	_, _, err = d.NewDataKey(t.Context(), "absent", nil, place)
	want(t, "a key that is not there", err, snapferry.KeyUnusable)
	_, err = d.wrap(t.Context(), "absent", plain, place)
	want(t, "a key that the engine would make", err, snapferry.Denied)
}

// policy is that of docs/operations.md.
const policy = `
path "transit/keys/+"        { capabilities = ["read"] }
path "transit/encrypt/+"     { capabilities = ["update"] }
path "transit/decrypt/+"     { capabilities = ["update"] }
path "transit/keys/+/rotate" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
`
