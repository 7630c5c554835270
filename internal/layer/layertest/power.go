// Package layertest has a file system for tests: it lives in memory, is sparse,
// loses what was not synced when the power is cut, and fails where a test wants
// it to. It is stricter than real ones where they differ: what POSIX does not
// promise it breaks.
//
//   - A cut keeps what was synced, and of each sector of 512 bytes that was not
//     any of the contents it had since, whatever its neighbours have.
//   - A name made, removed or renamed is so durably after SyncDir of its
//     directory only: syncing the file does not help. Before, a cut keeps any of
//     those changes; a rename that replaces a file shows the old or the new one.
//   - A failed Datasync drops what it had to write: that content can be read
//     until a cut, which may take it even after Datasyncs that went well.
//   - What no correct program does fails the test: a file used after Close, a
//     range that begins before the file, two writes of the same bytes at once.
package layertest

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/snapferry/snapferry/internal/layer"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	Open    Kind = "open"
	Read    Kind = "read"
	Write   Kind = "write"
	Punch   Kind = "punch"
	Sync    Kind = "sync"
	Mkdir   Kind = "mkdir"
	Rename  Kind = "rename"
	Remove  Kind = "remove"
	SyncDir Kind = "syncdir"
)

// Op is an operation on the file system.
type Op struct {
	N        int // of the operations before it that were no reads; -1 for reads
	Kind     Kind
	Name     string // a rename's old name
	Off, Len int64
}

// How is what an operation that fails did.
type How int

// What an operation that fails did.
const (
	Nothing How = iota // a Datasync then drops what it had to write
	Half               // the first half of a write; else as Nothing
	All
)

// Fault makes an operation fail with Err, if that is not nil.
type Fault struct {
	Err error
	How How
}

// Power is the file system. It implements layer.FS; its files do not copy by
// themselves.
type Power struct {
	tb testing.TB

	mu      sync.Mutex
	root    *node
	changes []change // of names, that no SyncDir has made durable
	off     bool     // the power was cut
	ops     int
	handles int
	used    int64
	limit   int64 // of used; negative: none
	inject  func(Op) Fault
	after   func(Op)
}

// node is a file or a directory.
type node struct {
	dir              bool
	names, diskNames map[string]*node // of a directory: what it names now, and on the disk
	content
}

// change gives a name to a node, or takes it away.
type change struct {
	dir      *node
	name     string
	to       *node // nil: the name goes
	was      *node // that has the name if it goes
	from     *node // directory of the old name of a rename, or nil
	fromName string
}

// New returns an empty file system, whose misuse fails tb.
func New(tb testing.TB) *Power {
	return &Power{tb: tb, root: newDir(), limit: -1}
}

func newDir() *node {
	return &node{dir: true, names: map[string]*node{}, diskNames: map[string]*node{}}
}

// Inject has fn asked before every operation whether it fails; nil ends that.
// fn may use the file system.
func (p *Power) Inject(fn func(Op) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inject = fn
}

// After has fn called after every operation that did not fail, before it
// returns; nil ends that. fn may use the file system.
func (p *Power) After(fn func(Op)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after = fn
}

// Limit sets how many bytes, in blocks of 4 KiB, all files can take; the write
// that needs more is done in part and fails with ENOSPC. Negative: no limit.
func (p *Power) Limit(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = n
}

// Used returns how many bytes all files take.
func (p *Power) Used() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// Ops returns how many operations there were that were no reads.
func (p *Power) Ops() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ops
}

// Handles returns how many files are open.
func (p *Power) Handles() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handles
}

// Nth returns a function for Inject that lets the operation with that number
// fail.
func Nth(n int, err error, how How) func(Op) Fault {
	return func(op Op) Fault {
		if op.N != n {
			return Fault{}
		}
		return Fault{err, how}
	}
}

// Cut cuts the power and returns the file system as it comes back, with what
// the seed chose to be on the disk. From then on everything fails on p.
func (p *Power) Cut(seed uint64) *Power {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = true
	r := rand.New(rand.NewPCG(seed, 1))
	keep := []float64{0, 1, .5, .5, .9}[r.IntN(5)] // of what was not synced
	for _, c := range p.changes {
		if r.Float64() < keep {
			c.apply()
		}
	}
	next := New(p.tb)
	next.root = p.root.survive(r, keep, map[*node]*node{}, next)
	return next
}

// survive returns a node as a cut leaves it, in the file system next.
func (n *node) survive(r *rand.Rand, keep float64, seen map[*node]*node, next *Power) *node {
	if is := seen[n]; is != nil {
		return is
	}
	is := &node{dir: n.dir}
	seen[n] = is
	if !n.dir {
		if keep > 0 && keep < 1 { // each file its own luck
			keep = []float64{0, .3, .7, 1}[r.IntN(4)]
		}
		is.content = n.content.survive(r, keep)
		next.used += is.allocated()
		return is
	}
	is.names, is.diskNames = map[string]*node{}, map[string]*node{}
	for _, name := range sorted(n.diskNames) {
		child := n.diskNames[name].survive(r, keep, seen, next)
		is.names[name], is.diskNames[name] = child, child
	}
	return is
}

