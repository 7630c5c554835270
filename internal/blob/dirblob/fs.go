package dirblob

import "io"

// filesystem is the little of a file system that the driver needs, so that a
// test can fail any step of it or cut the power there. Paths are relative to
// the bucket's directory, "." is that itself. Errors are those of syscall.
// Nothing but Sync, SyncDir and SyncAll makes anything durable.
type filesystem interface {
	Mkdir(path string) error               // EEXIST when it is there
	Create(path string) (writeFile, error) // EEXIST when it is there
	Open(path string) (readFile, error)
	Size(path string) (int64, error) // of a file
	ReadDir(path string) ([]entry, error)
	Rename(from, to string) error // of a file; EEXIST when to is there, never replaces
	Remove(path string) error     // a file
	RemoveDir(path string) error  // ENOTEMPTY when something is in it
	SyncDir(path string) error    // the entries of a directory
	SyncAll() error               // all there is
}

type writeFile interface {
	WriteBody(p []byte) error // the one write: the file's whole content
	Sync() error
	Close() error
}

// readFile reads as io.ReaderAt says; who closes it waits for the reads.
type readFile interface {
	io.ReaderAt
	io.Closer
}

type entry struct {
	name string
	dir  bool
}
