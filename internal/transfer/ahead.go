package transfer

import (
	"context"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
)

const (
	// nodesAtOnce is how many nodes are asked for at once; a leaf has at most
	// 9 KiB.
	nodesAtOnce = 64
	// stretchesAhead is how many stretches of leaves may be under way or waiting
	// to be emitted, beside the one that is being put together and that which is
	// emitted: at 100 ms a round trip some 8,000 leaves a second.
	stretchesAhead = 12
	// maxNodes is how many of the source's nodes a Planner keeps: leaves, of each
	// level above two lots of nodes, and guesses.
	maxNodes = (stretchesAhead+2)*nodesAtOnce + 2*nodesAtOnce*blockmap.RootLevel + maxGuesses
	// nodeSilence is how long nothing may come of nodes that were asked for.
	nodeSilence = 10 * time.Second
)

// A stretch is leaves that differ, in order. They are read beside what else is
// done.
type stretch struct {
	items []item
	done  chan struct{} // closed when items have their steps, or err is set
	err   error
}

// An item is a leaf that differs or, without a parent, all that the base has below
// a position and the source has not.
type item struct {
	at     snapferry.Position
	parent *blockmap.Node // of the source; leaf at.Index is a child of it
	base   blockmap.Child // the base's leaf
	based  bool           // the base has it
	guess  *blockmap.Node // what the source sent as this node before it was asked for
	step   Step
}

// A walker goes through the inner nodes of the source and the base, and sends out
// what differs.
type walker struct {
	p      *Planner
	out    chan *stretch
	wg     sync.WaitGroup // of those that read nodes
	next   []item         // of the stretch that is being put together
	reused int64          // blocks below what is the same

	guessed map[snapferry.Position]*blockmap.Node // not checked
}

// walk sends all stretches, and at their end, if it fails, one with the error.
func (w *walker) walk(ctx context.Context) {
	defer close(w.out)
	err := w.inner(ctx, snapferry.Position{Level: blockmap.RootLevel}, w.p.Info.Root, w.p.Base.Root)
	if err == nil {
		err = w.flush(ctx)
	}
	if err == nil {
		return
	}
	s := &stretch{done: make(chan struct{}), err: err}
	close(s.done)
	select {
	case w.out <- s:
	case <-ctx.Done():
	}
}

// add puts an item behind the others.
func (w *walker) add(ctx context.Context, it item) error {
	w.take(&it)
	if w.next = append(w.next, it); len(w.next) == nodesAtOnce {
		return w.flush(ctx)
	}
	return nil
}

