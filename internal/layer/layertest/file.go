package layertest

import (
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"

	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/layer"
)

const (
	sectorSize = 512
	blockSize  = 4096
	maxSize    = 16 << 40 // of a file: ext4's
)

// sector is never changed; nil is a hole.
type sector *[sectorSize]byte

// sectors are the sectors of a file by blocks.
type sectors map[int64]*[blockSize / sectorSize]sector

func (s sectors) get(i int64) sector {
	if b := s[i/8]; b != nil {
		return b[i%8]
	}
	return nil
}

func (s sectors) set(i int64, v sector) {
	b := s[i/8]
	if b == nil && v == nil {
		return
	}
	if b == nil {
		b = new([blockSize / sectorSize]sector)
		s[i/8] = b
	}
	b[i%8] = v
	if *b == [blockSize / sectorSize]sector{} {
		delete(s, i/8)
	}
}

// content is what a file has now, and what it may have after a cut.
type content struct {
	now, disk sectors
	since     map[int64][]version // sectors that are not known to be on the disk
	size      int64
	diskSize  int64
	sizes     []int64 // that the file had since
	busy      []extent.Extent
}

// version is a content that a sector had since it was last synced.
type version struct {
	data sector
	lost bool // no Datasync writes it any more
}

func newContent() content {
	return content{now: sectors{}, disk: sectors{}, since: map[int64][]version{}}
}

func (c *content) allocated() int64 { return int64(len(c.now)) * blockSize }

// put gives a sector other content.
func (c *content) put(i int64, v sector) {
	if v == nil && c.now.get(i) == nil {
		return
	}
	c.now.set(i, v)
	c.since[i] = append(c.since[i], version{data: v})
}

func (c *content) sync() {
	for i, vs := range c.since {
		if last := vs[len(vs)-1]; !last.lost {
			c.disk.set(i, last.data)
			delete(c.since, i)
		}
	}
	c.diskSize, c.sizes = c.size, nil
}

func (c *content) lose() {
	for _, vs := range c.since {
		for i := range vs {
			vs[i].lost = true
		}
	}
}

// survive returns the content after a cut.
func (c *content) survive(r *rand.Rand, keep float64) content {
	is := newContent()
	is.size = c.diskSize
	if len(c.sizes) > 0 && r.Float64() < keep {
		is.size = c.sizes[len(c.sizes)-1]
		if r.IntN(4) == 0 && keep < 1 {
			is.size = c.sizes[r.IntN(len(c.sizes))]
		}
	}
	is.diskSize = is.size
	for b, ss := range c.disk {
		is.disk[b] = new([blockSize / sectorSize]sector)
		*is.disk[b] = *ss
	}
	for _, i := range slices.Sorted(maps.Keys(c.since)) {
		if vs := c.since[i]; r.Float64() < keep {
			v := vs[len(vs)-1]
			if r.IntN(4) == 0 && keep < 1 {
				v = vs[r.IntN(len(vs))]
			}
			is.disk.set(i, v.data)
		}
	}
	for b := range is.disk {
		if b*blockSize >= is.size {
			delete(is.disk, b)
		}
	}
	for b, ss := range is.disk {
		is.now[b] = new([blockSize / sectorSize]sector)
		*is.now[b] = *ss
	}
	return is
}

// file is an open file.
type file struct {
	p      *Power
	n      *node
	name   string
	closed bool
	cold   int // reads without waiting so far
}

// check fails the test when the file is not used as it must be. Callers hold
// p.mu.
func (f *file) check(what Kind, off, n int64) error {
	f.p.tb.Helper()
	switch {
	case f.closed:
		f.p.tb.Errorf("%s of %s, which is closed", what, f.name)
		return fs.ErrClosed
	case off < 0 || n < 0:
		f.p.tb.Errorf("%s of %d bytes at %d of %s", what, n, off, f.name)
		return syscall.EINVAL
	case off > maxSize-n:
		return syscall.EFBIG
	}
	return nil
}

// Close implements layer.File.
func (f *file) Close() error {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if err := f.check("close", 0, 0); err != nil {
		return err
	}
	f.closed = true
	f.p.handles--
	return nil
}

// ReadAt implements layer.File.
func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	eof := false
	err = f.p.do(Op{Kind: Read, Name: f.name, Off: off, Len: int64(len(p))}, whole(func() error {
		if err := f.check(Read, off, int64(len(p))); err != nil {
			return err
		}
		n = int(max(min(int64(len(p)), f.n.size-off), 0))
		eof = n < len(p)
		for at := 0; at < n; {
			in := int((off + int64(at)) % sectorSize)
			k := min(n-at, sectorSize-in)
			if s := f.n.now.get((off + int64(at)) / sectorSize); s != nil {
				copy(p[at:at+k], s[in:])
			} else {
				clear(p[at : at+k])
			}
			at += k
		}
		return nil
	}))
	if err == nil && eof {
		err = io.EOF
	}
	return n, err
}

