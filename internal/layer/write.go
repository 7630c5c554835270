package layer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
)

const copyStep = 1 << 20 // bytes copied between two looks at the context

// ReadAt reads pages that are Data, or any part of them. Whether they are is
// the caller's to know: where nothing was ever written the result is zeros or
// an error of Kind Corrupt.
func (l *Layer) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		f, in, k, err := l.place(off+int64(done), len(p)-done)
		if err != nil {
			return done, err
		}
		n, err := f.ReadAt(p[done:done+k], in)
		done += n
		if n < k && (err == nil || errors.Is(err, io.EOF)) {
			err = snapferry.Errorf(snapferry.Corrupt, "layer %s: the data file ends before byte %d", l.dir, off+int64(done))
		}
		if n < k {
			return done, err
		}
	}
	return done, nil
}

// ReadNow is ReadAt if that needs no waiting for a disk, else done is false and
// p may hold anything.
func (l *Layer) ReadNow(p []byte, off int64) (done bool, err error) {
	for len(p) > 0 {
		f, in, k, err := l.place(off, len(p))
		if err != nil {
			return false, err
		}
		if done, err := f.ReadNow(p[:k], in); !done || err != nil {
			return false, err
		}
		p, off = p[k:], off+int64(k)
	}
	return true, nil
}

// place returns the data file, which must be there, of a byte, where in it the
// byte is, and how many of n bytes are in it.
func (l *Layer) place(off int64, n int) (f *file, in int64, k int, err error) {
	if s := l.at(off / PageSize); s != nil {
		f = s.data.Load()
	}
	if f == nil {
		return nil, 0, 0, snapferry.Errorf(snapferry.Corrupt, "layer %s has no data at byte %d", l.dir, off)
	}
	in = off % StripeSize
	return f, in, int(min(int64(n), StripeSize-in)), nil
}

// WriteAt writes whole pages and makes them Data. After an error each page has
// its state from before, or is Data; one that was Data may have the old content,
// the new, or a mix. An error of Kind Full is one of those too. Writing pages
// that are Data already allocates no memory.
func (l *Layer) WriteAt(p []byte, off int64) (int, error) {
	if off%PageSize != 0 || len(p)%PageSize != 0 {
		return 0, snapferry.Errorf(snapferry.Invalid, "%d bytes at %d of layer %s are not whole pages", len(p), off, l.dir)
	}
	if err := l.checkPages(off/PageSize, int64(len(p)/PageSize)); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		k := int(min(int64(len(p)-done), StripeSize-at%StripeSize))
		s, err := l.stripe(at/PageSize, true)
		if err != nil {
			return done, err
		}
		f := s.data.Load()
		n, err := f.WriteAt(p[done:done+k], at%StripeSize)
		f.wrote()
		if err != nil {
			return done + n, err
		}
		l.mark(at/PageSize, int64(k/PageSize), Data, nil)
		done += k
	}
	return done, nil
}

// Patch writes any bytes of pages that are Data; the error is of Kind Internal
// when one is not. After an error the bytes may be old, new, or a mix.
func (l *Layer) Patch(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	first := off / PageSize
	last := (off + int64(len(p)) - 1) / PageSize
	if s, n := l.Run(first, last-first+1); s != Data || n <= last-first {
		return snapferry.Errorf(snapferry.Internal, "patch of %d bytes at %d of layer %s, which has no data there", len(p), off, l.dir)
	}
	for len(p) > 0 {
		f, in, k, err := l.place(off, len(p))
		if err != nil {
			return err
		}
		_, err = f.WriteAt(p[:k], in)
		f.wrote()
		if err != nil {
			return err
		}
		p, off = p[k:], off+int64(k)
	}
	return nil
}

// Zero makes n pages from page on Zero and gives the space of their data back.
// After an error pages may be Zero or as before.
func (l *Layer) Zero(page, n int64) error {
	if err := l.checkPages(page, n); err != nil {
		return err
	}
	for end := page + n; page < end; {
		k := min(end-page, stripePages-page%stripePages)
		if _, err := l.stripe(page, false); err != nil {
			return err
		}
		var old []extent.Extent
		l.mark(page, k, Zero, func(e extent.Extent, data int) {
			if last := len(old) - 1; data > 0 && last >= 0 && old[last].End() == e.Off {
				old[last].Len += e.Len
			} else if data > 0 {
				old = append(old, e)
			}
		})
		for _, e := range old {
			if err := l.punch(e); err != nil {
				return err
			}
		}
		page += k
	}
	return nil
}

