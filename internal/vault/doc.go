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
// A version lives while it has a hold. With its last one it becomes a ghost;
// Visit frees what only it has and takes it out of the tree when its children
// can do without it. Compact brings what lives into few objects, Reclaim removes
// those that nobody needs, Sweep what crashes left. All of them can be
// interrupted anywhere, and delete nothing while the metadata is known to be
// older than its bucket.
//
// Reading never returns a byte whose digest was not checked.
package vault
