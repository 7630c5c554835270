package layer

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/snapferry/snapferry"
)

const (
	dataFile = "data"
	mapFile  = "map"
)

func fileName(kind string, stripe int) string { return fmt.Sprintf("%s.%03d", kind, stripe) }

// parseName reads a name that fileName made.
func parseName(name string) (kind string, stripe int, ok bool) {
	kind, _, _ = strings.Cut(name, ".")
	if _, err := fmt.Sscanf(name, kind+".%d", &stripe); err != nil || kind != dataFile && kind != mapFile {
		return "", 0, false
	}
	return kind, stripe, stripe >= 0 && stripe < maxStripes && fileName(kind, stripe) == name
}

// Open opens a layer that Create made; size is that of the volume in bytes, not
// less than it was. It reads the parts of the map files that are not holes.
// What it finds counts as written: the first Sync makes it durable, whichever
// process it was that wrote it. Errors are of Kind NotFound when there is no
// such directory, Corrupt when files are not what a layer writes.
//
// keys are those of the volume, nil for one that is not encrypted: a layer that is
// the other way is Corrupt. Errors of keys are returned as they are.
func Open(fsys FS, dir string, size int64, keys Keys) (*Layer, error) {
	if err := snapferry.CheckSize(size); err != nil {
		return nil, err
	}
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	l := &Layer{fs: fsys, dir: dir}
	l.size.Store(size)
	l.unlisted.Store(true)
	err = l.loadKey(keys, names)
	if err == nil {
		err = l.load(names)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Layer) load(names []string) error {
	for _, name := range names {
		kind, number, ok := parseName(name)
		if !ok && strings.HasPrefix(name, ".") || name == keyFile || name == keyFile+tempSuffix {
			continue // some file systems put names with a dot there
		}
		if !ok || int64(number)*StripeSize >= l.Size() {
			return l.corrupt("%s is not a file of a layer of %d bytes", name, l.Size())
		}
		s := l.stripes[number].Load()
		if s == nil {
			s = &stripe{number: number}
			l.stripes[number].Store(s)
		}
		f, err := l.fs.OpenFile(path.Join(l.dir, name), false)
		if err != nil {
			return err
		}
		slot := &s.states
		if kind == dataFile {
			slot, f = &s.data, l.dataOf(f, number)
		}
		open := &file{File: f}
		open.written.Store(true)
		slot.Store(open)
	}
	var buf []byte
	for i := range l.stripes {
		if s := l.stripes[i].Load(); s != nil && s.states.Load() != nil {
			if buf == nil {
				buf = make([]byte, mapsAtOnce*mapPage)
			}
			if err := l.loadStripe(s, buf); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Layer) corrupt(format string, args ...any) error {
	return snapferry.Errorf(snapferry.Corrupt, "layer %s: %s", l.dir, fmt.Sprintf(format, args...))
}

// loadStripe reads the map file of a stripe and checks it against the size of
// the volume and of the data file; buf is of whole map pages.
func (l *Layer) loadStripe(s *stripe, buf []byte) error {
	name := fileName(mapFile, s.number)
	f := s.states.Load()
	size, _, err := f.Stat()
	if err != nil {
		return err
	}
	if size > stripeMaps*mapPage {
		return l.corrupt("%s has %d bytes, more than %d", name, size, stripeMaps*mapPage)
	}
	for off := int64(0); off < size; {
		e, ok, err := f.NextData(off)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		off = max(off, e.Off&^(mapPage-1))
		for off < e.End() {
			p := buf[:min(int64(len(buf)), (e.End()-off+mapPage-1)&^(mapPage-1))]
			n, err := f.ReadAt(p, off)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			clear(p[n:]) // what is behind the end was never written
			if err := l.loadMaps(s, int(off/mapPage), p); err != nil {
				return err
			}
			off += int64(len(p))
		}
	}
	return l.checkStripe(s)
}

// loadMaps takes whole map pages, the first of which is number i.
func (l *Layer) loadMaps(s *stripe, i int, p []byte) error {
	for ; len(p) > 0; i, p = i+1, p[mapPage:] {
		c, ok := decode(p[:mapPage])
		if !ok {
			return l.corrupt("page %d of %s has a state that no page has", i, fileName(mapFile, s.number))
		}
		s.maps[i].Store(c)
		n := c.counts()
		l.data.Add(int64(n[Data]))
		l.zero.Add(int64(n[Zero]))
	}
	return nil
}

// checkStripe finds states of pages that the volume does not have, and data that
// the data file does not have.
func (l *Layer) checkStripe(s *stripe) error {
	end := l.pages() - int64(s.number)*stripePages
	if page := max(s.last(Data), s.last(Zero)); page >= end {
		return l.corrupt("%s has page %d of a volume of %d", fileName(mapFile, s.number), page, end)
	}
	last := s.last(Data)
	if last < 0 {
		return nil
	}
	f := s.data.Load()
	if f == nil {
		return l.corrupt("%s is missing", fileName(dataFile, s.number))
	}
	size, _, err := f.Stat()
	if err == nil && size < (last+1)*PageSize {
		err = l.corrupt("%s ends at byte %d, before the end of page %d", fileName(dataFile, s.number), size, last)
	}
	return err
}

// last returns the highest page of the stripe that has a state, or -1.
func (s *stripe) last(state State) int64 {
	for i := len(s.maps) - 1; i >= 0; i-- {
		if page := s.maps[i].Load().last(state); page >= 0 {
			return int64(i)*pagesPerMap + int64(page)
		}
	}
	return -1
}
