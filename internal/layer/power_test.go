package layer_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/layer"
	"github.com/snapferry/snapferry/internal/layer/layertest"
)

// lives is how many layers TestPowerCuts lets live, through 20 cuts each.
var lives = flag.Uint64("lives", 100, "layers that live through 20 cuts of the power each")

const (
	sectors     = layer.PageSize / 512
	stripePages = layer.StripeSize / layer.PageSize
	volume      = 64 << 40
)

// page is what a page is: its state and, if it is Data, what is written in each
// of its sectors; 0 is zeros.
type page struct {
	state   layer.State
	sectors [sectors]uint64
}

func (p page) bytes() []byte {
	b := make([]byte, layer.PageSize)
	for i := range b[:len(b)/8] {
		binary.LittleEndian.PutUint64(b[8*i:], p.sectors[i/64])
	}
	return b
}

// history is a page as it was when last synced, and what it became since.
type history struct {
	synced page
	later  []change
}

type change struct {
	page
	done bool // the call that made it has returned
}

func (h *history) now() page {
	if len(h.later) == 0 {
		return h.synced
	}
	return h.later[len(h.later)-1].page
}

// allows says why a page cannot be what it is after a crash, or "".
func (h *history) allows(got page) string {
	all := []page{h.synced}
	zeroed := false
	for _, c := range h.later {
		all = append(all, c.page)
		zeroed = zeroed || c.state == layer.Zero
	}
	states, contents := map[layer.State]bool{}, [sectors]map[uint64]bool{}
	for i := range contents {
		contents[i] = map[uint64]bool{0: zeroed} // punched, and the state is not durable
	}
	for _, p := range all {
		states[p.state] = true
		for i, s := range p.sectors {
			contents[i][s] = contents[i][s] || p.state == layer.Data
		}
	}
	if !states[got.state] {
		return fmt.Sprintf("is %v", got.state)
	}
	for i, s := range got.sectors {
		if got.state == layer.Data && !contents[i][s] {
			return fmt.Sprintf("has %d in sector %d", s, i)
		}
	}
	return ""
}

// world is a layer on a file system that may lose power, beside its model.
type world struct {
	t      *testing.T
	r      *rand.Rand
	fs     *layertest.Power
	keys   layer.Keys
	l      *layer.Layer
	pages  map[int64]*history
	order  []int64
	tag    uint64
	next   *layertest.Power // after the cut, which came
	broken bool             // a sync of the system failed
	within int              // calls under way
	syncs  int              // of them Syncs
	busy   extent.Extent    // pages that Forget is at work on
	log    []string
}

// watched are the pages that the model knows: around the edges of bytes, map
// pages and stripes.
func watched() (pages []int64) {
	for _, first := range []int64{0, 1000, 16380, 3 << 14, stripePages - 4, 200*stripePages + 16380, 256*stripePages - 8} {
		for i := range int64(8) {
			pages = append(pages, first+i)
		}
	}
	return pages
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 3)), fs: layertest.New(t), pages: map[int64]*history{}, order: watched()}
	for _, p := range w.order {
		w.pages[p] = &history{}
	}
	if seed%2 == 1 {
		w.keys = &layertest.Keys{}
	}
	l, err := layer.Create(w.fs, "l", volume, w.keys)
	if err != nil {
		t.Fatal(err)
	}
	w.l = l
	return w
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(w.log, "\n"))
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, strings.Repeat("  ", w.within)+fmt.Sprintf(format, args...))
}

// span returns a random run of watched pages that are neighbours.
func (w *world) span() (first, n int64) {
	i := w.r.IntN(len(w.order))
	for n = 1; n < 6 && i+int(n) < len(w.order) && w.order[i+int(n)] == w.order[i]+n; n++ {
	}
	return w.order[i], 1 + w.r.Int64N(n)
}

