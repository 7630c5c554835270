package layer

import (
	"math/bits"
	"sync"

	"github.com/snapferry/snapferry"
)

// Sync makes durable what was written before it was called. Of many callers at
// a time one does it for all that came before it began. When the maps could not
// be written, because the disk is full for instance, it can be called again. When
// a sync of the system failed it fails from then on, with Kind Unavailable.
//
// It takes the maps that changed as they are, syncs the data files that were
// written, then the directory if files were made, and only then writes and
// syncs those maps: what it writes speaks of data that is durable, of files that
// are there. States that change meanwhile are the next Sync's.
func (l *Layer) Sync() error {
	if !l.Dirty() {
		return nil
	}
	return l.group.do(l.sync)
}

// Dirty reports whether Sync would have anything to do, or has not ended. What
// was written before the call, and of which it reports false, is durable.
func (l *Layer) Dirty() bool {
	runs, busy := l.group.state()
	if busy || l.written() {
		return true
	}
	// A run that came meanwhile may have taken what was written, and failed.
	again, busy := l.group.state()
	return busy || again != runs || l.broken.Load() != nil
}

// written reports whether something was written that no Sync has taken.
func (l *Layer) written() bool {
	if l.unlisted.Load() {
		return true
	}
	for i := range l.stripes {
		if s := l.stripes[i].Load(); s != nil && s.dirty() {
			return true
		}
	}
	return false
}

func (s *stripe) dirty() bool {
	for f := range s.files {
		if f.written.Load() {
			return true
		}
	}
	for i := range s.changed {
		if s.changed[i].Load() != 0 {
			return true
		}
	}
	return false
}

// Broken returns the error that every Sync returns since a sync of the system
// failed, or nil.
func (l *Layer) Broken() error {
	if err := l.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// taken is a changed map, as it was when a Sync began.
type taken struct {
	stripe *stripe
	number int
	c      *container
}

func (l *Layer) sync() error {
	if err := l.Broken(); err != nil {
		return err
	}
	maps := l.take()
	err := l.syncTaken(maps)
	for _, m := range maps {
		m.release(err != nil)
	}
	return err
}

func (l *Layer) syncTaken(maps []taken) error {
	if err := l.syncFiles((*stripe).dataFile); err != nil {
		return err
	}
	if l.unlisted.Swap(false) {
		if err := l.fs.SyncDir(l.dir); err != nil {
			return l.breaks(err)
		}
	}
	if err := l.writeMaps(maps); err != nil {
		return err
	}
	return l.syncFiles((*stripe).mapFile)
}

func (s *stripe) dataFile() *file { return s.data.Load() }
func (s *stripe) mapFile() *file  { return s.states.Load() }

// syncFiles syncs one file of each stripe, if it was written.
func (l *Layer) syncFiles(of func(*stripe) *file) error {
	for i := range l.stripes {
		s := l.stripes[i].Load()
		if s == nil {
			continue
		}
		if f := of(s); f != nil && f.written.Swap(false) {
			if err := f.Datasync(); err != nil {
				return l.breaks(err)
			}
		}
	}
	return nil
}

// breaks ends all claims of durability: the system may have dropped what it
// could not write, and would say nothing of it a second time.
func (l *Layer) breaks(err error) error {
	e := snapferry.Errorf(snapferry.Unavailable, "layer %s cannot be made durable any more: %w", l.dir, err)
	var broken error = e.WithHint("look at the kernel's log; start the machine again before the volume is used, so that it shows what is on the disk")
	l.broken.Store(&broken)
	return broken
}

// take returns the maps that changed, and calls them unchanged.
func (l *Layer) take() []taken {
	var maps []taken
	for i := range l.stripes {
		s := l.stripes[i].Load()
		if s == nil {
			continue
		}
		for w := range s.changed {
			for left := s.changed[w].Load(); left != 0; left &= left - 1 {
				maps = append(maps, s.take(64*w+bits.TrailingZeros64(left)))
			}
		}
	}
	return maps
}

func (s *stripe) take(i int) taken {
	lock := &s.locks[i%len(s.locks)]
	lock.Lock()
	defer lock.Unlock()
	s.changed[i/64].And(^(uint64(1) << (i % 64)))
	c := s.maps[i].Load()
	if c != nil && c.bitmap != nil {
		c.frozen = true // who changes it meanwhile changes a copy
	}
	return taken{s, i, c}
}

// release lets a map change again, and calls it changed when it was not written.
func (m taken) release(failed bool) {
	lock := &m.stripe.locks[m.number%len(m.stripe.locks)]
	lock.Lock()
	defer lock.Unlock()
	if m.c != nil && m.c.bitmap != nil {
		m.c.frozen = false
	}
	if failed {
		m.stripe.changed[m.number/64].Or(1 << (m.number % 64))
	}
}

// writeMaps writes maps, which are in ascending order, neighbours in one call.
func (l *Layer) writeMaps(maps []taken) error {
	buf := make([]byte, min(len(maps), mapsAtOnce)*mapPage)
	for len(maps) > 0 {
		first, n := maps[0], 0
		for n < min(len(maps), mapsAtOnce) && maps[n].stripe == first.stripe && maps[n].number == first.number+n {
			maps[n].c.encode(buf[n*mapPage:])
			n++
		}
		f := first.stripe.states.Load()
		_, err := f.WriteAt(buf[:n*mapPage], int64(first.number)*mapPage)
		f.wrote()
		if err != nil {
			return err
		}
		maps = maps[n:]
	}
	return nil
}

// group lets many callers share one run of a function, of which each wants one
// that begins after its call.
type group struct {
	mu   sync.Mutex
	runs int    // that have begun
	busy bool   // a run is under way, or its leader was chosen
	next *round // that has not begun
}

type round struct {
	lead chan struct{} // holds a token for the one who runs it
	done chan struct{}
	err  error // before done is closed
}

func (g *group) do(fn func() error) error {
	g.mu.Lock()
	r := g.next
	if r == nil {
		r = &round{lead: make(chan struct{}, 1), done: make(chan struct{})}
		g.next = r
		if !g.busy {
			g.busy = true
			r.lead <- struct{}{}
		}
	}
	g.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-r.lead:
	}
	g.mu.Lock()
	g.next = nil // who comes now comes too late
	g.runs++
	g.mu.Unlock()
	r.err = fn()
	g.mu.Lock()
	if g.busy = g.next != nil; g.busy {
		g.next.lead <- struct{}{}
	}
	g.mu.Unlock()
	close(r.done)
	return r.err
}

// state returns how many runs have begun, and whether one is under way.
func (g *group) state() (runs int, busy bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.runs, g.busy
}
