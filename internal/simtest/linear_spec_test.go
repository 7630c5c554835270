package simtest

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
	"github.com/snapferry/snapferry"
)

// The sequential specification of two regions as their clients see them. It is
// nondeterministic in two ways. An operation whose answer was lost has happened or
// has not: such a step has several next states. What a region does by itself, the
// end of a copy, or of a deletion that waits for pins, happens at any time: the
// state says only what is known, and what an operation sees decides it.
//
// Some operations take effect in parts, which the history has as operations of the
// same time. A copy pins its source, then it appears, then it is shown. A forced
// deletion breaks the pins, then it deletes.

// A phase is what is known of where a snapshot is in its life.
type phase uint8

const (
	unborn  phase = iota
	making        // or settled, and nobody has seen it
	ready         // and nobody has asked to delete it
	failed        // the same
	deleted       // it was pinned then: it is shown as deleting, or is gone and nobody has seen it
	gone
)

func (p phase) String() string {
	return [...]string{"unborn", "making", "ready", "failed", "deleted", "gone"}[p]
}

// endings are those that the copy of a snapshot that is gone may have had.
type endings uint8

const (
	wasDone endings = 1 << iota
	wasFailed
	wasCancelled
)

// A thing is the state of a snapshot.
type thing struct {
	phase   phase
	failing bool // its copy has failed; the snapshot will
	forced  bool // its pins may have been broken
	ends    endings
	id      snapferry.SnapshotID // empty: not known yet
	pins    uint64               // copies, by their things, that may have pinned it

	// How many of its deletions may have looked at it before it settled, and before
	// it was gone: those may answer by what they saw.
	settledBy, goneBy int
}

// A restored is the state of a volume that was made from a snapshot.
type restored uint8

const (
	noVolume restored = iota
	volume1           // it is there
	unmaking          // it is being deleted, or gone
	unmade
)

// A facts is a state of the specification. It is not changed.
type facts struct {
	things []thing
	tokens []int8 // the thing that a token stands for, and 1
	vols   []restored
}

func (f *facts) clone() *facts {
	return &facts{slices.Clone(f.things), slices.Clone(f.tokens), slices.Clone(f.vols)}
}

func (f *facts) equal(o *facts) bool {
	return slices.Equal(f.things, o.things) && slices.Equal(f.tokens, o.tokens) && slices.Equal(f.vols, o.vols)
}

// A verb is what an operation does, or a part of one.
type verb uint8

const (
	opImport verb = iota
	opPin         // the first part of a copy
	opCopy
	opShow
	opList
	opShowCopy
	opListCopies
	opBreak // the first part of a forced deletion
	opDelete
	opExport
	opRestore // makes a volume
	opRead    // reads that volume
	opUnmake
	opListVolumes
)

func (v verb) String() string {
	return [...]string{
		"import", "pin", "copy", "show", "list", "show copy", "list copies", "break pins of", "delete", "export", "restore", "read", "delete volume", "list volumes",
	}[v]
}

// A call is an operation as it was asked for.
type call struct {
	verb  verb
	at    int // region, of a list
	thing int // which it is about; of a copy, the new one
	vol   int
	force bool
	only  uint64 // of a list: the things that it is about; 0: all
	began int64  // ns since the history began
}

// An answer is what an operation returned.
type answer struct {
	kind  answerKind
	text  string // of the error
	id    snapferry.SnapshotID
	state snapferry.SnapshotState
	copy  snapferry.CopyState
	wrong bool // the content, or its digest, is not that of the thing
	seen  map[int][]sight
	ended int64 // ns since the history began
}

// A sight is a thing, or a volume, in a list.
type sight struct {
	id    snapferry.SnapshotID
	state snapferry.SnapshotState
	copy  snapferry.CopyState
	wrong bool
}

// about reports whether a call is about a thing, or a list about it too.
func (c call) about(i int) bool {
	switch c.verb {
	case opList, opListCopies, opListVolumes:
		return c.only == 0 || c.only&(1<<i) != 0
	}
	return c.thing == i
}

// families are the things that have nothing to do with one another: a thing, its
// copies, and what shares a token with them.
func (m *spec) families() []uint64 {
	var all []uint64
	for i, p := range m.plans {
		one := uint64(1) << i
		rest := all[:0:0]
		for _, f := range all {
			joined := p.source >= 0 && f&(1<<p.source) != 0
			for j, q := range m.plans[:i] {
				joined = joined || f&(1<<j) != 0 && p.token >= 0 && q.token == p.token
			}
			if joined {
				one |= f
			} else {
				rest = append(rest, f)
			}
		}
		all = append(rest, one)
	}
	return all
}

