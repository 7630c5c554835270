package transitkms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// engine is a Transit engine in memory: its tokens, its keys with their versions,
// their states, and AES-GCM with associated data. Status and words are those of
// OpenBao 2.6.2; TestServerAndEngine holds it against a real one.
type engine struct {
	mu     sync.Mutex
	tokens map[string]bool
	keys   map[string]*engineKey
	// ignorant is a server that is too old to know associated data.
	ignorant bool
}

type engineKey struct {
	versions    [][]byte
	typ         string
	derived     bool
	softDeleted bool
	minDecrypt  int
}

const (
	rootToken = "root-of-no-use-elsewhere"
	prefix    = "vault:v"
)

func newEngine(keys ...string) *engine {
	e := &engine{tokens: map[string]bool{rootToken: true}, keys: map[string]*engineKey{}}
	for _, k := range keys {
		e.make(k)
	}
	return e
}

func (e *engine) make(name string) *engineKey {
	k := &engineKey{typ: "aes256-gcm96", minDecrypt: 1}
	k.rotate()
	e.keys[name] = k
	return k
}

func (k *engineKey) rotate() {
	secret := make([]byte, 32)
	rand.Read(secret)
	k.versions = append(k.versions, secret)
}

// set changes a key as an operator would.
func (e *engine) set(name string, change func(*engineKey)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e.keys[name])
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.tokens[r.Header.Get("X-Vault-Token")] {
		refuse(w, http.StatusForbidden, "permission denied")
		return
	}
	var body struct {
		Plaintext, Ciphertext string
		AssociatedData        string `json:"associated_data"`
	}
	if r.Method != http.MethodGet && r.ContentLength != 0 {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			refuse(w, http.StatusBadRequest, "failed to parse JSON input: "+err.Error())
			return
		}
	}
	if e.ignorant {
		body.AssociatedData = ""
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/transit/")
	if !ok {
		if r.URL.Path == "/v1/auth/token/lookup-self" {
			answer(w, map[string]any{"policies": []string{"default"}})
		} else {
			refuse(w, http.StatusNotFound, "no handler for route "+strconv.Quote(strings.TrimPrefix(r.URL.Path, "/v1/"))+". route entry not found.")
		}
		return
	}
	op, name, _ := strings.Cut(path, "/")
	name, after, _ := strings.Cut(name, "/")
	k := e.keys[name]
	switch r.Method + " " + op + " " + after {
	case "GET keys ":
		if k == nil {
			refuse(w, http.StatusNotFound)
			return
		}
		answer(w, map[string]any{
			"name": name, "type": k.typ, "derived": k.derived, "soft_deleted": k.softDeleted, "latest_version": len(k.versions),
			"min_decryption_version": k.minDecrypt, "supports_encryption": k.typ != "ed25519", "supports_decryption": k.typ != "ed25519",
		})
	case "POST keys rotate":
		switch {
		case k == nil:
			refuse(w, http.StatusBadRequest, "key not found")
		case k.softDeleted:
			refuse(w, http.StatusInternalServerError, "1 error occurred:\n\t* refusing to use soft-deleted key\n\n")
		default:
			k.rotate()
			answer(w, map[string]any{"name": name})
		}
	case "POST encrypt ":
		if k == nil { // as the engine does for a token that may
			k = e.make(name)
		}
		result(w, "ciphertext")(k.encrypt(body.Plaintext, body.AssociatedData))
	case "POST decrypt ":
		if k == nil {
			refuse(w, http.StatusBadRequest, "encryption key not found")
			return
		}
		result(w, "plaintext")(k.decrypt(body.Ciphertext, body.AssociatedData))
	default:
		refuse(w, http.StatusMethodNotAllowed, "unsupported operation")
	}
}

// check refuses what the kind or the state of a key forbids before anything else.
func (k *engineKey) check(aad string) error {
	switch {
	case aad != "" && !bindingType(k.typ):
		return fmt.Errorf("'[0].associated_data' provided for non-AEAD cipher suite %s", k.typ)
	case k.softDeleted:
		return errors.New("refusing to use soft-deleted key")
	}
	return nil
}

var errDerived = errors.New("missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key")

func (k *engineKey) aead(version int) cipher.AEAD {
	block, _ := aes.NewCipher(k.versions[version-1])
	aead, _ := cipher.NewGCMWithRandomNonce(block)
	return aead
}

func (k *engineKey) encrypt(plaintext, aad string) (string, error) {
	if err := k.check(aad); err != nil {
		return "", err
	}
	plain, err := base64.StdEncoding.DecodeString(plaintext)
	if err != nil {
		return "", err
	}
	if k.derived {
		return "", errDerived
	}
	bound, err := base64.StdEncoding.DecodeString(aad)
	if err != nil {
		return "", err
	}
	sealed := k.aead(len(k.versions)).Seal(nil, nil, plain, bound)
	return prefix + strconv.Itoa(len(k.versions)) + ":" + base64.StdEncoding.EncodeToString(sealed), nil
}

func (k *engineKey) decrypt(ciphertext, aad string) (string, error) {
	if err := k.check(aad); err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(ciphertext, prefix)
	if !ok {
		return "", errors.New("invalid ciphertext: no prefix")
	}
	number, text, ok := strings.Cut(rest, ":")
	if !ok {
		return "", errors.New("invalid ciphertext: wrong number of fields")
	}
	version, err := strconv.Atoi(number)
	switch {
	case err != nil:
		return "", errors.New("invalid ciphertext: version number could not be decoded")
	case version == 0:
		version = 1 // so does the engine
	case version > len(k.versions):
		return "", errors.New("invalid ciphertext: version is too new")
	case version < k.minDecrypt:
		return "", errors.New("ciphertext or signature version is disallowed by policy (too old)")
	}
	sealed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", errors.New("invalid ciphertext: could not decode base64")
	}
	if k.derived {
		return "", errDerived
	}
	bound, err := base64.StdEncoding.DecodeString(aad)
	if err != nil {
		return "", err
	}
	if len(sealed) < 12 {
		return "", errors.New("invalid ciphertext length")
	}
	plain, err := k.aead(version).Open(nil, nil, sealed, bound)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(plain), nil
}

func answer(w http.ResponseWriter, data any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"request_id": "1", "data": data, "warnings": nil})
}

func result(w http.ResponseWriter, name string) func(string, error) {
	return func(value string, err error) {
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		answer(w, map[string]any{name: value, "key_version": 1})
	}
}

func refuse(w http.ResponseWriter, status int, words ...string) {
	if words == nil {
		words = []string{}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": words})
}

// A server of which a test needs to know that it is one.
func TestEngine(t *testing.T) {
	k := newEngine("a").keys["a"]
	c, err := k.encrypt("AAAA", "BBBB")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.decrypt(c, "BBBB"); got != "AAAA" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	for _, aad := range []string{"", "CCCC"} {
		if got, err := k.decrypt(c, aad); err == nil {
			t.Errorf("with the associated data %q: got %q", aad, got)
		}
	}
}
