package source

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
)

const (
	// Alignment is what offsets, lengths and memory addresses are multiples
	// of, in bytes, when writes are to go straight to the disk without a copy.
	Alignment = 4096

	writeBack  = 8 << 20 // buffered bytes after which write-back is started
	bounceSize = 1 << 20 // of the aligned copy of a write from elsewhere
	zeroStep   = 1 << 30 // bytes zeroed between two looks at the context
)

// Target is a file or block device that a snapshot is written to. A regular
// file is all holes at first; a device keeps its old content where nothing is
// written, so holes of the snapshot go through ZeroRange. WriteAt and ZeroRange
// may be called by several goroutines at once for ranges that do not overlap.
// Nothing is durable before Finish.
type Target struct {
	h       *handle
	size    int64
	device  bool
	created string // path of the file that Create made, until Finish

	direct  atomic.Bool
	toggle  sync.Mutex   // held while O_DIRECT is off for a write of odd size
	highest atomic.Int64 // end of the last byte ever written
	bounce  sync.Pool    // of *[]byte, aligned

	mu      sync.Mutex
	pending extent.Extent // covers what was written since write-back began
	bytes   int64         // written into it
}

// Create makes the target at path: a new file, or with force the existing file
// or block device there, whose old content is lost. size is in bytes. Errors
// are of Kind Exists when something is at path and force is not set, Invalid
// for a size no volume can have, for a device smaller than size, and for a
// file system that cannot hold the file, Conflict for a device in use, Denied,
// NotFound and Full as the system says.
func Create(path string, size int64, force bool) (*Target, error) {
	if err := snapferry.CheckSize(size); err != nil {
		return nil, err
	}
	f, created, err := OpenWrite(path, force)
	if err != nil {
		return nil, err
	}
	t := &Target{h: own(f, path), size: size}
	if created {
		t.created = path
	}
	return t.start()
}

// ToFile makes a target of a file or block device that is open for writing,
// usually one handed over by another process; a regular file loses its old
// content. The caller keeps f and may close it at any time; its position and
// flags are as before after Close. Errors are those of Create, and Denied when
// f was not opened for writing.
func ToFile(f *os.File, size int64) (*Target, error) {
	if err := snapferry.CheckSize(size); err != nil {
		return nil, err
	}
	h, err := borrow(f, f.Name(), unix.O_WRONLY)
	if err != nil {
		return nil, err
	}
	t := &Target{h: h, size: size}
	return t.start()
}

