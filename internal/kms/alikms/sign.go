package alikms

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/url"
	"slices"
	"strings"
)

const algorithm = "ACS3-HMAC-SHA256"

// message is what a signature of version 3 is over.
type message struct {
	method, path string
	query        url.Values
	header       map[string]string // all that is signed, names in lower case
	bodySum      string            // SHA-256 of the body, hexadecimal
}

// sign returns the Authorization of a message.
func sign(m message, keyID, secret string) string {
	names := slices.Sorted(maps.Keys(m.header))
	signed := strings.Join(names, ";")
	var b strings.Builder
	b.WriteString(m.method + "\n" + m.path + "\n" + encode(m.query) + "\n")
	for _, n := range names {
		b.WriteString(n + ":" + strings.TrimSpace(m.header[n]) + "\n")
	}
	b.WriteString("\n" + signed + "\n" + m.bodySum)
	sum := sha256.Sum256([]byte(b.String()))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(algorithm + "\n" + hex.EncodeToString(sum[:])))
	return algorithm + " Credential=" + keyID + ",SignedHeaders=" + signed + ",Signature=" + hex.EncodeToString(mac.Sum(nil))
}

// encode writes a query in its one form: sorted by names, and with all but the
// unreserved characters of RFC 3986 escaped.
func encode(q url.Values) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(q)) {
		for _, v := range q[name] {
			parts = append(parts, escape(name)+"="+escape(v))
		}
	}
	return strings.Join(parts, "&")
}

func escape(s string) string {
	const digits = "0123456789ABCDEF"
	p := make([]byte, 0, len(s))
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~' {
			p = append(p, c)
		} else {
			p = append(p, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(p)
}
