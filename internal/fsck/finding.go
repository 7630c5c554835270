package fsck

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/snapferry/snapferry"
)

// maxFindings bounds a report: beyond it findings are only counted.
const maxFindings = 10_000

// target is what a finding is about. Slot is -1 but for a frame.
type target struct {
	object  string
	segment snapferry.SegmentID
	slot    int
	version snapferry.VersionID
}

func onObject(name string) target                   { return target{object: name, slot: -1} }
func onVersion(id snapferry.VersionID) target       { return target{version: id, slot: -1} }
func (t target) named(name string) target           { t.object = name; return t }
func (t target) isSlot() bool                       { return t.slot >= 0 }
func (t target) isSegment() bool                    { return t.slot < 0 && !t.segment.IsZero() }
func (t target) isObject() bool                     { return t.segment.IsZero() && t.version.IsZero() && t.object != "" }
func (c *checker) onSlot(r snapferry.Ref) target    { return c.onFrame(r.Segment, int(r.Slot)) }
func (c *checker) onSegment(s *seg) target          { return c.onFrame(s.ID, -1) }
func (c *checker) onUnknown(r snapferry.Ref) target { return target{segment: r.Segment, slot: -1} }

func (c *checker) onFrame(id snapferry.SegmentID, slot int) target {
	t := target{segment: id, slot: slot}
	if s := c.state.segments[id]; s != nil {
		t.object, t.version = s.Object, s.Version
	}
	return t
}

// finding is a Finding that is still being worked on.
type finding struct {
	target
	severity  string
	problem   string
	soft      bool // drop it when there is one about the segment or the object
	snapshots []snapferry.SnapshotID
}

// key names what two findings about one thing have in common. About a version
// several things can be said, about a frame, segment or object only the first
// counts: the rest follows from it.
func (f *finding) key() string {
	switch {
	case f.isSlot():
		return f.severity + f.segment.String() + "/" + strconv.Itoa(f.slot)
	case f.isSegment():
		return f.severity + f.segment.String()
	case f.isObject():
		return f.severity + f.object
	}
	return f.severity + f.version.String() + f.object + f.problem
}

// add records a finding and returns its number, -1 when there is one already.
func (c *checker) add(f *finding) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := f.key()
	if c.seen[k] {
		return -1
	}
	if len(c.findings) >= maxFindings {
		c.more++
		return -1
	}
	c.seen[k] = true
	c.findings = append(c.findings, f)
	return len(c.findings) - 1
}

func (c *checker) damage(t target, format string, args ...any) {
	c.add(&finding{target: t, severity: Damage, problem: fmt.Sprintf(format, args...)})
}

func (c *checker) garbage(t target, format string, args ...any) {
	c.add(&finding{target: t, severity: Garbage, problem: fmt.Sprintf(format, args...)})
}

// coarse drops the soft findings that follow from one about their segment or
// their object.
func (c *checker) coarse() {
	segments, objects := map[snapferry.SegmentID]bool{}, map[string]bool{}
	for _, f := range c.findings {
		if f.severity == Damage && f.isSegment() {
			segments[f.segment] = true
		}
		if f.severity == Damage && f.isObject() {
			objects[f.object] = true
		}
	}
	c.findings = slices.DeleteFunc(c.findings, func(f *finding) bool {
		return f.soft && (segments[f.segment] || objects[f.object])
	})
}

// report puts what was found in order: damage first, then by place.
func (c *checker) report() *Report {
	r := &Report{
		Region: c.Region, Deep: c.Deep, Clean: true, Versions: int64(len(c.state.versions)), Snapshots: c.state.visible,
		Objects: c.looked.Load(), Bytes: c.bytes.Load(), Frames: c.frames.Load(), Findings: []Finding{},
		HeldByDeleted: c.held.Load(),
	}
	slices.SortStableFunc(c.findings, func(a, b *finding) int {
		return cmp.Or(cmp.Compare(a.severity, b.severity), cmp.Compare(a.object, b.object), slices.Compare(a.segment[:], b.segment[:]),
			cmp.Compare(a.slot, b.slot), slices.Compare(a.version[:], b.version[:]), cmp.Compare(a.problem, b.problem))
	})
	for _, f := range c.findings {
		out := Finding{Severity: f.severity, Object: f.object, Problem: f.problem, Snapshots: f.snapshots}
		if !f.segment.IsZero() {
			out.Segment = f.segment.String()
		}
		if f.isSlot() {
			slot := f.slot
			out.Slot = &slot
		}
		if !f.version.IsZero() {
			out.Version = f.version.String()
		}
		r.Clean = r.Clean && f.severity != Damage
		r.Findings = append(r.Findings, out)
	}
	if c.more > 0 {
		r.Clean = false
		r.Findings = append(r.Findings, Finding{Severity: Damage, Problem: fmt.Sprintf("%d more findings are not listed", c.more)})
	}
	return r
}
