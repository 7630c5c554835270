package recovery

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

// A cache is a file beside the metadata that is being rebuilt: every range that
// was read from the bucket, so that nothing is read twice, within a run or after
// a run that was killed. Objects never change, so a range is good as long as the
// object has the same size. The file is read in whole when it is opened and cut
// where it ends in the middle of an entry.
type cache struct {
	bucket *blob.Bucket
	file   *os.File

	mu     sync.Mutex
	end    int64                  // of the file
	ranges map[string][]fileRange // by object
	reads  int64                  // ranges read from the bucket by this run
	bytes  int64
}

// fileRange is part of an object that is in the file.
type fileRange struct {
	off, length int64 // in the object
	size        int64 // of the object
	at          int64 // in the file
}

// entryHead is CRC-32C of the rest, length of the name, size of the object,
// offset and length of the range.
const entryHead = 4 + 2 + 8 + 8 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openCache(bucket *blob.Bucket, path string) (*cache, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fileError(err, "open %s", path)
	}
	c := &cache{bucket: bucket, file: f, ranges: map[string][]fileRange{}}
	if err := c.scan(); err != nil {
		return nil, errors.Join(fileError(err, "read %s", path), f.Close())
	}
	return c, nil
}

// scan reads the entries that an earlier run left.
func (c *cache) scan() error {
	st, err := c.file.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, entryHead)
	for {
		if _, err := c.file.ReadAt(head, c.end); err != nil {
			break
		}
		n, length := int64(binary.BigEndian.Uint16(head[4:])), int64(binary.BigEndian.Uint32(head[22:]))
		if c.end+entryHead+n+length > st.Size() || length > blob.MaxBody {
			break
		}
		p := make([]byte, n+length)
		if _, err := c.file.ReadAt(p, c.end+entryHead); err != nil {
			break
		}
		if crc32.Update(crc32.Checksum(head[4:], castagnoli), castagnoli, p) != binary.BigEndian.Uint32(head) {
			break
		}
		name := string(p[:n])
		if length == 0 { // what was read before was wrong
			delete(c.ranges, name)
			c.end += entryHead + n
			continue
		}
		c.ranges[name] = append(c.ranges[name], fileRange{
			off: int64(binary.BigEndian.Uint64(head[14:])), length: length, size: int64(binary.BigEndian.Uint64(head[6:])), at: c.end + entryHead + n,
		})
		c.end += entryHead + n + length
	}
	return c.file.Truncate(c.end)
}

// read returns n bytes from off on of an object of size bytes.
func (c *cache) read(ctx context.Context, name string, size, off, n int64) ([]byte, error) {
	p := make([]byte, n)
	c.mu.Lock()
	at, ok := c.find(name, size, off, n)
	c.mu.Unlock()
	if ok {
		if _, err := c.file.ReadAt(p, at); err != nil && !errors.Is(err, io.EOF) {
			return nil, fileError(err, "read what was read of %s", name)
		}
		return p, nil
	}
	if err := c.bucket.ReadAt(ctx, name, p, off); err != nil {
		return nil, err
	}
	return p, c.add(name, size, off, p)
}

// window returns the bytes from..to of an object; what is not there yet is read
// from the bucket with what is around it, lo..hi.
func (c *cache) window(ctx context.Context, o *object, from, to, lo, hi int64) ([]byte, error) {
	if c.has(o.name, o.size, from, to-from) || to > hi {
		return c.read(ctx, o.name, o.size, from, to-from)
	}
	p, err := c.read(ctx, o.name, o.size, lo, hi-lo)
	if err != nil {
		return nil, err
	}
	return p[from-lo : to-lo], nil
}

func (c *cache) has(name string, size, off, n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.find(name, size, off, n)
	return ok
}

// find returns where in the file a range is. The caller has mu.
func (c *cache) find(name string, size, off, n int64) (at int64, ok bool) {
	for _, r := range c.ranges[name] {
		if r.size == size && r.off <= off && off+n <= r.off+r.length {
			return r.at + off - r.off, true
		}
	}
	return 0, false
}

func (c *cache) add(name string, size, off int64, p []byte) error {
	e := make([]byte, entryHead, entryHead+len(name)+len(p))
	binary.BigEndian.PutUint16(e[4:], uint16(len(name)))
	binary.BigEndian.PutUint64(e[6:], uint64(size))
	binary.BigEndian.PutUint64(e[14:], uint64(off))
	binary.BigEndian.PutUint32(e[22:], uint32(len(p)))
	e = append(append(e, name...), p...)
	binary.BigEndian.PutUint32(e, crc32.Checksum(e[4:], castagnoli))
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.file.WriteAt(e, c.end); err != nil {
		return fileError(err, "remember what was read of %s", name)
	}
	c.ranges[name] = append(c.ranges[name], fileRange{off: off, length: int64(len(p)), size: size, at: c.end + entryHead + int64(len(name))})
	c.end += int64(len(e))
	if len(p) == 0 {
		return nil
	}
	c.reads++
	c.bytes += int64(len(p))
	return nil
}

// drop forgets what was read of an object and proved wrong, so that the next
// one, or a later run, reads it anew.
func (c *cache) drop(name string) error {
	if err := c.add(name, 0, 0, nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ranges, name)
	return nil
}

func (c *cache) close() error { return c.file.Close() }

// fileError gives an error of the operating system its Kind.
func fileError(err error, format string, args ...any) error {
	kind := snapferry.Unavailable
	switch {
	case errors.Is(err, os.ErrNotExist):
		kind = snapferry.NotFound
	case errors.Is(err, os.ErrExist):
		kind = snapferry.Exists
	case errors.Is(err, os.ErrPermission):
		kind = snapferry.Denied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = snapferry.Full
	}
	e := snapferry.Errorf(kind, format, args...)
	e.Message, e.Cause = e.Message+": "+err.Error(), err
	return e
}