type answerKind uint8

const (
	answered answerKind = iota
	notFound
	conflict
	lost // it may have happened
)

func (k answerKind) String() string {
	return [...]string{"ok", "not found", "conflict", "unknown"}[k]
}

// A plan says what does not change of a thing: it is made before the thing is.
type plan struct {
	name   string
	at     int // region
	source int // thing; -1: an import
	token  int // -1: none
}

// A spec is the specification for a history.
type spec struct {
	plans  []plan
	vols   []int // the thing each was made from
	tokens int
	faulty bool            // something was made to go wrong in the history
	looks  map[int][]int64 // when deletions of a thing began, ascending
}

// before is how many deletions of a thing began no later than a time. States have
// that, not the time, so that there are fewer of them.
func (m *spec) before(i int, t int64) int {
	n, _ := slices.BinarySearch(m.looks[i], t+1)
	return n
}

// model is the specification as the checker wants it.
func (m *spec) model() porcupine.Model {
	seed := maphash.MakeSeed()
	n := porcupine.NondeterministicModel{
		Init: func() []any {
			return []any{&facts{make([]thing, len(m.plans)), make([]int8, m.tokens), make([]restored, len(m.vols))}}
		},
		Step: func(f, in, out any) (next []any) {
			for _, s := range m.step(f.(*facts), in.(call), out.(answer)) {
				next = append(next, s)
			}
			return next
		},
		Equal: func(a, b any) bool { return a.(*facts).equal(b.(*facts)) },
		Hash: func(f any) (sum uint64) {
			for i, x := range f.(*facts).things {
				sum += uint64(i+1) * maphash.Comparable(seed, x)
			}
			return sum
		},
		DescribeOperation: func(in, out any) string { return m.describe(in.(call), out.(answer)) },
		DescribeState:     func(f any) string { return m.describeState(f.(*facts)) },
	}
	return n.ToModel()
}

// step returns the states after an operation; none if it cannot have had that
// answer in the state f.
func (m *spec) step(f *facts, c call, a answer) []*facts {
	f = f.clone()
	switch c.verb {
	case opImport:
		return m.imports(f, c, a)
	case opPin:
		return m.pin(f, c, a)
	case opCopy:
		return m.copies(f, c, a)
	case opShow:
		return when(m.show(f, c.thing, a), f)
	case opList:
		return when(m.list(f, c, a), f)
	case opShowCopy:
		return when(a.kind == lost || a.kind == answered && m.seeCopy(f, c.thing, a.copy, a.ended), f)
	case opListCopies:
		return when(m.listCopies(f, c, a), f)
	case opBreak:
		f.things[c.thing].forced = true
		return when(true, f)
	case opDelete:
		return m.deletes(f, c, a)
	case opExport:
		return when(m.export(f, c.thing, a), f)
	case opRestore:
		return m.restore(f, c, a)
	case opRead:
		return when(m.read(f, c, a), f)
	case opUnmake:
		return m.unmake(f, c, a)
	case opListVolumes:
		return when(m.listVolumes(f, c, a), f)
	}
	return nil
}

func when(ok bool, f *facts) []*facts {
	if !ok {
		return nil
	}
	return []*facts{f}
}

// born makes a thing.
func (f *facts) born(i int, id snapferry.SnapshotID) *facts {
	f.things[i].phase, f.things[i].id = making, id
	return f
}

func (m *spec) imports(f *facts, c call, a answer) []*facts {
	switch a.kind {
	case answered:
		return when(true, f.born(c.thing, a.id))
	case lost:
		return []*facts{f, f.clone().born(c.thing, "")}
	}
	return nil
}

// pin is the first part of a copy. One that is refused may have pinned its source
// too, and let go of it at any time.
func (m *spec) pin(f *facts, c call, a answer) []*facts {
	var all []*facts
	source := m.plans[c.thing].source
	if f.things[source].phase != ready {
		all = append(all, f.clone())
	}
	if m.settle(f, source, ready, a.ended) {
		f.things[source].pins |= 1 << c.thing
		all = append(all, f)
	}
	return all
}

