// Package handoff passes an open file or block device from a command to the
// region on the same machine, over a unix socket (SCM_RIGHTS). The region gets
// a descriptor and never a path: what the caller could open is what is read or
// written. The command gets a handle, which it names in a request of the API.
//
// The protocol is documented in docs/format/handoff.md.
package handoff

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/snapferry/snapferry"
)

const (
	version     = 1
	requestSize = 8
	magic       = "SFHO"
	handleBytes = 16
	refusal     = "-"
	maxReply    = 512 // bytes of a reply with its newline
)

// appendRequest appends the request that goes with a descriptor.
func appendRequest(p []byte) []byte {
	return append(append(p, magic...), version, 0, 0, 0)
}

// checkRequest reports whether p is a request: Unsupported for a newer
// version, else Invalid.
func checkRequest(p []byte) error {
	switch {
	case len(p) != requestSize || string(p[:len(magic)]) != magic:
		return snapferry.Errorf(snapferry.Invalid, "this is not a request to hand over a file")
	case p[len(magic)] > version:
		return snapferry.Errorf(snapferry.Unsupported, "handover of version %d, this region knows %d", p[len(magic)], version).
			WithHint("run the same version of snapferry as the region")
	case !bytes.Equal(p, appendRequest(nil)):
		return snapferry.Errorf(snapferry.Invalid, "malformed request to hand over a file")
	}
	return nil
}

// appendRefusal appends the reply of a server that refuses.
func appendRefusal(p []byte, err error) []byte {
	text := strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, err.Error())
	p = fmt.Appendf(p, "%s%s %s", refusal, snapferry.KindOf(err), text)
	return append(p[:min(len(p), maxReply-1)], '\n')
}

// parseReply reads a reply with its newline. The error is that of the server,
// or Corrupt when p is no reply.
func parseReply(p []byte) (handle string, err error) {
	line, ok := strings.CutSuffix(string(p), "\n")
	if !ok || len(p) > maxReply || strings.Contains(line, "\n") {
		return "", snapferry.Errorf(snapferry.Corrupt, "the reply of the region is no line of text")
	}
	if text, ok := strings.CutPrefix(line, refusal); ok {
		kind, message, _ := strings.Cut(text, " ")
		return "", snapferry.Errorf(snapferry.ParseKind(kind), "the region refused the file: %s", strings.ToValidUTF8(message, "?"))
	}
	if !isHandle(line) {
		return "", snapferry.Errorf(snapferry.Corrupt, "the reply of the region is no handle")
	}
	return line, nil
}

func isHandle(s string) bool {
	return len(s) == hex.EncodedLen(handleBytes) && strings.Trim(s, "0123456789abcdef") == ""
}
