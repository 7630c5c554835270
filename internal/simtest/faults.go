package simtest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// A road is a link between two regions of a world that is slow, loses requests
// or their answers, and damages what comes over it. It counts what arrives.
type road struct {
	link *Link

	mu     sync.Mutex
	usual  time.Duration // delay without a fault
	delay  time.Duration // of each request for nodes or blocks, and of each frame
	asked  int           // requests so far
	lose   map[int]blobtest.Mode
	frames int              // frames and nodes so far
	flip   map[int]uint     // bits of frames and nodes
	moved  map[string]int64 // bytes of frames that arrived, by pin
}

func newRoad(l *Link, delay time.Duration) *road {
	return &road{link: l, usual: delay, delay: delay, lose: map[int]blobtest.Mode{}, flip: map[int]uint{}, moved: map[string]int64{}}
}

// mend ends all faults of the road.
func (r *road) mend() {
	r.link.Down(false)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = r.usual
	clear(r.lose)
	clear(r.flip)
}

// slow sets the delay of what goes over the road from now on.
func (r *road) slow(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = d
}

// loseAt makes the nth request from now on fail.
func (r *road) loseAt(n int, mode blobtest.Mode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lose[r.asked+n] = mode
}

// flipAt inverts a bit of the nth frame or node from now on.
func (r *road) flipAt(n int, bit uint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flip[r.frames+n] = bit
}

// arrived returns the bytes of frames that came for a pin.
func (r *road) arrived(pin string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.moved[pin]
}

// request does a request, or loses it or its answer.
func (r *road) request(do func() error) error {
	r.mu.Lock()
	mode, lost := r.lose[r.asked]
	r.asked++
	r.mu.Unlock()
	if lost && mode == blobtest.Before {
		return snapferry.Errorf(snapferry.Unavailable, "the request was lost")
	}
	err := do()
	if lost {
		return snapferry.Errorf(snapferry.Unavailable, "the answer was lost")
	}
	return err
}

// wait takes the time that something takes on the road.
func (r *road) wait(ctx context.Context) error {
	r.mu.Lock()
	d := r.delay
	r.mu.Unlock()
	if d == 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// arrive counts a frame and damages it when it is its turn.
func (r *road) arrive(pin string, f transfer.Frame) transfer.Frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moved[pin] += int64(len(f.Payload))
	bit, damaged := r.flip[r.frames]
	r.frames++
	if damaged && len(f.Payload) > 0 {
		f.Payload = slices.Clone(f.Payload)
		bit %= uint(len(f.Payload)) * 8
		f.Payload[bit/8] ^= 1 << (bit % 8)
	}
	return f
}

// node damages a node when it is its turn; nodes count as frames in that.
func (r *road) node(n *blockmap.Node) *blockmap.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	bit, damaged := r.flip[r.frames]
	r.frames++
	if !damaged || len(n.Digests) == 0 {
		return n
	}
	wrong := *n
	wrong.Digests = slices.Clone(n.Digests)
	d := &wrong.Digests[bit%uint(len(n.Digests))]
	d[bit/8%uint(len(d))] ^= 1 << (bit % 8)
	return &wrong
}

// As is what a region's configuration wants of a peer.
func (r *road) As(account string) transfer.Remote { return &traveller{r, r.link.As(account)} }

type traveller struct {
	road *road
	to   transfer.Remote
}

func (t *traveller) Hello(ctx context.Context) (h transfer.Hello, err error) {
	err = t.road.request(func() (err error) { h, err = t.to.Hello(ctx); return err })
	return h, err
}

func (t *traveller) Describe(ctx context.Context, id snapferry.SnapshotID) (d transfer.Description, err error) {
	err = t.road.request(func() (err error) { d, err = t.to.Describe(ctx, id); return err })
	return d, err
}

func (t *traveller) Members(ctx context.Context, set snapferry.SetID) (ids []snapferry.SnapshotID, err error) {
	err = t.road.request(func() (err error) { ids, err = t.to.Members(ctx, set); return err })
	return ids, err
}

func (t *traveller) Pin(ctx context.Context, p transfer.Pin) (h transfer.Handle, err error) {
	err = t.road.request(func() (err error) { h, err = t.to.Pin(ctx, p); return err })
	return h, err
}

func (t *traveller) Renew(ctx context.Context, h transfer.Handle) error {
	return t.road.request(func() error { return t.to.Renew(ctx, h) })
}

func (t *traveller) Release(ctx context.Context, h transfer.Handle, ending snapferry.Ending) error {
	return t.road.request(func() error { return t.to.Release(ctx, h, ending) })
}

func (t *traveller) Pins(ctx context.Context, after string) (all []transfer.Held, err error) {
	err = t.road.request(func() (err error) { all, err = t.to.Pins(ctx, after); return err })
	return all, err
}

func (t *traveller) Source(h transfer.Handle) transfer.Source {
	return &traffic{t.road, h.Pin, t.to.Source(h)}
}

type traffic struct {
	road *road
	pin  string
	from transfer.Source
}

func (t *traffic) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	if err := t.road.wait(ctx); err != nil {
		return err
	}
	return t.road.request(func() error {
		return t.from.Nodes(ctx, at, func(at snapferry.Position, n *blockmap.Node) error { return fn(at, t.road.node(n)) })
	})
}

