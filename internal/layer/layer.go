package layer

import (
	"errors"
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/xts"
)

const (
	// PageSize is the unit of presence in bytes.
	PageSize = 4096
	// StripeSize is what one data file holds at most, in bytes (256 GiB).
	StripeSize = 256 << 30

	stripePages = StripeSize / PageSize
	stripeMaps  = stripePages / pagesPerMap
	maxStripes  = snapferry.MaxVolumeSize / StripeSize
	mapPage     = pagesPerMap / 4 // bytes of a page of a map file
	mapsAtOnce  = 64              // pages of a map file read or written in one call

	containerSize = int64(unsafe.Sizeof(container{}))
	stripeSize    = int64(unsafe.Sizeof(stripe{}))
)

// State is what a layer says of a page.
type State uint8

// The states of a page. Their numbers are those of the map files.
const (
	Below State = iota // nothing: a lower layer, or the base, has it
	Data               // its content is in the layer
	Zero               // it is zeros
	numStates
)

func (s State) String() string {
	switch s {
	case Below:
		return "below"
	case Data:
		return "data"
	case Zero:
		return "zero"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Layer is one layer of a volume. See the package comment for durability and
// concurrency.
type Layer struct {
	fs     FS
	dir    string
	size   atomic.Int64
	cipher *xts.Cipher // of the data files; nil: they are not encrypted

	stripes  [maxStripes]atomic.Pointer[stripe]
	making   sync.Mutex  // held to make a stripe, or a file of one
	shut     bool        // Close was called; under making
	unlisted atomic.Bool // files were made that the directory may not name after a crash

	data, zero atomic.Int64 // pages of that state

	group  group
	broken atomic.Pointer[error] // of the sync that failed
}

// stripe is the part of a layer that has a data file and a map file of its own.
type stripe struct {
	number  int
	maps    [stripeMaps]atomic.Pointer[container]
	changed [stripeMaps / 64]atomic.Uint64 // maps not written since; changed under the container's lock
	locks   [64]sync.Mutex                 // of containers, by their number modulo 64

	data, states atomic.Pointer[file] // nil: not made yet
}

// file is an open file; written says that it has what no Datasync that has begun
// is known to cover. It is set after the write.
type file struct {
	File
	written atomic.Bool
}

func (f *file) wrote() {
	if !f.written.Load() { // else every write of every core would take the line
		f.written.Store(true)
	}
}

// Create makes a layer in a new directory; size is that of the volume in bytes.
// With keys, which may be nil, it is encrypted under a key of its own. The
// directory is durable when Create returns. Errors are of Kind Exists when
// something is there, Invalid for a size that no volume can have, and those of
// keys; then there may be a directory, which Open with keys takes.
func Create(fsys FS, dir string, size int64, keys Keys) (*Layer, error) {
	if err := snapferry.CheckSize(size); err != nil {
		return nil, err
	}
	if err := fsys.Mkdir(dir); err != nil {
		return nil, err
	}
	l := &Layer{fs: fsys, dir: dir}
	l.size.Store(size)
	if keys != nil {
		if err := l.newKey(keys); err != nil {
			return nil, err
		}
	}
	if err := fsys.SyncDir(path.Dir(dir)); err != nil {
		return nil, err
	}
	return l, nil
}

// Remove removes a layer that nobody has open, and that nothing names any more.
// It removes what is left of one too. The caller syncs the directory that the
// layer was in, when it matters that the layer does not come back.
func Remove(fsys FS, dir string) error {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := fsys.Remove(path.Join(dir, name)); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
	}
	return fsys.Remove(dir)
}

// Close closes the files, once. It syncs nothing. Whatever is called afterwards
// fails when it needs a file.
func (l *Layer) Close() error {
	l.making.Lock()
	defer l.making.Unlock()
	if l.shut {
		return nil
	}
	l.shut = true
	var errs []error
	for i := range l.stripes {
		if s := l.stripes[i].Load(); s != nil {
			for f := range s.files {
				errs = append(errs, f.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// files iterates over the files of the stripe that are open.
func (s *stripe) files(yield func(*file) bool) {
	for _, p := range []*atomic.Pointer[file]{&s.data, &s.states} {
		if f := p.Load(); f != nil && !yield(f) {
			return
		}
	}
}

// Dir returns the name of the layer's directory.
func (l *Layer) Dir() string { return l.dir }

// Size returns the size of the volume in bytes.
func (l *Layer) Size() int64 { return l.size.Load() }

// Resize makes the volume larger; a smaller size is an error of Kind Invalid.
// Nothing is written: the size is the caller's to remember.
func (l *Layer) Resize(size int64) error {
	if err := snapferry.CheckSize(size); err != nil {
		return err
	}
	for {
		old := l.size.Load()
		if size < old {
			return snapferry.Errorf(snapferry.Invalid, "a layer of %d bytes cannot shrink to %d", old, size)
		}
		if l.size.CompareAndSwap(old, size) {
			return nil
		}
	}
}

// pages returns the pages of the volume; the last may be cut short by its end.
func (l *Layer) pages() int64 { return (l.size.Load() + PageSize - 1) / PageSize }

// Pages returns how many pages are Data and how many Zero.
func (l *Layer) Pages() (data, zero int64) { return l.data.Load(), l.zero.Load() }

// Allocated returns the bytes that the layer's files take on the disk.
func (l *Layer) Allocated() (int64, error) {
	var sum int64
	for i := range l.stripes {
		s := l.stripes[i].Load()
		if s == nil {
			continue
		}
		for f := range s.files {
			_, n, err := f.Stat()
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}

// Allocated returns the bytes that the files of a layer take on the disk, open or
// not.
func Allocated(fsys FS, dir string) (sum int64, err error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if !isContent(name) && name != keyFile {
			continue
		}
		f, err := fsys.OpenFile(path.Join(dir, name), false)
		if err != nil {
			return 0, err
		}
		_, n, err := f.Stat()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// Memory returns about how many bytes of memory the states of the pages take.
func (l *Layer) Memory() int64 {
	sum := int64(unsafe.Sizeof(*l))
	for i := range l.stripes {
		s := l.stripes[i].Load()
		if s == nil {
			continue
		}
		sum += stripeSize
		for j := range s.maps {
			sum += s.maps[j].Load().memory()
		}
	}
	return sum
}

// at returns the stripe of a page, or nil.
func (l *Layer) at(page int64) *stripe {
	if i := uint64(page) / stripePages; i < maxStripes {
		return l.stripes[i].Load()
	}
	return nil
}

// Lookup returns the state of a page; of one outside the volume it is Below.
func (l *Layer) Lookup(page int64) State {
	s := l.at(page)
	if s == nil {
		return Below
	}
	in := int(page % stripePages)
	return s.maps[in/pagesPerMap].Load().look(in % pagesPerMap)
}

// Run returns the state of a page and how many pages from it on, at most limit,
// share it. limit is at least 1.
func (l *Layer) Run(page, limit int64) (State, int64) {
	state, n := l.run(page)
	for n < limit {
		s, k := l.run(page + n)
		if s != state {
			break
		}
		n += k
	}
	return state, min(n, limit)
}

// run is Run within one container, or one stripe that is not there.
func (l *Layer) run(page int64) (State, int64) {
	in := page % stripePages
	s := l.at(page)
	if s == nil {
		return Below, stripePages - in
	}
	state, n := s.maps[in/pagesPerMap].Load().run(int(in % pagesPerMap))
	return state, int64(n)
}

// NextSet returns the first run of pages from page on that are not Below and
// share a state; ok is false when there is none. Pages may be written
// meanwhile: then those that were set before the call are found for certain.
func (l *Layer) NextSet(page int64) (first, n int64, s State, ok bool) {
	for end := l.pages(); page < end; page += n {
		if s, n = l.run(page); s != Below {
			s, n = l.Run(page, end-page)
			if s != Below { // else it was forgotten meanwhile
				return page, n, s, true
			}
		}
	}
	return 0, 0, Below, false
}

// checkPages reports whether n pages from page on are of the volume.
func (l *Layer) checkPages(page, n int64) error {
	if end := l.pages(); page < 0 || n < 0 || page > end || n > end-page {
		return snapferry.Errorf(snapferry.Invalid, "%d pages at %d of layer %s, which has %d", n, page, l.dir, end)
	}
	return nil
}

// mark gives n pages from page on a state. The files of their stripes are there
// as far as the state needs them, and data that is to be Data is written. For
// each container it calls were, if not nil, with the range it changed and by how
// many pages Data became fewer.
func (l *Layer) mark(page, n int64, s State, were func(e extent.Extent, data int)) {
	for n > 0 {
		in := page % stripePages
		k := min(n, pagesPerMap-in%pagesPerMap)
		if st := l.at(page); st != nil { // else it is to be Below, and is
			change := st.mark(int(in/pagesPerMap), int(in%pagesPerMap), int(k), s)
			if change != [numStates]int{} {
				l.data.Add(int64(change[Data]))
				l.zero.Add(int64(change[Zero]))
			}
			if were != nil {
				were(extent.Extent{Off: page, Len: k}, -change[Data])
			}
		}
		page, n = page+k, n-k
	}
}

// mark changes the container number i, and returns by how many pages each state
// has more now.
func (st *stripe) mark(i, page, n int, s State) [numStates]int {
	// Nobody else writes these pages now, so what they are needs no lock.
	if was, k := st.maps[i].Load().run(page); was == s && k >= n {
		return [numStates]int{}
	}
	lock := &st.locks[i%len(st.locks)]
	lock.Lock()
	defer lock.Unlock()
	c := st.maps[i].Load()
	next, change := c.with(page, n, s)
	if next != c {
		st.maps[i].Store(next)
	}
	st.changed[i/64].Or(1 << (i % 64))
	return change
}
