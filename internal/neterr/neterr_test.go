package neterr_test

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"syscall"
	"testing"

	"github.com/snapferry/snapferry/internal/neterr"
)

func TestInnermost(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	plain := errors.New("plain")
	for what, c := range map[string]struct{ err, want error }{
		"nothing around it":       {plain, plain},
		"wrapped":                 {fmt.Errorf("a: %w", fmt.Errorf("b: %w", plain)), plain},
		"of a URL":                {&url.Error{Op: "Get", URL: "https://example.org", Err: refused}, refused},
		"an operation stays":      {fmt.Errorf("a: %w", refused), refused},
		"joined":                  {errors.Join(fmt.Errorf("a: %w", refused), plain), refused},
		"joined, and none inside": {errors.Join(plain, refused), plain},
	} {
		if got := neterr.Innermost(c.err); got != c.want {
			t.Errorf("%s: got %v, want %v", what, got, c.want)
		}
	}
}
