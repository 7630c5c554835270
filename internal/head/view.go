package head

import (
	"sync"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/layer"
)

// pageSize is the grain of layers, in bytes.
const pageSize = 4096

// A slab is a layer of the stack. It is closed, and removed if it is doomed,
// when the last view that has it has ended.
type slab struct {
	*layer.Layer
	number uint64
	refs   atomic.Int32 // views that have it
	doomed atomic.Bool  // no stack names it any more
	end    func(*slab)
}

func (s *slab) release() {
	if s.refs.Add(-1) == 0 {
		s.end(s)
	}
}

// A base is the sealed version below.
type base struct {
	version snapferry.VersionID
	image   Image
	refs    atomic.Int32 // views that have it
	end     func(*base)
}

func (b *base) release() {
	if b.refs.Add(-1) == 0 {
		b.end(b)
	}
}

// A view is what a volume is made of at one time. It never changes; another one
// takes its place.
type view struct {
	layers []*slab // from the lowest to the top
	clean  int     // how many of the lowest ones hold nothing that base does not have
	base   *base   // nil: nothing was sealed
	cache  *Cache  // of what lies below all layers; nil: zeros, or nothing is kept
	zeros  bool    // what lies below all layers is zero

	refs atomic.Int64 // readers, and one for the volume while it is current
	once sync.Once
}

func (vw *view) top() *slab { return vw.layers[len(vw.layers)-1] }

// hold counts the view's parts, when it is published.
func (vw *view) hold() *view {
	for _, s := range vw.layers {
		s.refs.Add(1)
	}
	if vw.base != nil {
		vw.base.refs.Add(1)
	}
	if vw.cache != nil {
		vw.cache.hold()
	}
	vw.refs.Store(1)
	return vw
}

func (vw *view) release() {
	// A reader that came too late may bring a view that has ended to zero again.
	if vw.refs.Add(-1) == 0 {
		vw.once.Do(func() {
			for _, s := range vw.layers {
				s.release()
			}
			if vw.base != nil {
				vw.base.release()
			}
			if vw.cache != nil {
				vw.cache.release()
			}
		})
	}
}

// find returns the highest of the first n layers that has a page, nil for none,
// what it is there, and for how many pages from it on, at most most, that is so.
func (vw *view) find(n int, page, most int64) (s *slab, state layer.State, run int64) {
	for i := n - 1; i >= 0; i-- {
		state, run := vw.layers[i].Run(page, most)
		if state != layer.Below {
			return vw.layers[i], state, run
		}
		most = run
	}
	return nil, layer.Below, most
}

// acquire returns the present view, to be released. It does not wait.
func (v *Volume) acquire() *view {
	for {
		vw := v.cur.Load()
		vw.refs.Add(1)
		if v.cur.Load() == vw {
			return vw
		}
		vw.release()
	}
}

// publish makes vw the view. v.change is held, and v.gate too if the top is
// another one.
func (v *Volume) publish(vw *view) {
	old := v.cur.Swap(vw.hold())
	if old != nil {
		old.release()
	}
}
