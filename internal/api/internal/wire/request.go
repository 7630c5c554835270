package wire

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
)

// patience is how long a caller may take to send a body, or to read what was
// sent to it.
const patience = 30 * time.Second

// Request is what Decode reads from. It is not kept.
type Request struct {
	r  *http.Request
	rc *http.ResponseController
}

// Path returns a wildcard of the operation's path.
func (r *Request) Path(name string) string { return r.r.PathValue(name) }

// Query returns the parameters of the query; Invalid when there are others
// than those known, or one twice.
func (r *Request) Query(known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.r.URL.RawQuery)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "the query is malformed: %w", err)
	}
	for name, values := range q {
		if !slices.Contains(known, name) {
			return nil, snapferry.Errorf(snapferry.Invalid, "unknown parameter %q", clip(name)).WithHint("known are: %s", strings.Join(known, ", "))
		}
		if len(values) > 1 {
			return nil, snapferry.Errorf(snapferry.Invalid, "parameter %q is there %d times", name, len(values))
		}
	}
	return q, nil
}

// JSON decodes the body into v. Invalid when it is no JSON, has a field that v
// has not (the message names it), has more than one value, or more than
// MaxBody bytes.
func (r *Request) JSON(v any) error {
	// Not every writer has deadlines; a server's has.
	_ = r.rc.SetReadDeadline(time.Now().Add(patience))
	d := json.NewDecoder(r.r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more == nil {
			err = errors.New("there is something after the value")
		} else if !errors.Is(more, io.EOF) {
			err = more
		}
	}
	_ = r.rc.SetReadDeadline(time.Time{})
	if err != nil {
		return bodyError(err)
	}
	return nil
}

func bodyError(err error) error {
	const unknown = "json: unknown field "
	var large *http.MaxBytesError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &large):
		return snapferry.Errorf(snapferry.Invalid, "the request body has more than %d bytes", large.Limit)
	case errors.As(err, &typ) && typ.Field != "":
		return snapferry.Errorf(snapferry.Invalid, "request body: field %q cannot be a %s", typ.Field, typ.Value)
	case errors.Is(err, io.EOF):
		return snapferry.Errorf(snapferry.Invalid, "the request body is empty").WithHint("send a JSON object")
	case strings.HasPrefix(err.Error(), unknown):
		return snapferry.Errorf(snapferry.Invalid, "request body: unknown field %s", clip(strings.TrimPrefix(err.Error(), unknown)))
	}
	return snapferry.Errorf(snapferry.Invalid, "request body: %w", err)
}