// Forget makes pages Below, for caches that shrink: the base must still have
// them. When it returns nil that is durable, as after Sync, and the space of
// their data is given back, also where a crash had kept an earlier Forget from
// it. Until then a crash may leave a page as it was. Who looked at a page before
// Forget must not read it afterwards: it would find zeros.
func (l *Layer) Forget(pages ...extent.Extent) error {
	for _, e := range pages {
		if err := l.checkPages(e.Off, e.Len); err != nil {
			return err
		}
		l.mark(e.Off, e.Len, Below, nil)
	}
	if err := l.Sync(); err != nil {
		return err
	}
	for _, e := range pages {
		if err := l.punch(e); err != nil {
			return err
		}
	}
	return nil
}

// punch gives the space of pages back.
func (l *Layer) punch(pages extent.Extent) error {
	for at, end := pages.Off, pages.End(); at < end; {
		k := min(end-at, stripePages-at%stripePages)
		if s := l.at(at); s != nil {
			if f := s.data.Load(); f != nil {
				err := f.Punch(at%stripePages*PageSize, k*PageSize)
				f.wrote()
				if err != nil {
					return err
				}
			}
		}
		at += k
	}
	return nil
}

// stripe returns the stripe of a page with its map file, and with its data file
// if data is set; what is not there is made.
func (l *Layer) stripe(page int64, data bool) (*stripe, error) {
	slot := &l.stripes[page/stripePages]
	if s := slot.Load(); s != nil && s.states.Load() != nil && (!data || s.data.Load() != nil) {
		return s, nil
	}
	l.making.Lock()
	defer l.making.Unlock()
	s := slot.Load()
	if s == nil {
		s = &stripe{number: int(page / stripePages)}
		slot.Store(s)
	}
	if data {
		if err := l.makeFile(&s.data, dataFile, s.number); err != nil {
			return nil, err
		}
	}
	return s, l.makeFile(&s.states, mapFile, s.number)
}

// makeFile opens or makes a file of a stripe if it is not open.
func (l *Layer) makeFile(slot *atomic.Pointer[file], kind string, number int) error {
	if slot.Load() != nil {
		return nil
	}
	name := path.Join(l.dir, fileName(kind, number))
	if l.shut {
		return failure("make", name, fs.ErrClosed)
	}
	f, err := l.fs.OpenFile(name, true)
	if err != nil {
		return err
	}
	l.unlisted.Store(true)
	if kind == dataFile {
		f = l.dataOf(f, number)
	}
	slot.Store(&file{File: f})
	return nil
}

// Absorb writes every page that upper has into l and makes l durable. upper
// must not change meanwhile; it may be read, and so may l below it. After an
// error, a crash or the end of ctx, pages of l under pages of upper may be old
// or new: keep both, and absorb again.
func (l *Layer) Absorb(ctx context.Context, upper *Layer) error {
	if upper.pages() > l.pages() {
		return snapferry.Errorf(snapferry.Invalid, "layer %s of %d bytes cannot absorb one of %d", l.dir, l.Size(), upper.Size())
	}
	var buf []byte
	for page := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		first, n, s, ok := upper.NextSet(page)
		if !ok {
			return l.Sync()
		}
		if s == Zero {
			if err := l.Zero(first, n); err != nil {
				return err
			}
			page = first + n
			continue
		}
		n = min(n, copyStep/PageSize, stripePages-first%stripePages)
		if err := l.copyPages(upper, first, n, &buf); err != nil {
			return err
		}
		page = first + n
	}
}

// copyPages copies pages of one stripe and makes them Data; buf is made when the
// system cannot do it alone.
func (l *Layer) copyPages(upper *Layer, page, n int64, buf *[]byte) error {
	from, in, k, err := upper.place(page*PageSize, int(n*PageSize))
	if err != nil {
		return err
	}
	s, err := l.stripe(page, true)
	if err != nil {
		return err
	}
	f := s.data.Load()
	copier, ok := f.File.(Copier)
	done := int64(0)
	for ok && done < int64(k) {
		c, err := copier.CopyFrom(from.File, in+done, int64(k)-done)
		f.wrote()
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		ok = c > 0 && err == nil
		done += c
	}
	if done < int64(k) {
		if *buf == nil {
			*buf = make([]byte, copyStep)
		}
		if _, err := upper.ReadAt((*buf)[:k], page*PageSize); err != nil {
			return err
		}
		_, err = l.WriteAt((*buf)[:k], page*PageSize)
		return err
	}
	l.mark(page, n, Data, nil)
	return nil
}
