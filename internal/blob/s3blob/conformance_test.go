package s3blob

import (
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/s3blob/s3test"
)

const testBucket = "east"

// fakeStore is a store in this process; it believes every signature.
func fakeStore(tb testing.TB) *httptest.Server {
	tb.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(testBucket); err != nil {
		tb.Fatal(err)
	}
	s := httptest.NewServer(gofakes3.New(backend).Server())
	tb.Cleanup(s.Close)
	return s
}

// fakeConfig is the configuration for a store at an address.
func fakeConfig(endpoint string) Config {
	return Config{Bucket: testBucket, Endpoint: endpoint, PathStyle: true, Region: "us-east-1", Credentials: &Credentials{"key", "secret"}}
}

func mustOpen(tb testing.TB, cfg Config) *Driver {
	tb.Helper()
	d, err := Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func TestConformance(t *testing.T) {
	for name, prefix := range map[string]string{"Plain": "", "Prefix": "some/where"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			blobtest.RunConformance(t, func(t *testing.T) blob.Driver {
				cfg := fakeConfig(fakeStore(t).URL)
				cfg.Prefix = prefix
				return mustOpen(t, cfg)
			})
		})
	}
}

// must reports whether a test may not be skipped for want of a store.
func must() bool { return os.Getenv("CI") != "" }

// realConfig is the configuration for a bucket of a real store.
func realConfig(s *s3test.Server, bucket string) Config {
	return Config{
		Bucket: bucket, Endpoint: s.Endpoint, PathStyle: true, Region: s3test.Region,
		Credentials: &Credentials{s3test.AccessKey, s3test.SecretKey},
	}
}

func TestRealConformance(t *testing.T) {
	s := s3test.Start(t, must())
	for name, parts := range map[string]int64{"one-put": 0, "in-parts": 256 << 10} {
		t.Run(name, func(t *testing.T) {
			blobtest.RunTreeConformance(t, func(t *testing.T) blob.Driver {
				part := strings.ToLower(t.Name()[strings.LastIndexByte(t.Name(), '/')+1:])
				bucket := name + "-" + part
				s.Bucket(bucket)
				cfg := realConfig(s, bucket)
				cfg.MaxPut, cfg.PartSize = parts, 5<<20
				return mustOpen(t, cfg)
			})
		})
	}
}
