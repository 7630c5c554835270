package transitkms

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms/kmshttp"
)

const maxToken = 64 << 10 // bytes of a file with a token

// operation is one request to the engine, or to the server when it has no key.
type operation struct {
	method, op, key string
	after           string        // of the path, behind the key
	body            func() []byte // nil for none; made anew for each attempt, which clears it
	secret          []byte        // in the body, as it stands there
	answer          any           // where the answer goes; nil when it does not matter
	once            bool
}

func (d *Driver) url(o operation) (string, error) {
	if o.key == "" && o.op != "keys" && o.op != "encrypt" && o.op != "decrypt" {
		return d.base + "/" + o.op, nil
	}
	if !keyName.MatchString(o.key) || strings.Contains(o.key, "..") {
		return "", snapferry.Errorf(missing(o), "%q is not the name of a key", kmshttp.Text(o.key))
	}
	return d.base + "/" + d.cfg.Mount + "/" + o.op + "/" + o.key + o.after, nil
}

// missing is the Kind of the error when there is no such key.
func missing(o operation) snapferry.Kind {
	if o.op == "keys" && o.method == http.MethodGet {
		return snapferry.NotFound
	}
	return snapferry.KeyUnusable
}

func (d *Driver) call(ctx context.Context, o operation) error {
	url, err := d.url(o)
	if err != nil {
		return err
	}
	var token string
	return d.client.Send(ctx, kmshttp.Call{
		Once: o.once,
		Build: func() (kmshttp.Request, error) {
			if token, err = d.useToken(); err != nil {
				return kmshttp.Request{}, err
			}
			r := kmshttp.Request{Method: o.method, URL: url, Header: http.Header{
				"X-Vault-Token": {token}, "X-Vault-Request": {"true"}, "Content-Type": {"application/json"},
			}}
			if d.cfg.Namespace != "" {
				r.Header.Set("X-Vault-Namespace", d.cfg.Namespace)
			}
			if o.body != nil {
				r.Body = o.body()
			}
			return r, nil
		},
		Judge: func(a kmshttp.Answer) error {
			if a.Status == http.StatusForbidden && d.renewToken(token) {
				return kmshttp.Again(d.refused(o, a))
			}
			return d.judge(o, a)
		},
	})
}

// judge reads an answer, or makes it an error.
func (d *Driver) judge(o operation, a kmshttp.Answer) error {
	switch {
	case a.Status == http.StatusOK && o.answer != nil:
		if json.Unmarshal(a.Body, o.answer) != nil { // whose error may have a part of a key in it
			return snapferry.Errorf(snapferry.Unavailable, "%s answers something that is not JSON of a Transit engine", d.where)
		}
		return nil
	case a.Status == http.StatusOK || a.Status == http.StatusNoContent && o.answer == nil:
		return nil
	}
	return d.refused(o, a)
}

// words are the engine's messages that say what is the matter, since its status
// is 400, or 500, for nearly everything; of sdk/helper/keysutil and
// builtin/logical/transit of OpenBao 2.6 and Vault 1.21.
var words = []struct {
	part string
	kind snapferry.Kind
	hint string
}{
	{"key not found", snapferry.KeyUnusable, ""},
	{"soft-deleted", snapferry.KeyUnusable, "restore it with: bao write -f MOUNT/keys/NAME/soft-delete-restore"},
	{"disallowed by policy (too old)", snapferry.KeyUnusable, "lower min_decryption_version of the key until its data keys are wrapped again"},
	{"missing 'context' for key derivation", snapferry.KeyUnusable, "use a key that is not derived"},
	{"non-AEAD cipher suite", snapferry.KeyUnusable, "use a key of type aes256-gcm96"},
	{"not supported for key type", snapferry.KeyUnusable, "use a key of type aes256-gcm96"},
	{"version is too new", snapferry.Corrupt, "if an older backup of the server was restored, the newest versions of its keys are gone"},
}

// refused makes an error of an answer that is not what was asked for. Its text is
// used when it is the server's own, which is JSON, and has no secret in it.
func (d *Driver) refused(o operation, a kmshttp.Answer) error {
	var got struct {
		Errors []string `json:"errors"`
	}
	own := json.Unmarshal(a.Body, &got) == nil && got.Errors != nil
	all := strings.Join(got.Errors, "; ")
	said := kmshttp.Text(all, o.secret)
	if said == "" {
		said = http.StatusText(a.Status)
	}
	fail := func(kind snapferry.Kind) *snapferry.Error {
		if o.key == "" {
			return snapferry.Errorf(kind, "%s answers %d: %s", d.where, a.Status, said)
		}
		return snapferry.Errorf(kind, "key %s of %s: it answers %d: %s", o.key, d.where, a.Status, said)
	}
	if own && (a.Status == http.StatusBadRequest || a.Status == http.StatusInternalServerError) {
		for _, w := range words {
			if strings.Contains(all, w.part) {
				return fail(w.kind).WithHint("%s", w.hint)
			}
		}
	}
	switch {
	case a.Status == http.StatusNotFound && own:
		return fail(missing(o)).WithHint("correct the name of the key, and mount and namespace under keys: in the configuration of the region")
	case a.Status == http.StatusForbidden || a.Status == http.StatusUnauthorized:
		return fail(snapferry.Denied).WithHint("the token must be valid, and its policy must allow this: see the guide to running a region")
	case a.Status == http.StatusBadRequest && own && o.op == "decrypt":
		return fail(snapferry.Corrupt)
	case a.Status == http.StatusBadRequest && own:
		return fail(snapferry.Internal)
	case passes(a.Status, o.once):
		return kmshttp.Again(fail(snapferry.Unavailable))
	}
	return fail(snapferry.Unavailable)
}

// passes reports whether a status is that of a server that may answer later: 412
// is of one that does not know yet what another has written. A request that must
// be sent once only is not sent again when it may have been carried out.
func passes(status int, once bool) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusPreconditionFailed:
		return true
	case http.StatusRequestTimeout:
		return !once
	}
	return status >= 500 && !once
}

// useToken returns the token to show.
func (d *Driver) useToken() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.token != "" {
		return d.token, nil
	}
	token, err := readToken(d.cfg.TokenFile)
	d.token = token
	return token, err
}

// renewToken reads the file of the token when the server refused one. It reports
// whether there is another now.
func (d *Driver) renewToken(refused string) bool {
	if d.cfg.TokenFile == "" {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.token != refused { // somebody else has read it
		return true
	}
	token, err := readToken(d.cfg.TokenFile)
	if err != nil {
		d.cfg.Log.Warn("a token was refused, and there is no other", "err", err)
		return false
	}
	d.token = token
	return token != refused
}

func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", snapferry.Errorf(snapferry.Denied, "read the token: %w", err).WithHint("put the token in the file that token_file names")
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, maxToken))
	if err != nil {
		return "", snapferry.Errorf(snapferry.Denied, "read the token: %w", err)
	}
	token := strings.TrimSpace(string(p))
	if !visible.MatchString(token) {
		return "", snapferry.Errorf(snapferry.Denied, "read the token: %s has something else in it", file)
	}
	return token, nil
}
