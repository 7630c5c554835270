package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/snapferry/snapferry"
)

// statuses maps every Kind to a status of HTTP.
var statuses = map[snapferry.Kind]int{
	snapferry.Internal:    http.StatusInternalServerError,
	snapferry.Invalid:     http.StatusBadRequest,
	snapferry.NotFound:    http.StatusNotFound,
	snapferry.Exists:      http.StatusConflict,
	snapferry.Conflict:    http.StatusConflict,
	snapferry.Denied:      http.StatusForbidden,
	snapferry.Unavailable: http.StatusServiceUnavailable,
	snapferry.Corrupt:     http.StatusInternalServerError,
	snapferry.Full:        http.StatusInsufficientStorage,
	snapferry.Unsupported: http.StatusNotImplemented,
	snapferry.Cancelled:   499, // the caller closed the request
	snapferry.KeyUnusable: http.StatusFailedDependency,
}

// exchange is one request and its reply.
type exchange struct {
	dialect Dialect
	w       http.ResponseWriter
	r       *http.Request
	id      string
	account snapferry.Account
	status  int    // written, or 0
	lines   *lines // of a stream that has begun
}

func (x *exchange) request() *Request {
	x.r.Body = http.MaxBytesReader(x.w, x.r.Body, MaxBody)
	return &Request{r: x.r, rc: http.NewResponseController(x.w)}
}

// reply writes a status and a value. It fails only before it wrote anything.
func (x *exchange) reply(status int, v any) error {
	var body []byte
	if status != http.StatusNoContent {
		var err error
		if body, err = encode(v); err != nil {
			return err
		}
		x.w.Header().Set("Content-Type", "application/json")
	}
	_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(patience))
	x.status = status
	x.w.WriteHeader(status)
	_, _ = x.w.Write(body) // who does not read the answer does not get it
	return nil
}

// fail tells the caller of an error: as the reply, or as the last line of a
// stream that has begun.
func (x *exchange) fail(err error) {
	f := Failure{Kind: snapferry.KindOf(err), Message: "internal error", RequestID: x.id}
	if f.Kind == snapferry.Internal {
		f.Hint = "the region's log has the cause under " + x.id
	} else {
		var e *snapferry.Error
		errors.As(err, &e)
		f.Message, f.Hint = e.Message, snapferry.HintOf(err)
	}
	if x.lines != nil {
		x.status = http.StatusOK
		_ = x.lines.emit(x.dialect.Event(f)) // who went away does not read it
		_ = x.lines.close()
		return
	}
	if err := x.reply(statuses[f.Kind], x.dialect.Error(f)); err != nil {
		x.status = http.StatusInternalServerError
		x.w.WriteHeader(x.status)
	}
}

// timely gives an error that is nothing but the end of a context its Kind.
func timely(ctx context.Context, err error) error {
	switch {
	case snapferry.KindOf(err) != snapferry.Internal:
		return err
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return snapferry.Errorf(snapferry.Cancelled, "the caller went away: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return snapferry.Errorf(snapferry.Unavailable, "the operation took too long: %w", err).WithHint("try again")
	}
	return err
}

// encode returns v as a line of JSON.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "encode the reply: %w", err)
	}
	return b.Bytes(), nil
}