// start makes the file ready and closes it when that fails.
func (t *Target) start() (*Target, error) {
	if err := t.prepare(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Target) prepare() error {
	facts, err := inspect(t.h.File, t.h.name)
	if err != nil {
		return err
	}
	t.device = facts.device
	if t.device && facts.size < t.size {
		return snapferry.Errorf(snapferry.Invalid, "%s has %d bytes, less than the %d of the snapshot", t.h.name, facts.size, t.size).
			WithHint("give a device of at least %d bytes", t.size)
	}
	if !t.device {
		// Down to nothing first, so that all of it is holes afterwards.
		if err := t.h.Truncate(0); err != nil {
			return fail("empty", t.h.name, err)
		}
		if err := t.h.Truncate(t.size); err != nil {
			return fail("set the size of", t.h.name, err)
		}
	}
	t.bounce.New = func() any { b := alignedBuffer(bounceSize); return &b }
	t.direct.Store(t.h.setDirect(true) == nil)
	return nil
}

// Size is the size of the snapshot in bytes; a device may be larger, and keeps
// what it has behind it.
func (t *Target) Size() int64 { return t.size }

// Device reports whether the target is a block device, which does not read as
// zeros where nothing was written.
func (t *Target) Device() bool { return t.device }

// Direct reports whether writes go around the page cache. They do it without
// a copy when offset, length and memory are multiples of Alignment.
func (t *Target) Direct() bool { return t.direct.Load() }

// WriteAt is io.WriterAt within [0, Size). Errors are of Kind Invalid outside
// of it, Full when there is no space left, Unavailable when the disk fails.
func (t *Target) WriteAt(p []byte, off int64) (int, error) {
	if err := t.checkRange("write", extent.Extent{Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	t.raise(off + int64(len(p)))
	n, err := t.write(p, off)
	if err != nil {
		return n, fail("write", t.h.name, err)
	}
	return n, nil
}

func (t *Target) checkRange(verb string, e extent.Extent) error {
	if e.Off < 0 || e.Len < 0 || e.Off > t.size || e.Len > t.size-e.Off {
		return snapferry.Errorf(snapferry.Invalid, "%s %d bytes at %d of %s, which has %d", verb, e.Len, e.Off, t.h.name, t.size)
	}
	return nil
}

// raise notes that bytes below end may be other than zero.
func (t *Target) raise(end int64) {
	for {
		old := t.highest.Load()
		if end <= old || t.highest.CompareAndSwap(old, end) {
			return
		}
	}
}

func (t *Target) write(p []byte, off int64) (int, error) {
	if !t.direct.Load() {
		return t.writeBuffered(p, off)
	}
	done := 0
	if odd := off % Alignment; odd != 0 {
		head := min(len(p), int(Alignment-odd))
		n, err := t.writeOdd(p[:head], off)
		if err != nil || head == len(p) {
			return n, err
		}
		done = head
	}
	whole := (len(p) - done) &^ (Alignment - 1)
	n, err := t.writeDirect(p[done:done+whole], off+int64(done))
	done += n
	if err != nil || done == len(p) {
		return done, err
	}
	n, err = t.writeOdd(p[done:], off+int64(done))
	return done + n, err
}

// writeDirect writes whole pages around the page cache, through aligned memory
// when p is not. A system that promised it and now refuses is written to
// through the page cache from here on.
func (t *Target) writeDirect(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := t.writePages(p[done:], off+int64(done))
		done += n
		if errors.Is(err, unix.EINVAL) {
			if err := t.loseDirect(); err != nil {
				return done, err
			}
			n, err = t.writeBuffered(p[done:], off+int64(done))
			return done + n, err
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// writePages writes p, or the part of it that fits the aligned copy.
func (t *Target) writePages(p []byte, off int64) (int, error) {
	if aligned(p) {
		return t.h.WriteAt(p, off)
	}
	b := t.bounce.Get().(*[]byte)
	defer t.bounce.Put(b)
	n := copy(*b, p)
	return t.h.WriteAt((*b)[:n], off)
}

// loseDirect turns writing around the page cache off for good.
func (t *Target) loseDirect() error {
	t.toggle.Lock()
	defer t.toggle.Unlock()
	t.direct.Store(false)
	return t.h.setDirect(false)
}

// writeOdd writes part of a page, with O_DIRECT off meanwhile. Other writers
// may pass through the page cache for that moment; their data is as good.
func (t *Target) writeOdd(p []byte, off int64) (int, error) {
	t.toggle.Lock()
	defer t.toggle.Unlock()
	if err := t.h.setDirect(false); err != nil {
		return 0, err
	}
	n, err := t.h.WriteAt(p, off)
	if t.direct.Load() {
		err = errors.Join(err, t.h.setDirect(true))
	}
	return n, err
}

// writeBuffered writes through the page cache and starts write-back early, so
// that Finish has little left to wait for.
func (t *Target) writeBuffered(p []byte, off int64) (int, error) {
	n, err := t.h.WriteAt(p, off)
	if err != nil {
		return n, err
	}
	if e, full := t.note(extent.Extent{Off: off, Len: int64(n)}); full {
		// Advice only: an error of the disk is told by Finish.
		_ = control(t.h.File, func(fd int) error { return unix.SyncFileRange(fd, e.Off, e.Len, unix.SYNC_FILE_RANGE_WRITE) })
	}
	return n, nil
}

// note adds e to what was written; when that is enough it returns the range to
// start write-back for.
func (t *Target) note(e extent.Extent) (extent.Extent, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bytes == 0 {
		t.pending = e
	} else {
		end := max(t.pending.Off+t.pending.Len, e.Off+e.Len)
		t.pending.Off = min(t.pending.Off, e.Off)
		t.pending.Len = end - t.pending.Off
	}
	t.bytes += e.Len
	if t.bytes < writeBack {
		return extent.Extent{}, false
	}
	t.bytes = 0
	return t.pending, true
}

// ZeroRange makes e read as zeros, giving its space back where the system can.
// It costs nothing in a regular file where nothing was written yet. Errors are
// those of WriteAt, and Cancelled when ctx ends.
func (t *Target) ZeroRange(ctx context.Context, e extent.Extent) error {
	if err := t.checkRange("zero", e); err != nil {
		return err
	}
	if !t.device { // what is beyond the last byte written is a hole already
		e.Len = min(e.Len, t.highest.Load()-e.Off)
	}
	for e.Len > 0 {
		if ctx.Err() != nil {
			return snapferry.Errorf(snapferry.Cancelled, "zero %s: %w", t.h.name, context.Cause(ctx))
		}
		step := extent.Extent{Off: e.Off, Len: min(e.Len, zeroStep)}
		if err := t.zero(ctx, step); err != nil {
			return fail("zero", t.h.name, err)
		}
		e.Off += step.Len
		e.Len -= step.Len
	}
	return nil
}

// zero makes a hole; else it lets the kernel write zeros; else it writes them.
func (t *Target) zero(ctx context.Context, e extent.Extent) error {
	err := control(t.h.File, func(fd int) error {
		err := retry(func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Off, e.Len)
		})
		if err == nil || !t.device {
			return err
		}
		span := [2]uint64{uint64(e.Off), uint64(e.Len)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENODEV):
		return t.writeZeros(ctx, e)
	}
	return err
}

func (t *Target) writeZeros(ctx context.Context, e extent.Extent) error {
	zeros := alignedBuffer(bounceSize)
	for e.Len > 0 {
		if ctx.Err() != nil {
			return snapferry.Errorf(snapferry.Cancelled, "zero %s: %w", t.h.name, context.Cause(ctx))
		}
		n, err := t.write(zeros[:min(e.Len, bounceSize)], e.Off)
		if err != nil {
			return err
		}
		e.Off += int64(n)
		e.Len -= int64(n)
	}
	return nil
}

// Finish makes everything written durable, and the name of a new file too.
// Errors are those of WriteAt; after one, the target's content is unknown.
func (t *Target) Finish(ctx context.Context) error {
	if ctx.Err() != nil {
		return snapferry.Errorf(snapferry.Cancelled, "finish %s: %w", t.h.name, context.Cause(ctx))
	}
	if err := t.h.Sync(); err != nil {
		return fail("sync", t.h.name, err)
	}
	if t.created == "" {
		return nil
	}
	if err := syncDir(filepath.Dir(t.created)); err != nil {
		return fail("sync the directory of", t.h.name, err)
	}
	t.created = ""
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close ends writing. Without a Finish that returned nil it removes a file
// that Create made, so that no half image stays behind.
func (t *Target) Close() error {
	err := t.h.close()
	if t.created != "" {
		err = errors.Join(err, os.Remove(t.created))
	}
	if err != nil {
		return fail("close", t.h.name, err)
	}
	return nil
}

func aligned(p []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Alignment == 0 }

// alignedBuffer returns n bytes of zeros at an address that is a multiple of
// Alignment.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+Alignment)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % Alignment)
	return b[skip : skip+n : skip+n]
}
