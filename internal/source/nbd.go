package source

import (
	"context"
	"net"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/nbd"
)

// dirtyPrefix begins the metadata contexts under which QEMU's tools show dirty
// bitmaps (docs/interop/nbd.rst of QEMU); flag 1 of an extent says that it was
// written to.
const dirtyPrefix = "qemu:dirty-bitmap:"

// RemoteConfig says what of an NBD server is read.
type RemoteConfig struct {
	nbd.ClientConfig        // Contexts are set by FromNBD
	Bitmap           string // the server's dirty bitmap of what changed; empty: none
	Name             string // stands in messages
}

// Remote is a disk on an NBD server. ReadAt and Next may be called by several
// goroutines at once.
type Remote struct {
	ctx    context.Context
	c      *nbd.Client
	name   string
	bitmap string // context; empty: none
	data   extents
	dirty  extents
}

// FromNBD reads a disk through a connection to an NBD server, which it owns. What
// it asks ends with ctx. Errors are those of nbd.NewClient; NotFound when the
// server does not have the bitmap, Invalid when the disk has a size that no volume
// can have.
func FromNBD(ctx context.Context, conn net.Conn, cfg RemoteConfig) (*Remote, error) {
	r := &Remote{ctx: ctx, name: cfg.Name}
	cfg.Contexts = []string{nbd.BaseAllocation}
	if cfg.Bitmap != "" {
		r.bitmap = dirtyPrefix + cfg.Bitmap
		cfg.Contexts = append(cfg.Contexts, r.bitmap)
	}
	var err error
	if r.c, err = nbd.NewClient(ctx, conn, &cfg.ClientConfig); err != nil {
		return nil, snapferry.Errorf(snapferry.KindOf(err), "%s: %w", cfg.Name, err)
	}
	has := map[string]bool{}
	for _, c := range r.c.Contexts() {
		has[c] = true
	}
	err = snapferry.CheckSize(r.c.Size())
	if err == nil && r.bitmap != "" && !has[r.bitmap] {
		err = snapferry.Errorf(snapferry.NotFound, "the server has no dirty bitmap %q", cfg.Bitmap).
			WithHint("see what it has with: nbdinfo --list URI")
	}
	if err != nil {
		r.c.Close()
		return nil, snapferry.Errorf(snapferry.KindOf(err), "%s: %w", cfg.Name, err)
	}
	r.data = extents{r: r, flag: nbd.StateZero, without: true}
	if has[nbd.BaseAllocation] {
		r.data.context = nbd.BaseAllocation
	}
	r.dirty = extents{r: r, context: r.bitmap, flag: 1}
	return r, nil
}

// Size is the size of the disk in bytes.
func (r *Remote) Size() int64 { return r.c.Size() }

// Name is the name given to FromNBD.
func (r *Remote) Name() string { return r.name }

// ReadAt is io.ReaderAt over [0, Size). Errors are of the Kinds that nbd.Client
// says.
func (r *Remote) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.c.ReadAt(p, off)
	if err != nil {
		err = snapferry.Errorf(snapferry.KindOf(err), "read %s: %w", r.name, err)
	}
	return n, err
}

// Next returns the first extent at or after off that does not read as zeros, as
// the server tells; false when only zeros follow. A server that cannot tell has
// everything from off on as one extent.
func (r *Remote) Next(off int64) (extent.Extent, bool, error) { return r.data.next(off) }

// Close ends the connection.
func (r *Remote) Close() error { return r.c.Close() }

// Since returns the disk as its dirty bitmap shows it: Next gives what was
// written to since the bitmap began. ok is false without a bitmap.
func (r *Remote) Since() (d *Delta, ok bool) { return &Delta{r}, r.bitmap != "" }

// Delta is what changed of a Remote.
type Delta struct{ *Remote }

// Next returns the first extent at or after off that was written to; false when
// none follows.
func (d *Delta) Next(off int64) (extent.Extent, bool, error) { return d.dirty.next(off) }

// window is how much of a disk one question about its extents covers.
const window = 1 << 30

// extents are those of a metadata context that have a flag, or do not. They are
// asked for in windows; the last one is remembered.
type extents struct {
	r       *Remote
	context string // empty: the server does not tell
	flag    uint32
	without bool // those without the flag

	mu       sync.Mutex
	from, to int64           // the window
	found    []extent.Extent // in it, ascending
}

func (x *extents) next(off int64) (extent.Extent, bool, error) {
	size := x.r.Size()
	if x.context == "" {
		return extent.Extent{Off: off, Len: size - off}, off < size, nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for off < size {
		if off < x.from || off >= x.to {
			if err := x.ask(off, min(window, size-off)); err != nil {
				return extent.Extent{}, false, err
			}
		}
		for len(x.found) > 0 && x.found[0].End() <= off && off >= x.from {
			x.found, x.from = x.found[1:], max(x.from, x.found[0].End())
		}
		for _, e := range x.found {
			if e.End() > off {
				lo := max(e.Off, off)
				return extent.Extent{Off: lo, Len: e.End() - lo}, true, nil
			}
		}
		off = x.to
	}
	return extent.Extent{}, false, nil
}

// ask fills the window.
func (x *extents) ask(off, n int64) error {
	x.from, x.to, x.found = off, off, nil
	at := off
	err := x.r.c.Status(x.r.ctx, x.context, off, n, func(length int64, flags uint32) error {
		if (flags&x.flag == 0) == x.without && length > 0 {
			if k := len(x.found) - 1; k >= 0 && x.found[k].End() == at {
				x.found[k].Len += length
			} else {
				x.found = append(x.found, extent.Extent{Off: at, Len: length})
			}
		}
		at += length
		return nil
	})
	if err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "ask %s for its extents: %w", x.r.name, err)
	}
	x.to = off + n
	return nil
}