// plan adds what a call will do to each page to the model, calls it, and
// notes that it is done.
func (w *world) plan(first, n int64, what string, next func(page) page, call func() error) {
	if first < w.busy.End() && w.busy.Off < first+n {
		return // writes of a page come one after the other
	}
	w.note("%s %d+%d", what, first, n)
	var touched []*history
	for p := first; p < first+n; p++ {
		if h := w.pages[p]; h != nil {
			h.later = append(h.later, change{page: next(h.now())})
			touched = append(touched, h)
		}
	}
	w.within++
	err := call()
	w.within--
	for _, h := range touched {
		for i := range h.later {
			h.later[i].done = true
		}
	}
	if err != nil {
		w.note("-> %v", err)
		w.observe()
	}
}

func (w *world) write() {
	first, n := w.span()
	w.tag++
	p := page{state: layer.Data}
	for i := range p.sectors {
		p.sectors[i] = w.tag
	}
	var b []byte
	for range n {
		b = append(b, p.bytes()...)
	}
	w.plan(first, n, fmt.Sprintf("write %d", w.tag), func(page) page { return p }, func() error {
		_, err := w.l.WriteAt(b, first*layer.PageSize)
		return err
	})
}

func (w *world) patch() {
	first, _ := w.span()
	if w.l.Lookup(first) != layer.Data || w.pages[first].now().state != layer.Data {
		return
	}
	w.tag++
	from := w.r.IntN(sectors)
	to := from + 1 + w.r.IntN(sectors-from)
	var p page
	next := func(old page) page {
		p = old
		for i := from; i < to; i++ {
			p.sectors[i] = w.tag
		}
		return p
	}
	w.plan(first, 1, fmt.Sprintf("patch %d", w.tag), next, func() error {
		return w.l.Patch(p.bytes()[512*from:512*to], first*layer.PageSize+int64(512*from))
	})
}

func (w *world) zero() {
	first, n := w.span()
	if w.r.IntN(8) == 0 {
		n = min(40_000, 256*stripePages-first)
	}
	w.plan(first, n, "zero", func(page) page { return page{state: layer.Zero} }, func() error { return w.l.Zero(first, n) })
}

func (w *world) forget() {
	first, n := w.span()
	h := w.pages
	w.busy = extent.Extent{Off: first, Len: n}
	w.note("forget %d+%d", first, n)
	for p := first; p < first+n; p++ {
		h[p].later = append(h[p].later, change{page: page{}, done: true})
	}
	w.durable("forget", func() error { return w.l.Forget(w.busy) })
	w.busy = extent.Extent{}
}

func (w *world) sync() { w.durable("sync", w.l.Sync) }

// durable calls what makes the layer durable.
func (w *world) durable(what string, call func() error) {
	w.note("%s", what)
	before := map[*history]int{}
	for _, h := range w.pages {
		for before[h] < len(h.later) && h.later[before[h]].done {
			before[h]++
		}
	}
	w.within++
	w.syncs++
	err := call()
	w.syncs--
	w.within--
	if err != nil {
		w.note("-> %v", err)
		w.broken = w.l.Broken() != nil
		return
	}
	if w.broken {
		w.fatalf("%s after a failed sync said that all is durable", what)
	}
	for h, n := range before {
		if n > 0 {
			h.synced, h.later = h.later[n-1].page, h.later[n:]
		}
	}
}

// read returns a page as the layer says it is.
func (w *world) read(p int64) page {
	got := page{state: w.l.Lookup(p)}
	if got.state != layer.Data {
		return got
	}
	b := make([]byte, layer.PageSize)
	if _, err := w.l.ReadAt(b, p*layer.PageSize); err != nil {
		w.fatalf("read page %d: %v", p, err)
	}
	for i := range got.sectors {
		got.sectors[i] = binary.LittleEndian.Uint64(b[512*i:])
		for j := 0; j < 512; j += 8 {
			if v := binary.LittleEndian.Uint64(b[512*i+j:]); v != got.sectors[i] {
				w.fatalf("page %d sector %d has %d and %d", p, i, got.sectors[i], v)
			}
		}
	}
	return got
}

