package simtest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/layer/layertest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// linearNames are the regions of a history.
var linearNames = [2]snapferry.RegionName{"east", "west"}

const (
	linearSize   = 1 << 20 // bytes of a disk
	linearThings = 60      // at most, in a history
	// linearLease is short, so that what a killed process left is soon taken up.
	linearLease = time.Second
	// linearPatience is how long the end of a history waits for a copy.
	linearPatience = 4 * time.Second
)

// A shore is a region of a history.
type shore struct {
	*Region
	account snapferry.AccountID
	road    *road // to the other region
	files   *layertest.Power

	gate sync.RWMutex // held for reading by operations, for writing by a reboot
}

// A history is what several clients did with two regions.
type history struct {
	tb      testing.TB
	seed    uint64
	began   time.Time
	shores  [2]*shore
	faulty  bool // something is made to go wrong
	ticks   chan struct{}
	reading sync.WaitGroup

	mu      sync.Mutex
	spec    spec
	sums    []digest.Digest              // of the things
	known   []int                        // things whose id is known
	dropped map[int]bool                 // things that somebody has asked to delete
	ids     map[snapferry.SnapshotID]int // things; one that was made twice has two
	idOf    map[int]snapferry.SnapshotID // of things, the first that was seen
	copyOf  map[int]snapferry.CopyID     // of things that are copies
	volOf   map[int]snapferry.VolumeID   // of volumes
	hasty   []context.CancelFunc         // of operations that end with the next one
	ops     []porcupine.Operation        // without what lists have shown
	lists   map[int][]listed             // by the operation
}

// A listed is a line of a list, before all names are known.
type listed struct {
	name string               // empty: by id
	id   snapferry.SnapshotID // of the snapshot
	s    sight
}

func newHistory(tb testing.TB, f *Factory, seed uint64) *history {
	tb.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	h := &history{
		tb: tb, seed: seed, faulty: seed%3 != 1, ticks: make(chan struct{}),
		ids: map[snapferry.SnapshotID]int{}, idOf: map[int]snapferry.SnapshotID{}, copyOf: map[int]snapferry.CopyID{}, volOf: map[int]snapferry.VolumeID{},
		lists: map[int][]listed{}, dropped: map[int]bool{},
	}
	h.spec.faulty = h.faulty
	dir, delays := tb.TempDir(), []time.Duration{0, time.Millisecond, 4 * time.Millisecond}
	for i, name := range linearNames {
		s := &shore{road: newRoad(NewLink(name), delays[rnd.IntN(len(delays))]), files: layertest.New(tb)}
		other := linearNames[1-i]
		s.Region = f.NewRegion(tb, Options{
			Name: name, DB: filepath.Join(dir, string(name)+".db"), Jobs: true, Lease: linearLease, Files: s.files, CacheBytes: 1 << 20,
			Peers: map[snapferry.RegionName]func(string) transfer.Remote{other: s.road.As},
		})
		s.account = s.Account("a")
		h.shores[i] = s
	}
	for i, s := range h.shores {
		s.road.link.Join(h.shores[1-i].Region)
		<-s.Control.Started()
	}
	tb.Cleanup(func() {
		for _, s := range h.shores {
			s.Stop() // what still reads a volume ends then
		}
		h.reading.Wait()
	})
	h.began = time.Now()
	return h
}

// now is the time in the history.
func (h *history) now() int64 { return int64(time.Since(h.began)) }

// run has the clients do what they do, and things go wrong meanwhile.
func (h *history) run() {
	h.tb.Helper()
	rnd := rand.New(rand.NewPCG(h.seed, 1))
	clients, each := 3+rnd.IntN(4), 8+rnd.IntN(8)
	first := &client{history: h, number: clients, rnd: rnd}
	for range 2 {
		first.importDisk()
	}
	var all sync.WaitGroup
	for n := range clients {
		c := &client{history: h, number: n, rnd: rand.New(rand.NewPCG(h.seed, uint64(n+2)))}
		all.Go(func() {
			for range each {
				c.ticks <- struct{}{}
				c.act()
			}
		})
	}
	go func() {
		all.Wait()
		close(h.ticks)
	}()
	total := clients * each
	var faults []int
	for range 1 + rnd.IntN(4) {
		faults = append(faults, rnd.IntN(total))
	}
	for n := 0; ; n++ {
		if _, ok := <-h.ticks; !ok {
			break
		}
		if h.faulty && slices.Contains(faults, n) {
			h.fault(rnd)
		}
	}
	h.mend(rnd)
	first.lookAtAll()
}

// fault makes one thing go wrong, or brings back a region that is dark.
func (h *history) fault(rnd *rand.Rand) {
	h.tb.Helper()
	s, kind, n, mode := h.shores[rnd.IntN(2)], rnd.IntN(8), rnd.IntN(12), blobtest.Mode(rnd.IntN(2))
	switch {
	case s.Power.Off():
		h.reboot(s, rnd)
	case kind < 3:
		s.Power.FailAt(n, mode)
	case kind < 5:
		s.road.loseAt(n/3, mode)
	case kind < 7:
		s.Power.CutAt(n, mode)
	default:
		h.reboot(s, rnd)
	}
}

// reboot kills a region, under the operations that are under way, and starts it
// again.
func (h *history) reboot(s *shore, rnd *rand.Rand) {
	h.tb.Helper()
	s.Power.Cut()
	s.gate.Lock() // what is under way fails
	defer s.gate.Unlock()
	s.files = s.files.Cut(rnd.Uint64())
	s.Reboot(s.files, true)
	<-s.live.Load().Started() // a start that a fault cuts short is not taken up again
}

