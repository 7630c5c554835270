package head

import (
	"errors"
	"io"
	"path"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// maxFile bounds the small files that are read as a whole.
const maxFile = 1 << 20

func readFile(fs layer.FS, name string) (p []byte, err error) {
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

// replaceFile puts a file with content p at dir/name, durably: whoever looks
// after a crash finds the old one or the new one.
func replaceFile(fs layer.FS, dir, name string, p []byte) error {
	temp := path.Join(dir, name+".new")
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

// removeAll removes what is in the folder of a volume, and the folder: layers and
// small files. One that is not there is no error.
func removeAll(fs layer.FS, dir string) error {
	names, err := fs.ReadDir(dir)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		name := path.Join(dir, n)
		if strings.HasPrefix(n, layerPrefix) {
			err = layer.Remove(fs, name)
		} else {
			err = fs.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return fs.Remove(dir)
}

func writeFile(fs layer.FS, name string, p []byte) error {
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
