package s3blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/snapferry/snapferry"
)

const (
	tokenKey    = "snapferry-put" // of the user metadata
	tokenSize   = 16              // bytes
	contentType = "application/octet-stream"
	abortTime   = 10 * time.Second
)

// Put implements blob.Driver.
func (d *Driver) Put(ctx context.Context, name string, body []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var random [tokenSize]byte
	rand.Read(random[:])
	token := hex.EncodeToString(random[:])
	inner, cancel := within(ctx, len(body))
	defer cancel()
	put := d.putOne
	if int64(len(body)) > d.cfg.MaxPut {
		put = d.putParts
	}
	sure, attempts, err := put(inner, name, body, token)
	if err == nil {
		d.sent.Add(int64(len(body)))
		return nil
	}
	err = d.fail(ctx, err, attempts)
	if sure || !snapferry.IsKind(err, snapferry.Exists) && !lostUpload(err) {
		return err
	}
	return d.resolve(ctx, name, body, token, attempts, err)
}

// putOne makes an object with one request.
func (d *Driver) putOne(ctx context.Context, name string, body []byte, token string) (sure bool, attempts int, err error) {
	c, use := d.start(kindPut)
	_, err = d.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &d.cfg.Bucket, Key: d.key(name), Body: reader(body), ContentLength: aws.Int64(int64(len(body))), ContentType: aws.String(contentType),
		IfNoneMatch: aws.String("*"), Metadata: map[string]string{tokenKey: token},
	}, use)
	return false, c.attempts, err
}

// lostUpload reports whether an upload in parts is gone: its end may have been
// reached by an attempt whose answer was lost.
func lostUpload(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == "NoSuchUpload"
}

// resolve finds out whose an object is whose name is said to be taken: this
// Put's own, made by an attempt whose answer was lost on the way or repeated
// by a proxy, or another's. err is the answer in the latter case.
func (d *Driver) resolve(ctx context.Context, name string, body []byte, token string, attempts int, err error) error {
	there, herr := d.head(ctx, name)
	if herr != nil {
		if snapferry.IsKind(herr, snapferry.NotFound) { // it went meanwhile
			return err
		}
		return herr
	}
	if !snapferry.IsKind(err, snapferry.Exists) {
		err = snapferry.Errorf(snapferry.Exists, "an object of that name is already there")
	}
	if got, ok := there.Metadata[tokenKey]; ok {
		if got == token {
			d.sent.Add(int64(len(body)))
			return nil
		}
		return err
	}
	if attempts < 2 || aws.ToInt64(there.ContentLength) != int64(len(body)) {
		return err
	}
	got := make([]byte, len(body))
	n, rerr := d.ReadAt(ctx, name, got, 0)
	if rerr != nil && rerr != io.EOF {
		return rerr
	}
	if n == len(got) && bytes.Equal(got, body) {
		return nil
	}
	return err
}

// putParts makes an object of several parts. It is there when the last request
// is done, as with one.
func (d *Driver) putParts(ctx context.Context, name string, body []byte, token string) (sure bool, attempts int, err error) {
	c, use := d.start(kindPart)
	up, err := d.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &d.cfg.Bucket, Key: d.key(name), ContentType: aws.String(contentType), Metadata: map[string]string{tokenKey: token},
	}, use)
	if err != nil {
		return true, c.attempts, err
	}
	var parts []types.CompletedPart
	for off := 0; off < len(body); off += int(d.cfg.PartSize) {
		part := body[off:min(len(body), off+int(d.cfg.PartSize))]
		etag, attempts, err := d.putPart(ctx, name, up.UploadId, part, len(parts)+1)
		if err != nil {
			d.abort(ctx, name, up.UploadId)
			return true, attempts, err
		}
		parts = append(parts, types.CompletedPart{ETag: etag, PartNumber: aws.Int32(int32(len(parts) + 1))})
	}
	c, use = d.start(kindPart)
	_, err = d.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &d.cfg.Bucket, Key: d.key(name), UploadId: up.UploadId, IfNoneMatch: aws.String("*"),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	}, use)
	if err != nil {
		if statusOf(err) != http.StatusNotFound {
			d.abort(ctx, name, up.UploadId)
		}
		return false, c.attempts, err
	}
	return false, c.attempts, nil
}

func (d *Driver) putPart(ctx context.Context, name string, upload *string, part []byte, number int) (etag *string, attempts int, err error) {
	c, use := d.start(kindPart)
	out, err := d.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &d.cfg.Bucket, Key: d.key(name), UploadId: upload, PartNumber: aws.Int32(int32(number)), Body: reader(part),
		ContentLength: aws.Int64(int64(len(part))),
	}, use)
	if err != nil {
		return nil, c.attempts, err
	}
	return out.ETag, c.attempts, nil
}

// abort gives the space of parts back, also when the caller has gone. A store
// that cannot be told keeps them until its own rule for unfinished uploads.
func (d *Driver) abort(ctx context.Context, name string, upload *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	_, use := d.start(kindPart)
	_, err := d.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &d.cfg.Bucket, Key: d.key(name), UploadId: upload}, use)
	if err != nil && statusOf(err) != http.StatusNotFound {
		d.cfg.Log.Warn("parts of an upload stay in the store", "object", name, "upload", aws.ToString(upload), "error", err)
	}
}

// reader returns a body for a request. The SDK lets go of it when an attempt
// is over, under a lock, though net/http may still want to read: so nobody
// reads the memory when it is its owner's again. Without a method WriteTo the
// lock is never held while a connection takes its time.
func reader(body []byte) io.ReadSeeker { return struct{ io.ReadSeeker }{bytes.NewReader(body)} }

// sleep waits for a time, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
