// Package layer keeps the local layers of live volumes: sparse files with the
// data of pages, and of every page whether the layer has it.
//
// A volume is a stack of layers over an immutable base. Writes go to the top
// layer; a read takes each page from the highest layer that has it. Which
// layers make a volume, in which order, and who may write, is the caller's
// affair (package head); a Layer knows one directory. docs/format/layer.md
// defines the files.
//
// # Durability
//
// A page of a layer is Below (the layer says nothing of it), Data or Zero. The
// states live in memory and reach the disk with Sync, always after the data
// that they speak of. After a crash a page has the state and the content of its
// last Sync, or of any later write, a mix of both by sectors of 512 bytes, but
// never anything else. A page that was not Below at the last Sync is not Below
// afterwards, unless Forget was asked for it.
//
// # Concurrency
//
// All methods but Close may be called at any time by any number of goroutines.
// Writes of the same page (WriteAt, Patch, Zero, Forget, Absorb) must come one
// after the other: that order is the caller's to make. Lookup, Run and NextSet
// take no lock; what they say of a page holds until somebody writes that page.
//
// # Errors
//
// They are of Kind Full where the file system or a quota is, Unavailable where
// the disk fails, Corrupt where files are not what a Layer has written, Invalid
// for ranges that are not pages of the volume. Nothing is tried again here. A
// failed sync is final: the system has forgotten which pages it could not
// write, so the layer never claims again that something is durable.
package layer