// copies is the appearance of a copy, or that one is there under the token.
func (m *spec) copies(f *facts, c call, a answer) []*facts {
	p := m.plans[c.thing]
	if p.token >= 0 && f.tokens[p.token] > 0 {
		was := int(f.tokens[p.token]) - 1
		switch {
		case a.kind == lost:
			return when(true, f)
		case was != c.thing:
			return when(a.kind == conflict, f)
		case a.kind == answered:
			return when(m.identify(f, was, a.id), f)
		}
		return when(a.kind == notFound && m.isGone(f, was, a.ended), f)
	}
	source := &f.things[p.source]
	switch a.kind {
	case answered, lost:
		all := when(a.kind == lost, f.clone())
		kept := source.phase == ready || source.phase == deleted || source.forced && source.phase == gone
		if kept && source.pins&(1<<c.thing) != 0 && f.things[c.thing].phase == unborn {
			if p.token >= 0 {
				f.tokens[p.token] = int8(c.thing) + 1
			}
			all = append(all, f.born(c.thing, a.id))
		}
		return all
	case notFound:
		return when(m.isGone(f, p.source, a.ended), f)
	}
	return when(source.phase == making || source.phase == failed || source.phase == deleted, f)
}

// identify reports whether a thing has an id, or can have it.
func (m *spec) identify(f *facts, i int, id snapferry.SnapshotID) bool {
	x := &f.things[i]
	if x.id == "" {
		x.id = id
	}
	return x.phase != unborn && x.id == id
}

// settle reports whether a thing that was being made has become ready or failed, or
// can have by a time, and has it so.
func (m *spec) settle(f *facts, i int, to phase, by int64) bool {
	x := &f.things[i]
	switch {
	case x.phase == to:
		return true
	case x.phase != making, to == ready && x.failing, to == failed && !m.canFail(f, i, by):
		return false
	}
	x.phase, x.settledBy, x.failing = to, m.before(i, by), false
	return true
}

// mayFail reports whether the making of a thing may fail: of an import when
// something goes wrong; of a copy when its pin was broken and the source deleted.
func (m *spec) mayFail(f *facts, i int) bool {
	from := m.plans[i].source
	if from < 0 {
		return m.faulty
	}
	s := f.things[from]
	return f.things[i].failing || s.forced && (s.phase == deleted || s.phase == gone)
}

// canFail is mayFail, and decides that the source is gone then.
func (m *spec) canFail(f *facts, i int, by int64) bool {
	from := m.plans[i].source
	return m.mayFail(f, i) && (from < 0 || f.things[i].failing || m.isGone(f, from, by))
}

// isGone reports whether a thing is gone, or can be by a time, and has it so: the
// copies that had it pinned have come to their end then.
func (m *spec) isGone(f *facts, i int, by int64) bool {
	x := &f.things[i]
	if x.phase != deleted {
		return x.phase == gone
	}
	x.phase, x.goneBy = gone, m.before(i, by)
	if x.forced {
		return true
	}
	for c := range f.things {
		if x.pins&(1<<c) != 0 && f.things[c].phase == making && !m.settle(f, c, ready, by) {
			return false
		}
	}
	return true
}

// see reports whether a thing can be shown in a state.
func (m *spec) see(f *facts, i int, s sight, by int64) bool {
	if !m.identify(f, i, s.id) || s.wrong {
		return false
	}
	switch s.state {
	case snapferry.SnapshotCreating:
		return f.things[i].phase == making && m.plans[i].source < 0
	case snapferry.SnapshotCopying:
		return f.things[i].phase == making && m.plans[i].source >= 0
	case snapferry.SnapshotReady:
		return m.settle(f, i, ready, by)
	case snapferry.SnapshotFailed:
		return m.settle(f, i, failed, by)
	case snapferry.SnapshotDeleting:
		return f.things[i].phase == deleted
	}
	return false
}

func (m *spec) show(f *facts, i int, a answer) bool {
	switch a.kind {
	case answered:
		return m.see(f, i, sight{id: a.id, state: a.state, wrong: a.wrong}, a.ended)
	case notFound:
		return m.isGone(f, i, a.ended)
	}
	return a.kind == lost
}

