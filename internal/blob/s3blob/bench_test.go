package s3blob

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/dirblob"
	"github.com/snapferry/snapferry/internal/blob/s3blob/s3test"
)

// BenchmarkObjects puts and gets objects of the size that regions write, four
// at a time, in a directory and in an S3 store on this machine.
func BenchmarkObjects(b *testing.B) {
	const size, parallel = 32 << 20, 4
	dir, err := dirblob.Open(b.Context(), b.TempDir(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	s3 := mustOpen(b, realConfig(s3test.Start(b, must(), testBucket), testBucket))
	defer s3.Close()
	body := blob.AlignedBuffer(size)
	copy(body, blobtest.Bytes(1, size))
	var names atomic.Int64
	each := func(b *testing.B, do func(name string, p []byte) error) {
		b.SetBytes(size)
		var left atomic.Int64
		left.Store(int64(b.N))
		var wg sync.WaitGroup
		for range parallel {
			wg.Go(func() {
				p := blob.AlignedBuffer(size)
				for left.Add(-1) >= 0 {
					if err := do(fmt.Sprintf("objects/%04x", names.Add(1)), p); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	for _, d := range []struct {
		name   string
		driver blob.Driver
	}{{"Directory", dir}, {"S3", s3}} {
		b.Run(d.name+"/Put", func(b *testing.B) {
			each(b, func(name string, _ []byte) error {
				if err := d.driver.Put(b.Context(), name, body); err != nil {
					return err
				}
				return d.driver.Delete(b.Context(), name)
			})
		})
		if err := d.driver.Put(b.Context(), "one", body); err != nil {
			b.Fatal(err)
		}
		b.Run(d.name+"/Get", func(b *testing.B) {
			each(b, func(_ string, p []byte) error {
				_, err := d.driver.ReadAt(b.Context(), "one", p, 0)
				return err
			})
		})
		b.Run(d.name+"/Range64KiB", func(b *testing.B) {
			each(b, func(_ string, p []byte) error {
				_, err := d.driver.ReadAt(b.Context(), "one", p[:64<<10], 1<<20)
				return err
			})
			b.SetBytes(64 << 10)
		})
	}
}
