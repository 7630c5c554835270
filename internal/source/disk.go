package source

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
)

// Disk is an open foreign disk. ReadAt and Next may be called by several
// goroutines at once; Close after they have returned.
type Disk struct {
	h     *handle
	facts facts
}

// Open opens the raw image file or block device at path for reading. Errors
// are of Kind NotFound when nothing is there, Denied when this process may not
// read it, Invalid when it is a directory, a pipe or the like, or when its
// size cannot be that of a volume (snapferry.CheckSize), and Unavailable when
// there is no device behind a device node.
func Open(path string) (*Disk, error) {
	f, err := OpenRead(path)
	if err != nil {
		return nil, err
	}
	return newDisk(own(f, path))
}

// FromFile makes a Disk of a file that is open for reading, usually one handed
// over by another process. name stands in messages. The caller keeps f and may
// close it at any time; its position and flags are as before after Close.
// Errors are those of Open, and Denied when f was not opened for reading.
func FromFile(f *os.File, name string) (*Disk, error) {
	h, err := borrow(f, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return newDisk(h)
}

// newDisk takes over h, also when it fails.
func newDisk(h *handle) (*Disk, error) {
	facts, err := inspect(h.File, h.name)
	if err == nil {
		if sizeErr := snapferry.CheckSize(facts.size); sizeErr != nil {
			err = snapferry.Errorf(snapferry.KindOf(sizeErr), "%s: %w", h.name, sizeErr)
		}
	}
	if err == nil {
		if dErr := h.setDirect(false); dErr != nil { // reads here are of any alignment
			err = fail("prepare", h.name, dErr)
		}
	}
	if err != nil {
		h.close()
		return nil, err
	}
	// Advice only: nothing depends on it.
	_ = control(h.File, func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_SEQUENTIAL) })
	return &Disk{h: h, facts: facts}, nil
}

// Size is the size of the disk in bytes, found when it was opened.
func (d *Disk) Size() int64 { return d.facts.size }

// Name is the path, or the name given to FromFile.
func (d *Disk) Name() string { return d.h.name }

// ReadAt is io.ReaderAt over [0, Size). A disk that became shorter gives an
// error of Kind Conflict, one that cannot be read Unavailable.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, snapferry.Errorf(snapferry.Invalid, "read %s at negative offset %d", d.h.name, off)
	}
	if off >= d.facts.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > d.facts.size-off
	if short {
		p = p[:d.facts.size-off]
	}
	n, err := d.h.ReadAt(p, off)
	switch {
	case n == len(p) && short:
		return n, io.EOF
	case n == len(p):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, d.changed("it ends at %d instead of %d bytes", off+int64(n), d.facts.size)
	}
	return n, fail("read", d.h.name, err)
}

// Next returns the first extent of data at or after off, as the file system
// tells it, clipped to the disk; false when only holes follow. Data may well
// be zeros; holes never are anything else. Block devices and file systems that
// cannot tell have everything from off on as one extent.
func (d *Disk) Next(off int64) (extent.Extent, bool, error) {
	if off < 0 {
		return extent.Extent{}, false, snapferry.Errorf(snapferry.Invalid, "seek in %s to negative offset %d", d.h.name, off)
	}
	if off >= d.facts.size {
		return extent.Extent{}, false, nil
	}
	rest := extent.Extent{Off: off, Len: d.facts.size - off}
	if d.facts.device {
		return rest, true, nil
	}
	start, err := d.h.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return extent.Extent{}, false, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return rest, true, nil
	case err != nil:
		return extent.Extent{}, false, fail("find data in", d.h.name, err)
	case start >= d.facts.size: // it grew
		return extent.Extent{}, false, nil
	}
	end, err := d.h.Seek(start, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO): // it shrank: reading says so
		end = d.facts.size
	case err != nil:
		return extent.Extent{}, false, fail("find holes in", d.h.name, err)
	}
	return extent.Extent{Off: start, Len: min(end, d.facts.size) - start}, true, nil
}

// Changed reports, with an error of Kind Conflict, that the disk has another
// size than when it was opened or, for a regular file, that it was written to
// since. Ask when everything was read: what was read is one point in time only
// when it returns nil. Writes to a block device are not seen.
func (d *Disk) Changed() error {
	now, err := inspect(d.h.File, d.h.name)
	if err != nil {
		return err
	}
	switch {
	case now.size != d.facts.size:
		return d.changed("its size went from %d to %d bytes", d.facts.size, now.size)
	case now.mtime != d.facts.mtime:
		return d.changed("it was written to")
	}
	return nil
}

func (d *Disk) changed(format string, args ...any) error {
	cause := snapferry.Errorf(snapferry.Conflict, format, args...)
	return snapferry.Errorf(snapferry.Conflict, "%s changed while it was read: %w", d.h.name, cause).
		WithHint("stop what writes to it, or take a snapshot of it below, and try again")
}

// Close ends reading.
func (d *Disk) Close() error {
	if err := d.h.close(); err != nil {
		return fail("close", d.h.name, err)
	}
	return nil
}