func (m *spec) list(f *facts, c call, a answer) bool {
	if a.kind != answered {
		return a.kind == lost
	}
	for i, p := range m.plans {
		if p.at != c.at || !c.about(i) {
			continue
		}
		switch in := a.seen[i]; len(in) {
		case 0:
			if f.things[i].phase != unborn && !m.isGone(f, i, a.ended) {
				return false
			}
		case 1:
			if !m.see(f, i, in[0], a.ended) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// seeCopy reports whether the copy of a thing can be shown in a state.
func (m *spec) seeCopy(f *facts, i int, state snapferry.CopyState, by int64) bool {
	x := &f.things[i]
	end := wasCancelled
	switch state {
	case snapferry.CopyDone:
		end = wasDone
	case snapferry.CopyFailed:
		end = wasFailed
	case snapferry.CopyCancelled:
	default:
		return x.phase == making && !x.failing
	}
	switch x.phase {
	case making:
		if end == wasFailed && m.canFail(f, i, by) {
			x.failing = true
			return true
		}
		return end == wasDone && m.settle(f, i, ready, by)
	case ready, deleted:
		return end == wasDone
	case failed:
		return end == wasFailed
	case gone:
		if x.ends&end == 0 {
			return false
		}
		x.ends = end
		return true
	}
	return false
}

func (m *spec) listCopies(f *facts, c call, a answer) bool {
	if a.kind != answered {
		return a.kind == lost
	}
	for i, p := range m.plans {
		if p.at != c.at || p.source < 0 || !c.about(i) {
			continue
		}
		switch in := a.seen[i]; len(in) {
		case 0: // one whose snapshot nobody has ever seen is in no list by name
			if x := f.things[i]; x.phase != unborn && x.id != "" {
				return false
			}
		case 1:
			if !m.identify(f, i, in[0].id) || !m.seeCopy(f, i, in[0].copy, a.ended) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// deletes is a deletion. It looks at the snapshot first, and what has come to its
// end since then may change its answer.
func (m *spec) deletes(f *facts, c call, a answer) []*facts {
	x := &f.things[c.thing]
	switch a.kind {
	case notFound:
		return when(m.isGone(f, c.thing, a.ended), f)
	case conflict:
		return m.deleteRefused(f, c, a)
	case lost:
		return append(m.deleteDone(f.clone(), c, a), f)
	}
	if x.phase == gone {
		return when(m.before(c.thing, c.began) <= x.goneBy, f) // somebody else was faster
	}
	return m.deleteDone(f, c, a)
}

func (m *spec) deleteDone(f *facts, c call, a answer) []*facts {
	x := &f.things[c.thing]
	end := func(to phase, ends endings) []*facts {
		x.phase, x.ends, x.failing = to, ends, false
		if to == gone {
			x.goneBy = m.before(c.thing, a.ended)
		}
		return when(true, f)
	}
	switch x.phase {
	case making:
		ends := wasDone | wasFailed | wasCancelled
		if x.failing {
			ends = wasFailed
		} else if !m.mayFail(f, c.thing) {
			ends &^= wasFailed
		}
		if !c.force && m.inUse(f, c.thing) {
			ends &^= wasCancelled
		}
		return end(gone, ends)
	case ready:
		if x.pins != 0 && !c.force {
			return end(deleted, wasDone)
		}
		return end(gone, wasDone)
	case failed:
		return end(gone, wasFailed)
	case deleted:
		if c.force {
			m.isGone(f, c.thing, a.ended)
		}
		return when(true, f)
	}
	return nil
}

// deleteRefused is a deletion that is a conflict: volumes read what is being
// copied, or it has settled since the deletion looked at it.
func (m *spec) deleteRefused(f *facts, c call, a answer) (all []*facts) {
	x := f.things[c.thing]
	switch x.phase {
	case making:
		if !c.force && slices.ContainsFunc(m.volumesOf(c.thing), func(v int) bool { return f.vols[v] == volume1 || f.vols[v] == unmaking }) {
			all = append(all, f.clone())
		}
		if g := f.clone(); m.settle(g, c.thing, failed, a.ended) {
			all = append(all, g)
		}
		if m.settle(f, c.thing, ready, a.ended) {
			all = append(all, f)
		}
	case ready, failed, deleted:
		return when(m.before(c.thing, c.began) <= x.settledBy, f)
	}
	return all
}

func (m *spec) volumesOf(i int) (all []int) {
	for v, of := range m.vols {
		if of == i {
			all = append(all, v)
		}
	}
	return all
}

// inUse reports whether a volume surely lies on a thing.
func (m *spec) inUse(f *facts, i int) bool {
	return slices.ContainsFunc(m.volumesOf(i), func(v int) bool { return f.vols[v] == volume1 })
}

func (m *spec) export(f *facts, i int, a answer) bool {
	x := f.things[i]
	switch a.kind {
	case answered:
		return !a.wrong && m.settle(f, i, ready, a.ended)
	case conflict:
		return x.phase == making || x.phase == failed || x.phase == deleted
	case notFound:
		return m.isGone(f, i, a.ended)
	}
	return true
}

func (m *spec) restore(f *facts, c call, a answer) []*facts {
	x, copied := &f.things[c.thing], m.plans[c.thing].source >= 0
	switch a.kind {
	case answered, lost:
		all := when(a.kind == lost, f.clone())
		if copied && x.phase == making && !x.failing || m.settle(f, c.thing, ready, a.ended) {
			f.vols[c.vol] = volume1
			all = append(all, f)
		}
		return all
	case notFound:
		return when(m.isGone(f, c.thing, a.ended), f)
	}
	switch {
	case x.phase == making && copied: // one that is given up
		ok := m.canFail(f, c.thing, a.ended)
		x.failing = true
		return when(ok, f)
	case x.phase == making, x.phase == failed, x.phase == deleted:
		return when(true, f)
	}
	return nil
}

// read is a look at all of a volume. It fails when the copy that it lies on was
// given up, or the volume is deleted.
func (m *spec) read(f *facts, c call, a answer) bool {
	if a.kind == answered {
		return !a.wrong && f.vols[c.vol] != noVolume
	}
	i := m.vols[c.vol]
	x := f.things[i]
	aborted := x.phase == failed || x.phase == gone && x.ends&^wasDone != 0 || x.phase == making && m.mayFail(f, i)
	return a.kind == lost || aborted || f.vols[c.vol] >= unmaking
}

func (m *spec) unmake(f *facts, c call, a answer) []*facts {
	var all []*facts
	if a.kind == lost {
		all = append(all, f.clone())
	}
	switch v := &f.vols[c.vol]; {
	case *v == volume1 && (a.kind == answered || a.kind == lost):
		*v = unmaking
	case *v == unmaking && a.kind == answered:
	case *v >= unmaking && a.kind == notFound:
		*v = unmade
	default:
		return all
	}
	return append(all, f)
}

func (m *spec) listVolumes(f *facts, c call, a answer) bool {
	if a.kind != answered {
		return a.kind == lost
	}
	for i, of := range m.vols {
		if m.plans[of].at != c.at || !c.about(of) {
			continue
		}
		v := &f.vols[i]
		switch there := len(a.seen[i]); {
		case there > 1, there == 1 && (*v == noVolume || *v == unmade), there == 0 && *v == volume1:
			return false
		case there == 0 && *v == unmaking:
			*v = unmade
		}
	}
	return true
}

// describe is an operation in words.
func (m *spec) describe(c call, a answer) string {
	what := c.verb.String()
	if c.force {
		what += " by force"
	}
	switch c.verb {
	case opList, opListCopies, opListVolumes:
		what += fmt.Sprintf(" of %s: %s", linearNames[c.at], m.describeSeen(c, a))
	case opRestore, opRead, opUnmake:
		what += fmt.Sprintf(" v%d of %s", c.vol, m.plans[c.thing].name)
	case opCopy, opPin:
		p := m.plans[c.thing]
		what += fmt.Sprintf(" %s as %s", m.plans[p.source].name, p.name)
		if p.token >= 0 {
			what += fmt.Sprintf(", token %d", p.token)
		}
	default:
		what += " " + m.plans[c.thing].name
	}
	what += fmt.Sprintf(" -> %s %s%s", a.kind, a.state, a.copy)
	if a.wrong {
		what += " WRONG CONTENT"
	}
	if a.text != "" {
		what += " (" + a.text + ")"
	}
	return what
}

func (m *spec) describeSeen(c call, a answer) string {
	var all []string
	for i, in := range a.seen {
		for _, s := range in {
			name := fmt.Sprintf("v%d", i)
			if c.verb != opListVolumes {
				name = m.plans[i].name
			}
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s%s", name, s.state, s.copy)))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// describeState is a state in words.
func (m *spec) describeState(f *facts) string {
	var all []string
	for i, x := range f.things {
		if x.phase == unborn {
			continue
		}
		text := m.plans[i].name + " " + x.phase.String()
		if x.failing {
			text += ", failing"
		}
		if x.forced {
			text += ", forced"
		}
		for c := range f.things {
			if x.pins&(1<<c) != 0 {
				text += ", pinned by " + m.plans[c].name
			}
		}
		all = append(all, text)
	}
	for v, x := range f.vols {
		if x != noVolume {
			all = append(all, fmt.Sprintf("v%d %s", v, [...]string{"", "there", "being deleted", "gone"}[x]))
		}
	}
	return strings.Join(all, "; ")
}
