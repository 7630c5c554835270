package main

import (
	"errors"
	"os"
	"path/filepath"
)

// syncParent makes the name of a new file durable.
func syncParent(path string) error {
	dir := filepath.Dir(path)
	d, err := os.Open(dir)
	if err != nil {
		return fileError("open", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fileError("sync", dir, err)
	}
	return nil
}

// writeFile replaces a file as a whole and durably.
func writeFile(path string, p []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fileError("write", path, err)
	}
	_, err = f.Write(p)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fileError("write", path, err), os.Remove(f.Name()))
	}
	return syncParent(path)
}
