package alikms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	accessKey    = "LTAI-of-the-tests"
	accessSecret = "of-no-use-elsewhere"
)

// service is the key service in memory. It checks signatures with code of its own,
// from what came over the wire; dates, nonces, contexts and the states of keys.
// Codes and the form of what it answers are those of the service's reference.
type service struct {
	mu      sync.Mutex
	keys    map[string]*serviceKey
	nonces  map[string]bool
	token   string // that a request must have; "" for none
	account string
	skew    time.Duration // of its clock
}

type serviceKey struct {
	id       string
	state    string
	usage    string
	versions []serviceVersion
}

type serviceVersion struct {
	id     string
	secret []byte
}

func newService(ids ...string) *service {
	s := &service{keys: map[string]*serviceKey{}, nonces: map[string]bool{}, account: "Enabled"}
	for _, id := range ids {
		s.keys[id] = &serviceKey{id: id, state: "Enabled", usage: "ENCRYPT/DECRYPT"}
		s.keys[id].rotate()
	}
	return s
}

func (k *serviceKey) rotate() {
	p := make([]byte, 48)
	rand.Read(p)
	k.versions = append(k.versions, serviceVersion{id: fmt.Sprintf("%x-%x-%x-%x-%x", p[:4], p[4:6], p[6:8], p[8:10], p[10:16]), secret: p[16:]})
}

func (s *service) set(id string, change func(*serviceKey)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.keys[id])
}

// change changes the service itself.
func (s *service) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

// fault is an answer that is an error.
type fault struct {
	status        int
	code, message string
}

func (f fault) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(f.status)
	json.NewEncoder(w).Encode(map[string]any{"HttpStatus": f.status, "Code": f.code, "Message": f.message, "RequestId": "R1", "HostId": "kms.test"})
}

func state(s string) *fault {
	return &fault{409, "Rejected." + s, "The request was rejected because the key state is " + s + "."}
}

func badParameter(name string) *fault {
	return &fault{400, "InvalidParameter", fmt.Sprintf("The specified parameter %q is not valid.", name)}
}

var noSuchKey = &fault{404, "Forbidden.KeyNotFound", "The specified Key is not found."}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.authenticate(r); f != nil {
		f.ServeHTTP(w, r)
		return
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || r.Header.Get("x-acs-version") != "2016-01-20" {
		(&fault{400, "InvalidVersion", "Specified parameter Version is not valid."}).ServeHTTP(w, r)
		return
	}
	got, f := s.do(r.Header.Get("x-acs-action"), q)
	if f != nil {
		f.ServeHTTP(w, r)
		return
	}
	got["RequestId"] = "R1"
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	json.NewEncoder(w).Encode(got)
}

var authorization = regexp.MustCompile(`^ACS3-HMAC-SHA256 Credential=([^,]+),SignedHeaders=([a-z0-9;-]+),Signature=([0-9a-f]{64})$`)

