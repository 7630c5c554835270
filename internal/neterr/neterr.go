// Package neterr finds the cause in an error of the network, for messages: what net/http
// and vendors' libraries put around it says the same several times, or the whole URL.
package neterr

import (
	"errors"
	"net"
)

// Innermost drops what was put around an error of the network. Of several errors that
// were joined it goes on with the first.
func Innermost(err error) error {
	for {
		if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
			err = joined.Unwrap()[0]
			continue
		}
		if _, ok := err.(*net.OpError); ok {
			return err
		}
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
