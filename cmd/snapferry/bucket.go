package main

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/dirblob"
	"github.com/snapferry/snapferry/internal/blob/s3blob"
)

func (a *app) bucketCommand() *cobra.Command {
	return group("bucket", "Check and copy the buckets of regions", a.bucketCheckCommand(), a.bucketCopyCommand())
}

// The kinds of buckets.
const (
	kindDirectory = "directory"
	kindS3        = "s3"
)

// minMaxPut is the least size in bytes of a part of an upload in S3.
const minMaxPut = 5 << 20

// bucketConfig says where a region keeps its objects. The zero value is the
// directory "bucket" in the region's own.
type bucketConfig struct {
	Kind      string `yaml:"kind"`             // directory or s3
	Path      string `yaml:"path,omitempty"`   // of a directory
	Bucket    string `yaml:"bucket,omitempty"` // from here on of S3
	Prefix    string `yaml:"prefix,omitempty"`
	Endpoint  string `yaml:"endpoint,omitempty"`
	Region    string `yaml:"region,omitempty"`
	PathStyle bool   `yaml:"path_style,omitempty"`
	CAFile    string `yaml:"ca_file,omitempty"`
	MaxPut    int64  `yaml:"max_put,omitempty"` // bytes; 0: every object goes in one piece
}

// s3 is the configuration of the driver for S3.
func (c bucketConfig) s3(log *slog.Logger) s3blob.Config {
	return s3blob.Config{
		Bucket: c.Bucket, Prefix: c.Prefix, Endpoint: c.Endpoint, Region: c.Region, PathStyle: c.PathStyle, CAFile: c.CAFile,
		MaxPut: c.MaxPut, Log: log,
	}
}

// check says what is wrong, by the names of the configuration's keys.
func (c bucketConfig) check() error {
	ofS3 := []struct{ key, value string }{
		{"bucket", c.Bucket}, {"prefix", c.Prefix}, {"endpoint", c.Endpoint}, {"region", c.Region}, {"ca_file", c.CAFile},
	}
	switch c.Kind {
	case "":
		if c != (bucketConfig{}) {
			return snapferry.Errorf(snapferry.Invalid, "bucket.kind is missing").WithHint("it is directory or s3")
		}
	case kindDirectory:
		for _, f := range ofS3 {
			if f.value != "" {
				return snapferry.Errorf(snapferry.Invalid, "bucket.%s is for kind s3, not for a directory", f.key)
			}
		}
		if c.PathStyle || c.MaxPut != 0 {
			return snapferry.Errorf(snapferry.Invalid, "bucket.path_style and bucket.max_put are for kind s3, not for a directory")
		}
	case kindS3:
		if c.Path != "" {
			return snapferry.Errorf(snapferry.Invalid, "bucket.path is for a directory, not for kind s3").WithHint("prefix is where objects are in an S3 bucket")
		}
		if c.MaxPut != 0 && c.MaxPut < minMaxPut {
			return snapferry.Errorf(snapferry.Invalid, "bucket.max_put of %d bytes is less than %d, the least size of a part", c.MaxPut, minMaxPut)
		}
		if c.Bucket == "" {
			return snapferry.Errorf(snapferry.Invalid, "bucket.bucket is missing: the name of the S3 bucket")
		}
		var e *snapferry.Error
		if err := c.s3(nil).Check(); errors.As(err, &e) {
			return &snapferry.Error{Kind: e.Kind, Message: "bucket." + e.Message, Hint: e.Hint, Cause: err}
		}
	default:
		return snapferry.Errorf(snapferry.Invalid, "bucket.kind %q is unknown", c.Kind).WithHint("it is directory or s3")
	}
	return nil
}

// withDefault fills in where the bucket of a region is that says nothing.
func (c bucketConfig) withDefault(directory string) bucketConfig {
	if c.Kind == "" {
		c.Kind = kindDirectory
	}
	if c.Kind == kindDirectory && c.Path == "" {
		c.Path = filepath.Join(directory, "bucket")
	}
	return c
}

// String is how people see a bucket.
func (c bucketConfig) String() string {
	if c.Kind != kindS3 {
		return "dir:" + c.Path
	}
	s := "s3://" + c.Bucket
	if c.Prefix != "" {
		s += "/" + strings.TrimSuffix(c.Prefix, "/")
	}
	if c.Endpoint != "" {
		s += "?endpoint=" + c.Endpoint
	}
	return s
}