func (s *service) authenticate(r *http.Request) *fault {
	m := authorization.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		return &fault{400, "IncompleteSignature", "The request signature does not conform to Alibaba Cloud standards."}
	}
	if m[1] != accessKey {
		return &fault{404, "InvalidAccessKeyId.NotFound", "Specified access key is not found."}
	}
	signed := strings.Split(m[2], ";")
	for name := range r.Header { // all of these must be signed
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") && !slices.Contains(signed, name) {
			return &fault{400, "IncompleteSignature", "not signed: " + name}
		}
	}
	if !slices.Contains(signed, "host") || !slices.IsSorted(signed) {
		return &fault{400, "IncompleteSignature", "the host is not signed, or the order is wrong"}
	}
	body, _ := io.ReadAll(r.Body)
	if r.Header.Get("x-acs-content-sha256") != fmt.Sprintf("%x", sha256.Sum256(body)) {
		return &fault{400, "SignatureDoesNotMatch", "the body is another one"}
	}
	want := s.signature(r, signed)
	if !hmac.Equal([]byte(want), []byte(m[3])) {
		return &fault{400, "SignatureDoesNotMatch", "Specified signature does not match our calculation."}
	}
	at, err := time.Parse(time.RFC3339, r.Header.Get("x-acs-date"))
	if age := time.Now().Add(s.skew).Sub(at); err != nil || age.Abs() > 15*time.Minute {
		return &fault{400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired."}
	}
	nonce := r.Header.Get("x-acs-signature-nonce")
	if len(nonce) < 16 || s.nonces[nonce] {
		return &fault{400, "SignatureNonceUsed", "Specified signature nonce was used already."}
	}
	s.nonces[nonce] = true
	if r.Header.Get("x-acs-security-token") != s.token {
		return &fault{400, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired."}
	}
	return nil
}

// signature is what the signature of a request must be. The query is taken as it
// came, decoded, and written again.
func (s *service) signature(r *http.Request, signed []string) string {
	var pairs []string
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		for _, p := range []*string{&name, &value} {
			plain, err := url.QueryUnescape(*p)
			if err != nil {
				return ""
			}
			*p = strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(plain))
		}
		pairs = append(pairs, name+"="+value)
	}
	slices.Sort(pairs)
	canonical := r.Method + "\n" + r.URL.EscapedPath() + "\n" + strings.Join(pairs, "&") + "\n"
	for _, name := range signed {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		canonical += name + ":" + value + "\n"
	}
	canonical += "\n" + strings.Join(signed, ";") + "\n" + r.Header.Get("x-acs-content-sha256")
	mac := hmac.New(sha256.New, []byte(accessSecret))
	fmt.Fprintf(mac, "ACS3-HMAC-SHA256\n%x", sha256.Sum256([]byte(canonical)))
	return fmt.Sprintf("%x", mac.Sum(nil))
}

func (s *service) do(action string, q url.Values) (map[string]any, *fault) {
	switch action {
	case "DescribeAccountKmsStatus":
		return map[string]any{"AccountStatus": s.account}, nil
	case "DescribeKey":
		k, f := s.find(q.Get("KeyId"))
		if f != nil {
			return nil, f
		}
		return map[string]any{"KeyMetadata": map[string]any{
			"KeyId": k.id, "Arn": "acs:kms:cn-test:1:key/" + k.id, "KeyState": k.state, "KeyUsage": k.usage, "KeySpec": "Aliyun_AES_256", "PrimaryKeyVersion": k.versions[len(k.versions)-1].id,
		}}, nil
	case "CreateKeyVersion":
		k, f := s.usable(q.Get("KeyId"))
		if f != nil {
			return nil, f
		}
		k.rotate()
		return map[string]any{"KeyVersion": map[string]any{"KeyId": k.id, "KeyVersionId": k.versions[len(k.versions)-1].id}}, nil
	case "GenerateDataKey":
		k, f := s.usable(q.Get("KeyId"))
		if f != nil {
			return nil, f
		}
		if q.Get("KeySpec") != "AES_256" {
			return nil, badParameter("KeySpec")
		}
		plain := make([]byte, 32)
		rand.Read(plain)
		return s.sealed(k, plain, q.Get("EncryptionContext"), true)
	case "Decrypt":
		k, plain, f := s.open(q.Get("CiphertextBlob"), q.Get("EncryptionContext"))
		if f != nil {
			return nil, f
		}
		return map[string]any{"KeyId": k.id, "Plaintext": base64.StdEncoding.EncodeToString(plain)}, nil
	case "ReEncrypt":
		_, plain, f := s.open(q.Get("CiphertextBlob"), q.Get("SourceEncryptionContext"))
		if f != nil {
			return nil, f
		}
		k, f := s.usable(q.Get("DestinationKeyId"))
		if f != nil {
			return nil, f
		}
		return s.sealed(k, plain, q.Get("DestinationEncryptionContext"), false)
	}
	return nil, &fault{404, "InvalidAction.NotFound", "Specified api is not found, please check your url and method."}
}

func (s *service) find(name string) (*serviceKey, *fault) {
	name = strings.TrimPrefix(name, "acs:kms:cn-test:1:key/")
	if k := s.keys[name]; k != nil {
		return k, nil
	}
	return nil, noSuchKey
}

