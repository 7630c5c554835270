//go:build unix && !linux

package dirblob

import "golang.org/x/sys/unix"

// directFlag does nothing here.
const directFlag = 0

func fsync(fd int) error { return unix.Fsync(fd) }

func syncAll(string) error { return unix.Sync() }

func preallocate(int, int64) error { return nil }

func setDirect(int, bool) error { return unix.ENOTSUP }

func startWriteback(int, int64, int64) {}

func renameNoReplace(from, to string) error { return linkNoReplace(from, to) }
