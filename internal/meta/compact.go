package meta

import (
	"time"

	"github.com/snapferry/snapferry"
)

// HollowObjects returns live objects of a chain of which a quarter or more is
// dead, by name, at most limit. Those where a segment of an open version lies
// are left out: it is still its writer's.
func (tx *Tx) HollowObjects(chain snapferry.ChainID, limit int) ([]Object, error) {
	return list(tx, objectsHollow, scanObject, "objects", hexText(chain), limit)
}

// SmallObjects returns live objects of a chain smaller than 8 MiB, newest
// first, at most limit. Those where a segment of an open version lies are left
// out.
func (tx *Tx) SmallObjects(chain snapferry.ChainID, limit int) ([]Object, error) {
	return list(tx, objectsSmall, scanObject, "objects", hexText(chain), limit)
}

// WriterLives reports whether an object was not merged yet and the version that
// wrote it is still there.
func (tx *Tx) WriterLives(object string) (bool, error) {
	_, err := get(tx, objectWriterLives, func(r scanner, id *string) error { return r.Scan(id) }, "writer of object", object, object)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// WritingObjects returns the objects that compactions registered and did not
// make live, by name from after on, at most limit.
func (tx *Tx) WritingObjects(after string, limit int) ([]Object, error) {
	return list(tx, objectsWriting, scanObject, "objects", after, limit)
}

// OrphanedSegments returns the segments that are registered as being written,
// but not for an open version, by id from after on, at most limit.
func (tx *Tx) OrphanedSegments(after snapferry.SegmentID, limit int) ([]Segment, error) {
	return list(tx, segmentsOrphaned, scanSegment, "segments", hexText(after), limit)
}

// KnownObject reports whether an object is registered, or a segment is to lie
// there.
func (tx *Tx) KnownObject(name string) (bool, error) {
	_, err := tx.Object(name)
	if err == nil || !snapferry.IsKind(err, snapferry.NotFound) {
		return err == nil, err
	}
	return tx.used(name)
}

// Move is a segment that compaction wrote again.
type Move struct {
	Segment    snapferry.SegmentID
	From       string // object in which it was read
	Generation uint32 // as it was read
	Offset     int64  // of the body in the new object, bytes
	Length     int64  // of the body, bytes
	// Kept calls fn for each slot of the new body with its stored bytes.
	Kept func(fn func(slot uint16, length uint32))
}

// MoveSegments says that segments lie in an object now that was registered as
// being written and is durable: it goes live, the segments are in it with their
// next generation, and objects in which none lies any more are condemned.
// Frames that died while they were copied stay dead and count in the new
// object. It is a Conflict, and nothing of it may be committed, when the
// object is not being written any more, or when a segment is gone or is not
// where, and of the generation with which, it was read.
func (tx *Tx) MoveSegments(object string, moves []Move, now time.Time) error {
	dead := int64(0)
	left := map[string]bool{}
	var order []string
	for i := range moves {
		m := &moves[i]
		s, err := tx.Segment(m.Segment)
		if snapferry.IsKind(err, snapferry.NotFound) {
			return snapferry.Errorf(snapferry.Conflict, "move segment %s: it was freed", m.Segment)
		}
		if err != nil {
			return err
		}
		still := int64(0)
		m.Kept(func(slot uint16, length uint32) {
			if i := int(slot) / 8; i < len(s.DeadSlots) && s.DeadSlots[i]&(1<<(slot%8)) != 0 {
				still += int64(length)
			}
		})
		n, err := tx.exec(segmentMove, hexText(m.Segment), m.From, m.Generation, object, m.Offset, m.Length, still)
		if err != nil {
			return fail(err, "move segment %s", m.Segment)
		}
		if n == 0 {
			return snapferry.Errorf(snapferry.Conflict, "move segment %s: it is in %s with generation %d, not in %s with %d",
				m.Segment, s.Object, s.Generation, m.From, m.Generation)
		}
		dead += still
		if err := tx.addDead(m.From, s.Length-s.DeadBytes); err != nil {
			return err
		}
		if !left[m.From] {
			left[m.From] = true
			order = append(order, m.From)
		}
	}
	n, err := tx.exec(objectGoLive, object, dead)
	if err != nil {
		return fail(err, "place object %s", object)
	}
	if n == 0 {
		return snapferry.Errorf(snapferry.Conflict, "place object %s: it is not being written any more", object)
	}
	for _, name := range order {
		used, err := tx.used(name)
		if err != nil {
			return err
		}
		if used {
			continue
		}
		if err := tx.CondemnObject(name, now); err != nil {
			return err
		}
	}
	return nil
}

// DropWriting forgets an object that a compaction registered, and reports
// whether it was still being written. After that nobody can make it live.
func (tx *Tx) DropWriting(name string) (bool, error) {
	n, err := tx.exec(objectDropWriting, name)
	return n > 0, fail(err, "forget object %s", name)
}