// mend ends all faults.
func (h *history) mend(rnd *rand.Rand) {
	h.tb.Helper()
	for _, s := range h.shores {
		s.road.mend()
		if s.Power.Off() {
			h.reboot(s, rnd)
		}
		s.Power.Restore()
	}
}

// record adds an operation, in its parts, to the history.
func (h *history) record(client int, a answer, lines []listed, parts ...part) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range parts {
		part := a
		p.change(&part)
		if lines != nil {
			h.lists[len(h.ops)] = lines
		}
		h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: p.call, Call: p.call.began, Output: part, Return: a.ended})
	}
}

// A part is a call, and what of the answer is not about it.
type part struct {
	call   call
	change func(*answer)
}

func whole(*answer)       {}
func nothing(a *answer)   { *a = answer{ended: a.ended} }
func onlyID(a *answer)    { a.state, a.wrong = "", false }
func (c call) all() part  { return part{c, whole} }
func (c call) none() part { return part{c, nothing} }

// learn notes the id of a thing.
func (h *history) learn(i int, x snapferry.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.ids[x.ID]; ok {
		return
	}
	h.ids[x.ID] = i
	if _, ok := h.idOf[i]; !ok {
		h.idOf[i], h.copyOf[i] = x.ID, x.Copy
		h.known = append(h.known, i)
	}
}

// thingOf is the thing of a name that an operation gave; -1 for none.
func (h *history) thingOf(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.IndexFunc(h.spec.plans, func(p plan) bool { return p.name == name })
}

// A verdict is what came of a check.
type verdict struct {
	result porcupine.CheckResult
	model  porcupine.Model
	ops    []porcupine.Operation
	info   porcupine.LinearizationInfo
}

// check holds the history against the specification. When that is not decided
// within a time, it is for each family of things alone: lists are then held to
// what they say of each, not of all at one moment.
func (h *history) check(limit time.Duration) verdict {
	h.complete()
	v := verdict{porcupine.Unknown, h.spec.model(), h.ops, porcupine.LinearizationInfo{}}
	if v.result, v.info = porcupine.CheckOperationsVerbose(v.model, v.ops, limit); v.result != porcupine.Unknown {
		return v
	}
	decided := true
	for _, f := range h.spec.families() {
		v.ops = nil
		for _, o := range h.ops {
			c := o.Input.(call)
			c.only = f
			if slices.ContainsFunc(h.things(), func(i int) bool { return f&(1<<i) != 0 && c.about(i) }) {
				o.Input = c
				v.ops = append(v.ops, o)
			}
		}
		v.result, v.info = porcupine.CheckOperationsVerbose(v.model, v.ops, limit)
		if v.result == porcupine.Illegal {
			return v
		}
		decided = decided && v.result == porcupine.Ok
	}
	if v.result = porcupine.Ok; !decided {
		v.result = porcupine.Unknown
	}
	return v
}

// things are the numbers of all.
func (h *history) things() []int {
	all := make([]int, len(h.spec.plans))
	for i := range all {
		all[i] = i
	}
	return all
}

// complete gives the operations what lists have shown, now that all names are
// known, and the specification when deletions began.
func (h *history) complete() {
	for n, lines := range h.lists {
		c, a := h.ops[n].Input.(call), h.ops[n].Output.(answer)
		a.seen = map[int][]sight{}
		for _, l := range lines {
			i, ok := -1, false
			switch {
			case c.verb == opListVolumes:
				_, err := fmt.Sscanf(l.name, "v%d", &i)
				ok = err == nil
			case l.name != "":
				i = h.thingOf(l.name)
				ok = i >= 0
			default:
				if i, ok = h.ids[l.id]; !ok {
					continue // nobody has ever seen its name
				}
			}
			if !ok {
				h.tb.Errorf("seed %d: region %s lists %q, which nobody asked for", h.seed, linearNames[c.at], l.name)
				continue
			}
			a.seen[i] = append(a.seen[i], l.s)
		}
		h.ops[n].Output = a
	}
	h.spec.looks = map[int][]int64{}
	for _, o := range h.ops {
		if c := o.Input.(call); c.verb == opDelete {
			h.spec.looks[c.thing] = append(h.spec.looks[c.thing], c.began)
		}
	}
	for _, at := range h.spec.looks {
		slices.Sort(at)
	}
}

// count adds the operations of the history to a tally.
func (h *history) count(tally map[string]int) {
	for _, o := range h.ops {
		c, a := o.Input.(call), o.Output.(answer)
		what := c.verb.String()
		if c.force {
			what += " by force"
		}
		tally["all"]++
		tally[what+": "+a.kind.String()]++
		if a.state != "" || a.copy != "" {
			tally[what+": "+string(a.state)+string(a.copy)]++
		}
	}
}

// stuck says which operations the longest order that was found leaves out, and what
// the state is there.
func (v verdict) stuck() string {
	var longest []int
	for _, order := range v.info.PartialLinearizations()[0] {
		if len(order) > len(longest) {
			longest = order
		}
	}
	f := v.model.Init()
	in := map[int]bool{}
	for _, i := range longest {
		in[i] = true
		_, f = v.model.Step(f, v.ops[i].Input, v.ops[i].Output)
	}
	text := fmt.Sprintf("after %d operations: %s\nthen none of:", len(longest), v.model.DescribeState(f))
	var left []int
	first := int64(math.MaxInt64)
	for i, o := range v.ops {
		if !in[i] {
			left, first = append(left, i), min(first, o.Return)
		}
	}
	for _, i := range left {
		if o := v.ops[i]; o.Call <= first {
			text += fmt.Sprintf("\n  client %d, %d to %d us: %s", o.ClientId, o.Call/1000, o.Return/1000, v.model.DescribeOperation(o.Input, o.Output))
		}
	}
	return text
}
