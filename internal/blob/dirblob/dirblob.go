//go:build unix

// Package dirblob keeps a bucket's objects as files of one directory.
//
// The file of an object lies in a shard directory named after the first two
// characters of the name's last part, and a plus sign: the object
// "objects/ab12cd" is the file "objects/ab+/ab12cd". No name has a plus sign,
// so a shard is never mistaken for a part of a name. Files under construction
// are in "tmp", and "LOCK" is locked by the one process that uses the
// directory. Anything else that lies there is ignored.
//
// An object is written under a temporary name, synced, renamed without
// replacing, and its directory synced; so it is there whole or not at all, and
// when Put returned it survives a loss of power, as far as the file system and
// the disk honour fsync.
package dirblob

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/snapferry/snapferry"
)

const (
	tempDir          = "tmp"
	lockFile         = "LOCK"
	shardLength      = 2
	shardMark        = "+"
	defaultOpenFiles = 64
	maxKnownDirs     = 4096
)

// Options says how a directory is used. The zero value is the default.
type Options struct {
	// OpenFiles is how many files are kept open for reading; 0 means 64.
	OpenFiles int
	// Buffered writes large objects through the page cache like small ones.
	Buffered bool
}

// Driver is a blob.Driver over a directory. It must not be used after Close.
type Driver struct {
	fs    filesystem
	dir   string // for messages
	lock  io.Closer
	files fileCache
	temps atomic.Uint64 // names of temporary files

	// Who relies on a directory being there has tree for reading; who removes
	// an empty one, for writing.
	tree  sync.RWMutex
	mu    sync.Mutex
	known map[string]bool // directories that are there durably
}

// Open takes a directory into use, makes it if it is not there, and removes
// what an interrupted run left under construction. The error is Conflict when
// another process uses the directory.
func Open(ctx context.Context, dir string, opts *Options) (*Driver, error) {
	if opts == nil {
		opts = &Options{}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "open bucket directory: %w", err)
	}
	d := newDriver(&osFS{dir: dir, buffered: opts.Buffered}, dir, opts.OpenFiles)
	if err := makeDir(dir); err != nil {
		return nil, d.fail("open bucket directory", err)
	}
	if d.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if err := d.start(ctx); err != nil {
		d.lock.Close()
		return nil, d.fail("open bucket directory", err)
	}
	return d, nil
}

func newDriver(fs filesystem, dir string, openFiles int) *Driver {
	if openFiles <= 0 {
		openFiles = defaultOpenFiles
	}
	d := &Driver{fs: fs, dir: dir, known: map[string]bool{}}
	d.files.start(openFiles, func(name string) (readFile, error) {
		dir, file := place(name)
		return fs.Open(dir + "/" + file)
	})
	return d
}