// flush sends the stretch that is being put together, and lets it be read.
func (w *walker) flush(ctx context.Context) error {
	if len(w.next) == 0 {
		return nil
	}
	s := &stretch{items: w.next, done: make(chan struct{})}
	w.next = nil
	select {
	case w.out <- s:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.wg.Go(func() {
		defer close(s.done)
		s.err = w.p.both(ctx, s.items, nil, func(k int, n, base *blockmap.Node) {
			s.items[k].step = stepOf(s.items[k].at.Index, n, base)
		})
		if s.err == nil {
			w.p.lend(ctx, s.items)
		}
	})
	return nil
}

// inner compares an inner node of the source with that of the base, which may be
// nil, child by child in order.
func (w *walker) inner(ctx context.Context, at snapferry.Position, n, base *blockmap.Node) error {
	if at.Level == 1 {
		return w.leaves(ctx, at, n, base)
	}
	for l := w.ask(ctx, at, n, base, 0); l != nil; {
		after := w.ask(ctx, at, n, base, l.hi) // one lot ahead
		select {
		case <-l.done:
		default:
			// What there is does not wait for this.
			if err := w.flush(ctx); err != nil {
				return err
			}
			<-l.done
		}
		if l.err != nil {
			return l.err
		}
		if l.guesses != nil {
			w.guessed = l.guesses.got
		}
		for i := l.lo; i < l.hi; i++ {
			if !w.differs(at, n, base, i) {
				w.reuse(n, i)
				continue
			}
			c := below(at, i)
			var err error
			if got, ok := l.got[i]; ok {
				err = w.inner(ctx, c, got.source, got.base)
			} else {
				err = w.add(ctx, item{at: c})
			}
			if err != nil {
				return err
			}
		}
		l = after
	}
	return nil
}

// leaves compares the leaves below a node of level 1.
func (w *walker) leaves(ctx context.Context, at snapferry.Position, n, base *blockmap.Node) error {
	for i := range blockmap.Fanout {
		if !w.differs(at, n, base, i) {
			w.reuse(n, i)
			continue
		}
		it := item{at: below(at, i)}
		if n.Presence.Has(i) {
			it.parent = n
			it.base.Digest, it.base.Ref, it.based = childOf(base, i)
		}
		if err := w.add(ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// differs reports whether child i must be looked into, or is absent in the source
// alone.
func (w *walker) differs(at snapferry.Position, n, base *blockmap.Node, i int) bool {
	if !n.Presence.Has(i) {
		return base != nil && base.Presence.Has(i)
	}
	k := n.Presence.Rank(i)
	return !sameChild(base, i, n.Digests[k]) || w.p.cut(below(at, i))
}

// reuse counts what child i has, if it is there, as the base's.
func (w *walker) reuse(n *blockmap.Node, i int) {
	if n.Presence.Has(i) {
		w.reused += int64(n.Counts[n.Presence.Rank(i)])
	}
}

// A lot is the children lo to hi of an inner node, as far as both have to be read.
type lot struct {
	lo, hi  int
	got     map[int]pair
	guesses *guesses      // nil for none
	done    chan struct{} // closed when got is complete or err is set
	err     error
}

type pair struct{ source, base *blockmap.Node }

// ask lets the children of an inner node from lo on be read, nodesAtOnce at most;
// nil when none is left.
func (w *walker) ask(ctx context.Context, at snapferry.Position, n, base *blockmap.Node, lo int) *lot {
	if lo == blockmap.Fanout {
		return nil
	}
	l := &lot{lo: lo, hi: lo, done: make(chan struct{})}
	var items []item
	for ; l.hi < blockmap.Fanout && len(items) < nodesAtOnce; l.hi++ {
		if n.Presence.Has(l.hi) && w.differs(at, n, base, l.hi) {
			it := item{at: below(at, l.hi), parent: n}
			it.base.Digest, it.base.Ref, it.based = childOf(base, l.hi)
			w.take(&it)
			items = append(items, it)
		}
	}
	var g *guesses
	if at.Level == blockmap.RootLevel && lo == 0 {
		g = guess(items, w.p.Info.Size)
		l.guesses = g
	}
	w.wg.Go(func() {
		defer close(l.done)
		l.got = make(map[int]pair, len(items))
		l.err = w.p.both(ctx, items, g, func(k int, n, base *blockmap.Node) {
			l.got[int(items[k].at.Index%blockmap.Fanout)] = pair{n, base}
		})
	})
	return l
}

// both calls fn with each item's node of the source, checked against its parent,
// and that of the base, nil if it has none. Guesses, if not nil, it also asks for.
func (p *Planner) both(ctx context.Context, items []item, g *guesses, fn func(k int, n, base *blockmap.Node)) error {
	var at []snapferry.Position
	var number []int // of items
	for k := range items {
		switch it := &items[k]; {
		case it.parent == nil:
		case it.guess == nil:
			at, number = append(at, it.at), append(number, k)
		default:
			if err := p.pair(ctx, it, it.guess, func(n, base *blockmap.Node) { fn(k, n, base) }); err != nil {
				return err
			}
			it.guess = nil
		}
	}
	if len(at) == 0 {
		return nil
	}
	came := 0
	return persist(ctx, func() (bool, error) {
		before := came
		ctx, s, stop := watch(ctx, nodeSilence)
		defer stop()
		err := p.Source.Nodes(ctx, g.behind(at[came:]), func(where snapferry.Position, n *blockmap.Node) error {
			if err := s.hold(func() error { return p.pass(ctx, n) }); err != nil {
				return err
			}
			if came == len(at) && g.keep(where, n) {
				return nil
			}
			if came == len(at) || where != at[came] {
				return snapferry.Errorf(snapferry.Corrupt, "the source sent a node of level %d, index %d that was not asked for", where.Level, where.Index)
			}
			k := number[came]
			if err := p.pair(ctx, &items[k], n, func(n, base *blockmap.Node) { fn(k, n, base) }); err != nil {
				return err
			}
			came++
			return nil
		})
		err = why(ctx, err)
		switch {
		case came == len(at) && g != nil && (snapferry.IsKind(err, snapferry.NotFound) || snapferry.IsKind(err, snapferry.Unavailable)):
			err = nil // a guess was wrong, or did not come
		case err == nil && came < len(at):
			err = snapferry.Errorf(snapferry.Unavailable, "the source sent %d nodes of %d", came, len(at))
		}
		return came > before, err
	})
}

// pair checks a node that came for an item, and calls fn with it and the base's.
func (p *Planner) pair(ctx context.Context, it *item, n *blockmap.Node, fn func(n, base *blockmap.Node)) error {
	if err := checkChild(it.parent, int(it.at.Index%blockmap.Fanout), it.at, n, p.Info.Size); err != nil {
		return err
	}
	var base *blockmap.Node
	if it.based {
		var err error
		if base, err = p.Base.Nodes.ReadNode(ctx, it.at, it.base.Digest, it.base.Ref); err != nil {
			return err
		}
	}
	fn(n, base)
	return nil
}
