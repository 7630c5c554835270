package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

// ran is what a run of the program left.
type ran struct {
	code           int
	stdout, stderr string
}

// run runs the program in this process.
func run(t *testing.T, args ...string) ran {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := testApp(t)
	a.stdout, a.stderr = &stdout, &stderr
	code := a.run(t.Context(), args)
	return ran{code, stdout.String(), stderr.String()}
}

func (r ran) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("got exit code %d, want %d\n%s%s", r.code, code, r.stdout, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("the output has no %q\n%s%s", text, r.stdout, r.stderr)
		}
	}
}

// fakeS3 is a store in this process whose requests a test may change. It
// returns the address of a bucket.
func fakeS3(t *testing.T, change func(*http.Request)) string {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("regions"); err != nil {
		t.Fatal(err)
	}
	fake := gofakes3.New(backend).Server()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		change(r)
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return "s3://regions/a?path_style=true&endpoint=" + s.URL
}

func unchanged(*http.Request) {}

func TestBucketConfig(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	load := func(bucket string) (serverConfig, error) {
		if err := os.WriteFile(path, []byte(goodConfig+"bucket: {"+bucket+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return loadServerConfig(path)
	}
	for text, want := range map[string]bucketConfig{
		"":                          {Kind: "directory", Path: dir + "/data/bucket"},
		"kind: directory":           {Kind: "directory", Path: dir + "/data/bucket"},
		"kind: directory, path: /b": {Kind: "directory", Path: "/b"},
		"kind: directory, path: b":  {Kind: "directory", Path: dir + "/b"},
		"kind: s3, bucket: regions": {Kind: "s3", Bucket: "regions"},
		"kind: s3, bucket: regions, prefix: a/b, endpoint: 'https://s3:9000', region: x, path_style: true, ca_file: ca.pem": {
			Kind: "s3", Bucket: "regions", Prefix: "a/b", Endpoint: "https://s3:9000", Region: "x", PathStyle: true, CAFile: dir + "/ca.pem",
		},
	} {
		got, err := load(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if diff := cmp.Diff(got.Bucket.withDefault(got.Directory), want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", text, diff)
		}
	}
	for text, want := range map[string]string{
		"path: /b":                                 "bucket.kind is missing",
		"kind: tape":                               "bucket.kind",
		"kind: directory, bucket: x":               "bucket.bucket",
		"kind: directory, path_style: true":        "bucket.path_style",
		"kind: s3, bucket: regions, max_put: 1000": "bucket.max_put",
		"kind: s3":                                 "bucket.bucket is missing",
		"kind: s3, bucket: Regions":                "bucket.bucket",
		"kind: s3, bucket: regions, path: /b":      "bucket.path",
		"kind: s3, bucket: regions, prefix: a//b":  "bucket.prefix",
		"kind: s3, bucket: regions, endpoint: s3":  "bucket.endpoint",

		"kind: s3, bucket: regions, endpoint: 'http://s3', ca_file: x": "bucket.ca_file",
		"kind: s3, bucket: regions, secret: x":                         "secret",
	} {
		if _, err := load(text); !snapferry.IsKind(err, snapferry.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want invalid with %q", text, err, want)
		}
	}
}

func TestLocations(t *testing.T) {
	for text, want := range map[string]bucketConfig{
		"dir:/b":          {Kind: "directory", Path: "/b"},
		"s3://regions":    {Kind: "s3", Bucket: "regions"},
		"s3://regions/a/": {Kind: "s3", Bucket: "regions", Prefix: "a"},
		"s3://regions/a/b?endpoint=https://s3:9000&region=x&path_style=true&ca_file=/ca.pem": {
			Kind: "s3", Bucket: "regions", Prefix: "a/b", Endpoint: "https://s3:9000", Region: "x", PathStyle: true, CAFile: "/ca.pem",
		},
	} {
		got, err := parseLocation(text)
		if diff := cmp.Diff(got.bucket, want); err != nil || diff != "" {
			t.Errorf("%s: %v (-got +want):\n%s", text, err, diff)
		}
	}
	for text, code := range map[string]int{
		"dir:": 2, "s3://": 2, "s3://regions?secret=x": 2, "s3://regions?path_style=maybe": 2, "s3://key:secret@regions": 2, "missing.yaml": 3,
	} {
		run(t, "bucket", "check", text).want(t, code)
	}
	run(t, "bucket", "check").want(t, 2, "--config")
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"dir:/a", "dir:/a", true},
		{"dir:/a", "dir:/a/b", true},
		{"dir:/a", "dir:/ab", false},
		{"s3://regions", "s3://regions/a", true},
		{"s3://regions/a", "s3://regions/a/b", true},
		{"s3://regions/a", "s3://regions/ab", false},
		{"s3://regions/a", "s3://others/a", false},
		{"s3://regions/a?endpoint=http://x", "s3://regions/a?endpoint=http://y", false},
		{"s3://regions", "dir:/a", false},
	} {
		a, aerr := parseLocation(c.a)
		b, berr := parseLocation(c.b)
		if got := a.bucket.overlaps(b.bucket); got != c.want || aerr != nil || berr != nil {
			t.Errorf("%s and %s overlap: got %v, %v, %v, want %v", c.a, c.b, got, aerr, berr, c.want)
		}
	}
}

func TestBucketCheck(t *testing.T) {
	fit := fakeS3(t, unchanged)
	for _, place := range []string{"dir:" + t.TempDir(), fit} {
		run(t, "bucket", "check", place).want(t, 0, "read-after-write", "list-after-write", "create-if-absent", "is fit for a region")
		r := run(t, "bucket", "check", place, "-o", "json")
		r.want(t, 0)
		var out checkedBucket
		if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || !out.Fit || len(out.Proven) != 4 {
			t.Errorf("check %s: got %+v, %v, want four proofs", place, out, err)
		}
	}
	unfit := fakeS3(t, func(r *http.Request) { r.Header.Del("If-None-Match") })
	r := run(t, "bucket", "check", unfit, "-o", "json")
	r.want(t, 9, `"fit": false`, "does not give create-if-absent: an object was made a second time")
	var out checkedBucket
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Fit || len(out.Proven) != 1 {
		t.Errorf("check of an unfit store: got %+v, %v, want one proof", out, err)
	}
	run(t, "bucket", "check", strings.Replace(fit, "regions", "missing", 1)).want(t, 6, "NoSuchBucket", "hint: make the bucket")
}

// A region does not start on a store that is not fit.
func TestRegionOnUnfitStore(t *testing.T) {
	d, err := prepareDev(t.TempDir(), []snapferry.RegionName{"east"}, "")
	if err != nil {
		t.Fatal(err)
	}
	east := d.configs["east"]
	l, err := parseLocation(fakeS3(t, func(r *http.Request) { r.Header.Del("If-None-Match") }))
	if err != nil {
		t.Fatal(err)
	}
	east.Bucket = l.bucket
	if _, err := openRegion(t.Context(), east, slog.New(slog.DiscardHandler)); !snapferry.IsKind(err, snapferry.Unsupported) || !strings.Contains(err.Error(), "create-if-absent") {
		t.Errorf("start: got %v, want unsupported with create-if-absent", err)
	}
}

// startOnce starts a region and stops it.
func startOnce(t *testing.T, cfg serverConfig) {
	t.Helper()
	s, err := openRegion(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

func TestBucketCopyRefuses(t *testing.T) {
	d, err := prepareDev(t.TempDir(), []snapferry.RegionName{"east", "west"}, "")
	if err != nil {
		t.Fatal(err)
	}
	east := d.configs["east"]
	file, place := d.configFile("east"), fakeS3(t, unchanged)
	run(t, "bucket", "copy", file, place).want(t, 3, "data")
	run(t, "bucket", "copy", file, "dir:"+d.path("east", "data", "bucket")).want(t, 2, "one in the other")
	startOnce(t, east)
	startOnce(t, d.configs["west"])
	s, err := openRegion(t.Context(), east, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	running := []string{file, "dir:" + d.path("east", "data", "bucket")}
	for _, from := range running {
		run(t, "bucket", "copy", from, place).want(t, 4, "in use by process")
	}
	run(t, "bucket", "copy", d.configFile("west"), file).want(t, 4, "in use by process")
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	run(t, "bucket", "copy", "dir:"+t.TempDir(), place).want(t, 3, "not the bucket of a region")
	run(t, "bucket", "copy", file, place).want(t, 0, "to ", "copied    2", `the key "bucket"`)
	run(t, "bucket", "copy", file, place, "-o", "json").want(t, 0, `"copied": 0`, `"objects": 2`)
	run(t, "bucket", "copy", d.configFile("west"), place).want(t, 4, "belongs to region east")
	// The region runs on at its old place, then goes on from there alone.
	startOnce(t, east)
	run(t, "bucket", "copy", place, file).want(t, 4, "start 3 is there, and 2 here")
	run(t, "bucket", "copy", file, place).want(t, 0, "copied    1")
	l, err := parseLocation(place)
	if err != nil {
		t.Fatal(err)
	}
	old := east
	east.Bucket = l.bucket
	startOnce(t, east)
	if _, err := openRegion(t.Context(), old, slog.New(slog.DiscardHandler)); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("start at the place that was left: got %v, want a conflict", err)
	}
	b, err := openBucket(t.Context(), l.bucket, slog.New(slog.DiscardHandler))
	if err == nil {
		err = b.Put(t.Context(), "objects/stranger", nil)
	}
	if err == nil {
		err = b.List(t.Context(), "check/", "", func(i blob.Info) error { t.Errorf("%s is left", i.Name); return nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	empty := "dir:" + filepath.Join(t.TempDir(), "new")
	run(t, "bucket", "copy", place, empty).want(t, 0, "copied    5")
	if err := b.Delete(t.Context(), "objects/stranger"); err != nil {
		t.Fatal(err)
	}
	run(t, "bucket", "copy", place, empty).want(t, 4, "1 objects that the old one does not have, such as objects/stranger")
}
