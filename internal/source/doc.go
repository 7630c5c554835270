// Package source reads and writes foreign disks: the raw files and block
// devices that snapshots are imported from and exported to.
//
// A Disk is the readable side. It knows its size, where its data lies (by the
// holes of the file system), and whether somebody changed it while it was
// read. A Target is the writable side. It leaves holes where the snapshot has
// none, writes around the page cache when the system allows it, and is durable
// when Finish returns.
//
// Both are made either from a path, with the rights of this process, or from
// an open descriptor that another process handed over, with the rights that
// process had when it opened it. A descriptor of the second kind shares its
// position and flags with the other process; what is changed here is put back
// by Close.
package source
