package awskms

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the fake service knows of its callers.
const (
	fakeAccess  = "AKIDTEST"
	fakeSecret  = "a secret of the test"
	fakeSession = "a session of the test"
	fakeRegion  = "eu-test-1"
	fakeArn     = "arn:aws:kms:eu-test-1:111122223333:key/"

	keyOne     = "11111111-1111-4111-8111-111111111111"
	keyTwo     = "22222222-2222-4222-8222-222222222222"
	keyMissing = "99999999-9999-4999-8999-999999999999"
)

// fakeKey is a key of the service: its material has generations, the last one
// wraps.
type fakeKey struct {
	id, state, usage, spec string
	material               [][]byte
	rotations              int  // on demand
	rotating               int  // how often a rotation will be seen to be under way
	scheduled              bool // a rotation by the schedule is near
}

// fakeService is a key management service on this machine. It checks signatures,
// encrypts, and keeps the states of its keys.
type fakeService struct {
	tb     testing.TB
	addr   string
	server *http.Server

	mu      sync.Mutex
	keys    map[string]*fakeKey
	aliases map[string]string
	session string // that callers must have, or ""
	fail    int    // requests to refuse
	failAs  fault
	deny    bool
	hang    chan struct{}
	hung    chan struct{}                              // gets one for each request that hangs, as far as it has room
	spoil   func(op string, out map[string]any) []byte // another answer, or nil
	after   func(op string) bool                       // true: do the request, then drop the connection
	seen    []string                                   // operations, in order
	bodies  []string                                   // of all requests
}

// fault is an error in the service's shape.
type fault struct {
	status        int
	code, message string
}

func (f fault) Error() string { return f.code }

var throttled = fault{400, "ThrottlingException", "Rate exceeded"}

func newFake(tb testing.TB) *fakeService {
	s := &fakeService{tb: tb, keys: map[string]*fakeKey{}, aliases: map[string]string{}, failAs: throttled, hung: make(chan struct{}, 1)}
	for _, id := range []string{keyOne, keyTwo} {
		s.keys[id] = &fakeKey{id: id, state: "Enabled", usage: "ENCRYPT_DECRYPT", spec: "SYMMETRIC_DEFAULT", material: [][]byte{random(32)}}
	}
	s.aliases["alias/one"] = keyOne
	s.start("127.0.0.1:0")
	tb.Cleanup(func() { s.up(); s.stop() })
	return s
}

func random(n int) []byte {
	p := make([]byte, n)
	rand.Read(p)
	return p
}

func (s *fakeService) start(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.addr, s.server = l.Addr().String(), &http.Server{Handler: s}
	go s.server.Serve(l)
}

func (s *fakeService) stop() {
	s.server.Close()
	s.server = nil
}

func (s *fakeService) url() string { return "http://" + s.addr }

// set changes the service under its lock.
func (s *fakeService) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// up ends all faults.
func (s *fakeService) up() {
	s.set(func() {
		s.fail, s.deny, s.spoil, s.after = 0, false, nil, nil
		if s.hang != nil {
			close(s.hang)
			s.hang = nil
		}
	})
	if s.server == nil {
		s.start(s.addr)
	}
}

func (s *fakeService) count(op string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.seen {
		if o == op {
			n++
		}
	}
	return n
}

// ServeHTTP speaks the protocol application/x-amz-json-1.1.
func (s *fakeService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return
	}
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		select {
		case s.hung <- struct{}{}:
		default:
		}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	op, out, err := s.request(r, body)
	w.Header().Set("X-Amzn-RequestId", "5dfcc165-bd8c-47ce-a940-d33df5aee46b")
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if f, ok := err.(fault); ok {
		w.WriteHeader(f.status)
		json.NewEncoder(w).Encode(map[string]string{"__type": f.code, "message": f.message})
		return
	}
	s.mu.Lock()
	spoil, after := s.spoil, s.after
	s.mu.Unlock()
	if after != nil && after(op) {
		panic(http.ErrAbortHandler)
	}
	if spoil != nil {
		if p := spoil(op, out); p != nil {
			w.Write(p)
			return
		}
	}
	json.NewEncoder(w).Encode(out)
}

