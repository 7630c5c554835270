//go:build unix

package dirblob

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/snapferry/snapferry/internal/blob"
)

// List implements blob.Driver. It holds one shard's names at a time.
func (d *Driver) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	l := &lister{d: d, ctx: ctx, prefix: prefix, after: after, fn: fn}
	err := l.walk("")
	if l.fnErr != nil {
		return l.fnErr
	}
	if err != nil {
		return d.fail("list objects", err)
	}
	return nil
}

type lister struct {
	d             *Driver
	ctx           context.Context // of the one call of List
	prefix, after string
	fn            func(blob.Info) error
	fnErr         error
}

// wanted reports whether a name that begins so can be asked for.
func (l *lister) wanted(begin string) bool {
	return (strings.HasPrefix(begin, l.prefix) || strings.HasPrefix(l.prefix, begin)) &&
		(begin > l.after || strings.HasPrefix(l.after, begin))
}

// A child is a shard, a directory of names, or an object. Its key is what its
// names go on with after the base: "ab" for the shard, "abc/" for the
// directory, "abcd" for the object.
type child struct {
	key   string
	shard bool
	dir   bool
}

func (c child) group() string { return shard(c.key) }

// walk lists the objects whose names begin with base, "" or ending in a
// slash. Children with the same first two characters are sorted together,
// for a directory's place may be between two objects of a shard.
func (l *lister) walk(base string) error {
	children, err := l.children(base)
	if err != nil {
		return err
	}
	slices.SortFunc(children, func(a, b child) int { return cmp.Compare(a.group(), b.group()) })
	for len(children) > 0 {
		n := 1
		for n < len(children) && children[n].group() == children[0].group() {
			n++
		}
		if err := l.walkGroup(base, children[:n]); err != nil {
			return err
		}
		children = children[n:]
	}
	return nil
}

func (l *lister) children(base string) ([]child, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, err
	}
	dir := "."
	if base != "" {
		dir = strings.TrimSuffix(base, "/")
	}
	entries, err := l.readDir(dir)
	if err != nil {
		return nil, err
	}
	var out []child
	for _, e := range entries {
		c := child{key: e.name + "/", dir: true}
		if s, ok := strings.CutSuffix(e.name, shardMark); ok {
			c = child{key: s, shard: true}
		}
		if e.dir && l.wanted(base+c.key) && blob.CheckName(strings.TrimSuffix(c.key, "/")) == nil {
			out = append(out, c)
		}
	}
	return out, nil
}

func (l *lister) walkGroup(base string, group []child) error {
	var sorted []child
	for _, c := range group {
		if !c.shard {
			sorted = append(sorted, c)
			continue
		}
		entries, err := l.readDir(base + c.key + shardMark)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.dir && shard(e.name) == c.key && blob.CheckName(e.name) == nil {
				sorted = append(sorted, child{key: e.name})
			}
		}
	}
	slices.SortFunc(sorted, func(a, b child) int { return cmp.Compare(a.key, b.key) })
	for _, c := range sorted {
		var err error
		if c.dir {
			err = l.walk(base + c.key)
		} else {
			err = l.object(base + c.key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) object(name string) error {
	if !strings.HasPrefix(name, l.prefix) || name <= l.after {
		return nil
	}
	size, err := l.d.sizeOf(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	l.fnErr = l.fn(blob.Info{Name: name, Size: size})
	return l.fnErr
}

// readDir finds nothing in a directory that is not there: it became empty.
func (l *lister) readDir(dir string) ([]entry, error) {
	entries, err := l.d.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}
