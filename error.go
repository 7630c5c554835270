package snapferry

import (
	"errors"
	"fmt"
)

// Kind is the class of an error: what a caller can do about it. The list is
// closed; every edge of the program maps every Kind in one table.
type Kind uint8

// The kinds of errors.
const (
	Internal    Kind = iota // a fault of ours, or one we could not classify
	Invalid                 // the request or its input is wrong: correct it
	NotFound                // no such thing, or not for this account
	Exists                  // a thing of that name is already there
	Conflict                // the thing is in a state that forbids this, now
	Denied                  // who asks may not
	Unavailable             // something needed is not reachable; try again
	Corrupt                 // stored or received bytes are not what they must be
	Full                    // no space left, or a limit reached
	Unsupported             // made by a newer version, or not offered here
	Cancelled               // somebody ended it
	KeyUnusable             // a key that is needed is disabled, waits for its deletion, or is gone
	numKinds
)

var kindNames = [numKinds]string{
	"internal", "invalid", "not-found", "exists", "conflict", "denied", "unavailable", "corrupt", "full", "unsupported", "cancelled", "key-unusable",
}

// Kinds lists every Kind, for tests that tables are exhaustive.
func Kinds() []Kind {
	ks := make([]Kind, numKinds)
	for i := range ks {
		ks[i] = Kind(i)
	}
	return ks
}

func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind reads what Kind.String printed; unknown words are Internal.
func ParseKind(s string) Kind {
	for i, n := range kindNames {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

// Error is the error of the program: a Kind, a message that is safe to show to
// the caller, a hint when a remedy is known, and a cause that is for the log.
type Error struct {
	Kind    Kind
	Message string
	Hint    string
	Cause   error
}

// Errorf makes an Error. A %w verb in format sets the cause, whose text then
// stands in the message too.
func Errorf(k Kind, format string, args ...any) *Error {
	e := fmt.Errorf(format, args...)
	return &Error{Kind: k, Message: e.Error(), Cause: errors.Unwrap(e)}
}

// WithHint adds a remedy to the error and returns it.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// KindOf returns the Kind of the first Error in err's chain, else Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// IsKind reports whether err is an error of Kind k.
func IsKind(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// HintOf returns the first hint in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Cause
	}
	return ""
}