func (s *service) usable(name string) (*serviceKey, *fault) {
	k, f := s.find(name)
	switch {
	case f != nil:
		return nil, f
	case k.state != "Enabled":
		return nil, state(k.state)
	case k.usage != "ENCRYPT/DECRYPT":
		return nil, &fault{400, "UnsupportedOperation", "This action is not supported."}
	}
	return k, nil
}

// bound is the associated data of a context, which is a set of pairs: their order
// and spelling do not matter.
func bound(context string) ([]byte, *fault) {
	pairs := map[string]string{}
	if context != "" && (json.Unmarshal([]byte(context), &pairs) != nil || len(context) > 8192) {
		return nil, badParameter("EncryptionContext")
	}
	var p []byte
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		p = fmt.Appendf(p, "%q=%q;", name, pairs[name])
	}
	return p, nil
}

func aead(v serviceVersion) cipher.AEAD {
	block, _ := aes.NewCipher(v.secret)
	a, _ := cipher.NewGCMWithRandomNonce(block)
	return a
}

// sealed answers a data key under the newest version of a master key, whose id is
// in front of it.
func (s *service) sealed(k *serviceKey, plain []byte, context string, tell bool) (map[string]any, *fault) {
	aad, f := bound(context)
	if f != nil {
		return nil, f
	}
	v := k.versions[len(k.versions)-1]
	blob := append([]byte(v.id), aead(v).Seal(nil, nil, plain, aad)...)
	got := map[string]any{"KeyId": k.id, "KeyVersionId": v.id, "CiphertextBlob": base64.StdEncoding.EncodeToString(blob)}
	if tell {
		got["Plaintext"] = base64.StdEncoding.EncodeToString(plain)
	}
	return got, nil
}

func (s *service) open(blob, context string) (*serviceKey, []byte, *fault) {
	p, err := base64.StdEncoding.DecodeString(blob)
	if err != nil || len(p) < 36+12 {
		return nil, nil, badParameter("CiphertextBlob")
	}
	aad, f := bound(context)
	if f != nil {
		return nil, nil, f
	}
	for _, k := range s.keys {
		for _, v := range k.versions {
			if v.id != string(p[:36]) {
				continue
			}
			if k.state != "Enabled" {
				return nil, nil, state(k.state)
			}
			plain, err := aead(v).Open(nil, nil, p[36:], aad)
			if err != nil {
				return nil, nil, badParameter("CiphertextBlob or EncryptionContext")
			}
			return k, plain, nil
		}
	}
	return nil, nil, noSuchKey
}

// The service refuses what is signed wrongly, is old, or came before: else the
// tests of the driver would say nothing.
func TestServiceRefuses(t *testing.T) {
	s := newService("k")
	d, _ := open(t, s)
	send := func(change func(*http.Request)) string {
		t.Helper()
		b := d.build(operation{action: "DescribeKey", query: url.Values{"KeyId": {"k"}}}, time.Now())
		r, err := http.NewRequest(b.Method, b.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = b.Header
		change(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var got struct{ Code string }
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		return got.Code
	}
	var nonce, auth, date string
	if got := send(func(r *http.Request) {
		nonce, auth, date = r.Header.Get("x-acs-signature-nonce"), r.Header.Get("Authorization"), r.Header.Get("x-acs-date")
	}); got != "" {
		t.Errorf("as it is: %s", got)
	}
	for want, change := range map[string]func(*http.Request){
		"SignatureDoesNotMatch": func(r *http.Request) { r.URL.RawQuery = "KeyId=l" },
		"SignatureNonceUsed": func(r *http.Request) {
			r.Header.Set("x-acs-signature-nonce", nonce)
			r.Header.Set("Authorization", auth)
			r.Header.Set("x-acs-date", date)
		},
		"IncompleteSignature": func(r *http.Request) { r.Header.Set("x-acs-security-token", "t") },
		"InvalidAccessKeyId.NotFound": func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(auth, accessKey, "LTAI-another", 1))
		},
	} {
		if got := send(change); got != want {
			t.Errorf("got %q, want %s", got, want)
		}
	}
	s.change(func() { s.skew = 20 * time.Minute })
	if got := send(func(*http.Request) {}); got != "InvalidTimeStamp.Expired" {
		t.Errorf("with another clock: got %q", got)
	}
}