func (s *fakeService) request(r *http.Request, body []byte) (op string, out map[string]any, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op, ours := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	s.seen, s.bodies = append(s.seen, op), append(s.bodies, string(body))
	switch {
	case r.Method != "POST" || r.URL.Path != "/" || r.URL.RawQuery != "" || !ours:
		return op, nil, fault{404, "UnknownOperationException", ""}
	case r.Header.Get("Content-Type") != "application/x-amz-json-1.1":
		return op, nil, fault{400, "SerializationException", ""}
	}
	if s.fail > 0 {
		s.fail--
		return op, nil, s.failAs
	}
	if err := verify(r, body, fakeRegion, map[string]string{fakeAccess: fakeSecret}, time.Now()); err != nil {
		return op, nil, err
	}
	if r.Header.Get("X-Amz-Security-Token") != s.session {
		return op, nil, fault{400, "ExpiredTokenException", "The security token included in the request is expired"}
	}
	if s.deny {
		return op, nil, fault{400, "AccessDeniedException", "User: arn:aws:iam::111122223333:user/region is not authorized to perform: kms:" + op}
	}
	var in input
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return op, nil, fault{400, "SerializationException", err.Error()}
	}
	out, err = s.operate(op, in)
	return op, out, err
}

// input is the fields of all operations.
type input struct {
	KeyID                        string `json:"KeyId"`
	KeySpec                      string
	NumberOfBytes                int
	CiphertextBlob               []byte
	EncryptionContext            map[string]string
	SourceKeyID                  string `json:"SourceKeyId"`
	SourceEncryptionContext      map[string]string
	DestinationKeyID             string `json:"DestinationKeyId"`
	DestinationEncryptionContext map[string]string
}

func (s *fakeService) operate(op string, in input) (map[string]any, error) {
	if op == "GenerateRandom" {
		return map[string]any{"Plaintext": random(in.NumberOfBytes)}, nil
	}
	if op == "ReEncrypt" {
		return s.reEncrypt(in)
	}
	k, err := s.find(in.KeyID, op == "DescribeKey")
	if err != nil {
		return nil, err
	}
	if op == "DescribeKey" {
		return map[string]any{"KeyMetadata": map[string]any{
			"KeyId": k.id, "Arn": fakeArn + k.id, "AWSAccountId": "111122223333", "CreationDate": 1795255200.5, "Enabled": k.state == "Enabled",
			"KeyState": k.state, "KeyUsage": k.usage, "KeySpec": k.spec, "KeyManager": "CUSTOMER", "Origin": "AWS_KMS", "MultiRegion": false,
		}}, nil
	}
	if op == "GetKeyRotationStatus" {
		out := map[string]any{"KeyId": k.id, "KeyRotationEnabled": false}
		if k.rotating > 0 {
			out["OnDemandRotationStartDate"] = 1795255200.0
			if k.rotating--; k.rotating == 0 {
				k.material = append(k.material, random(32))
			}
		}
		return out, nil
	}
	if err := k.usable(); err != nil {
		return nil, err
	}
	switch op {
	case "GenerateDataKey":
		if in.KeySpec != "AES_256" || in.NumberOfBytes != 0 {
			return nil, fault{400, "ValidationException", "a spec that the test does not know"}
		}
		plain := random(32)
		return map[string]any{"KeyId": fakeArn + k.id, "Plaintext": plain, "CiphertextBlob": k.encrypt(plain, in.EncryptionContext)}, nil
	case "Decrypt":
		plain, err := k.decrypt(in.CiphertextBlob, in.EncryptionContext)
		return map[string]any{"KeyId": fakeArn + k.id, "Plaintext": plain, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}, err
	case "RotateKeyOnDemand":
		return k.rotate()
	}
	return nil, fault{400, "UnknownOperationException", ""}
}

