package blob

import "golang.org/x/sys/unix"

// adviseHuge is a hint; a system without huge pages ignores it.
func adviseHuge(p []byte) { unix.Madvise(p, unix.MADV_HUGEPAGE) }
