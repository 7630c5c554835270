//go:build unix

package dirblob

import (
	"bytes"
	"io"
	"maps"
	"path"
	"strings"
	"sync"
	"syscall"
)

// crashFS is a file system in memory that fails, or loses power, at any step,
// and of which a loss of power leaves only what was synced for certain.
type crashFS struct {
	mu   sync.Mutex
	root *inode

	steps  int // calls so far that change or sync something
	failAt int // the step that fails; -1: none
	how    how
	cut    bool // the power goes at that step
	off    bool
	fired  bool // the step came
	log    []string
}

type how int

const (
	before how = iota // the step that fails did nothing
	half              // it wrote half of the bytes, or did nothing
	after             // it did all
)

// inode is a file or a directory: what one sees now, and what is on the disk.
type inode struct {
	dir       bool
	now, disk map[string]*inode
	data      []byte
	diskData  []byte
}

func newDir() *inode {
	return &inode{dir: true, now: map[string]*inode{}, disk: map[string]*inode{}}
}

func newCrashFS() *crashFS { return &crashFS{root: newDir(), failAt: -1} }

// failIn lets the step fail that comes after n others.
func (s *crashFS) failIn(n int, how how, cut bool) {
	s.failAt, s.how, s.cut = s.steps+n, how, cut
}

// reboot returns the file system as it is after a loss of power; keep says of
// each thing not synced whether it is on the disk all the same.
func (s *crashFS) reboot(keep func() bool) *crashFS {
	seen := map[*inode]*inode{}
	var survive func(*inode) *inode
	survive = func(was *inode) *inode {
		if is := seen[was]; is != nil {
			return is
		}
		is := &inode{dir: was.dir}
		seen[was] = is
		if !was.dir {
			is.diskData = was.diskData
			if !bytes.Equal(was.data, was.diskData) && keep() {
				is.diskData = was.data
				if keep() {
					is.diskData = was.data[:len(was.data)/2]
				}
			}
			is.data = is.diskData
			return is
		}
		is.now, is.disk = map[string]*inode{}, map[string]*inode{}
		names := maps.Clone(was.now)
		maps.Copy(names, was.disk)
		for name := range names {
			child := was.disk[name]
			if was.now[name] != child && keep() {
				child = was.now[name]
			}
			if child != nil {
				is.now[name] = survive(child)
				is.disk[name] = is.now[name]
			}
		}
		return is
	}
	return &crashFS{root: survive(s.root), failAt: -1}
}

func (s *crashFS) step(what, p string, do func(part how) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return syscall.EIO
	}
	n := s.steps
	s.steps++
	s.log = append(s.log, what+" "+p)
	if n != s.failAt {
		return do(after)
	}
	if s.how != before {
		do(s.how)
	}
	s.off, s.fired = s.cut, true
	return syscall.EIO
}

// whole is a step that is not done by half.
func whole(do func() error) func(how) error {
	return func(part how) error {
		if part == half {
			return nil
		}
		return do()
	}
}

func (s *crashFS) look(p string) (*inode, error) {
	n := s.root
	if p == "." {
		return n, nil
	}
	for name := range strings.SplitSeq(p, "/") {
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		if n = n.now[name]; n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

func (s *crashFS) add(p string, n *inode) error {
	dir, err := s.look(path.Dir(p))
	if err != nil {
		return err
	}
	if dir.now[path.Base(p)] != nil {
		return syscall.EEXIST
	}
	dir.now[path.Base(p)] = n
	return nil
}

func (s *crashFS) drop(p string) error {
	dir, err := s.look(path.Dir(p))
	if err == nil {
		delete(dir.now, path.Base(p))
	}
	return err
}

func (s *crashFS) Mkdir(p string) error {
	return s.step("mkdir", p, whole(func() error { return s.add(p, newDir()) }))
}

func (s *crashFS) Create(p string) (writeFile, error) {
	n := &inode{}
	err := s.step("create", p, whole(func() error { return s.add(p, n) }))
	if err != nil {
		return nil, err
	}
	return &crashFile{s, n, p}, nil
}

func (s *crashFS) Rename(from, to string) error {
	return s.step("rename", to, whole(func() error {
		n, err := s.look(from)
		if err != nil {
			return err
		}
		if err := s.add(to, n); err != nil {
			return err
		}
		return s.drop(from)
	}))
}

func (s *crashFS) Remove(p string) error {
	return s.step("remove", p, whole(func() error {
		n, err := s.look(p)
		if err != nil {
			return err
		}
		if n.dir {
			return syscall.EISDIR
		}
		return s.drop(p)
	}))
}

func (s *crashFS) RemoveDir(p string) error {
	return s.step("rmdir", p, whole(func() error {
		n, err := s.look(p)
		if err != nil {
			return err
		}
		if len(n.now) > 0 {
			return syscall.ENOTEMPTY
		}
		return s.drop(p)
	}))
}

func (s *crashFS) SyncDir(p string) error {
	return s.step("syncdir", p, whole(func() error {
		n, err := s.look(p)
		if err == nil {
			n.disk = maps.Clone(n.now)
		}
		return err
	}))
}

func (s *crashFS) SyncAll() error {
	return s.step("syncall", ".", whole(func() error {
		var all func(*inode)
		all = func(n *inode) {
			n.disk, n.diskData = maps.Clone(n.now), n.data
			for _, child := range n.now {
				all(child)
			}
		}
		all(s.root)
		return nil
	}))
}

func (s *crashFS) read(p string, do func(*inode) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return syscall.EIO
	}
	n, err := s.look(p)
	if err != nil {
		return err
	}
	return do(n)
}

func (s *crashFS) Open(p string) (f readFile, err error) {
	err = s.read(p, func(n *inode) error { f = &crashFile{s, n, p}; return nil })
	return f, err
}

func (s *crashFS) Size(p string) (size int64, err error) {
	err = s.read(p, func(n *inode) error { size = int64(len(n.data)); return nil })
	return size, err
}

func (s *crashFS) ReadDir(p string) (entries []entry, err error) {
	err = s.read(p, func(n *inode) error {
		for name, child := range n.now {
			entries = append(entries, entry{name, child.dir})
		}
		return nil
	})
	return entries, err
}

type crashFile struct {
	s    *crashFS
	n    *inode
	path string
}

func (f *crashFile) WriteBody(p []byte) error {
	return f.s.step("write", f.path, func(part how) error {
		if part == half {
			p = p[:len(p)/2]
		}
		f.n.data = bytes.Clone(p)
		return nil
	})
}

func (f *crashFile) Sync() error {
	return f.s.step("sync", f.path, whole(func() error { f.n.diskData = f.n.data; return nil }))
}

func (f *crashFile) Close() error { return nil }

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.off {
		return 0, syscall.EIO
	}
	n := copy(p, f.n.data[min(off, int64(len(f.n.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
