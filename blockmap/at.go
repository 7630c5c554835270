package blockmap

import (
	"context"

	"github.com/snapferry/snapferry"
)

// At returns the node at a position, nil when it is absent.
func (m Map) At(ctx context.Context, at snapferry.Position) (*Node, error) {
	n, err := m.root()
	if err != nil || at.Level > RootLevel || at.Index>>(levelBits*(RootLevel-at.Level)) != 0 {
		return nil, err
	}
	for here := (snapferry.Position{Level: RootLevel}); n != nil && here.Level > at.Level; {
		i := int(at.Index >> (levelBits * (here.Level - 1 - at.Level)) % Fanout)
		if n, err = m.readChild(ctx, n, here, i); err != nil {
			return nil, err
		}
		here = below(here, i)
	}
	return n, nil
}