// ReadNow implements layer.File. It reads two times of three; else it leaves
// rubbish in p.
func (f *file) ReadNow(p []byte, off int64) (bool, error) {
	f.p.mu.Lock()
	f.cold++
	cold := f.cold%3 == 0
	f.p.mu.Unlock()
	n, err := f.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	if err == nil && n == len(p) && !cold {
		return true, nil
	}
	for i := range p {
		p[i] = 0xee
	}
	return false, err
}

// begin notes that a range is being changed, and fails the test when it is
// already. end must follow.
func (f *file) begin(what Kind, e extent.Extent) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	for _, b := range f.n.busy {
		if e.Off < b.End() && b.Off < e.End() {
			f.p.tb.Errorf("%s of %d bytes at %d of %s, during another change of %d bytes at %d", what, e.Len, e.Off, f.name, b.Len, b.Off)
		}
	}
	f.n.busy = append(f.n.busy, e)
}

func (f *file) end(e extent.Extent) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	i := slices.Index(f.n.busy, e)
	f.n.busy = slices.Delete(f.n.busy, i, i+1)
}

// WriteAt implements layer.File.
func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	e := extent.Extent{Off: off, Len: int64(len(p))}
	f.begin(Write, e)
	defer f.end(e)
	err = f.p.do(Op{Kind: Write, Name: f.name, Off: off, Len: int64(len(p))}, func(how How) error {
		if err := f.check(Write, off, int64(len(p))); err != nil {
			return err
		}
		switch how {
		case Nothing:
			return nil
		case Half:
			_, err := f.write(p[:len(p)/2&^(sectorSize-1)], off)
			return err
		}
		n, err = f.write(p, off)
		return err
	})
	return n, err
}

// write writes as far as there is space. Callers hold p.mu.
func (f *file) write(p []byte, off int64) (n int, err error) {
	c := &f.n.content
	defer func() {
		if end := off + int64(n); n > 0 && end > c.size {
			c.size = end
			c.sizes = append(c.sizes, end)
		}
	}()
	for n < len(p) {
		at := off + int64(n)
		if c.now[at/blockSize] == nil {
			if f.p.limit >= 0 && f.p.used+blockSize > f.p.limit {
				return n, syscall.ENOSPC
			}
			f.p.used += blockSize
		}
		s := new([sectorSize]byte)
		if old := c.now.get(at / sectorSize); old != nil {
			*s = *old
		}
		n += copy(s[at%sectorSize:], p[n:])
		c.put(at/sectorSize, s)
	}
	return n, nil
}

// Punch implements layer.File.
func (f *file) Punch(off, n int64) error {
	e := extent.Extent{Off: off, Len: n}
	f.begin(Punch, e)
	defer f.end(e)
	return f.p.do(Op{Kind: Punch, Name: f.name, Off: off, Len: n}, whole(func() error {
		if err := f.check(Punch, off, n); err != nil {
			return err
		}
		if off%sectorSize != 0 || n%sectorSize != 0 || n == 0 {
			f.p.tb.Errorf("punch of %d bytes at %d of %s is not of sectors", n, off, f.name)
			return syscall.EINVAL
		}
		before := f.n.allocated()
		first, last := off/sectorSize, (off+n)/sectorSize
		if last-first > int64(8*len(f.n.now)) {
			for _, b := range slices.Sorted(maps.Keys(f.n.now)) {
				for i := max(first, 8*b); i < min(last, 8*b+8); i++ {
					f.n.put(i, nil)
				}
			}
		} else {
			for i := first; i < last; i++ {
				f.n.put(i, nil)
			}
		}
		f.p.used += f.n.allocated() - before
		return nil
	}))
}

// Datasync implements layer.File.
func (f *file) Datasync() error {
	return f.p.do(Op{Kind: Sync, Name: f.name}, func(how How) error {
		if err := f.check(Sync, 0, 0); err != nil {
			return err
		}
		if how == All {
			f.n.sync()
		} else {
			f.n.lose()
		}
		return nil
	})
}

// NextData implements layer.File.
func (f *file) NextData(off int64) (e extent.Extent, ok bool, err error) {
	err = f.p.do(Op{Kind: Read, Name: f.name, Off: off}, whole(func() error {
		if err := f.check(Read, off, 0); err != nil {
			return err
		}
		for _, b := range slices.Sorted(maps.Keys(f.n.now)) {
			from, to := max(b*blockSize, off), min((b+1)*blockSize, f.n.size)
			switch {
			case from >= to:
			case !ok:
				e, ok = extent.Extent{Off: from, Len: to - from}, true
			case e.End() == from:
				e.Len += to - from
			default:
				return nil
			}
		}
		return nil
	}))
	return e, ok, err
}

// Stat implements layer.File.
func (f *file) Stat() (size, allocated int64, err error) {
	err = f.p.do(Op{Kind: Read, Name: f.name}, whole(func() error {
		if err := f.check(Read, 0, 0); err != nil {
			return err
		}
		size, allocated = f.n.size, f.n.allocated()
		return nil
	}))
	return size, allocated, err
}

var _ layer.FS = (*Power)(nil)