func (s *fakeService) reEncrypt(in input) (map[string]any, error) {
	var both [2]*fakeKey
	for i, name := range []string{in.SourceKeyID, in.DestinationKeyID} {
		k, err := s.find(name, false)
		if err != nil {
			return nil, err
		}
		if err := k.usable(); err != nil {
			return nil, err
		}
		both[i] = k
	}
	plain, err := both[0].decrypt(in.CiphertextBlob, in.SourceEncryptionContext)
	return map[string]any{
		"CiphertextBlob": both[1].encrypt(plain, in.DestinationEncryptionContext), "SourceKeyId": fakeArn + both[0].id, "KeyId": fakeArn + both[1].id,
	}, err
}

func (s *fakeService) find(name string, alias bool) (*fakeKey, error) {
	if id, ok := s.aliases[name]; ok && alias {
		name = id
	}
	if k := s.keys[strings.TrimPrefix(name, fakeArn)]; k != nil {
		return k, nil
	}
	return nil, fault{400, "NotFoundException", "Key '" + fakeArn + name + "' does not exist"}
}

func (k *fakeKey) usable() error {
	switch {
	case k.state == "Disabled":
		return fault{400, "DisabledException", fakeArn + k.id + " is disabled."}
	case k.state != "Enabled":
		return fault{400, "KMSInvalidStateException", fakeArn + k.id + " is pending deletion."}
	case k.usage != "ENCRYPT_DECRYPT":
		return fault{400, "InvalidKeyUsageException", fakeArn + k.id + " key usage is " + k.usage}
	}
	return nil
}

func (k *fakeKey) rotate() (map[string]any, error) {
	switch {
	case k.rotating > 0 || k.scheduled:
		return nil, fault{400, "ConflictException", "a rotation is in progress or near"}
	case k.rotations >= 25:
		return nil, fault{400, "LimitExceededException", "no on-demand rotations are left"}
	}
	k.rotations++
	k.rotating = 2
	return map[string]any{"KeyId": fakeArn + k.id}, nil
}

// A blob has a mark, the key's id, the number of the material, a nonce and what
// AES-256-GCM sealed with the id and the encryption context as additional data.
const (
	blobMark  = "\x01\x02"
	blobFixed = len(blobMark) + 36 + 4
)

func (k *fakeKey) aead(n uint32) cipher.AEAD {
	block, err := aes.NewCipher(k.material[n])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (k *fakeKey) encrypt(plain []byte, place map[string]string) []byte {
	n := uint32(len(k.material) - 1)
	head := binary.BigEndian.AppendUint32([]byte(blobMark+k.id), n)
	nonce := random(12)
	return k.aead(n).Seal(append(head, nonce...), nonce, plain, canonical(head, place))
}

func (k *fakeKey) decrypt(blob []byte, place map[string]string) ([]byte, error) {
	invalid := fault{400, "InvalidCiphertextException", ""}
	if len(blob) < blobFixed+12 || string(blob[:2]) != blobMark {
		return nil, invalid
	}
	if string(blob[2:38]) != k.id {
		return nil, fault{400, "IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation."}
	}
	n := binary.BigEndian.Uint32(blob[38:])
	if int(n) >= len(k.material) {
		return nil, invalid
	}
	plain, err := k.aead(n).Open(nil, blob[blobFixed:blobFixed+12], blob[blobFixed+12:], canonical(blob[:blobFixed], place))
	if err != nil {
		return nil, invalid
	}
	return plain, nil
}

// canonical is an encryption context in one form.
func canonical(head []byte, place map[string]string) []byte {
	p := bytes.Clone(head)
	for _, k := range slices.Sorted(maps.Keys(place)) {
		for _, part := range []string{k, place[k]} {
			p = binary.BigEndian.AppendUint32(p, uint32(len(part)))
			p = append(p, part...)
		}
	}
	return p
}

// verify checks the AWS Signature Version 4 of a request for the key service, as
// AWS describes it for those who sign without an SDK.
func verify(r *http.Request, body []byte, region string, secrets map[string]string, now time.Time) error {
	broken := func(format string, args ...any) error {
		return fault{400, "IncompleteSignatureException", fmt.Sprintf(format, args...)}
	}
	fields, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return fault{400, "MissingAuthenticationTokenException", "Request is missing Authentication Token"}
	}
	given := map[string]string{}
	for _, f := range strings.Split(fields, ", ") {
		k, v, _ := strings.Cut(f, "=")
		given[k] = v
	}
	scope := strings.Split(given["Credential"], "/")
	if len(scope) != 5 || scope[2] != region || scope[3] != "kms" || scope[4] != "aws4_request" {
		return broken("credential %q", given["Credential"])
	}
	secret, ok := secrets[scope[0]]
	if !ok {
		return fault{400, "UnrecognizedClientException", "The security token included in the request is invalid."}
	}
	stamp := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", stamp)
	if err != nil || stamp[:8] != scope[1] {
		return broken("date %q", stamp)
	}
	if d := now.Sub(at).Abs(); d > 5*time.Minute {
		return fault{400, "InvalidSignatureException", "Signature expired: " + stamp}
	}
	signed := strings.Split(given["SignedHeaders"], ";")
	for _, must := range []string{"host", "x-amz-date", "x-amz-target"} {
		if !slices.Contains(signed, must) {
			return broken("%s is not signed", must)
		}
	}
	if !slices.IsSorted(signed) {
		return broken("signed headers %q", signed)
	}
	var lines []string
	for _, h := range signed {
		value := strings.Join(r.Header.Values(h), ",")
		switch h {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		}
		lines = append(lines, h+":"+strings.Join(strings.Fields(value), " ")+"\n")
	}
	request := strings.Join([]string{r.Method, "/", "", strings.Join(lines, ""), given["SignedHeaders"], hexSum(body)}, "\n")
	text := strings.Join([]string{"AWS4-HMAC-SHA256", stamp, strings.Join(scope[1:], "/"), hexSum([]byte(request))}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range append(slices.Clone(scope[1:]), text) {
		h := hmac.New(sha256.New, key)
		io.WriteString(h, part)
		key = h.Sum(nil)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(key)), []byte(given["Signature"])) {
		return fault{400, "InvalidSignatureException", "The request signature we calculated does not match the signature you provided."}
	}
	return nil
}

