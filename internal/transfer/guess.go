package transfer

import (
	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
)

// Each level of a map costs a round trip: a node's children are known when it has
// come. Guesses are nodes below the first children of the root that probably are
// there and will be wanted, and are asked for together with these. They are checked
// when they are wanted. A source refuses the first one that it has not, and those
// behind it; then that round trip is not saved.
type guesses struct {
	ask []snapferry.Position
	got map[snapferry.Position]*blockmap.Node
	n   int // of ask, how many came
}

// maxGuesses is how many nodes are guessed at most.
const maxGuesses = 2 * nodesAtOnce

// guess guesses what is below the first of some children of the root: the first
// node of each level, and where all blocks are present and the base has nothing,
// whose nodes are all there, as many as are asked for at once.
func guess(items []item, size int64) *guesses {
	if len(items) == 0 {
		return nil
	}
	g, first := &guesses{got: map[snapferry.Position]*blockmap.Node{}}, &items[0]
	under := uint64(1) << (8 * (uint(first.at.Level) + 1)) // blocks
	blocks := min(under, blockmap.Blocks(size)-first.at.Index*under)
	n := first.parent
	many := !first.based && uint64(n.Counts[n.Presence.Rank(int(first.at.Index%blockmap.Fanout))]) == blocks
	for level, index := first.at.Level, first.at.Index; level > 0; {
		level, index = level-1, index*blockmap.Fanout
		g.ask = append(g.ask, snapferry.Position{Level: level, Index: index})
		below := uint64(1) << (8 * (uint(level) + 1))
		for k := uint64(1); many && k < nodesAtOnce && k < (blocks+below-1)/below && k < blockmap.Fanout; k++ {
			g.ask = append(g.ask, snapferry.Position{Level: level, Index: index + k})
		}
	}
	return g
}

// behind puts what is guessed behind what is asked for.
func (g *guesses) behind(at []snapferry.Position) []snapferry.Position {
	if g == nil || g.n > 0 {
		return at
	}
	return append(at[:len(at):len(at)], g.ask...)
}

// keep takes a node that came for a guess, and reports whether it did.
func (g *guesses) keep(at snapferry.Position, n *blockmap.Node) bool {
	if g == nil || g.n == len(g.ask) || at != g.ask[g.n] {
		return false
	}
	g.n++
	g.got[at] = n
	return true
}

// take gives an item the node that was guessed for it.
func (w *walker) take(it *item) {
	if it.parent != nil {
		it.guess = w.guessed[it.at]
		delete(w.guessed, it.at)
	}
}