// overlaps reports whether one of two places is the other or within it.
func (c bucketConfig) overlaps(o bucketConfig) bool {
	if c.Kind != o.Kind || c.Bucket != o.Bucket || c.Endpoint != o.Endpoint {
		return false
	}
	a, b := filepath.ToSlash(c.Path)+c.Prefix, filepath.ToSlash(o.Path)+o.Prefix
	a, b = strings.TrimSuffix(a, "/")+"/", strings.TrimSuffix(b, "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) || c.Kind == kindS3 && (a == "/" || b == "/")
}

// openBucket opens a bucket; a directory that is not there is made.
func openBucket(ctx context.Context, c bucketConfig, log *slog.Logger) (*blob.Bucket, error) {
	if c.Kind == kindS3 {
		d, err := s3blob.Open(ctx, c.s3(log))
		if err != nil {
			return nil, err
		}
		return blob.New(d), nil
	}
	d, err := dirblob.Open(ctx, c.Path, nil)
	if err != nil {
		return nil, err
	}
	return blob.New(d), nil
}

// location is a bucket as the command line names it.
type location struct {
	bucket    bucketConfig
	directory string // of the region, when its configuration was given
}

const locationHelp = `A bucket is the configuration file of its region, or dir:PATH, or
s3://BUCKET/PREFIX with any of ?endpoint=URL&region=R&path_style=true&ca_file=F.`

// parseLocation reads what names a bucket.
func parseLocation(s string) (location, error) {
	switch {
	case strings.HasPrefix(s, "dir:"):
		path := strings.TrimPrefix(s, "dir:")
		if path == "" {
			return location{}, snapferry.Errorf(snapferry.Invalid, "%s has no path", s)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return location{}, snapferry.Errorf(snapferry.Invalid, "%s: %w", s, err)
		}
		return location{bucket: bucketConfig{Kind: kindDirectory, Path: abs}}, nil
	case strings.HasPrefix(s, "s3://"):
		c, err := parseS3(s)
		return location{bucket: c}, err
	}
	cfg, err := loadServerConfig(s)
	if snapferry.IsKind(err, snapferry.NotFound) {
		err = snapferry.Errorf(snapferry.NotFound, "%w", err).WithHint("a bucket is a region's configuration file, dir:PATH or s3://BUCKET/PREFIX")
	}
	return location{bucket: cfg.Bucket.withDefault(cfg.Directory), directory: cfg.Directory}, err
}

// parseS3 reads s3://BUCKET/PREFIX?KEY=VALUE&...
func parseS3(s string) (bucketConfig, error) {
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Fragment != "" {
		return bucketConfig{}, snapferry.Errorf(snapferry.Invalid, "%q is not the address of an S3 bucket", s).WithHint("it looks like s3://BUCKET/PREFIX?endpoint=URL")
	}
	c := bucketConfig{Kind: kindS3, Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return c, snapferry.Errorf(snapferry.Invalid, "%s: %w", s, err)
	}
	known := map[string]*string{"endpoint": &c.Endpoint, "region": &c.Region, "ca_file": &c.CAFile}
	for key, values := range query {
		value := values[len(values)-1]
		if key == "path_style" {
			if c.PathStyle, err = strconv.ParseBool(value); err != nil {
				return c, snapferry.Errorf(snapferry.Invalid, "%s: path_style is true or false, not %q", s, value)
			}
			continue
		}
		field, ok := known[key]
		if !ok {
			return c, snapferry.Errorf(snapferry.Invalid, "%s: unknown %s", s, key).WithHint("it takes endpoint, region, path_style and ca_file")
		}
		*field = value
	}
	return c, c.check()
}

// exists refuses a directory that is not there: opening one makes it.
func (l location) exists() error {
	for _, dir := range []string{l.directory, l.bucket.Path} {
		if dir == "" {
			continue
		}
		if _, err := os.Stat(dir); err != nil {
			return fileError("look at", dir, err)
		}
	}
	return nil
}

// lockRegions keeps the regions of locations from running, if their
// configurations were given.
func lockRegions(all ...location) (unlock func() error, err error) {
	var locks []*regionLock
	unlock = func() error {
		var errs []error
		for _, l := range locks {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	var dirs []string
	for _, l := range all {
		if l.directory == "" || slices.Contains(dirs, l.directory) {
			continue
		}
		dirs = append(dirs, l.directory)
		if err := os.MkdirAll(l.directory, 0o700); err != nil {
			return nil, errors.Join(fileError("make", l.directory, err), unlock())
		}
		lock, err := lockRegion(l.directory)
		if err != nil {
			return nil, errors.Join(err, unlock())
		}
		locks = append(locks, lock)
	}
	return unlock, nil
}
