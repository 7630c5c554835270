// Package layering has no code, only a test: the rooms of the house and their
// floors as a table of text, held against the imports of every package.
//
// A room imports only from lower floors; rooms on one floor do not know each
// other. Some imports are kept to some rooms: HTTP to the edges, SQL to the
// metadata, the environment to the command, vendors' SDKs to drivers. A new
// package begins with a line in the table.
package layering