// observe looks at all pages when what they are is not certain.
func (w *world) observe() {
	if w.next != nil {
		return
	}
	for _, p := range w.order {
		got, h := w.read(p), w.pages[p]
		if why := h.allows(got); why != "" {
			w.fatalf("page %d %s; it was %v and became %v", p, why, h.synced, h.later)
		}
		if got != h.now() {
			h.later = append(h.later, change{got, true})
		}
	}
}

// check compares all pages with what they must be.
func (w *world) check() {
	for _, p := range w.order {
		if got, want := w.read(p), w.pages[p].now(); got != want {
			w.fatalf("page %d: got %v, want %v", p, got, want)
		}
	}
}

// arm lets the power go at one of the next operations of the file system,
// others fail, and lets calls come in between.
func (w *world) arm() {
	cut := w.fs.Ops() + w.r.IntN(80)
	fail, faults := w.fs.Ops()+w.r.IntN(80), w.r.IntN(4) == 0
	w.fs.Inject(func(op layertest.Op) layertest.Fault {
		switch {
		case w.next != nil || op.N < 0:
		case op.N >= cut:
			w.note("cut before %v", op)
			w.next = w.fs.Cut(w.r.Uint64())
		case faults && op.N == fail:
			f := layertest.Fault{Err: []error{syscall.EIO, syscall.ENOSPC}[w.r.IntN(2)], How: layertest.How(w.r.IntN(3))}
			w.note("fault %v at %v", f, op)
			return f
		case op.Kind == layertest.Write && w.within == 1 && w.syncs == 0 && w.r.IntN(8) == 0:
			w.sync()
		}
		return layertest.Fault{}
	})
	w.fs.After(func(op layertest.Op) {
		if w.syncs == 1 && w.within == 1 && w.next == nil && op.N >= 0 && w.r.IntN(3) == 0 {
			w.note("after %v", op)
			w.mutate()
		}
	})
}

func (w *world) mutate() {
	switch n := w.r.IntN(10); {
	case n < 5:
		w.write()
	case n < 7:
		w.patch()
	default:
		w.zero()
	}
}

// live does random things until the power goes.
func (w *world) live() {
	w.arm()
	for w.next == nil {
		switch n := w.r.IntN(20); {
		case n < 12:
			w.mutate()
		case n < 16:
			w.sync()
		case n < 17:
			w.forget()
		case n < 18 && !w.broken:
			w.note("kill")
			w.l.Close()
			w.open()
		default:
			w.check()
		}
	}
}

func (w *world) open() {
	w.l = nil
	l, err := layer.Open(w.fs, "l", volume, w.keys)
	if snapferry.IsKind(err, snapferry.Unavailable) || snapferry.IsKind(err, snapferry.Full) { // the fault
		w.note("open -> %v", err)
		l, err = layer.Open(w.fs, "l", volume, w.keys)
	}
	if w.next != nil {
		if err == nil {
			l.Close()
		}
		return
	}
	if err != nil {
		w.fatalf("open: %v", err)
	}
	w.l = l
	w.observe()
}

// reboot opens the layer after the cut: what it shows now is durable.
func (w *world) reboot() {
	if w.l != nil {
		w.l.Close()
	}
	if n := w.fs.Handles(); n != 0 {
		w.fatalf("%d files are open after Close", n)
	}
	w.fs, w.next, w.broken = w.next, nil, false
	w.note("reboot")
	w.open()
	for _, h := range w.pages {
		h.synced, h.later = h.now(), nil
	}
	if len(w.log) > 400 {
		w.log = w.log[len(w.log)-300:]
	}
}

// TestPowerCuts lets random calls, some within others, end in a cut of the
// power, over and over again.
func TestPowerCuts(t *testing.T) {
	for seed := range *lives {
		w := newWorld(t, seed)
		for range 20 {
			w.live()
			w.reboot()
		}
		if t.Failed() {
			w.fatalf("seed %d", seed)
		}
	}
}
