// Package head is the live volume: a disk that can be written, over a sealed
// version that cannot.
//
// A volume is a stack. At the bottom is a base, a version in the region's vault;
// above it are layers, sparse local files that hold pages of 4 KiB. Writes go to
// the highest layer, the top. A read takes each page from the highest layer that
// has it, else from the base, block by block, verified; what was fetched so goes
// into a cache that all volumes over that version share.
//
// Freeze makes a new layer the top of one or several volumes, between two
// writes; what is below it then never changes and is the content of a snapshot.
// Changes reads it for the upload, Sealed tells that a version has it: that is
// the base from then on, and the frozen layers are copies of what it has, which
// are merged, or dropped when room is needed.
//
// What survives a crash: everything whose Sync has returned; of other writes
// each page as it was before or after. The order of writing that makes it so is
// that of package layer, and here: a layer's folder is durable before the stack
// names it, a stack before anything is done that only it explains, and Sync goes
// through the layers from the lowest to the top.
package head