func (c change) apply() {
	switch {
	case c.to != nil:
		c.dir.diskNames[c.name] = c.to
	case c.dir.diskNames[c.name] == c.was:
		delete(c.dir.diskNames, c.name)
	}
	if c.from != nil && c.from.diskNames[c.fromName] == c.to {
		delete(c.from.diskNames, c.fromName)
	}
}

// do runs an operation, of which part does as much as how says.
func (p *Power) do(op Op, part func(how How) error) error {
	p.mu.Lock()
	op.N = -1
	if op.Kind != Read {
		op.N = p.ops
		p.ops++
	}
	inject := p.inject
	p.mu.Unlock()
	var fault Fault
	if inject != nil {
		fault = inject(op)
	}
	err := p.locked(fault, part)
	if err != nil {
		return layer.Failure(fmt.Sprintf("%s %s", op.Kind, op.Name), err)
	}
	p.mu.Lock()
	after := p.after
	p.mu.Unlock()
	if after != nil {
		after(op)
	}
	return nil
}

func (p *Power) locked(fault Fault, part func(how How) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return syscall.EIO
	}
	if fault.Err == nil {
		return part(All)
	}
	if err := part(fault.How); err != nil {
		return err
	}
	return fault.Err
}

// whole is an operation that does all or nothing.
func whole(fn func() error) func(How) error {
	return func(how How) error {
		if how != All {
			return nil
		}
		return fn()
	}
}

// look returns the node of a name. Callers hold p.mu.
func (p *Power) look(name string) (*node, error) {
	if !fs.ValidPath(name) {
		return nil, fs.ErrInvalid
	}
	n := p.root
	if name == "." {
		return n, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		if n = n.names[part]; n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

// parent returns the directory that a name is in, and the last part of it.
func (p *Power) parent(name string) (*node, string, error) {
	dir, err := p.look(path.Dir(name))
	if err == nil && !dir.dir {
		err = syscall.ENOTDIR
	}
	return dir, path.Base(name), err
}

func (p *Power) change(c change) {
	if c.to != nil {
		c.dir.names[c.name] = c.to
	} else {
		delete(c.dir.names, c.name)
	}
	if c.from != nil {
		delete(c.from.names, c.fromName)
	}
	p.changes = append(p.changes, c)
}

// OpenFile implements layer.FS.
func (p *Power) OpenFile(name string, create bool) (layer.File, error) {
	f := &file{p: p, name: name}
	err := p.do(Op{Kind: Open, Name: name}, whole(func() error {
		dir, base, err := p.parent(name)
		if err != nil {
			return err
		}
		f.n = dir.names[base]
		switch {
		case f.n != nil && f.n.dir:
			return syscall.EISDIR
		case f.n == nil && !create:
			return syscall.ENOENT
		case f.n == nil:
			f.n = &node{content: newContent()}
			p.change(change{dir: dir, name: base, to: f.n})
		}
		return nil
	}))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handles++
	return f, nil
}

// Mkdir implements layer.FS.
func (p *Power) Mkdir(name string) error {
	return p.do(Op{Kind: Mkdir, Name: name}, whole(func() error {
		dir, base, err := p.parent(name)
		if err == nil && dir.names[base] != nil {
			err = syscall.EEXIST
		}
		if err == nil {
			p.change(change{dir: dir, name: base, to: newDir()})
		}
		return err
	}))
}

// ReadDir implements layer.FS.
func (p *Power) ReadDir(name string) (names []string, err error) {
	err = p.do(Op{Kind: Read, Name: name}, whole(func() error {
		n, err := p.look(name)
		if err == nil && !n.dir {
			err = syscall.ENOTDIR
		}
		if err == nil {
			names = sorted(n.names)
		}
		return err
	}))
	return names, err
}

// Rename implements layer.FS. It replaces files, not directories.
func (p *Power) Rename(from, to string) error {
	return p.do(Op{Kind: Rename, Name: from}, whole(func() error {
		dir, base, err := p.parent(from)
		if err != nil {
			return err
		}
		n := dir.names[base]
		if n == nil {
			return syscall.ENOENT
		}
		toDir, toBase, err := p.parent(to)
		if err != nil {
			return err
		}
		switch old := toDir.names[toBase]; {
		case old == n:
			return nil
		case old != nil && (old.dir || n.dir):
			return syscall.EEXIST
		}
		p.change(change{dir: toDir, name: toBase, to: n, from: dir, fromName: base})
		return nil
	}))
}

// Remove implements layer.FS.
func (p *Power) Remove(name string) error {
	return p.do(Op{Kind: Remove, Name: name}, whole(func() error {
		dir, base, err := p.parent(name)
		if err != nil {
			return err
		}
		n := dir.names[base]
		switch {
		case n == nil:
			return syscall.ENOENT
		case len(n.names) > 0:
			return syscall.ENOTEMPTY
		}
		p.change(change{dir: dir, name: base, was: n})
		return nil
	}))
}

// SyncDir implements layer.FS.
func (p *Power) SyncDir(name string) error {
	return p.do(Op{Kind: SyncDir, Name: name}, whole(func() error {
		dir, err := p.look(name)
		if err == nil && !dir.dir {
			err = syscall.ENOTDIR
		}
		if err != nil {
			return err
		}
		p.changes = slices.DeleteFunc(p.changes, func(c change) bool {
			mine := c.dir == dir || c.from == dir
			if mine {
				c.apply()
			}
			return mine
		})
		return nil
	}))
}

func sorted(m map[string]*node) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
