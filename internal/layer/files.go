package layer

import (
	"errors"
	"io"
	"path"

	"github.com/snapferry/snapferry"
)

// tempSuffix ends the name of a file that is to replace another.
const tempSuffix = ".new"

// maxFile bounds the small files that are read as a whole.
const maxFile = 1 << 20

// ReadFile reads a small file: at most 1 MiB, else the error is of Kind Corrupt.
func ReadFile(fs FS, name string) (p []byte, err error) {
	f, err := fs.OpenFile(name, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	size, _, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if size > maxFile {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s has %d bytes", name, size)
	}
	p = make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return p, nil
}

// ReplaceFile puts a file with content p at dir/name, durably: whoever looks
// after a crash finds the old one or the new one.
func ReplaceFile(fs FS, dir, name string, p []byte) error {
	temp := path.Join(dir, name+tempSuffix)
	if err := fs.Remove(temp); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return err
	}
	if err := writeFile(fs, temp, p); err != nil {
		return err
	}
	if err := fs.Rename(temp, path.Join(dir, name)); err != nil {
		return err
	}
	return fs.SyncDir(dir)
}

func writeFile(fs FS, name string, p []byte) error {
	f, err := fs.OpenFile(name, true)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, 0)
	if err == nil {
		err = f.Datasync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