func (t *traffic) Blocks(ctx context.Context, want []transfer.Want) (f transfer.Frames, err error) {
	if err := t.road.wait(ctx); err != nil {
		return nil, err
	}
	err = t.road.request(func() (err error) { f, err = t.from.Blocks(ctx, want); return err })
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	return &stream{ctx, t, f}, nil
}

type stream struct {
	ctx context.Context // of the request that opened it
	*traffic
	frames transfer.Frames
}

func (s *stream) Next() (f transfer.Frame, err error) {
	if err := s.road.wait(s.ctx); err != nil {
		return f, err
	}
	if s.road.link.isDown() {
		return f, snapferry.Errorf(snapferry.Unavailable, "the link is down")
	}
	if f, err = s.frames.Next(); err != nil {
		return f, err
	}
	return s.road.arrive(s.pin, f), nil
}

func (s *stream) Close() error { return s.frames.Close() }

// A medium is the driver of a bucket that can be full, and whose reads can be
// wrong once.
type medium struct {
	blob.Driver

	mu    sync.Mutex
	delay time.Duration // of puts of objects
	full  bool
	reads int          // of objects, so far
	flip  map[int]uint // bits of what is read
}

func newMedium(d blob.Driver, delay time.Duration) *medium {
	return &medium{Driver: d, delay: delay, flip: map[int]uint{}}
}

// fill makes the bucket full, or gives it room again.
func (m *medium) fill(full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full = full
}

// flipAt inverts a bit of what the nth read of an object from now on gives.
func (m *medium) flipAt(n int, bit uint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flip[m.reads+n] = bit
}

// mend ends all faults of the medium.
func (m *medium) mend() {
	m.fill(false)
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.flip)
}

// Put implements blob.Driver.
func (m *medium) Put(ctx context.Context, name string, body []byte) error {
	m.mu.Lock()
	full := m.full
	m.mu.Unlock()
	if full {
		return snapferry.Errorf(snapferry.Full, "the bucket is full")
	}
	// Records are written under locks, with which no time passes in a bubble.
	if m.delay > 0 && strings.HasPrefix(name, vault.ObjectPrefix) {
		time.Sleep(m.delay)
	}
	return m.Driver.Put(ctx, name, body)
}

// ReadAt implements blob.Driver.
func (m *medium) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	n, err := m.Driver.ReadAt(ctx, name, p, off)
	if !strings.HasPrefix(name, vault.ObjectPrefix) {
		return n, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	bit, damaged := m.flip[m.reads]
	m.reads++
	if damaged && n > 0 {
		bit %= uint(n) * 8
		p[bit/8] ^= 1 << (bit % 8)
	}
	return n, err
}

// fault makes one thing go wrong, in worlds that have faults.
func (w *World) fault() {
	w.tb.Helper()
	s, r := w.site(), w.road()
	kind, n, bit, mode := w.rnd.IntN(25), w.rnd.IntN(30), uint(w.rnd.Uint32()), blobtest.Mode(w.rnd.IntN(2))
	if w.seed%4 == 1 {
		return
	}
	w.trouble = true
	w.troubles++
	switch {
	case kind < 8 && s.files == nil && !s.dark:
		w.overtake(s)
	case kind < 6:
		w.crash(s, n, mode)
	case kind < 9:
		w.log("point %d in %s fails %s it is done", n, s.Name, mode)
		if !s.dark {
			s.Power.FailAt(n, mode)
		}
	case kind < 11:
		w.log("the link of %s goes down", r.link.from)
		r.link.Down(true)
	case kind < 14:
		w.log("the link of %s becomes slow", r.link.from)
		r.slow([]time.Duration{50 * time.Millisecond, time.Second, 5 * time.Second}[n%3])
	case kind < 18:
		w.log("request %d of %s is lost %s it is done", n%8, r.link.from, mode)
		r.loseAt(n%8, mode)
	case kind < 20:
		w.log("frame %d of %s is damaged", n%8, r.link.from)
		w.flips++
		r.flipAt(n%8, bit)
	case kind < 21:
		w.log("read %d of the bucket of %s is damaged", n, s.Name)
		s.medium.flipAt(n, bit)
	case kind < 22:
		w.log("the bucket of %s is full", s.Name)
		w.full++
		s.medium.fill(true)
	case kind < 23 && s.files != nil:
		w.log("the disk of %s is full", s.Name)
		w.full++
		s.files.Limit(s.files.Used() + int64(n)*4096)
	default:
		w.crash(s, n%3, mode)
	}
}

// crash cuts the power of a region at a point to come, or brings back one whose
// power is cut.
func (w *World) crash(s *site, n int, mode blobtest.Mode) {
	w.tb.Helper()
	if s.dark {
		w.reboot(s)
		if w.rnd.IntN(3) > 0 {
			w.started(s)
			return
		}
	}
	w.log("point %d in %s cuts the power %s it is done", n, s.Name, mode)
	s.dark = true
	s.Power.CutAt(n, mode)
}

// road draws one.
func (w *World) road() *road {
	n := w.rnd.IntN(1 << 30)
	var all []*road
	for _, s := range w.sites {
		for _, to := range w.sites {
			if r := s.roads[to.Name]; r != nil {
				all = append(all, r)
			}
		}
	}
	return all[n%len(all)]
}
