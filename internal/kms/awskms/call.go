package awskms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/logging"
)

// call is the attempts of one request: the driver's retryer, which it asks, and
// what became of them.
type call struct {
	*retry.Standard
	ended    <-chan struct{} // closed when the caller's time is over
	final    string          // a code that is not tried again
	attempts int
	last     error // of the last attempt
}

// GetAttemptToken implements aws.RetryerV2: it is called before each attempt.
func (c *call) GetAttemptToken(ctx context.Context) (func(error) error, error) {
	c.attempts++
	return c.Standard.GetAttemptToken(ctx)
}

// IsErrorRetryable implements aws.Retryer: it is called after each attempt that
// failed.
func (c *call) IsErrorRetryable(err error) bool {
	select {
	case <-c.ended:
		if statusOf(err) == 0 {
			return false // it says nothing, the one before may
		}
	default:
	}
	c.last = err
	return (c.final == "" || codeOf(err) != c.final) && c.Standard.IsErrorRetryable(err)
}

var _ aws.RetryerV2 = (*call)(nil)

// do runs one request with its further attempts, in its turn.
func (d *Driver) do(ctx context.Context, fn func(context.Context, func(*kms.Options)) error) error {
	return d.try(ctx, &call{Standard: d.retry}, fn)
}

func (d *Driver) try(ctx context.Context, c *call, fn func(context.Context, func(*kms.Options)) error) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	c.ended = ctx.Done()
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return ended(ctx, fmt.Sprintf("wait behind %d calls to %s", d.cfg.Limit, d.where), nil)
	}
	err := fn(ctx, func(o *kms.Options) { o.Retryer, o.RetryMaxAttempts = c, 0 })
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		return d.fail(err, c.attempts)
	}
	if c.last == nil || errors.Is(c.last, ctx.Err()) {
		return ended(ctx, "wait for "+d.where, nil)
	}
	return ended(ctx, "wait for "+d.where, d.fail(c.last, c.attempts))
}

// withDeadline bounds a call whose caller does not.
func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, requestTime)
}

// maxAnswer is the longest answer in bytes; those of the service have a few KiB.
const maxAnswer = 256 << 10

var errTooLong = errors.New("the answer is too long")

// limited is an HTTP client that reads no answer without end.
type limited struct{ client *http.Client }

// Do implements kms.HTTPClient.
func (l limited) Do(r *http.Request) (*http.Response, error) {
	resp, err := l.client.Do(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &limitedBody{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// sdkLog passes on what the SDK has to say: attempts and their errors, no bodies.
type sdkLog struct{ log *slog.Logger }

// Logf implements logging.Logger.
func (l sdkLog) Logf(_ logging.Classification, format string, v ...any) {
	l.log.Debug("aws sdk", "message", fmt.Sprintf(format, v...))
}