func hexSum(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// TestVerify holds verify against a request that botocore 1.43 signed, and against
// changes to one.
func TestVerify(t *testing.T) {
	const secret = "secretEXAMPLE"
	const body = `{"KeyId": "alias/k", "EncryptionContext": {"a": "b"}, "KeySpec": "AES_256"}`
	signed := func() *http.Request {
		r, err := http.NewRequestWithContext(context.Background(), "POST", "http://127.0.0.1:8801/", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Target", "TrentService.GenerateDataKey")
		r.Header.Set("Content-Type", "application/x-amz-json-1.1")
		r.Header.Set("X-Amz-Date", "20261121T192305Z")
		r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261121/us-east-1/kms/aws4_request, "+
			"SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=9c9dba86152f157bb7a99d25174d1771e9e2fed0159128bd96644748eaa6655f")
		return r
	}
	now := time.Date(2026, 11, 21, 19, 24, 0, 0, time.UTC)
	secrets := map[string]string{"AKIDEXAMPLE": secret}
	if err := verify(signed(), []byte(body), "us-east-1", secrets, now); err != nil {
		t.Errorf("as it was signed: %v", err)
	}
	for what, change := range map[string]func(r *http.Request) (string, time.Time){
		"another body":  func(*http.Request) (string, time.Time) { return body + " ", now },
		"an hour later": func(*http.Request) (string, time.Time) { return body, now.Add(time.Hour) },
		"another target": func(r *http.Request) (string, time.Time) {
			r.Header.Set("X-Amz-Target", "TrentService.Decrypt")
			return body, now
		},
		"another host": func(r *http.Request) (string, time.Time) { r.Host = "127.0.0.1:8802"; return body, now },
		"another type": func(r *http.Request) (string, time.Time) {
			r.Header.Set("Content-Type", "text/plain")
			return body, now
		},
		"nothing signed": func(r *http.Request) (string, time.Time) { r.Header.Del("Authorization"); return body, now },
		"a second earlier": func(r *http.Request) (string, time.Time) {
			r.Header.Set("X-Amz-Date", "20261121T192304Z")
			return body, now
		},
	} {
		r := signed()
		p, at := change(r)
		if err := verify(r, []byte(p), "us-east-1", secrets, at); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}
