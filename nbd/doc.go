// Package nbd is the NBD protocol: a server for any Device, and a client for
// any server.
//
// The server speaks the fixed newstyle handshake with TLS, structured replies
// and metadata contexts, and every command of the baseline protocol. Serve
// handles one connection from its handshake to its end; listening, names of
// exports and who may open them are the caller's. The client is a disk with
// ReadAt, WriteAt, Sync and more, all of them pipelined.
//
// What of the protocol is spoken, with byte diagrams, is in docs/format/nbd.md.
// The facts are those of doc/proto.md and doc/uri.md of the project
// NetworkBlockDevice/nbd, which are in the public domain; where the comments
// here say "the protocol", they mean that text.
//
// # How a connection is served
//
// One goroutine has the turn of a connection: it reads requests out of a large
// buffer, many for one read of the socket. What the device can do without
// waiting (Immediate) it does itself, and collects the replies in another
// buffer, which is written when no whole request is left or it is full. What
// would wait is handed to workers, whose replies go out when they are ready.
// So a connection costs neither a switch of goroutines nor an allocation for
// each small request, and no slow request holds up a fast one.
//
// What was thought immediate may wait after all: a file system that throttles
// its writers, a page that was evicted in between. A watchdog of the connection
// then gives the turn to a new goroutine, with what had been read and not yet
// looked at; the old one sends its own reply when it has it, and ends. See the
// type turn.
//
// Memory is bounded for each connection: two buffers for the turn, and payloads
// in work of at most twice the largest payload. A client that does not read its
// replies stops being read from.
package nbd