// start removes leftovers. All that can be seen from then on is durable, so
// that no later answer rests on what a run that was killed had not synced.
func (d *Driver) start(ctx context.Context) error {
	if err := d.fs.Mkdir(tempDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	left, err := d.fs.ReadDir(tempDir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.dir {
			if err := d.fs.Remove(tempDir + "/" + e.name); err != nil {
				return err
			}
		}
	}
	return d.fs.SyncAll()
}

// Close closes all files and gives the directory free for others.
func (d *Driver) Close() error {
	d.files.close()
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

// place returns the directory and the file of an object.
func place(name string) (dir, file string) {
	base, last := path.Split(name)
	return base + shard(last) + shardMark, last
}

func shard(last string) string { return last[:min(len(last), shardLength)] }

// Put implements blob.Driver.
func (d *Driver) Put(ctx context.Context, name string, body []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, file := place(name)
	target := dir + "/" + file
	if _, err := d.fs.Size(target); err == nil {
		return d.taken(dir)
	}
	temp := tempDir + "/" + strconv.FormatUint(d.temps.Add(1), 10)
	err := d.write(temp, body)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		d.fs.Remove(temp)
		return d.fail("write object", err)
	}
	return d.publish(temp, dir, target)
}

func (d *Driver) write(temp string, body []byte) error {
	f, err := d.fs.Create(temp)
	if err != nil {
		return err
	}
	if err = f.WriteBody(body); err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// publish gives a written file its name.
func (d *Driver) publish(temp, dir, target string) error {
	d.tree.RLock()
	defer d.tree.RUnlock()
	err := d.makeDirs(dir)
	if err == nil {
		err = d.fs.Rename(temp, target)
	}
	if err != nil {
		d.fs.Remove(temp)
		if errors.Is(err, fs.ErrExist) {
			return d.taken(dir)
		}
		return d.fail("name object", err)
	}
	if err := d.fs.SyncDir(dir); err != nil {
		return d.fail("sync directory", err)
	}
	return nil
}

// taken makes the object that has the name durable before it says so: who
// made it may not have come so far.
func (d *Driver) taken(dir string) error {
	if err := d.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.fail("sync directory", err)
	}
	return snapferry.Errorf(snapferry.Exists, "an object of that name is already there")
}

// makeDirs makes a directory and those above it, durably. A directory that is
// there counts only after a sync of its own: another may just have made it.
func (d *Driver) makeDirs(dir string) error {
	if dir == "." {
		return nil
	}
	d.mu.Lock()
	known := d.known[dir]
	d.mu.Unlock()
	if known {
		return nil
	}
	above := path.Dir(dir)
	if err := d.makeDirs(above); err != nil {
		return err
	}
	if err := d.fs.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.fs.SyncDir(above); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.known) >= maxKnownDirs {
		clear(d.known)
	}
	d.known[dir] = true
	return nil
}

// ReadAt implements blob.Driver.
func (d *Driver) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	f, err := d.files.acquire(name)
	if err != nil {
		return 0, d.failRead("open object", err)
	}
	defer d.files.release(f)
	n, err := f.file.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = d.fail("read object", err)
	}
	return n, err
}

// Size implements blob.Driver.
func (d *Driver) Size(ctx context.Context, name string) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := d.sizeOf(name)
	if err != nil {
		return 0, d.failRead("look at object", err)
	}
	return n, nil
}

func (d *Driver) sizeOf(name string) (int64, error) {
	dir, file := place(name)
	return d.fs.Size(dir + "/" + file)
}

// Delete implements blob.Driver.
func (d *Driver) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, file := place(name)
	if err := d.remove(name, dir, dir+"/"+file); err != nil {
		return d.fail("remove object", err)
	}
	d.prune(dir)
	return nil
}

// remove syncs the directory even when the file is not there: who removed it
// may not have come so far.
func (d *Driver) remove(name, dir, target string) error {
	d.tree.RLock()
	defer d.tree.RUnlock()
	err := d.fs.Remove(target)
	d.files.drop(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// prune removes directories that became empty, unless somebody is busy with
// some: an empty directory does no harm.
func (d *Driver) prune(dir string) {
	if !d.tree.TryLock() {
		return
	}
	defer d.tree.Unlock()
	for ; dir != "." && dir != tempDir; dir = path.Dir(dir) {
		d.mu.Lock()
		delete(d.known, dir)
		d.mu.Unlock()
		if d.fs.RemoveDir(dir) != nil {
			return
		}
	}
}

// failRead is fail where a file that is not there is an object that is not.
func (d *Driver) failRead(doing string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return snapferry.Errorf(snapferry.NotFound, "no such object")
	}
	return d.fail(doing, err)
}

// fail gives an error of the file system its Kind.
func (d *Driver) fail(doing string, err error) error {
	is := func(errs ...error) bool {
		for _, e := range errs {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	switch {
	case is(context.Canceled, context.DeadlineExceeded):
		return err
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		return snapferry.Errorf(snapferry.Full, "%s: %w", doing, err).WithHint("make space on the file system of %s", d.dir)
	case is(syscall.EACCES, syscall.EPERM, syscall.EROFS):
		return snapferry.Errorf(snapferry.Unavailable, "%s: %w", doing, err).WithHint("let the server's user write to %s", d.dir)
	}
	return snapferry.Errorf(snapferry.Unavailable, "%s: %w", doing, err)
}
