package blockmap

import (
	"context"

	"github.com/snapferry/snapferry"
)

// At returns the node at a position, nil when it is absent.
func (m Map) At(ctx context.Context, at snapferry.Position) (*Node, error) {
	return m.Cursor().At(ctx, at)
}

// At returns the node at a position, nil when it is absent. Of nodes near each
// other it reads what leads to them once.
func (c *Cursor) At(ctx context.Context, at snapferry.Position) (*Node, error) {
	switch {
	case at.Level == 0:
		return c.Leaf(ctx, at.Index)
	case at.Level > RootLevel || at.Index>>(levelBits*(RootLevel-at.Level)) != 0:
		return nil, nil
	}
	n, level, err := c.downTo(ctx, at.Index<<(levelBits*at.Level), max(at.Level, 1))
	if err != nil || level > at.Level {
		return nil, err
	}
	return n, nil
}
