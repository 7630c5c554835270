package s3blob

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

// ReadAt implements blob.Driver. A connection that is cut in the middle of the
// answer is another attempt: it goes on where the last one ended.
func (d *Driver) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if len(p) == 0 { // there is no such range
		_, err := d.Size(ctx, name)
		return 0, err
	}
	inner, cancel := within(ctx, len(p))
	defer cancel()
	done := 0
	for attempt := 1; ; attempt++ {
		n, end, err := d.get(inner, name, p[done:], off+int64(done))
		done += n
		d.read.Add(int64(n))
		switch {
		case err == nil && done == len(p):
			return done, nil
		case err == nil && end:
			return done, io.EOF
		case err == nil:
			err = snapferry.Errorf(snapferry.Unavailable, "%s ended its answer after %d of %d bytes", d.where, done, len(p))
		}
		var cut *cutError
		if !errors.As(err, &cut) || attempt >= d.cfg.Retry.Attempts {
			return 0, d.fail(ctx, err, attempt)
		}
		if werr := d.wait(inner, attempt, cut.err); werr != nil {
			return 0, d.fail(ctx, cut.err, attempt)
		}
		d.again.Add(1)
	}
}

// cutError is an answer that broke off.
type cutError struct{ err error }

func (e *cutError) Error() string { return e.err.Error() }
func (e *cutError) Unwrap() error { return e.err }

// wait takes a further attempt from the budget and waits as long as one must.
func (d *Driver) wait(ctx context.Context, attempt int, cause error) error {
	release, err := d.retry.GetRetryToken(ctx, cause)
	if err != nil {
		return err
	}
	delay, err := d.retry.RetryDelay(attempt, cause)
	if err != nil {
		return errors.Join(err, release(err))
	}
	return sleep(ctx, delay)
}

// get sends one request for p and reads the answer. end says that the object
// ends with what was read.
func (d *Driver) get(ctx context.Context, name string, p []byte, off int64) (n int, end bool, err error) {
	c, use := d.start(kindGet)
	rng := "bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+int64(len(p))-1, 10)
	out, err := d.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &d.cfg.Bucket, Key: d.key(name), Range: &rng}, use)
	if err != nil {
		if statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
			return 0, true, nil
		}
		return 0, false, d.fail(ctx, err, c.attempts)
	}
	defer out.Body.Close()
	total, err := d.checkRange(out, off)
	if err != nil {
		return 0, false, err
	}
	want := int(min(int64(len(p)), total-off))
	n, err = io.ReadFull(out.Body, p[:want])
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, false, &cutError{err}
	}
	return n, off+int64(n) == total, nil
}

// checkRange returns the size of the object of which out has a range from off
// on. A store that gives all of an object is understood from its beginning.
func (d *Driver) checkRange(out *s3.GetObjectOutput, off int64) (total int64, err error) {
	if out.ContentRange == nil {
		if off == 0 && out.ContentLength != nil {
			return *out.ContentLength, nil
		}
		return 0, snapferry.Errorf(snapferry.Unsupported, "%s does not give ranges of objects", d.where)
	}
	// bytes 100-199/1000
	span, size, ok := strings.Cut(strings.TrimPrefix(*out.ContentRange, "bytes "), "/")
	from, _, _ := strings.Cut(span, "-")
	first, err := strconv.ParseInt(from, 10, 64)
	if err == nil {
		total, err = strconv.ParseInt(size, 10, 64)
	}
	if !ok || err != nil || first != off || total <= off {
		return 0, snapferry.Errorf(snapferry.Unsupported, "%s gives the range %q where one from %d on was asked for", d.where, *out.ContentRange, off)
	}
	return total, nil
}

// Size implements blob.Driver.
func (d *Driver) Size(ctx context.Context, name string) (int64, error) {
	out, err := d.head(ctx, name)
	if err != nil {
		return 0, err
	}
	if out.ContentLength == nil {
		return 0, snapferry.Errorf(snapferry.Unsupported, "%s does not tell the sizes of objects", d.where)
	}
	return *out.ContentLength, nil
}

// head asks for what is known of an object. The answer to a HEAD has no body,
// so it does not say whether the object or the bucket is missing.
func (d *Driver) head(ctx context.Context, name string) (*s3.HeadObjectOutput, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	inner, cancel := within(ctx, 0)
	defer cancel()
	c, use := d.start(kindHead)
	out, err := d.client.HeadObject(inner, &s3.HeadObjectInput{Bucket: &d.cfg.Bucket, Key: d.key(name)}, use)
	if err == nil {
		return out, nil
	}
	err = d.fail(ctx, err, c.attempts)
	if snapferry.IsKind(err, snapferry.NotFound) {
		c, use := d.start(kindHead)
		if _, berr := d.client.HeadBucket(inner, &s3.HeadBucketInput{Bucket: &d.cfg.Bucket}, use); statusOf(berr) == http.StatusNotFound {
			return nil, d.fail(ctx, &smithy.GenericAPIError{Code: "NoSuchBucket"}, c.attempts)
		}
	}
	return nil, err
}

// List implements blob.Driver. Keys that are not names of objects are others'.
func (d *Driver) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	in := &s3.ListObjectsV2Input{Bucket: &d.cfg.Bucket, Prefix: aws.String(d.cfg.Prefix + prefix)}
	if after > prefix {
		in.StartAfter = aws.String(d.cfg.Prefix + after)
	}
	last := after
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		out, err := d.page(ctx, in)
		if err != nil {
			return err
		}
		for _, o := range out.Contents {
			name, ours := strings.CutPrefix(aws.ToString(o.Key), d.cfg.Prefix)
			if !ours || !strings.HasPrefix(name, prefix) || name <= after || blob.CheckName(name) != nil {
				continue
			}
			if name <= last {
				return snapferry.Errorf(snapferry.Unsupported, "%s lists %s after %s: not in the order of bytes", d.where, name, last)
			}
			last = name
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(blob.Info{Name: name, Size: aws.ToInt64(o.Size)}); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return ctx.Err()
		}
		if aws.ToString(out.NextContinuationToken) == "" {
			return snapferry.Errorf(snapferry.Unsupported, "%s does not say how its list goes on after %s", d.where, last)
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

func (d *Driver) page(ctx context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, error) {
	inner, cancel := within(ctx, 0)
	defer cancel()
	c, use := d.start(kindList)
	out, err := d.client.ListObjectsV2(inner, in, use)
	if err == nil {
		return out, nil
	}
	if err = d.fail(ctx, err, c.attempts); snapferry.IsKind(err, snapferry.NotFound) {
		return nil, d.fail(ctx, &smithy.GenericAPIError{Code: "NoSuchBucket"}, c.attempts)
	}
	return nil, err
}

// Delete implements blob.Driver.
func (d *Driver) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	inner, cancel := within(ctx, 0)
	defer cancel()
	c, use := d.start(kindDelete)
	_, err := d.client.DeleteObject(inner, &s3.DeleteObjectInput{Bucket: &d.cfg.Bucket, Key: d.key(name)}, use)
	if err == nil {
		return nil
	}
	if err = d.fail(ctx, err, c.attempts); snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	return err
}
