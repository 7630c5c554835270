// Package vault is one region's store of chains: it puts disks as versions
// over a parent, keeps their maps and blocks in segments, and gives them back
// verified.
//
// A version is made in four steps. Attach inserts it, open, below its parent
// in the caller's transaction. Write opens a Writer on it, the first time or
// again from its last checkpoint. Leaves are filled, in parallel and in any
// order, and handed over in ascending order; blocks and nodes whose digest the
// base has at that position keep the base's ref (mandatory inheritance). Seal
// makes everything durable, leaves up, writes the version record and then, in
// one transaction, makes the version real. Whatever happens before that
// transaction leaves nothing but segments registered to an open version, which
// Abort deletes whole.
//
// Reading never returns a byte whose digest was not checked.
package vault
